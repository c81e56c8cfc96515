"""The wire format in both directions: exact bytes out, and the same events in whatever the cuts."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import combinations, islice, pairwise, product, zip_longest
from typing import Literal

import httpx
import pytest
from httpx_sse import EventSource, ServerSentEvent
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_sse import wire
from trio_sse.errors import InvalidEvent, InvalidInput, TooLarge
from trio_sse.event import MAX_NAME, MAX_RETRY_MS, Event
from trio_sse.wire import HEARTBEAT, Decoder, encode, opening

BOM = b"\xef\xbb\xbf"

# -- what tests are made of --------------------------------------------------------------------------------------


def decode(*chunks: bytes) -> list[Event]:
    """The events of a stream that comes in these chunks."""
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def cut(raw: bytes, places: Iterable[int]) -> list[bytes]:
    """The same bytes, cut at these places."""
    return [raw[begin:end] for begin, end in pairwise([0, *sorted(places), len(raw)])]


def one_by_one(raw: bytes) -> list[bytes]:
    """The same bytes, one at a time."""
    return cut(raw, range(1, len(raw)))


def by_the_standard(raw: bytes) -> list[Event]:
    """The events of a whole stream, by the letter of the standard and with no thought of speed."""
    lines = re.split("\r\n|\n|\r", raw.decode("utf-8", "replace").removeprefix("\ufeff"))[:-1]
    events: list[Event] = []
    data, type, id, retry = "", "", None, None
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "":
            if data:
                events.append(Event.received(data[:-1], type or "message", id, retry))
            data, type, id, retry = "", "", None, None
        elif name == "data":
            data += value + "\n"
        elif name == "event":
            type = value
        elif name == "id" and "\0" not in value:
            id = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            retry = min(int(value), MAX_RETRY_MS)
    return events


texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\r\n\0\x1b\f\v\x1c\x1d\x1e\x85\u2028\u2029\ufeff\u200d :a😀"),
    ),
    max_size=30,
)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(
    ["\u2028", "\ufeff", " ", "  a ", ":", "data: x", "😀"]
)
events = st.builds(
    Event,
    texts,
    type=names.filter(bool),
    id=st.none() | names,
    retry=st.none() | st.integers(0, MAX_RETRY_MS),
)
streams = st.lists(
    st.sampled_from(
        [
            *(b"data", b"event", b"id", b"retry", b"x", b":", b": ", b" ", b"\r", b"\n", b"\r\n", b"\n\n", BOM),
            *(b"0", b"10", b"\0", b"\xff", b"\xe2\x80", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"\xc2\x85", b"\f"),
            *(b"data: a\n", b"data\n", b"id: 1\n", b"id\n", b"event: e\r\n", b"retry: 7\r", b"data:\xf0\x9f\r"),
        ]
    ),
    max_size=30,
).map(b"".join)
blocks = st.lists(
    st.sampled_from(
        [
            *(b"data: a\n\n", b"data:b\n\n", b"data:  c\n\n", b"data: \n\n", b"data:\n\n", b"data: a\ndata: b\n\n"),
            *(b"id: 1\ndata: a\n\n", b"id:\ndata: a\n\n", b"id: 2\0\ndata: a\n\n", b"id: 3\nid: 4\ndata: a\n\n"),
            *(b"event: e\ndata: a\n\n", b"event:\ndata: a\n\n", b"id: 5\nevent: e\ndata: a\n\n", b"data: a\nid: 6\n\n"),
            *(b"event: e\nid: 7\ndata: a\n\n", b"id: 8\n\n", b"event: e\n\n", b"retry: 5\ndata: a\n\n", b":\n", b"\n"),
            *(b"data: a\r\n\r\n", b"data: a\r\r", b"data: a\n\r", b"data: \xff\n\n", b"id: \xff\ndata: a\n\n", BOM),
            *(b"data: " + b"x" * 20 + b"\n\n", b"event: " + b"y" * 20 + b"\ndata: a\n\n", b"data", b"data: a\n", b"\r"),
        ]
    ),
    max_size=12,
).map(b"".join)
many = settings(max_examples=300, deadline=None)


@st.composite
def cuts(draw: st.DrawFn, raws: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """Bytes, whole and cut at random."""
    raw = draw(raws)
    return raw, cut(raw, draw(st.lists(st.integers(0, len(raw)), max_size=12)))


# -- encode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "frame"),
    [
        (Event("hello"), b"data: hello\n\n"),
        (Event(""), b"data: \n\n"),
        (Event("a\nb"), b"data: a\ndata: b\n\n"),
        (Event("a\r\nb\rc"), b"data: a\ndata: b\ndata: c\n\n"),
        (Event("\n"), b"data: \ndata: \n\n"),
        (Event(" a"), b"data:  a\n\n"),
        (Event("x", type="message"), b"data: x\n\n"),
        (Event("x", type="tick"), b"event: tick\ndata: x\n\n"),
        (Event("x", id=""), b"id: \ndata: x\n\n"),
        (Event("x", retry=0), b"retry: 0\ndata: x\n\n"),
        (Event("x", "t", "1-1", 5), b"id: 1-1\nevent: t\nretry: 5\ndata: x\n\n"),
        (Event("\u2028é😀"), "data: \u2028é😀\n\n".encode()),
    ],
)
def test_an_event_is_these_bytes(event: Event, frame: bytes) -> None:
    """Order id, event, retry, data; one space after each colon; LF only; a blank line at the end."""
    assert encode(event) == frame


def test_another_id_may_be_given() -> None:
    """It takes the place of the event's own, if that has one."""
    assert encode(Event("x", id="mine"), id="17-3") == encode(Event("x"), id="17-3") == b"id: 17-3\ndata: x\n\n"


