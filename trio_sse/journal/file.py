"""The file of a SQLite journal, while one process has it: one regular file, locked, that only its owner can read.

Facts: SQLite keeps its log in ``PATH-wal`` and the log's index in ``PATH-shm``, and finds both by the name that it is
given. Two processes that reach one database by two names have two logs, and each loses what the other keeps. A file
that is mounted by itself, into a container say, has its log outside the mount, where it vanishes with the container.

Plan: the path is resolved once, and everybody in here uses that. The file, and all that lies beside it under the names
that a journal uses, are looked at through descriptors that can neither read nor write (``O_PATH``): a device, FIFO or
socket is never opened. Then the file itself is locked (``flock``), and looked for once more: if another lies there by
now, it has been made meanwhile, and all is begun again. A file that is made anew is locked before it takes its place,
so at every moment the lock is on the file that the path leads to.

Traps: POSIX drops all of a process's locks on a file, SQLite's too, when the process closes *any* descriptor of it. So
this one is opened before SQLite's first and closed after its last, and a file that this process has open already is
known by its number, without opening it.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from ..errors import JournalUnusable

MAKING = ".making"
"""Added to the name of a file while it is being made."""

KEY = ".key"
"""Added to a journal's name: the file of its signing key."""

OF_SQLITE = ("", "-wal", "-shm", "-journal")
"""Added to a database's name: its files."""

BESIDE = (*OF_SQLITE[1:], *(MAKING + end for end in OF_SQLITE), KEY, KEY + MAKING)
"""Added to a journal's name: all that may lie beside it."""

FORMAT, ROLLBACK = 18, b"\1\1"
"""Where a database's header says which kind of log it has, and what it says of the kind without ``-wal``: a journal has
that only as a copy which nobody has opened."""

FOUND_AGAIN = 100
"""Times that the path may lead to another file than the one just locked, before the journal counts as in use. Each time
another process has made it anew, which it does once in its life."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_CREATE = _OPEN | os.O_CREAT | os.O_EXCL
_MOUNT = re.compile(r"^mnt_id:\s*(\d+)$", re.MULTILINE)

_held: set[tuple[int, int]] = set()  # the device and number of each file that this process holds
_opening = threading.Lock()


class Locked(JournalUnusable):
    """Another process has the journal."""


def resolve(path: str) -> str:
    """Where the file is, whatever links lead to it: absolute, so that SQLite takes no part of it for an option."""
    try:
        return os.path.realpath(path)
    except ValueError as error:
        raise JournalUnusable(f"the journal {path!r} cannot be used: {error}") from None


class JournalFile:
    """A journal's file, which nobody else serves until it is closed; a context manager that closes it.

    A missing one is made, and is empty. ``path`` is resolved.

    Raises:
      Locked: somebody has it. JournalUnusable: it cannot be had at all; what lies there is left as it is.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with _opening:
            self._file, self._number = _hold(path)

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it yet."""
        return os.fstat(self._file).st_size == 0

    def exposed(self) -> list[str]:
        """Those of the journal's files that other users may read or write."""
        found = []
        for end in ("", "-wal", KEY):
            status = _look(self.path + end)
            if status is not None and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                found.append(self.path + end)
        return found

    @contextmanager
    def made_anew(self) -> Iterator[str]:
        """The path of another file, which takes the place of this one when the block ends well.

        To be killed in between leaves this one as it was. The rights of the other are those of this one.
        """
        making = self.path + MAKING
        for end in OF_SQLITE:  # of somebody who was killed
            Path(making + end).unlink(missing_ok=True)
        file = os.open(making, _CREATE, 0o600)
        try:
            os.fchmod(file, stat.S_IMODE(os.fstat(self._file).st_mode))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield making
            Path(making).replace(self.path)
        except BaseException:
            os.close(file)
            for end in OF_SQLITE:
                Path(making + end).unlink(missing_ok=True)
            raise
        with _opening:
            self.close()
            self._file, self._number = file, _number(os.fstat(file))
            _held.add(self._number)

    def close(self) -> None:
        """Let others have it; to be called when SQLite has closed it."""
        _held.discard(self._number)
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _hold(path: str) -> tuple[int, tuple[int, int]]:
    """Open and lock the file that the path leads to; its descriptor, and which file it is."""
    for _ in range(FOUND_AGAIN):
        before = check(path)
        if before is None:
            if _has_log(path) and _look(path) is None:
                raise _log_alone(path, "missing")
        elif _number(before) in _held:
            raise Locked(_locked(path, os.getpid()))
        changed = FileExistsError if before is None else FileNotFoundError
        try:
            file = os.open(path, _CREATE if before is None else _OPEN, 0o600)
        except changed:
            continue
        except OSError as error:
            raise JournalUnusable(f"the journal {path} cannot be used: {error.strerror or error}") from error
        try:
            if _lock(path, file):
                _held.add(number := _number(os.fstat(file)))
                return file, number
        except BaseException:
            os.close(file)
            raise
        os.close(file)
    raise Locked(_locked(path, None))


