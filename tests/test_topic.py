"""Topics and selectors: what is one, what it matches, and where two meet."""

from __future__ import annotations

import contextlib
import unicodedata
from itertools import product
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from trio_sse import topic as room
from trio_sse.errors import InvalidTopic, TooWild
from trio_sse.topic import (
    Selector,
    check_new_topic,
    check_topic,
    inbox,
    matching,
    meet_all,
    parse_selectors,
    topic_from_path,
)

many = settings(max_examples=400, deadline=None)
some = settings(max_examples=200, deadline=None)

# Few names and short paths, so that selectors and topics meet often.
segments = st.sampled_from(["a", "b", "user"])
topics = st.lists(segments, min_size=1, max_size=4).map("/".join)
patterns = st.tuples(
    st.lists(segments | st.just("*"), max_size=3), st.sampled_from([["a"], ["b"], ["user"], ["*"], ["**"]])
).map(lambda parts: "/".join(parts[0] + parts[1]))


def is_selector(text: str) -> bool:
    try:
        Selector.parse(text)
    except InvalidTopic:
        return False
    return True


selectors = patterns.filter(is_selector).map(Selector.parse)


def by_the_rules(pattern: list[str], topic: list[str]) -> bool:
    """Whether the pattern matches, by the letter of the rules and with no thought of speed."""
    if not pattern or not topic:
        return not pattern and not topic
    if pattern == ["**"]:
        return True
    return pattern[0] in ("*", topic[0]) and by_the_rules(pattern[1:], topic[1:])


# -- topics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("a", "lobby", "room/42", "a/b/c/d", "user", "user/ada", "user/a/b", "...", ".a", "a b", " ", "a.", "***"),
        *("a*", "*a", "%ff", "a?b#c", "日本/語", "é", "😀", "❤\ufe0f", "\u00a0", "-", "a" * 256, "é" * 128),
        "/".join("a" * 128),
    ],
)
def test_what_is_a_topic(text: str) -> None:
    """Any readable text is, in segments; only * and ** as whole segments are wildcards."""
    assert check_topic(text) == text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is empty"),
        *((text, "has the segment ''") for text in ("/", "/a", "a/", "a//b")),
        *((text, "has the segment '.'") for text in (".", "./a", "a/.", "a/./b")),
        *((text, "has the segment '..'") for text in ("..", "../a", "a/..", "a/../b")),
        *((text, "has no wildcards") for text in ("*", "a/*", "**", "a/**", "*/a", "user/*")),
        *((text, "has 257 bytes; 256 are allowed") for text in ("a" * 257, "é" * 128 + "a")),
        *((text, "normal form C") for text in ("e\u0301", "a/\u212b", "\u1100\u1161")),
        *((text, "surrogate") for text in ("\ud800", "a\udfff")),
    ],
)
def test_what_is_no_topic(text: str, rule: str) -> None:
    """The message names the rule that is broken."""
    with pytest.raises(InvalidTopic, match=rule):
        check_topic(text)


def test_a_topic_that_is_published_to_has_32_segments() -> None:
    """A deeper one may have been kept before there was a bound: it is a topic, and a selector of it."""
    assert check_new_topic("/".join("a" * 32)) == "/".join("a" * 32)
    deeper = "/".join("a" * 33)
    with pytest.raises(InvalidTopic, match="has 33 segments; 32 are allowed"):
        check_new_topic(deeper)
    assert topic_from_path(deeper.encode()) == deeper
    assert Selector.parse(deeper).matches(deeper)


@pytest.mark.parametrize(
    "text", ["*/*/*/**", "a/*/b/*/c/*", "/".join(["a"] * 31 + ["*"]), "/".join(["*"] * 3 + ["a"] * 28 + ["**"])]
)
def test_how_wild_a_selector_may_be(text: str) -> None:
    """Three times ``*``, beside a last ``**``, in 32 segments."""
    assert not Selector.parse(text).exact


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        *((text, "has 4 times \\*; 3 are allowed") for text in ("*/*/*/*", "*/*/*/*/**", "*/a/*/b/*/c/*/d")),
        *(("/".join([*["a"] * 32, last]), "has 33 segments; with wildcards 32 are allowed") for last in ("*", "**")),
    ],
)
def test_how_wild_a_selector_may_not_be(text: str, rule: str) -> None:
    """At each ``*`` a look-up goes two ways."""
    with pytest.raises(TooWild, match=rule):
        Selector.parse(text)


