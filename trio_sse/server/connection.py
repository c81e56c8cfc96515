"""One connection: what it is made of, its life from accept to close, and the guard round its exceptions."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from socket import (
    IPPROTO_TCP,
    SO_KEEPALIVE,
    SO_SNDBUF,
    SOL_SOCKET,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_USER_TIMEOUT,
    socket,
)

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from .. import background
from .framing import framing_of
from .http2 import READ_SIZE, forget_streams
from .idle import HANDSHAKE_MOMENT_S, IdleRow, IdleTimer, socket_of
from .limits import limits

SEND_BUFFER = 128 * 1024
"""So many bytes the kernel keeps for a client, and as much again for its own book-keeping.

Left to itself it would keep up to 4 MiB for one who took events quickly, and then vanished.
"""

ANSWER_S = 1.0
"""Who will send no more, but has sent a whole request, may be there still: it has so long to be answered."""

LOOK_S = 0.01
"""So often it is looked whether the answer is over, or is a stream."""

QUIET_S = 1.0
"""The log is told no more often of connections that were ended."""

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Connection:
    """The connection that a task serves."""

    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    context: WorkerContext
    config: Config
    scope: trio.CancelScope
    """Cancelling it ends the connection and all that serves it."""
    idle: IdleTimer = field(default_factory=IdleTimer)
    """Where it waits for a request; it knows whether the one that it has is turned away."""
    protocol: ProtocolWrapper | None = None
    """What it is served by."""


class Complaints:
    """What the log is told of connections that were ended by an exception: a line a second, however many there are."""

    def __init__(self) -> None:
        self._again_at = 0.0
        self._more = 0

    @classmethod
    def of_run(cls) -> Complaints:
        """Those of this run of Trio."""
        complaints = _complaints.get()
        if complaints is None:
            _complaints.set(complaints := cls())
        return complaints

    def say(self, cause: BaseException) -> None:
        """Say it now, or how many there were when a second is over."""
        now = trio.current_time()
        if now >= self._again_at:
            self._again_at = now + QUIET_S
            log.warning("one connection ended by %s: %.200r", type(cause).__name__, str(cause))
            return
        if not self._more:
            background.spawn(self._say_later)
        self._more += 1

    async def _say_later(self) -> None:
        await trio.sleep_until(self._again_at)
        log.warning("more connections ended by exceptions: %d", self._more)
        self._more = 0
        self._again_at = trio.current_time() + QUIET_S


_complaints: trio.lowlevel.RunVar[Complaints | None] = trio.lowlevel.RunVar("trio_sse_complaints", None)


current_connection: ContextVar[Connection | None] = ContextVar("trio_sse_connection", default=None)
"""Trio hands it to every task of the connection, so it is there under any framework."""

_read_data = TCPServer._read_data


def connection_of_this_task() -> Connection:
    """The connection, for code that only its tasks run."""
    connection = current_connection.get()
    assert connection is not None, "only tasks of a connection come here"
    return connection


def connections() -> IdleRow | None:
    """The connections of this worker, among them this task's own; none under a server that is not guarded."""
    connection = current_connection.get()
    return None if connection is None else IdleRow.of(connection.context)


def is_turned_away() -> bool:
    """Whether the request that this task serves is to be refused, because too many are served already."""
    connection = current_connection.get()
    return connection is not None and connection.idle.is_turned_away


