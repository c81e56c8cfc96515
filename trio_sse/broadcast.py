"""Fan-out: some records in, one reference to them into every outlet whose selectors match.

The broadcaster never waits for a client. Each subscriber gives it an outlet; the plain one,
:class:`ChannelOutlet`, holds **clones of the send end** of the subscriber's memory channel, one for each
selector, and sends with ``send_nowait``. Ending a selector closes its clone; when the last clone is closed the
receiver sees ``EndOfChannel``, and the reason stands on the outlet. (The receive end is never cloned: in Trio
that would share a stream out among the clones, not copy it.)

An outlet that cannot take a batch is *lagging*: it is closed and forgotten. Its subscription notices, catches up
from the journal in its own time, and attaches a new outlet. So a slow client costs a bounded channel.

What waits is delivered together: all outlets that get the same records get one and the same :class:`Batch`, whose
bytes are joined once. What delivering to N subscribers costs: a look-up of each topic, and N times one ``offer``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, Protocol

import trio

from . import seldom
from .event import ORIGIN, EventID
from .latest import Latest
from .record import Record
from .selector_index import SelectorIndex
from .topic import Selector

log = logging.getLogger(__name__)

BUFFER_BYTES = 1024 * 1024
"""Most bytes of frames that wait in one subscriber's channel; a single larger frame may wait alone."""

SLICE = 256
"""So many outlets are served between two checkpoints, so that publishers and new connections get their turn."""

EndReason = Literal["lagging", "ended", "revoked", "expired", "shutdown", "failed"]
"""Why a subscriber gets no more: its channel was full; it was told to end; the right to its last selector was
taken; its token ran out; the server is going away; the hub broke. After ``lagging`` it catches up; the others
are final."""


Taken = Literal["written", "waiting", "refused"]
"""How an outlet took a batch: the client's socket has it; it waits in the channel; the channel was full."""


Framing = Callable[[bytes], bytes]
"""Makes bytes ready for the wire."""


class Batch:
    """Some records, oldest first, at least one; the same object for all the outlets that get just these."""

    __slots__ = ("first", "framed", "last", "records")

    def __init__(self, records: Sequence[Record]) -> None:
        self.records: Final = records
        self.first: Final = records[0].id
        self.last: Final = records[-1].id
        self.framed: Final = _Framed(records)
        """The records' bytes, by the function that frames them: called once for all who name the same."""


class _Framed(dict[Framing, bytes]):
    def __init__(self, records: Sequence[Record]) -> None:
        super().__init__()
        self._records = records

    def __missing__(self, frame: Framing) -> bytes:
        chunk = self[frame] = frame(b"".join([record.frame for record in self._records]))
        return chunk


class Outlet(Protocol):
    """Where a subscriber's records go. The broadcaster knows nothing else of a subscriber."""

    cursor: EventID
    """Everything up to here was written to the client."""

    @property
    def selectors(self) -> Sequence[Selector]:
        """The selectors that have not ended."""

    def offer(self, batch: Batch) -> Taken:
        """Take all of a batch or, refusing it, be closed for lagging. Never blocks."""

    def end_selector(self, selector: Selector, reason: EndReason) -> None:
        """Take no more of one selector's topics."""

    def close(self, reason: EndReason) -> None:
        """Take no more; the reason is for the subscriber to read."""


