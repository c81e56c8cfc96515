"""History, then live: the seam, lagging, gaps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trio_sse import subscription as room
from trio_sse.event import Event, EventID
from trio_sse.hub import Hub
from trio_sse.journal import Page
from trio_sse.journal.memory import MemoryJournal
from trio_sse.record import Gap, Record
from trio_sse.retention import Retention
from trio_sse.subscription import Subscription
from trio_sse.testing import NOON, WallClock, data_of
from trio_sse.topic import Selector

BEFORE = f"{int(NOON * 1000) - 1000}-1"  # a cursor from before the journal was born


class SteppedJournal(MemoryJournal):
    """A journal whose readers can be held up, so that a test can act at exactly this moment."""

    def __init__(self, retention: Retention | None = None, clock: WallClock | None = None) -> None:
        super().__init__(retention or Retention(), clock or WallClock())
        self.held: list[tuple[trio.Event, trio.Event]] = []

    async def read(self, selectors: Sequence[Selector], after: EventID, limit: int, told: int = 0) -> Page:
        if self.held:
            arrived, go_on = self.held.pop(0)
            arrived.set()
            await go_on.wait()
        return await super().read(selectors, after, limit, told)

    def hold_next_read(self) -> tuple[trio.Event, trio.Event]:
        self.held.append((trio.Event(), trio.Event()))
        return self.held[-1]


@asynccontextmanager
async def running(journal: MemoryJournal, *, buffer_events: int = 256) -> AsyncIterator[Hub]:
    """A hub over a journal, its tasks running."""
    async with trio.open_nursery() as nursery:
        hub = Hub(journal, buffer_events=buffer_events)
        await nursery.start(hub.run)
        yield hub
        nursery.cancel_scope.cancel()


async def take(subscription: Subscription, count: int) -> list[Record]:
    """The next records; a gap among them fails the test."""
    items = [await subscription.receive() for _ in range(count)]
    assert not [item for item in items if isinstance(item, Gap)]
    return [item for item in items if isinstance(item, Record)]


async def test_a_new_subscriber_begins_with_the_next_event(autojump_clock: trio.testing.MockClock) -> None:
    """What was published before is not given; what is published after entering is, before the first receive too."""
    async with running(SteppedJournal()) as hub:
        await hub.publish("a", "before")
        async with hub.subscribe("a") as subscription:
            await hub.publish("a", "after")
            assert data_of(await take(subscription, 1)) == ["after"]


async def test_resuming_gives_what_was_missed_then_live(autojump_clock: trio.testing.MockClock) -> None:
    """From a cursor on: history, then live, without a hole or an echo."""
    async with running(SteppedJournal()) as hub:
        first = await hub.publish("a", "1")
        await hub.publish("a", "2")
        async with hub.subscribe("a", last_event_id=first) as subscription:
            assert data_of(await take(subscription, 1)) == ["2"]
            await hub.publish("a", "3")
            assert data_of(await take(subscription, 1)) == ["3"]


async def test_earliest_gives_all_that_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    """Everything, oldest first, and no gap for what retention removed before."""
    async with running(SteppedJournal(Retention(events=3))) as hub:
        for number in range(5):
            await hub.publish("a", str(number))
        async with hub.subscribe("a", last_event_id="earliest") as subscription:
            assert data_of(await take(subscription, 3)) == ["2", "3", "4"]


async def test_an_event_between_attaching_and_reading_comes_once(autojump_clock: trio.testing.MockClock) -> None:
    """The seam: it is in the channel and in the page, and is handed on once, in its place."""
    journal = SteppedJournal()
    async with running(journal) as hub:
        first = await hub.publish("a", "1")
        async with hub.subscribe("a", last_event_id=first) as subscription:
            await hub.publish("a", "2")  # seen by the tail, so it will be read once more after attaching
            assert data_of(await take(subscription, 1)) == ["2"]
        async with trio.open_nursery() as nursery:
            subscription = hub.subscribe("a", last_event_id=first)
            await subscription.locate()
            await hub.publish("a", "3")
            arrived, go_on = journal.hold_next_read()
            results: list[str] = []

            async def read() -> None:
                async with subscription:
                    results.extend(data_of(await take(subscription, 4)))

            nursery.start_soon(read)
            await arrived.wait()
            assert hub.subscribers("a") == 1  # attached, and about to read once more
            await hub.publish("a", "4")
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
            await trio.testing.wait_all_tasks_blocked()
            await hub.publish("a", "5")
        assert results == ["2", "3", "4", "5"]


async def test_history_longer_than_a_page_is_read_unattached(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long history does not fill the channel with what is live meanwhile."""
    monkeypatch.setattr(room, "PAGE", 4)
    async with running(SteppedJournal(), buffer_events=2) as hub:
        for number in range(10):
            await hub.publish("a", str(number))
        async with hub.subscribe("a", last_event_id="earliest") as subscription:
            assert hub.subscribers("a") == 0
            for number in range(10, 20):
                await hub.publish("a", str(number))
            assert data_of(await take(subscription, 20)) == [str(number) for number in range(20)]
            await hub.publish("a", "live")
            assert data_of(await take(subscription, 1)) == ["live"]
            assert hub.subscribers("a") == 1
            assert hub.statistics().lagging == 0


