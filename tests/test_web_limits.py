"""How many streams there may be."""

from __future__ import annotations

import re
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import KEY, WITHIN_S, Listener, Wire, ask, bearer, eventually, metric, publish, sign
from tests.serving import Server, serving
from tests.test_server_h2 import Client
from trio_sse.errors import HubFull
from trio_sse.settings import Settings
from trio_sse.web.caller import Origin
from trio_sse.web.limits import Limits, Place
from trio_sse.web.rates import RateLimits


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Server]:
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_ANONYMOUS": "publish,subscribe"}
    caps = {"TRIO_SSE_MAX_STREAMS": "3", "TRIO_SSE_MAX_STREAMS_PER_SUBJECT": "2"}
    with serving(folder=tmp_path, env=env | caps) as server:
        yield server


def test_one_too_many_is_told_when_to_come_back(small: Server) -> None:
    """It is a stream with a jittered retry and an end, not an error, which would close an EventSource for ever."""
    url = f"{small.url}/events?topic=a"
    with httpx.Client(timeout=WITHIN_S) as client:
        streams = [client.stream("GET", url) for _ in range(3)]
        for stream in streams:
            assert stream.__enter__().status_code == 200
        retries = set()
        for _ in range(10):
            refused = httpx.get(url, timeout=WITHIN_S)
            assert refused.status_code == 200
            found = re.fullmatch(r": stream\nretry: (\d+)\n", refused.text)
            assert found
            retries.add(found[1])
        assert len(retries) > 3
        assert httpx.get(f"{small.url}/readyz", timeout=WITHIN_S).status_code == 200
        assert "trio_sse_refused_total 10.0" in httpx.get(f"{small.url}/metrics", timeout=WITHIN_S).text
        for stream in streams:
            stream.__exit__(None, None, None)
    assert eventually(lambda: "trio_sse_streams 0.0" in httpx.get(f"{small.url}/metrics", timeout=WITHIN_S).text)
    with httpx.stream("GET", url, timeout=WITHIN_S) as response:
        lines = response.iter_lines()
        assert any(line.startswith("id:") for line in (next(lines) for _ in range(3)))


def test_a_subject_has_its_own_cap(small: Server) -> None:
    """The third stream of one token is sent away, and another's is not."""
    url = f"{small.url}/events?topic=a"
    ada, bob = bearer(sign("ada")), bearer(sign("bob"))
    with (
        httpx.Client(timeout=WITHIN_S, headers=ada) as client,
        client.stream("GET", url) as one,
        client.stream("GET", url) as two,
    ):
        assert one.status_code == two.status_code == 200
        assert "id:" not in httpx.get(url, headers=ada, timeout=WITHIN_S).text
        with httpx.stream("GET", url, headers=bob, timeout=WITHIN_S) as other:
            lines = other.iter_lines()
            assert any(line.startswith("id:") for line in (next(lines) for _ in range(3)))


def place(limits: Limits, address: str = "203.0.113.1", subject: str = "ada") -> Place:
    return limits.place(Origin(address, is_one=True), subject, RateLimits(Settings()))


async def test_places_are_counted_on_every_way_out() -> None:
    """An exception gives the place back, and nothing of its holder is kept."""
    limits = Limits(1, 1, 1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), place(limits):
            raise ZeroDivisionError
    with place(limits):
        with pytest.raises(HubFull, match="in all"), place(limits, "5.6.7.8", "bob"):
            pass
    assert not limits._by_address
    assert not limits._by_subject
    assert limits.refused == 1


@pytest.mark.parametrize(
    ("limits", "names"),
    [(Limits(9, 1, None), "MAX_STREAMS_PER_IP"), (Limits(9, None, 1), "MAX_STREAMS_PER_SUBJECT")],
)
async def test_the_cap_that_was_reached_is_named(limits: Limits, names: str) -> None:
    """By its setting."""
    with place(limits), pytest.raises(HubFull, match=names), place(limits):
        pass


