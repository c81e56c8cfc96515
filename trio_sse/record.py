"""What leaves the journal: an event in its place, as bytes, and the hole where there is none."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal, Self

from . import wire
from .event import Event, EventID

RESERVED_PREFIX = "trio-sse."
"""Event types of our own begin so; publishers may not use it."""

GapReason = Literal["trimmed", "restarted", "ahead", "unknown"]
"""Why a journal cannot give what came after a cursor: retention removed it; the cursor is older than this
life of the journal; it is newer than anything the journal gave; it is no cursor at all."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An event on its way into the journal.

    ``key`` names what it is the newest value of, if anything. ``publisher`` is the account that what it takes up is
    charged to; the empty name is that of all who have none of their own.
    """

    topic: str
    event: Event
    key: str | None = None
    publisher: str = ""


@dataclass(frozen=True, slots=True)
class Once:
    """What makes publishing idempotent: a key that one subject, or whoever has none, gives to one event of a topic.

    ``body`` is the digest of what is published under it (:meth:`of`).
    """

    subject: str | None
    key: str
    body: bytes

    @classmethod
    def of(cls, subject: str | None, key: str, draft: Draft) -> Self:
        """The key of a draft."""
        told = (draft.event.type, draft.key or "", draft.event.data)  # a NUL is in none but the last
        return cls(subject, key, hashlib.sha256("\0".join(told).encode()).digest())


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Record:
    """An event in its place in the journal, encoded once and shared by every subscriber.

    ``frame`` is the whole block as :func:`trio_sse.wire.encode` writes it, with the journal's ID in it.
    """

    id: EventID
    topic: str
    frame: bytes
    key: str | None = None
    publisher: str = ""

    @classmethod
    def write(cls, id: EventID, draft: Draft, topic: str | None = None, publisher: str | None = None) -> Self:
        """The one place where an event of the journal becomes bytes.

        ``topic`` and ``publisher`` are the draft's, as objects that others hold already, so that each text is in memory
        once.
        """
        frame = wire.encode(draft.event, id=str(id))
        topic = draft.topic if topic is None else topic
        return cls(id, topic, frame, draft.key, draft.publisher if publisher is None else publisher)


@dataclass(frozen=True, slots=True)
class Gap:
    """A hole in what a subscriber receives, told at its place.

    ``requested`` is the cursor as it was given, cut to 64 characters; ``resumed_from`` is the position
    after which everything the journal keeps follows.
    """

    requested: str
    resumed_from: EventID
    reason: GapReason

    @property
    def frame(self) -> bytes:
        """The event ``trio-sse.gap``, whose ``id`` moves a browser's cursor on, so that it is told once."""
        told = {"requested": self.requested, "resumed_from": str(self.resumed_from), "reason": self.reason}
        return wire.encode(Event(json.dumps(told), type=RESERVED_PREFIX + "gap", id=str(self.resumed_from)))
