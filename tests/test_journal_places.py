"""Where a journal may lie: in one regular file, which one hub serves, and which is its owner's alone."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests import journal_corpus
from tests.serving import ROOT, serving
from tests.test_journal_files import mounted
from trio_sse.errors import JournalUnusable
from trio_sse.journal import open_journal, read_signing_key
from trio_sse.journal import sqlite as sqlite_room
from trio_sse.journal.file import BESIDE, JournalFile
from trio_sse.testing import data_of, draft, read_all

KEY = "a key that the operator has set, long enough to sign"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a journal that another has."""
    monkeypatch.setattr(sqlite_room, "LOCK_S", 0.0)


async def use(url: str) -> list[str]:
    """Open a journal and append to it; all that is in it."""
    async with open_journal(url) as journal:
        await journal.append([draft("a", "x")])
        return data_of(await read_all(journal, "a"))


def refused(path: Path | str) -> str:
    """The line that is told of a journal."""
    with pytest.raises(JournalUnusable) as told:
        trio.run(use, f"sqlite:{path}")
    (line,) = str(told.value).splitlines()
    return line


# -- what is no file --------------------------------------------------------------------------------------------------


def device(path: Path) -> None:
    """A node like /dev/null, which is nobody's but the test's."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a device node")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def block_device(path: Path) -> None:
    """A node of a number that no driver has."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a device node")
    os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(60, 255))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def directory(path: Path) -> None:
    path.mkdir()


NODES = pytest.mark.parametrize("make", [device, block_device, fifo, unix_socket, directory])


def told_of(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """What lies in a folder: which nodes, and what is in those that are files."""
    return {
        each.name: (
            (status := each.lstat()).st_ino,
            status.st_mode,
            status.st_rdev,
            each.read_bytes() if stat.S_ISREG(status.st_mode) else b"",
        )
        for each in folder.iterdir()
    }


@NODES
@pytest.mark.parametrize("link", [False, True], ids=["itself", "through a link"])
def test_what_is_no_regular_file_is_refused_and_left_as_it_is(
    tmp_path: Path, make: Callable[[Path], None], link: bool
) -> None:
    """A device, a FIFO (which nobody waits for), a socket, a directory."""
    make(tmp_path / "node")
    if link:
        (tmp_path / "hub.db").symlink_to("node")
    before = told_of(tmp_path)
    line = refused(tmp_path / ("hub.db" if link else "node"))
    assert f"{tmp_path / 'node'} is a" in line
    assert told_of(tmp_path) == before


@NODES
@pytest.mark.parametrize("end", ["-wal", "-shm", ".making", ".key"])
def test_what_is_no_regular_file_beside_a_journal_is_left_as_it_is(
    tmp_path: Path, make: Callable[[Path], None], end: str
) -> None:
    """Also where the journal has yet to be made."""
    make(tmp_path / f"hub.db{end}")
    before = told_of(tmp_path)
    assert f"{tmp_path / 'hub.db'}{end} is a" in refused(tmp_path / "hub.db")
    assert told_of(tmp_path) == before


@pytest.mark.parametrize("there", [True, False], ids=["a journal", "no journal yet"])
@pytest.mark.parametrize("end", BESIDE)
def test_no_link_beside_a_journal_is_followed(tmp_path: Path, end: str, there: bool) -> None:
    """What it leads to is as it was; so is the journal."""
    if there:
        journal_corpus.unpack(2, tmp_path / "hub.db")
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / f"hub.db{end}").symlink_to("theirs")
    before = told_of(tmp_path)
    assert f"hub.db{end} is a link" in refused(tmp_path / "hub.db")
    assert told_of(tmp_path) == before


def test_a_link_that_leads_nowhere_is_not_followed_either(tmp_path: Path) -> None:
    """Beside the journal; the journal itself may be made where a link leads to."""
    (tmp_path / "hub.db-wal").symlink_to("nowhere")
    assert "hub.db-wal is a link" in refused(tmp_path / "hub.db")
    assert not (tmp_path / "nowhere").exists()


def test_what_lies_at_the_name_of_the_lock_of_old_is_left_alone(tmp_path: Path) -> None:
    """Earlier versions truncated what a link there led to."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "hub.db.lock").symlink_to("theirs")
    trio.run(use, f"sqlite:{tmp_path / 'hub.db'}")
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_path_that_cannot_be_one_is_one_line() -> None:
    """There is no NUL in a path."""
    assert "null" in refused("hub\0.db")


# -- one file, one hub ------------------------------------------------------------------------------------------------

HOLD = """
import sys, trio
from trio_sse.journal import open_journal

