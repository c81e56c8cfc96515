"""What is mended in Hypercorn's HTTP/2, seen from a client's side."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded
from h2.settings import SettingCodes, Settings
from hypercorn.protocol.h2 import H2Protocol

from tests.conftest import KEY, STALL_S, WITHIN_S, ask, bearer, eventually, publish, sign
from tests.fuzzing import PREFACE, frame, header_block
from tests.serving import Server, resident, serving
from trio_sse.server import guard_hypercorn
from trio_sse.server.connection import _read_size

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

    def read_until(self, holds: Callable[[], bool], *, within: float = WITHIN_S) -> bool:
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
    assert eventually(lambda: worker(server)["streams"] == 0, within=2 * WRITE_TIMEOUT_S + STALL_S)
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
    assert eventually(
        lambda: all(worker(server)[key] <= baseline[key] for key in keys), within=2 * WRITE_TIMEOUT_S + STALL_S
    )


def test_who_takes_back_whatever_it_asks_for_is_let_go(server: Server) -> None:
    """A client that resets each request as it sends it ("rapid reset") has not begun thousands of them for long."""
    baseline = worker(server)
    client = Client(server)
    client.open_stream("/events?topic=rash")  # so that the connection is not merely idle
    for _ in range(400):
        number = client.h2.get_next_available_stream_id()
        pseudo = [(":method", "GET"), (":path", "/events?topic=rash"), (":scheme", "http"), (":authority", "x")]
        client.h2.send_headers(number, pseudo, end_stream=True)
        client.h2.reset_stream(number, 8)
    with contextlib.suppress(ConnectionError):
        client.flush()
    assert client.read_until(lambda: client.closed)
    client.socket.close()
    assert eventually(lambda: worker(server)["tasks"] <= baseline["tasks"])


def test_a_page_that_is_left_may_take_back_what_it_asked_for(server: Server) -> None:
    """As many requests as it may have, unanswered, and any number of streams that had begun."""
    client = Client(server)
    stream = client.open_stream("/events?topic=kept")
    for _ in range(210):
        client.h2.reset_stream(client.open_stream("/events?topic=left"), 8)
    for number in [client.ask("/events?topic=left") for _ in range(90)]:
        client.h2.reset_stream(number, 8)
    client.flush()
    publish(server, "kept", "afterwards")
    assert client.read_until(lambda: b"afterwards" in client.data[stream])
    client.socket.close()


def test_what_nobody_took_is_given_back_at_once(server: Server) -> None:
    """Clients that ask for much and leave without reading cost memory while they are there, and not afterwards."""
    for _ in range(60):
        publish(server, "replayed", "x" * 4000)
    pid = worker(server)["pid"]

    def leave_much_unread() -> int:
        for _ in range(3):
            client = Client(server)
            client.is_reading = False
            for _ in range(90):
                client.ask("/events?topic=replayed&last_event_id=earliest")
            assert client.read_until(lambda client=client: len(client.answered) == 90)  # type: ignore[misc]
            client.socket.close()
            assert eventually(lambda: worker(server)["streams"] == 0)
        return resident(pid)

    before = leave_much_unread()
    assert max(leave_much_unread() for _ in range(3)) - before < 25 * MIB


def test_wishes_for_the_table_of_fields_do_not_pile_up(server: Server) -> None:
    """A client that wishes for another size again and again gets an answer of the usual length."""
    fields = [(b":method", b"GET"), (b":path", b"/healthz"), (b":scheme", b"http"), (b":authority", b"x")]
    wishes = b"".join(frame(4, 0, 0, b"\x00\x01" + (4096 * (number % 2)).to_bytes(4, "big")) for number in range(2000))
    with socket.create_connection(("127.0.0.1", server.port), timeout=WITHIN_S) as client:
        client.sendall(PREFACE + frame(4, 0, 0, b"") + wishes + frame(1, 5, 1, header_block(fields)))
        received = b""
        while (found := re.search(rb"(...)\x01\x04\x00\x00\x00\x01", received, re.DOTALL)) is None:
            piece = client.recv(65536)
            assert piece
            received += piece
    assert int.from_bytes(found[1], "big") < 500


def test_what_became_of_streams_is_not_remembered_for_ever() -> None:
    """A connection that had a million streams holds no more than one that had a thousand."""
    guard_hypercorn(write_timeout_s=1, drain_s=1)
    connection = H2Connection(H2Configuration(client_side=False))
    for number in range(3000):
        connection._closed_streams[number] = None
    assert len(connection._closed_streams) == 1000


def test_few_bytes_are_read_at_once() -> None:
    """Frames can be small, and other connections have their turn only when those that were read are done."""
    protocol: Any = object.__new__(H2Protocol)
    server: Any = SimpleNamespace(protocol=SimpleNamespace(protocol=protocol))
    assert _read_size(server) == 4096


def test_a_reset_stream_does_not_spoil_the_connection(server: Server) -> None:
    """Streams that are reset while another's write is stuck do not garble the headers of those that follow."""
    client = Client(server, window=2**29, receive_buffer=4096)
    client.open_stream("/events?topic=stuck")
    for _ in range(4):
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
    token = sign(ttl_s=5, subscribe=["expiring"])
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
    assert time.monotonic() - began < 5 + 2 * 1 + STALL_S
    client.socket.close()
    plain.close()


@pytest.mark.parametrize(
    ("method", "window", "is_told"), [("GET", 65535, True), ("HEAD", 65535, False), ("GET", 0, False)]
)
def test_a_refusal_ends_its_stream_and_nothing_else(server: Server, method: str, window: int, is_told: bool) -> None:
    """With its words, where the method and the client's window have room for them; the connection goes on."""
    client = Client(server, window=window)
    number = client.h2.get_next_available_stream_id()
    client.h2.config.normalize_outbound_headers = client.h2.config.validate_outbound_headers = False
    target = [(b":method", method.encode()), (b":path", b"/\xff"), (b":scheme", b"http"), (b":authority", b"x")]
    client.h2.send_headers(number, target, end_stream=True)
    client.flush()
    assert client.read_until(lambda: number in client.ended)
    assert (b'"status": 400' in client.data.get(number, b"")) == is_told
    after = client.ask("/healthz", headers={})
    assert client.read_until(lambda: after in client.answered)
    client.socket.close()
