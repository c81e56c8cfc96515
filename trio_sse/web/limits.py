"""How many streams there may be: in all, for one address, for one subject.

A stream is counted from the moment its body begins until it has ended, on whatever way it ends. One too many is
not refused with a 503, which would close a native ``EventSource`` for ever: it is a stream that says when to come
back, and ends.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter

from ..errors import HubFull
from ..settings import PREFIX

RESERVE = 256
"""Descriptors that streams leave free: for publishers, the journal, and to say no with."""


class Limits:
    """The streams that are open, by who has them."""

    def __init__(self, total: int | None, per_address: int | None, per_subject: int | None) -> None:
        self.total = total if total is not None else _what_descriptors_allow()
        self.refused = 0
        """How many streams were sent away."""
        self._per_address = per_address
        self._per_subject = per_subject
        self._open = 0
        self._by_address: Counter[str] = Counter()
        self._by_subject: Counter[str] = Counter()

    def place(self, address: str, subject: str | None) -> Place:
        """A stream's place: counted while its block is entered.

        Raises:
          HubFull: on entering the block, there is no room for it; the message says for whom.
        """
        return Place(self, address, subject)

    def take(self, address: str, subject: str | None) -> None:
        """Count one stream more.

        Raises:
          HubFull: there is no room for it; the message says for whom.
        """
        full = self._who_is_full(address, subject)
        if full is not None:
            self.refused += 1
            raise HubFull(f"there are too many streams {full}: close one, or come back later")
        self._open += 1
        self._by_address[address] += 1
        if subject is not None:
            self._by_subject[subject] += 1

    def give_back(self, address: str, subject: str | None) -> None:
        """Count one stream less."""
        self._open -= 1
        _decrease(self._by_address, address)
        if subject is not None:
            _decrease(self._by_subject, subject)

    def _who_is_full(self, address: str, subject: str | None) -> str | None:
        if self._open >= self.total:
            return f"in all ({PREFIX}MAX_STREAMS)"
        if self._per_address is not None and self._by_address[address] >= self._per_address:
            return f"from this address ({PREFIX}MAX_STREAMS_PER_IP)"
        if subject is not None and self._per_subject is not None and self._by_subject[subject] >= self._per_subject:
            return f"of this subject ({PREFIX}MAX_STREAMS_PER_SUBJECT)"
        return None


class Place:
    """One stream's place among those that are open."""

    __slots__ = ("_address", "_limits", "_subject")

    def __init__(self, limits: Limits, address: str, subject: str | None) -> None:
        self._limits = limits
        self._address = address
        self._subject = subject

    def __enter__(self) -> None:
        self._limits.take(self._address, self._subject)

    def __exit__(self, *exc: object) -> None:
        self._limits.give_back(self._address, self._subject)


def _what_descriptors_allow() -> int:
    """As many as this process may have, once it has asked for all it may have, less the reserve."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return sys.maxsize if most == resource.RLIM_INFINITY else most - min(RESERVE, most // 4)


def _decrease(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
