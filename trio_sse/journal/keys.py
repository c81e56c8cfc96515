"""The idempotency keys in a SQLite journal: which event was published under which, what it was, and for whom."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping

from ..errors import KeyReused
from ..event import EventID
from ..record import Once, Record
from .accounts import Account, Accounts
from .contract import MAX_ONCE, REUSED
from .costs import SQLITE

DROPPED = 1_000
"""So many of those that are too old are forgotten together."""

Row = tuple[int, int, str, str, str]
"""A key's ID, its publisher's number, subject, topic and text."""


class Keys:
    """All of them, to be used inside a transaction; made anew when one has failed."""

    def __init__(
        self,
        db: sqlite3.Connection,
        accounts: Accounts,
        number_of: Callable[[str], int],
        names: Mapping[int, str],
    ) -> None:
        self._db = db
        self._accounts = accounts
        self._number_of = number_of
        self._names = names
        self._after: dict[Account, int] = {}  # where to look for the oldest key of one that gives
        self.given_up: set[str] = set()
        """Publishers that have one key less."""
        size = "sum(length(CAST(subject AS BLOB)) + length(CAST(topic AS BLOB)) + length(CAST(key AS BLOB)))"
        query = f"SELECT publisher, count(*), {size} FROM once GROUP BY publisher"  # noqa: S608  # all constants
        for number, count, size in db.execute(query):
            account = accounts.account(names[number])
            accounts.charge_keys(account, count, count * SQLITE.once + size * SQLITE.once_byte)

    def take(self, once: Once, record: Record, since: EventID) -> EventID | None:
        """Let a key stand for a record, unless it stands for one already: then the ID of that, if it is at least this.

        Raises:
          KeyReused: what it stands for is another event.
        """
        name = (once.subject or "", record.topic, once.key)
        query = "SELECT id, body, publisher FROM once WHERE subject = ? AND topic = ? AND key = ?"
        row = self._db.execute(query, name).fetchone()
        if row is not None:
            if row[0] >= since.packed():
                if row[1] != once.body:
                    raise KeyReused(REUSED)
                return EventID.unpacked(row[0])
            self._drop([(row[0], row[2], *name)])
        number = self._number_of(record.publisher)
        query = "INSERT INTO once (id, subject, topic, key, body, publisher) VALUES (?, ?, ?, ?, ?, ?)"
        self._db.execute(query, (record.id.packed(), *name, once.body, number))
        self._accounts.charge_keys(self._accounts.account(record.publisher), 1, SQLITE.of_once(*name))
        return None

    def make_room(self, most_bytes: float) -> None:
        """Forget the oldest keys of the publishers that have most, until they are few and small enough."""
        accounts = self._accounts
        while accounts.keys > MAX_ONCE:
            self._drop_oldest_of(accounts.with_most_keys())
        while accounts.key_bytes > most_bytes:
            self._drop_oldest_of(accounts.with_most_key_bytes())

    def drop(self, before: EventID) -> None:
        """Forget some of those that are too old."""
        query = "SELECT id, publisher, subject, topic, key FROM once WHERE id < ? ORDER BY id LIMIT ?"
        self._drop(self._db.execute(query, (before.packed(), DROPPED)).fetchall())

    def _drop_oldest_of(self, account: Account) -> None:
        query = "SELECT id, publisher, subject, topic, key FROM once WHERE id > ? AND publisher = ? ORDER BY id LIMIT 1"
        after = self._after.get(account, 0)
        row: Row = self._db.execute(query, (after, self._number_of(account.name))).fetchone()
        self._after[account] = row[0]
        self._drop([row])

    def _drop(self, rows: list[Row]) -> None:
        for id, number, subject, topic, key in rows:
            self._db.execute("DELETE FROM once WHERE id = ?", (id,))
            account = self._accounts.account(self._names[number])
            self._accounts.drop_key(account, SQLITE.of_once(subject, topic, key))
            self.given_up.add(account.name)
            if not account.keys:
                self._after.pop(account, None)
