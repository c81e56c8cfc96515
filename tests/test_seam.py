"""The seam between history and live, in every order: a subscriber, publishers and the broadcast, one step at a time.

An event becomes visible in three steps: it is *kept* (who reads the journal finds it), the followers are *fed*, and it
is *delivered* to the outlets that are attached. A subscriber reads, attaches and reads once more. Whatever the order
of the ones among the others, each event arrives once, in its place.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest
import trio
import trio.testing

from trio_sse import latest
from trio_sse.event import EventID
from trio_sse.hub import Hub, open_hub
from trio_sse.journal import Follower, Journal, Page, memory, sqlite
from trio_sse.journal.memory import MemoryJournal
from trio_sse.journal.sqlite import SQLiteJournal
from trio_sse.record import Draft, Gap, Record
from trio_sse.subscription import Slow
from trio_sse.testing import data_of
from trio_sse.topic import Selector

Steps = tuple[str, ...]

READING: dict[str, Steps] = {
    "new": ("arriving", "entering", "entered", "read 1", "page 1"),
    "resuming": ("arriving", "read 1", "page 1", "entered", "read 2", "page 2"),
    "lagging": ("receiving", "read 1", "page 1", "read 2", "page 2"),
}
"""What a subscriber does, from its first step to where it is live. A read and what is done with its page are two."""

MUST_FOLLOW = {"fed": "kept", "delivered": "fed"}

END = "end"
"""Published last: who gets it next will get nothing else, and missed nothing that it could still get."""


def orders(*chains: Steps, gone: Steps = ()) -> Iterator[Steps]:
    """Every order in which each chain keeps its own, and an event's steps follow each other."""
    if not any(chains):
        yield gone
    for place, chain in enumerate(chains):
        if chain and _may_follow(chain[0], gone):
            yield from orders(*chains[:place], chain[1:], *chains[place + 1 :], gone=(*gone, chain[0]))


def _may_follow(step: str, gone: Steps) -> bool:
    kind, _, event = step.partition(" ")
    return kind not in MUST_FOLLOW or f"{MUST_FOLLOW[kind]} {event}" in gone


def publishing(*events: str) -> tuple[Steps, ...]:
    """The steps of some events: many may be kept before the first is delivered, but none overtakes another."""
    return tuple(tuple(f"{kind} {event}" for event in events) for kind in ("kept", "fed", "delivered"))


async def at_rest() -> None:
    """Wait until every task waits, and none of them for a thread."""
    threads = trio.to_thread.current_default_thread_limiter()
    await trio.testing.wait_all_tasks_blocked()
    while threads.borrowed_tokens:
        time.sleep(0.0002)  # noqa: ASYNC251 - or this thread keeps the lock that the other one needs: 20 times as long
        await trio.testing.wait_all_tasks_blocked()


class Order:
    """An order of steps. Between two of them everything that the first set off comes to rest."""

    def __init__(self, steps: Steps = ()) -> None:
        self._steps = steps
        self.taken: set[str] = set()
        self._waiting = {step: 2 * place + 1 for place, step in enumerate(steps)}  # even: the rest before each
        self._sequencer = trio.testing.Sequencer()

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """Do something when its turn comes; at once if it is none of the steps, or has been passed by."""
        async with AsyncExitStack() as turn:
            if (place := self._waiting.pop(name, None)) is not None:
                with trio.CancelScope(shield=True):  # who is cancelled is so within its step, not before its turn
                    await turn.enter_async_context(self._sequencer(place))
                self.taken.add(name)
            yield

    async def run(self) -> None:
        """Give each step its turn. One to which nobody has come, when all is at rest, is not taken in this order."""
        with trio.CancelScope(shield=True):
            for place, name in enumerate(self._steps):
                async with self._sequencer(2 * place):
                    await at_rest()
                    passed_by = self._waiting.pop(name, None)
                if passed_by is not None:
                    async with self._sequencer(passed_by):
                        pass


class Stepped(Journal):
    """A journal that keeps, feeds, hands to the broadcast and reads when it is their turn."""

    order = Order()
    reads = 0
    _unfed: Sequence[Record] = ()

    def begin(self, order: Order) -> None:
        self.order = order
        self.reads = 0
        self._unfed = ()

    async def append(self, drafts: Sequence[Draft]) -> list[EventID]:
        event = drafts[0].event.data
        async with self.order.step(f"kept {event}"):
            ids = await super().append(drafts)  # type: ignore[safe-super]  # there is a whole journal behind this one
        async with self.order.step(f"fed {event}"):
            super().publish([record for record in self._unfed if record.id in ids])
        return ids

    def publish(self, records: Sequence[Record]) -> None:
        self._unfed = [*self._unfed, *records]

    async def read(self, selectors: Sequence[Selector], after: EventID, limit: int, told: int = 0) -> Page:
        self.reads += 1
        number = self.reads
        async with self.order.step(f"read {number}"):
            page = await super().read(selectors, after, limit, told)  # type: ignore[safe-super]
        async with self.order.step(f"page {number}"):
            await trio.lowlevel.checkpoint_if_cancelled()
        return page

    def follow(self) -> Follower:
        follower = SteppedFollower(self)
        self.followers.add(follower)
        return follower


