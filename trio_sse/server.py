"""The one room that knows Hypercorn's insides.

What is mended here, and why (each was seen with Hypercorn 0.18.0):

- An exception in one connection's task ends the worker and every stream in it. The guard round
  ``TCPServer.run`` lets one connection's exception end that connection and nothing else.
- A write to a client that never reads is shielded from cancellation and has no deadline: the client holds its
  memory for ever, and so does a shutdown. Our ``protocol_send`` keeps the lock and the shield and adds the
  deadline.
- A client that has closed an idle connection keeps its task and descriptor until the keep-alive time is over. Here
  they go with the client.
- The application is not told that the server is going away. :func:`wait_shutdown` tells it.
- Streams are cut at ``graceful_timeout``, which must be later than our goodbyes; ``backlog`` is too small for a
  thousand browsers that come back at once.
- A worker whose parent was killed goes on, and keeps the port and the journal. One that is sent SIGTERM with its
  parent, as systemd does, dies at once and says goodbye to nobody.

Everything is patched by one named act, :func:`guard_hypercorn`, which stands aside and says so when it finds a
version it does not know.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

import hypercorn.trio
import hypercorn.trio.run
import trio
from hypercorn.config import Config, Sockets
from hypercorn.events import Event, RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

KNOWN_VERSIONS = ("0.18.",)
BACKLOG = 4096
"""Connections the kernel keeps for us to accept; as many browsers may come back at once after a restart."""

PIECE = 16 * 1024
"""So many bytes are given to TLS at once, so that progress can be seen."""

RATE_WINDOW_S = 60
RATE_BYTES_PER_S = 1024
"""A client that takes less than this, over a minute in which bytes waited for it, is let go."""

GC_THRESHOLD = (10_000, 20, 100)
"""Python's own default walks over the objects of every open stream so often that it costs more than the streams."""

ORPHAN_S = 1.0
"""A worker whose parent is gone has so long to say goodbye."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Limits:
    """What the patches need to know; one a process."""

    write_timeout_s: float
    drain_s: float
    writing: dict[trio.CancelScope, None] = field(default_factory=dict)
    """The writes that are waiting for a client now."""


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

_worker: trio.lowlevel.RunVar[WorkerContext | None] = trio.lowlevel.RunVar("trio_sse_worker", None)
_config: trio.lowlevel.RunVar[Config | None] = trio.lowlevel.RunVar("trio_sse_config", None)
_limits: _Limits | None = None
_run = TCPServer.run
_read_data = TCPServer._read_data
_protocol_send = TCPServer.protocol_send
_worker_serve = hypercorn.trio.run.worker_serve


def guard_hypercorn(*, write_timeout_s: float, drain_s: float) -> bool:
    """Patch Hypercorn's Trio worker in this process; whether it was one that we know.

    ``write_timeout_s`` is how long the kernel may take no byte for a client; ``drain_s`` is how long goodbyes may
    take on shutdown. Called again, it sets the limits anew.
    """
    global _limits
    version = importlib.metadata.version("hypercorn")
    if not version.startswith(KNOWN_VERSIONS):
        log.warning(
            "Hypercorn %s is not one of the versions trio_sse knows (%s*): it runs unguarded, and a single "
            "malformed request may end every stream",
            version,
            "*, ".join(KNOWN_VERSIONS),
        )
        return False
    _limits = _Limits(write_timeout_s, drain_s)
    patches: list[tuple[Any, str, object]] = [
        (TCPServer, "run", _guarded_run),
        (TCPServer, "_read_data", _read_data_then_stop_idling),
        (TCPServer, "protocol_send", _bounded_protocol_send),
        (hypercorn.trio.run, "WorkerContext", _KnownWorkerContext),
        (hypercorn.trio.run, "worker_serve", _prepared_worker_serve),
        (hypercorn.trio, "worker_serve", _prepared_worker_serve),
    ]
    for owner, name, patch in patches:
        setattr(owner, name, patch)
    return True


def _known_limits() -> _Limits:
    assert _limits is not None, "guard_hypercorn has patched, so it has set the limits"
    return _limits


# -- one connection -----------------------------------------------------------------------------------------


async def _guarded_run(self: TCPServer) -> None:
    """``TCPServer.run``, whose exceptions end this connection alone."""
    _end_when_vanished(self.stream)
    try:
        with trio.CancelScope() as scope:
            current_connection.set(Connection(self.stream, self.context, self.config, scope))
            await _run(self)
    except* Exception as group:
        causes = list(_leaves(group))
        log.warning("one connection ended by %s: %.200r", type(causes[0]).__name__, str(causes[0]))
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self.stream)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _end_when_vanished(stream: trio.abc.Stream) -> None:
    """Let the kernel find out that a peer has vanished: one that acknowledges nothing, and one that we only listen to."""
    transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    assert isinstance(transport, trio.SocketStream)
    seconds = _known_limits().write_timeout_s
    with contextlib.suppress(OSError):  # a Unix socket has no such options
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
        transport.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(seconds)))
        transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(seconds / 4)))


async def _read_data_then_stop_idling(self: TCPServer) -> None:
    """``TCPServer._read_data``, after which nobody waits for the client's next request any more."""
    await _read_data(self)
    await self.idle_task.stop()


