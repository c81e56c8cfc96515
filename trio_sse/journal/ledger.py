"""What a SQLite journal holds of each topic and for each publisher: in memory for deciding, and in rows.

The rows are written in the transaction that changes what they say, so after ``kill -9`` they are right, and nothing
need be counted at start-up.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable

from ..event import EventID
from ..record import Record
from ..retention import Retention
from .accounts import Accounts
from .costs import SQLITE, byte_length
from .held import Doomed, FileHolding, Held

AHEAD = 32
"""Events of one holding that are looked up at once, when it has to make room; it seldom gives only one."""

OLDEST = "SELECT id, key, length(frame), publisher FROM record WHERE topic = ? AND publisher = ? AND id > ? "


class Ledger:
    """All topics and accounts, to be used inside a transaction; made anew when one has failed."""

    def __init__(self, db: sqlite3.Connection, retention: Retention) -> None:
        self._db = db
        self._retention = retention
        self.names: dict[int, str] = dict(db.execute("SELECT id, name FROM publisher"))
        """Publishers by their number."""
        self._numbers = {name: number for number, name in self.names.items()}
        rows = db.execute("SELECT id, name, floor, lost FROM topic ORDER BY floor")
        helds = [Held(id, name, retention.of(name), *marks) for id, name, *marks in rows]
        self.topics = {held.name: held for held in helds}
        self.by_id = {held.id: held for held in helds}
        self.accounts = Accounts()
        self._load_holdings()
        self.empty = {held.name: None for held in helds if not held.events}
        """Topics of which nothing but the floor is left, the lowest floor first."""
        self.empty_bytes = sum(map(SQLITE.of_topic, self.empty))
        self.events = sum(held.events for held in helds)
        self._touched: dict[int, FileHolding] = {}

    def _load_holdings(self) -> None:
        query = "SELECT id, publisher, topic, events, unkeyed, frames, keyed, newest FROM holding ORDER BY newest"
        for id, publisher, topic, events, unkeyed, frames, keyed, newest in self._db.execute(query):
            held = self.by_id[topic]
            holding = FileHolding(self.accounts.account(self.names[publisher]), held.name, id)
            holding.unkeyed, holding.frames, holding.keyed, holding.newest = unkeyed, frames, keyed, newest
            self.accounts.put(holding)
            size = SQLITE.of_holding(held.name, self.names[publisher])
            size += SQLITE.of_events(events, unkeyed, frames, keyed)
            self.accounts.add(holding, events, size)
            held.publishers += 1
            held.events += events
            held.unkeyed += unkeyed
            held.bytes += frames

    # -- what comes ---------------------------------------------------------------------------------------

    def topic(self, name: str, floor: int) -> Held:
        """The topic of a name, made with this floor when there is none."""
        held = self.topics.get(name)
        if held is None:
            query = "INSERT INTO topic (name, floor, lost) VALUES (?, ?, ?)"
            id = self._db.execute(query, (name, floor, floor)).lastrowid
            assert id is not None
            held = self.topics[name] = self.by_id[id] = Held(id, name, self._retention.of(name), floor, floor)
        return held

    def number_of(self, publisher: str) -> int:
        """The number of a publisher, made when there is none."""
        number = self._numbers.get(publisher)
        if number is None:
            number = self._db.execute("INSERT INTO publisher (name) VALUES (?)", (publisher,)).lastrowid
            assert number is not None
            self._numbers[publisher] = number
            self.names[number] = publisher
        return number

    def charge(self, held: Held, record: Record) -> int:
        """Charge an event to its publisher; the publisher's number."""
        if held.name in self.empty:
            del self.empty[held.name]
            self.empty_bytes -= SQLITE.of_topic(held.name)
        holding = self.accounts.find(record.publisher, held.name) or self._new_holding(record, held)
        assert isinstance(holding, FileHolding)
        self._touched[holding.id] = holding
        size, is_unkeyed = len(record.frame), record.key is None
        held.events += 1
        held.unkeyed += is_unkeyed
        held.bytes += size
        holding.unkeyed += is_unkeyed
        holding.frames += size
        holding.keyed += byte_length(record.key or "")
        holding.newest = record.id.packed()
        self.accounts.add(holding, 1, SQLITE.of_event(size, record.key))
        self.events += 1
        return self._numbers[record.publisher]

    def _new_holding(self, record: Record, held: Held) -> FileHolding:
        publisher = record.publisher
        columns = "publisher, topic, events, unkeyed, frames, keyed, newest"
        query = f"INSERT INTO holding ({columns}) VALUES (?, ?, 0, 0, 0, 0, 0)"  # noqa: S608  # all constants
        id = self._db.execute(query, (self.number_of(publisher), held.id)).lastrowid
        assert id is not None
        holding = FileHolding(self.accounts.account(publisher), held.name, id, record.id)
        self.accounts.put(holding)
        self.accounts.add(holding, 0, SQLITE.of_holding(held.name, publisher))
        held.publishers += 1
        return holding

    # -- what goes ----------------------------------------------------------------------------------------

    def oldest_of(self, holding: FileHolding) -> deque[Doomed]:
        """Some of the oldest records of a holding."""
        held, number = self.topics[holding.topic], self._numbers[holding.account.name]
        query, count = OLDEST, AHEAD
        if number:
            query += "AND publisher <> 0 "  # as the index says, or SQLite does not take it
        elif held.publishers > 1:
            count = 1  # what stands between them is walked past once, and not once a transaction
        given = (held.id, number, holding.after.packed(), count)
        return deque(self._db.execute(query + "ORDER BY id LIMIT ?", given))

    def uncharge(self, held: Held, row: Doomed) -> None:
        """A record that goes takes no more of its publisher's account."""
        id, key, size, number = row
        holding = self.accounts.find(self.names[number], held.name)
        assert isinstance(holding, FileHolding)
        self._touched[holding.id] = holding
        held.events -= 1
        held.unkeyed -= key is None
        held.bytes -= size
        holding.unkeyed -= key is None
        holding.frames -= size
        holding.keyed -= byte_length(key or "")
        holding.after = max(holding.after, EventID.unpacked(id))
        self.accounts.remove(holding, 1, SQLITE.of_event(size, key))
        self.events -= 1
        held.publishers -= not holding.events
        if not held.events:
            self.empty[held.name] = None
            self.empty_bytes += SQLITE.of_topic(held.name)

    def forget_emptiest(self) -> Held:
        """Forget the empty topic with the lowest floor, and return it."""
        held = self.topics.pop(next(iter(self.empty)))
        del self.empty[held.name], self.by_id[held.id]
        self.empty_bytes -= SQLITE.of_topic(held.name)
        self._db.execute("DELETE FROM topic WHERE id = ?", (held.id,))
        return held

    # -- rows ---------------------------------------------------------------------------------------------

    @property
    def touched(self) -> list[Held]:
        """The topics in which publishers have more, or less, than the rows say."""
        return [self.topics[name] for name in {holding.topic for holding in self._touched.values()}]

    def write(self, marked: Iterable[Held], given_up: set[str]) -> None:
        """Write what has changed: sums, marks of topics, and publishers that are none any more.

        ``given_up`` are publishers that have an idempotency key less.
        """
        touched, self._touched = self._touched, {}
        kept = [holding.row for holding in touched.values() if holding.events]
        query = "UPDATE holding SET events = ?, unkeyed = ?, frames = ?, keyed = ?, newest = ? WHERE id = ?"
        self._db.executemany(query, kept)
        gone = [holding for holding in touched.values() if not holding.events]
        if gone:  # even for no row at all a statement is prepared
            self._db.executemany("DELETE FROM holding WHERE id = ?", [(holding.id,) for holding in gone])
        if marks := [(held.floor, held.lost_floor, held.id) for held in marked]:
            self._db.executemany("UPDATE topic SET floor = ?, lost = ? WHERE id = ?", marks)
        for name in ({holding.account.name for holding in gone} | given_up) - {""}:
            if name not in self.accounts and name in self._numbers:
                number = self._numbers.pop(name)
                del self.names[number]
                self._db.execute("DELETE FROM publisher WHERE id = ?", (number,))
