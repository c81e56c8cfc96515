"""Publishers that wait for their events to be committed, in turns, and what one transaction takes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from ..errors import JournalError, TrioSSEError
from ..event import EventID
from ..record import Draft, Once
from ..turns import Turns
from .contract import cost_of

COMMIT_COST = 256
"""Most events that one transaction takes beyond its last append, where 2 KiB of data count as one event more: about
5 ms, which is how long the next publisher waits for it."""


@dataclass(eq=False, slots=True)
class Append:
    """A publisher that waits for its events to be committed."""

    drafts: Sequence[Draft]
    once: Once | None = None
    done: trio.Event = field(default_factory=trio.Event)
    ids: list[EventID] = field(default_factory=list)
    replayed: bool = False
    error: TrioSSEError | None = None


class Appends:
    """Those that wait."""

    def __init__(self) -> None:
        self._turns = Turns[Append]()
        self._arrived = trio.Event()
        self._closed = False

    async def wait(self, append: Append) -> Append:
        """Wait until it is done; if this is cancelled before its turn, it never will be.

        Raises:
          TrioSSEError: its own error. JournalError: there are no turns any more.
        """
        if self._closed:
            raise _closed()
        publisher = append.drafts[0].publisher if append.drafts else ""
        piece = self._turns.put(publisher, cost_of(append.drafts), append)
        self._arrived.set()
        try:
            await append.done.wait()
        except trio.Cancelled:
            self._turns.withdraw(piece)
            raise
        if append.error is not None:
            raise append.error
        return append

    async def take(self) -> Sequence[Append]:
        """Wait for those whose turn it is, at least one, and no more than one transaction has time for."""
        while not self._turns:
            self._arrived = trio.Event()
            await self._arrived.wait()
        appends: list[Append] = []
        cost = 0
        while cost < COMMIT_COST and (append := self._turns.take()) is not None:
            appends.append(append)
            cost += cost_of(append.drafts)
        return appends

    def close(self) -> None:
        """There are no turns any more: who waits for one is told."""
        self._closed = True
        while (append := self._turns.take()) is not None:
            append.error = _closed()
            append.done.set()


def _closed() -> JournalError:
    return JournalError("the journal is closed")
