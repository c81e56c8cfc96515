"""``POST /topics/<topic>`` over the real server: one event or a stream of them, and what is refused."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h2.config
import h2.connection
import h2.events
import pytest

from .conftest import Answer, Listener, Wire, ask, eventually, last_event_id, metric, publish, remains
from .serving import Server

MIB = 1024 * 1024
APP = "tests.apps:app"
pytestmark = pytest.mark.usefixtures("baseline")
ENV = {"TRIO_SSE_RETENTION_BYTES": str(4 * MIB), "TRIO_SSE_WRITE_TIMEOUT_S": "2"}
STREAM = {"Content-Type": "text/event-stream"}
JSON = {"Content-Type": "application/json"}


def event_of(server: Server, topic: str) -> dict[str, str]:
    """The oldest event of a topic, as a subscriber reads it."""
    with Listener(server, f"/events?topic={quote(topic)}&last_event_id=earliest") as listener:
        listener.take()
        return listener.event()


def check_refused(answer: Answer, status: int, detail: str) -> None:
    """It is a problem of this status, whose detail holds these words."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["status"] == status
    assert detail in answer.json["detail"]


# -- one event --------------------------------------------------------------------------------------------------------


def test_the_answer_names_the_events_place_and_who_listens(server: Server, topic: str) -> None:
    """201 tells the id, the topic, and how many subscribers there are."""
    with Listener(server, f"/events?topic={topic}") as listener:
        listener.take()
        answer = ask(server, "POST", f"/topics/{topic}", b"hello")
        assert answer.status == 201
        assert answer.json == {"id": listener.event()["id"], "topic": topic, "subscribers": 1}
    assert re.fullmatch(r"[0-9]{13}-[1-9][0-9]*", answer.json["id"])


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "text/plain; charset=utf-8",
        "text/plain;charset=UTF8",
        'text/plain; charset="UTF-8"',
        "text/plain; charset=us-ascii",
        "TEXT/PLAIN",
    ],
)
def test_a_plain_body_is_the_data_as_it_stands(server: Server, topic: str, content_type: str | None) -> None:
    """Text, no type, and curl's default type are not decoded in any way: ``+``, ``%20`` and ``=`` stay."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = ask(server, "POST", f"/topics/{topic}", "a=b&c=%20 + grün".encode(), headers)
    assert answer.status == 201
    assert event_of(server, topic) == {"id": answer.json["id"], "data": "a=b&c=%20 + grün"}


@pytest.mark.parametrize(
    "text",
    [
        '{ "b": 1,  "a": [1.50, 1e3, "\\u00fc\\ud800" ] }',
        "9" * 5000,
        "-0",
        "null",
        '"text"',
        "[" * 500 + "]" * 500,
        '{"a": 1, "a": 2}',
    ],
)
def test_a_json_body_is_the_data_byte_for_byte(server: Server, topic: str, text: str) -> None:
    """Valid JSON is kept as it was written, spaces, long numbers, escapes, doubled names and all."""
    assert ask(server, "POST", f"/topics/{topic}", text.encode(), JSON).status == 201
    assert event_of(server, topic)["data"] == text


def test_a_topic_of_more_than_32_segments_is_read_and_not_published_to(server: Server) -> None:
    """One may have been kept before there was a bound."""
    deep = "/".join("d" * 33)
    for type in ("text/plain", "text/event-stream"):
        answer = ask(server, "POST", f"/topics/{deep}", b"data: x\n\n", {"Content-Type": type})
        assert (answer.status, answer.json["detail"]) == (400, "the topic has 33 segments; 32 are allowed")
    assert ask(server, "GET", f"/topics/{deep}").json["topic"] == deep
    assert ask(server, "HEAD", f"/events?topic={deep}").status == 200


def test_line_ends_become_the_formats_own(server: Server, topic: str) -> None:
    """CRLF and CR in a body are line ends of the data, and other separators are characters."""
    ask(server, "POST", f"/topics/{topic}", "one\r\ntwo\rthree\n\n\u2028\x0b\x85".encode())
    assert event_of(server, topic)["data"] == "one\ntwo\nthree\n\n\u2028\x0b\x85"


def test_an_empty_body_is_an_event_with_no_data(server: Server, topic: str) -> None:
    """Nothing is something to say: the event has an empty data line."""
    id = ask(server, "POST", f"/topics/{topic}", b"").json["id"]
    with Listener(server, f"/events?topic={topic}&last_event_id=earliest") as listener:
        listener.take()
        assert listener.take() == f"id: {id}\ndata: \n\n".encode()


def test_the_query_names_the_events_type(server: Server, topic: str) -> None:
    """``event`` is the type; ``message`` is the one that need not be said."""
    ask(server, "POST", f"/topics/{topic}?event=gr%C3%BC%C3%9Fe", b"x")
    assert event_of(server, topic)["event"] == "grüße"


def test_the_type_message_is_left_out(server: Server, topic: str) -> None:
    """``event=message`` is an event without a type line."""
    ask(server, "POST", f"/topics/{topic}?event=message", b"x")
    assert "event" not in event_of(server, topic)


def test_a_key_is_taken(server: Server, topic: str) -> None:
    """``key`` names what the event is the newest value of; it is no part of the frame."""
    assert ask(server, "POST", f"/topics/{topic}?key={'k' * 256}", b"x").status == 201
    assert event_of(server, topic).keys() == {"id", "data"}


def chunks(body: bytes, size: int = 64 * 1024) -> Iterator[bytes]:
    """A body in pieces, to be sent without saying how long it is."""
    return (body[begin : begin + size] for begin in range(0, len(body), size))


def test_a_body_of_just_the_limit_is_taken(server: Server, topic: str) -> None:
    """1 MiB is published, with its length said and in chunks."""
    assert ask(server, "POST", f"/topics/{topic}", b"x" * MIB).status == 201
    assert ask(server, "POST", f"/topics/{topic}", chunks(b"y" * MIB)).status == 201
    assert event_of(server, topic)["data"] == "x" * MIB


def test_a_chunked_body_over_the_limit_is_refused(server: Server, topic: str) -> None:
    """A byte more than 1 MiB, whose length was not said, is 413 and changes nothing."""
    check_refused(ask(server, "POST", f"/topics/{topic}", chunks(b"x" * (MIB + 1))), 413, "stream of events")
    assert last_event_id(server, topic) is None


@pytest.mark.parametrize("end", [b"\n", b"\r", "\u00e9\n".encode()], ids=["LF", "CR", "text"])
def test_a_mebibyte_of_lines_does_not_become_seven(server: Server, topic: str, end: bytes) -> None:
    """Lines that take more than twice the body's limit in a stream are 413, and the words say why."""
    body = end * (MIB // len(end))
    check_refused(ask(server, "POST", f"/topics/{topic}", body), 413, "each line costs 6")
    assert last_event_id(server, topic) is None


def test_a_length_over_the_limit_is_refused_before_the_body_is_sent(server: Server, topic: str) -> None:
    """Who announces a byte more than 1 MiB is told 413 at once, and need not send it."""
    with Wire(server) as wire:
        wire.send(f"POST /topics/{topic} HTTP/1.1\r\nHost: x\r\nContent-Length: {MIB + 1}\r\n\r\n".encode())
        assert wire.take(b"\r\n\r\n").startswith(b"HTTP/1.1 413 ")
        assert json.loads(wire.take(b"}"))["status"] == 413
    assert last_event_id(server, topic) is None


@pytest.mark.parametrize("target", ["/topics/{topic}", "/topics/*", "/nothing"])
@pytest.mark.parametrize("headers", [{}, STREAM], ids=["one", "stream"])
def test_who_is_refused_while_sending_still_reads_the_answer(
    server: Server, topic: str, target: str, headers: dict[str, str]
) -> None:
    """A client that sends 16 MiB before it reads finds a problem there, not a reset connection."""
    answer = ask(server, "POST", target.format(topic=topic), b"x" * (16 * MIB), headers)
    assert answer.status in (400, 404, 413)
    assert answer.json["detail"]
    assert last_event_id(server, topic) is None


# -- what is refused --------------------------------------------------------------------------------------------------

EVENT_IS_ODD: list[tuple[str, bytes, dict[str, str], int, str]] = [
    ("", b"\xff", {}, 400, "not UTF-8"),
    ("", b"\xff", {"Content-Type": "text/plain"}, 400, "not UTF-8"),
    ("", b'"\xed\xa0\x80"', JSON, 400, "not UTF-8"),
    ("", b"", JSON, 400, "not valid JSON"),
    ("", b"{", JSON, 400, "not valid JSON"),
    ("", b"{} {}", JSON, 400, "not valid JSON"),
    ("", b"\xef\xbb\xbf{}", JSON, 400, "not valid JSON"),
    ("", b"NaN", JSON, 400, "NaN is no JSON value"),
    ("", b"[-Infinity]", JSON, 400, "-Infinity is no JSON value"),
    ("", b"[" * 100_000, JSON, 400, "nested too deeply"),
    ("", b'{"a":' * 100_000, JSON, 400, "nested too deeply"),
    ("", b"x", {"Content-Type": "text/html"}, 415, "text/event-stream"),
    ("", b"x", {"Content-Type": "multipart/form-data; boundary=b"}, 415, "application/json"),
    ("", b"x", {"Content-Type": "text/plain; charset=latin-1"}, 415, "UTF-8"),
    ("", b"x", {"Content-Type": "application/json; charset=utf-16"}, 415, "UTF-8"),
    ("?event=trio-sse.gap", b"x", {}, 400, "use another name"),
    ("?event=trio-sse.", b"x", {}, 400, "use another name"),
    ("?event=", b"x", {}, 400, "the type is empty"),
    ("?event=a%0Ab", b"x", {}, 400, "U+000A"),
    ("?event=" + "e" * 1025, b"x", {}, 400, "1024 are allowed"),
    ("?event=a&event=a", b"x", {}, 400, "give it once"),
    ("?event=%ff", b"x", {}, 400, "not percent-encoded UTF-8"),
    ("?key=", b"x", {}, 400, "a key is 1 to 256"),
    ("?key=" + "k" * 257, b"x", {}, 400, "a key is 1 to 256"),
    ("?key=%00", b"x", {}, 400, "a key is 1 to 256"),
    ("?key=a&key=b", b"x", {}, 400, "give it once"),
    ("?event=a", b"data: x\n\n", STREAM, 400, "leave event and key out"),
    ("?key=a", b"data: x\n\n", STREAM, 400, "leave event and key out"),
]


@pytest.mark.parametrize(("query", "body", "headers", "status", "detail"), EVENT_IS_ODD)
def test_what_is_no_event_is_refused(
    server: Server, topic: str, query: str, body: bytes, headers: dict[str, str], status: int, detail: str
) -> None:
    """Bad input is a 4xx that says what to do, and the journal is as it was."""
    before = publish(server, topic)
    check_refused(ask(server, "POST", f"/topics/{topic}{query}", body, headers), status, detail)
    assert last_event_id(server, topic) == before


TOPIC_IS_ODD = [
    ("", "the topic is empty"),
    ("/a", "segment ''"),
    ("a//b", "segment ''"),
    ("a/", "segment ''"),
    ("a%2F", "segment ''"),
    (".", "segment '.'"),
    ("a/%2E%2e/b", "segment '..'"),
    ("*", "no wildcards"),
    ("a/**", "no wildcards"),
    ("%2A", "no wildcards"),
    ("%ff", "not percent-encoded UTF-8"),
    ("%fe", "not percent-encoded UTF-8"),
    ("%c3", "not percent-encoded UTF-8"),
    ("a%00", "U+0000"),
    ("a%0Ab", "U+000A"),
    ("a%E2%80%AE", "U+202E"),
    ("u%CC%88", "normal form C"),
    ("a" * 257, "256 are allowed"),
    ("%C3%BC" * 128 + "a", "256 are allowed"),
]


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize(("path", "rule"), TOPIC_IS_ODD)
def test_what_is_no_topic_is_refused(server: Server, method: str, path: str, rule: str) -> None:
    """A path that holds no topic is 400 and the rule that it breaks, never a redirect."""
    published = metric(server, "trio_sse_published_total")
    check_refused(ask(server, method, f"/topics/{path}", b"x" if method == "POST" else None), 400, rule)
    assert metric(server, "trio_sse_published_total") == published


@pytest.mark.parametrize("target", ["//topics/a", "/%74opics/a", "/topics%2Fa", "/topics%2Fa/topics/b", "/topics"])
def test_a_path_that_only_decodes_to_a_topics_is_none(server: Server, target: str) -> None:
    """Where the topic begins must be plain to see, so such a path is 404."""
    check_refused(ask(server, "POST", target, b"x"), 404, "/topics/<topic>")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("{topic}%2Fb", "{topic}/b"),
        ("{topic}/%C3%BC%20%3F%25", "{topic}/ü ?%"),
        ("{topic}/a;b,c=+&@:", "{topic}/a;b,c=+&@:"),
        ("{topic}/%2e%2e%2e", "{topic}/..."),
        ("{topic}/***", "{topic}/***"),
    ],
)
def test_a_topic_is_the_decoded_path(server: Server, topic: str, path: str, meant: str) -> None:
    """Percent-encoding is taken off once, a slash included, and everything else stays."""
    answer = ask(server, "POST", "/topics/" + path.format(topic=topic), b"x")
    assert answer.status == 201
    assert answer.json["topic"] == meant.format(topic=topic)
    assert last_event_id(server, quote(meant.format(topic=topic))) == answer.json["id"]


