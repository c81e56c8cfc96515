"""What a SQLite file holds, as its writer keeps it in memory, and what one transaction is asked for and does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import KeyReused
from ..event import EventID
from ..record import Once, Record
from ..retention import Limits
from .accounts import Account, Holding

Doomed = tuple[int, str | None, int, int]
"""A record that goes: its ID, key, the size of its frame, and its publisher's number."""


@dataclass(slots=True)
class Write:
    """What one publisher wants to be kept, all or none; and what came of it."""

    records: Sequence[Record]
    once: Once | None = None
    before: EventID | None = None
    """The ID under which it was kept before, and so not again."""
    refusal: KeyReused | None = None


@dataclass(slots=True)
class Change:
    """What a transaction did, for those who hold records in memory."""

    added: list[Record] = field(default_factory=list)
    marks: list[tuple[str, EventID, EventID, EventID]] = field(default_factory=list)
    """Topics for which it has changed: each with its floor, up to where it has no record, and to where some is lost."""
    holes: list[tuple[str, list[EventID]]] = field(default_factory=list)
    """Records that are gone from behind older ones, by topic."""
    evicted: int = 0
    """How many records made room for others."""
    forgotten: list[str] = field(default_factory=list)
    coarse_floor: EventID | None = None
    """The new one, where it is another than before."""
    more: bool = False
    """Whether there was more to remove or to look at."""


@dataclass(slots=True)
class Held:
    """What the file holds of one topic."""

    id: int
    name: str
    limits: Limits
    floor: int
    lost_floor: int
    """Up to here it is not known whether what was removed is replaced."""
    gone: int = 0
    """Up to here it has no record, as far as is known."""
    publishers: int = 0
    """How many have something in it."""
    events: int = 0
    unkeyed: int = 0
    bytes: int = 0
    """Bytes of their frames."""
    lost: int = 0
    """The highest ID of a removed record that is not replaced, or 0."""

    @property
    def marks(self) -> tuple[str, EventID, EventID, EventID]:
        marks = self.floor, self.gone, max(self.lost_floor, self.lost)
        return self.name, *map(EventID.unpacked, marks)  # type: ignore[return-value]


class FileHolding(Holding):
    """A holding that has a row."""

    __slots__ = ("frames", "id", "keyed", "newest", "unkeyed")

    def __init__(self, account: Account, topic: str, id: int, first: EventID | None = None) -> None:
        super().__init__(account, topic, first)
        self.id = id
        self.unkeyed = 0
        self.frames = 0
        """Bytes of its events' frames."""
        self.keyed = 0
        """Bytes of their keys."""
        self.newest = 0

    @property
    def row(self) -> tuple[int, int, int, int, int, int]:
        return self.events, self.unkeyed, self.frames, self.keyed, self.newest, self.id
