"""Clients that come and go, each in its own way: what ``soak.py`` and the tests let loose on a server.

A *visit* is one connection, from its opening to a way of leaving. Those here leave politely (FIN) and rudely (RST),
before, within and after a request, in the middle of history and of an event, over TLS and HTTP/2; some are refused,
and some publish and leave in the middle of what they say. A visit that is not served as it should be is a fault.
"""

from __future__ import annotations

import json
import math
import random
import ssl
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, ResponseReceived, StreamEnded

from benchmarks.servers import usage
from trio_sse.auth import MAX_REMEMBERED, Authority

KEY = "a key of nobody's, which is long enough to sign with"
PUBLIC, HISTORY, LARGE, CROWDED = "churn/public", "churn/history", "churn/large", "churn/crowded"
KEPT_EVENTS = 50
"""Of each topic."""

HISTORY_BYTES, LARGE_BYTES = 16 * 1024, 256 * 1024
"""How large each event of these two topics is."""

STAY_S = 1.0
"""A visitor who stays, stays up to so long."""

VISIT_S = 30.0
"""A visit that takes longer is a fault."""

SETTLE_S, PAUSE_S = 20.0, 0.2
"""For so long, at most, it is waited until nothing is left of the visits; between two looks, so long."""

ENV: Mapping[str, str] = {
    "TRIO_SSE_JOURNAL": "memory:",
    "TRIO_SSE_JWT_KEY": KEY,
    "TRIO_SSE_ANONYMOUS": "publish,subscribe",
    # So that history is as large as it may be when the warm-up is over, and is no growth.
    "TRIO_SSE_RETENTION_EVENTS": str(KEPT_EVENTS),
    "TRIO_SSE_MAX_STREAMS_PER_SUBJECT": "2",
    # Of some who have left only a heartbeat tells: the first is answered by a reset, and the second fails.
    "TRIO_SSE_HEARTBEAT_S": "2",
}
"""What the server needs to be told. It has to serve ``tests.apps:app``, which tells what it holds."""

Visit = Callable[["Site"], Awaitable[None]]


class Fault(Exception):
    """A visitor was not served as it should be."""


@dataclass
class Site:
    """A server, and what its visitors need to know."""

    port: int
    """In plain text, also HTTP/2."""
    tls_port: int | None = None
    authority: Authority = field(default_factory=lambda: Authority(KEY))
    random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.tls = {protocol: _trusting(protocol) for protocol in ("http/1.1", "h2")}

    def token(self, subject: str, ttl_s: int = 3600) -> str:
        """A token to subscribe with. The same for all who ask in the same second."""
        return self.authority.issue(subject, now=time.time(), ttl_s=ttl_s, subscribe=["churn/**"])


def _trusting(protocol: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


# -- a connection --------------------------------------------------------------------------------------------------


class Line:
    """A visitor's connection; a context manager that closes at its end, politely or not."""

    def __init__(self, site: Site, *, tls: str | None = None, receive_buffer: int | None = None) -> None:
        self._site, self._tls = site, tls
        self.socket = trio.socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer)
        self._stream: trio.abc.Stream
        self.buffer = b""

    async def __aenter__(self) -> Line:
        port = self._site.port if self._tls is None else self._site.tls_port
        await self.socket.connect(("127.0.0.1", port))
        self._stream = trio.SocketStream(self.socket)
        if self._tls is not None:
            # As browsers do: the end of TLS is not waited for.
            secured = trio.SSLStream(
                self._stream, self._site.tls[self._tls], server_hostname="localhost", https_compatible=True
            )
            self._stream = secured
            await secured.do_handshake()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._site.random.random() < 0.5:
            self.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.close()
        else:
            with trio.move_on_after(1):
                await self._stream.aclose()
            self.socket.close()

    async def send(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def chunk(self, data: bytes) -> None:
        """Send one chunk of a chunked body; an empty one ends it."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def ask(self, method: str, target: str, *headers: str, body: bytes = b"") -> None:
        """Send a request, or so much of it as ``body`` is."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def receive(self, most: int = 65536) -> bytes:
        """What comes next; empty when the server has closed."""
        piece = bytes(await self._stream.receive_some(most))
        self.buffer += piece
        return piece

    async def until(self, end: bytes) -> None:
        """Read until these bytes have come."""
        while end not in self.buffer:
            if not await self.receive():
                raise Fault(f"the server closed after {self.buffer[:40]!r}")

    async def head(self) -> None:
        """Read until an answer's head is there, and perhaps more."""
        await self.until(b"\r\n\r\n")

    async def status(self, wanted: int) -> None:
        """Read an answer's head, which should be this."""
        await self.head()
        if not self.buffer.startswith(b"HTTP/1.1 %d" % wanted):
            raise Fault(f"{wanted} was due, and this came: {self.buffer[:40]!r}")

    async def rest(self) -> None:
        """Read until the server closes."""
        while await self.receive():
            pass

    async def opened(self) -> None:
        """Read the beginning of a stream, up to its position."""
        await self.status(200)
        await self.until(b"id: ")

    def half_close(self) -> None:
        self.socket.shutdown(trio.socket.SHUT_WR)


class H2Line(Line):
    """A visitor's connection over HTTP/2."""

    async def __aenter__(self) -> H2Line:
        await super().__aenter__()
        self.h2 = H2Connection(H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.answered: set[int] = set()
        self.begun: set[int] = set()
        self.ended: set[int] = set()
        await self.flush()
        return self

    async def flush(self) -> None:
        await self.send(self.h2.data_to_send())

    def request(self, path: str, method: str = "GET", *headers: tuple[str, str], end: bool = True) -> int:
        """The number of a new request's stream; :meth:`flush` sends it."""
        number: int = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "localhost")]
        self.h2.send_headers(number, [*pseudo, *headers], end_stream=end)
        return number

    async def read_until(self, holds: Callable[[], bool]) -> None:
        """Read until something holds."""
        while not holds():
            piece = bytes(await self._stream.receive_some(65536))
            if not piece:
                raise Fault("the server closed the HTTP/2 connection")
            for event in self.h2.receive_data(piece):
                if isinstance(event, ResponseReceived):
                    self.answered.add(event.stream_id)
                elif isinstance(event, DataReceived):
                    self.begun.add(event.stream_id)
                    self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                elif isinstance(event, StreamEnded):
                    self.ended.add(event.stream_id)
            await self.flush()


