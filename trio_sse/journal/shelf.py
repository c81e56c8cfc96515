"""Records in memory, by topic: all of a memory journal, and what stands in front of a file.

Each topic has a list of its newest records, and marks. Its *floor* is the highest ID that was removed for good: a
cursor below it has missed something, though older records may still be there, because each publisher makes room with
events of its own. Up to *gone* there is nothing any more; up to *back* records were put back, so that a file has them.
A reader whose cursor is past that, in each of its topics, gets a slice of what all others get: an index into shared
records, and no copy of a byte.

Readers of wildcards find their topics in an index, if these are few. Readers of many go along one more list, which has
all IDs in order and serves for finding the oldest, too: a bounded number of entries for a page, whatever they choose of
them. What was taken away through its topic leaves a stale entry there, told by its topic not having it; when most
entries are stale the list is written anew, so it stays linear in what is here.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from operator import attrgetter, itemgetter

from ..event import ORIGIN, EventID
from ..record import Record
from ..selector_index import Selection, TopicIndex
from ..topic import Selector
from .contract import MERGED_TOPICS, PAGE_BYTES, PAGE_ENTRIES, Page
from .costs import MEMORY
from .removals import Removals, Told

VISITS = 500
"""Places in the index of topics that are visited for the wildcards of a page, about a fifth of a millisecond, before
it is taken along the order of all records."""

_GONE = Record(ORIGIN, "", b"")
"""In the place of records that were taken away, until the list is cut."""

RISES = 4
"""Marks of lost values that are known of a topic below the one it has, for when that falls again."""

_by_id = attrgetter("id")
_entry_id = itemgetter(0)


class Topic:
    """One topic's records, oldest first; taking away moves a mark, and the list is cut when half is behind it."""

    __slots__ = (
        "_first",
        "_floor",
        "_lost",
        "_records",
        "_removals",
        "_rises",
        "back",
        "bytes",
        "floor_at",
        "gone",
        "last",
        "lost_at",
        "lost_since",
        "name",
    )

    def __init__(self, name: str, removals: Removals) -> None:
        self.name = name
        self._removals = removals
        floor = self._floor = self._lost = removals.coarse_floor
        self.floor_at = self.lost_at = self.lost_since = removals.coarse_at
        self._rises: tuple[tuple[EventID, int], ...] = ()
        self.gone = floor
        """Up to here no record is left."""
        self.back = ORIGIN
        """The newest record that was put back, for a file to have; what is above it and left is here."""
        self.last = floor
        """The newest there is or was."""
        self.bytes = 0
        """Bytes of the frames that are here."""
        self._records: list[Record] = []
        self._first = 0

    def __len__(self) -> int:
        return len(self._records) - self._first

    @property
    def floor(self) -> EventID:
        """The highest ID that was removed for good; of another publisher there may be older records."""
        return self._floor

    @floor.setter
    def floor(self, id: EventID) -> None:
        if id > self._floor:
            self._removals.floor_rose(self)
        self._floor = id

    @property
    def lost(self) -> EventID:
        """Up to here some are gone which no newer one of their key replaced."""
        return self._lost

    @lost.setter
    def lost(self, id: EventID) -> None:
        if id > self._lost:
            self._rises = (*self._rises[1 - RISES :], (self._lost, self.lost_since))
            self._removals.lost_rose(self)
        while self._rises and self._rises[-1][0] >= id:  # it falls to where it was before: nobody is told of that again
            self.lost_since = self._rises[-1][1]
            self._rises = self._rises[:-1]
        self._lost = id

    def __getitem__(self, place: int) -> Record:
        """The records on the shelf, from 0 on; -1 is the newest."""
        return self._records[self._first + place if place >= 0 else place]

    def __iter__(self) -> Iterator[Record]:
        return (self._records[place] for place in range(self._first, len(self._records)))

    def after(self, cursor: EventID, limit: int) -> list[Record]:
        """The oldest records after a cursor."""
        begin = self._index(cursor)
        return self._records[begin : begin + limit]

    def at(self, id: EventID) -> Record | None:
        """The record that has an ID, if it is here."""
        place = self._index(id) - 1
        record = self._records[place] if place >= self._first else None
        return record if record is not None and record.id == id else None

    def iterate_after(self, cursor: EventID) -> Iterator[Record]:
        """All records after a cursor, one by one."""
        records = self._records
        return (records[place] for place in range(self._index(cursor), len(records)))

    def add(self, record: Record) -> None:
        self._records.append(record)
        self.last = record.id
        self.bytes += len(record.frame)

    def take_out(self, id: EventID) -> Record | None:
        """Take one record out, if it is here."""
        record = self.at(id)
        if record is not None:
            place = self._index(id) - 1
            if place == self._first:
                return self.take_away(id)[0]
            del self._records[place]
            self.bytes -= len(record.frame)
        return record

    def take_away(self, upto: EventID) -> list[Record]:
        """Take away the records up to an ID."""
        end = self._index(upto)
        taken = self._records[self._first : end]
        self._records[self._first : end] = [_GONE] * len(taken)  # or the list would hold as many again in memory
        self.bytes -= sum(len(record.frame) for record in taken)
        self._first = end
        if 2 * end >= len(self._records):
            del self._records[:end]
            self._first = 0
        return taken

    def _index(self, cursor: EventID) -> int:
        return bisect_right(self._records, cursor, self._first, key=_by_id)