@pytest.mark.parametrize("path", ["a" * 256, "%C3%BC" * 128])
def test_a_topic_of_just_the_limit_is_taken(server: Server, path: str) -> None:
    """256 bytes are a topic."""
    assert ask(server, "POST", f"/topics/{path}", b"x").status == 201


# -- what is known of a topic -----------------------------------------------------------------------------------------


def test_a_topic_tells_its_last_event_its_floor_and_its_subscribers(server: Server, topic: str) -> None:
    """Before its first event a topic has no last id; afterwards the newest, and who listens now."""
    before = ask(server, "GET", f"/topics/{topic}").json
    assert before.keys() == {"topic", "subscribers", "floor", "last_event_id"}
    assert (before["topic"], before["subscribers"], before["last_event_id"]) == (topic, 0, None)
    assert re.fullmatch(r"[0-9]+-[0-9]+", before["floor"])
    with Listener(server, f"/events?topic={topic}"), Listener(server, f"/events?topic={topic}"):
        ids = [publish(server, topic) for _ in range(2)]
        assert ask(server, "GET", f"/topics/{topic}").json == {**before, "subscribers": 2, "last_event_id": ids[-1]}


# -- a stream of events -----------------------------------------------------------------------------------------------


class Publisher(Wire):
    """Sends a stream of events, and reads what is acknowledged."""

    def __init__(self, server: Server, topic: str) -> None:
        super().__init__(server)
        self.send(
            f"POST /topics/{topic} HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\n"
            "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
        )

    def head(self) -> bytes:
        """The status line and the headers of the answer."""
        return self.take(b"\r\n\r\n")

    def line(self) -> Any:
        """The next line of the answer, which is a chunk of its own."""
        size = int(self.take(b"\r\n"), 16)
        line = self.take(b"\n")
        assert len(line) == size
        self.take(b"\r\n")
        return json.loads(line)


