"""A journal in memory: it lives as long as the process, and a restart is a visible gap.

Each topic has its own list, for reading; one queue holds all events in order, for removing the oldest. What
was removed through its topic leaves a stale entry in the queue, told by its ID being at or below the topic's
floor; when most entries are stale the queue is written anew, so it stays linear in what is kept.

The limit of a journal that forgets: restarted under a clock that went back, it cannot tell an old cursor
from one of its own once its IDs have passed it. Only a journal on disk can.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate

import trio

from ..event import EventID
from ..record import Draft, Record
from ..topic import Selector
from .contract import PAGE_BYTES, Journal, JournalStatistics, Page, Retention

MAX_TOPICS = 100_000
"""Most topics that are remembered; beyond it the topics of the oldest events go first."""

MAX_EMPTY_TOPICS = 10_000
"""Most topics of which nothing but the floor is kept, before the coarse floor stands for the oldest."""


class MemoryJournal(Journal):
    """Events in lists, one a topic."""

    def __init__(self, retention: Retention, clock: Callable[[], float] = time.time) -> None:
        super().__init__(retention, clock)
        self.born = self.tail = self._coarse_floor = self.position()
        self._topics: dict[str, _Topic] = {}
        self._empty: dict[str, None] = {}
        self._order: deque[tuple[EventID, _Topic]] = deque()
        self._events = 0
        self._bytes = 0
        self._secrets: dict[str, str] = {}

    async def append(self, drafts: Sequence[Draft]) -> list[EventID]:
        await self.wait_room()
        records = self.write(drafts)
        for record in records:
            topic = self._topics.get(record.topic)
            if topic is None:
                topic = self._topics[record.topic] = _Topic(record.topic, self._coarse_floor)
            self._empty.pop(record.topic, None)
            topic.records.append(record)
            self._order.append((record.id, topic))
            self._events += 1
            self._bytes += len(record.frame)
            if len(topic) > self.retention.events:
                self._remove_oldest(topic)
        self._trim()
        self.publish(records)
        return [record.id for record in records]

    async def read(self, selectors: Sequence[Selector], after: EventID, limit: int) -> Page:
        await trio.lowlevel.checkpoint()
        topics = [topic for topic in self._chosen(selectors) if len(topic) and topic.last.id > after]
        slices = [topic.after(after, limit) for topic in topics]
        if len(slices) == 1:
            records = slices[0]
        else:
            records = [record for record, _ in zip(heapq.merge(*slices, key=_by_id), range(limit), strict=False)]
        page = records
        sizes = [len(record.frame) for record in records]
        if sum(sizes) > PAGE_BYTES:
            page = records[: max(1, sum(size <= PAGE_BYTES for size in accumulate(sizes)))]
        return Page(page, self._floor(selectors), more=len(records) == limit or len(page) < len(records))

    async def floor(self, selectors: Sequence[Selector]) -> EventID:
        await trio.lowlevel.checkpoint()
        return self._floor(selectors)

    async def last_event_id(self, topic: str) -> EventID | None:
        await trio.lowlevel.checkpoint()
        kept = self._topics.get(topic)
        return kept.last.id if kept is not None and len(kept) else None

    async def trim(self) -> None:
        await trio.lowlevel.checkpoint()
        self._trim()

    def statistics(self) -> JournalStatistics:
        topics = len(self._topics) - len(self._empty)
        return JournalStatistics(self._events, self._bytes, topics, self._order[-1][0] if self._events else None)

    async def secret(self, name: str, fresh: str) -> str:
        await trio.lowlevel.checkpoint()
        return self._secrets.setdefault(name, fresh)

    def _chosen(self, selectors: Sequence[Selector]) -> list[_Topic]:
        if all(selector.exact for selector in selectors):
            return [topic for selector in selectors if (topic := self._topics.get(selector.text)) is not None]
        return [topic for name, topic in self._topics.items() if any(selector.matches(name) for selector in selectors)]

    def _floor(self, selectors: Sequence[Selector]) -> EventID:
        chosen = self._chosen(selectors)
        floors = [topic.floor for topic in chosen]
        if len(chosen) < len(selectors) or not all(selector.exact for selector in selectors):
            floors.append(self._coarse_floor)  # a topic of theirs may be among the forgotten
        return max(floors)

    def _trim(self) -> None:
        oldest_ms = self.oldest_ms()
        while self._order:
            id, topic = self._order[0]
            if id > topic.floor:
                if (
                    id.ms >= oldest_ms
                    and self._bytes <= self.retention.bytes
                    and len(self._topics) - len(self._empty) <= MAX_TOPICS
                ):
                    break
                self._remove_oldest(topic)
            self._order.popleft()
        if len(self._order) > 2 * self._events + 1024:
            self._order = deque(entry for entry in self._order if entry[0] > entry[1].floor)
        while len(self._empty) > MAX_EMPTY_TOPICS:
            name = next(iter(self._empty))
            del self._empty[name]
            self._forget(self._topics.pop(name))

    def _remove_oldest(self, topic: _Topic) -> None:
        removed = topic.remove_oldest()
        self._events -= 1
        self._bytes -= len(removed.frame)
        if not len(topic):
            self._empty[topic.name] = None

    def _forget(self, topic: _Topic) -> None:
        """Let the coarse floor stand for this topic's: a position, so that it is no other topic's ID."""
        floor = EventID(topic.floor.ms + 1, 0)
        self._coarse_floor = max(self._coarse_floor, floor if floor <= self._last else self.position())


class _Topic:
    """One topic's records, oldest first; removing moves a mark, and the list is cut when half is behind it."""

    __slots__ = ("_begin", "floor", "name", "records")

    def __init__(self, name: str, floor: EventID) -> None:
        self.name = name
        self.floor = floor
        self.records: list[Record] = []
        self._begin = 0

    def __len__(self) -> int:
        return len(self.records) - self._begin

    @property
    def last(self) -> Record:
        return self.records[-1]

    def after(self, cursor: EventID, limit: int) -> list[Record]:
        begin = bisect_right(self.records, cursor, self._begin, key=_by_id)
        return self.records[begin : begin + limit]

    def remove_oldest(self) -> Record:
        removed = self.records[self._begin]
        self.floor = removed.id
        self._begin += 1
        if 2 * self._begin >= len(self.records):
            del self.records[: self._begin]
            self._begin = 0
        return removed


def _by_id(record: Record) -> EventID:
    return record.id


@asynccontextmanager
async def open_memory(retention: Retention, clock: Callable[[], float] = time.time) -> AsyncIterator[MemoryJournal]:
    """A fresh journal, gone with the block."""
    yield MemoryJournal(retention, clock)
