"""Streams that are written straight to their sockets, and streams that are not: one set of tests for both."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import h11
import hypercorn.trio
import pytest
import trio
import trio.testing
from hypercorn.config import Config

from trio_sse.auth import Authority
from trio_sse.broadcast import SLICE, Batch
from trio_sse.event import Event, EventID
from trio_sse.hub import Hub
from trio_sse.record import Draft, Record
from trio_sse.server import Connection, DirectOutlet, DirectWriter, find_direct_writer
from trio_sse.server.framing import chunked
from trio_sse.settings import Settings
from trio_sse.topic import parse_selectors
from trio_sse.web import TrioSSE, create_app
from trio_sse.wire import Decoder

from .conftest import KEY, STALL_S, bearer

WITHIN_S = 20.0
SMALL_BUFFER = 4096
LARGE = 300_000

Send = Callable[[dict[str, Any]], Awaitable[None]]


def wrapped(app: TrioSSE) -> Callable[..., Awaitable[None]]:
    """The application as a middleware hands it on that wants to see every message: never direct."""

    async def middleware(scope: Any, receive: Any, send: Send) -> None:
        async def see(message: dict[str, Any]) -> None:
            await send(message)

        await app(scope, receive, see if scope["type"] == "http" else send)  # type: ignore[arg-type]

    return middleware


@dataclass
class Serving:
    """A server in this process."""

    app: TrioSSE
    port: int
    direct: bool

    @property
    def hub(self) -> Hub:
        return self.app.hub

    @property
    def written(self) -> int:
        """How many records were written straight to sockets."""
        return self.hub.broadcaster.written


Start = Callable[..., Awaitable[Serving]]


@pytest.fixture(params=["direct", "asgi"])
async def start(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Start]:
    """Starts a server, whose streams are direct or not."""
    stopped = trio.Event()

    async def start(*, send_buffer: int | None = None, **settings: Any) -> Serving:
        given = {"journal": "memory:", "jwt_key": None, "hosts": ("test",), "drain_s": 1.0, "write_timeout_s": 30.0}
        app = create_app(Settings(**(given | settings)))
        sock = socket.socket()
        if send_buffer is not None:  # which the sockets of connections inherit
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sock.bind(("127.0.0.1", 0))
        config = Config()
        config.bind = [f"fd://{sock.detach()}"]
        config.errorlog = None
        asgi: Any = app if request.param == "direct" else wrapped(app)
        (bind,) = await nursery.start(partial(hypercorn.trio.serve, asgi, config, shutdown_trigger=stopped.wait))
        return Serving(app, int(bind.rpartition(":")[2]), request.param == "direct")

    yield start
    stopped.set()


@dataclass
class Client:
    """A subscriber that checks the framing of every byte; a context manager that leaves at its end."""

    serving: Serving
    target: str
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "GET"
    http_version: str = "1.1"
    receive_buffer: int | None = None
    extra: bytes = b""

    async def __aenter__(self) -> Self:
        sock = trio.socket.socket()
        if self.receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        await sock.connect(("127.0.0.1", self.serving.port))
        self.stream = trio.SocketStream(sock)
        self.protocol = h11.Connection(h11.CLIENT)
        headers = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "test", **self.headers}.items())
        self.protocol.send(h11.Request(method=self.method, target=self.target, headers=[("Host", "test")]))
        self.protocol.send(h11.EndOfMessage())
        head = f"{self.method} {self.target} HTTP/{self.http_version}\r\n{headers}\r\n"
        await self.stream.send_all(head.encode() + self.extra)
        self.decoder = Decoder()
        self.events: list[Event] = []
        self.raw = b""
        self.ended = False
        response = await self._next()
        assert isinstance(response, h11.Response)
        self.response = response
        return self

    async def __aexit__(self, *exc: object) -> None:
        await trio.aclose_forcefully(self.stream)

    async def opened(self) -> Self:
        """Read until the stream has opened."""
        await self.until(lambda: b"\n\n" in self.raw)
        return self

    async def until(self, holds: Callable[[], bool]) -> None:
        """Read until something holds, or the stream has ended."""
        with trio.fail_after(WITHIN_S):
            while not self.ended and not holds():
                event = await self._next()
                if isinstance(event, h11.Data):
                    self.raw += event.data
                    self.events += self.decoder.feed(bytes(event.data))
                self.ended = isinstance(event, h11.EndOfMessage)
        assert holds()

    async def take(self, count: int) -> list[str]:
        """The data of the first so many events."""
        await self.until(lambda: len(self.events) >= count)
        return [event.data for event in self.events]

    async def end(self) -> None:
        """Read until the body has ended as it should."""
        await self.until(lambda: self.ended)

    async def _next(self) -> Any:
        while (event := self.protocol.next_event()) is h11.NEED_DATA:
            self.protocol.receive_data(await self.stream.receive_some(65536))
        return event

    def reset(self) -> None:
        """Close at the next closing without a goodbye to the server."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def held(serving: Serving) -> tuple[int, int]:
    """How many streams and outlets there are, when no more are going."""
    for _ in range(int(WITHIN_S / 0.01)):
        if not serving.hub.statistics().streams:
            break
        await trio.sleep(0.01)
    statistics = serving.hub.statistics()
    return statistics.streams, statistics.subscribers


