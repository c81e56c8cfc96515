"""Connections that wait for a request, and the end of those that wait too long.

Hypercorn gives each connection a task that sleeps through its keep-alive time, and starts it anew with each request;
that was a tenth of what a stream costs to open. Here the waiting connections of a worker stand in a row, the longest
waiting first, and one task ends those whose time is over. When the worker is to end, all in the row end at once.

A connection that begins HTTP/2 in plain text has begun a request for Hypercorn, and if none follows it waits for ever;
here it stands in the row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypercorn.events import Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.task_group import TaskGroup

_initiate = H2Protocol.initiate


class IdleRow:
    """The waiting connections of one worker, and until when they may wait."""

    def __init__(self) -> None:
        self._until: OrderedDict[IdleTimer, float] = OrderedDict()
        self._begun = trio.Event()
        self._over = False

    @classmethod
    def of(cls, worker: Any) -> IdleRow:
        """The row of a worker's context, which begins with its first connection and ends with the worker."""
        row: IdleRow | None = getattr(worker, "idle", None)
        if row is None:
            row = worker.idle = cls()
            trio.lowlevel.spawn_system_task(row.run)
            trio.lowlevel.spawn_system_task(row.end_after, worker.terminated.wait)
        return row

    def add(self, timer: IdleTimer, seconds: float) -> None:
        """Put it last; all are given the same number of seconds."""
        if self._over:
            timer.expire()
            return
        self._until.pop(timer, None)
        self._until[timer] = trio.current_time() + seconds
        self._begun.set()

    def discard(self, timer: IdleTimer) -> None:
        """It waits no more."""
        self._until.pop(timer, None)

    async def run(self) -> None:
        """End those whose time is over, until the worker ends."""
        while not self._over:
            await self._begun.wait()
            while self._until:
                timer, until = next(iter(self._until.items()))
                if until > trio.current_time():
                    await trio.sleep_until(until)
                else:
                    self.discard(timer)
                    timer.expire()
            self._begun = trio.Event()

    async def end_after(self, wait: Callable[[], Awaitable[None]]) -> None:
        """End all when ``wait`` returns."""
        await wait()
        self.end()

    def end(self) -> None:
        """End all of them now, and from now on each that begins to wait."""
        self._over = True
        while self._until:
            timer, _ = self._until.popitem()
            timer.expire()
        self._begun.set()


class IdleTimer:
    """A connection's place in the row. It stands in for Hypercorn's ``TrioSingleTask``."""

    __slots__ = ("_server",)

    def __init__(self) -> None:
        self._server: Any = None

    async def restart(self, task_group: TaskGroup, action: Callable[[], Awaitable[None]]) -> None:
        """The connection begins to wait; ``action`` is its server's, and says no more than whose."""
        self._server = action.__self__  # type: ignore[attr-defined]
        IdleRow.of(self._server.context).add(self, self._server.config.keep_alive_timeout)

    async def stop(self) -> None:
        """The connection waits no more."""
        if self._server is not None:
            IdleRow.of(self._server.context).discard(self)

    def expire(self) -> None:
        """Close the connection; who reads from it is told by Trio, and does the rest."""
        socket_of(self._server.stream).close()


async def initiate(
    self: H2Protocol, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None
) -> None:
    """``H2Protocol.initiate``, after which a connection that has no request waits for one."""
    await _initiate(self, headers, settings)
    if self.idle:
        await self.send(Updated(idle=True))


def socket_of(stream: object) -> trio.socket.SocketType:
    """The socket of a connection, with TLS or without."""
    transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    assert isinstance(transport, trio.SocketStream)
    return transport.socket
