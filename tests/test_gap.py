"""What is lost is said: each reason for a gap, for who arrives and for who lags, of every journal; and nothing more."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args
from urllib.parse import quote

import pytest
import trio
import trio.testing

from trio_sse import Retention, open_hub
from trio_sse.event import EventID
from trio_sse.hub import Hub
from trio_sse.record import Gap, GapReason, Record
from trio_sse.subscription import Subscription
from trio_sse.testing import WallClock, data_of

from .conftest import KEY, Listener, ask, bearer, publish, sign
from .serving import Server, serving

KEPT = 3
FEW = Retention(events=KEPT)
JOURNALS = ["memory", "sqlite"]
REASONS: tuple[GapReason, ...] = get_args(GapReason)


@pytest.fixture(params=JOURNALS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A journal of each kind."""
    return "memory:" if request.param == "memory" else f"sqlite:{tmp_path / 'journal.db'}"


async def publish_some(hub: Hub, topic: str, *data: str, key: str | None = None) -> list[EventID]:
    """Publish one event after another, and let everybody who listens have them."""
    ids = [await hub.publish(topic, each, key=key) for each in data]
    await trio.testing.wait_all_tasks_blocked()
    return ids


async def told(subscription: Subscription, last: str) -> list[str | Gap]:
    """What a subscriber is told, up to the event with this data: the data of each event, and each gap."""
    items: list[str | Gap] = []
    with trio.fail_after(60):
        async for item in subscription:
            items += [item] if isinstance(item, Gap) else data_of([item])
            if items[-1] == last:
                break
    return items


@asynccontextmanager
async def a_loss(url: str, reason: GapReason) -> AsyncIterator[tuple[Hub, str, EventID]]:
    """A hub that keeps 7, 8 and 9 of a topic; a cursor it cannot honour; and the position that they follow."""
    clock = WallClock()
    async with open_hub("memory:", clock=clock) as earlier:
        of_earlier_life = str(await earlier.publish("a", "of an earlier life"))
    clock.move(60)
    async with open_hub(url, retention=FEW, clock=clock) as hub:
        ids = await publish_some(hub, "a", *map(str, range(10)))
        ahead = EventID(ids[-1].ms + 1, 5)
        cursor = {"trimmed": ids[1], "restarted": of_earlier_life, "ahead": ahead, "unknown": "☃"}[reason]
        yield hub, str(cursor), ids[6]


# -- who arrives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", REASONS)
async def test_who_arrives_is_told_first(url: str, reason: GapReason) -> None:
    """The gap says what was asked for, why it cannot be given, and from where everything follows; then it does."""
    async with a_loss(url, reason) as (hub, cursor, floor), hub.subscribe("a", last_event_id=cursor) as subscription:
        assert await told(subscription, "9") == [Gap(cursor, floor, reason), "7", "8", "9"]


@pytest.mark.parametrize("reason", REASONS)
async def test_who_comes_back_from_a_gap_is_not_told_again(url: str, reason: GapReason) -> None:
    """Its own cursor is one that can be honoured, though nothing came behind it yet."""
    async with a_loss(url, reason) as (hub, cursor, _):
        async with hub.subscribe("a", last_event_id=cursor) as subscription:
            gap = await subscription.receive()
            assert isinstance(gap, Gap)
            assert subscription.cursor == gap.resumed_from
        async with hub.subscribe("a", last_event_id=subscription.cursor) as subscription:
            assert await told(subscription, "9") == ["7", "8", "9"]


@pytest.mark.parametrize("reason", REASONS)
async def test_a_gap_that_was_not_heard_is_told_again(url: str, reason: GapReason) -> None:
    """The position a stream opens with, and breaks off after, leads to a gap again."""
    async with a_loss(url, reason) as (hub, cursor, floor):
        async with hub.subscribe("a", last_event_id=cursor) as subscription:
            opening = subscription.opening_position
        async with hub.subscribe("a", last_event_id=opening) as subscription:
            gap = await subscription.receive()
            assert isinstance(gap, Gap)
            assert gap.resumed_from == floor
            assert gap.reason == ("restarted" if reason == "unknown" else reason)


@pytest.mark.parametrize("reason", REASONS)
async def test_the_header_names_where_it_really_resumes(url: str, reason: GapReason) -> None:
    """Located, and not yet entered, it is where the gap says."""
    async with a_loss(url, reason) as (hub, cursor, floor):
        assert await hub.subscribe("a", last_event_id=cursor).locate() == floor


