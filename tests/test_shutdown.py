"""How it ends: what each client sees, in how much time, and that nothing is left. The real server, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import STALL_S, WITHIN_S, Wire, ask, eventually, last_event_id, publish
from tests.serving import SecureServer, Server, gone, running, serving
from tests.test_server_h2 import Client

APP = "tests.breaking:app"
DRAIN_S = 4.0
BOUND_S = 2 * (DRAIN_S + 1) + STALL_S
"""Twice the promise, on a machine that may stand still."""

GOODBYE = re.compile(rb'event: trio-sse\.goodbye\nretry: (\d+)\ndata: {"reason": "shutdown"}\n\n')
GET = "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Reader(Wire):
    """A connection, over TLS too, that may stop reading."""

    def __init__(
        self,
        server: Server,
        path: str,
        *,
        port: int | None = None,
        tls: ssl.SSLContext | None = None,
        deaf: bool = False,
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(30)
        if deaf:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", port or server.port))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost", suppress_ragged_eofs=True)
        self._buffer = b""
        self.send(GET.format(path).encode())

    def answer(self) -> tuple[int, bytes, bytes]:
        """The status, the head and the body of all that comes until the connection ends."""
        head, _, body = self.rest().partition(b"\r\n\r\n")
        return int(head.split()[1]), head.lower() + b"\r\n", body

    def rest(self) -> bytes:
        deadline = time.monotonic() + 2 * WITHIN_S
        while True:
            assert time.monotonic() < deadline, f"the connection was not closed after {self._buffer[-1000:]!r}"
            try:
                piece = self.socket.recv(65536)
            except ConnectionError:
                break
            if not piece:
                break
            self._buffer += piece
        return self._buffer


def idle(server: Server, **how: Any) -> Reader:
    """A connection that has had an answer and is kept for another request."""
    wire = Reader(server, "/healthz", **how)
    wire.take(b"alive\n")
    return wire


def subscribe(server: Server, topic: str = "lobby", **how: Any) -> Reader:
    """A stream that has begun."""
    wire = Reader(server, f"/events?topic={topic}", **how)
    wire.take(b"\n\n")
    return wire


@dataclass
class Drained:
    """What everybody saw."""

    streams: list[bytes] = field(default_factory=list)
    tls_streams: list[bytes] = field(default_factory=list)
    foreign: bytes = b""
    kept: dict[str, tuple[int, bytes, bytes]] = field(default_factory=dict)
    behind: bytes = b""
    half: tuple[int, bytes, bytes] = (0, b"", b"")
    slow: tuple[int, bytes, bytes] = (0, b"", b"")
    publisher: bytes = b""
    h2: tuple[Client, int] | None = None
    h2_kept: tuple[Client, int] | None = None
    h2_slow: tuple[Client, int] | None = None
    new: tuple[bool, str] = (False, "")
    status: int | None = None
    took: float = 0
    log: str = ""


@pytest.fixture(scope="module")
def drained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drained]:
    """A server that is sent SIGTERM while a hundred clients never read, and what all others then see."""
    env = {"TRIO_SSE_DRAIN_S": str(DRAIN_S), "TRIO_SSE_WRITE_TIMEOUT_S": "30", "TRIO_SSE_JOURNAL": "memory:"}
    env["LAST_RESORT_S"] = str(STALL_S)  # it ends by itself, also when a busy machine stands still just then
    folder, patient = tmp_path_factory.mktemp("drained"), ("--keep-alive", "60")
    with running(SecureServer(APP, folder=folder, env=env, args=patient)) as server:
        saw = _drain(server)
        saw.log = server.log()
        yield saw


def _drain(server: SecureServer) -> Drained:
    saw = Drained()
    tls: dict[str, Any] = {"port": server.secure_port, "tls": server.trusted()}
    with contextlib.ExitStack() as stack:
        keep = stack.enter_context
        for number in range(50):
            how = tls if number % 5 == 0 else {}
            keep(Reader(server, "/events?topic=flood", deaf=True, **how))
            pages = keep(Reader(server, "/board.js", deaf=True, **how))
            with contextlib.suppress(TimeoutError):
                pages.socket.settimeout(0.2)
                pages.send(GET.format("/board.js").encode() * 200)
        frozen = Client(server, receive_buffer=4096)
        for _ in range(20):
            frozen.ask("/board.js")
        for _ in range(3):
            publish(server, "flood", "x" * 600_000)
        streams = [keep(subscribe(server)) for _ in range(20)]
        tls_streams = [keep(subscribe(server, **tls)) for _ in range(5)]
        foreign = keep(Reader(server, "/test/foreign"))
        foreign.take(b"data: first\n\n")
        paths = ["/", "/healthz", "/readyz", "/topics/lobby", "/nowhere", "/events?topic=lobby"]
        kept = {path: keep(idle(server)) for path in paths} | {"tls": keep(idle(server, **tls))}
        behind = keep(subscribe(server))
        behind.send(GET.format("/").encode())
        half = keep(idle(server))
        half.send(b"POST /topics/lobby HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
        slow = keep(Reader(server, "/test/never"))
        publisher = keep(Wire(server))
        publisher.send(
            b"POST /topics/other HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        publisher.chunk(b"id: 1\ndata: x\n\n")
        saw.publisher = publisher.take(b"acked")
        h2, h2_kept, h2_slow = Client(server), Client(server), Client(server)
        saw.h2_slow = h2_slow, h2_slow.ask("/test/never")
        saw.h2 = h2, h2.open_stream("/events?topic=lobby")
        before = h2_kept.ask("/healthz")
        assert h2_kept.read_until(lambda: before in h2_kept.ended)
        assert server.process is not None
        began = time.monotonic()
        server.process.terminate()
        saw.streams = [stream.rest() for stream in streams]
        late = keep(Wire(server))
        late.send(GET.format("/healthz").encode())
        for path, wire in kept.items():
            wire._buffer = b""
            wire.send(GET.format("/topics/lobby" if path == "tls" else path).encode())
        saw.h2_kept = h2_kept, h2_kept.ask("/topics/lobby")
        saw.kept = {path: wire.answer() for path, wire in kept.items()}
        saw.tls_streams = [stream.rest() for stream in tls_streams]
        saw.foreign, saw.behind = foreign.rest(), behind.rest()
        half._buffer = half._buffer.partition(b"alive\n")[2]
        saw.half, saw.slow = half.answer(), slow.answer()
        saw.publisher += publisher.rest()
        for client, _ in (saw.h2, saw.h2_kept, saw.h2_slow):
            client.read_until(lambda: False, within=BOUND_S)
            client.socket.close()
        saw.status = server.process.wait(BOUND_S)
        saw.took = time.monotonic() - began
        try:
            saw.new = True, repr(late.socket.recv(100))
        except OSError as error:
            saw.new = True, type(error).__name__
        frozen.socket.close()
    return saw


def test_a_hundred_who_never_read_do_not_hold_it_up(drained: Drained) -> None:
    """The status is 0, and it ends in the drain time and a second; the log has no traceback."""
    assert drained.status == 0
    assert DRAIN_S / 2 < drained.took < BOUND_S
    assert "Traceback" not in drained.log
    assert "left behind" not in drained.log


def test_the_log_has_no_line_for_each_client(drained: Drained) -> None:
    """However many there were."""
    assert len(drained.log.splitlines()) < 10, drained.log


def test_each_stream_ends_cleanly(drained: Drained) -> None:
    """With a goodbye, a retry, and the end of the body."""
    for stream in [*drained.streams, *drained.tls_streams, drained.foreign]:
        assert GOODBYE.search(stream), stream
        assert stream.endswith(b"\r\n0\r\n\r\n")


def test_they_are_not_told_to_come_back_all_at_once(drained: Drained) -> None:
    """The times are spread."""
    retries = [int(found[1]) for stream in drained.streams if (found := GOODBYE.search(stream))]
    assert len(set(retries)) > 5
    assert min(retries) >= 2000


@pytest.mark.parametrize("path", ["/", "/topics/lobby", "/nowhere", "tls"])
def test_a_request_on_a_kept_connection_is_refused(drained: Drained, path: str) -> None:
    """503, with when to try again, and that the connection ends."""
    status, head, body = drained.kept[path]
    assert status == 503
    assert b"\r\nconnection: close\r\n" in head
    assert b"\r\nretry-after: " in head
    assert "going away" in json.loads(body)["detail"]


def test_who_asks_for_health_is_told(drained: Drained) -> None:
    """It is alive, and takes no new work."""
    assert drained.kept["/healthz"][0] == 200
    assert drained.kept["/readyz"][0] == 503
    assert b"\r\nconnection: close\r\n" in drained.kept["/healthz"][1]


def test_who_asks_for_a_stream_is_told_when_to_come_back(drained: Drained) -> None:
    """Not with 503, which would close an EventSource for ever."""
    status, head, body = drained.kept["/events?topic=lobby"]
    assert status == 200
    assert b"\r\nconnection: close\r\n" in head
    assert GOODBYE.search(body)


def test_a_request_behind_a_stream_is_answered(drained: Drained) -> None:
    """The stream ends cleanly, and what was pipelined behind it is refused."""
    stream, _, answer = drained.behind.partition(b"\r\n0\r\n\r\n")
    assert GOODBYE.search(stream)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nconnection: close\r\n" in answer


def test_a_request_whose_body_is_half_here_is_refused(drained: Drained) -> None:
    """It is not waited for."""
    status, head, body = drained.half
    assert status == 503
    assert b"\r\nconnection: close\r\n" in head
    assert "send the request again" in json.loads(body)["detail"]


def test_a_view_that_does_not_end_is_answered_for(drained: Drained) -> None:
    """When the drain time is nearly over."""
    status, head, body = drained.slow
    assert status == 503
    assert b"\r\nconnection: close\r\n" in head
    assert "no time to answer" in json.loads(body)["detail"]


def test_a_streaming_publisher_is_told_where_to_go_on(drained: Drained) -> None:
    """First its last acknowledgement, then a problem, then the end of the body."""
    acked, _, rest = drained.publisher.partition(b'": 1, ')
    assert acked.endswith(b'{"acked')
    assert b'"status": 503' in rest
    assert b"send the rest again" in rest
    assert rest.endswith(b"\r\n0\r\n\r\n")


def test_over_http_2_it_is_the_same(drained: Drained) -> None:
    """A stream ends cleanly, a request in the drain is refused, and the connection ends with a GOAWAY."""
    assert drained.h2 is not None
    assert drained.h2_kept is not None
    assert drained.h2_slow is not None
    for client, number in (drained.h2, drained.h2_kept, drained.h2_slow):
        assert number in client.ended
        assert client.h2.state_machine.state.name == "CLOSED"
    client, number = drained.h2
    assert GOODBYE.search(client.data[number])
    client, number = drained.h2_kept
    assert json.loads(client.data[number])["status"] == 503
    client, number = drained.h2_slow
    assert "no time to answer" in json.loads(client.data[number])["detail"]


def test_a_new_connection_waits_until_the_exit(drained: Drained) -> None:
    """The kernel takes it for the parent; nobody answers, and at the exit it is reset."""
    assert drained.new in [(True, "ConnectionResetError"), (True, "b''")]


# -- what is under way ----------------------------------------------------------------------------------------


def sqlite(folder: Path, **more: str) -> dict[str, str]:
    """Settings of a hub that keeps its events."""
    return {
        "TRIO_SSE_JOURNAL": f"sqlite:{folder / 'hub.db'}",
        **{f"TRIO_SSE_{name}": is_ for name, is_ in more.items()},
    }


class Publisher(threading.Thread):
    """Publishes as fast as it can, until it is refused; its numbers that were acknowledged."""

    def __init__(self, server: Server, topic: str) -> None:
        super().__init__()
        self.url = f"{server.url}/topics/{topic}"
        self.acked: list[int] = []
        self.statuses: set[int] = set()

    def run(self) -> None:
        number = 0
        with httpx.Client(timeout=30) as client, contextlib.suppress(httpx.TransportError):
            while True:
                status = client.post(self.url, content=str(number)).status_code
                self.statuses.add(status)
                if status != 201:
                    return
                self.acked.append(number)
                number += 1


class StreamingPublisher(Publisher):
    """The same in one request."""

    def run(self) -> None:
        host, port = self.url.removeprefix("http://").partition("/")[0].split(":")
        path = "/" + self.url.removeprefix("http://").partition("/")[2]
        with socket.create_connection((host, int(port)), timeout=30) as wire:
            wire.sendall(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\n"
                "Transfer-Encoding: chunked\r\n\r\n".encode()
            )
            writer = threading.Thread(target=self._write, args=(wire,))
            writer.start()
            received = b""
            with contextlib.suppress(OSError):
                while piece := wire.recv(65536):
                    received += piece
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
            writer.join()
        lines = [json.loads(line) for line in re.findall(rb"{.*?}", received)]
        self.acked = list(range(max((line["acked"] for line in lines if "acked" in line), default=-1) + 1))
        self.statuses = {line.get("status", 200) for line in lines}
        self.last, self.is_whole = lines[-1], received.endswith(b"\r\n0\r\n\r\n")

    def _write(self, wire: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for first in range(0, 10_000_000, 20):
                events = b"".join(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(first, first + 20))
                wire.sendall(b"%x\r\n%b\r\n" % (len(events), events))


def kept(server: Server, topic: str) -> list[int]:
    """The numbers that the journal has of a topic."""
    with Reader(server, f"/events?topic={topic}&last_event_id=earliest") as wire:
        last = last_event_id(server, topic)
        data = wire.take(f"id: {last}\n".encode()) + wire.take(b"\n\n")
    return [int(number) for number in re.findall(rb"^data: (\d+)$", data, re.MULTILINE)]


# -- signals --------------------------------------------------------------------------------------------------


class Alone(Server):
    """`trio-sse serve`, in one process."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.command = [sys.executable, "-W", "error", "-m", "trio_sse", "serve", "--bind", f"127.0.0.1:{self.port}"]