class SteppedFollower(Follower):
    """What the hub follows the journal with."""

    def __init__(self, journal: Stepped) -> None:
        super().__init__(journal)
        self._stepped = journal

    async def receive(self, max_records: int = 64, max_bytes: int = 64 * 1024) -> list[Record]:
        batch = await super().receive(max_records, max_bytes)
        for event in data_of(batch):
            async with self._stepped.order.step(f"delivered {event}"):
                pass
        return batch


class SteppedMemory(Stepped, MemoryJournal):
    pass


class SteppedSQLite(Stepped, SQLiteJournal):
    pass


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A journal of each kind, in steps."""
    monkeypatch.setattr(memory, "MemoryJournal", SteppedMemory)
    monkeypatch.setattr(sqlite, "SQLiteJournal", SteppedSQLite)
    monkeypatch.setattr(latest, "MAX_KEYS", 1)  # so that who wants the latest lags, too
    return "memory:" if request.param == "memory" else f"sqlite:{tmp_path}/journal.db"


@dataclass
class Reader:
    """A subscriber of one topic, and what it has received."""

    hub: Hub
    topic: str
    slow: Slow
    order: Order
    past: list[str] = field(default_factory=list)
    """What it should get of what is published before the steps begin."""
    got: list[str] = field(default_factory=list)
    attempt: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def run(self, start: str, *, task_status: trio.TaskStatus[None]) -> None:
        """Subscribe and receive, until cancelled; what is cancelled in between is tried again."""
        if start == "lagging":
            subscription = self.hub.subscribe(self.topic, slow=self.slow)
            await subscription.__aenter__()
            while not self.hub.statistics().lagging:
                await self.publish(f"past {len(self.past)}")
            task_status.started()
            async with self.order.step("receiving"):
                pass
        else:
            first = await self.publish("past 0")
            await self.publish("past 1")
            self.past = ["past 1"] if start == "resuming" else []
            task_status.started()
            async with self.order.step("arriving"):
                cursor = first if start == "resuming" else None
                subscription = self.hub.subscribe(self.topic, last_event_id=cursor, slow=self.slow)
            while not subscription.located:
                with trio.CancelScope() as self.attempt:
                    await subscription.locate()
            async with self.order.step("entering"):
                await subscription.__aenter__()
            async with self.order.step("entered"):
                pass
        try:
            while True:
                with trio.CancelScope() as self.attempt:
                    item = await subscription.receive()
                    self.got += ["gap"] if isinstance(item, Gap) else data_of([item])
        finally:
            await subscription.__aexit__(None, None, None)

    async def publish(self, past: str) -> EventID:
        """Publish something before the steps begin."""
        id = await self.hub.publish(self.topic, past, key=past)
        await at_rest()
        self.past.append(past)
        return id


async def received(hub: Hub, start: str, steps: Steps, slow: Slow, key: str | None) -> tuple[list[str], list[str]]:
    """What a subscriber gets when all happens in this order, and what it should get."""
    assert isinstance(hub.journal, Stepped)
    order = Order(steps)
    reader = Reader(hub, f"t/{hub.statistics().published}", slow, order)
    hub.journal.begin(order)
    hub.broadcaster.lagging = 0
    events = [step.removeprefix("kept ") for step in steps if step.startswith("kept ")]

    async def publish(event: str) -> None:
        await hub.publish(reader.topic, event, key=key or event)

    async def cancel() -> None:
        async with order.step("cancelled"):
            reader.attempt.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(reader.run, start)
        for event in events:
            nursery.start_soon(publish, event)
            await at_rest()  # the first to publish is the first to wait for its turn
        nursery.start_soon(cancel)
        await order.run()
        await at_rest()
        await publish(END)
        await at_rest()
        nursery.cancel_scope.cancel()
    since = steps.index("arriving") if start == "new" else -1
    # Whose publisher was still waiting when the subscriber came may count as earlier or as later.
    came = [e for e in events if steps.index(f"fed {e}") > since]
    due = [e for e in came if e in reader.got or steps.index(f"kept {e}") > since]
    return reader.got, [*reader.past, *due, END]


async def check(url: str, start: str, which: Sequence[Steps], *, slow: Slow, buffer_events: int = 4) -> None:
    """In each of these orders, everything arrives once and in its place; who wants the latest has a key an event."""
    async with open_hub(url, buffer_events=buffer_events) as hub:
        for steps in which:
            got, expected = await received(hub, start, steps, slow, None)
            assert got == expected, steps


SLOW = get_args(Slow)


# -- one event ------------------------------------------------------------------------------------------------


def kept_before(start: str, place: str) -> list[Steps]:
    """The orders in which one event is kept right before this step of the subscriber, or after all of them."""
    return [steps for steps in orders(READING[start], *publishing("1")) if _next(steps, READING[start]) == place]


def _next(steps: Steps, among: Steps) -> str:
    return next((step for step in steps[steps.index("kept 1") :] if step in among), "last")


PLACES = [(start, place) for start, steps in READING.items() for place in (*steps, "last")]


@pytest.mark.parametrize("slow", SLOW)
@pytest.mark.parametrize(("start", "place"), PLACES)
async def test_an_event_arrives_once_wherever_it_is_kept(url: str, start: str, place: str, slow: Slow) -> None:
    """Kept before this step of the subscriber, and fed and delivered at any point after that."""
    await check(url, start, kept_before(start, place), slow=slow)


@pytest.mark.parametrize("slow", SLOW)
@pytest.mark.parametrize("start", READING)
async def test_a_cancellation_at_some_point_loses_nothing(url: str, start: str, slow: Slow) -> None:
    """The subscriber's waiting is cancelled before one of the steps, another in each order, and tried again."""
    every = [cancelling(steps) for steps in orders(READING[start], *publishing("1"))]
    await check(url, start, [cancelled[number % len(cancelled)] for number, cancelled in enumerate(every)], slow=slow)


