"""More clients than there are descriptors for, and clients that take their time: all are told, and all is had back."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import selectors
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded

from tests.conftest import STALL_S, Listener, Stopwatch, ask, eventually, metric, publish
from tests.serving import SecureServer, Server, running

DESCRIPTORS = 256
CLIENTS = 400
NEW_CLIENT_S = 1.0
"""A new client has its stream, or is told to come back, within a second."""

GET_STREAM = b"GET /events?topic=crowd HTTP/1.1\r\nHost: x\r\n\r\n"
GET_PAGE = b"GET /topics/crowd HTTP/1.1\r\nHost: x\r\n\r\n"
PUBLISH = (
    b"POST /topics/crowd HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: x\n\n\r\n"
)
SILENT_BODY = b"POST /topics/crowd HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab"


@pytest.fixture(autouse=True, scope="module")
def _descriptors() -> Iterator[None]:
    """For the clients, which are all in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def serving_with(descriptors: int, folder: Path, *args: str, app: str = "tests.apps:app") -> Iterator[SecureServer]:
    """A server that may have so many descriptors; its log must stay short, however many clients there are."""
    server = SecureServer(app, folder=folder, args=args)
    server.command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *server.command]
    with running(server):
        began = time.monotonic()
        yield server
        told = server.log().splitlines()
        assert len(told) < 5 + (time.monotonic() - began), server.log()[-3000:]
        assert server.log().count("Too many open files") == (app != "tests.apps:app")
        assert server.terminate() == 0


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_with(DESCRIPTORS, tmp_path_factory.mktemp("narrow")) as server:
        yield server


class Crowd:
    """Many connections, and what came over each; a context manager that leaves at its end."""

    def __init__(self, server: Server, count: int, said: bytes = b"", *, waits_s: float = 0) -> None:
        self.sockets: list[socket.socket] = []
        self.received: dict[socket.socket, bytes] = {}
        self.closed: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        for _ in range(count):
            self.join(server, said)
            time.sleep(waits_s)

    def join(self, server: Server, said: bytes) -> None:
        """One more, which says this."""
        client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        self.sockets.append(client)
        self.received[client] = b""
        self._selector.register(client, selectors.EVENT_READ)
        with contextlib.suppress(ConnectionError):
            client.sendall(said)

    def forget(self, clients: list[socket.socket]) -> None:
        """They have left."""
        for client in clients:
            client.close()
            self.sockets.remove(client)
            del self.received[client]

    def listen_until(self, holds: Callable[[], bool], *, within: float) -> bool:
        """Read what comes until something holds; whether it did in time."""
        deadline = time.monotonic() + within
        while not holds() and time.monotonic() < deadline:
            for key, _ in self._selector.select(0.1):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                try:
                    data = client.recv(65536)
                except ConnectionError:
                    data = b""
                self.received[client] += data
                if not data:
                    self.closed.add(client)
                    self._selector.unregister(client)
        return holds()

    def statuses(self) -> Counter[str]:
        """How many were answered with what; those that were not, with nothing."""
        return Counter(answer.split(b" ", 2)[1].decode() if answer else "" for answer in self.received.values())

    def all_answered(self) -> bool:
        return all(b"\r\n\r\n" in each for each in self.received.values())

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exc: object) -> None:
        for client in self.sockets:
            client.close()
        self._selector.close()


HELD = ("tasks", "descriptors", "streams", "publishers", "idle")
COUNTED = ("connections", "counted_streams", "counted_addresses", "counted_subjects")


def held(server: Server) -> dict[str, float] | None:
    """What a worker holds for its clients, but for who asks; none if it has no time for the question."""
    told, metrics = ask(server, "GET", "/test/worker"), ask(server, "GET", "/metrics")
    if (told.status, metrics.status) != (200, 200):
        return None
    counted = dict(re.findall(r"^trio_sse_(\w+) ([0-9.]+)$", metrics.body.decode(), re.MULTILINE))
    return {name: told.json[name] for name in HELD} | {name: float(counted[name]) for name in COUNTED}


@contextlib.contextmanager
def nothing_remains(server: Server) -> Iterator[None]:
    """Afterwards the worker holds what it held before, and serves a new stream."""
    before = held(server)
    assert before is not None
    yield

    def is_had_back() -> bool:
        now = held(server)
        return now is not None and all(now[name] <= before[name] for name in before)

    assert eventually(is_had_back), (before, held(server))
    with Listener(server, "/events?topic=afterwards") as listener:
        assert "id" in listener.event()


def check_health(server: Server, *, within: float = NEW_CLIENT_S) -> None:
    """A new connection learns that the worker is alive, in time."""
    watch = Stopwatch(server)
    assert ask(server, "GET", "/healthz").status == 200
    assert watch.seconds() < 2 * within + STALL_S


