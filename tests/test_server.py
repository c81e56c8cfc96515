"""What is mended in Hypercorn, seen from outside: the real server, real sockets, real signals."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import hypercorn.trio.run as run
import pytest
import trio
from hypercorn.config import Config
from hypercorn.utils import wrap_app

from tests.conftest import STALL_S
from tests.serving import Server, free_port, make_certificate, serving
from trio_sse import server as room
from trio_sse.event import Event
from trio_sse.server.worker import BACKLOG, HANDLERS_SHARE
from trio_sse.wire import Decoder

T = TypeVar("T")
APP = "tests.apps:app"
MEMORY = {"TRIO_SSE_JOURNAL": "memory:"}


def eventually(ask: Callable[[], T], holds: Callable[[T], bool], *, within: float = 10) -> T:
    """Ask again and again until the answer holds; the last answer, which the caller may assert on."""
    deadline = time.monotonic() + within
    while not holds(answer := ask()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return answer


def gone(pid: int) -> bool:
    """Whether a process has ended; one that only waits to be reaped has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


_open_sockets: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed_sockets() -> Iterator[None]:
    """No client outlives its test."""
    yield
    while _open_sockets:
        _open_sockets.pop().close()


def connect(server: Server, *, receive_buffer: int | None = None) -> socket.socket:
    """A plain connection, closed with the test."""
    client = socket.socket()
    _open_sockets.append(client)
    client.settimeout(20)
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", server.port))
    return client


class Reader:
    """A client of one stream, over a plain socket."""

    def __init__(self, server: Server, path: str = "/events?topic=lobby", *, read: bool = True) -> None:
        self.socket = connect(server, receive_buffer=None if read else 4096)
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        self.received = b""
        if read:
            self.until(b"\n\n")

    def until(self, mark: bytes) -> bytes:
        """Read until the mark has come."""
        while mark not in self.received:
            data = self.socket.recv(65536)
            assert data, f"the stream ended before {mark!r}: {self.received[-200:]!r}"
            self.received += data
        return self.received

    def rest(self) -> bytes:
        """Read to the end of the connection."""
        while data := self.socket.recv(65536):
            self.received += data
        return self.received

    def events(self) -> list[Event]:
        """The events received so far."""
        _, _, body = self.received.partition(b"\r\n\r\n")
        return list(Decoder().feed(re.sub(rb"\r\n[0-9a-f]+\r\n|^[0-9a-f]+\r\n", b"", body)))


def worker(server: Server) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{server.url}/test/worker", timeout=30).json()
    return answer


def publish(server: Server, data: str, topic: str = "lobby") -> str:
    response = httpx.post(f"{server.url}/topics/{topic}", content=data, timeout=30)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {**MEMORY, "TRIO_SSE_WRITE_TIMEOUT_S": "1"}
    with serving(APP, folder=tmp_path_factory.mktemp("server"), env=env) as running:
        yield running


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    env = {**MEMORY, "TRIO_SSE_WRITE_TIMEOUT_S": "30", "TRIO_SSE_DRAIN_S": "1"}
    with serving(APP, folder=tmp_path, env=env) as running:
        yield running


# -- the guard ----------------------------------------------------------------------------------------------


def test_a_request_of_too_many_fields_is_refused(server: Server) -> None:
    """Each costs memory for as long as its request lasts, far more than the bytes that were sent."""

    def ask(fields: int) -> int:
        return httpx.get(f"{server.url}/healthz", headers={f"x-{number}": "y" for number in range(fields)}).status_code

    assert ask(240) == 200
    assert ask(300) == 431


def test_a_view_sees_its_connection_under_any_framework(tmp_path: Path) -> None:
    """The context variable is set in a plain Quart-Trio application too."""
    with serving("tests.plain_app:app", folder=tmp_path, env=MEMORY, ready_path="/") as running:
        assert httpx.get(f"{running.url}/connection").text == "SocketStream"


