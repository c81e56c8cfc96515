"""A file that is no journal, or that is not ours to write: one clear line, and not a byte of it is changed."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.serving import ROOT
from trio_sse.errors import JournalUnusable
from trio_sse.journal import open_journal
from trio_sse.testing import data_of, draft, read_all

EVENTS, EVENTS_LEFT = 200, 50
"""Of a journal that was closed, and of the life after that, which was killed."""

PAGE = 4096
DERIVED = ("-shm",)
"""What lies beside a journal and holds nothing: an index that is made anew."""

WRITE = f"""
import os, signal, sys, trio
from trio_sse.journal import open_journal
from trio_sse.testing import draft

async def write(path, first, last, *, killed):
    async with open_journal(f"sqlite:{{path}}") as journal:
        for number in range(first, last):
            await journal.append([draft("a", f"{{number}} " + "x" * 1000)])
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)

trio.run(lambda: write(sys.argv[1], 0, {EVENTS}, killed=False))
trio.run(lambda: write(sys.argv[2], 0, {EVENTS}, killed=False))
trio.run(lambda: write(sys.argv[2], {EVENTS}, {EVENTS + EVENTS_LEFT}, killed=True))
"""


@functools.cache
def _written() -> dict[str, dict[str, bytes]]:
    """The files of a journal that was closed, and of one that a killed process has left, by what their names end in."""
    with tempfile.TemporaryDirectory() as folder:
        closed, left = Path(folder) / "closed", Path(folder) / "left"
        done = subprocess.run([sys.executable, "-c", WRITE, closed, left], cwd=ROOT, check=False)
        assert done.returncode == -9
        return {
            path.name: {end: path.with_name(path.name + end).read_bytes() for end in ends}
            for path, ends in ((closed, ("",)), (left, ("", "-wal", "-shm")))
        }


def lay(path: Path, which: str = "closed") -> None:
    """Lay the files of a journal there."""
    for end, content in _written()[which].items():
        path.with_name(path.name + end).write_bytes(content)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def run_on(path: Path, *statements: str) -> None:
    """Let SQLite do something with the file, and close it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def leave_on(path: Path, *statements: str) -> None:
    """Let SQLite do something with the file, and leave it as a killed process would."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / path.name
        if path.exists():
            shutil.copy(path, other)
        with contextlib.closing(sqlite3.connect(other, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)
            for file in Path(folder).iterdir():
                shutil.copy(file, path.parent)


def middle(path: Path) -> int:
    """Where a page of events begins, of which no newer version is in a write-ahead log."""
    return path.stat().st_size // PAGE // 2 * PAGE


# -- the kinds of files -----------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Path], None]] = {}


def kind(make: Callable[[Path], None]) -> Callable[[Path], None]:
    KINDS[make.__name__.replace("_", " ")] = make
    return make


@kind
def a_text(path: Path) -> None:
    path.write_text("dear diary\n" * 1000)


@kind
def a_line(path: Path) -> None:
    path.write_text("dear diary\n")


@kind
def zeros(path: Path) -> None:
    path.write_bytes(bytes(20 * PAGE))


@kind
def a_directory(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("theirs")


@kind
def cut_in_the_middle(path: Path) -> None:
    lay(path)
    os.truncate(path, middle(path))


@kind
def cut_in_the_middle_of_a_page(path: Path) -> None:
    lay(path)
    os.truncate(path, middle(path) + 1000)


@kind
def cut_in_its_header(path: Path) -> None:
    lay(path)
    os.truncate(path, 50)


@kind
def cut_and_left_by_a_killed_process(path: Path) -> None:
    lay(path, "left")
    os.truncate(path, middle(path))


@kind
def a_page_of_zeros(path: Path) -> None:
    lay(path)
    overwrite(path, middle(path), bytes(PAGE))


@kind
def a_page_of_junk(path: Path) -> None:
    lay(path)
    overwrite(path, middle(path), random.Random(1).randbytes(PAGE))


@kind
def a_page_of_zeros_left_by_a_killed_process(path: Path) -> None:
    lay(path, "left")
    overwrite(path, middle(path), bytes(PAGE))


@kind
def a_header_and_junk(path: Path) -> None:
    lay(path)
    overwrite(path, 100, random.Random(2).randbytes(path.stat().st_size - 100))


@kind
def a_header_and_junk_left_by_a_killed_process(path: Path) -> None:
    lay(path, "left")
    overwrite(path, PAGE, random.Random(3).randbytes(path.stat().st_size - PAGE))


@kind
def nothing_but_its_log(path: Path) -> None:
    lay(path, "left")
    path.unlink()


@kind
def emptied_beside_its_log(path: Path) -> None:
    lay(path, "left")
    os.truncate(path, 0)


@kind
def ours_without_a_table(path: Path) -> None:
    lay(path)
    run_on(path, "DROP TABLE topic")


@kind
def ours_without_what_it_says_of_itself(path: Path) -> None:
    lay(path)
    run_on(path, "DELETE FROM meta")


@kind
def ours_with_words_for_numbers(path: Path) -> None:
    lay(path)
    run_on(path, "UPDATE meta SET value = 'soon'")


THEIRS = ("CREATE TABLE theirs (x)", "INSERT INTO theirs VALUES ('theirs')")


@kind
def foreign(path: Path) -> None:
    run_on(path, *THEIRS)


@kind
def foreign_in_wal_mode(path: Path) -> None:
    run_on(path, "PRAGMA journal_mode = WAL", *THEIRS)


@kind
def foreign_left_with_its_log(path: Path) -> None:
    leave_on(path, "PRAGMA journal_mode = WAL", *THEIRS)
    assert path.with_name(path.name + "-wal").stat().st_size > 0


@kind
def foreign_left_in_a_transaction(path: Path) -> None:
    rows = "INSERT INTO theirs SELECT randomblob(3000) FROM json_each('[1,2,3,4,5,6,7,8,9]') a, json_each('[1,2,3]') b"
    run_on(path, *THEIRS, rows, rows)
    leave_on(path, "PRAGMA cache_size = 1", "BEGIN", "UPDATE theirs SET x = randomblob(3001)", rows)
    assert path.with_name(path.name + "-journal").stat().st_size > 0


@kind
def foreign_and_empty(path: Path) -> None:
    run_on(path, "PRAGMA application_id = 42")
    assert path.stat().st_size > 0


@kind
def newer(path: Path) -> None:
    lay(path)
    run_on(path, "PRAGMA user_version = 99")


@kind
def newer_in_its_log(path: Path) -> None:
    lay(path)
    leave_on(path, "PRAGMA user_version = 99")
    assert path.with_name(path.name + "-wal").stat().st_size > 0


SAYS = {"foreign": "another program", "newer": "version 99"}
"""What the line of some kinds says, too. Of a file that was left in a transaction nothing can be known."""


# -- what is told of them ---------------------------------------------------------------------------------------------


def bytes_of(folder: Path) -> dict[str, bytes | None]:
    """Everything that lies in a folder and counts; of a folder in it, the name.

    A log that is empty does not: SQLite makes it for who only reads.
    """
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.name.endswith(DERIVED)
    }
    return {name: content for name, content in found.items() if content or not name.endswith("-wal")}


def open_and_close(path: Path) -> None:
    async def both() -> None:
        async with open_journal(f"sqlite:{path}"):
            pass

    trio.run(both)


def refused(path: Path) -> str:
    """The line that is told of a file, of which nothing is changed."""
    before = bytes_of(path.parent)
    with pytest.raises(JournalUnusable) as told:
        open_and_close(path)
    assert bytes_of(path.parent) == before
    line = str(told.value)
    assert len(line.splitlines()) == 1
    assert str(path) in line
    return line


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_journal_of_ours_is_named_and_left_alone(tmp_path: Path, name: str) -> None:
    """One line says so, and every byte is as it was."""
    path = tmp_path / "hub.db"
    KINDS[name](path)
    line = refused(path)
    if name != "foreign left in a transaction":
        assert SAYS.get(name.split()[0], "") in line


def test_what_a_killed_process_has_left_is_opened(tmp_path: Path) -> None:
    """What the other files are judged by: this one is whole, and everything is in it."""
    lay(tmp_path / "hub.db", "left")
    wal = (tmp_path / "hub.db-wal").stat().st_size
    assert wal > PAGE

    async def numbers() -> list[str]:
        async with open_journal(f"sqlite:{tmp_path / 'hub.db'}") as journal:
            return [data.split()[0] for data in data_of(await read_all(journal, "a"))]

    assert trio.run(numbers) == [str(number) for number in range(EVENTS + EVENTS_LEFT)]


@pytest.mark.parametrize("made", ["an empty file", "a file of no program"])
def test_a_file_that_holds_nothing_becomes_a_journal(tmp_path: Path, made: str) -> None:
    """Somebody made it for us, with the rights that it should have."""
    path = tmp_path / "hub.db"
    if made == "an empty file":
        path.touch()
    else:
        run_on(path, "VACUUM")
    open_and_close(path)


def test_what_was_left_in_its_making_is_made_anew(tmp_path: Path) -> None:
    """Its maker was killed before it was whole, and so before it was put in its place."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        (tmp_path / f"hub.db.making{suffix}").write_bytes(b"half a journal")
    open_and_close(tmp_path / "hub.db")
    assert list(tmp_path.glob("*making*")) == []