def _lock(path: str, file: int) -> bool:
    """Lock a file that is open, unless the path leads to another by now; whether it is locked."""
    status = os.fstat(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Locked(_locked(path, _holder(status))) from None
    except OSError as error:
        raise JournalUnusable(f"the journal {path} cannot be locked: {error.strerror or error}") from error
    now = check(path)
    if now is None or _number(now) != _number(status):
        return False
    if _has_log(path):  # only now: whoever was making it had a log, too
        if not now.st_size:
            raise _log_alone(path, "empty")
        if os.pread(file, 2, FORMAT) == ROLLBACK:  # SQLite would take the log for this file's, and mix the two
            raise JournalUnusable(
                f"the journal {path} is a copy without a log, and {path}-wal is the log of another file: remove it"
            )
    return True


def check(path: str) -> os.stat_result | None:
    """The status of a journal's file, none if there is none.

    Raises:
      JournalUnusable: it, or what lies beside it, can be no part of a journal.
    """
    status = _check_plain("the journal", path)
    for end in BESIDE:
        _check_plain("the journal's own file", path + end)
    return status


def _has_log(path: str) -> bool:
    status = _look(path + "-wal")
    return status is not None and status.st_size > 0


def _log_alone(path: str, what: str) -> JournalUnusable:
    return JournalUnusable(
        f"the journal {path} is {what}, and its log {path}-wal is not: restore the one, or remove the other"
    )


def _check_plain(what: str, path: str) -> os.stat_result | None:
    """The status of a regular file with one name, in the folder that it seems to be in; none if there is nothing."""
    try:
        file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalUnusable(f"{what} {path} cannot be used: {error.strerror or error}") from error
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
            raise JournalUnusable(f"{what} {path} is {kind}, and was left as it is: name a regular file, or a new one")
        if status.st_nlink > 1:
            raise JournalUnusable(
                f"{what} {path} has {status.st_nlink} names (hard links), and one log beside each: remove the others, "
                "or name a copy"
            )
        if _mount(file) != _mount_of_folder(path):
            raise JournalUnusable(
                f"{what} {path} is mounted by itself, and its log would be left outside: mount the folder that it is in"
            )
        return status
    finally:
        os.close(file)


def _mount(file: int) -> str | None:
    """The number of the mount through which a file was opened, where the kernel tells it.

    A mount point's own device is no help: a file may be mounted within its own file system.
    """
    try:
        found = _MOUNT.search(Path(f"/proc/self/fdinfo/{file}").read_text())
    except OSError:
        return None
    return None if found is None else found[1]


def _mount_of_folder(path: str) -> str | None:
    try:
        folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120
    except OSError as error:
        raise JournalUnusable(f"the folder of {path} cannot be used: {error.strerror or error}") from error
    try:
        return _mount(folder)
    finally:
        os.close(folder)


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _number(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _holder(status: os.stat_result) -> int | None:
    """The process that has locked a file, where the kernel tells it."""
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return None
    return next((int(lock[4]) or None for lock in locks if lock[1] == "FLOCK" and lock[5] == file), None)


def _locked(path: str, process: int | None) -> str:
    who = "another process" if process is None else f"process {process}"
    return (
        f"the journal {path} is in use by {who}: an embedded journal serves one worker; stop that one, or name another "
        "file in TRIO_SSE_JOURNAL"
    )
