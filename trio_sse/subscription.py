"""One subscriber's cursor: history, then live, joined by one comparison.

Plan: read pages from the journal, unattached, until nothing more was there; attach an outlet; read once more from
the cursor; only then take what the outlet was given. A record is handed on only if its ID is above the
cursor, and the cursor only moves up. No hole, because attaching came before the last read; no echo, because
of the comparison. It rests on the journal's promise that IDs become visible in increasing order.

A subscriber whose channel ran full goes the same way from the start: read unattached, attach, read once more.
(To catch up and attach *afterwards* would lose what is published between the two.)

Each page says which IDs below it are gone for good. When that is above the cursor there is a hole, and a
:class:`~trio_sse.record.Gap` stands at its place.

Who only wants the latest goes the same way, but the pages are gathered first, and only the newest value of each key is
handed on; what a newer one has replaced is no hole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import trio

from .broadcast import Broadcaster, ChannelOutlet, EndReason
from .errors import InvalidEventID
from .event import ORIGIN, EventID
from .journal import Journal, Page
from .latest import Latest
from .record import Gap, GapReason, Record
from .selector_index import Selection
from .ticker import Ticker
from .topic import Selector

PAGE = 256
"""Most records in one page of history."""

EARLIEST = "earliest"
"""In place of a cursor: everything that is kept."""

TURNS = 8
"""So many subscriptions read a page at the same time. Thousands who come back at once take turns, a page each, so that
an event for those who are there already need never wait for all of them."""

Slow = Literal["catch-up", "latest"]
"""What a subscriber gets that is slow, or was away: everything, or of each key the newest."""


@dataclass(slots=True)
class Desk:
    """What all subscriptions of one hub share."""

    journal: Journal
    broadcaster: Broadcaster
    streams: Ticker
    buffer_events: int
    turns: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(TURNS))
    ending: EndReason | None = None
    """Why no more streams are taken, once they are not."""
    delivered: int = 0
    gaps: int = 0


class Subscription:
    """The events of some topics from a cursor on; made by :meth:`Hub.subscribe`.

    Use it as a context manager, and as an async iterator of ``Record | Gap``. Nothing is held before the block
    is entered or after it is left. One task receives.
    """

    def __init__(
        self, desk: Desk, selectors: Sequence[Selector], last_event_id: str | None, slow: Slow = "catch-up"
    ) -> None:
        self.selectors = Selection.of(selectors)
        self.requested = last_event_id
        self.cursor = desk.journal.position() if last_event_id is None else ORIGIN
        """The ID or position after which :meth:`receive` goes on."""
        self.ended: EndReason | None = None
        """Why it was ended, once it was."""
        self.desk = desk
        self.open_outlet: Callable[[Sequence[Selector], int, Latest | None], ChannelOutlet] = ChannelOutlet
        """Makes the outlet to be attached; who carries the subscription to a client may have a better one."""
        self.located = last_event_id is None
        """Whether :attr:`cursor` is where it really begins."""
        self._ready: deque[Record | Gap] = deque()
        self._gathered = Latest() if slow == "latest" else None  # in place of ready records
        self._gathering = False  # what is gathered is not to be handed on yet
        self._newest = self.cursor  # up to here the journal has been read
        self._told = 0  # the number of the newest removal of which it has been told
        self._more = False  # whether the last page left something to read
        self._outlet: ChannelOutlet | None = None
        self._reading: trio.CancelScope | None = None  # of a wait for the journal
        self._live = False  # nothing is left to read from the journal

    # -- where to begin -----------------------------------------------------------------------------------

    async def locate(self) -> EventID:
        """Find out where it really begins; the position its first block and header name.

        A cursor that cannot be honoured (too old, too new, or no cursor at all) becomes a gap, to be received
        first. Attaches nothing, so it may be called, and forgotten, at any time; called again it does nothing.
        If it is cancelled, nothing has happened.
        """
        if self.located:
            await trio.lowlevel.checkpoint()
            return self.cursor
        assert self.requested is not None, "who asks for nothing begins at this moment, and is located"
        if self.requested == EARLIEST:
            page = await self._read_first(ORIGIN)
            self._begin(page, _resumed_from(page, ORIGIN, self.desk.journal.born))
        else:
            await self._locate_cursor(self.requested)
        self.located = True
        return self.cursor

    async def _locate_cursor(self, requested: str) -> None:
        cursor, reason = self._judge(requested)
        page = await self._read_first(cursor)
        born = self.desk.journal.born
        if reason is None and (cursor < born or self._missing(page) > cursor):
            reason = "restarted" if cursor < born else "trimmed"
        if reason is not None:
            cursor = _resumed_from(page, cursor, born)
            self._ready.append(Gap(requested[:64], cursor, reason))
        self._begin(page, cursor)

    def _judge(self, requested: str) -> tuple[EventID, GapReason | None]:
        try:
            cursor = EventID.parse(requested)
        except InvalidEventID:
            return ORIGIN, "unknown"
        return (cursor, None) if self.desk.journal.gave(cursor) else (ORIGIN, "ahead")

    def _begin(self, page: Page, cursor: EventID) -> None:
        self.cursor = cursor
        self._told = page.removals
        self._absorb(page)

    def _missing(self, page: Page) -> EventID:
        """A cursor below it has missed something that it should have had."""
        return page.floor if self._gathered is None else page.lost

    @property
    def opening_position(self) -> EventID:
        """The cursor to tell a client before anything else is sent.

        Where a gap comes first it is the cursor the client came with, or one that is as old as can be: should
        the connection break before the gap has arrived, the gap is told again.
        """
        if self._ready and isinstance(gap := self._ready[0], Gap):
            try:
                return EventID.parse(gap.requested)
            except InvalidEventID:
                return ORIGIN
        return self.cursor

    # -- receiving ----------------------------------------------------------------------------------------

    async def receive(self) -> Record | Gap:
        """Wait for the next record, oldest first: history, then live.

        If this is cancelled, the cursor has not moved and no record is lost.

        Raises:
          trio.EndOfChannel: the subscription was ended; :attr:`ended` says why.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while True:
            try:
                item = self.receive_nowait()
            except trio.WouldBlock:
                await self.wait()
                waited = True
            else:
                if not waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return item

    def receive_nowait(self) -> Record | Gap:
        """The next record, if there is one without waiting.

        Raises:
          trio.WouldBlock: there is none, or the journal has to be read for it.
          trio.EndOfChannel: the subscription was ended; :attr:`ended` says why.
        """
        if self.ended is not None:
            raise trio.EndOfChannel
        while self._ready:
            if (item := self._take(self._ready.popleft())) is not None:
                return item
        while self._gathered and not self._gathering:
            record = self._gathered.take()
            if not self._is_replaced(record) and (item := self._take(record)) is not None:
                return item
        while self._live and self._outlet is not None:
            try:
                record = self._outlet.receive_nowait()
            except trio.EndOfChannel:
                self._outlet_ended()
            else:
                if (item := self._take(record)) is not None:
                    return item
        raise trio.WouldBlock

    def _is_replaced(self, record: Record) -> bool:
        """Whether what is live has a newer value in place of this one, to be received behind all that was read."""
        if self._outlet is None or self._outlet.latest is None:
            return False
        newer = self._outlet.latest.value_of(record)
        return newer is not None and newer.id > self._newest

    def _take(self, item: Record | Gap) -> Record | Gap | None:
        if isinstance(item, Gap):
            self.cursor = max(self.cursor, item.resumed_from)
            self.desk.gaps += 1
        elif item.id > self.cursor:
            self.cursor = item.id
            self.desk.delivered += 1
        else:
            return None
        return item

    async def wait(self) -> None:
        """Wait until :meth:`receive_nowait` may have something to say, or somebody calls :meth:`wake`.

        If it is cancelled, no record is lost. While it waits for live records, the outlet may write them to the
        client itself, and the cursor moves with what it has written.
        """
        outlet = self._outlet
        if outlet is None or not self._live:
            with trio.CancelScope() as self._reading:
                await self._read_on()
            self._reading = None
            return
        outlet.cursor = self.cursor
        try:
            await outlet.wait()
        finally:
            self.cursor = outlet.cursor

    def wake(self) -> None:
        """End a wait, if there is one."""
        if self._reading is not None:
            self._reading.cancel()
        elif self._outlet is not None:
            self._outlet.wake()

    def _outlet_ended(self) -> None:
        """The broadcaster closed the outlet: for lagging, which is made good, or for good."""
        assert self._outlet is not None
        reason = self._outlet.reason
        self._release()
        if reason != "lagging":
            self.ended = reason
            raise trio.EndOfChannel

    async def _read_on(self) -> None:
        """Read the next page; after the last one attach, read once more, and be live.

        If it is cancelled, nothing has changed.
        """
        read = max(self.cursor, self._newest)
        page = await self._read(read)
        if self._missing(page) > read:
            if self._gathered:  # its place is behind what was gathered: that goes first, and this is read again
                self._more, self._gathering = True, False
                return
            self._ready.append(Gap(str(read), _resumed_from(page, read, self.desk.journal.born), "trimmed"))
        self._told = page.removals
        self._absorb(page)
        if self._outlet is None:
            self._attach()
        elif not self._more:
            self._go_live()

    async def _read(self, after: EventID, told: int | None = None) -> Page:
        async with self.desk.turns:
            return await self.desk.journal.read(self.selectors, after, PAGE, self._told if told is None else told)

    async def _read_first(self, cursor: EventID) -> Page:
        """The page behind a cursor; of a reader that has missed something, one that says where it goes on.

        That is the oldest record there is, if it is older than what was removed.
        """
        page = await self._read(cursor)
        while page.more and not page.records and page.upto < page.floor:
            before = page
            page = await self._read(before.upto, before.removals)
            page = page._replace(floor=max(page.floor, before.floor), lost=max(page.lost, before.lost))
        return page

    def _absorb(self, page: Page) -> None:
        self._more = page.more
        self._newest = max(self.cursor, self._newest)
        if self._gathered is None:
            self._ready.extend(page.records)
            self._newest = max(self._newest, page.upto)
            return
        self._gathering = True
        for record in page.records:
            if not self._gathered.hold(record):  # what is gathered goes first, and this is read again
                self._more, self._gathering = True, False
                return
            self._newest = record.id
        self._newest = max(self._newest, page.upto)

    def _attach(self) -> None:
        """Attach, unless there is more to read first."""
        if self._more:
            return
        latest = None if self._gathered is None else Latest()
        self._outlet = self.open_outlet(self.selectors, self.desk.buffer_events, latest)
        self.desk.broadcaster.attach(self._outlet)
        # The common case spares the read once more: nothing at all became visible since the last.
        if self.desk.journal.tail <= self._newest:
            self._go_live()

    def _go_live(self) -> None:
        self._live, self._gathering = True, False

    # -- its length ---------------------------------------------------------------------------------------

    def written(self) -> None:
        """Everything received so far has left for the client; for the measure of latency."""
        if self._outlet is not None:
            self._outlet.cursor = self.cursor
            self.desk.broadcaster.last_write.written(self._outlet)

    def kept(self) -> bytes:
        """Nothing: what is not received can be read from the journal again."""
        return b""

    def end(self, reason: EndReason) -> None:
        """End it, from any task: :meth:`receive` raises ``EndOfChannel`` now and ever after."""
        if self.ended is None:
            self.ended = reason
            if self._outlet is not None:
                self.desk.broadcaster.detach(self._outlet, reason)

    def _release(self) -> None:
        self._live = False
        if self._outlet is not None:
            self.desk.broadcaster.detach(self._outlet, "ended")
            self._outlet.receive_channel.close()
            self._outlet = None

    async def __aenter__(self) -> Self:
        """Begin: from here on nothing published is missed."""
        await self.locate()
        self._attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of everything, without waiting for anything."""
        self.end("ended")
        self._release()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record | Gap:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


def _resumed_from(page: Page, cursor: EventID, born: EventID) -> EventID:
    """The position that everything still kept after ``cursor`` follows.

    That is the floor, or where this life of the journal began, unless there are older records than that, of another
    topic of the same subscriber or from the life before: those are given too.
    """
    floor = max(page.floor, born)
    oldest = page.records[0].id if page.records else page.upto
    if (page.records or page.more) and oldest <= floor:
        return max(cursor, EventID(oldest.ms, 0))
    return max(cursor, floor)
