"""Clients that send a byte now and then, or none: they have their time, and no more."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from tests.conftest import STALL_S, WITHIN_S, Wire, ask, eventually, metric
from tests.serving import SecureServer, running, serving
from tests.test_server_h2 import Client

KEEP_ALIVE_S = 1
BODY_TIMEOUT_S = 2
NOW_AND_THEN_S = 0.15

PROGRAM = """
from tests.apps import app

app.config["BODY_TIMEOUT"] = {}
"""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8)
HEADERS = b"\x00\x40\x00\x01\x05\x00\x00\x00\x01"  # of 16 KiB, which then come a byte at a time
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "


def slow_server(folder: Path, *, body_timeout_s: float = BODY_TIMEOUT_S) -> SecureServer:
    (folder / "program.py").write_text(PROGRAM.format(body_timeout_s))
    args = ("--keep-alive", str(KEEP_ALIVE_S))
    return SecureServer("program:app", folder=folder, env={"TRIO_SSE_JOURNAL": "memory:"}, args=args)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    with running(slow_server(tmp_path_factory.mktemp("slow"))) as server:
        yield server
        assert server.terminate() == 0
        assert "Traceback" not in server.log()


def until_closed(say: Callable[[], object], reader: socket.socket) -> float:
    """Say something now and then until the other side closes; how long that took."""
    began = time.monotonic()
    reader.settimeout(NOW_AND_THEN_S)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while time.monotonic() < began + 30:
            say()
            with contextlib.suppress(TimeoutError):
                while reader.recv(65536):
                    pass
                break
    return time.monotonic() - began


def one_by_one(client: socket.socket, data: bytes) -> Callable[[], object]:
    """Sends a byte of it each time, and then one that means nothing."""
    rest = iter(data)
    return lambda: client.sendall(bytes([next(rest, ord("a"))]))


def over_tls(server: SecureServer, stack: contextlib.ExitStack, *protocols: str) -> ssl.SSLSocket:
    plain = stack.enter_context(socket.create_connection(("127.0.0.1", server.secure_port), timeout=30))
    return stack.enter_context(server.trusted(*protocols).wrap_socket(plain, server_hostname="localhost"))


PLAIN = {
    "a header": (b"", HEAD),
    "a header on a used connection": (GET, HEAD),
    "empty lines": (b"", b"\r\n" * 100),
    "a preface": (b"", PREFACE),
    "an HTTP/2 header": (PREFACE + SETTINGS, HEADERS),
    "pings": (PREFACE + SETTINGS, PING * 100),
}


@pytest.mark.parametrize("what", PLAIN)
def test_a_slow_request_has_no_more_time_than_an_idle_connection(server: SecureServer, what: str) -> None:
    """A byte now and then does not extend it."""
    at_once, slowly = PLAIN[what]
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(at_once)
        assert until_closed(one_by_one(client, slowly), client) < 2 * KEEP_ALIVE_S + STALL_S


@pytest.mark.parametrize("what", ["a header", "a header on a used connection", "an HTTP/2 header"])
def test_over_tls_a_slow_request_has_no_more_time_than_an_idle_connection(server: SecureServer, what: str) -> None:
    """Just so."""
    at_once, slowly = PLAIN[what]
    with contextlib.ExitStack() as stack:
        client = over_tls(server, stack, "h2" if "HTTP/2" in what else "http/1.1")
        client.sendall(at_once)
        assert until_closed(one_by_one(client, slowly), client) < 2 * KEEP_ALIVE_S + STALL_S


def test_a_slow_handshake_has_no_more_time_than_an_idle_connection(server: SecureServer) -> None:
    """A whole minute would be Hypercorn's own."""
    outgoing = ssl.MemoryBIO()
    hello = server.trusted().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    with socket.create_connection(("127.0.0.1", server.secure_port)) as client:
        assert until_closed(one_by_one(client, outgoing.read()[:100] * 100), client) < 2 * KEEP_ALIVE_S + STALL_S


def test_a_client_that_resets_its_streams_waits_like_others(server: SecureServer) -> None:
    """Over HTTP/2 its connection has no request then."""
    client = Client(server)
    number = client.open_stream("/events?topic=reset")
    client.h2.reset_stream(number)
    client.flush()
    assert until_closed(lambda: client.socket.sendall(PING), client.socket) < 2 * KEEP_ALIVE_S + STALL_S
    client.socket.close()