@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.parametrize("slow", SLOW)
@pytest.mark.parametrize("start", READING)
async def test_a_cancellation_at_any_point_loses_nothing(url: str, start: str, slow: Slow) -> None:
    """The same, before any of the steps in any of the orders."""
    every = [cancelling(steps) for steps in orders(READING[start], *publishing("1"))]
    await check(url, start, [steps for cancelled in every for steps in cancelled], slow=slow)


def cancelling(steps: Steps) -> list[Steps]:
    """The same order, with a cancellation anywhere."""
    return [(*steps[:at], "cancelled", *steps[at:]) for at in range(len(steps) + 1)]


@pytest.mark.parametrize("start", READING)
async def test_each_step_is_taken_in_some_order(url: str, start: str) -> None:
    """None of them is a name for something that never happens."""
    taken: set[str] = set()
    async with open_hub(url, buffer_events=4) as hub:
        assert isinstance(hub.journal, Stepped)
        for steps in orders(READING[start], *publishing("1")):
            await received(hub, start, steps, "catch-up", None)
            taken |= hub.journal.order.taken
    assert taken == {*READING[start], *(step for chain in publishing("1") for step in chain)}


async def test_a_cancellation_while_an_event_is_handed_over_loses_nothing(url: str) -> None:
    """Cancelled at the very moment when there is one, the receiver either has it or gets it the next time."""
    async with open_hub(url) as hub, hub.subscribe("a") as subscription:
        sent, got = [str(number) for number in range(20)], list[str]()
        for event in sent:
            await hub.publish("a", event)
        await at_rest()
        for _ in range(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_soon, nursery.cancel_scope)
                if len(got) < len(sent):
                    item = await subscription.receive()
                    assert isinstance(item, Record)
                    got += data_of([item])
        assert got == sent


async def cancel_soon(scope: trio.CancelScope) -> None:
    scope.cancel()


# -- two events -----------------------------------------------------------------------------------------------


async def check_two(url: str, start: str, slow: Slow, buffer_events: int, count: int | None) -> None:
    """Two publishers at once, in so many orders or in all of them."""
    await check(url, start, some(start, count), slow=slow, buffer_events=buffer_events)


def some(start: str, count: int | None) -> list[Steps]:
    """So many of the orders of two events, or all of them."""
    every = list(orders(READING[start], *publishing("1", "2")))
    # By chance, but the same ones in every run: those that come one after another differ in their last steps only.
    return every if count is None else random.Random(1).sample(every, count)


@pytest.mark.parametrize(("slow", "buffer_events"), [("catch-up", 1), ("catch-up", 4), ("latest", 4)])
@pytest.mark.parametrize("start", READING)
async def test_two_publishers_events_arrive_once_and_in_order(
    url: str, start: str, slow: Slow, buffer_events: int
) -> None:
    """For a subscriber whose channel can hold both, and for one whom the second makes lag, in some orders."""
    await check_two(url, start, slow, buffer_events, 30)


@pytest.mark.proof
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("slow", "buffer_events"), [("catch-up", 1), ("catch-up", 4), ("latest", 4)])
@pytest.mark.parametrize("start", READING)
async def test_two_publishers_events_arrive_once_in_every_order(
    url: str, start: str, slow: Slow, buffer_events: int
) -> None:
    """The same in all of the thousands of orders."""
    await check_two(url, start, slow, buffer_events, None)


@pytest.mark.parametrize("start", READING)
async def test_of_one_key_the_newest_arrives_in_every_case(url: str, start: str) -> None:
    """For who wants the latest: two values of one key arrive in order and once, and the first may be left out."""
    async with open_hub(url, buffer_events=4) as hub:
        for steps in some(start, 30):
            got, expected = await received(hub, start, steps, "latest", "one key")
            assert got in (expected, [event for event in expected if event != "1"]), steps
