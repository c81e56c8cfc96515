"""The clients: streams that are opened, cut and opened again."""

from __future__ import annotations

import heapq
import random
import select
import time
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial

from ..errors import TooLarge
from .accounting import Ledger
from .client import Client, is_stream, refusal
from .connection import READ_BYTES, Connection, Loop
from .reading import Reading
from .response import MAX_HEAD, BadResponse, Body, Head
from .target import DIAL_S, Target, check_room, reason

WINDOW = 64
"""So many streams are being opened at a time, so that no listen queue is overrun."""

SLOW_RECEIVE_BYTES = 4096
SLOW_STEP_S = 0.2


class Crowd:
    """All clients of a run."""

    def __init__(self, loop: Loop, target: Target, reading: Reading, ledgers: Sequence[Ledger]) -> None:
        self.clients: list[Client] = []
        self.reading = reading
        self.open = 0
        self.tried = self.joined = 0
        """Clients that have had an answer, and those that have had a stream."""
        self.ended = self.reopened = 0
        self.refused = 0
        """Streams that were answered with something else."""
        self.failures: Counter[str] = Counter()
        """Why streams were not opened."""
        self.slow_bytes = READ_BYTES
        """What a slow client reads in one step."""
        self._loop = loop
        self._target = target
        self._ledgers = ledgers
        self._slow: dict[int, Client] | None = {}  # none: they read like all others again
        self._waiting: deque[Client] = deque()
        self._dialling: dict[Client, int] = {}  # since when; the oldest first
        self._later: list[tuple[int, int, Client]] = []
        self._serial = 0
        self._slow_step_ns = 0

    def close(self) -> None:
        """Leave, all at once."""
        for client in self.clients:
            if client.connection is not None:
                self._loop.close(client.connection)
                client.connection = None

    # -- coming and going ---------------------------------------------------------------------------------

    def add(self, *, slow: bool) -> None:
        """One client more; the channels take turns."""
        client = Client(len(self.clients) % len(self._ledgers), slow=slow)
        self.clients.append(client)
        self._waiting.append(client)

    def pace(self, now_ns: int) -> None:
        """Let those come whose time it is, a window at a time, and the slow ones read a little."""
        while self._later and self._later[0][0] <= now_ns:
            self._waiting.append(heapq.heappop(self._later)[2])
        while self._dialling and now_ns - next(iter(self._dialling.values())) > DIAL_S * 1e9:
            self._fail(next(iter(self._dialling)), "no answer in time")
        while self._waiting and len(self._dialling) < WINDOW:
            self._dial(self._waiting.popleft())
        if self._slow and now_ns - self._slow_step_ns > SLOW_STEP_S * 1e9:
            self._slow_step_ns = now_ns
            for client in list(self._slow.values()):
                assert client.connection is not None
                data = client.connection.read(self.slow_bytes)
                if data is not None:
                    self._take(client, data)

    def cut(self, count: int) -> int:
        """Some clients, whoever it hits, leave and come back at once; how many did."""
        found = [client for client in self.clients if client.body is not None and not client.slow]
        chosen = found if count >= len(found) else random.sample(found, count)
        for client in chosen:
            self._drop(client)
            self._waiting.append(client)
        return len(chosen)

    def release_slow(self) -> None:
        """From now on slow clients read as fast as all others."""
        slow, self._slow = self._slow or {}, None
        for fd, client in slow.items():
            self._loop.epoll.register(fd, select.EPOLLIN)
            self._turn(client, select.EPOLLIN)

    def _dial(self, client: Client) -> None:
        request = self._target.get(client.channel, client.last_event_id)
        try:
            client.connection = Connection(
                self._target.streams, request, receive_bytes=SLOW_RECEIVE_BYTES if client.slow else None
            )
        except OSError as error:
            check_room(error)
            self._fail(client, f"cannot be reached: {reason(error)}")
            return
        self._dialling[client] = time.monotonic_ns()
        self._loop.watch(client.connection, partial(self._turn, client))

    def _drop(self, client: Client) -> None:
        if client.connection is not None:
            fd = client.connection.fileno
            self.reading.between.pop(fd, None)
            if self._slow is not None:
                self._slow.pop(fd, None)
            self._loop.close(client.connection)
        self.open -= client.body is not None
        client.closed()
        self._dialling.pop(client, None)

    def _fail(self, client: Client, why: str) -> None:
        """A stream was not opened: try again later."""
        self.failures[why] += 1
        self._try_first(client)
        self._return_later(client)

    def _try_first(self, client: Client) -> None:
        self.tried += not client.tried
        client.tried = True

    def _return_later(self, client: Client) -> None:
        self._drop(client)
        self._serial += 1
        heapq.heappush(self._later, (time.monotonic_ns() + int(client.retry_s * 1e9), self._serial, client))

    # -- reading ------------------------------------------------------------------------------------------

    def receive(self) -> None:
        """Read what has come, and let the others of the loop have their turns."""
        self.reading.receive(self._loop, self._take)

    def _turn(self, client: Client, mask: int) -> None:
        """Something can be done for a client that is not on the fast way."""
        connection = client.connection
        assert connection is not None
        if client.body is None:
            try:
                self._loop.advance(connection)
            except OSError as error:
                self._fail(client, f"cannot be reached: {reason(error)}")
                return
        if mask & ~select.EPOLLOUT:
            while client.connection is connection and (data := connection.read()) is not None:
                self._take(client, data)
                if not connection.is_secure:
                    break

    def _take(self, client: Client, data: bytes) -> None:
        """What came for a client, the slow and exact way."""
        try:
            if client.body is not None:
                self._read(client, client.body, data)
                return
            client.head += data
            head, end, rest = client.head.partition(b"\r\n\r\n")
            if end:
                self._answered(client, Head.parse(head), rest, whole=not data)
            elif not data:
                self._fail(client, "the connection was closed before there was an answer")
            elif len(head) > MAX_HEAD:
                self._fail(client, "the head of the answer does not end")
        except (BadResponse, TooLarge) as error:
            self._fail(client, str(error))

    def _answered(self, client: Client, head: Head, rest: bytes, *, whole: bool) -> None:
        connection, body = client.connection, head.body()
        assert connection is not None
        if not is_stream(head):
            detail = body.feed(rest)
            if whole or body.ended or len(detail) > MAX_HEAD:
                self.refused += 1
                self._fail(client, refusal(head, detail))
            return
        del self._dialling[client]
        self._try_first(client)
        client.opened(connection, body)
        self.open += 1
        if client.joined:
            self.reopened += 1
        else:
            client.joined = True
            self.joined += 1
            self._ledgers[client.channel].join(client)
        if client.slow and self._slow is not None:
            self._loop.epoll.unregister(connection.fileno)
            self._slow[connection.fileno] = client
        if rest:
            self._read(client, body, rest)

    def _read(self, client: Client, body: Body, data: bytes) -> None:
        if not data:
            self.reading.read_tail(client)
        if not data or not self.reading.read(client, body, data):
            self._hang_up(client)

    def _hang_up(self, client: Client) -> None:
        """The server ended a stream."""
        self.ended += 1
        self._return_later(client)

    def read_tails(self) -> None:
        """Nothing more may come: take what waits for more."""
        for client in self.clients:
            try:
                if client.tail and not self.reading.read_tail(client):
                    self._hang_up(client)
            except (BadResponse, TooLarge) as error:
                self._fail(client, str(error))