def test_a_journal_is_made_with_the_rights_of_the_file_that_was_there(tmp_path: Path) -> None:
    """And where a link leads to."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "empty.db").touch(mode=0o600)
    (tmp_path / "hub.db").symlink_to("there/empty.db")
    open_and_close(tmp_path / "hub.db")
    made = (tmp_path / "there" / "empty.db").stat()
    assert made.st_size > 0
    assert made.st_mode & 0o777 == 0o600
    assert (tmp_path / "hub.db").is_symlink()
    open_and_close(tmp_path / "hub.db")


MAKE_AND_KILL = """
import os, random, signal, sys, time, trio
from pathlib import Path
from trio_sse.journal import open_journal
from trio_sse.testing import draft, data_of, read_all

async def use(path):
    async with open_journal(f"sqlite:{path}") as journal:
        kept = data_of(await read_all(journal, "a"))
        await journal.append([draft("a", "x")])
        return kept

def child(path):
    os.close(1)
    trio.run(use, path)
    os._exit(0)

began = time.monotonic()
trio.run(use, sys.argv[1] + "/measured")
span = time.monotonic() - began
cut = 0
for number in range(int(sys.argv[2])):
    path = f"{sys.argv[1]}/{number}"
    pid = os.fork()
    if pid == 0:
        child(path)
    time.sleep(random.uniform(0, 1.2 * span))
    os.kill(pid, signal.SIGKILL)
    is_cut = os.waitpid(pid, 0)[1] != 0
    cut += is_cut
    span *= 1.1 if is_cut else 0.7  # as fast as the machine is by now
    stage = {each.name: each.stat().st_size for each in Path(sys.argv[1]).glob(f"{number}*")}
    try:
        trio.run(use, path)
        assert trio.run(use, path)[-1:] == ["x"]
    except BaseException as error:
        print(stage, repr(error))
    for each in Path(sys.argv[1]).glob(f"{number}*"):
        each.unlink()
