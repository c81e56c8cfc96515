"""Fan-out: one record in, one reference to it into every outlet whose selectors match.

The broadcaster never waits for a client. Each subscriber gives it an outlet; the plain one,
:class:`ChannelOutlet`, holds **clones of the send end** of the subscriber's memory channel, one for each
selector, and sends with ``send_nowait``. Ending a selector closes its clone; when the last clone is closed the
receiver sees ``EndOfChannel``, and the reason stands on the outlet. (The receive end is never cloned: in Trio
that would share a stream out among the clones, not copy it.)

An outlet that cannot take a record is *lagging*: it is closed and forgotten. Its subscription notices, catches up
from the journal in its own time, and attaches a new outlet. So a slow client costs a bounded channel.

What a batch of N subscribers costs: a look-up of each topic, and N times one ``offer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Literal, Protocol

import trio

from .event import ORIGIN, EventID
from .record import Record
from .topic import Selector, matching

BUFFER_BYTES = 1024 * 1024
"""Most bytes of frames that wait in one subscriber's channel; a single larger frame may wait alone."""

SLICE = 256
"""So many outlets are served between two checkpoints, so that publishers and new connections get their turn."""

EndReason = Literal["lagging", "ended", "revoked", "expired", "shutdown", "failed"]
"""Why a subscriber gets no more: its channel was full; it was told to end; the right to its last selector was
taken; its token ran out; the server is going away; the hub broke. After ``lagging`` it catches up; the others
are final."""


class Outlet(Protocol):
    """Where a subscriber's records go. The broadcaster knows nothing else of a subscriber."""

    @property
    def selectors(self) -> Sequence[Selector]:
        """The selectors that have not ended."""

    def offer(self, batch: Sequence[Record]) -> bool:
        """Take all of ``batch`` or, returning false, be closed for lagging. Never blocks."""

    def end_selector(self, selector: Selector, reason: EndReason) -> None:
        """Take no more of one selector's topics."""

    def close(self, reason: EndReason) -> None:
        """Take no more; the reason is for the subscriber to read."""


class ChannelOutlet:
    """A memory channel with bounded records and bounded bytes. It carries records, never bytes of them."""

    def __init__(self, selectors: Sequence[Selector], buffer_events: int) -> None:
        send, self.receive_channel = trio.open_memory_channel[Record](buffer_events)
        with send:
            self._clones = {selector: send.clone() for selector in selectors}
        self.reason: EndReason | None = None
        self._waiting_bytes = 0

    @property
    def selectors(self) -> Sequence[Selector]:
        """The selectors that have not ended."""
        return tuple(self._clones)

    def offer(self, batch: Sequence[Record]) -> bool:
        for record in batch:
            size = len(record.frame)
            if self._waiting_bytes and self._waiting_bytes + size > BUFFER_BYTES:
                return False
            try:
                self._clone_for(record.topic).send_nowait(record)
            except trio.WouldBlock:
                return False
            except trio.BrokenResourceError:  # the subscriber is leaving and has not said so yet
                return False
            self._waiting_bytes += size
        return True

    def taken(self, record: Record) -> None:
        """The subscriber has taken this record out of the channel."""
        self._waiting_bytes -= len(record.frame)

    def end_selector(self, selector: Selector, reason: EndReason) -> None:
        if len(self._clones) == 1:
            self.reason = self.reason or reason
        self._clones.pop(selector).close()

    def close(self, reason: EndReason) -> None:
        self.reason = self.reason or reason
        for selector in self.selectors:
            self.end_selector(selector, reason)

    def _clone_for(self, topic: str) -> trio.MemorySendChannel[Record]:
        if len(self._clones) > 1:
            for selector, clone in self._clones.items():
                if selector.matches(topic):
                    return clone
        return next(iter(self._clones.values()))