def test_alone_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Also when a hundred clients never read; the first one said goodbye, and new connections are refused."""
    server = Alone(folder=tmp_path, env=sqlite(tmp_path, DRAIN_S="60", WRITE_TIMEOUT_S="60"))
    server.start()
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        for _ in range(100):
            stack.enter_context(Reader(server, "/events?topic=flood", deaf=True))
        for _ in range(3):
            publish(server, "flood", "x" * 600_000)
        stream = stack.enter_context(subscribe(server))
        assert server.process is not None
        server.process.send_signal(signal.SIGINT)
        assert GOODBYE.search(stream.rest())
        with pytest.raises(ConnectionRefusedError):
            Wire(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 1
        assert "Traceback" not in server.log()


def alive(group: int) -> bool:
    """Whether any process of a group is."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return any(
        not gone(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit() and _group_of(path) == group
    )


def _group_of(path: Path) -> int | None:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[2])
    except OSError:
        return None


# -- what is left ---------------------------------------------------------------------------------------------


# -- one server each, side by side -----------------------------------------------------------------------------


def publishes(folder: Path) -> None:
    env = sqlite(folder, DRAIN_S="5", RETENTION_EVENTS="1000000")
    with serving(APP, folder=folder, env=env) as server:
        publishers = [Publisher(server, f"posts/{n}") for n in range(3)] + [StreamingPublisher(server, "streamed")]
        for publisher in publishers:
            publisher.start()
        assert eventually(lambda: last_event_id(server, "streamed") is not None)
        assert eventually(lambda: all(len(publisher.acked) > 20 for publisher in publishers[:3]))
        began = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - began < 2 * (5 + 1) + STALL_S
        for publisher in publishers:
            publisher.join()
            assert publisher.acked
            assert publisher.statuses <= {200, 201, 503}
        streamed = publishers[-1]
        assert isinstance(streamed, StreamingPublisher)
        assert streamed.last["status"] == 503
        assert streamed.is_whole
        server.start()
        for publisher in publishers:
            topic = publisher.url.partition("/topics/")[2]
            stored = kept(server, topic)
            assert stored == list(range(len(stored)))
            assert len(stored) >= len(publisher.acked)


