"""The message board when something is lost: a gap is shown at its place, once; what is sent again stands once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import APIResponse, Browser, Route, expect

from .board import Person, Visit, visits
from .chromium import chromium, in_chromium
from .conftest import Listener, ask, eventually, publish
from .door import Door
from .serving import Server, serving

pytestmark = in_chromium

KEPT = 5
ENV = {"TRIO_SSE_RETENTION_EVENTS": str(KEPT), "TRIO_SSE_BUFFER_EVENTS": "2"}

MISSED = "Some messages were missed here. The server no longer has them."
ROWS = """[...document.querySelectorAll("#messages > li")].map((row) =>
    (row.querySelector(".text") ?? row).textContent.slice(0, 100).trim())"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that keeps little of a room, and for a slow reader less."""
    with serving(folder=tmp_path_factory.mktemp("board"), env=ENV) as server:
        yield server


@pytest.fixture
def door(server: Server) -> Iterator[Door]:
    with Door(server) as door:
        yield door


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    with visits(browser, server) as visit:
        yield visit


def say(server: Server, room: str, *texts: str) -> None:
    """Say something in a room without a browser."""
    for text in texts:
        publish(server, room, json.dumps({"name": "Grace", "author": "guest-grace", "text": text}))


def expect_rows(person: Person, *rows: str) -> None:
    """The page comes to show just these, messages and gaps, in this order."""
    shown: list[str] = []

    def holds() -> bool:
        shown[:] = person.page.evaluate(ROWS)
        return shown == list(rows)

    assert eventually(holds), shown


def take_down_notices(person: Person) -> None:
    """From now on; what the line under the heading says does not stay there for long."""
    person.page.evaluate(
        """() => {
            const status = document.getElementById("status");
            window.said = [status.textContent];
            new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true });
        }"""
    )


def expect_said(person: Person, notice: str) -> None:
    """It has been said, or is going to be."""
    assert eventually(lambda: notice in person.page.evaluate("said")), person.page.evaluate("said")


def reconnect(person: Person, how: str, server: Server) -> None:
    """Break off what the page has, in one way or another; it comes back by itself."""
    if how == "the network changes":
        person.change_network()
        return
    server.kill()
    expect(person.link).to_have_text("reconnecting")
    server.start()
    expect(person.link).to_have_text("live")


# -- who comes back too late ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["the network changes", "the server is killed"])
def test_what_was_missed_while_away_is_said_once(server: Server, visit: Visit, topic: str, how: str) -> None:
    """Between what was seen and what is still there; and no more of it when the page has to come back again."""
    ada = visit()
    ada.arrive(topic, None)
    take_down_notices(ada)
    say(server, topic, "seen")
    expect_rows(ada, "seen")
    ada.lose_the_stream()
    say(server, topic, *"0123456789")
    ada.find_the_stream()
    expect_rows(ada, "seen", MISSED, *"56789")
    expect_said(ada, "Connected again, but some messages were missed.")
    reconnect(ada, how, server)
    say(server, topic, "new")
    expect_rows(ada, "seen", MISSED, *"56789", "new")


def test_a_restarted_memory_journal_is_said_once(visit: Visit, topic: str, tmp_path: Path) -> None:
    """Behind what was seen, and before what is said next; the page comes back from it with the gap's own cursor."""
    with serving(folder=tmp_path, env={"TRIO_SSE_JOURNAL": "memory:"}) as forgetful:
        ada = visit(server=forgetful)
        ada.arrive(topic, None)
        take_down_notices(ada)
        say(forgetful, topic, "seen")
        expect_rows(ada, "seen")
        reconnect(ada, "the server is killed", forgetful)
        expect_rows(ada, "seen", MISSED)
        expect_said(ada, "Connected again, but some messages were missed.")
        ada.lose_the_stream()
        ada.find_the_stream()
        expect_said(ada, "Connected again. Nothing was missed.")
        say(forgetful, topic, "new")
        expect_rows(ada, "seen", MISSED, "new")


