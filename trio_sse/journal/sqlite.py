"""A journal in a SQLite file: an acknowledged event survives ``kill -9``.

One Trio task owns the writing. It takes every append that waits, gives the IDs, runs one transaction in a
thread for all of them, and only when that has returned feeds the followers and answers the publishers, in that
order. The IDs of a failed transaction are never used again. WAL with ``synchronous=NORMAL`` survives a
killed process.

The file belongs to one process: a lock on ``PATH.lock`` says so. Reading has its own connection; a page is
read in one short transaction, closed before anything is sent, because an open reader keeps the WAL growing.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from ..errors import JournalError, JournalFull, JournalUnusable
from ..event import EventID
from ..record import Draft, Record
from ..topic import Selector
from . import database
from .contract import Journal, JournalStatistics, Page, Retention

COMMIT_BYTES = 1024 * 1024
"""Most bytes of events that one transaction takes beyond its first append."""

PAGE_BYTES = 1024 * 1024
"""Most bytes of frames in one page, beyond its first record."""

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
    with contextlib.ExitStack() as stack:
        stack.enter_context(database.locked(path))
        journal = SQLiteJournal(path, retention, clock)
        try:
            await trio.to_thread.run_sync(journal.open)
        except sqlite3.Error as error:
            raise JournalUnusable(f"the journal {path} cannot be used: {error}") from error
        finally:
            stack.callback(journal.close)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.run)
            yield journal
            nursery.cancel_scope.cancel()


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
        self._reader: sqlite3.Connection | None = None
        self._writing, self._reading = trio.Lock(), trio.Lock()
        self._send, self._receive = trio.open_memory_channel[_Append](0)
        self._statistics = JournalStatistics(0, 0, 0, None)

    def open(self) -> None:
        """Open the file; in a thread, because it may be slow."""
        self.born, self._last = self._writer.open(self.position())
        self.tail = self._last
        self._reader = database.connect(self._path)
        self._statistics = self._writer.statistics()

    def close(self) -> None:
        """Close the file."""
        self._writer.close(self._last)
        if self._reader is not None:
            self._reader.close()

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
        error: JournalError | None = JournalError("the journal broke; nothing was kept")
        try:
            with trio.CancelScope(shield=True):
                async with self._writing:
                    await trio.to_thread.run_sync(self._writer.commit, records, self.oldest_ms())
                    self._statistics = self._writer.statistics()
            self.publish(records)
            error = None
        except sqlite3.Error as cause:
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
            return await _in_thread("read", self._read, selectors, after.packed(), limit)

    async def floor(self, selectors: Sequence[Selector]) -> EventID:
        async with self._reading:
            return (await _in_thread("read", self._read, selectors, 0, 0)).floor

    async def last_event_id(self, topic: str) -> EventID | None:
        async with self._reading:
            return await _in_thread("read", self._read_last, topic)

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


def _explained(error: sqlite3.Error, what: str) -> JournalError:
    log.error("the journal could not %s: %s", what, error)
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return JournalFull("there is no room left for the journal; nothing was kept")
    return JournalError(f"the journal could not {what}; try again later")


async def _in_thread(what: str, do: Callable[..., T], *args: object) -> T:
    try:
        return await trio.to_thread.run_sync(do, *args)
    except sqlite3.Error as error:
        raise _explained(error, what) from error
