"""What became of every event at every client. Plain values in, plain values out.

Each event carries a stamp, ``@run:due:number@``: which run it belongs to, when it was due to be published
(nanoseconds of the monotonic clock) and its number. All that is told of a run is told by these stamps and by the
answers to the publishers.

A :class:`Ledger` holds what is known of one topic: the order of its events, learnt from whoever receives one first
and mended when it turns out that he had missed others, and for each reader how far it has come. What all
have received is forgotten, so a run may be as long as it likes; memory grows with what the slowest reader has still
to get.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Set
from dataclasses import dataclass
from enum import Enum, auto

MAX_STAMP = 40
"""Most bytes of a stamp: two numbers of 64 bits would be more, and neither comes near."""

KEEP = 10_000
"""So many events that all readers have passed are still known, so that one that comes late or again is."""


_NUMBERED = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


def stamped(run: str, due_ns: int, number: int, size: int) -> str:
    """The data of an event: its stamp, and filling up to ``size`` bytes."""
    return f"@{run}:{due_ns}:{number}@".ljust(size, "x")


def stamps_of(run: str) -> re.Pattern[str]:
    """What finds the stamp of a run, wherever it stands in an event's data: a server may wrap what it is given."""
    return re.compile(rf"@{re.escape(run)}:([0-9]{{1,20}}):([0-9]{{1,12}})@")


@dataclass(frozen=True, slots=True)
class Accounts:
    """Events, summed over all clients."""

    delivered: int
    """Events that reached a client, repetitions not counted."""
    lost: int
    """Accepted events that did not."""
    twice: int
    """Repetitions, and events that should not have come at all."""
    disordered: int
    """Events that came after one they belong before."""


class Arrival(Enum):
    """How an event came to a reader."""

    NEXT = auto()
    """It is the one that was to come."""
    EARLY = auto()
    """Others were to come before it: they are missing, and may be late."""
    LATE = auto()
    AGAIN = auto()


class Reader:
    """How far one client has come in its topic."""

    __slots__ = ("holes", "missing", "place", "told")

    def __init__(self) -> None:
        self.place = -1
        """Of the event that is to come next; -1 while the reader has yet to begin."""
        self.missing: set[Hashable] = set()
        """What it was not given while it was given later ones."""
        self.told = False
        """The server has just said that something is missing here."""
        self.holes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        """Between which ranks the server said so."""


def _rank(key: Hashable) -> tuple[int, ...]:
    """What orders numbers, and IDs such as ``7`` or ``1700000000000-3``; of all others nothing is known."""
    if isinstance(key, int):
        return (key,)
    found = _NUMBERED.fullmatch(str(key))
    return (int(found[1]), int(found[2] or 0)) if found else ()


def _told(reader: Reader, lost: Set[Hashable]) -> int:
    """How many of the events that a reader has lost the server owned up to."""
    if not reader.holes:
        return 0
    return sum(any(first <= rank <= last for first, last in reader.holes) for rank in map(_rank, lost))


