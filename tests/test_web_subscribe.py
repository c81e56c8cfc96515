"""``GET /events`` over the real server: what a subscriber reads, byte for byte."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import h2.config
import h2.connection
import h2.events
import jwt
import pytest

from .conftest import KEY, STALL_S, Listener, Wire, ask, bearer, eventually, metric, publish, sign
from .serving import Server, serving

KEPT = 5
HEARTBEAT_S = 0.5
ENV = {
    "TRIO_SSE_JWT_KEY": KEY,
    "TRIO_SSE_ANONYMOUS": "publish,subscribe",
    "TRIO_SSE_RETENTION_EVENTS": str(KEPT),
    "TRIO_SSE_HEARTBEAT_S": str(HEARTBEAT_S),
}
GAP = "trio-sse.gap"


def gap_of(event: dict[str, str]) -> dict[str, str]:
    """What a gap tells; its id must be the position that it resumes from."""
    assert event["event"] == GAP, event
    told: dict[str, str] = json.loads(event["data"])
    assert event["id"] == told["resumed_from"]
    assert told.keys() == {"requested", "resumed_from", "reason"}
    return told


# -- the first bytes --------------------------------------------------------------------------------------------------


def test_a_stream_opens_with_a_comment_the_reconnection_time_and_a_position(server: Server, topic: str) -> None:
    """The first block is a comment, ``retry: 2000`` and the position, byte for byte."""
    with Listener(server, f"/events?topic={topic}") as listener:
        opening = listener.take()
    assert re.fullmatch(rb": stream\nretry: 2000\nid: [0-9]{13}-0\n\n", opening)


def test_the_header_names_the_same_position_as_the_first_block(server: Server, topic: str) -> None:
    """The response header Last-Event-ID is the id of the position block."""
    with Listener(server, f"/events?topic={topic}") as listener:
        assert listener.event()["id"] == listener.response.headers["Last-Event-ID"]


def test_the_headers_keep_caches_and_proxies_away(server: Server, topic: str) -> None:
    """The type is text/event-stream, nothing stores it, nginx does not buffer it, and Connection is not named."""
    with Listener(server, f"/events?topic={topic}") as listener:
        headers = listener.response.headers
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Accel-Buffering"] == "no"
    assert "Connection" not in headers


def test_http_2_carries_the_same_stream_without_a_connection_header(server: Server, topic: str) -> None:
    """Over HTTP/2 with prior knowledge the opening is the same, and the headers are lawful there."""
    with Wire(server) as wire:
        client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        client.initiate_connection()
        names = {":method": "GET", ":scheme": "http", ":authority": "x", ":path": f"/events?topic={topic}"}
        client.send_headers(1, list(names.items()), end_stream=True)
        headers: dict[str, str] = {}
        body = b""
        while b"\n\n" not in body:
            wire.send(client.data_to_send())
            received = wire.socket.recv(65536)
            assert received
            for event in client.receive_data(received):
                if isinstance(event, h2.events.ResponseReceived):
                    headers = {str(name): str(value) for name, value in event.headers or ()}
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data or b""
    assert headers[":status"] == "200"
    assert headers["content-type"] == "text/event-stream"
    assert "connection" not in headers
    assert body == f": stream\nretry: 2000\nid: {headers['last-event-id']}\n\n".encode()


def test_http_1_0_gets_a_stream_that_is_not_chunked(server: Server, topic: str) -> None:
    """A proxy that speaks HTTP/1.0 reads the bare bytes of the stream, and its end is the connection's."""
    with Wire(server) as wire:
        wire.send(f"GET /events?topic={topic} HTTP/1.0\r\n\r\n".encode())
        head = wire.take(b"\r\n\r\n").lower()
        assert b" 200 " in head
        assert b"transfer-encoding" not in head
        assert wire.take(b"\n\n").startswith(b": stream\nretry: 2000\nid: ")
        id = publish(server, topic, "hello")
        assert wire.take(b"\n\n").replace(b":\n", b"") == f"id: {id}\ndata: hello\n\n".encode()


