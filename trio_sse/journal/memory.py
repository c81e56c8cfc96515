"""A journal in memory: it lives as long as the process, and a restart is a visible gap.

The limit of a journal that forgets: restarted under a clock that went back, it cannot tell an old cursor
from one of its own once its IDs have passed it. Only a journal on disk can. What it knows of idempotency keys ends with
it too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from ..errors import KeyReused
from ..event import EventID
from ..record import Draft, Once, Record
from ..retention import Ages, Limits, Retention
from ..topic import Selector
from ..turns import Gate
from .contract import (
    MAX_EMPTY_TOPICS,
    MAX_LOST,
    MAX_ONCE,
    MAX_TOPICS,
    REUSED,
    Journal,
    JournalStatistics,
    Page,
    cost_of,
)
from .shelf import Shelf, Topic


class MemoryJournal(Journal):
    """Events on a shelf."""

    def __init__(self, retention: Retention, clock: Callable[[], float] = time.time) -> None:
        super().__init__(retention, clock)
        self.born = self.tail = self.position()
        self._shelf = Shelf(self.born)
        self._kept: dict[str, _Kept] = {}
        self._empty: dict[str, None] = {}
        self._ages = Ages()
        self._lost: deque[tuple[_Kept, str | None, EventID]] = deque()
        self._once: dict[tuple[str | None, str, str], tuple[bytes, EventID]] = {}
        self._signing_key: str | None = None
        self._gate = Gate(1)  # to the room that followers have left

    async def append(self, drafts: Sequence[Draft]) -> list[EventID]:
        await self._turn(drafts)
        return self._append(drafts)

    async def append_once(self, draft: Draft, once: Once) -> tuple[EventID, bool]:
        await self._turn([draft])
        name = (once.subject, draft.topic, once.key)
        body, id = self._once.get(name, (b"", self.born))
        if body and id >= self.knows_key_since(self.now_ms()):
            if body != once.body:
                raise KeyReused(REUSED)
            return id, True
        (id,) = self._append([draft])
        self._once.pop(name, None)
        self._once[name] = (once.body, id)
        if len(self._once) > MAX_ONCE:
            del self._once[next(iter(self._once))]
        return id, False

    async def _turn(self, drafts: Sequence[Draft]) -> None:
        """Wait until no follower is far behind, and publishers that waited longer have had their turn."""
        await trio.lowlevel.checkpoint()
        if self.behind() is not None or self._gate.waiting:
            async with self._gate.turn(drafts[0].publisher if drafts else "", cost_of(drafts)):
                await self.wait_room()

    async def read(self, selectors: Sequence[Selector], after: EventID, limit: int) -> Page:
        await trio.lowlevel.checkpoint()
        page = self._shelf.read(selectors, after, limit)
        assert page is not None, "everything is on the shelf"
        return page

    async def floor(self, selectors: Sequence[Selector]) -> EventID:
        await trio.lowlevel.checkpoint()
        return self._shelf.floor(selectors)

    async def last_event_id(self, topic: str) -> EventID | None:
        await trio.lowlevel.checkpoint()
        return self._shelf.last_event_id(topic)

    async def trim(self) -> None:
        await trio.lowlevel.checkpoint()
        now_ms = self.now_ms()
        for name in self._ages.due(now_ms):
            if kept := self._kept.get(name):
                self._limit(kept, now_ms)
                if len(kept.topic):
                    self._ages.look(name, kept.limits.too_old_at(kept.topic[0].id.ms))
        self._trim()
        known = self.knows_key_since(now_ms)
        while self._once and self._once[first := next(iter(self._once))][1] < known:
            del self._once[first]

    def statistics(self) -> JournalStatistics:
        shelf = self._shelf
        return JournalStatistics(shelf.events, shelf.bytes, len(self._kept) - len(self._empty), shelf.newest())

    async def signing_key(self, fresh: str) -> str:
        await trio.lowlevel.checkpoint()
        self._signing_key = self._signing_key or fresh
        return self._signing_key

    async def forget_signing_key(self) -> None:
        await trio.lowlevel.checkpoint()
        self._signing_key = None

    def _append(self, drafts: Sequence[Draft]) -> list[EventID]:
        records = self.write(drafts)
        now_ms = self.now_ms()
        full: dict[str, _Kept] = {}
        for record in records:
            kept = self._kept.get(record.topic)
            if kept is None:
                topic = self._shelf.topic(record.topic)
                kept = self._kept[record.topic] = _Kept(topic, self.retention.of(record.topic), topic.floor)
            topic, limits = kept.topic, kept.limits
            if not len(topic):
                self._empty.pop(record.topic, None)
                self._ages.look(topic.name, limits.too_old_at(record.id.ms))
            self._shelf.add(record)
            kept.added(record)
            if len(topic) > limits.events or topic.bytes > limits.bytes:
                full[topic.name] = kept
        for kept in full.values():
            self._limit(kept, now_ms)
        self._trim()
        self.publish(records)
        return [record.id for record in records]

    def _limit(self, kept: _Kept, now_ms: int) -> None:
        """Remove what is too much of one topic."""
        topic = kept.topic
        oldest = ((record.id.ms, len(record.frame)) for record in topic)
        if count := kept.limits.excess(len(topic), topic.bytes, oldest, now_ms):
            self._remove(kept, count)

    def _trim(self) -> None:
        """Remove the oldest events, whatever their topic, until the bytes and the number of topics are right."""
        while self._shelf.bytes > self.retention.bytes or len(self._kept) - len(self._empty) > MAX_TOPICS:
            topic = self._shelf.oldest()
            assert topic is not None
            self._remove(self._kept[topic.name], 1)
        while len(self._empty) > MAX_EMPTY_TOPICS:
            self._forget(next(iter(self._empty)))

    def _remove(self, kept: _Kept, count: int) -> None:
        topic = kept.topic
        for record in self._shelf.remove(topic, topic[count - 1].id):
            if kept.removed(record):
                self._lost.append((kept, record.key, record.id))
        while len(self._lost) > MAX_LOST:
            of, key, id = self._lost.popleft()
            of.forget(key, id)
        if not len(topic):
            self._empty[topic.name] = None

    def _forget(self, name: str) -> None:
        """Let the coarse floor stand for a topic's: a position, so that it is no other topic's ID."""
        del self._empty[name]
        floor = EventID(self._kept.pop(name).topic.floor.ms + 1, 0)
        self._shelf.forget(name)
        self._shelf.coarse_floor = max(self._shelf.coarse_floor, floor)
        self._give(floor)


@dataclass(eq=False, slots=True)
class _Kept:
    """One topic, what is kept of it, and which values of it are gone though nothing replaced them."""

    topic: Topic
    limits: Limits
    lost_floor: EventID
    newest: dict[str | None, EventID] = field(default_factory=dict)
    lost: dict[str | None, EventID] = field(default_factory=dict)

    def added(self, record: Record) -> None:
        self.newest[record.key] = record.id
        if self.lost.pop(record.key, None) == self.topic.lost:
            self.topic.lost = max([self.lost_floor, *self.lost.values()])

    def removed(self, record: Record) -> bool:
        """Whether it was the newest of its key."""
        if self.newest[record.key] != record.id:
            return False
        del self.newest[record.key]
        self.lost[record.key] = self.topic.lost = record.id
        return True

    def forget(self, key: str | None, id: EventID) -> None:
        """Know no longer whether this one is replaced."""
        if self.lost.get(key) == id:
            del self.lost[key]
            self.lost_floor = max(self.lost_floor, id)


@asynccontextmanager
async def open_memory(retention: Retention, clock: Callable[[], float] = time.time) -> AsyncIterator[MemoryJournal]:
    """A fresh journal, gone with the block."""
    yield MemoryJournal(retention, clock)