async def published(hub: Hub, topic: str, count: int, *, begin: int = 0) -> None:
    for number in range(begin, begin + count):
        await hub.publish(topic, str(number))


def numbers(begin: int, end: int) -> list[str]:
    return [str(number) for number in range(begin, end)]


# -- order and completeness ---------------------------------------------------------------------------------


async def test_everyone_gets_everything_in_one_order(start: Start) -> None:
    """Three publishers at once, in bursts: every subscriber has all of it, each in the same order."""
    serving = await start()
    got: list[list[str]] = []

    async def subscriber(client: Client, ready: trio.Event) -> None:
        async with client:
            await client.opened()
            ready.set()
            got.append(await client.take(150))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(subscriber, Client(serving, "/events?topic=a"), ready := trio.Event())
            await ready.wait()
        for begin in (0, 1000, 2000):
            nursery.start_soon(partial(published, serving.hub, "a", 50, begin=begin))
    assert len(got) == 20
    assert all(each == got[0] for each in got)
    assert sorted(got[0], key=int) == numbers(0, 50) + numbers(1000, 1050) + numbers(2000, 2050)
    for begin in (0, 1000, 2000):
        assert [n for n in got[0] if begin <= int(n) < begin + 50] == numbers(begin, begin + 50)


async def test_only_the_direct_way_writes_to_sockets(start: Start) -> None:
    """A stream that nobody stands between and its socket is written without its task; any other never."""
    serving = await start()
    async with Client(serving, "/events?topic=a") as client:
        await client.opened()
        for number in range(20):
            await serving.hub.publish("a", str(number))
            assert await client.take(number + 1) == numbers(0, number + 1)
    assert serving.written == (20 if serving.direct else 0)
    assert serving.hub.statistics().delivered == 20


async def test_alternating_topics_stay_in_order(start: Start) -> None:
    """What is delivered together leaves in the order of the IDs, each record once, whatever selectors chose it."""
    serving = await start()
    targets = ("topic=a&topic=b", "topic=b", "topic=*&topic=a&topic=**")
    async with (
        Client(serving, f"/events?{targets[0]}") as both,
        Client(serving, f"/events?{targets[1]}") as one,
        Client(serving, f"/events?{targets[2]}") as wild,
    ):
        for client in (both, one, wild):
            await client.opened()
        for number in range(60):  # one tick of the loop: hub.run takes many at once
            serving.hub.journal.publish(serving.hub.journal.write([Draft("ab"[number % 2], Event(str(number)))]))
        assert await both.take(60) == numbers(0, 60)
        assert await wild.take(60) == numbers(0, 60)
        assert await one.take(30) == [str(number) for number in range(1, 60, 2)]
        ids = [EventID.parse(event.id or "") for event in both.events]
        assert ids == sorted(set(ids))


async def test_who_comes_and_goes_under_publishing_misses_nothing(start: Start) -> None:
    """Subscribers that join, resume and leave in the midst of deliveries have every event once."""
    serving = await start(buffer_events=16)
    total = 600
    dice = random.Random(7)

    async def visitor() -> None:
        have: list[str] = []
        last: dict[str, str] = {}
        while len(have) < total:
            async with Client(serving, "/events?topic=a&last_event_id=earliest", headers=last) as client:
                wanted = min(total - len(have), dice.randrange(1, 120))
                await client.until(lambda client=client, wanted=wanted: len(client.events) >= wanted)  # type: ignore[misc]
                have += [event.data for event in client.events]
                last = {"Last-Event-ID": client.events[-1].id or ""}
        assert have == numbers(0, total)

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(visitor)
        for begin in range(0, total, 3):
            await published(serving.hub, "a", 3, begin=begin)
            await trio.sleep(0.001)
    assert await held(serving) == (0, 0)


# -- clients that take little or nothing --------------------------------------------------------------------