def test_a_heartbeat_comes_while_nothing_else_does(server: Server, topic: str) -> None:
    """A silent stream says ``:`` and one line end within the promised time, and nothing else."""
    with Listener(server, f"/events?topic={topic}") as listener:
        listener.take()
        began = time.monotonic()
        assert [listener.take(b"\n") for _ in range(3)] == [b":\n"] * 3
        assert time.monotonic() - began < 2 * 3 * HEARTBEAT_S + STALL_S


# -- what comes -------------------------------------------------------------------------------------------------------


def test_an_event_arrives_with_the_id_its_publisher_was_told(server: Server, topic: str) -> None:
    """The frame is id, event, data and a blank line, and the id is the one in the publisher's answer."""
    with Listener(server, f"/events?topic={topic}") as listener:
        listener.take()
        answer = ask(server, "POST", f"/topics/{topic}?event=greeting", b"hello\nworld")
        frame = listener.take().replace(b":\n", b"")
    assert frame == f"id: {answer.json['id']}\nevent: greeting\ndata: hello\ndata: world\n\n".encode()


def test_every_subscriber_gets_every_event_in_one_order(server: Server, topic: str) -> None:
    """Three subscribers of a topic each receive each of its events, in the order of publishing."""
    target = f"/events?topic={topic}"
    with Listener(server, target) as one, Listener(server, target) as two, Listener(server, target) as three:
        listeners = (one, two, three)
        for listener in listeners:
            listener.take()
        ids = [publish(server, topic) for _ in range(20)]
        for listener in listeners:
            assert [listener.event()["id"] for _ in ids] == ids


def test_one_stream_carries_several_topics_in_order(server: Server, topic: str) -> None:
    """A subscriber of two topics receives both, in the journal's order, and no third."""
    with Listener(server, f"/events?topic={topic}/a&topic={topic}/b") as listener:
        listener.take()
        publish(server, f"{topic}/c")
        ids = [publish(server, f"{topic}/{name}") for name in "abba"]
        assert [listener.event()["id"] for _ in ids] == ids


def test_a_star_is_one_segment(server: Server, topic: str) -> None:
    """``*`` chooses the topics one segment below, not those two below."""
    with Listener(server, f"/events?topic={topic}/*") as listener:
        listener.take()
        publish(server, f"{topic}/a/b")
        id = publish(server, f"{topic}/a")
        assert listener.event()["id"] == id


def test_two_stars_are_all_below(server: Server, topic: str) -> None:
    """A last ``**`` chooses every topic below, however deep."""
    with Listener(server, f"/events?topic={topic}/**") as listener:
        listener.take()
        publish(server, topic)
        ids = [publish(server, f"{topic}/{name}") for name in ("a", "a/b", "a/b/c")]
        assert [listener.event()["id"] for _ in ids] == ids


def test_an_event_that_two_selectors_choose_comes_once(server: Server, topic: str) -> None:
    """Overlapping selectors do not double an event."""
    with Listener(server, f"/events?topic={topic}/a&topic={topic}/*&topic={topic}/**") as listener:
        listener.take()
        ids = [publish(server, f"{topic}/a"), publish(server, f"{topic}/a")]
        assert [listener.event()["id"] for _ in ids] == ids


def test_a_token_and_no_topic_is_the_callers_own_inbox(server: Server) -> None:
    """Without a topic, the token's subject reads user/<sub>."""
    sender = bearer(sign("sender", publish=["user/inbox-owner"]))
    with Listener(server, "/events", bearer(sign("inbox-owner"))) as listener:
        listener.take()
        id = publish(server, "user/inbox-owner", "for your eyes", sender)
        assert listener.event() == {"id": id, "data": "for your eyes"}


def test_no_topic_and_no_token_is_refused(server: Server) -> None:
    """Nobody in particular has no inbox: 400 says to name a topic."""
    answer = ask(server, "GET", "/events")
    assert answer.status == 400
    assert "name at least one topic" in answer.json["detail"]


