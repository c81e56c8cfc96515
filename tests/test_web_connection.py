"""What becomes of a connection, over the real server and bare sockets: it closes when it should, and not before."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from .conftest import STALL_S, WITHIN_S, Listener, Wire, ask, eventually, last_event_id, publish, remains
from .serving import Server, serving

PROGRAM = """
import gc
import json
import os
import trio
from quart import Response
from quart.wrappers.response import ResponseBody
from tests.apps import app
from trio_sse.web import connection

connection.LINGER_S = float(os.environ["LINGER_S"])
connection.QUIET_S = float(os.environ["QUIET_S"])

class Broken(ResponseBody):
    def __init__(self):
        self.pieces = iter([b"so far\\n"])
    async def __aenter__(self):
        return self
    async def __aexit__(self, *exc):
        pass
    def __aiter__(self):
        return self
    async def __anext__(self):
        for piece in self.pieces:
            return piece
        raise ZeroDivisionError("a fault in mid-answer")

@app.get("/test/broken")
async def broken():
    return Response(Broken())

ended = []

@app.get("/test/waits")
async def waits():
    try:
        ended.append("waiting")
        await trio.sleep_forever()
    finally:
        ended.append("cancelled")

@app.get("/test/slow")
async def slow():
    await trio.sleep(0.2)
    return "at last"

@app.get("/test/ended")
async def told():
    return json.dumps(ended)

@app.get("/test/kept")
async def kept():
    gc.collect()
    names = [type(each).__name__ for each in gc.get_objects()]
    return {name: names.count(name) for name in ("Request", "EventStream", "RequestContext")}
"""
pytestmark = pytest.mark.usefixtures("baseline")
KEEP_ALIVE_S = 1
HEARTBEAT_S = 0.5
ENV = {"TRIO_SSE_HEARTBEAT_S": str(HEARTBEAT_S), "LINGER_S": "3", "QUIET_S": "1"}
ARGS = (
    *("--keep-alive", str(KEEP_ALIVE_S)),
    *("--access-logfile", "-", "--access-logformat", "%(R)s %(s)s"),
)

STREAM = b"data: x\n\n"
KINDS = {
    "page": b"GET / HTTP/%b\r\nHost: x\r\n%b\r\n",
    "answer": b"GET /healthz HTTP/%b\r\nHost: x\r\n%b\r\n",
    "refusal": b"GET /nothing HTTP/%b\r\nHost: x\r\n%b\r\n",
    "head of a stream": b"HEAD /events?topic=a HTTP/%b\r\nHost: x\r\n%b\r\n",
    "publish": b"POST /topics/closing HTTP/%b\r\nHost: x\r\nContent-Length: 1\r\n%b\r\nx",
    "events": b"POST /topics/closing HTTP/%%b\r\nHost: x\r\nContent-Type: text/event-stream\r\n"
    b"Content-Length: %d\r\n%%b\r\n%b" % (len(STREAM), STREAM),
    "sign out": b"DELETE /session HTTP/%b\r\nHost: x\r\n%b\r\n",
}


def asked(kind: str, version: bytes = b"1.1", header: bytes = b"") -> bytes:
    """One request of a kind, with one header more."""
    return KINDS[kind] % (version, header)


def used(server: Server, kind: str) -> Wire:
    """A connection on which one request has been answered, and which is kept alive."""
    wire = Wire(server)
    wire.send(asked(kind))
    head = wire.take(b"\r\n\r\n").lower()
    assert b"connection: close" not in head
    if b"chunked" in head and kind != "head of a stream":
        wire.take(b"0\r\n\r\n")
    elif (length := re.search(rb"content-length: (\d+)", head)) and int(length[1]):
        wire.take_bytes(int(length[1]))
    return wire


# -- it closes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that by itself closes no connection in the time of a test."""
    folder = tmp_path_factory.mktemp("patient")
    (folder / "program.py").write_text(PROGRAM)
    env = {"TRIO_SSE_JOURNAL": "memory:", **ENV, "LINGER_S": "60", "QUIET_S": "30"}
    with serving("program:app", folder=folder, env=env, args=("--keep-alive", "600")) as server:
        yield server
        assert "Traceback" not in server.log()


