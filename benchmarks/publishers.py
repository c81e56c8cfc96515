"""Those who publish and those who read in publish.py: raw sockets, and what they demand of the answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import socket
import time

from benchmarks.servers import BenchmarkError
from trio_sse import Authority, EventID

KEY = "a benchmark's key, long enough to sign with"
TOPIC = "bench"
EVENT_BYTES = 120
NUMBER_DIGITS = 12
WAIT_S = 30.0
RECEIVE_BYTES = 256 * 1024

_ID = re.compile(rb"^id: ([0-9]+-[0-9]+)$", re.MULTILINE)
_NUMBER = re.compile(rb"^data: ([0-9]{%d}) " % NUMBER_DIGITS, re.MULTILINE)
_GAP = b"event: trio-sse.gap\n"


def data(number: int) -> bytes:
    """What one event says: its number, and as much more as makes it so long."""
    return b"%0*d " % (NUMBER_DIGITS, number) + b"x" * (EVENT_BYTES - NUMBER_DIGITS - 1)


def head(*lines: str) -> bytes:
    """The request line and headers of a POST with a token."""
    token = Authority(KEY).issue("bench", now=time.time(), ttl_s=3600, publish=[TOPIC])
    request = [f"POST /topics/{TOPIC} HTTP/1.1", "Host: bench", f"Authorization: Bearer {token}", *lines, "", ""]
    return "\r\n".join(request).encode()


def connect(port: int) -> socket.socket:
    """A connection to the server."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read_answer(sock: socket.socket) -> tuple[int, bytes]:
    """The status and the body of an answer that says its length."""
    received = b""
    while True:
        piece = sock.recv(65536)
        if not piece:
            raise BenchmarkError(f"the server closed a connection after {received!r}")
        received += piece
        top, blank, body = received.partition(b"\r\n\r\n")
        if blank and len(body) >= int(top.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return int(top[9:12]), body


def read_history(port: int, last: EventID) -> tuple[list[int], EventID | None]:
    """The numbers of the events that the journal holds, in its order, and the ID of the last, which should be this."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    received, sought = b"", b"id: %b\n" % str(last).encode()
    with contextlib.closing(connection), contextlib.suppress(TimeoutError):
        connection.request("GET", f"/events?topic={TOPIC}&last_event_id=earliest")
        response = connection.getresponse()
        while not (sought in received and received.endswith(b"\n\n")) and (piece := response.read1(RECEIVE_BYTES)):
            received += piece
    ids = _ID.findall(received)
    return [int(number) for number in _NUMBER.findall(received)], EventID.parse(ids[-1].decode()) if ids else None


class Publisher:
    """Sends a stream of events as fast as it is taken, for a while, and reads what is acknowledged meanwhile."""

    def __init__(self, port: int, per_chunk: int, seconds: float) -> None:
        self.sent = 0
        self.answer = bytearray()
        self._per_chunk = per_chunk
        self._until = time.monotonic() + seconds
        self._waiting = memoryview(head("Content-Type: text/event-stream", "Transfer-Encoding: chunked"))
        self._ending = False
        self.socket = connect(port)
        self.socket.setblocking(False)

    @property
    def wants(self) -> int:
        """What to poll for."""
        return select.EPOLLIN if self._ending and not self._waiting else select.EPOLLIN | select.EPOLLOUT

    @property
    def done(self) -> bool:
        """Whether the answer is whole."""
        return self.answer.endswith(b"0\r\n\r\n")

    def write(self) -> None:
        """Give the kernel some more."""
        if not self._waiting and not self._ending:
            self._ending = time.monotonic() >= self._until
            self._waiting = memoryview(self._chunk(0 if self._ending else self._per_chunk))
        if self._waiting:
            self._waiting = self._waiting[self.socket.send(self._waiting) :]

    def read(self) -> None:
        """Take what has come of the answer."""
        piece = self.socket.recv(RECEIVE_BYTES)
        if not piece:
            raise BenchmarkError(f"the server ended a stream with {bytes(self.answer[-200:])!r}")
        self.answer += piece

    def _chunk(self, count: int) -> bytes:
        body = b"".join([b"data: %b\n\n" % data(number) for number in range(self.sent, self.sent + count)])
        self.sent += count
        return b"%x\r\n%b\r\n" % (len(body), body)

    def check(self) -> tuple[list[str], EventID]:
        """What is wrong with the acknowledgements, and the last ID in them.

        Raises:
          BenchmarkError: there are none.
        """
        return check_acknowledgements(bytes(self.answer), self.sent)


def check_acknowledgements(answer: bytes, sent: int) -> tuple[list[str], EventID]:
    """What is wrong with the answer to so many streamed events, and the last ID in it."""
    *acks, done = [json.loads(line) for line in re.findall(rb"^\{.*\}$", answer, re.MULTILINE)] or [None]
    if not answer.startswith(b"HTTP/1.1 200 ") or not acks:
        raise BenchmarkError(f"the stream was refused: {answer[:500]!r}")
    counts, ids = [ack.get("acked", 0) for ack in acks], [EventID.parse(ack.get("id", "0-0")) for ack in acks]
    faults = []
    if sorted(set(counts)) != counts or sorted(set(ids)) != ids:
        faults.append("acknowledgements are not in order")
    if counts[-1] != sent or done != {"done": True, "count": sent, "id": str(ids[-1])}:
        faults.append(f"{sent:,} events were sent, {counts[-1]:,} acknowledged, and the end was {done}")
    return faults, ids[-1]


class Subscriber:
    """Reads a stream, and demands that each event follows the one before it, or a gap that is told."""

    def __init__(self, port: int) -> None:
        self.received = self.faults = self.gaps = 0
        self.next = 0
        """The number of the event that comes next, or a later one behind a gap."""
        self.after_gap = False
        self._rest = b""
        self.socket = connect(port)
        self.socket.sendall(f"GET /events?topic={TOPIC} HTTP/1.0\r\nHost: bench\r\n\r\n".encode())
        opening = b""
        while b"\r\n\r\n" not in opening or not opening.endswith(b"\n\n"):
            opening += self.socket.recv(65536)
        self.socket.setblocking(False)

    def read(self) -> None:
        """Take what has come."""
        piece = self.socket.recv(RECEIVE_BYTES)
        if not piece:
            raise BenchmarkError("the server ended a subscriber's stream")
        blocks, end, self._rest = (self._rest + piece).rpartition(b"\n\n")
        self.take(blocks + end)

    def take(self, blocks: bytes) -> None:
        """Look at the events of some whole blocks."""
        for place, part in enumerate(blocks.split(_GAP)):
            numbers = [int(number) for number in _NUMBER.findall(part)]
            if place:
                self.gaps += 1
                self.after_gap = True
            if not numbers:
                continue
            if self.after_gap:
                self.next = max(self.next, numbers[0])
                self.after_gap = False
            self.faults += numbers != list(range(self.next, self.next + len(numbers)))
            self.next += len(numbers)
            self.received += len(numbers)
