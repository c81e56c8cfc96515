"""The SQLite journal: the contract, and what a file adds to it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_sse.errors import JournalError, JournalFull, JournalUnusable
from trio_sse.event import ORIGIN, EventID
from trio_sse.journal import Journal, database, disk, open_journal, read_signing_key, writer
from trio_sse.journal import sqlite as sqlite_journal
from trio_sse.journal.held import Change, Doomed, Held, Write
from trio_sse.journal.writer import Writer
from trio_sse.retention import Retention
from trio_sse.testing import NOON, JournalContract, WallClock, data_of, draft, read_all, take
from trio_sse.topic import parse_selectors


class TestSQLiteJournal(JournalContract):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "journal.db"

    def open_journal(self, retention: Retention, clock: Callable[[], float]) -> AbstractAsyncContextManager[Journal]:
        return open_journal(f"sqlite:{self.path}", retention=retention, clock=clock)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'journal.db'}"


async def test_events_are_there_after_a_restart(url: str) -> None:
    """What was appended is read by the next life, and its IDs go on from there even if the clock went back."""
    clock = WallClock()
    async with open_journal(url, clock=clock) as journal:
        ids = await journal.append([draft("a", "1"), draft("b", "2")])
        born = journal.born
    clock.move(-3600)
    async with open_journal(url, clock=clock) as journal:
        assert journal.born == born
        assert journal.tail == ids[-1]
        assert data_of(await read_all(journal, "a", "b")) == ["1", "2"]
        assert journal.gave(ids[-1])
        assert (await journal.append([draft("a")]))[0] > ids[-1]


async def test_floors_are_there_after_a_restart(url: str) -> None:
    """A restart does not hide what was removed before it."""
    async with open_journal(url, retention=Retention(events=2)) as journal:
        ids = await journal.append([draft("a") for _ in range(5)])
    async with open_journal(url, retention=Retention(events=2)) as journal:
        assert await journal.floor(parse_selectors(["a"])) == ids[2]


async def test_ids_go_on_above_events_that_are_all_gone(url: str) -> None:
    """Also when every event was removed, no ID is given twice."""
    clock = WallClock()
    async with open_journal(url, retention=Retention(seconds=10), clock=clock) as journal:
        ids = await journal.append([draft("a")])
        clock.move(60)
        await journal.trim()
    clock.move(-3600)
    async with open_journal(url, clock=clock) as journal:
        assert journal.tail >= ids[-1]
        assert (await journal.append([draft("a")]))[0] > ids[-1]


async def test_forgotten_topics_leave_one_coarse_floor(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When too many topics are empty, one floor stands for the oldest of them, also after a restart."""
    monkeypatch.setattr(writer, "MAX_EMPTY_TOPICS", 2)
    clock = WallClock()
    async with open_journal(url, retention=Retention(seconds=10), clock=clock) as journal:
        ids = []
        for number in range(4):
            ids += await journal.append([draft(f"t/{number}")])
            clock.move(1)
        clock.move(60)
        await journal.trim()
    async with open_journal(url, retention=Retention(seconds=10), clock=clock) as journal:
        coarse = await journal.floor(parse_selectors(["t/0"]))
        assert ids[1] < coarse < ids[2]
        assert coarse.seq == 0
        assert await journal.floor(parse_selectors(["t/3"])) == ids[3]


async def test_topics_are_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that invents topics pushes out the oldest events, not the disk."""
    monkeypatch.setattr(writer, "MAX_TOPICS", 10)
    monkeypatch.setattr(writer, "MAX_EMPTY_TOPICS", 5)
    async with open_journal(url) as journal:
        for number in range(30):
            await journal.append([draft(f"t/{number}", str(number))])
        assert data_of(await read_all(journal, "**")) == [str(number) for number in range(20, 30)]


async def test_waiting_publishers_share_a_transaction(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is appended while a commit runs goes into the next one together."""
    commits: list[int] = []
    commit = Writer.commit

    def count(self: Writer, writes: Sequence[Write], *times: Any) -> Change:
        commits.append(len(writes))
        return commit(self, writes, *times)

    monkeypatch.setattr(Writer, "commit", count)
    async with open_journal(url) as journal, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(journal.append, [draft("a", str(number))])
    assert sum(commits) == 50
    assert len(commits) < 10


