"""The newest value of each key, for readers who want to know how things are, not how they came to be so.

Two records are values of the same thing if they have the same topic and key; those without a key are values of their
topic. A newer one takes the place of an older one and stands last, so what is taken out is in the order of IDs, without
any sorting.
"""

from __future__ import annotations

from collections import OrderedDict

from .record import Record

MAX_KEYS = 1_000
"""Values of so many things are held; with more a reader is lagging."""

MAX_BYTES = 1024 * 1024
"""Most bytes of frames that are held; a single larger one may be held alone."""


class Latest:
    """Records that wait, the newest of each key; put in by ascending IDs, taken out likewise."""

    __slots__ = ("_bytes", "_records")

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[str, str | None], Record] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def hold(self, record: Record) -> bool:
        """Hold a record in place of an older value of the same thing; false, and nothing is changed, without room."""
        thing = (record.topic, record.key)
        older = self._records.get(thing)
        bytes_held = self._bytes + len(record.frame) - (0 if older is None else len(older.frame))
        others = len(self._records) - (older is not None)
        if others and (others >= MAX_KEYS or bytes_held > MAX_BYTES):
            return False
        self._records[thing] = record
        self._records.move_to_end(thing)
        self._bytes = bytes_held
        return True

    def take(self) -> Record:
        """The record with the lowest ID, which is held no longer.

        Raises:
          KeyError: there is none.
        """
        record = self._records.popitem(last=False)[1]
        self._bytes -= len(record.frame)
        return record

    def value_of(self, record: Record) -> Record | None:
        """The value that is held of the same thing, if there is one."""
        return self._records.get((record.topic, record.key))
