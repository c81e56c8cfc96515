"""For tests: of what is built on a hub, and of a journal of your own.

A journal is tested by subclassing :class:`JournalContract`; its tests need pytest with pytest-trio::

    class TestMyJournal(JournalContract):
        def open_journal(self, retention, clock):
            return open_my_journal(retention=retention, clock=clock)
"""

from __future__ import annotations

from .journals import JournalContract
from .reading import NOON, WallClock, data_of, decode, draft, read_all, take

__all__ = ["NOON", "JournalContract", "WallClock", "data_of", "decode", "draft", "read_all", "take"]
