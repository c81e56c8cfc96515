"""One connection: what it is made of, its life from accept to close, and the guard round its exceptions."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from socket import (
    IPPROTO_TCP,
    SO_KEEPALIVE,
    SOL_SOCKET,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_USER_TIMEOUT,
    socket,
)

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from .idle import socket_of
from .limits import limits

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Connection:
    """The connection that a task serves."""

    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    context: WorkerContext
    config: Config
    scope: trio.CancelScope
    """Cancelling it ends the connection and all that serves it."""


current_connection: ContextVar[Connection | None] = ContextVar("trio_sse_connection", default=None)
"""Trio hands it to every task of the connection, so it is there under any framework."""

_read_data = TCPServer._read_data


def connection_of_this_task() -> Connection:
    """The connection, for code that only its tasks run."""
    connection = current_connection.get()
    assert connection is not None, "only tasks of a connection come here"
    return connection


async def guarded_run(self: TCPServer) -> None:
    """``TCPServer.run``, whose exceptions end this connection alone.

    It is Hypercorn's own with fewer coroutines, tasks and cancel scopes, because what there is of them here is held
    as long as a stream lasts.
    """
    try:
        if _is_tls(self.stream) and not await _has_shaken_hands(self):
            return
        try:
            protocol = _protocol_for(self)
        except OSError:  # the client has left already
            return
        try:
            async with trio.open_nursery() as nursery:
                self._task_group._nursery = nursery
                self.protocol = protocol
                current_connection.set(Connection(self.stream, self.context, self.config, nursery.cancel_scope))
                await protocol.initiate()
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                await self._read_data()
                # The client has left, and what serves it has little time to notice.
                nursery.cancel_scope.deadline = trio.current_time() + limits.write_timeout_s
        finally:
            await self.idle_task.stop()
            with trio.CancelScope(deadline=limits.next_deadline()):
                await self._close()
    except* Exception as group:
        cause = next(leaves(group))
        log.warning("one connection ended by %s: %.200r", type(cause).__name__, str(cause))


def _is_tls(stream: object) -> bool:
    return isinstance(stream, trio.SSLStream)


async def _has_shaken_hands(server: TCPServer) -> bool:
    try:
        with trio.fail_after(server.config.ssl_handshake_timeout):
            await server.stream.do_handshake()
    except (trio.BrokenResourceError, trio.TooSlowError):
        return False
    return True


def _protocol_for(server: TCPServer) -> ProtocolWrapper:
    """What a connection is served by; its tasks will be of ``server._task_group``.

    Raises:
      OSError: the client has left.
    """
    is_tls = _is_tls(server.stream)
    sock = socket_of(server.stream)
    family = sock.family
    server._task_group = TaskGroup()
    return ProtocolWrapper(
        server.app,
        server.config,
        server.context,
        server._task_group,
        ConnectionState(server.state),
        is_tls,
        parse_socket_addr(family, sock.getpeername()),
        parse_socket_addr(family, sock.getsockname()),
        server.protocol_send,
        server.stream.selected_alpn_protocol() if is_tls else "http/1.1",
    )


async def read_data(self: TCPServer) -> None:
    """``TCPServer._read_data``, which over a plain socket costs three coroutines less while it waits."""
    if not isinstance(self.stream, trio.SocketStream) or self.config.read_timeout is not None:
        await _read_data(self)
        return
    sock = self.stream.socket
    while True:
        try:
            data = os.read(sock.fileno(), MAX_RECV)
        except BlockingIOError:
            data = None
        except OSError:
            break
        if data is not None:
            await self.protocol.handle(RawData(data))
        if data == b"" or sock.fileno() < 0:
            break
        try:
            await trio.lowlevel.wait_readable(sock)
        except trio.ClosedResourceError:
            break
    await self.protocol.handle(Closed())


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, however deep, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def let_kernel_find_vanished(listener: socket) -> None:
    """Let the kernel find out that a peer has vanished: one we write to, and one that we only listen to.

    Linux gives each connection the options of the socket that accepted it, so nothing is to be set for one.
    """
    seconds = limits.write_timeout_s
    with contextlib.suppress(OSError):  # a Unix socket has no such options
        listener.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, int(seconds * 1000))
        listener.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
        listener.setsockopt(IPPROTO_TCP, TCP_KEEPIDLE, max(1, int(seconds)))
        listener.setsockopt(IPPROTO_TCP, TCP_KEEPINTVL, max(1, int(seconds / 4)))
