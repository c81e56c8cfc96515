"""What a SQLite journal knows after a restart, a kill, and a step up in its schema; and what it keeps in memory."""

from __future__ import annotations

import hashlib
import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_sse.errors import KeyReused
from trio_sse.event import ORIGIN, Event, EventID
from trio_sse.journal import database, lost, open_journal, writer
from trio_sse.journal import sqlite as room
from trio_sse.journal.costs import SQLITE
from trio_sse.journal.held import Change
from trio_sse.journal.sqlite import SQLiteJournal
from trio_sse.record import Draft, Once, Record
from trio_sse.retention import Keep, Retention
from trio_sse.testing import NOON, WallClock, data_of, draft, read_all, take
from trio_sse.topic import parse_selectors

A = parse_selectors(["a"])


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'journal.db'}"


def as_killed(url: str, tmp_path: Path) -> str:
    """The journal as a killed process leaves it: a copy of its files while it is open."""
    path = Path(url.partition(":")[2])
    folder = tmp_path / "killed"
    folder.mkdir()
    for name in (path.name, f"{path.name}-wal"):
        shutil.copy(path.parent / name, folder / name)
    return f"sqlite:{folder / path.name}"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[EventID]:
    """The cursors from which the file is read."""
    cursors: list[EventID] = []
    read = database.read

    def count(*args: Any) -> Any:
        cursors.append(args[3])
        return read(*args)

    monkeypatch.setattr(database, "read", count)
    return cursors


# -- the shelf ---------------------------------------------------------------------------------------------------------


async def test_after_a_restart_readers_are_answered_from_memory(url: str, reads: list[EventID]) -> None:
    """Hundreds with different cursors, exact and with wildcards, and the file is read for none of them."""
    async with open_journal(url) as journal:
        ids = await journal.append([draft(topic, f"{n}") for n in range(250) for topic in ("a", "b")])
    async with open_journal(url) as journal:
        for place in range(500):
            page = await journal.read(parse_selectors(["*"]), ids[place], 1_000)
            assert [record.id for record in page.records] == ids[place + 1 :]
            page = await journal.read(A, ids[place], 1_000)
            assert [record.id for record in page.records] == [id for id in ids[place + 1 :] if id in set(ids[::2])]
    assert reads == []


