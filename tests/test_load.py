"""The load tells the truth: what it counts is what happened. Here without a server."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sse.event import Event
from trio_sse.load import MAX_STAMP, LoadError
from trio_sse.load.accounting import KEEP, Accounts, Ledger, Reader, stamped, stamps_of
from trio_sse.load.histogram import Histogram
from trio_sse.load.response import BadResponse, Body, Head, ends_between_events
from trio_sse.load.target import Link, check_headers
from trio_sse.wire import Decoder, encode

ONE_LANE = [0] * 5
TWO_LANES = [0, 1, 0, 1, 0]


def account(*clients: Sequence[int], lanes: Sequence[int] = ONE_LANE, accepted: Sequence[int] = range(5)) -> Accounts:
    """What becomes of events 0 to 4, which the clients are given one client after the other."""
    ledger = Ledger()
    readers = [Reader() for _ in clients]
    for reader in readers:
        ledger.join(reader)
    for number, lane in enumerate(lanes):
        ledger.expect(number, lane)
        ledger.answered(number, accepted=number in accepted)
    for reader, numbers in zip(readers, clients, strict=True):
        for number in numbers:
            ledger.take(reader, number)
    assert ledger.is_complete() == (all(set(range(5)) <= set(numbers) for numbers in clients))
    return Accounts(ledger.delivered, ledger.lost(), ledger.twice, ledger.disordered)


# -- stamps -------------------------------------------------------------------------------------------------


def test_stamp_fills_the_payload() -> None:
    """An event's data has exactly the size asked for, and holds its stamp."""
    data = stamped("beef", 123456789012345, 42, 120)
    assert len(data) == 120
    assert stamps_of("beef").findall(data) == [("123456789012345", "42")]
    assert len(stamped("beef", 2**63, 10**9, MAX_STAMP)) == MAX_STAMP


def test_a_stamp_is_found_where_a_server_wraps_it() -> None:
    """It may stand anywhere in the data; that of another run is none."""
    assert stamps_of("beef").search(f'{{"from": "a@b", "text": "{stamped("beef", 1, 2, 40)}"}}')
    assert not stamps_of("beef").search(stamped("cafe", 1, 2, 40))


# -- accounts -----------------------------------------------------------------------------------------------


def test_all_is_well() -> None:
    """Every client has every event, in order: nothing to complain of."""
    assert account([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]) == Accounts(10, 0, 0, 0)


def test_a_lost_event_is_noticed() -> None:
    """An event that one client of three did not get is lost once, also if it was the last or the only."""
    assert account([0, 1, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3, 4]) == Accounts(14, 1, 0, 0)
    assert account([0, 1, 3, 4], [0, 1, 2, 3, 4]) == Accounts(9, 1, 0, 0)
    assert account([0, 1, 2, 3], [0, 1, 2, 3, 4]) == Accounts(9, 1, 0, 0)
    assert account([]) == Accounts(0, 5, 0, 0)


def test_a_repeated_event_is_noticed() -> None:
    """An event that came twice is delivered once, and makes up for no lost one."""
    assert account([0, 1, 1, 2, 3, 4]) == Accounts(5, 0, 1, 0)
    assert account([0, 1, 1, 2, 3]) == Accounts(4, 1, 1, 0)
    assert account([0, 1, 2, 3, 4, 1, 0]) == Accounts(5, 0, 2, 0)


def test_an_event_of_elsewhere_counts_as_one_too_many() -> None:
    """A number that was never published on this topic should not have come."""
    assert account([0, 1, 2, 99, 3, 4]) == Accounts(5, 0, 1, 0)


def test_a_publishers_events_come_in_its_order() -> None:
    """What one publisher sent later may not come earlier, even if all clients agree."""
    assert account([0, 2, 1, 3, 4], [0, 2, 1, 3, 4]) == Accounts(10, 0, 0, 2)


def test_all_clients_see_one_order() -> None:
    """Events of two publishers may come in any order, but in the same for all clients."""
    swapped = [1, 0, 2, 3, 4]
    assert account(swapped, swapped, lanes=TWO_LANES) == Accounts(10, 0, 0, 0)
    assert account(swapped, swapped, [0, 1, 2, 3, 4], lanes=TWO_LANES) == Accounts(15, 0, 0, 1)


def test_a_hole_is_no_disorder() -> None:
    """A client that lost an event still has the others in order, also those that the first client lost."""
    assert account([0, 1, 3, 4], [0, 1, 3, 4], [0, 2, 3, 4]) == Accounts(12, 3, 0, 0)


def test_what_was_not_accepted_cannot_be_lost() -> None:
    """An event that the server refused is not lost."""
    ledger, reader = Ledger(), Reader()
    ledger.join(reader)
    for number in range(3):
        ledger.expect(number, 0)
        ledger.answered(number, accepted=number != 1)
    for number in (0, 2):
        ledger.take(reader, number)
    assert (ledger.delivered, ledger.lost()) == (2, 0)
    assert ledger.is_complete()


