"""Connections that wait for a request, and their end."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from hypercorn.trio.task_group import TaskGroup

from trio_sse.server.admission import Capacity
from trio_sse.server.drain import GRACE_S
from trio_sse.server.idle import HANDSHAKE_MOMENT_S, MOMENT_S, IdleRow, IdleTimer, accept

from .conftest import Wire
from .serving import SecureServer, running, serving

KEEP_ALIVE_S = 5.0

ROOMY = Capacity(connections=100, busy=90, streams=80)


_opened: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


class Served:
    """What an idle timer needs of a connection's server, which is its own stream and socket."""

    def __init__(self, row: IdleRow) -> None:
        self.context = SimpleNamespace(idle=row)
        self.config = SimpleNamespace(keep_alive_timeout=KEEP_ALIVE_S)
        self.timer = IdleTimer()
        self.closed_at: float | None = None
        inner = socket.socket()
        _opened.append(inner)
        sock = trio.socket.from_stdlib_socket(inner)
        self._really_close = sock.close
        sock.close = self._close  # type: ignore[method-assign]
        self.stream = trio.SocketStream(sock)
        self.timer.enter(self)  # type: ignore[arg-type]

    def _close(self) -> None:
        self._really_close()
        self.closed_at = trio.current_time()

    async def _idle_timeout(self) -> None:
        raise AssertionError("it only says whose timer it is")

    async def wait(self) -> None:
        await self.timer.restart(TaskGroup(), self._idle_timeout)


