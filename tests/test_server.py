"""What is mended in Hypercorn, seen from outside: the real server, real sockets, real signals."""

from __future__ import annotations

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
from h2.connection import H2Connection
from hypercorn.config import Config
from hypercorn.utils import wrap_app

from tests.serving import Server, free_port, make_certificate, serving
from trio_sse import server as room
from trio_sse.event import Event
from trio_sse.server.worker import BACKLOG
from trio_sse.server.writes import Allowance
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
    answer: dict[str, Any] = httpx.get(f"{server.url}/test/worker").json()
    return answer


def publish(server: Server, data: str, topic: str = "lobby") -> str:
    response = httpx.post(f"{server.url}/topics/{topic}", content=data)
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

UPGRADE_TO_NOTHING = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n"
WEBSOCKET_JUNK = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + b"\xff" * 200
)


def h2_request(path: bytes, *, late_data: bool = False) -> bytes:
    """An HTTP/2 connection with prior knowledge and one request."""
    connection = H2Connection()
    connection.config.header_encoding = None
    connection.config.validate_outbound_headers = False
    connection.config.normalize_outbound_headers = False
    connection.initiate_connection()
    method = b"POST" if late_data else b"GET"
    headers = [(b":method", method), (b":path", path), (b":scheme", b"http"), (b":authority", b"x")]
    connection.send_headers(1, headers, end_stream=not late_data)
    return connection.data_to_send()


def h2_data() -> bytes:
    """A DATA frame on stream 1."""
    return b"\x00\x00\x05\x00\x00\x00\x00\x00\x01hello"


@pytest.mark.parametrize(
    "attack",
    [
        [UPGRADE_TO_NOTHING],
        [WEBSOCKET_JUNK],
        [h2_request(b"/\xff")],
        [h2_request(b"/nowhere", late_data=True), h2_data(), h2_data()],
    ],
    ids=["h2c upgrade", "websocket junk", "h2 path", "h2 late data"],
)
def test_a_malformed_request_ends_its_own_connection_and_nothing_else(server: Server, attack: list[bytes]) -> None:
    """A stream on another connection loses nothing, the process is the same, and the log has one line at most."""
    pid, lines = worker(server)["pid"], len(server.log().splitlines())
    reader = Reader(server)
    for _ in range(3):
        attacker = connect(server)
        for piece in attack:
            attacker.sendall(piece)
            time.sleep(0.1)  # the last piece must come after the response
        attacker.close()
        id = publish(server, "still here")
        reader.until(f"id: {id}".encode())
    assert worker(server)["pid"] == pid
    assert len(server.log().splitlines()) - lines <= 3


def test_the_guard_says_what_ended_a_connection(server: Server) -> None:
    """One line names the exception, without a traceback."""
    attacker = connect(server)
    attacker.sendall(UPGRADE_TO_NOTHING)
    log = eventually(server.log, lambda log: "one connection ended by Error" in log)
    assert "one connection ended by Error" in log
    assert "Traceback" not in log


def test_a_view_sees_its_connection_under_any_framework(tmp_path: Path) -> None:
    """The context variable is set in a plain Quart-Trio application too."""
    with serving("tests.plain_app:app", folder=tmp_path, env=MEMORY, ready_path="/") as running:
        assert httpx.get(f"{running.url}/connection").text == "SocketStream"


