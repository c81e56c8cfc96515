"""The worker: how it begins, how it hears that it is to end, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import hypercorn.trio
import hypercorn.trio.run
import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio.worker_context import WorkerContext

from .. import background
from .connection import prepare_listener
from .limits import limits

BACKLOG = 4096
"""Connections the kernel keeps for us to accept; as many browsers may come back at once after a restart."""

GC_THRESHOLD = (10_000, 20, 100)
"""Python's own default walks over the objects of every open stream so often that it costs more than the streams."""

SWITCH_S = 0.001
"""Seconds that Trio's thread waits for one that runs Python, such as a journal's, whenever it comes back from the
kernel. Python's own 5 ms, several times for each request, are most of what a request takes beside a busy journal."""

ORPHAN_S = 1.0
"""A worker whose parent is gone has so long to say goodbye."""

HANDLERS_SHARE = 0.9
"""Of the drain time, who has not answered by then answers no more, and is answered for."""

LAST_RESORT_S = 0.4
"""So long after the drain the process ends, whatever still runs in it."""

TOLD_S = 1.0
"""A worker of which a part has failed goes on for so long: who asks is told, and not left waiting for the next."""

SHORTEST_LIFE_S = 3.0
"""And it lives for so long at least, so that a fault which comes back at once does not keep a processor busy."""

SIBLINGS_S = 30.0
"""Of several workers that refuse to start, one speaks, and waits at most so long for the others to have come."""

log = logging.getLogger(__name__)

_worker: trio.lowlevel.RunVar[WorkerContext | None] = trio.lowlevel.RunVar("trio_sse_worker", None)
_config: trio.lowlevel.RunVar[Config | None] = trio.lowlevel.RunVar("trio_sse_config", None)
_began: trio.lowlevel.RunVar[float] = trio.lowlevel.RunVar("trio_sse_began", -math.inf)
_worker_serve = hypercorn.trio.run.worker_serve


