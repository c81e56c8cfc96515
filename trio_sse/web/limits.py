"""How many streams there may be: in all, for one address, for one subject; and what a request is told in a crowd.

A stream is counted from the moment its body begins until it has ended, on whatever way it ends. One too many is
not refused with a 503, which would close a native ``EventSource`` for ever: it is a stream that says when to come
back, and ends.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from .. import server
from ..errors import HubFull
from ..settings import PREFIX
from .caller import Origin
from .rates import RateLimits

ALWAYS_SERVED = ("/healthz", "/events")


@dataclass(frozen=True)
class LimitsStatistics:
    """What is counted at one moment."""

    streams: int
    addresses: int
    """Who have them."""
    subjects: int
    """Who have them, with a token."""


class Limits:
    """The streams that are open, by who has them."""

    def __init__(self, total: int | None, per_address: int | None, per_subject: int | None) -> None:
        self.refused = 0
        """How many streams were sent away."""
        self._total = total
        self._per_address = per_address
        self._per_subject = per_subject
        self._open = 0
        self._by_address: Counter[str] = Counter()
        self._by_subject: Counter[str] = Counter()

    @cached_property
    def total(self) -> int:
        """How many there may be in all: what was set, or else what the descriptors of the process allow."""
        if self._total is not None:
            return self._total
        connections = server.connections()
        return (server.Capacity.of_process() if connections is None else connections.capacity).streams

    def place(self, origin: Origin, subject: str | None, rates: RateLimits) -> Place:
        """A stream's place: counted while its block is entered.

        Raises:
          HubFull: on entering the block, there is no room for it; the message says for whom.
        """
        return Place(self, origin, subject, rates)

    def take(self, origin: Origin, subject: str | None) -> None:
        """Count one stream more.

        Raises:
          HubFull: there is no room for it; the message says for whom.
        """
        full = self._who_is_full(origin, subject)
        if full is not None:
            self.refused += 1
            raise HubFull(f"there are too many streams {full}: close one, or come back later")
        self._open += 1
        self._by_address[origin.name] += 1
        if subject is not None:
            self._by_subject[subject] += 1

    def give_back(self, origin: Origin, subject: str | None) -> None:
        """Count one stream less."""
        self._open -= 1
        _decrease(self._by_address, origin.name)
        if subject is not None:
            _decrease(self._by_subject, subject)

    @property
    def statistics(self) -> LimitsStatistics:
        """How many are counted now."""
        return LimitsStatistics(self._open, len(self._by_address), len(self._by_subject))

    def _who_is_full(self, origin: Origin, subject: str | None) -> str | None:
        if server.is_turned_away():
            return "and other requests for the file descriptors there are"
        if self._open >= self.total:
            return f"in all ({PREFIX}MAX_STREAMS)"
        of_origin = self._by_address[origin.name] if origin.is_one else 0
        if self._per_address is not None and of_origin >= self._per_address:
            return f"from this address ({PREFIX}MAX_STREAMS_PER_IP)"
        if subject is not None and self._per_subject is not None and self._by_subject[subject] >= self._per_subject:
            return f"of this subject ({PREFIX}MAX_STREAMS_PER_SUBJECT)"
        return None


def check_admitted(path: str) -> None:
    """Whether the request of this task may be served; a stream is refused in its own way, and health always told.

    Raises:
      HubFull: too many others are.
    """
    if server.is_turned_away() and path not in ALWAYS_SERVED:
        raise HubFull("the server has as many requests as it has file descriptors for: try again in a moment")


class Place:
    """One stream's place among those that are open."""

    __slots__ = ("_limits", "_origin", "_rates", "_subject")

    def __init__(self, limits: Limits, origin: Origin, subject: str | None, rates: RateLimits) -> None:
        self._limits, self._rates = limits, rates
        self._origin, self._subject = origin, subject

    def __enter__(self) -> None:
        try:
            self._limits.take(self._origin, self._subject)
        except HubFull as error:
            error.retry_ms = self._rates.retry_ms(self._origin, self._subject)
            raise
        self._rates.forgive(self._origin, self._subject)

    def __exit__(self, *exc: object) -> None:
        self._limits.give_back(self._origin, self._subject)


def _decrease(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