async def hold(url):
    async with open_journal(url):
        print("held", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)

trio.run(hold, sys.argv[1])
"""


@contextlib.contextmanager
def holder(path: Path) -> Iterator[int]:
    """Another process that has the journal; its number."""
    command = [sys.executable, "-c", HOLD, f"sqlite:{path}"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process.pid
        finally:
            assert process.communicate("")[0] == ""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A journal that another process has, and that process."""
    path = tmp_path_factory.mktemp("served") / "hub.db"
    with holder(path) as process:
        yield path, process


Names = dict[str, Callable[[Path, Path], Path | str]]


def linked(path: Path, folder: Path) -> Path:
    (folder / "link.db").symlink_to(path)
    return folder / "link.db"


def linked_twice(path: Path, folder: Path) -> Path:
    (folder / "one.db").symlink_to(path)
    (folder / "two.db").symlink_to("one.db")
    return folder / "two.db"


def in_a_linked_folder(path: Path, folder: Path) -> Path:
    (folder / "there").symlink_to(path.parent)
    return folder / "there" / path.name


def relative(path: Path, folder: Path) -> str:
    os.chdir(path.parent)
    return path.name


def dotted(path: Path, folder: Path) -> str:
    os.chdir(path.parent)
    return f"./{path.name}"


def from_elsewhere(path: Path, folder: Path) -> str:
    os.chdir(folder)
    return os.path.relpath(path)


def doubled(path: Path, folder: Path) -> str:
    return f"/{path.parent}//./{path.name}"


NAMES: Names = {
    each.__name__.replace("_", " "): each
    for each in (linked, linked_twice, in_a_linked_folder, relative, dotted, from_elsewhere, doubled)
}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back to this folder at the end."""
    monkeypatch.chdir(Path.cwd())


@pytest.mark.parametrize("name", NAMES)
def test_a_journal_is_served_by_one_hub_whatever_it_is_called(
    served: tuple[Path, int], tmp_path: Path, name: str
) -> None:
    """The second is told which process has it."""
    path, process = served
    assert refused(NAMES[name](path, tmp_path)).startswith(f"the journal {path} is in use by process {process}")


def test_a_journal_is_served_by_one_hub_through_a_mount_of_its_folder(served: tuple[Path, int], tmp_path: Path) -> None:
    """It is the same file, and so is its lock."""
    path, process = served
    with mounted(tmp_path, "--bind", path.parent):
        assert f"in use by process {process}" in refused(tmp_path / "hub.db")


def test_a_hard_link_to_a_journal_is_refused(served: tuple[Path, int], tmp_path: Path) -> None:
    """Under either name: each would have its own log."""
    path, _ = served
    (tmp_path / "hub.db").hardlink_to(path)
    try:
        assert f"{tmp_path / 'hub.db'} has 2 names" in refused(tmp_path / "hub.db")
        assert f"{path} has 2 names" in refused(path)
    finally:
        (tmp_path / "hub.db").unlink()


@pytest.mark.parametrize("name", ["hub.db", r"of our own \040.db"])
def test_a_file_that_is_mounted_by_itself_is_refused(served: tuple[Path, int], tmp_path: Path, name: str) -> None:
    """On the same file system too: its log would lie outside. The line says what to mount."""
    path, _ = served
    (tmp_path / name).touch()
    with mounted(tmp_path / name, "--bind", path):
        assert "is mounted by itself" in (line := refused(tmp_path / name))
        assert "mount the folder" in line
    assert told_of(tmp_path).keys() == {name}


def test_the_part_of_an_url_is_part_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``sqlite:file:hub.db`` is a file of that name, where SQLite may be built to take it for hub.db."""
    monkeypatch.chdir(tmp_path)
    journal_corpus.unpack(2, tmp_path / "hub.db")
    before = told_of(tmp_path)
    assert trio.run(use, "sqlite:file:hub.db?mode=rwc") == ["x"]
    assert told_of(tmp_path).items() - before.items() == {
        ("file:hub.db?mode=rwc", told_of(tmp_path)["file:hub.db?mode=rwc"])
    }


def test_bytes_that_are_no_text_are_part_of_a_name(tmp_path: Path) -> None:
    """A path is bytes."""
    path = os.fsdecode(bytes(tmp_path) + b"/h\xffb %41#.db")
    assert [trio.run(use, f"sqlite:{path}") for _ in range(2)] == [["x"], ["x", "x"]]


