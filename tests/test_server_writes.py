"""Writes, whoever makes them: they are whole, and what goes wrong with one is its own connection's."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from h2.connection import H2Connection
from hypercorn.events import RawData
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BufferCompleteError, StreamBuffer

from trio_sse.server import Connection, current_connection, guard_hypercorn, writes
from trio_sse.server.limits import limits
from trio_sse.server.patience import (
    LOOKS,
    RATE_BYTES_PER_S,
    RATE_WINDOW_S,
    Allowance,
    SlowReaders,
    bytes_taken,
    wait_for_client,
)
from trio_sse.server.worker import LightEvent
from trio_sse.server.writes import bounded_protocol_send

LARGE = 1_000_000
WRITE_TIMEOUT_S = 5


@pytest.fixture(autouse=True)
def _guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    guard_hypercorn(write_timeout_s=WRITE_TIMEOUT_S, drain_s=1)
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


class Shared:
    """What an HTTP/2 stream's buffer needs of its connection, which has two streams; and the client's end."""

    def __init__(self) -> None:
        self.h2 = H2Connection()
        self.h2.initiate_connection()
        for number in (1, 3):
            self.h2.send_headers(number, [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "x")])
        ours, self.theirs = trio.socket.socketpair()
        self.scope = trio.CancelScope()
        nothing: Any = None
        self.protocol = SimpleNamespace(connection=self.h2, stream_buffers={})
        wrapper: Any = SimpleNamespace(protocol=self.protocol)
        self.connection = Connection(trio.SocketStream(ours), nothing, nothing, self.scope, protocol=wrapper)

    def buffer(self, number: int) -> StreamBuffer:
        """The buffer of one of the two streams."""
        current_connection.set(self.connection)
        buffer = self.protocol.stream_buffers[number] = StreamBuffer(LightEvent)
        return buffer

    def shut(self, number: int) -> None:
        """The window of one stream is used up, that of the connection is not."""
        self.h2.send_data(number, b"x" * 16384)
        self.h2.streams[number].outbound_flow_control_window = 0


@asynccontextmanager
async def shared() -> AsyncIterator[Shared]:
    made = Shared()
    try:
        yield made
    finally:
        made.theirs.close()
        made.connection.stream.socket.close()


async def take(buffer: StreamBuffer, count: int, every_s: float) -> None:
    """A client that opens its window for so many bytes in every so many seconds."""
    while True:
        await trio.sleep(every_s)
        await buffer.pop(count)


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
        nothing: Any = None
        current_connection.set(Connection(nothing, nothing, nothing, writers))
        await served.send(b"lost")
        await trio.lowlevel.checkpoint()
    assert served.scope.cancel_called
    assert not writers.cancel_called
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(served.stream.socket.fileno())


async def test_over_http_2_a_frozen_client_ends_its_own_connection(autojump_clock: trio.testing.MockClock) -> None:
    """Also when it is a task of another that waits for it; and what is written later is refused, not kept."""
    async with shared() as frozen, shared() as writing:
        with frozen.scope, writing.scope:
            buffer = frozen.buffer(1)
            current_connection.set(writing.connection)
            with trio.CancelScope(shield=True):  # a task of the writer's connection is not in the frozen one's scope
                await buffer.push(b"x" * BUFFER_HIGH_WATER)
            assert frozen.scope.cancel_called
            assert not writing.scope.cancel_called
            with pytest.raises(BufferCompleteError):
                await buffer.push(b"more")


@pytest.mark.parametrize(("count", "every_s"), [(1, 1.0), (900, 1.0), (4000, 4.5)])
async def test_over_http_2_a_trickle_ends_after_a_minute(
    autojump_clock: trio.testing.MockClock, count: int, every_s: float
) -> None:
    """A client that opens a stream's window for less than 1 KiB/s is let go: not before the minute, nor long after."""
    async with shared() as slow, trio.open_nursery() as nursery:
        buffer = slow.buffer(1)
        slow.shut(1)
        began = trio.current_time()
        nursery.start_soon(take, buffer, count, every_s)
        with slow.scope, trio.CancelScope(shield=True):
            await buffer.push(b"x" * LARGE)
        assert slow.scope.cancel_called
        assert 0 <= trio.current_time() - began - RATE_WINDOW_S <= WRITE_TIMEOUT_S / LOOKS + 0.1
        nursery.cancel_scope.cancel()


async def test_over_http_2_two_kib_a_second_are_enough(autojump_clock: trio.testing.MockClock) -> None:
    """However long it lasts."""
    async with shared() as slow, trio.open_nursery() as nursery:
        buffer = slow.buffer(1)
        slow.shut(1)
        began = trio.current_time()
        nursery.start_soon(take, buffer, 2048, 1.0)
        with slow.scope:
            await buffer.push(b"x" * LARGE)
        assert not slow.scope.cancel_called
        assert trio.current_time() - began > 400
        nursery.cancel_scope.cancel()