@pytest.mark.parametrize(
    ("selector", "rule"),
    [
        ("", "is empty"),
        ("a//b", "segment ''"),
        ("/a", "segment ''"),
        ("a/../b", "segment '..'"),
        ("a/**/b", "only be the last"),
        ("user/*", "never reach user/"),
        ("a%00", "U+0000"),
        ("a%E2%80%8B", "U+200B"),
        ("u%CC%88", "normal form C"),
        ("a" * 257, "256 are allowed"),
        ("%ff", "not percent-encoded UTF-8"),
    ],
)
def test_a_selector_that_breaks_a_rule_is_refused(server: Server, selector: str, rule: str) -> None:
    """What is no selector is answered with 400 and the rule that it breaks."""
    answer = ask(server, "GET", f"/events?topic={selector}")
    assert answer.status == 400
    assert rule in answer.json["detail"]


def test_more_than_a_hundred_selectors_are_refused(server: Server, topic: str) -> None:
    """A hundred topics may be asked for, a hundred and one may not."""
    query = "&".join(f"topic={topic}/{number}" for number in range(101))
    answer = ask(server, "GET", f"/events?{query}")
    assert answer.status == 400
    assert "1 to 100" in answer.json["detail"]
    assert ask(server, "HEAD", f"/events?{query.rpartition('&')[0]}").status == 200


def test_what_is_asked_for_is_counted_before_it_is_read(server: Server) -> None:
    """None of the selectors is looked at; one that is asked for twice counts once."""
    query = "&".join(f"topic=a//{number}" for number in range(101))
    assert "101 topics were asked for" in ask(server, "GET", f"/events?{query}").json["detail"]
    assert ask(server, "HEAD", "/events?" + "&".join(["topic=a"] * 101)).status == 200