async def guarded_run(self: TCPServer) -> None:
    """``TCPServer.run``, whose exceptions end this connection alone.

    It is Hypercorn's own with fewer coroutines, tasks and cancel scopes, because what there is of them here is held
    as long as a stream lasts.
    """
    idle: IdleTimer = self.idle_task  # type: ignore[assignment]
    idle.enter(self)
    try:
        if _is_tls(self.stream):
            if not await _has_shaken_hands(self):
                return
            idle.wait()
        try:
            protocol = _protocol_for(self)
        except OSError:  # the client has left already
            return
        try:
            async with trio.open_nursery() as nursery:
                self._task_group._nursery = nursery
                self.protocol = protocol
                current_connection.set(
                    Connection(self.stream, self.context, self.config, nursery.cancel_scope, idle, protocol)
                )
                await protocol.initiate()
                await self._read_data()
                # The client has left, and what serves it has little time to notice.
                nursery.cancel_scope.deadline = trio.current_time() + limits.write_timeout_s
        finally:
            forget_streams(protocol.protocol)
            with trio.CancelScope(deadline=limits.next_deadline()):
                await self._close()
    except* Exception as group:
        Complaints.of_run().say(next(leaves(group)))
    finally:
        idle.leave()


def _is_tls(stream: object) -> bool:
    return isinstance(stream, trio.SSLStream)


async def _has_shaken_hands(server: TCPServer) -> bool:
    try:
        with trio.fail_after(server.config.ssl_handshake_timeout):
            await trio.lowlevel.wait_readable(socket_of(server.stream))
            server.idle_task.moment = HANDSHAKE_MOMENT_S  # type: ignore[attr-defined]
            await server.stream.do_handshake()
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
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
    if self.config.read_timeout is not None:
        await _read_data(self)
        return
    if not isinstance(self.stream, trio.SocketStream):
        await _read_tls(self)
        return
    sock = self.stream.socket
    while True:
        try:
            data = os.read(sock.fileno(), _read_size(self))
        except BlockingIOError:
            data = None
        except OSError:
            break
        if data is not None:
            await self.protocol.handle(RawData(data))
        if data == b"" or sock.fileno() < 0:
            await _let_answer(self)
            break
        try:
            await trio.lowlevel.wait_readable(sock)
        except trio.ClosedResourceError:
            break
    await self.protocol.handle(Closed())


async def _read_tls(server: TCPServer) -> None:
    data = None
    while data != b"":
        try:
            data = bytes(await server.stream.receive_some(_read_size(server)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            break
        await server.protocol.handle(RawData(data))
    else:
        await _let_answer(server)
    await server.protocol.handle(Closed())


async def _let_answer(server: TCPServer) -> None:
    """Before a client that sends no more is taken for one that has left, give its last request time for an answer."""
    with trio.move_on_at(min(trio.current_time() + ANSWER_S, limits.last_deadline())):
        while _is_owed_an_answer(server.protocol.protocol):  # noqa: ASYNC110  # theirs has no event
            await trio.sleep(LOOK_S)


def _is_owed_an_answer(protocol: object) -> bool:
    """Whether the client has sent a whole request, and its answer is not over, and is none that may never be."""
    if not isinstance(protocol, H11Protocol) or protocol.stream is None:
        return False
    h1 = protocol.connection
    return h1.their_state is h11.CLOSED and framing_of(h1) is None


def _read_size(server: TCPServer) -> int:
    return READ_SIZE if isinstance(server.protocol.protocol, H2Protocol) else MAX_RECV


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, however deep, or the exception itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def prepare_listener(listener: socket) -> None:
    """Let the kernel find out that a peer has vanished, and hold little for one that takes nothing.

    Linux gives each connection the options of the socket that accepted it, so nothing is to be set for one.
    """
    seconds = limits.write_timeout_s
    listener.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
    with contextlib.suppress(OSError):  # a Unix socket has no such options
        listener.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, int(seconds * 1000))
        listener.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
        # The kernel ends a connection that is silent for TCP_USER_TIMEOUT when a single probe is unanswered by then: so
        # the first comes earlier, and others after it, or one lost packet would end a client that is well.
        listener.setsockopt(IPPROTO_TCP, TCP_KEEPIDLE, max(1, int(seconds * 3 / 4)))
        listener.setsockopt(IPPROTO_TCP, TCP_KEEPINTVL, max(1, int(seconds / 20)))
