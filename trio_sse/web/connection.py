"""One request's way through Quart on Trio, mended in three places.

- quart-trio cancels the task that is still inside the server's last ``send`` when the ``http.disconnect`` comes
  that this very ``send`` causes: the connection is then neither closed nor given its keep-alive time. Here
  a disconnect after our own last message cancels nothing.
- Quart's request body takes whatever arrives, without back-pressure. A body that is itself a stream of events is
  not read into it; the view reads :attr:`Request.incoming`, and the rest waits in TCP.
- A client that is refused while it still sends would lose the answer to a reset of the connection. The answer is
  sent whole, then what still comes is thrown away for a moment, then the connection may close.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from quart.wrappers import Request as QuartRequest
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest

from ..wire import CONTENT_TYPE

LINGER_S = 1.0
"""How long the rest of a refused body is read and thrown away."""

Message = dict[str, Any]


class Disconnected(Exception):
    """The client left before its body was whole."""


class Incoming:
    """A request's body as it comes, one ASGI message at a time."""

    def __init__(self, receive: Callable[[], Awaitable[Message]]) -> None:
        self._receive = receive
        self.complete = False

    async def read(self) -> bytes:
        """Wait for more of the body; empty when it is complete.

        If this is cancelled, nothing was read.

        Raises:
          Disconnected: the client left before its body was whole.
        """
        while not self.complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            self.complete = not message.get("more_body", False)
            if body := message.get("body", b""):
                return bytes(body)
        return b""


class Request(TrioRequest):
    """Quart's request, and the unbuffered body where there is one."""

    incoming: Incoming | None = None


class HTTPConnection(TrioASGIHTTPConnection):
    """One request and its response."""

    async def __call__(self, receive: Any, send: Any) -> None:
        self._send = send
        self._incoming = Incoming(receive)
        self._ending = False  # our last message is on its way
        self._body_ended = trio.Event()
        send_carefully: Any = self._send_carefully
        request = self._create_request_from_scope(send_carefully)
        assert isinstance(request, Request)
        self._streaming = request.method == "POST" and request.mimetype == CONTENT_TYPE
        async with trio.open_nursery() as nursery:
            if self._streaming:
                request.incoming = self._incoming
            else:
                nursery.start_soon(self.handle_messages, nursery, request, receive)
            await self.handle_request(nursery, request, send_carefully)

    async def handle_messages(self, nursery: trio.Nursery, request: QuartRequest, receive: Any) -> None:  # type: ignore[override]
        """Move the body into Quart's request, then wait for the client to leave."""
        try:
            while chunk := await self._incoming.read():
                request.body.append(chunk)
            request.body.set_complete()
            self._body_ended.set()
            while (await receive())["type"] != "http.disconnect":
                pass
        except Disconnected:
            self._body_ended.set()
        if not self._ending:
            nursery.cancel_scope.cancel()

    async def _send_carefully(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._ending = True
            if not self._incoming.complete:
                await self._send({**message, "more_body": True})
                message = {"type": "http.response.body", "body": b"", "more_body": False}
                with trio.move_on_after(LINGER_S):
                    await self._throw_body_away()
        await self._send(message)

    async def _throw_body_away(self) -> None:
        try:
            if self._streaming:
                while await self._incoming.read():
                    pass
            else:
                await self._body_ended.wait()
        except Disconnected:
            pass