class LightEvent:
    """Hypercorn's event, of which each connection has one and few ever wait for it: until then it is a flag."""

    __slots__ = ("_awaited", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._awaited: trio.Event | None = None

    async def clear(self) -> None:
        if self._is_set:  # otherwise whoever waits goes on waiting
            self._is_set = False
            self._awaited = None

    async def wait(self) -> None:
        if self._is_set:
            await trio.lowlevel.checkpoint()
            return
        if self._awaited is None:
            self._awaited = trio.Event()
        await self._awaited.wait()

    async def set(self) -> None:
        self._is_set = True
        if self._awaited is not None:
            self._awaited.set()

    def is_set(self) -> bool:
        return self._is_set


class KnownWorkerContext(WorkerContext):
    """Hypercorn's context of a worker, which can be found; when the worker ends, so do writes that wait."""

    event_class = LightEvent

    def __init__(self, max_requests: int | None) -> None:
        super().__init__(max_requests)
        self.terminated = _Terminated()
        _worker.set(self)


class _Terminated(LightEvent):
    __slots__ = ()

    async def set(self) -> None:
        limits.begin_drain()
        last_resort.arm()
        await super().set()


class LastResort:
    """Ends the process when the drain is over and something, such as a thread that waits for a disk, is not.

    A thread of its own, because what holds up the end may hold up Trio too. It guards only a process that does nothing
    but serve: a worker that has a parent, or ``trio-sse serve``.
    """

    def __init__(self) -> None:
        self.guards = False
        self.status = 0
        """What the process ends with."""
        self._timer: threading.Timer | None = None

    def arm(self) -> None:
        """The drain begins; when it began before, nothing happens."""
        if self.guards and self._timer is None:
            self._timer = threading.Timer(limits.drain_s + LAST_RESORT_S, self._end)
            self._timer.daemon = True
            self._timer.start()

    def disarm(self) -> None:
        """Everything has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        log.warning("the drain time is over, and something still runs: it is left behind")
        os._exit(self.status)


last_resort = LastResort()


async def prepared_worker_serve(
    app: Any,
    config: Config,
    *,
    sockets: Sockets | None = None,
    shutdown_trigger: Callable[..., Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """``worker_serve`` with time for our goodbyes, and room for everybody to come back."""
    _config.set(config)
    _began.set(trio.current_time())
    background.replace_with(replace_worker)
    limits.drain_deadline = math.inf
    last_resort.guards = last_resort.guards or multiprocessing.parent_process() is not None
    gc.set_threshold(*GC_THRESHOLD)
    gc.freeze()
    sys.setswitchinterval(SWITCH_S)
    config.graceful_timeout = limits.drain_s * HANDLERS_SHARE
    config.backlog = max(config.backlog, BACKLOG)
    config.keep_alive_max_requests = sys.maxsize
    if sockets is None:
        sockets = config.create_sockets()
    for sock in (*sockets.secure_sockets, *sockets.insecure_sockets):
        prepare_listener(sock)
        sock.listen(config.backlog)
    try:
        await _worker_serve(app, config, sockets=sockets, shutdown_trigger=shutdown_trigger, task_status=task_status)
    finally:
        last_resort.disarm()
        limits.drain_deadline = math.inf


def workers() -> int:
    """How many workers the server has been asked to run beside and including this one."""
    config = _config.get()
    return 1 if config is None else config.workers


async def wait_shutdown() -> None:
    """Wait until this worker is asked to end.

    Under a server that we do not know, this says so in the log, and waits for ever.
    """
    worker = _worker.get()
    if worker is None:
        log.warning(
            "this server is not one that trio_sse mends: nothing guards it against its clients, and streams are not "
            "told when it ends"
        )
        await trio.sleep_forever()
    await worker.terminated.wait()


async def end_worker() -> None:
    """Ask this worker to end; Hypercorn's parent then starts a fresh one, unless it was asked to end too."""
    worker = _worker.get()
    if worker is None:
        log.error("the hub has failed, and this server is not one that trio_sse can ask to restart: restart it")
        return
    last_resort.arm()
    await worker.terminate.set()


async def replace_worker() -> None:
    """End this worker, of which a part has failed: soon, and not sooner than a new one may fail again.

    If it is cancelled, the worker is ending already.
    """
    pause = TOLD_S
    if multiprocessing.parent_process() is None:
        last_resort.status = 1
    else:
        pause = max(pause, _began.get() + SHORTEST_LIFE_S - trio.current_time())
    await trio.sleep(pause)
    await end_worker()


async def watch_signals() -> None:
    """Take SIGTERM for a request to end this worker: a supervisor may send it to the whole group of processes.

    A second one ends it at once.
    """
    if multiprocessing.parent_process() is None:
        return
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        await anext(signals)
        await end_worker()
        await anext(signals)
        os._exit(0)  # any other status would end the parent, which has its own orders


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


def has_failed() -> bool:
    """Whether this process has no parent that replaces it, and ends because a part of it has failed."""
    return last_resort.status != 0


def give_up(line: str) -> NoReturn:
    """End this process from inside its start-up, with one line for the operator.

    Hypercorn answers an exception here with sixty lines of traceback, and goes on serving after a ``SystemExit``.
    """
    sys.stderr.write(f"trio_sse: {line}\n")
    sys.stderr.flush()
    os._exit(1)


def refuse_siblings(line: str) -> None:
    """End this process with one line for the operator, and its siblings without one, if the server runs several.

    Call it before there is anything to clean up, and before signals are watched. The first that ends makes the parent
    kill the others, so none ends before all have come: one that came later would speak again.
    """
    if workers() == 1:
        return
    name = f"\0trio_sse {os.getppid()}"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as voice:
        while not _has_bound(voice, name):
            if voice.connect_ex(name) == 0:  # a sibling speaks: this one ends with it
                voice.recv(1)
                os._exit(1)
            time.sleep(0.01)  # it does not listen yet
        sys.stderr.write(f"trio_sse: {line}\n")
        sys.stderr.flush()
        voice.listen(workers())
        voice.settimeout(SIBLINGS_S)
        siblings: list[socket.socket] = []
        while len(siblings) < workers() - 1:
            siblings.append(voice.accept()[0])
    os._exit(1)


def _has_bound(voice: socket.socket, name: str) -> bool:
    """Whether no sibling has the name. Where no name can be had at all, each speaks: that is better than none."""
    try:
        voice.bind(name)
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


async def serve(app: Any, binds: list[str], *, until: Callable[[], Awaitable[None]]) -> None:
    """Serve an application in this process, which does nothing else, until ``until`` returns.

    Raises:
      OSError: an address cannot be had.
    """
    config = Config()
    config.bind = binds
    last_resort.guards = True
    await hypercorn.trio.serve(app, config, shutdown_trigger=until)
