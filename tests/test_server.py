"""What is mended in Hypercorn, seen from outside: the real server, real sockets, real signals."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import hypercorn.trio.run as run
import pytest
import trio
from hypercorn.config import Config
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer
from hypercorn.utils import wrap_app

from tests.conftest import STALL_S, WITHIN_S
from tests.serving import Server, free_port, gone, serving
from trio_sse import server as room
from trio_sse.event import Event
from trio_sse.server.worker import BACKLOG, HANDLERS_SHARE
from trio_sse.settings import Settings
from trio_sse.web import create_app
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


_open_sockets: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed_sockets() -> Iterator[None]:
    """No client outlives its test."""
    yield
    while _open_sockets:
        _open_sockets.pop().close()


def connect(server: Server) -> socket.socket:
    """A plain connection, closed with the test."""
    client = socket.socket()
    _open_sockets.append(client)
    client.settimeout(20)
    client.connect(("127.0.0.1", server.port))
    return client


class Reader:
    """A client of one stream, over a plain socket."""

    def __init__(self, server: Server, path: str = "/events?topic=lobby") -> None:
        self.socket = connect(server)
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        self.received = b""
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


def test_a_hypercorn_that_lacks_what_is_mended_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is patched, and the log names what is not there."""
    before = StreamBuffer.push
    monkeypatch.setattr(room.writes, "bounded_push", None)
    monkeypatch.delattr(H2Protocol, "_priority_updated")
    assert not room.guard_hypercorn(write_timeout_s=1, drain_s=1)
    assert "H2Protocol._priority_updated" in caplog.text
    assert StreamBuffer.push is before


def test_under_another_server_the_hub_serves_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """One that is not Hypercorn, the simplest that ASGI allows: nothing is guarded, and nothing breaks."""
    app: Any = create_app(Settings(journal="memory:"))
    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = 0.1
    common = {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "headers": [], "query_string": b""}
    answers = []

    async def request(method: str, path: str, query: bytes = b"", *, until: bytes) -> None:
        scope = common | {"type": "http", "method": method, "path": path, "raw_path": path.encode()}
        received = bytearray()
        asked, left = trio.Event(), trio.Event()

        async def receive() -> dict[str, Any]:
            if asked.is_set():
                await left.wait()
                return {"type": "http.disconnect"}
            asked.set()
            return {"type": "http.request", "body": b"hello", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            received.extend(str(message.get("status", "")).encode() + message.get("body", b""))
            if until in received:
                left.set()

        await app(scope | {"query_string": query}, receive, send)
        answers.append(bytes(received))

    async def main() -> None:
        to_app, of_app = trio.open_memory_channel[dict[str, Any]](1)
        begun = trio.Event()

        async def send(message: dict[str, Any]) -> None:
            assert not message["type"].endswith(".failed"), message
            begun.set()

        async with trio.open_nursery() as nursery:
            with trio.fail_after(WITHIN_S):
                nursery.start_soon(app, common | {"type": "lifespan", "state": {}}, of_app.receive, send)
                await to_app.send({"type": "lifespan.startup"})
                await begun.wait()
                await request("POST", "/topics/lobby", until=b"id")
                await request("GET", "/events", b"topic=lobby&last_event_id=earliest", until=b"data: hello\n\n")
                await to_app.send({"type": "lifespan.shutdown"})

    trio.run(main)
    assert [answer[:3] for answer in answers] == [b"201", b"200"]
    assert b"data: hello\n\n" in answers[1]
    assert caplog.text.count("not one that trio_sse mends") == 1


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
    assert lines == [f"trio_sse: the journal {tmp_path}/missing/folder/x.db cannot be used: No such file or directory"]


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
