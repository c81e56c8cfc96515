"""Events and their IDs: what can be built, and what cannot."""

from __future__ import annotations

import dataclasses
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sse.errors import InvalidEvent, InvalidEventID
from trio_sse.event import MAX_NAME, MAX_RETRY_MS, ORIGIN, SEQ_BITS, Event, EventID

CONTROLS = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) == "Cc"]
MAX_SEQ = (1 << SEQ_BITS) - 1
MAX_MS = 10**15 - 1

many = settings(max_examples=200, deadline=None)
ids = st.builds(EventID, st.integers(0, MAX_MS), st.integers(0, MAX_SEQ))
clocks = st.lists(st.integers(-5, 5), max_size=40)


# -- EventID ---------------------------------------------------------------------------------------------------


def test_an_id_prints_as_time_dash_number() -> None:
    """The printed form is the one Redis Streams use."""
    assert str(EventID(1_700_000_000_000, 3)) == "1700000000000-3"


@many
@given(ids)
def test_an_id_is_parsed_from_what_it_prints(id: EventID) -> None:
    """Printing and parsing are each other's inverse."""
    assert EventID.parse(str(id)) == id


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "1", "1-", "-1", "1--1", "1-1-1", "+1-1", "-1-1", "1-+1", " 1-1", "1-1 ", "1-1\n", "1 -1"),
        *("1_0-1", "1.0-1", "0x1-1", "1e3-1", "1\u20131", "\u0661-\u0661", "\uff11-\uff11", "\u00b2-1", "$", "*"),
        *("9" * 16 + "-1", "1-" + "9" * 16, "9" * 5000 + "-1", "1-1\0", "earliest"),
    ],
)
def test_nothing_looser_is_an_id(text: str) -> None:
    """Signs, spaces, other scripts' digits and more than fifteen digits are no ID of ours."""
    with pytest.raises(InvalidEventID, match="looks like"):
        EventID.parse(text)


@many
@given(st.text(max_size=20))
def test_any_text_is_an_id_or_refused(text: str) -> None:
    """No text makes the parser fail in another way."""
    try:
        id = EventID.parse(text)
    except InvalidEventID:
        return
    assert id >= ORIGIN


@many
@given(ids, ids)
def test_ids_are_ordered_by_time_then_number(one: EventID, other: EventID) -> None:
    """The order is that of the pair, not of the text: 9-1 comes before 10-1."""
    assert (one < other) == ((one.ms, one.seq) < (other.ms, other.seq))


@many
@given(ids, ids)
def test_packed_keeps_the_order(one: EventID, other: EventID) -> None:
    """The packed integers compare as the IDs do."""
    assert (one.packed() < other.packed()) == (one < other)


@many
@given(ids)
def test_packed_fits_a_signed_integer_of_64_bits(id: EventID) -> None:
    """SQLite can hold every ID, and gives the same one back."""
    assert 0 <= id.packed() < 2**63
    assert EventID.unpacked(id.packed()) == id


@pytest.mark.parametrize("ms", [0, 4, MAX_MS - 1, MAX_MS])
def test_a_number_no_event_has_packs_as_the_highest(ms: int) -> None:
    """A cursor may have one of fifteen digits; it still comes before the next millisecond."""
    cursor = EventID.parse(f"{ms}-{'9' * 15}")
    assert cursor.packed() < 2**63
    assert EventID.unpacked(cursor.packed()) == EventID(ms, MAX_SEQ)


def test_the_origin_is_before_every_event() -> None:
    """It is a position, so no event is there."""
    assert EventID.parse("0-0") == ORIGIN < ORIGIN.next(0) == EventID(0, 1)


def test_a_later_clock_begins_at_one() -> None:
    """The first event of a millisecond has number 1; 0 is left for positions."""
    assert EventID(10, 7).next(11) == EventID(11, 1)


def test_a_clock_that_stands_still_counts_on() -> None:
    """Events of one millisecond are numbered."""
    assert EventID(10, 7).next(10) == EventID(10, 8)


def test_a_clock_that_goes_back_counts_on() -> None:
    """IDs do not go back with the clock."""
    assert EventID(10, 7).next(3) == EventID(10, 8)


def test_a_full_millisecond_borrows_the_next() -> None:
    """More events than a millisecond has numbers for go on in the next one."""
    assert EventID(10, MAX_SEQ).next(10) == EventID(11, 1)


def test_the_last_number_of_a_millisecond_is_used() -> None:
    """The highest number that packs is still given."""
    assert EventID(10, MAX_SEQ - 1).next(10) == EventID(10, MAX_SEQ)


def test_the_first_event_follows_a_position() -> None:
    """An event at a position's own millisecond comes after the position."""
    assert EventID(10, 0).next(10) == EventID(10, 1)


