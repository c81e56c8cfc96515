"""Debian's nginx in front of the hub, configured by the file that ``docs/reliability.md`` recommends."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from .conftest import STALL_S, WITHIN_S, Listener, Wire, ask, eventually, last_event_id, metric, publish
from .nginx import BARE, HTTP_1_0, Nginx, behind_nginx, in_front_of
from .serving import Server, serving

pytestmark = behind_nginx

CAP = 12

ENV = {
    "TRIO_SSE_HEARTBEAT_S": "0.5",
    "TRIO_SSE_MAX_STREAMS_PER_IP": str(CAP),
    "TRIO_SSE_TRUSTED_PROXIES": "127.0.0.1,127.0.0.2",  # nginx, and another proxy in front of it
    "TRIO_SSE_WRITE_TIMEOUT_S": "5",
}

IMPATIENT = {
    "proxy_read_timeout 60s;": "proxy_read_timeout 5s;",
    "send_timeout 60s;": "send_timeout 5s; keepalive_timeout 5s; proxy_send_timeout 5s;",
    "client_body_timeout 60s;": "client_body_timeout 5s;",
}
"""The recommended timeouts, each divided by twelve."""
PATIENCE_S = 5


@pytest.fixture(scope="module")
def nginx(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """In front of the module's hub, with short timeouts."""
    with in_front_of(server, folder=tmp_path_factory.mktemp("nginx"), changes=IMPATIENT) as nginx:
        yield nginx
        assert nginx.terminate() == 0