@pytest.mark.parametrize("kind", KINDS)
def test_connection_close_closes(patient: Server, kind: str) -> None:
    """A client that says ``Connection: close`` sees the end of the connection after its answer, at once."""
    with Wire(patient) as wire:
        wire.send(asked(kind, header=b"Connection: close\r\n"))
        assert wire.rest().startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize("kind", KINDS)
def test_http_1_0_closes(patient: Server, kind: str) -> None:
    """After an answer to HTTP/1.0, whose end is the connection's, it is closed at once."""
    with Wire(patient) as wire:
        wire.send(asked(kind, version=b"1.0"))
        assert b" 2" in wire.rest().partition(b"\r\n")[0] or kind == "refusal"


def closed_after(wires: dict[str, Wire], asked_at: dict[str, float]) -> dict[str, float]:
    """The seconds from its request after which each is closed by the server, which says nothing more on it."""
    began = time.monotonic()
    seconds: dict[str, float] = {}
    with selectors.DefaultSelector() as selector:
        for kind, wire in wires.items():
            selector.register(wire.socket, selectors.EVENT_READ, kind)
        while len(seconds) < len(wires) and time.monotonic() - began < WITHIN_S:
            for key, _ in selector.select(timeout=0.1):
                with contextlib.suppress(ConnectionError):
                    assert wires[key.data].socket.recv(1) == b""
                selector.unregister(key.fileobj)
                seconds[key.data] = time.monotonic() - asked_at[key.data]
    return seconds


def check_closed_by_keep_alive(seconds: dict[str, float]) -> None:
    """Every kind was closed by the keep-alive time, neither before nor much later."""
    assert seconds.keys() == KINDS.keys()
    for kind, after in seconds.items():
        assert KEEP_ALIVE_S <= after < 2 * KEEP_ALIVE_S + STALL_S, kind


def all_used(server: Server, stack: contextlib.ExitStack) -> tuple[dict[str, Wire], dict[str, float]]:
    """A used connection of each kind, and the time before its request."""
    wires: dict[str, Wire] = {}
    asked_at: dict[str, float] = {}
    for kind in KINDS:
        asked_at[kind] = time.monotonic()
        wires[kind] = stack.enter_context(used(server, kind))
    return wires, asked_at


def test_an_idle_connection_closes(server: Server) -> None:
    """A used connection on which nothing more is asked is closed after the keep-alive time, not before."""
    with contextlib.ExitStack() as stack:
        check_closed_by_keep_alive(closed_after(*all_used(server, stack)))