@pytest.mark.parametrize("reason", REASONS)
async def test_a_gap_is_counted_when_it_is_told(url: str, reason: GapReason) -> None:
    """To have located it is not to have told it."""
    async with a_loss(url, reason) as (hub, cursor, _), hub.subscribe("a", last_event_id=cursor) as subscription:
        assert hub.statistics().gaps == 0
        await told(subscription, "9")
        assert hub.statistics().gaps == 1


@pytest.mark.parametrize("reason", ["restarted", "ahead", "unknown"])
async def test_a_topic_that_has_nothing_is_a_gap_all_the_same(url: str, reason: GapReason) -> None:
    """What cannot be known to be whole is not said to be, also where there is nothing to give; and that once."""
    async with a_loss(url, reason) as (hub, cursor, _):
        async with hub.subscribe("nothing", last_event_id=cursor) as subscription:
            gap = await subscription.receive()
            assert isinstance(gap, Gap)
            assert (gap.requested, gap.reason) == (cursor, reason)
        async with hub.subscribe("nothing", last_event_id=gap.resumed_from) as subscription:
            await publish_some(hub, "nothing", "something")
            assert await told(subscription, "something") == ["something"]


async def test_exactly_what_is_kept_is_no_gap(url: str) -> None:
    """A cursor at the floor has missed nothing; one below it has."""
    async with open_hub(url, retention=FEW) as hub:
        ids = await publish_some(hub, "a", *map(str, range(10)))
        async with hub.subscribe("a", last_event_id=ids[6]) as at_the_floor:
            assert await told(at_the_floor, "9") == ["7", "8", "9"]
        async with hub.subscribe("a", last_event_id=ids[5]) as below:
            assert await told(below, "9") == [Gap(str(ids[5]), ids[6], "trimmed"), "7", "8", "9"]


async def test_a_position_from_before_what_was_trimmed_is_a_gap(url: str) -> None:
    """Who never had an event, and comes back too late, has lost something too."""
    clock = WallClock()
    async with open_hub(url, retention=FEW, clock=clock) as hub:
        async with hub.subscribe("a") as subscription:
            position = subscription.opening_position
        clock.move(1)
        ids = await publish_some(hub, "a", *map(str, range(10)))
        async with hub.subscribe("a", last_event_id=position) as subscription:
            assert await told(subscription, "9") == [Gap(str(position), ids[6], "trimmed"), "7", "8", "9"]


async def test_a_position_from_before_what_is_kept_is_none(url: str) -> None:
    """Who never had an event, and comes back in time, has lost nothing."""
    async with open_hub(url, retention=FEW) as hub:
        async with hub.subscribe("a") as subscription:
            position = subscription.opening_position
        await publish_some(hub, "a", "1", "2", "3")
        async with hub.subscribe("a", last_event_id=position) as subscription:
            assert await told(subscription, "3") == ["1", "2", "3"]


async def test_where_everything_is_gone_the_gap_comes_alone(url: str) -> None:
    """When age has taken all, what comes behind the gap is what is published next."""
    clock = WallClock()
    async with open_hub(url, retention=Retention(seconds=60), clock=clock) as hub:
        ids = await publish_some(hub, "a", "0", "1", "2")
        clock.move(600)
        await hub.journal.trim()
        async with hub.subscribe("a", last_event_id=ids[0]) as subscription:
            assert await subscription.receive() == Gap(str(ids[0]), ids[2], "trimmed")
            await publish_some(hub, "a", "3")
            assert await told(subscription, "3") == ["3"]


async def test_earliest_has_no_gap(url: str) -> None:
    """Who asks for all that is kept gets it; that more once was is no loss of theirs."""
    async with open_hub(url, retention=FEW) as hub:
        await publish_some(hub, "a", *map(str, range(10)))
        async with hub.subscribe("a", "b", last_event_id="earliest") as subscription:
            assert await told(subscription, "9") == ["7", "8", "9"]


# -- restarts ---------------------------------------------------------------------------------------------------------