@many
@given(events)
def test_a_block_ends_once(event: Event) -> None:
    """Whatever an event holds, its bytes have one blank line, at their end."""
    assert re.split(rb"\r\n|\n|\r", encode(event)).count(b"") == 2


@many
@given(st.lists(events, max_size=4), st.data())
def test_what_is_encoded_is_decoded(sent: list[Event], data: st.DataObject) -> None:
    """Every event that can be built comes back as it was, whatever the cuts."""
    raw = b"".join(map(encode, sent))
    places = data.draw(st.lists(st.integers(0, len(raw)), max_size=8))
    assert decode(*cut(raw, places)) == sent


@many
@given(events)
def test_a_block_may_come_byte_by_byte(event: Event) -> None:
    """An event comes back also if every byte comes alone."""
    assert decode(*one_by_one(encode(event))) == [event]


@many
@given(cuts(streams))
def test_what_was_decoded_can_be_encoded(case: tuple[bytes, list[bytes]]) -> None:
    """Events of a foreign stream pass on unharmed, though not all of them could be built."""
    received = decode(case[0])
    assert decode(*map(encode, received)) == received


def test_the_longest_event_there_can_be_is_decoded() -> None:
    """Names at their limits and a mebibyte of data pass the decoder's own."""
    assert wire.MAX_DATA == 1024 * 1024
    event = Event("x" * wire.MAX_DATA, type="😀" * MAX_NAME, id="é" * MAX_NAME, retry=MAX_RETRY_MS)
    assert decode(encode(event)) == [event]


@many
@given(events)
def test_the_bytes_of_data_lines_are_known_before_they_are_made(event: Event) -> None:
    """What is counted is what is written."""
    assert wire.framed_length(event.data) == len(encode(Event(event.data))) - len(b"\n")


def test_a_stream_opens_with_a_comment_a_retry_and_a_cursor() -> None:
    """The first bytes give a browser something to wake for, and something to resume with."""
    assert opening(3000, "17-0") == b": stream\nretry: 3000\nid: 17-0\n\n"


def test_a_stream_without_ids_opens_without_a_cursor() -> None:
    """Then there is nothing to resume with."""
    assert opening(3000) == b": stream\nretry: 3000\n"


def test_an_opening_dispatches_nothing() -> None:
    """It moves the cursor and the reconnection time, and no event is seen."""
    decoder = Decoder()
    assert list(decoder.feed(opening(3000, "17-0"))) == []
    assert (decoder.last_event_id, decoder.retry) == ("17-0", 3000)


# -- lines and cuts ------------------------------------------------------------------------------------------------