@pytest.fixture(scope="module")
def older(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """The same, speaking HTTP/1.0 to the hub."""
    folder = tmp_path_factory.mktemp("older")
    with in_front_of(server, folder=folder, changes={**IMPATIENT, **HTTP_1_0}) as nginx:
        yield nginx


@pytest.fixture(scope="module")
def bare(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """A ``proxy_pass`` and nothing else: HTTP/1.0, and answers are buffered."""
    with in_front_of(server, folder=tmp_path_factory.mktemp("bare"), site=BARE) as nginx:
        yield nginx


@pytest.fixture
def ways(nginx: Nginx, older: Nginx, bare: Nginx) -> dict[str, Nginx]:
    return {"HTTP/1.1": nginx, "HTTP/1.0": older, "bare": bare}


EVERY_WAY = pytest.mark.parametrize("way", ["HTTP/1.1", "HTTP/1.0", "bare"])


@contextlib.contextmanager
def http2_client(nginx: Nginx) -> Iterator[httpx.Client]:
    """A client that speaks HTTP/2 over TLS, as browsers do."""
    trust = ssl.create_default_context(cafile=str(nginx.certificate))
    url = f"https://localhost:{nginx.tls_port}"
    with httpx.Client(http2=True, verify=trust, base_url=url, timeout=WITHIN_S, trust_env=False) as client:
        yield client


def subscribers(hub: Server, topic: str) -> int:
    count: int = ask(hub, "GET", f"/topics/{topic}").json["subscribers"]
    return count


def begin_publishing(nginx: Server, topic: str) -> Wire:
    """A publisher's request, whose body may come."""
    wire = Wire(nginx)
    head = (
        "POST /topics/{} HTTP/1.1\r\nHost: hub\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    wire.send(head.format(topic).encode())
    return wire


# -- streams last -----------------------------------------------------------------------------------------------------


def test_a_silent_stream_outlives_the_timeouts(nginx: Nginx, older: Nginx, topic: str) -> None:
    """Heartbeats carry it beyond what nginx waits for a byte, over HTTP/1.0, HTTP/1.1 and HTTP/2."""
    target = f"/events?topic={topic}"
    with (
        Listener(nginx, target) as over_1_1,
        Listener(older, target) as over_1_0,
        http2_client(nginx) as client,
        client.stream("GET", target) as over_2,
    ):
        assert over_2.http_version == "HTTP/2"
        time.sleep(1.5 * PATIENCE_S)
        id = publish(nginx, topic, "still here")
        for listener in (over_1_1, over_1_0):
            assert listener.event() == {"retry": "2000"} | {"id": listener.response.headers["Last-Event-ID"]}
            block = listener.take()
            assert block.count(b":\n") >= PATIENCE_S  # one comes every half second
            assert block.endswith(f"id: {id}\ndata: still here\n\n".encode())
        received = ""
        for piece in over_2.iter_text():
            received += piece
            if "still here" in received:
                break


@pytest.mark.proof
@pytest.mark.timeout(240)
def test_a_silent_stream_outlives_the_timeouts_as_they_are(tmp_path: Path, topic: str) -> None:
    """The same at full length: nginx's own timeouts, which are a minute, and the hub's own heartbeats."""
    folders = [tmp_path / name for name in ("recommended", "older", "bare")]
    for folder in folders:
        folder.mkdir()
    with (
        serving(folder=tmp_path) as hub,
        in_front_of(hub, folder=folders[0]) as recommended,
        in_front_of(hub, folder=folders[1], changes=HTTP_1_0) as older,
        in_front_of(hub, folder=folders[2], site=BARE) as bare,
        contextlib.ExitStack() as stack,
    ):
        ways = (recommended, older, bare)
        listeners = [stack.enter_context(Listener(nginx, f"/events?topic={topic}")) for nginx in ways]
        time.sleep(100)
        publish(hub, topic, "still here")
        for listener in listeners:
            assert b"retry: 2000\n" in listener.take()
            assert listener.take().endswith(b"data: still here\n\n")


def test_without_heartbeats_nginx_cuts_a_silent_stream(tmp_path: Path, topic: str) -> None:
    """So it is the heartbeats that keep it, and their interval must be shorter than the timeout."""
    with serving(folder=tmp_path, env={"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_HEARTBEAT_S": "600"}) as hub:
        with in_front_of(hub, folder=tmp_path, changes={"proxy_read_timeout 60s;": "proxy_read_timeout 3s;"}) as nginx:
            with Listener(nginx, f"/events?topic={topic}") as listener:
                listener.take()
                with pytest.raises(http.client.IncompleteRead):
                    listener.rest()


# -- nothing is held back ---------------------------------------------------------------------------------------------


@EVERY_WAY
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_each_event_arrives_before_the_next_is_published(
    ways: Mapping[str, Nginx], topic: str, way: str, encoding: str
) -> None:
    """Nothing is buffered, however small, also where nginx compresses."""
    url = f"{ways[way].url}/events?topic={topic}"
    with httpx.stream("GET", url, headers={"Accept-Encoding": encoding}, timeout=WITHIN_S) as response:
        assert response.headers.get("Content-Encoding", "identity") == encoding
        text = response.iter_text()
        received = next(text)
        for n in range(5):
            publish(ways[way], topic, f"<{n}>")
            while f"<{n}>" not in received:
                received += next(text)


def test_a_streaming_publisher_is_acknowledged_as_it_goes(nginx: Nginx, topic: str) -> None:
    """Each event is acknowledged before the next is sent, also after a silence that comments have filled."""
    with begin_publishing(nginx, topic) as wire:
        wire.chunk(b"id: 1\ndata: x\n\n")
        assert b"200 OK" in wire.take(b"\r\n\r\n")
        for n in range(1, 4):
            assert b'{"acked": %d,' % n in wire.take(b"}\n")
            if n == 2:
                for _ in range(PATIENCE_S + 1):
                    time.sleep(1)
                    wire.chunk(b":\n")
            wire.chunk(b"id: %d\ndata: x\n\n" % (n + 1))
        assert b'{"acked": 4,' in wire.take(b"}\n")
        wire.chunk(b"")
        assert b'"done": true, "count": 4' in wire.take(b"}\n")


def test_a_publisher_faster_than_the_hub_is_slowed_down_not_stuck(nginx: Nginx, topic: str) -> None:
    """More than any buffer on the way holds: all of it is acknowledged, where ``proxy_pass`` would wait for ever."""
    count, event = 1500, b"data: %b\n\n" % (b"x" * 20_000)
    with begin_publishing(nginx, topic) as wire:

        def send() -> None:
            with contextlib.suppress(OSError):  # then the test has failed already
                for _ in range(count):
                    wire.chunk(event)
                wire.chunk(b"")

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        assert b'"done": true, "count": %d' % count in wire.take(b'"done"') + wire.take(b"}\n")
        sender.join()


def test_through_a_bare_proxy_pass_a_publisher_is_answered_at_its_end(bare: Nginx, topic: str) -> None:
    """The body is kept until it is whole, so nothing is acknowledged meanwhile, and nothing is lost either."""
    with begin_publishing(bare, topic) as wire:
        for n in range(3):
            wire.chunk(b"id: %d\ndata: x\n\n" % n)
        assert last_event_id(bare, topic) is None
        wire.chunk(b"")
        assert b'"done": true, "count": 3' in wire.take(b'"done"') + wire.take(b"}\n")


# -- restarts ---------------------------------------------------------------------------------------------------------


def follow(nginx: Nginx, topic: str, cursor: str, until: str) -> list[str]:
    """What a client that comes back with its cursor is given, up to an event's data."""
    given: list[str] = []
    with Listener(nginx, f"/events?topic={topic}", {"Last-Event-ID": cursor}) as listener:
        while until not in given:
            event = listener.event()
            assert event.get("event") is None, event
            if "data" in event:
                given.append(event["data"])
    return given


def test_a_stream_resumes_after_nginx_was_restarted(nginx: Nginx, server: Server, topic: str) -> None:
    """With the same cursor, and nothing is lost or comes twice; the hub has let go of the old one meanwhile."""
    with Listener(nginx, f"/events?topic={topic}") as listener:
        listener.take()
        publish(server, topic, "before")
        cursor = listener.event()["id"]
        nginx.kill()
        with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
            assert b"data" not in listener.rest()
    assert eventually(lambda: subscribers(server, topic) == 0)
    publish(server, topic, "meanwhile")
    nginx.start()
    publish(nginx, topic, "after")
    assert follow(nginx, topic, cursor, "after") == ["meanwhile", "after"]


@pytest.mark.parametrize("end", [Server.kill, Server.terminate], ids=["killed", "stopped"])
def test_a_stream_resumes_after_the_hub_was_restarted(tmp_path: Path, topic: str, end: object) -> None:
    """Behind an nginx that says 502 meanwhile, and goes back to the hub with the first request after its return."""
    with serving(folder=tmp_path) as hub, in_front_of(hub, folder=tmp_path) as nginx:
        with Listener(nginx, f"/events?topic={topic}") as listener:
            listener.take()
            publish(nginx, topic, "before")
            cursor = listener.event()["id"]
            assert callable(end)
            end(hub)
            with contextlib.suppress(http.client.IncompleteRead):
                listener.rest()
        for _ in range(5):
            assert ask(nginx, "GET", f"/events?topic={topic}").status == 502
        hub.start()
        assert ask(nginx, "GET", "/healthz").status == 200
        publish(nginx, topic, "after")
        assert follow(nginx, topic, cursor, "after") == ["after"]


def test_the_goodbye_passes_through(tmp_path: Path, topic: str) -> None:
    """A hub that is stopped ends the stream in order, and waits for none of the connections nginx keeps to it."""
    with serving(folder=tmp_path) as hub, in_front_of(hub, folder=tmp_path) as nginx:
        with Listener(nginx, f"/events?topic={topic}") as listener:
            listener.take()
            publish(nginx, topic)  # over a connection that nginx keeps
            listener.take()
            began = time.monotonic()
            assert hub.terminate() == 0
            assert time.monotonic() - began < 2 * (5 + 1) + STALL_S
            goodbye = listener.rest()
        assert goodbye.startswith(b"event: trio-sse.goodbye\n")
        assert b"\nretry: " in goodbye
        assert b'{"reason": "shutdown"}' in goodbye


def test_a_reload_of_nginx_cuts_no_stream(nginx: Nginx, topic: str) -> None:
    """The old worker serves it to its end, while a new one takes what comes."""
    with Listener(nginx, f"/events?topic={topic}") as listener:
        listener.take()
        assert nginx.process is not None
        before = set(nginx.workers())
        os.kill(nginx.process.pid, signal.SIGHUP)
        assert eventually(lambda: not set(nginx.workers()) <= before)
        publish(nginx, topic, "after")
        assert listener.event()["data"] == "after"


# -- who is there -----------------------------------------------------------------------------------------------------


@EVERY_WAY
def test_a_client_that_leaves_is_let_go_of(ways: Mapping[str, Nginx], server: Server, topic: str, way: str) -> None:
    """The hub hears of it from nginx."""
    with Listener(ways[way], f"/events?topic={topic}") as listener:
        listener.take()
        assert subscribers(server, topic) == 1
    assert eventually(lambda: subscribers(server, topic) == 0)


def test_a_client_that_stops_reading_is_let_go_of(nginx: Nginx, server: Server, topic: str) -> None:
    """It fills the buffers on the way and no more; then nginx ends it, or the hub does."""
    assert eventually(lambda: metric(server, "trio_sse_streams") == 0)
    with Wire(nginx) as wire:
        wire.send(f"GET /events?topic={topic} HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
        assert eventually(lambda: metric(server, "trio_sse_streams") == 1)
        for _ in range(20):
            publish(server, topic, "x" * 1_000_000)
        assert metric(server, "trio_sse_streams") == 1
        assert eventually(lambda: metric(server, "trio_sse_streams") == 0, within=4 * WITHIN_S)


def begin_stream(nginx: Nginx, topic: str, *came_by: str) -> http.client.HTTPConnection:
    """A request for a stream through a proxy in front of nginx, which had it by these addresses."""
    connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=WITHIN_S, source_address=("127.0.0.2", 0))
    connection.request("GET", f"/events?topic={topic}", headers={"X-Forwarded-For": ", ".join(came_by)})
    return connection


def test_the_cap_for_an_address_counts_the_clients_own(nginx: Nginx, server: Server, topic: str) -> None:
    """Not nginx's, and not the one that a client says it has. (This machine's own addresses have no cap.)"""
    with contextlib.ExitStack() as stack:
        for n in range(CAP):
            stack.callback(begin_stream(nginx, topic, f"192.0.2.{n}", "203.0.113.2").close)
        assert eventually(lambda: subscribers(server, topic) == CAP)
        refused = begin_stream(nginx, topic, "192.0.2.99", "203.0.113.2")
        stack.callback(refused.close)
        assert b"id: " not in refused.getresponse().read()
        stack.callback(begin_stream(nginx, topic, "203.0.113.3").close)
        assert eventually(lambda: subscribers(server, topic) == CAP + 1)
    assert eventually(lambda: subscribers(server, topic) == 0)


# -- TLS in front -----------------------------------------------------------------------------------------------------


def test_streams_share_one_http2_connection(nginx: Nginx, server: Server, topic: str) -> None:
    """More of them than the six connections that a browser allows a site over HTTP/1.1."""
    with http2_client(nginx) as client, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(client.stream("GET", f"/events?topic={topic}")) for _ in range(10)]
        ends = {stream.extensions["network_stream"].get_extra_info("client_addr") for stream in streams}
        assert len(ends) == 1
        assert eventually(lambda: subscribers(server, topic) == len(streams))


def test_the_session_cookie_is_for_https_alone(nginx: Nginx) -> None:
    """The hub hears plain HTTP, and believes nginx that its client did not."""
    with http2_client(nginx) as client:
        cookie = client.post("/session", json={"name": "Ada"}).headers["Set-Cookie"]
    assert cookie.startswith("__Host-trio_sse_session=")
    assert "; secure" in cookie.lower()
