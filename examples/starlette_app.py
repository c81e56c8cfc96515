"""A Starlette application that returns event streams.

    .venv/bin/hypercorn examples.starlette_app:app --worker-class trio

    curl -N http://127.0.0.1:8000/events
    curl -d 'It works' http://127.0.0.1:8000/messages

An EventStream is an ASGI application, so an endpoint may return it like any response.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from trio_sse import EventStream, Hub, TrioSSEError, open_hub
from trio_sse.server import guard_hypercorn

from .run import end_streams_on_shutdown

guard_hypercorn(write_timeout_s=20, drain_s=2)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Hub]]:
    """Hold a hub open while the application serves."""
    async with open_hub() as hub, trio.open_nursery() as nursery:
        nursery.start_soon(end_streams_on_shutdown, hub)
        yield {"hub": hub}
        nursery.cancel_scope.cancel()


async def events(request: Request) -> EventStream:
    last_event_id = request.headers.get("Last-Event-ID", "earliest")
    return EventStream(request.state.hub.subscribe("lobby", last_event_id=last_event_id))


async def say(request: Request) -> Response:
    event_id = await request.state.hub.publish("lobby", (await request.body()).decode(errors="replace"))
    return PlainTextResponse(f"{event_id}\n", 201)


async def refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, TrioSSEError)
    return PlainTextResponse(f"{error}\n", error.status_hint)


app = Starlette(
    routes=[Route("/events", events), Route("/messages", say, methods=["POST"])],
    exception_handlers={TrioSSEError: refuse},
    lifespan=lifespan,
)