EXAMPLE = BOM + "id: 1\r\nevent: é\rdata: 😀\ndata\r\r\n: c\n\ndata:  x\r\n\r\nretry: 5\rid\ndata: z\r\r".encode()
EXAMPLE_EVENTS = [Event("😀\n", "é", "1"), Event(" x"), Event("z", id="", retry=5)]


@many
@given(cuts(streams))
@example((b"data: x\r\n\r\n", [b"data: x\r", b"\n\r", b"\n"]))
@example((b"\ndata: x\n\n", [b"", b"\ndata: x\n", b"\n"]))
@example((BOM + b"data: x\n\n", [b"\xef", b"\xbb", b"\xbfdata: x\n\n"]))
def test_any_bytes_mean_what_the_standard_says(case: tuple[bytes, list[bytes]]) -> None:
    """Ours and a parser written from the standard's text agree on any bytes, whatever the cuts."""
    raw, chunks = case
    assert decode(*chunks) == by_the_standard(raw)


class LineByLine(Decoder):
    """Takes no block whole."""

    def _whole(self) -> None:
        return None


@many
@given(cuts(blocks), st.sampled_from([15, 1000]), st.sampled_from(["replace", "strict"]))
def test_a_block_means_what_its_lines_mean(
    case: tuple[bytes, list[bytes]], max_data: int, errors: Literal["replace", "strict"]
) -> None:
    """Taken whole or line by line: the same events, the same cursor after each, and the same fault at its place."""
    told: list[list[object]] = []
    for kind in (Decoder, LineByLine):
        decoder = kind(max_data=max_data, errors=errors)
        seen: list[object] = []
        for chunk in [*case[1], b"data: last\n\n"]:
            try:
                for event in decoder.feed(chunk):
                    seen.append((event, decoder.last_event_id, decoder.retry))
            except InvalidInput as fault:
                seen.append(str(fault))
            seen.append((decoder.last_event_id, decoder.retry, decoder.has_unfinished_data))
        told.append(seen)
    assert told[0] == told[1]


def test_most_blocks_are_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the first of a stream of ours, if it is not cut, so that decoding it is cheap."""
    decoder = Decoder()
    list(decoder.feed(encode(Event("first"))))
    monkeypatch.setattr(decoder, "_line", None)
    sent = [Event("a"), Event("b", type="t"), Event("c", id="1-1"), Event("d", type="t", id="")]
    assert list(decoder.feed(b"".join(map(encode, sent)))) == sent


def test_every_run_of_line_ends() -> None:
    """Any six CRs and LFs in a row mean the same at once, byte by byte, and to the standard."""
    for run in product([b"\r", b"\n"], repeat=6):
        raw = b"data: a" + b"".join(run[:3]) + b"data: b" + b"".join(run[3:])
        assert decode(raw) == decode(*one_by_one(raw)) == by_the_standard(raw), raw


def test_one_stream_under_every_two_cuts() -> None:
    """Between CR and LF, inside a character, inside the byte order mark: no cut changes anything."""
    for places in combinations(range(len(EXAMPLE) + 1), 2):
        assert decode(*cut(EXAMPLE, places)) == EXAMPLE_EVENTS, places


def test_one_stream_byte_by_byte() -> None:
    """Nor do cuts everywhere, with empty chunks between."""
    chunks = [chunk for byte in one_by_one(EXAMPLE) for chunk in (byte, b"")]
    assert decode(*chunks) == EXAMPLE_EVENTS


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
def test_each_line_end_ends_a_line(end: bytes) -> None:
    """CRLF, LF and CR all do."""
    assert decode(b"data: a" + end + b"data: b" + end + end) == [Event("a\nb")]


def test_line_ends_may_be_mixed() -> None:
    """One stream may use all three."""
    assert decode(b"data: a\rdata: b\r\ndata: c\n\r") == [Event("a\nb\nc")]


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
def test_a_stream_may_begin_with_blank_lines(end: bytes) -> None:
    """They dispatch nothing, and hide nothing."""
    assert decode(end + end + b"data: a\n\n") == [Event("a")]


def test_cr_lf_is_one_line_end() -> None:
    """Else every line would be followed by a blank one, and every event cut short."""
    assert decode(b"data: a\r\ndata: b\r\n\r\n") == [Event("a\nb")]


def test_an_event_that_ends_with_cr_does_not_wait() -> None:
    """It is dispatched with the CR; whether an LF follows makes no difference to it."""
    decoder = Decoder()
    assert list(decoder.feed(b"data: a\r\r")) == [Event("a")]
    assert list(decoder.feed(b"\ndata: b\r\n\r")) == [Event("b")]
    assert list(decoder.feed(b"\n")) == []


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\f", "\v", "\x1c", "\x1d", "\x1e", "\0"])
def test_no_other_character_ends_a_line(character: str) -> None:
    """What str.splitlines would split at is ordinary text."""
    assert decode(f"data: a{character}data: b\n\n".encode()) == [Event(f"a{character}data: b")]


def test_a_byte_order_mark_may_open_a_stream() -> None:
    """One at the very start is no part of the first line."""
    assert decode(BOM + b"data: a\n\n") == [Event("a")]


def test_only_one_byte_order_mark_is_taken_away() -> None:
    """A second one makes the first line's field an unknown one."""
    assert decode(BOM + BOM + b"data: a\n\ndata: b\n\n") == [Event("b")]


