"""What an application says of an answer, and what of it is on the wire by then."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import hypercorn.trio
import pytest
import trio
from hypercorn.config import Config

from trio_sse.server import guard_hypercorn

WITHIN_S = 20.0

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Application:
    """It answers every request with a head, and then does as a test says."""

    def __init__(self) -> None:
        self.then: Callable[[Send], Awaitable[None]]

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await self.then(send)


@pytest.fixture
async def application() -> Application:
    return Application()


@pytest.fixture
async def client(application: Application, nursery: trio.Nursery) -> AsyncIterator[trio.SocketStream]:
    """A connection to a server of the application."""
    guard_hypercorn(write_timeout_s=5, drain_s=1)
    stopped = trio.Event()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = Config()
    config.bind = [f"fd://{sock.detach()}"]
    config.errorlog = None
    serve: Any = partial(hypercorn.trio.serve, application, config, shutdown_trigger=stopped.wait)  # type: ignore[arg-type]
    (bind,) = await nursery.start(serve)
    async with await trio.open_tcp_stream("127.0.0.1", int(bind.rpartition(":")[2])) as stream:
        yield stream
    stopped.set()


async def ask(stream: trio.SocketStream) -> None:
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


async def until(stream: trio.SocketStream, end: bytes) -> bytes:
    """Read up to some bytes."""
    received = b""
    with trio.fail_after(WITHIN_S):
        while end not in received:
            piece = await stream.receive_some()
            assert piece, f"the connection was closed after {received!r}"
            received += piece
    return received


async def test_an_empty_piece_asks_for_the_head(application: Application, client: trio.SocketStream) -> None:
    """An application whose first bytes will take their time can let the client know that it is being served."""
    seen = trio.Event()

    async def then(send: Send) -> None:
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await seen.wait()
        await send({"type": "http.response.body", "body": b"ok"})

    application.then = then
    await ask(client)
    assert (await until(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    seen.set()
    await until(client, b"ok")


async def test_a_head_is_not_lost_with_its_application(application: Application, client: trio.SocketStream) -> None:
    """One that fails, or forgets the body, leaves a client that has seen what there was."""

    async def then(send: Send) -> None:
        raise ZeroDivisionError

    application.then = then
    await ask(client)
    assert (await until(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    with trio.fail_after(WITHIN_S):
        assert await client.receive_some() == b""


async def test_a_head_and_all_of_a_short_body_are_one_write(
    application: Application, client: trio.SocketStream
) -> None:
    """The head waits for what follows it, whose length is stated."""

    async def then(send: Send) -> None:
        await send({"type": "http.response.body", "body": b"ok", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    application.then = then
    await ask(client)
    with trio.fail_after(WITHIN_S):
        assert (await client.receive_some()).endswith(b"\r\n\r\nok")
