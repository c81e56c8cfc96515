"""The key that development mode signs with, in a file of its own beside a SQLite journal.

It is no part of the journal, so it is in no copy of the journal, and can be forgotten without a trace in the database.
The process that holds the journal writes it; others of the same user may read it. A file that another user has put
there is no key, because that user would know it. Every call blocks.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import JournalUnusable
from .file import KEY, MAKING

MOST_BYTES = 4096
"""More than any key that was made here."""


def read(journal: str) -> str | None:
    """The key beside a journal; none when there is none.

    Raises:
      JournalUnusable: what lies there is no key.
    """
    path = journal + KEY
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    with os.fdopen(file, "rb") as opened:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(path, "it is no regular file")
        if Path(journal).exists() and status.st_uid != Path(journal).stat().st_uid:
            raise _unusable(path, "it is another user's than the journal")
        key = opened.read(MOST_BYTES).strip()
    if not key.isascii() or not key:
        raise _unusable(path, "there is no key in it")
    return key.decode()


def keep(journal: str, key: str) -> None:
    """Write a key, whole or not at all, in a file that only its owner may read, and in no other that a link leads to.

    Raises:
      JournalUnusable: it cannot be written.
    """
    path, making = journal + KEY, Path(journal + KEY + MAKING)
    try:
        making.unlink(missing_ok=True)
        with os.fdopen(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        making.replace(path)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error


def forget(journal: str) -> None:
    """Remove the key, if there is one.

    Raises:
      JournalUnusable: it cannot be removed.
    """
    try:
        Path(journal + KEY).unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(journal + KEY, error.strerror or str(error)) from error


def _unusable(path: str, why: str) -> JournalUnusable:
    return JournalUnusable(f"the development key {path} cannot be used: {why}; remove it, and there will be another")
