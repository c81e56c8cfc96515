"""Connections that wait for a request, and the end of those that wait too long.

Hypercorn gives each connection a task that sleeps through its keep-alive time, and starts it anew with each request;
that was a tenth of what a stream costs to open. Here the waiting connections of a worker stand in a row, the longest
waiting first, and one task ends those whose time is over. When the worker is to end, all in the row end at once. When
there is no room for another connection, the first in the row makes it (``admission`` says why).

Who shakes hands, or sends a header a byte at a time, waits like all others; only a whole request ends the wait. A
connection that begins HTTP/2 in plain text has begun a request for Hypercorn, and so has one whose last stream was
reset by its client; if no other follows they wait for ever. Here they stand in the row. And Hypercorn forgets the
connection of a request that it refuses by itself, such as one for a WebSocket that is not quite one; here it is told
that the answer is over.
"""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio
from hypercorn.events import Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer

from .. import background, seldom
from .admission import Capacity
from .drain import say_goaway, wait_idle

log = logging.getLogger(__name__)

_accept = trio.SocketListener.accept
_initiate = H2Protocol.initiate
_close_stream = H2Protocol._close_stream

MOMENT_S = 0.25
"""When there is no room, who comes has about so long to ask for something before it has to go for another."""

HANDSHAKE_MOMENT_S = 1.0
"""And who has begun to shake hands for TLS so long: before it can ask, bytes have to go there and back."""

PAUSE_S = 0.1
"""When ``accept`` fails for want of something, it is tried again after so long."""

WANTING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""What may be there again in a moment."""

AT_ONCE = 16
"""So many connections are ended before other tasks have their turn; after a flood they all end at the same time."""


class IdleRow:
    """The connections of one worker; those that wait stand in a row, and until when they may wait."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.open = 0
        """How many there are, waiting or not."""
        self.waiting = 0
        """How many of them wait."""
        self.evicted = 0
        """How many were ended before their time, because there was no room for another."""
        self.is_draining = False
        """Whether the worker is to end: who has been served need not wait for another request."""
        self.turned_away = 0
        """How many requests were."""
        self._until: OrderedDict[IdleTimer, float] = OrderedDict()  # some have a request by now: they are passed over
        self._begun = trio.Event()
        self._left = trio.Event()
        self._over = False

    @classmethod
    def of(cls, worker: Any) -> IdleRow:
        """The row of a worker's context, which begins with its first connection and ends with the worker."""
        row: IdleRow | None = getattr(worker, "idle", None)
        if row is None:
            row = worker.idle = cls(Capacity.of_process())
            _row.set(row)
            background.spawn(row.run)
            background.spawn(partial(row.end_after, worker.terminated.wait))
        return row

    async def wait_room(self) -> None:
        """Wait until one more connection may begin: at once, but when there are as many as there may be.

        Then the longest waiting has to go, when it had its moment to say what it wants.
        """
        while self.open >= self.capacity.connections:
            self._say_full()
            first = self._first()
            until = trio.current_time() + PAUSE_S if first is None else first.since + first.moment
            if self._left.is_set():
                self._left = trio.Event()
            with trio.move_on_at(until) as scope:
                await self._left.wait()
            if scope.cancelled_caught and first is None:
                break
            if scope.cancelled_caught and self._first() is first and self.open >= self.capacity.connections:
                self.make_room()

    def enter(self, timer: IdleTimer) -> None:
        """Count a connection that begins."""
        self.open += 1
        timer.is_open = True

    def leave(self, timer: IdleTimer) -> None:
        """Its socket is closed."""
        self._until.pop(timer, None)
        self.waiting -= timer.waits
        self.open -= timer.is_open
        timer.waits = timer.is_open = False
        self._left.set()

    def add(self, timer: IdleTimer, seconds: float) -> None:
        """It begins to wait, as the last; all are given the same number of seconds."""
        if not timer.is_open:
            return
        if self._over:
            self.end_one(timer)
            return
        self._until.pop(timer, None)
        timer.since = trio.current_time()
        self._until[timer] = timer.since + seconds
        self._wait_on(timer)
        self._begun.set()

    def serve(self, timer: IdleTimer, seconds: float) -> None:
        """It waits no more, for it has a request. If too many have one, it waits on: for the end of being told so."""
        if not timer.waits:
            return
        timer.moment = MOMENT_S
        timer.is_turned_away = self.open - self.waiting >= self.capacity.busy
        if timer.is_turned_away:
            self.turned_away += 1
            self._say_full()
            self.add(timer, seconds)
        else:
            timer.waits = False
            self.waiting -= 1

    def resume(self, timer: IdleTimer, seconds: float) -> None:
        """What seemed to be a request was none: it waits as if it had never ceased."""
        if timer in self._until and timer.is_open:
            self._wait_on(timer)
        else:
            self.add(timer, seconds)

    async def run(self) -> None:
        """End those whose time is over, until the worker ends."""
        ended = 0
        while not self._over:
            await self._begun.wait()
            while self._until:
                timer, until = next(iter(self._until.items()))
                if not timer.waits:
                    del self._until[timer]
                elif until > trio.current_time():
                    await trio.sleep_until(until)
                else:
                    self.end_one(timer)
                    ended += 1
                    if ended % AT_ONCE == 0:
                        await trio.lowlevel.checkpoint()
            self._begun = trio.Event()

    async def end_after(self, wait: Callable[[], Awaitable[None]]) -> None:
        """End all when ``wait`` has returned, and those that are busy have ended."""
        await wait()
        self.is_draining = True
        await wait_idle(self)
        self.end()

    def end(self) -> None:
        """End all that wait now, and from now on each that begins to wait."""
        self._over = True
        for timer in list(self._until):
            if timer.waits:
                self.end_one(timer)
        self._until.clear()
        self._begun.set()

    def _wait_on(self, timer: IdleTimer) -> None:
        self.waiting += not timer.waits
        timer.waits = True

    def make_room(self) -> bool:
        """End the longest waiting; whether there was one."""
        first = self._first()
        if first is not None:
            self.evicted += 1
            self.end_one(first)
        return first is not None

    def learn(self) -> None:
        """There was no room where there should have been: others have opened files, so there is less of it."""
        if self.make_room():  # which also leaves a descriptor to look with
            self.capacity = Capacity.of_process(self.open)

    def _first(self) -> IdleTimer | None:
        """The longest waiting."""
        while self._until:
            timer = next(iter(self._until))
            if timer.waits:
                return timer
            del self._until[timer]
        return None

    def _say_full(self) -> None:
        seldom.say(
            log,
            "%d connections are as many as there are file descriptors for: those that wait longest for a request are "
            "closed, and requests are refused while %d are served; raise the limit (ulimit -n)",
            self.capacity.connections,
            self.capacity.busy,
        )

    def end_one(self, timer: IdleTimer) -> None:
        """End it now."""
        self.leave(timer)
        timer.expire()


