"""The publishers: one POST for each event, or one request for each topic, through which its events are streamed."""

from __future__ import annotations

import contextlib
import json
import select
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from ..event import Event
from ..wire import CONTENT_TYPE, encode
from .accounting import Ledger
from .client import refusal
from .connection import Connection, Loop
from .response import BadResponse, Body, Head
from .target import Target, check_room, reason

PUBLISHERS = 8
"""So many single POSTs are under way at a time."""

BACK_OFF_S = 0.5
"""So long nothing is published on a connection that has failed."""

MAX_UNSENT = 256 * 1024
"""So many bytes may wait on a stream to the server before events are held."""

Answered = Callable[[int, bool], None]


class Publishing(Protocol):
    """A way to publish."""

    failures: Counter[str]
    accepted: int
    refused: int
    status: int
    """Of the last answer that was no success; 0 where there was none."""

    def is_free(self, number: int) -> bool:
        """Whether this event could be sent now."""

    def send(self, number: int, data: str) -> None:
        """Publish an event; written at the latest by the next flush."""

    def flush(self) -> None:
        """All that is to be sent now has been sent."""

    def finish(self) -> None:
        """There will be no more events."""

    @property
    def waiting(self) -> int:
        """Events without an answer."""

    def close(self) -> None:
        """Leave."""


class _Line:
    """A connection to publish on, and what comes back on it."""

    def __init__(self, lane: int) -> None:
        self.lane = lane
        self.connection: Connection | None = None
        self.not_before_ns = 0
        self.pending: deque[int] = deque()
        self.events: list[bytes] = []
        self.forget_answer()

    def forget_answer(self) -> None:
        self.raw = b""
        self.head: Head | None = None
        self.body: Body | None = None
        self.content = b""

    def feed(self, data: bytes) -> None:
        """Read some of the answer.

        Raises:
          BadResponse: it is none.
        """
        if self.body is None:
            self.raw += data
            head, end, data = self.raw.partition(b"\r\n\r\n")
            if not end:
                return
            self.head = Head.parse(head)
            self.body = self.head.body()
        self.content += self.body.feed(data)


class _Lines:
    """What both ways have in common: connections that come back, and what became of their events."""

    def __init__(self, loop: Loop, target: Target, ledgers: Sequence[Ledger]) -> None:
        self.failures: Counter[str] = Counter()
        self.accepted = self.refused = self.status = 0
        self._loop = loop
        self._target = target
        self._ledgers = ledgers
        self._lanes = 0
        self._lines: list[_Line] = []

    @property
    def waiting(self) -> int:
        return sum(len(line.pending) for line in self._lines)

    def close(self) -> None:
        for line in self._lines:
            if line.connection is not None:
                self._loop.close(line.connection)
                line.connection = None

    def _add_lines(self, count: int) -> None:
        for _ in range(count):
            self._lines.append(_Line(self._lanes))
            self._lanes += 1

    def _connect(self, line: _Line, request: bytes) -> None:
        assert self._target.publishing is not None
        line.forget_answer()
        try:
            line.connection = Connection(self._target.publishing, request)
        except OSError as error:
            check_room(error)
            self._fail(line, reason(error))
            return
        self._loop.watch(line.connection, partial(self._turn, line))

    def _advance(self, line: _Line) -> None:
        assert line.connection is not None
        try:
            self._loop.advance(line.connection)
        except OSError as error:
            self._fail(line, reason(error))

    def _turn(self, line: _Line, mask: int) -> None:
        connection = line.connection
        assert connection is not None
        self._advance(line)
        if not mask & ~select.EPOLLOUT:
            return
        while line.connection is connection and (data := connection.read()) is not None:
            if not data:
                self._closed(line)
                return
            try:
                line.feed(data)
            except BadResponse as error:
                self._fail(line, str(error))
                return
            self._heard(line)

    def _closed(self, line: _Line) -> None:
        if line.pending:
            self._fail(line, "the connection was closed before there was an answer")
        else:
            self._drop(line)

    def _heard(self, line: _Line) -> None:
        raise NotImplementedError

    def _answer(self, line: _Line, *, accepted: bool) -> None:
        """The oldest event of a line has its answer."""
        number = line.pending.popleft()
        self._ledgers[self._target.channel(number)].answered(number, accepted=accepted)
        self.accepted += accepted
        self.refused += not accepted

    def _fail(self, line: _Line, why: str, status: int = 0) -> None:
        self.status = status
        self.failures[why] += max(1, len(line.pending))
        while line.pending:
            self._answer(line, accepted=False)
        line.not_before_ns = time.monotonic_ns() + int(BACK_OFF_S * 1e9)
        self._drop(line)

    def _drop(self, line: _Line) -> None:
        if line.connection is not None:
            self._loop.close(line.connection)
            line.connection = None
        line.events.clear()
        # Order is promised on one connection only.
        line.lane, self._lanes = self._lanes, self._lanes + 1