@many
@given(ids.filter(lambda id: id.ms < MAX_MS - 100), clocks)
def test_ids_only_rise_whatever_the_clock_does(first: EventID, steps: list[int]) -> None:
    """Each ID is above the one before, packs in that order, and is no position."""
    now, last = first.ms, first
    for step in steps:
        now += step
        id = last.next(now)
        assert id > last
        assert id.packed() > last.packed()
        assert 1 <= id.seq <= MAX_SEQ
        last = id


# -- Event -----------------------------------------------------------------------------------------------------


def test_only_data_is_needed() -> None:
    """The rest has defaults: the type of a message, no ID and no retry."""
    assert Event("hello") == Event(data="hello", type="message", id=None, retry=None)


def test_an_event_does_not_change() -> None:
    """An event is a value: it can be shared and hashed."""
    event = Event("hello")
    assert hash(event) == hash(Event("hello"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.data = "other"  # type: ignore[misc]


@pytest.mark.parametrize("given", ["a\r\nb", "a\rb", "a\nb"])
def test_line_ends_in_data_become_newlines(given: str) -> None:
    """The format knows one line end inside data, so an event holds no other."""
    assert Event(given).data == "a\nb"


def test_a_cr_that_ends_data_is_a_line_end() -> None:
    """CR CR LF is two line ends, as in the standard."""
    assert Event("a\r\r\nb\r").data == "a\n\nb\n"


@pytest.mark.parametrize("text", ["\0", "\x1b[2J", "\u2028", "\x85", "\f\v\x1c", "\ufeff", "😀", "\u202e"])
def test_data_may_hold_any_text(text: str) -> None:
    """Only lone surrogates, which are no text, are refused in data."""
    assert Event(text).data == text


@pytest.mark.parametrize("field", ["type", "id"])
def test_no_control_character_is_in_a_name(field: str) -> None:
    """CR, LF, NUL and all others of their category cannot be built into a type or an ID, wherever they stand."""
    for control in CONTROLS:
        for text in (control, "a" + control, control + "a", f"a{control}data: b"):
            with pytest.raises(InvalidEvent, match=f"{field} holds the control character U\\+{ord(control):04X}"):
                Event("", **{field: text})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["data", "type", "id"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\ude00\ud83d"])
def test_half_a_surrogate_pair_is_refused(field: str, text: str) -> None:
    """UTF-8 cannot say it, so it is refused when the event is built and not when it is sent."""
    with pytest.raises(InvalidEvent, match=f"{field} holds half of a surrogate pair"):
        Event(**{"data": "", field: text})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["type", "id"])
def test_a_name_has_a_longest_length(field: str) -> None:
    """The limit itself passes, one more does not."""
    Event("", **{field: "😀" * MAX_NAME})  # type: ignore[arg-type]
    with pytest.raises(InvalidEvent, match="1025 characters; 1024 are allowed"):
        Event("", **{field: "x" * (MAX_NAME + 1)})  # type: ignore[arg-type]


def test_a_type_is_not_empty() -> None:
    """On the wire an empty type would say the default one, so it is refused."""
    with pytest.raises(InvalidEvent, match="type is empty"):
        Event("", type="")


def test_an_id_may_be_empty() -> None:
    """An empty ID has a meaning of its own: it resets the reader's."""
    assert Event("", id="").id == ""


@pytest.mark.parametrize("retry", [0, 1, MAX_RETRY_MS])
def test_retry_is_milliseconds(retry: int) -> None:
    """Both ends of the range pass."""
    assert Event("", retry=retry).retry == retry


@pytest.mark.parametrize("retry", [-1, MAX_RETRY_MS + 1, 10**400, True, False, 1.0, float("nan"), "1", "1\ndata: x"])
def test_any_other_retry_is_refused(retry: int) -> None:
    """Only whole numbers from 0 to what a browser's timer can hold; a bool is not one."""
    with pytest.raises(InvalidEvent, match="retry is a whole number"):
        Event("", retry=retry)


def test_what_was_received_is_taken_as_it_is() -> None:
    """A foreign stream may hold names we would not build; they are kept, not refused and not stripped."""
    event = Event.received("a", "\x1btype", "\x07" + "i" * (MAX_NAME + 1), 5)
    assert (event.type, event.id) == ("\x1btype", "\x07" + "i" * (MAX_NAME + 1))


@pytest.mark.parametrize(
    ("received", "says"),
    [
        (("a", "\x1btype", None, None), "U\\+001B"),
        (("a", "", None, None), "type is empty"),
        (("a", "message", "i" * (MAX_NAME + 1), None), "are allowed"),
        (("a", "message", None, -1), "whole number"),
        (("\ud800", "message", None, None), "surrogate"),
    ],
)
def test_what_was_received_can_be_checked(received: tuple[str, str, str | None, int | None], says: str) -> None:
    """By the rules of what can be built."""
    with pytest.raises(InvalidEvent, match=says):
        Event.received(*received).check()
    Event.received("a", "type", "1", 5).check()


def test_a_received_event_equals_one_that_was_built() -> None:
    """Where both can be had they are the same value."""
    assert Event.received("a", "message", None, None) == Event("a")
