"""One connection: what it is made of, and the guard round its exceptions."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

from .limits import limits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Connection:
    """The connection that a task serves."""

    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    context: WorkerContext
    config: Config
    scope: trio.CancelScope
    """Cancelling it ends the connection and all that serves it."""


current_connection: ContextVar[Connection | None] = ContextVar("trio_sse_connection", default=None)
"""Trio hands it to every task of the connection, so it is there under any framework."""

_run = TCPServer.run
_read_data = TCPServer._read_data


def connection_of_this_task() -> Connection:
    """The connection, for code that only its tasks run."""
    connection = current_connection.get()
    assert connection is not None, "only tasks of a connection come here"
    return connection


async def guarded_run(self: TCPServer) -> None:
    """``TCPServer.run``, whose exceptions end this connection alone."""
    _end_when_vanished(self.stream)
    try:
        with trio.CancelScope() as scope:
            current_connection.set(Connection(self.stream, self.context, self.config, scope))
            await _run(self)
    except* Exception as group:
        cause = next(leaves(group))
        log.warning("one connection ended by %s: %.200r", type(cause).__name__, str(cause))
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self.stream)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, however deep, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def _end_when_vanished(stream: trio.abc.Stream) -> None:
    """Let the kernel find out that a peer has vanished: one we write to, and one that we only listen to."""
    transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    assert isinstance(transport, trio.SocketStream)
    seconds = limits.write_timeout_s
    with contextlib.suppress(OSError):  # a Unix socket has no such options
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
        transport.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(seconds)))
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(seconds / 4)))


async def read_data_then_stop_idling(self: TCPServer) -> None:
    """``TCPServer._read_data``, after which the client has left, and what serves it has little time to notice."""
    await _read_data(self)
    await self.idle_task.stop()
    connection_of_this_task().scope.deadline = trio.current_time() + limits.write_timeout_s
