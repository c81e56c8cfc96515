"""Values that a SQLite journal removed though nothing newer has replaced them, by topic and key.

A reader that only wants the latest has missed something only if one of these is behind its cursor. So many are known,
and so many bytes of them; of the oldest beyond that it is no longer known whether they are replaced.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping

from .contract import MAX_LOST
from .costs import LOST_SHARE, SQLITE
from .held import Held


class Lost:
    """All of them, to be used inside a transaction; made anew when one has failed."""

    def __init__(self, db: sqlite3.Connection, topics: Mapping[int, Held]) -> None:
        self._db = db
        self._topics = topics
        query = "SELECT count(*), coalesce(sum(length(CAST(key AS BLOB))), 0) FROM lost"
        self._count, keyed = db.execute(query).fetchone()
        self.bytes: int = self._count * SQLITE.lost + keyed * SQLITE.key_byte
        """What they are counted as."""
        for topic, lost in db.execute("SELECT topic, max(id) FROM lost GROUP BY topic"):
            topics[topic].lost = lost

    def remove(self, held: Held, key: str | None, id: int, *, from_front: bool) -> None:
        """A value was removed, with all that was older in its topic or not: it is lost, unless there is a newer one."""
        if self._has_newer(held, key, id, from_front=from_front):
            return
        # One that is known already is newer: an older value of another publisher goes after it.
        query = "INSERT INTO lost VALUES (?, ?, ?) ON CONFLICT (topic, key) DO NOTHING"
        if self._db.execute(query, (id, held.id, key or "")).rowcount:
            self._count += 1
            self.bytes += SQLITE.of_lost(key)
            held.lost = max(held.lost, id)

    def replace(self, held: Held, key: str | None) -> bool:
        """A key has a new value: if an older one was lost, that is of no account any more, and this is true."""
        gone = self._db.execute("DELETE FROM lost WHERE topic = ? AND key = ?", (held.id, key or "")).rowcount
        if gone:
            self._count -= gone
            self.bytes -= SQLITE.of_lost(key)
            held.lost = self._db.execute("SELECT max(id) FROM lost WHERE topic = ?", (held.id,)).fetchone()[0] or 0
        return bool(gone)

    def forget(self, held: Held) -> None:
        """The topic is forgotten."""
        for (key,) in self._db.execute("SELECT key FROM lost WHERE topic = ?", (held.id,)).fetchall():
            self._count -= 1
            self.bytes -= SQLITE.of_lost(key)
        self._db.execute("DELETE FROM lost WHERE topic = ?", (held.id,))

    def drop(self, most_bytes: float) -> Iterator[Held]:
        """Of too many, know of the oldest no longer whether they are replaced; the topics of which that is so."""
        over = self.bytes - most_bytes / LOST_SHARE
        if self._count <= MAX_LOST and over <= 0:
            return
        rows = []
        for id, topic, key in self._db.execute("SELECT id, topic, key FROM lost ORDER BY id"):
            if self._count <= MAX_LOST and over <= 0:
                break
            rows.append((id,))
            held, size = self._topics[topic], SQLITE.of_lost(key)
            held.lost_floor = max(held.lost_floor, id)
            self._count, self.bytes, over = self._count - 1, self.bytes - size, over - size
            yield held
        self._db.executemany("DELETE FROM lost WHERE id = ?", rows)

    def _has_newer(self, held: Held, key: str | None, id: int, *, from_front: bool) -> bool:
        if key is None and (from_front or not held.unkeyed):
            return held.unkeyed > 0  # all that is left is newer
        if key is None:
            query, given = "SELECT 1 FROM record WHERE topic = ? AND id > ? AND key IS NULL LIMIT 1", (held.id, id)
            return self._db.execute(query, given).fetchone() is not None
        query = "SELECT 1 FROM record WHERE topic = ? AND key = ? AND id > ? LIMIT 1"
        return self._db.execute(query, (held.id, key, id)).fetchone() is not None
