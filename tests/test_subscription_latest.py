"""A reader who wants the latest: what it holds, what it gets of the past, and when it hears of a gap."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from tests.test_subscription import SteppedJournal, running, take
from trio_sse import latest as latest_room
from trio_sse import subscription as room
from trio_sse.event import EventID
from trio_sse.hub import Hub
from trio_sse.record import Gap, Record
from trio_sse.retention import Retention
from trio_sse.testing import data_of


async def publish(hub: Hub, *keyed: str, topic: str = "a") -> list[EventID]:
    """Publish values such as ``x1``, whose letter is the key; one without a letter has none."""
    return [await hub.publish(topic, each, key=each[0] if each[0].isalpha() else None) for each in keyed]


async def rest(subscription: room.Subscription) -> list[str]:
    """What can be received now; a gap is a word in capitals."""
    told = []
    with trio.move_on_after(1):
        while True:
            item = await subscription.receive()
            told.append(f"GAP {item.reason}" if isinstance(item, Gap) else data_of([item])[0])
    return told


async def test_who_keeps_up_gets_everything(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing waits for it, so nothing is left out."""
    async with running(SteppedJournal()) as hub, hub.subscribe("a", slow="latest") as subscription:
        for value in ("x1", "x2", "y1", "x3"):
            await publish(hub, value)
            assert data_of(await take(subscription, 1)) == [value]


async def test_of_what_waits_only_the_newest_of_each_key_is_held(autojump_clock: trio.testing.MockClock) -> None:
    """In the order of their IDs; without a key, the newest of the topic."""
    async with running(SteppedJournal(), buffer_events=2) as hub, hub.subscribe("*", slow="latest") as subscription:
        await publish(hub, "x1", "y1", "1", "x2", "2", "x3")
        await publish(hub, "x1", topic="b")
        await trio.testing.wait_all_tasks_blocked()
        assert await rest(subscription) == ["y1", "2", "x3", "x1"]
        assert hub.statistics().lagging == 0


