"""What is lost is said to a native EventSource: at its place, once, whatever it was that broke."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Page

from .chromium import chromium, in_chromium
from .conftest import ask, eventually, publish
from .door import Door
from .serving import Server, serving

pytestmark = in_chromium

KEPT = 5
ENV = {"TRIO_SSE_RETENTION_EVENTS": str(KEPT), "TRIO_SSE_BUFFER_EVENTS": "2"}
AHEAD = "999999999999999-1"

LISTEN = """(address) => {
    window.opened = 0;
    window.told = [];
    window.source = new EventSource(address);
    const tell = ({ type, lastEventId, data }) => told.push([type, lastEventId, data.slice(0, 200)]);
    source.onopen = () => { opened += 1; };
    source.onmessage = tell;
    source.addEventListener("trio-sse.gap", tell);
}"""


class Told(NamedTuple):
    """What a page is told: an event's type, the cursor behind it, and its data, as far as it is short."""

    type: str
    cursor: str
    data: str


def said(id: str, data: str) -> Told:
    """An event as it was published."""
    return Told("message", id, data)


def missing(requested: str, resumed_from: str, reason: str) -> Told:
    """A gap, whose JSON is this to the letter."""
    told = {"requested": requested, "resumed_from": resumed_from, "reason": reason}
    return Told("trio-sse.gap", resumed_from, json.dumps(told))


