"""Who holds what of a journal, and who makes room when it is full. No I/O, no clock.

A *holding* is what one publisher has in one topic; an *account* is all holdings of one publisher, and its idempotency
keys. When the bytes of a journal are used up, the account that holds most gives the oldest event of its largest
holding, again and again until there is room (max-min fairness). So a publisher that holds less than its even share
loses nothing to the others, and neither does a topic that holds less than the even share among its publisher's topics.
When there are too many topics, the account with the most holdings gives the one in which nothing was published for
longest; when there are too many idempotency keys, the account with the most gives its oldest.

A journal that is not full never asks for the largest of anything, so until it is first asked, nothing is kept for it:
:class:`Largest` then costs an event two pushes to a heap, about a microsecond.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import count
from operator import attrgetter
from typing import Any, Generic, TypeVar

from ..event import ORIGIN, EventID

T = TypeVar("T", bound="Numbered")

SLACK = 1024
"""Stale entries that a heap may have beyond one for each item, before it is made anew; enough that this is rare."""


class Numbered:
    """An item with a number of its own; of two of the same size the lower number is found first."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = next(_numbers)


_numbers = count(1)


class Largest(Generic[T]):
    """The largest of some items whose sizes change; an item of size 0 is none."""

    __slots__ = ("_heap", "_items", "_size")

    def __init__(self, size: Callable[[T], int], items: Mapping[str, T]) -> None:
        self._size = size
        self._items = items
        self._heap: list[tuple[int, int, T]] | None = None  # none until somebody asks

    def grew(self, item: T) -> None:
        """An item is larger than before. (One that shrank is noticed when it is found.)"""
        if self._heap is not None:
            heapq.heappush(self._heap, (-self._size(item), item.number, item))

    def find(self) -> T:
        """The largest item.

        Raises:
          IndexError: there is none.
        """
        heap = self._heap
        if heap is None:
            heap = self._heap = self._entries()
        corrected: set[int] = set()
        while True:
            size, number, item = heap[0]
            now = -self._size(item)
            if now == size:
                return item
            heapq.heappop(heap)
            if now and number not in corrected:  # once, or its stale entries would be corrected again each time
                heapq.heappush(heap, (now, number, item))
                corrected.add(number)

    def compact(self, items: int) -> None:
        """Drop stale entries when there are more of them than ``items``, which there are."""
        if self._heap is not None and len(self._heap) > 2 * items + SLACK:
            self._heap = self._entries()

    def _entries(self) -> list[tuple[int, int, T]]:
        heap = [(-size, item.number, item) for item in self._items.values() if (size := self._size(item))]
        heapq.heapify(heap)
        return heap


_bytes_of: Callable[[Any], int] = attrgetter("bytes")


class Holding(Numbered):
    """What one publisher has in one topic."""

    __slots__ = ("account", "after", "bytes", "events", "topic")

    def __init__(self, account: Account, topic: str, first: EventID | None = None) -> None:
        """``first`` is the ID of its first event, where that is known."""
        super().__init__()
        self.account = account
        self.topic = topic
        self.events = 0
        self.bytes = 0
        """Bytes that its events are counted as, and the topic itself."""
        self.after: EventID = ORIGIN if first is None else EventID.unpacked(first.packed() - 1)
        """None of its events is at or below this ID, so that its oldest is found without a walk from the beginning."""


class Account(Numbered):
    """All that one publisher has."""

    __slots__ = ("_largest", "bytes", "holdings", "key_bytes", "keys", "name")

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.bytes = 0
        self.keys = 0
        """How many idempotency keys it has."""
        self.key_bytes = 0
        """Bytes that they are counted as."""
        self.holdings: OrderedDict[str, Holding] = OrderedDict()
        """By topic, the one with the latest event last."""
        self._largest: Largest[Holding] | None = None  # none until somebody asks: there may be very many accounts

    def largest(self) -> Holding:
        """The holding with the most bytes."""
        if self._largest is None:
            self._largest = Largest(_bytes_of, self.holdings)
        return self._largest.find()

    def idlest(self) -> Holding:
        """The holding that has had no event for longest."""
        return next(iter(self.holdings.values()))

    def changed(self, holding: Holding) -> None:
        """A holding of this account has grown."""
        if self._largest is not None:
            self._largest.grew(holding)
            self._largest.compact(len(self.holdings))


