"""What every journal promises, and the parts all of them share.

A journal is the only door to a hub's subscribers: it gives each event a place, and hands the places out in
order. The promise everything above rests on: **IDs become visible in increasing order**. Once a reader or a
follower has seen an ID, nothing smaller appears.

:mod:`trio_sse.testing` exports the tests of this contract, to run against a journal of your own.
"""

from __future__ import annotations

import abc
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import trio

from .. import seldom
from ..event import ORIGIN, EventID
from ..record import Draft, Once, Record
from ..retention import Retention
from ..topic import Selector

ONCE_S, MAX_ONCE = 24 * 3600, 100_000
"""An idempotency key is known for so many seconds, and so many of them are; with more, or with more than their share
of a journal's bytes, the publisher that has most gives its oldest."""

REUSED = "this idempotency key stands for another event of the topic: give each event a key of its own"
"""What is said of a key that stands for another event."""

MAX_TOPICS = 100_000
"""Most topics that have events, counted for each of their publishers; beyond it the publisher with most gives the one
in which it published nothing for longest."""

MAX_EMPTY_TOPICS = 10_000
"""Most topics of which nothing but the floor is kept, before the coarse floor stands for the oldest."""

FULL = (
    "the journal is full: the publishers that hold most give their oldest events, which their topics' own limits would "
    "keep; raise TRIO_SSE_RETENTION_BYTES, or lower what each topic keeps (trio_sse_journal_evicted_total counts them)"
)
"""What the log hears, with no name in it, so that it is one line a minute whoever they are."""

MAX_LOST = 100_000
"""Of so many keys whose newest value was removed it is known whether one has replaced it since."""

BACKLOG = 512
"""How many events a follower may be behind before publishers wait for it, where 2 KiB of frames count as one more: some
hundredths of a second, by which live events are late then."""

MERGED_TOPICS = 64
"""Up to so many topics are read one by one and merged; more, along the journal."""

PAGE_ENTRIES = 2_048
"""So many records of the journal are looked at for one page along it, a few milliseconds, whatever is chosen of them.
Between two pages others have their turn."""

COST_BYTES = 2048
"""Bytes of data that take about as long to keep as one event more."""

PAGE_BYTES = 1024 * 1024
"""Most bytes of frames in one page, beyond its first record."""


log = logging.getLogger(__name__)


def cost_of(drafts: Sequence[Draft]) -> int:
    """How long it takes to keep these, in events."""
    return len(drafts) + sum(len(draft.event.data) for draft in drafts) // COST_BYTES


class Page(NamedTuple):
    """A piece of history; all of it as it was in one instant."""

    records: Sequence[Record]
    upto: EventID
    """All that the selectors choose up to here has been read; at least the last record's ID."""
    floor: EventID
    """Up to where records were removed, since the page of which the number was given; not above it, if none were."""
    lost: EventID
    """Likewise, but only of those that no newer one of the same topic and key has replaced."""
    removals: int
    """The number of the newest removal that this page tells of."""
    more: bool
    """Whether there may have been more to read."""


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    """How much a journal holds now."""

    events: int
    bytes: int
    """What all that it holds is counted as, events and what it knows beside them."""
    topics: int
    last_event_id: EventID | None
    evicted: int = 0
    """Events removed for room since it was opened, which their topics' own limits would have kept."""


