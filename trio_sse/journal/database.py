"""The file of a SQLite journal: its lock, its schema, its queries. No tasks: every call blocks.

An ID is one integer here (:meth:`EventID.packed`), and is the row's own ID: inserting in order is appending.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import JournalUnusable
from ..event import EventID
from ..record import Record
from ..topic import Selector, matching
from .contract import JournalStatistics, Retention
from .memory import MAX_EMPTY_TOPICS, MAX_TOPICS

APPLICATION_ID = 0x74735345  # "tsSE", in the file's header (PRAGMA application_id)
SCHEMA_VERSION = 1
MERGED_TOPICS = 64
"""Up to so many topics are read one by one along the index and merged; more, along the journal."""

BUSY_S = 1.0
"""How long another program, such as a backup, may hold the file before a transaction fails."""

BATCH, MOST_BATCHES = 256, 40
"""So many rows are looked at together when the oldest are removed, and so often in one transaction."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE topic (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, floor INTEGER NOT NULL) STRICT;
CREATE TABLE record (id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, key TEXT, frame BLOB NOT NULL) STRICT;
CREATE INDEX record_by_topic ON record (topic);
"""


class Locked(JournalUnusable):
    """Another process has the journal."""


def lock(path: str) -> int:
    """Make the journal ours, until the file that is returned is closed.

    Raises:
      Locked: another process has it. JournalUnusable: it cannot be had at all.
    """
    try:
        file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise JournalUnusable(f"the journal {path} cannot be used: {error.strerror or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # a full disk is no reason not to begin
            os.ftruncate(file, 0)
            os.pwrite(file, b"%d\n" % os.getpid(), 0)
    except OSError as error:
        owner = os.read(file, 32).decode(errors="replace").strip() or "unknown"
        os.close(file)
        if not isinstance(error, BlockingIOError):
            raise JournalUnusable(f"the journal {path} cannot be locked: {error.strerror or error}") from error
        raise Locked(
            f"the journal {path} is in use by process {owner}: an embedded journal serves one worker; "
            "stop that one, or name another file in TRIO_SSE_JOURNAL"
        ) from None
    return file


Row = tuple[int, int, str | None, bytes]


def choose(reader: sqlite3.Connection, selectors: Sequence[Selector]) -> tuple[dict[int, str], EventID]:
    """The topics that the selectors choose, and their floor."""
    if exact := all(selector.exact for selector in selectors):
        names = json.dumps([selector.text for selector in selectors])
        query = "SELECT id, name, floor FROM topic WHERE name IN (SELECT value FROM json_each(?))"
        rows = reader.execute(query, (names,)).fetchall()
    else:
        rows = [row for row in reader.execute("SELECT id, name, floor FROM topic") if matching(selectors, row[1])]
    floors = [floor for _, _, floor in rows]
    if len(rows) < len(selectors) or not exact:  # a topic of theirs may be among the forgotten
        floors.append(_meta(reader, "coarse_floor"))
    return {id: name for id, name, _ in rows}, EventID.unpacked(max(floors))


def rows(reader: sqlite3.Connection, topics: Sequence[int], after: int, limit: int) -> Iterator[Row]:
    columns = "SELECT id, topic, key, frame FROM record"
    if len(topics) > MERGED_TOPICS:
        query = columns + " WHERE id > ? AND +topic IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?"  # noqa: S608  # all constants
        yield from reader.execute(query, (after, json.dumps(topics), limit))
        return
    query = columns + " WHERE topic = ? AND id > ? ORDER BY id LIMIT ?"
    merged = heapq.merge(*(reader.execute(query, (topic, after, limit)) for topic in topics))
    for row, _ in zip(merged, range(limit), strict=False):
        yield row


class Writer:
    """The writing side of the file, in whatever thread calls it, one call at a time.

    It keeps in memory how many records each topic has; after a failed transaction it counts again.
    """

    def __init__(self, path: str, retention: Retention) -> None:
        self._path = path
        self._places = [Path(path + suffix).absolute() for suffix in ("", "-wal")]
        self._files: list[tuple[int, int]] = []
        self._retention = retention
        self._db: sqlite3.Connection | None = None
        self._topics: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._counts: dict[int, int] = {}
        self._empty: dict[int, None] = {}
        self._bytes = 0
        self._events = 0
        self._last = 0
        self._stale = True  # what is in memory may not be what is in the file
        self._crowded: set[int] = set()  # topics that hold more than retention allows
        self._kept_position: EventID | None = None

    @property
    def db(self) -> sqlite3.Connection:
        assert self._db is not None
        return self._db

    def open(self, position: EventID) -> tuple[EventID, EventID]:
        """Open or make the file; the position of its birth, and the highest ID or floor in it."""
        self._db = db = connect(self._path)
        application, version = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if tables and application != APPLICATION_ID:
            raise JournalUnusable(f"{self._path} is another program's database: name another file")
        if tables and version != SCHEMA_VERSION:
            raise JournalUnusable(
                f"the journal {self._path} has schema version {version}, and this trio_sse reads "
                f"{SCHEMA_VERSION}: use the trio_sse that wrote it, or name another file"
            )
        db.execute("PRAGMA journal_mode = WAL")
        with transaction(db):
            if not tables:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                for name in ("born", "coarse_floor", "position"):
                    db.execute("INSERT INTO meta VALUES (?, ?)", (name, str(position.packed())))
            # A file that cannot be written must fail here, not at the first event.
            db.execute("UPDATE meta SET value = value WHERE name = 'position'")
        self._count()
        self._files = self._find_files()
        highest = (
            _meta(db, "position"),
            db.execute("SELECT max(id) FROM record").fetchone()[0] or 0,
            db.execute("SELECT max(floor) FROM topic").fetchone()[0] or 0,
            _meta(db, "coarse_floor"),
        )
        return EventID.unpacked(_meta(db, "born")), EventID.unpacked(max(highest))

    def close(self, position: EventID) -> None:
        """Close the file, with the highest ID or position that was given."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error), transaction(self._db):
                self._keep_position(position)
            self._db.close()

    def statistics(self) -> JournalStatistics:
        last = EventID.unpacked(self._last) if self._events else None
        return JournalStatistics(self._events, self._bytes, len(self._topics) - len(self._empty), last)

    def secret(self, name: str, fresh: str) -> str:
        with transaction(self.db):
            self.db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (f"secret {name}", fresh))
            query = "SELECT value FROM meta WHERE name = ?"
            return str(self.db.execute(query, (f"secret {name}",)).fetchone()[0])

    def commit(self, records: Sequence[Record], oldest_ms: float, position: EventID | None = None) -> None:
        """Keep the records (and the position) and remove what retention no longer allows, all or nothing.

        Raises:
          sqlite3.Error: SQLite could not. OSError: the file is gone, and all that was kept in it.
        """
        if self._stale:
            self._count()
        self._stale = True  # until it is known that memory and file say the same
        with transaction(self.db):
            for topic in self._crowded | self._insert(records):
                excess = self._counts[topic] - self._retention.events
                if excess > 0:
                    self._remove("topic = ?", topic, excess)
            self._remove_old(oldest_ms)
            self._forget()
            if position is not None:
                self._keep_position(position)
        if self._find_files() != self._files:
            raise OSError(f"the files of the journal {self._path} are not those that were opened")
        self._crowded = set()
        self._stale = False

    def _find_files(self) -> list[tuple[int, int]]:
        """Which files are where ours should be: to one that was removed SQLite goes on writing, and keeps nothing.

        Raises:
          OSError: there is none.
        """
        return [(file.st_dev, file.st_ino) for file in [place.stat() for place in self._places]]

    def _keep_position(self, position: EventID) -> None:
        """So that the next life begins above it, whatever the clock says then."""
        if position != self._kept_position:
            query = "INSERT OR REPLACE INTO meta VALUES ('position', ?)"
            self.db.execute(query, (str(position.packed()),))
            self._kept_position = position

    def _insert(self, records: Sequence[Record]) -> set[int]:
        rows = []
        touched = set()
        for record in records:
            topic = self._topics.get(record.topic)
            if topic is None:
                query = "INSERT INTO topic (name, floor) VALUES (?, ?)"
                topic = self.db.execute(query, (record.topic, _meta(self.db, "coarse_floor"))).lastrowid
                assert topic is not None
                self._topics[record.topic] = topic
                self._names[topic] = record.topic
            self._empty.pop(topic, None)
            self._counts[topic] = self._counts.get(topic, 0) + 1
            self._bytes += len(record.frame)
            touched.add(topic)
            rows.append((record.id.packed(), topic, record.key, record.frame))
        self.db.executemany("INSERT INTO record VALUES (?, ?, ?, ?)", rows)
        if rows:
            self._events += len(rows)
            self._last = rows[-1][0]
        return touched

    def _remove_old(self, oldest_ms: float) -> None:
        """Remove the oldest events, whatever their topic, until age, bytes and the number of topics are right.

        In batches, and not without end: what a lowered limit leaves is removed with the next commits.
        """
        for _ in range(MOST_BATCHES):
            (oldest,) = self.db.execute("SELECT min(id) FROM record").fetchone()
            crowded = len(self._topics) - len(self._empty) > MAX_TOPICS
            if oldest is None or not (
                crowded or self._bytes > self._retention.bytes or EventID.unpacked(oldest).ms < oldest_ms
            ):
                return
            rows = self.db.execute("SELECT id, length(frame) FROM record ORDER BY id LIMIT ?", (BATCH,)).fetchall()
            over, last = self._bytes - self._retention.bytes, oldest
            for id, size in rows:
                if EventID.unpacked(id).ms >= oldest_ms and over <= 0:
                    break
                last, over = id, over - size
            self._remove("id <= ?", last, BATCH)

    def _remove(self, which: str, value: int, most: int) -> None:
        """Remove the oldest of some records."""
        query = f"SELECT id, topic, length(frame) FROM record WHERE {which} ORDER BY id LIMIT ?"  # noqa: S608
        rows = self.db.execute(query, (value, most)).fetchall()
        # One statement for all of them: one for each costs several times as much.
        self.db.execute(f"DELETE FROM record WHERE {which} AND id <= ?", (value, rows[-1][0]))  # noqa: S608
        floors = {topic: id for id, topic, _ in rows}
        self.db.executemany("UPDATE topic SET floor = ? WHERE id = ?", [(id, topic) for topic, id in floors.items()])
        for _, topic, size in rows:
            self._bytes -= size
            self._counts[topic] -= 1
            if not self._counts[topic]:
                self._empty[topic] = None
        self._events -= len(rows)

    def _forget(self) -> None:
        while len(self._empty) > MAX_EMPTY_TOPICS:
            topic = next(iter(self._empty))
            (floor,) = self.db.execute("SELECT floor FROM topic WHERE id = ?", (topic,)).fetchone()
            coarse = EventID(EventID.unpacked(floor).ms + 1, 0).packed()  # a position: no other topic's ID
            query = "UPDATE meta SET value = max(CAST(value AS INTEGER), ?) WHERE name = 'coarse_floor'"
            self.db.execute(query, (coarse,))
            self.db.execute("DELETE FROM topic WHERE id = ?", (topic,))
            del self._empty[topic], self._counts[topic], self._topics[self._names.pop(topic)]

    def _count(self) -> None:
        self._topics = {name: id for id, name in self.db.execute("SELECT id, name FROM topic")}
        self._names = {id: name for name, id in self._topics.items()}
        query = "SELECT topic, count(*), sum(length(frame)), max(id) FROM record GROUP BY topic"
        rows = self.db.execute(query).fetchall()
        self._counts = dict.fromkeys(self._names, 0) | {topic: count for topic, count, _, _ in rows}
        by_floor = self.db.execute("SELECT id FROM topic ORDER BY floor")
        self._empty = {id: None for (id,) in by_floor if not self._counts[id]}
        self._events = sum(count for _, count, _, _ in rows)
        self._bytes = sum(size for _, _, size, _ in rows)
        self._last = max((last for _, _, _, last in rows), default=0)
        self._crowded = {topic for topic, count in self._counts.items() if count > self._retention.events}
        self._kept_position = None
        self._stale = False


def connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(Path(path), isolation_level=None, check_same_thread=False, timeout=BUSY_S)
    db.execute("PRAGMA synchronous = NORMAL")
    return db


@contextmanager
def transaction(db: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    db.execute(f"BEGIN {kind}")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _meta(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0])


def read_secret(path: str, name: str) -> str | None:
    """A secret kept in a journal's file, which another process may be serving; none when there is none."""
    if not Path(path).exists():
        return None
    with contextlib.closing(connect(path)) as db:
        try:
            row = db.execute("SELECT value FROM meta WHERE name = ?", (f"secret {name}",)).fetchone()
        except sqlite3.Error:
            return None
    return None if row is None else str(row[0])
