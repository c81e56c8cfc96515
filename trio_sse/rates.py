"""How much one caller may do in a time, and how long it has to wait when it has done that.

Facts. A rate has a burst: so much may be done at once by a caller that has done nothing for a while. What is asked for
passes when there is as much left of the burst as it costs, or all of it, so that what costs more than a burst passes
too, and is paid for afterwards. What is told to wait passes when that is over, unless the same caller does something
else meanwhile.

Plan. Of each caller one number is kept for each rate: when its burst will be whole again. Then it is forgotten, as
nothing is lost by it.

Cost. A look into a dictionary for each rate that is set; nothing for those that are not.

Traps. So that nobody can fill the memory with addresses, only so many callers are known at once; a caller too many is
not given the place of one that is known, whose burst would then be whole again, but shares one with all others that are
too many. The time is the caller's to say, because this floor has no clock.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

BURST_S = 10
"""Seconds' worth of a rate that may be done at once: a page that opens, a script that begins, an office that comes back
after a restart."""

BURST_MIN = 1
"""Minutes' worth of a rate for a minute: a class that signs in at once."""

MOST_CALLERS = 20_000
"""Callers known at once for each rate, about 4 MiB. One that does little is forgotten in a fraction of a second."""

SWEEP_S = 1.0
"""Seconds between two looks through all callers for those whose bursts are whole again."""

MOST_REFUSED = 10_000
"""Callers of which it is known how often they were refused; beyond it the one that was refused longest ago goes."""

FORGIVEN_S = 120.0
"""Seconds after which it is forgotten that a caller was refused, twice the longest that it is told to wait."""

ROUNDING_S = 1e-6
"""Seconds that may be lost in adding many, and that nobody need wait for."""

SHARED: Final = ""
"""The name of all callers that are too many to be known."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one caller may do; ``None`` is no limit."""

    events_per_s: float | None = None
    bytes_per_s: float | None = None
    streams_per_s: float | None = None
    guests_per_min: float | None = None


NAMES = tuple(field.name for field in fields(Rates))

ANONYMOUS = Rates(events_per_s=50, bytes_per_s=1_000_000, streams_per_s=20, guests_per_min=30)
"""For one address without a token: ten people who type, a page that draws, a script that posts one after the other; and
two hundred browsers of one school that come back at once."""


class Bucket:
    """One rate, and what is left of it for each caller."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = max(1.0, burst)
        self._whole_at: dict[str, float] = {}  # when the burst of each is whole again
        self._swept_at = 0.0

    def __len__(self) -> int:
        return len(self._whole_at)

    def wait(self, caller: str, cost: float, now: float) -> float:
        """How many seconds there are until it passes; 0 if it does now."""
        debt = self._whole_at.get(self._known(caller, now), now) - now
        seconds = debt - (self._burst - min(cost, self._burst)) / self._per_s
        return seconds if seconds > ROUNDING_S else 0.0

    def spend(self, caller: str, cost: float, now: float) -> None:
        """It was done, whether it passed or not."""
        name = self._known(caller, now)
        self._whole_at[name] = max(self._whole_at.get(name, now), now) + cost / self._per_s

    def _known(self, caller: str, now: float) -> str:
        """The caller's name, or that of all others when there are too many."""
        if caller in self._whole_at or len(self._whole_at) < MOST_CALLERS:
            return caller
        if now - self._swept_at >= SWEEP_S:
            self._swept_at = now
            self._whole_at = {name: at for name, at in self._whole_at.items() if at > now}
        return caller if len(self._whole_at) < MOST_CALLERS else SHARED


def buckets_of(rates: Rates) -> Mapping[str, Bucket]:
    """A bucket for each rate that is set, by its name."""
    buckets = {}
    for name in NAMES:
        if (rate := getattr(rates, name)) is not None:
            seconds, burst = (60, BURST_MIN) if name.endswith("_per_min") else (1, BURST_S)
            buckets[name] = Bucket(rate / seconds, rate * burst)
    return buckets


class Meter:
    """What callers do, by classes of them; each class has its rates."""

    def __init__(self, **rates: Rates) -> None:
        self._buckets = {kind: buckets_of(each) for kind, each in rates.items()}
        self.refused: Counter[tuple[str, str]] = Counter()
        """What was refused, by class and rate."""

    def binds(self, kind: str) -> bool:
        """Whether any rate is set for a class."""
        return bool(self._buckets[kind])

    def wait(self, callers: Sequence[tuple[str, str]], costs: Mapping[str, float], now: float) -> float:
        """How many seconds a caller, given by its name in each of its classes, has to wait until all this passes.

        Nothing is spent, and a wait is counted as refused.
        """
        longest = 0.0
        for kind, caller in callers:
            for name, cost in costs.items():
                bucket = self._buckets[kind].get(name)
                if bucket is not None and (seconds := bucket.wait(caller, cost, now)) > 0:
                    self.refused[kind, name] += 1
                    longest = max(longest, seconds)
        return longest

    def spend(self, callers: Sequence[tuple[str, str]], costs: Mapping[str, float], now: float) -> None:
        """All this was done."""
        for kind, caller in callers:
            for name, cost in costs.items():
                if (bucket := self._buckets[kind].get(name)) is not None:
                    bucket.spend(caller, cost, now)


class Refusals:
    """How often callers were refused one after the other, so that they are told to wait longer each time."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def note(self, caller: str, now: float) -> int:
        """One more; how many there were before, since it was last let in or left us alone."""
        times, at = self._times.pop(caller, (0, now))
        if now - at > FORGIVEN_S:
            times = 0
        self._times[caller] = times + 1, now
        if len(self._times) > MOST_REFUSED:
            self._times.popitem(last=False)
        return times

    def forgive(self, caller: str) -> None:
        """It was let in."""
        self._times.pop(caller, None)
