"""One request's way through Quart on Trio, mended in a few places.

- quart-trio cancels the task that is still inside the server's last ``send`` when the ``http.disconnect`` comes
  that this very ``send`` causes: the connection is then neither closed nor given its keep-alive time. Here
  a disconnect after our own last message cancels nothing.
- Quart's request body takes whatever arrives, without back-pressure. A body that is itself a stream of events is
  not read into it; the view reads :attr:`Request.incoming`, and the rest waits in TCP.
- A client that is refused while it still sends would lose the answer to a reset of the connection. The answer is
  sent whole, then what still comes is thrown away for a while, then the connection may close.
- An answer that breaks off would stay open for ever over HTTP/2. It is ended here, and the log has the reason.
- When the server is to end, a request whose body is not yet here is answered at once, and one that a view still works
  on when the time is over is answered in its place.
- A target in absolute form, which a client may send, has a path like any other. What the access log is given holds
  no decoded line end, which would forge a line, and no token.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any
from urllib.parse import unquote

import trio
from quart.utils import encode_headers
from quart.wrappers import Request as QuartRequest
from quart.wrappers import Response as QuartResponse
from quart.wrappers.response import DataBody
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import BadHost, RequestTimeout

from .. import seldom, server
from ..errors import HubFailed
from ..stream import StreamBody
from ..wire import CONTENT_TYPE
from . import problem
from .bodies import BoundedBody
from .caller import hide_token

LINGER_S = 10.0
"""How long at most the rest of a refused body is read and thrown away."""

BODY_BYTES_PER_S = 1024
"""A body has its time once more whenever so much for each second of it has come: slow is well, a trickle is not."""

REFUSE_S = 0.1
"""So long a refusal may take when everything else is over."""

QUIET_S = 1.0
"""A client that sends nothing for so long has taken its answer, or never will."""

START = "http.response.start"
BODY = "http.response.body"

Message = dict[str, Any]

log = logging.getLogger(__name__)


class Disconnected(Exception):
    """The client left before its body was whole."""


class Incoming:
    """A request's body as it comes, one ASGI message at a time."""

    def __init__(self, receive: Callable[[], Awaitable[Message]]) -> None:
        self._receive = receive
        self._messages = server.messages_behind(receive)
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

    def read_nowait(self) -> bytes:
        """More of the body, if it is here already; otherwise nothing."""
        while self._messages is not None and not self.over.is_set():
            message = self._messages.receive_nowait()
            if message is None:
                break
            if body := self._note(message):
                return body
        return b""

    async def wait_left(self) -> None:
        """Wait for the client to leave, and throw away what it still sends."""
        while not self.left:
            await self._take()

    async def _take(self) -> bytes:
        return self._note(await self._receive())

    def _note(self, message: Message) -> bytes:
        self.arrived += 1
        if message["type"] == "http.disconnect":
            self.left = True
        else:
            self.complete = not message.get("more_body", False)
        if self.left or self.complete:
            self.over.set()
        return bytes(message.get("body", b""))


class Request(TrioRequest):
    """Quart's request with a body within the budget, and the unbuffered body where there is one."""

    body_class = BoundedBody
    body: BoundedBody
    incoming: Incoming | None = None


