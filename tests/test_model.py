"""Hub, journal and subscribers against a short reference, under whatever hypothesis makes of them.

The reference is a list of events and, for each client, up to where it is done and what it was told of. It knows nothing
of channels, pages and shelves. :class:`Reference` and :class:`Client` say all that a subscriber is promised.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.test_seam import at_rest
from trio_sse import latest, subscription
from trio_sse.errors import InvalidEventID
from trio_sse.event import ORIGIN, Event, EventID
from trio_sse.hub import Hub, open_hub
from trio_sse.journal import database, removals, shelf, sqlite
from trio_sse.journal.costs import MEMORY, SQLITE, Costs
from trio_sse.record import Gap, GapReason, Record
from trio_sse.retention import Keep, Retention
from trio_sse.subscription import Slow, Subscription
from trio_sse.testing import WallClock, data_of
from trio_sse.topic import parse_selectors

T = TypeVar("T")

# -- what is promised -----------------------------------------------------------------------------------------

TOPICS = {
    ("room/1",): {"room/1"},
    ("price",): {"price"},
    ("room/*",): {"room/1", "room/2"},
    ("room/1", "room/*"): {"room/1", "room/2"},
    ("price", "room/2", "nobody"): {"price", "room/2"},
    ("**",): {"room/1", "room/2", "price"},
    ("user/ada", "**", "*"): {"room/1", "room/2", "price", "user/ada"},
}
"""What is asked for, and the topics that it chooses."""

EVERYTHING = ("user/ada", "**")


@dataclass(frozen=True)
class Known:
    """An event whose publisher was told its ID."""

    id: EventID
    topic: str
    key: str | None
    data: str
    size: int
    publisher: str = ""


class Reference:
    """All events there were in this life of the journal, and which of them it has removed."""

    def __init__(self, born: EventID, costs: Costs) -> None:
        self.born = born
        self.costs = costs
        self.events: list[Known] = []
        self.kept: list[Known] = []
        self.unreplaced: set[EventID] = set()  # removed while they were the newest of their key

    @property
    def newest(self) -> EventID:
        return self.events[-1].id if self.events else self.born

    def replaced(self, event: Known) -> bool:
        return any(e.id > event.id and (e.topic, e.key) == (event.topic, event.key) for e in self.events)

    def removed(self, event: Known) -> bool:
        return event not in self.kept

    def add(self, events: list[Known], kept: set[EventID], retention: Retention, now_ms: int, *, trimmed: bool) -> None:
        """There are these new events, and it keeps those now: no fewer than it must, and no more if it was trimmed."""
        assert all(before < after for before, after in zip([self.newest, *ids(events)], ids(events), strict=False))
        least, most = self.kept, [*self.kept, *events]
        safe = set(ids(most))
        for place, event in enumerate(events, 1):
            least = allowed([*least, event], retention, now_ms)
            before = [*self.kept, *events[:place]]
            safe -= set(ids(before)) - self.untouchable(before, retention)
        safe &= self.untouchable(most, retention)
        assert safe & set(ids(allowed(least, retention, now_ms))) <= kept <= set(ids(most))
        if trimmed:
            assert kept <= set(ids(allowed(most, retention, now_ms)))
            assert self.cost([event for event in most if event.id in kept]) <= retention.bytes
        self.events += events
        self.kept = [event for event in most if event.id in kept]
        self.unreplaced |= {e.id for e in self.events if self.removed(e) and not self.replaced(e)}

    def cost(self, events: list[Known]) -> int:
        """Bytes that these count as."""
        held = sum(self.costs.of_holding(*pair) for pair in {(event.topic, event.publisher) for event in events})
        return held + sum(self.costs.of_event(event.size, event.key) for event in events)

    def untouchable(self, events: list[Known], retention: Retention) -> set[EventID]:
        """Of these, what no lack of room takes away: of publishers that hold less than an even share, and of topics
        that hold less than an even share of what their publisher may have. What is no event has a quarter at most.
        """
        safe: set[EventID] = set()
        publishers = {event.publisher for event in events}
        for publisher in publishers:
            own = [event for event in events if event.publisher == publisher]
            topics = {event.topic for event in own}
            share = retention.bytes * 3 / 4 / len(publishers)
            for topic in topics:
                held = [event for event in own if event.topic == topic]
                if self.cost(own) < share or self.cost(held) < share / len(topics):
                    safe |= set(ids(held))
        return safe


def allowed(events: list[Known], retention: Retention, now_ms: int) -> list[Known]:
    """What the topics' own limits let a journal keep of these: of each the newest."""
    kept: list[Known] = []
    for topic in {event.topic for event in events}:
        limits, size = retention.of(topic), 0
        for count, event in enumerate(reversed([event for event in events if event.topic == topic])):
            size += event.size
            if count >= limits.events or size > limits.bytes or now_ms - event.id.ms > limits.seconds * 1000:
                break
            kept.append(event)
    return sorted(kept, key=lambda event: event.id)


