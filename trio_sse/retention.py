"""What a journal keeps of each topic, and how much of it is too much.

A rule chooses topics as a subscriber does, with a selector; of several that choose a topic the first counts, alone.
What a rule leaves out comes from the general limits.

Whatever the limit is, it is always the oldest events of a topic that go. So one ID says what is gone: the topic's
floor.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .topic import Selector


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept of each topic: at most so many events, bytes of frames and seconds.

    ``math.inf`` is no limit; in a rule, ``None`` is the general limit.
    """

    events: float | None = None
    bytes: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """A :class:`Keep` with nothing left open."""

    events: float
    bytes: float
    seconds: float

    def excess(self, events: int, bytes: int, oldest: Iterable[tuple[int, int]], now_ms: int) -> int:
        """How many of a topic's oldest events are too many.

        It holds ``events`` of them with ``bytes``; ``oldest`` are the first of those, each as its milliseconds and
        bytes.
        """
        count = 0
        for ms, size in oldest:
            if events <= self.events and bytes <= self.bytes and self.too_old_at(ms) >= now_ms:
                break
            events, bytes, count = events - 1, bytes - size, count + 1
        return count

    def too_old_at(self, ms: int) -> float:
        """Behind which millisecond an event of the millisecond ``ms`` is too old."""
        return ms + self.seconds * 1000


@dataclass(frozen=True, slots=True)
class Retention:
    """What a journal keeps: ``events`` and ``seconds`` of each topic, ``bytes`` in all, of all it keeps.

    ``topics`` are rules for some topics, by selector, of which the first that chooses a topic counts.

    Raises:
      InvalidTopic: a rule's selector is none.
    """

    events: float = 1_000
    seconds: float = 7 * 24 * 3600
    bytes: float = 256 * 1024 * 1024
    topics: Mapping[str, Keep] = field(default_factory=dict)
    _rules: tuple[tuple[Selector, Limits], ...] = field(init=False, repr=False, compare=False)
    _general: Limits = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        general = Limits(self.events, math.inf, self.seconds)
        rules = [(Selector.parse(text), _completed(keep, general)) for text, keep in self.topics.items()]
        object.__setattr__(self, "_general", general)
        object.__setattr__(self, "_rules", tuple(rules))

    def of(self, topic: str) -> Limits:
        """What is kept of one topic."""
        return next((limits for selector, limits in self._rules if selector.matches(topic)), self._general)


def _completed(keep: Keep, general: Limits) -> Limits:
    return Limits(
        general.events if keep.events is None else keep.events,
        general.bytes if keep.bytes is None else keep.bytes,
        general.seconds if keep.seconds is None else keep.seconds,
    )


class Ages:
    """When to look at which topic because its oldest event may be too old: at most one entry a topic.

    An entry may be early, since other limits remove events too; who looks puts the topic back.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._waiting: set[str] = set()

    def look(self, topic: str, at_ms: float) -> None:
        """Look at this topic behind that millisecond, unless it is going to be looked at anyway."""
        if topic not in self._waiting and at_ms != math.inf:
            self._waiting.add(topic)
            heapq.heappush(self._heap, (at_ms, topic))

    def due(self, now_ms: float) -> Iterator[str]:
        """The topics to be looked at now, each taken from here as it is given."""
        while self._heap and self._heap[0][0] < now_ms:
            topic = heapq.heappop(self._heap)[1]
            self._waiting.discard(topic)
            yield topic
