"""A journal in a SQLite file: an acknowledged event survives ``kill -9``.

One Trio task owns the writing. It takes every append that waits, gives the IDs, runs one transaction in a
thread for all of them, and only when that has returned feeds the followers and answers the publishers, in that
order. The IDs of a failed transaction are never used again. WAL with ``synchronous=NORMAL`` survives a
killed process.

A disk that is full and a file that another program holds may get better: publishers are told, and it is tried again
with the next event. Anything else that fails in writing, a file that is not where it was among it, breaks the journal:
then only opening it anew can tell what it holds.

The newest records stay in memory, on a shelf in front of the file, from the moment it is opened: who catches up gets
them from there, so ten thousand readers who come back read the file no more often than one. It is read only for who
was away for longer, over a connection of its own, a page in one short transaction, closed before anything is sent,
because an open reader keeps the WAL growing. A record that several readers hold is in memory once, and the more they
hold together, the shorter their pages.

The file belongs to one process: a lock on it says so, and it is waited for a little, because who had it may be on its
way out.

A position is a promise too: no event to come stands before one that was given. So that the promise outlives ``kill -9``
and a clock that goes back, the file says up to where positions may be given; that is renewed before it is reached, and
the next life begins there.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import trio

from .. import seldom
from ..errors import JournalError, JournalFull, JournalUnusable
from ..event import ORIGIN, EventID
from ..record import Draft, Once
from ..retention import Retention
from ..selector_index import Selection
from ..topic import Selector
from . import database, file, signing_key
from .appends import Append, Appends
from .choosing import choose
from .contract import PAGE_BYTES, Journal, JournalStatistics, Page
from .file import JournalFile
from .held import Change, Write
from .removals import Told
from .shared import Shared
from .shelf import Shelf
from .writer import INDEX_BYTES, Writer

SHELF_EVENTS, SHELF_BYTES, SHELF_SHARE = 100_000, 64 * 1024 * 1024, 4
"""The newest records stay in memory: so many, so many bytes of objects, and no more than one part in so many of the
bytes of the setting, which bounds memory too."""

REPLAY_BYTES, SHORT_PAGE_BYTES = 64 * 1024 * 1024, 16 * 1024
"""Of what was read from the file so much may be held by readers, all together; beyond it their pages are so short."""

AHEAD_MS = 4_000
"""How far ahead positions are allowed to be given; it is renewed when half of it is over, with the next transaction."""

LOCK_S = 2.0
"""So long a process that holds the journal is waited for: a worker whose parent was killed has a second to end."""

MAY_PASS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN)
"""What SQLite says when it may work the next time. (It cannot open what it needs for lack of descriptors, too.)"""

NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
"""What it says when the disk is full: for the log, or for the index of the log."""

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
    with await _hold(file.resolve(path)) as held:
        journal = SQLiteJournal(held, retention, clock)
        try:
            await trio.to_thread.run_sync(journal.open)
            if exposed := held.exposed():
                log.warning(
                    "other users may open %s: they can read the events, and block the next start with a lock; "
                    "chmod 600 leaves it to its owner",
                    " and ".join(exposed),
                )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(journal.run)
                yield journal
                nursery.cancel_scope.cancel()
        finally:
            await journal.close()


async def _hold(path: str) -> JournalFile:
    """Open and lock the file, and wait for a process that is about to let go of it."""
    deadline = trio.current_time() + LOCK_S
    while True:
        try:
            return JournalFile(path)
        except file.Locked:
            if trio.current_time() >= deadline:
                raise
        await trio.sleep(LOCK_S / 20)


class SQLiteJournal(Journal):
    """Events in a file, the newest of them in memory too."""

    def __init__(self, held: JournalFile, retention: Retention, clock: Callable[[], float] = time.time) -> None:
        super().__init__(retention, clock)
        self._path = held.path
        self._writer = Writer(held, retention)
        self._reader: sqlite3.Connection | None = None  # none before it is opened, and when it is closed
        self._writing, self._reading = trio.Lock(), trio.Lock()
        self._appends = Appends()
        self._shelf = Shelf(ORIGIN)
        self._replayed = Shared()
        self._statistics = JournalStatistics(0, 0, 0, None)
        self._positions_below = 0
        self._shelf_bytes = min(SHELF_BYTES, retention.bytes / SHELF_SHARE)

    def open(self) -> None:
        """Open the file; in a thread, because it may be slow.

        Raises:
          JournalUnusable: it cannot be read and written, or is no journal of ours.
        """
        try:
            self.born, self.tail, position = self._writer.open(EventID(self.now_ms(), 0))
            # Who was told a position behind the last event comes back above all that was kept.
            self._last = self.tail
            self._give(max(position, EventID(self.tail.ms + (self.tail.seq > 0), 0)))
            self._reader = database.connect(self._path)
            self._fill_shelf()
            times = self._times()
            change = self._writer.commit([], *times)
            self._evicted += change.evicted  # without a word: this is a thread, where nobody counts lines of the log
            self._apply(change, times)
        except (sqlite3.Error, OSError) as error:
            raise JournalUnusable(f"the journal {self._path} cannot be used: {_words(error, self._path)}") from error

    def _fill_shelf(self) -> None:
        assert self._reader is not None
        self._shelf = shelf = Shelf(self._writer.coarse_floor)
        records = database.read_newest(self._reader, SHELF_EVENTS, self._shelf_bytes)
        for held in self._writer.topics():
            topic = shelf.topic(held.name)
            _, topic.floor, _, topic.lost = held.marks
            topic.gone = ORIGIN  # a floor is no such mark: older events of others may be there
            if held.events:
                oldest = records[0].id if records else None
                topic.back = database.newest_before(self._reader, held.id, oldest) or ORIGIN
            topic.last = max(topic.floor, topic.back)
            shelf.back = max(shelf.back, topic.back)
        for record in records:
            shelf.add(record)

    async def close(self) -> None:
        """Close the file, when no thread uses it any more; who still wants to read is told."""
        with trio.CancelScope(shield=True):
            reader, self._reader = self._reader, None
            async with self._reading:
                if reader is not None:
                    reader.close()
            async with self._writing:  # the last to close: it lets go of the index of the log, and its locks
                self._writer.close(None if self._position == ORIGIN else self._position)

    async def run(self) -> None:
        """Commit what publishers append, until cancelled; what was taken by then is still answered."""
        try:
            while True:
                await self._commit(await self._appends.take())
                await self.wait_room()
        except Exception:
            self.broken = True
            raise
        except SystemExit as error:  # of the thread: it is no order to end this process
            self.broken = True
            raise RuntimeError(f"the thread that writes to the journal ended: {error!r}") from None
        finally:
            self._appends.close()

    async def _commit(self, appends: Sequence[Append]) -> None:
        writes = [Write(self.write(append.drafts), append.once) for append in appends]
        error: JournalError | None = JournalError("the journal broke, and is opened anew: try again in a moment")
        try:
            with trio.CancelScope(shield=True):
                async with self._writing:
                    times = self._times()
                    change = await trio.to_thread.run_sync(self._writer.commit, writes, *times)
                    self._note_evicted(change.evicted)
                    self._apply(change, times)
            self.publish(change.added)
            error = None
        except sqlite3.Error as cause:
            if not _may_pass(cause):
                raise
            error = _explained(cause, "write")
        finally:
            self.unwritable = None if error is None else str(error)
            for append, write in zip(appends, writes, strict=True):
                append.replayed = write.before is not None
                append.ids = [record.id for record in write.records] if write.before is None else [write.before]
                append.error = error or write.refusal
                append.done.set()

    def _times(self) -> tuple[int, EventID, EventID | None]:
        """For a transaction: the time, since when keys are known, and up to where positions may be given after it."""
        now = self.now_ms()
        enough = self._positions_below >= now + AHEAD_MS / 2 and self.unwritable is None
        ahead = None if enough else EventID(max(now + AHEAD_MS, self._position.ms), 0)
        return now, self.knows_key_since(now), ahead

    def _apply(self, change: Change, times: tuple[int, EventID, EventID | None]) -> None:
        """What the file says now is so in memory, too."""
        shelf, ahead = self._shelf, times[2]
        for record in change.added:
            shelf.add(record)
        for name, floor, gone, lost in change.marks:
            topic = shelf.topic(name)
            topic.lost = lost
            topic.floor = max(topic.floor, floor)
            if gone > topic.gone:
                shelf.remove(topic, gone)
        for name, ids in change.holes:
            for id in ids:
                shelf.remove_one(shelf.topic(name), id)
        if change.coarse_floor is not None:
            shelf.coarse_floor = change.coarse_floor
            self._give(change.coarse_floor)
        for name in change.forgotten:
            if name in shelf.topics:  # and not one that came and went in one transaction
                shelf.forget(name)
        shelf.put_back(SHELF_EVENTS, self._shelf_bytes)
        newest = shelf.newest()
        self._statistics = replace(self._writer.statistics(), last_event_id=newest, evicted=self._evicted)
        if ahead is not None:
            self._positions_below = ahead.ms

    async def append(self, drafts: Sequence[Draft]) -> list[EventID]:
        """As the contract says; if it is cancelled while the transaction runs, the drafts may be kept."""
        return (await self._appends.wait(Append(drafts))).ids

    async def append_once(self, draft: Draft, once: Once) -> tuple[EventID, bool]:
        """As the contract says; if it is cancelled while the transaction runs, the draft may be kept, under its key."""
        append = await self._appends.wait(Append([draft], once))
        return append.ids[0], append.replayed

    async def read(self, selectors: Sequence[Selector], after: EventID, limit: int, told: int = 0) -> Page:
        await trio.lowlevel.checkpoint()
        selection, now_told = Selection.of(selectors), Told(told)
        topics = await choose(self._shelf, selection, after, now_told)
        if self._reader is not None:
            page = self._shelf.read(selection, topics, after, limit, now_told)
            if page is not None:
                return page
        async with self._reading:
            if self._reader is None:
                raise JournalError("the journal is closed")
            room = REPLAY_BYTES - self._replayed.bytes
            most = max(SHORT_PAGE_BYTES, min(PAGE_BYTES, room))
            reader = self._reader
            try:
                async with self._writing:  # so the shelf knows of exactly those removals that the reader sees
                    await _in_thread("read", database.begin_reading, reader)
                    topics = None if topics is None else self._shelf.few(selection)
                    self._shelf.tell(selection, topics, after, now_told)
                names = None if topics is None else [topic.name for topic in topics]
                found = await _in_thread("read", database.read, reader, selection, names, after, limit, most)
            finally:
                if reader.in_transaction:
                    reader.execute("COMMIT")
        records = [self._replayed.of(record) for record in found.records]
        return Page(records, found.upto, now_told.floor, now_told.lost, now_told.upto, found.more)

    async def floor(self, selectors: Sequence[Selector]) -> EventID:
        await trio.lowlevel.checkpoint()
        return self._shelf.floor(selectors)

    async def last_event_id(self, topic: str) -> EventID | None:
        await trio.lowlevel.checkpoint()
        found = self._shelf.last_event_id(topic)
        if found is None or len(self._shelf.topics[topic]):
            return found
        async with self._reading:  # what the shelf put back may have been removed from between older ones
            if self._reader is None:
                raise JournalError("the journal is closed")
            return await _in_thread("read", database.newest_of, self._reader, topic)

    def _known_topic(self, topic: str) -> str:
        known = self._shelf.topics.get(topic)
        return topic if known is None else known.name

    def _known_publisher(self, name: str) -> str:
        return self._writer.known_publisher(name)

    async def trim(self) -> None:
        """As the contract says; a transaction at a time, so that publishers have theirs between them."""
        more = True
        while more:
            async with self._writing:
                times = self._times()
                change = await _in_thread("write", self._writer.commit, [], *times)
                self._note_evicted(change.evicted)
                self._apply(change, times)
                self.unwritable = None  # a position was kept, as always when that is in doubt
                more = change.more

    def statistics(self) -> JournalStatistics:
        return self._statistics

    async def signing_key(self, fresh: str) -> str:
        """As the contract says; it is in a file beside the journal, where versions before had it in the journal."""
        async with self._writing:
            return await _in_thread("write", self._keep_key, fresh)

    def _keep_key(self, fresh: str) -> str:
        before = database.old_key(self._writer.db)
        key = signing_key.read(self._path)
        if key is None:
            key = before or fresh
            signing_key.keep(self._path, key)
        if before is not None:
            database.forget_old_key(self._writer.db)
        return key

    async def forget_signing_key(self) -> None:
        async with self._writing:
            await _in_thread("write", self._forget_key)

    def _forget_key(self) -> None:
        signing_key.forget(self._path)
        if database.old_key(self._writer.db) is not None:
            database.forget_old_key(self._writer.db)


def _may_pass(error: sqlite3.Error) -> bool:
    """Whether it may work the next time; an error without a code is not from the file."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_BUSY)
    return code & 0xFF in MAY_PASS or _is_for_want_of_room(error)  # the rest of the code says more


def _is_for_want_of_room(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) in NO_ROOM


def _explained(error: sqlite3.Error, what: str) -> JournalError:
    seldom.say(log, "the journal could not %s: %s", what, error)
    if _is_for_want_of_room(error):
        return JournalFull("there is no room left for the journal; nothing was kept")
    return JournalError(f"the journal could not {what}; try again later")


def _words(error: Exception, path: str) -> str:
    """What is wrong with the file, to an operator."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and not _has_room(path):
        return "there is no room left on its disk; make some, or name another file"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another program holds it; stop that one, or name another file"
    if code == sqlite3.SQLITE_READONLY:
        return "it may not be written to; give this user the right to, or name another file"
    return str(error)


def _has_room(path: str) -> bool:
    """Whether the index of SQLite's log would find room beside the file."""
    try:
        return shutil.disk_usage(Path(path).absolute().parent).free >= INDEX_BYTES
    except OSError:
        return True  # then that is what is wrong


async def _in_thread(what: str, do: Callable[..., T], *args: object) -> T:
    try:
        return await trio.to_thread.run_sync(do, *args)
    except sqlite3.Error as error:
        if what == "write" and not _may_pass(error):
            raise
        raise _explained(error, what) from error