print(cut)
"""


SOME_MAKERS, MANY_MAKERS = 12, 1000


@pytest.mark.parametrize(
    "makers",
    [
        pytest.param(SOME_MAKERS, id="some"),
        pytest.param(MANY_MAKERS, marks=[pytest.mark.proof, pytest.mark.timeout(900)], id="many"),
    ],
)
def test_a_journal_whose_maker_was_killed_is_opened(tmp_path: Path, makers: int) -> None:
    """However far it had come: no file, an empty one, one in the middle of its first transaction."""
    command = [sys.executable, "-c", MAKE_AND_KILL, str(tmp_path), str(makers)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    *failed, cut = done.stdout.splitlines()
    assert failed == []
    assert int(cut) > makers / 4


# -- files that are ours, and not to be had ---------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str | Path) -> Iterator[None]:
    """A file system that is mounted there for the length of the block."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    done = subprocess.run(["mount", *arguments, folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


LEFT = pytest.mark.parametrize("which", ["closed", "left"])


@LEFT
def test_a_file_system_that_is_read_only_is_named(tmp_path: Path, which: str) -> None:
    """It cannot be written, and that is said at once."""
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        path = tmp_path / "hub.db"
        lay(path, which)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        assert "Read-only file system" in refused(path)


@LEFT
def test_a_file_that_is_read_only_is_named(tmp_path: Path, which: str) -> None:
    """Also when the folder round it is not."""
    path = tmp_path / "hub.db"
    lay(path, which)
    with mounted(path, "--bind", path):
        subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
        refused(path)


