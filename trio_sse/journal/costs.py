"""What an event, a topic and all that a journal knows beside them are counted as, in bytes.

``Retention.bytes`` is a promise about the disk and the memory of a machine, so everything that a journal keeps counts,
at about what it takes there: rows, keys, indexes, objects, and what a database leaves free in its pages.
``benchmarks/retention.py`` measures how true these figures are.

What is no event may have a share of the whole at most: idempotency keys an eighth, values that are lost without being
replaced a sixteenth, and topics of which only the floor is known a sixteenth. Events have the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALL_FILE = 1024 * 1024
"""Bytes below which a database is as small as it gets, whatever the setting: tables and indexes of one page each."""

KEYS_SHARE, LOST_SHARE, EMPTY_SHARE = 8, 16, 16
"""One part in so many of the bytes of a journal at most, for what is no event."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The figures of one kind of journal."""

    event: int
    """Bytes of an event beside its frame and key."""
    key: int
    """Bytes that a key adds to its event beside its own."""
    key_byte: int
    """Times that each byte of a key is kept."""
    topic: int
    """Bytes of a topic, or of one more publisher's holding in it, beside its name."""
    topic_byte: int
    """Times that each byte of its name is kept."""
    publisher_byte: int
    """Times that each byte of a publisher's name is kept."""
    once: int
    """Bytes of an idempotency key beside its subject, topic and text."""
    once_byte: int
    """Times that each byte of these is kept."""
    lost: int
    """Bytes of the mark for a key whose newest value was removed, beside the key's own."""

    def of_event(self, frame: int, key: str | None) -> int:
        """Bytes that an event counts as whose frame has so many."""
        size = self.event + frame
        return size if key is None else size + self.key + self.key_byte * byte_length(key)

    def of_events(self, events: int, unkeyed: int, frames: int, keyed: int) -> int:
        """Bytes that several count as: so many, those without a key, the bytes of their frames, and of their keys."""
        return events * self.event + frames + (events - unkeyed) * self.key + keyed * self.key_byte

    def of_topic(self, name: str) -> int:
        """Bytes that a topic counts as when it is empty."""
        return self.topic + self.topic_byte * byte_length(name)

    def of_holding(self, topic: str, publisher: str) -> int:
        """Bytes that a topic counts as for each publisher that has something in it, with the publisher's own."""
        return self.of_topic(topic) + self.publisher_byte * byte_length(publisher)

    def of_once(self, subject: str | None, topic: str, key: str) -> int:
        """Bytes that an idempotency key counts as."""
        return self.once + self.once_byte * (byte_length(subject or "") + byte_length(topic) + byte_length(key))

    def of_lost(self, key: str | None) -> int:
        """Bytes that the mark for a lost value counts as."""
        return self.lost + self.key_byte * byte_length(key or "")


def byte_length(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


MEMORY = Costs(
    event=420, key=220, key_byte=2, topic=1100, topic_byte=2, publisher_byte=1, once=420, once_byte=2, lost=220
)
SQLITE = Costs(
    event=110, key=120, key_byte=3, topic=1500, topic_byte=4, publisher_byte=3, once=200, once_byte=3, lost=120
)
