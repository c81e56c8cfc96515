"""What became of every event at every client. Plain values in, plain values out.

Each event carries a stamp, ``@due:sequence@``: when it was due to be published (nanoseconds of the monotonic
clock) and its number. All that is told of a run is told by these stamps and by the publishers' answers.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

STAMP = re.compile(rb"@(\d+):(\d+)@")
MAX_STAMP = 40
"""Most bytes of a stamp: two numbers of 64 bits would be 43, and neither comes near."""


def stamped(due_ns: int, sequence: int, size: int) -> bytes:
    """The data of an event: its stamp, and filling up to ``size`` bytes."""
    return b"@%d:%d@" % (due_ns, sequence) + b"x" * (size - len(b"@%d:%d@" % (due_ns, sequence)))


class StampReader:
    """Finds the stamps in bytes that are cut anywhere.

    It looks at nothing else, so a stamp that is cut by the server's own chunk framing, which no server here
    does, would count as lost.
    """

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The stamps completed by ``data``, each as the digits of its time and of its number."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        found: list[tuple[bytes, bytes]] = STAMP.findall(data)
        if data.count(b"@") > 2 * len(found):
            tail = data[data.rindex(b"@") :]
            if len(tail) < MAX_STAMP:
                self._tail = tail
        return found


@dataclass(frozen=True, slots=True)
class Accounts:
    """Events, summed over all clients."""

    delivered: int
    """Accepted events that reached a client, repetitions not counted."""
    lost: int
    """Accepted events that did not."""
    twice: int
    """Repetitions."""
    disordered: int
    """Events that came after one they belong before."""


def account(received: Iterable[array[int]], sent: Sequence[int], accepted: Set[int]) -> Accounts:
    """Compare what each client received, in its order, with what was published.

    ``sent[n]`` is the publisher of event ``n``, which waited for the answer before it published its next, and
    ``accepted`` are the numbers that were answered with success. The right order is one in which each
    publisher's events come as it published them, and which is the same for all clients.
    """
    orders = Counter(numbers.tobytes() for numbers in received)
    rank: dict[int, int] = {}
    delivered = lost = twice = disordered = 0
    for order, clients in orders.most_common():
        numbers = array("I")
        numbers.frombytes(order)
        first = dict.fromkeys(numbers)
        if not rank:
            rank = {number: place for place, number in enumerate(first)}
        arrived = len(first.keys() & accepted)
        delivered += clients * arrived
        lost += clients * (len(accepted) - arrived)
        twice += clients * (len(numbers) - len(first))
        disordered += clients * _disordered(first, sent, rank)
    return Accounts(delivered, lost, twice, disordered)


def _disordered(numbers: Iterable[int], sent: Sequence[int], rank: dict[int, int]) -> int:
    count = 0
    highest = -1
    latest: dict[int, int] = {}
    for number in numbers:
        publisher, place = sent[number], rank.get(number, highest)
        count += place < highest or number < latest.get(publisher, -1)
        highest = max(highest, place)
        latest[publisher] = max(number, latest.get(publisher, -1))
    return count


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that a share of all is at or below (nearest rank); not a number where there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
