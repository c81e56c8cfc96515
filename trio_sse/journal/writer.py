"""The writing side of a SQLite journal, in whatever thread calls it, one call at a time.

One transaction adds records, with their idempotency keys, and removes what retention no longer allows. What it removes
is bounded, so that a publisher never waits for a large clean-up: a topic that has too much left is looked at again by
the next transaction that has nothing else to do (:attr:`Change.more`).

What each topic holds is kept in memory and in the file; after a failed transaction memory is read from the file again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import KeyReused
from ..event import SEQ_BITS, EventID
from ..record import Once, Record
from ..retention import Ages, Limits, Retention
from . import database, disk
from .contract import MAX_EMPTY_TOPICS, MAX_LOST, MAX_TOPICS, JournalStatistics
from .file import JournalFile
from .keys import Keys

LOOKS = 1_000
"""A transaction that only cleans up removes or looks at so many records and topics."""

LOOKS_BESIDE = 64
"""One that adds records removes twice as many, and so many more."""

INDEX_BYTES = 1024 * 1024
"""So much is reserved for the index of SQLite's log, enough for half a gibibyte of log. Where there is no room for it
to grow, SQLite fails after it has written what it then says it has not, and finds it again after ``kill -9``. (It does
not grow before there are 16 MiB of log, so on a small disk that cannot happen.)"""

Doomed = tuple[int, str | None, int]
"""A record that goes: its ID, key and size."""


@dataclass(slots=True)
class Write:
    """What one publisher wants to be kept, all or none; and what came of it."""

    records: Sequence[Record]
    once: Once | None = None
    before: EventID | None = None
    """The ID under which it was kept before, and so not again."""
    refusal: KeyReused | None = None


@dataclass(slots=True)
class Change:
    """What a transaction did, for those who hold records in memory."""

    added: list[Record] = field(default_factory=list)
    marks: list[tuple[str, EventID, EventID]] = field(default_factory=list)
    """Topics for which it has changed: each with its floor, and up to where some of it is lost."""
    forgotten: list[str] = field(default_factory=list)
    coarse_floor: EventID | None = None
    """The new one, where it is another than before."""
    more: bool = False
    """Whether there was more to remove or to look at."""


@dataclass(slots=True)
class Held:
    """What the file holds of one topic."""

    id: int
    name: str
    limits: Limits
    floor: int
    lost_floor: int
    """Up to here it is not known whether what was removed is replaced."""
    events: int = 0
    unkeyed: int = 0
    bytes: int = 0
    lost: int = 0
    """The highest ID of a removed record that is not replaced, or 0."""

    @property
    def marks(self) -> tuple[str, EventID, EventID]:
        lost = max(self.lost_floor, self.lost)
        return self.name, EventID.unpacked(self.floor), EventID.unpacked(lost)


class Writer:
    """A journal's file, to be written to."""

    def __init__(self, file: JournalFile, retention: Retention) -> None:
        self._file = file
        self._path = file.path
        self._places = [Path(file.path + suffix) for suffix in ("", "-wal")]
        self._files: list[tuple[int, int]] = []
        self._retention = retention
        self._db: sqlite3.Connection | None = None
        self._index: int | None = None
        self._index_is_reserved = False
        self._pages = 0  # so many the file may have
        self._ages = Ages()
        self._coarse_floor = 0
        self._stale = True  # what is in memory may not be what is in the file

    @property
    def db(self) -> sqlite3.Connection:
        assert self._db is not None
        return self._db

    def open(self, position: EventID) -> tuple[EventID, EventID, EventID]:
        """Open or make the file; the position of its birth, the highest ID or floor in it, and the highest position.

        Raises:
          JournalUnusable: it is not ours, not sound, or from a later version. sqlite3.Error: it cannot be had.
        """
        self._db = db = database.open_to_write(self._file, position)
        self._keys = Keys(db)
        self._load()
        self._files = self._find_files()
        self._index = os.open(f"{self._path}-shm", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._look_for_room()
        born = database.meta(db, "born")
        floors = [self._coarse_floor, *(held.floor for held in self._topics.values())]
        (newest,) = db.execute("SELECT max(id) FROM record").fetchone()
        highest, given = max([born, newest or 0, *floors]), database.meta(db, "position")
        return EventID.unpacked(born), EventID.unpacked(highest), EventID.unpacked(given)

    def close(self, position: EventID | None) -> None:
        """Close the file, with the highest position that was given, if any: the next life begins there, no later."""
        if self._db is not None:
            if position is not None:
                with contextlib.suppress(sqlite3.Error), database.transaction(self._db):
                    self._keep_position(position)
            self._db.close()
            if self._index is not None:  # to close it before would take SQLite's locks from it
                os.close(self._index)

    def topics(self) -> Iterator[Held]:
        """What it holds of each topic."""
        return iter(self._topics.values())

    @property
    def coarse_floor(self) -> EventID:
        """The floor of all topics that it does not hold."""
        return EventID.unpacked(self._coarse_floor)

    def statistics(self) -> JournalStatistics:
        """How much the file holds; the newest ID it does not know."""
        return JournalStatistics(self._events, self._bytes, len(self._topics) - len(self._empty), None)

    # -- one transaction ----------------------------------------------------------------------------------

    def commit(self, writes: Sequence[Write], now_ms: int, keys_since: EventID, position: EventID | None) -> Change:
        """Keep what publishers want kept, remove what is too much, and keep the position; all or nothing.

        Raises:
          sqlite3.Error: SQLite could not. OSError: the file is gone, and all that was kept in it.
        """
        if not writes:
            self._look_for_room()
        try:
            return self._commit(writes, now_ms, keys_since, position)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL or not self._look_for_room():
                raise
        return self._commit(writes, now_ms, keys_since, position)  # there is more room than there was

    def _commit(self, writes: Sequence[Write], now_ms: int, keys_since: EventID, position: EventID | None) -> Change:
        if self._stale:
            self._load()
        self._stale = True  # until it is known that memory and file say the same
        change = Change()
        self._touched, self._marked = dict[str, Held](), dict[str, Held]()
        with database.transaction(self.db):
            for write in writes:
                try:
                    if write.once is not None:
                        write.before = self._keys.take(write.once, write.records[0], keys_since)
                except KeyReused as refusal:
                    write.refusal = refusal
                if write.before is None and write.refusal is None:
                    change.added += write.records
            self._insert(change.added)
            if writes:
                self._looks = LOOKS_BESIDE + 2 * len(change.added)
                for held in list(self._touched.values()):
                    if held.events > held.limits.events or held.bytes > held.limits.bytes:
                        self._limit(held, now_ms)
            else:
                self._looks = LOOKS
                self._look_at_the_old(now_ms)
                self._keys.drop(keys_since)
            self._remove_oldest()
            self._drop_lost()
            self._forget(change)
            change.marks = [held.marks for held in self._marked.values()]
            query = "UPDATE topic SET floor = ?, lost = ?, events = ?, unkeyed = ?, bytes = ? WHERE id = ?"
            rows = [(h.floor, h.lost_floor, h.events, h.unkeyed, h.bytes, h.id) for h in self._touched.values()]
            self.db.executemany(query, rows)
            if position is not None:
                self._keep_position(position)
        if self._find_files() != self._files:
            raise OSError(f"the files of the journal {self._path} are not those that were opened")
        self._stale = False
        change.more = self._looks <= 0
        return change

    def _insert(self, records: Sequence[Record]) -> None:
        rows = []
        for record in records:
            held = self._topics.get(record.topic)
            if held is None:
                query = "INSERT INTO topic (name, floor, lost) VALUES (?, ?, ?)"
                id = self.db.execute(query, (record.topic, self._coarse_floor, self._coarse_floor)).lastrowid
                assert id is not None
                limits = self._retention.of(record.topic)
                held = Held(id, record.topic, limits, self._coarse_floor, self._coarse_floor)
                self._topics[record.topic] = self._by_id[id] = held
            self._touched[held.name] = held
            if not held.events:
                self._empty.pop(held.name, None)
                self._ages.look(held.name, held.limits.too_old_at(record.id.ms))
            held.events += 1
            held.unkeyed += record.key is None
            held.bytes += len(record.frame)
            self._bytes += len(record.frame)
            if held.lost:
                self._replace(held, record.key)
            rows.append((record.id.packed(), held.id, record.key, record.frame))
        self.db.executemany("INSERT INTO record VALUES (?, ?, ?, ?)", rows)
        self._events += len(rows)

    def _replace(self, held: Held, key: str | None) -> None:
        """A key has a new value: if an older one was lost, that is of no account any more."""
        gone = self.db.execute("DELETE FROM lost WHERE topic = ? AND key = ?", (held.id, key or "")).rowcount
        if gone:
            self._marked[held.name] = held
            self._lost -= gone
            held.lost = self.db.execute("SELECT max(id) FROM lost WHERE topic = ?", (held.id,)).fetchone()[0] or 0

    # -- what is too much ---------------------------------------------------------------------------------

    def _look_at_the_old(self, now_ms: int) -> None:
        for name in self._ages.due(now_ms):
            self._looks -= 1
            if (held := self._topics.get(name)) is not None and held.events:
                self._limit(held, now_ms)
            if self._looks <= 0:
                return

    def _limit(self, held: Held, now_ms: int) -> None:
        """Remove what is too much of one topic, and have it looked at again when there will be more."""
        query = "SELECT id, key, length(frame) FROM record WHERE topic = ? ORDER BY id LIMIT ?"
        seen: list[Doomed] = []

        def oldest() -> Iterator[tuple[int, int]]:
            for row in self.db.execute(query, (held.id, max(0, self._looks) + 1)):
                seen.append(row)
                if len(seen) > self._looks:
                    return
                yield row[0] >> SEQ_BITS, row[2]

        count = held.limits.excess(held.events, held.bytes, oldest(), now_ms)
        if count:
            self._remove(held, seen[:count])
        if len(seen) > count:  # the one behind those that went; where it only went unseen, it is due at once
            self._ages.look(held.name, held.limits.too_old_at(seen[count][0] >> SEQ_BITS) if self._looks > 0 else 0)

    def _remove_oldest(self) -> None:
        """Remove the oldest events, whatever their topic, until the bytes and the number of topics are right."""
        size, topics = self._bytes, len(self._topics) - len(self._empty)
        if size <= self._retention.bytes and topics <= MAX_TOPICS:
            return
        doomed: dict[int, list[Doomed]] = {}
        query = "SELECT id, key, length(frame), topic FROM record ORDER BY id LIMIT ?"
        for id, key, length, topic in self.db.execute(query, (max(self._looks, LOOKS_BESIDE),)):
            if size <= self._retention.bytes and topics <= MAX_TOPICS:
                break
            mine = doomed.setdefault(topic, [])
            mine.append((id, key, length))
            size -= length
            topics -= len(mine) == self._by_id[topic].events
        for topic, rows in doomed.items():
            self._remove(self._by_id[topic], rows)

    def _remove(self, held: Held, rows: Sequence[Doomed]) -> None:
        """Remove a topic's oldest records; those that were the newest of their key are lost."""
        self._touched[held.name] = self._marked[held.name] = held
        self._looks -= len(rows)
        held.floor = rows[-1][0]
        self.db.execute("DELETE FROM record WHERE topic = ? AND id <= ?", (held.id, held.floor))
        held.events -= len(rows)
        held.unkeyed -= sum(key is None for _, key, _ in rows)
        held.bytes -= sum(size for _, _, size in rows)
        self._events -= len(rows)
        self._bytes -= sum(size for _, _, size in rows)
        if not held.events:
            self._empty[held.name] = None
        for key, id in {key: id for id, key, _ in rows}.items():
            if not self._has(held, key):
                self.db.execute("INSERT INTO lost VALUES (?, ?, ?)", (id, held.id, key or ""))
                held.lost = max(held.lost, id)
                self._lost += 1

    def _has(self, held: Held, key: str | None) -> bool:
        """Whether a topic has a value of this key."""
        if key is None:
            return held.unkeyed > 0
        query = "SELECT 1 FROM record WHERE topic = ? AND key = ? LIMIT 1"
        return self.db.execute(query, (held.id, key)).fetchone() is not None

    def _drop_lost(self) -> None:
        """Of too many keys that are lost, know of the oldest no longer whether they are replaced."""
        if self._lost <= MAX_LOST:
            return
        query = "SELECT id, topic FROM lost ORDER BY id LIMIT ?"
        rows = self.db.execute(query, (self._lost - MAX_LOST,)).fetchall()
        for id, topic in rows:
            held = self._by_id[topic]
            held.lost_floor = max(held.lost_floor, id)
            self._touched[held.name] = self._marked[held.name] = held
        self.db.execute("DELETE FROM lost WHERE id <= ?", (rows[-1][0],))
        self._lost -= len(rows)

    def _forget(self, change: Change) -> None:
        """Forget topics of which nothing but the floor is left, if there are too many of those."""
        while len(self._empty) > MAX_EMPTY_TOPICS:
            held = self._topics.pop(name := next(iter(self._empty)))
            del self._empty[name], self._by_id[held.id]
            self._touched.pop(name, None)
            self._marked.pop(name, None)
            coarse = EventID(EventID.unpacked(held.floor).ms + 1, 0).packed()  # a position: no other topic's ID
            self._coarse_floor = max(self._coarse_floor, coarse)
            self._lost -= self.db.execute("DELETE FROM lost WHERE topic = ?", (held.id,)).rowcount
            self.db.execute("DELETE FROM topic WHERE id = ?", (held.id,))
            change.forgotten.append(name)
        if change.forgotten:
            query = "UPDATE meta SET value = ? WHERE name = 'coarse_floor'"
            self.db.execute(query, (str(self._coarse_floor),))
            change.coarse_floor = self.coarse_floor

    # -- memory and file ----------------------------------------------------------------------------------

    def _keep_position(self, position: EventID) -> None:
        """So that the next life begins there, whatever the clock says then."""
        self.db.execute("UPDATE meta SET value = ? WHERE name = 'position'", (str(position.packed()),))

    def _load(self) -> None:
        """Read from the file what is kept in memory of it."""
        rows = self.db.execute("SELECT id, name, floor, lost, events, unkeyed, bytes FROM topic ORDER BY floor")
        helds = [Held(id, name, self._retention.of(name), *sums) for id, name, *sums in rows]
        self._topics = {held.name: held for held in helds}
        self._by_id = {held.id: held for held in helds}
        self._empty = {held.name: None for held in helds if not held.events}
        self._events = sum(held.events for held in helds)
        self._bytes = sum(held.bytes for held in helds)
        for held in helds:
            if held.events:
                self._ages.look(held.name, 0)
        for topic, lost in self.db.execute("SELECT topic, max(id) FROM lost GROUP BY topic"):
            self._by_id[topic].lost = lost
        (self._lost,) = self.db.execute("SELECT count(*) FROM lost").fetchone()
        self._keys.count()
        self._coarse_floor = database.meta(self.db, "coarse_floor")
        self._stale = False

    def _look_for_room(self) -> bool:
        """See how large the file may grow, and have room for the index of its log; whether it may grow larger now."""
        if not self._index_is_reserved:
            assert self._index is not None
            self._index_is_reserved = disk.allocate(self._index, INDEX_BYTES)
        before = self._pages
        (size,) = self.db.execute("PRAGMA page_size").fetchone()
        pages = disk.largest(self._path) // size
        (self._pages,) = self.db.execute(f"PRAGMA max_page_count = {max(1, pages)}").fetchone()
        return self._pages > before

    def _find_files(self) -> list[tuple[int, int]]:
        """Which files are where ours should be: to one that was removed SQLite goes on writing, and keeps nothing.

        Raises:
          OSError: there is none.
        """
        return [(file.st_dev, file.st_ino) for file in map(os.stat, self._places)]
