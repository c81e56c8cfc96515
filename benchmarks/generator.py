"""The load: N streams and a few publishers on the loopback address, in one thread.

Events are due at fixed times, whatever the server does (an open loop), and latency counts from the due time: a
server that holds up its publishers does not look faster for it. An event that cannot be sent since all
publishers wait for an answer is *held*; one that was sent late since this program was busy is *late*, and then
the figures are no more the server's alone.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from .accounting import Accounts, StampReader, account, percentile, stamped
from .servers import BenchmarkError

HOST = "127.0.0.1"
PUBLISHERS = 8
WINDOW = 64
"""So many streams are being opened at a time, so that no listen queue is overrun."""

BATCH = 128
"""So many sockets are read before it is looked whether an event is due."""

READ_BYTES = 16 * 1024
LATE_NS = 10_000_000
SILENCE_S = 10.0
"""No stream opened, or publisher connected, for so long: the server is stuck."""

QUIET_S = 3.0
"""Nothing arrived for so long after the last publishing: nothing will."""

LINGER_S = 0.3
"""Everything has arrived; but what comes twice may come a little later."""

DRAIN_S = 60.0
"""What has not arrived so long after the last publishing is lost."""

TICK_S = 0.5
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Load:
    """One run, as the clients saw it."""

    offered: int
    """Events that were due."""
    accepted: int
    """Those that the server answered with success."""
    refused: int
    """Those that it answered otherwise, or not at all."""
    held: int
    late: int
    closed: int
    """Streams that ended before the run did."""
    accounts: Accounts
    elapsed_s: float
    """From the first due time to the last arrival."""
    p50_ms: float
    p99_ms: float
    max_ms: float


class _Stream:
    __slots__ = ("feed", "head", "numbers", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = b""
        self.feed = StampReader().feed
        self.numbers = array("I")


class _Publisher:
    __slots__ = ("answer", "name", "number", "sock")

    def __init__(self, sock: socket.socket, name: int) -> None:
        self.sock = sock
        self.name = name
        self.number = -1  # of the event that waits for its answer
        self.answer = b""


class Generator:
    """Streams of one server, and publishers to it; a context manager."""

    # Not Trio but epoll itself: the load must not be the bottleneck, nor share its costs with what it measures.

    def __init__(self, port: int, subscribe: str, publish: str, payload: int) -> None:
        self._port = port
        self._payload = payload
        host = f"Host: {HOST}:{port}\r\n"
        self._subscribe = f"GET {subscribe} HTTP/1.1\r\n{host}Accept: text/event-stream\r\n\r\n".encode()
        about = f"Content-Type: text/plain\r\nContent-Length: {payload}\r\n\r\n"
        self._publish = f"POST {publish} HTTP/1.1\r\n{host}{about}".encode()
        self._epoll = select.epoll()
        self._streams: dict[int, _Stream] = {}
        self._publishers: dict[int, _Publisher] = {}
        self._free: list[_Publisher] = []
        self._numbers: list[array[int]] = []  # of all streams, also those that ended
        self._latencies_ms = array("f")
        self._sent: list[int] = []
        self._accepted: set[int] = set()
        self._refused = 0
        self._arrived_ns = 0
        self._names = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams.values():
            stream.sock.close()
        for publisher in self._publishers.values():
            publisher.sock.close()
        self._epoll.close()

    # -- opening ------------------------------------------------------------------------------------------

    def open_streams(self, count: int, tick: Callable[[int], None]) -> None:
        """Open streams, a window at a time; done when each has had the first bytes of its body.

        Raises:
          BenchmarkError: one was refused or closed, or none opened for a while.
        """
        ready, progress = 0, time.monotonic()
        while ready < count:
            while len(self._streams) < min(count, ready + WINDOW):
                self._open_stream()
            for fd, _ in self._epoll.poll(0.1, BATCH):
                if self._is_opened(self._streams[fd]):
                    ready, progress = ready + 1, time.monotonic()
            tick(ready)
            if time.monotonic() - progress > SILENCE_S:
                raise BenchmarkError(f"only {ready} of {count} streams opened")

    def _open_stream(self) -> None:
        stream = _Stream(self._dial())
        self._streams[stream.sock.fileno()] = stream
        self._numbers.append(stream.numbers)
        stream.sock.send(self._subscribe)

    def _is_opened(self, stream: _Stream) -> bool:
        before = _has_body(stream.head)
        data = stream.sock.recv(READ_BYTES)
        if not data:
            raise BenchmarkError(f"a stream closed while it was opened: {stream.head[:300]!r}")
        stream.head += data
        if _has_body(stream.head) and stream.head[9:12] != b"200":
            raise BenchmarkError(f"a stream was refused: {stream.head[:300]!r}")
        return not before and _has_body(stream.head)

    def _dial(self) -> socket.socket:
        try:
            sock = socket.create_connection((HOST, self._port), timeout=SILENCE_S)
        except OSError as error:
            raise BenchmarkError(f"the server cannot be reached: {error}") from None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return sock

    # -- the run ------------------------------------------------------------------------------------------

    def run(self, rate: float, seconds: float, tick: Callable[[float, int], None]) -> Load:
        """Publish at a rate for a time, wait for the rest, and account for everything. Once a generator.

        ``tick`` is told, now and then, the seconds since the beginning and the events that arrived.

        Raises:
          BenchmarkError: the server cannot be reached any more.
        """
        for _ in range(PUBLISHERS):
            self._add_publisher()
        opened = len(self._streams)
        offered = max(1, int(rate * seconds))
        held = late = 0
        began = self._arrived_ns = time.monotonic_ns()
        period = 1e9 / rate
        end = began + int(seconds * 1e9)
        busy_until = told = 0  # busy_until: when no publisher was free last
        while True:
            now = time.monotonic_ns()
            due = began + int(len(self._sent) * period)
            if now < end and len(self._sent) < offered:
                if now >= due:
                    if self._free:
                        if now - due > LATE_NS:
                            held, late = (held + 1, late) if due <= busy_until else (held, late + 1)
                        self._send(due)
                        continue
                    busy_until = now
                    wait_ns = end - now
                else:
                    wait_ns = due - now
            elif self._is_over(now, end):
                break
            else:
                wait_ns = 100_000_000
            # Whole milliseconds, rounded down: epoll would round up, and what is due would be late.
            self._receive(min(wait_ns // 1_000_000, 100) / 1000)
            if now - told > TICK_S * 1e9:
                told = now
                tick((now - began) / 1e9, len(self._latencies_ms))
        latencies = sorted(self._latencies_ms)
        unanswered = len(self._sent) - len(self._accepted) - self._refused
        return Load(
            offered=offered,
            accepted=len(self._accepted),
            refused=self._refused + unanswered,
            held=held,
            late=late,
            closed=opened - len(self._streams),
            accounts=account(self._numbers, self._sent, self._accepted),
            elapsed_s=max(1, self._arrived_ns - began) / 1e9,
            p50_ms=percentile(latencies, 0.5),
            p99_ms=percentile(latencies, 0.99),
            max_ms=percentile(latencies, 1),
        )

    def _is_over(self, now: int, end: int) -> bool:
        """Whether everything arrived, or waiting longer is no use."""
        answered = len(self._free) == len(self._publishers)
        complete = answered and len(self._latencies_ms) >= len(self._accepted) * len(self._numbers)
        patience_s = LINGER_S if complete else QUIET_S
        return now > max(end, self._arrived_ns) + patience_s * 1e9 or now > end + DRAIN_S * 1e9

    def _receive(self, timeout_s: float) -> None:
        streams, latencies_ms, clock = self._streams, self._latencies_ms, time.monotonic_ns
        for fd, _ in self._epoll.poll(timeout_s, BATCH):
            stream = streams.get(fd)
            if stream is None:
                self._answered(self._publishers[fd])
                continue
            data = _recv(stream.sock)
            if not data:
                del streams[fd]
                stream.sock.close()  # epoll forgets it, too
                continue
            stamps = stream.feed(data)
            if stamps:
                now = self._arrived_ns = clock()
                for due, number in stamps:
                    latencies_ms.append((now - int(due)) / 1e6)
                    stream.numbers.append(int(number))

    # -- publishing ---------------------------------------------------------------------------------------

    def _add_publisher(self) -> None:
        publisher = _Publisher(self._dial(), self._names)
        self._names += 1  # order is promised on one connection only, so a new one has a new name
        self._publishers[publisher.sock.fileno()] = publisher
        self._free.append(publisher)

    def _send(self, due: int) -> None:
        publisher = self._free.pop()
        publisher.number = len(self._sent)
        self._sent.append(publisher.name)
        request = self._publish + stamped(due, publisher.number, self._payload)
        try:
            sent = publisher.sock.send(request)
        except OSError:
            sent = 0
        if sent < len(request):
            self._refused += 1
            self._replace(publisher)

    def _answered(self, publisher: _Publisher) -> None:
        """Take what came on a publisher's connection: a part of an answer, the whole, or its end."""
        data = _recv(publisher.sock)
        publisher.answer += data
        waiting, whole = publisher.number >= 0, _is_whole(publisher.answer)
        if data and waiting and not whole:
            return
        if waiting and whole and publisher.answer[9:10] == b"2":
            self._accepted.add(publisher.number)
        elif waiting:
            self._refused += 1
        if waiting and whole and not CLOSE.search(publisher.answer):
            publisher.number, publisher.answer = -1, b""
            self._free.insert(0, publisher)  # they take turns
        else:
            self._replace(publisher)

    def _replace(self, publisher: _Publisher) -> None:
        with contextlib.suppress(ValueError):
            self._free.remove(publisher)
        del self._publishers[publisher.sock.fileno()]
        publisher.sock.close()
        self._add_publisher()


def _recv(sock: socket.socket) -> bytes:
    """What is there to be read; nothing when the connection has ended, however it did."""
    try:
        return sock.recv(READ_BYTES)
    except ConnectionError:
        return b""


def _has_body(answer: bytes) -> bool:
    _, end, body = answer.partition(b"\r\n\r\n")
    return bool(end and body)


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    return bool(end and length and len(body) >= int(length[1]))