class Shelf:
    """Every topic, and the records of it that are in memory. No tasks, no I/O, no clock."""

    def __init__(self, coarse_floor: EventID) -> None:
        self.removals = Removals(coarse_floor)
        self.topics: dict[str, Topic] = {}
        self.back = ORIGIN
        """The newest record of any topic that was put back."""
        self.events = 0
        self.bytes = 0
        """Bytes that the records here take in memory."""
        self._order: list[tuple[EventID, Topic]] = []
        self._first = 0  # entries of the order before it are stale
        self._index: TopicIndex[Topic] = TopicIndex()

    @property
    def coarse_floor(self) -> EventID:
        """The floor of every topic that is not here."""
        return self.removals.coarse_floor

    @coarse_floor.setter
    def coarse_floor(self, id: EventID) -> None:
        self.removals.coarse_floor = id

    # -- putting there and taking away --------------------------------------------------------------------

    def topic(self, name: str) -> Topic:
        """The topic of a name, made when it is not here yet."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self.topics[name] = Topic(name, self.removals)
            self._index.put(name, topic)
        return topic

    def add(self, record: Record) -> Topic:
        """Put a record, newer than all that are here, in its topic's place; returns the topic."""
        topic = self.topic(record.topic)
        topic.add(record)
        self._order.append((record.id, topic))
        self.events += 1
        self.bytes += MEMORY.of_event(len(record.frame), record.key)
        return topic

    def remove(self, topic: Topic, upto: EventID) -> list[Record]:
        """Take a topic's records up to an ID away, for good."""
        topic.floor, topic.gone = max(topic.floor, upto), max(topic.gone, upto)
        return self._take_away(topic, upto)

    def remove_one(self, topic: Topic, id: EventID) -> Record | None:
        """Take one of a topic's records away for good, whatever is left before it; the record, if it was here."""
        topic.floor = max(topic.floor, id)
        record = topic.take_out(id)
        if record is not None:
            self._note_taken([record])
        return record

    def put_back(self, events: int, bytes: float) -> None:
        """Leave only so many of the newest records here; the others are in the file."""
        while (self.events > events or self.bytes > bytes) and (topic := self.oldest()) is not None:
            self.back = topic.back = topic[0].id
            self._take_away(topic, topic.back)

    def oldest(self) -> Topic | None:
        """The topic of the oldest record, if there is any."""
        while self._first < len(self._order):
            id, topic = self._order[self._first]
            if topic.at(id) is not None:
                return topic
            self._first += 1
            if 2 * self._first >= len(self._order):
                del self._order[: self._first]
                self._first = 0
        return None

    def newest(self) -> EventID | None:
        """The highest ID there is."""
        while self._first < len(self._order):
            id, topic = self._order[-1]
            if topic.at(id) is not None:
                return id
            self._order.pop()
        return None

    def forget(self, name: str) -> None:
        """Forget a topic; from now on the coarse floor is its floor."""
        topic = self.topics.pop(name)
        self._take_away(topic, topic.last)
        self._index.remove(name)
        self.removals.forget(topic)

    def _take_away(self, topic: Topic, upto: EventID) -> list[Record]:
        taken = topic.take_away(upto)
        self._note_taken(taken)
        return taken

    def _note_taken(self, taken: Sequence[Record]) -> None:
        self.events -= len(taken)
        self.bytes -= sum([MEMORY.of_event(len(record.frame), record.key) for record in taken])
        if len(self._order) - self._first > 2 * self.events + 1024:
            self._order = [(id, topic) for id, topic in self._order[self._first :] if topic.at(id) is not None]
            self._first = 0

    # -- reading ------------------------------------------------------------------------------------------

    def few(self, selection: Selection) -> list[Topic] | None:
        """The topics that the selectors choose; none if there are too many to look at each."""
        if selection.exact:
            return [topic for selector in selection if (topic := self.topics.get(selector.text)) is not None]
        return self._index.chosen(selection, VISITS)

    def tell(self, selection: Selection, topics: Sequence[Topic] | None, after: EventID, told: Told) -> None:
        """Tell a reader what was removed of its topics since it was told last; ``topics`` are those, if few."""
        if topics is None:
            for _ in self.removals.tell(selection, after, told):
                pass
        else:
            forgotten = not selection.exact or len(topics) < len(selection)
            self.removals.tell_of(topics, told, forgotten=forgotten)

    def read(
        self, selection: Selection, topics: Sequence[Topic] | None, after: EventID, limit: int, told: Told
    ) -> Page | None:
        """A page of history (:meth:`Journal.read`); none if a file has to be asked for it."""
        if topics is None:
            if self.back > after:
                return None
        elif any(topic.back > after and topic.back > topic.gone for topic in topics):
            return None
        self.tell(selection, topics, after, told)
        some = None if topics is None else [topic for topic in topics if topic.last > after]
        if some is None or len(some) > MERGED_TOPICS:
            records, upto, more = self._along_the_order(selection, after, limit)
        else:
            if len(some) == 1:
                records = some[0].after(after, limit)
            else:
                merged = heapq.merge(*[topic.iterate_after(after) for topic in some], key=_by_id)
                records = list(islice(merged, limit))
            upto, more = records[-1].id if records else after, len(records) == limit
        sizes = [len(record.frame) for record in records]
        if sum(sizes) > PAGE_BYTES:
            fitting = max(1, sum(size <= PAGE_BYTES for size in accumulate(sizes)))
            if fitting < len(records):
                records = records[:fitting]
                upto, more = records[-1].id, True
        return Page(records, upto, told.floor, told.lost, told.upto, more)

    def _along_the_order(self, selection: Selection, after: EventID, limit: int) -> tuple[list[Record], EventID, bool]:
        """The records of one page, the ID up to which all were looked at, and whether there is more."""
        chosen: dict[Topic, bool] = {}
        records: list[Record] = []
        begin = bisect_right(self._order, after, self._first, key=_entry_id)
        end = min(begin + PAGE_ENTRIES, len(self._order))
        upto = after
        for place in range(begin, end):
            upto, topic = self._order[place]
            wanted = chosen.get(topic)
            if wanted is None:
                wanted = chosen[topic] = selection.chooses(topic.name)
            if wanted and (record := topic.at(upto)) is not None:
                records.append(record)
                if len(records) == limit:
                    return records, upto, True
        return records, upto, end < len(self._order)

    def floor(self, selectors: Iterable[Selector]) -> EventID:
        """The highest ID that was removed from any topic the selectors choose."""
        selection, told = Selection.of(selectors), Told()
        self.tell(selection, self.few(selection), ORIGIN, told)
        return told.floor

    def last_event_id(self, name: str) -> EventID | None:
        """The ID of the newest event kept of a topic; of one that a file has, at least so high."""
        topic = self.topics.get(name)
        if topic is None:
            return None
        if len(topic):
            return topic[-1].id
        return topic.back if topic.back > topic.gone else None
