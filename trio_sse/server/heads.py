"""The head of a request: what of it is refused before any application sees it, and in which words.

- A request that says its length twice, by ``Content-Length`` and ``Transfer-Encoding``, is one request to a proxy and
  another to us. It is refused, and its connection closed, as RFC 9112 § 6.1 allows.
- h11 counts a head only while it waits for more of it: one of any size passed in one write, and not in two. Here it is
  counted when it is whole, too.
- ``Upgrade: h2c`` is not taken, so that no request of HTTP/1.1 becomes one of HTTP/2 behind a proxy's back. A client
  that knows beforehand still begins with HTTP/2.
- Every refusal is ``application/problem+json`` (RFC 9457), as the application's are.
"""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from itertools import chain
from typing import Any, NoReturn

import h11
from hypercorn.protocol.events import Body, EndBody, Response, StreamClosed
from hypercorn.protocol.h11 import H2ProtocolAssumedError, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.protocol.ws_stream import WSStream

NO_APPLICATION = (400, 404)
"""What a request is answered with when no application is asked."""

PROBLEM = (b"content-type", b"application/problem+json")

DETAILS = {
    400: "the request cannot be read as HTTP: look at its request line, its header fields and the length of its body",
    403: "there are no WebSockets here: subscribe with EventSource, or a GET of /events",
    404: "there is no such host here: look at the Host header",
    431: "the head of the request is too large: send fewer and shorter header fields",
    501: "this Transfer-Encoding is not served: send the body in chunks, or with Content-Length",
}
"""What a client is told, by status."""

BAD_WEBSOCKET = "the request for a WebSocket is not as it should be, and there are none here: GET /events is a stream"
TWO_LENGTHS = "Content-Length and Transfer-Encoding stand in one request: send one of them"

_init = H11Protocol.__init__


class StrictConnection(h11.Connection):
    """h11's connection, which looks once more at the head of a request."""

    detail: str | None = None
    """Why the last request was refused, where more can be said than its status says."""

    def next_event(self) -> Any:
        before = len(self._receive_buffer)
        event = super().next_event()
        if type(event) is h11.Request:
            if before - len(self._receive_buffer) > self._max_incomplete_event_size:
                self._refuse(431, None)
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and b"content-length" in names:
                self._refuse(400, TWO_LENGTHS)
        return event

    def _refuse(self, status: int, detail: str | None) -> NoReturn:
        self.detail = detail
        raise h11.RemoteProtocolError(detail or DETAILS[status], error_status_hint=status)


def init(self: H11Protocol, *args: Any) -> None:
    """``H11Protocol.__init__``, with our connection."""
    _init(self, *args)
    self.connection = StrictConnection(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)


async def check_protocol(self: H11Protocol, event: h11.Request) -> None:
    """``H11Protocol._check_protocol``, which takes no upgrade.

    Raises:
      H2ProtocolAssumedError: the client began with HTTP/2.
    """
    if event.method == b"PRI" and event.target == b"*" and event.http_version == b"2.0":
        raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])


async def send_error_response(self: H11Protocol, status_code: int) -> None:
    """``H11Protocol._send_error_response``, with a problem."""
    body = problem(status_code, getattr(self.connection, "detail", None))
    headers = chain(_headers(body), [(b"connection", b"close")], self.config.response_headers("h11"))
    await self._send_h11_event(h11.Response(status_code=status_code, headers=list(headers)))
    if getattr(self.connection, "_request_method", None) != b"HEAD":  # of which only the head is answered
        await self._send_h11_event(h11.Data(data=body))
    await self._send_h11_event(h11.EndOfMessage())


async def refuse_http(self: HTTPStream, status_code: int) -> None:
    """``HTTPStream._send_error_response``, after which the connection waits or closes like after any answer."""
    await _refuse(self, status_code, None)
    self.state = ASGIHTTPState.CLOSED
    await _end_refused(self, status_code)


async def refuse_websocket(self: WSStream, status_code: int) -> None:
    """``WSStream._send_error_response``, after which the connection waits or closes like after any answer."""
    await _refuse(self, status_code, BAD_WEBSOCKET if status_code == 400 else None)
    await _end_refused(self, status_code)


async def _refuse(stream: HTTPStream | WSStream, status: int, detail: str | None) -> None:
    body = problem(status, detail)
    headers = [*_headers(body), (b"connection", b"close")]
    await stream.send(Response(stream_id=stream.stream_id, headers=headers, status_code=status))
    if stream.scope.get("method") != "HEAD":
        await stream.send(Body(stream_id=stream.stream_id, data=body))
    await stream.send(EndBody(stream_id=stream.stream_id))
    told: Any = {"status": status, "headers": []}
    await stream.config.log.access(stream.scope, told, time.time() - stream.start_time)


async def _end_refused(stream: HTTPStream | WSStream, status: int) -> None:
    if status in NO_APPLICATION:  # otherwise there is one, whose end is the stream's
        await stream.send(StreamClosed(stream_id=stream.stream_id))


def problem(status: int, detail: str | None = None) -> bytes:
    """The body of a refusal."""
    phrase = HTTPStatus(status).phrase
    told = {"type": "about:blank", "title": phrase, "status": status, "detail": detail or DETAILS.get(status, phrase)}
    return json.dumps(told).encode() + b"\n"


def _headers(body: bytes) -> list[tuple[bytes, bytes]]:
    return [PROBLEM, (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