UNMEASURED = {**os.environ, "COVERAGE_PROCESS_CONFIG": ""}
"""Nobody may not write down what was covered."""

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-B", "-c"]


@functools.cache
def why_not_nobody() -> str | None:
    """Why nothing can be done in the name of nobody, if nothing can."""
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        return "only root, with setpriv, can become somebody else"
    if subprocess.run([*NOBODY, "import trio_sse"], cwd=ROOT, env=UNMEASURED, capture_output=True).returncode != 0:
        return "nobody else may use this Python, or read this code"
    return None


@LEFT
@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_a_file_that_only_others_may_write_is_named(mode: int, which: str) -> None:
    """Who serves may not write it, or not even read it, and the line says which file that is."""
    if why := why_not_nobody():
        pytest.skip(why)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hub.db"
        lay(path, which)
        path.chmod(mode)
        Path(folder).chmod(0o777)
        before = bytes_of(Path(folder))
        script = (
            "import sys, trio; from trio_sse.journal import open_journal;"
            "trio.run(open_journal('sqlite:' + sys.argv[1]).__aenter__)"
        )
        done = subprocess.run([*NOBODY, script, path], cwd=ROOT, env=UNMEASURED, stderr=subprocess.PIPE, text=True)
        last = done.stderr.splitlines()[-1]
        assert last.startswith("trio_sse.errors.JournalUnusable: ")
        assert str(path) in last
        assert bytes_of(Path(folder)) == before


HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    db.execute(statement)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(path: Path, *statements: str) -> Iterator[None]:
    """Another program has the file for the length of the block, and has done this with it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path, *statements], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.kill()


@LEFT
@pytest.mark.parametrize("mode", ["NORMAL", "EXCLUSIVE"])
def test_a_file_that_another_program_has_locked_is_named(tmp_path: Path, which: str, mode: str) -> None:
    """For its writers, or for its readers too."""
    path = tmp_path / "hub.db"
    lay(path, which)
    with held(path, f"PRAGMA locking_mode = {mode}", "BEGIN EXCLUSIVE"):
        assert "another program holds it" in refused(path)


def test_a_journal_that_another_process_serves_is_named(tmp_path: Path) -> None:
    """And so is the process."""
    path = tmp_path / "hub.db"

    async def both() -> str:
        async with open_journal(f"sqlite:{path}") as journal:
            await journal.append([draft("a", "x")])
            before = bytes_of(tmp_path)
            with pytest.raises(JournalUnusable) as told:
                async with open_journal(f"sqlite:{path}"):
                    pass
            assert bytes_of(tmp_path) == before
            return str(told.value)

    line = trio.run(both)
    assert f"the journal {path} is in use by process {os.getpid()}" in line