def ids(events: Iterable[Known]) -> list[EventID]:
    return [event.id for event in events]


@dataclass(eq=False)
class Client:
    """Who reads some topics, comes back with the ID it was told last, and checks everything it is given."""

    selectors: tuple[str, ...]
    slow: Slow
    cursor: str | None  # what it comes with
    done: EventID = ORIGIN  # everything up to here it has, or has been told of, or had not asked for
    told: set[EventID] = field(default_factory=set)  # of these, behind that, it knows that they are gone
    gap: GapReason | None = None  # the one that must come first
    subscription: Subscription | None = None

    def due(self, reference: Reference) -> list[Known]:
        """All events behind what is done."""
        return [e for e in reference.events if e.id > self.done and e.topic in TOPICS[self.selectors]]

    def owed(self, reference: Reference) -> list[Known]:
        """Those it must get, or be told of."""
        due = [event for event in self.due(reference) if event.id not in self.told]
        return due if self.slow == "catch-up" else [event for event in due if not reference.replaced(event)]

    def comes(self, reference: Reference, given: set[str], position: EventID) -> None:
        """It came with its cursor, and the stream begins with this position."""
        self.done, self.told = ORIGIN, set()
        self.gap = self._judge(reference, given)
        if self.gap is not None or self.cursor == "earliest":  # what is gone by now is told, or was not asked for
            self.told = set(ids(filter(reference.removed, self.due(reference))))
        if self.gap != "ahead":  # where it is told its own cursor again, until it is told of the gap
            before = [event for event in self.due(reference) if event.id <= position]
            assert all(map(reference.removed, before)) if self.gap is None else before == []
        self.cursor = str(position)

    def _judge(self, reference: Reference, given: set[str]) -> GapReason | None:
        """Where it begins, and the reason why that is not right behind its cursor, if there is one."""
        if self.cursor is None:
            self.done = reference.newest
            return None
        try:
            cursor = EventID.parse(self.cursor)
        except InvalidEventID:
            return None if self.cursor == "earliest" else "unknown"
        if cursor > reference.newest and self.cursor not in given:
            return "ahead"
        self.done = cursor
        if cursor < reference.born:
            return "restarted"
        return "trimmed" if any(map(reference.removed, self.owed(reference))) else None

    def gets(self, item: Record | Gap | None, reference: Reference) -> None:
        """It received this, or (none) nothing more came."""
        if item is None:
            assert (self.gap, self.owed(reference)) == (None, [])
            return
        if isinstance(item, Gap):
            self._gets_gap(item, reference)
            self.cursor = str(item.resumed_from)
            return
        assert self.gap is None, "the gap comes first"
        (event,) = [event for event in self.due(reference) if event.id == item.id]
        assert (event.topic, event.key, event.data) == (item.topic, item.key, data_of([item])[0])
        assert [e for e in self.owed(reference) if e.id < item.id] == []
        assert event.id not in self.told
        self.done = item.id
        self.cursor = str(item.id)

    def _gets_gap(self, gap: Gap, reference: Reference) -> None:
        if self.gap is None:
            gone = [e for e in self.due(reference) if reference.removed(e) and e.id not in self.told]
            assert [e for e in gone if self.slow == "catch-up" or e.id in reference.unreplaced], "nothing was lost"
            self.told |= set(ids(gone))
        assert gap.reason == (self.gap or "trimmed")
        self.gap = None
        at = gap.resumed_from
        assert not [e for e in self.due(reference) if e.id <= at and not reference.removed(e)], "there is no way back"
        names_no_event = at.seq == 0 or str(at) == gap.requested
        assert names_no_event or at in [e.id for e in reference.events if e.topic in TOPICS[self.selectors]]
        self.done = max(self.done, at)


# -- what does it ---------------------------------------------------------------------------------------------