class Posts(_Lines):
    """One request for each event, on a few connections that are kept; each has one under way."""

    def __init__(self, loop: Loop, target: Target, ledgers: Sequence[Ledger]) -> None:
        super().__init__(loop, target, ledgers)
        self._add_lines(PUBLISHERS)
        self._free = deque(self._lines)

    def is_free(self, number: int) -> bool:
        if not self._free:
            return False
        if self._free[0].not_before_ns <= time.monotonic_ns():
            return True
        self._free.rotate(-1)
        return False

    def send(self, number: int, data: str) -> None:
        line = self._free.popleft()
        self._ledgers[self._target.channel(number)].expect(number, line.lane)
        line.pending.append(number)
        head = self._target.post(number, "Content-Type: text/plain", f"Content-Length: {len(data)}")
        request = head + data.encode()
        line.forget_answer()
        if line.connection is None:
            self._connect(line, request)
        else:
            line.connection.send(request)
            self._advance(line)

    def flush(self) -> None:
        """Nothing waits."""

    def finish(self) -> None:
        """Every event is a request of its own."""

    def _heard(self, line: _Line) -> None:
        if line.head is None or line.body is None or not line.body.ended or not line.pending:
            return
        if not 200 <= line.head.status < 300:
            self.status = line.head.status
            self.failures[refusal(line.head, line.content)] += 1
            self._answer(line, accepted=False)
        else:
            self._answer(line, accepted=True)
        if "close" in line.head.headers.get("connection", "").lower():
            self._drop(line)
        self._free.append(line)  # they take turns

    def _closed(self, line: _Line) -> None:
        # A body of no stated length ends here, and with it the answer.
        if line.pending and line.head is not None and line.body is not None and line.body.at_boundary:
            line.body.ended = True
            self._heard(line)
        super()._closed(line)

    def _fail(self, line: _Line, why: str, status: int = 0) -> None:
        super()._fail(line, why, status)
        with contextlib.suppress(ValueError):
            self._free.remove(line)
        self._free.append(line)


class Streaming(_Lines):
    """One request for each topic of our hub: a body without end, answered by a line for each commit."""

    def __init__(self, loop: Loop, target: Target, ledgers: Sequence[Ledger]) -> None:
        super().__init__(loop, target, ledgers)
        self._add_lines(len(target.publish))
        self._filled: list[_Line] = []  # those with events that are to be written

    def is_free(self, number: int) -> bool:
        line = self._lines[self._target.topic(number)]
        if line.connection is None:
            return line.not_before_ns <= time.monotonic_ns()
        return line.connection.unsent < MAX_UNSENT

    def send(self, number: int, data: str) -> None:
        line = self._lines[self._target.topic(number)]
        if line.connection is None:
            self._connect(
                line, self._target.post(number, f"Content-Type: {CONTENT_TYPE}", "Transfer-Encoding: chunked")
            )
        self._ledgers[self._target.channel(number)].expect(number, line.lane)
        line.pending.append(number)
        if line.connection is None:
            self._answer(line, accepted=False)
            return
        if not line.events:
            self._filled.append(line)
        line.events.append(encode(Event(data, id=str(number))))

    def flush(self) -> None:
        filled, self._filled = self._filled, []
        for line in filled:
            if line.events and line.connection is not None:
                events = b"".join(line.events)
                line.events.clear()
                line.connection.send(b"%x\r\n%b\r\n" % (len(events), events))
                self._advance(line)

    def finish(self) -> None:
        for line in self._lines:
            if line.connection is not None:
                line.connection.send(b"0\r\n\r\n")
                self._advance(line)

    def _heard(self, line: _Line) -> None:
        if line.head is None or line.body is None:
            return
        if line.head.status != 200:
            if line.body.ended:
                self._fail(line, refusal(line.head, line.content), line.head.status)
            return
        *whole, line.content = line.content.split(b"\n")
        for text in whole:
            told = json.loads(text)
            acked = told.get("acked")
            while isinstance(acked, int) and line.pending and line.pending[0] <= acked:
                self._answer(line, accepted=True)
            if "detail" in told:
                self._fail(line, str(told["detail"])[:300], int(told.get("status", 0)))
                return
        if line.body.ended:
            self._closed(line)
