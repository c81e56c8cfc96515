"""The writing side of a SQLite journal, in whatever thread calls it, one call at a time.

One transaction adds records, with their idempotency keys, and removes what retention no longer allows. What it removes
is bounded, so that a publisher never waits for a large clean-up: a topic that has too much left is looked at again by
the next transaction that has nothing else to do (:attr:`Change.more`).

What each publisher holds in each topic is kept in memory and in the file; after a failed transaction memory is read
from the file again.

A page of the file that has lost some of its records may be a third full, so the file can be larger than what is
counted. When its pages in use are a quarter more than the setting, there is not enough room either.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import KeyReused
from ..event import SEQ_BITS, EventID
from ..record import Record
from ..retention import Ages, Retention
from . import database, disk
from .contract import MAX_EMPTY_TOPICS, MAX_TOPICS, JournalStatistics
from .costs import EMPTY_SHARE, KEYS_SHARE, SMALL_FILE
from .file import JournalFile
from .held import Change, Doomed, FileHolding, Held, Write
from .keys import Keys
from .ledger import Ledger
from .lost import Lost

FULLEST_PAGES = 4
"""Times of what is counted that the pages in use may take, at the worst: a page is a third full at least, and the rest
is for what is counted too low. While less than that part of the setting is counted, the file need not be asked, which
would cost every publisher."""

LOOKS = 1_000
"""A transaction that only cleans up removes or looks at so many records and topics."""

LOOKS_BESIDE = 64
"""One that adds records removes twice as many, and so many more."""

INDEX_BYTES = 1024 * 1024
"""So much is reserved for the index of SQLite's log, enough for half a gibibyte of log. Where there is no room for it
to grow, SQLite fails after it has written what it then says it has not, and finds it again after ``kill -9``. (It does
not grow before there are 16 MiB of log, so on a small disk that cannot happen.)"""

FILE_SLACK = 1.25
"""Times the bytes of the setting that the pages in use may take, before events go that are not too many by count; half
of what the promise of 1.5 times leaves, because the log needs room too."""


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
        self._ledger: Ledger
        self._lost: Lost
        self._keys: Keys
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
        self._load()
        self._files = self._find_files()
        self._index = os.open(f"{self._path}-shm", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._look_for_room()
        born = database.meta(db, "born")
        floors = [self._coarse_floor, *(held.floor for held in self._ledger.topics.values())]
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
        return iter(self._ledger.topics.values())

    def known_publisher(self, name: str) -> str:
        """The same name, as the object that is in memory already if there is one."""
        return self._ledger.accounts.known(name)

    @property
    def coarse_floor(self) -> EventID:
        """The floor of all topics that it does not hold."""
        return EventID.unpacked(self._coarse_floor)

    def statistics(self) -> JournalStatistics:
        """How much the file holds; the newest ID it does not know."""
        ledger = self._ledger
        return JournalStatistics(ledger.events, self._counted, len(ledger.topics) - len(ledger.empty), None)

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
        self._marked: dict[str, Held] = {}
        self._holes: dict[str, list[int]] = {}
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
                for held in self._ledger.touched:
                    if held.events > held.limits.events or held.bytes > held.limits.bytes:
                        self._limit(held, now_ms)
            else:
                self._looks = LOOKS
                self._look_at_the_old(now_ms)
                self._keys.drop(keys_since)
            self._keys.make_room(self._retention.bytes / KEYS_SHARE)
            change.evicted = self._make_room()
            self._marked |= {held.name: held for held in self._lost.drop(self._retention.bytes)}
            self._forget(change)
            change.marks = [held.marks for held in self._marked.values()]
            change.holes = [(name, [*map(EventID.unpacked, ids)]) for name, ids in self._holes.items()]
            self._ledger.write(self._marked.values(), self._keys.given_up)
            self._keys.given_up.clear()
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
            held = self._ledger.topic(record.topic, self._coarse_floor)
            if not held.events:
                self._ages.look(held.name, held.limits.too_old_at(record.id.ms))
            number = self._ledger.charge(held, record)
            if held.lost and self._lost.replace(held, record.key):
                self._marked[held.name] = held
            rows.append((record.id.packed(), held.id, record.key, record.frame, number))
        self.db.executemany("INSERT INTO record VALUES (?, ?, ?, ?, ?)", rows)

    # -- what is too much ---------------------------------------------------------------------------------

    def _look_at_the_old(self, now_ms: int) -> None:
        for name in self._ages.due(now_ms):
            self._looks -= 1
            if (held := self._ledger.topics.get(name)) is not None and held.events:
                self._limit(held, now_ms)
            if self._looks <= 0:
                return

    def _limit(self, held: Held, now_ms: int) -> None:
        """Remove what is too much of one topic, and have it looked at again when there will be more."""
        query = "SELECT id, key, length(frame), publisher FROM record WHERE topic = ? ORDER BY id LIMIT ?"
        seen: list[Doomed] = []

        def oldest() -> Iterator[tuple[int, int]]:
            for row in self.db.execute(query, (held.id, max(0, self._looks) + 1)):
                seen.append(row)
                if len(seen) > self._looks:
                    return
                yield row[0] >> SEQ_BITS, row[2]

        count = held.limits.excess(held.events, held.bytes, oldest(), now_ms)
        if count:
            for row in seen[:count]:
                self._ledger.uncharge(held, row)
            self._remove(held, seen[:count], from_front=True)
        if len(seen) > count:  # the one behind those that went; where it only went unseen, it is due at once
            self._ages.look(held.name, held.limits.too_old_at(seen[count][0] >> SEQ_BITS) if self._looks > 0 else 0)

    @property
    def _counted(self) -> int:
        """What all that is held is counted as."""
        accounts = self._ledger.accounts
        return accounts.bytes + accounts.key_bytes + self._lost.bytes + self._ledger.empty_bytes

    def _make_room(self) -> int:
        """Let those that hold most give their oldest events, until there is room; how many they gave."""
        accounts, most = self._ledger.accounts, self._most_bytes()
        ahead: dict[FileHolding, deque[Doomed]] = {}
        doomed: dict[FileHolding, list[Doomed]] = {}
        given, most_given = 0, max(self._looks, LOOKS_BESIDE)
        while given < most_given:
            if accounts.holdings > MAX_TOPICS:
                holding = accounts.with_most_holdings().idlest()
            elif accounts.bytes and self._counted > most:
                holding = accounts.with_most_bytes().largest()
            else:
                break
            assert isinstance(holding, FileHolding)
            rows = ahead.get(holding)
            if not rows:
                rows = ahead[holding] = self._ledger.oldest_of(holding)
            row = rows.popleft()
            doomed.setdefault(holding, []).append(row)
            self._ledger.uncharge(self._ledger.topics[holding.topic], row)
            given += 1
        for holding, gone in doomed.items():
            held = self._ledger.topics[holding.topic]
            # Behind older events of others there is a hole; otherwise it is the oldest of the topic that go.
            self._remove(held, gone, from_front=held.publishers + (not holding.events) == 1)
        return given

    def _most_bytes(self) -> float:
        """How much may be counted: the setting, or less when the file takes more than is counted."""
        most = self._retention.bytes
        if self._counted < most / FULLEST_PAGES:
            return most
        (pages,), (free,), (size,) = (
            self.db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
        )
        over = (pages - free) * size - FILE_SLACK * max(most, SMALL_FILE)
        return most if over <= 0 else min(most, self._counted - over)

    def _remove(self, held: Held, rows: Sequence[Doomed], *, from_front: bool) -> None:
        """Remove records of a topic, oldest first; those that were the newest of their key are lost."""
        self._marked[held.name] = held
        self._looks -= len(rows)
        last = rows[-1][0]
        held.floor = max(held.floor, last)
        if from_front:
            held.gone = max(held.gone, last)  # another that gave all of this topic may have had newer events
            self.db.execute("DELETE FROM record WHERE topic = ? AND id <= ?", (held.id, last))
        else:
            self._holes.setdefault(held.name, []).extend(row[0] for row in rows)
            self.db.executemany("DELETE FROM record WHERE id = ?", [(row[0],) for row in rows])
        for key, id in {row[1]: row[0] for row in rows}.items():
            self._lost.remove(held, key, id, from_front=from_front)

    def _forget(self, change: Change) -> None:
        """Forget topics of which nothing but the floor is left, if there are too many of those."""
        ledger, most = self._ledger, self._retention.bytes / EMPTY_SHARE
        while len(ledger.empty) > MAX_EMPTY_TOPICS or ledger.empty_bytes > most:
            held = ledger.forget_emptiest()
            self._marked.pop(held.name, None)
            self._holes.pop(held.name, None)
            coarse = EventID(EventID.unpacked(held.floor).ms + 1, 0).packed()  # a position: no other topic's ID
            self._coarse_floor = max(self._coarse_floor, coarse)
            self._lost.forget(held)
            change.forgotten.append(held.name)
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
        self._ledger = ledger = Ledger(self.db, self._retention)
        for held in ledger.topics.values():
            if held.events:
                self._ages.look(held.name, 0)
        self._lost = Lost(self.db, ledger.by_id)
        self._keys = Keys(self.db, ledger.accounts, ledger.number_of, ledger.names)
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