class Running:
    """Trio in a thread of its own, which does one thing after another for a test that waits for each."""

    def __init__(self) -> None:
        begun, self._end = threading.Event(), trio.Event()

        async def main() -> None:
            self._token = trio.lowlevel.current_trio_token()
            async with trio.open_nursery() as self.nursery:
                begun.set()
                await self._end.wait()
                self.nursery.cancel_scope.cancel()

        # The clock stands still, so that nothing happens by itself.
        self._thread = threading.Thread(
            target=trio.run, args=(main,), kwargs={"clock": trio.testing.MockClock()}, daemon=True
        )
        self._thread.start()
        begun.wait()

    def __call__(self, do: Callable[..., Awaitable[T]], *args: object) -> T:
        return trio.from_thread.run(do, *args, trio_token=self._token)

    def close(self) -> None:
        self._token.run_sync_soon(self._end.set)
        self._thread.join()


RETENTIONS = [
    Retention(events=3),
    Retention(),
    Retention(seconds=60),
    Retention(events=40, seconds=600, bytes=100_000),
    Retention(topics={"room/2": Keep(seconds=30), "room/*": Keep(events=2), "**": Keep(bytes=200)}),
]

MOVES_S = [-3600.0, -1.0, 0.0, 0.001, 1.0, 31.0, 61.0, 3600.0]
"""By how much the wall clock moves."""

CURSORS = ["earliest", "☃" * 100, "0-0", "1-1", "99999999999999-1"]

A_DAY_MS = 24 * 3600 * 1000

KEYS = st.sampled_from([None, "k", "l", "m"])
CHOSEN = st.sampled_from(["room/1", "room/1", "room/2", "room/2", "price", "user/ada"])
SIZES = st.sampled_from([0, 100, 10_000])
PUBLISHERS = st.sampled_from(["", "ada", "bob"])