def test_a_byte_order_mark_later_is_text() -> None:
    """Also at the start of a later chunk, and inside data."""
    assert decode(b"\n", BOM + b"data: a\n\n", b"data: " + BOM + b"\n\n") == [Event("\ufeff")]


# -- fields --------------------------------------------------------------------------------------------------------


def test_one_space_after_the_colon_is_taken_away() -> None:
    """One, not all, and no other white space."""
    assert decode(b"data:a\ndata: b\ndata:  c\ndata:\td\n\n") == [Event("a\nb\n c\n\td")]


def test_a_field_without_a_colon_is_empty() -> None:
    """The whole line is its name."""
    assert decode(b"event: x\nevent\ndata\ndata\n\n") == [Event("\n")]


def test_only_the_first_colon_divides() -> None:
    """The rest is value."""
    assert decode(b"data: a: b:\n\n") == [Event("a: b:")]


def test_comments_say_nothing() -> None:
    """A line that begins with a colon is ignored, within an event and between them."""
    assert decode(b": hi\ndata: a\n:data: no\n:\ndata: b\n\n:\n\n") == [Event("a\nb")]


@pytest.mark.parametrize("name", [b"Data", b"DATA", b"data ", b" data", b"dat", b"datax", b"\xffdata", b"d\0ata"])
def test_other_fields_say_nothing(name: bytes) -> None:
    """Names are exact: case, spaces and all."""
    assert decode(name + b": x\n\n", b"data: y\n\n") == [Event("y")]


def test_empty_data_is_an_event() -> None:
    """One data line with nothing in it dispatches an event with nothing in it."""
    assert decode(b"data\n\n", b"data:\n\n", b"data: \n\n") == [Event("")] * 3


def test_no_data_is_no_event() -> None:
    """A type and an ID alone dispatch nothing, and the type does not reach the next event."""
    assert decode(b"event: x\nid: 1\n\n", b"data: a\n\n") == [Event("a")]


def test_the_last_type_counts() -> None:
    """A second type in one event replaces the first; an empty one means the default."""
    assert decode(b"event: a\nevent: b\ndata: x\n\nevent: a\nevent:\ndata: y\n\n") == [
        Event("x", type="b"),
        Event("y"),
    ]


def test_an_id_with_nul_is_ignored() -> None:
    """The one before it in the same event still stands."""
    assert decode(b"id: 1\nid: 2\x003\ndata: x\n\n") == [Event("x", id="1")]


def test_an_event_tells_only_its_own_id() -> None:
    """The stream's last event ID persists on the decoder, not on the events after."""
    decoder = Decoder()
    seen = [(event, decoder.last_event_id) for event in decoder.feed(b"id: 7\ndata: a\n\ndata: b\n\n")]
    assert seen == [(Event("a", id="7"), "7"), (Event("b"), "7")]


def test_an_empty_id_resets_the_last_event_id() -> None:
    """The standard's way to say: from now on there is nothing to resume with."""
    decoder = Decoder()
    list(decoder.feed(b"id: 7\ndata: a\n\nid\n\n"))
    assert decoder.last_event_id == ""