class HTTPConnection(TrioASGIHTTPConnection):
    """One request and its response."""

    def __call__(self, receive: Any, send: Any) -> Coroutine[Any, Any, None]:
        self._send = send
        self._incoming: Incoming | None = None  # the body, while there may be more of it
        self._begun = False  # our first message is on its way
        self._ending = False  # our last message is on its way
        scope: Any = self.scope
        _take_origin_form(scope)
        _keep_spelling(scope, getattr(self.app, "exact_paths", frozenset()))
        request = self._create_request_from_scope(self._send_carefully)
        scope["path"] = scope["raw_path"].decode("ascii")
        hide_token(scope)
        assert isinstance(request, Request)
        self._streaming = request.method == "POST" and request.mimetype == CONTENT_TYPE
        if not self._streaming and self._has_whole(request, receive):
            return self._answer(request)
        return self._answer_while_reading(request, receive)

    def _has_whole(self, request: Request, receive: Any) -> bool:
        """Whether all of the request is here, so that no task need wait for more; the server calls when it ends.

        It can where a connection carries one request at a time: to leave is to leave the connection.
        """
        messages, connection = server.messages_behind(receive), server.current_connection.get()
        if messages is None or connection is None or request.http_version not in ("1.0", "1.1"):
            return False
        body = messages.take_body()
        if body is None:
            return False
        request.body.append(body)
        request.body.set_complete()
        self._scope = connection.scope
        messages.when_left = self._leave
        return True

    async def _answer_while_reading(self, request: Request, receive: Any) -> None:
        self._incoming = Incoming(receive)
        answering.add(self)
        try:
            async with trio.open_nursery() as self._nursery:
                self._scope = self._nursery.cancel_scope
                if self._streaming:
                    request.incoming = self._incoming
                else:
                    seconds = math.inf if request.body_timeout is None else request.body_timeout
                    request.body_timeout = None  # Quart's would be for the whole
                    self._nursery.start_soon(self._read, self._incoming, request, seconds)
                answer = self._answer(request)
                del request
                await answer
                self._scope.cancel()
        finally:
            answering.discard(self)

    def give_up(self) -> None:
        """Answer now, in the view's place, if it has not begun to; when all is cancelled HTTP/2 sends nothing more."""
        if not self._begun:
            self._scope.cancel()

    async def _read(self, incoming: Incoming, request: QuartRequest, seconds: float) -> None:
        """Move the body into Quart's request, as long as it goes on coming, then wait for the client to leave."""
        ending = getattr(self.app, "cancelled_on_ending", trio.CancelScope)  # it may serve an application without one
        due = least = seconds * BODY_BYTES_PER_S
        with contextlib.suppress(Disconnected), ending() as scope, trio.move_on_after(seconds) as patience:
            while chunk := await incoming.read():
                request.body.append(chunk)
                due -= len(chunk)
                if due <= 0:
                    due, patience.deadline = least, trio.current_time() + seconds
            request.body.set_complete()
        if patience.cancelled_caught:
            request.body._must_raise = RequestTimeout()
            request.body.set_complete()
        if scope.cancelled_caught:
            request.body._must_raise = HubFailed("the server is going away: send the request again in a moment")
            request.body.set_complete()
        del request
        await incoming.wait_left()
        self._leave()

    def _leave(self) -> None:
        """The client has left, or has our last message."""
        if not self._ending:
            self._scope.cancel()

    async def _answer(self, request: QuartRequest) -> None:
        """Answer; what breaks an answer off, once it has begun, ends it."""
        given = request.body
        assert isinstance(given, BoundedBody)
        try:
            try:
                response = await self.app.handle_request(request)
            except BadHost:  # from before anything that handles errors
                response = problem.respond(400, "the Host header does not name a host")
            finally:
                given.drop()  # what still comes of a body that is refused is not kept either
            del request, given
            if isinstance(response.response, StreamBody):
                body, head = response.response, _head_of(response)
                del response  # a stream may last for days, and needs no more of the request and the response
                body.send = self._send  # how its bytes would leave if nobody stood in between
                async with body as chunks:
                    await self._send_carefully(head)
                    async for chunk in chunks:
                        await self._send({"type": BODY, "body": chunk, "more_body": True})
                await self._send_carefully({"type": BODY, "body": b"", "more_body": False})
                return
            timeout = getattr(response, "timeout", ...)
            if timeout is ...:
                timeout = self.app.config["RESPONSE_TIMEOUT"]
            with trio.move_on_after(math.inf if timeout is None else timeout):
                if self._incoming is None and isinstance(response.response, DataBody):  # both are whole
                    await self._send_carefully(_head_of(response))
                    data = response.response
                    await self._send_carefully({"type": BODY, "body": data.data[data.begin : data.end]})
                else:
                    await self._send_response(self._send_carefully, response)
        except trio.Cancelled:
            if server.is_ending() and not self._begun:
                await self._refuse("the server is going away, and had no time to answer: ask again in a moment")
            raise
        except Exception as error:
            if self._ending or not self._begun:
                raise
            seldom.say(log, "an answer broke off, and is ended", error=error)
            await self._send_carefully({"type": BODY, "body": b"", "more_body": False})

    async def _refuse(self, detail: str) -> None:
        """Send a problem in place of a view's answer, when this task is cancelled already; the client may have left."""
        with trio.move_on_after(REFUSE_S, shield=True), contextlib.suppress(Exception):
            response = problem.answer(self.scope, 503, detail)
            await self._send(_head_of(response))
            await self._send({"type": BODY, "body": await response.get_data(as_text=False), "more_body": False})

    async def _send_carefully(self, message: Any) -> None:
        self._begun = True
        if message["type"] == BODY and not message.get("more_body", False):
            self._ending = True
            if self._incoming is not None:
                if self._streaming:  # whom nobody reads from now on: the server would wait for ever to hand it over
                    self._nursery.start_soon(self._incoming.wait_left)
                await _throw_away(self._incoming)
        await self._send(message)


async def _throw_away(incoming: Incoming) -> None:
    """Let the rest of a body come, as long as there is some."""
    arrived = -1
    with trio.move_on_at(server.throw_away_until(LINGER_S)):
        while arrived != incoming.arrived and not incoming.over.is_set():
            arrived = incoming.arrived
            with trio.move_on_after(QUIET_S):
                await incoming.over.wait()


answering: set[HTTPConnection] = set()
"""The requests that share their connection with others, or whose body still comes."""


def _head_of(response: QuartResponse) -> Message:
    return {"type": START, "status": response.status_code, "headers": encode_headers(response.headers)}


def _take_origin_form(scope: dict[str, Any]) -> None:
    """Reduce the request's target to its path, if it is more than that or less (RFC 9112 § 3.2)."""
    raw = scope["raw_path"]
    if not raw.startswith(b"/"):
        rest = raw.partition(b"://")[2]
        scope["raw_path"] = b"/" + rest.partition(b"/")[2]
        scope["path"] = unquote(scope["raw_path"].decode("ascii"))


def _keep_spelling(scope: dict[str, Any], exact: Collection[str]) -> None:
    """Let a path that is another only when it is decoded lead nowhere.

    The router decodes it and drops slashes at its beginning, so ``//metrics`` and ``/%6detrics`` would pass a proxy's
    rule for ``/metrics`` and be served.
    """
    raw = scope["raw_path"]
    if b"%" in raw or b"//" in raw:
        path = "/" + scope["path"].lstrip("/")
        if "/" + path.removeprefix(scope["root_path"]).lstrip("/") in exact:
            scope["path"] = "/." + raw.decode("ascii")