async def test_a_failed_commit_keeps_nothing_and_its_ids_are_never_used(url: str) -> None:
    """The publishers are told, the followers hear nothing, and the journal goes on."""
    async with open_journal(url) as journal:
        with journal.follow() as follower:
            await journal.append([draft("a", "kept")])
            blocker = sqlite3.connect(url.partition(":")[2], isolation_level=None)
            blocker.execute("BEGIN IMMEDIATE")
            failed_above = journal.position()
            with pytest.raises(JournalError, match="try again"):
                await journal.append([draft("a", "lost")])
            blocker.execute("ROLLBACK")
            blocker.close()
            (after,) = await journal.append([draft("a", "after")])
            assert data_of(await take(follower, 2)) == ["kept", "after"]
            assert data_of(await read_all(journal, "a")) == ["kept", "after"]
            assert after > failed_above


async def test_a_full_disk_is_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal without room answers so, and goes on when there is room again."""
    async with open_journal(url) as journal:
        await journal.append([draft("a", "1")])
        with monkeypatch.context() as patch:
            patch.setattr(disk, "largest", lambda _: 0)
            await journal.trim()
            with pytest.raises(JournalFull):
                await journal.append([draft("a", "x" * 500_000)])
        await journal.append([draft("a", "2")])
        assert data_of(await read_all(journal, "a")) == ["1", "2"]
        assert journal.statistics().events == 2


async def test_an_append_that_is_cancelled_while_it_waits_is_not_kept(url: str) -> None:
    """Cancelled before the writer took it, an event never will be kept."""
    async with open_journal(url) as journal:
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.append([draft("a")])
        assert await read_all(journal, "a") == []


async def test_appending_to_a_closed_journal_fails(url: str) -> None:
    """A publisher that comes too late is told."""
    async with open_journal(url) as journal:
        pass
    with pytest.raises(JournalError, match="closed"):
        await journal.append([draft("a")])


async def test_pages_are_bounded_in_bytes(url: str) -> None:
    """A reader of large events gets them in small pages, all of them."""
    async with open_journal(url) as journal:
        for _ in range(5):
            await journal.append([draft("a", "x" * 600_000)])
        page = await journal.read(parse_selectors(["a"]), ORIGIN, 100)
        assert len(page.records) == 1
        assert page.more
        assert len(await read_all(journal, "a")) == 5


async def test_another_process_cannot_have_it(url: str, tmp_path: Path) -> None:
    """A second opener is told who has it, and where to go."""
    async with open_journal(url):
        script = f"import trio, trio_sse; trio.run(lambda: trio_sse.open_hub({url!r}).__aenter__())"
        done = await trio.run_process(
            [sys.executable, "-c", script], check=False, capture_stderr=True, cwd=Path(__file__).parent.parent
        )
        last_line = done.stderr.decode().strip().splitlines()[-1]
        assert f"in use by process {os.getpid()}" in last_line


@pytest.mark.parametrize("path", ["missing/folder/journal.db", "/proc/journal.db"])
async def test_a_place_that_cannot_be_written_is_said(path: str, tmp_path: Path) -> None:
    """A missing folder is one clear line."""
    with pytest.raises(JournalUnusable, match="cannot be used"):
        async with open_journal(f"sqlite:{tmp_path / path}"):
            pass


async def test_another_programs_database_is_left_alone(url: str) -> None:
    """A foreign file is refused, and not a byte of it changed."""
    path = Path(url.partition(":")[2])
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(JournalUnusable, match="another program's"):
        async with open_journal(url):
            pass
    assert path.read_bytes() == before


async def test_a_newer_schema_is_refused(url: str) -> None:
    """A journal of a later trio_sse is named as such."""
    async with open_journal(url):
        pass
    with sqlite3.connect(url.partition(":")[2]) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(JournalUnusable, match="version 99"):
        async with open_journal(url):
            pass


async def test_what_is_no_database_is_refused(url: str) -> None:
    """A text file is one clear line, and is left as it was."""
    path = Path(url.partition(":")[2])
    path.write_text("dear diary " * 100)
    with pytest.raises(JournalUnusable, match="not a database"):
        async with open_journal(url):
            pass
    assert path.read_text().startswith("dear diary")


async def test_an_event_survives_a_killed_process(url: str, tmp_path: Path) -> None:
    """The moment an append has returned, a SIGKILL cannot take its event."""
    script = (
        "import os, signal, trio\n"
        "from trio_sse import open_hub\n"
        "async def main():\n"
        f"    async with open_hub({url!r}) as hub:\n"
        "        for n in range(100):\n"
        "            await hub.publish('a', str(n))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "trio.run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == -9
    async with open_journal(url) as journal:
        assert data_of(await read_all(journal, "a")) == [str(n) for n in range(100)]


async def test_a_signing_key_can_be_read_beside_the_server(url: str) -> None:
    """The command line finds it while the journal is open elsewhere; where there is none, none."""
    assert read_signing_key(url) is None
    async with open_journal(url) as journal:
        assert read_signing_key(url) is None
        await journal.signing_key("s3cret")
        assert read_signing_key(url) == "s3cret"
    assert read_signing_key("memory:") is None


@pytest.mark.parametrize("url", ["redis://localhost", "sqlite:", "sqlite::memory:", "memory:x", "", "journal.db"])
def test_an_unknown_journal_is_refused(url: str) -> None:
    """What is no journal is said with what one looks like."""
    with pytest.raises(JournalUnusable, match="use memory: or sqlite:PATH"):
        open_journal(url)


async def test_a_position_is_kept_for_the_next_life(url: str) -> None:
    """A cursor that no event has was given; after a restart under a clock that went back, events are above it."""
    clock = WallClock()
    async with open_journal(url, clock=clock) as journal:
        clock.move(10)
        position = journal.position()
    clock.move(-3600)
    async with open_journal(url, clock=clock) as journal:
        assert journal.gave(position)
        assert (await journal.append([draft("a")]))[0] > position


async def test_no_position_is_given_that_could_not_be_kept(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the file cannot say up to where positions are given, they stay where they are."""
    clock = WallClock()
    async with open_journal(url, clock=clock) as journal:
        keep = Writer._keep_position

        def keep_and_fail(self: Writer, kept: EventID) -> None:
            keep(self, kept)
            raise sqlite3.OperationalError("disk I/O error")

        clock.move(60)
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "_keep_position", keep_and_fail)
            with pytest.raises(JournalError):
                await journal.trim()
        assert journal.position().ms < NOON * 1000 + 60_000
        await journal.trim()
        assert journal.position().ms == NOON * 1000 + 60_000