def test_the_kernel_looks_for_vanished_peers(tmp_path: Path) -> None:
    """Whether we write to a peer or only listen to it, its silence ends within a bounded time."""
    with serving("tests.plain_app:app", folder=tmp_path, env=MEMORY, ready_path="/") as running:
        options = httpx.get(f"{running.url}/options").json()
        assert options == {"TCP_USER_TIMEOUT": 20_000, "TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 1, "SO_KEEPALIVE": 1}


def test_an_unknown_hypercorn_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The guard stands aside, and says so."""
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "9.9.9")
    assert not room.guard_hypercorn(write_timeout_s=1, drain_s=1)
    assert "Hypercorn 9.9.9 is not one of the versions" in caplog.text


# -- clients that do not read -------------------------------------------------------------------------------


def test_a_stream_that_is_never_read_is_let_go(server: Server) -> None:
    """After the write timeout the client is gone from the hub, and its connection is closed."""
    Reader(server, "/events?topic=flood", read=False)
    eventually(lambda: worker(server)["streams"], lambda streams: streams == 1)
    deadline = time.monotonic() + 30
    while worker(server)["streams"] and time.monotonic() < deadline:
        publish(server, "x" * 500_000, "flood")
    assert worker(server)["streams"] == 0


def test_a_page_that_is_never_read_is_let_go(server: Server) -> None:
    """The write deadline holds for every route: pipelined pages are given up like a stream."""
    baseline = min(worker(server)["descriptors"] for _ in range(10))
    client = connect(server, receive_buffer=4096)
    for _ in range(900):
        client.sendall(b"GET /board.js HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.recv(1)  # it is being answered
    assert eventually(lambda: worker(server)["descriptors"], lambda n: n <= baseline, within=30) <= baseline
    got = b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            got += data
    assert got.count(b"HTTP/1.1 200") < 900


def test_a_slow_reader_that_keeps_reading_is_not_cut(tmp_path: Path) -> None:
    """A large event takes longer than the write timeout to a slow reader, and arrives whole."""
    with serving(APP, folder=tmp_path, env={**MEMORY, "TRIO_SSE_WRITE_TIMEOUT_S": "3"}) as server:
        reader = Reader(server, "/events?topic=slow", read=False)
        reader.until(b"\n\n")
        publish(server, "x" * 600_000, "slow")
        began = time.monotonic()
        while reader.received.count(b"x") < 600_000:
            data = reader.socket.recv(4096)
            assert data
            reader.received += data
            time.sleep(0.03)  # this is what makes the reader slow
        assert time.monotonic() - began > 3 + 1


def test_over_tls_a_reader_gets_its_events_and_who_never_reads_is_let_go(tmp_path: Path) -> None:
    """The deadline holds for encrypted connections too, and harms nobody else's."""
    certificate, plain = make_certificate(tmp_path), free_port()
    args = ("--certfile", str(certificate), "--keyfile", str(certificate), "--insecure-bind", f"127.0.0.1:{plain}")
    server = Server(APP, folder=tmp_path, env={**MEMORY, "TRIO_SSE_WRITE_TIMEOUT_S": "1"}, args=args)
    secure, server.port, server.url = server.port, plain, f"http://127.0.0.1:{plain}"
    server.start()
    try:
        trusted = ssl.create_default_context(cafile=str(certificate))
        clients = []
        for topic in ("flood", "lobby"):
            server.port = secure
            client = trusted.wrap_socket(connect(server, receive_buffer=4096), server_hostname="localhost")
            _open_sockets.append(client)
            client.sendall(f"GET /events?topic={topic} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            clients.append(client)
        server.port = plain
        assert eventually(lambda: worker(server)["streams"], lambda streams: streams == 2) == 2
        deadline = time.monotonic() + 20
        while worker(server)["streams"] == 2 and time.monotonic() < deadline:
            publish(server, "x" * 500_000, "flood")
        assert worker(server)["streams"] == 1
        id, received = publish(server, "hello"), b""
        while id.encode() not in received:
            data = clients[1].recv(65536)
            assert data
            received += data
    finally:
        server.kill()


# -- the end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_shutdown_says_goodbye_and_exits_cleanly(own_server: Server, number: signal.Signals) -> None:
    """Each stream gets a goodbye, a jittered retry and the end of its body; the status is 0, and in time."""
    readers = [Reader(own_server) for _ in range(20)]
    assert own_server.process is not None
    began = time.monotonic()
    own_server.process.send_signal(number)
    retries = set()
    for reader in readers:
        assert reader.rest().endswith(b"\r\n0\r\n\r\n")
        (goodbye,) = reader.events()
        assert (goodbye.type, goodbye.data) == ("trio-sse.goodbye", '{"reason": "shutdown"}')
        retries.add(goodbye.retry)
    assert len(retries) > 5
    assert own_server.process.wait(30) == 0
    assert time.monotonic() - began < 2 * (1 + 1) + STALL_S


def test_a_reader_behind_a_pipelined_request_is_let_go(server: Server) -> None:
    """A client that leaves a stream with another request waiting behind it leaves no task and no descriptor."""
    baseline = worker(server)
    for _ in range(20):
        reader = Reader(server)
        reader.socket.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        reader.socket.close()
    publish(server, "the write that fails")
    publish(server, "the write that is noticed")
    keys = ("tasks", "descriptors")
    after = eventually(lambda: worker(server), lambda now: all(now[key] <= baseline[key] for key in keys), within=30)
    assert all(after[key] <= baseline[key] for key in keys)
    assert after["pid"] == baseline["pid"]


def test_a_foreign_stream_says_goodbye_too(tmp_path: Path) -> None:
    """A stream over a channel, in an application without a hub, ends cleanly on shutdown."""
    with serving("tests.plain_app:app", folder=tmp_path, env=MEMORY, ready_path="/") as running:
        reader = Reader(running, "/forever")
        reader.until(b"data: first")
        assert running.process is not None
        running.process.terminate()
        assert reader.rest().endswith(b"\r\n0\r\n\r\n")
        assert reader.events()[-1].type == "trio-sse.goodbye"
        assert running.process.wait(30) == 0


def test_streams_are_given_the_drain_time_and_a_longer_queue() -> None:
    """The graceful timeout is a share of it, and the kernel keeps more connections than a hundred."""
    config = Config()
    config.bind = [f"127.0.0.1:{free_port()}"]
    sockets = config.create_sockets()
    assert room.guard_hypercorn(write_timeout_s=20, drain_s=7)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()

    application: Any = app

    async def main() -> None:
        async def at_once() -> None:
            pass

        await run.worker_serve(wrap_app(application, 0, "asgi"), config, sockets=sockets, shutdown_trigger=at_once)

    trio.run(main)
    assert config.graceful_timeout == 7 * HANDLERS_SHARE
    assert config.backlog == BACKLOG
    for sock in sockets.insecure_sockets:
        sock.close()


def test_a_worker_whose_parent_was_killed_ends_too(own_server: Server) -> None:
    """Nobody is left that holds the port or the journal."""
    (pid,) = own_server.workers()
    reader = Reader(own_server)
    assert own_server.process is not None
    os.kill(own_server.process.pid, signal.SIGKILL)
    own_server.process.wait()
    assert b"trio-sse.goodbye" in reader.rest()
    assert eventually(lambda: gone(pid), bool, within=30)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", own_server.port))


def test_a_journal_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    """Start-up ends with the line, and nothing serves without a hub."""
    server = Server(folder=tmp_path, env={"TRIO_SSE_JOURNAL": "sqlite:missing/folder/x.db"})
    with pytest.raises(RuntimeError):
        server.start()
    lines = [line for line in server.log().splitlines() if not line.startswith("[")]
    assert lines == ["trio_sse: the journal missing/folder/x.db cannot be used: No such file or directory"]


def test_another_worker_class_is_one_line(tmp_path: Path) -> None:
    """Who forgets ``--worker-class trio`` is told, and nothing serves."""
    server = Server(folder=tmp_path, env=MEMORY)
    index = server.command.index("--worker-class")
    del server.command[index : index + 2]
    with pytest.raises(RuntimeError):
        server.start()
    lines = [line for line in server.log().splitlines() if not line.startswith("[")]
    assert lines == ["trio_sse: it runs on Trio: hypercorn trio_sse.app:app --worker-class trio"]


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    """Start-up ends with a line that names the variable."""
    server = Server(folder=tmp_path, env={"TRIO_SSE_HEARTBEAT_S": "soon"})
    with pytest.raises(RuntimeError):
        server.start()
    assert server.log().count("\n") == 1
    assert server.log().startswith("trio_sse: TRIO_SSE_HEARTBEAT_S: ")


# -- churn --------------------------------------------------------------------------------------------------


def _many_streams_get_everything(server: Server, *, streams: int, events: int, every_s: float) -> None:
    baseline = worker(server)
    readers = [Reader(server, "/events?topic=many") for _ in range(streams)]
    assert worker(server)["streams"] == streams
    ids = []
    for number in range(events):
        ids.append(publish(server, str(number), "many"))
        time.sleep(every_s)
    for reader in readers:
        reader.until(f"id: {ids[-1]}\ndata: {events - 1}\n\n".encode())
        assert [event.id for event in reader.events()] == ids
        reader.socket.close()
    keys = ("tasks", "descriptors", "streams", "subscribers")

    def back(now: dict[str, Any]) -> bool:
        return all(now[key] <= baseline[key] for key in keys)

    after = eventually(lambda: worker(server), back, within=30)
    assert back(after), (baseline, after)


def test_many_streams_get_every_event_and_leave_nothing(own_server: Server) -> None:
    """All in order, none lost, none twice; then tasks, descriptors and counters are as before."""
    _many_streams_get_everything(own_server, streams=300, events=20, every_s=0.1)


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_two_thousand_streams_get_every_event_and_leave_nothing(own_server: Server) -> None:
    """The same at full length: 2,000 streams, 20 events at one a second."""
    _many_streams_get_everything(own_server, streams=2000, events=20, every_s=1)
