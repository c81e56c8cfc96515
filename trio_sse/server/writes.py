"""Writing to a client, for as long as it keeps taking what is written: over HTTP/1.1, TLS and HTTP/2."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
from functools import partial

import trio
from h2.exceptions import ProtocolError
from hypercorn.events import Event, RawData
from hypercorn.protocol.h2 import (
    BUFFER_HIGH_WATER,
    BUFFER_LOW_WATER,
    BufferCompleteError,
    H2Protocol,
    StreamBuffer,
)
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import Event as IOEvent

from .connection import Connection, connection_of_this_task
from .idle import socket_of
from .limits import limits
from .patience import Allowance, SlowReaders, bytes_taken, wait_for_client

PIECE = 8 * 1024
"""So many bytes are given to TLS at once: half of what Trio lets the kernel hold unsent, so a socket that can be
written to takes them, and nobody waits inside TLS, where a wait that is cut short spoils the connection."""

YIELD_AFTER = 64
"""So many writes, of all connections, may need no waiting; then one lets the other tasks have their turn."""

RESET = struct.pack("ii", 1, 0)
"""A socket with this ``SO_LINGER`` leaves nothing in the kernel when it is closed."""

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
                    _let_go(self)
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
    sock = socket_of(server.stream)
    allowance = server.__dict__.setdefault("_allowance", Allowance())
    try:
        while view:
            if given := await _give(server.stream, sock, view):
                view = view[given:]
            else:
                SlowReaders.of_run().add(sock, partial(_let_go_unless_waiting, server))
                await wait_for_client(partial(trio.lowlevel.wait_writable, sock), partial(bytes_taken, sock), allowance)
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError):
        return False
    return True


async def _give(stream: trio.abc.Stream, sock: trio.socket.SocketType, view: memoryview) -> int:
    """Give the kernel what it takes now; how much that was.

    Raises:
      OSError, trio.BrokenResourceError, trio.ClosedResourceError: the connection is broken or closed.
      trio.TooSlowError: TLS had to wait, and for too long.
    """
    if isinstance(stream, trio.SocketStream):
        try:
            return os.write(sock.fileno(), view)
        except BlockingIOError:
            return 0
    if not _is_writable(sock):
        return 0
    piece = view[:PIECE]
    with limits.write(limits.next_deadline()) as scope:
        await stream.send_all(piece)
    if scope.cancelled_caught:
        raise trio.TooSlowError
    return len(piece)


def _is_writable(sock: trio.socket.SocketType) -> bool:
    if sock.fileno() < 0:
        raise trio.ClosedResourceError
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLOUT)
    return bool(poll.poll(0))


def _let_go_unless_waiting(server: TCPServer) -> None:
    if not server.send_lock.locked():
        _let_go(server)


def _let_go(server: TCPServer) -> None:
    """End a connection, and all that serves it."""
    _reset(socket_of(server.stream))
    server._task_group._nursery.cancel_scope.cancel()  # type: ignore[union-attr]


def _reset(sock: trio.socket.SocketType) -> None:
    """Close a connection at once: the kernel forgets what it still held for the client, and tells it so."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def init_buffer(self: StreamBuffer, event_class: type[IOEvent]) -> None:
    """``StreamBuffer.__init__``, which keeps whose it is: a task of another connection may write to it."""
    _init_buffer(self, event_class)
    self.connection = connection_of_this_task()  # type: ignore[attr-defined]
    self.popped = 0  # type: ignore[attr-defined]
    self.allowance = Allowance()  # type: ignore[attr-defined]


async def pop(self: StreamBuffer, max_length: int) -> bytes:
    """``StreamBuffer.pop``, which lets a writer go on only when there is room."""
    data = bytes(self.buffer[:max_length])
    self.buffer = self.buffer[max_length:]
    self.popped += len(data)  # type: ignore[attr-defined]
    if len(self.buffer) < BUFFER_LOW_WATER:
        await self._paused.set()
    if not self.buffer:
        await self._is_empty.set()
    return data


async def bounded_push(self: StreamBuffer, data: bytes) -> None:
    """``StreamBuffer.push``, which waits for room, and for what was pushed before.

    Otherwise nobody would wait for a client whose window is shut, as long as there is little for it. And a buffer that
    holds one piece need not copy it: many streams may wait to send the same.
    """
    while self.buffer and not self._complete:
        await bounded_drain(self)
    if self._complete:
        raise BufferCompleteError
    self.buffer = memoryview(data)  # type: ignore[assignment]
    await self._is_empty.clear()
    if len(self.buffer) >= BUFFER_HIGH_WATER:
        await self._paused.clear()
        await _wait_in_time(self, self._paused)


async def bounded_drain(self: StreamBuffer) -> None:
    """``StreamBuffer.drain`` with the deadline."""
    await _wait_in_time(self, self._is_empty)


async def _wait_in_time(buffer: StreamBuffer, event: IOEvent) -> None:
    """Wait as long as the client keeps taking what is in the buffer; one that does not loses its connection."""
    if event.is_set():
        return
    connection: Connection = buffer.connection  # type: ignore[attr-defined]
    try:
        await wait_for_client(event.wait, StreamTaken(buffer), buffer.allowance)  # type: ignore[attr-defined]
    except trio.TooSlowError:
        connection.scope.cancel()
        _reset(socket_of(connection.stream))
        await buffer.close()
        await trio.lowlevel.checkpoint_if_cancelled()


class StreamTaken:
    """Counts what a client takes of what an HTTP/2 stream waits to send.

    That is what leaves the stream's buffer, where the client has shut the stream's own window: it may take plenty of
    its other streams. Where it has not, the stream waits for its turn on the connection, or with it, and counts what
    the client takes of that.
    """

    def __init__(self, buffer: StreamBuffer) -> None:
        self._buffer = buffer
        self._sock = socket_of(buffer.connection.stream)  # type: ignore[attr-defined]
        self._sum = 0
        self._before = self._now()

    def __call__(self) -> int:
        """So much since this was made."""
        now = self._now()
        popped, taken = (max(0, after - before) for after, before in zip(now, self._before, strict=True))
        self._before = now
        if popped or taken:  # a frozen client may have many streams, and is looked at often
            self._sum += popped if is_shut(self._buffer) else taken
        return self._sum

    def _now(self) -> tuple[int, int]:
        return self._buffer.popped, bytes_taken(self._sock)  # type: ignore[attr-defined]


def is_shut(buffer: StreamBuffer) -> bool:
    """Whether a client has shut the window of a stream, and not that of its connection."""
    protocol: H2Protocol = buffer.connection.protocol.protocol  # type: ignore[attr-defined]
    h2 = protocol.connection
    for stream_id, each in protocol.stream_buffers.items():
        if each is buffer:
            with contextlib.suppress(ProtocolError):
                return bool(h2.local_flow_control_window(stream_id) <= 0 < h2.outbound_flow_control_window)
    return False
