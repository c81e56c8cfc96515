"""A hub in a FastAPI application; each topic is a URL.

    .venv/bin/hypercorn examples.fastapi_app:app --worker-class trio

    curl -N http://127.0.0.1:8000/events/room/42
    curl --json '{"text": "It works"}' http://127.0.0.1:8000/topics/room/42

FastAPI serialises what a path operation returns, and a stream is not to be serialised: it is mounted, as the
ASGI application that it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from trio_sse import EventStream, Hub, TrioSSEError, open_hub
from trio_sse.server import guard_hypercorn

from .run import end_streams_on_shutdown

guard_hypercorn(write_timeout_s=20, drain_s=2)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Hub]]:
    """Hold a hub open while the application serves."""
    async with open_hub() as hub, trio.open_nursery() as nursery:
        nursery.start_soon(end_streams_on_shutdown, hub)
        yield {"hub": hub}
        nursery.cancel_scope.cancel()


app = FastAPI(lifespan=lifespan)


class Message(BaseModel):
    """What somebody says."""

    text: str


@app.post("/topics/{topic:path}", status_code=201)
async def publish(topic: str, message: Message, request: Request) -> dict[str, str]:
    """Publish to a topic."""
    return {"id": str(await request.state.hub.publish(topic, message.text))}


async def events(scope: Scope, receive: Receive, send: Send) -> None:
    """The topic that the rest of the path names."""
    request = Request(scope)
    topic = scope["path"].removeprefix(f"{scope['root_path']}/")
    last_event_id = request.headers.get("Last-Event-ID", "earliest")
    stream = EventStream(request.state.hub.subscribe(topic, last_event_id=last_event_id))
    await stream(scope, receive, send)


app.mount("/events", events)


@app.exception_handler(TrioSSEError)
async def refuse(_: Request, error: TrioSSEError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, error.status_hint)
