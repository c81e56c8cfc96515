"""``trio-sse backup``: a copy of a journal that is being served, and what a hub says that opens it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from tests import journal_corpus
from tests.conftest import Listener, eventually, publish
from tests.serving import ROOT, Server, serving
from tests.test_journal_files import NOBODY, UNMEASURED, middle, mounted, overwrite, run_on, why_not_nobody
from trio_sse.cli import main
from trio_sse.errors import JournalUnusable
from trio_sse.event import EventID
from trio_sse.hub import Hub, open_hub
from trio_sse.journal import back_up, backup, open_journal
from trio_sse.record import Gap
from trio_sse.retention import Retention
from trio_sse.testing import WallClock, data_of, decode, draft, read_all

DOCS = (ROOT / "docs" / "delivery.md").read_text()


def silent(copied: int, whole: int) -> None:
    """Nobody is told how far it has come."""


# -- the copy ---------------------------------------------------------------------------------------------------------

PUBLISH = """
import sys, trio
from trio_sse.journal import open_journal
from trio_sse.retention import Retention
from trio_sse.testing import draft

async def go_on(url):
    async with open_journal(url, retention=Retention(events=10**9)) as journal, trio.open_nursery() as nursery:
        async def stop():
            await trio.to_thread.run_sync(sys.stdin.read)
            nursery.cancel_scope.cancel()
        nursery.start_soon(stop)
        for number in range(10**9):
            await journal.append([draft("a", f"{number} " + "x" * 2000)])
            if number == 300:
                print("begun", flush=True)

trio.run(go_on, sys.argv[1])
"""


def test_a_copy_is_of_one_instant_while_another_process_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has all events up to one, and none after it; the publisher goes on, and has all of its own."""
    monkeypatch.setattr(backup, "STEP_PAGES", 20)
    journal, copy = tmp_path / "hub.db", tmp_path / "copy.db"
    command = [sys.executable, "-c", PUBLISH, f"sqlite:{journal}"]
    log = tmp_path / "hub.db-wal"
    progress: list[int] = []

    def watch(copied: int, whole: int) -> None:
        before = log.stat().st_mtime_ns
        assert len(progress) > 5 or eventually(lambda: log.stat().st_mtime_ns > before), "nothing is published"
        progress.append(copied)

    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as publisher:
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "begun\n"
        back_up(f"sqlite:{journal}", str(copy), watch)
        publisher.communicate("")
        assert publisher.returncode == 0
    assert progress == sorted(set(progress)), "it began again"

    async def numbers(path: Path) -> list[int]:
        async with open_journal(f"sqlite:{path}", retention=Retention(events=1e9)) as opened:
            return [int(data.split()[0]) for data in data_of(await read_all(opened, "a"))]

    copied, kept = trio.run(numbers, copy), trio.run(numbers, journal)
    assert copied == list(range(len(copied)))
    assert kept == list(range(len(kept)))
    assert 300 < len(copied) < len(kept)


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_a_copy_is_one_file_and_its_owners_alone(tmp_path: Path) -> None:
    """With all that the journal is known by; the size is told."""
    journal_corpus.unpack(2, tmp_path / "hub.db")
    (tmp_path / "copies").mkdir()
    with _umask(0):
        size = back_up(f"sqlite:{tmp_path / 'hub.db'}", str(tmp_path / "copies" / "copy.db"), silent)
    (copy,) = (tmp_path / "copies").iterdir()
    assert copy.stat().st_size == size
    assert copy.stat().st_mode & 0o777 == 0o600
    told = []
    for path in (tmp_path / "hub.db", copy):
        with contextlib.closing(sqlite3.connect(path)) as db:
            names = ("application_id", "user_version")
            told.append([db.execute(f"PRAGMA {name}").fetchone() for name in names])
            told[-1] += db.execute("SELECT id, frame FROM record ORDER BY id").fetchall()
    assert told[0] == told[1]


def test_it_is_told_how_far_it_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes, up to the whole."""
    monkeypatch.setattr(backup, "STEP_PAGES", 2)
    journal_corpus.unpack(2, tmp_path / "hub.db")
    told: list[tuple[int, int]] = []
    size = back_up(f"sqlite:{tmp_path / 'hub.db'}", str(tmp_path / "copy.db"), lambda *each: told.append(each))
    assert len(told) > 3
    assert told == sorted(told)
    assert told[-1] == (size, size)


# -- what is not copied, and not overwritten --------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for what SQLite makes beside a database that is read."""
    return {
        each.name: each.read_bytes() if each.is_file() else b""
        for each in folder.iterdir()
        if not each.name.endswith(("-shm", "-wal"))
    }


