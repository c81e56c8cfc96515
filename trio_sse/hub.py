"""A hub: events in, through the journal, out to every subscriber.

One task follows the journal and broadcasts; two small ones beat the heart of idle streams and remove old events.
``open_hub`` runs them for the length of a block. If one of them breaks, the hub has failed: everything that it
carries is ended, so that nobody sits on heartbeats for ever, and the block is left with the exception.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import trio

from .broadcast import Broadcaster, EndReason
from .errors import HubFailed, InvalidEvent, InvalidInput, InvalidTopic, JournalError, TooLarge, TrioSSEError
from .event import Event, EventID
from .expiry import wall_ahead
from .journal import Journal, JournalStatistics, open_journal
from .record import RESERVED_PREFIX, Draft, Once
from .retention import Retention
from .subscription import Desk, Slow, Subscription
from .ticker import Ticker
from .topic import Selector, check_new_topic, parse_selectors
from .wire import MAX_DATA, MAX_FRAME, framed_length

MAX_KEY = 256
"""Most characters in an event's key."""

MAX_IDEMPOTENCY_KEY = 255
"""Most characters, all of them printable ASCII, in what names one publication."""

MAX_TOGETHER, MAX_TOGETHER_BYTES = 1_000, 4 * 1024 * 1024
"""Most events that are published at once, and most bytes of data in them: one transaction of about 20 ms, for which all
other publishers wait."""

WATCH_S = 1.0
"""Between two events whose latency is measured, at least so many seconds."""

TRIM_S = 1.0
"""Events that grew too old are removed within so many seconds."""

JUMP_S = 5.0
"""A jump of the wall clock by so many seconds is worth a line in the log."""

MAX_SELECTORS = 100
"""Most topics and selectors that one subscriber may ask for."""

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """A hub at one moment. From ``published`` to ``gaps`` it counts since it was opened.

    ``delivered`` are the events handed to subscribers, each once for each of them; of these, ``written`` went straight
    to a socket.
    """

    streams: int
    subscribers: int
    published: int
    delivered: int
    written: int
    lagging: int
    gaps: int
    journal: JournalStatistics