async def test_a_lagging_subscriber_catches_up(autojump_clock: trio.testing.MockClock) -> None:
    """Its channel was closed; it reads on from its cursor, attaches again, and has lost nothing."""
    async with running(SteppedJournal(), buffer_events=2) as hub:
        async with hub.subscribe("a") as subscription:
            for number in range(10):
                await hub.publish("a", str(number))
            await trio.testing.wait_all_tasks_blocked()
            assert hub.statistics().lagging == 1
            assert data_of(await take(subscription, 10)) == [str(number) for number in range(10)]
            assert hub.subscribers("a") == 1
            await hub.publish("a", "live")
            assert data_of(await take(subscription, 1)) == ["live"]


@pytest.mark.parametrize("seed", range(8))
async def test_catching_up_under_continued_publishing_loses_nothing(
    seed: int, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lagging again and again while events keep coming: every event, once, in order."""
    import random

    chance = random.Random(seed)
    monkeypatch.setattr(room, "PAGE", chance.choice([1, 3, 8]))
    total = 300
    async with running(SteppedJournal(), buffer_events=chance.choice([1, 2, 5])) as hub, trio.open_nursery() as nursery:
        async with hub.subscribe("a") as subscription:

            async def publish() -> None:
                for number in range(total):
                    await hub.publish("a", str(number))
                    if chance.random() < 0.3:
                        await trio.sleep(chance.random())

            nursery.start_soon(publish)
            got = []
            for _ in range(total):
                got += await take(subscription, 1)
                if chance.random() < 0.2:
                    await trio.sleep(chance.random() * 5)
        assert data_of(got) == [str(number) for number in range(total)]
        assert hub.statistics().lagging > 0


async def test_an_event_between_the_short_page_and_attaching_is_not_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """After catching up it attaches first and reads once more: what came in between is in that read."""
    journal = SteppedJournal()
    async with running(journal, buffer_events=1) as hub, trio.open_nursery() as nursery:
        async with hub.subscribe("a") as subscription:
            for number in range(4):
                await hub.publish("a", str(number))
            await trio.testing.wait_all_tasks_blocked()
            results: list[str] = []

            async def read() -> None:
                results.extend(data_of(await take(subscription, 7)))

            _, first_go_on = first = journal.hold_next_read()
            nursery.start_soon(read)
            await first[0].wait()
            await hub.publish("a", "4")
            second = journal.hold_next_read()
            first_go_on.set()
            await trio.testing.wait_all_tasks_blocked()
            await hub.publish("a", "5")
            second[1].set()
            await trio.testing.wait_all_tasks_blocked()
            await hub.publish("a", "6")
            await trio.testing.wait_all_tasks_blocked()
            assert results == [str(number) for number in range(7)]


async def test_a_live_event_does_not_wait_for_a_herd(autojump_clock: trio.testing.MockClock) -> None:
    """While hundreds catch up at once it is received before more than a few of their pages have been read."""
    pages = 0

    class Counting(SteppedJournal):
        async def read(self, selectors: Sequence[Selector], after: EventID, limit: int, told: int = 0) -> Page:
            nonlocal pages
            pages += 1
            return await super().read(selectors, after, limit, told)

    async def catch_up(hub: Hub, first: EventID) -> None:
        async with hub.subscribe("past", last_event_id=first) as subscription:
            for _ in range(999):  # as a stream does: everything that is ready, without a pause
                while True:
                    try:
                        subscription.receive_nowait()
                        break
                    except trio.WouldBlock:
                        await subscription.wait()

    async with running(Counting()) as hub, trio.open_nursery() as nursery, hub.subscribe("live") as live:
        first, *_ = await hub.publish_many("past", [Event("x")] * 1_000)
        for _ in range(300):
            nursery.start_soon(catch_up, hub, first)
        await trio.lowlevel.checkpoint()
        before = pages
        await hub.publish("live", "now")
        assert data_of(await take(live, 1)) == ["now"]
        assert 0 < pages - before < 100
        assert hub.statistics().subscribers < 100  # of 300: they are still at it


async def test_overlapping_selectors_give_each_event_once(autojump_clock: trio.testing.MockClock) -> None:
    """In history and live alike."""
    async with running(SteppedJournal()) as hub:
        await hub.publish("room/1", "history")
        async with hub.subscribe("room/*", "room/1", "**", last_event_id="earliest") as subscription:
            await hub.publish("room/1", "live")
            await hub.publish("room/2", "other")
            assert data_of(await take(subscription, 3)) == ["history", "live", "other"]
            with pytest.raises(trio.WouldBlock):
                subscription.receive_nowait()


async def test_a_cancelled_receive_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Cancelled while it waits, at any moment, the cursor has not moved past what was not returned."""
    async with running(SteppedJournal(), buffer_events=3) as hub, hub.subscribe("a") as subscription:
        got: list[Record] = []
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                for number in range(200):
                    await hub.publish("a", str(number))
                    if number % 7 == 0:
                        await trio.sleep(0.1)

            nursery.start_soon(publish)
            pause = 0
            while len(got) < 200:
                pause = (pause + 1) % 4
                with trio.CancelScope() as scope:
                    if pause == 0:
                        scope.cancel()
                    scope.deadline = trio.current_time() + 0.05 * pause
                    got += await take(subscription, 1)
        assert data_of(got) == [str(number) for number in range(200)]


async def test_a_cursor_below_the_floor_is_a_gap_first(autojump_clock: trio.testing.MockClock) -> None:
    """What was trimmed is said before what is kept, with the place from which everything follows."""
    async with running(SteppedJournal(Retention(events=3))) as hub:
        ids = [await hub.publish("a", str(number)) for number in range(10)]
        async with hub.subscribe("a", last_event_id=ids[1]) as subscription:
            assert await subscription.receive() == Gap(str(ids[1]), ids[6], "trimmed")
            assert data_of(await take(subscription, 3)) == ["7", "8", "9"]


async def test_a_gap_is_told_once(autojump_clock: trio.testing.MockClock) -> None:
    """Who resumes with the gap's own cursor is not told again."""
    async with running(SteppedJournal(Retention(events=3))) as hub:
        ids = [await hub.publish("a", str(number)) for number in range(10)]
        async with hub.subscribe("a", last_event_id=ids[1]) as subscription:
            gap = await subscription.receive()
            assert isinstance(gap, Gap)
        async with hub.subscribe("a", last_event_id=gap.resumed_from) as subscription:
            assert data_of(await take(subscription, 3)) == ["7", "8", "9"]


async def test_a_quiet_topic_in_a_busy_journal_has_no_gap(autojump_clock: trio.testing.MockClock) -> None:
    """Thousands of trimmed events of other topics are none of its reader's business."""
    async with running(SteppedJournal(Retention(events=3))) as hub:
        quiet = await hub.publish("quiet", "1")
        for _ in range(50):
            await hub.publish("busy", "x")
        await hub.publish("quiet", "2")
        async with hub.subscribe("quiet", last_event_id=quiet) as subscription:
            assert data_of(await take(subscription, 1)) == ["2"]


async def test_what_another_topic_kept_is_given_behind_the_gap(autojump_clock: trio.testing.MockClock) -> None:
    """A ticker's trimmed events do not cost the chat's, which are older and still there."""
    async with running(SteppedJournal(Retention(events=3))) as hub:
        cursor = await hub.publish("ticker", "0")
        await hub.publish("chat", "kept")
        for number in range(1, 10):
            await hub.publish("ticker", str(number))
        async with hub.subscribe("chat", "ticker", last_event_id=cursor) as subscription:
            gap = await subscription.receive()
            assert isinstance(gap, Gap)
            records = await take(subscription, 4)
            assert data_of(records) == ["kept", "7", "8", "9"]
            assert gap.resumed_from < records[0].id


async def test_a_gap_while_lagging_stands_at_its_place(autojump_clock: trio.testing.MockClock) -> None:
    """What was trimmed before a slow reader came to it is said between what it got and what follows."""
    async with running(SteppedJournal(Retention(events=3)), buffer_events=2) as hub:
        async with hub.subscribe("a") as subscription:
            ids = [await hub.publish("a", str(number)) for number in range(10)]
            await trio.testing.wait_all_tasks_blocked()
            assert data_of(await take(subscription, 2)) == ["0", "1"]
            assert await subscription.receive() == Gap(str(ids[1]), ids[6], "trimmed")
            assert data_of(await take(subscription, 3)) == ["7", "8", "9"]
            assert hub.statistics().gaps == 1


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [(BEFORE, "restarted"), ("99999999999999-1", "ahead"), ("99999999999999-0", "ahead"), ("☃", "unknown")],
)
async def test_a_cursor_of_another_life_is_a_gap(
    cursor: str, reason: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Too old, too new or no cursor at all: a gap with the reason, then everything that is kept."""
    async with running(SteppedJournal()) as hub:
        await hub.publish("a", "kept")
        async with hub.subscribe("a", last_event_id=cursor) as subscription:
            gap = await subscription.receive()
            assert isinstance(gap, Gap)
            assert (gap.requested, gap.reason) == (cursor, reason)
            assert data_of(await take(subscription, 1)) == ["kept"]


async def test_what_was_requested_is_cut(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody's thousand characters are sent back to them."""
    async with running(SteppedJournal()) as hub, hub.subscribe("a", last_event_id="x" * 1000) as subscription:
        gap = await subscription.receive()
        assert isinstance(gap, Gap)
        assert gap.requested == "x" * 64


async def test_until_the_gap_has_arrived_the_old_cursor_stands(autojump_clock: trio.testing.MockClock) -> None:
    """The opening position does not jump over a gap that has not been told yet."""
    async with running(SteppedJournal(Retention(events=3))) as hub:
        ids = [await hub.publish("a", str(number)) for number in range(10)]
        async with hub.subscribe("a", last_event_id=ids[1]) as subscription:
            assert subscription.opening_position == ids[1]
        async with hub.subscribe("a", last_event_id="nonsense") as subscription:
            assert str(subscription.opening_position) == "0-0"
        async with hub.subscribe("a", last_event_id=ids[8]) as subscription:
            assert subscription.opening_position == ids[8]


async def test_a_position_resumes_without_a_gap(autojump_clock: trio.testing.MockClock) -> None:
    """A browser that never had an event comes back with the position it was given."""
    async with running(SteppedJournal()) as hub:
        async with hub.subscribe("a") as subscription:
            position = subscription.opening_position
        await hub.publish("a", "missed")
        async with hub.subscribe("a", last_event_id=position) as subscription:
            assert data_of(await take(subscription, 1)) == ["missed"]


async def test_ending_wakes_the_receiver(autojump_clock: trio.testing.MockClock) -> None:
    """A waiting receive raises EndOfChannel, now and ever after, and the reason stands."""
    async with running(SteppedJournal()) as hub, hub.subscribe("a") as subscription:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.EndOfChannel):
                    await subscription.receive()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            subscription.end("revoked")
        with pytest.raises(trio.EndOfChannel):
            await subscription.receive()
        assert subscription.ended == "revoked"


