"""``Idempotency-Key`` over the real server: publishing again is harmless, also after a ``kill -9``."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from .conftest import KEY, Answer, Listener, Wire, ask, bearer, metric, sign
from .serving import Server, serving

ENV = {"TRIO_SSE_RETENTION_EVENTS": "3", "TRIO_SSE_ANONYMOUS": "publish,subscribe", "TRIO_SSE_JWT_KEY": KEY}
JSON = {"Content-Type": "application/json"}
CORS = {"Origin": "https://app.example"}


def post(
    server: Server,
    topic: str,
    body: bytes = b"x",
    key: str = "one",
    headers: dict[str, str] | None = None,
    query: str = "",
) -> Answer:
    return ask(server, "POST", f"/topics/{topic}{query}", body, {"Idempotency-Key": key, **(headers or {})})


def events(server: Server, topic: str) -> list[bytes]:
    """The data of all that is kept of a topic, up to an event that is published now."""
    last = post(server, topic, b"the end", "the end").json["id"]
    with Listener(server, f"/events?topic={topic}&last_event_id=earliest") as listener:
        blocks = listener.take(f"id: {last}\n".encode() + b"data: the end\n\n")
    return [line[6:] for line in blocks.splitlines() if line.startswith(b"data: ")][:-1]


def test_the_same_again_is_answered_alike(server: Server, topic: str) -> None:
    """201 with the same id, and a header that says it was there; nobody hears of it a second time."""
    published = metric(server, "trio_sse_published_total")
    with Listener(server, f"/events?topic={topic}") as listener:
        first, again = post(server, topic), post(server, topic)
        assert (first.status, again.status) == (201, 201)
        assert first.json == again.json
        assert first.headers["Idempotency-Replayed"] is None
        assert again.headers["Idempotency-Replayed"] == "true"
        post(server, topic, b"y", "two")
        listener.take()
        assert [listener.event()["data"], listener.event()["data"]] == ["x", "y"]
    assert metric(server, "trio_sse_published_total") == published + 2


@pytest.mark.parametrize(
    ("body", "headers", "query"),
    [(b"y", {}, ""), (b"", {}, ""), (b"x ", {}, ""), (b"x", {}, "?event=other"), (b"x", {}, "?key=k")],
)
def test_another_event_under_the_key_is_refused(
    server: Server, topic: str, body: bytes, headers: dict[str, str], query: str
) -> None:
    """422, and nothing of it is kept: another body, type or key is another event."""
    post(server, topic)
    refused = post(server, topic, body, headers=headers, query=query)
    assert refused.status == 422
    assert "give each event a key of its own" in refused.json["detail"]
    assert events(server, topic) == [b"x"]


def test_a_key_belongs_to_a_subject_and_a_topic(server: Server, topic: str) -> None:
    """Ada's, Bob's and nobody's are three; another topic has its own."""
    tokens = [None, sign("ada", publish=["**"]), sign("bob", publish=["**"])]
    answers = [post(server, topic, headers=bearer(token) if token else {}) for token in tokens]
    answers.append(post(server, f"{topic}/other"))
    assert [answer.status for answer in answers] == [201] * 4
    assert len({answer.json["id"] for answer in answers}) == 4
    again = post(server, topic, headers=bearer(sign("ada", publish=["**"], ttl_s=99)))  # another token of hers
    assert again.json["id"] == answers[1].json["id"]


@pytest.mark.parametrize("key", ["k", "k" * 255, "a b", '"8e03978e-40d5"', "~!#$%&'*+-.^_`|{}()<>@,;:/[]?="])
def test_any_printable_ascii_is_a_key(server: Server, topic: str, key: str) -> None:
    """Up to 255 characters of it."""
    assert post(server, topic, key=key).status == 201
    assert post(server, topic, key=key).headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb", "caf\u00e9", "\x7f"])
def test_what_is_no_key_is_refused(server: Server, topic: str, key: str) -> None:
    """With what one is, and before anything is published."""
    refused = post(server, topic, key=key)
    assert refused.status == 400
    if refused.headers["Content-Type"] == "application/problem+json":  # not what the HTTP parser itself refuses
        assert "1 to 255 printable ASCII characters" in refused.json["detail"]
    assert events(server, topic) == []


def test_two_keys_are_refused(server: Server, topic: str) -> None:
    """Which of them counts nobody can say."""
    lines = f"POST /topics/{topic} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n"
    with Wire(server) as wire:
        wire.send(lines.encode() + b"Content-Length: 1\r\n\r\nx")
        assert wire.take(b"\r\n").startswith(b"HTTP/1.1 400")


def test_a_stream_of_events_has_no_key(server: Server, topic: str) -> None:
    """It has numbers of its own, and is told so."""
    refused = post(server, topic, b"data: x\n\n", headers={"Content-Type": "text/event-stream"})
    assert refused.status == 400
    assert "leave Idempotency-Key out" in refused.json["detail"]


def test_what_cannot_be_published_takes_no_key(server: Server, topic: str) -> None:
    """The key is free for what is meant."""
    assert post(server, topic, b"{", headers=JSON).status == 400
    assert post(server, topic, b"{}", headers=JSON).status == 201


def test_a_key_outlives_its_event(server: Server, topic: str) -> None:
    """The event is trimmed, and still not published again."""
    first = post(server, topic)
    for number in range(5):
        post(server, topic, b"%d" % number, f"other {number}")
    again = post(server, topic)
    assert again.json["id"] == first.json["id"]
    assert b"x" not in events(server, topic)


def test_twenty_at_once_are_one(server: Server, topic: str) -> None:
    """Whoever comes while the first is unwritten waits for it, and has its id."""
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(post(server, topic))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status for answer in answers} == {201}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert sum(answer.headers["Idempotency-Replayed"] is None for answer in answers) == 1
    assert events(server, topic) == [b"x"]


def test_pages_of_other_origins_may_use_it(tmp_path: Path) -> None:
    """The preflight allows the header, and the page may read what the answer says."""
    with serving(
        folder=tmp_path, env={"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_ALLOW_ORIGINS": "https://app.example"}
    ) as s:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key"}
        preflight = ask(s, "OPTIONS", "/topics/a", headers={**CORS, **asked})
        assert "idempotency-key" in preflight.headers["Access-Control-Allow-Headers"].lower()
        post(s, "a", headers=CORS)
        assert "Idempotency-Replayed" in post(s, "a", headers=CORS).headers["Access-Control-Expose-Headers"]


def test_it_survives_kill_9(tmp_path: Path) -> None:
    """With the event, whose id the next life answers with; and what it refuses stays refused."""
    env = {**ENV, "TRIO_SSE_JOURNAL": f"sqlite:{tmp_path}/hub.db"}
    with serving(folder=tmp_path, env=env) as server:
        first = post(server, "a")
        server.kill()
        server.start()
        again = post(server, "a")
        assert (again.json["id"], again.headers["Idempotency-Replayed"]) == (first.json["id"], "true")
        assert post(server, "a", b"y").status == 422
        assert events(server, "a") == [b"x"]


def test_a_memory_journal_forgets_it(tmp_path: Path) -> None:
    """Its keys end with its events, when the server does."""
    with serving(folder=tmp_path, env={**ENV, "TRIO_SSE_JOURNAL": "memory:"}) as server:
        first = post(server, "a")
        server.terminate()
        server.start()
        again = post(server, "a")
        assert again.headers["Idempotency-Replayed"] is None
        assert again.json["id"] != first.json["id"]