class HubMachine(RuleBasedStateMachine):
    """One hub, whatever happens to it."""

    persistent = False
    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.clock = WallClock()
        self.run = Running()
        self.place = Path(tempfile.mkdtemp())
        self.folder = self.place
        self.published = 0
        self.given: dict[str, None] = {}  # every cursor that was ever told to somebody, the newest last
        self.once: dict[int, EventID] = {}
        self.present: list[Client] = []

    # -- a life of the hub ---------------------------------------------------------------------------------

    @initialize(
        retention=st.sampled_from(RETENTIONS), buffer_events=st.sampled_from([1, 2, 8]), page=st.sampled_from([1, 3])
    )
    def begin(self, retention: Retention, buffer_events: int, page: int) -> None:
        self.retention, self.buffer_events = retention, buffer_events
        subscription.PAGE = page  # as it was, when the test is over
        self.reference = Reference(EventID(self.now_ms(), 0), SQLITE if self.persistent else MEMORY)
        self.open()

    def open(self) -> None:
        self.ended = trio.Event()
        self.hub: Hub = self.run(lambda: self.run.nursery.start(self.live))
        self.baseline = self.hub.statistics()
        self.look([])

    async def live(self, *, task_status: trio.TaskStatus[Hub]) -> None:
        with trio.CancelScope() as self.life:
            async with open_hub(
                f"sqlite:{self.folder}/journal.db" if self.persistent else "memory:",
                retention=self.retention,
                buffer_events=self.buffer_events,
                clock=self.clock,
            ) as hub:
                task_status.started(hub)
                await trio.sleep_forever()
        self.ended.set()

    def close(self) -> None:
        """Everybody leaves, and then it is as it was before anybody came."""
        for client in list(self.present):
            self.leave(client)
        now = self.hub.statistics()
        assert (now.streams, now.subscribers) == (self.baseline.streams, self.baseline.subscribers) == (0, 0)
        assert len(self.hub.broadcaster._groups) == 0

        async def end() -> None:
            self.life.cancel()
            await self.ended.wait()

        self.run(end)

    def teardown(self) -> None:
        try:
            if sys.exception() is None:  # or what has failed would fail once more, in another way
                for client in list(self.present):
                    self.receive(client, 1000)
                self.close()
        finally:
            self.run.close()
            shutil.rmtree(self.place)

    @precondition(lambda self: len(self.reference.events) > 8)  # or lives would be too short for much to happen
    @rule(move_s=st.sampled_from(MOVES_S), killed=st.booleans())
    def restart(self, move_s: float, killed: bool) -> None:
        """A new life; of one that was killed, the next finds the file as it was at that moment."""
        if killed and self.persistent:
            before, self.folder = self.folder, Path(tempfile.mkdtemp(dir=self.place))
            for name in ("journal.db", "journal.db-wal"):
                shutil.copy(before / name, self.folder)
        self.close()
        self.clock.move(move_s)
        if not self.persistent:
            # A journal that forgets can tell its lives apart only by a clock that goes on.
            newest = max([self.reference.newest.ms, *[EventID.parse(cursor).ms for cursor in self.given]])
            self.clock.now = max(self.clock.now, newest / 1000 + 1)
            self.reference = Reference(EventID(self.now_ms(), 0), MEMORY)
            self.once = {}
        self.open()

    def now_ms(self) -> int:
        return int(self.clock() * 1000)

    def look(self, events: list[Known], *, trimmed: bool = False) -> None:
        """See what the journal keeps, behind these new events."""
        journal = self.hub.journal
        records: list[Record] = []
        after, more = ORIGIN, True
        while more:
            page = self.run(partial(journal.read, parse_selectors(EVERYTHING), after, 10_000))
            records += page.records
            after, more = page.upto, page.more
        kept = {record.id for record in records}
        self.reference.add(events, kept, self.retention, self.now_ms(), trimmed=trimmed)
        assert len(records) == len(kept) == journal.statistics().events
        self.run(at_rest)

    # -- what happens in it --------------------------------------------------------------------------------

    @rule(events=st.lists(st.tuples(CHOSEN, KEYS, SIZES, PUBLISHERS), min_size=1, max_size=8))
    def publish(self, events: list[tuple[str, str | None, int, str]]) -> None:
        """So many publishers at once, of one event each."""
        known: list[Known] = []

        async def one(topic: str, key: str | None, data: str, publisher: str) -> None:
            id = await self.hub.publish(topic, data, key=key, publisher=publisher)
            known.append(self.known(id, topic, key, data, publisher))

        async def all_of_them() -> None:
            async with trio.open_nursery() as nursery:
                for topic, key, size, publisher in events:
                    nursery.start_soon(one, topic, key, self.data(size), publisher)

        self.run(all_of_them)
        self.look(sorted(known, key=lambda event: event.id))

    @rule(topic=CHOSEN, key=KEYS, sizes=st.lists(SIZES, min_size=1, max_size=8), publisher=PUBLISHERS)
    def publish_many(self, topic: str, key: str | None, sizes: list[int], publisher: str) -> None:
        """One publisher, of some events together."""
        data = [self.data(size) for size in sizes]
        given = self.run(lambda: self.hub.publish_many(topic, map(Event, data), key=key, publisher=publisher))
        self.look([self.known(id, topic, key, each, publisher) for id, each in zip(given, data, strict=True)])

    @rule(name=st.integers(0, 2))
    def publish_once(self, name: int) -> None:
        """The same event under the same idempotency key as before, if there was one in the last day."""
        id, replayed = self.run(lambda: self.hub.publish_once("room/1", Event(f"once {name}"), f"key {name}"))
        before = self.once.get(name)
        assert replayed == (before is not None and before.ms >= self.now_ms() - A_DAY_MS)
        assert not replayed or id == before
        self.once[name] = id
        self.look([] if replayed else [self.known(id, "room/1", None, f"once {name}")])

    def data(self, size: int) -> str:
        self.published += 1
        return f"{self.published} {'x' * size}"

    def known(self, id: EventID, topic: str, key: str | None, data: str, publisher: str = "") -> Known:
        assert all(id > EventID.parse(cursor) for cursor in self.given), "somebody was told of a later one before"
        return Known(id, topic, key, data, len(f"id: {id}\ndata: {data}\n\n"), publisher)

    @rule(move_s=st.sampled_from(MOVES_S))
    def trim(self, move_s: float) -> None:
        """The clock moves, and what is too old by then is removed."""
        self.clock.move(move_s)
        self.run(self.hub.journal.trim)
        self.look([], trimmed=True)

    # -- who reads it --------------------------------------------------------------------------------------

    @rule(
        target=clients,
        selectors=st.sampled_from(list(TOPICS)),
        slow=st.sampled_from(["catch-up", "latest"]),
        cursor=st.one_of(st.none(), st.sampled_from(CURSORS), st.integers(0, 9), st.integers(0, 9)),
    )
    def subscribe(self, selectors: tuple[str, ...], slow: Slow, cursor: str | int | None) -> Client:
        """Come for the first time, with nothing, or with a cursor that somebody was told, or with one from nowhere."""
        if isinstance(cursor, int):
            cursor = list(self.given)[-1 - cursor % len(self.given)] if self.given else None
        client = Client(selectors, slow, cursor)
        self.come(client)
        return client

    @rule(client=clients)
    def come(self, client: Client) -> None:
        """Come, or come back with the cursor it had."""
        if client.subscription is None:
            subscription = self.hub.subscribe(*client.selectors, last_event_id=client.cursor, slow=client.slow)
            client.subscription = self.run(subscription.__aenter__)
            self.present.append(client)
            given = {cursor for cursor in self.given if EventID.parse(cursor) >= self.reference.born}
            client.comes(self.reference, given, subscription.opening_position)
            self.remember(client)

    @rule(client=clients, count=st.integers(1, 5))
    def receive(self, client: Client, count: int) -> None:
        """Take some of what there is, or find that there is no more."""
        self.come(client)
        subscription = client.subscription
        assert subscription is not None
        item: Record | Gap | None = None
        for _ in range(count):
            item = self.run(next_of, subscription)
            client.gets(item, self.reference)
            self.remember(client)
            if item is None:
                break

    @rule(client=clients)
    def leave(self, client: Client) -> None:
        if client.subscription is not None:
            self.run(client.subscription.__aexit__, None, None, None)
            client.subscription = None
            self.present.remove(client)

    def remember(self, client: Client) -> None:
        """Somebody was told this cursor; what is "ahead" when it comes from nobody may come from here."""
        assert client.cursor is not None
        if client.gap is None:
            self.given.pop(client.cursor, None)
            self.given[client.cursor] = None