async def test_a_chunk_that_is_taken_in_part_is_finished(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a tiny send buffer large events arrive whole, and what follows them behind them."""
    remainders: list[bool] = []
    flush = DirectWriter.flush

    async def spied(self: DirectWriter) -> bool:
        remainders.append(await flush(self))
        return remainders[-1]

    monkeypatch.setattr(DirectWriter, "flush", spied)
    serving = await start(send_buffer=SMALL_BUFFER)
    async with Client(serving, "/events?topic=a", receive_buffer=SMALL_BUFFER) as client:
        await client.opened()
        for number in range(4):
            await serving.hub.publish("a", f"{number}" * LARGE)
            await serving.hub.publish("a", f"small {number}")
        assert await client.take(8) == [text for n in range(4) for text in (f"{n}" * LARGE, f"small {n}")]
        await serving.hub.publish("a", "after")
        await client.take(9)
    assert any(remainders) == serving.direct


async def test_a_client_that_stalls_gets_the_rest_when_it_reads_again(start: Start) -> None:
    """It holds up nobody, lags, and then has everything once."""
    serving = await start(send_buffer=SMALL_BUFFER, buffer_events=8)
    async with (
        Client(serving, "/events?topic=a", receive_buffer=SMALL_BUFFER) as stalled,
        Client(serving, "/events?topic=a") as healthy,
    ):
        await stalled.opened()
        await healthy.opened()
        for number in range(100):
            await serving.hub.publish("a", f"{number:03}" + "x" * 5000)
            await healthy.take(number + 1)
        assert serving.hub.statistics().lagging > 0
        assert [data[:3] for data in await stalled.take(100)] == [f"{number:03}" for number in range(100)]
        written = 0
        for count in range(101, 200):  # its task parks some time after the last byte has arrived
            before = serving.written
            await serving.hub.publish("a", "parked again")
            await stalled.take(count)
            await healthy.take(count)
            written = max(written, serving.written - before)
        assert written == (2 if serving.direct else 0)


async def test_a_client_that_never_reads_is_let_go(start: Start) -> None:
    """When the kernel takes nothing more for the write timeout, its stream is gone; heartbeats alone find that out."""
    serving = await start(send_buffer=SMALL_BUFFER, write_timeout_s=0.5, heartbeat_s=1)
    async with Client(serving, "/events?topic=a", receive_buffer=SMALL_BUFFER) as client:
        await client.opened()
        await serving.hub.publish("a", "x" * LARGE)
        assert await held(serving) == (0, 0)


async def test_half_a_chunk_is_never_followed_by_an_end(start: Start) -> None:
    """A client that does not take the rest in the time of the drain is cut off, not told that this was all."""
    serving = await start(send_buffer=SMALL_BUFFER, write_timeout_s=0.5)
    async with Client(serving, "/events?topic=a", receive_buffer=SMALL_BUFFER) as client:
        await client.opened()
        await serving.hub.publish("a", "x" * LARGE)
        await trio.sleep(0.1)
        serving.hub.end_streams("shutdown")
        assert await held(serving) == (0, 0)
        with pytest.raises((h11.RemoteProtocolError, trio.BrokenResourceError, AssertionError)):
            await client.end()
        assert b"goodbye" not in client.raw


# -- who leaves, and who arrives, in the midst of it --------------------------------------------------------


async def test_who_vanishes_in_mid_delivery_harms_nobody(start: Start) -> None:
    """Clients that reset their connections under publishing are forgotten; the others get everything."""
    serving = await start()
    async with trio.open_nursery() as nursery:
        stay = [await nursery_enter(nursery, Client(serving, "/events?topic=a")) for _ in range(SLICE // 8)]
        gone = [await nursery_enter(nursery, Client(serving, "/events?topic=a")) for _ in range(SLICE // 8)]
        for number in range(50):
            await serving.hub.publish("a", str(number))
            if number % 2 and gone:
                leaver = gone.pop()
                leaver.reset()
                leaver.stream.socket.close()
        for client in stay:
            assert await client.take(50) == numbers(0, 50)
        for client in (*stay, *gone):
            await trio.aclose_forcefully(client.stream)
    assert await held(serving) == (0, 0)


async def nursery_enter(nursery: trio.Nursery, client: Client) -> Client:
    """An opened client that is left by its test."""
    return await (await client.__aenter__()).opened()


async def test_a_pipelined_request_does_not_disturb_the_stream(start: Start) -> None:
    """The request behind a stream waits; events pass; and when the client is gone, nothing of it is left."""
    serving = await start(heartbeat_s=1)
    pipelined = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
    client = Client(serving, "/events?topic=a", extra=pipelined)
    async with client:
        await client.opened()
        for number in range(10):
            await serving.hub.publish("a", str(number))
            await client.take(number + 1)
        client.reset()
    for _ in range(3):
        await serving.hub.publish("a", "nobody is there")
        await trio.sleep(0.01)
    assert await held(serving) == (0, 0)


# -- other ways to speak ------------------------------------------------------------------------------------


async def test_http_1_0_is_written_without_chunks(start: Start) -> None:
    """As nginx speaks to what is behind it, unless told otherwise."""
    serving = await start()
    async with Client(serving, "/events?topic=a", http_version="1.0") as client:
        await client.opened()
        assert b"transfer-encoding" not in dict(client.response.headers)
        for number in range(10):
            await serving.hub.publish("a", str(number))
            assert await client.take(number + 1) == numbers(0, number + 1)
    assert serving.written == (10 if serving.direct else 0)


async def test_head_is_answered_and_over(start: Start) -> None:
    """The headers, no body, no subscription; and the connection goes on."""
    serving = await start()
    again = b"HEAD /events?topic=a HTTP/1.1\r\nHost: test\r\n\r\n"
    async with Client(serving, "/events?topic=a", method="HEAD", extra=again) as client:
        await client.end()
        assert client.response.status_code == 200
        client.protocol.start_next_cycle()
        client.protocol.send(h11.Request(method="HEAD", target="/", headers=[("Host", "test")]))
        assert (await client._next()).status_code == 200
    assert serving.hub.statistics().streams == 0


# -- ends and heartbeats ------------------------------------------------------------------------------------


async def test_a_drain_says_goodbye_behind_the_last_event(start: Start) -> None:
    """Every stream ends cleanly, with all that was published before, and the connection may be used again."""
    serving = await start()
    async with trio.open_nursery() as nursery:
        clients = [await nursery_enter(nursery, Client(serving, "/events?topic=a")) for _ in range(20)]
        await published(serving.hub, "a", 20)
        for client in clients:
            await client.take(20)
        serving.hub.end_streams("shutdown")
        for client in clients:
            await client.end()
            assert [event.type for event in client.events[20:]] == ["trio-sse.goodbye"]
            assert json.loads(client.events[-1].data) == {"reason": "shutdown"}
            await trio.aclose_forcefully(client.stream)


async def test_a_drain_finishes_half_a_chunk_first(start: Start) -> None:
    """A client that was slow, and reads on in time, has the event and then the goodbye."""
    serving = await start(send_buffer=SMALL_BUFFER)
    async with Client(serving, "/events?topic=a", receive_buffer=SMALL_BUFFER) as client:
        await client.opened()
        await serving.hub.publish("a", "x" * LARGE)
        await trio.testing.wait_all_tasks_blocked()
        serving.hub.end_streams("shutdown")
        await client.end()
        assert len(client.events[0].data) == LARGE
        assert client.events[-1].type == "trio-sse.goodbye"


async def test_a_token_runs_out_in_the_midst_of_events(start: Start) -> None:
    """The stream ends when its token does, also if its task sleeps while events are written for it."""
    serving = await start(jwt_key=KEY)
    token = Authority(KEY).issue("ada", now=time.time(), ttl_s=5, subscribe=["a"])
    async with Client(serving, "/events?topic=a", headers=bearer(token)) as client:
        await client.opened()
        async with trio.open_nursery() as nursery:

            async def publish_on() -> None:
                for number in range(1000):
                    await serving.hub.publish("a", str(number))
                    await trio.sleep(0.02)

            nursery.start_soon(publish_on)
            began = time.time()
            await client.end()
            nursery.cancel_scope.cancel()
        assert time.time() - began < 5 + 2 * 1 + STALL_S
    assert json.loads(client.events[-1].data) == {"reason": "expired"}
    count = len(client.events) - 1
    assert count > 0
    assert [event.data for event in client.events[:-1]] == numbers(0, count)


async def test_heartbeats_stand_between_events(start: Start) -> None:
    """An idle stream is beaten for, before and after an event, and never inside one."""
    serving = await start(heartbeat_s=1)
    async with Client(serving, "/events?topic=a") as client:
        await client.opened()
        await client.until(lambda: client.raw.endswith(b"\n\n:\n"))
        await serving.hub.publish("a", "between")
        await client.until(lambda: client.raw.endswith(b"data: between\n\n:\n"))
        assert [event.data for event in client.events] == ["between"]


# -- the writer and its outlet, alone -----------------------------------------------------------------------


def record(seq: int, data: str = "x") -> Record:
    return Record.write(EventID(1, seq), Draft("a", Event(data)))


@dataclass
class Pair:
    """A direct outlet on one end of a connection, and the other end."""

    outlet: DirectOutlet
    writer: DirectWriter
    stream: trio.SocketStream
    client: trio.SocketStream
    connection: Connection
    woken: list[None]

    async def received(self) -> bytes:
        """What arrives when nothing more is coming."""
        got = b""
        with trio.move_on_after(0.05):
            while piece := await self.client.receive_some():
                got += piece
        return got


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """A parked writer."""
    ours, theirs = socket.socketpair()
    stream, client = (trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in (ours, theirs))
    woken: list[None] = []
    connection = Connection(stream, None, Config(), trio.CancelScope())  # type: ignore[arg-type]
    writer = DirectWriter(connection, None, lambda: woken.append(None))  # type: ignore[arg-type]
    outlet = writer.open_outlet(parse_selectors(["a"]), 10, None)
    outlet._frame, outlet.parked = chunked, True
    async with stream, client:
        yield Pair(outlet, writer, stream, client, connection, woken)


async def test_a_parked_outlet_writes_and_moves_its_cursor(pair: Pair) -> None:
    """The whole batch is one chunk, and nothing waits in the channel."""
    batch = Batch([record(1), record(2)])
    assert pair.outlet.offer(batch) == "written"
    assert pair.outlet.cursor == EventID(1, 2)
    assert await pair.received() == chunked(batch.records[0].frame + batch.records[1].frame)
    with pytest.raises(trio.WouldBlock):
        pair.outlet.receive_nowait()


async def test_what_was_read_meanwhile_is_not_written_again(pair: Pair) -> None:
    """A batch that is not wholly above the cursor goes through the channel, and so does what follows it."""
    pair.outlet.cursor = EventID(1, 1)
    assert pair.outlet.offer(Batch([record(1), record(2)])) == "waiting"
    assert pair.outlet.offer(Batch([record(3)])) == "waiting"
    assert await pair.received() == b""
    assert [pair.outlet.receive_nowait().id.seq for _ in range(3)] == [1, 2, 3]


async def test_a_task_that_is_busy_gets_records_through_its_channel(pair: Pair) -> None:
    """Nobody writes for a task that is not parked."""
    pair.outlet.parked = False
    assert pair.outlet.offer(Batch([record(1)])) == "waiting"
    assert await pair.received() == b""


async def test_a_full_socket_leaves_the_records_to_the_task(pair: Pair) -> None:
    """If the kernel takes nothing, nothing has moved."""
    while pair.outlet.beat():
        pass
    cursor = pair.outlet.cursor
    assert pair.outlet.offer(Batch([record(1)])) == "waiting"
    assert pair.outlet.cursor == cursor
    assert not pair.outlet.parked
    assert not pair.woken


async def test_a_chunk_in_part_is_committed_and_wakes_the_task(pair: Pair) -> None:
    """The cursor has moved, and what comes next waits behind the remainder."""
    assert pair.outlet.offer(Batch([record(1, "x" * 10_000_000)])) == "written"
    assert (pair.outlet.cursor, pair.woken, pair.outlet.parked) == (EventID(1, 1), [None], False)
    assert pair.outlet.offer(Batch([record(2)])) == "waiting"
    assert not pair.connection.scope.cancel_called
    pair.writer.close()
    assert pair.connection.scope.cancel_called
    assert pair.stream.socket.fileno() == -1


async def test_a_closed_descriptor_is_never_written_to_by_mistake(pair: Pair) -> None:
    """Another connection that has got the number of a closed one sees nothing of its events."""
    number = pair.stream.socket.fileno()
    pair.stream.socket.close()
    ours, theirs = socket.socketpair()
    if (given := ours.detach()) != number:
        os.dup2(given, number)
        os.close(given)
    with socket.socket(fileno=number), theirs:
        pair.outlet.offer(Batch([record(1)]))
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
    assert pair.connection.scope.cancel_called


async def test_a_broken_connection_is_ended(pair: Pair) -> None:
    """Nobody else may notice: its reader may be parked behind a pipelined request."""
    await pair.client.aclose()
    pair.outlet.offer(Batch([record(1)]))
    assert pair.connection.scope.cancel_called
    assert not pair.outlet.parked


async def test_a_send_of_something_else_is_not_direct() -> None:
    """Outside a guarded connection, or through a closure, there is no direct way."""

    async def send(message: object) -> None: ...

    assert find_direct_writer(send, lambda: None) is None
    assert find_direct_writer(None, lambda: None) is None