async def test_what_memory_does_not_hold_is_read_from_the_file(
    url: str, reads: list[EventID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the newest stay, and a reader from further back goes from the file to memory without a seam."""
    monkeypatch.setattr(room, "SHELF_EVENTS", 10)
    async with open_journal(url) as journal:
        ids = await journal.append([draft("a", str(n)) for n in range(40)])
    for _ in range(2):  # as it was opened, and after more has come
        async with open_journal(url) as journal:
            reads.clear()
            assert data_of(await read_all(journal, "a", limit=8)) == [str(n) for n in range(len(ids))]
            assert len(reads) == (len(ids) - 10) // 8 + 1
            reads.clear()
            page = await journal.read(A, ids[-11], 100)
            assert [record.id for record in page.records] == ids[-10:]
            assert reads == []
            ids += await journal.append([draft("a", str(n)) for n in range(40, 56)])


async def test_what_memory_has_no_room_for_is_in_the_file(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when there is room for nothing at all."""
    monkeypatch.setattr(room, "SHELF_EVENTS", 0)
    for number in range(3):
        async with open_journal(url) as journal:
            assert data_of(await read_all(journal, "a")) == [str(n) for n in range(number)]
            await journal.append([draft("a", str(number))])
            assert data_of(await read_all(journal, "a")) == [str(n) for n in range(number + 1)]


async def test_memory_holds_so_many_bytes(url: str, reads: list[EventID], monkeypatch: pytest.MonkeyPatch) -> None:
    """Large events push out more of the older ones."""
    monkeypatch.setattr(room, "SHELF_BYTES", 11_000)
    async with open_journal(url) as journal:
        ids = await journal.append([draft("a", "x" * 3_000) for _ in range(10)])
        await journal.read(A, ids[-4], 10)
        assert reads == []
        await journal.read(A, ids[-5], 10)
        assert reads == [ids[-5]]


async def test_a_quiet_topic_is_answered_from_memory(
    url: str, reads: list[EventID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has everything of it need not look in the file, however long ago that was."""
    monkeypatch.setattr(room, "SHELF_EVENTS", 10)
    async with open_journal(url) as journal:
        (quiet,) = await journal.append([draft("a", "quiet")])
        await journal.append([draft("busy") for _ in range(100)])
    async with open_journal(url) as journal:
        assert (await journal.read(A, quiet, 10)).records == []
        assert await journal.last_event_id("a") == quiet
        assert reads == []
        assert data_of((await journal.read(A, ORIGIN, 10)).records) == ["quiet"]
        assert reads == [ORIGIN]


async def test_what_replays_hold_is_shared_and_shortens_their_pages(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same records are in memory once, and when much is held a page is short."""
    monkeypatch.setattr(room, "SHELF_EVENTS", 0)
    monkeypatch.setattr(room, "REPLAY_BYTES", 60_000)
    monkeypatch.setattr(room, "SHORT_PAGE_BYTES", 5_000)
    async with open_journal(url) as journal:
        assert isinstance(journal, SQLiteJournal)
        await journal.append([draft("a", "x" * 1_000) for _ in range(100)])
        first, second = [await journal.read(A, ORIGIN, 50) for _ in range(2)]
        assert len(first.records) == 50
        assert len(second.records) < 10
        assert second.more
        assert all(one is other for one, other in zip(first.records, second.records, strict=False))
        assert journal._replayed.bytes == sum(len(record.frame) for record in first.records)
        del first
        assert journal._replayed.bytes == sum(len(record.frame) for record in second.records)
        assert len((await journal.read(A, ORIGIN, 50)).records) == 50


# -- what outlives it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [False, True])
async def test_keys_and_lost_values_are_known_after_a_restart(url: str, tmp_path: Path, *, killed: bool) -> None:
    """What was published once is not published again, and a value that nothing replaced is still lost."""

    def once(body: str) -> Once:
        return Once.of("ada", "key", draft("a", body))

    retention = Retention(events=2)
    async with open_journal(url, retention=retention) as journal:
        first, _ = await journal.append_once(draft("a", "x"), once("x"))
        lost = (await journal.append([Draft("a", Event("v"), "v")]))[0]
        await journal.append([Draft("a", Event("w"), "w")] * 2 + [draft("b")])
        if killed:
            url = as_killed(url, tmp_path)
    async with open_journal(url, retention=retention) as journal:
        assert await journal.append_once(draft("a", "x"), once("x")) == (first, True)
        with pytest.raises(KeyReused):
            await journal.append_once(draft("a", "y"), once("y"))
        assert (await journal.read(A, ORIGIN, 1)).lost == lost
        await journal.append([Draft("a", Event("v"), "v"), Draft("a", Event("w"), "w")])
        assert (await journal.read(A, ORIGIN, 1)).lost == first  # without a key, and never replaced


async def test_a_cursor_from_a_file_that_is_gone_is_from_before(url: str) -> None:
    """A fresh file takes it for what it is: older than itself, and not ahead of it."""
    clock = WallClock()
    async with open_journal(url, clock=clock) as journal:
        (old,) = await journal.append([draft("a")])
    Path(url.partition(":")[2]).unlink()
    clock.move(1)
    async with open_journal(url, clock=clock) as journal:
        assert journal.gave(old)
        assert old < journal.born == (await journal.read(A, old, 1)).floor


@pytest.mark.parametrize("back_s", [0, 1, 3600])
async def test_no_event_comes_before_a_position_that_was_given(url: str, tmp_path: Path, back_s: float) -> None:
    """Also when the process was killed the moment after, and the clock went back."""
    clock = WallClock()
    async with open_journal(url, clock=clock) as journal:
        await journal.append([draft("a", "before")])
        positions = []
        for _ in range(20):
            clock.move(0.5)
            positions.append(journal.position())
            await journal.trim()
        clock.move(0.9)
        positions.append(journal.position())
        clock.move(-back_s)
        killed = as_killed(url, tmp_path)
    async with open_journal(killed, clock=clock) as journal:
        assert all(journal.gave(position) for position in positions)
        (after,) = await journal.append([draft("a", "after")])
        assert after > max(positions)
        assert data_of((await journal.read(A, positions[-1], 10)).records) == ["after"]


async def test_ids_are_little_ahead_of_the_clock_after_many_kills(url: str, tmp_path: Path) -> None:
    """However often it is killed, one after another: what was promised for positions does not add up."""
    clock = WallClock()
    for _ in range(20):
        async with open_journal(url, clock=clock) as journal:
            (id,) = await journal.append([draft("a")])
            assert journal.position() > id
            url = as_killed(url, tmp_path)
        clock.move(0.1)
        tmp_path /= "killed"
    assert id.ms <= clock.now * 1000 + 2 * room.AHEAD_MS


async def test_a_floor_is_exact_after_a_restart(url: str) -> None:
    """Of topics with rules of their own; what the rules say now counts, from the first clean-up on."""
    rules = {"a": Keep(events=3), "b": Keep(seconds=10)}
    clock = WallClock()
    async with open_journal(url, retention=Retention(topics=rules), clock=clock) as journal:
        ids = await journal.append([draft("a") for _ in range(5)] + [draft("b")])
    async with open_journal(url, retention=Retention(topics={"a": Keep(events=1)}), clock=clock) as journal:
        await journal.trim()
        assert await journal.floor(A) == ids[3]
        clock.move(11)
    async with open_journal(url, retention=Retention(topics=rules), clock=clock) as journal:
        await journal.trim()
        assert await journal.floor(parse_selectors(["b"])) == ids[5]
        assert await journal.floor(A) == ids[3]


# -- not in anybody's way ----------------------------------------------------------------------------------------------


async def test_publishers_go_on_while_much_is_removed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large clean-up is many transactions, and a publisher waits for one of them at most."""
    monkeypatch.setattr(writer, "LOOKS", 10)
    async with open_journal(url) as journal:
        await journal.append([draft("old") for _ in range(1_000)])
    commits: list[int] = []
    commit = writer.Writer.commit

    def count(self: writer.Writer, writes: list[Any], *times: Any) -> Change:
        commits.append(len(writes))
        return commit(self, writes, *times)

    rules = {"old": Keep(events=1)}
    async with open_journal(url, retention=Retention(topics=rules)) as journal:
        monkeypatch.setattr(writer.Writer, "commit", count)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.trim)
            for _ in range(10):
                await journal.append([draft("a")])
        assert journal.statistics().events == 11
    publishing = [place for place, writes in enumerate(commits) if writes]
    assert len(commits) > 90
    assert publishing[-1] < 30


async def test_what_is_unkeyed_and_what_is_keyed_are_told_apart(url: str) -> None:
    """A million-fold key costs what it must: each that was lost is known, up to a bound, beyond which all are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lost, "MAX_LOST", 5)
        async with open_journal(url, retention=Retention(events=1)) as journal:
            ids = [(await journal.append([Draft("a", Event("x"), f"k{n}")]))[0] for n in range(20)]
            assert (await journal.read(A, ORIGIN, 1)).lost == ids[18]
            for n in range(14, 20):  # those that are known
                await journal.append([Draft("a", Event("x"), f"k{n}")])
            await journal.append([draft("a")])
            assert (await journal.read(A, ORIGIN, 1)).lost > ids[13]


# -- the schema --------------------------------------------------------------------------------------------------------


async def test_a_journal_of_the_first_version_is_taken_along(url: str) -> None:
    """With its events, floors and sums; of what was removed before nothing more is known than that it is gone."""
    ids = [EventID(int(NOON * 1000) + n, 1) for n in range(4)]
    with sqlite3.connect(url.partition(":")[2]) as db:
        for statement in database.SCHEMA[0].split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {database.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")
        for name in ("born", "coarse_floor", "position"):
            db.execute("INSERT INTO meta VALUES (?, ?)", (name, "8192"))
        db.execute("INSERT INTO topic VALUES (7, 'a', ?)", (ids[0].packed(),))
        for id, key in zip(ids[1:], ("k", None, "k"), strict=True):
            frame = Record.write(id, draft("a", str(id))).frame
            db.execute("INSERT INTO record VALUES (?, 7, ?, ?)", (id.packed(), key, frame))
    db.close()
    async with open_journal(url, retention=Retention(seconds=math.inf), clock=WallClock()) as journal:
        records = await read_all(journal, "a")
        assert [(record.id, record.key) for record in records] == list(zip(ids[1:], ("k", None, "k"), strict=True))
        now = journal.statistics()
        frames, keyed = sum(len(record.frame) for record in records), 2
        counted = SQLITE.of_topic("a") + SQLITE.of_events(3, 1, frames, keyed)
        assert (now.events, now.topics, now.bytes) == (3, 1, counted)
        page = await journal.read(A, ORIGIN, 1)
        assert page.floor == page.lost == ids[0]
        with journal.follow() as follower:
            (after,) = await journal.append([draft("a", "new")])
            assert data_of(await take(follower, 1)) == ["new"]
        assert after > ids[-1]


def test_a_step_that_was_published_does_not_change() -> None:
    """Files were made with it: what is to be different is a step more."""
    digests = [hashlib.sha256(" ".join(step.split()).encode()).hexdigest()[:16] for step in database.SCHEMA]
    assert digests == ["180ada019e6db30b", "a11b13e983349ee8", "46e853825835723b"]