def test_events_are_acknowledged_while_more_still_come(server: Server, topic: str) -> None:
    """Each commit is a line with its id, read before the next event is sent; a subscriber has it by then."""
    with Listener(server, f"/events?topic={topic}") as listener, Publisher(server, topic) as publisher:
        listener.take()
        ids = []
        for number in (1, 2, 3):
            publisher.chunk(b"data: %d\n\n" % number)
            if number == 1:
                assert publisher.head().startswith(b"HTTP/1.1 200 ")
            line = publisher.line()
            assert line["acked"] == number
            assert listener.event() == {"id": line["id"], "data": str(number)}
            ids.append(line["id"])
        publisher.chunk(b"")
        assert publisher.line() == {"done": True, "count": 3, "id": ids[-1]}
        assert publisher.rest() == b"0\r\n\r\n"
    assert last_event_id(server, topic) == ids[-1]


def test_what_comes_together_is_committed_together(server: Server, topic: str) -> None:
    """Forty chunks of one event, sent at once, are acknowledged in far fewer lines than forty."""
    with Publisher(server, topic) as publisher:
        publisher.send(b"9\r\ndata: x\n\n\r\n" * 40 + b"0\r\n\r\n")
        publisher.head()
        *acks, done = [json.loads(line) for line in re.findall(rb"\{.*\}", publisher.rest())]
    assert done["count"] == 40
    assert [ack["acked"] for ack in acks] == sorted({ack["acked"] for ack in acks})
    assert len(acks) <= 20