def test_who_may_be_many_has_no_cap() -> None:
    """Those of an address that is a proxy's, or of one's own network."""
    limits = Limits(None, 1, None)
    office = Origin("10.0.0.1", is_one=False)
    with limits.place(office, None, RateLimits(Settings())), limits.place(office, None, RateLimits(Settings())):
        assert limits.statistics.streams == 2


async def test_who_is_refused_again_waits_longer() -> None:
    """Twice as long each time, up to a minute; and as at first when it was let in."""
    limits, rates, origin = Limits(1, None, None), RateLimits(Settings()), Origin("203.0.113.1", is_one=True)
    told = []
    with limits.place(origin, None, rates):
        for _ in range(8):
            with pytest.raises(HubFull) as refusal:
                limits.place(origin, None, rates).__enter__()
            told.append(refusal.value.retry_ms)
    assert told == [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]
    with limits.place(origin, None, rates), pytest.raises(HubFull) as refusal:
        limits.place(origin, None, rates).__enter__()
    assert refusal.value.retry_ms == 2_000


def test_without_a_cap_descriptors_are() -> None:
    """What they allow, less what is kept for others; and the process has asked for all it may have."""
    limits = Limits(None, None, None)
    total = limits.total
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard
    assert 0 < total < hard
    assert limits.total == total


# -- every way out ---------------------------------------------------------------------------------------------------

WRITE_TIMEOUT_S = 4
TOKEN_S = 8
STREAMS_OF_A_SUBJECT = 3

PROGRAM = """
from pathlib import Path

from tests.apps import app
from trio_sse.subscription import Subscription

_receive = Subscription.receive_nowait


def receive_nowait(self):
    item = _receive(self)
    if b"data: fail" in getattr(item, "frame", b""):
        raise ZeroDivisionError("for a test")
    return item


Subscription.receive_nowait = receive_nowait


@app.after_serving
async def tell():
    now = app.limits.statistics
    Path("counted").write_text(f"{now.streams} {now.addresses} {now.subjects}")
"""


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "program.py").write_text(PROGRAM)
    env = {
        "TRIO_SSE_JOURNAL": "memory:",
        "TRIO_SSE_JWT_KEY": KEY,
        "TRIO_SSE_ANONYMOUS": "publish,subscribe",
        "TRIO_SSE_WRITE_TIMEOUT_S": str(WRITE_TIMEOUT_S),
        "TRIO_SSE_DRAIN_S": "1",
        "TRIO_SSE_HEARTBEAT_S": "0.5",
        "TRIO_SSE_MAX_STREAMS_PER_SUBJECT": str(STREAMS_OF_A_SUBJECT),
        "TRIO_SSE_MAX_STREAMS_PER_IP": "100",
    }
    with serving("program:app", folder=tmp_path, env=env) as server:
        yield server


COUNTED = ("trio_sse_counted_streams", "trio_sse_counted_addresses", "trio_sse_counted_subjects")


def counted(server: Server) -> list[float]:
    return [metric(server, name) for name in COUNTED]


def get(target: str, method: str = "GET") -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {sign(ttl_s=600)}\r\n\r\n"
    return head.encode()