# -- the visits ----------------------------------------------------------------------------------------------------

VISITS: dict[str, Visit] = {}
TLS_VISITS: dict[str, Visit] = {}


def visit(do: Visit) -> Visit:
    VISITS[do.__name__] = do
    return do


def tls_visit(do: Visit) -> Visit:
    TLS_VISITS[do.__name__] = do
    return do


@visit
async def listens(site: Site) -> None:
    """Subscribes, stays for a while, and leaves."""
    async with Line(site) as line:
        await line.ask("GET", f"/events?topic={PUBLIC}&topic=churn/*")
        await line.opened()
        with trio.move_on_after(site.random.random() * STAY_S):
            await line.rest()


@visit
async def asks_and_leaves(site: Site) -> None:
    """Does not wait for the answer."""
    async with Line(site) as line:
        await line.ask("GET", f"/events?topic={PUBLIC}")


@visit
async def says_nothing(site: Site) -> None:
    """Connects, and leaves."""
    async with Line(site):
        pass


@visit
async def half_a_request(site: Site) -> None:
    """Leaves within the head."""
    async with Line(site) as line:
        await line.send(b"GET /events?topic=churn/public HTTP/1.1\r\nHost: loc")


@visit
async def in_mid_replay(site: Site) -> None:
    """Leaves while history comes."""
    async with Line(site, receive_buffer=4096) as line:
        await line.ask("GET", f"/events?topic={HISTORY}&last_event_id=earliest")
        await line.until(b"data: ")


@visit
async def in_mid_event(site: Site) -> None:
    """Leaves with a part of an event."""
    async with Line(site, receive_buffer=4096) as line:
        await line.ask("GET", f"/events?topic={LARGE}")
        await line.opened()
        async with Line(site) as publisher:
            head = f"Content-Length: {LARGE_BYTES}", "Content-Type: text/plain"
            await publisher.ask("POST", f"/topics/{LARGE}", *head, body=b"x" * LARGE_BYTES)
            await line.until(b"data: xx")


@visit
async def half_closes(site: Site) -> None:
    """Says that it will send no more, which is how a client leaves whom nobody waits for."""
    async with Line(site) as line:
        await line.ask("GET", f"/events?topic={PUBLIC}")
        await line.opened()
        line.half_close()
        await line.rest()


@visit
async def pipelines(site: Site) -> None:
    """Asks for pages behind a stream, which it will never get."""
    async with Line(site) as line:
        await line.ask("GET", f"/events?topic={PUBLIC}")
        for _ in range(5):
            await line.ask("GET", "/healthz")
        await line.opened()


@visit
async def pages_unread(site: Site) -> None:
    """Asks for more pages than it reads."""
    async with Line(site, receive_buffer=4096) as line:
        for _ in range(10):
            await line.ask("GET", "/board.js")
        await line.status(200)


