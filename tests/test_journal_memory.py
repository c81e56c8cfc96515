"""The memory journal: the contract, and what is its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from trio_sse.event import ORIGIN
from trio_sse.journal import Journal, memory, open_journal
from trio_sse.journal.memory import MemoryJournal
from trio_sse.retention import Retention
from trio_sse.testing import JournalContract, WallClock, data_of, draft, read_all
from trio_sse.topic import parse_selectors


class TestMemoryJournal(JournalContract):
    """The contract."""

    def open_journal(self, retention: Retention, clock: Callable[[], float]) -> AbstractAsyncContextManager[Journal]:
        return open_journal("memory:", retention=retention, clock=clock)


async def test_pages_are_bounded_in_bytes() -> None:
    """A reader of large events gets them in small pages, all of them: what it stops at keeps no more from going."""
    async with open_journal("memory:") as journal:
        for topic in ("a", "b", "a", "b", "a"):
            await journal.append([draft(topic, "x" * 600_000)])
        for selectors in (["a"], ["a", "b"]):
            page = await journal.read(parse_selectors(selectors), ORIGIN, 100)
            assert len(page.records) == 1
            assert page.more
        assert len(await read_all(journal, "a", "b")) == 5


async def test_lost_values_that_are_of_no_account_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were replaced, and those of topics that are forgotten: each would hold its topic in memory."""
    monkeypatch.setattr(memory, "STALE_LOST", 5)
    monkeypatch.setattr(memory, "MAX_EMPTY_TOPICS", 2)
    clock = WallClock()
    async with open_journal("memory:", retention=Retention(seconds=1), clock=clock) as journal:
        assert isinstance(journal, MemoryJournal)
        for number in range(100):
            await journal.append([draft(f"t/{number}"), draft("a")])
            clock.move(10)
            await journal.trim()
        assert len(journal._lost) <= 2 + 1 + 5 + 1


async def test_forgotten_topics_leave_one_coarse_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """When too many topics are empty, one floor stands for the oldest of them, and it is no event's ID."""
    monkeypatch.setattr(memory, "MAX_EMPTY_TOPICS", 2)
    clock = WallClock()
    journal = MemoryJournal(Retention(seconds=10), clock)
    ids = []
    for number in range(4):
        ids += await journal.append([draft(f"t/{number}")])
        clock.move(1)
    clock.move(60)
    await journal.trim()
    assert journal.statistics().topics == 0
    coarse = await journal.floor(parse_selectors(["t/0"]))
    assert ids[1] < coarse < ids[2]
    assert coarse.seq == 0
    assert await journal.floor(parse_selectors(["t/3"])) == ids[3]
    assert await journal.floor(parse_selectors(["never/seen"])) == coarse


async def test_topics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that invents topics pushes out the oldest events, not the memory."""
    monkeypatch.setattr(memory, "MAX_TOPICS", 10)
    monkeypatch.setattr(memory, "MAX_EMPTY_TOPICS", 5)
    journal = MemoryJournal(Retention(), WallClock())
    for number in range(100):
        await journal.append([draft(f"t/{number}", str(number))])
    assert data_of(await read_all(journal, "**")) == [str(number) for number in range(90, 100)]
    assert len(journal._kept) <= 15


async def test_the_order_is_cleared_of_what_was_removed() -> None:
    """A busy topic behind one old event does not let the queue of all events grow without end."""
    journal = MemoryJournal(Retention(events=10), WallClock())
    await journal.append([draft("old")])
    for _ in range(50):
        await journal.append([draft("busy") for _ in range(100)])
    assert journal.statistics().events == 11
    assert len(journal._shelf._order) <= 2 * 11 + 1024 + 100