def test_what_the_server_owned_up_to_is_lost_and_told() -> None:
    """A gap event says that the events at its place are missing."""
    ledger, reader = Ledger(), Reader()
    ledger.join(reader)
    witness = Reader()
    ledger.join(witness)
    for number in range(5):
        ledger.expect(number, 0)
        ledger.answered(number, accepted=True)
        ledger.take(witness, number)
    ledger.take(reader, 0)
    reader.told = True
    ledger.take(reader, 3)
    ledger.take(reader, 4)
    assert (ledger.lost(), ledger.told) == (2, 2)


@pytest.mark.parametrize("first", [0, 1])
def test_what_the_server_owned_up_to_may_be_missing_everywhere(first: int) -> None:
    """Also of events that came to no reader at all it is known that the server said so; what is silent is not told."""
    ledger, reader = Ledger(), Reader()
    ledger.join(reader)
    for number in range(7):
        ledger.expect(number, 0)
        ledger.answered(number, accepted=True)
    if first:
        ledger.take(reader, 0)
    reader.told = True
    for number in (3, 4, 6):
        ledger.take(reader, number)
    assert (ledger.lost(), ledger.told) == (4 - first, 3 - first)


@given(
    st.permutations(range(5)),
    st.lists(st.lists(st.integers(0, 4), max_size=8), min_size=1, max_size=4),
    st.lists(st.integers(0, 2), min_size=5, max_size=5),
)
def test_whatever_comes_the_sums_are_right(feed: list[int], clients: list[list[int]], lanes: list[int]) -> None:
    """What came first at a client is delivered, the rest is repetition, and what did not come is lost."""
    accounts = account(feed, *clients, lanes=lanes)
    everyone = [feed, *clients]
    assert accounts.delivered == sum(len(set(numbers)) for numbers in everyone)
    assert accounts.twice == sum(len(numbers) - len(set(numbers)) for numbers in everyone)
    assert accounts.lost == 5 * len(everyone) - accounts.delivered


@given(
    st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=4),
    st.lists(st.integers(0, 2), min_size=5, max_size=5),
)
def test_holes_alone_are_never_disorder(held: list[set[int]], lanes: list[int]) -> None:
    """At each client a part of the events, in order: nothing is out of order or twice, whoever published them."""
    accounts = account(*(sorted(numbers) for numbers in held), lanes=lanes)
    assert (accounts.twice, accounts.disordered) == (0, 0)


def test_memory_is_bounded() -> None:
    """What all readers have long passed is forgotten; a loss in it stays a loss, and what comes again is noticed."""
    ledger = Ledger()
    readers = [Reader(), Reader()]
    for reader in readers:
        ledger.join(reader)
    count = 5 * KEEP
    for number in range(count):
        ledger.expect(number, 0)
        ledger.answered(number, accepted=True)
        ledger.take(readers[0], number)
        if number != 7:
            ledger.take(readers[1], number)
        if number % 1000 == 0:
            ledger.forget()
    assert len(ledger._order) < 3 * KEEP
    assert len(ledger._lanes) < 3 * KEEP
    assert (ledger.delivered, ledger.lost(), ledger.missing) == (2 * count - 1, 1, 1)
    ledger.take(readers[0], 9)
    assert ledger.twice == 1


def overheard(*clients: Sequence[str]) -> Ledger:
    ledger = Ledger(overheard=True)
    readers = [Reader() for _ in clients]
    for reader in readers:
        ledger.join(reader)
    for reader, keys in zip(readers, clients, strict=True):
        for key in keys:
            ledger.take(reader, key)
    return ledger


def test_where_it_only_listens_the_others_show_what_is_missing() -> None:
    """A client begins where its first event stands, and then has to have what others have."""
    ledger = overheard("abcde", "bde", "cd")
    assert (ledger.lost(ledger.end), ledger.twice, ledger.disordered) == (2, 0, 0)  # c for one, and e for another
    numbered = overheard("01345", "02345")  # each has what the other has not
    assert (numbered.lost(numbered.end), numbered.disordered) == (2, 0)
    assert overheard("abc", "abbc").twice == 1
    assert overheard("abc", "acb").disordered == 1


def test_different_ids_are_not_compared() -> None:
    """Where each client is given IDs of its own, none is shared."""
    assert overheard("abc", "xyz").shared == 0


