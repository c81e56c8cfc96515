"""The hub's own application for whole-system tests, with a window into the worker and a way to break it."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import trio
from quart import Response, request

from trio_sse import Settings, create_app
from trio_sse.server.limits import limits
from trio_sse.server.worker import _worker

app = create_app(Settings())


@app.get("/test/worker")
async def worker() -> Response:
    """What a test compares with its baseline; asked to ``collect``, what Python holds too."""
    if "collect" in request.args:
        gc.collect()
    statistics = app.hub.statistics()
    told = {
        "pid": os.getpid(),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "streams": statistics.streams,
        "subscribers": statistics.subscribers,
        "lagging": statistics.lagging,
        **held(),
        "objects": len(gc.get_objects()) if "collect" in request.args else 0,
        "blocks": sys.getallocatedblocks(),
    }
    return Response(json.dumps(told), content_type="application/json")


def held() -> dict[str, int]:
    """Every list that a client, a stream or a write is on while it lasts."""
    hub, worker, counted = app.hub, _worker.get(), app.limits.statistics
    counters = [each for each in vars(app.limits).values() if isinstance(each, dict)]
    return {
        "topics": len(hub.broadcaster._groups),
        "ticking": sum(len(slot) for slot in hub._desk.streams._wheel),
        "latency": len(hub.broadcaster.last_write._waiting),
        "publishers": len(hub._cancelled_on_ending),
        "counted": counted.streams + sum(len(counter) + sum(counter.values()) for counter in counters),
        "writing": len(limits.writing),
        "connections": worker.idle.open if worker is not None else 0,  # type: ignore[attr-defined]
        "idle": worker.idle.waiting if worker is not None else 0,  # type: ignore[attr-defined]
    }


@app.post("/test/break")
async def break_hub() -> Response:
    """Break the hub's own task."""

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("broken for a test")

    app.hub.broadcaster.deliver = broken  # type: ignore[assignment, method-assign]
    await app.hub.publish("lobby", "the last straw")
    return Response("broken\n")