def hangs(folder: Path) -> None:
    with serving(APP, folder=folder, env=sqlite(folder, DRAIN_S="2")) as server, contextlib.ExitStack() as stack:
        keep = stack.enter_context
        stream = keep(subscribe(server))
        keep(Reader(server, "/test/stubborn"))
        deaf = keep(Reader(server, "/healthz", deaf=True))
        deaf.send(
            b"POST /topics/other HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(TimeoutError):
            deaf.socket.settimeout(0.5)
            while True:
                deaf.chunk(b"data: x\n\n" * 100)
        ask(server, "POST", "/test/break/reader")
        unread = keep(Reader(server, "/events?topic=unread/hangs&last_event_id=earliest"))
        ask(server, "POST", "/test/break/disk")
        publisher = Publisher(server, "lobby")
        publisher.start()
        time.sleep(0.2)
        began = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - began < 2 * (2 + 1) + STALL_S
        assert GOODBYE.search(stream.rest())
        status, _, body = unread.answer()
        assert (status, body[:16]) == (200, b": stream\nretry: ")
        publisher.join()
        assert publisher.acked == []
        assert "something still runs: it is left behind" in server.log()


def interrupts(folder: Path) -> None:
    env = sqlite(folder, DRAIN_S="3", WRITE_TIMEOUT_S="30")
    with serving(APP, folder=folder, env=env) as server, subscribe(server) as stream:
        assert server.process is not None
        with Reader(server, "/test/never"):
            began = time.monotonic()
            os.killpg(server.process.pid, signal.SIGINT)
            assert GOODBYE.search(stream.rest())
            os.killpg(server.process.pid, signal.SIGINT)
            assert server.process.wait(30) == 0
            assert time.monotonic() - began > 3 / 2


def asks_twice(folder: Path) -> None:
    env = sqlite(folder, DRAIN_S="60", WRITE_TIMEOUT_S="60")
    with serving(APP, folder=folder, env=env) as server, Reader(server, "/test/never"), subscribe(server) as stream:
        assert server.process is not None
        os.killpg(server.process.pid, signal.SIGTERM)
        assert GOODBYE.search(stream.rest())
        os.killpg(server.process.pid, signal.SIGTERM)
        assert server.process.wait(20) == 0


def starts(folder: Path) -> None:
    server = Server(APP, folder=folder, env=sqlite(folder, DRAIN_S="1"))
    for after, number in ((0.15, signal.SIGTERM), (0.6, signal.SIGINT), (0.9, signal.SIGTERM), (1.3, signal.SIGTERM)):
        with server.log_path.open("ab") as log:
            process = subprocess.Popen(
                server.command, cwd=folder, env=server.env, stdout=log, stderr=log, start_new_session=True
            )
        time.sleep(after * random.uniform(0.8, 1.2))
        os.killpg(process.pid, number)
        process.wait(30)
        assert eventually(lambda group=process.pid: not alive(group))  # type: ignore[misc]
    server.start()
    server.kill()


def is_several(folder: Path) -> None:
    late = "import os, time; time.sleep(os.getpid() % 3); from trio_sse.app import app"
    (folder / "program.py").write_text(late)
    server = Server("program:app", folder=folder, env=sqlite(folder), args=("--workers", "3"))
    with pytest.raises(RuntimeError):
        server.start()
    (line,) = server.log().splitlines()
    assert re.match(r"trio_sse: run one worker, not 3: .*Redis", line)
    assert server.process is not None
    assert eventually(lambda: not alive(server.process.pid))  # type: ignore[union-attr]


def has_options(folder: Path) -> None:
    (folder / "program.py").write_text("from tests.breaking import app\n")
    env = sqlite(folder, DRAIN_S="2")
    args = ("--reload", "--graceful-timeout", "600")
    with serving("program:app", folder=folder, env=env, args=args) as server, Reader(server, "/test/never"):
        assert server.process is not None
        with subscribe(server) as stream:
            (before,) = server.workers()
            time.sleep(1.1)  # the parent compares whole seconds
            (folder / "program.py").write_text("from tests.breaking import app  # changed\n")
            assert GOODBYE.search(stream.rest())
        assert eventually(lambda: server.workers() not in ([], [before]))
        assert publish(server, "lobby")
        began = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - began < 2 * (2 + 1) + STALL_S


def is_killed(folder: Path, who: str) -> None:
    with serving(APP, folder=folder, env=sqlite(folder)) as server:
        assert server.process is not None
        group, (worker,) = server.process.pid, server.workers()
        id = publish(server, "lobby", "before")
        with subscribe(server):
            if who == "both":
                os.killpg(group, signal.SIGKILL)
            else:
                os.kill(worker if who == "the worker" else group, signal.SIGKILL)
            assert server.process.wait(30) == (0 if who == "the worker" else -signal.SIGKILL)
            server.start()
        assert last_event_id(server, "lobby") == id
        assert eventually(lambda: not alive(group))


WHO = ["the parent", "the worker", "both"]

Begun = dict[str, Future[None]]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    """What takes long, most of it waiting, goes on side by side, each with a server of its own."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        each = [publishes, hangs, interrupts, asks_twice, starts, is_several, has_options]
        running = {one.__name__: pool.submit(one, tmp_path_factory.mktemp("s")) for one in each}
        yield running | {who: pool.submit(is_killed, tmp_path_factory.mktemp("k"), who) for who in WHO}


def test_what_was_acknowledged_is_kept(begun: Begun) -> None:
    """Publishers at full speed are refused when the server ends; what they were told is safe is in the next life."""
    begun["publishes"].result()


def test_nothing_that_hangs_holds_up_the_exit(begun: Begun) -> None:
    """A disk that does not answer, a view that cannot be cancelled, a publisher that never reads: status 0, in time."""
    begun["hangs"].result()


def test_sigint_to_the_group_says_goodbye(begun: Begun) -> None:
    """As Ctrl-C sends it; and of a second one the parent takes no notice, for it never runs our code."""
    begun["interrupts"].result()


def test_a_second_sigterm_that_reaches_the_worker_ends_it_at_once(begun: Begun) -> None:
    """As when a group of processes is sent it twice."""
    begun["asks_twice"].result()


def test_a_signal_while_it_starts_ends_it(begun: Begun) -> None:
    """Whenever it comes, and nothing is left; a server on the same port and journal starts."""
    begun["starts"].result()


NAMELESS = """
import socket
from trio_sse.server import worker

class Nameless(socket.socket):
    def bind(self, address):
        raise PermissionError(1, "names are forbidden here")

worker.workers = lambda: 3
worker.socket.socket = Nameless
worker.refuse_siblings("run one worker")
"""


def test_of_several_workers_each_speaks_where_they_cannot_find_each_other() -> None:
    """As in a sandbox without abstract Unix sockets; none waits for ever."""
    done = subprocess.run([sys.executable, "-c", NAMELESS], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (1, "trio_sse: run one worker\n")


def test_several_workers_are_refused_with_one_line(begun: Begun) -> None:
    """Which names what they would need, also when some are seconds later than others; and nothing is left."""
    begun["is_several"].result()


def test_options_of_hypercorn_break_nothing(begun: Begun) -> None:
    """With --reload a changed file begins a new worker, which streams are told; --graceful-timeout is ours to set."""
    begun["has_options"].result()


@pytest.mark.parametrize("who", WHO)
def test_nothing_is_left_of_who_is_killed(begun: Begun, who: str) -> None:
    """A new server has the port and the journal at once. (A parent whose worker is killed ends, with status 0.)"""
    begun[who].result()


# -- at full size ---------------------------------------------------------------------------------------------


@pytest.mark.proof
@pytest.mark.timeout(300)
def test_a_thousand_streams_and_a_hundred_who_never_read(tmp_path: Path) -> None:
    """Under publishing, with the default drain time: all get their goodbye, over two seconds, and it ends in time."""
    env = sqlite(tmp_path, WRITE_TIMEOUT_S="60", RETENTION_EVENTS="1000000")
    with serving(APP, folder=tmp_path, env=env) as server, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(subscribe(server)) for _ in range(1000)]
        for number in range(100):
            path = "/events?topic=flood" if number % 2 else "/board.js"
            deaf = stack.enter_context(Reader(server, path, deaf=True))
            with contextlib.suppress(TimeoutError):
                deaf.socket.settimeout(0.05)
                deaf.send(GET.format(path).encode() * 300)
        for _ in range(4):
            publish(server, "flood", "x" * 1_000_000)
        publishers = [Publisher(server, "posts"), StreamingPublisher(server, "streamed")]
        for publisher in publishers:
            publisher.start()
        time.sleep(2)
        began = time.monotonic()
        assert server.process is not None
        server.process.terminate()
        retries = [int(found[1]) for stream in streams if (found := GOODBYE.search(stream.rest()))]
        assert len(retries) == 1000
        assert max(retries) - min(retries) > 1500
        assert server.process.wait(60) == 0
        assert 5 < time.monotonic() - began < 2 * (5 + 1) + STALL_S
        assert len(server.log().splitlines()) < 10
        for publisher in publishers:
            publisher.join()
        server.start()
        for publisher in publishers:
            stored = kept(server, publisher.url.partition("/topics/")[2])
            assert stored == list(range(len(stored)))
            assert len(stored) >= len(publisher.acked) > 0