def reset(wire: Wire) -> None:
    """Leave with an RST."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def leave_before_headers(wire: Wire) -> None:
    wire.send(get("/events?topic=a"))
    reset(wire)


def leave_parked(wire: Wire) -> None:
    wire.send(get("/events?topic=a"))
    wire.take(b"id: ")


def half_close(wire: Wire) -> None:
    wire.send(get("/events?topic=a"))
    wire.take(b"id: ")
    wire.socket.shutdown(socket.SHUT_WR)
    wire.rest()


def leave_in_replay(wire: Wire) -> None:
    wire.send(get("/events?topic=long&last_event_id=earliest"))
    wire.take(b"data: x")
    reset(wire)


def never_read(wire: Wire) -> None:
    wire.send(get("/events?topic=long&last_event_id=earliest"))
    assert wire.socket.recv(1)


def leave_behind_a_request(wire: Wire) -> None:
    wire.send(get("/events?topic=a") + get("/healthz"))
    wire.take(b"id: ")


def ask_for_the_head(wire: Wire) -> None:
    wire.send(get("/events?topic=a", "HEAD"))
    wire.take(b"\r\n\r\n")


def ask_for_a_broken_one(wire: Wire) -> None:
    wire.send(get("/events?topic=fails&last_event_id=earliest"))
    wire.take(b"0\r\n\r\n")


WAYS_OVER_HTTP1: list[Callable[[Wire], None]] = [
    leave_before_headers,
    leave_parked,
    half_close,
    leave_in_replay,
    leave_behind_a_request,
    ask_for_the_head,
    ask_for_a_broken_one,
]


def test_streams_are_counted_on_every_way_out(counting: Server) -> None:
    """However the client leaves, and when a fault ends them; over HTTP/1.1 and HTTP/2."""
    for _ in range(60):
        publish(counting, "long", "x" * 100_000)
    publish(counting, "fails", "fail")
    for way in WAYS_OVER_HTTP1:
        with Wire(counting) as wire:
            way(wire)
        assert eventually(lambda: counted(counting) == [0, 0, 0]), (way, counted(counting))
    for way_over_http2 in WAYS_OVER_HTTP2:
        client = Client(counting, window=16 * 1024)
        way_over_http2(client)
        client.socket.close()
        assert eventually(lambda: counted(counting) == [0, 0, 0]), (way_over_http2, counted(counting))


def headers() -> dict[str, str]:
    return bearer(sign(ttl_s=600))


def leave_before_headers_over_http2(client: Client) -> None:
    client.ask("/events?topic=a", headers=headers())


def leave_parked_over_http2(client: Client) -> None:
    client.open_stream("/events?topic=a", **headers())
    client.open_stream("/events?topic=b", **headers())


def reset_stream_over_http2(client: Client) -> None:
    number = client.open_stream("/events?topic=a", **headers())
    client.h2.reset_stream(number)
    client.flush()


def leave_in_replay_over_http2(client: Client) -> None:
    client.is_reading = False
    client.open_stream("/events?topic=long&last_event_id=earliest", **headers())


def ask_for_a_broken_one_over_http2(client: Client) -> None:
    number = client.ask("/events?topic=fails&last_event_id=earliest", headers=headers())
    assert client.read_until(lambda: number in client.ended)


WAYS_OVER_HTTP2: list[Callable[[Client], None]] = [
    leave_before_headers_over_http2,
    leave_parked_over_http2,
    reset_stream_over_http2,
    leave_in_replay_over_http2,
    ask_for_a_broken_one_over_http2,
]


def test_streams_are_counted_while_they_last(counting: Server) -> None:
    """Until their token expires, or the client has taken nothing for too long; one that is refused is not counted."""
    for _ in range(60):
        publish(counting, "long", "x" * 100_000)
    token = bearer(sign("brief", ttl_s=TOKEN_S))
    with Listener(counting, "/events?topic=a", token) as brief, Wire(counting) as frozen:
        client = Client(counting, window=16 * 1024)
        client.open_stream("/events?topic=a", **token)
        assert counted(counting) == [2, 1, 1]
        never_read(frozen)
        client.is_reading = False
        client.ask("/events?topic=long&last_event_id=earliest", headers=headers())
        assert eventually(lambda: counted(counting) == [4, 1, 2])
        for _ in range(STREAMS_OF_A_SUBJECT - 2):
            client.open_stream("/events?topic=a", **token)
        refused = ask(counting, "GET", "/events?topic=a", headers=token)
        assert b"id: " not in refused.body
        assert counted(counting)[2] <= 2
        assert b'"expired"' in brief.rest()
        assert eventually(lambda: counted(counting) == [0, 0, 0])
        client.socket.close()


def test_at_the_end_none_is_counted(counting: Server) -> None:
    """Of those who read, those who do not, and those who say nothing."""
    for _ in range(60):
        publish(counting, "long", "x" * 100_000)
    client = Client(counting)
    client.open_stream("/events?topic=a")
    with Listener(counting, "/events?topic=a"), Wire(counting) as frozen:
        never_read(frozen)
        assert eventually(lambda: counted(counting)[0] == 3)
        assert counting.terminate() == 0
    client.socket.close()
    assert (counting.folder / "counted").read_text() == "0 0 0"
