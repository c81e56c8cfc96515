"""Many clients that come back at once, each with a cursor of its own, and what each of them got.

What a server has to send is known beforehand, so nothing is parsed that is right: the bytes that a client gets are
compared with those that follow its cursor. Only where they differ is it counted what was lost, came twice or out of
order.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from benchmarks.publishers import NUMBER_DIGITS
from benchmarks.servers import PAGE_BYTES, BenchmarkError, pinned, usage
from trio_sse.wire import HEARTBEAT

RECEIVE_BYTES = 256 * 1024
HANDSHAKES, KNOCKING = 200, 3_000
"""So many connect at the same time, and so many are connected and not yet answered: more than that the kernel drops,
and what is measured then is how long its timers are."""

SILENCE_S = 30.0
"""Nothing came to any client for so long: nothing will."""

LONGEST_S = 600.0
"""What has not come by then is lost."""

LINGER_S = 0.3
"""Everything has arrived; but what comes twice may come a little later."""

TELL_S = 0.5
NICE = 19
"""The latency of the live streams is measured by a process on the same core, which comes first."""

_NUMBER = re.compile(rb"^data: ([0-9]{%d}) " % NUMBER_DIGITS, re.MULTILINE)
_ID = re.compile(rb"^id: (.*)\n")
_SOCKETS = re.compile(r"^TCP: .* mem (\d+)$", re.MULTILINE)


# -- what there is to get ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class History:
    """All that a topic holds, as it stands in a stream."""

    whole: bytes
    begins: Sequence[int]
    """Where each event begins, and where the last one ends."""
    ids: Sequence[bytes]

    @classmethod
    def of(cls, body: bytes, events: int) -> History:
        """The history in the body of a stream, without its opening.

        Raises:
          BenchmarkError: it is not of the events with the numbers 0, 1, 2 and so on.
        """
        if numbers_in(body) != list(range(events)) or not body.endswith(b"\n\n"):
            raise BenchmarkError(f"of {events:,} events the server keeps {len(numbers_in(body)):,}")
        begins, ids = [0], []
        for frame in body.removesuffix(b"\n\n").split(b"\n\n"):
            begins.append(begins[-1] + len(frame) + 2)
            ids.append(_ID.findall(frame)[0])
        return cls(body, begins, ids)

    def __len__(self) -> int:
        return len(self.ids)


def numbers_in(events: bytes) -> list[int]:
    """The numbers of some events."""
    return [int(number) for number in _NUMBER.findall(events)]


class Body:
    """The body of an answer, from the bytes of its connection: chunked, or all until it is closed."""

    __slots__ = ("_chunked", "_left", "_rest", "ended")

    def __init__(self) -> None:
        self._chunked: bool | None = None  # not known before the head is whole
        self._left = 0  # of the chunk that comes, with the line end behind it
        self._rest = b""
        self.ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The pieces of the body in these bytes.

        Raises:
          BenchmarkError: it is no answer with an event stream.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        begin = 0
        if self._chunked is None:
            head, blank, _ = data.partition(b"\r\n\r\n")
            if not blank:
                self._rest = data
                return
            if not head.startswith(b"HTTP/1.1 200 "):
                raise BenchmarkError(f"a stream was refused: {head[:200]!r}")
            self._chunked = b"\r\ntransfer-encoding: chunked" in head.lower()
            begin = len(head) + len(blank)
        if not self._chunked:
            yield data[begin:]
            return
        while begin < len(data):
            if not self._left:
                end = data.find(b"\r\n", begin)
                if end < 0:
                    self._rest = data[begin:]
                    return
                size = int(data[begin:end], 16)
                self.ended = self.ended or not size
                self._left = size + 2
                begin = end + 2
            left = max(0, self._left - (len(data) - begin))
            taken = max(0, self._left - 2) - max(0, left - 2)
            if taken:
                yield data[begin : begin + taken]
            begin += self._left - left
            self._left = left


# -- who gets it ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Faults:
    """What was wrong, in events; all clients together."""

    lost: int = 0
    twice: int = 0
    disordered: int = 0
    other: int = 0
    """Clients that got something else beside events, or other bytes than the others."""

    def __add__(self, more: Faults) -> Faults:
        return Faults(
            self.lost + more.lost,
            self.twice + more.twice,
            self.disordered + more.disordered,
            self.other + more.other,
        )

    @property
    def all(self) -> int:
        """Every one of them."""
        return self.lost + self.twice + self.disordered + self.other


class Client:
    """One that had every event up to its cursor, and is owed the rest."""

    __slots__ = ("_at", "_body", "_first", "_history", "_odd", "_opening", "is_open")

    def __init__(self, history: History, last: int) -> None:
        self._history = history
        self._first = last + 1
        self._at = history.begins[self._first]  # so much of the whole it has
        self._odd: bytes | None = None  # from the event on in which it became another
        self._body = Body()
        self._opening = b""
        self.is_open = False
        """Whether it has had the first bytes of its body."""

    def take(self, data: bytes) -> None:
        """What came for it.

        Raises:
          BenchmarkError: it was refused.
        """
        for piece in self._body.feed(data):
            if self.is_open:
                self._compare(piece)
                continue
            self._opening += piece
            _, blank, events = self._opening.partition(b"\n\n")
            if blank:
                self.is_open, self._opening = True, b""
                self._compare(events)

    def _compare(self, piece: bytes) -> None:
        if self._odd is None and self._history.whole.startswith(piece, self._at):
            self._at += len(piece)
        elif piece != HEARTBEAT:
            if self._odd is None:
                self._odd = self._history.whole[self._history.begins[self._reached] : self._at]
            self._odd += piece

    @property
    def _reached(self) -> int:
        """The first event that it has not, or not whole, of those that are as they should be."""
        return bisect_left(self._history.begins, self._at + 1) - 1

    @property
    def is_done(self) -> bool:
        """Whether it has the last event, or its stream was ended."""
        if self._odd is not None and self._odd.endswith(self._history.whole[self._history.begins[-2] :]):
            return True
        return self._at == len(self._history.whole) or self._body.ended

    @property
    def received(self) -> int:
        """How many events it got."""
        return self._reached - self._first + len(numbers_in(self._odd or b""))

    @property
    def faults(self) -> Faults:
        """What was wrong with what it got."""
        owed = range(self._reached, len(self._history))
        if self._odd is None:
            return Faults(lost=len(owed))
        numbers = numbers_in(self._odd)
        found = set(numbers) & set(owed)
        faults = Faults(
            lost=len(owed) - len(found),
            twice=len(numbers) - len(found),
            disordered=sum(after < before for before, after in pairwise(numbers)),
        )
        return faults if faults.all else Faults(other=1)


# -- all of them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Caught:
    """How all caught up."""

    received: int
    """Events, all clients together."""
    faults: Faults
    refused: Mapping[str, int]
    """Why clients got no stream, or lost it, and how many of them."""
    opened_s: float
    """Until the last client had the first bytes of its body."""
    seconds: float
    """Until the last client had its last event."""
    cpu_s: float
    """The server's processor time until then."""
    load_cpu_s: float
    """That of the clients."""
    kernel_bytes: int
    """The most that the kernel held for all TCP connections of the machine, at both their ends."""