@pytest.mark.parametrize("category", ["Cc", "Cf", "Zl", "Zp"])
def test_a_topic_holds_nothing_unseen(category: str) -> None:
    """No control, no format character and no line separator: two topics that look the same are the same."""
    unseen = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) == category]
    for character in unseen:
        with pytest.raises(InvalidTopic, match=f"holds U\\+{ord(character):04X}"):
            check_topic(f"a{character}b")


@pytest.mark.parametrize("character", ["\0", "\n", "\x7f", "\x85", "\u202e", "\u200b", "\u200d", "\u2060", "\ufeff"])
def test_nor_does_a_selector(character: str) -> None:
    """Selectors obey the same rules."""
    with pytest.raises(InvalidTopic, match="the selector holds U"):
        Selector.parse(f"room/{character}/*")


@some
@given(st.text(max_size=20))
def test_any_text_is_a_topic_or_refused(text: str) -> None:
    """No text makes the check fail in another way."""
    with contextlib.suppress(InvalidTopic):
        assert check_topic(text) == text


@pytest.mark.parametrize("raw", [b"100%", b"a%zz", b"%4", b"%%41"])
def test_a_percent_sign_is_written_as_25(raw: bytes) -> None:
    """What is no escape is refused, not guessed at."""
    with pytest.raises(InvalidTopic, match="%25"):
        topic_from_path(raw)


@pytest.mark.parametrize(
    ("raw", "topic"),
    [
        *((b"lobby", "lobby"), (b"room/42", "room/42"), (b"room%2F42", "room/42"), (b"a%20b", "a b"), (b"a+b", "a+b")),
        *((b"%C3%A9", "é"), (b"\xc3\xa9", "é"), (b"%c3%a9", "é"), (b"%2541", "%41"), (b"100%25", "100%")),
    ],
)
def test_a_topic_is_read_from_a_path(raw: bytes, topic: str) -> None:
    """Percent-decoded once, from the bytes as they came; a plus is a plus."""
    assert topic_from_path(raw) == topic


@pytest.mark.parametrize("raw", [b"%ff", b"%fe", b"\xff", b"a%c3", b"%ed%a0%80", b"%c0%af"])
def test_a_path_is_utf_8(raw: bytes) -> None:
    """What is not is refused, and not turned into the one replacement character."""
    with pytest.raises(InvalidTopic, match="not percent-encoded UTF-8"):
        topic_from_path(raw)


@pytest.mark.parametrize("raw", [b"", b"/", b"a//b", b"a%2F%2Fb", b"%2e%2e", b"a/%2e/b", b"%2a", b"%00", b"%e2%80%ae"])
def test_an_encoded_path_obeys_the_rules(raw: bytes) -> None:
    """Percent-encoding hides nothing from the check."""
    with pytest.raises(InvalidTopic):
        topic_from_path(raw)


@some
@given(st.text(max_size=20))
def test_every_topic_can_be_written_in_a_path(text: str) -> None:
    """Quoted and read back, it is the same topic."""
    try:
        check_topic(text)
    except InvalidTopic:
        assume(False)
    assert topic_from_path(quote(text, safe="").encode()) == text


def test_an_inbox_is_private() -> None:
    """It lies under user/, where no wildcard reaches."""
    assert inbox("ada") == "user/ada"
    assert not matching(parse_selectors(["**", "*/*"]), inbox("ada"))


# -- selectors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["**/a", "a/**/b", "**/**", "**/*"])
def test_two_stars_stand_last(text: str) -> None:
    """Anywhere else they could mean many things."""
    with pytest.raises(InvalidTopic, match="only be the last"):
        Selector.parse(text)


@pytest.mark.parametrize("text", ["user/*", "user/**", "user/a/*", "user/*/a"])
def test_no_wildcard_is_written_under_user(text: str) -> None:
    """It could never match, so it is refused and not ignored."""
    with pytest.raises(InvalidTopic, match="wildcards never reach user/"):
        Selector.parse(text)


