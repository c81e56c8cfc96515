"""A journal of an earlier version opens, and says what it always said. ``tests/journal_corpus.py`` adds one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from tests import journal_corpus
from tests.conftest import Listener, ask, bearer, last_event_id
from tests.serving import Server, serving
from trio_sse.auth import Authority
from trio_sse.journal import database

FIRST = 2
"""The oldest version of which there is a journal; nobody has one of version 1."""

LONG = "1000000000"
"""Seconds, or events, that are more than any journal here is old or holds."""

VERSIONS = journal_corpus.versions()
QUESTIONS = sorted({name for version in VERSIONS for name in journal_corpus.told_then(version)})


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture(scope="module")
def told(version: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the code says now."""
    path = tmp_path_factory.mktemp("told") / "hub.db"
    journal_corpus.unpack(version, path)
    return trio.run(journal_corpus.tell, path)


@pytest.fixture(scope="module")
def old_server(version: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real server, over a copy of the journal."""
    folder = tmp_path_factory.mktemp("served")
    journal_corpus.unpack(version, folder / "hub.db")
    env = {"TRIO_SSE_JOURNAL": "sqlite:hub.db", "TRIO_SSE_RETENTION_SECONDS": LONG, "TRIO_SSE_RETENTION_EVENTS": LONG}
    with serving(folder=folder, env=env) as server:
        yield server
        assert server.terminate() == 0
        assert "Traceback" not in server.log()


def test_there_is_a_journal_of_every_version() -> None:
    """Also of the one that is written now, which will be an old one."""
    assert list(range(FIRST, database.VERSION + 1)) == VERSIONS


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_journal_says_what_it_always_said(version: int, told: dict[str, Any], question: str) -> None:
    """Records, floors, what subscribers get after which cursor, idempotency keys, the signing key, positions."""
    then = journal_corpus.told_then(version)
    if question not in then:
        pytest.skip(f"nobody asked for it of version {version}")
    assert told[question] == then[question]


def test_the_server_gives_the_whole_history(version: int, old_server: Server) -> None:
    """Every event of the public topics, as it always stood on the wire."""
    records = [each for each in journal_corpus.told_then(version)["records"] if not each[1].startswith("user/")]
    with Listener(old_server, "/events?topic=**&last_event_id=earliest") as listener:
        listener.take()  # the block that says where it begins
        wire = "".join(listener.take().decode() for _ in records)
    assert wire == "".join(frame for *_, frame in records)


def test_the_server_tells_an_old_cursor_of_the_hole(version: int, old_server: Server) -> None:
    """A browser that was away since before the journal was trimmed."""
    (first, *_), floors = journal_corpus.told_then(version)["records"], journal_corpus.told_then(version)["floors"]
    with Listener(old_server, "/events?topic=busy/1", {"Last-Event-ID": first[0]}) as listener:
        listener.take()
        gap = listener.event()
    assert gap["event"] == "trio-sse.gap"
    expected = {"requested": first[0], "resumed_from": floors["busy/1"]["floor"], "reason": "trimmed"}
    assert json.loads(gap["data"]) == expected


def test_a_session_of_that_time_goes_on(version: int, old_server: Server) -> None:
    """A token that was signed with the journal's own key opens the inbox it names."""
    key = journal_corpus.told_then(version)["signing key"]
    if key == journal_corpus.NO_KEY:
        pytest.skip("its key is in a file beside it")
    token = Authority(key).issue("ada", now=time.time(), ttl_s=60)
    answer = ask(old_server, "GET", "/topics/user/ada", headers=bearer(token))
    assert answer.json["last_event_id"] == journal_corpus.told_then(version)["newest"]["user/ada"]


def test_the_journal_goes_on(version: int, old_server: Server, topic: str) -> None:
    """What is published now comes after all that was kept."""
    id = ask(old_server, "POST", f"/topics/{topic}", b"now").json["id"]
    assert last_event_id(old_server, topic) == id
    assert id > journal_corpus.told_then(version)["tail"]
