"""A copy of a SQLite journal, whole and of one instant, also while another process serves it. Every call blocks.

Plan: a connection that cannot write holds one snapshot, which SQLite copies page by page into a new file beside the
target. That is checked as a journal is when it is opened, marked as a copy, written through to the disk, and only then
given its name. If anything fails, nothing is left.

Events may have been kept after the copy was made, and the copy cannot know. So a hub that opens one, told by the mark,
begins a new life of the journal (:func:`database.open_to_write`), and every older cursor meets a gap.

Cost: publishers wait for nothing, but SQLite cannot write its log anew from the beginning while the snapshot is held,
so the log grows by what is published meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import JournalUnusable
from . import database, file

STEP_PAGES = 1024
"""Pages that are copied between two reports, four mebibytes: a few milliseconds."""

Tell = Callable[[int, int], None]
"""Is told how many bytes have been copied, and of how many."""


def back_up(path: str, target: str, tell: Tell) -> int:
    """Copy the journal in a file to a new file, which only its owner may read; how many bytes it has.

    However it ends otherwise, an interrupt included, there is no new file.

    Raises:
      JournalUnusable: the journal cannot be read, or the copy cannot be written; the line says which, and why.
    """
    place = os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(target))  # noqa: PTH118, PTH119, PTH120
    with _explained(path, place):
        if file.check(path) is None:
            raise JournalUnusable(f"there is no journal {path}")
        if os.path.lexists(place):
            raise JournalUnusable(f"{place} exists, and was left as it is: name a file that does not")
        if place in {path + end for end in file.BESIDE}:
            raise JournalUnusable(f"{place} is a name of the journal's own: name another file for the copy")
        making = _make_file(place)
        try:
            _copy(path, making, tell)
            size = _write_through(making)
            _name(making, place)
        except BaseException:
            for end in file.OF_SQLITE:
                Path(making + end).unlink(missing_ok=True)
            raise
    return size


def _make_file(place: str) -> str:
    """An empty file beside the target, which no other has that makes a copy."""
    folder, name = os.path.split(place)
    made, making = tempfile.mkstemp(file.MAKING, name + ".", folder)
    os.close(made)
    return making


def _copy(path: str, making: str, tell: Tell) -> None:
    with (
        contextlib.closing(database.connect_to_read(path)) as source,
        contextlib.closing(sqlite3.connect(Path(making), isolation_level=None)) as copy,
    ):
        source.execute("BEGIN")
        version = database.version(source, path)
        if not version:
            raise JournalUnusable(f"there is no journal in {path}")
        (size,) = source.execute("PRAGMA page_size").fetchone()
        copy.execute("PRAGMA locking_mode = EXCLUSIVE")
        copy.execute("PRAGMA synchronous = OFF")  # it is written through at the end, at once
        copy.execute("PRAGMA journal_mode = OFF")
        source.backup(copy, pages=STEP_PAGES, progress=lambda _, left, whole: tell((whole - left) * size, whole * size))
        copy.execute("PRAGMA journal_mode = MEMORY")  # and not WAL, as in the source: a copy is one file
        if fault := database.fault(copy, version):
            raise JournalUnusable(f"the journal {path} is damaged ({fault}): no copy of it was kept")
        database.mark_as_copy(copy)


def _write_through(making: str) -> int:
    descriptor = os.open(making, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _name(making: str, place: str) -> None:
    """Give the file its name, unless something has it by now."""
    os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))  # renaming overwrites
    try:
        Path(making).replace(place)
    except BaseException:
        Path(place).unlink()
        raise
    folder = os.open(os.path.dirname(place), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _explained(path: str, place: str) -> Iterator[None]:
    """Errors as one line each."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            why = "there is no room left on its disk"
        elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            why = "another program holds the journal"
        elif code == sqlite3.SQLITE_CANTOPEN and not os.access(path, os.R_OK):
            why = "this user may not read it"
        else:
            why = getattr(error, "strerror", None) or str(error)
        raise JournalUnusable(f"the journal {path} cannot be copied to {place}: {why}") from error