async def test_who_waits_too_long_is_ended_at_its_time(autojump_clock: trio.testing.MockClock) -> None:
    """Each connection has its whole keep-alive time, from when it began to wait."""
    row = IdleRow(ROOMY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(row.run)
        served = [Served(row) for _ in range(3)]
        began = trio.current_time()
        for each in served:
            await each.wait()
            await trio.sleep(2)
        await trio.sleep(KEEP_ALIVE_S)
        assert [each.closed_at for each in served] == [began + KEEP_ALIVE_S + wait for wait in (0, 2, 4)]
        nursery.cancel_scope.cancel()


async def test_who_has_a_request_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    """While a request is served no time runs, and afterwards it runs anew."""
    row = IdleRow(ROOMY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(row.run)
        served = Served(row)
        await served.wait()
        await served.timer.stop()
        await trio.sleep(10 * KEEP_ALIVE_S)
        assert served.closed_at is None
        began = trio.current_time()
        await served.wait()
        await trio.sleep(KEEP_ALIVE_S - 1)
        await served.wait()
        await trio.sleep(2 * KEEP_ALIVE_S)
        assert served.closed_at == began + 2 * KEEP_ALIVE_S - 1
        nursery.cancel_scope.cancel()


async def test_a_workers_row_ends_with_it(autojump_clock: trio.testing.MockClock) -> None:
    """There is one for each worker, which needs nothing but its connections and the event of its end."""
    terminated = trio.Event()
    worker = SimpleNamespace(terminated=terminated)
    row = IdleRow.of(worker)
    assert IdleRow.of(worker) is row
    early = Served(row)
    began = trio.current_time()
    await trio.sleep(KEEP_ALIVE_S + 1)
    assert early.closed_at == began + KEEP_ALIVE_S
    late = Served(row)
    terminated.set()
    await trio.sleep(GRACE_S + 0.1)
    assert late.closed_at == pytest.approx(began + KEEP_ALIVE_S + 1 + GRACE_S, abs=0.1)


async def test_at_the_end_nobody_waits(autojump_clock: trio.testing.MockClock) -> None:
    """Those who wait are ended at once, and so is who begins to wait later."""
    row = IdleRow(ROOMY)
    began = trio.current_time()
    early, late = Served(row), Served(row)
    await early.wait()
    row.end()
    await late.wait()
    assert early.closed_at == late.closed_at == began


async def test_the_rows_task_ends_with_its_worker(autojump_clock: trio.testing.MockClock) -> None:
    """In a process that serves again and again, none is left behind."""
    row = IdleRow(ROOMY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(row.run)
        await trio.testing.wait_all_tasks_blocked()
        row.end()
        await trio.sleep(KEEP_ALIVE_S)
        assert not nursery.child_tasks
        nursery.cancel_scope.cancel()


async def test_the_longest_waiting_makes_room(autojump_clock: trio.testing.MockClock) -> None:
    """Who has a request is not ended for another, however long ago it came."""
    row = IdleRow(Capacity(connections=3, busy=2, streams=1))
    busy, first, second = Served(row), Served(row), Served(row)
    await busy.timer.stop()
    await row.wait_room()
    third = Served(row)
    await row.wait_room()
    fourth = Served(row)
    closed = [each.closed_at is not None for each in (busy, first, second, third, fourth)]
    assert closed == [False, True, True, False, False]
    assert (row.open, row.waiting, row.evicted) == (3, 2, 2)


async def test_who_comes_when_there_is_no_room_has_a_moment(autojump_clock: trio.testing.MockClock) -> None:
    """Others are accepted no faster than those who wait can say what they want; but nobody holds them up for longer."""
    row = IdleRow(Capacity(connections=8, busy=4, streams=2))
    for _ in range(8):
        await row.wait_room()
        Served(row)
    began = trio.current_time()
    assert began == 0
    for _ in range(4):
        await row.wait_room()
        Served(row)
    assert trio.current_time() == began + MOMENT_S
    await trio.sleep(MOMENT_S)
    began = trio.current_time()
    await row.wait_room()
    assert trio.current_time() == began


async def test_who_shakes_hands_has_a_longer_moment(autojump_clock: trio.testing.MockClock) -> None:
    """For it can ask for nothing before bytes went there and back; once it has asked it is like others."""
    row = IdleRow(Capacity(connections=2, busy=1, streams=1))
    far, near = Served(row), Served(row)
    far.timer.moment = HANDSHAKE_MOMENT_S
    await row.wait_room()
    assert (far.closed_at, near.closed_at) == (HANDSHAKE_MOMENT_S, None)
    far = Served(row)
    far.timer.moment = HANDSHAKE_MOMENT_S
    await far.timer.stop()
    assert far.timer.moment == MOMENT_S


async def test_a_request_that_makes_too_many_busy_is_turned_away(autojump_clock: trio.testing.MockClock) -> None:
    """Its connection counts as one that waits, so there is always one that can make room; the next is a new case."""
    row = IdleRow(Capacity(connections=4, busy=2, streams=1))
    one, two, three = Served(row), Served(row), Served(row)
    for each in (one, two, three):
        await each.timer.stop()
    assert [each.timer.is_turned_away for each in (one, two, three)] == [False, False, True]
    assert (row.open, row.waiting, row.turned_away) == (3, 1, 1)
    await one.wait()
    await three.timer.stop()
    assert not three.timer.is_turned_away
    await two.timer.stop()  # a second request over HTTP/2: its connection is busy already
    assert not two.timer.is_turned_away
    for each in (one, two, three):
        each.timer.leave()
    assert (row.open, row.waiting) == (0, 0)


async def test_what_was_no_request_gives_no_more_time(autojump_clock: trio.testing.MockClock) -> None:
    """The preface of HTTP/2 looks like one."""
    row = IdleRow(ROOMY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(row.run)
        served = Served(row)
        began = trio.current_time()
        await trio.sleep(KEEP_ALIVE_S - 1)
        await served.timer.stop()
        served.timer.resume()
        await trio.sleep(KEEP_ALIVE_S)
        assert served.closed_at == began + KEEP_ALIVE_S
        nursery.cancel_scope.cancel()


async def test_who_was_ended_is_counted_no_more(autojump_clock: trio.testing.MockClock) -> None:
    """Also when its tasks, which have not heard of it, say that it waits."""
    row = IdleRow(Capacity(connections=1, busy=1, streams=1))
    one = Served(row)
    await row.wait_room()
    two = Served(row)
    await one.wait()
    one.timer.resume()
    assert (row.open, row.waiting) == (1, 1)
    one.timer.leave()
    two.timer.leave()
    assert (row.open, row.waiting) == (0, 0)


async def test_an_accept_that_fails_for_want_of_descriptors_makes_room(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else has opened more files than are kept for that; the log hears it once, without a traceback."""
    row = IdleRow.of(SimpleNamespace(terminated=trio.Event()))
    one, two = Served(row), Served(row)
    left, right = trio.socket.socketpair()
    full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    answers: list[Any] = [full, full, (left, None), OSError(errno.EINVAL, "broken")]

    async def answer() -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(told := answers.pop(0), OSError):
            raise told
        return told

    listener: Any = SimpleNamespace(socket=SimpleNamespace(accept=answer))
    assert (await accept(listener)).socket is left
    assert one.closed_at is not None
    assert two.closed_at is not None
    assert [record.getMessage() for record in caplog.records] == ["no connection can be accepted: Too many open files"]
    with pytest.raises(OSError, match="broken"):
        await accept(listener)
    left.close()
    right.close()


@pytest.mark.parametrize("free", [0, 1, 10, 50, 230, 1_000, 20_000])
def test_there_is_always_one_that_can_make_room(free: int) -> None:
    """And something to serve with, however few descriptors there are."""
    capacity = Capacity.of_descriptors(free)
    assert 0 < capacity.streams < capacity.busy < capacity.connections
    assert capacity.connections < max(5, free - min(16, free // 2) + 1)


def test_over_tls_an_idle_connection_is_closed_too(tmp_path: Path) -> None:
    """When its keep-alive time is over."""
    env, args = {"TRIO_SSE_JOURNAL": "memory:"}, ("--keep-alive", "3")
    with (
        running(SecureServer(folder=tmp_path, env=env, args=args)) as server,
        socket.create_connection(("127.0.0.1", server.secure_port), timeout=20) as plain,
        server.trusted().wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while piece := client.recv(65536):
            received += piece
        assert received.endswith(b"alive\n")


def test_a_shutdown_ends_idle_connections_at_once(tmp_path: Path) -> None:
    """A browser's spare connections do not hold it up until their keep-alive time is over."""
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_DRAIN_S": "30"}
    with serving(folder=tmp_path, env=env, args=("--keep-alive", "60")) as server:
        with Wire(server) as fresh, Wire(server) as used:
            used.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            used.take(b"alive\n")
            assert server.process is not None
            server.process.terminate()
            assert (fresh.rest(), used.rest()) == (b"", b"")
            assert server.process.wait(10) == 0
