"""What is kept of each topic, and when it grows too old."""

from __future__ import annotations

import math

import pytest

from trio_sse.errors import InvalidTopic
from trio_sse.retention import Ages, Keep, Limits, Retention


def test_the_first_rule_that_chooses_a_topic_counts() -> None:
    """And it alone: what it leaves out is the general limit, not that of the next rule."""
    rules = {"room/1": Keep(events=5), "room/*": Keep(seconds=60, events=math.inf), "**": Keep(bytes=100)}
    retention = Retention(events=10, seconds=3600, topics=rules)
    assert retention.of("room/1") == Limits(5, math.inf, 3600)
    assert retention.of("room/2") == Limits(math.inf, math.inf, 60)
    assert retention.of("other/x") == Limits(10, 100, 3600)


def test_without_a_rule_the_general_limits_hold() -> None:
    """Of events and seconds; the bytes are those of all topics together."""
    assert Retention(events=10, seconds=3600, bytes=5).of("a") == Limits(10, math.inf, 3600)


def test_wildcards_do_not_reach_inboxes() -> None:
    """As in any selector; one that is named is meant."""
    retention = Retention(events=10, seconds=3600, topics={"user/ada": Keep(events=1), "**": Keep(events=2)})
    assert [retention.of(f"user/{name}").events for name in ("ada", "bob")] == [1, 10]


def test_a_rule_needs_a_selector() -> None:
    """Or it is refused when it is made."""
    with pytest.raises(InvalidTopic):
        Retention(topics={"a//b": Keep()})


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        (Limits(3, math.inf, math.inf), 2),
        (Limits(9, 350, math.inf), 2),
        (Limits(9, 300, math.inf), 2),
        (Limits(9, 299, math.inf), 3),
        (Limits(9, math.inf, 6), 0),
        (Limits(9, math.inf, 5), 1),
        (Limits(9, math.inf, 0.5), 5),
        (Limits(4, 250, 4.5), 3),
        (Limits(math.inf, math.inf, math.inf), 0),
    ],
)
def test_too_many_are_counted_from_the_oldest(limits: Limits, count: int) -> None:
    """Until number, bytes and age are right."""
    oldest = [(1_000 * second, 100) for second in range(1, 6)]  # at a clock that says 6.5 s
    assert limits.excess(5, 500, oldest, 6_500) == count


def test_a_topic_is_due_once_behind_its_time() -> None:
    """At most one entry a topic; whoever is given it may put it back."""
    ages = Ages()
    ages.look("b", 20)
    ages.look("a", 10)
    ages.look("a", 5)
    ages.look("never", math.inf)
    assert list(ages.due(10)) == []
    assert list(ages.due(20.5)) == ["a", "b"]
    assert list(ages.due(1e15)) == []
    ages.look("a", 30)
    assert list(ages.due(31)) == ["a"]
