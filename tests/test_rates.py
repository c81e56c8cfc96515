"""How much one caller may do in a time."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import KEY, WITHIN_S, ask, bearer, metric, sign
from tests.serving import Server, serving
from trio_sse import rates
from trio_sse.rates import ANONYMOUS, BURST_S, FORGIVEN_S, MOST_REFUSED, Bucket, Meter, Rates, Refusals
from trio_sse.settings import Settings

# -- with a clock of its own -------------------------------------------------------------------------------------------


def test_a_burst_passes_and_then_the_rate() -> None:
    """So many at once, and then one whenever there is time for it."""
    bucket = Bucket(2, 10)
    for _ in range(10):
        assert bucket.wait("ada", 1, 100) == 0
        bucket.spend("ada", 1, 100)
    assert bucket.wait("ada", 1, 100) == 0.5
    assert bucket.wait("ada", 1, 100.5) == 0
    assert bucket.wait("bob", 1, 100) == 0


def test_what_costs_more_than_a_burst_passes_too() -> None:
    """When all of the burst is there; and is paid for afterwards."""
    bucket = Bucket(10, 100)
    assert bucket.wait("ada", 1_000, 0) == 0
    bucket.spend("ada", 1_000, 0)
    assert bucket.wait("ada", 1, 0) == pytest.approx(90.1)
    assert bucket.wait("ada", 1_000, 0) == 100
    assert bucket.wait("ada", 1_000, 100) == 0


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 50)), max_size=50))
def test_the_wait_is_honest(steps: list[tuple[float, float]]) -> None:
    """After it, what was asked for passes; and over all time no more passes than the rate, a burst and one."""
    bucket, now, passed = Bucket(3, 12), 0.0, 0.0
    for pause, cost in steps:
        now += pause
        now += bucket.wait("ada", cost, now)
        assert bucket.wait("ada", cost, now) == 0
        bucket.spend("ada", cost, now)
        passed += cost
        assert passed <= 3 * now + 12 + 50


def test_who_has_done_little_is_forgotten_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are too many callers: only those whose bursts are whole again."""
    monkeypatch.setattr(rates, "MOST_CALLERS", 100)
    bucket = Bucket(10, 100)
    bucket.spend("ada", 100, 0)
    for number in range(1_000):
        now = number / 80
        caller = f"2001:db8:{number:x}::/64"
        assert bucket.wait(caller, 1, now) == 0
        bucket.spend(caller, 1, now)
        assert len(bucket) <= 101
        assert now > 9 or bucket.wait("ada", 100, now) > 0


def test_who_is_one_too_many_gets_no_known_callers_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who are too many share one burst, so that nobody's is whole again before its time."""
    monkeypatch.setattr(rates, "MOST_CALLERS", 100)
    bucket = Bucket(1, 10)
    for number in range(100):
        bucket.spend(f"known {number}", 10, 0)
    for number in range(10):
        assert bucket.wait(f"new {number}", 1, 2) == 0
        bucket.spend(f"new {number}", 1, 2)
    assert bucket.wait("another", 1, 2) == 1
    assert bucket.wait("known 0", 1, 2) == 0
    assert bucket.wait("known 0", 10, 2) == 8
    assert len(bucket) <= 101


def test_what_one_class_refuses_is_not_spent_in_another() -> None:
    """All of a request passes, or nothing of it."""
    meter = Meter(anonymous=Rates(events_per_s=1), address=Rates(events_per_s=100), token=Rates())
    callers, cost = [("anonymous", "a"), ("address", "a")], {"events_per_s": 1.0, "bytes_per_s": 1e9}
    for _ in range(BURST_S):
        assert meter.wait(callers, cost, 0) == 0
        meter.spend(callers, cost, 0)
    assert meter.wait(callers, cost, 0) == 1
    assert meter.refused == {("anonymous", "events_per_s"): 1}
    assert meter.wait([("address", "a")], {"events_per_s": 100 * BURST_S - BURST_S}, 0) == 0
    assert not meter.binds("token")


def test_refusals_are_counted_until_they_are_forgiven() -> None:
    """By success, by time, or by ten thousand others."""
    refusals = Refusals()
    assert [refusals.note("ada", now) for now in (0, 1, 2)] == [0, 1, 2]
    assert refusals.note("ada", 3 + FORGIVEN_S) == 0
    refusals.forgive("ada")
    assert refusals.note("ada", 200) == 0
    for number in range(MOST_REFUSED):
        refusals.note(f"{number}", 200)
    assert refusals.note("ada", 200) == 0


