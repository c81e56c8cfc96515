"""The index of selectors: it finds what asking each would find, in steps that do not depend on how many there are."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_topic import is_selector
from trio_sse.selector_index import MOST_VISITS, STEP, Selection, SelectorIndex, TopicIndex, without_contained
from trio_sse.topic import MAX_SEGMENTS, MAX_STARS, Selector, matching, parse_selectors

many = settings(max_examples=400, deadline=None)

names = st.sampled_from(["a", "b", "user"])
topics = st.lists(names, min_size=1, max_size=5).map("/".join)


selectors = (
    st.tuples(st.lists(names | st.just("*"), max_size=4), st.sampled_from(["a", "b", "user", "*", "**"]))
    .map(lambda parts: "/".join([*parts[0], parts[1]]))
    .filter(is_selector)
    .map(Selector.parse)
)
several = st.lists(selectors, max_size=12)


def indexed(these: list[Selector]) -> SelectorIndex[Selector]:
    index: SelectorIndex[Selector] = SelectorIndex()
    for selector in these:
        index.put(selector, selector)
    return index


@many
@given(several, topics)
def test_a_topic_finds_the_selectors_that_match_it(these: list[Selector], topic: str) -> None:
    """No other, none left out, none twice."""
    index = indexed(these)
    expected = sorted({selector.text for selector in these if selector.matches(topic)})
    assert sorted(selector.text for selector in index.choosing(topic)) == expected
    assert index.chooses(topic) == matching(these, topic)


@many
@given(several, selectors)
def test_a_selector_finds_those_that_contain_it(these: list[Selector], selector: Selector) -> None:
    """As asking each whether it contains it."""
    expected = sorted({other.text for other in these if other.contains(selector)})
    assert sorted(other.text for other in indexed(these).containing(selector)) == expected


@many
@given(several, several, topics)
def test_what_is_removed_is_as_if_it_had_never_come(these: list[Selector], gone: list[Selector], topic: str) -> None:
    """Whatever nodes were made for it; one that is not there may be removed."""
    index = indexed(these + gone)
    for selector in gone:
        index.remove(selector)
        index.remove(selector)
    left = set(these) - set(gone)
    assert {selector for selector in these if index.get(selector) is not None} == left
    assert set(index.choosing(topic)) == {selector for selector in left if selector.matches(topic)}
    assert len(index) == len(left)
    for selector in left:
        index.remove(selector)
    assert (index._root.edges, index._root.is_bare) == ({}, True)


@many
@given(several, topics)
def test_without_what_is_contained_the_same_topics_are_chosen(these: list[Selector], topic: str) -> None:
    """None that is left contains another."""
    left = [selector for some in without_contained(these) for selector in some]
    assert matching(left, topic) == matching(these, topic)
    assert not any(one.contains(other) for one in left for other in left if one != other)


def test_what_is_contained_is_left_out_a_little_at_a_time() -> None:
    """Each step looks at a bounded number, whatever is kept of them."""
    some = [Selector.parse(f"a/{number}/**") for number in range(2 * STEP)]
    assert [len(kept) for kept in without_contained([*some, Selector.parse("a/**")])] == [1, 0, 0]
    assert [len(kept) for kept in without_contained(some)] == [STEP, STEP]


def worst(stars: int) -> list[Selector]:
    """Every selector of as many ``*`` as given, and ``**``, that chooses a/a/…/a, of all lengths."""
    found = []
    for depth in range(1, MAX_SEGMENTS):
        for places in combinations(range(depth), stars):
            segments = ["*" if place in places else "a" for place in range(depth)]
            found.append(Selector("/".join([*segments, "**"]), exact=False))
    return found


def test_the_worst_look_up_is_bounded() -> None:
    """With every selector there can be that agrees with a topic, a look-up visits as many nodes as stated."""
    index: SelectorIndex[Selector] = SelectorIndex()
    for stars in range(MAX_STARS + 1):
        for selector in worst(stars):
            index.put(selector, selector)
    found = index.choosing("/".join("a" * MAX_SEGMENTS))
    assert len(found) > 40_000
    assert 40_000 < index.visits <= MOST_VISITS == 46_937


@pytest.mark.parametrize("streams", [10, 1_000])
def test_selectors_that_disagree_cost_a_look_up_nothing(streams: int) -> None:
    """However many streams there are with other wildcards, a topic visits the nodes on its own way."""
    index: SelectorIndex[int] = SelectorIndex()
    for stream in range(streams):
        for number in range(10):
            index.put(Selector.parse(f"*/{stream}/{number}/*"), stream)
            index.put(Selector.parse(f"room/{stream}-{number}/*/**"), stream)
    assert index.choosing("room/0/0/x") == [0]
    assert index.visits <= 5


def test_an_index_has_at_most_two_nodes_for_each_selector() -> None:
    """A run of segments in which no ways part is one edge: the memory does not depend on how deep selectors are."""
    deep = [f"{'a/' * shared}{'b/' * (30 - shared)}*" for shared in range(30)]
    index = indexed(list(parse_selectors(deep)))
    nodes, waiting = 0, [index._root]
    while waiting:
        nodes += 1
        waiting += waiting.pop().edges.values()
    assert nodes <= 2 * len(deep)


# -- topics ----------------------------------------------------------------------------------------------------------


def indexed_topics(these: list[str]) -> TopicIndex[str]:
    index: TopicIndex[str] = TopicIndex()
    for topic in these:
        index.put(topic, topic)
    return index


@many
@given(st.lists(topics, max_size=12), several)
def test_selectors_find_the_topics_that_they_match(these: list[str], wanted: list[Selector]) -> None:
    """No other, none left out, none twice, and no private one by a wildcard."""
    found = indexed_topics(these).chosen(wanted, 10_000)
    assert found is not None
    assert sorted(found) == sorted({topic for topic in these if matching(wanted, topic)})


@many
@given(st.lists(topics, max_size=12), st.lists(topics, max_size=12), several)
def test_a_topic_that_is_removed_is_found_no_more(these: list[str], gone: list[str], wanted: list[Selector]) -> None:
    """Whatever nodes were made for it; one that is not there may be removed."""
    index = indexed_topics(these + gone)
    for topic in gone:
        index.remove(topic)
    left = set(these) - set(gone)
    assert set(index.chosen(wanted, 10_000) or []) == {topic for topic in left if matching(wanted, topic)}
    for topic in left:
        index.remove(topic)
    assert index._root.edges == {}


@pytest.mark.parametrize("text", ["**", "*/*", "room/*", "room/**", "*/1"])
def test_too_many_topics_are_not_walked(text: str) -> None:
    """A look at how many there are is enough."""
    index = indexed_topics([f"room/{number}" for number in range(200)] + [f"{number}/1" for number in range(200)])
    assert index.chosen([Selector.parse(text)], 100) is None
    assert index.chosen([Selector.parse("room/7"), Selector.parse("7/**")], 100) == ["room/7", "7/1"]


def test_a_selection_is_made_once() -> None:
    """With its index; what is a selection already stays the same object."""
    selection = Selection.of(parse_selectors(["a", "b/*"]))
    assert Selection.of(selection) is selection
    assert selection.by_segments is selection.by_segments
    assert (selection.exact, selection.chooses("b/1"), selection.chooses("c")) == (False, True, False)
