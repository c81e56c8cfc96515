"""What comes over connections that are open already, when the worker is to end.

A client that has sent a request is owed an answer. So connections that wait for a request are held for a moment, and
for as long as others are still busy; what is asked on them, or was asked behind another request, is given to the
application, which says that it is going away. Over HTTP/1 the answer then says ``Connection: close``; HTTP/2 has a
GOAWAY for it, which is sent when the last stream of the connection has ended. Hypercorn may send it before that.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

import h11
import trio
from h2.events import Event, RequestReceived
from hypercorn.events import Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol

from .limits import limits

GRACE_S = 0.5
"""A request may be under way for so long when the worker is asked to end."""

LOOK_S = 0.05
"""So often it is looked whether a connection is busy still."""

LOOK_AGAIN_S = 0.01
"""And so often whether the end of a stream has been sent."""

CLOSE = (b"connection", b"close")

_maybe_recycle = H11Protocol._maybe_recycle
_handle_events = H2Protocol._handle_events


class Row(Protocol):
    """The connections of a worker."""

    open: int
    waiting: int


async def wait_idle(row: Row) -> None:
    """Wait until no connection is busy, but for a moment at least, and while there is any; no longer than the drain."""
    soonest = trio.current_time() + GRACE_S
    while row.open and trio.current_time() < limits.drain_deadline:
        if row.waiting >= row.open and trio.current_time() >= soonest:
            break
        await trio.sleep(LOOK_S)


def maybe_recycle(self: H11Protocol) -> Awaitable[None]:
    """``H11Protocol._maybe_recycle``, after which a request that was sent behind another one is answered too."""
    ending = self.context.terminated.is_set()
    return _recycle_for_the_next(self) if ending and _has_next(self.connection) else _maybe_recycle(self)


def _has_next(connection: object) -> bool:
    return (
        isinstance(connection, h11.Connection)
        and connection.our_state is h11.DONE
        and connection.their_state is h11.DONE
        and bool(connection.trailing_data[0])
    )


async def _recycle_for_the_next(protocol: H11Protocol) -> None:
    await protocol._close_stream()
    protocol.connection.start_next_cycle()
    await protocol.can_read.set()


def closing(response: h11.Response) -> h11.Response:
    """The response, which says that no other follows."""
    headers = [(name, value) for name, value in response.headers if name != CLOSE[0]]
    return h11.Response(status_code=response.status_code, headers=[*headers, CLOSE])


async def say_goaway(protocol: H2Protocol) -> None:
    """Tell an HTTP/2 client that no other request is served, when the ends of all its streams have been sent."""
    while any(buffer.complete for buffer in protocol.stream_buffers.values()):  # noqa: ASYNC110  # theirs has no event
        await trio.sleep(LOOK_AGAIN_S)
    protocol.connection.close_connection()
    await protocol._flush()


async def handle_h2_events(self: H2Protocol, events: list[Event]) -> None:
    """``H2Protocol._handle_events``, which takes requests also when the worker is to end."""
    if not self.context.terminated.is_set():
        await _handle_events(self, events)
        return
    for event in events:
        if isinstance(event, RequestReceived):
            await self._create_stream(event)
            await self.send(Updated(idle=False))
        else:
            await _handle_events(self, [event])
    await self._flush()