@visit
async def expires(site: Site) -> None:
    """Its token ends before it does."""
    async with Line(site) as line:
        token = site.token(f"brief-{site.random.randrange(30)}", ttl_s=2)
        ends = int(time.time()) + 2
        await line.ask("GET", f"/events?topic={PUBLIC}", f"Authorization: Bearer {token}")
        await line.head()
        if time.time() > ends and line.buffer.startswith(b"HTTP/1.1 401 "):
            return  # on a busy machine it may be over before it is looked at
        await line.status(200)
        await line.until(b"0\r\n\r\n")


@visit
async def refused(site: Site) -> None:
    """Is told no, for one reason and another, and to say goodbye."""
    async with Line(site) as line:
        for status, method, target, *headers in (
            (401, "GET", "/events?topic=a", "Authorization: Bearer nonsense"),
            (401, "GET", "/events?topic=user/ada"),
            (400, "GET", "/events?topic=a//b"),
            (404, "GET", "/nothing"),
            (405, "PUT", "/events"),
        ):
            line.buffer = b""
            await line.ask(str(method), str(target), *headers)
            await line.status(int(status))


@visit
async def one_too_many(site: Site) -> None:
    """There are enough streams of this subject: it is told when to come back."""
    token = site.token("crowd")
    async with Line(site) as line:
        await line.ask("GET", f"/events?topic={CROWDED}", f"Authorization: Bearer {token}")
        await line.status(200)
        await line.until(b"retry: ")
        await trio.sleep(site.random.random() * STAY_S / 4)


@visit
async def publishes(site: Site) -> None:
    """One event."""
    async with Line(site) as line:
        await line.ask("POST", f"/topics/{PUBLIC}", "Content-Length: 5", body=b"hello")
        await line.status(201)


@visit
async def half_a_body(site: Site) -> None:
    """Publishes less than it said, and leaves."""
    async with Line(site) as line:
        await line.ask("POST", f"/topics/{PUBLIC}", "Content-Length: 5000", body=b"hello")


@visit
async def publisher_in_mid_event(site: Site) -> None:
    """Streams events, and leaves within one."""
    async with Line(site) as line:
        await line.ask("POST", f"/topics/{PUBLIC}", "Transfer-Encoding: chunked", "Content-Type: text/event-stream")
        await line.chunk(b"id: 1\ndata: first\n\ndat")
        await line.until(b'"acked": 1')


@visit
async def publisher_in_mid_chunk(site: Site) -> None:
    """Streams events, and leaves within a chunk, before it was told anything."""
    async with Line(site) as line:
        await line.ask("POST", f"/topics/{PUBLIC}", "Transfer-Encoding: chunked", "Content-Type: text/event-stream")
        await line.send(b"ff\r\ndata: fir")


@visit
async def junk(site: Site) -> None:
    """Speaks no HTTP."""
    async with Line(site) as line:
        await line.send(b"\x16\x03\x01 hello?\r\n\r\n")
        await line.status(400)


