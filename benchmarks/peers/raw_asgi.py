"""Raw ASGI on stock Hypercorn's Trio worker: no framework, a memory channel for each client.

The least that can be done on this server, so it shows what opening a stream costs there. What waits for a
client is sent together. No IDs, history, limits, auth or heartbeats; one client that does not read holds up the
publisher, and with it all others.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import trio

BUFFER_EVENTS = 256
"""The room of one client's channel: as much as trio_sse gives by default."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

channels: set[trio.MemorySendChannel[bytes]] = set()


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["method"] == "POST" and scope["path"] == "/publish":
        await _publish(receive, send)
    elif scope["path"] == "/events":
        await _subscribe(receive, send)
    else:
        await answer(send, 404, b"")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _subscribe(receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b": open\n\n", "more_body": True})
    sender, receiver = trio.open_memory_channel[bytes](BUFFER_EVENTS)
    channels.add(sender)
    try:
        with receiver:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_write, receiver, send)
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()
    finally:
        channels.discard(sender)


async def _write(receiver: trio.MemoryReceiveChannel[bytes], send: Send) -> None:
    async for event in receiver:
        waiting = [event]
        while True:
            try:
                waiting.append(receiver.receive_nowait())
            except trio.WouldBlock:
                break
        await send({"type": "http.response.body", "body": b"".join(waiting), "more_body": True})


async def _publish(receive: Receive, send: Send) -> None:
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    event = encode(body.decode())
    for channel in list(channels):
        try:
            await channel.send(event)
        except trio.BrokenResourceError:  # the client left while we sent to the others
            channels.discard(channel)
    await answer(send, 201, b"published\n")


async def answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def encode(text: str) -> bytes:
    """One event of any text; each of its lines becomes a ``data`` line (WHATWG HTML § 9.2.5)."""
    return ("".join(f"data: {line}\n" for line in re.split(r"\r\n|\n|\r", text)) + "\n").encode()
