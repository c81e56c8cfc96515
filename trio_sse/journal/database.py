"""The database of a SQLite journal: its schema, whether it is sound, and how it is read. Every call blocks.

An ID is one integer here (:meth:`EventID.packed`), and is the row's own ID: inserting in order is appending.

Before anything is written to a file that is there already, it is looked at through a connection that cannot write: what
is damaged, or somebody else's, or from a later version, stays as it is, to the last byte of its write-ahead log.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..errors import JournalUnusable
from ..event import EventID
from ..record import Record
from ..selector_index import Selection
from .contract import MERGED_TOPICS, PAGE_ENTRIES
from .costs import MEMORY
from .file import JournalFile

APPLICATION_ID = 0x74735345  # "tsSE", in the file's header (PRAGMA application_id)
HIGHEST = (1 << 63) - 1
"""Above every packed ID."""

BUSY_S = 1.0
"""How long another program, such as a backup, may hold the file before a transaction fails."""

SCHEMA = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE topic (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, floor INTEGER NOT NULL) STRICT;
    CREATE TABLE record (id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, key TEXT, frame BLOB NOT NULL) STRICT;
    CREATE INDEX record_by_topic ON record (topic);
    """,
    # Each topic's sums, so that nothing need be counted at start-up; the newest value of a key, for as long as nothing
    # has replaced it since it was removed; and what has been published under an idempotency key.
    """
    ALTER TABLE topic ADD COLUMN lost INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE topic ADD COLUMN events INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE topic ADD COLUMN unkeyed INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE topic ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
    UPDATE topic SET lost = floor, (events, unkeyed, bytes) = (
        SELECT count(*), count(*) - count(key), coalesce(sum(length(frame)), 0) FROM record WHERE topic = topic.id
    );
    CREATE INDEX record_by_key ON record (topic, key) WHERE key IS NOT NULL;
    CREATE TABLE lost (
        id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, key TEXT NOT NULL, UNIQUE (topic, key)
    ) STRICT;
    CREATE TABLE once (
        id INTEGER PRIMARY KEY, subject TEXT NOT NULL, topic TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL,
        UNIQUE (subject, topic, key)
    ) STRICT;
    """,
    # Who published what, and the sums of each publisher in each topic; all there was before is charged to those who
    # have no name. The sums of a topic are those of its holdings. The index finds the oldest record of a publisher in a
    # topic of many; those who have no name are one publisher, and do without.
    """
    CREATE TABLE publisher (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
    INSERT INTO publisher VALUES (0, '');
    ALTER TABLE record ADD COLUMN publisher INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX record_by_publisher ON record (topic, publisher) WHERE publisher <> 0;
    ALTER TABLE once ADD COLUMN publisher INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE holding (
        id INTEGER PRIMARY KEY, publisher INTEGER NOT NULL, topic INTEGER NOT NULL, events INTEGER NOT NULL,
        unkeyed INTEGER NOT NULL, frames INTEGER NOT NULL, keyed INTEGER NOT NULL, newest INTEGER NOT NULL
    ) STRICT;
    INSERT INTO holding (publisher, topic, events, unkeyed, frames, keyed, newest)
        SELECT 0, topic, count(*), count(*) - count(key), sum(length(frame)),
            coalesce(sum(length(CAST(key AS BLOB))), 0), max(id)
        FROM record GROUP BY topic;
    ALTER TABLE topic DROP COLUMN events;
    ALTER TABLE topic DROP COLUMN unkeyed;
    ALTER TABLE topic DROP COLUMN bytes;
    """,
)
"""From nothing to version 1, from there to version 2, and so on (PRAGMA user_version)."""

VERSION = len(SCHEMA)

OLD_KEY = "secret development key"
"""The name under which versions before the key had a file of its own kept it in ``meta``."""

COPIED = "copied"
"""The name in ``meta`` that a copy has, until it is opened."""

META = ("born", "coarse_floor", "position")
"""What every journal says of itself, each a packed ID or position."""

_NUMBER = re.compile("[0-9]{1,19}")


# -- opening it ------------------------------------------------------------------------------------------------------


def open_to_write(file: JournalFile, position: EventID) -> sqlite3.Connection:
    """Open the file, made when it is empty, and bring its schema up to date.

    ``position`` is where a journal that is made now is born.

    Raises:
      JournalUnusable: it is not ours, not sound, or from a later version. sqlite3.Error, OSError: it cannot be had.
    """
    found = 0 if file.empty else check(file.path)
    if not found:
        _make(file, position)
        found = VERSION
    db = connect(file.path)
    try:
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise JournalUnusable(f"the journal {file.path} cannot be used: its file system has no shared memory")
        with transaction(db):
            _upgrade(db, found)
            _begin_anew_if_copied(db, position)
            # A file that cannot be written must fail here, not at the first event.
            db.execute("UPDATE meta SET value = value WHERE name = 'position'")
    except BaseException:
        db.close()
        raise
    return db


