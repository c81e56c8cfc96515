"""One caller that publishes as fast as it can makes no other wait."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from benchmarks.fairness import measure
from trio_sse.auth import Grant
from trio_sse.errors import TooLarge
from trio_sse.event import Event
from trio_sse.hub import MAX_TOGETHER, Hub
from trio_sse.journal.appends import COMMIT_COST
from trio_sse.journal.contract import BACKLOG, Journal
from trio_sse.journal.held import Change, Write
from trio_sse.journal.memory import MemoryJournal
from trio_sse.journal.sqlite import SQLiteJournal, open_sqlite
from trio_sse.record import Draft
from trio_sse.retention import Retention
from trio_sse.settings import Settings
from trio_sse.turns import Gate
from trio_sse.web import TrioSSE
from trio_sse.web.connection import Incoming
from trio_sse.web.publish import COMMIT_EVENTS, DECODING, SLICE_BYTES, _Acknowledgements
from trio_sse.wire import MAX_DATA

from .serving import ROOT

FLOODS = 32
P99_MS = 50
"""Milliseconds of the server's processor time between a POST and its answer: its latency on a machine at rest."""


def drafts(publisher: str, count: int) -> list[Draft]:
    return [Draft("a", Event("x"), None, publisher)] * count


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[SQLiteJournal]:
    async with open_sqlite(str(folder / "journal.db"), Retention()) as journal:
        yield journal


async def flood(journal: Journal, publisher: str, count: int, order: list[str]) -> None:
    await journal.append(drafts(publisher, count))
    order.append(publisher)