def failed(journal: str, target: Path | str) -> str:
    """The line that is said, and nothing is left."""
    folder = Path(target).parent
    before = content(folder)
    with pytest.raises(JournalUnusable) as told:
        back_up(journal, str(target), silent)
    assert content(folder) == before
    (line,) = str(told.value).splitlines()
    return line


@pytest.mark.parametrize("there", ["a file", "an empty file", "a folder", "a link", "a link to nowhere"])
def test_what_exists_is_not_overwritten(tmp_path: Path, there: str) -> None:
    """Nor is what a link leads to."""
    journal_corpus.unpack(2, tmp_path / "hub.db")
    target = tmp_path / "copy.db"
    if there == "a folder":
        target.mkdir()
    elif there.startswith("a link"):
        target.symlink_to("nowhere" if there.endswith("nowhere") else "hub.db")
    else:
        target.write_bytes(b"theirs" if there == "a file" else b"")
    assert "exists, and was left as it is" in failed(f"sqlite:{tmp_path / 'hub.db'}", target)


@pytest.mark.parametrize("end", ["-wal", "-journal", ".key", ".making"])
def test_a_copy_has_no_name_of_the_journals_own(tmp_path: Path, end: str) -> None:
    """It would be taken for what it is not."""
    journal_corpus.unpack(2, tmp_path / "hub.db")
    assert "a name of the journal's own" in failed(f"sqlite:{tmp_path / 'hub.db'}", tmp_path / f"hub.db{end}")


def test_what_took_the_name_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """It is looked at again in the end."""
    journal_corpus.unpack(2, tmp_path / "hub.db")

    def take_name(copied: int, whole: int) -> None:
        (tmp_path / "copy.db").write_text("theirs")

    with pytest.raises(JournalUnusable, match="File exists"):
        back_up(f"sqlite:{tmp_path / 'hub.db'}", str(tmp_path / "copy.db"), take_name)
    assert (tmp_path / "copy.db").read_text() == "theirs"
    assert content(tmp_path).keys() == {"hub.db", "copy.db"}


@pytest.mark.parametrize(
    ("journal", "line"),
    [
        ("memory:", "nothing to copy"),
        ("sqlite:missing.db", "there is no journal"),
        ("sqlite:empty.db", "there is no journal in"),
        ("sqlite:text.db", "not a database"),
        ("sqlite:foreign.db", "another program's database"),
        ("sqlite:newer.db", "schema version 99"),
        ("sqlite:fifo", "is a FIFO"),
        ("sqlite:damaged.db", "is damaged"),
    ],
)
def test_what_is_no_journal_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: str, line: str
) -> None:
    """One line says so, and nothing is left."""
    monkeypatch.chdir(tmp_path)
    Path("empty.db").touch()
    Path("text.db").write_text("dear diary\n" * 1000)
    run_on(Path("foreign.db"), "CREATE TABLE theirs (x)")
    journal_corpus.unpack(2, Path("newer.db"))
    run_on(Path("newer.db"), "PRAGMA user_version = 99")
    os.mkfifo("fifo")
    journal_corpus.unpack(2, Path("damaged.db"))
    overwrite(Path("damaged.db"), middle(Path("damaged.db")), bytes(4096))
    assert line in failed(journal, tmp_path / "copy.db")


def test_a_journal_of_another_user_is_not_copied(tmp_path: Path) -> None:
    """The line says why."""
    if why := why_not_nobody():
        pytest.skip(why)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hub.db"
        journal_corpus.unpack(2, path)
        path.chmod(0o600)
        Path(folder).chmod(0o777)
        script = "import sys; from trio_sse.journal import back_up; back_up('sqlite:' + sys.argv[1], sys.argv[1] + '2')"
        done = subprocess.run([*NOBODY, script, path], cwd=ROOT, env=UNMEASURED, stderr=subprocess.PIPE, text=True)
        assert "this user may not read it" in done.stderr.splitlines()[-1]
        assert content(Path(folder)).keys() == {"hub.db"}


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    """With the name of the copy."""
    journal_corpus.unpack(2, tmp_path / "hub.db")
    with pytest.raises(JournalUnusable, match=r"copied to .*/missing/copy\.db: No such file"):
        back_up(f"sqlite:{tmp_path / 'hub.db'}", str(tmp_path / "missing" / "copy.db"), silent)