class Hub:
    """Publish here, subscribe here. Made by :func:`open_hub`."""

    def __init__(self, journal: Journal, *, buffer_events: int = 256, heartbeat_s: float = 15) -> None:
        self.journal = journal
        self.broadcaster = Broadcaster()
        self.failed = False
        self._desk = Desk(journal, self.broadcaster, Ticker(heartbeat_s), buffer_events)
        self._published = 0
        self._running: trio.CancelScope | None = None
        self._fault: Exception | None = None  # what the journal broke with, where it broke in a publisher's task
        self._cancelled_on_ending: dict[trio.CancelScope, None] = {}
        # A batch must leave room in a subscriber's channel, or it would be lagging at once.
        self._batch_records = max(1, min(64, buffer_events // 4))

    # -- publishing ---------------------------------------------------------------------------------------

    async def publish(
        self, topic: str, event: Event | str, *, type: str | None = None, key: str | None = None, publisher: str = ""
    ) -> EventID:
        """Publish one event, given whole or as its data; returns its ID, when it is safe in the journal.

        ``publisher`` is the account that the event is charged to: when the journal is full, the publisher that holds
        most makes room. May wait for subscribers' broadcasting to keep up. If it is cancelled, the event has either
        been published or never will be.

        Raises:
          InvalidTopic, InvalidEvent, TooLarge: it cannot be published as it is.
          JournalError: the journal could not keep it. HubFailed: the hub has broken, or is being ended.
        """
        if isinstance(event, str):
            event = Event(event) if type is None else Event(event, type=type)
        return (await self.publish_many(topic, [event], key=key, publisher=publisher))[0]

    async def publish_many(
        self, topic: str, events: Iterable[Event], *, key: str | None = None, publisher: str = ""
    ) -> list[EventID]:
        """Publish several events of one topic at once, all or none: the cheap way for a busy publisher.

        Raises:
          TooLarge: they are more than 1,000, or hold more than 4 MiB of data. Otherwise as :meth:`publish`.
        """
        check_new_topic(topic)
        drafts: list[Draft] = []
        size = 0
        for event in events:
            check_publishable(event, key)
            drafts.append(Draft(topic, event, key, publisher))
            size += len(event.data)
            if len(drafts) > MAX_TOGETHER or size > MAX_TOGETHER_BYTES:
                raise TooLarge(
                    f"more than {MAX_TOGETHER} events, or {MAX_TOGETHER_BYTES} bytes of data, are too much for one "
                    "call, for which all other publishers wait: publish them in several"
                )
        ids = await self._appended(self.journal.append, drafts)
        self._published += len(ids)
        return ids

    async def publish_once(
        self,
        topic: str,
        event: Event,
        idempotency_key: str,
        *,
        key: str | None = None,
        subject: str | None = None,
        publisher: str = "",
    ) -> tuple[EventID, bool]:
        """Publish one event, unless the same was published to the topic under the same idempotency key before.

        Returns its ID, and whether it had been published before. Keys of different subjects are different keys; so is
        that of nobody, which is ``None``. A key is known for a day; in memory, until the hub is closed. Of two calls at
        the same time the second waits for the first. If it is cancelled, call it again: that is what it is for.

        Raises:
          KeyReused: the key stands for another event. Otherwise as :meth:`publish`.
        """
        check_new_topic(topic)
        check_publishable(event, key)
        if not (
            0 < len(idempotency_key) <= MAX_IDEMPOTENCY_KEY
            and idempotency_key.isascii()
            and idempotency_key.isprintable()
        ):
            raise InvalidInput(f"an idempotency key is 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters")
        draft = Draft(topic, event, key, publisher)
        id, replayed = await self._appended(self.journal.append_once, draft, Once.of(subject, idempotency_key, draft))
        self._published += not replayed
        return id, replayed

    async def _appended(self, append: Callable[..., Awaitable[T]], *args: object) -> T:
        """What the journal says; what it breaks with breaks the hub."""
        self.check_running()
        try:
            return await append(*args)
        except TrioSSEError:
            raise
        except Exception as error:
            self._break(error)
            raise HubFailed("the journal broke, and is opened anew: try again in a moment") from error

    def _break(self, fault: Exception) -> None:
        self.failed = True
        self._fault = fault
        if self._running is not None:
            self._running.cancel()

    # -- subscribing --------------------------------------------------------------------------------------

    def subscribe(
        self, *selectors: str | Selector, last_event_id: str | EventID | None = None, slow: Slow = "catch-up"
    ) -> Subscription:
        """The events of the topics that any of the selectors choose, as an async context manager and iterator.

        ``last_event_id`` resumes after an event; ``"earliest"`` begins with the oldest that is kept; ``None``
        with the next to be published after this call.

        A reader that is ``slow`` gets everything it has missed, or, with ``"latest"``, of each key only what is the
        newest by then (of events without one, the newest of their topic), and no gap for what that replaced.

        Raises:
          InvalidTopic: a selector is none, or there are none or too many.
        """
        asked = dict.fromkeys(s.text if isinstance(s, Selector) else s for s in selectors)
        check_count(asked)
        return self.subscribe_to(parse_selectors(asked), last_event_id=last_event_id, slow=slow)

    def subscribe_to(
        self, selectors: Sequence[Selector], *, last_event_id: str | EventID | None = None, slow: Slow = "catch-up"
    ) -> Subscription:
        """As :meth:`subscribe`, for at least one selector, but as many as what was asked for and what is allowed make
        together: who calls it has counted what was asked for.
        """
        cursor = None if last_event_id is None else str(last_event_id)
        return Subscription(self._desk, selectors, cursor, slow)

    def subscribers(self, topic: str) -> int:
        """How many subscribers an event of this topic would reach now."""
        return len(self.broadcaster.audience(topic))

    # -- running ------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry events from the journal to the subscribers until cancelled; started when none is missed.

        However it ends, every stream is ended.
        """
        try:
            with self.journal.follow() as follower:
                async with trio.open_nursery() as nursery:
                    self._running = nursery.cancel_scope
                    nursery.start_soon(self._desk.streams.run)
                    nursery.start_soon(self._trim)
                    task_status.started()
                    watched_at = -WATCH_S
                    while True:
                        batch = await follower.receive(self._batch_records)
                        if trio.current_time() - watched_at >= WATCH_S:
                            watched_at = trio.current_time()
                            last = batch[-1]
                            self.broadcaster.last_write.watch(last, self.broadcaster.audience(last.topic))
                        await self.broadcaster.deliver(batch)
            if self._fault is not None:
                raise self._fault
        except Exception:
            self.failed = True
            raise
        finally:
            self.failed = self.failed or self.journal.broken
            self.end_streams("failed" if self.failed else "shutdown")

    async def _trim(self) -> None:
        """Remove events as they grow too old, also when nobody publishes."""
        ahead = wall_ahead()
        while True:
            await trio.sleep(TRIM_S)
            before, ahead = ahead, wall_ahead()
            if abs(ahead - before) >= JUMP_S:
                log.warning("the wall clock jumped by %+.0f s: tokens, and the age of events, go by it", ahead - before)
            with contextlib.suppress(JournalError):  # it has been logged, and may work the next time
                await self.journal.trim()

    @contextmanager
    def cancelled_on_ending(self) -> Iterator[trio.CancelScope]:
        """A cancel scope that is cancelled when the hub takes no more streams: for who waits for a client."""
        with trio.CancelScope() as scope:
            self._cancelled_on_ending[scope] = None
            if self.ending is not None:
                scope.cancel()
            try:
                yield scope
            finally:
                del self._cancelled_on_ending[scope]

    def end_streams(self, reason: EndReason) -> None:
        """Take no more streams, and tell every open one to say goodbye."""
        self._desk.ending = self._desk.ending or reason
        for stream in self._desk.streams:
            stream.end(reason)
        for scope in self._cancelled_on_ending:
            scope.cancel()
        self.broadcaster.close(reason)

    @property
    def ending(self) -> EndReason | None:
        """Why the hub takes no more streams, once it does not."""
        return self._desk.ending

    def check_running(self) -> None:
        """Whether the hub still takes events and streams.

        Raises:
          HubFailed: it does not, because it has failed or is being ended.
        """
        if self.failed:
            raise HubFailed("the hub has failed and is being replaced: try again in a moment")
        if self._desk.ending is not None:
            raise HubFailed("the server is going away: try again in a moment")

    def statistics(self) -> HubStatistics:
        """How the hub is at this moment."""
        outlets = self.broadcaster.outlets
        return HubStatistics(
            streams=len(self._desk.streams),
            subscribers=outlets,
            published=self._published,
            delivered=self._desk.delivered + self.broadcaster.written,
            written=self.broadcaster.written,
            lagging=self.broadcaster.lagging,
            gaps=self._desk.gaps,
            journal=self.journal.statistics(),
        )


@asynccontextmanager
async def open_hub(
    journal: str = "memory:",
    *,
    retention: Retention | None = None,
    buffer_events: int = 256,
    heartbeat_s: float = 15,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Hub]:
    """Open a hub over the journal that a URL names, and run it for the length of the block.

    Raises:
      JournalUnusable: the journal cannot be opened.
      ExceptionGroup: the hub broke, and the block was cancelled.
    """
    async with (
        open_journal(journal, retention=retention, clock=clock) as opened,
        trio.open_nursery() as nursery,
    ):
        hub = Hub(opened, buffer_events=buffer_events, heartbeat_s=heartbeat_s)
        await nursery.start(hub.run)
        yield hub
        nursery.cancel_scope.cancel()


def check_count(asked: Collection[str]) -> None:
    """Whether one subscriber may ask for so many topics and selectors, before any of them is looked at.

    Raises:
      InvalidTopic: there are none or too many.
    """
    if not 0 < len(asked) <= MAX_SELECTORS:
        raise InvalidTopic(f"{len(asked)} topics were asked for: ask for 1 to {MAX_SELECTORS}")


def check_publishable(event: Event, key: str | None = None) -> None:
    """Whether a hub takes this event.

    Raises:
      InvalidEvent, TooLarge: it does not; the message says why.
    """
    if event.id is not None:
        raise InvalidEvent("the journal gives an event its id: publish it without one")
    if event.retry is not None:
        raise InvalidEvent("retry belongs to a stream, not to an event: publish it without")
    event.check()
    if event.type.startswith(RESERVED_PREFIX):
        raise InvalidEvent(f"event types that begin with {RESERVED_PREFIX} are the hub's own: use another name")
    if len(event.data) > MAX_DATA or (not event.data.isascii() and len(event.data.encode()) > MAX_DATA):
        raise TooLarge(f"the event holds more than {MAX_DATA} bytes of data")
    if len(event.data) > MAX_FRAME // 8 and framed_length(event.data) > MAX_FRAME:  # no character becomes more than 7
        raise TooLarge(
            f"the event's lines take more than {MAX_FRAME} bytes in a stream, where each line costs 6 more: publish "
            "fewer lines at once, or JSON, in which a line end is two characters"
        )
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise InvalidEvent(f"a key is 1 to {MAX_KEY} printable characters")
