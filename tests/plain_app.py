"""A plain Quart-Trio application for whole-system tests: it knows nothing of create_app."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import trio
from quart import Response
from quart_trio import QuartTrio

from trio_sse import Event, EventStream
from trio_sse.server import current_connection, guard_hypercorn

app = QuartTrio(__name__)
guard_hypercorn(write_timeout_s=20, drain_s=1)


@app.get("/")
async def alive() -> str:
    return "alive"


@app.get("/connection")
async def connection() -> Response:
    """Whether the view sees its connection."""
    found = current_connection.get()
    return Response("none" if found is None else type(found.stream).__name__)


@app.get("/options")
async def options() -> dict[str, int]:
    """What the kernel was told of this connection."""
    found = current_connection.get()
    assert found is not None
    assert isinstance(found.stream, trio.SocketStream)
    sock = found.stream.socket
    names = ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL")
    told = {name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names}
    return told | {"SO_KEEPALIVE": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)}


@app.get("/forever")
async def forever() -> Response:
    """A stream of one event, whose source then is silent."""
    send, receive = trio.open_memory_channel[Event](1)
    send.send_nowait(Event("first"))
    app.extensions["kept open"] = send
    return EventStream(receive, heartbeat_s=0.5)


@app.get("/fails")
async def fails() -> Response:
    """A stream whose source breaks after one event."""

    async def source() -> AsyncIterator[Event]:
        yield Event("first")
        raise ZeroDivisionError

    return EventStream(source())
