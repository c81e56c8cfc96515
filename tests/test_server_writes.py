"""Writes, whoever makes them: they are whole, and what goes wrong with one is its own connection's."""

from __future__ import annotations

import math
import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from hypercorn.events import RawData
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BufferCompleteError, StreamBuffer

from trio_sse.server import Connection, current_connection, guard_hypercorn
from trio_sse.server.limits import limits
from trio_sse.server.worker import LightEvent
from trio_sse.server.writes import bounded_protocol_send

LARGE = 1_000_000


@pytest.fixture(autouse=True)
def _guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    guard_hypercorn(write_timeout_s=5, drain_s=1)
    monkeypatch.setattr(limits, "drain_deadline", math.inf)  # which is another test's, where a server was stopped


class Served:
    """What a write needs of a connection's server; its client is the other end of a pair."""

    def __init__(self) -> None:
        ours, theirs = trio.socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.stream, self.client = trio.SocketStream(ours), trio.SocketStream(theirs)
        self.send_lock = trio.Lock()
        self.scope = trio.CancelScope()
        self._task_group = SimpleNamespace(_nursery=SimpleNamespace(cancel_scope=self.scope))

    async def send(self, data: bytes) -> None:
        await bounded_protocol_send(self, RawData(data))  # type: ignore[arg-type]

    async def close(self) -> None:
        await self.stream.aclose()
        await self.client.aclose()


def connection(scope: trio.CancelScope) -> Connection:
    """A connection of which nothing but its scope is asked for."""
    nothing: Any = None
    return Connection(nothing, nothing, nothing, scope)


async def test_a_task_that_only_writes_hears_that_it_is_cancelled() -> None:
    """Its bytes have been written by then, and it does not go on for ever while its client keeps up."""
    served = Served()
    with trio.CancelScope() as scope:
        scope.cancel()
        await served.send(b"whole")
    assert scope.cancelled_caught
    assert await served.client.receive_some() == b"whole"
    await served.close()


async def test_writes_of_two_tasks_follow_each_other() -> None:
    """What the kernel did not take of one goes out before the first byte of the next."""
    served = Served()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.send, b"a" * LARGE)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(served.send, b"b" * LARGE)
        received = b""
        while len(received) < 2 * LARGE:
            received += await served.client.receive_some()
    assert received == b"a" * LARGE + b"b" * LARGE
    await served.close()


async def test_a_write_that_fails_ends_its_own_connection() -> None:
    """Not that of the task which wrote: a chat's handler writes to all the others' connections."""
    served = Served()
    await served.client.aclose()
    with trio.CancelScope() as writers:
        current_connection.set(connection(writers))
        await served.send(b"lost")
        await trio.lowlevel.checkpoint()
    assert served.scope.cancel_called
    assert not writers.cancel_called
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(served.stream.socket.fileno())


async def test_over_http_2_a_frozen_client_ends_its_own_connection(autojump_clock: trio.testing.MockClock) -> None:
    """Also when it is a task of another that waits for it; and what is written later is refused, not kept."""
    with trio.CancelScope() as frozen, trio.CancelScope() as writers:
        current_connection.set(connection(frozen))
        buffer = StreamBuffer(LightEvent)
        current_connection.set(connection(writers))
        with trio.CancelScope(shield=True):  # a task of the writer's connection is not in the frozen one's scope
            await buffer.push(b"x" * BUFFER_HIGH_WATER)
        assert frozen.cancel_called
        assert not writers.cancel_called
        with pytest.raises(BufferCompleteError):
            await buffer.push(b"more")
