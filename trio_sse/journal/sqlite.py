"""A journal in a SQLite file: an acknowledged event survives ``kill -9``.

One Trio task owns the writing. It takes every append that waits, gives the IDs, runs one transaction in a
thread for all of them, and only when that has returned feeds the followers and answers the publishers, in that
order. The IDs of a failed transaction are never used again. WAL with ``synchronous=NORMAL`` survives a
killed process.

A disk that is full and a file that another program holds may get better: publishers are told, and it is tried again
with the next event. Anything else that fails in writing, a file that is not where it was among it, breaks the journal:
then only opening it anew can tell what it holds.

The file belongs to one process: a lock on ``PATH.lock`` says so, and it is waited for a little, because who had it may
be on its way out. Reading has its own connection; a page is
read in one short transaction, closed before anything is sent, because an open reader keeps the WAL growing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from .. import seldom
from ..errors import JournalError, JournalFull, JournalUnusable
from ..event import EventID
from ..record import Draft, Record
from ..topic import Selector
from . import database
from .contract import PAGE_BYTES, Journal, JournalStatistics, Page, Retention

COMMIT_BYTES = 1024 * 1024
"""Most bytes of events that one transaction takes beyond its first append."""

LOCK_S = 2.0
"""So long a process that holds the journal is waited for: a worker whose parent was killed has a second to end."""

MAY_PASS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN)
"""What SQLite says when it may work the next time. (It cannot open what it needs for lack of descriptors, too.)"""

T = TypeVar("T")

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_sqlite(
    path: str, retention: Retention, clock: Callable[[], float] = time.time
) -> AsyncIterator[SQLiteJournal]:
    """Open the journal in a file, made when it is missing, and write to it for the length of the block.

    Raises:
      JournalUnusable: another process has it, it is no journal of ours, or it cannot be read and written.
    """
    lock = await _lock(path)
    try:
        journal = SQLiteJournal(path, retention, clock)
        try:
            await trio.to_thread.run_sync(journal.open)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(journal.run)
                yield journal
                nursery.cancel_scope.cancel()
        finally:
            await journal.close()
    finally:
        os.close(lock)


async def _lock(path: str) -> int:
    """The file whose lock says that the journal is ours."""
    deadline = trio.current_time() + LOCK_S
    while True:
        try:
            return database.lock(path)
        except database.Locked:
            if trio.current_time() >= deadline:
                raise
        await trio.sleep(LOCK_S / 20)


@dataclass(eq=False, slots=True)
class _Append:
    """A publisher that waits for its events to be committed."""

    drafts: Sequence[Draft]
    size: int
    done: trio.Event = field(default_factory=trio.Event)
    ids: list[EventID] = field(default_factory=list)
    error: JournalError | None = None


class SQLiteJournal(Journal):
    """Events in a file."""

    def __init__(self, path: str, retention: Retention, clock: Callable[[], float] = time.time) -> None:
        super().__init__(retention, clock)
        self._path = path
        self._writer = database.Writer(path, retention)
        self._reader: sqlite3.Connection | None = None  # none before it is opened, and when it is closed
        self._writing, self._reading = trio.Lock(), trio.Lock()
        self._send, self._receive = trio.open_memory_channel[_Append](0)
        self._statistics = JournalStatistics(0, 0, 0, None)

    def open(self) -> None:
        """Open the file; in a thread, because it may be slow.

        Raises:
          JournalUnusable: it cannot be read and written, or is no journal of ours.
        """
        try:
            self.born, self._last = self._writer.open(self.position())
            self.tail = self._last
            self._reader = database.connect(self._path)
            self._statistics = self._writer.statistics()
        except (sqlite3.Error, OSError) as error:
            raise JournalUnusable(f"the journal {self._path} cannot be used: {error}") from error

    async def close(self) -> None:
        """Close the file, when no thread uses it any more; who still wants to read is told."""
        with trio.CancelScope(shield=True):
            async with self._writing:
                self._writer.close(self._last)
            reader, self._reader = self._reader, None
            async with self._reading:
                if reader is not None:
                    reader.close()

    async def run(self) -> None:
        """Commit what publishers append, until cancelled; what was taken by then is still answered."""
        try:
            with self._receive:
                async for first in self._receive:
                    await self._commit(self._take_more(first))
                    await self.wait_room()
        except Exception:
            self.broken = True
            raise
        except SystemExit as error:  # of the thread: it is no order to end this process
            self.broken = True
            raise RuntimeError(f"the thread that writes to the journal ended: {error!r}") from None

    def _take_more(self, first: _Append) -> list[_Append]:
        appends, size = [first], first.size
        with contextlib.suppress(trio.WouldBlock):
            while size < COMMIT_BYTES:
                appends.append(self._receive.receive_nowait())
                size += appends[-1].size
        return appends

    async def _commit(self, appends: Sequence[_Append]) -> None:
        written = [self.write(append.drafts) for append in appends]
        records = [record for some in written for record in some]
        error: JournalError | None = JournalError("the journal broke, and is opened anew: try again in a moment")
        try:
            with trio.CancelScope(shield=True):
                async with self._writing:
                    await trio.to_thread.run_sync(self._writer.commit, records, self.oldest_ms())
                    self._statistics = self._writer.statistics()
            self.publish(records)
            error = None
        except sqlite3.Error as cause:
            if not _may_pass(cause):
                raise
            error = _explained(cause, "write")
        finally:
            self.unwritable = None if error is None else str(error)
            for append, mine in zip(appends, written, strict=True):
                append.ids, append.error = [record.id for record in mine], error
                append.done.set()

    async def append(self, drafts: Sequence[Draft]) -> list[EventID]:
        """As the contract says; if it is cancelled while the transaction runs, the drafts may be kept."""
        append = _Append(drafts, sum(len(draft.event.data) for draft in drafts))
        try:
            await self._send.send(append)
        except trio.BrokenResourceError:
            raise JournalError("the journal is closed") from None
        await append.done.wait()
        if append.error is not None:
            raise append.error
        return append.ids

    async def read(self, selectors: Sequence[Selector], after: EventID, limit: int) -> Page:
        async with self._reading:
            return await self._read_in_thread(self._read, selectors, after.packed(), limit)

    async def floor(self, selectors: Sequence[Selector]) -> EventID:
        async with self._reading:
            return (await self._read_in_thread(self._read, selectors, 0, 0)).floor

    async def last_event_id(self, topic: str) -> EventID | None:
        async with self._reading:
            return await self._read_in_thread(self._read_last, topic)

    async def _read_in_thread(self, do: Callable[..., T], *args: object) -> T:
        if self._reader is None:
            raise JournalError("the journal is closed")
        return await _in_thread("read", do, *args)

    async def trim(self) -> None:
        async with self._writing:
            await _in_thread("write", self._writer.commit, [], self.oldest_ms(), self._last)
            self._statistics = self._writer.statistics()

    def statistics(self) -> JournalStatistics:
        return self._statistics

    async def secret(self, name: str, fresh: str) -> str:
        async with self._writing:
            return await _in_thread("write", self._writer.secret, name, fresh)

    def _read(self, selectors: Sequence[Selector], after: int, limit: int) -> Page:
        assert self._reader is not None
        with database.transaction(self._reader, "DEFERRED"):
            topics, floor = database.choose(self._reader, selectors)
            records: list[Record] = []
            size = 0
            for id, topic, key, frame in database.rows(self._reader, list(topics), after, limit):
                if size + len(frame) > PAGE_BYTES and records:
                    return Page(records, floor, more=True)
                records.append(Record(EventID.unpacked(id), topics[topic], frame, key))
                size += len(frame)
        return Page(records, floor, more=len(records) == limit)

    def _read_last(self, topic: str) -> EventID | None:
        assert self._reader is not None
        query = "SELECT max(record.id) FROM record JOIN topic ON record.topic = topic.id WHERE name = ?"
        (last,) = self._reader.execute(query, (topic,)).fetchone()
        return None if last is None else EventID.unpacked(last)


def _may_pass(error: sqlite3.Error) -> bool:
    """Whether it may work the next time; an error without a code is not from the file."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_BUSY)
    return code & 0xFF in MAY_PASS  # the rest of the code says more


def _explained(error: sqlite3.Error, what: str) -> JournalError:
    seldom.say(log, "the journal could not %s: %s", what, error)
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return JournalFull("there is no room left for the journal; nothing was kept")
    return JournalError(f"the journal could not {what}; try again later")


async def _in_thread(what: str, do: Callable[..., T], *args: object) -> T:
    try:
        return await trio.to_thread.run_sync(do, *args)
    except sqlite3.Error as error:
        if what == "write" and not _may_pass(error):
            raise
        raise _explained(error, what) from error
