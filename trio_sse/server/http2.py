"""The streams of one HTTP/2 connection: what one of them may do to the others, and one connection to all others.

- A target, a method or a WebSocket's field that is not ASCII, and a plain ``CONNECT``, break off the connection, or
  leave a traceback. Here that request is refused.
- So does a body that goes on when its request has been answered. It is thrown away.
- A client may take back each request as soon as it has sent it ("rapid reset"): it never has many streams, but
  thousands of applications begin, and all other clients wait for them. Here its connection is ended.
- Frames can be small, and all that were read at once are done before another task has its turn. Here few are read.
- Priorities (which RFC 9113 § 5.3 has given up) are kept for a thousand streams, and one more breaks off the
  connection. They are not kept at all: all streams of a connection have the same.
- What a client has not taken is held after its end, until Python looks for cycles, which it does seldom. It is given
  back at once.
- What has become of sixty thousand streams is remembered; a thousand will do. Of a client's wishes for the table of our
  header fields all are kept until a response is sent, and a table of any size is made. Two will do, and a small one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import trio
from h2.errors import ErrorCodes
from h2.events import Event, RequestReceived, StreamReset
from h2.exceptions import ProtocolError
from hpack import Encoder
from hypercorn.events import Closed, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState
from hypercorn.protocol.ws_stream import ASGIWebsocketState

from .drain import handle_h2_events
from .heads import PROBLEM, problem

CLOSED_STREAMS = 1000
"""So many closed streams of a connection are remembered; frames that were under way to them are forgiven."""

TABLE_SIZE = 4096
"""So many bytes of header fields are remembered for a client; it may wish for less."""

READ_SIZE = 4096
"""So many bytes are read from a connection at once."""

TAKEN_BACK = 200
TAKEN_BACK_PER_S = 10
"""So many requests a client may take back unanswered, and then so many a second. A page that is left takes back a
hundred at the most."""

DECODED = (b":path", b":method", b"sec-websocket-extensions", b"sec-websocket-protocol")
"""What Hypercorn takes for ASCII."""

UNANSWERED = (ASGIHTTPState.REQUEST, ASGIWebsocketState.HANDSHAKE)

_init = H2Protocol.__init__


class Streams(dict[int, Any]):
    """Hypercorn's streams by their number; one that is over hears nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._taken_back = 0.0
        self._then = trio.current_time()

    def __missing__(self, number: int) -> Over:
        return OVER

    def are_too_many_taken_back(self, events: Sequence[Event]) -> bool:
        """Note which requests a client takes back unanswered; whether there are more of them than it may."""
        begun = {event.stream_id for event in events if isinstance(event, RequestReceived)}
        reset = [event.stream_id for event in events if isinstance(event, StreamReset)]
        taken_back = [each for each in reset if each in begun or getattr(self[each], "state", None) in UNANSWERED]
        if taken_back:
            now = trio.current_time()
            forgiven = (now - self._then) * TAKEN_BACK_PER_S
            self._taken_back, self._then = max(0.0, self._taken_back - forgiven) + len(taken_back), now
        return self._taken_back > TAKEN_BACK


class Over:
    """What is left of a stream whose response has been sent."""

    async def handle(self, event: StreamEvent) -> None:
        """Throw it away."""


OVER = Over()


def init(self: H2Protocol, *args: Any) -> None:
    """``H2Protocol.__init__``, with our streams."""
    _init(self, *args)
    self.streams = Streams()


def forget_streams(protocol: object) -> None:
    """Give back what waited for a client that has gone: otherwise Python does, when it next looks for cycles."""
    if isinstance(protocol, H2Protocol):
        protocol.streams.clear()
        protocol.stream_buffers.clear()


async def handle_events(self: H2Protocol, events: list[Event]) -> None:
    """``H2Protocol._handle_events``, of which malformed requests are none, and which has only so much patience."""
    assert isinstance(self.streams, Streams)
    _keep_table_small(self.connection.encoder)
    if self.streams.are_too_many_taken_back(events):
        self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        await self._flush()
        await self.send(Closed())
    else:
        served = [event for event in events if not _refuses(self, event)]
        await handle_h2_events(self, served)
        if self.idle and any(isinstance(event, RequestReceived) for event in served):
            await self.send(Updated(idle=True))  # answered without an application, and taken for busy


def _keep_table_small(encoder: Encoder) -> None:
    encoder.header_table_size = min(encoder.header_table_size, TABLE_SIZE)
    sizes = encoder.table_size_changes
    if len(sizes) > 2:  # a client is told the smallest and the last (RFC 7541 § 4.2)
        sizes[:] = [min(sizes), sizes[-1]]


def _refuses(protocol: H2Protocol, event: Event) -> bool:
    """Whether it is a request that cannot be served; then its client is told so."""
    if not isinstance(event, RequestReceived):
        return False
    decoded = [(name, value) for name, value in event.headers if name in DECODED]
    if any(name == b":path" for name, _ in decoded) and all(value.isascii() for _, value in decoded):
        return False
    with contextlib.suppress(ProtocolError):  # its client has taken it back already
        _refuse(protocol, event.stream_id, is_head=(b":method", b"HEAD") in event.headers)
        if event.stream_ended is None:
            protocol.connection.reset_stream(event.stream_id, ErrorCodes.NO_ERROR)
    return True


def _refuse(protocol: H2Protocol, number: int, *, is_head: bool) -> None:
    """Answer a request with 400; in words, unless it is answered by a head alone or its client has no room for them."""
    connection, body = protocol.connection, problem(400)
    has_body = not is_head and connection.local_flow_control_window(number) >= len(body)
    answer = [(b":status", b"400"), *protocol.config.response_headers("h2")]
    if has_body or is_head:
        answer += [PROBLEM, (b"content-length", b"%d" % len(body))]
    connection.send_headers(number, answer, end_stream=not has_body)
    if has_body:
        connection.send_data(number, body, end_stream=True)


async def ignore_priority(self: H2Protocol, event: Event) -> None:
    """``H2Protocol._priority_updated``, which does nothing."""