class IdleTimer:
    """A connection's place in the row. It stands in for Hypercorn's ``TrioSingleTask``."""

    __slots__ = ("_server", "is_open", "is_turned_away", "moment", "since", "waits")

    def __init__(self) -> None:
        self.is_open = False
        """Whether it counts as a connection."""
        self.is_turned_away = False
        """Whether the request that it has is to be refused, for too many have one."""
        self.moment = MOMENT_S
        """How long it may wait when there is no room."""
        self.since = 0.0
        """When it began to wait."""
        self.waits = False
        """Whether it stands in the row."""
        self._server: Any = None

    def enter(self, server: TCPServer) -> None:
        """A connection begins, and waits."""
        self._server = server
        IdleRow.of(server.context).enter(self)
        self.wait()

    def wait(self) -> None:
        """The connection begins to wait."""
        IdleRow.of(self._server.context).add(self, self._server.config.keep_alive_timeout)

    def leave(self) -> None:
        """The connection is closed."""
        IdleRow.of(self._server.context).leave(self)

    async def restart(self, task_group: TaskGroup, action: Callable[[], Awaitable[None]]) -> None:
        """The connection begins to wait. What Hypercorn would have done for it is not needed."""
        row = IdleRow.of(self._server.context)
        if row.is_draining:
            row.end_one(self)
        else:
            self.wait()

    async def stop(self) -> None:
        """The connection has a request."""
        IdleRow.of(self._server.context).serve(self, self._server.config.keep_alive_timeout)

    def resume(self) -> None:
        """The connection had no request after all."""
        IdleRow.of(self._server.context).resume(self, self._server.config.keep_alive_timeout)

    def expire(self) -> None:
        """Close the connection; who reads from it is told by Trio, and does the rest."""
        socket_of(self._server.stream).close()


_row: trio.lowlevel.RunVar[IdleRow | None] = trio.lowlevel.RunVar("trio_sse_row", None)


async def accept(self: trio.SocketListener) -> trio.SocketStream:
    """``SocketListener.accept``, which waits for room, and when there should be some and is not, says so seldom.

    When it fails, nobody comes any more, and those who are here are told before they go.
    """
    while True:
        try:
            row = _row.get()
            stream = await _accept(self)
            if row is not None:
                await _wait_room(row, stream)
            return stream
        except trio.ClosedResourceError:
            raise
        except Exception as error:
            if not isinstance(error, OSError) or error.errno not in WANTING:
                if not await background.give_way(error):
                    raise
                await trio.sleep_forever()
            seldom.say(log, "no connection can be accepted: %s", error.strerror)
            if row is not None:
                row.learn()
            await trio.sleep(PAUSE_S)


async def _wait_room(row: IdleRow, stream: trio.SocketStream) -> None:
    """Wait with the connection in hand: had it waited for one to come, nobody would have a moment when one does."""
    try:
        await row.wait_room()
    except BaseException:
        stream.socket.close()
        raise


def is_crowded(worker: object) -> bool:
    """Whether connections run out, so that none should be kept for a request that may never come."""
    row: IdleRow | None = getattr(worker, "idle", None)
    return row is not None and row.open > row.capacity.busy


async def initiate(
    self: H2Protocol, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None
) -> None:
    """``H2Protocol.initiate``; a connection that has no request yet goes on waiting for one."""
    await _initiate(self, headers, settings)
    if self.idle:
        self.send.__self__.idle_task.resume()  # type: ignore[attr-defined]


async def close_stream(self: H2Protocol, stream_id: int) -> None:
    """``H2Protocol._close_stream``; a connection whose last stream is over, also by a reset, begins to wait.

    When the worker is to end it does not, and its client is told.
    """
    await _close_stream(self, stream_id)
    if self.idle and not self.closed:
        if self.context.terminated.is_set():
            await say_goaway(self)
        await self.send(Updated(idle=True))


def socket_of(stream: object) -> trio.socket.SocketType:
    """The socket of a connection, with TLS or without."""
    transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    assert isinstance(transport, trio.SocketStream)
    return transport.socket