def test_a_block_without_data_moves_the_last_event_id() -> None:
    """That is how a stream opens with a position."""
    decoder = Decoder()
    assert list(decoder.feed(b"id: 7\n\n")) == []
    assert decoder.last_event_id == "7"


def test_an_unfinished_event_is_not_dispatched() -> None:
    """A stream that ends before the blank line ends without that event."""
    assert decode(b"data: a\n\ndata: b\n") == [Event("a")]


def test_an_unfinished_event_does_not_move_the_last_event_id() -> None:
    """Resuming after an event that never came whole would lose it in silence."""
    decoder = Decoder()
    list(decoder.feed(b"id: 7\ndata: a\n\nid: 8\ndata: b\n"))
    assert decoder.last_event_id == "7"


@pytest.mark.parametrize(
    ("value", "retry"),
    [
        *((b"0", 0), (b"10", 10), (b"00010", 10), (b"0" * 5000 + b"7", 7)),
        *((b"2147483647", MAX_RETRY_MS), (b"2147483648", MAX_RETRY_MS), (b"9" * 5000, MAX_RETRY_MS)),
    ],
)
def test_retry_is_digits(value: bytes, retry: int) -> None:
    """Any number of ASCII digits; more than a browser's timer can hold is the most it can."""
    decoder = Decoder()
    (event,) = decoder.feed(b"retry: " + value + b"\ndata: x\n\n")
    assert (event.retry, decoder.retry) == (retry, retry)


@pytest.mark.parametrize(
    "value",
    [b"", b"10x", b"-1", b"+1", b" 1", b"1 ", b"1.5", b"1_0", b"1e3", b"\xd9\xa3", b"\xef\xbc\x91", b"\xc2\xb2"],
)
def test_any_other_retry_is_ignored(value: bytes) -> None:
    """Signs, spaces, and digits of other scripts make no number."""
    decoder = Decoder()
    (event,) = decoder.feed(b"retry: " + value + b"\ndata: x\n\n")
    assert (event.retry, decoder.retry) == (None, None)


def test_a_retry_alone_is_kept() -> None:
    """It needs no event, and no blank line, to be heeded."""
    decoder = Decoder()
    assert list(decoder.feed(b"retry: 10\n")) == []
    assert decoder.retry == 10


@pytest.mark.parametrize("before", [b"", b"id: 1\n\n", b"id: 1\n", b"event: x\n", b"retry: 5\n", b"data: a\n\n"])
def test_a_heartbeat_dispatches_nothing(before: bytes) -> None:
    """Wherever between lines it comes."""
    decoder = Decoder()
    list(decoder.feed(before))
    assert list(decoder.feed(HEARTBEAT)) == []


# -- text ----------------------------------------------------------------------------------------------------------


def test_invalid_utf_8_is_replaced() -> None:
    """A reader gets U+FFFD in its place, as the standard asks, and the rest of the line."""
    assert decode(b"event: \xff\nid: \xc3\ndata: a\xe2\x82b\xed\xa0\x80\n\n") == [
        Event("a\ufffdb\ufffd\ufffd\ufffd", type="\ufffd", id="\ufffd")
    ]


@pytest.mark.parametrize("line", [b"data: \xff", b"event: a\xc3", b"id: \xe2\x82", b"data: \xed\xa0\x80"])
def test_invalid_utf_8_is_refused_when_strict(line: bytes) -> None:
    """A publisher is told, instead of having other text published than it sent."""
    decoder = Decoder(errors="strict")
    with pytest.raises(InvalidEvent, match="not UTF-8"):
        list(decoder.feed(line + b"\ndata: x\n\n"))


def test_strict_minds_no_cut_inside_a_character() -> None:
    """A character that comes in pieces is whole when its line is."""
    decoder = Decoder(errors="strict")
    raw = "data: 😀é\n\n".encode()
    assert [event for byte in one_by_one(raw) for event in decoder.feed(byte)] == [Event("😀é")]


# -- limits --------------------------------------------------------------------------------------------------------


def feed_all(decoder: Decoder, chunks: Iterable[bytes]) -> tuple[list[Event], InvalidInput | None]:
    """The events that come, and the fault that ends them, if one does."""
    events: list[Event] = []
    try:
        for chunk in chunks:
            events.extend(decoder.feed(chunk))
    except InvalidInput as fault:
        return events, fault
    return events, None