@pytest.mark.parametrize(("said", "shown"), [("012", "012"), ("0123456789", [MISSED, *"56789"])])
def test_who_had_no_message_yet_is_told_what_was_missed(
    server: Server, visit: Visit, topic: str, said: str, shown: list[str]
) -> None:
    """In a room where nobody had said anything; and of no gap when nothing was missed there."""
    ada = visit()
    ada.arrive(topic, None)
    expect(ada.page.locator("#people")).to_have_text("only you here")
    ada.lose_the_stream()
    say(server, topic, *said)
    ada.find_the_stream()
    expect_rows(ada, *shown)


def test_each_loss_has_its_own_place(server: Server, visit: Visit, topic: str) -> None:
    """Who misses something twice is told twice, and where."""
    ada = visit()
    ada.arrive(topic, None)
    say(server, topic, "first")
    expect_rows(ada, "first")
    shown = ["first"]
    for letter in "ab":
        ada.lose_the_stream()
        say(server, topic, *(f"{letter}{number}" for number in range(10)))
        ada.find_the_stream()
        shown += [MISSED, *(f"{letter}{number}" for number in range(5, 10))]
        expect_rows(ada, *shown)


def test_who_arrives_is_told_of_no_gap(server: Server, visit: Visit, topic: str) -> None:
    """What a room no longer remembers is no loss to somebody new, nor after a reload."""
    say(server, topic, *"0123456789")
    ada = visit()
    ada.arrive(topic, None)
    expect_rows(ada, *"56789")
    ada.page.reload()
    expect_rows(ada, *"56789")


# -- who lags ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["the network changes", "the server is killed"])
def test_what_was_missed_while_lagging_is_said_once(
    server: Server, door: Door, visit: Visit, topic: str, how: str
) -> None:
    """In the middle of a connection that stood still; not again when the page has to come back."""
    ada = visit(server=door)
    ada.arrive(topic, None)
    take_down_notices(ada)
    say(server, topic, "0")
    expect_rows(ada, "0")
    door.hold()
    numbers = [str(number) for number in range(60)]
    say(server, topic, *(number.ljust(50_000) + "." for number in numbers[1:]))
    door.release()
    assert eventually(lambda: ada.page.evaluate(ROWS)[-1:] == ["59"])
    rows = ada.page.evaluate(ROWS)
    place = rows.index(MISSED)
    assert 0 < place < len(numbers) - KEPT
    assert rows == [*numbers[:place], MISSED, *numbers[-KEPT:]]
    expect_said(ada, "Some messages were missed.")
    reconnect(ada, how, server)
    say(server, topic, "new")
    expect_rows(ada, *rows, "new")


# -- what is sent again -----------------------------------------------------------------------------------------------


def test_a_message_that_is_sent_again_stands_once(server: Server, visit: Visit, topic: str) -> None:
    """Its answer was lost, and its echo too, so it is sent again; the hub knows its nonce, and keeps the first."""
    ada = visit()
    ada.arrive(topic)
    ada.lose_the_stream()
    answers: list[APIResponse] = []

    def lose_the_answer(route: Route) -> None:
        if route.request.method != "POST" or answers:
            route.continue_()
            return
        answers.append(route.fetch())
        route.abort()

    ada.page.route(f"**/topics/{topic}", lose_the_answer)
    ada.say("once")
    expect(ada.drafts).to_contain_text("Not sent: The server did not answer.")
    with ada.page.expect_response(lambda response: response.request.method == "POST") as again:
        ada.drafts.get_by_role("button", name="Send again").click()
    (first,) = answers
    assert (first.status, again.value.status) == (201, 201)
    assert again.value.json()["id"] == first.json()["id"]
    assert again.value.headers["idempotency-replayed"] == "true"
    expect(ada.drafts).to_have_count(0)
    ada.find_the_stream()
    ada.say("twice")
    ada.say("twice")
    expect_rows(ada, "once", "twice", "twice")
    with Listener(server, f"/events?topic={topic}&last_event_id=earliest") as listener:
        listener.take()
        events = [listener.event() for _ in range(3)]
    assert [json.loads(event["data"])["text"] for event in events] == ["once", "twice", "twice"]
    assert ask(server, "GET", f"/topics/{topic}").json["last_event_id"] == events[-1]["id"]
