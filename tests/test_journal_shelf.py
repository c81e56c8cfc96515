"""The shelf: an index into shared records, and what it knows of those that are not there."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sse.event import ORIGIN, Event, EventID
from trio_sse.journal import Page
from trio_sse.journal import shelf as room
from trio_sse.journal.removals import Told
from trio_sse.journal.shared import Shared
from trio_sse.journal.shelf import Shelf
from trio_sse.record import Draft, Record
from trio_sse.selector_index import Selection
from trio_sse.topic import matching, parse_selectors

BORN = EventID(1, 0)


def record(number: int, topic: str = "a") -> Record:
    return Record.write(EventID(1, number), Draft(topic, Event(str(number))))


def filled(*topics: str) -> Shelf:
    """A shelf with a record for each of these, numbered from 1."""
    shelf = Shelf(BORN)
    for number, topic in enumerate(topics, 1):
        shelf.add(record(number, topic))
    return shelf


def read(shelf: Shelf, selectors: Sequence[str], after: EventID = ORIGIN, limit: int = 100) -> Page | None:
    selection = Selection(parse_selectors(selectors))
    return shelf.read(selection, shelf.few(selection), after, limit, Told())


def numbers(shelf: Shelf, *selectors: str, after: int = 0, limit: int = 100) -> list[int] | None:
    page = read(shelf, selectors, EventID(1, after), limit)
    return None if page is None else [each.id.seq for each in page.records]


def test_readers_share_the_records() -> None:
    """Each gets the very objects that are there, and no copy."""
    shelf = filled("a", "b", "a")
    pages = [read(shelf, ["a"]) for _ in range(2)]
    assert [page.records[1] is shelf.topics["a"][1] for page in pages if page is not None] == [True, True]


def test_what_is_taken_away_is_not_held() -> None:
    """A topic's list is cut later, but its records are gone from memory at once."""
    shelf = filled("a", "a", "a", "a", "a")
    first = weakref.ref(shelf.topics["a"][0])
    shelf.remove(shelf.topics["a"], EventID(1, 1))
    gc.collect()
    assert first() is None
    assert numbers(shelf, "a", after=1) == [2, 3, 4, 5]


def test_who_begins_below_what_is_there_has_to_ask_the_file() -> None:
    """Once older records were put back, only a cursor behind those of its own topics is answered."""
    shelf = filled("a", "b", "a", "b")
    shelf.put_back(2, 1_000_000)
    assert numbers(shelf, "a") is None
    assert numbers(shelf, "a", after=1) == [3]
    assert numbers(shelf, "b", after=1) is None
    assert numbers(shelf, "b", after=2) == [4]
    assert numbers(shelf, "a", "b", after=1) is None
    assert numbers(shelf, "*", after=2) == [3, 4]


def test_bytes_are_bounded_too() -> None:
    """So many stay as fit."""
    shelf = filled("a", "a", "a")
    all_three = shelf.bytes
    shelf.put_back(100, all_three - 1)
    assert (shelf.events, shelf.bytes) == (2, all_three * 2 / 3)


def test_what_is_removed_for_good_need_not_be_asked_for() -> None:
    """The floor says that it is gone, from the file too."""
    shelf = filled("a", "a", "a", "a")
    shelf.put_back(2, 1_000_000)
    shelf.remove(shelf.topics["a"], EventID(1, 3))
    assert numbers(shelf, "a") == [4]
    assert shelf.floor(parse_selectors(["a"])) == EventID(1, 3)


def test_the_newest_of_a_topic_is_known_also_when_it_is_not_there() -> None:
    """What was put back is still kept; what was removed is not."""
    shelf = filled("a", "b")
    shelf.put_back(0, 0)
    assert shelf.last_event_id("a") == EventID(1, 1)
    shelf.remove(shelf.topics["a"], EventID(1, 1))
    assert shelf.last_event_id("a") is None
    assert shelf.last_event_id("unknown") is None


def test_the_oldest_and_the_newest_are_found() -> None:
    """Whatever was taken away before and behind them."""
    shelf = filled("a", "b", "c", "b")
    assert (shelf.oldest(), shelf.newest()) == (shelf.topics["a"], EventID(1, 4))
    shelf.remove(shelf.topics["a"], EventID(1, 1))
    shelf.remove(shelf.topics["b"], EventID(1, 4))
    assert (shelf.oldest(), shelf.newest()) == (shelf.topics["c"], EventID(1, 3))
    shelf.remove(shelf.topics["c"], EventID(1, 3))
    assert (shelf.oldest(), shelf.newest()) == (None, None)