@visit
async def no_websocket(site: Site) -> None:
    """Asks for what there is not."""
    async with Line(site) as line:
        upgrade = "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"
        await line.ask("GET", "/events", *upgrade, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
        await line.until(b"\r\n\r\n")


@visit
async def h2_preface(site: Site) -> None:
    """Begins HTTP/2, and asks for nothing."""
    async with H2Line(site):
        pass


async def _h2_streams(site: Site, tls: str | None) -> None:
    async with H2Line(site, tls=tls) as line:
        streams = [line.request(f"/events?topic={PUBLIC}") for _ in range(3)]
        await line.flush()
        await line.read_until(lambda: line.begun.issuperset(streams))
        for number in streams[: site.random.randrange(4)]:
            line.h2.reset_stream(number, ErrorCodes.CANCEL)
        await line.flush()
        await trio.sleep(site.random.random() * STAY_S / 4)


@visit
async def h2_streams(site: Site) -> None:
    """Several streams on a connection, of which some are reset, and the rest left."""
    await _h2_streams(site, None)


@visit
async def h2_reset_at_once(site: Site) -> None:
    """Streams that are reset with the segment that asks for them; the connection goes on."""
    async with H2Line(site) as line:
        for _ in range(5):
            line.h2.reset_stream(line.request(f"/events?topic={PUBLIC}"), ErrorCodes.CANCEL)
        page = line.request("/healthz")
        await line.flush()
        await line.read_until(lambda: page in line.ended)


@visit
async def h2_publisher_resets(site: Site) -> None:
    """Streams events over HTTP/2, and resets in the middle of one; the connection goes on."""
    async with H2Line(site) as line:
        kind = ("content-type", "text/event-stream")
        number = line.request(f"/topics/{PUBLIC}", "POST", kind, end=False)
        line.h2.send_data(number, b"id: 1\ndata: first\n\ndata: sec")
        await line.flush()
        await line.read_until(lambda: number in line.begun)
        line.h2.reset_stream(number, ErrorCodes.CANCEL)
        page = line.request("/healthz")
        await line.flush()
        await line.read_until(lambda: page in line.ended)


@tls_visit
async def tls_listens(site: Site) -> None:
    """Subscribes over TLS, and leaves."""
    async with Line(site, tls="http/1.1") as line:
        await line.ask("GET", f"/events?topic={PUBLIC}")
        await line.opened()
        await trio.sleep(site.random.random() * STAY_S / 4)


@tls_visit
async def tls_h2_streams(site: Site) -> None:
    """The same over HTTP/2."""
    await _h2_streams(site, "h2")


@tls_visit
async def tls_broken_off(site: Site) -> None:
    """Leaves within the handshake, or speaks plain text where TLS is due."""
    async with Line(Site(site.tls_port or 0)) as line:
        hello = ssl.MemoryBIO()
        tls = site.tls["h2"].wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await line.send(hello.read()[: site.random.choice((1, 50, 1000))])


# -- many of them --------------------------------------------------------------------------------------------------


@dataclass
class Churn:
    """Visitors to a server: ``rate`` arrive in a second, each kind in its turn."""

    site: Site
    visits: Counter[str] = field(default_factory=Counter)
    """How many of each kind have left."""
    faults: Counter[str] = field(default_factory=Counter)
    """What went wrong, and how often."""

    async def prepare(self) -> None:
        """Fill what is bounded, so that it grows no more: history, and what the server remembers of tokens."""
        for topic, size in ((HISTORY, HISTORY_BYTES), (LARGE, LARGE_BYTES), (PUBLIC, 5)):
            async with Line(self.site) as line:
                chunked = "Transfer-Encoding: chunked", "Content-Type: text/event-stream"
                await line.ask("POST", f"/topics/{topic}", *chunked)
                for _ in range(KEPT_EVENTS):
                    await line.chunk(b"data: " + b"x" * size + b"\n\n")
                await line.chunk(b"")
                await line.until(b'"done": true')
        async with Line(self.site) as line:
            for number in range(MAX_REMEMBERED):
                line.buffer = b""
                token = f"Authorization: Bearer {self.site.token(f'visitor-{number}')}"
                await line.ask("GET", f"/topics/{PUBLIC}", token)
                await line.status(200)

    async def run(self, rate: float, seconds: float, tell: Callable[[], None] = lambda: None) -> None:
        """Let visitors come for so long, and return when the last has left; ``tell`` is called with each arrival."""
        kinds = {**VISITS, **(TLS_VISITS if self.site.tls_port is not None else {})}
        names: list[str] = []
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(math.ceil(rate * seconds)):
                await trio.sleep_until(began + number / rate)
                if not names:
                    names = self.site.random.sample(list(kinds), len(kinds))
                name = names.pop()
                nursery.start_soon(self._visit, name, kinds[name])
                tell()

    async def _visit(self, name: str, visit: Visit) -> None:
        try:
            with trio.fail_after(VISIT_S):
                await visit(self.site)
        except (Fault, OSError, trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError) as error:
            self.faults[f"{name}: {type(error).__name__} {error}"[:200]] += 1
        self.visits[name] += 1

    async def held(self) -> dict[str, int]:
        """What the worker holds now, in numbers, and its memory in bytes."""
        async with Line(self.site) as line:
            await line.ask("GET", "/test/worker?collect", "Connection: close")
            await line.rest()
        told: dict[str, int] = json.loads(line.buffer.partition(b"\r\n\r\n")[2])
        return {**told, "memory": usage(told["pid"]).rss_bytes}

    async def at_rest(self, baseline: Mapping[str, int]) -> dict[str, int]:
        """What the worker holds when nothing is left of the visits, or when it was waited for that long enough."""
        now = await self.held()
        deadline = trio.current_time() + SETTLE_S
        while remains(baseline, now) and trio.current_time() < deadline:
            await trio.sleep(PAUSE_S)
            now = await self.held()
        return now


NOT_COUNTED = {"pid", "objects", "blocks", "memory", "lagging"}
"""What is told, and need not come back to where it was: the first names the worker, the last counts on."""


def remains(baseline: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """What there is more of than there was."""
    return {name: now[name] - held for name, held in baseline.items() if name not in NOT_COUNTED and now[name] > held}