def _make(file: JournalFile, position: EventID) -> None:
    """Make a journal elsewhere, and put it there when it is whole: to be killed while making it leaves none."""
    with file.made_anew() as making, contextlib.closing(connect(making)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        with transaction(db):
            _upgrade(db, 0)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            for name in META:
                db.execute("INSERT INTO meta VALUES (?, ?)", (name, str(position.packed())))


def _upgrade(db: sqlite3.Connection, version: int) -> None:
    for statements in SCHEMA[version:]:
        for statement in filter(str.strip, statements.split(";")):
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")


def check(path: str) -> int:
    """The version of a file's schema, 0 if there is nothing in it; what is found wrong is left as it is.

    Raises:
      JournalUnusable: it is not ours, not sound, or from a later version. sqlite3.Error: it cannot be read.
    """
    with contextlib.closing(connect_to_read(path)) as db:
        found = version(db, path)
        if told := fault(db, found):
            raise JournalUnusable(
                f"the journal {path} is damaged ({told}) and was left as it is: restore it from a backup, or name "
                "another file"
            )
        return found


def version(db: sqlite3.Connection, path: str) -> int:
    """The version of the schema, 0 if there is nothing in it.

    Raises:
      JournalUnusable: it is not ours, or from a later version.
    """
    application, found = (
        int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
    )
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application != APPLICATION_ID and (tables or application or found):
        raise JournalUnusable(f"{path} is another program's database: name another file")
    if found > VERSION:
        raise JournalUnusable(
            f"the journal {path} has schema version {found}, and this trio_sse reads "
            f"{VERSION}: use the trio_sse that wrote it, or name another file"
        )
    return found if tables else 0


def fault(db: sqlite3.Connection, version: int) -> str | None:
    """What is wrong with a journal of a version; none if it is sound."""
    (told,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if told != "ok":
        return str(told).strip().splitlines()[-1]
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    for name in re.findall(r"CREATE TABLE (\w+)", "".join(SCHEMA[:version])):
        if name not in tables:
            return f"it has no table {name}"
    for name in META if tables else ():
        row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None or not _NUMBER.fullmatch(row[0]):
            return f"its {name} is no number"
    return None


def mark_as_copy(db: sqlite3.Connection) -> None:
    """Mark it as a copy: events that it does not hold may have been kept since."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, 'yes')", (COPIED,))


def _begin_anew_if_copied(db: sqlite3.Connection, position: EventID) -> None:
    """Begin a new life in a copy, at ``position``: a cursor from before may have missed events that are not in it."""
    if not db.execute("DELETE FROM meta WHERE name = ?", (COPIED,)).rowcount:
        return
    (newest,) = db.execute("SELECT coalesce(max(id), 0) FROM record").fetchone()
    behind = EventID(EventID.unpacked(newest).ms + 1, 0).packed()
    born = max(position.packed(), behind, meta(db, "born"), meta(db, "position"), meta(db, "coarse_floor"))
    db.execute("UPDATE meta SET value = ? WHERE name IN ('born', 'position')", (str(born),))


def connect_to_read(path: str) -> sqlite3.Connection:
    """A connection that cannot write."""
    uri = f"file:{quote(os.fsencode(path))}?mode=ro"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_S)


def connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(Path(path), isolation_level=None, check_same_thread=False, timeout=BUSY_S)
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA secure_delete = FAST")  # or Debian's SQLite would write every page that it makes free
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


def meta(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0])


def old_key(db: sqlite3.Connection) -> str | None:
    """The development key, if the file is of a version that kept it in there."""
    row = db.execute("SELECT value FROM meta WHERE name = ?", (OLD_KEY,)).fetchone()
    return None if row is None else str(row[0])


def forget_old_key(db: sqlite3.Connection) -> None:
    """Remove the development key, so that no byte of it is left in the file or its log."""
    with transaction(db):
        db.execute("DELETE FROM meta WHERE name = ?", (OLD_KEY,))
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


# -- reading it ------------------------------------------------------------------------------------------------------

COLUMNS = "id, topic, key, frame, (SELECT name FROM publisher WHERE publisher.id = record.publisher)"

Row = tuple[int, int, str | None, bytes, str]


class Found(NamedTuple):
    """The records of a page, the ID up to which all were looked at, and whether there is more."""

    records: list[Record]
    upto: EventID
    more: bool


def begin_reading(reader: sqlite3.Connection) -> None:
    """From here to the end of the transaction the file is seen as it is now."""
    reader.execute("BEGIN DEFERRED")
    reader.execute("SELECT 1 FROM meta LIMIT 1").fetchone()  # it begins with the first that is read


def read(
    reader: sqlite3.Connection,
    selection: Selection,
    topics: Sequence[str] | None,
    after: EventID,
    limit: int,
    most_bytes: int,
) -> Found:
    """The records of a page of history (:meth:`Journal.read`); ``topics`` are those of the selectors, if few."""
    if topics is None or len(topics) > MERGED_TOPICS:
        return _read_along(reader, selection, after, limit, most_bytes)
    names: dict[int, str] = {}
    for name in topics:
        names |= reader.execute("SELECT id, name FROM topic WHERE name = ?", (name,)).fetchall()
    query = f"SELECT {COLUMNS} FROM record WHERE topic = ? AND id > ? ORDER BY id LIMIT ?"  # noqa: S608  # all constants
    merged = heapq.merge(*(reader.execute(query, (topic, after.packed(), limit)) for topic in names))
    records: list[Record] = []
    for row in islice(merged, limit):
        most_bytes -= len(row[3])
        if most_bytes < 0 and records:
            return Found(records, records[-1].id, more=True)
        records.append(_record(row, names[row[1]]))
    return Found(records, records[-1].id if records else after, more=len(records) == limit)


def _read_along(reader: sqlite3.Connection, selection: Selection, after: EventID, limit: int, most_bytes: int) -> Found:
    """The records of a page along the order of all: of most, only their topic is read."""
    entries = reader.execute(
        "SELECT id, topic FROM record WHERE id > ? ORDER BY id LIMIT ?", (after.packed(), PAGE_ENTRIES)
    ).fetchall()
    chosen: dict[int, str | None] = {}
    records: list[Record] = []
    upto = after
    for id, topic in entries:
        if topic not in chosen:
            (name,) = reader.execute("SELECT name FROM topic WHERE id = ?", (topic,)).fetchone()
            chosen[topic] = name if selection.chooses(name) else None
        if (name := chosen[topic]) is not None:
            row = reader.execute(f"SELECT {COLUMNS} FROM record WHERE id = ?", (id,)).fetchone()  # noqa: S608  # all constants
            most_bytes -= len(row[3])
            if most_bytes < 0 and records:
                return Found(records, upto, more=True)
            records.append(_record(row, name))
        upto = EventID.unpacked(id)
        if len(records) == limit:
            return Found(records, upto, more=True)
    return Found(records, upto, more=len(entries) == PAGE_ENTRIES)


def _record(row: Row, topic: str) -> Record:
    id, _, key, frame, publisher = row
    return Record(EventID.unpacked(id), topic, frame, key, publisher)


def read_newest(reader: sqlite3.Connection, most: int, most_bytes: float) -> list[Record]:
    """The newest records of all topics, as many as fit, oldest first."""
    query = (
        "SELECT record.id, topic.name, frame, key, publisher.name FROM record JOIN topic ON topic.id = record.topic "
        "JOIN publisher ON publisher.id = record.publisher ORDER BY record.id DESC LIMIT ?"
    )
    records: list[Record] = []
    names: dict[str, str] = {}  # each text is in memory once
    for id, topic, frame, key, publisher in reader.execute(query, (most,)):
        most_bytes -= MEMORY.of_event(len(frame), key)
        if most_bytes < 0:
            break
        shared = names.setdefault(topic, topic), names.setdefault(publisher, publisher)
        records.append(Record(EventID.unpacked(id), shared[0], frame, key, shared[1]))
    return records[::-1]


def newest_before(reader: sqlite3.Connection, topic: int, before: EventID | None) -> EventID | None:
    """The newest ID of a topic, below another ID or of all."""
    query = "SELECT max(id) FROM record WHERE topic = ? AND id < ?"
    (id,) = reader.execute(query, (topic, HIGHEST if before is None else before.packed())).fetchone()
    return None if id is None else EventID.unpacked(id)


def newest_of(reader: sqlite3.Connection, topic: str) -> EventID | None:
    """The newest ID of the topic of a name."""
    query = "SELECT max(id) FROM record WHERE topic = (SELECT id FROM topic WHERE name = ?)"
    (id,) = reader.execute(query, (topic,)).fetchone()
    return None if id is None else EventID.unpacked(id)