def test_the_answer_to_a_stream_is_ndjson(server: Server, topic: str) -> None:
    """The acknowledgements say what they are."""
    answer = ask(server, "POST", f"/topics/{topic}", b"data: x\n\n", STREAM)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-ndjson")


@pytest.mark.parametrize(
    ("name", "acked"),
    [
        ("7", 7),
        ("0", 0),
        ("999999999999999", 999999999999999),
        ("007", "007"),
        ("9" * 20, "9" * 20),
        ("9" * 5000, "9" * 5000),
        ("-1", "-1"),
        ("²", "²"),
        ("line-7", "line-7"),
    ],
)
def test_a_publishers_own_number_is_given_back(server: Server, topic: str, name: str, acked: int | str) -> None:
    """``id:`` comes back as a number where JSON holds it exactly, else as it stands; it is never the event's id."""
    answer = ask(server, "POST", f"/topics/{topic}", f"id: {name}\ndata: x\n\n".encode(), STREAM)
    ack, done = answer.lines
    assert ack == {"acked": acked, "id": done["id"]}
    assert event_of(server, topic)["id"] == done["id"] != name


def test_the_number_is_that_of_the_last_event_of_the_commit(server: Server, topic: str) -> None:
    """Events that came together are acknowledged together, with the last one's number; without one, by their count."""
    *acks, done = ask(server, "POST", f"/topics/{topic}", b"id: 1\ndata: x\n\nid: 9\ndata: y\n\n", STREAM).lines
    assert acks[-1] == {"acked": 9, "id": done["id"]}
    *acks, done = ask(server, "POST", f"/topics/{topic}", b"id: 1\ndata: x\n\ndata: y\n\n", STREAM).lines
    assert acks[-1] == {"acked": 2, "id": done["id"]}