class LastWrite:
    """How long an event takes until the last of its subscribers has it written: one is watched at a time."""

    def __init__(self) -> None:
        self.observe: Callable[[EventID], None] | None = None
        """Called with the ID of a watched record when it was written for the last of its subscribers."""
        self._watched = ORIGIN
        self._waiting: set[Outlet] = set()

    def watch(self, record: Record, audience: Iterable[Outlet]) -> None:
        """Watch this record, unless another is still being watched."""
        if self.observe is not None and not self._waiting:
            self._watched, self._waiting = record.id, set(audience)

    def written(self, outlet: Outlet, cursor: EventID) -> None:
        """Everything up to the cursor was written to this outlet's subscriber."""
        if outlet in self._waiting and cursor >= self._watched:
            self._waiting.discard(outlet)
            if not self._waiting and self.observe is not None:
                self.observe(self._watched)

    def left(self, outlet: Outlet) -> None:
        """Do not wait for this outlet any more."""
        self._waiting.discard(outlet)


class Broadcaster:
    """Which outlets get which topics."""

    def __init__(self) -> None:
        self._groups: dict[Selector, dict[Outlet, None]] = {}
        self._wildcards: dict[Selector, None] = {}
        self._wildcards_for = lru_cache(maxsize=4096)(self._find_wildcards_for)
        self._departures = 0
        self.lagging = 0
        """How often an outlet was closed for lagging."""
        self.last_write = LastWrite()

    def attach(self, outlet: Outlet) -> None:
        """From now on, every record its selectors match is offered to this outlet."""
        for selector in outlet.selectors:
            if selector not in self._groups:
                self._groups[selector] = {}
                if not selector.exact:
                    self._wildcards[selector] = None
                    self._wildcards_for.cache_clear()
            self._groups[selector][outlet] = None

    def detach(self, outlet: Outlet, reason: EndReason) -> None:
        """Forget this outlet and close it; nothing happens when that was done before."""
        for selector in outlet.selectors:
            self._remove(selector, outlet)
        outlet.close(reason)
        self.last_write.left(outlet)

    def revoke(self, outlet: Outlet, selector: Selector, reason: EndReason = "revoked") -> None:
        """End one selector of an outlet; ending the last one ends the outlet."""
        self._remove(selector, outlet)
        outlet.end_selector(selector, reason)

    async def deliver(self, batch: Iterable[Record]) -> None:
        """Offer every outlet those records of the batch that it matches: each once, in order, all together.

        Together, because a subscriber that wakes up to several records writes them at once. Who attaches
        meanwhile finds the records in the journal; who leaves is skipped.
        """
        shares: dict[Outlet, list[Record]] = {}
        for record in batch:
            for outlet in self.audience(record.topic):
                shares.setdefault(outlet, []).append(record)
        departures = self._departures
        for served, (outlet, share) in enumerate(shares.items()):
            if served % SLICE == 0:
                await trio.lowlevel.checkpoint()
            if departures != self._departures:  # somebody left, lagged or lost a selector since: it, perhaps
                share = [record for record in share if matching(outlet.selectors, record.topic)]
            if share and not outlet.offer(share):
                self.lagging += 1
                self.detach(outlet, "lagging")
        await trio.lowlevel.checkpoint()

    def audience(self, topic: str) -> list[Outlet]:
        """The outlets that a record of this topic goes to, each once."""
        named = self._groups.get(Selector(topic, exact=True), {})
        wildcards = self._wildcards_for(topic)
        if not wildcards:
            return list(named)
        groups = [named, *(self._groups[selector] for selector in wildcards)]
        return list(dict.fromkeys(outlet for group in groups for outlet in group))

    def close(self, reason: EndReason) -> None:
        """End every outlet."""
        for outlet in {outlet for group in self._groups.values() for outlet in group}:
            self.detach(outlet, reason)

    @property
    def outlets(self) -> int:
        """How many outlets are attached."""
        return len({outlet for group in self._groups.values() for outlet in group})

    def _remove(self, selector: Selector, outlet: Outlet) -> None:
        self._departures += 1
        group = self._groups.get(selector, {})
        group.pop(outlet, None)
        if not group and self._groups.pop(selector, None) is not None and not selector.exact:
            del self._wildcards[selector]
            self._wildcards_for.cache_clear()

    def _find_wildcards_for(self, topic: str) -> list[Selector]:
        return [selector for selector in self._wildcards if selector.matches(topic)]