# -- settings ----------------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """And null is no limit."""
    monkeypatch.setenv("TRIO_SSE_RATES_ANONYMOUS", '{"events_per_s": 5, "guests_per_min": null}')
    monkeypatch.setenv("TRIO_SSE_RATES_ADDRESS", '{"bytes_per_s": 1e6}')
    settings = Settings()
    assert settings.rates_anonymous == Rates(5, ANONYMOUS.bytes_per_s, ANONYMOUS.streams_per_s, None)
    assert settings.rates_address == Rates(bytes_per_s=1e6)
    assert settings.rates_token == Rates()


@pytest.mark.parametrize("written", ["5", "[]", '{"events": 5}', '{"events_per_s": 0}', '{"events_per_s": "5"}', "{"])
def test_a_rate_that_is_none_is_refused(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a sentence that says what is one."""
    monkeypatch.setenv("TRIO_SSE_RATES_TOKEN", written)
    with pytest.raises(ValueError, match=r'it is JSON such as \{"events_per_s": 50\}'):
        Settings()


# -- with the real server ----------------------------------------------------------------------------------------------

RATES = {
    "TRIO_SSE_RATES_ANONYMOUS": '{"events_per_s": 1, "bytes_per_s": 100000, "streams_per_s": 0.5, "guests_per_min": 4}',
    "TRIO_SSE_RATES_TOKEN": '{"events_per_s": 2}',
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_ANONYMOUS": "publish,subscribe"}
    env |= {"TRIO_SSE_TRUSTED_PROXIES": "127.0.0.1", "TRIO_SSE_ALLOW_ORIGINS": "https://app.example"}
    with serving(folder=tmp_path_factory.mktemp("rates"), env=env | RATES) as server:
        yield server


def came_from(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


def post(server: Server, headers: dict[str, str], body: bytes = b"x") -> tuple[int, int]:
    """The status of one event, and how long to wait."""
    answer = ask(server, "POST", "/topics/a", body, headers)
    if answer.status == 429:
        assert answer.headers["Content-Type"] == "application/problem+json"
    return answer.status, int(answer.headers.get("Retry-After", 0))


def test_events_have_a_rate_that_bites_and_lets_go(server: Server) -> None:
    """What is told to wait is let in when it has waited; another address is not told to."""
    here = came_from("203.0.113.1")
    assert [post(server, here)[0] for _ in range(10)] == [201] * 10
    status, wait = post(server, here)
    assert (status, wait) == (429, 1)
    assert post(server, came_from("203.0.113.2"))[0] == 201
    time.sleep(wait)
    assert post(server, here)[0] == 201
    assert metric(server, 'trio_sse_over_rate_total{of="anonymous",rate="events_per_s"}') >= 1


def test_bytes_have_a_rate(server: Server) -> None:
    """A body that is larger than the burst passes, and is paid for."""
    here = came_from("203.0.113.3")
    assert post(server, here, b"x" * 1_040_000)[0] == 201
    status, wait = post(server, here, b"x" * 1_000)
    assert status == 429
    assert 0 < wait <= 2
    time.sleep(wait)
    assert post(server, here, b"x" * 1_000)[0] == 201


def test_streams_have_a_rate_and_are_told_when_to_come_back(server: Server) -> None:
    """Later each time, in a stream, which does not close an EventSource for ever."""
    here = came_from("203.0.113.4")
    for _ in range(5):
        with httpx.stream("GET", f"{server.url}/events?topic=a", headers=here, timeout=WITHIN_S) as response:
            assert any(line.startswith("id:") for line in response.iter_lines())
    told = []
    for _ in range(4):
        answer = ask(server, "GET", "/events?topic=a", headers=here)
        found = re.fullmatch(rb": stream\nretry: (\d+)\n", answer.body)
        assert answer.status == 200
        assert found
        told.append(int(found[1]))
    assert told == sorted(told)
    assert 16_000 <= told[3] < 24_000


def test_guests_have_a_rate(server: Server) -> None:
    """And those that come with a token do not, nor those who were guests before."""
    here = {**came_from("203.0.113.5"), "Content-Type": "application/json"}
    body = b'{"name": "Ada"}'
    assert [ask(server, "POST", "/session", body, here).status for _ in range(3)] == [200] * 3
    guest = ask(server, "POST", "/session", body, here)
    assert guest.status == 200
    answer = ask(server, "POST", "/session", body, here)
    assert answer.status == 429
    assert 10 < int(answer.headers["Retry-After"]) <= 15
    cookie = {"Cookie": guest.headers["Set-Cookie"].partition(";")[0]}
    assert ask(server, "POST", "/session", body, here | cookie).status == 200
    assert ask(server, "POST", "/session", b"", here | bearer(sign())).status == 200


def test_a_guest_counts_as_having_no_token(server: Server) -> None:
    """Or each name would be a caller of its own."""
    here = came_from("203.0.113.6")
    guest = ask(server, "POST", "/session", b'{"name": "Ada"}', {**here, "Content-Type": "application/json"})
    cookie = {"Cookie": guest.headers["Set-Cookie"].partition(";")[0]}
    assert [post(server, here)[0] for _ in range(10)] == [201] * 10
    assert post(server, here | cookie)[0] == 429


def test_a_token_has_a_rate_of_its_own_where_one_is_set(server: Server) -> None:
    """By its subject; one without a subject by itself; and wherever it comes from."""
    for token in (sign("eve", publish=["a"]), sign(None, publish=["a"])):
        statuses = [post(server, came_from(f"203.0.113.{n}") | bearer(token))[0] for n in range(100, 125)]
        assert statuses[:20] == [201] * 20
        assert 429 in statuses
    assert post(server, came_from("203.0.113.100") | bearer(sign(None, publish=["a", "b"])))[0] == 201


@pytest.mark.parametrize("shared", ["127.0.0.1", "10.1.2.3", "192.168.0.9", "100.64.0.1", "fd00::1", "::1"])
def test_who_may_be_many_is_not_one_caller(server: Server, shared: str) -> None:
    """An office, a bridge of containers, a proxy that does not say whom it speaks for."""
    assert {post(server, came_from(shared))[0] for _ in range(12)} == {201}


def test_ipv6_counts_by_the_network_of_one_customer(server: Server) -> None:
    """Any address of a /64 is the same caller, and the next /64 is another."""
    statuses = [post(server, came_from(f"2001:db8::{n:x}"))[0] for n in range(1, 12)]
    assert statuses == [201] * 10 + [429]
    assert post(server, came_from("2001:db8:0:1::1"))[0] == 201


def test_ipv4_in_ipv6_is_ipv4(server: Server) -> None:
    """However a proxy writes it."""
    assert [post(server, came_from("::ffff:203.0.113.7"))[0] for _ in range(10)] == [201] * 10
    assert post(server, came_from("203.0.113.7"))[0] == 429


def test_who_may_not_at_all_is_told_that_first(server: Server) -> None:
    """401 and 403 do not depend on what was done before, and cost nothing of the rate."""
    here = came_from("203.0.113.8")
    for _ in range(12):
        assert ask(server, "POST", "/topics/user/ada", b"x", here).status == 401
    assert post(server, here)[0] == 201


def test_a_stream_of_events_is_slowed_and_not_refused(server: Server) -> None:
    """All of it arrives, no faster than the rate."""
    began = time.monotonic()
    headers = {**came_from("203.0.113.9"), "Content-Type": "text/event-stream"}
    answer = ask(server, "POST", "/topics/a", (b"data: x\n\n" for _ in range(BURST_S + 1)), headers)
    assert answer.status == 200
    assert answer.lines[-1]["count"] == BURST_S + 1
    assert time.monotonic() - began >= 1


def test_a_page_of_another_origin_may_read_when_to_come_back(server: Server) -> None:
    """The header is exposed."""
    answer = ask(server, "GET", "/healthz", headers={"Origin": "https://app.example"})
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.proof
def test_a_busy_backend_meets_no_limit(tmp_path: Path) -> None:
    """Two thousand streams and five hundred posts a second with a token, from one public address, as they come."""
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_TRUSTED_PROXIES": "127.0.0.1"}
    headers = came_from("203.0.113.10") | bearer(sign("backend", ttl_s=600, publish=["a"], subscribe=["a"]))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    asked = f"GET /events?topic=a HTTP/1.1\r\nHost: hub\r\n{head}\r\n".encode()
    with serving(folder=tmp_path, env=env) as server, ExitStack() as streams:
        opened = []
        for _ in range(2_000):
            stream = streams.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=WITHIN_S))
            stream.sendall(asked)
            opened.append(stream)
        for stream in opened:
            said = b""
            while b": stream" not in said:
                said += stream.recv(4096)
            assert said.startswith(b"HTTP/1.1 200")
        assert metric(server, "trio_sse_streams") == 2_000
        with httpx.Client(base_url=server.url, headers=headers) as client:
            assert {client.post("/topics/a", content=b"x").status_code for _ in range(1_000)} == {201}