@dataclass(frozen=True, slots=True)
class Herd:
    """So many clients of a server."""

    port: int
    pid: int
    """The server's process."""
    path: str
    history: History
    clients: int
    places: int
    """So many different cursors they have, from the first event on."""
    core: int

    @property
    def owed(self) -> int:
        """How many events all of them are to get."""
        rounds, rest = divmod(self.clients, self.places)
        last = len(self.history) - 1
        whole = self.places * last - self.places * (self.places - 1) // 2
        return rounds * whole + rest * last - rest * (rest - 1) // 2

    def request(self, number: int) -> bytes:
        """What a client says when it comes back."""
        cursor = self.history.ids[self.cursor(number)]
        head = f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nLast-Event-ID: ".encode()
        return head + cursor + b"\r\n\r\n"

    def cursor(self, number: int) -> int:
        """The number of the event that a client had last."""
        return number % self.places


def wait(pipe: Connection) -> None:
    """Beside all else: take a herd, and let it come back when somebody sends true.

    Says when it is there, when the herd is ready, now and then how many are done, and in the end how it was.
    """
    os.nice(NICE)
    pipe.send(0)
    herd: Herd = pipe.recv()
    with pinned(herd.core), _Return(herd) as coming:
        pipe.send(0)
        pipe.recv()
        pipe.send(coming.run(pipe.send))