async def test_a_lowered_limit_counts_after_a_restart(url: str) -> None:
    """Also in topics that get no new event."""
    async with open_journal(url) as journal:
        await journal.append([draft("a", str(number)) for number in range(100)])
    async with open_journal(url, retention=Retention(events=10)) as journal:
        await journal.trim()
        assert data_of(await read_all(journal, "a")) == [str(number) for number in range(90, 100)]


async def test_after_a_failed_commit_memory_and_file_say_the_same(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic whose first event was rolled back is made again, also when counting again failed at first."""
    async with open_journal(url) as journal:
        assert isinstance(journal, sqlite_journal.SQLiteJournal)

        def fail(*_: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr(Writer, "_forget", fail)
            with pytest.raises(JournalError):
                await journal.append([draft("new", "lost")])
            assert journal.unwritable is not None
            patch.setattr(Writer, "_load", fail)
            with pytest.raises(JournalError):
                await journal.append([draft("new", "lost")])
        await journal.append([draft("new", "kept")])
        assert journal.unwritable is None
        assert data_of(await read_all(journal, "new")) == ["kept"]
        assert journal.statistics().events == 1


async def test_a_failing_read_is_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader is told that reading failed, not writing."""

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async with open_journal(url) as journal:
        await journal.append([draft("a")])
        monkeypatch.setattr(sqlite_journal, "SHELF_EVENTS", 0)
        await journal.append([draft("a")])
        monkeypatch.setattr(database, "begin_reading", fail)
        with pytest.raises(JournalError, match="could not read"):
            await journal.read(parse_selectors(["a"]), ORIGIN, 10)


@pytest.mark.parametrize("retention", [Retention(bytes=15_000), Retention(events=10)])
async def test_many_old_events_are_removed_in_batches(
    url: str, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lowered limit is reached over several transactions, none of which is long."""
    monkeypatch.setattr(writer, "LOOKS", 30)
    removed: list[int] = []
    remove = Writer._remove

    def count(self: Writer, held: Held, rows: Sequence[Doomed], *, from_front: bool) -> None:
        removed.append(len(rows))
        remove(self, held, rows, from_front=from_front)

    async with open_journal(url) as journal:
        await journal.append([draft("a", "x" * 100) for _ in range(200)])
    monkeypatch.setattr(Writer, "_remove", count)
    async with open_journal(url, retention=retention) as journal:
        await journal.trim()
        assert 0 < journal.statistics().bytes <= 15_000
    assert len(removed) > 2
    assert max(removed) <= writer.LOOKS_BESIDE