class Accounts:
    """All accounts of a journal."""

    def __init__(self) -> None:
        self.bytes = 0
        """Bytes of all holdings."""
        self.holdings = 0
        """How many there are."""
        self.keys = 0
        """How many idempotency keys there are, and the bytes that they are counted as."""
        self.key_bytes = 0
        self._accounts: dict[str, Account] = {}

        def largest(size: Callable[[Account], int]) -> Largest[Account]:
            return Largest(size, self._accounts)

        self._by_bytes = largest(lambda account: account.bytes)
        self._by_holdings = largest(lambda account: len(account.holdings))
        self._by_keys = largest(lambda account: account.keys)
        self._by_key_bytes = largest(lambda account: account.key_bytes)

    def __len__(self) -> int:
        return len(self._accounts)

    def __contains__(self, name: str) -> bool:
        return name in self._accounts

    def account(self, name: str) -> Account:
        """The account of a publisher, made when there is none."""
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(name)
        return account

    def known(self, name: str) -> str:
        """The same name, as the object that its account has, if there is one."""
        account = self._accounts.get(name)
        return name if account is None else account.name

    def find(self, publisher: str, topic: str) -> Holding | None:
        """What a publisher has in a topic, if anything."""
        account = self._accounts.get(publisher)
        return None if account is None else account.holdings.get(topic)

    def put(self, holding: Holding) -> None:
        """Begin a holding; charge the topic, or events that were there before, with :meth:`add`."""
        holding.account.holdings[holding.topic] = holding
        self.holdings += 1
        self._by_holdings.grew(holding.account)
        self._by_holdings.compact(len(self._accounts))

    def add(self, holding: Holding, events: int, size: int) -> None:
        """Charge ``size`` bytes to a holding that has so many events more, the latest of its account."""
        account = holding.account
        account.holdings.move_to_end(holding.topic)
        holding.events += events
        holding.bytes += size
        account.bytes += size
        self.bytes += size
        account.changed(holding)
        self._by_bytes.grew(account)
        self._by_bytes.compact(len(self._accounts))

    def remove(self, holding: Holding, events: int, size: int) -> None:
        """Some events of a holding are gone; with the last of them the holding is."""
        account = holding.account
        holding.events -= events
        size = size if holding.events else holding.bytes
        holding.bytes -= size
        account.bytes -= size
        self.bytes -= size
        if not holding.events:
            del account.holdings[holding.topic]
            self.holdings -= 1
            self._forget(account)

    def charge_keys(self, account: Account, count: int, size: int) -> None:
        """A publisher has so many idempotency keys more."""
        account.keys += count
        account.key_bytes += size
        self.keys += count
        self.key_bytes += size
        for largest in (self._by_keys, self._by_key_bytes):
            largest.grew(account)
            largest.compact(len(self._accounts))

    def drop_key(self, account: Account, size: int) -> None:
        """A publisher has one idempotency key less."""
        account.keys -= 1
        account.key_bytes -= size
        self.keys -= 1
        self.key_bytes -= size
        self._forget(account)

    def with_most_bytes(self) -> Account:
        """The account that gives when the bytes are used up."""
        return self._by_bytes.find()

    def with_most_holdings(self) -> Account:
        """The account that gives when there are too many topics."""
        return self._by_holdings.find()

    def with_most_keys(self) -> Account:
        """The account that gives when there are too many idempotency keys."""
        return self._by_keys.find()

    def with_most_key_bytes(self) -> Account:
        """The account that gives when the idempotency keys take too many bytes."""
        return self._by_key_bytes.find()

    def _forget(self, account: Account) -> None:
        if not account.holdings and not account.keys:
            del self._accounts[account.name]
