"""Turns: who goes next when many publishers want the same thing, so that none makes the others wait.

Facts. Work comes in pieces, each with a cost and the publisher that it is done for. A publisher may have any number of
pieces waiting, from any number of requests.

Plan. Weighted fair queueing (Demers, Keshav and Shenker, 1989) on two levels. Each publisher has a clock, which its
pieces move on by their cost; the common clock moves on by the cost of whatever is done, divided by how many publishers
wait. A publisher that comes anew begins at the common clock, and the piece that would end first is done first. So a
publisher that asks for little is served before one that asks for much, and no piece is passed over for good. Among the
pieces of one publisher it is the same, and there each piece is a caller of its own: all callers without a token are
one publisher, and the one of them that floods does not starve the others.

Cost. A push and a pop on two heaps for each piece.

Traps. A clock is all that is remembered of a publisher for whom nothing waits, and only while it is ahead of the common
one. A piece that is withdrawn is only marked, and thrown away when its turn comes.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

REMEMBERED = 64
"""Clocks of publishers for whom nothing waits that are not worth looking through for old ones."""


class Piece(Generic[T]):
    """Some work that waits."""

    __slots__ = ("cost", "is_waiting", "is_withdrawn", "work")

    def __init__(self, cost: float, work: T) -> None:
        self.cost = cost
        self.work = work
        self.is_waiting = True
        self.is_withdrawn = False


class _Line(Generic[T]):
    """What waits for one publisher."""

    __slots__ = ("clock", "now", "pieces", "publisher")

    def __init__(self, publisher: str, clock: float) -> None:
        self.publisher = publisher
        self.clock = clock  # where its next piece begins, among all publishers
        self.now = 0.0  # where a piece that comes now begins, among its own
        self.pieces: list[tuple[float, int, Piece[T]]] = []  # a heap: where each ends among its own

    @property
    def end(self) -> float:
        """Where its next piece ends, among all publishers."""
        return self.clock + self.pieces[0][2].cost


class Turns(Generic[T]):
    """Pieces of work that wait, and the order in which they are taken."""

    def __init__(self) -> None:
        self._waiting = 0
        self._now = 0.0
        self._lines: dict[str, _Line[T]] = {}  # of publishers for whom something waits
        self._clocks: dict[str, float] = {}  # of others, who may be ahead
        self._next: list[tuple[float, int, _Line[T]]] = []  # a heap; the end in it may have changed since
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return self._waiting

    def put(self, publisher: str, cost: float, work: T) -> Piece[T]:
        """Let some work wait for its turn."""
        line = self._lines.get(publisher)
        if line is None:
            line = self._lines[publisher] = _Line(publisher, max(self._now, self._clocks.pop(publisher, 0.0)))
        piece, number = Piece(cost, work), next(self._numbers)
        heapq.heappush(line.pieces, (line.now + cost, number, piece))
        if line.pieces[0][2] is piece:
            heapq.heappush(self._next, (line.end, number, line))
        self._waiting += 1
        return piece

    def withdraw(self, piece: Piece[T]) -> None:
        """Let it wait no more; one that was taken already stays taken."""
        if piece.is_waiting and not piece.is_withdrawn:
            piece.is_withdrawn = True
            self._waiting -= 1

    def take(self) -> T | None:
        """The work whose turn it is; none when nothing waits."""
        while self._next:
            end, _, line = heapq.heappop(self._next)
            if not line.pieces or end != line.end:
                continue
            share, _, piece = heapq.heappop(line.pieces)
            piece.is_waiting = False
            if not piece.is_withdrawn:
                self._now += piece.cost / len(self._lines)
                line.clock += piece.cost
                line.now = max(line.now + piece.cost / (len(line.pieces) + 1), share - piece.cost)
            self._put_back(line)
            if not piece.is_withdrawn:
                self._waiting -= 1
                return piece.work
        return None

    def _put_back(self, line: _Line[T]) -> None:
        if line.pieces:
            heapq.heappush(self._next, (line.end, next(self._numbers), line))
            return
        del self._lines[line.publisher]
        self._clocks[line.publisher] = line.clock
        if not self._lines:
            self._clocks.clear()
            self._next.clear()
            self._now = 0.0
        elif len(self._clocks) > REMEMBERED + 2 * len(self._lines):
            self._clocks = {name: clock for name, clock in self._clocks.items() if clock > self._now}


class Gate:
    """So many may be inside at once; the others wait for their turn."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._turns = Turns[trio.Event]()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._turns)

    def turn(self, publisher: str, cost: float) -> Turn:
        """Be inside for the length of an ``async with`` block, which begins when it is this publisher's turn."""
        return Turn(self, publisher, cost)

    async def enter(self, publisher: str, cost: float) -> None:
        """Wait for a turn, if others are inside; whoever has entered has to leave."""
        if self._places:
            self._places -= 1
        else:
            await self._wait(publisher, cost)

    def leave(self) -> None:
        """Let the next one in."""
        comes = self._turns.take()
        if comes is None:
            self._places += 1
        else:
            comes.set()

    async def _wait(self, publisher: str, cost: float) -> None:
        comes = trio.Event()
        piece = self._turns.put(publisher, cost, comes)
        try:
            await comes.wait()
        except trio.Cancelled:
            self._turns.withdraw(piece)
            if comes.is_set():  # its turn came when it was cancelled already
                self.leave()
            raise


class Turn:
    """Somebody's turn at a gate."""

    __slots__ = ("_cost", "_gate", "_publisher")

    def __init__(self, gate: Gate, publisher: str, cost: float) -> None:
        self._gate, self._publisher, self._cost = gate, publisher, cost

    async def __aenter__(self) -> None:
        await self._gate.enter(self._publisher, self._cost)

    async def __aexit__(self, *exc: object) -> None:
        self._gate.leave()