async def test_a_file_that_was_opened_again_is_no_gap(tmp_path: Path) -> None:
    """An event's ID, and a position from before any, are good in the file's next life."""
    clock = WallClock()
    url = f"sqlite:{tmp_path / 'journal.db'}"
    async with open_hub(url, clock=clock) as hub:
        async with hub.subscribe("a") as subscription:
            position = subscription.opening_position
        (first,) = await publish_some(hub, "a", "1")
    clock.move(60)
    async with open_hub(url, clock=clock) as hub:
        await publish_some(hub, "a", "2")
        async with hub.subscribe("a", last_event_id=first) as subscription:
            assert await told(subscription, "2") == ["2"]
        async with hub.subscribe("a", last_event_id=position) as subscription:
            assert await told(subscription, "2") == ["1", "2"]


async def test_a_gap_that_was_told_before_a_restart_is_not_told_after_it(tmp_path: Path) -> None:
    """Floors are kept in the file, and so is what a gap's cursor means."""
    url = f"sqlite:{tmp_path / 'journal.db'}"
    async with open_hub(url, retention=FEW) as hub:
        ids = await publish_some(hub, "a", *map(str, range(10)))
        async with hub.subscribe("a", last_event_id=ids[1]) as subscription:
            gap = await subscription.receive()
            assert isinstance(gap, Gap)
    async with open_hub(url, retention=FEW) as hub:
        async with hub.subscribe("a", last_event_id=gap.resumed_from) as subscription:
            assert await told(subscription, "9") == ["7", "8", "9"]
        async with hub.subscribe("a", last_event_id=ids[1]) as subscription:
            assert await told(subscription, "9") == [gap, "7", "8", "9"]


async def test_each_restart_of_a_memory_journal_is_a_gap_once(tmp_path: Path) -> None:
    """What was published between two lives, to one that nobody has, is lost, and each of them is said."""
    clock = WallClock()
    cursor: EventID | None = None
    gaps = []
    for life in range(3):
        async with open_hub("memory:", clock=clock) as hub, hub.subscribe("a", last_event_id=cursor) as subscription:
            await publish_some(hub, "a", str(life))
            *gap, data = await told(subscription, str(life))
            gaps += gap
            assert data == str(life)
            cursor = subscription.cursor
        clock.move(1)
    assert [gap.reason for gap in gaps if isinstance(gap, Gap)] == ["restarted", "restarted"]


async def test_a_file_from_an_older_copy_is_a_gap(tmp_path: Path) -> None:
    """Whose cursor is one of the events that the copy does not have is told that it is ahead."""
    clock = WallClock()
    path, copy = tmp_path / "journal.db", tmp_path / "copy.db"
    async with open_hub(f"sqlite:{path}", clock=clock) as hub:
        await publish_some(hub, "a", "1")
    shutil.copy(path, copy)
    async with open_hub(f"sqlite:{path}", clock=clock) as hub:
        clock.move(1)
        (lost,) = await publish_some(hub, "a", "2")
    clock.move(60)
    async with open_hub(f"sqlite:{copy}", clock=clock) as hub:
        async with hub.subscribe("a", last_event_id=lost) as subscription:
            gap, one = await told(subscription, "1")
            assert isinstance(gap, Gap)
            assert (gap.requested, gap.reason, one) == (str(lost), "ahead", "1")


async def test_a_memory_journal_under_a_clock_that_went_back_knows_old_cursors_until_its_ids_pass_them() -> None:
    """The limit of a journal that forgets: as long as a cursor lies ahead it is a gap, and then it cannot be told."""
    clock = WallClock()
    async with open_hub("memory:", clock=clock) as hub:
        (old,) = await publish_some(hub, "a", "lost")
    clock.move(-60)
    async with open_hub("memory:", clock=clock) as hub:
        async with hub.subscribe("a", last_event_id=old) as subscription:
            gap = await subscription.receive()
            assert isinstance(gap, Gap)
            assert gap.reason == "ahead"
        clock.move(120)
        await publish_some(hub, "a", "passed")
        async with hub.subscribe("a", last_event_id=old) as subscription:
            assert await told(subscription, "passed") == ["passed"]


# -- who lags ---------------------------------------------------------------------------------------------------------

TAKEN_AWAY: dict[str, tuple[Retention, Callable[[int], str]]] = {
    "by number": (FEW, str),
    "by bytes": (Retention(bytes=1_100_000), lambda number: f"{number}".zfill(300_000)),
    "by age": (Retention(seconds=2.5), str),
}


