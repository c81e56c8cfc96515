"""One request's way through Quart on Trio, mended in a few places.

- quart-trio cancels the task that is still inside the server's last ``send`` when the ``http.disconnect`` comes
  that this very ``send`` causes: the connection is then neither closed nor given its keep-alive time. Here
  a disconnect after our own last message cancels nothing.
- Quart's request body takes whatever arrives, without back-pressure. A body that is itself a stream of events is
  not read into it; the view reads :attr:`Request.incoming`, and the rest waits in TCP.
- A client that is refused while it still sends would lose the answer to a reset of the connection. The answer is
  sent whole, then what still comes is thrown away for a while, then the connection may close.
- An answer that breaks off would stay open for ever over HTTP/2. It is ended here, and the log has the reason.
- A target in absolute form, which a client may send, has a path like any other. What the access log is given holds
  no decoded line end, which would forge a line, and no token.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import trio
from quart.wrappers import Request as QuartRequest
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest

from ..stream import StreamBody
from ..wire import CONTENT_TYPE
from .caller import hide_token

LINGER_S = 10.0
"""How long at most the rest of a refused body is read and thrown away."""

QUIET_S = 1.0
"""A client that sends nothing for so long has taken its answer, or never will."""

Message = dict[str, Any]

log = logging.getLogger(__name__)


class Disconnected(Exception):
    """The client left before its body was whole."""


class Incoming:
    """A request's body as it comes, one ASGI message at a time."""

    def __init__(self, receive: Callable[[], Awaitable[Message]]) -> None:
        self._receive = receive
        self.complete = False
        self.left = False
        """Whether the client has left."""
        self.over = trio.Event()
        """No more of the body will come: it is complete, or the client has left."""
        self.arrived = 0
        """How many messages have come."""

    async def read(self) -> bytes:
        """Wait for more of the body; empty when it is complete.

        If this is cancelled, nothing was read.

        Raises:
          Disconnected: the client left before its body was whole.
        """
        while not self.complete:
            if self.left:
                raise Disconnected
            if body := await self._take():
                return body
        return b""

    async def wait_left(self) -> None:
        """Wait for the client to leave, and throw away what it still sends."""
        while not self.left:
            await self._take()

    async def _take(self) -> bytes:
        message = await self._receive()
        self.arrived += 1
        if message["type"] == "http.disconnect":
            self.left = True
        else:
            self.complete = not message.get("more_body", False)
        if self.left or self.complete:
            self.over.set()
        return bytes(message.get("body", b""))


class Request(TrioRequest):
    """Quart's request, and the unbuffered body where there is one."""

    incoming: Incoming | None = None


class HTTPConnection(TrioASGIHTTPConnection):
    """One request and its response."""

    async def __call__(self, receive: Any, send: Any) -> None:
        self._send = send
        self._incoming = Incoming(receive)
        self._begun = False  # our first message is on its way
        self._ending = False  # our last message is on its way
        send_carefully: Any = self._send_carefully
        scope: Any = self.scope
        _take_origin_form(scope)
        request = self._create_request_from_scope(send_carefully)
        scope["path"] = scope["raw_path"].decode("ascii")
        hide_token(scope)
        assert isinstance(request, Request)
        self._streaming = request.method == "POST" and request.mimetype == CONTENT_TYPE
        async with trio.open_nursery() as self._nursery:
            if self._streaming:
                request.incoming = self._incoming
            else:
                self._nursery.start_soon(self.handle_messages, self._nursery, request, receive)
            await self.handle_request(self._nursery, request, send_carefully)

    async def handle_messages(self, nursery: trio.Nursery, request: QuartRequest, receive: Any) -> None:  # type: ignore[override]
        """Move the body into Quart's request, then wait for the client to leave."""
        with contextlib.suppress(Disconnected):
            while chunk := await self._incoming.read():
                request.body.append(chunk)
            request.body.set_complete()
        await self._incoming.wait_left()
        if not self._ending:
            nursery.cancel_scope.cancel()

    async def handle_request(self, nursery: trio.Nursery, request: QuartRequest, send: Any) -> None:  # type: ignore[override]
        """Answer; what breaks an answer off, once it has begun, ends it."""
        try:
            await super().handle_request(nursery, request, send)
        except Exception:
            if self._ending or not self._begun:
                raise
            log.exception("an answer broke off, and is ended")
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()

    async def _send_response(self, send: Any, response: Any) -> None:
        """Send it; a stream is told how its bytes would leave if nobody stood in between."""
        if isinstance(response.response, StreamBody):
            response.response.send = self._send
        await super()._send_response(send, response)

    async def _send_carefully(self, message: Message) -> None:
        self._begun = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._ending = True
            if self._streaming:  # whom nobody reads from now on: the server would wait for ever to hand it over
                self._nursery.start_soon(self._incoming.wait_left)
            await self._throw_body_away()
        await self._send(message)

    async def _throw_body_away(self) -> None:
        """Let the rest of the body come, as long as there is some."""
        arrived = -1
        with trio.move_on_after(LINGER_S):
            while arrived != self._incoming.arrived and not self._incoming.over.is_set():
                arrived = self._incoming.arrived
                with trio.move_on_after(QUIET_S):
                    await self._incoming.over.wait()


def _take_origin_form(scope: dict[str, Any]) -> None:
    """Reduce the request's target to its path, if it is more than that or less (RFC 9112 § 3.2)."""
    raw = scope["raw_path"]
    if not raw.startswith(b"/"):
        rest = raw.partition(b"://")[2]
        scope["raw_path"] = b"/" + rest.partition(b"/")[2]
        scope["path"] = unquote(scope["raw_path"].decode("ascii"))