class Journal(abc.ABC):
    """Events in their places.

    A *floor* is the highest ID that was removed from any topic some selectors choose: a cursor below it has
    missed something for good. Floors are per topic, so a busy topic says nothing about a quiet one. When a
    topic is itself forgotten, one coarse floor stands for all the forgotten. A fresh journal's coarse floor is
    :attr:`born`, so a cursor from an earlier life is below it.
    """

    def __init__(self, retention: Retention, clock: Callable[[], float] = time.time) -> None:
        self.retention = retention
        self.followers: set[Follower] = set()
        self._clock = clock
        self._last = ORIGIN  # the highest ID or position given so far
        self._position = ORIGIN  # the highest position given so far
        self._positions_below = math.inf  # so many milliseconds a position may have
        self.tail = ORIGIN
        """The highest ID that is visible."""
        self._evicted = 0
        self.broken = False
        """Whether it can keep nothing any more, because something in it failed that nobody expected."""
        self.unwritable: str | None = None
        """Why it could not keep what it was given last, if it could not; it may be able to again."""
        self.born = ORIGIN
        """The position at which this life of the journal began."""

    # -- what each journal does in its own way ------------------------------------------------------------

    @abc.abstractmethod
    async def append(self, drafts: Sequence[Draft]) -> list[EventID]:
        """Give every draft a place, all or none; returns their IDs, which increase.

        When it returns, they are kept as well as this journal keeps anything. May wait for followers that are
        behind. If it is cancelled, the drafts have either all been appended or never will be.

        Raises:
          JournalError: nothing was kept; trying again later may help.
        """

    @abc.abstractmethod
    async def append_once(self, draft: Draft, once: Once) -> tuple[EventID, bool]:
        """Give a draft a place, unless one with the same key of the same subject has one in the same topic.

        Returns the ID, and whether it was given before. The key is kept with the event, as well as the event, and
        also when the event is removed: for :data:`ONCE_S`, and as one of :data:`MAX_ONCE`, unless others need the room
        and its publisher has most. Of two at the same time the second waits for the first.

        Raises:
          KeyReused: what has the place is another event. JournalError: as :meth:`append`.
        """

    @abc.abstractmethod
    async def read(self, selectors: Sequence[Selector], after: EventID, limit: int, told: int = 0) -> Page:
        """The oldest records after ``after`` whose topics the selectors choose, in order; at most ``limit``.

        There may be fewer, or none, though there is more: a page is a bounded piece of work, however many topics there
        are and however few the selectors choose. It goes on after :attr:`Page.upto`. ``told`` is the number of the page
        before it (:attr:`Page.removals`), so that nobody is told of a removal twice.
        """

    @abc.abstractmethod
    async def floor(self, selectors: Sequence[Selector]) -> EventID:
        """The highest ID that was removed from any topic the selectors choose."""

    @abc.abstractmethod
    async def last_event_id(self, topic: str) -> EventID | None:
        """The ID of the newest event kept of one topic."""

    @abc.abstractmethod
    async def trim(self) -> None:
        """Remove what retention no longer allows; appending does this too, for what it adds."""

    @abc.abstractmethod
    def statistics(self) -> JournalStatistics:
        """How much is held now."""

    @abc.abstractmethod
    async def signing_key(self, fresh: str) -> str:
        """A key kept as long as the journal itself, and not in it: ``fresh`` the first time, then the same.

        Raises:
          JournalUnusable, JournalError: it can be neither found nor kept.
        """

    @abc.abstractmethod
    async def forget_signing_key(self) -> None:
        """Keep that key no longer.

        Raises:
          JournalUnusable, JournalError: it cannot be removed.
        """

    # -- what they share ----------------------------------------------------------------------------------

    @staticmethod
    def knows_key_since(now_ms: int) -> EventID:
        """An idempotency key is known while its event's ID is at least this."""
        return EventID(max(0, now_ms - ONCE_S * 1000), 0)

    def follow(self) -> Follower:
        """Begin to follow: every record that becomes visible from now on, in order, none left out."""
        follower = Follower(self)
        self.followers.add(follower)
        return follower

    def position(self) -> EventID:
        """A cursor at this moment: after every event that is visible, before every event to come.

        No event ever has it. The clock may stand still or go back; IDs and positions do not.
        """
        ms = max(self.tail.ms + (self.tail.seq > 0), min(self.now_ms(), self._positions_below))
        self._give(EventID(int(ms), 0))
        return self._position

    def _give(self, position: EventID) -> None:
        """Everything from now on is above this position, which somebody may come back with."""
        self._position = max(self._position, position)
        self._last = max(self._last, self._position)

    def gave(self, cursor: EventID) -> bool:
        """Whether this journal may have given the cursor: it is not ahead of all it has said."""
        return cursor <= self.tail or (cursor.seq == 0 and cursor <= self._position)

    def now_ms(self) -> int:
        """The wall clock in whole milliseconds."""
        return int(self._clock() * 1000)

    def write(self, drafts: Sequence[Draft]) -> list[Record]:
        """Give each draft the next ID."""
        now = self.now_ms()
        records = []
        for draft in drafts:
            self._last = self._last.next(now)
            topic, publisher = self._known_topic(draft.topic), self._known_publisher(draft.publisher)
            records.append(Record.write(self._last, draft, topic, publisher))
        return records

    def _known_topic(self, topic: str) -> str:
        """The same text, as an object that is in memory already if there is one."""
        return topic

    def _known_publisher(self, name: str) -> str:
        """The same name, likewise."""
        return name

    def _note_evicted(self, events: int) -> None:
        """Count events that made room for others, and tell the operator."""
        if events:
            self._evicted += events
            seldom.say(log, FULL)

    def publish(self, records: Sequence[Record]) -> None:
        """Make records visible to the followers, and move the tail."""
        if records:
            self.tail = records[-1].id
            for follower in self.followers:
                follower.feed(records)

    async def wait_room(self) -> None:
        """Wait until no follower is far behind. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        while (behind := self.behind()) is not None:
            await behind.drained.wait()

    def behind(self) -> Follower | None:
        """A follower that is far behind, if there is one."""
        return next((follower for follower in self.followers if follower.backlog > BACKLOG), None)


def _weight(record: Record) -> int:
    return 1 + len(record.frame) // COST_BYTES


class Follower:
    """One reader of everything, in batches; a context manager that stops following when it is left."""

    def __init__(self, journal: Journal) -> None:
        self.backlog = 0
        self.drained = trio.Event()
        self._journal = journal
        self._waiting: deque[Record] = deque()
        self._arrived = trio.Event()

    def feed(self, records: Sequence[Record]) -> None:
        """Take records; they wait here until :meth:`receive` hands them on."""
        self._waiting.extend(records)
        self.backlog += sum(map(_weight, records))
        self._arrived.set()

    async def receive(self, max_records: int = 64, max_bytes: int = 64 * 1024) -> list[Record]:
        """Wait for records; all that are there, up to so many and so many bytes of frames, at least one.

        If this is cancelled, no record is lost.
        """
        while not self._waiting:
            self._arrived = trio.Event()
            await self._arrived.wait()
        batch: list[Record] = []
        size = weight = 0
        while self._waiting and len(batch) < max_records:
            if batch and size + len(self._waiting[0].frame) > max_bytes:
                break
            batch.append(self._waiting.popleft())
            size += len(batch[-1].frame)
            weight += _weight(batch[-1])
        self.backlog -= weight
        if self.backlog <= BACKLOG:
            self.drained.set()
            self.drained = trio.Event()
        return batch

    def close(self) -> None:
        """Stop following; nobody waits for this follower any more."""
        self._journal.followers.discard(self)
        self.drained.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