@pytest.mark.parametrize("data", ["x" * 100, "é" * 50, "\n" * 100, "x\n" * 50, "x" * 99 + "\n"])
def test_exactly_the_limit_passes(data: str) -> None:
    """The limit counts the bytes of the data, its line ends included."""
    assert list(Decoder(max_data=100).feed(encode(Event(data)))) == [Event(data)]


@pytest.mark.parametrize("data", ["x" * 101, "é" * 50 + "x", "\n" * 101, "x\n" * 50 + "x", "x" * 100 + "\n"])
def test_one_byte_more_is_too_large(data: str) -> None:
    """And says so with the limit."""
    with pytest.raises(TooLarge, match="more than 100 bytes of data"):
        list(Decoder(max_data=100).feed(encode(Event(data))))


def test_the_limit_is_each_events_own() -> None:
    """A stream may be of any length."""
    chunk = encode(Event("x" * 100))
    assert len(feed_all(Decoder(max_data=100), [chunk] * 50)[0]) == 50


def test_an_endless_line_is_too_large() -> None:
    """A line without end is given up soon after the longest that could mean something, with no more kept of it."""
    fed = 0

    def endless() -> Iterator[bytes]:
        nonlocal fed
        while fed < 1_000_000:
            fed += 1_000
            yield b"x" * 1_000

    events, fault = feed_all(Decoder(max_data=10_000), endless())
    assert events == []
    assert isinstance(fault, TooLarge)
    assert str(fault) == "a line is longer than 14160 bytes"
    assert fed < 2 * 10_000


@pytest.mark.parametrize("field", [b":", b"x", b"x: ", b"event: ", b"id: ", b"retry: 1", b"data: "])
@pytest.mark.parametrize("too_long", [0, 1])
def test_a_limit_does_not_depend_on_the_cuts(field: bytes, too_long: int) -> None:
    """Whether a line is too long is the same when it comes at once and when it comes in pieces."""
    longest = 100 + 4 * MAX_NAME + 64
    raw = b"data: first\n\n" + field + b"1" * (longest + too_long - len(field)) + b"\n\n"
    whole = feed_all(Decoder(max_data=100), [raw])
    pieces = feed_all(Decoder(max_data=100), one_by_one(raw))
    assert (whole[0], str(whole[1])) == (pieces[0], str(pieces[1]))
    assert (whole[1] is not None) == (too_long == 1 or field == b"data: ")


@pytest.mark.parametrize("fault", [b"data: " + b"x" * 101, b"x" * 5_000, b"data: \xff"])
def test_events_before_a_fault_still_come(fault: bytes) -> None:
    """Also if they came in the same chunk."""
    decoder = Decoder(max_data=100, errors="strict")
    events, raised = feed_all(decoder, [b"data: a\n\ndata: b\n\n" + fault + b"\n\ndata: c\n\n"])
    assert events == [Event("a"), Event("b")]
    assert raised is not None


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("fault", [b"data: " + b"x" * 101, b"x" * 5_000, b"data: \xff", b"event: \xff", b"id: \xff"])
def test_a_fault_is_for_good(fault: bytes, mark: bytes) -> None:
    """A decoder that is fed on meets the same fault again, and makes no event of what is left."""
    decoder = Decoder(max_data=100, errors="strict")
    _, first = feed_all(decoder, [mark + fault + b"\ndata: rest\n\n"])
    for _ in range(3):
        events, again = feed_all(decoder, [b"\n\ndata: more\n\n"])
        assert events == []
        assert str(again) == str(first)


def test_memory_is_bounded_by_bytes_not_by_lines() -> None:
    """A hundred thousand empty lines of data cost about what their bytes do."""
    decoder = Decoder(max_data=100_000)
    chunk = b"data\n" * 1_000
    tracemalloc.start()
    try:
        for _ in range(100):
            list(decoder.feed(chunk))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * 100_000
    assert peak < 4 * 100_000


