"""Writing to a client's socket from where events are handed out, without waking the client's task.

Facts: the price of fan-out is one system call a client. Waking the client's task for each event, and climbing through
ASGI and h11, costs many times that.

Plan: a stream's headers and first bytes go through Hypercorn, so h11 has its state and has chosen the framing. From
then on nobody but the stream writes on this connection until the response has ended. While its task is
*parked*, having written everything and waiting for more, whoever hands out events may write for it, and does not
wait: what the kernel took is committed, and what it did not take of a chunk is the first thing that the
task, woken for it, writes. If the kernel takes nothing, the records go through the channel and the task takes the
ordinary way, with its deadlines; so this is a short cut and nothing else depends on it.

Traps: a wrapped ``send`` (a middleware's, say) means that somebody wants to see the bytes. A closed socket's number
may belong to another connection by now, so it is the socket that is written to, never a number that was kept.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import trio
from hypercorn.events import RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

from ..broadcast import Batch, ChannelOutlet, Framing, Taken
from ..latest import Latest
from ..topic import Selector
from ..wire import HEARTBEAT
from .connection import Connection, current_connection
from .framing import framing_of, unframed
from .writes import bounded_protocol_send


def find_direct_writer(send: object, wake: Callable[[], None]) -> DirectWriter | None:
    """A writer for the connection of this task, if ``send`` leads to its socket with nobody in between.

    None over TLS and HTTP/2, under a server that is not guarded, and where ``send`` was wrapped. ``wake`` will be
    called when the task has to write a remainder.
    """
    stream = _owner(send, HTTPStream.app_send)
    protocol = _owner(getattr(stream, "send", None), H11Protocol.stream_send)
    server = _owner(getattr(protocol, "send", None), bounded_protocol_send)
    connection = current_connection.get()
    if connection is None or server is None or server.stream is not connection.stream:
        return None
    if type(connection.stream) is not trio.SocketStream:
        return None
    return DirectWriter(connection, protocol, wake)


def _owner(method: Any, function: object) -> Any:
    """Whose method it is, if it is this function as a method."""
    return method.__self__ if getattr(method, "__func__", None) is function else None


class DirectWriter:
    """One stream's way to its socket."""

    __slots__ = ("_connection", "_outlet", "_protocol", "_remainder", "_wake", "send")

    def __init__(self, connection: Connection, protocol: H11Protocol, wake: Callable[[], None]) -> None:
        self.send: Callable[[bytes], int] = _send_of(connection.stream.socket)
        """Gives bytes to the kernel, which may take some of them."""
        self._connection = connection
        self._outlet: DirectOutlet | None = None
        self._protocol = protocol
        self._remainder: memoryview | None = None
        self._wake = wake

    def open_outlet(self, selectors: Sequence[Selector], buffer_events: int, latest: Latest | None) -> DirectOutlet:
        """An outlet whose records are written in this way."""
        self._outlet = DirectOutlet(selectors, buffer_events, latest, self)
        return self._outlet

    def framing(self) -> Framing | None:
        """How the body is framed on this connection; none while it is sending none."""
        return framing_of(self._protocol.connection)

    def beat(self) -> bool:
        """Write a heartbeat for the parked task; false when it is not parked, or the kernel took nothing."""
        return self._outlet is not None and self._outlet.beat()

    def keep(self, remainder: memoryview) -> None:
        """The kernel took the rest of a chunk, but not this: wake the task to write it before anything else."""
        self._remainder = remainder
        self._wake()

    async def flush(self) -> bool:
        """Write the remainder, in the time that a write may take; whether there was one.

        It is written whole, also if this is cancelled meanwhile, or the connection is ended.
        """
        remainder, self._remainder = self._remainder, None
        if remainder is None:
            return False
        await self._protocol.send(RawData(remainder))  # type: ignore[arg-type]
        return True

    def abort(self) -> None:
        """End the connection, so that nobody writes another byte to it."""
        self._connection.scope.cancel()
        self._connection.stream.socket.close()

    def close(self) -> None:
        """The stream has ended. If half a chunk was written nothing may follow, so the connection ends too."""
        if self._remainder is not None:
            self.abort()


def _send_of(sock: trio.socket.SocketType) -> Callable[[bytes], int]:
    """A socket's ``send``, without Trio round it, which would wait: of a closed one it is an error, and no other's."""
    inner = getattr(sock, "_sock", None)
    if isinstance(inner, socket.socket):
        return inner.send
    return lambda data: os.write(sock.fileno(), data)


class DirectOutlet(ChannelOutlet):
    """An outlet that writes to the socket while the subscriber's task is parked, and else is a channel.

    All that a write needs is here and not behind the writer, because with thousands of clients each object
    that is touched is one that the processor has to fetch.
    """

    __slots__ = ("_frame", "_send", "_writer", "parked")

    def __init__(
        self, selectors: Sequence[Selector], buffer_events: int, latest: Latest | None, writer: DirectWriter
    ) -> None:
        super().__init__(selectors, buffer_events, latest)
        self.parked = False
        """Whether the task has written everything and waits, so that others may write."""
        self._frame: Framing = unframed
        self._send = writer.send
        self._writer = writer

    def offer(self, batch: Batch) -> Taken:
        # What is not wholly above the cursor was read from the journal meanwhile: the task compares one by one.
        if self.parked and batch.first > self.cursor:
            chunk = batch.framed[self._frame]
            try:
                written = self._send(chunk)
            except OSError as error:
                written = self._failed(error)
            if written:
                self.cursor = batch.last
                if written != len(chunk):
                    self._keep(chunk, written)
                return "written"
        self.parked = False  # what is in the channel comes first
        return super().offer(batch)

    async def wait(self) -> None:
        """Wait until there may be something to receive; :attr:`cursor` moves with what was written instead."""
        frame = self._writer.framing()
        if frame is not None:
            self._frame, self.parked = frame, True
        try:
            await super().wait()
        finally:
            self.parked = False

    def beat(self) -> bool:
        """Write a heartbeat for the parked task; false when it is not parked, or the kernel took nothing."""
        if not self.parked:
            return False
        chunk = self._frame(HEARTBEAT)
        try:
            written = self._send(chunk)
        except OSError as error:
            written = self._failed(error)
        if 0 < written != len(chunk):
            self._keep(chunk, written)
        return written > 0

    def _failed(self, error: OSError) -> int:
        """How much is as good as written: nothing if the kernel is full, all of it where nobody will read it."""
        if isinstance(error, BlockingIOError):
            return 0
        self.parked = False
        self._writer.abort()  # because nobody else may notice
        return sys.maxsize

    def _keep(self, chunk: bytes, written: int) -> None:
        """A part was taken, which is a promise: the task is woken to write the rest."""
        self.parked = False
        if written < len(chunk):
            self._writer.keep(memoryview(chunk)[written:])