class Ledger:
    """The events of one topic, and its readers.

    Where this program publishes, every event is announced to it by :meth:`expect`. An *overheard* ledger knows
    of none beforehand: whatever a reader brings is an event, its key is the server's ID, and a reader begins
    where its first event stands.
    """

    def __init__(self, base: int = 0, *, overheard: bool = False) -> None:
        self.readers: list[Reader] = []
        self.delivered = self.twice = self.disordered = 0
        self.mended = 0
        """How often places have changed since the beginning."""
        self._overheard = overheard
        self._base = base  # the place of the first event still known
        self._order: list[Hashable] = []
        self._places: dict[Hashable, int] = {}
        self._lanes: dict[Hashable, int | None] = {}  # of every event that is awaited or still known
        self._newest: dict[int | None, int] = {}  # the highest number that was seen of a lane
        self._waiting: set[Hashable] = set()  # for the server's answer
        self._refused: set[Hashable] = set()
        self._settled = self._settled_told = 0  # lost, and forgotten since
        self.shared = 0
        """Events that came to a second reader."""

    @property
    def end(self) -> int:
        """The place behind the last event."""
        return self._base + len(self._order)

    # -- publishing ---------------------------------------------------------------------------------------

    def expect(self, number: int, lane: int) -> None:
        """An event is being published. Those of one lane are in the order of their numbers."""
        self._lanes[number] = lane
        self._waiting.add(number)

    def answered(self, number: int, *, accepted: bool) -> None:
        """The server took it, or not: then no reader needs to have it."""
        self._waiting.discard(number)
        if not accepted:
            self._refused.add(number)

    # -- receiving ----------------------------------------------------------------------------------------

    def join(self, reader: Reader) -> None:
        """Begin with the next event."""
        self.readers.append(reader)
        if not self._overheard:
            reader.place = self.end

    def take(self, reader: Reader, key: Hashable) -> Arrival:
        """An event has come to a reader."""
        place = self._places.get(key)
        if place is None:
            if key not in self._lanes:
                if not self._overheard:
                    self.twice += 1
                    return Arrival.AGAIN
                self._lanes[key] = None
            place = self._put(reader, key)
        else:
            self.shared += 1
        told, reader.told = reader.told, False
        if reader.place < 0:
            reader.place = place
        if told and place >= reader.place:
            self._own_up(reader, place)
        if place == reader.place:
            reader.place = place + 1
            self.delivered += 1
            return Arrival.NEXT
        if place > reader.place:
            skipped = self._order[reader.place - self._base : place - self._base]
            reader.missing.update(skipped)
            reader.place = place + 1
            self.delivered += 1
            return Arrival.EARLY
        if key in reader.missing:
            reader.missing.remove(key)
            self.disordered += 1
            self.delivered += 1
            return Arrival.LATE
        self.twice += 1
        return Arrival.AGAIN

    def _own_up(self, reader: Reader, place: int) -> None:
        """The server said that something is missing between what a reader had last and the event of this place."""
        first = reader.place - 1 - self._base
        ranks = [_rank(key) for key in self._order[max(0, first) : place + 1 - self._base]]
        reader.holes.append((min(ranks) if first >= 0 else (), max(ranks)))

    def _put(self, reader: Reader, key: Hashable) -> int:
        """Give a new event its place: behind all that the reader had, and where its publisher's order allows it.

        Others may have had more than the reader. Then the events were lost by it, or this one by the others: the
        numbers tell which, since what is published later is not often ordered earlier.
        """
        lane = self._lanes[key]
        place = self.end if reader.place < 0 else reader.place
        rank = _rank(key)
        while place < self.end and _rank(self._order[place - self._base]) < rank:
            place += 1
        if isinstance(key, int) and lane is not None:
            newest = self._newest.get(lane, -1)
            self._newest[lane] = max(newest, key)
            if place != self.end or newest > key:
                place = self._place_in_lane(place, key, lane)
        if place != self.end:
            self.mended += 1
            for other in self.readers:
                if other.place > place:
                    other.place += 1
                    other.missing.add(key)
        self._order.insert(place - self._base, key)
        for moved in range(place, self.end):
            self._places[self._order[moved - self._base]] = moved
        return place

    def _place_in_lane(self, place: int, key: int, lane: int) -> int:
        """The place nearest to ``place`` that is behind the lane's lower numbers and before its higher ones."""
        lowest, highest = self._base, self.end
        for at, other in enumerate(self._order, self._base):
            if self._lanes[other] == lane and isinstance(other, int):
                if other < key:
                    lowest = at + 1
                else:
                    highest = at
                    break
        return max(lowest, min(place, highest))

    # -- looking back -------------------------------------------------------------------------------------

    @property
    def missing(self) -> int:
        """What readers were passed over with so far."""
        return self._settled + sum(len(reader.missing) for reader in self.readers)

    def is_complete(self) -> bool:
        """Whether every reader has all there is."""
        if self._waiting or any(reader.place != self.end or reader.missing for reader in self.readers):
            return False
        return not self._unseen()

    def is_behind(self, place: int) -> bool:
        """Whether a reader that has begun has yet to reach a place."""
        return any(0 <= reader.place < place for reader in self.readers)

    @property
    def told(self) -> int:
        """Of the events that are lost, those that the server owned up to."""
        excused = self._refused | self._waiting
        unseen = self._lanes.keys() - self._places.keys() if any(reader.holes for reader in self.readers) else set()
        told = sum(_told(reader, (reader.missing | unseen) - excused) for reader in self.readers)
        return self._settled_told + told

    def _unseen(self) -> int:
        """Events that were accepted and came to no reader at all."""
        awaited = len(self._lanes) - len(self._order)
        if awaited and (self._refused or self._waiting):
            excused = self._refused | self._waiting
            return sum(key not in self._places and key not in excused for key in self._lanes)
        return awaited

    def forget(self) -> None:
        """Let go of what all readers have long passed; what one of them is missing of it is lost."""
        count = min((reader.place for reader in self.readers), default=0) - KEEP - self._base
        if count < KEEP:
            return
        gone = set(self._order[:count])
        for reader in self.readers:
            if reader.missing:
                lost = (reader.missing & gone) - self._refused
                self._settled += len(lost)
                self._settled_told += _told(reader, lost)
                reader.missing -= gone
        for key in gone:
            del self._places[key], self._lanes[key]
        self._refused -= gone
        del self._order[:count]
        self._base += count

    def lost(self, end: int | None = None) -> int:
        """What did not reach a reader, of what was accepted; ``end`` leaves out what is at later places."""
        excused = self._refused | self._waiting
        lost = self._settled
        for reader in self.readers:
            behind = self._order[reader.place - self._base :] if reader.place >= 0 else []
            if end is not None:
                behind = behind[: max(0, end - reader.place)]
            lost += sum(key not in excused for key in (*reader.missing, *behind))
        return lost + self._unseen() * len(self.readers)
