"""The hub's own application for whole-system tests, with a window into the worker and a way to break it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import trio
from quart import Response

from trio_sse import Settings, create_app

app = create_app(Settings())


@app.get("/test/worker")
async def worker() -> Response:
    """What a test compares with its baseline."""
    statistics = app.hub.statistics()
    told = {
        "pid": os.getpid(),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "streams": statistics.streams,
        "subscribers": statistics.subscribers,
        "lagging": statistics.lagging,
    }
    return Response(json.dumps(told), content_type="application/json")


@app.post("/test/break")
async def break_hub() -> Response:
    """Break the hub's own task."""

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("broken for a test")

    app.hub.broadcaster.deliver = broken  # type: ignore[assignment, method-assign]
    await app.hub.publish("lobby", "the last straw")
    return Response("broken\n")
