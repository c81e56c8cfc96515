"""The idempotency keys in a SQLite journal: which event was published under which, and what it was."""

from __future__ import annotations

import sqlite3

from ..errors import KeyReused
from ..event import EventID
from ..record import Once, Record
from .contract import MAX_ONCE, REUSED

DROPPED = 1_000
"""So many of those that are too old are forgotten together."""


class Keys:
    """All of them, to be used inside a transaction; :meth:`count` them when one has failed."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.count()

    def count(self) -> None:
        """See how many the file has."""
        (self._count,) = self._db.execute("SELECT count(*) FROM once").fetchone()

    def take(self, once: Once, record: Record, since: EventID) -> EventID | None:
        """Let a key stand for a record, unless it stands for one already: then the ID of that, if it is at least this.

        Raises:
          KeyReused: what it stands for is another event.
        """
        name = (once.subject or "", record.topic, once.key)
        query = "SELECT id, body FROM once WHERE subject = ? AND topic = ? AND key = ?"
        row = self._db.execute(query, name).fetchone()
        if row is not None and row[0] >= since.packed():
            if row[1] != once.body:
                raise KeyReused(REUSED)
            return EventID.unpacked(row[0])
        query = "INSERT OR REPLACE INTO once VALUES (?, ?, ?, ?, ?)"
        self._db.execute(query, (record.id.packed(), *name, once.body))
        self._count += row is None
        if self._count > MAX_ONCE:
            query = "DELETE FROM once WHERE id IN (SELECT id FROM once ORDER BY id LIMIT ?)"
            self._count -= self._db.execute(query, (self._count - MAX_ONCE,)).rowcount
        return None

    def drop(self, before: EventID) -> None:
        """Forget some of those that are too old."""
        query = "DELETE FROM once WHERE id IN (SELECT id FROM once WHERE id < ? ORDER BY id LIMIT ?)"
        self._count -= self._db.execute(query, (before.packed(), DROPPED)).rowcount
