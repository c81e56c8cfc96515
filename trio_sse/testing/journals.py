"""The tests of the contract that every journal keeps."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from ..errors import KeyReused
from ..event import ORIGIN, Event, EventID
from ..journal import Journal
from ..journal.contract import BACKLOG
from ..record import Draft, Once, Record
from ..retention import Keep, Retention
from ..topic import parse_selectors
from .reading import NOON, WallClock, data_of, decode, draft, read_all, take


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

    @pytest.mark.parametrize("drafts", [[draft("a", "x" * 100_000)], [draft("a", "")] * 50], ids=["large", "small"])
    async def test_publishers_wait_for_a_follower_that_is_behind(self, drafts: list[Draft]) -> None:
        """What waits for a follower is bounded in bytes and in number; when it goes on, so do the publishers."""
        async with self.open() as journal:
            with journal.follow() as follower:
                with trio.move_on_after(1) as scope:
                    for _ in range(100):
                        await journal.append(drafts)
                assert scope.cancelled_caught
                assert BACKLOG < follower.backlog < 3 * BACKLOG
                await take(follower, journal.statistics().events)
                with trio.fail_after(60):
                    await journal.append(drafts)

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
        """Over the byte limit the oldest events go first, where no topic has more than another."""
        async with self.open() as journal:
            await journal.append([draft("t/0", "x" * 10_000)])
            room = int(3.8 * journal.statistics().bytes)
        async with self.open(bytes=room) as journal:
            for number in range(6):
                await journal.append([draft(f"t/{number}", "x" * 10_000)])
            assert [record.topic for record in await read_all(journal, "t/*")] == ["t/3", "t/4", "t/5"]
            assert journal.statistics().bytes <= room

    async def test_a_topic_keeps_what_its_rule_says(self) -> None:
        """Events and bytes of each topic; the first rule that chooses it counts, and the others do not."""
        small = 3 * len(Record.write(EventID(int(NOON * 1000), 10), draft("a", "x")).frame)
        rules = {"tick/a": Keep(events=4), "tick/*": Keep(events=2), "small": Keep(bytes=small, events=math.inf)}
        async with self.open_journal(Retention(events=3, topics=rules), WallClock()) as journal:
            for topic in ("tick/a", "tick/b", "small", "other"):
                await journal.append([draft(topic, "x") for _ in range(10)])
            counts = {name: len(await read_all(journal, name)) for name in ("tick/a", "tick/b", "small", "other")}
            assert counts == {"tick/a": 4, "tick/b": 2, "small": 3, "other": 3}

    async def test_a_topic_keeps_for_as_long_as_its_rule_says(self) -> None:
        """A ticker's minute and a room's week stand side by side, and each floor is the highest ID that went."""
        clock = WallClock()
        rules = {"ticker": Keep(seconds=60), "room/*": Keep(seconds=7 * 24 * 3600), "short": Keep(seconds=0.5)}
        async with self.open_journal(Retention(seconds=3600, topics=rules), clock) as journal:
            ids = {name: (await journal.append([draft(name)]))[0] for name in ("ticker", "room/1", "short", "other")}
            gone = []
            for seconds in (0.4, 0.2, 60, 3600, 7 * 24 * 3600):
                clock.move(seconds)
                await journal.trim()
                gone.append([name for name in ids if await journal.floor(parse_selectors([name])) == ids[name]])
                assert [name for name in ids if not await read_all(journal, name)] == gone[-1]
            assert gone == [[], ["short"], ["ticker", "short"], ["ticker", "short", "other"], list(ids)]

    async def test_an_event_that_was_replaced_is_not_lost(self) -> None:
        """Removed values of a key, or of the topic, count as lost until a newer one has come."""
        async with self.open(events=4) as journal:
            selectors = parse_selectors(["a"])

            async def lost() -> EventID:
                return (await journal.read(selectors, ORIGIN, 1)).lost

            born = await lost()
            await journal.append([_valued(key) for key in ("x", "y", None)])
            ids = await journal.append([_valued(key) for key in ("x", None, "y")])  # removes an older x and y
            assert await journal.floor(selectors) > born
            assert await lost() == born
            await journal.append([_valued("z")] * 4)  # all that were there
            assert await lost() == ids[-1]
            await journal.append([_valued(key) for key in ("x", "y", None)])  # all but one z
            assert await lost() == born

    async def test_what_a_forgotten_life_had_is_lost(self) -> None:
        """A topic nobody knows has lost whatever came before the journal was born."""
        async with self.open() as journal:
            page = await journal.read(parse_selectors(["a"]), ORIGIN, 1)
            assert page.lost == page.floor == journal.born

    async def test_statistics_count_what_is_kept(self) -> None:
        """Events, bytes, topics and the newest ID are those of what is there now."""
        async with self.open(events=2) as journal:
            assert journal.statistics().last_event_id is None
            ids = await journal.append([draft("a"), draft("a"), draft("a"), draft("b")])
            now = journal.statistics()
            assert (now.events, now.topics, now.last_event_id) == (3, 2, ids[-1])
            assert now.bytes > sum(len(record.frame) for record in await read_all(journal, "**"))

    async def test_a_cursor_from_an_earlier_life_is_below_the_floor(self) -> None:
        """A fresh journal has a floor for topics it has never seen: the moment it was born."""
        async with self.open() as journal:
            assert await journal.floor(parse_selectors(["a"])) == journal.born > EventID(int(NOON * 1000) - 1, 9)

    async def test_a_signing_key_stays_until_it_is_forgotten(self) -> None:
        """The first one is kept."""
        async with self.open() as journal:
            for key in ("first", "second"):
                assert [await journal.signing_key(key), await journal.signing_key("other")] == [key, key]
                await journal.forget_signing_key()

    # -- publishing once ----------------------------------------------------------------------------------

    async def test_the_same_event_is_appended_once_under_a_key(self) -> None:
        """Again it has the ID it had, and there is one of it."""
        async with self.open() as journal:
            first = await journal.append_once(draft("a", "x"), _once("x"))
            assert await journal.append_once(draft("a", "x"), _once("x")) == (first[0], True)
            assert not first[1]
            assert data_of(await read_all(journal, "a")) == ["x"]

    async def test_a_key_that_stands_for_another_event_is_refused(self) -> None:
        """Nothing is kept of it, and the key goes on standing for what it stood for."""
        async with self.open() as journal:
            first, _ = await journal.append_once(draft("a", "x"), _once("x"))
            with pytest.raises(KeyReused):
                await journal.append_once(draft("a", "y"), _once("y"))
            assert await journal.append_once(draft("a", "x"), _once("x")) == (first, True)
            assert data_of(await read_all(journal, "a")) == ["x"]

    async def test_a_key_is_its_subjects_and_its_topics(self) -> None:
        """The same key of another subject, of nobody, or in another topic is another key."""
        async with self.open() as journal:
            for topic, subject in (("a", None), ("a", "ada"), ("a", "bob"), ("b", None)):
                _, replayed = await journal.append_once(draft(topic, "x"), _once("x", subject=subject))
                assert not replayed
            assert len(await read_all(journal, "a", "b")) == 4

    async def test_of_two_at_once_the_second_waits_for_the_first(self) -> None:
        """Twenty who publish the same under one key at the same time have all the same ID, one of them as the first."""
        async with self.open() as journal:
            outcomes: list[tuple[EventID, bool]] = []

            async def append() -> None:
                outcomes.append(await journal.append_once(draft("a", "x"), _once("x")))

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(append)
            assert len({id for id, _ in outcomes}) == 1
            assert sum(not replayed for _, replayed in outcomes) == 1
            assert len(await read_all(journal, "a")) == 1

    async def test_a_key_outlives_its_event(self) -> None:
        """What was removed is not appended again under its key, for a day."""
        clock = WallClock()
        async with self.open(clock=clock, seconds=60) as journal:
            first, _ = await journal.append_once(draft("a", "x"), _once("x"))
            clock.move(24 * 3600 - 1)
            await journal.trim()
            assert await read_all(journal, "a") == []
            assert await journal.append_once(draft("a", "x"), _once("x")) == (first, True)
            clock.move(2)
            second, replayed = await journal.append_once(draft("a", "x"), _once("x"))
            assert second > first
            assert not replayed
            clock.move(2 * 24 * 3600)
            await journal.trim()
            third, replayed = await journal.append_once(draft("a", "y"), _once("y"))
            assert third > second
            assert not replayed

    async def test_a_follower_hears_of_it_once(self) -> None:
        """What was there before is nobody's news."""
        async with self.open() as journal:
            with journal.follow() as follower:
                for _ in range(3):
                    await journal.append_once(draft("a", "x"), _once("x"))
                await journal.append([draft("a", "y")])
                assert data_of(await take(follower, 2)) == ["x", "y"]


def _once(body: str, subject: str | None = None) -> Once:
    return Once.of(subject, "key", draft("a", body))


def _valued(key: str | None) -> Draft:
    return Draft("a", Event("x"), key)


async def _publish_some(journal: Journal, topic: str, count: int) -> None:
    for number in range(count):
        await journal.append([draft(topic, str(number))])
