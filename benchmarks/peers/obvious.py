"""The obvious way: Quart-Trio, a memory channel for each client, an async generator that empties it.

It is what one would write first, and written well: lines are split as the standard splits them, the response
has no time limit, and a client that leaves is forgotten. What it does not have: IDs, history, limits, auth,
heartbeats. One client that does not read holds up the publisher, and with it all others.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

import trio
from quart import Response, request
from quart_trio import QuartTrio

BUFFER_EVENTS = 256
"""The room of one client's channel: as much as trio_sse gives by default."""

app = QuartTrio(__name__)
channels: set[trio.MemorySendChannel[bytes]] = set()


@app.get("/events")
async def subscribe() -> Response:
    response = Response(stream(), content_type="text/event-stream", headers={"Cache-Control": "no-store"})
    response.timeout = None
    return response


async def stream() -> AsyncGenerator[bytes, None]:
    send, receive = trio.open_memory_channel[bytes](BUFFER_EVENTS)
    channels.add(send)
    try:
        yield b": open\n\n"
        async for event in receive:
            yield event
    finally:
        channels.discard(send)
        receive.close()


@app.post("/publish")
async def publish() -> tuple[str, int]:
    text = await request.get_data(as_text=True)
    assert isinstance(text, str)
    event = encode(text)
    for channel in list(channels):
        try:
            await channel.send(event)
        except trio.BrokenResourceError:  # the client left while we sent to the others
            channels.discard(channel)
    return "published\n", 201


def encode(text: str) -> bytes:
    """One event of any text; each of its lines becomes a ``data`` line (WHATWG HTML § 9.2.5)."""
    return ("".join(f"data: {line}\n" for line in re.split(r"\r\n|\n|\r", text)) + "\n").encode()