class Reader:
    """A page of the hub's origin with one EventSource, which nobody helps to reconnect."""

    def __init__(self, page: Page, url: str, query: str) -> None:
        self.page = page
        page.goto(f"{url}/healthz")
        page.evaluate(LISTEN, f"/events?{query}")
        self.wait_until_opened(1)

    def wait_until_opened(self, times: int) -> None:
        assert eventually(lambda: self.page.evaluate("opened") >= times)

    def told(self, last: str) -> list[Told]:
        """Everything so far, once the event with this data is there."""
        assert eventually(lambda: any(data == last for *_, data in self.page.evaluate("told"))), f"no {last!r}"
        return [Told(*each) for each in self.page.evaluate("told")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_page() as page:
        yield page


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One with a journal on disk, which keeps little of a topic, and for a slow reader less."""
    with serving(folder=tmp_path_factory.mktemp("hub"), env=ENV) as server:
        yield server


@pytest.fixture
def door(server: Server) -> Iterator[Door]:
    with Door(server) as door:
        yield door


def publish_some(server: Server, topic: str, count: int = 10) -> list[str]:
    """The numbers from 0 on; their ids."""
    return [publish(server, topic, str(number)) for number in range(count)]


# -- who arrives ------------------------------------------------------------------------------------------------------


def test_who_comes_too_late_is_told_before_the_first_that_is_kept(server: Server, page: Page, topic: str) -> None:
    """The gap has its own type, its JSON, and the cursor it resumes from, which is where the page stands then."""
    ids = publish_some(server, topic)
    reader = Reader(page, server.url, f"topic={topic}&last_event_id={ids[1]}")
    assert reader.told("9") == [missing(ids[1], ids[4], "trimmed"), *map(said, ids[5:], "56789")]


def test_who_comes_in_time_is_told_of_no_gap(server: Server, page: Page, topic: str) -> None:
    """Just as much is kept as it missed."""
    ids = publish_some(server, topic)
    reader = Reader(page, server.url, f"topic={topic}&last_event_id={ids[4]}")
    assert reader.told("9") == [*map(said, ids[5:], "56789")]


def test_a_quiet_topic_in_a_busy_journal_has_no_gap(server: Server, page: Page, topic: str) -> None:
    """What was removed from the topic beside it is not the page's business."""
    cursor = publish(server, f"{topic}/quiet", "old")
    publish_some(server, f"{topic}/busy")
    reader = Reader(page, server.url, f"topic={topic}/quiet&last_event_id={cursor}")
    id = publish(server, f"{topic}/quiet", "new")
    assert reader.told("new") == [said(id, "new")]


# -- the server is killed and comes back ------------------------------------------------------------------------------


@dataclass
class Survivor:
    """A page that the server was killed under, and what it was told in both of its lives."""

    told: list[Told]
    before: list[str]
    after: list[str]
    """The ids of what was published before the server was killed, and since."""


READERS = {"trimmed": "&last_event_id={}", "ahead": f"&last_event_id={AHEAD}", "new": "", "whole": "&last_event_id={}"}


@pytest.fixture(scope="module")
def survivors(browser: Browser, server: Server) -> dict[str, Survivor]:
    """One of each kind. Some is published while none of them is there, and more when all have come back."""
    with Door(server) as door, browser.new_context() as context:
        readers, before, after = {}, {}, {}
        for name, query in READERS.items():
            topic = f"restart/{name}"
            before[name] = publish_some(server, topic, {"trimmed": 10, "whole": 3}.get(name, 0))
            query = query.format(*before[name][1:2])
            readers[name] = Reader(context.new_page(), door.url, f"topic={topic}{query}")
        readers["trimmed"].told("9")
        readers["whole"].told("2")
        assert eventually(lambda: readers["ahead"].page.evaluate("told.length") == 1)
        server.kill()
        door.shut()
        server.start()
        publish_some(server, "restart/beside")
        for name in READERS:
            after[name] = [publish(server, f"restart/{name}", data) for data in ("missed", "missed too")]
        door.open()
        for name, reader in readers.items():
            reader.told("missed too")
            after[name].append(publish(server, f"restart/{name}", "live"))
        return {name: Survivor(reader.told("live"), before[name], after[name]) for name, reader in readers.items()}


def since(survivor: Survivor) -> list[Told]:
    """What everybody was to be told after the server was killed: what was missed, then live, each once."""
    return list(map(said, survivor.after, ("missed", "missed too", "live")))


def test_a_gap_is_not_told_again_after_a_restart(survivors: dict[str, Survivor]) -> None:
    """The address still has the old cursor, but the browser comes back with its newest event's."""
    survivor = survivors["trimmed"]
    ids = survivor.before
    gap = missing(ids[1], ids[4], "trimmed")
    assert survivor.told == [gap, *map(said, ids[5:], "56789"), *since(survivor)]


def test_a_gap_that_nothing_came_behind_is_not_told_again_after_a_restart(survivors: dict[str, Survivor]) -> None:
    """The gap's own id is what the browser comes back with."""
    survivor = survivors["ahead"]
    gap, *rest = survivor.told
    assert gap == missing(AHEAD, gap.cursor, "ahead")
    assert rest == since(survivor)


def test_who_never_had_an_event_loses_none_in_a_restart(survivors: dict[str, Survivor]) -> None:
    """The position that the stream opened with is what the browser comes back with."""
    survivor = survivors["new"]
    assert survivor.told == since(survivor)


def test_who_lost_nothing_in_a_restart_is_told_of_no_gap(survivors: dict[str, Survivor]) -> None:
    """Each event once, in order, from before and after."""
    survivor = survivors["whole"]
    assert survivor.told == [said(survivor.before[2], "2"), *since(survivor)]


def test_a_restarted_memory_journal_is_a_gap_once(
    browser: Browser, page: Page, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The browser comes back by itself and is told that what was between is gone; the next time it is not."""
    env = {**ENV, "TRIO_SSE_JOURNAL": "memory:"}
    with serving(folder=tmp_path_factory.mktemp("memory"), env=env) as server, Door(server) as door:
        reader = Reader(page, door.url, "topic=a")
        seen = publish(server, "a", "seen")
        reader.told("seen")
        server.kill()
        door.shut()
        server.start()
        door.open()
        reader.wait_until_opened(2)
        assert eventually(lambda: page.evaluate("told.length") == 2)
        door.shut()
        door.open()
        reader.wait_until_opened(3)
        id = publish(server, "a", "new")
        first, gap, *rest = reader.told("new")
        assert (first, gap, rest) == (said(seen, "seen"), missing(seen, gap.cursor, "restarted"), [said(id, "new")])


# -- who lags ---------------------------------------------------------------------------------------------------------


def test_who_lags_is_told_in_the_middle_and_once(server: Server, door: Door, page: Page, topic: str) -> None:
    """Between the last event that was on its way and the first that was kept; and no more when it reconnects."""
    reader = Reader(page, door.url, f"topic={topic}")
    ids = [publish(server, topic, "0")]
    reader.told("0")
    door.hold()
    many = 60
    ids += [publish(server, topic, f"{number} ".ljust(50_000, "x")) for number in range(1, many)]
    ids.append(publish(server, topic, "caught up"))
    door.release()
    told = reader.told("caught up")
    place = next(place for place, each in enumerate(told) if each.type == "trio-sse.gap")
    gap, before, behind = told[place], told[:place], told[place + 1 :]
    assert 0 < len(before) < many - KEPT
    assert [each.cursor for each in before] == ids[: len(before)]
    assert [each.cursor for each in behind] == ids[-KEPT:]
    assert gap == missing(before[-1].cursor, ids[-KEPT - 1], "trimmed")

    door.shut()
    missed = publish(server, topic, "missed")
    door.open()
    reader.told("missed")
    live = publish(server, topic, "live")
    assert reader.told("live") == [*told, said(missed, "missed"), said(live, "live")]
    assert page.evaluate("opened") == 2
    assert ask(server, "GET", f"/topics/{topic}").json["last_event_id"] == live
