"""Bodies of requests: how many bytes of them are held, for one connection and for all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.conftest import Wire, ask, eventually, metric
from tests.serving import Server, resident, serving
from tests.test_server_h2 import Client
from trio_sse.errors import HubFull, TooLarge, TrioSSEError
from trio_sse.web import bodies
from trio_sse.web.bodies import BoundedBody, Held, StreamRest
from trio_sse.wire import MAX_DATA

KIB = 1024


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Small budgets: 100 bytes for a connection, 250 in all."""
    monkeypatch.setattr(bodies, "CONNECTION_BYTES", 100)
    monkeypatch.setattr(bodies, "TOTAL_BYTES", 250)
    fresh = Held()
    monkeypatch.setattr(bodies, "held", fresh)
    return fresh


def body_of(connection: object, size: int = 0, expected: int | None = None) -> BoundedBody:
    body = BoundedBody(expected, MAX_DATA)
    body.connection = connection
    body.append(b"x" * size)
    return body


async def test_a_body_beyond_its_connections_budget_is_refused(held: Held) -> None:
    """And what the others of the connection have stays."""
    first, second = body_of("a", 60), body_of("a", 41)
    first.set_complete()
    assert len(await first) == 60
    with pytest.raises(HubFull, match="send it again"):
        await second
    assert (held.bytes, held.refused) == (60, 1)


async def test_the_connection_that_holds_most_gives_its_largest_unfinished_body(held: Held) -> None:
    """Not the one that came last, and none that is whole."""
    whole = body_of("slow", 50)
    whole.set_complete()
    slow, little = body_of("slow", 40), body_of("slow", 10)
    others = [body_of(name, 80) for name in ("b", "c")]
    with pytest.raises(HubFull):
        await slow
    for body in (whole, little, *others):
        body.set_complete()
    assert [len(await body) for body in (whole, little, *others)] == [50, 10, 80, 80]
    assert held.bytes == 220


async def test_where_all_others_are_whole_the_one_that_comes_is_refused(held: Held) -> None:
    """What a view is at work on cannot be taken from it."""
    for name in ("a", "b"):
        body_of(name, 100).set_complete()
    last = body_of("c", 60)
    with pytest.raises(HubFull):
        await last
    assert held.bytes == 200


async def test_nothing_is_kept_of_what_is_dropped(held: Held) -> None:
    """Neither what was there nor what still comes."""
    body = body_of("a", 50)
    body.drop()
    body.append(b"more")
    assert held.bytes == 0
    assert len(body._data) == 0
    assert held._sums == {}


async def test_nothing_is_kept_of_what_is_too_large(held: Held) -> None:
    """A body that grew beyond the limit of one event is refused, and thrown away."""
    body = BoundedBody(None, 50)
    body.append(b"x" * 40)
    body.append(b"x" * 40)
    assert held.bytes == 0
    assert len(body._data) == 0


async def test_a_limit_of_its_own_counts_what_is_said_and_what_is_here(held: Held) -> None:
    """The header is enough."""
    body_of("a", 10, expected=10).limit(10, "it")
    for body in (body_of("a", 10, expected=20), body_of("a", 11)):
        with pytest.raises(TooLarge, match="it has more than 10 bytes"):
            body.limit(10, "it")


# -- with the real server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(folder=tmp_path_factory.mktemp("bodies"), env={"TRIO_SSE_JOURNAL": "memory:"}) as running:
        yield running


def test_a_hundred_bodies_on_one_connection_are_bounded(server: Server) -> None:
    """Each nearly a mebibyte that never ends: eight are held, and a request beside them is answered."""
    (worker,) = server.workers()
    before = resident(worker)
    client = Client(server)
    numbers = []
    for _ in range(100):
        number = client.h2.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":path", "/topics/a"), (":scheme", "http"), (":authority", "x")]
        client.h2.send_headers(number, pseudo)
        numbers.append(number)
    with contextlib.suppress(ConnectionError):
        for _ in range(14):
            for number in numbers:
                window = client.h2.local_flow_control_window(number) if number not in client.ended else 0
                if window >= 8 * KIB:
                    client.h2.send_data(number, b"x" * 8 * KIB)
            client.flush()
            client.read_until(lambda: False, within=0.05)
    assert metric(server, "trio_sse_body_bytes") <= bodies.CONNECTION_BYTES
    assert resident(worker) - before < 4 * bodies.CONNECTION_BYTES
    assert ask(server, "POST", "/topics/b", b"x").status == 201
    client.socket.close()
    assert eventually(lambda: metric(server, "trio_sse_body_bytes") == 0)


async def test_what_is_no_event_yet_of_a_stream_counts(held: Held) -> None:
    """As much as is held of it now; and the largest holder's stream ends when there is no room."""
    told: list[TrioSSEError] = []
    slow = StreamRest(told.append)
    for size in (90, 40, 90):
        slow.keep(size)
        assert held.bytes == size
    little = [StreamRest(told.append) for _ in range(3)]
    for rest in little:
        rest.keep(60)
    assert [str(error)[:17] for error in told] == ["the server holds "]
    assert (held.bytes, slow.held) == (180, 0)
    slow.keep(90)
    for rest in little:
        rest.drop()
    assert (held.bytes, held._sums) == (0, {})


def test_streams_that_never_end_their_events_are_bounded(server: Server) -> None:
    """A hundred and fifty connections with a mebibyte each, of an event that is not over: the others are served."""
    head = "POST /topics/a HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\nContent-Length: 2000000\r\n\r\n"
    begin = head.encode() + b"data: "
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            wire = stack.enter_context(Wire(server))
            with contextlib.suppress(ConnectionError):
                wire.send(begin + b"x" * 1_000_000)
        assert eventually(lambda: metric(server, "trio_sse_bodies_refused_total") >= 80)
        assert 0 < metric(server, "trio_sse_body_bytes") <= bodies.TOTAL_BYTES
        headers = {"Content-Type": "text/event-stream"}
        assert ask(server, "POST", "/topics/b", b"data: x\n\n", headers).lines[-1]["count"] == 1
    assert eventually(lambda: metric(server, "trio_sse_body_bytes") == 0)


def test_a_name_is_looked_at_before_it_is_normalised(server: Server) -> None:
    """Marks that have to be put in order took seconds; more than a name needs is refused by its length."""
    headers = {"Content-Type": "application/json"}
    long = '{"name": "a' + "\u0300\u0316" * 500 + '"}'
    answer = ask(server, "POST", "/session", long.encode(), headers)
    assert (answer.status, "64 characters" in answer.json["detail"]) == (400, True)


@pytest.mark.parametrize("chunked", [False, True])
def test_what_signs_in_is_four_kibibytes_at_most(server: Server, chunked: bool) -> None:
    """However it comes."""
    body = b'{"name": "' + b"a" * 5000 + b'"}'
    answer = ask(server, "POST", "/session", iter([body]) if chunked else body, {"Content-Type": "application/json"})
    assert answer.status == 413
    assert "4096 bytes" in answer.json["detail"]


def test_what_signs_in_is_bounded_when_it_comes_late(server: Server) -> None:
    """After its header, so that the view waits for it already."""
    with Wire(server) as wire:
        wire.send(
            b"POST /session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert ask(server, "GET", "/healthz").status == 200  # which is served after it
        wire.send(b'1400\r\n{"name": "' + b"a" * (0x1400 - 10) + b"\r\n0\r\n\r\n")
        assert wire.take(b"\r\n").startswith(b"HTTP/1.1 413")