def is_refused_stream(answer: bytes) -> bool:
    return re.search(rb": stream\nretry: \d+\n\r\n0\r\n\r\n$", answer) is not None


def check_problem(answer: bytes) -> None:
    """It is a 503 that says when to come back, and why."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nretry-after: " in head.lower()
    assert b"\r\ncontent-type: application/problem+json" in head.lower()
    assert json.loads(body)["status"] == 503


# -- more than there are descriptors for ------------------------------------------------------------------------------


def test_streams_beyond_the_descriptors_are_told_to_come_back(narrow: Server) -> None:
    """Each is a stream, or says when to come back and ends; and there is room to publish, and to ask."""
    with nothing_remains(narrow), Crowd(narrow, CLIENTS, GET_STREAM) as crowd:
        check_health(narrow)

        def all_told() -> bool:
            return all(b"\nid: " in each or is_refused_stream(each) for each in crowd.received.values())

        assert crowd.listen_until(all_told, within=30), crowd.statuses()
        assert crowd.statuses() == {"200": CLIENTS}
        refused = [each for each in crowd.received.values() if is_refused_stream(each)]
        assert CLIENTS - DESCRIPTORS < len(refused) < CLIENTS - DESCRIPTORS / 2
        assert len({re.findall(rb"retry: (\d+)", each)[0] for each in refused}) > len(refused) / 10
        publish(narrow, "crowd", "for those who are here")
        everyone = CLIENTS - len(refused)
        arrived = b"data: for those who are here"
        assert crowd.listen_until(
            lambda: sum(arrived in each for each in crowd.received.values()) == everyone, within=30
        )
        assert metric(narrow, "trio_sse_counted_streams") == everyone


@pytest.mark.parametrize("said", [PUBLISH, SILENT_BODY], ids=["publishers", "bodies"])
def test_requests_beyond_the_descriptors_are_refused(narrow: Server, said: bytes) -> None:
    """While others go on for ever; a stream is refused in its own way."""
    with nothing_remains(narrow), Crowd(narrow, CLIENTS, said) as crowd:
        check_health(narrow)

        def refused() -> list[bytes]:
            return [each for each in crowd.received.values() if each.startswith(b"HTTP/1.1 503 ")]

        assert crowd.listen_until(lambda: len(refused()) > CLIENTS - DESCRIPTORS, within=30), crowd.statuses()
        for answer in refused():
            check_problem(answer)
        check_health(narrow)
        assert ask(narrow, "GET", "/topics/crowd").status == 503
        stream = ask(narrow, "GET", "/events?topic=crowd")
        assert (stream.status, stream.body[:17]) == (200, b": stream\nretry: 2")
        assert set(crowd.statuses()) <= {"", "200", "503"}


def test_idle_connections_make_room(narrow: Server) -> None:
    """The longest waiting go, and a new client has its stream."""
    with nothing_remains(narrow), Crowd(narrow, CLIENTS):
        watch = Stopwatch(narrow)
        with Listener(narrow, "/events?topic=crowd") as listener:
            assert "id" in listener.event()
        assert watch.seconds() < 2 * NEW_CLIENT_S + STALL_S
        check_health(narrow)


def test_in_a_crowd_no_connection_is_kept_alive(narrow: Server) -> None:
    """Each request is answered or refused, and its client told that no other should follow; then they are again."""
    with nothing_remains(narrow), Crowd(narrow, CLIENTS, GET_PAGE) as crowd:
        for _ in range(3):
            assert crowd.listen_until(crowd.all_answered, within=30), crowd.statuses()
            assert set(crowd.statuses()) <= {"200", "503"}
            check_health(narrow)
            gone = [client for client, answer in crowd.received.items() if b"connection: close" in answer.lower()]
            assert gone
            assert crowd.listen_until(lambda left=gone: crowd.closed >= set(left), within=30)  # type: ignore[misc]
            crowd.forget(gone)
            for _ in gone:
                crowd.join(narrow, GET_PAGE)
    assert "connection" not in ask(narrow, "GET", "/healthz").headers


def test_streams_over_http2_beyond_the_descriptors_are_told_to_come_back(narrow: Server) -> None:
    """One connection each."""
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    target = [(":method", "GET"), (":path", "/events?topic=crowd"), (":scheme", "http"), (":authority", "x")]
    client.send_headers(1, target, end_stream=True)
    with nothing_remains(narrow), Crowd(narrow, CLIENTS, client.data_to_send()) as crowd:
        check_health(narrow)
        assert crowd.listen_until(lambda: all(b"retry: " in each for each in crowd.received.values()), within=30)
        ended = 0
        for answer in crowd.received.values():
            reader = H2Connection(H2Configuration(client_side=True))
            reader.initiate_connection()
            reader.send_headers(1, target, end_stream=True)
            events = reader.receive_data(answer)
            heads = [each.headers or [] for each in events if isinstance(each, ResponseReceived)]
            assert [(b":status", b"200") in head for head in heads] == [True]
            data = b"".join(each.data or b"" for each in events if isinstance(each, DataReceived))
            ended += any(isinstance(each, StreamEnded) for each in events)
            assert re.match(rb": stream\nretry: \d+\n", data)
        assert ended <= CLIENTS - DESCRIPTORS / 2
        assert metric(narrow, "trio_sse_counted_streams") < DESCRIPTORS


PROGRAM = """
from tests.apps import app