def test_a_topic_that_comes_is_chosen_by_wildcards_used_before() -> None:
    """And one that was forgotten no more, not even when it comes again."""
    shelf = filled("t/1")
    assert numbers(shelf, "t/*") == [1]
    shelf.add(record(2, "t/2"))
    assert numbers(shelf, "t/*") == [1, 2]
    shelf.forget("t/1")
    assert numbers(shelf, "t/*") == [2]
    shelf.add(record(3, "t/1"))
    assert numbers(shelf, "t/*") == [2, 3]


TOPICS = st.sampled_from(["a", "b", "t/1", "t/2"])


@pytest.mark.parametrize("visits", [0, 500])
@pytest.mark.parametrize("merged", [0, 64])
@given(
    st.lists(TOPICS, max_size=40),
    st.lists(st.tuples(TOPICS, st.integers(0, 40)), max_size=8),
    st.integers(0, 40),
    st.lists(st.sampled_from(["a", "b", "t/1", "t/*", "**", "x"]), min_size=1, unique=True),
    st.integers(0, 41),
    st.integers(1, 50),
)
def test_a_page_is_what_a_plain_list_says(
    merged: int,
    visits: int,
    topics: list[str],
    removed: list[tuple[str, int]],
    stay: int,
    selectors: list[str],
    after: int,
    limit: int,
) -> None:
    """Whatever was added, removed and put back: the same records, or word that the file has some of them."""
    shelf = filled(*topics)
    shelf.put_back(stay, 1_000_000)
    kept = [(number, topic) for number, topic in enumerate(topics, 1)]
    for topic, upto in removed:
        if topic in shelf.topics:
            shelf.remove(shelf.topics[topic], EventID(1, upto))
            kept = [each for each in kept if each[1] != topic or each[0] > upto]
    parsed = parse_selectors(selectors)
    wanted = [number for number, topic in kept if number > after and matching(parsed, topic)]
    there = {each.id.seq for topic in shelf.topics.values() for each in topic}
    assert shelf.events == len(there) <= max(stay, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "MERGED_TOPICS", merged)
        patch.setattr(room, "VISITS", visits)
        found = numbers(shelf, *selectors, after=after, limit=limit)
    if visits == 0 and not all(selector.exact for selector in parsed):  # of too many topics, none is looked at alone
        assert found == (wanted[:limit] if EventID(1, after) >= shelf.back else None)
    else:
        assert found == (wanted[:limit] if set(wanted) <= there else None)


# -- what is shared of what was read from a file ---------------------------------------------------------------------


def test_a_record_is_in_memory_once() -> None:
    """Who reads it again has the object of who read it first."""
    shared = Shared()
    first = shared.of(record(1))
    assert shared.of(record(1)) is first
    assert shared.bytes == len(first.frame)


def test_what_nobody_holds_is_not_held() -> None:
    """Neither the record nor its bytes are counted any longer."""
    shared = Shared()
    held = [shared.of(record(number)) for number in (1, 2)]
    assert len(shared) == 2
    del held
    gc.collect()
    assert (len(shared), shared.bytes) == (0, 0)


# -- what was removed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visits", [0, 500])
def test_a_loss_that_was_made_good_is_told_to_nobody(visits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark of a topic rises, and falls to where it was when the value is replaced: it is told of once."""
    monkeypatch.setattr(room, "VISITS", visits)
    shelf, selection, told = filled("a"), Selection(parse_selectors(["*"])), Told()

    def lost_since_then() -> int:
        told.lost = ORIGIN
        shelf.tell(selection, shelf.few(selection), BORN, told)
        return told.lost.seq

    shelf.topics["a"].lost = EventID(1, 1)
    assert (lost_since_then(), lost_since_then()) == (1, 0)
    shelf.topics["a"].lost = EventID(1, 3)
    shelf.topics["a"].lost = EventID(1, 1)
    assert lost_since_then() == 0
    shelf.topics["a"].lost = EventID(1, 3)
    shelf.topics["a"].lost = EventID(1, 4)
    shelf.topics["a"].lost = EventID(1, 3)
    assert (lost_since_then(), lost_since_then()) == (3, 0)