async def next_of(subscription: Subscription) -> Record | Gap | None:
    """What it receives, if anything can be received."""
    received: list[Record | Gap] = []
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            received.append(await subscription.receive())

        nursery.start_soon(receive)
        await at_rest()
        nursery.cancel_scope.cancel()
    return received[0] if received else None


class PersistentHubMachine(HubMachine):
    """One hub over a file."""

    persistent = True


JOURNALS = {"memory": HubMachine, "sqlite": PersistentHubMachine}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages, shelves and what is held are small, so that a few events are many; and tasks take turns in one order."""
    # Trio would shuffle them, with as many random numbers as there are turns. A run must be like the one before.
    monkeypatch.setattr(trio._core._run._r, "shuffle", lambda batch: None)
    monkeypatch.setattr(subscription, "PAGE", 3)
    monkeypatch.setattr(sqlite, "SHELF_EVENTS", 4)
    monkeypatch.setattr(latest, "MAX_KEYS", 3)


@pytest.mark.parametrize("journal", JOURNALS)
def test_every_subscriber_gets_what_the_reference_says(journal: str) -> None:
    """Records, gaps and cursors are those of the reference, whatever publishers, readers, time and restarts do."""
    check(journal, {"memory": 100, "sqlite": 40}[journal])


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("journal", JOURNALS)
def test_every_subscriber_gets_it_along_the_order_of_all(journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where wildcards choose too many topics to look at each, and a page and a pause come after a few."""
    monkeypatch.setattr(shelf, "VISITS", 0)
    monkeypatch.setattr(removals, "LOOKS", 3)
    for room in (shelf, database):
        monkeypatch.setattr(room, "PAGE_ENTRIES", 6)
    check(journal, {"memory": 300, "sqlite": 100}[journal])


@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("journal", JOURNALS)
def test_every_subscriber_gets_what_the_reference_says_at_length(journal: str) -> None:
    """The same, twenty times as often."""
    check(journal, {"memory": 2000, "sqlite": 1200}[journal])


def check(journal: str, examples: int) -> None:
    """Play so many games, of so many steps at most."""
    run_state_machine_as_test(JOURNALS[journal], settings=settings(max_examples=examples, stateful_step_count=40))


@pytest.mark.parametrize("journal", JOURNALS)
async def test_what_goes_between_two_pages_is_told_though_a_later_hole_was_told_before(
    journal: str, tmp_path: Path
) -> None:
    """Of two topics: the one's floor was above the other's events already, and then those are removed unread."""
    url = "memory:" if journal == "memory" else f"sqlite:{tmp_path}/journal.db"
    async with open_hub(url, retention=Retention(events=3)) as hub:
        begin = await hub.publish("a", "begin")
        for topic in ("a", "a", "a", "b", "b", "b", "c", "c", "c", "c"):
            await hub.publish(topic, "unread")
        async with hub.subscribe("a", "b", "c", last_event_id=begin) as subscription:
            first = await subscription.receive()
            assert isinstance(first, Gap)  # for the first of c
            last = [await hub.publish("b", "new") for _ in range(3)]
            items = []
            while (item := await next_of(subscription)) is not None:
                items.append(item)
    assert [item.topic if isinstance(item, Record) else "gap" for item in items] == [*"aaa", "gap", *"cccbbb"]
    assert [item.id for item in items[-3:] if isinstance(item, Record)] == last