@pytest.mark.parametrize("end", [b"data: unfinished", b"data: unfinished\n", b"data: " + b"x" * (MIB + 1), b"da"])
def test_an_unfinished_event_is_said(server: Server, topic: str, end: bytes) -> None:
    """What no blank line ended is not published, and not dropped in silence; what came before it is safe."""
    answer = ask(server, "POST", f"/topics/{topic}", end, STREAM)
    assert answer.status in (400, 413)
    assert last_event_id(server, topic) is None
    done, fault = ask(server, "POST", f"/topics/{topic}", b"data: whole\n\n" + end, STREAM).lines
    assert done["acked"] == 1
    assert fault["status"] in (400, 413)
    assert last_event_id(server, topic) == done["id"]


def test_a_stream_without_events_is_done_at_once(server: Server, topic: str) -> None:
    """An empty stream, or one that never ends an event, publishes nothing and says so."""
    for body in (b"", b": hello\nretry: 5\n\n", b"id: 5\n\n", b": unfinished"):
        assert ask(server, "POST", f"/topics/{topic}", body, STREAM).lines == [{"done": True, "count": 0, "id": None}]
    assert last_event_id(server, topic) is None


def test_a_stream_may_be_cut_anywhere(server: Server, topic: str) -> None:
    """Byte by byte, with every kind of line end, it is the same events."""
    body = "\ufeffevent: a\r\ndata: grün\rdata: two\n\r\n: comment\nretry: 5\ndata: y\n\n".encode()
    *_, done = ask(server, "POST", f"/topics/{topic}", chunks(body, 1), STREAM).lines
    assert done["count"] == 2
    with Listener(server, f"/events?topic={topic}&last_event_id=earliest") as listener:
        listener.take()
        events = [listener.event() for _ in range(2)]
    assert [(event.get("event"), event["data"], "retry" in event) for event in events] == [
        ("a", "grün\ntwo", False),
        (None, "y", False),
    ]