@pytest.mark.parametrize("how", TAKEN_AWAY)
async def test_who_lags_is_told_at_the_place(url: str, how: str) -> None:
    """Between what it still had and what follows, whatever it was that took the rest away."""
    retention, data = TAKEN_AWAY[how]
    clock = WallClock()
    async with open_hub(url, retention=retention, buffer_events=2, clock=clock) as hub, hub.subscribe("a") as reader:
        ids = []
        for number in range(10):
            clock.move(1)
            ids += await publish_some(hub, "a", data(number))
        await hub.journal.trim()
        assert hub.statistics().lagging == 1
        items = await told(reader, data(9))
        assert items == [data(0), data(1), Gap(str(ids[1]), ids[6], "trimmed"), data(7), data(8), data(9)]


async def test_who_lags_again_is_told_again(url: str) -> None:
    """Each hole has its own gap, and none is told twice."""
    async with open_hub(url, retention=FEW, buffer_events=1) as hub, hub.subscribe("a") as reader:
        ids: list[EventID] = []
        items: list[str | Gap] = []
        for first in (0, 10, 20):
            ids += await publish_some(hub, "a", *(str(number) for number in range(first, first + 10)))
            items += await told(reader, str(first + 9))
        gaps = [Gap(str(ids[last]), ids[last + 6], "trimmed") for last in (0, 10, 20)]
        assert items == [
            *("0", gaps[0], "7", "8", "9"),
            *("10", gaps[1], "17", "18", "19"),
            *("20", gaps[2], "27", "28", "29"),
        ]


async def test_who_lags_and_comes_back_from_the_gap_is_not_told_again(url: str) -> None:
    """The connection broke just behind the gap: its cursor is good."""
    async with open_hub(url, retention=FEW, buffer_events=1) as hub:
        async with hub.subscribe("a") as reader:
            await publish_some(hub, "a", *map(str, range(10)))
            assert not isinstance(await reader.receive(), Gap)
            assert isinstance(await reader.receive(), Gap)
        async with hub.subscribe("a", last_event_id=reader.cursor) as reader:
            assert await told(reader, "9") == ["7", "8", "9"]


async def test_who_lags_and_lost_nothing_is_not_told(url: str) -> None:
    """To be served from the journal is no loss."""
    async with open_hub(url, buffer_events=1) as hub, hub.subscribe("a") as reader:
        numbers = [str(number) for number in range(10)]
        await publish_some(hub, "a", *numbers)
        assert hub.statistics().lagging == 1
        assert await told(reader, "9") == numbers


async def test_what_others_lost_while_one_lags_is_no_gap(url: str) -> None:
    """A quiet topic's reader that lags is told nothing of the busy one beside it, nor of somebody's inbox."""
    async with open_hub(url, retention=FEW, buffer_events=1) as hub, hub.subscribe("quiet", "room/*") as reader:
        await publish_some(hub, "quiet", "1", "2", "3")
        for topic in ("busy", "user/bob", "room/1/aside"):
            await publish_some(hub, topic, *map(str, range(10)))
        assert hub.statistics().lagging == 1
        assert await told(reader, "3") == ["1", "2", "3"]


async def test_what_another_topic_kept_is_given_behind_the_gap(url: str) -> None:
    """Who lags, and lost some of a ticker, still has all of the chat; the gap's cursor is below it."""
    async with open_hub(url, retention=FEW, buffer_events=1) as hub, hub.subscribe("chat", "ticker") as reader:
        (seen,) = await publish_some(hub, "ticker", "0")
        (chat,) = await publish_some(hub, "chat", "hello")
        await publish_some(hub, "ticker", *map(str, range(1, 10)))
        first, gap, *rest = await told(reader, "9")
        assert isinstance(gap, Gap)
        assert (first, gap.requested, rest) == ("0", str(seen), ["hello", "7", "8", "9"])
        assert seen <= gap.resumed_from < chat


async def test_behind_the_last_older_event_a_gap_of_several_topics_is_not_told_again(url: str) -> None:
    """Who breaks off between the gap and the chat's event that is older than the hole is told again; then no more."""
    async with open_hub(url, retention=FEW) as hub:
        (cursor,) = await publish_some(hub, "ticker", "0")
        await publish_some(hub, "chat", "hello")
        await publish_some(hub, "ticker", *map(str, range(1, 10)))
        async with hub.subscribe("chat", "ticker", last_event_id=cursor) as reader:
            gap = await reader.receive()
            assert isinstance(gap, Gap)
        async with hub.subscribe("chat", "ticker", last_event_id=gap.resumed_from) as reader:
            again, *rest = await told(reader, "9")
            assert isinstance(again, Gap)
            assert rest == ["hello", "7", "8", "9"]
        async with hub.subscribe("chat", "ticker", last_event_id=cursor) as reader:
            await told(reader, "7")
        async with hub.subscribe("chat", "ticker", last_event_id=reader.cursor) as reader:
            assert await told(reader, "9") == ["8", "9"]


