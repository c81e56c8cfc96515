"""Writing to a client, for as long as it keeps taking what is written: over HTTP/1.1, TLS and HTTP/2."""

from __future__ import annotations

import itertools
import os

import trio
from hypercorn.events import Event, RawData
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BUFFER_LOW_WATER, BufferCompleteError, StreamBuffer
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import Event as IOEvent

from .connection import Connection, connection_of_this_task
from .limits import limits

PIECE = 16 * 1024
"""So many bytes are given to TLS at once, so that progress can be seen."""

YIELD_AFTER = 64
"""So many writes, of all connections, may need no waiting; then one lets the other tasks have their turn."""

RATE_WINDOW_S = 60
RATE_BYTES_PER_S = 1024
"""A client that takes less than this, over a minute in which bytes waited for it, is let go."""

_protocol_send = TCPServer.protocol_send
_init_buffer = StreamBuffer.__init__
_writes = itertools.count(1)


async def bounded_protocol_send(self: TCPServer, event: Event) -> None:
    """``TCPServer.protocol_send`` with a deadline: a client that takes nothing is let go.

    A write that was cut short may have sent a part, so the connection is closed, never used again, and all that
    serves it is cancelled: a reader that is parked behind a pipelined request would not hear of it otherwise.
    Waiting for the lock is shielded too: HTTP/2 has counted on these bytes already, also if their stream is reset.
    So a task hears that it is cancelled when its bytes are written. It may be a task of another connection.
    """
    if not isinstance(event, RawData):
        await _protocol_send(self, event)
        return
    written = _write_at_once(self, event.data)
    if written == len(event.data):
        if next(_writes) % YIELD_AFTER == 0:
            await trio.lowlevel.cancel_shielded_checkpoint()
    else:
        with trio.CancelScope(shield=True):
            async with self.send_lock:
                if not await _send_in_time(self, memoryview(event.data)[written:]):
                    await trio.aclose_forcefully(self.stream)
                    self._task_group._nursery.cancel_scope.cancel()  # type: ignore[union-attr]
    await trio.lowlevel.checkpoint_if_cancelled()


def _write_at_once(server: TCPServer, data: bytes) -> int:
    """Write what the kernel takes now: in the usual case all of it, with nothing to wait for."""
    stream = server.stream
    if not isinstance(stream, trio.SocketStream) or server.send_lock.locked():
        return 0
    try:
        return os.write(stream.socket.fileno(), data)
    except OSError:  # nothing was taken, or nothing ever will be: it is for the write that waits to see
        return 0


async def _send_in_time(server: TCPServer, view: memoryview) -> bool:
    """Write everything, as long as the client keeps taking it; whether that worked."""
    allowance = server.__dict__.setdefault("_allowance", Allowance())
    with trio.CancelScope(shield=True) as scope:
        limits.writing[scope] = None
        try:
            while view and not allowance.is_spent():
                began = trio.current_time()
                scope.deadline = limits.next_deadline()
                sent = await _send_some(server.stream, view)
                allowance.add(sent, trio.current_time() - began)
                view = view[sent:]
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            return False
        finally:
            del limits.writing[scope]
    return not view and not scope.cancelled_caught


async def _send_some(stream: trio.abc.Stream, view: memoryview) -> int:
    if isinstance(stream, trio.SocketStream):
        return await stream.socket.send(view)
    await stream.send_all(view[:PIECE])
    return min(PIECE, len(view))


class Allowance:
    """How much a client took in the time that bytes waited for it."""

    __slots__ = ("_bytes", "_seconds")

    def __init__(self) -> None:
        self._bytes = 0
        self._seconds = 0.0

    def add(self, sent: int, seconds: float) -> None:
        self._bytes += sent
        self._seconds += seconds

    def is_spent(self) -> bool:
        """Whether it took too little; a new window begins with every answer that is no."""
        if self._seconds < RATE_WINDOW_S:
            return False
        if self._bytes < RATE_BYTES_PER_S * self._seconds:
            return True
        self._bytes, self._seconds = 0, 0.0
        return False


def init_buffer(self: StreamBuffer, event_class: type[IOEvent]) -> None:
    """``StreamBuffer.__init__``, which keeps whose it is: a task of another connection may write to it."""
    _init_buffer(self, event_class)
    self.connection = connection_of_this_task()  # type: ignore[attr-defined]


async def pop(self: StreamBuffer, max_length: int) -> bytes:
    """``StreamBuffer.pop``, which lets a writer go on only when there is room."""
    data = bytes(self.buffer[:max_length])
    del self.buffer[:max_length]
    if len(self.buffer) < BUFFER_LOW_WATER:
        await self._paused.set()
    if not self.buffer:
        await self._is_empty.set()
    return data


async def bounded_push(self: StreamBuffer, data: bytes) -> None:
    """``StreamBuffer.push``, which waits for room."""
    if self._complete:
        raise BufferCompleteError
    self.buffer.extend(data)
    await self._is_empty.clear()
    if len(self.buffer) >= BUFFER_HIGH_WATER:
        await self._paused.clear()
        await _wait_in_time(self, self._paused)


async def bounded_drain(self: StreamBuffer) -> None:
    """``StreamBuffer.drain`` with the deadline."""
    await _wait_in_time(self, self._is_empty)


async def _wait_in_time(buffer: StreamBuffer, event: IOEvent) -> None:
    """Wait as long as the client keeps taking what is in the buffer; one that does not loses its connection."""
    connection: Connection = buffer.connection  # type: ignore[attr-defined]
    before = None
    while not event.is_set():
        waiting = len(buffer.buffer)
        if waiting == before:
            connection.scope.cancel()
            await buffer.close()
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        before = waiting
        with trio.CancelScope(deadline=limits.next_deadline()) as scope:
            limits.writing[scope] = None
            try:
                await event.wait()
            finally:
                del limits.writing[scope]
