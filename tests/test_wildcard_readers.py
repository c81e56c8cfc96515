"""Readers of wildcards over many topics: pages are bounded work, and still nothing is missed, doubled or made up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from trio_sse import Event, Hub, open_hub
from trio_sse.event import ORIGIN, EventID
from trio_sse.journal import Page, database, removals, shelf, sqlite
from trio_sse.record import Gap, Record
from trio_sse.retention import Keep, Retention
from trio_sse.topic import parse_selectors

ENTRIES = 8


@pytest.fixture(params=["memory", "sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both journals, and the file of one that has nothing in memory; a page looks at few records and topics."""
    monkeypatch.setattr(shelf, "VISITS", 4)
    monkeypatch.setattr(removals, "LOOKS", 3)
    for room in (shelf, database):
        monkeypatch.setattr(room, "PAGE_ENTRIES", ENTRIES)
    if request.param == "file":
        monkeypatch.setattr(sqlite, "SHELF_EVENTS", 0)
    return "memory:" if request.param == "memory" else f"sqlite:{tmp_path}/hub.db"


@asynccontextmanager
async def filled(url: str, topics: int = 40, *, retention: Retention | None = None) -> AsyncIterator[Hub]:
    """A hub with one event in each of many topics: 0/busy, 1/busy and so on, and rare/x at last."""
    async with open_hub(url, retention=retention) as hub:
        for number in range(topics):
            await hub.publish(f"{number}/busy", str(number))
        await hub.publish("rare/x", "rare")
        yield hub


async def received(hub: Hub, *selectors: str, after: str, count: int) -> list[str]:
    """What a subscriber gets: the data of so many events, and the reason of each gap between them."""
    found: list[str] = []
    async with hub.subscribe(*selectors, last_event_id=after) as subscription:
        while sum(not each.startswith("gap") for each in found) < count:
            item = await subscription.receive()
            found.append(f"gap {item.reason}" if isinstance(item, Gap) else item.frame.decode().split()[-1])
    return found


async def test_everything_comes_once_and_in_order(url: str, autojump_clock: trio.testing.MockClock) -> None:
    """Over as many topics as there are events."""
    async with filled(url) as hub:
        assert await received(hub, "**", after="earliest", count=41) == [*map(str, range(40)), "rare"]


async def test_what_is_far_behind_others_is_found(url: str, autojump_clock: trio.testing.MockClock) -> None:
    """Pages without one event of the reader's topics lead to it, and are no gap."""
    async with filled(url) as hub:
        first = await hub.journal.last_event_id("0/busy")
        assert await received(hub, "*/x", after=str(first), count=1) == ["rare"]
        assert await received(hub, "*/x", after="earliest", count=1) == ["rare"]


async def test_a_page_looks_at_a_bounded_number_of_records(url: str, autojump_clock: trio.testing.MockClock) -> None:
    """It says how far it came, and that there is more."""
    async with filled(url) as hub:
        selectors = parse_selectors(["*/x"])
        pages: list[Page] = []
        after = ORIGIN
        while not pages or pages[-1].more:
            pages.append(await hub.journal.read(selectors, after, 100))
            assert pages[-1].upto > after
            after = pages[-1].upto
        assert len(pages) in (41 // ENTRIES, 41 // ENTRIES + 1)
        assert [len(page.records) for page in pages] == [0] * (len(pages) - 1) + [1]


async def test_others_have_their_turn_between_pages(url: str, autojump_clock: trio.testing.MockClock) -> None:
    """Between two pages, and while a reader is told of what was removed in many topics."""
    retention = Retention(topics={"*/busy": Keep(events=1)})
    async with filled(url, retention=retention) as hub:
        for number in range(40):
            await hub.publish(f"{number}/busy", "again")
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            before = turns
            await hub.journal.read(parse_selectors(["*/x"]), ORIGIN, 100)
            nursery.cancel_scope.cancel()
        assert turns - before >= 40 // 3 - 1


async def test_a_hole_is_told_and_once(url: str, autojump_clock: trio.testing.MockClock) -> None:
    """Of the topics that the selectors choose."""
    retention = Retention(topics={"*/busy": Keep(events=1)})
    async with filled(url, retention=retention) as hub:
        first = str(await hub.journal.last_event_id("0/busy"))
        await hub.publish("5/busy", "newer")
        assert await received(hub, "*/busy", after=first, count=39) == [
            "gap trimmed", *(str(number) for number in range(1, 40) if number != 5), "newer"
        ]  # fmt: skip
        assert await received(hub, "*/x", after=first, count=1) == ["rare"]


async def test_a_hole_between_two_pages_is_told(url: str, autojump_clock: trio.testing.MockClock) -> None:
    """Also when the reader was told of an older one, and what is told of is behind its cursor."""
    retention = Retention(topics={"*/busy": Keep(events=1)})
    async with filled(url, retention=retention) as hub:
        page = await hub.journal.read(parse_selectors(["*/busy"]), ORIGIN, 100)
        lost = await hub.journal.last_event_id("30/busy")
        await hub.publish("30/busy", "newer")
        after = await hub.journal.read(parse_selectors(["*/busy"]), page.upto, 100, page.removals)
        assert after.floor == lost
        again = await hub.journal.read(parse_selectors(["*/busy"]), page.upto, 100, after.removals)
        assert again.floor == ORIGIN
        other = await hub.journal.read(parse_selectors(["*/x"]), page.upto, 100, page.removals)
        assert other.floor == ORIGIN


async def test_what_is_removed_while_a_page_is_read_is_no_silent_loss(
    url: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Publishers that trim at every event, beside a reader: it gets each event, or a gap before what follows."""
    retention = Retention(events=2)
    async with open_hub(url, retention=retention) as hub, trio.open_nursery() as nursery:
        known: list[EventID] = []

        async def publish() -> None:
            for number in range(150):
                known.append(await hub.publish(f"t/{number % 20}", Event(str(number))))

        known.append(await hub.publish("t/0", "first"))
        nursery.start_soon(publish)
        got: list[EventID] = []
        told = 0
        async with hub.subscribe("t/*", last_event_id=str(known[0])) as subscription:
            while not got or len(known) < 151 or got[-1] != known[-1]:
                item = await subscription.receive()
                if isinstance(item, Record):
                    got.append(item.id)
                else:
                    told += 1
        assert got == sorted(set(got))
        assert told or got == known[1:]