def test_the_kernel_looks_for_vanished_peers(tmp_path: Path) -> None:
    """Whether we write to a peer or only listen to it, its silence ends within a bounded time."""
    with serving("tests.plain_app:app", folder=tmp_path, env=MEMORY, ready_path="/") as running:
        options = httpx.get(f"{running.url}/options").json()
        assert options == {"TCP_USER_TIMEOUT": 20_000, "TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "SO_KEEPALIVE": 1}


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
    baseline = worker(server)["descriptors"]
    client = connect(server, receive_buffer=4096)
    for _ in range(900):
        client.sendall(b"GET /board.js HTTP/1.1\r\nHost: x\r\n\r\n")
    assert eventually(lambda: worker(server)["descriptors"], lambda n: n > baseline, within=2) > baseline
    assert eventually(lambda: worker(server)["descriptors"], lambda n: n <= baseline, within=10) <= baseline


def test_a_slow_reader_that_keeps_reading_is_not_cut(server: Server) -> None:
    """A large event takes longer than the write timeout to a slow reader, and arrives whole."""
    reader = Reader(server, "/events?topic=slow", read=False)
    reader.until(b"\n\n")
    publish(server, "x" * 600_000, "slow")
    began = time.monotonic()
    while reader.received.count(b"x") < 600_000:
        data = reader.socket.recv(16384)
        assert data
        reader.received += data
        time.sleep(0.05)  # this is what makes the reader slow
    assert time.monotonic() - began > 2


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


def test_too_little_over_a_minute_is_too_little() -> None:
    """Less than 1 KiB/s, over a minute in which bytes waited, is the end; more begins a new minute."""
    slow, fast = Allowance(), Allowance()
    slow.add(30_000, 61)
    fast.add(70_000, 61)
    assert slow.is_spent()
    assert not fast.is_spent()
    fast.add(100, 30)
    assert not fast.is_spent()


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
    assert own_server.process.wait(10) == 0
    assert time.monotonic() - began < 2 * (1 + 1)


def test_a_signal_to_the_whole_group_says_goodbye_too(own_server: Server) -> None:
    """A supervisor that signals parent and worker alike, as systemd does, ends the streams as cleanly."""
    reader = Reader(own_server)
    assert own_server.process is not None
    os.killpg(own_server.process.pid, signal.SIGTERM)
    assert reader.rest().endswith(b"\r\n0\r\n\r\n")
    assert reader.events()[-1].type == "trio-sse.goodbye"
    assert own_server.process.wait(10) == 0


def test_a_reader_behind_a_pipelined_request_is_let_go(server: Server) -> None:
    """A client that leaves a stream with another request waiting behind it leaves no task and no descriptor."""
    baseline = worker(server)
    for _ in range(20):
        reader = Reader(server)
        reader.socket.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        reader.socket.close()
    publish(server, "the write that fails")
    publish(server, "the write that is noticed")
    after = eventually(lambda: worker(server), lambda now: bool(now["tasks"] <= baseline["tasks"]))
    assert after["tasks"] <= baseline["tasks"]
    assert after["descriptors"] <= baseline["descriptors"]
    assert after["pid"] == baseline["pid"]


def test_a_shutdown_ends_a_publishers_stream(own_server: Server) -> None:
    """What was acknowledged stands, then a problem says where to go on; the server does not wait for the publisher."""
    publisher = connect(own_server)
    publisher.sendall(
        b"POST /topics/lobby HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: x\n\n\r\n"
    )
    received = b""
    while b"acked" not in received:
        received += publisher.recv(65536)
    began = time.monotonic()
    assert own_server.process is not None
    own_server.process.terminate()
    while data := publisher.recv(65536):
        received += data
    assert b'"status": 503' in received
    assert b"send the rest again" in received
    assert own_server.process.wait(10) == 0
    assert time.monotonic() - began < 2 * (1 + 1)


def test_a_shutdown_does_not_wait_for_who_never_reads(own_server: Server) -> None:
    """Streams and pages whose bytes nobody takes are given up when the drain time is over."""
    for _ in range(10):
        Reader(own_server, "/events?topic=flood", read=False)
    eventually(lambda: worker(own_server)["streams"], lambda streams: streams == 10)
    for _ in range(10):
        publish(own_server, "x" * 1_000_000, "flood")
    pages = [connect(own_server, receive_buffer=4096) for _ in range(10)]
    for page in pages:
        for _ in range(300):
            page.sendall(b"GET /board.js HTTP/1.1\r\nHost: x\r\n\r\n")
    began = time.monotonic()
    assert own_server.terminate() == 0
    assert time.monotonic() - began < 2 * (1 + 1)


def test_a_foreign_stream_says_goodbye_too(tmp_path: Path) -> None:
    """A stream over a channel, in an application without a hub, ends cleanly on shutdown."""
    with serving("tests.plain_app:app", folder=tmp_path, env=MEMORY, ready_path="/") as running:
        reader = Reader(running, "/forever")
        reader.until(b"data: first")
        assert running.process is not None
        running.process.terminate()
        assert reader.rest().endswith(b"\r\n0\r\n\r\n")
        assert reader.events()[-1].type == "trio-sse.goodbye"
        assert running.process.wait(10) == 0


def test_streams_are_given_the_drain_time_and_a_longer_queue() -> None:
    """The graceful timeout lies behind our goodbyes, and the kernel keeps more connections than a hundred."""
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
    assert config.graceful_timeout == 7.5
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
    assert eventually(lambda: gone(pid), bool, within=5)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", own_server.port))


def test_a_failed_hub_is_replaced(own_server: Server) -> None:
    """Streams end with a goodbye, the worker ends, and Hypercorn's parent starts a fresh one that serves."""
    pid = worker(own_server)["pid"]
    reader = Reader(own_server)
    httpx.post(f"{own_server.url}/test/break")
    assert b'{"reason": "failed"}' in reader.rest()

    def served_by() -> int | None:
        try:
            return int(worker(own_server)["pid"])
        except httpx.TransportError:
            return None

    assert eventually(served_by, lambda found: found not in (None, pid), within=20) not in (None, pid)
    assert httpx.get(f"{own_server.url}/readyz").status_code == 200
    publish(own_server, "back")
    assert own_server.process is not None
    assert own_server.process.poll() is None


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


def test_a_second_worker_is_refused(tmp_path: Path) -> None:
    """Two hubs that know nothing of each other would lose events in silence, so start-up ends."""
    server = Server(folder=tmp_path, env=MEMORY, args=("--workers", "2"))
    with pytest.raises(RuntimeError):
        server.start()
    assert "run one worker, not 2" in server.log()