class _Return:
    """The clients of a herd on their way; a context manager."""

    def __init__(self, herd: Herd) -> None:
        self._herd = herd
        self._clients = [Client(herd.history, herd.cursor(number)) for number in range(herd.clients)]
        self._requests = [herd.request(number) for number in range(herd.clients)]
        self._sockets: dict[int, tuple[socket.socket, int]] = {}
        self._poll = select.epoll()
        self._refused: dict[str, int] = {}
        self._left = set(range(herd.clients))
        self._come = self._connected = self._opened = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for sock, _ in self._sockets.values():
            sock.close()
        self._poll.close()

    def run(self, tell: Callable[[int], None]) -> Caught:
        """Come back all at once, until each has everything; ``tell`` is told how many have it, now and then."""
        pid = self._herd.pid
        opened_s = seconds = 0.0
        kernel_bytes = _kernel_bytes()
        before, load_before = usage(pid).cpu_s, time.process_time()
        cpu_s = load_cpu_s = 0.0
        began = told = arrived = time.monotonic()
        until = began + LONGEST_S
        self._connect()
        while ready := self._poll.poll(max(0, min(SILENCE_S, until - arrived))):
            for number, events in ready:
                self._serve(number, events)
            self._connect()
            arrived = time.monotonic()
            if self._opened == len(self._clients) and not opened_s:
                opened_s = arrived - began
            if not self._left and not seconds:
                seconds = arrived - began
                cpu_s, load_cpu_s = usage(pid).cpu_s - before, time.process_time() - load_before
                until = arrived + LINGER_S
            if arrived - told > TELL_S:
                told = arrived
                kernel_bytes = max(kernel_bytes, _kernel_bytes())
                tell(len(self._clients) - len(self._left))
        if not seconds:
            seconds = arrived - began
            cpu_s, load_cpu_s = usage(pid).cpu_s - before, time.process_time() - load_before
        return Caught(
            received=sum(client.received for client in self._clients),
            faults=sum((client.faults for client in self._clients), Faults()),
            refused=self._refused,
            opened_s=opened_s or seconds,
            seconds=seconds,
            cpu_s=cpu_s,
            load_cpu_s=load_cpu_s,
            kernel_bytes=kernel_bytes,
        )

    def _connect(self) -> None:
        while (
            self._come < len(self._clients)
            and self._come - self._connected < HANDSHAKES
            and self._come - self._opened < KNOCKING
        ):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", self._herd.port))
            self._sockets[sock.fileno()] = sock, self._come
            self._poll.register(sock, select.EPOLLOUT)
            self._come += 1

    def _serve(self, number: int, events: int) -> None:
        sock, place = self._sockets[number]
        client = self._clients[place]
        try:
            if events & select.EPOLLOUT:
                self._connected += 1
                sock.sendall(self._requests[place])
                self._poll.modify(number, select.EPOLLIN)
                return
            data = sock.recv(RECEIVE_BYTES)
            if not data:
                raise BenchmarkError("the server ended a stream")
            was_open = client.is_open
            client.take(data)
        except (OSError, BenchmarkError) as error:
            self._refused[str(error)] = self._refused.get(str(error), 0) + 1
            self._poll.unregister(number)
            self._opened += not client.is_open  # or others would wait for it
            self._left.discard(place)
            return
        self._opened += client.is_open and not was_open
        if client.is_done:
            self._left.discard(place)


def _kernel_bytes() -> int:
    found = _SOCKETS.search(Path("/proc/net/sockstat").read_text())
    return 0 if found is None else int(found[1]) * PAGE_BYTES