async def test_over_http_2_a_shut_stream_ends_though_another_moves(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the client takes of the connection is no excuse for a window that it has shut."""
    monkeypatch.setattr(writes, "bytes_taken", by_the_clock(LARGE))
    async with shared() as client:
        shut = client.buffer(1)
        client.shut(1)
        with client.scope, trio.CancelScope(shield=True):
            await shut.push(b"x" * LARGE)
        assert client.scope.cancel_called
        assert trio.current_time() <= 2 * WRITE_TIMEOUT_S


async def test_over_http_2_a_stream_whose_turn_has_not_come_stays(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the client takes the connection's bytes, no stream is blamed for waiting."""
    monkeypatch.setattr(writes, "bytes_taken", by_the_clock(2 * RATE_BYTES_PER_S))
    async with shared() as client:
        behind = client.buffer(3)
        with client.scope, trio.move_on_after(10 * RATE_WINDOW_S) as waiting:
            await behind.push(b"x" * LARGE)
        assert waiting.cancelled_caught
        assert not client.scope.cancel_called


def by_the_clock(bytes_per_s: int) -> Callable[[object], int]:
    """A client that takes what is written to its socket at a rate."""
    return lambda _: int(trio.current_time() * bytes_per_s)


# -- how long a client may take little, or nothing -------------------------------------------------------------------


class Taking:
    """A client that takes bytes at a rate, by the clock, in lumps; waiting for it never ends by itself."""

    def __init__(self, bytes_per_s: float, *, lump_s: float = 0, until: float = math.inf) -> None:
        self._rate, self._lump_s, self._until = bytes_per_s, lump_s, until
        self._began = trio.current_time()

    def __call__(self) -> int:
        seconds = min(trio.current_time() - self._began, self._until)
        if self._lump_s:
            seconds -= seconds % self._lump_s
        return int(seconds * self._rate)


async def cut_after(taken: Taking, allowance: Allowance | None = None) -> float:
    """When a client is let go."""
    began = trio.current_time()
    with trio.move_on_after(20 * RATE_WINDOW_S) as scope, pytest.raises(trio.TooSlowError):
        await wait_for_client(trio.sleep_forever, taken, allowance or Allowance())
    return math.inf if scope.cancelled_caught else trio.current_time() - began


async def test_who_takes_nothing_is_let_go_after_the_write_timeout(autojump_clock: trio.testing.MockClock) -> None:
    """Not a moment before it, and little after."""
    assert WRITE_TIMEOUT_S <= await cut_after(Taking(0)) <= WRITE_TIMEOUT_S * (1 + 1 / LOOKS)


async def test_who_stops_is_let_go_a_write_timeout_later(autojump_clock: trio.testing.MockClock) -> None:
    """The time counts from the last byte."""
    stopped = await cut_after(Taking(100_000, until=7))
    assert 7 + WRITE_TIMEOUT_S <= stopped <= 7 + WRITE_TIMEOUT_S * (1 + 2 / LOOKS)


@pytest.mark.parametrize("bytes_per_s", [0.5, 1, 500, 1000])
async def test_who_takes_too_little_is_let_go_after_a_minute(
    autojump_clock: trio.testing.MockClock, bytes_per_s: float
) -> None:
    """Less than 1 KiB/s: the minute is given, and no second one."""
    assert 0 <= await cut_after(Taking(bytes_per_s)) - RATE_WINDOW_S <= WRITE_TIMEOUT_S / LOOKS


@pytest.mark.parametrize("lump_s", [0, 1, 4])
@pytest.mark.parametrize("bytes_per_s", [1100, 2048, 3000, 50_000])
async def test_who_takes_enough_is_not_let_go(
    autojump_clock: trio.testing.MockClock, bytes_per_s: float, lump_s: float
) -> None:
    """More than 1 KiB/s, in a trickle or in lumps, for as long as one likes."""
    assert await cut_after(Taking(bytes_per_s, lump_s=lump_s)) == math.inf


async def test_what_was_taken_before_does_not_count_for_long(autojump_clock: trio.testing.MockClock) -> None:
    """A client that took gigabytes, and now takes a byte a second, has no more than the minute."""
    allowance = Allowance()
    allowance.note(0)
    allowance.note(2**30, 1)
    assert await cut_after(Taking(1), allowance) <= RATE_WINDOW_S + WRITE_TIMEOUT_S / LOOKS


def test_what_is_taken_between_two_waits_counts() -> None:
    """A client whose bytes wait again and again is judged by all that it took meanwhile."""
    allowance = Allowance()
    allowance.note(0)
    for wait in range(100):
        allowance.note(wait * 2000)
        allowance.note(wait * 2000 + 100, 1)
        assert not allowance.is_spent()


async def test_a_stopping_worker_waits_for_nobody(autojump_clock: trio.testing.MockClock) -> None:
    """Nor longer than the drain time for who takes what there is as fast as it can."""
    limits.drain_deadline = trio.current_time() + 1
    assert await cut_after(Taking(LARGE)) == 1


async def tcp_pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = trio.socket.socket()
        await client.connect(listener.getsockname())
        return (await listener.accept())[0], client


async def test_the_bytes_that_a_client_took_are_counted() -> None:
    """On TCP by its kernel's acknowledgements, and on a Unix socket by what it reads."""
    ours, client = await tcp_pair()
    before = bytes_taken(ours)
    await ours.send(b"x" * 10_000)
    with trio.fail_after(10):
        while bytes_taken(ours) - before < 10_000:
            await client.recv(1)  # which says that some were taken
    ours.close()
    client.close()
    assert bytes_taken(ours) == 0

    ours, client = trio.socket.socketpair()
    await ours.send(b"x" * 10_000)
    before = bytes_taken(ours)
    await client.recv(10_000)
    assert bytes_taken(ours) - before >= 10_000
    ours.close()
    client.close()


async def test_the_kernel_does_not_look_at_who_was_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """We do: while nothing waits for it, nothing happens, and when it stops it is let go."""
    monkeypatch.setattr(limits, "write_timeout_s", 0.5)
    let_go = trio.Event()
    ours, client = await tcp_pair()
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    SlowReaders.of_run().add(ours, let_go.set)
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
    await trio.sleep(4 * 0.5)
    assert not let_go.is_set()
    await ours.send(b"x" * 10_000_000)
    with trio.fail_after(30):
        await let_go.wait()
    ours.close()
    client.close()