async def test_the_past_is_reduced_likewise(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over however many pages it is read."""
    monkeypatch.setattr(room, "PAGE", 3)
    async with running(SteppedJournal()) as hub:
        values = [f"{random.Random(n).choice('vwxyz')}{n}" for n in range(50)]
        (first, *_) = await publish(hub, *values)
        newest = {value[0]: value for value in values[1:]}
        expected = [value for value in values if value in newest.values()]
        for cursor in (first, "earliest"):
            async with hub.subscribe("a", last_event_id=cursor, slow="latest") as subscription:
                assert await rest(subscription) == expected
                await publish(hub, "x live")
                assert await rest(subscription) == ["x live"]
            expected = [value for value in expected if value[0] != "x"] + ["x live"]


async def test_the_past_joins_what_is_live(autojump_clock: trio.testing.MockClock) -> None:
    """A value that came while the past was read is handed on in place of the older one, behind all that was read."""
    journal = SteppedJournal()
    async with running(journal) as hub, trio.open_nursery() as nursery:
        (first, *_) = await publish(hub, "w1", "x1", "y1")
        subscription = hub.subscribe("a", last_event_id=first, slow="latest")
        await subscription.locate()
        await publish(hub, "z1")
        arrived, go_on = journal.hold_next_read()
        told: list[str] = []

        async def read() -> None:
            async with subscription:
                told.extend(await rest(subscription))

        nursery.start_soon(read)
        await arrived.wait()
        assert hub.subscribers("a") == 1  # attached, and about to read once more
        journal.hold_next_read()[1].set()
        await publish(hub, "x2")
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        await publish(hub, "x3")
        await trio.sleep(2)
        assert told == ["y1", "z1", "x2", "x3"]


async def test_with_too_many_keys_it_lags_like_anyone(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads on from the journal, and loses no key's newest value."""
    monkeypatch.setattr(latest_room, "MAX_KEYS", 10)
    async with running(SteppedJournal()) as hub, hub.subscribe("a", slow="latest") as subscription:
        keys = [f"k{n}" for n in range(25)]
        for key in keys * 2:
            await hub.publish("a", key, key=key)
        await trio.testing.wait_all_tasks_blocked()
        assert hub.statistics().lagging == 1
        got: list[Record] = []
        with trio.move_on_after(1):
            while True:
                got += await take(subscription, 1)
        assert [record.id for record in got] == sorted(record.id for record in got)
        assert data_of(got)[-25:] == keys
        await hub.publish("a", "live", key="live")
        assert data_of(await take(subscription, 1)) == ["live"]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_it_ends_with_the_newest(
    seed: int, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow and lagging again and again while values keep coming: in order, none twice, and the last of each key."""
    chance = random.Random(seed)
    monkeypatch.setattr(room, "PAGE", chance.choice([1, 3, 8]))
    monkeypatch.setattr(latest_room, "MAX_KEYS", chance.choice([2, 4, 9]))
    keys = "uvwxyz"[: chance.choice([3, 6])]
    last: dict[str, str] = {}
    got: list[Record] = []
    async with running(SteppedJournal()) as hub, trio.open_nursery() as nursery:

        async def read() -> None:
            async with hub.subscribe("a", slow="latest") as subscription:
                async for item in subscription:
                    assert isinstance(item, Record)
                    got.append(item)
                    if chance.random() < 0.3:
                        await trio.sleep(chance.random() * 5)

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(300):
            key = chance.choice(keys)
            last[key] = f"{key}{number}"
            await hub.publish("a", last[key], key=key)
            if chance.random() < 0.3:
                await trio.sleep(chance.random())
        await trio.sleep(1_000)
        nursery.cancel_scope.cancel()
    assert [record.id for record in got] == sorted({record.id for record in got})
    assert {text[0]: text for text in data_of(got)} == last
    assert len(got) < 300


async def test_what_a_newer_value_replaced_is_no_gap(autojump_clock: trio.testing.MockClock) -> None:
    """However much of the past is gone, as long as each key has a value that came later."""
    async with running(SteppedJournal(Retention(events=3))) as hub:
        (first, *_) = await publish(hub, "x1", "y1", "1", *["x2", "y2", "2"] * 20)
        async with hub.subscribe("a", last_event_id=first, slow="latest") as subscription:
            assert subscription.cursor == first
            assert await rest(subscription) == ["x2", "y2", "2"]
        async with hub.subscribe("a", last_event_id=first) as subscription:
            assert (await rest(subscription))[0] == "GAP trimmed"


async def test_a_value_that_is_gone_and_not_replaced_is_a_gap(autojump_clock: trio.testing.MockClock) -> None:
    """For who has not had it; until there is a newer one."""
    async with running(SteppedJournal(Retention(events=3))) as hub:
        first, lost, *_ = await publish(hub, "x1", "y1", *["x2"] * 3)
        async with hub.subscribe("a", last_event_id=first, slow="latest") as subscription:
            gap = await subscription.receive()
            assert isinstance(gap, Gap)
            assert (gap.requested, gap.reason) == (str(first), "trimmed")
            assert await rest(subscription) == ["x2"]
        async with hub.subscribe("a", last_event_id=gap.resumed_from, slow="latest") as subscription:
            assert await rest(subscription) == ["x2"]
        async with hub.subscribe("a", last_event_id=lost, slow="latest") as subscription:
            assert await rest(subscription) == ["x2"]
        await publish(hub, "y2")
        async with hub.subscribe("a", last_event_id=first, slow="latest") as subscription:
            assert await rest(subscription) == ["x2", "y2"]


async def test_a_gap_met_while_the_past_is_gathered_stands_behind_it(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before the hole is handed on before it is told, and nothing of it is passed over."""
    monkeypatch.setattr(room, "PAGE", 2)
    journal = SteppedJournal(Retention(events=6))
    async with running(journal) as hub:
        cursor = (await publish(hub, "u1", "v1", "w1", "x1", "y1"))[0]
        subscription = hub.subscribe("a", last_event_id=cursor, slow="latest")
        await subscription.locate()  # has read v and w
        await publish(hub, *["z1"] * 6)  # x and y are gone, and nothing has replaced them
        async with subscription:
            assert await rest(subscription) == ["v1", "w1", "GAP trimmed", "z1"]


@pytest.mark.parametrize(("cursor", "reason"), [("nonsense", "unknown"), ("99999999999999-1", "ahead")])
async def test_a_cursor_that_is_none_is_a_gap(cursor: str, reason: str, autojump_clock: trio.testing.MockClock) -> None:
    """As for anyone: what it had cannot be known."""
    async with running(SteppedJournal()) as hub:
        await publish(hub, "x1", "x2")
        async with hub.subscribe("a", last_event_id=cursor, slow="latest") as subscription:
            assert await rest(subscription) == [f"GAP {reason}", "x2"]


async def test_a_cancelled_receive_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """While the past is gathered, and after."""
    async with running(SteppedJournal()) as hub:
        await publish(hub, *[f"{key}{number}" for number in range(60) for key in "xyz"])
        async with hub.subscribe("a", last_event_id="earliest", slow="latest") as subscription:
            got: list[str] = []
            while len(got) < 3:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    got += data_of(await take(subscription, 1))
                with trio.move_on_after(0.01):
                    got += data_of(await take(subscription, 1))
            assert got == ["x59", "y59", "z59"]
