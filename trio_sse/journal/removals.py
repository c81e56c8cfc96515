"""Which topics have lost something, in the order in which that happened: so a reader looks at what is new to it.

Each time the floor of a topic rises, or the mark up to which values of it are lost, that has a number, one higher than
the last. A topic stands in the order once, with its newest number. A reader that has been told of everything up to a
number looks at those behind it, and at no topic in which nothing happened: what it is told costs what was removed since
its last page, and not as much as there are topics.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from ..event import ORIGIN, EventID
from ..selector_index import Selection

LOOKS = 1_000
"""Topics that are looked at between two pauses: about a millisecond, or three if none is chosen."""


class Lossy(Protocol):
    """A topic with its marks, and the number with which each of them rose last; ``lost_since`` is that with which it
    came to where it is now, for a mark of lost values falls when they are replaced.
    """

    name: str
    floor_at: int
    lost_at: int
    lost_since: int

    @property
    def floor(self) -> EventID: ...

    @property
    def lost(self) -> EventID: ...


@dataclass(slots=True)
class Told:
    """What a reader is told of removals behind number ``upto``, and where it stands then."""

    upto: int = 0
    floor: EventID = ORIGIN
    """The highest ID that was removed from its topics."""
    lost: EventID = ORIGIN
    """The highest that was removed and that no newer one of the same topic and key has replaced."""


class Removals:
    """The order of all topics that have lost something."""

    def __init__(self, coarse_floor: EventID) -> None:
        self.number = 1
        """That of the newest removal."""
        self._coarse_floor = coarse_floor
        self.coarse_at = 1
        self._floors: OrderedDict[Lossy, None] = OrderedDict()
        self._losses: OrderedDict[Lossy, None] = OrderedDict()

    @property
    def coarse_floor(self) -> EventID:
        """The floor of all topics that were forgotten."""
        return self._coarse_floor

    @coarse_floor.setter
    def coarse_floor(self, id: EventID) -> None:
        if id > self._coarse_floor:
            self.number += 1
            self._coarse_floor, self.coarse_at = id, self.number

    def floor_rose(self, topic: Lossy) -> None:
        """Give it the next number."""
        self.number += 1
        topic.floor_at = self.number
        self._floors[topic] = None
        self._floors.move_to_end(topic)

    def lost_rose(self, topic: Lossy) -> None:
        """Give it the next number."""
        self.number += 1
        topic.lost_at = topic.lost_since = self.number
        self._losses[topic] = None
        self._losses.move_to_end(topic)

    def forget(self, topic: Lossy) -> None:
        """The coarse floor stands for it from now on."""
        self._floors.pop(topic, None)
        self._losses.pop(topic, None)

    def tell_of(self, topics: Iterable[Lossy], told: Told, *, forgotten: bool) -> None:
        """Tell a reader of these topics, and of those that are forgotten."""
        for topic in topics:
            if topic.floor_at > told.upto and topic.floor > told.floor:
                told.floor = topic.floor
            if topic.lost_since > told.upto and topic.lost > told.lost:
                told.lost = topic.lost
        if forgotten and self.coarse_at > told.upto:
            told.floor, told.lost = max(told.floor, self.coarse_floor), max(told.lost, self.coarse_floor)
        told.upto = self.number

    def tell(self, selection: Selection, after: EventID, told: Told) -> Iterator[None]:
        """Tell a reader of all topics that its selectors choose, as far as it is above a cursor; with pauses.

        What happens in a pause has a higher number than the reader then stands at: tell it once more.
        """
        number = self.number
        floors = list(takewhile(lambda topic: topic.floor_at > told.upto, reversed(self._floors)))
        losses = list(takewhile(lambda topic: topic.lost_at > told.upto, reversed(self._losses)))
        for begin in range(0, max(len(floors), len(losses)), LOOKS):
            if begin:
                yield
            for topic in floors[begin : begin + LOOKS]:
                if topic.floor > max(told.floor, after) and selection.chooses(topic.name):
                    told.floor = topic.floor
            for topic in losses[begin : begin + LOOKS]:
                if (
                    topic.lost_since > told.upto
                    and topic.lost > max(told.lost, after)
                    and selection.chooses(topic.name)
                ):
                    told.lost = topic.lost
        if self.coarse_at > told.upto:
            told.floor, told.lost = max(told.floor, self.coarse_floor), max(told.lost, self.coarse_floor)
        told.upto = number