async def test_revoking_every_selector_ends_the_subscription(autojump_clock: trio.testing.MockClock) -> None:
    """Closing the last clone is seen as the end, with its reason."""
    async with running(SteppedJournal()) as hub, hub.subscribe("a", "b") as subscription:
        (outlet,) = hub.broadcaster.audience("a")
        hub.broadcaster.revoke(outlet, Selector.parse("a"))
        hub.broadcaster.revoke(outlet, Selector.parse("b"))
        assert [item async for item in subscription] == []
        assert subscription.ended == "revoked"


async def test_leaving_leaves_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    """However the block is left, the hub is as it was."""
    async with running(SteppedJournal()) as hub:
        before = hub.statistics()
        for last_event_id in (None, "earliest", "nonsense"):
            with trio.move_on_after(1):
                async with hub.subscribe("a", "b/*", last_event_id=last_event_id) as subscription:
                    async for _ in subscription:
                        pass
            with pytest.raises(ZeroDivisionError):
                async with hub.subscribe("a"):
                    raise ZeroDivisionError
        after = hub.statistics()
        assert (after.subscribers, after.streams) == (before.subscribers, before.streams)
        assert hub.broadcaster.outlets == 0


async def test_locating_holds_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """A subscription that was located and never entered has attached nothing."""
    async with running(SteppedJournal()) as hub:
        await hub.subscribe("a").locate()
        assert hub.subscribers("a") == 0


async def test_an_event_between_locating_and_entering_is_not_missed(autojump_clock: trio.testing.MockClock) -> None:
    """The header is answered from where it was located, and the events follow from there."""
    async with running(SteppedJournal()) as hub:
        subscription = hub.subscribe("a")
        position = await subscription.locate()
        await hub.publish("a", "between")
        async with subscription:
            assert await subscription.locate() == position
            assert data_of(await take(subscription, 1)) == ["between"]


async def test_a_second_task_that_receives_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """One task receives; another that tries would take its place, so it is refused."""
    async with running(MemoryJournal(Retention())) as hub, hub.subscribe("a") as events, trio.open_nursery() as nursery:
        nursery.start_soon(events.receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await events.receive()
        nursery.cancel_scope.cancel()