async def test_a_transaction_takes_no_more_than_it_has_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the newcomer's events, before those of all who wait with many."""
    async with opened(tmp_path) as journal, trio.open_nursery() as nursery:
        order: list[str] = []
        sizes: list[int] = []
        commit = journal._writer.commit

        def counting(writes: Sequence[Write], *times: Any) -> Change:
            sizes.append(sum(len(write.records) for write in writes))
            return commit(writes, *times)

        monkeypatch.setattr(journal._writer, "commit", counting)
        async with journal._writing:  # the first transaction waits for it, and all the others for that
            for number in range(FLOODS):
                nursery.start_soon(flood, journal, f"flood {number}", COMMIT_COST // 2, order)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(flood, journal, "ada", 1, order)
            await trio.testing.wait_all_tasks_blocked()
    assert order.index("ada") < 5
    assert len(order) == FLOODS + 1
    assert max(sizes) <= COMMIT_COST + COMMIT_COST // 2


async def test_without_a_token_nobody_waits_for_another_without_one(tmp_path: Path) -> None:
    """They are one publisher, and take turns among themselves."""
    async with opened(tmp_path) as journal, trio.open_nursery() as nursery:
        order: list[int] = []

        async def append(count: int) -> None:
            await journal.append(drafts("", count))
            order.append(count)

        async with journal._writing:
            for _ in range(FLOODS):
                nursery.start_soon(append, COMMIT_COST // 2)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(append, 1)
            await trio.testing.wait_all_tasks_blocked()
    assert order.index(1) < 5
    assert len(order) == FLOODS + 1


async def test_who_gives_up_waiting_has_published_nothing(tmp_path: Path) -> None:
    """An append that is cancelled before its turn is not kept."""
    async with opened(tmp_path) as journal:
        async with journal._writing, trio.open_nursery() as nursery:
            nursery.start_soon(journal.append, drafts("bob", 1))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0):
                await journal.append(drafts("ada", 1))
            nursery.cancel_scope.cancel()
        await journal.append(drafts("eve", 1))
        assert journal.statistics().events <= 2


async def test_in_memory_they_take_turns_too() -> None:
    """When followers are behind, and publishers have to wait for them."""
    journal = MemoryJournal(Retention())
    order: list[str] = []
    with journal.follow() as follower:
        await journal.append(drafts("a", BACKLOG + 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, journal, "first", 1, order)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(FLOODS):
                nursery.start_soon(flood, journal, f"flood {number}", 100, order)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(flood, journal, "ada", 1, order)
            await trio.testing.wait_all_tasks_blocked()
            while len(order) < FLOODS + 2:
                await follower.receive()
                await trio.testing.wait_all_tasks_blocked()
    assert order[:2] == ["first", "ada"]
    assert len(order) == FLOODS + 2


@pytest.mark.parametrize("events", [[Event("")] * (MAX_TOGETHER + 1), [Event("x" * MAX_DATA)] * 5])
async def test_no_call_publishes_more_than_all_can_wait_for(events: list[Event]) -> None:
    """Neither in number nor in bytes; what is too much is not kept in part."""
    hub = Hub(MemoryJournal(Retention()))
    with pytest.raises(TooLarge, match="in several"):
        await hub.publish_many("a", events)
    assert hub.statistics().journal.events == 0
    await hub.publish_many("a", events[: len(events) - 1])


# -- streams of events -------------------------------------------------------------------------------------------------


class Body:
    """A body that comes in one message."""

    def __init__(self, body: bytes) -> None:
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def __call__(self) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return self._messages.pop(0)


def publishing(hub: Hub, body: bytes, turns: Gate | None = None, subject: str = "ada") -> _Acknowledgements:
    app = TrioSSE(Settings())
    app._hub, app.turns = hub, turns or app.turns
    return _Acknowledgements(app, "a", Incoming(Body(body)), Grant(subject), ())


async def test_a_stream_is_appended_a_little_at_a_time() -> None:
    """However small its events are, and however many come at once."""
    hub = Hub(MemoryJournal(Retention()))
    count = 10_000
    acks = [line async for line in publishing(hub, b"data:\n\n" * count)]
    assert json.loads(acks[-1])["count"] == count
    most = COMMIT_EVENTS + SLICE_BYTES // len(b"data:\n\n")
    numbers = [0] + [json.loads(line)["acked"] for line in acks[:-1]]
    assert max(after - before for before, after in itertools.pairwise(numbers)) <= most <= MAX_TOGETHER


@pytest.mark.parametrize("line", [b"data:\n\n", b":\n", b"\n", b"data: x\r\n\r\n", b"data: " + b"x" * 100 + b"\n\n"])
async def test_others_go_on_while_a_stream_is_decoded(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each millisecond; here every look at the clock finds one to be over."""
    monkeypatch.setattr("trio_sse.web.publish.SLICE_S", 0.0)
    hub, steps = Hub(MemoryJournal(Retention())), 0

    async def count() -> None:
        nonlocal steps
        while True:
            steps += 1
            await trio.lowlevel.checkpoint()

    body = line * (64 * 1024 // len(line))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        async for _ in publishing(hub, body):
            pass
        nursery.cancel_scope.cancel()
    assert steps >= len(body) // SLICE_BYTES


async def test_few_streams_are_decoded_at_once() -> None:
    """And when one more comes with an event, it goes before all who have many."""
    hub, turns, order = Hub(MemoryJournal(Retention())), Gate(DECODING), []

    async def stream(name: str, body: bytes) -> None:
        await publishing(hub, body, turns, name).begin()
        order.append(name)

    async with trio.open_nursery() as nursery:
        async with turns.turn("", 1), turns.turn("", 1):
            for number in range(FLOODS):
                nursery.start_soon(stream, f"flood {number}", b"data:\n\n" * 1_000)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(stream, "ada", b"data:\n\n")
            await trio.testing.wait_all_tasks_blocked()
            assert turns.waiting == FLOODS + 1
    assert "ada" in order[:DECODING]


# -- all of it ---------------------------------------------------------------------------------------------------------


def test_the_benchmark_runs_and_says_what_it_measured(tmp_path: Path) -> None:
    """With nobody and with everybody."""
    program = (
        "from benchmarks.fairness import measure, table_of\n"
        "from rich.console import Console\n"
        "Console(width=120).print(table_of([measure('memory', 'tokens', 'tiny', 0.5)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "tiny" in done.stdout


@pytest.mark.proof
@pytest.mark.parametrize("journal", ["memory", "sqlite"])
@pytest.mark.parametrize(
    ("callers", "size"),
    [
        ("tokens", "tiny"),
        ("tokens", "small"),
        ("tokens", "large"),
        ("no tokens beside a token", "tiny"),
        ("no tokens beside none", "tiny"),
        ("no tokens beside none", "large"),
    ],
)
def test_a_post_is_answered_beside_a_flood(journal: str, callers: str, size: str) -> None:
    """Beside thirty-two connections that stream events without a pause."""
    run = measure(journal, callers, size, 6)
    assert run.refused == 0
    assert run.cpu_p99_ms <= P99_MS
