"""A journal in memory: it lives as long as the process, and a restart is a visible gap.

The limit of a journal that forgets: restarted under a clock that went back, it cannot tell an old cursor
from one of its own once its IDs have passed it. Only a journal on disk can. What it knows of idempotency keys ends with
it too.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from ..errors import KeyReused
from ..event import EventID
from ..record import Draft, Once, Record
from ..retention import Ages, Limits, Retention
from ..selector_index import Selection
from ..topic import Selector
from ..turns import Gate
from .accounts import Account, Accounts, Holding
from .choosing import choose
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
from .costs import EMPTY_SHARE, KEYS_SHARE, LOST_SHARE, MEMORY
from .removals import Told
from .shelf import Shelf, Topic

STALE_LOST = 1_000
"""Entries of lost values that may be out of date, or an eighth of all, before they are dropped: each holds its key and
its topic in memory, even one that is forgotten."""


class MemoryJournal(Journal):
    """Events on a shelf."""

    def __init__(self, retention: Retention, clock: Callable[[], float] = time.time) -> None:
        super().__init__(retention, clock)
        self.born = self.tail = self.position()
        self._shelf = Shelf(self.born)
        self._kept: dict[str, _Kept] = {}
        self._empty: dict[str, None] = {}
        self._empty_bytes = 0
        self._ages = Ages()
        self._lost: deque[tuple[_Kept, str | None, EventID]] = deque()
        self._lost_bytes = self._stale_lost = 0
        self._accounts = Accounts()
        self._once: dict[_Name, _Once] = {}
        self._once_of: dict[Account, OrderedDict[_Name, None]] = {}
        self._signing_key: str | None = None
        self._gate = Gate(1)  # to the room that followers have left

    async def append(self, drafts: Sequence[Draft]) -> list[EventID]:
        await self._turn(drafts)
        return self._append(drafts)

    async def append_once(self, draft: Draft, once: Once) -> tuple[EventID, bool]:
        await self._turn([draft])
        name = (once.subject, draft.topic, once.key)
        known = self._once.get(name)
        if known is not None:
            if known.id >= self.knows_key_since(self.now_ms()):
                if known.body != once.body:
                    raise KeyReused(REUSED)
                return known.id, True
            self._drop_once(name)
        (id,) = self._append([draft], once)
        return id, False

    async def _turn(self, drafts: Sequence[Draft]) -> None:
        """Wait until no follower is far behind, and publishers that waited longer have had their turn."""
        await trio.lowlevel.checkpoint()
        if self.behind() is not None or self._gate.waiting:
            async with self._gate.turn(drafts[0].publisher if drafts else "", cost_of(drafts)):
                await self.wait_room()

    async def read(self, selectors: Sequence[Selector], after: EventID, limit: int, told: int = 0) -> Page:
        await trio.lowlevel.checkpoint()
        selection, now_told = Selection.of(selectors), Told(told)
        topics = await choose(self._shelf, selection, after, now_told)
        page = self._shelf.read(selection, topics, after, limit, now_told)
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
        known = self.knows_key_since(now_ms)
        while self._once and self._once[first := next(iter(self._once))].id < known:
            self._drop_once(first)
        self._trim()

    def statistics(self) -> JournalStatistics:
        shelf, size = self._shelf, self._accounts.bytes + self._beside
        topics = len(self._kept) - len(self._empty)
        return JournalStatistics(shelf.events, size, topics, shelf.newest(), self._evicted)

    async def signing_key(self, fresh: str) -> str:
        await trio.lowlevel.checkpoint()
        self._signing_key = self._signing_key or fresh
        return self._signing_key

    async def forget_signing_key(self) -> None:
        await trio.lowlevel.checkpoint()
        self._signing_key = None

    def _known_topic(self, topic: str) -> str:
        kept = self._kept.get(topic)
        return topic if kept is None else kept.topic.name

    def _known_publisher(self, name: str) -> str:
        return self._accounts.known(name)

    def _append(self, drafts: Sequence[Draft], once: Once | None = None) -> list[EventID]:
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
                if topic.name in self._empty:
                    del self._empty[topic.name]
                    self._empty_bytes -= MEMORY.of_topic(topic.name)
                self._ages.look(topic.name, limits.too_old_at(record.id.ms))
            self._shelf.add(record)
            self._charge(record, topic)
            if kept.added(record):
                self._lost_bytes -= MEMORY.of_lost(record.key)
                self._stale_lost += 1
            if len(topic) > limits.events or topic.bytes > limits.bytes:
                full[topic.name] = kept
        for kept in full.values():
            self._limit(kept, now_ms)
        if once is not None:
            self._keep_once(once, records[0])
        self._trim()
        self.publish(records)
        return [record.id for record in records]

    def _limit(self, kept: _Kept, now_ms: int) -> None:
        """Remove what is too much of one topic."""
        topic = kept.topic
        oldest = ((record.id.ms, len(record.frame)) for record in topic)
        if count := kept.limits.excess(len(topic), topic.bytes, oldest, now_ms):
            self._removed(kept, self._shelf.remove(topic, topic[count - 1].id))

    @property
    def _beside(self) -> int:
        """Bytes of what is known beside events."""
        return self._accounts.key_bytes + self._lost_bytes + self._empty_bytes

    def _trim(self) -> None:
        """Make room: for topics that are empty, idempotency keys and lost values in their shares, then for events."""
        whole = self.retention.bytes
        accounts = self._accounts
        while accounts.keys > MAX_ONCE:
            self._drop_once(next(iter(self._once_of[accounts.with_most_keys()])))
        while accounts.key_bytes > whole / KEYS_SHARE:
            self._drop_once(next(iter(self._once_of[accounts.with_most_key_bytes()])))
        before = self._shelf.events
        while accounts.holdings > MAX_TOPICS:
            self._evict(accounts.with_most_holdings().idlest())
        while accounts.bytes and accounts.bytes + self._beside > whole:
            self._evict(accounts.with_most_bytes().largest())
        self._note_evicted(before - self._shelf.events)
        while len(self._empty) > MAX_EMPTY_TOPICS or self._empty_bytes > whole / EMPTY_SHARE:
            self._forget(next(iter(self._empty)))

    def _charge(self, record: Record, topic: Topic) -> None:
        holding = self._accounts.find(record.publisher, topic.name)
        size = MEMORY.of_event(len(record.frame), record.key)
        if holding is None:
            holding = Holding(self._accounts.account(record.publisher), topic.name, record.id)
            self._accounts.put(holding)
            size += MEMORY.of_holding(topic.name, record.publisher)
        self._accounts.add(holding, 1, size)

    def _evict(self, holding: Holding) -> None:
        """Remove the oldest event of a holding."""
        kept = self._kept[holding.topic]
        topic, publisher = kept.topic, holding.account.name
        record = next(each for each in topic.iterate_after(holding.after) if each.publisher == publisher)
        holding.after = record.id
        if record is topic[0]:
            self._shelf.remove(topic, record.id)
        else:
            self._shelf.remove_one(topic, record.id)
        self._removed(kept, [record])

    def _removed(self, kept: _Kept, records: Sequence[Record]) -> None:
        """Account for records of a topic that are gone."""
        topic = kept.topic
        for record in records:
            holding = self._accounts.find(record.publisher, topic.name)
            assert holding is not None
            self._accounts.remove(holding, 1, MEMORY.of_event(len(record.frame), record.key))
            if kept.removed(record):
                self._lost.append((kept, record.key, record.id))
                self._lost_bytes += MEMORY.of_lost(record.key)
        while len(self._lost) > MAX_LOST or self._lost_bytes > self.retention.bytes / LOST_SHARE:
            of, key, id = self._lost.popleft()
            if of.forget(key, id):
                self._lost_bytes -= MEMORY.of_lost(key)
            else:
                self._stale_lost -= 1
        if self._stale_lost > max(STALE_LOST, len(self._lost) / 8):
            self._lost = deque(entry for entry in self._lost if entry[0].lost.get(entry[1]) == entry[2])
            self._stale_lost = 0
        if not len(topic):
            self._empty[topic.name] = None
            self._empty_bytes += MEMORY.of_topic(topic.name)

    def _keep_once(self, once: Once, record: Record) -> None:
        name = (once.subject, record.topic, once.key)
        account = self._accounts.account(record.publisher)
        self._once[name] = _Once(once.body, record.id, account)
        self._once_of.setdefault(account, OrderedDict())[name] = None
        self._accounts.charge_keys(account, 1, MEMORY.of_once(*name))

    def _drop_once(self, name: _Name) -> None:
        account = self._once.pop(name).account
        names = self._once_of[account]
        del names[name]
        if not names:
            del self._once_of[account]
        self._accounts.drop_key(account, MEMORY.of_once(*name))

    def _forget(self, name: str) -> None:
        """Let the coarse floor stand for a topic's: a position, so that it is no other topic's ID."""
        del self._empty[name]
        self._empty_bytes -= MEMORY.of_topic(name)
        lost = self._kept[name].lost
        self._lost_bytes -= sum(map(MEMORY.of_lost, lost))
        self._stale_lost += len(lost)
        lost.clear()
        floor = EventID(self._kept.pop(name).topic.floor.ms + 1, 0)
        self._shelf.forget(name)
        self._shelf.coarse_floor = max(self._shelf.coarse_floor, floor)
        self._give(floor)


_Name = tuple[str | None, str, str]
"""The subject, topic and text of an idempotency key."""


@dataclass(eq=False, slots=True)
class _Once:
    """What was published under an idempotency key, and the account that the key is charged to."""

    body: bytes
    id: EventID
    account: Account


@dataclass(eq=False, slots=True)
class _Kept:
    """One topic, what is kept of it, and which values of it are gone though nothing replaced them."""

    topic: Topic
    limits: Limits
    lost_floor: EventID
    newest: dict[str | None, EventID] = field(default_factory=dict)
    lost: dict[str | None, EventID] = field(default_factory=dict)

    def added(self, record: Record) -> bool:
        """Whether it replaces a value that was lost."""
        self.newest[record.key] = record.id
        lost = self.lost.pop(record.key, None)
        if lost is not None and lost == self.topic.lost:
            self.topic.lost = max([self.lost_floor, *self.lost.values()])
        return lost is not None

    def removed(self, record: Record) -> bool:
        """Whether it was the newest of its key, so that nothing replaces it."""
        if self.newest.get(record.key) != record.id:
            return False
        del self.newest[record.key]
        self.lost[record.key] = record.id
        self.topic.lost = max(self.topic.lost, record.id)
        return True

    def forget(self, key: str | None, id: EventID) -> bool:
        """Know no longer whether this one is replaced; false if it is known that it is."""
        if self.lost.get(key) != id:
            return False
        del self.lost[key]
        self.lost_floor = max(self.lost_floor, id)
        return True


@asynccontextmanager
async def open_memory(retention: Retention, clock: Callable[[], float] = time.time) -> AsyncIterator[MemoryJournal]:
    """A fresh journal, gone with the block."""
    yield MemoryJournal(retention, clock)