@pytest.mark.parametrize("text", ["", "/", "a//*", "*/", "../*", "./**", "a" * 255 + "/*"])
def test_a_selector_obeys_the_rules_of_topics(text: str) -> None:
    """Wildcards apart."""
    with pytest.raises(InvalidTopic, match="the selector"):
        Selector.parse(text)


@pytest.mark.parametrize(
    ("selector", "chosen", "not_chosen"),
    [
        ("a", ["a"], ["b", "a/a", "A", "aa"]),
        ("room/*", ["room/a", "room/*x"], ["room", "room/a/b", "rooms/a", "Room/a"]),
        ("*", ["a", "user"], ["a/b", "user/a"]),
        ("*/*", ["a/b", "b/user"], ["a", "a/b/c", "user/a"]),
        ("*/b", ["a/b"], ["a/c", "user/b"]),
        ("**", ["a", "a/b/c", "user", "users/a"], ["user/a", "user/a/b"]),
        ("room/**", ["room/a", "room/a/b"], ["room", "rooms/a"]),
        ("*/**", ["a/b", "a/b/c"], ["a", "user/a", "user/a/b"]),
        ("a/*/**", ["a/b/c", "a/b/c/d"], ["a/b", "a"]),
        ("user/ada", ["user/ada"], ["user/bob", "user/ada/x", "user"]),
        ("user", ["user"], ["user/ada"]),
        ("a*", ["a*"], ["ab", "a"]),
    ],
)
def test_what_a_selector_chooses(selector: str, chosen: list[str], not_chosen: list[str]) -> None:
    """* is one segment, a last ** one or more, and neither reaches under user/."""
    parsed = Selector.parse(selector)
    assert [topic for topic in chosen + not_chosen if parsed.matches(topic)] == chosen


@many
@given(selectors, topics)
def test_matching_obeys_the_rules(selector: Selector, topic: str) -> None:
    """It agrees with a matcher written from the rules, and no wildcard ever matches a private topic."""
    expected = by_the_rules(selector.text.split("/"), topic.split("/"))
    if topic.startswith("user/"):
        expected = selector.text == topic
    assert selector.matches(topic) == expected


def test_selectors_are_kept_once_and_in_order() -> None:
    """Saying one twice says nothing more."""
    assert [selector.text for selector in parse_selectors(["b", "a/*", "b", "a"])] == ["b", "a/*", "a"]


def test_one_wrong_selector_refuses_them_all() -> None:
    """Nothing is left out in silence."""
    with pytest.raises(InvalidTopic):
        parse_selectors(["a", "**/b"])


# -- meeting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "met"),
    [
        *(("a", "a", "a"), ("a", "b", None), ("a", "*", "a"), ("a", "**", "a"), ("*", "**", "*"), ("**", "**", "**")),
        *(("a/*", "*/b", "a/b"), ("a/*", "b/*", None), ("a/**", "*/b", "a/b"), ("a/**", "*/b/**", "a/b/**")),
        *(("a/**", "a", None), ("a/**", "*", None), ("*/**", "*", None), ("a/*", "a/*/*", None)),
        *(("user/a", "**", None), ("user/a", "user/a", "user/a"), ("user/a", "*/a", None), ("user", "*", "user")),
    ],
)
def test_where_two_selectors_meet(one: str, other: str, met: str | None) -> None:
    """In one selector or none, the same from both sides."""
    expected = None if met is None else Selector.parse(met)
    assert Selector.parse(one).meet(Selector.parse(other)) == expected
    assert Selector.parse(other).meet(Selector.parse(one)) == expected


@many
@given(selectors, selectors, topics)
@example(Selector.parse("*/**"), Selector.parse("**"), "a/b/a/b")
def test_what_met_chooses_what_both_choose(one: Selector, other: Selector, topic: str) -> None:
    """A topic is chosen by the meeting exactly if both sides choose it."""
    met = one.meet(other)
    assert (met is not None and met.matches(topic)) == (one.matches(topic) and other.matches(topic))


@many
@given(selectors, selectors)
def test_what_met_is_a_selector(one: Selector, other: Selector) -> None:
    """It can be written down and read again, and there is a topic for it."""
    met = one.meet(other)
    if met is not None:
        assert Selector.parse(met.text) == met
        topic = met.text.replace("**", "a").replace("*", "a")
        assert one.matches(topic)
        assert other.matches(topic)