def test_an_event_of_just_the_limit_passes_in_a_stream(server: Server, topic: str) -> None:
    """1 MiB of data in one event of a stream is published, though the stream as a whole is longer."""
    body = b"data: " + b"x" * MIB + b"\n\ndata: y\n\n"
    *_, done = ask(server, "POST", f"/topics/{topic}", chunks(body), STREAM).lines
    assert done["count"] == 2
    assert event_of(server, topic)["data"] == "x" * MIB


FAULTS: list[tuple[bytes, int, str]] = [
    (b"event: trio-sse.gap\ndata: x\n\n", 400, "use another name"),
    (b"event: a\x01b\ndata: x\n\n", 400, "U+0001"),
    (b"event: " + b"e" * 1025 + b"\ndata: x\n\n", 400, "1024 are allowed"),
    (b"data: \xff\n\n", 400, "not UTF-8"),
    (b"data: " + b"x" * (MIB + 1) + b"\n\n", 413, f"more than {MIB} bytes"),
    (b"data: x\n" * (MIB // 2 + 1) + b"\n", 413, f"more than {MIB} bytes"),
    (b"x" * (MIB + 64 * 1024), 413, "longer than"),
    (b"data\n" * MIB + b"\n", 413, "each line costs 6"),
]
FAULT_NAMES = ["reserved", "control", "long type", "utf-8", "1 MiB", "1 MiB of lines", "endless line", "line ends"]


@pytest.mark.parametrize(("fault", "status", "detail"), FAULTS, ids=FAULT_NAMES)
@pytest.mark.parametrize("size", [7 * MIB, 64 * 1024, 40], ids=["whole", "pieces", "small pieces"])
def test_what_comes_before_a_fault_is_published(
    server: Server, topic: str, fault: bytes, status: int, detail: str, size: int
) -> None:
    """Good events are committed and acknowledged, then the problem is a line, and nothing after it is taken."""
    good = b"id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\ndata: c\n\n"
    if size == 40 and len(fault) > 64 * 1024:
        size = 16 * 1024
    answer = ask(server, "POST", f"/topics/{topic}", chunks(good + fault + b"data: after\n\n", size), STREAM)
    assert answer.status == 200
    *acks, problem = answer.lines
    assert acks[-1]["acked"] == 3
    assert problem["status"] == status
    assert detail in problem["detail"]
    assert last_event_id(server, topic) == acks[-1]["id"]
    with Listener(server, f"/events?topic={topic}&last_event_id=earliest") as listener:
        listener.take()
        assert [listener.event()["data"] for _ in range(3)] == ["a", "b", "c"]


@pytest.mark.parametrize(("fault", "status", "detail"), FAULTS, ids=FAULT_NAMES)
def test_a_stream_that_begins_with_a_fault_is_refused_whole(
    server: Server, topic: str, fault: bytes, status: int, detail: str
) -> None:
    """When nothing could be committed, the answer's status says so, and the journal is as it was."""
    check_refused(ask(server, "POST", f"/topics/{topic}", fault + b"data: after\n\n", STREAM), status, detail)
    assert last_event_id(server, topic) is None


def test_a_publisher_that_leaves_in_mid_event_publishes_what_was_whole(server: Server, topic: str) -> None:
    """The half event of a publisher whose connection breaks is not published; the one before it is."""
    with Publisher(server, topic) as publisher:
        publisher.chunk(b"data: whole\n\ndata: ha")
        publisher.head()
        id = publisher.line()["id"]
    assert publish(server, f"{topic}/other")
    assert last_event_id(server, topic) == id


def test_publishers_that_reset_their_connection_harm_nobody(server: Server, topic: str) -> None:
    """After thirty resets in mid-stream every event is there once and whole, and the hub still works."""
    with Listener(server, f"/events?topic={topic}") as listener:
        listener.take()
        for number in range(30):
            with Publisher(server, topic) as publisher:
                publisher.chunk(b"data: %d\n\n" % number)
                if number % 2:
                    publisher.head()
                    publisher.line()
                publisher.chunk(b"data: never\n")
                publisher.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        last = publish(server, topic, "last")
        data = [event["data"] for event in iter(listener.event, {"id": last, "data": "last"})]
    assert {str(number) for number in range(1, 30, 2)} <= set(data)
    assert len(data) == len(set(data))
    assert "never" not in data


def resident(server: Server) -> int:
    """The most bytes of memory that the worker has held so far."""
    status = Path(f"/proc/{server.workers()[0]}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def test_a_long_stream_is_not_held_in_memory(server: Server, topic: str) -> None:
    """50 MiB of events, sent as fast as they are taken, do not make the worker grow by half of that."""
    event = b"data: " + b"x" * 10_000 + b"\n\n"
    ask(server, "POST", f"/topics/{topic}", chunks(event * 1000), STREAM)  # the journal is full from here on
    before = resident(server)
    *_, done = ask(server, "POST", f"/topics/{topic}", (event * 100 for _ in range(52)), STREAM).lines
    assert done["count"] == 5200
    assert resident(server) - before < 25 * MIB


def send_for_long(wire: Wire, piece: bytes) -> None:
    """Send the same again and again, for half a minute at most."""
    began = time.monotonic()
    while time.monotonic() - began < 30:
        wire.send(piece)


def test_a_publisher_that_never_reads_its_acknowledgements_is_let_go(
    server: Server, topic: str, baseline: dict[str, int]
) -> None:
    """It is read no faster than it reads; what it makes the worker hold is bounded, and in the end nothing."""
    before = resident(server)
    piece = b"a\r\ndata: xy\n\n\r\n" * 500  # each chunk is a commit, and so a line that is not read
    with Publisher(server, topic) as publisher:
        publisher.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(ConnectionError):
            send_for_long(publisher, piece)
    assert resident(server) - before < 25 * MIB
    assert eventually(lambda: not remains(server, baseline))


def test_acknowledgements_come_over_http_2_too(server: Server, topic: str) -> None:
    """A stream of events over HTTP/2 is acknowledged while it lasts, and its answer ends."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    names = {":method": "POST", ":scheme": "http", ":authority": "x", ":path": f"/topics/{topic}", **STREAM}
    client.send_headers(1, [(name.lower(), value) for name, value in names.items()])
    with Wire(server) as wire:
        body, ended = b"", False

        def exchange() -> None:
            nonlocal body, ended
            wire.send(client.data_to_send())
            received = wire.socket.recv(65536)
            assert received
            for event in client.receive_data(received):
                body += (event.data or b"") if isinstance(event, h2.events.DataReceived) else b""
                ended = ended or isinstance(event, h2.events.StreamEnded)

        for count in (1, 2):
            client.send_data(1, b"data: x\n\n")
            while body.count(b"\n") < count:
                exchange()
        client.end_stream(1)
        while not ended:
            exchange()
    first, second, done = map(json.loads, body.splitlines())
    assert (first["acked"], second["acked"]) == (1, 2)
    assert done == {"done": True, "count": 2, "id": last_event_id(server, topic)}


def test_nothing_of_a_publisher_remains(server: Server, topic: str, baseline: dict[str, int]) -> None:
    """However publishers end, the worker's tasks, descriptors and streams are afterwards what they were before."""
    for _ in range(5):
        publish(server, topic)
        ask(server, "POST", f"/topics/{topic}", b"data: x\n\n", STREAM)
        ask(server, "POST", f"/topics/{topic}", b"data: \xff\n\n", STREAM)
        ask(server, "POST", f"/topics/{topic}", b"x" * (MIB + 1))
        with Publisher(server, topic) as publisher:
            publisher.chunk(b"data: whole\n\ndata: ha")
        with Wire(server) as wire:
            wire.send(f"POST /topics/{topic} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf".encode())
    assert eventually(lambda: not remains(server, baseline))
