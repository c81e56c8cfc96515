"""``/healthz``, ``/readyz`` and ``/metrics`` over the real server: what an operator is told."""

from __future__ import annotations

import contextlib
import http.client
import sqlite3
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from trio_sse.journal.costs import MEMORY

from .conftest import KEY, Listener, ask, bearer, eventually, metric, publish, sign
from .serving import Server, serving

PROGRAM = """
from quart import Response
from trio_sse.app import app

@app.post("/test/end")
async def end():
    app.hub.end_streams("shutdown")
    return Response("ended")
"""
ENV = {"TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_ANONYMOUS": "publish,subscribe", "TRIO_SSE_BUFFER_EVENTS": "4"}


def test_a_server_that_runs_is_alive(server: Server) -> None:
    """/healthz is 200 and says so in text."""
    answer = ask(server, "GET", "/healthz")
    assert (answer.status, answer.body) == (200, b"alive\n")
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_a_server_that_takes_streams_is_ready(server: Server) -> None:
    """/readyz is 200 and says so in text."""
    answer = ask(server, "GET", "/readyz")
    assert (answer.status, answer.body) == (200, b"ready\n")


def test_a_server_that_can_keep_nothing_is_not_ready(tmp_path: Path) -> None:
    """While publishing fails, /readyz says why; when it works again, so does /readyz."""
    with serving(folder=tmp_path, env={"TRIO_SSE_JOURNAL": "sqlite:journal.db"}) as server:
        blocker = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        assert ask(server, "POST", "/topics/a", b"x").status == 503
        answer = ask(server, "GET", "/readyz")
        assert (answer.status, answer.json["status"]) == (503, 503)
        assert "try again later" in answer.json["detail"]
        blocker.execute("ROLLBACK")
        blocker.close()
        assert ask(server, "POST", "/topics/a", b"x").status == 201
        assert ask(server, "GET", "/readyz").status == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_each_may_be_asked_for_its_head_alone(server: Server, path: str) -> None:
    """HEAD has the status and no body."""
    answer = ask(server, "HEAD", path)
    assert (answer.status, answer.body) == (200, b"")


def test_the_metrics_are_what_prometheus_reads(server: Server) -> None:
    """Each metric has a type and a help that says what it counts; the latency is a histogram."""
    answer = ask(server, "GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = {
        family.name.removeprefix("trio_sse_"): family
        for family in text_string_to_metric_families(answer.body.decode())
        if not family.name.endswith("_created")  # which some versions of the client add
    }
    assert {name: family.type for name, family in families.items()} == {
        "streams": "gauge",
        "published": "counter",
        "delivered": "counter",
        "written": "counter",
        "lagging": "counter",
        "gaps": "counter",
        "refused": "counter",
        "over_rate": "counter",
        "body_bytes": "gauge",
        "bodies_refused": "counter",
        "counted_streams": "gauge",
        "counted_addresses": "gauge",
        "counted_subjects": "gauge",
        "connections": "gauge",
        "connections_waiting": "gauge",
        "evicted": "counter",
        "turned_away": "counter",
        "journal_events": "gauge",
        "journal_bytes": "gauge",
        "journal_evicted": "counter",
        "journal_topics": "gauge",
        "publish_to_last_write_seconds": "histogram",
    }
    assert all(family.documentation for family in families.values())


def test_what_is_published_and_delivered_is_counted(server: Server, topic: str) -> None:
    """Three events to two subscribers are three published and six delivered, and three more are kept."""
    names = ["published_total", "delivered_total", "journal_events", "journal_topics", "journal_bytes", "streams"]
    before = {name: metric(server, f"trio_sse_{name}") for name in names}
    target = f"/events?topic={topic}"
    with Listener(server, target) as one, Listener(server, target) as other:
        one.take(), other.take()
        assert metric(server, "trio_sse_streams") == before["streams"] + 2
        for _ in range(3):
            publish(server, topic, "hello")
            frame = one.take()
            assert frame == other.take()
    counted = MEMORY.of_topic(topic) + MEMORY.of_events(3, 3, 3 * len(frame), 0)
    expected = [3, 6, 3, 1, counted, 0]
    assert eventually(lambda: [metric(server, f"trio_sse_{name}") - before[name] for name in names] == expected)