def test_a_token_with_a_selector_that_is_too_wild_keeps_the_others(tmp_path: Path) -> None:
    """The log says once which one counts for nothing; a hundred rights and two wildcards are a stream."""
    env = ENV | {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_ANONYMOUS": ""}
    rights = [*(f"room/{number}/**" for number in range(99)), "*/*/*/*"]
    claims = {"sub": "ada", "exp": int(time.time()) + 60, "sse": {"subscribe": rights, "publish": ["room/**"]}}
    headers = bearer(jwt.encode(claims, KEY, "HS256"))
    with serving(folder=tmp_path, env=env) as server:
        with Listener(server, "/events?topic=room/*/*/a&topic=room/*/*/b", headers) as listener:
            listener.take()
            id = publish(server, "room/98/x/b", headers=headers)
            assert listener.event() == {"id": id, "data": "x"}
        assert ask(server, "HEAD", "/events?topic=a/b/c/d", headers=headers).status == 403
        assert eventually(lambda: server.log().count("the selector has 4 times *") == 1)


# -- where it begins --------------------------------------------------------------------------------------------------


@pytest.fixture
def ids(server: Server, topic: str) -> list[str]:
    """Three events that are there already."""
    return [publish(server, topic, str(number)) for number in range(3)]


def received(server: Server, target: str, count: int, headers: dict[str, str] | None = None) -> list[str]:
    """The ids of the first events after the opening, and that it names no other position in its header."""
    with Listener(server, target, headers) as listener:
        assert listener.event()["id"] == listener.response.headers["Last-Event-ID"]
        return [listener.event()["id"] for _ in range(count)]


def test_the_header_resumes_after_its_event(server: Server, topic: str, ids: list[str]) -> None:
    """Last-Event-ID gives what came after it, from there on."""
    assert received(server, f"/events?topic={topic}", 2, {"Last-Event-ID": ids[0]}) == ids[1:]


@pytest.mark.parametrize("name", ["last_event_id", "lastEventId"])
def test_the_query_resumes_after_its_event(server: Server, topic: str, ids: list[str], name: str) -> None:
    """A page, which cannot set headers, resumes with a query parameter, under either name."""
    assert received(server, f"/events?topic={topic}&{name}={ids[0]}", 2) == ids[1:]


@pytest.mark.parametrize("query", ["{first}", "no-cursor-at-all", "earliest"])
def test_the_header_wins_over_the_query(server: Server, topic: str, ids: list[str], query: str) -> None:
    """A browser that reconnects knows better than the address it was opened with."""
    target = f"/events?topic={topic}&last_event_id={query.format(first=ids[0])}"
    assert received(server, target, 1, {"Last-Event-ID": ids[1]}) == ids[2:]


@pytest.mark.parametrize("query", ["", "&last_event_id=", "&lastEventId="])
def test_no_cursor_begins_with_the_next_event(server: Server, topic: str, ids: list[str], query: str) -> None:
    """Without a cursor, or with an empty one, nothing old is given."""
    with Listener(server, f"/events?topic={topic}{query}", {"Last-Event-ID": ""}) as listener:
        listener.take()
        id = publish(server, topic)
        assert listener.event()["id"] == id
        assert id not in ids


def test_earliest_begins_with_the_oldest_event_and_no_gap(server: Server, topic: str) -> None:
    """``earliest`` gives all that is kept; that more once was is no loss to somebody who is new."""
    ids = [publish(server, topic) for _ in range(KEPT + 3)]
    with Listener(server, f"/events?topic={topic}&last_event_id=earliest") as listener:
        listener.take()
        events = [listener.event() for _ in range(KEPT)]
    assert [event["id"] for event in events] == ids[-KEPT:]
    assert not any("event" in event for event in events)


def test_the_position_of_an_idle_stream_resumes_without_loss(server: Server, topic: str) -> None:
    """A browser that never had an event reconnects with the position, and gets what was published meanwhile."""
    with Listener(server, f"/events?topic={topic}") as listener:
        position = listener.event()["id"]
    id = publish(server, topic)
    assert received(server, f"/events?topic={topic}", 1, {"Last-Event-ID": position}) == [id]


def test_history_and_live_join_without_a_hole_or_an_echo(server: Server, topic: str, ids: list[str]) -> None:
    """After the history come the events published since, each once."""
    with Listener(server, f"/events?topic={topic}&last_event_id={ids[0]}") as listener:
        listener.take()
        ids += [publish(server, topic) for _ in range(2)]
        assert [listener.event()["id"] for _ in ids[1:]] == ids[1:]


@pytest.mark.parametrize(
    "cursor", ["x", "5", "5-", "-5", "5-5-5", "5-5%20", "+5-5", "%D9%A1-%D9%A1", "1" * 16 + "-1", "1-" + "1" * 16]
)
def test_a_cursor_in_the_query_that_is_none_is_refused(server: Server, topic: str, cursor: str) -> None:
    """A person wrote it, so a person is told what a cursor looks like."""
    answer = ask(server, "GET", f"/events?topic={topic}&last_event_id={cursor}")
    assert answer.status == 400
    assert "1700000000000-3" in answer.json["detail"]


# -- what cannot be given back ----------------------------------------------------------------------------------------


def test_a_header_that_is_no_cursor_is_a_gap_and_everything_kept(server: Server, topic: str, ids: list[str]) -> None:
    """A header from elsewhere is never refused: reason unknown, cut to 64 characters, from the oldest event on."""
    garbage = "elsewhere/" * 10
    with Listener(server, f"/events?topic={topic}", {"Last-Event-ID": garbage}) as listener:
        assert listener.response.status == 200
        listener.take()
        gap = gap_of(listener.event())
        assert [listener.event()["id"] for _ in ids] == ids
    assert gap["reason"] == "unknown"
    assert gap["requested"] == garbage[:64]
    assert gap["resumed_from"] == listener.response.headers["Last-Event-ID"]


def test_a_cursor_ahead_of_the_journal_is_a_gap(server: Server, topic: str, ids: list[str]) -> None:
    """A cursor that the journal never gave is said to be ahead, and everything kept follows."""
    with Listener(server, f"/events?topic={topic}", {"Last-Event-ID": "999999999999999-1"}) as listener:
        listener.take()
        gap = gap_of(listener.event())
        assert [listener.event()["id"] for _ in ids] == ids
    assert gap["reason"] == "ahead"
    assert gap["requested"] == "999999999999999-1"


def test_a_trimmed_cursor_is_a_gap_at_the_place_of_the_hole(server: Server, topic: str) -> None:
    """What retention removed is said before what is left, and the header says where the stream resumed."""
    ids = [publish(server, topic) for _ in range(KEPT + 3)]
    with Listener(server, f"/events?topic={topic}", {"Last-Event-ID": ids[0]}) as listener:
        listener.take()
        gap = gap_of(listener.event())
        assert [listener.event()["id"] for _ in range(KEPT)] == ids[-KEPT:]
    assert gap["requested"] == ids[0]
    assert gap["reason"] == "trimmed"
    assert gap["resumed_from"] == listener.response.headers["Last-Event-ID"] == ids[-KEPT - 1]


def test_a_gap_is_told_once(server: Server, topic: str) -> None:
    """Who resumes with the gap's own id gets what is left, and no gap."""
    ids = [publish(server, topic) for _ in range(KEPT + 3)]
    with Listener(server, f"/events?topic={topic}", {"Last-Event-ID": ids[0]}) as listener:
        listener.take()
        resumed_from = gap_of(listener.event())["resumed_from"]
    assert received(server, f"/events?topic={topic}", KEPT, {"Last-Event-ID": resumed_from}) == ids[-KEPT:]


def test_a_gap_that_did_not_arrive_is_told_again(server: Server, topic: str) -> None:
    """Should the connection break before the gap came, the position it opened with leads to the gap again."""
    ids = [publish(server, topic) for _ in range(KEPT + 3)]
    with Listener(server, f"/events?topic={topic}", {"Last-Event-ID": ids[0]}) as listener:
        position = listener.event()["id"]
    with Listener(server, f"/events?topic={topic}", {"Last-Event-ID": position}) as listener:
        listener.take()
        assert gap_of(listener.event())["reason"] == "trimmed"


def test_exactly_what_is_kept_is_no_gap(server: Server, topic: str) -> None:
    """Who missed just as much as is kept has lost nothing."""
    ids = [publish(server, topic) for _ in range(KEPT + 1)]
    assert received(server, f"/events?topic={topic}", KEPT, {"Last-Event-ID": ids[0]}) == ids[1:]


def test_a_quiet_topic_in_a_busy_journal_has_no_gap(server: Server, topic: str) -> None:
    """What was trimmed from another topic is no loss to the reader of this one."""
    quiet = publish(server, f"{topic}/quiet")
    for _ in range(2 * KEPT):
        publish(server, f"{topic}/busy")
    with Listener(server, f"/events?topic={topic}/quiet", {"Last-Event-ID": quiet}) as listener:
        listener.take()
        id = publish(server, f"{topic}/quiet")
        assert listener.event() == {"id": id, "data": "x"}


def test_a_gap_reveals_nothing_of_topics_one_may_not_read(tmp_path: Path) -> None:
    """What was trimmed from somebody's inbox is no gap to a reader of every public topic."""
    with serving(folder=tmp_path, env={"TRIO_SSE_JOURNAL": "memory:", **ENV}) as server:
        first = publish(server, "room")
        sender = bearer(sign("sender", publish=["user/bob"]))
        for _ in range(2 * KEPT):
            publish(server, "user/bob", headers=sender)
        with Listener(server, "/events?topic=**", {"Last-Event-ID": first}) as listener:
            listener.take()
            id = publish(server, "room")
            assert listener.event() == {"id": id, "data": "x"}


def test_gaps_are_counted_when_they_are_told(server: Server, topic: str) -> None:
    """A gap told is one in the metrics; a HEAD that would have told one is none."""
    before = metric(server, "trio_sse_gaps_total")
    ask(server, "HEAD", f"/events?topic={topic}", headers={"Last-Event-ID": "garbage"})
    with Listener(server, f"/events?topic={topic}", {"Last-Event-ID": "garbage"}) as listener:
        listener.take()
        gap_of(listener.event())
    assert metric(server, "trio_sse_gaps_total") == before + 1


def test_a_restarted_memory_journal_is_a_visible_gap(tmp_path: Path) -> None:
    """A cursor from the journal's earlier life is answered with a gap, not with silence."""
    with serving(folder=tmp_path, env={"TRIO_SSE_JOURNAL": "memory:"}) as server:
        old = publish(server, "room")
        server.kill()
        server.start()
        with Listener(server, "/events?topic=room", {"Last-Event-ID": old}) as listener:
            listener.take()
            gap = gap_of(listener.event())
            new = publish(server, "room")
            assert listener.event()["id"] == new
    assert gap["reason"] == "restarted"
    assert gap["requested"] == old


# -- how it ends ------------------------------------------------------------------------------------------------------


# -- who is slow ------------------------------------------------------------------------------------------------------


def test_the_latest_of_each_key_is_all_there_is_of_the_past(server: Server, topic: str) -> None:
    """In the order of their ids; without a key, the newest of the topic."""
    for data, key in (("x1", "x"), ("y1", "y"), ("1", ""), ("x2", "x"), ("2", "")):
        query = f"?key={key}" if key else ""
        assert ask(server, "POST", f"/topics/{topic}{query}", data.encode()).status == 201
    for slow, told in (("latest", ["y1", "x2", "2"]), ("catch-up", ["x1", "y1", "1", "x2", "2"])):
        with Listener(server, f"/events?topic={topic}&last_event_id=earliest&slow={slow}") as listener:
            listener.take()
            assert [listener.event()["data"] for _ in told] == told


def test_who_reads_slowly_gets_the_latest_of_each_key(server: Server, topic: str) -> None:
    """What a stopped reader has not taken is replaced: it ends with the newest of each, in order, without a gap."""
    keys = ["x", "y", "z"]
    path = f"/events?topic={topic}&slow=latest"
    with Wire(server) as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wire.take(b"\n\n")
        padding = "p" * 50_000
        for number in range(60):
            for key in keys:
                ask(server, "POST", f"/topics/{topic}?key={key}", f"{key}{number:02} {padding}".encode())
        ask(server, "POST", f"/topics/{topic}?key=end", b"end")
        told = wire.take(b"data: end\n\n").replace(b"\r\n", b"\n")
    got = re.findall(rb"^data: (\w)(\d\d) ", told, re.MULTILINE)
    ids = [tuple(map(int, id)) for id in re.findall(rb"^id: (\d+)-(\d+)$", told, re.MULTILINE)]
    assert ids == sorted(set(ids))
    assert dict(got) == {b"x": b"59", b"y": b"59", b"z": b"59"}
    assert got[-3:] == [(b"x", b"59"), (b"y", b"59"), (b"z", b"59")]
    assert len(got) < 120
    assert b"trio-sse.gap" not in told


@pytest.mark.parametrize("slow", ["", "fast", "LATEST", "latest&slow=latest"])
def test_a_policy_that_is_none_is_refused(server: Server, topic: str, slow: str) -> None:
    """With the two that there are."""
    refused = ask(server, "GET", f"/events?topic={topic}&slow={slow}")
    assert refused.status == 400
    assert "slow is" in refused.json["detail"]


def test_head_has_the_headers_and_ends_at_once(server: Server, topic: str) -> None:
    """HEAD shows what GET would be, and subscribes nobody."""
    answer = ask(server, "HEAD", f"/events?topic={topic}")
    assert answer.status == 200
    with Wire(server) as wire:
        wire.send(f"HEAD /events?topic={topic} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert wire.rest().endswith(b"\r\n\r\n")
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert re.fullmatch(r"[0-9]+-0", answer.headers["Last-Event-ID"])
    assert ask(server, "GET", f"/topics/{topic}").json["subscribers"] == 0


def test_a_stream_ends_when_its_token_expires(server: Server, topic: str) -> None:
    """At ``exp``, give or take a second, the stream says goodbye, when to come back, and ends."""
    token = sign("ada", subscribe=["**"], ttl_s=5)
    expires_at: int = jwt.decode(token, options={"verify_signature": False})["exp"]
    with Listener(server, f"/events?topic={topic}", bearer(token)) as listener:
        listener.take()
        end = listener.rest().decode().replace(":\n", "")
    assert -1 <= time.time() - expires_at <= 2 * 1 + STALL_S
    assert re.fullmatch(r'event: trio-sse\.goodbye\nretry: [0-9]+\ndata: {"reason": "expired"}\n\n', end)


def test_a_subscriber_that_leaves_is_forgotten(server: Server, topic: str) -> None:
    """After a disconnect the streams and the topic's subscribers are what they were before."""
    assert eventually(lambda: metric(server, "trio_sse_streams") == 0)
    with Listener(server, f"/events?topic={topic}") as listener:
        listener.take()
        assert metric(server, "trio_sse_streams") == 1
        assert ask(server, "GET", f"/topics/{topic}").json["subscribers"] == 1
    assert eventually(lambda: metric(server, "trio_sse_streams") == 0)
    assert eventually(lambda: ask(server, "GET", f"/topics/{topic}").json["subscribers"] == 0)


def test_a_killed_client_is_forgotten(server: Server, topic: str) -> None:
    """A client process that dies of SIGKILL leaves nothing behind."""
    assert eventually(lambda: metric(server, "trio_sse_streams") == 0)
    program = "import sys, urllib.request as r; s = r.urlopen(sys.argv[1]); [s.readline() for _ in iter(int, 1)]"
    client = subprocess.Popen([sys.executable, "-c", program, f"{server.url}/events?topic={topic}"])
    try:
        assert eventually(lambda: metric(server, "trio_sse_streams") == 1)
        client.send_signal(signal.SIGKILL)
    finally:
        client.kill()
        client.wait()
    assert eventually(lambda: metric(server, "trio_sse_streams") == 0)


def test_a_hundred_comings_and_goings_leave_no_descriptor(server: Server, topic: str) -> None:
    """The worker's open files are as many after a hundred streams as before."""
    descriptors = Path(f"/proc/{server.workers()[0]}/fd")
    ask(server, "GET", "/healthz")
    assert eventually(lambda: metric(server, "trio_sse_streams") == 0)
    before = len(list(descriptors.iterdir()))
    for _ in range(100):
        with Listener(server, f"/events?topic={topic}") as listener:
            listener.take()
    assert eventually(lambda: len(list(descriptors.iterdir())) <= before)
    assert eventually(lambda: metric(server, "trio_sse_streams") == 0)


# -- who may ----------------------------------------------------------------------------------------------------------


def test_a_wildcard_is_cut_down_to_what_the_token_allows(tmp_path_factory: pytest.TempPathFactory, topic: str) -> None:
    """Asked for everything, a token for room/* gives the rooms, from the history and live."""
    with serving(
        folder=tmp_path_factory.mktemp("hub"), env={"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_JWT_KEY": KEY}
    ) as server:
        writer, reader = bearer(sign(publish=["**"])), bearer(sign(subscribe=["room/*"]))
        publish(server, "other", headers=writer)
        ids = [publish(server, "room/1", headers=writer)]
        with Listener(server, f"/events?topic={quote('**')}&last_event_id=earliest", reader) as listener:
            listener.take()
            publish(server, "other", headers=writer)
            ids.append(publish(server, "room/2", headers=writer))
            assert [listener.event()["id"] for _ in ids] == ids
        assert ask(server, "GET", "/events?topic=other", headers=reader).status == 403
        assert ask(server, "GET", "/events?topic=other").status == 401