def test_the_lock_is_on_the_file_that_the_path_leads_to_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is another by the time the first is locked, the other is locked."""
    journal_corpus.unpack(2, tmp_path / "hub.db")
    journal_corpus.unpack(2, tmp_path / "other.db")
    flock = fcntl.flock

    def replacing(file: int, how: int) -> None:
        flock(file, how)
        if (tmp_path / "other.db").exists():
            (tmp_path / "other.db").replace(tmp_path / "hub.db")

    monkeypatch.setattr(fcntl, "flock", replacing)
    number = (tmp_path / "other.db").stat().st_ino
    with JournalFile(str(tmp_path / "hub.db")) as held:
        assert os.fstat(held._file).st_ino == number
        assert "in use by" in refused(tmp_path / "hub.db")


def test_a_journal_is_locked_while_it_is_made(tmp_path: Path) -> None:
    """From before it is begun until it is closed, under the name it is known by."""
    path = tmp_path / "hub.db"
    with JournalFile(str(path)) as held:
        with held.made_anew() as making:
            assert "in use by" in refused(path)
            Path(making).write_text("made")
        assert path.read_text() == "made"
        assert "in use by" in refused(path)


STARTERS, SOME_ROUNDS, MANY_ROUNDS = 2, 5, 200

MAKE = """
import sys, time, trio
from trio_sse.errors import JournalUnusable
from trio_sse.journal import open_journal, sqlite
from trio_sse.testing import draft, read_all

async def use(url):
    async with open_journal(url) as journal:
        await journal.append([draft("a", "x")])
        return len(await read_all(journal, "a"))

sqlite.LOCK_S = 0.0
for number in range(int(sys.argv[2])):
    sys.stdin.readline()
    while True:
        try:
            print(trio.run(use, f"sqlite:{sys.argv[1]}/{number}.db"), flush=True)
            break
        except JournalUnusable as error:
            assert "in use by" in str(error), error
            time.sleep(0.001)
"""


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(SOME_ROUNDS, id="some"),
        pytest.param(MANY_ROUNDS, marks=[pytest.mark.proof, pytest.mark.timeout(600)], id="many"),
    ],
)
def test_of_several_that_make_a_journal_at_once_one_has_it(tmp_path: Path, rounds: int) -> None:
    """What it keeps is there for the next."""
    command = [sys.executable, "-c", MAKE, str(tmp_path), str(rounds)]
    with contextlib.ExitStack() as stack:
        starters = [
            stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(STARTERS)
        ]
        for _ in range(rounds):
            for starter in starters:
                assert starter.stdin is not None
                starter.stdin.write("\n")
                starter.stdin.flush()
            found = sorted(starter.stdout.readline().strip() for starter in starters if starter.stdout)
            assert found == [str(number) for number in range(1, STARTERS + 1)]


def posix_locks(path: Path) -> int:
    """How many of SQLite's locks this process has on a file."""
    number = f":{path.stat().st_ino}"
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return sum(lock[1] == "POSIX" and lock[5].endswith(number) and lock[4] == str(os.getpid()) for lock in locks)


async def test_a_refused_opener_takes_no_lock_from_the_first(tmp_path: Path) -> None:
    """A process that closed any descriptor of the file would lose those of SQLite, which it goes by when it closes."""
    path = tmp_path / "hub.db"
    async with open_journal(f"sqlite:{path}"):
        before = posix_locks(path)
        assert before
        with pytest.raises(JournalUnusable, match=f"process {os.getpid()}"):
            await use(f"sqlite:{path}")
        assert posix_locks(path) == before


def test_a_journal_that_is_let_go_in_time_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a worker whose predecessor is on its way out."""
    monkeypatch.setattr(sqlite_room, "LOCK_S", 2.0)
    held = JournalFile(str(tmp_path / "hub.db"))

    async def both() -> list[str]:
        async with trio.open_nursery() as nursery:
            opened: list[list[str]] = []

            async def open_it() -> None:
                opened.append(await use(f"sqlite:{tmp_path / 'hub.db'}"))

            nursery.start_soon(open_it)
            await trio.testing.wait_all_tasks_blocked()
            assert opened == []
            held.close()
        return opened[0]

    assert trio.run(both) == ["x"]


# -- its owner's alone ------------------------------------------------------------------------------------------------


@pytest.fixture
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_open_umask")
async def test_all_files_of_a_journal_are_its_owners_alone(tmp_path: Path) -> None:
    """Whatever the process allows others otherwise; nothing is told."""
    async with open_journal(f"sqlite:{tmp_path / 'hub.db'}") as journal:
        await journal.append([draft("a", "x")])
        await journal.signing_key(KEY)
        modes = {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()}
        assert modes == dict.fromkeys(("hub.db", "hub.db-wal", "hub.db-shm", "hub.db.key"), 0o600)


async def test_a_journal_is_made_beside_the_real_file(tmp_path: Path) -> None:
    """Not beside a link to it."""
    (tmp_path / "there").mkdir()
    (tmp_path / "hub.db").symlink_to("there/real.db")
    async with open_journal(f"sqlite:{tmp_path / 'hub.db'}") as journal:
        await journal.signing_key(KEY)
    assert {each.name for each in tmp_path.rglob("*")} == {"there", "hub.db", "real.db", "real.db.key"}
    assert (tmp_path / "hub.db").is_symlink()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
async def test_a_journal_that_others_may_open_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    """In one line, which names it; it is served, and left as it is."""
    path = tmp_path / "hub.db"
    journal_corpus.unpack(2, path)
    path.chmod(mode)
    await use(f"sqlite:{path}")
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"other users may open {path} and {path}-wal: " in line
    assert path.stat().st_mode & 0o777 == mode


async def test_a_journal_of_ones_own_is_not_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither when it is made nor ever after."""
    for _ in range(2):
        await use(f"sqlite:{tmp_path / 'hub.db'}")
    assert caplog.records == []