def test_the_time_to_the_last_write_is_measured(server: Server, topic: str) -> None:
    """An event with a subscriber is observed, in seconds; at most about one a second is."""
    name = "trio_sse_publish_to_last_write_seconds"
    began, counted, seconds = time.monotonic(), metric(server, f"{name}_count"), metric(server, f"{name}_sum")
    with Listener(server, f"/events?topic={topic}") as listener:
        listener.take()

        def observed() -> bool:
            publish(server, topic)
            listener.take()
            return metric(server, f"{name}_count") > counted

        assert eventually(observed)
    assert 0 <= metric(server, f"{name}_sum") - seconds < time.monotonic() - began


def test_a_subscriber_that_reads_too_slowly_is_counted(server: Server, topic: str) -> None:
    """A stream that is not read runs its channel full: lagging counts it, and the publisher never waited."""
    before = metric(server, "trio_sse_lagging_total")
    with Listener(server, f"/events?topic={topic}"):

        def lagged() -> bool:
            for _ in range(20):
                publish(server, topic, "x" * 500_000)
            return metric(server, "trio_sse_lagging_total") > before

        assert eventually(lagged)


def test_the_metrics_name_no_topic_and_nobody(server: Server) -> None:
    """Who reads metrics learns how much there is, not what and from whom."""
    token = sign("nobody-else", publish=["user/private-matter"])
    publish(server, "user/private-matter", "content of it", bearer(token))
    publish(server, "public-matter")
    text = ask(server, "GET", "/metrics").body.decode()
    for word in ("private-matter", "public-matter", "nobody-else", "content of it", *token.split(".")):
        assert word not in text


def test_a_hub_that_takes_no_streams_is_not_ready_but_alive(tmp_path: Path) -> None:
    """While its streams end, /readyz is 503 with a reason and a time to come back, and /healthz stays 200."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with serving("program:app", folder=tmp_path, env={"TRIO_SSE_JOURNAL": "memory:"}) as server:
        ask(server, "POST", "/test/end")
        answer = ask(server, "GET", "/readyz")
        assert answer.status == 503
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Retry-After"] == "1"
        assert "shutdown" in answer.json["detail"]
        assert ask(server, "GET", "/healthz").status == 200
        with Listener(server, "/events?topic=room") as listener:  # shed with a 200, since EventSource gives up else
            assert b"event: trio-sse.goodbye\nretry: " in listener.rest()


def test_a_hub_that_breaks_is_replaced(tmp_path: Path) -> None:
    """Its streams say goodbye, a fresh worker takes over, and the log says why, once."""
    env = {"TRIO_SSE_JOURNAL": f"sqlite:{tmp_path}/hub.db"}
    with serving("tests.apps:app", folder=tmp_path, env=env) as server:
        old = server.workers()
        kept = publish(server, "room", "kept")
        with Listener(server, "/events?topic=room") as listener:
            listener.take()
            ask(server, "POST", "/test/break")
            end = listener.rest()
        assert b'{"reason": "failed"}' in end
        assert b"retry: " in end

        def replaced() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):  # those that the old one had taken
                return server.workers() != old and ask(server, "GET", "/readyz").status == 200
            return False

        assert eventually(replaced)
        with Listener(server, "/events?topic=room&last_event_id=earliest") as listener:
            listener.take()
            assert listener.event()["id"] == kept
        assert server.log().count("the hub failed") == 1


def test_a_journal_that_cannot_be_opened_ends_the_start_with_one_line(tmp_path: Path) -> None:
    """The operator reads which journal and why, not a traceback."""
    env = {"TRIO_SSE_JOURNAL": f"sqlite:{tmp_path}/missing/hub.db"}
    with pytest.raises(RuntimeError, match="the server did not come up"), serving(folder=tmp_path, env=env):
        pass
    log = (tmp_path / "server.log").read_text()
    assert "Traceback" not in log
    assert sum("missing/hub.db" in line for line in log.splitlines()) == 1
