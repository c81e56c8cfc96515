"""For tests: of what is built on a hub, and of a journal of your own.

A journal is tested by subclassing :class:`JournalContract`; its tests need pytest with pytest-trio::

    class TestMyJournal(JournalContract):
        def open_journal(self, retention, clock):
            return open_my_journal(retention=retention, clock=clock)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager

import trio

from .event import ORIGIN, Event, EventID
from .journal import Follower, Journal
from .record import Draft, Record
from .retention import Retention
from .topic import Selector, parse_selectors
from .wire import Decoder

NOON = 1_700_000_000.0
"""Where :class:`WallClock` starts, in seconds since the epoch."""


class WallClock:
    """A wall clock that stands still until it is moved, in either direction."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        """Set it forward, or with a negative number back."""
        self.now += seconds


def decode(data: bytes) -> list[Event]:
    """The events in the bytes of a stream."""
    return list(Decoder().feed(data))


def data_of(records: Iterable[Record]) -> list[str]:
    """The data of records, for comparing."""
    return [decode(record.frame)[0].data for record in records]


class JournalContract:
    """What every journal promises, one fact a test."""

    def open_journal(self, retention: Retention, clock: Callable[[], float]) -> AbstractAsyncContextManager[Journal]:
        """Open an empty journal; the one thing a subclass says."""
        raise NotImplementedError

    def open(
        self, *, clock: Callable[[], float] | None = None, **retention: int
    ) -> AbstractAsyncContextManager[Journal]:
        """An empty journal that keeps so much, at noon."""
        return self.open_journal(Retention(**retention), clock or WallClock())  # type: ignore[arg-type]

    # -- places -------------------------------------------------------------------------------------------

    async def test_ids_increase_while_the_clock_stands_still(self) -> None:
        """Events of one millisecond have IDs in the order they were appended."""
        async with self.open() as journal:
            ids = [(await journal.append([draft("a")]))[0] for _ in range(3)]
            assert ids == sorted(set(ids))
            assert len({id.ms for id in ids}) == 1

    async def test_ids_increase_when_the_clock_goes_back(self) -> None:
        """An hour back on the clock does not take an ID back."""
        clock = WallClock()
        async with self.open(clock=clock) as journal:
            (before,) = await journal.append([draft("a")])
            clock.move(-3600)
            (after,) = await journal.append([draft("a")])
            assert after > before

    async def test_ids_follow_the_clock(self) -> None:
        """An ID names the millisecond in which its event was appended."""
        clock = WallClock()
        async with self.open(clock=clock) as journal:
            clock.move(1.5)
            (id,) = await journal.append([draft("a")])
            assert id.ms == int(NOON * 1000) + 1500

    async def test_a_position_is_between_what_was_and_what_will_be(self) -> None:
        """Nothing appended before a position is after it; all that is appended later is; none has it."""
        async with self.open() as journal:
            (before,) = await journal.append([draft("a")])
            position = journal.position()
            (after,) = await journal.append([draft("a")])
            assert before < position < after
            assert position.seq == 0

    async def test_a_position_holds_when_the_clock_goes_back(self) -> None:
        """What is appended after a position is after it, whatever the clock does."""
        clock = WallClock()
        async with self.open(clock=clock) as journal:
            position = journal.position()
            clock.move(-3600)
            (after,) = await journal.append([draft("a")])
            assert after > position

    async def test_a_batch_is_kept_whole_and_in_order(self) -> None:
        """The events of one append follow each other."""
        async with self.open() as journal:
            await journal.append([draft("a", str(n)) for n in range(5)])
            assert data_of(await read_all(journal, "a")) == ["0", "1", "2", "3", "4"]

    async def test_a_record_is_the_event_with_its_id(self) -> None:
        """The frame holds the event as it was published, and the journal's ID."""
        async with self.open() as journal:
            event = Event("a\nb", type="greeting")
            (id,) = await journal.append([Draft("a", event, key="k")])
            (record,) = await read_all(journal, "a")
            assert (record.id, record.topic, record.key) == (id, "a", "k")
            assert decode(record.frame) == [Event("a\nb", type="greeting", id=str(id))]

    async def test_it_knows_which_cursors_it_gave(self) -> None:
        """It gave its IDs and positions, and nothing that lies ahead of them."""
        async with self.open() as journal:
            (id,) = await journal.append([draft("a")])
            assert journal.gave(id)
            assert journal.gave(journal.position())
            assert not journal.gave(EventID(id.ms, id.seq + 5))
            assert not journal.gave(EventID(id.ms + 3_600_000, 0))

    # -- reading ------------------------------------------------------------------------------------------

    async def test_reading_begins_after_the_cursor(self) -> None:
        """The record of the cursor itself is not given again."""
        async with self.open() as journal:
            ids = await journal.append([draft("a") for _ in range(4)])
            page = await journal.read(parse_selectors(["a"]), ids[1], 10)
            assert [record.id for record in page.records] == ids[2:]
            assert not page.more

    async def test_a_page_ends_at_the_limit(self) -> None:
        """A page that may not be the last one says so."""
        async with self.open() as journal:
            ids = await journal.append([draft("a") for _ in range(4)])
            page = await journal.read(parse_selectors(["a"]), ORIGIN, 3)
            assert [record.id for record in page.records] == ids[:3]
            assert page.more

    async def test_selectors_choose_topics(self) -> None:
        """Exact selectors and wildcards choose what their rules say, in the journal's order, each record once."""
        async with self.open() as journal:
            topics = ["room/1", "b", "room/1/x", "user/ada", "room/2"]
            await journal.append([draft(topic, topic) for topic in topics])
            assert data_of(await read_all(journal, "room/*", "room/1", "b")) == ["room/1", "b", "room/2"]
            assert data_of(await read_all(journal, "**")) == ["room/1", "b", "room/1/x", "room/2"]
            assert data_of(await read_all(journal, "user/ada")) == ["user/ada"]
            assert await read_all(journal, "nobody") == []

    async def test_many_topics_are_read_in_one_order(self) -> None:
        """A wildcard over hundreds of topics gives the journal's order, page by page."""
        async with self.open() as journal:
            numbers = list(range(300))
            random.Random(1).shuffle(numbers)
            for number in numbers:
                await journal.append([draft(f"t/{number}", str(number))])
            assert data_of(await read_all(journal, "t/*", limit=70)) == [str(number) for number in numbers]

    async def test_the_newest_event_of_a_topic_is_known(self) -> None:
        """Each topic has its own newest event; an unknown one has none."""
        async with self.open() as journal:
            (first,) = await journal.append([draft("a")])
            await journal.append([draft("b")])
            assert await journal.last_event_id("a") == first
            assert await journal.last_event_id("c") is None

    # -- following ----------------------------------------------------------------------------------------

    async def test_a_follower_gets_everything_in_order(self) -> None:
        """From where it began to follow, a follower misses nothing, with many publishers at once."""
        async with self.open() as journal:
            await journal.append([draft("a", "before")])
            with journal.follow() as follower:
                async with trio.open_nursery() as nursery:
                    for publisher in range(10):
                        nursery.start_soon(_publish_some, journal, f"t/{publisher}", 20)
                    followed = await take(follower, 200)
                assert [record.id for record in followed] == sorted({record.id for record in followed})
                assert followed == await read_all(journal, "t/*")

    async def test_what_is_followed_can_be_read(self) -> None:
        """When a follower has a record, a reader finds it: visible is visible for all."""
        async with self.open() as journal:
            with journal.follow() as follower:
                await journal.append([draft("a")])
                (record,) = await take(follower, 1)
                assert journal.tail >= record.id
                assert await read_all(journal, "a") == [record]

    async def test_publishers_wait_for_a_follower_that_is_behind(self) -> None:
        """What waits for a follower is bounded; when it goes on, so do the publishers."""
        async with self.open() as journal:
            with journal.follow() as follower:
                with trio.move_on_after(1) as scope:
                    for _ in range(100):
                        await journal.append([draft("a", "x" * 100_000)])
                assert scope.cancelled_caught
                assert follower.backlog < 3_000_000
                await take(follower, journal.statistics().events)
                with trio.fail_after(60):
                    await journal.append([draft("a")])

    async def test_a_follower_that_left_holds_nobody_up(self) -> None:
        """A closed follower is forgotten."""
        async with self.open() as journal:
            with journal.follow():
                pass
            with trio.fail_after(60):
                for _ in range(30):
                    await journal.append([draft("a", "x" * 100_000)])

    # -- retention and floors -----------------------------------------------------------------------------

    async def test_each_topic_keeps_its_own_number(self) -> None:
        """A busy topic does not push out a quiet one."""
        async with self.open(events=3) as journal:
            await journal.append([draft("quiet", "q")])
            await journal.append([draft("busy", str(n)) for n in range(10)])
            assert data_of(await read_all(journal, "quiet", "busy")) == ["q", "7", "8", "9"]

    async def test_the_floor_is_the_highest_id_removed(self) -> None:
        """A cursor at the floor has missed nothing; one below it has."""
        async with self.open(events=3) as journal:
            ids = await journal.append([draft("a", str(n)) for n in range(10)])
            assert await journal.floor(parse_selectors(["a"])) == ids[6]

    async def test_a_quiet_topic_in_a_busy_journal_has_its_own_floor(self) -> None:
        """Nothing was removed from the quiet topic, so its floor is as low as the journal's birth."""
        async with self.open(events=3) as journal:
            (quiet,) = await journal.append([draft("quiet")])
            await journal.append([draft("busy") for _ in range(10)])
            assert await journal.floor(parse_selectors(["quiet"])) < quiet
            assert (await journal.read(parse_selectors(["quiet"]), quiet, 10)).floor < quiet

    async def test_a_page_carries_the_floor(self) -> None:
        """The floor on a page is that of all its selectors."""
        async with self.open(events=3) as journal:
            ids = await journal.append([draft("a") for _ in range(5)])
            await journal.append([draft("b")])
            page = await journal.read(parse_selectors(["a", "b"]), ORIGIN, 10)
            assert page.floor == ids[1]

    async def test_events_grow_too_old(self) -> None:
        """What is older than the limit is removed, also when nobody publishes."""
        clock = WallClock()
        async with self.open(clock=clock, seconds=60) as journal:
            (old,) = await journal.append([draft("a", "old")])
            clock.move(50)
            await journal.append([draft("a", "new")])
            clock.move(20)
            await journal.trim()
            assert data_of(await read_all(journal, "a")) == ["new"]
            assert await journal.floor(parse_selectors(["a"])) == old

    async def test_bytes_are_bounded(self) -> None:
        """Over the byte limit the oldest events go first, whatever their topic."""
        async with self.open(bytes=3_500) as journal:
            for number in range(6):
                await journal.append([draft(f"t/{number}", "x" * 1000)])
            assert [record.topic for record in await read_all(journal, "t/*")] == ["t/3", "t/4", "t/5"]
            assert journal.statistics().bytes <= 3_500

    async def test_statistics_count_what_is_kept(self) -> None:
        """Events, bytes, topics and the newest ID are those of what is there now."""
        async with self.open(events=2) as journal:
            assert journal.statistics().last_event_id is None
            ids = await journal.append([draft("a"), draft("a"), draft("a"), draft("b")])
            now, kept = journal.statistics(), await read_all(journal, "**")
            assert (now.events, now.topics, now.last_event_id) == (3, 2, ids[-1])
            assert now.bytes == sum(len(record.frame) for record in kept)

    async def test_a_cursor_from_an_earlier_life_is_below_the_floor(self) -> None:
        """A fresh journal has a floor for topics it has never seen: the moment it was born."""
        async with self.open() as journal:
            assert await journal.floor(parse_selectors(["a"])) == journal.born > EventID(int(NOON * 1000) - 1, 9)

    async def test_a_secret_stays_the_same(self) -> None:
        """The first value is kept."""
        async with self.open() as journal:
            assert await journal.secret("key", "first") == "first"
            assert await journal.secret("key", "second") == "first"


def draft(topic: str, data: str = "") -> Draft:
    """An event on its way."""
    return Draft(topic, Event(data))


async def read_all(journal: Journal, *texts: str, limit: int = 100) -> list[Record]:
    """Everything that is kept of some topics, read page by page."""
    selectors: Sequence[Selector] = parse_selectors(texts)
    records: list[Record] = []
    more = True
    while more:
        page = await journal.read(selectors, records[-1].id if records else ORIGIN, limit)
        records += page.records
        more = page.more
    return records


async def take(follower: Follower, count: int) -> list[Record]:
    """The next ``count`` records of a follower."""
    records: list[Record] = []
    while len(records) < count:
        records += await follower.receive()
    return records


async def _publish_some(journal: Journal, topic: str, count: int) -> None:
    for number in range(count):
        await journal.append([draft(topic, str(number))])