def test_nothing_is_left_on_a_full_disk(tmp_path: Path) -> None:
    """The line says that there is no room."""
    journal_corpus.unpack(2, tmp_path / "hub.db")
    (tmp_path / "small").mkdir()
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=40k", "tmpfs"):
        assert "no room left" in failed(f"sqlite:{tmp_path / 'hub.db'}", tmp_path / "small" / "copy.db")


def test_nothing_is_left_of_an_interrupted_copy(tmp_path: Path) -> None:
    """Whoever stops it."""
    journal_corpus.unpack(2, tmp_path / "hub.db")

    def interrupt(copied: int, whole: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(f"sqlite:{tmp_path / 'hub.db'}", str(tmp_path / "copy.db"), interrupt)
    assert content(tmp_path).keys() == {"hub.db"}


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_signals")
def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    """And, in one line and with status 1, why it made nothing."""
    journal_corpus.unpack(2, tmp_path / "hub.db")
    runner = CliRunner(env={"TRIO_SSE_JOURNAL": f"sqlite:{tmp_path / 'hub.db'}"})
    copy = tmp_path / "copy.db"
    made = runner.invoke(main, ["backup", str(copy)])
    assert (made.exit_code, made.output) == (0, f"{copy}: {copy.stat().st_size} bytes\n")
    again = runner.invoke(main, ["backup", str(copy)])
    assert again.exit_code == 1
    assert again.output.startswith(f"Error: {copy} exists")
    assert len(again.output.splitlines()) == 1


# -- a hub that opens a copy ------------------------------------------------------------------------------------------


class Restored:
    """A journal that was copied, went on, and was replaced by its copy."""

    def __init__(self, folder: Path) -> None:
        self.clock = WallClock()
        self.url = f"sqlite:{folder / 'hub.db'}"
        self.copy = folder / "copy.db"
        self.copied: list[EventID] = []
        self.lost: list[EventID] = []

    async def make(self) -> None:
        async with self.open() as hub:
            self.copied = [await hub.publish("a", f"copied {number}") for number in range(3)]
            back_up(self.url, str(self.copy), silent)
            self.clock.move(60)
            self.lost = [await hub.publish("a", f"lost {number}") for number in range(3)]
            self.lost.append(hub.journal.position())
        self.clock.move(60)
        self.put_back()

    def put_back(self) -> None:
        path = Path(self.url.removeprefix("sqlite:"))
        for end in ("", "-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
        shutil.copy(self.copy, path)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Hub]:
        async with open_hub(self.url, clock=self.clock) as hub:
            yield hub

    async def received(self, hub: Hub, cursor: object) -> list[str]:
        """What a reader gets that comes back with a cursor, up to the newest event: data, and the reasons of gaps."""
        found: list[str] = []
        async with hub.subscribe("a", last_event_id=str(cursor)) as subscription:
            while not found or found[-1] != "now":
                item = await subscription.receive()
                found.append(item.reason if isinstance(item, Gap) else decode(item.frame)[0].data)
        return found


@pytest.fixture
async def restored(tmp_path: Path) -> Restored:
    made = Restored(tmp_path)
    await made.make()
    return made


async def test_who_has_seen_what_was_copied_is_told_of_the_gap(restored: Restored) -> None:
    """Events may have been kept since, of which the copy knows nothing; the history that it has follows."""
    async with restored.open() as hub:
        await hub.publish("a", "now")
        for place, cursor in enumerate(restored.copied):
            history = [f"copied {number}" for number in range(place + 1, 3)]
            assert await restored.received(hub, cursor) == ["restarted", *history, "now"]


async def test_who_has_seen_what_is_lost_is_told_of_the_gap(restored: Restored) -> None:
    """Also when the journal's own ids have passed such a cursor."""
    async with restored.open() as hub:
        await hub.publish("a", "now")
        for cursor in restored.lost:
            assert await restored.received(hub, cursor) == ["restarted", "now"]


async def test_who_is_told_of_the_gap_goes_on_behind_it(restored: Restored) -> None:
    """Whoever had everything that was copied is told once."""
    async with restored.open() as hub:
        async with hub.subscribe("a", last_event_id=restored.copied[-1]) as subscription:
            gap = await subscription.receive()
        assert isinstance(gap, Gap)
        await hub.publish("a", "now")
        assert await restored.received(hub, gap.resumed_from) == ["now"]


async def test_a_copy_gives_no_place_twice(restored: Restored) -> None:
    """Every id and position comes after those that were lost."""
    async with restored.open() as hub:
        assert hub.journal.position() > max(restored.lost)
        assert await hub.publish("a", "now") > max(restored.lost)


async def test_who_asks_for_all_that_is_kept_is_told_of_no_gap(restored: Restored) -> None:
    """Nor who begins now."""
    async with restored.open() as hub:
        await hub.publish("a", "now")
        assert await restored.received(hub, "earliest") == ["copied 0", "copied 1", "copied 2", "now"]


async def test_a_copy_that_was_opened_is_a_journal_like_any_other(restored: Restored) -> None:
    """Its next life loses nothing: who has seen what came after it was put back is told of no gap."""
    async with restored.open() as hub:
        seen = await hub.publish("a", "seen")
    restored.clock.move(60)
    async with restored.open() as hub:
        await hub.publish("a", "now")
        assert await restored.received(hub, seen) == ["now"]
        assert await restored.received(hub, restored.copied[-1]) == ["restarted", "seen", "now"]


async def test_the_journal_itself_goes_on_without_a_gap(tmp_path: Path) -> None:
    """Only the copy is marked."""
    journal = Restored(tmp_path)
    async with journal.open() as hub:
        seen = await hub.publish("a", "seen")
    back_up(journal.url, str(journal.copy), silent)
    async with journal.open() as hub:
        await hub.publish("a", "now")
        assert await journal.received(hub, seen) == ["now"]


async def test_a_copy_is_not_mixed_with_the_log_of_another(restored: Restored, tmp_path: Path) -> None:
    """Of the file that it was put in place of; the line says what to do, and both are left as they are."""
    path = tmp_path / "hub.db"
    async with restored.open() as hub:
        await hub.publish("a", "x")
        log = path.with_name("hub.db-wal").read_bytes()
    restored.put_back()
    path.with_name("hub.db-wal").write_bytes(log)
    with pytest.raises(JournalUnusable, match=r"hub\.db-wal is the log of another file: remove it"):
        async with restored.open():
            pass
    assert path.with_name("hub.db-wal").read_bytes() == log
    assert path.read_bytes() == restored.copy.read_bytes()


async def test_a_copy_of_a_copy_is_one(restored: Restored, tmp_path: Path) -> None:
    """Also of one that nobody has opened."""
    back_up(f"sqlite:{restored.copy}", str(tmp_path / "second.db"), silent)
    async with open_journal(f"sqlite:{tmp_path / 'second.db'}", clock=restored.clock) as journal:
        assert journal.born > max(restored.lost)
        assert data_of(await read_all(journal, "a")) == ["copied 0", "copied 1", "copied 2"]
        await journal.append([draft("a")])


# -- what the page says -----------------------------------------------------------------------------------------------


def test_the_commands_of_the_page_make_a_copy_and_put_it_back(tmp_path: Path) -> None:
    """Each of them is run: the first while the server runs, the others while it does not."""
    section = DOCS.partition("\n## A copy of the journal\n")[2].partition("\n## ")[0]
    make, put_back = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "trio-sse").write_text(f'#!/bin/sh\nexec {sys.executable} -m trio_sse "$@"\n')
    (tmp_path / "bin" / "trio-sse").chmod(0o755)
    (tmp_path / "backups").mkdir()
    data = tmp_path / "data"
    data.mkdir()

    def run(server: Server, commands: str) -> None:
        for mine, real in (("/var/lib/trio-sse", str(data)), ("/var/backups", str(tmp_path / "backups"))):
            assert mine in commands
            commands = commands.replace(mine, real)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        subprocess.run(["sh", "-euc", commands], cwd=ROOT, env={**server.env, "PATH": path}, check=True)

    env = {"TRIO_SSE_JOURNAL": f"sqlite:{data / 'trio_sse.db'}"}
    with serving(folder=tmp_path, env=env) as server:
        copied = publish(server, "lobby", "copied")
        run(server, make)
        publish(server, "lobby", "lost")
        server.kill()  # its log lies there still
        run(server, put_back)
        server.start()
        publish(server, "lobby", "now")
        with Listener(server, "/events?topic=lobby", {"Last-Event-ID": copied}) as listener:
            listener.take()
            gap = listener.event()
            assert json.loads(gap["data"])["reason"] == "restarted"
            assert listener.event()["data"] == "now"
        with Listener(server, "/events?topic=lobby&last_event_id=earliest") as listener:
            listener.take()
            assert [listener.event()["data"] for _ in range(2)] == ["copied", "now"]
        assert (data / "trio_sse.db").stat().st_mode & 0o777 == 0o600
        assert server.terminate() == 0