# -- who wants only the latest ----------------------------------------------------------------------------------------


async def test_what_a_newer_value_replaced_is_no_gap_for_who_arrives(url: str) -> None:
    """Though it was removed before they came."""
    async with open_hub(url, retention=FEW) as hub:
        cursor, *_ = await publish_some(hub, "a", *map(str, range(10)), key="k")
        async with hub.subscribe("a", last_event_id=cursor, slow="latest") as reader:
            assert await told(reader, "9") == ["9"]


async def test_what_a_newer_value_replaced_is_no_gap_for_who_lags(url: str) -> None:
    """Though more was published than their channel holds, and than is kept."""
    async with open_hub(url, retention=FEW, buffer_events=1) as hub, hub.subscribe("a", slow="latest") as reader:
        await publish_some(hub, "a", *map(str, range(10)), key="k")
        assert await told(reader, "9") == ["9"]


async def test_a_value_that_was_removed_and_not_replaced_is_a_gap(url: str) -> None:
    """It was the newest of its key; once there is a newer one it is a gap no more."""
    async with open_hub(url, retention=FEW) as hub:
        (cursor,) = await publish_some(hub, "a", "seen", key="k")
        await publish_some(hub, "a", "gone", key="other")
        await publish_some(hub, "a", *map(str, range(10)), key="k")
        async with hub.subscribe("a", last_event_id=cursor, slow="latest") as reader:
            gap, *rest = await told(reader, "9")
            assert isinstance(gap, Gap)
            assert (gap.requested, gap.reason, rest) == (str(cursor), "trimmed", ["9"])
        await publish_some(hub, "a", "new", key="other")
        async with hub.subscribe("a", last_event_id=cursor, slow="latest") as reader:
            assert await told(reader, "new") == ["9", "new"]


@pytest.mark.parametrize("reason", ["restarted", "ahead", "unknown"])
async def test_a_cursor_that_is_not_of_this_journal_is_a_gap_under_either_policy(url: str, reason: GapReason) -> None:
    """What it missed cannot be known, so neither can whether that was replaced."""
    async with a_loss(url, reason) as (hub, cursor, _):
        async with hub.subscribe("a", last_event_id=cursor, slow="latest") as reader:
            gap, *rest = await told(reader, "9")
            assert isinstance(gap, Gap)
            assert (gap.requested, gap.reason, rest) == (cursor, reason, ["9"])


# -- as a value -------------------------------------------------------------------------------------------------------


async def test_a_gap_is_a_value_among_the_records(url: str) -> None:
    """Of ``async for`` over a subscription, told apart by its class."""
    async with open_hub(url, retention=FEW) as hub:
        ids = await publish_some(hub, "a", *map(str, range(5)))
        async with hub.subscribe("a", last_event_id=ids[0]) as subscription:
            seen: list[object] = []
            async for item in subscription:
                match item:
                    case Gap(requested=requested, resumed_from=resumed_from, reason=reason):
                        seen.append((requested, resumed_from, reason))
                    case Record(id=id):
                        seen.append(id)
                if seen[-1] == ids[-1]:
                    break
        assert seen == [(str(ids[0]), ids[1], "trimmed"), *ids[2:]]


# -- over HTTP: nothing of what one may not read ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=JOURNALS)
def closed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A hub that nobody may read without a token, with a journal of each kind."""
    env = {"TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_RETENTION_EVENTS": str(KEPT)}
    env["TRIO_SSE_JOURNAL"] = "memory:" if request.param == "memory" else "sqlite:journal.db"
    with serving(folder=tmp_path_factory.mktemp("closed"), env=env) as server:
        yield server


class Scene:
    """Some topics under one name, written by somebody who may; what is trimmed of them stands in ``trimmed``."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.room, self.secret = f"{name}/open", f"{name}/secret"
        self.inbox, self.others_inbox = f"user/{name.replace('/', '-')}-ada", f"user/{name.replace('/', '-')}-bob"
        self.sub = self.inbox.removeprefix("user/")
        self._writer = bearer(sign("writer", publish=[f"{name}/**", self.inbox, self.others_inbox]))

    def write(self, topic: str, times: int = 1) -> list[str]:
        return [publish(self.server, topic, headers=self._writer) for _ in range(times)]

    def read(self, cursor: str, *selectors: str, may: tuple[str, ...]) -> tuple[list[dict[str, str]], str]:
        """What a reader is given up to the newest event of the room; and the header Last-Event-ID."""
        query = "&".join(f"topic={quote(selector)}" for selector in selectors)
        with Listener(
            self.server,
            f"/events?{query}",
            {"Last-Event-ID": cursor.encode().decode("latin-1"), **bearer(sign(self.sub, subscribe=may))},
        ) as listener:
            header = listener.response.headers["Last-Event-ID"]
            listener.take()
            (last,) = self.write(self.room)
            events = [listener.event()]
            while events[-1]["id"] != last:
                events.append(listener.event())
        return events, header


