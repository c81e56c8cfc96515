"""Starlette and sse-starlette on uvicorn with uvloop and httptools: a queue for each client.

An event is encoded once and handed on as bytes, which sse-starlette sends as they are. No IDs, history, limits
or auth; one client that does not read holds up the publisher, and with it all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

BUFFER_EVENTS = 256
"""The room of one client's queue: as much as trio_sse gives by default."""

queues: set[asyncio.Queue[bytes]] = set()


async def subscribe(request: Request) -> EventSourceResponse:
    return EventSourceResponse(stream())


async def stream() -> AsyncGenerator[bytes, None]:
    queue: asyncio.Queue[bytes] = asyncio.Queue(BUFFER_EVENTS)
    queues.add(queue)
    try:
        yield b": open\n\n"
        while True:
            waiting = [await queue.get()]
            while not queue.empty():
                waiting.append(queue.get_nowait())
            yield b"".join(waiting)
    finally:
        queues.discard(queue)


async def publish(request: Request) -> PlainTextResponse:
    event = ServerSentEvent((await request.body()).decode(), sep="\n").encode()
    for queue in list(queues):
        await queue.put(event)
    return PlainTextResponse("published\n", 201)


app = Starlette(routes=[Route("/events", subscribe), Route("/publish", publish, methods=["POST"])])