@many
@given(selectors, selectors, selectors)
def test_meeting_has_no_order(one: Selector, other: Selector, third: Selector) -> None:
    """Which meets which first makes no difference, and meeting oneself changes nothing."""
    assert one.meet(one) == one
    assert one.meet(other) == other.meet(one)
    left, right = one.meet(other), other.meet(third)
    assert (left and left.meet(third)) == (right and one.meet(right))


@pytest.mark.parametrize(
    ("one", "other", "size"),
    [
        (f"{'a' * 127}/*", f"*/{'b' * 128}", 256),
        (f"{'a' * 127}/*", f"*/{'b' * 129}", None),
        (f"{'a' * 127}/**", f"*/{'b' * 126}/**", 257),  # the shortest topic it chooses has 256
        (f"{'a' * 127}/**", f"*/{'b' * 127}/**", None),
    ],
)
def test_selectors_do_not_meet_in_what_is_too_long(one: str, other: str, size: int | None) -> None:
    """If every topic that both choose would be longer than a topic may be, there is none."""
    met = Selector.parse(one).meet(Selector.parse(other))
    assert (met and len(met.text)) == size


@many
@given(st.lists(selectors, max_size=4), st.lists(selectors, max_size=4), topics)
def test_what_many_meet_in(asked: list[Selector], allowed: list[Selector], topic: str) -> None:
    """What is asked for, cut down to what is allowed: each selector once, and no topic more or less."""
    met = meet_all(asked, allowed)
    assert len(set(met)) == len(met)
    assert matching(met, topic) == (matching(asked, topic) and matching(allowed, topic))


def test_meeting_takes_any_iterable() -> None:
    """Also one that can be walked only once."""
    everything = parse_selectors(["a", "b"])
    assert meet_all(iter(everything), iter(everything)) == everything


# -- work ----------------------------------------------------------------------------------------------------------


class Counting(str):
    """A segment that counts how often any is compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Counting.compared += 1
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        Counting.compared += 1
        return str.__ne__(self, other)

    __hash__ = str.__hash__


class Text(str):
    """A topic or selector whose segments count."""

    __slots__ = ()

    def split(self, *args: Any) -> list[str]:
        return [Counting(segment) for segment in str.split(self, *args)]


@pytest.mark.parametrize("last", ["*", "**", "a", "b"])
@pytest.mark.parametrize("first", ["*", "a"])
def test_matching_is_linear(first: str, last: str) -> None:
    """A selector full of wildcards compares each segment of a topic a few times, as does one of names."""
    text = "/".join([first, *["*"] * 125, last])
    selector = Selector(Text(text), exact=False)
    Counting.compared = 0
    selector.matches(Text("/".join("a" * 127)))
    assert Counting.compared <= 4 * 127


@pytest.mark.parametrize("last", ["*", "**", "a", "b"])
def test_meeting_is_linear(last: str) -> None:
    """As does meeting another selector."""
    one = Selector(Text("/".join(["*"] * 126 + [last])), exact=False)
    other = Selector(Text("/".join("a" * 126 + "*")), exact=False)
    Counting.compared = 0
    one.meet(other)
    assert Counting.compared <= 8 * 127


def test_what_was_checked_is_remembered_within_bounds() -> None:
    """The memory of checked topics has a size, so that callers cannot fill it."""
    info = room._segments.cache_info()
    assert info.maxsize == 4096
    assert info.currsize <= 4096


# -- one within another ----------------------------------------------------------------------------------------------

EVERY_TOPIC = ["/".join(names) for count in range(1, 7) for names in product(["a", "b", "user"], repeat=count)]


@many
@given(selectors, selectors)
def test_a_selector_contains_what_chooses_no_other_topics(one: Selector, other: Selector) -> None:
    """With the topics of two names and ``user``, deeper than the selectors, as the judge of it."""
    assert one.contains(other) == all(one.matches(topic) for topic in EVERY_TOPIC if other.matches(topic))


@given(selectors, selectors)
def test_two_that_contain_each_other_are_the_same(one: Selector, other: Selector) -> None:
    """So of several that contain each other, one is left."""
    assert not (one.contains(other) and other.contains(one)) or one == other