class Looking:
    """Stands in for the patterns of a line end and of a block, and counts the bytes that are looked at."""

    def __init__(self, block: re.Pattern[bytes]) -> None:
        self.looked_at = 0
        self._block = block

    def search(self, buffer: bytearray, begin: int) -> re.Match[bytes] | None:
        found = re.compile(rb"\r\n|\n|\r").search(buffer, begin)
        self.looked_at += (len(buffer) if found is None else found.end()) - begin
        return found

    def match(self, buffer: bytearray, begin: int) -> re.Match[bytes] | None:
        seen = re.compile(rb"(?:(?:id|event|data):[^\r\n]*\n?){0,3}").match(buffer, begin)  # where none is found
        assert seen is not None
        found = self._block.match(buffer, begin)
        self.looked_at += (min(seen.end() + 1, len(buffer)) if found is None else found.end()) - begin
        return found


@pytest.mark.parametrize(
    "raw",
    [
        b"data: " + b"x" * 60_000 + b"\n\n",
        b"data: " + b"x" * 60_000 + b"\r\n\r\n",
        b"data\n" * 12_000 + b"\n",
        b"data: x\n\n" * 6_000,
        b"data: x\n\ndata: y\ndata: z\n\n" * 2_500,
        b"\n\ndata: " + b"x" * 60_000 + b"\ndata: x\n\n",
        b"\r" * 60_000,
    ],
)
@pytest.mark.parametrize("size", [1, 6, 1_000, 1_000_000])
def test_every_byte_is_looked_at_once_or_twice(monkeypatch: pytest.MonkeyPatch, raw: bytes, size: int) -> None:
    """Work is linear in the bytes, also when one line comes in ten thousand pieces."""
    looking = Looking(wire._BLOCK)
    monkeypatch.setattr(wire, "_LINE_END", looking)
    monkeypatch.setattr(wire, "_BLOCK", looking)
    decoder = Decoder()
    events = [event for chunk in cut(raw, range(size, len(raw), size)) for event in decoder.feed(chunk)]
    assert len(events) == raw.lstrip().count(b"\n\n") + raw.count(b"\r\n\r\n")
    assert len(raw) * 0.9 <= looking.looked_at <= 2 * len(raw)


# -- how the decoder is used ---------------------------------------------------------------------------------------


def test_feeding_takes_the_bytes_at_once() -> None:
    """What feed was given is there for the next one, also if nobody asked for the events of the first."""
    decoder = Decoder()
    decoder.feed(b"data: a\n\ndata: b")
    assert list(decoder.feed(b"\n\n")) == [Event("a"), Event("b")]


def test_events_not_asked_for_come_with_the_next_feed() -> None:
    """Leaving the loop early loses nothing."""
    decoder = Decoder()
    for event in decoder.feed(b"data: a\n\ndata: b\r"):
        assert event == Event("a")
        break
    assert list(decoder.feed(b"\n\r\n")) == [Event("b")]


def test_two_feeds_may_be_read_by_turns() -> None:
    """Each event comes once and in order, whichever is asked."""
    decoder = Decoder()
    first = decoder.feed(b"data: a\n\ndata: b\n\nda")
    assert next(first) == Event("a")
    second = decoder.feed(b"ta: c\n\ndata: d\n\n")
    assert next(second) == Event("b")
    assert next(first) == Event("c")
    assert list(second) == [Event("d")]
    assert list(first) == []


@many
@given(cuts(streams), st.lists(st.integers(0, 3), max_size=15))
def test_events_come_once_however_they_are_taken(case: tuple[bytes, list[bytes]], takes: list[int]) -> None:
    """Some asked for now and the rest later: the same events in the same order."""
    raw, chunks = case
    decoder = Decoder()
    events: list[Event] = []
    for chunk, most in zip_longest(chunks, takes[: len(chunks)], fillvalue=0):
        assert isinstance(chunk, bytes)
        events.extend(islice(decoder.feed(chunk), most))
    events.extend(decoder.feed(b""))
    assert events == by_the_standard(raw)


def test_the_last_event_id_moves_with_each_event() -> None:
    """Who stops between two events resumes after the first, though both came in one chunk."""
    decoder = Decoder()
    feed = decoder.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n\n")
    next(feed)
    assert decoder.last_event_id == "1"


# -- an independent parser -----------------------------------------------------------------------------------------