def test_slow_headers_on_a_used_connection_close(server: Server) -> None:
    """A client that never finishes its second request's headers has no more time than an idle one."""
    with contextlib.ExitStack() as stack:
        wires, asked_at = all_used(server, stack)
        for wire in wires.values():
            with contextlib.suppress(ConnectionError):  # its time may be up by now
                wire.send(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        check_closed_by_keep_alive(closed_after(wires, asked_at))


def test_http_2_without_a_request_closes(server: Server) -> None:
    """A client that only says which protocol it speaks has no more time than one that says nothing."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    began = time.monotonic()
    with Wire(server) as wire:
        wire.send(client.data_to_send())
        wire.rest()
        assert KEEP_ALIVE_S <= time.monotonic() - began < 2 * KEEP_ALIVE_S + STALL_S


UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        UPGRADE + b"Sec-WebSocket-Version: 13\r\n\r\n",
        UPGRADE + KEY + b"Sec-WebSocket-Version: 12\r\n\r\n",
        UPGRADE.replace(b"1.1", b"1.0") + KEY + b"Sec-WebSocket-Version: 13\r\n\r\n",
        UPGRADE + KEY + b"Sec-WebSocket-Version: 13\r\nContent-Length: 4\r\n\r\nbody",
    ],
    ids=["no key", "version", "http/1.0", "body"],
)
def test_a_websocket_not_asked_for_as_it_should_be_closes(patient: Server, request_: bytes) -> None:
    """Who asks so is refused, and its connection does not stay for ever."""
    with Wire(patient) as wire:
        wire.send(request_)
        assert wire.rest().startswith(b"HTTP/1.1 400 ")


def test_a_websocket_not_asked_for_as_it_should_be_closes_over_http_2(server: Server) -> None:
    """There the connection has no more than the keep-alive time, as after any answer."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    pseudo = {":method": "CONNECT", ":protocol": "websocket", ":path": "/", ":scheme": "http", ":authority": "x"}
    with Wire(server) as wire:
        wire.send(client.data_to_send())
        client.receive_data(wire.socket.recv(65536))  # it allows for such a method
        client.send_headers(1, list(pseudo.items()))
        wire.send(client.data_to_send())
        began = time.monotonic()
        client.receive_data(wire.rest())
        assert time.monotonic() - began < 2 * KEEP_ALIVE_S + STALL_S


def test_another_servers_name_closes(tmp_path: Path) -> None:
    """A request for a host that Hypercorn was told not to serve is refused, and its connection does not stay."""
    args = ("--server-name", "here", "--keep-alive", "600")
    with serving(folder=tmp_path, env={"TRIO_SSE_JOURNAL": "memory:"}, args=args) as server, Wire(server) as wire:
        wire.send(asked("page"))
        assert wire.rest().startswith(b"HTTP/1.1 404 ")


# -- it does not close ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_serves_one_request_after_another(patient: Server, kind: str) -> None:
    """Three requests find the same connection open."""
    with used(patient, kind) as wire:
        for _ in range(2):
            wire.send(asked("answer"))
            assert wire.take(b"alive\n").startswith(b"HTTP/1.1 200 ")


def test_requests_may_be_sent_all_at_once(server: Server) -> None:
    """Pipelined requests are answered in their order."""
    with Wire(server) as wire:
        wire.send(asked("answer") * 10 + asked("refusal", header=b"Connection: close\r\n"))
        answered = wire.rest()
    assert re.findall(rb"HTTP/1.1 (\d+)", answered) == [b"200"] * 10 + [b"404"]


def test_a_stream_outlives_the_keep_alive_time(server: Server) -> None:
    """The keep-alive time is for connections without a request; a stream has one."""
    with Listener(server, "/events?topic=a") as listener:
        listener.take()
        began = time.monotonic()
        while time.monotonic() - began < 2 * KEEP_ALIVE_S:
            assert listener.take(b"\n") == b":\n"


def test_a_slow_publisher_outlives_the_keep_alive_time(server: Server, topic: str) -> None:
    """Neither is it for a body that is still coming."""
    with Listener(server, f"/events?topic={topic}") as clock, Wire(server) as wire:
        wire.send(f"POST /topics/{topic} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nha".encode())
        began = time.monotonic()
        while time.monotonic() - began < 2 * KEEP_ALIVE_S:
            clock.take(b"\n")
        wire.send(b"lf")
        assert wire.take(b"\r\n").startswith(b"HTTP/1.1 201 ")


# -- a client that is refused while it sends --------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["text/plain", "text/event-stream"])
def test_a_refused_client_may_send_slowly_and_read_late(patient: Server, topic: str, content_type: str) -> None:
    """Who sends on for some seconds after the refusal, and reads only then, finds it, not a reset connection."""
    with Listener(patient, f"/events?topic={topic}") as clock, Wire(patient) as wire:
        wire.send(
            f"POST /topics/* HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        began = time.monotonic()
        while time.monotonic() - began < 1.7:
            clock.take(b"\n")
            wire.chunk(b"x" * 100_000)
        wire.chunk(b"")
        head = wire.take(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"no wildcards" in wire.take(b"}")


@pytest.mark.parametrize("content_type", ["text/plain", "text/event-stream"])
def test_a_refused_client_that_falls_silent_is_closed(server: Server, content_type: str) -> None:
    """Nobody waits long for the rest of a body that is thrown away anyhow."""
    with Wire(server) as wire:
        wire.send(f"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n".encode())
        wire.send(b"Content-Length: 100\r\n\r\nhalf")
        began = time.monotonic()
        assert b" 404 " in wire.rest()
        assert time.monotonic() - began < 2 * 1 + STALL_S


@pytest.mark.parametrize("content_type", ["text/plain", "text/event-stream"])
def test_a_refused_client_that_never_stops_is_closed(
    server: Server, content_type: str, baseline: dict[str, int]
) -> None:
    """A body without end is thrown away for a while, then the connection is closed, and nothing of it remains."""
    with Wire(server) as wire:
        wire.send(f"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n".encode())
        wire.send(b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):
            send_on(wire, b"x" * 1_000_000)
    assert eventually(lambda: not remains(server, baseline))


def send_on(wire: Wire, piece: bytes) -> None:
    """Send chunk after chunk, for twenty seconds at most."""
    began = time.monotonic()
    while time.monotonic() - began < 20:
        wire.chunk(piece)


# -- an answer that breaks off ----------------------------------------------------------------------------------------


def test_a_broken_answer_ends(server: Server) -> None:
    """A fault in mid-answer ends the answer, and the log has the reason."""
    with Wire(server) as wire:
        wire.send(b"GET /test/broken HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert wire.rest().endswith(b"7\r\nso far\n\r\n0\r\n\r\n")
    check_fault_is_logged(server)


def test_a_broken_answer_ends_over_http_2(server: Server) -> None:
    """Over HTTP/2 too, where the stream would stay open for ever; and the connection's others go on."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    names = {":method": "GET", ":scheme": "http", ":authority": "x"}
    client.send_headers(1, list({**names, ":path": "/test/broken"}.items()), end_stream=True)
    client.send_headers(3, list({**names, ":path": "/healthz"}.items()), end_stream=True)
    bodies: dict[int | None, bytes] = {1: b"", 3: b""}
    ended: set[int | None] = set()
    with Wire(server) as wire:
        while len(ended) < 2:
            wire.send(client.data_to_send())
            received = wire.socket.recv(65536)
            assert received
            for event in client.receive_data(received):
                if isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data or b""
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    ended.add(event.stream_id)
    assert bodies == {1: b"so far\n", 3: b"alive\n"}
    check_fault_is_logged(server)


def check_fault_is_logged(server: Server) -> None:
    """The log has the fault; it is taken out, since the module's server is checked for any other."""
    assert eventually(lambda: "a fault in mid-answer" in server.log())
    server.log_path.write_text("")


# -- a client that leaves, a client that stays ------------------------------------------------------------------------


def test_a_view_is_cancelled_when_its_client_leaves(server: Server) -> None:
    """Also one that sends nothing; no task of its own waits for that."""
    with Wire(server) as wire:
        wire.send(b"GET /test/waits HTTP/1.1\r\nHost: x\r\n\r\n")
        assert eventually(lambda: ask(server, "GET", "/test/ended").json == ["waiting"])
    assert eventually(lambda: ask(server, "GET", "/test/ended").json == ["waiting", "cancelled"])


def test_who_will_send_no_more_is_answered(server: Server) -> None:
    """A whole request is, though its client has half-closed; then the connection is closed."""
    with Wire(server) as wire:
        wire.send(b"GET /test/slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.rest().endswith(b"at last")


def test_a_stream_is_two_tasks(server: Server, topic: str, baseline: dict[str, int]) -> None:
    """One reads from its connection, one writes."""
    with Listener(server, f"/events?topic={topic}") as stream:
        stream.take()
        assert eventually(lambda: ask(server, "GET", "/test/worker").json["tasks"] == baseline["tasks"] + 2)


def test_a_stream_keeps_neither_its_request_nor_its_response(server: Server, topic: str) -> None:
    """They are let go when the first bytes have been sent."""

    def kept() -> list[int]:
        told = ask(server, "GET", "/test/kept").json
        return [told["Request"], told["RequestContext"], told["EventStream"]]

    assert eventually(lambda: kept() == [1, 1, 0])  # those of the very question
    with Listener(server, f"/events?topic={topic}") as stream:
        stream.take()
        assert eventually(lambda: kept() == [1, 1, 0])


# -- odd requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["//metrics", "///metrics", "/%2fmetrics", "/%6detrics", "/%65vents?topic=a", "//healthz", "/%2F", "//"]
)
def test_a_path_is_served_as_it_is_written_alone(server: Server, target: str) -> None:
    """Another spelling of it would pass a proxy's rules for the path that it is once it is decoded."""
    answer = ask(server, "GET", target)
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_topic_may_be_written_in_any_way(server: Server, topic: str) -> None:
    """Percent-encoded, it is the same topic."""
    assert ask(server, "POST", f"/topics/{topic}", b"x").status == 201
    encoded = "".join(f"%{ord(letter):02x}" for letter in topic)
    assert ask(server, "GET", f"/topics/{encoded}").json["topic"] == topic


@pytest.mark.parametrize(
    "target", ["http://hub/topics/{}", "http://topics/topics/{}", "HTTPS://u:p@[::1]:8/topics/{}", "http://[/topics/{}"]
)
def test_a_target_in_absolute_form_is_its_path(server: Server, topic: str, target: str) -> None:
    """A proxy's form of a request means the same (RFC 9112 § 3.2.2)."""
    with Wire(server) as wire:
        wire.send(f"POST {target.format(topic)} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx".encode())
        assert wire.take(b"\r\n").startswith(b"HTTP/1.1 201 ")
        assert json.loads(wire.take(b"}").partition(b"\r\n\r\n")[2])["topic"] == topic
    assert last_event_id(server, topic)


@pytest.mark.parametrize(
    "line", [b"OPTIONS * HTTP/1.1", b"GET ?a HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"GET http:// HTTP/1.1"]
)
def test_a_target_without_a_path_is_answered(server: Server, line: bytes) -> None:
    """What names no path is answered like the root, not with a mistake of ours."""
    with Wire(server) as wire:
        wire.send(line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert wire.take(b"\r\n")[9:12] in (b"200", b"405")


@pytest.mark.parametrize("host", [b"", b"[", b"a b", b"\xff", b"x:99999999"])
def test_any_host_will_do(server: Server, host: bytes) -> None:
    """The hub asks nobody by which name it was called."""
    with Wire(server) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
        assert wire.take(b"\r\n")[9:12] in (b"200", b"400")


def test_no_path_forges_a_line_of_the_access_log(server: Server) -> None:
    """A line end in a path stays encoded in the log."""
    ask(server, "GET", "/nothing%0Aforged%0D%0Aforged")
    assert eventually(lambda: "forged" in server.log())
    assert not any(line.startswith("forged") for line in server.log().splitlines())


def test_a_client_that_leaves_before_its_answer_harms_nobody(
    server: Server, topic: str, baseline: dict[str, int]
) -> None:
    """Connections that break at any point of a request leave nothing behind, and no traceback."""
    whole = asked("publish") + asked("events") + asked("head of a stream") + asked("answer")
    for end in range(0, len(whole), 7):
        with Wire(server) as wire:
            wire.send(whole[:end])
    assert publish(server, topic)
    assert eventually(lambda: not remains(server, baseline))


def test_under_a_prefix_topics_begin_after_it(tmp_path: Path) -> None:
    """With Hypercorn's ``--root-path`` the same paths follow the prefix, and lead nowhere without it."""
    env = {"TRIO_SSE_JOURNAL": "memory:"}
    with serving(folder=tmp_path, env=env, args=("--root-path", "/hub"), ready_path="/hub/readyz") as server:
        answer = ask(server, "POST", "/hub/topics/a/b", b"x")
        assert (answer.status, answer.json["topic"]) == (201, "a/b")
        assert ask(server, "POST", "/topics/a/b", b"x").status == 404


SHORT_LIMITS = """
from trio_sse.app import app
app.config["BODY_TIMEOUT"] = app.config["RESPONSE_TIMEOUT"] = 0.3
"""


def test_no_time_limit_of_the_framework_cuts_a_stream(tmp_path: Path) -> None:
    """Quart's limits for bodies and answers, a minute each and here shortened, concern neither kind of stream."""
    (tmp_path / "short.py").write_text(SHORT_LIMITS)
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_HEARTBEAT_S": "0.2"}
    with (
        serving("short:app", folder=tmp_path, env=env) as server,
        Listener(server, "/events?topic=clock") as clock,
        Wire(server) as wire,
    ):
        clock.take()
        wire.send(b"POST /topics/slow HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\n")
        wire.send(b"Transfer-Encoding: chunked\r\n\r\n")
        for number in (1, 2, 3):
            began = time.monotonic()
            while time.monotonic() - began < 0.5:
                assert clock.take(b"\n") == b":\n"
            wire.chunk(STREAM)
            assert b'"acked": %d,' % number in wire.take(b"}")