class ChannelOutlet:
    """A memory channel with bounded records and bounded bytes. It carries records, never bytes of them.

    With ``latest``, records wait there instead, and the channel carries nothing but the end.
    """

    __slots__ = (
        "__weakref__",
        "_clones",
        "_sleeper",
        "_waiting_bytes",
        "cursor",
        "latest",
        "reason",
        "receive_channel",
    )

    def __init__(self, selectors: Sequence[Selector], buffer_events: int, latest: Latest | None = None) -> None:
        send, self.receive_channel = trio.open_memory_channel[Record](buffer_events)
        with send:
            self._clones = {selector: send.clone() for selector in selectors}
        self.cursor = ORIGIN
        self.latest = latest
        self.reason: EndReason | None = None
        self._sleeper: trio.lowlevel.Task | None = None
        self._waiting_bytes = 0

    @property
    def selectors(self) -> Sequence[Selector]:
        """The selectors that have not ended."""
        return tuple(self._clones)

    def offer(self, batch: Batch) -> Taken:
        for record in batch.records:
            if self.latest is not None:
                if not self.latest.hold(record):
                    return "refused"
                continue
            size = len(record.frame)
            if self._waiting_bytes and self._waiting_bytes + size > BUFFER_BYTES:
                return "refused"
            try:
                next(iter(self._clones.values())).send_nowait(record)  # whichever: all lead to the one receiver
            except trio.WouldBlock:
                return "refused"
            except trio.BrokenResourceError:  # the subscriber is leaving and has not said so yet
                return "refused"
            self._waiting_bytes += size
        self.wake()
        return "waiting"

    # -- the subscriber's side ----------------------------------------------------------------------------

    def receive_nowait(self) -> Record:
        """The next record, if there is one.

        Raises:
          trio.WouldBlock: there is none. trio.EndOfChannel: it was closed; :attr:`reason` says why.
        """
        if self.latest:
            return self.latest.take()
        record = self.receive_channel.receive_nowait()
        self._waiting_bytes -= len(record.frame)
        return record

    async def wait(self) -> None:
        """Wait until there may be something to receive, or somebody calls :meth:`wake`.

        Nothing is received here, so to cancel it loses nothing, and to end it early needs no cancel scope, which would
        cost more than the wait.

        Raises:
          trio.BusyResourceError: another task waits here; one may.
        """
        if self._sleeper is not None:
            raise trio.BusyResourceError("another task receives from this subscription")
        self._sleeper = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._forget_sleeper)

    def wake(self) -> None:
        """End a wait, if there is one."""
        if self._sleeper is not None:
            trio.lowlevel.reschedule(self._sleeper)
            self._sleeper = None

    def _forget_sleeper(self, _: object) -> trio.lowlevel.Abort:
        self._sleeper = None
        return trio.lowlevel.Abort.SUCCEEDED

    # -- the broadcaster's side ---------------------------------------------------------------------------

    def end_selector(self, selector: Selector, reason: EndReason) -> None:
        if len(self._clones) == 1:
            self.reason = self.reason or reason
            self.wake()
        self._clones.pop(selector).close()

    def close(self, reason: EndReason) -> None:
        self.reason = self.reason or reason
        for selector in self.selectors:
            self.end_selector(selector, reason)


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

    def written(self, outlet: Outlet) -> None:
        """Everything up to the outlet's cursor was written to its subscriber."""
        if self._waiting:
            self._look_at([outlet])

    def look(self) -> None:
        """Look at the cursors of all that are waited for."""
        self._look_at(list(self._waiting))

    def left(self, outlet: Outlet) -> None:
        """Do not wait for this outlet any more."""
        self._waiting.discard(outlet)

    def _look_at(self, outlets: Iterable[Outlet]) -> None:
        before = len(self._waiting)
        self._waiting.difference_update(outlet for outlet in outlets if outlet.cursor >= self._watched)
        if before and not self._waiting and self.observe is not None:
            self.observe(self._watched)


