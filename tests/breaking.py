"""The hub's own application with parts that can be broken, each as it breaks by itself, and views that misbehave."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import trio
from quart import Response

from trio_sse import Event, EventStream, Settings, create_app
from trio_sse.broadcast import EndReason
from trio_sse.errors import JournalError
from trio_sse.event import ORIGIN, EventID
from trio_sse.journal import Page
from trio_sse.server import idle, patience, worker
from trio_sse.topic import Selector

worker.TOLD_S = float(os.environ.get("TOLD_S", worker.TOLD_S))
worker.LAST_RESORT_S = float(os.environ.get("LAST_RESORT_S", worker.LAST_RESORT_S))

FAILS_AT_ONCE = Path("fails at once")
"""While there is such a file, the hub breaks as soon as it is open."""

app = create_app(Settings())


class BrokenStream:
    def beat(self) -> None:
        raise ZeroDivisionError("broken for a test")

    def end(self, reason: EndReason) -> None:
        pass


def broken(*_: Any) -> None:
    raise ZeroDivisionError("broken for a test")


def slow(*_: Any) -> None:
    time.sleep(20)


async def fail(*_: Any) -> None:
    broken()


async def break_reader() -> None:
    """Some topics cannot be read, and of some others the second page."""
    read = app.hub.journal.read

    async def broken_for_some(selectors: Sequence[Selector], after: EventID, limit: int, told: int = 0) -> Page:
        topics = {selector.text for selector in selectors}
        if "unread/now" in topics:
            raise JournalError("the disk does not answer now")
        if "unread/bug" in topics:
            broken()
        if "unread/hangs" in topics:
            await trio.sleep_forever()
        if after != ORIGIN and any(selector.text.startswith("broken/") for selector in selectors):
            broken()
        return await read(selectors, after, limit, told)

    app.hub.journal.read = broken_for_some  # type: ignore[method-assign]


@app.post("/test/break/<part>")
async def break_part(part: str) -> Response:
    """The part breaks with the next event, or before."""
    hub: Any = app.hub
    if part == "hub":
        hub.broadcaster.deliver = broken
    elif part == "writer":
        hub.journal._writer.commit = broken
    elif part == "append":
        hub.journal.append = broken
    elif part == "thread":
        hub.journal._writer.commit = lambda *_: sys.exit(3)
    elif part == "disk":
        hub.journal._writer.commit = slow
    elif part == "ticker":
        hub._desk.streams.add(BrokenStream())
    elif part == "accept":
        idle._accept = fail  # type: ignore[assignment]
    elif part == "row":
        idle.IdleRow.end_one = broken  # type: ignore[assignment, method-assign]
    elif part == "slow readers":
        patience.SlowReaders._run = fail  # type: ignore[assignment, method-assign]
    elif part == "task":
        app.nursery.start_soon(fail)
    elif part == "reader":
        await break_reader()
    return Response(f"{part}\n")


@app.get("/test/pid")
async def pid() -> Response:
    return Response(str(os.getpid()))


@app.get("/test/bug")
async def bug() -> Response:
    """Not by what breaks the others: the log says the same only a few times."""
    raise ZeroDivisionError("a bug in a view")


@app.get("/test/never")
async def never() -> Response:
    """A view that has no end."""
    await trio.sleep_forever()
    return Response("never")


@app.get("/test/stubborn")
async def stubborn() -> Response:
    """One that does not even hear that it is cancelled."""
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()
    return Response("never")


async def failing(after: int) -> AsyncIterator[Event]:
    for number in range(after):
        yield Event(str(number))
        await trio.sleep(0.01)
    broken()


@app.get("/test/failing/<int:after>")
async def failing_source(after: int) -> Response:
    """A stream whose source breaks after so many events."""
    return EventStream(failing(after))


@app.get("/test/own/<path:topic>")
async def own(topic: str) -> Response:
    """A stream of somebody else's, who does not look at it before it begins."""
    return EventStream(app.hub.subscribe(topic, last_event_id="earliest"))


async def silent() -> AsyncIterator[Event]:
    yield Event("first")
    await trio.sleep_forever()


@app.get("/test/foreign")
async def foreign() -> Response:
    return EventStream(silent())


@app.before_serving
async def fail_at_once() -> None:
    if FAILS_AT_ONCE.exists():
        FAILS_AT_ONCE.write_text(FAILS_AT_ONCE.read_text() + f"{time.time()}\n")
        app.hub.broadcaster.deliver = broken  # type: ignore[assignment, method-assign]
        await app.hub.publish("lobby", "the last straw")
