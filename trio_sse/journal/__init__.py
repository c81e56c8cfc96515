"""Journals: every event in its place. One contract, several ways to keep it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from ..errors import JournalUnusable
from ..retention import Retention
from . import backup, file, signing_key
from .contract import Follower, Journal, JournalStatistics, Page
from .memory import open_memory
from .sqlite import open_sqlite

__all__ = ["Follower", "Journal", "JournalStatistics", "Page", "back_up", "open_journal", "read_signing_key"]


def open_journal(
    url: str, *, retention: Retention | None = None, clock: Callable[[], float] = time.time
) -> AbstractAsyncContextManager[Journal]:
    """Open the journal a URL names, for the length of an ``async with`` block.

    ``memory:`` lives in the process; ``sqlite:PATH`` in a file, made when it is missing.

    Raises:
      JournalUnusable: there is no such kind of journal, or (on entering the block) it cannot be opened.
    """
    retention = retention or Retention()
    kind, _, path = url.partition(":")
    if kind == "memory" and not path:
        return open_memory(retention, clock)
    if kind == "sqlite" and path not in ("", ":memory:"):
        return open_sqlite(path, retention, clock)
    raise JournalUnusable(f"there is no journal {url!r}: use memory: or sqlite:PATH")


def read_signing_key(url: str) -> str | None:
    """The key (:meth:`Journal.signing_key`) of a journal that may be open elsewhere; none when there is none.

    Raises:
      JournalUnusable: it cannot be read.
    """
    kind, _, path = url.partition(":")
    return signing_key.read(file.resolve(path)) if kind == "sqlite" and path else None


def back_up(url: str, target: str, tell: backup.Tell = lambda copied, whole: None) -> int:
    """Copy a journal, which another process may be serving, to a new file (:func:`backup.back_up`); its size in bytes.

    Raises:
      JournalUnusable: it cannot be copied.
    """
    kind, _, path = url.partition(":")
    if kind != "sqlite" or path in ("", ":memory:"):
        raise JournalUnusable(f"the journal {url!r} is in no file: there is nothing to copy")
    return backup.back_up(file.resolve(path), target, tell)
