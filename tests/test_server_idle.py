"""Connections that wait for a request, and their end."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from types import SimpleNamespace

import trio
import trio.testing
from hypercorn.trio.task_group import TaskGroup

from trio_sse.server.idle import IdleRow, IdleTimer

from .conftest import Wire
from .serving import Server, free_port, make_certificate, serving

KEEP_ALIVE_S = 5.0


class Served:
    """What an idle timer needs of a connection's server, which is its own stream and socket."""

    def __init__(self, row: IdleRow) -> None:
        self.context = SimpleNamespace(idle=row)
        self.config = SimpleNamespace(keep_alive_timeout=KEEP_ALIVE_S)
        self.timer = IdleTimer()
        self.closed_at: float | None = None
        sock = trio.socket.socket()
        self._really_close = sock.close
        sock.close = self._close  # type: ignore[method-assign]
        self.stream = trio.SocketStream(sock)

    def _close(self) -> None:
        self._really_close()
        self.closed_at = trio.current_time()

    async def _idle_timeout(self) -> None:
        raise AssertionError("it only says whose timer it is")

    async def wait(self) -> None:
        await self.timer.restart(TaskGroup(), self._idle_timeout)


async def test_who_waits_too_long_is_ended_at_its_time(autojump_clock: trio.testing.MockClock) -> None:
    """Each connection has its whole keep-alive time, from when it began to wait."""
    row = IdleRow()
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
    row = IdleRow()
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
    early, late = Served(row), Served(row)
    await early.wait()
    began = trio.current_time()
    await trio.sleep(KEEP_ALIVE_S + 1)
    assert early.closed_at == began + KEEP_ALIVE_S
    await late.wait()
    terminated.set()
    await trio.testing.wait_all_tasks_blocked()
    assert late.closed_at == began + KEEP_ALIVE_S + 1


async def test_at_the_end_nobody_waits(autojump_clock: trio.testing.MockClock) -> None:
    """Those who wait are ended at once, and so is who begins to wait later."""
    row = IdleRow()
    began = trio.current_time()
    early, late = Served(row), Served(row)
    await early.wait()
    row.end()
    await late.wait()
    assert early.closed_at == late.closed_at == began


async def test_the_rows_task_ends_with_its_worker(autojump_clock: trio.testing.MockClock) -> None:
    """In a process that serves again and again, none is left behind."""
    row = IdleRow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(row.run)
        await trio.testing.wait_all_tasks_blocked()
        row.end()
        await trio.sleep(KEEP_ALIVE_S)
        assert not nursery.child_tasks
        nursery.cancel_scope.cancel()


def test_over_tls_an_idle_connection_is_closed_too(tmp_path: Path) -> None:
    """When its keep-alive time is over."""
    certificate, secure = make_certificate(tmp_path), free_port()
    args = ("--certfile", str(certificate), "--keyfile", str(certificate), "--keep-alive", "1")
    binds = ("--bind", f"127.0.0.1:{secure}", "--insecure-bind")
    server = Server(folder=tmp_path, env={"TRIO_SSE_JOURNAL": "memory:"}, args=args)
    place = server.command.index("--bind")
    server.command[place : place + 1] = binds
    server.start()
    try:
        trusted = ssl.create_default_context(cafile=str(certificate))
        with (
            socket.create_connection(("127.0.0.1", secure), timeout=20) as plain,
            trusted.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while piece := client.recv(65536):
                received += piece
            assert received.endswith(b"alive\n")
    finally:
        server.kill()


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