# -- its signing key --------------------------------------------------------------------------------------------------


async def test_the_signing_key_outlives_the_process(tmp_path: Path) -> None:
    """In its own file, of which there is no trace in the journal."""
    url = f"sqlite:{tmp_path / 'hub.db'}"
    async with open_journal(url) as journal:
        await journal.signing_key(KEY)
    async with open_journal(url) as journal:
        assert await journal.signing_key("another") == KEY
        assert (tmp_path / "hub.db.key").read_text() == KEY + "\n"
        assert KEY.encode() not in b"".join((tmp_path / f"hub.db{end}").read_bytes() for end in ("", "-wal"))


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff" * 40])
async def test_a_file_without_a_key_is_named(tmp_path: Path, content: bytes) -> None:
    """It is not taken for a key, nor overwritten."""
    (tmp_path / "hub.db.key").write_bytes(content)
    async with open_journal(f"sqlite:{tmp_path / 'hub.db'}") as journal:
        with pytest.raises(JournalUnusable, match=r"hub\.db\.key cannot be used: there is no key in it"):
            await journal.signing_key(KEY)
    assert (tmp_path / "hub.db.key").read_bytes() == content


async def test_a_key_that_another_user_has_put_there_is_none(tmp_path: Path) -> None:
    """That user would sign tokens with it."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    (tmp_path / "hub.db.key").write_text(KEY)
    os.chown(tmp_path / "hub.db.key", 65534, -1)
    async with open_journal(f"sqlite:{tmp_path / 'hub.db'}") as journal:
        with pytest.raises(JournalUnusable, match="another user's than the journal"):
            await journal.signing_key("fresh")


async def test_the_command_line_follows_no_link_to_a_key(tmp_path: Path) -> None:
    """It would sign with what is no key."""
    (tmp_path / "theirs").write_text(KEY)
    (tmp_path / "hub.db.key").symlink_to("theirs")
    with pytest.raises(JournalUnusable, match=r"hub\.db\.key cannot be used"):
        read_signing_key(f"sqlite:{tmp_path / 'hub.db'}")


def all_bytes(folder: Path) -> bytes:
    return b"".join(each.read_bytes() for each in folder.iterdir() if each.name.startswith("hub.db"))


async def test_a_key_in_a_journal_of_old_is_moved_to_its_file(tmp_path: Path) -> None:
    """So sessions go on, and no byte of it is left in the journal or its log."""
    journal_corpus.unpack(2, tmp_path / "hub.db")
    assert journal_corpus.KEY.encode() in (tmp_path / "hub.db").read_bytes()
    async with open_journal(f"sqlite:{tmp_path / 'hub.db'}") as journal:
        assert await journal.signing_key("another") == journal_corpus.KEY
        assert all_bytes(tmp_path).count(journal_corpus.KEY.encode()) == 1
    assert (tmp_path / "hub.db.key").read_text().strip() == journal_corpus.KEY


def test_a_real_key_makes_the_server_forget_the_other(tmp_path: Path) -> None:
    """Its file is gone, and what an earlier version kept of it in the journal."""
    journal_corpus.unpack(2, tmp_path / "hub.db")
    (tmp_path / "hub.db.key").write_text(KEY)
    env = {"TRIO_SSE_JOURNAL": "sqlite:hub.db", "TRIO_SSE_JWT_KEY": KEY}
    with serving(folder=tmp_path, env=env) as server:
        assert not (tmp_path / "hub.db.key").exists()
        assert journal_corpus.KEY.encode() not in all_bytes(tmp_path)
        assert server.terminate() == 0
