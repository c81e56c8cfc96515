"""What is mended in Hypercorn's HTTP/2, seen from a client's side."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded
from h2.settings import SettingCodes, Settings

from tests.conftest import KEY, ask, bearer, eventually, publish, sign
from tests.serving import Server, serving

MIB = 1024 * 1024
WRITE_TIMEOUT_S = 2


class Client:
    """One HTTP/2 connection with prior knowledge, which opens its window as far as it is told to."""

    def __init__(self, server: Server, *, window: int = 65535, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", server.port))
        self.h2 = H2Connection(H2Configuration(client_side=True))
        self.h2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.h2.initiate_connection()
        if window > 65535:
            self.h2.increment_flow_control_window(window)
        self.is_reading = True
        self.data: dict[int, bytes] = {}
        self.answered: set[int] = set()
        self.ended: set[int] = set()
        self.closed = False
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def ask(self, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None) -> int:
        """Send a request, a POST if it has a body; the number of its stream."""
        number = self.h2.get_next_available_stream_id()
        method = "GET" if body is None else "POST"
        pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x")]
        more = [(name.lower(), value) for name, value in (headers or {}).items()]
        self.h2.send_headers(number, pseudo + more, end_stream=body is None)
        if body is not None:
            self.h2.send_data(number, body, end_stream=True)
        self.flush()
        return number

    def read_until(self, holds: Callable[[], bool], *, within: float = 10) -> bool:
        """Read until something holds; whether it did in time."""
        deadline = time.monotonic() + within
        while not holds() and not self.closed and time.monotonic() < deadline:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                try:
                    data = self.socket.recv(65536)
                except ConnectionError:
                    data = b""
                self.closed = not data
                for event in self.h2.receive_data(data):
                    self._take(event)
                with contextlib.suppress(ConnectionError):
                    self.flush()
        return holds()

    def _take(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            assert event.stream_id is not None
            self.data[event.stream_id] = self.data.get(event.stream_id, b"") + (event.data or b"")
            if self.is_reading and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, ResponseReceived):
            assert event.stream_id is not None
            self.answered.add(event.stream_id)
        elif isinstance(event, StreamEnded):
            assert event.stream_id is not None
            self.ended.add(event.stream_id)

    def open_stream(self, path: str, **headers: str) -> int:
        """Subscribe, and wait for the opening."""
        number = self.ask(path, headers=headers)
        assert self.read_until(lambda: b"id: " in self.data.get(number, b""))
        return number


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {
        "TRIO_SSE_JOURNAL": "memory:",
        "TRIO_SSE_WRITE_TIMEOUT_S": str(WRITE_TIMEOUT_S),
        "TRIO_SSE_RETENTION_BYTES": str(4 * MIB),
        "TRIO_SSE_JWT_KEY": KEY,
        "TRIO_SSE_ANONYMOUS": "publish,subscribe",
    }
    with serving("tests.apps:app", folder=tmp_path_factory.mktemp("h2"), env=env) as running:
        yield running


def worker(server: Server) -> dict[str, int]:
    told: dict[str, int] = ask(server, "GET", "/test/worker").json
    return told


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_several_streams_of_one_connection_get_their_own(server: Server) -> None:
    """Events of two topics over one connection, each to its stream."""
    client = Client(server)
    one, two = client.open_stream("/events?topic=one"), client.open_stream("/events?topic=two")
    publish(server, "one", "first")
    publish(server, "two", "second")
    assert client.read_until(lambda: b"first" in client.data[one] and b"second" in client.data[two])
    assert b"second" not in client.data[one]
    client.socket.close()


def test_a_frozen_client_makes_nothing_grow_and_is_let_go(server: Server) -> None:
    """One that opens no window is released, and what waited for it is bounded."""
    client = Client(server)
    client.open_stream("/events?topic=frozen")
    client.is_reading = False
    pid = worker(server)["pid"]
    before = resident(pid)
    for _ in range(100):
        publish(server, "frozen", "x" * 900_000)
    assert resident(pid) - before < 50 * MIB
    assert eventually(lambda: worker(server)["streams"] == 0, within=4 * WRITE_TIMEOUT_S)
    client.socket.close()


def test_a_stream_outlives_a_thousand_requests_of_its_connection(server: Server) -> None:
    """A page that publishes over the connection of its stream goes on receiving."""
    client = Client(server)
    stream = client.open_stream("/events?topic=busy")
    for number in range(1050):
        answer = client.ask("/topics/busy", body=b"m", headers={"content-type": "text/plain"})
        assert client.read_until(lambda answer=answer: answer in client.ended), number  # type: ignore[misc]
    publish(server, "busy", "afterwards")
    assert client.read_until(lambda: b"afterwards" in client.data[stream])
    client.socket.close()


def test_leaving_before_the_last_message_leaves_nothing(server: Server) -> None:
    """A client that goes while its window is closed and an answer waits for it is forgotten."""
    baseline = worker(server)
    for _ in range(5):
        client = Client(server, window=100)
        client.ask("/board.js")
        assert client.read_until(lambda client=client: bool(client.answered))  # type: ignore[misc]
        client.socket.close()
    keys = ("tasks", "descriptors")
    assert eventually(lambda: all(worker(server)[key] <= baseline[key] for key in keys), within=4 * WRITE_TIMEOUT_S)


def test_a_reset_stream_does_not_spoil_the_connection(server: Server) -> None:
    """Streams that are reset while another's write is stuck do not garble the headers of those that follow."""
    client = Client(server, window=2**29, receive_buffer=4096)
    client.open_stream("/events?topic=stuck")
    for _ in range(16):
        publish(server, "stuck", "x" * 700_000)
    others = [client.ask("/events?topic=stuck", headers={"last-event-id": f"{number}-1"}) for number in range(3)]
    time.sleep(0.3)  # the requests must be waiting behind the stuck write when they are reset
    for other in others:
        client.h2.reset_stream(other, 8)
    client.flush()
    innocent = client.ask("/events?topic=innocent")
    assert client.read_until(lambda: b"id: " in client.data.get(innocent, b""))
    client.socket.close()


def test_an_expired_token_ends_a_stream_that_is_not_read(server: Server) -> None:
    """A write that waits does not outlast the token: neither over HTTP/2 nor over HTTP/1.1."""
    token = sign(ttl_s=2, subscribe=["expiring"])
    began = time.monotonic()
    client = Client(server, window=10)
    client.ask("/events?topic=expiring", headers=bearer(token))
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect(("127.0.0.1", server.port))
    plain.sendall(f"GET /events?topic=expiring HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    assert eventually(lambda: worker(server)["streams"] == 2)
    while time.monotonic() < began + 1.5:
        publish(server, "expiring", "x" * 500_000)
    assert eventually(lambda: worker(server)["streams"] == 0)
    assert time.monotonic() - began < 2 + 2 * 1
    client.socket.close()
    plain.close()