@pytest.fixture
def scene(closed: Server, topic: str) -> Scene:
    return Scene(closed, topic)


def gaps(events: list[dict[str, str]]) -> list[dict[str, str]]:
    """What the gaps among them tell."""
    return [json.loads(event["data"]) for event in events if event.get("event") == "trio-sse.gap"]


@pytest.mark.parametrize("asked", ["by a wildcard", "by everything", "by name"])
def test_what_was_trimmed_of_a_topic_that_one_may_not_read_is_no_gap(scene: Scene, asked: str) -> None:
    """Whoever asks for more than their token allows is told only of what it allows."""
    (cursor,) = scene.write(scene.room)
    scene.write(scene.secret, 2 * KEPT)
    scene.write(scene.others_inbox, 2 * KEPT)
    name = scene.room.rpartition("/")[0]
    selectors = {"by a wildcard": (f"{name}/*",), "by everything": ("**", scene.inbox), "by name": (scene.room,)}
    events, header = scene.read(cursor, *selectors[asked], may=(scene.room,))
    assert gaps(events) == []
    assert (len(events), header) == (1, cursor)


def test_ones_own_inbox_has_its_own_gap(scene: Scene) -> None:
    """The same reader is told of what was trimmed of the inbox, with a position of the inbox's own."""
    (cursor,) = scene.write(scene.inbox)
    own = scene.write(scene.inbox, 2 * KEPT)
    scene.write(scene.others_inbox, 2 * KEPT)
    events, header = scene.read(cursor, "**", scene.inbox, may=(scene.room,))
    assert gaps(events) == [{"requested": cursor, "resumed_from": own[-KEPT - 1], "reason": "trimmed"}]
    assert [event["id"] for event in events[:-1]] == [own[-KEPT - 1], *own[-KEPT:]]
    assert header == own[-KEPT - 1]


@pytest.mark.parametrize(("cursor", "reason"), [("☃", "unknown"), ("999999999999999-1", "ahead"), ("1-1", "restarted")])
def test_a_gap_never_names_an_event_that_one_may_not_read(scene: Scene, cursor: str, reason: str) -> None:
    """Neither where it resumes nor in the header, with newer and older events of others all around."""
    others = scene.write(scene.secret, 2 * KEPT) + scene.write(scene.others_inbox, 2 * KEPT)
    rooms = scene.write(scene.room, 2 * KEPT)
    others += scene.write(scene.secret, 2 * KEPT) + scene.write(scene.others_inbox, 2 * KEPT)
    events, header = scene.read(cursor, "**", scene.inbox, may=(scene.room,))
    (gap,) = gaps(events)
    assert gap == {"requested": gap["requested"], "resumed_from": header, "reason": reason}
    assert header == rooms[-KEPT - 1]
    assert [event["id"] for event in events[1:-1]] == rooms[-KEPT:]
    assert not {event["id"] for event in events} & set(others)


def test_who_may_not_read_a_topic_is_told_nothing_at_all(scene: Scene) -> None:
    """A cursor, however old, gets the same refusal as none."""
    (cursor, *_) = scene.write(scene.secret, 2 * KEPT)
    answers = [
        ask(
            scene.server,
            "GET",
            f"/events?topic={scene.secret}",
            headers={**bearer(sign(scene.sub, subscribe=[scene.room])), **more},
        )
        for more in ({}, {"Last-Event-ID": cursor}, {"Last-Event-ID": "nonsense"})
    ]
    assert [answer.status for answer in answers] == [403, 403, 403]
    assert len({answer.body for answer in answers}) == 1
    assert all("Last-Event-ID" not in answer.headers for answer in answers)
