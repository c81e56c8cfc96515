"""The newest value of each key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sse.event import Event, EventID
from trio_sse.latest import MAX_BYTES, MAX_KEYS, Latest
from trio_sse.record import Draft, Record


def record(number: int, key: str | None = None, topic: str = "a", data: str = "x") -> Record:
    return Record.write(EventID(1, number), Draft(topic, Event(data), key))


def taken(latest: Latest) -> list[Record]:
    return [latest.take() for _ in range(len(latest))]


def test_a_newer_value_takes_the_place_of_an_older() -> None:
    """Of each key, and of what has none, the newest is held."""
    latest = Latest()
    records = [record(number, key) for number, key in enumerate(["x", "y", None, "x", None], 1)]
    assert all(latest.hold(each) for each in records)
    assert taken(latest) == [records[1], records[3], records[4]]


def test_a_key_is_its_topics() -> None:
    """The same key in another topic is the key of another thing."""
    latest = Latest()
    records = [record(1, "x", "a"), record(2, "x", "b"), record(3, None, "a"), record(4, None, "b")]
    assert all(latest.hold(each) for each in records)
    assert taken(latest) == records


def test_the_value_of_a_thing_can_be_looked_at() -> None:
    """Without taking it."""
    latest = Latest()
    latest.hold(record(1, "x"))
    assert latest.value_of(record(9, "x")) == record(1, "x")
    assert latest.value_of(record(9, "y")) is None
    assert len(latest) == 1


def test_more_keys_than_there_is_room_for_are_refused() -> None:
    """A thousand are held; what is held may still be replaced."""
    latest = Latest()
    assert all(latest.hold(record(number + 1, str(number))) for number in range(MAX_KEYS))
    assert not latest.hold(record(5_000, "one too many"))
    assert latest.hold(record(5_001, "0"))
    assert len(latest) == MAX_KEYS
    assert [latest.take().id.seq for _ in range(MAX_KEYS)] == [*range(2, MAX_KEYS + 1), 5_001]


def test_bytes_are_bounded() -> None:
    """A large value may be held alone, and is not held beside others."""
    latest = Latest()
    large = "x" * MAX_BYTES
    assert latest.hold(record(1, "x", data=large))
    assert not latest.hold(record(2, "y"))
    assert latest.hold(record(3, "x"))
    assert latest.hold(record(4, "y"))
    assert not latest.hold(record(5, "x", data=large))
    assert [each.id.seq for each in taken(latest)] == [3, 4]


def test_there_is_nothing_to_take_of_nothing() -> None:
    """It says so."""
    with pytest.raises(KeyError):
        Latest().take()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([None, "x", "y"]))))
def test_what_is_taken_is_the_newest_of_each_in_order(names: list[tuple[str, str | None]]) -> None:
    """Whatever came in whatever order."""
    records = [record(number, key, topic) for number, (topic, key) in enumerate(names, 1)]
    latest = Latest()
    assert all(latest.hold(each) for each in records)
    newest = {(each.topic, each.key): each for each in records}
    assert taken(latest) == sorted(newest.values(), key=lambda each: each.id)
    assert latest.hold(record(1_000, data="x" * MAX_BYTES))  # no byte of what was taken counts any more
