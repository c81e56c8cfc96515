"""Records read from a file, each in memory once, however many readers hold it."""

from __future__ import annotations

from weakref import ref

from ..event import EventID
from ..record import Record


class Shared:
    """Knows the records that somebody holds, and holds none itself."""

    def __init__(self) -> None:
        self.bytes = 0
        """Bytes of their frames."""
        self._held: dict[EventID, ref[Record]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def of(self, record: Record) -> Record:
        """The same record, as somebody holds it already, or this one."""
        reference = self._held.get(record.id)
        held = None if reference is None else reference()
        if held is not None:
            return held
        id, size = record.id, len(record.frame)

        def let_go(reference: ref[Record]) -> None:
            self.bytes -= size
            if self._held.get(id) is reference:
                del self._held[id]

        self._held[id] = ref(record, let_go)
        self.bytes += size
        return record
