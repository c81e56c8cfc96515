"""A clock to be moved, and what stands in records and streams, for comparing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..event import ORIGIN, Event
from ..journal import Follower, Journal
from ..record import Draft, Record
from ..topic import Selector, parse_selectors
from ..wire import Decoder

NOON = 1_700_000_000.0
"""Where :class:`WallClock` starts, in seconds since the epoch."""


class WallClock:
    """A wall clock that stands still until it is moved, in either direction."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        """Set it forward, or with a negative number back."""
        self.now += seconds


def decode(data: bytes) -> list[Event]:
    """The events in the bytes of a stream."""
    return list(Decoder().feed(data))


def data_of(records: Iterable[Record]) -> list[str]:
    """The data of records, for comparing."""
    return [decode(record.frame)[0].data for record in records]


def draft(topic: str, data: str = "") -> Draft:
    """An event on its way."""
    return Draft(topic, Event(data))


async def read_all(journal: Journal, *texts: str, limit: int = 100) -> list[Record]:
    """Everything that is kept of some topics, read page by page."""
    selectors: Sequence[Selector] = parse_selectors(texts)
    records: list[Record] = []
    more = True
    while more:
        page = await journal.read(selectors, records[-1].id if records else ORIGIN, limit)
        records += page.records
        more = page.more
    return records


async def take(follower: Follower, count: int) -> list[Record]:
    """The next ``count`` records of a follower."""
    records: list[Record] = []
    while len(records) < count:
        records += await follower.receive()
    return records