async def _bounded_protocol_send(self: TCPServer, event: Event) -> None:
    """``TCPServer.protocol_send`` with a deadline: a client that takes nothing is let go.

    A write that was cut short may have sent a part, so the connection is closed, never used again, and all that
    serves it is cancelled: a reader that is parked behind a pipelined request would not hear of it otherwise.
    """
    if not isinstance(event, RawData):
        await _protocol_send(self, event)
        return
    async with self.send_lock:
        if await _send_in_time(self, event.data):
            return
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self.stream)
    connection = current_connection.get()
    assert connection is not None, "whoever writes is a task of the connection"
    connection.scope.cancel()


async def _send_in_time(server: TCPServer, data: bytes) -> bool:
    """Write everything, as long as the client keeps taking it; whether that worked."""
    limits = _known_limits()
    allowance = server.__dict__.setdefault("_allowance", _Allowance())
    view = memoryview(data)
    if isinstance(server.stream, trio.SocketStream):
        with contextlib.suppress(OSError):  # the usual case, without a deadline because nothing is waited for
            view = view[os.write(server.stream.socket.fileno(), view) :]
        if not view:
            return True
    with trio.CancelScope(shield=True) as scope:
        limits.writing[scope] = None
        try:
            while view and not allowance.is_spent():
                began = trio.current_time()
                scope.deadline = min(_drain_deadline(server.context), began + limits.write_timeout_s)
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


class _Allowance:
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


# -- the worker ---------------------------------------------------------------------------------------------


class _KnownWorkerContext(WorkerContext):
    """Hypercorn's context of a worker, which tells when it is asked to end and when it is ending."""

    drain_deadline = float("inf")

    def __init__(self, max_requests: int | None) -> None:
        super().__init__(max_requests)
        _worker.set(self)


def _drain_deadline(context: WorkerContext) -> float:
    return context.drain_deadline if isinstance(context, _KnownWorkerContext) else float("inf")


async def _prepared_worker_serve(
    app: Any,
    config: Config,
    *,
    sockets: Sockets | None = None,
    shutdown_trigger: Callable[..., Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """``worker_serve`` with time for our goodbyes, and room for everybody to come back."""
    _config.set(config)
    gc.set_threshold(*GC_THRESHOLD)
    gc.freeze()
    config.graceful_timeout = _known_limits().drain_s + 0.5
    config.backlog = max(config.backlog, BACKLOG)
    if sockets is not None:
        for sock in (*sockets.secure_sockets, *sockets.insecure_sockets):
            sock.listen(config.backlog)
    await _worker_serve(app, config, sockets=sockets, shutdown_trigger=shutdown_trigger, task_status=task_status)


def workers() -> int:
    """How many workers the server has been asked to run beside and including this one."""
    config = _config.get()
    return 1 if config is None else config.workers


async def wait_shutdown() -> None:
    """Wait until this worker is asked to end; then writes that wait have the drain time left.

    Under a server that we do not know, this waits for ever.
    """
    worker = _worker.get()
    if worker is None:
        await trio.sleep_forever()
    assert isinstance(worker, _KnownWorkerContext)
    await worker.terminated.wait()
    limits = _known_limits()
    worker.drain_deadline = trio.current_time() + limits.drain_s
    for scope in limits.writing:
        scope.deadline = min(scope.deadline, worker.drain_deadline)


async def end_worker() -> None:
    """Ask this worker to end; Hypercorn's parent then starts a fresh one."""
    worker = _worker.get()
    if worker is None:
        log.error("the hub has failed, and this server is not one that trio_sse can ask to restart: restart it")
        return
    await worker.terminate.set()


async def watch_signals() -> None:
    """Take SIGTERM for a request to end this worker: a supervisor may send it to the whole group of processes."""
    if multiprocessing.parent_process() is None:
        return
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            await end_worker()


async def watch_parent() -> None:
    """End this worker when its parent process is gone: an orphan would keep the port and the journal."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    await trio.lowlevel.wait_readable(parent.sentinel)
    log.error("the parent process is gone: this worker ends too")
    await end_worker()
    with trio.CancelScope(shield=True):
        await trio.sleep(ORPHAN_S)
    os._exit(1)


def give_up(line: str) -> NoReturn:
    """End this process from inside its start-up, with one line for the operator.

    Hypercorn answers an exception here with sixty lines of traceback, and goes on serving after a ``SystemExit``.
    """
    sys.stderr.write(f"trio_sse: {line}\n")
    sys.stderr.flush()
    os._exit(1)


async def serve(app: Any, binds: list[str], *, until: Callable[[], Awaitable[None]]) -> None:
    """Serve an application in this process, without a parent, until ``until`` returns.

    Raises:
      OSError: an address cannot be had.
    """
    config = Config()
    config.bind = binds
    await hypercorn.trio.serve(app, config, shutdown_trigger=until)