class Broadcaster:
    """Which outlets get which topics."""

    def __init__(self) -> None:
        self._groups: SelectorIndex[dict[Outlet, None]] = SelectorIndex()
        self._attached: dict[Outlet, int] = {}  # in how many groups each is
        self._changed: set[Outlet] | None = None  # who left or lost a selector, while a delivery is under way
        self.lagging = 0
        """How often an outlet was closed for lagging."""
        self.written = 0
        """How many records outlets wrote straight to their client's socket, all outlets together."""
        self.last_write = LastWrite()

    def attach(self, outlet: Outlet) -> None:
        """From now on, every record its selectors match is offered to this outlet."""
        for selector in outlet.selectors:
            group = self._groups.get(selector)
            if group is None:
                group = {}
                self._groups.put(selector, group)
            if outlet not in group:
                group[outlet] = None
                self._attached[outlet] = self._attached.get(outlet, 0) + 1

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

    async def deliver(self, records: Sequence[Record]) -> None:
        """Offer every outlet those of the records that it matches: each once, in order, all together.

        Together, because a subscriber that takes several records at once writes them at once. Who attaches
        meanwhile finds the records in the journal; who leaves is skipped; one that fails is ended, and no other.
        """
        changed = self._changed = set[Outlet]()
        written = 0
        room = 0  # for so many outlets before the next checkpoint
        try:
            for batch, outlets in self._shares(records):
                count = len(batch.records)
                for outlet in outlets:
                    if not room:
                        room = SLICE
                        await trio.lowlevel.checkpoint()
                    room -= 1
                    try:
                        if changed and outlet in changed:
                            self._offer_rest(outlet, batch)
                        elif (taken := outlet.offer(batch)) == "written":
                            written += count
                        elif taken == "refused":
                            self._lag(outlet)
                    except Exception as error:
                        seldom.say(log, "a subscriber could not be given an event, and is ended", error=error)
                        self.detach(outlet, "failed")
            await trio.lowlevel.checkpoint()
        finally:
            self._changed = None
            self.written += written
        self.last_write.look()

    def _shares(self, records: Sequence[Record]) -> Iterable[tuple[Batch, Sequence[Outlet]]]:
        """Who gets which records. A set of records is a number, with a bit for each; equal numbers share a batch."""
        sets: dict[str, int] = {}
        for place, record in enumerate(records):
            sets[record.topic] = sets.get(record.topic, 0) | 1 << place
        if len(sets) == 1:
            return [(Batch(records), self.audience(records[0].topic))]
        shares: dict[Outlet, int] = {}
        for topic, places in sets.items():
            for outlet in self.audience(topic):
                shares[outlet] = shares.get(outlet, 0) | places
        groups: dict[int, list[Outlet]] = {}
        for outlet, places in shares.items():
            groups.setdefault(places, []).append(outlet)
        return [
            (Batch([record for place, record in enumerate(records) if places >> place & 1]), outlets)
            for places, outlets in groups.items()
        ]

    def _offer_rest(self, outlet: Outlet, batch: Batch) -> None:
        """Offer those records that the selectors which the outlet still has match."""
        rest = [record for record in batch.records if self._reaches(record.topic, outlet)]
        taken = outlet.offer(Batch(rest)) if rest else None
        if taken == "written":
            self.written += len(rest)
        elif taken == "refused":
            self._lag(outlet)

    def _lag(self, outlet: Outlet) -> None:
        self.lagging += 1
        self.detach(outlet, "lagging")

    def audience(self, topic: str) -> list[Outlet]:
        """The outlets that a record of this topic goes to, each once."""
        groups = self._groups.choosing(topic)
        if len(groups) == 1:
            return list(groups[0])
        return list(dict.fromkeys(outlet for group in groups for outlet in group))

    def _reaches(self, topic: str, outlet: Outlet) -> bool:
        return any(outlet in group for group in self._groups.choosing(topic))

    def close(self, reason: EndReason) -> None:
        """End every outlet."""
        for outlet in list(self._attached):
            self.detach(outlet, reason)

    @property
    def outlets(self) -> int:
        """How many outlets are attached."""
        return len(self._attached)

    def _remove(self, selector: Selector, outlet: Outlet) -> None:
        if self._changed is not None:
            self._changed.add(outlet)
        group = self._groups.get(selector)
        if group is None or outlet not in group:
            return
        del group[outlet]
        if not group:
            self._groups.remove(selector)
        if self._attached[outlet] == 1:
            del self._attached[outlet]
        else:
            self._attached[outlet] -= 1