def read_by_httpx_sse(chunks: list[bytes]) -> list[ServerSentEvent]:
    """The same bytes through httpx-sse, from PyPI."""

    class Body(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            return iter([chunk for chunk in chunks if chunk])

    response = httpx.Response(200, headers={"Content-Type": "text/event-stream; charset=utf-8"}, stream=Body())
    return list(EventSource(response).iter_sse())


common_values = st.text(
    st.one_of(st.characters(exclude_categories=["Cs", "Cc"]), st.sampled_from("\f\v\x1c\x85\0 :")), max_size=12
)
common_lines = st.one_of(
    st.builds("data: {}x".format, common_values),
    st.builds("data:{}x".format, common_values),
    st.builds("event:{}".format, common_values),
    st.builds("id: {}".format, common_values),
    st.builds("retry: {}".format, st.integers(0, MAX_RETRY_MS)),
    st.builds("retry: {}x".format, common_values),
    st.builds(":{}".format, common_values),
    st.builds("x{}".format, common_values),
    st.sampled_from(["", "", "", "event", "id", "retry", ": ping"]),
)
common_streams = st.lists(st.tuples(common_lines, st.sampled_from(["\r\n", "\n", "\r"])), max_size=25).map(
    lambda lines: "".join(line + end for line, end in lines).encode()
)


@many
@given(cuts(common_streams))
def test_httpx_sse_agrees(case: tuple[bytes, list[bytes]]) -> None:
    """An independent parser finds the same events, but for the differences that the next tests name."""
    chunks = case[1]
    decoder = Decoder()
    ours = [
        (event.data, event.type, decoder.last_event_id, event.retry)
        for chunk in chunks
        for event in decoder.feed(chunk)
    ]
    # No event of these streams has empty data, so those that it shows with none are its phantoms.
    theirs = [(sse.data, sse.event, sse.id, sse.retry) for sse in read_by_httpx_sse(chunks) if sse.data]
    assert ours == theirs


@pytest.mark.parametrize("raw", [b"id: 1\n\n", b"event: x\n\n", b"retry: 5\n\n", opening(3000, "1-0")])
def test_httpx_sse_differs_in_phantoms(raw: bytes) -> None:
    """It shows a block without data as an empty event; the standard dispatches none."""
    assert decode(raw) == []
    assert [sse.data for sse in read_by_httpx_sse([raw])] == [""]


def test_httpx_sse_shows_no_phantom_for_a_heartbeat() -> None:
    """That is why a heartbeat is one line: with a blank one after it, it would."""
    assert len(read_by_httpx_sse([b"id: 1\ndata: x\n\n", HEARTBEAT, HEARTBEAT])) == 1
    assert len(read_by_httpx_sse([b"id: 1\ndata: x\n\n", HEARTBEAT + b"\n"])) == 2


def test_httpx_sse_differs_in_the_byte_order_mark() -> None:
    """It leaves it in the first line, and loses that line."""
    assert decode(BOM + b"data: a\n\n") == [Event("a")]
    assert read_by_httpx_sse([BOM + b"data: a\n\n"]) == []


@pytest.mark.parametrize(("value", "theirs"), [("-1", -1), ("+1", 1), ("1_0", 10), ("1 ", 1), ("\u0663", 3)])
def test_httpx_sse_differs_in_retry(value: str, theirs: int) -> None:
    """It takes whatever int() takes; the standard takes ASCII digits."""
    raw = f"retry: {value}\ndata: x\n\n".encode()
    assert decode(raw) == [Event("x")]
    assert [sse.retry for sse in read_by_httpx_sse([raw])] == [theirs]


def test_httpx_sse_differs_in_the_longest_retry() -> None:
    """It keeps a number that no timer can hold."""
    raw = b"retry: 99999999999\ndata: x\n\n"
    assert decode(raw) == [Event("x", retry=MAX_RETRY_MS)]
    assert [sse.retry for sse in read_by_httpx_sse([raw])] == [99_999_999_999]


def test_httpx_sse_differs_in_whose_id_it_is() -> None:
    """It gives every event the stream's last event ID; ours says which event brought it."""
    raw = b"id: 1\ndata: a\n\ndata: b\n\n"
    assert [event.id for event in decode(raw)] == ["1", None]
    assert [sse.id for sse in read_by_httpx_sse([raw])] == ["1", "1"]
