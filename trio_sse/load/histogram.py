"""Times, counted by their length, in bounded memory: right to 1 %, or 2 µs for the shortest."""

from __future__ import annotations

import math

FINE_NS = 1 << 24
"""Below this (17 ms) a bucket is 4 µs wide,"""

MIDDLE_NS = 1 << 31
"""below this (2.1 s) 131 µs, and above 17 ms."""

FINE, MIDDLE, COARSE = 12, 17, 24
_COARSE_BUCKETS = 1 << 16


class Histogram:
    """Counts of times. Whoever is in haste counts :attr:`fine` himself: ``fine[ns >> FINE] += 1``."""

    __slots__ = ("_coarse", "_middle", "fine")

    def __init__(self) -> None:
        self.fine = [0] * (FINE_NS >> FINE)
        self._middle = [0] * (MIDDLE_NS >> MIDDLE)
        self._coarse = [0] * _COARSE_BUCKETS

    def add(self, ns: int) -> None:
        """Count one time; beyond twelve days all are alike."""
        if ns < FINE_NS:
            self.fine[ns >> FINE] += 1
        elif ns < MIDDLE_NS:
            self._middle[ns >> MIDDLE] += 1
        else:
            self._coarse[min(ns >> COARSE, _COARSE_BUCKETS - 1)] += 1

    def percentiles_ms(self, *shares: float) -> list[float]:
        """For each share, the time that this share of all is at or below (nearest rank); not a number if none is."""
        levels = ((self.fine, FINE), (self._middle, MIDDLE), (self._coarse, COARSE))
        total = sum(sum(counts) for counts, _ in levels)
        if not total:
            return [math.nan] * len(shares)
        ranks = [max(1, math.ceil(share * total)) for share in shares]
        found: list[float] = []
        below = 0
        for counts, shift in levels:
            for bucket, count in enumerate(counts):
                if count:
                    below += count
                    while len(found) < len(ranks) and below >= ranks[len(found)]:
                        found.append((bucket + 0.5) * (1 << shift) / 1e6)
        return found