def test_a_stream_is_not_a_slow_request(server: SecureServer) -> None:
    """It waits as long as it likes; so does another request behind it, over HTTP/1.1 and HTTP/2."""
    client = Client(server)
    client.open_stream("/events?topic=long")
    number = client.ask("/healthz")
    assert client.read_until(lambda: number in client.ended)
    with Wire(server) as wire:
        wire.send(b"GET /events?topic=long HTTP/1.1\r\nHost: x\r\n\r\n")
        wire.take(b"\nid: ")
        time.sleep(2 * KEEP_ALIVE_S)
        assert ask(server, "POST", "/topics/long", b"there you are").status == 201
        wire.take(b"there you are")
        assert client.read_until(lambda: any(b"there you are" in data for data in client.data.values()))
    client.socket.close()


# -- bodies -----------------------------------------------------------------------------------------------------------


def test_a_slow_body_is_refused(server: SecureServer) -> None:
    """Its time does not begin anew with each byte; the client is told, and the connection closed."""
    with Wire(server) as wire:
        wire.send(b"POST /topics/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        began = time.monotonic()
        wire.socket.settimeout(NOW_AND_THEN_S)
        answer = b""
        while b"\r\n\r\n" not in answer and time.monotonic() < began + 30:
            wire.send(b"a")
            with contextlib.suppress(TimeoutError):
                answer += wire.socket.recv(65536)
        assert time.monotonic() - began < 2 * BODY_TIMEOUT_S + STALL_S
        assert answer.startswith(b"HTTP/1.1 408 ")
        wire.socket.settimeout(WITHIN_S)
        assert b"send it within a minute" in answer + wire.rest()


def test_a_slow_body_over_http2_is_refused(server: SecureServer) -> None:
    """And the other streams of its connection go on."""
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    head = [(":method", "POST"), (":path", "/topics/slow"), (":scheme", "http"), (":authority", "x")]
    client.send_headers(1, head)
    get = [(":method", "GET"), (":path", "/events?topic=slow"), (":scheme", "http"), (":authority", "x")]
    client.send_headers(3, get, end_stream=True)
    with Wire(server) as wire:
        wire.send(client.data_to_send())
        began = time.monotonic()
        seen = b""
        while b"send it within a minute" not in seen:
            seen += wire.socket.recv(65536)
        assert time.monotonic() - began < 2 * BODY_TIMEOUT_S + STALL_S
        assert ask(server, "POST", "/topics/slow", b"still here").status == 201
        wire.take(b"still here")


def test_a_body_that_goes_on_coming_has_its_time(tmp_path: Path) -> None:
    """More than a body has, for one that comes at more than a kibibyte a second."""
    seconds, pieces = 3, 30  # longer than the others have: a busy machine may stand still between two pieces
    piece = b"a" * seconds * 1024
    with running(slow_server(tmp_path, body_timeout_s=seconds)) as server, Wire(server) as wire:
        wire.send(b"POST /topics/steady HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (pieces * len(piece)))
        began = time.monotonic()
        for _ in range(pieces):
            wire.send(piece)
            time.sleep(NOW_AND_THEN_S)
        assert time.monotonic() - began > 1.4 * seconds
        assert wire.take(b"\r\n").startswith(b"HTTP/1.1 201 ")


def test_a_publisher_of_a_stream_may_be_silent(server: SecureServer) -> None:
    """It is not a body that does not come."""
    with Wire(server) as wire:
        wire.send(b"POST /topics/quiet HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\n")
        wire.send(b"Transfer-Encoding: chunked\r\n\r\n")
        wire.chunk(b"data: one\n\n")
        wire.take(b'"acked": 1')
        time.sleep(2 * max(BODY_TIMEOUT_S, KEEP_ALIVE_S))
        wire.chunk(b"data: two\n\n")
        wire.take(b'"acked": 2')


def test_at_the_end_none_of_them_is_left(server: SecureServer) -> None:
    """All that was slow here is gone."""
    assert eventually(lambda: metric(server, "trio_sse_connections") == 1)


@pytest.mark.proof
@pytest.mark.timeout(200)
def test_a_body_has_a_minute(tmp_path: Path) -> None:
    """With the settings as they are."""
    with serving(folder=tmp_path, env={"TRIO_SSE_JOURNAL": "memory:"}) as server, Wire(server) as wire:
        wire.send(b"POST /topics/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        began = time.monotonic()
        wire.socket.settimeout(1)
        answer = b""
        while not answer and time.monotonic() < began + 130:
            wire.send(b"a")
            with contextlib.suppress(TimeoutError):
                answer += wire.socket.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 55 < time.monotonic() - began < 2 * 60