# -- times --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=200))
def test_percentiles_are_right_to_a_percent(times_ns: list[int]) -> None:
    """The nearest rank, to 1 %, or to 2 µs where that is more."""
    histogram = Histogram()
    for ns in times_ns:
        histogram.add(ns)
    ordered = sorted(times_ns)
    expected = [ordered[-(-len(ordered) * share // 100) - 1] for share in (50, 99, 100)]
    for ms, ns in zip(histogram.percentiles_ms(0.5, 0.99, 1), expected, strict=True):
        assert abs(ms * 1e6 - ns) <= max(0.01 * ns, 2049)


def test_no_times_have_no_percentiles() -> None:
    """It is not a number, and no zero that would look fast."""
    (nothing,) = Histogram().percentiles_ms(0.5)
    assert nothing != nothing


# -- HTTP ---------------------------------------------------------------------------------------------------


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=6), st.lists(st.integers(0, 200), max_size=8))
def test_chunks_cut_anywhere_are_put_together(pieces: list[bytes], cuts: list[int]) -> None:
    """Wherever the bytes are cut, in a size, a line end or the last chunk, the body is the same."""
    whole = chunked(*pieces) + b"0\r\nx-trailer: 1\r\n\r\n"
    body = Body(chunked=True)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    content = b"".join(body.feed(whole[begin:end]) for begin, end in pairwise(places))
    assert content == b"".join(pieces)
    assert body.ended


def test_where_a_chunk_ends_can_be_seen_without_decoding() -> None:
    """Behind its line end; 0 as long as it is a part, and -1 where it cannot be told."""
    body, whole = Body(chunked=True), chunked(b"hello", b"you")
    assert body.chunk_end(whole, 0) == len(chunked(b"hello"))
    assert body.chunk_end(whole, 10) == len(whole)
    assert [body.chunk_end(whole[:end], 0) for end in range(10)] == [0] * 10
    assert body.chunk_end(b"0\r\n\r\n", 0) == -1
    assert body.chunk_end(b"5;name=value\r\nhello\r\n", 0) == -1
    assert Body(chunked=False).chunk_end(whole, 0) == -1


def test_a_body_may_have_a_length_or_none() -> None:
    """It ends after so many bytes, or with the connection."""
    body = Head.parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5").body()
    assert (body.feed(b"hel"), body.ended, body.feed(b"lo!"), body.ended) == (b"hel", False, b"lo", True)
    body = Head.parse(b"HTTP/1.0 200 OK\r\nServer: x").body()
    assert (body.feed(b"5\r\nhe"), body.at_boundary, body.ended) == (b"5\r\nhe", True, False)
    assert Head.parse(b"HTTP/1.1 204 No Content").body().ended


@pytest.mark.parametrize("head", [b"SSH-2.0-OpenSSH", b"HTTP/2 200", b"", b"HTTP/1.1 2000"])
def test_what_is_no_http_is_refused(head: bytes) -> None:
    """With a sentence that says what came."""
    with pytest.raises(BadResponse):
        Head.parse(head)


@pytest.mark.parametrize("data", [b"xyz\r\n", b"\r\n", b"-5\r\n", b"f" * 5000])
def test_a_chunk_without_a_size_is_refused(data: bytes) -> None:
    """A stream that is no longer understood is not guessed at."""
    with pytest.raises(BadResponse):
        Body(chunked=True).feed(data)


@given(
    st.lists(st.sampled_from([b"data: 1", b"id: 2", b": note", b"", b"", b"x"]), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.integers(0, 40),
)
def test_between_two_events_nothing_is_pending(lines: list[bytes], line_end: bytes, cut: int) -> None:
    """Where a piece is said to end between two events, a fresh decoder goes on like the one that read it."""
    piece = b"".join(line + line_end for line in lines)[:cut]
    rest = encode(Event("next", id="7"))
    if ends_between_events(piece, began_between=True):
        decoder = Decoder()
        list(decoder.feed(piece))
        assert [event.data for event in decoder.feed(rest)] == ["next"]


def test_events_end_with_a_blank_line_and_comments_may_follow() -> None:
    """These are the ends that servers write."""
    for piece in (b"data: 1\n\n", b"data: 1\r\n\r\n", b"data: 1\n\n:\n", b"data: 1\n\n: a\r\n: b\n"):
        assert ends_between_events(piece, began_between=False)
    for piece in (b"data: 1\n", b"data: 1\n\ndata: 2\n", b":", b"data: 1\n\n: beat", b"\n"):
        assert not ends_between_events(piece, began_between=False)
    assert ends_between_events(b":\n", began_between=True)


# -- what is asked for --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", Link(False, "127.0.0.1", 8000, "/")),
        ("https://example.org/a b?c=d e#f", Link(True, "example.org", 443, "/a%20b?c=d%20e")),
        ("http://[::1]:80/x", Link(False, "::1", 80, "/x")),
        ("http://bücher.example/%C3%BC", Link(False, "xn--bcher-kva.example", 80, "/%C3%BC")),
    ],
)
def test_urls_are_read(url: str, expected: Link) -> None:
    """Host names, addresses of both kinds, paths and queries."""
    assert Link.parse(url.replace(" ", "%20")) == expected


@pytest.mark.parametrize(
    "url", ["", "example.org", "ftp://example.org/", "http://", "http://a:b/", "http://u:p@host/", "http://a/\r\nX: y"]
)
def test_wrong_urls_are_refused(url: str) -> None:
    """With a sentence, and without repeating a password."""
    with pytest.raises(LoadError) as caught:
        Link.parse(url)
    assert "p@" not in str(caught.value)


@pytest.mark.parametrize("header", ["no colon", "bad name: x", "X: a\r\nY: b", "X: \N{SNOWMAN}"])
def test_wrong_headers_are_refused_unseen(header: str) -> None:
    """What is wrong may be a secret."""
    with pytest.raises(LoadError) as caught:
        check_headers(["Fine: yes", header])
    assert "header 2" in str(caught.value)
    assert header not in str(caught.value)