files = []


@app.post("/test/files")
async def open_files():
    files.extend(open("/dev/null") for _ in range(80))
    return "opened"
"""


def test_files_that_an_application_opens_are_no_connections(tmp_path: Path) -> None:
    """Nobody could know of them before; the log has one line about it, and the next clients are told."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with serving_with(DESCRIPTORS, tmp_path, app="program:app") as server:
        assert ask(server, "POST", "/test/files").status == 200
        with Crowd(server, CLIENTS):
            check_health(server)
        with Crowd(server, CLIENTS, PUBLISH) as crowd:
            check_health(server)
            assert crowd.listen_until(lambda: crowd.statuses()["503"] > CLIENTS - DESCRIPTORS, within=30)


def test_streams_over_tls_beyond_the_descriptors_are_told_to_come_back(tmp_path: Path) -> None:
    """Those who only shake hands make room like all who wait."""
    with serving_with(DESCRIPTORS, tmp_path) as server, contextlib.ExitStack() as stack:
        secure, trusted = ("127.0.0.1", server.secure_port), server.trusted()
        for _ in range(DESCRIPTORS):
            stack.enter_context(socket.create_connection(secure, timeout=30))
        told: Counter[bytes] = Counter()
        for _ in range(DESCRIPTORS):
            plain = stack.enter_context(socket.create_connection(secure, timeout=30))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = stack.enter_context(trusted.wrap_socket(plain, server_hostname="localhost"))
            client.sendall(GET_STREAM)
            answer = b""
            while b"retry: " not in answer:
                piece = client.recv(65536)
                assert piece, answer
                answer += piece
            told[answer[:13]] += 1
        assert told == {b"HTTP/1.1 200 ": DESCRIPTORS}
        check_health(server)


LATE_S = 0.3
"""More than a moment, and a good deal less than who shakes hands has: a busy machine may stand still."""


def from_afar(server: SecureServer, stack: contextlib.ExitStack) -> bytes:
    """What a stream's client is answered that is late with all it says over TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = server.trusted().wrap_bio(incoming, outgoing, server_hostname="localhost")
    client = stack.enter_context(socket.create_connection(("127.0.0.1", server.secure_port), timeout=30))
    answer = b""
    is_asked = False
    while True:
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
            if not is_asked:
                is_asked = bool(tls.write(GET_STREAM))
            while piece := tls.read(65536):
                answer += piece
        if b"retry: " in answer:
            return answer
        client.sendall(outgoing.read())
        time.sleep(LATE_S)
        piece = client.recv(65536)
        assert piece, "it was let go"
        incoming.write(piece)


def test_who_is_far_away_is_told_to_come_back_over_tls_too(tmp_path: Path) -> None:
    """There is time to shake hands, however many others come meanwhile."""
    with serving_with(64, tmp_path) as server, contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(64) as threads:
            answers = list(threads.map(lambda _: from_afar(server, stack), range(64)))
        assert {each[:13] for each in answers} == {b"HTTP/1.1 200 "}
        check_health(server)


def idle_crowd(folder: Path, *, count: int, descriptors: int) -> float:
    """How long a new client waits for its stream among so many connections that ask for nothing."""
    with serving_with(descriptors, folder, "--keep-alive", "120") as server, Crowd(server, count):
        allowed = metric(server, "trio_sse_connections")
        assert allowed > min(count, descriptors) * 0.8
        watch = Stopwatch(server)
        with Listener(server, "/events?topic=crowd") as listener:
            assert "id" in listener.event()
            took = watch.seconds()
            check_health(server)
        return took


def test_a_new_client_has_its_stream_among_two_thousand_idle_connections(tmp_path: Path) -> None:
    """There are more of them than descriptors, so some have gone."""
    assert idle_crowd(tmp_path, count=2_000, descriptors=1_024) < 2 * NEW_CLIENT_S + STALL_S


@pytest.mark.proof
@pytest.mark.timeout(300)
@pytest.mark.parametrize("descriptors", [20_000, 4_096])
def test_a_new_client_has_its_stream_among_ten_thousand_idle_connections(tmp_path: Path, descriptors: int) -> None:
    """Within a second, whether there are descriptors for all of them or not."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    took = idle_crowd(tmp_path, count=min(10_000, most - 1_000), descriptors=min(descriptors, most))
    assert took < 2 * NEW_CLIENT_S
