"""The wall clock jumps by an hour while the real server runs: what goes by it, and what does not."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from email.utils import parsedate_to_datetime
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import (
    KEY,
    STALL_S,
    WITHIN_S,
    Listener,
    Wire,
    ask,
    bearer,
    eventually,
    last_event_id,
    metric,
    publish,
    sign,
)
from tests.serving import SecureServer, Server, running, serving
from tests.test_server_h2 import Client
from trio_sse.auth import Authority
from trio_sse.event import EventID

HOUR = 3600
ENDS_S = 2.0
"""Twice the second that a stream's end may lie from its token's."""

HEARTBEAT_S = 1
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs Debian's faketime: apt-get install faketime")

FOREIGN = """
import trio
from quart_trio import QuartTrio
from trio_sse import Event, EventStream

app = QuartTrio(__name__)

async def events():
    yield Event("first")
    await trio.sleep_forever()

@app.get("/events")
async def stream():
    return EventStream(events(), expires_in_s=3600)

@app.get("/readyz")
async def ready():
    return "ready"
"""


class WallClock:
    """The wall clock of the servers that are told of it: ahead of ours by as much as is said. No other clock jumps."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "faketime"
        self.jump_to(0)
        self.env = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # as an earlier faketime calls it
            "NO_FAKE_STAT": "1",
        }

    def jump_to(self, ahead_s: int) -> None:
        """Set it, at once and whole."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{ahead_s:+d}\n")
        fresh.replace(self._file)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> WallClock:
    """The clock of the module's server."""
    return WallClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def server(clock: WallClock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    """A hub by that clock; it must end well, and have no traceback in its log."""
    env = {
        "TRIO_SSE_JOURNAL": "memory:",
        "TRIO_SSE_JWT_KEY": KEY,
        "TRIO_SSE_ANONYMOUS": "publish,subscribe",
        "TRIO_SSE_HEARTBEAT_S": str(HEARTBEAT_S),
        "TRIO_SSE_WRITE_TIMEOUT_S": "60",
    }
    folder, args = tmp_path_factory.mktemp("hub"), ("--keep-alive", "5")
    with running(SecureServer("tests.apps:app", folder=folder, env={**env, **clock.env}, args=args)) as server:
        yield server
        assert server.terminate() == 0
        assert "Traceback" not in server.log()


@pytest.fixture(autouse=True)
def _right(clock: WallClock) -> Iterator[None]:
    """Each test begins by the right time."""
    clock.jump_to(0)
    yield
    clock.jump_to(0)


def server_ahead(server: Server) -> float:
    """By how much a server's clock is ahead of ours, to the second, as the server itself says."""
    date = ask(server, "GET", "/healthz").headers["Date"]
    return parsedate_to_datetime(date).timestamp() - time.time()


def ending(listener: Listener) -> bytes:
    """What still comes of a stream."""
    return listener.rest().replace(b":\n", b"")


# -- the tool --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_the_server_s_clock_jumps(server: Server, clock: WallClock, jump: int) -> None:
    """Or all that is tested here would be nothing."""
    assert abs(server_ahead(server)) < 5
    clock.jump_to(jump)
    assert abs(server_ahead(server) - jump) < 5


# -- what does not care ----------------------------------------------------------------------------------------------


def test_heartbeats_go_on_evenly(server: Server, clock: WallClock, topic: str) -> None:
    """Neither a silence nor a burst of them follows a jump."""
    with Listener(server, f"/events?topic={topic}") as listener:
        listener.take()
        times = [time.monotonic()]
        for jump in (HOUR, -HOUR):
            clock.jump_to(jump)
            for _ in range(2):
                listener.take(b":\n")
                times.append(time.monotonic())
    pauses = [after - before for before, after in pairwise(times)]
    assert max(pauses) < 2 * HEARTBEAT_S + STALL_S
    assert times[-1] - times[0] > 2 * HEARTBEAT_S


def test_an_idle_connection_is_kept_as_long_as_ever(server: Server, clock: WallClock) -> None:
    """An hour forward ends no connection's keep-alive time, and an hour back does not lengthen it."""
    with Wire(server) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        wire.take(b"alive\n")
        clock.jump_to(HOUR)
        time.sleep(0.5)
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        wire.take(b"alive\n")
        clock.jump_to(-HOUR)
        assert wire.rest() == b""


def test_a_slow_reader_is_not_let_go_for_a_jump(server: Server, clock: WallClock, topic: str) -> None:
    """The time that a client has to take bytes goes by no wall clock."""
    with Listener(server, f"/events?topic={topic}") as listener:
        listener.take()
        publish(server, topic, "x" * 900_000)
        publish(server, topic, "y" * 900_000)
        for jump in (HOUR, -HOUR):
            clock.jump_to(jump)
            time.sleep(0.5)
        assert [len(listener.event()["data"]) for _ in range(2)] == [900_000, 900_000]


# -- the order of events ---------------------------------------------------------------------------------------------


def test_ids_go_up_whatever_the_clock_does(server: Server, clock: WallClock, topic: str) -> None:
    """Forward, back, and back again; who listens has each event once, in order, and no gap."""
    ids = []
    with Listener(server, f"/events?topic={topic}") as listener:
        listener.take()
        for jump in (0, HOUR, 0, -HOUR):
            clock.jump_to(jump)
            ids += [publish(server, topic, str(jump)) for _ in range(2)]
        got: list[str] = []
        while len(got) < len(ids):
            event = listener.event()
            got.append(event["id"])
            assert "event" not in event
    assert got == ids
    parsed = [EventID.parse(id) for id in ids]
    assert parsed == sorted(set(parsed))


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_position_given_before_a_jump_is_good_after_it(
    server: Server, clock: WallClock, topic: str, jump: int
) -> None:
    """Who had no event yet, and comes back with the position alone, misses nothing and is told of no gap."""
    with Listener(server, f"/events?topic={topic}") as listener:
        position = listener.event()["id"]
    clock.jump_to(jump)
    id = publish(server, topic, "meanwhile")
    with Listener(server, f"/events?topic={topic}", {"Last-Event-ID": position}) as listener:
        assert listener.response.headers["Last-Event-ID"] == position
        listener.take()
        assert listener.event() == {"id": id, "data": "meanwhile"}


def kept_position(journal: Path) -> EventID:
    """How far a journal on disk has come, as a position in it says; it is written within a second."""
    with closing(sqlite3.connect(journal)) as db:
        return EventID.unpacked(int(db.execute("SELECT value FROM meta WHERE name = 'position'").fetchone()[0]))


def test_a_journal_on_disk_goes_on_after_a_restart_under_a_clock_that_went_back(
    clock: WallClock, tmp_path: Path
) -> None:
    """Killed and started again an hour earlier: IDs go up, and old cursors are good."""
    env = {"TRIO_SSE_JOURNAL": "sqlite:journal.db", **clock.env}
    clock.jump_to(HOUR)
    with serving(folder=tmp_path, env=env) as server:
        first = publish(server, "a", "first")
        with Listener(server, "/events?topic=a") as listener:
            position = listener.event()["id"]
        assert eventually(lambda: kept_position(tmp_path / "journal.db") >= EventID.parse(position))
        server.kill()
        clock.jump_to(0)
        server.start()
        second = publish(server, "a", "second")
        assert EventID.parse(second) > EventID.parse(position) > EventID.parse(first)
        for cursor in (first, position):
            with Listener(server, "/events?topic=a", {"Last-Event-ID": cursor}) as listener:
                listener.take()
                assert listener.event() == {"id": second, "data": "second"}


def test_events_that_a_jump_makes_old_are_not_removed_in_silence(clock: WallClock, tmp_path: Path) -> None:
    """Who comes back is told of the gap, and the operator of the jump, once; what came after it is kept."""
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_RETENTION_SECONDS": "600", **clock.env}
    with serving(folder=tmp_path, env=env) as server:
        first = publish(server, "a", "first")
        publish(server, "a", "second")
        clock.jump_to(HOUR)
        assert eventually(lambda: metric(server, "trio_sse_journal_events") == 0)
        third = publish(server, "a", "third")
        clock.jump_to(0)
        assert eventually(lambda: server.log().count("the wall clock jumped") == 2)
        assert last_event_id(server, "a") == third
        with Listener(server, "/events?topic=a", {"Last-Event-ID": first}) as listener:
            listener.take()
            gap = listener.event()
            assert (gap["event"], json.loads(gap["data"])["reason"]) == ("trio-sse.gap", "trimmed")
            assert listener.event()["data"] == "third"
        assert re.findall(r"the wall clock jumped by (.\d+) s", server.log()) == ["+3600", "-3600"]


# -- tokens ------------------------------------------------------------------------------------------------------------


@contextmanager
def subscriber(server: Server, topic: str) -> Iterator[Callable[[], bytes]]:
    """A stream whose token is good for an hour; gives what tells its end."""
    with Listener(server, f"/events?topic={topic}", bearer(sign(subscribe=["**"], ttl_s=HOUR))) as listener:
        listener.take()
        yield lambda: ending(listener)


@contextmanager
def page(server: Server, topic: str) -> Iterator[Callable[[], bytes]]:
    """The same with a session's cookie."""
    answer = ask(server, "POST", "/session", b"", bearer(sign(subscribe=["**"], ttl_s=HOUR)))
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
    with Listener(server, f"/events?topic={topic}", {"Cookie": cookie}) as listener:
        listener.take()
        yield lambda: ending(listener)


@contextmanager
def publisher(server: Server, topic: str) -> Iterator[Callable[[], bytes]]:
    """One who streams events."""
    head = f"POST /topics/{topic} HTTP/1.1\r\nHost: x\r\n"
    head += f"Authorization: Bearer {sign(publish=['**'], ttl_s=HOUR)}\r\n"
    head += "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Wire(server) as wire:
        wire.send(head.encode())
        wire.chunk(b"data: x\n\n")
        wire.take(b'"acked": 1')
        yield lambda: wire.take(b"expired")


@contextmanager
def over_tls(server: SecureServer, topic: str) -> Iterator[Callable[[], bytes]]:
    """A stream that no event reaches directly."""
    plain = socket.create_connection(("127.0.0.1", server.secure_port), timeout=WITHIN_S)
    with server.trusted().wrap_socket(plain, server_hostname="localhost") as secure:
        head = f"GET /events?topic={topic} HTTP/1.1\r\nHost: localhost\r\n"
        secure.sendall(f"{head}Authorization: Bearer {sign(subscribe=['**'], ttl_s=HOUR)}\r\n\r\n".encode())
        received = b""
        while b"\nid: " not in received:
            received += secure.recv(65536)

        def end() -> bytes:
            received = b""
            while b"0\r\n\r\n" not in received:
                piece = secure.recv(65536)
                assert piece, received
                received += piece
            return received

        yield end


@contextmanager
def over_h2(server: Server, topic: str) -> Iterator[Callable[[], bytes]]:
    """The same over HTTP/2."""
    client = Client(server)
    with client.socket:
        number = client.ask(f"/events?topic={topic}", headers=bearer(sign(subscribe=["**"], ttl_s=HOUR)))
        assert client.read_until(lambda: b"\nid: " in client.data.get(number, b""))

        def end() -> bytes:
            assert client.read_until(lambda: number in client.ended)
            return client.data[number]

        yield end


Kind = Callable[[Server, str], AbstractContextManager[Callable[[], bytes]]]


@pytest.mark.parametrize("client", [subscriber, page, publisher, over_tls, over_h2])
def test_a_token_ends_with_the_wall_clock(server: Server, clock: WallClock, topic: str, client: Kind) -> None:
    """When the clock jumps past its end, who came with it is told so and let go within the second."""
    with client(server, topic) as end:
        clock.jump_to(HOUR + 5)
        began = time.monotonic()
        assert b"expired" in end()
        assert time.monotonic() - began < ENDS_S + STALL_S


def test_a_token_lives_on_with_the_wall_clock(server: Server, clock: WallClock, topic: str) -> None:
    """When the clock goes back, who came with it stays, until the clock has come to its end after all."""
    ttl_s = 6
    token = sign(subscribe=["**"], publish=["**"], ttl_s=ttl_s)
    with Listener(server, f"/events?topic={topic}", bearer(token)) as listener:
        listener.take()
        clock.jump_to(-HOUR)
        time.sleep(ttl_s + ENDS_S / 2)
        publish(server, topic, "still here")
        assert listener.event()["data"] == "still here"
        clock.jump_to(0)
        began = time.monotonic()
        assert b"expired" in ending(listener)
        assert time.monotonic() - began < ENDS_S + STALL_S


def test_who_reads_nothing_does_not_outlive_the_token(server: Server, clock: WallClock, topic: str) -> None:
    """The write that waits for such a client ends when the clock jumps past the token's end."""
    headers = bearer(sign(subscribe=["**"], ttl_s=HOUR))
    with Listener(server, f"/events?topic={topic}", headers) as listener:
        listener.take()
        for _ in range(8):
            publish(server, topic, "x" * 1_000_000)
        assert eventually(lambda: ask(server, "GET", "/test/worker").json["writing"] == 1)
        clock.jump_to(HOUR + 5)
        began = time.monotonic()
        assert eventually(lambda: ask(server, "GET", "/test/worker").json["streams"] == 0)
        assert time.monotonic() - began < ENDS_S + STALL_S


def test_a_stream_of_anything_ends_with_the_wall_clock(clock: WallClock, tmp_path: Path) -> None:
    """Also without a hub, under a server that nobody guards."""
    (tmp_path / "program.py").write_text(FOREIGN)
    with serving("program:app", folder=tmp_path, env=clock.env) as server, Listener(server, "/events") as listener:
        assert b"data: first" in listener.take(b"first\n\n")
        clock.jump_to(HOUR + 5)
        began = time.monotonic()
        assert b"expired" in ending(listener)
        assert time.monotonic() - began < ENDS_S + STALL_S


def test_what_is_remembered_of_a_token_is_not_that_it_is_good(server: Server, clock: WallClock, topic: str) -> None:
    """The time is looked at each time: past its end a token is refused, and the clock set right it is good again."""
    headers = bearer(sign(subscribe=["**"], ttl_s=HOUR))

    def status() -> int:
        return ask(server, "GET", f"/topics/{topic}", headers=headers).status

    assert status() == 200
    clock.jump_to(HOUR + 5)
    assert status() == 401
    clock.jump_to(0)
    assert status() == 200


def test_a_token_from_a_clock_that_is_ahead(server: Server, clock: WallClock, topic: str) -> None:
    """Half a minute ahead is nothing; an hour is not valid yet, says so, and is valid when the clock is set right."""
    authority = Authority(KEY)
    near, far = (
        bearer(authority.issue("ada", now=time.time() + ahead, ttl_s=HOUR, subscribe=["**"])) for ahead in (30, HOUR)
    )
    assert ask(server, "GET", f"/topics/{topic}", headers=near).status == 200
    answer = ask(server, "GET", f"/topics/{topic}", headers=far)
    assert (answer.status, "not valid yet" in answer.json["detail"]) == (401, True)
    clock.jump_to(HOUR)
    assert ask(server, "GET", f"/topics/{topic}", headers=far).status == 200
