"""What ``docs/reliability.md`` says is so: its tests, its settings and its files are the ones there are."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypercorn.config import Config

from trio_sse import stream, web
from trio_sse.rates import Rates
from trio_sse.server import connection, http2, messages, patience, worker
from trio_sse.settings import PREFIX, Settings
from trio_sse.web.connection import BODY_BYTES_PER_S

from .conftest import Wire, eventually
from .serving import ROOT, serving

DOCS = ROOT / "docs"
TEXT = (DOCS / "reliability.md").read_text()
NGINX = (DOCS / "nginx.conf").read_text()
UNIT = (DOCS / "trio-sse.service").read_text()
SYSTEMD = shutil.which("systemd-analyze")

PROMISES = [
    "A slow client",
    "A flood",
    "Wildcards",
    "One caller's rates",
    "Bodies of requests",
    "A full journal",
    "Many short lines",
    "The end of a token",
    "A malformed request",
    "A client that is gone",
    "SIGTERM",
    "A failed hub",
    "Churn",
    "Silence",
    "Exhaustion",
    "Clocks",
    "A kill",
    "A herd",
    "A full disk",
    "A bad file",
    "One hub for a journal",
    "A journal's files",
    "An older journal",
    "A copy",
    "nginx in front",
]


BOUNDS = {
    "a refused stream": f"{stream.RETRY_MS} ms and up to {stream.SPREAD_MS} more, or {stream.SPREAD_MS_PER_STREAM}",
    "a client takes": f"{patience.RATE_BYTES_PER_S} bytes a second, over {patience.RATE_WINDOW_S} s",
    "comes of a body": f"{BODY_BYTES_PER_S} bytes a second, over {web.BODY_S} s",
    "fields": f"{messages.MOST_FIELDS}",
    "take back": f"{http2.TAKEN_BACK}, and then {http2.TAKEN_BACK_PER_S} a second",
    "lines": f"one in {connection.QUIET_S:g} s",
    "of the drain": f"{web.PATIENCE}",
    "after the drain": f"{worker.LAST_RESORT_S} s",
    "a worker whose parent": f"{worker.ORPHAN_S:g} s",
}


def rows() -> dict[str, list[str]]:
    """The table of promises: what each means, its bound, its tests, its settings."""
    table = TEXT.partition("\n|---")[2].partition("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0].strip("*"): row[1:] for row in cells}


@cache
def functions(path: Path) -> frozenset[str]:
    """The tests of a module."""
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, kinds) and node.name.startswith("test_"))


TESTS = sorted(set(re.findall(r"`(test_\w+)\.py::(test_\w+)`", TEXT)))
SETTINGS = sorted(set(re.findall(rf"`{PREFIX}(\w+)`(?: \(([^)]*)\))?", TEXT)))


def test_every_promise_has_a_bound_and_a_test() -> None:
    """None of them is only words."""
    assert list(rows()) == PROMISES
    for promise, (meaning, bound, tests, _) in rows().items():
        assert meaning, promise
        assert bound, promise
        assert re.search(r"`test_\w+\.py::test_\w+`", tests), promise


@pytest.mark.parametrize(("module", "name"), TESTS)
def test_a_test_it_names_exists(module: str, name: str) -> None:
    """Under the very name, in the very file."""
    path = ROOT / "tests" / f"{module}.py"
    assert path.exists()
    assert name in functions(path)


@pytest.mark.parametrize(("what", "bound"), BOUNDS.items())
def test_a_bound_that_is_no_setting_is_the_codes_own(what: str, bound: str) -> None:
    """In the table of those, each in one row."""
    found = re.findall(rf"^\|[^|]*{what}[^|]*\| ([^|]*) \|$", TEXT, re.MULTILINE)
    assert [each[: len(bound)] for each in found] == [bound]


def proofs(path: Path) -> set[str]:
    """The long ones among them."""
    tree = ast.parse(path.read_text())
    marked = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {n.name for n in marked if any(ast.unparse(mark) == "pytest.mark.proof" for mark in n.decorator_list)}


@pytest.mark.parametrize(("module", "name"), TESTS)
def test_a_long_proof_is_in_italics(module: str, name: str) -> None:
    """And nothing else is."""
    is_proof = name in proofs(ROOT / "tests" / f"{module}.py")
    assert (f"*`{module}.py::{name}`*" in TEXT) == is_proof


def test_it_names_no_test_in_another_way() -> None:
    """So that each is looked for."""
    assert set(re.findall(r"\btest_\w+", TEXT)) == {name for pair in TESTS for name in pair}


@pytest.mark.parametrize(("name", "default"), SETTINGS)
def test_a_setting_it_names_has_the_default_it_says(name: str, default: str) -> None:
    """Where it says one."""
    field = Settings.model_fields[name.lower()]
    if default:
        real = field.default
        said = "none" if real in (None, (), Rates()) else "as said" if isinstance(real, Rates) else f"{real}"
        assert default == said


def test_every_setting_of_the_table_says_its_default() -> None:
    """For who reads only the table."""
    for promise, (*_, settings) in rows().items():
        assert re.findall(rf"`{PREFIX}\w+`(?! \()", settings) == [], promise


@pytest.mark.parametrize(("language", "file"), [("nginx", NGINX), ("ini", UNIT)])
def test_a_file_it_shows_is_the_file(language: str, file: str) -> None:
    """To the letter."""
    (shown,) = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert shown == file


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", TEXT))
def test_a_link_leads_somewhere(link: str) -> None:
    """To a file of this repository."""
    assert (DOCS / link).exists()


@pytest.mark.parametrize("line", re.findall(r"^\| `(.*?)` \|", TEXT.partition("## What the log says")[2], re.MULTILINE))
def test_a_line_of_the_log_is_one_that_can_be_there(line: str) -> None:
    """In these words, up to what differs."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "trio_sse").rglob("*.py")]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    words = [part.strip() for part in line.split("...") if part.strip()]
    assert any(isinstance(text, str) and all(part in text for part in words) for text in texts)


def test_the_readme_leads_to_it() -> None:
    """It is found by who looks for it."""
    assert "(docs/reliability.md)" in (ROOT / "README.md").read_text()


# -- the two files agree with the hub ---------------------------------------------------------------------------------


def seconds(text: str, name: str) -> list[float]:
    """The values of a directive, most of which are in seconds."""
    unit = {"s": 1, "h": 3600}
    return [float(n) * unit[u] for n, u in re.findall(rf"^\s*{name}[ =](\d+)([sh])", text, re.MULTILINE)]


def test_nginx_gives_up_an_idle_connection_before_the_hub_does() -> None:
    """A request that is sent on a connection which is being closed is a 502 that nobody deserves."""
    (kept,) = seconds(NGINX, "keepalive_timeout")
    assert kept < Config().keep_alive_timeout


def test_nginx_waits_for_several_heartbeats() -> None:
    """One that comes late cuts no stream."""
    (patience,) = seconds(NGINX, "proxy_read_timeout")
    heartbeat: float = Settings.model_fields["heartbeat_s"].default
    assert patience >= 3 * heartbeat


def test_systemd_waits_for_the_drain() -> None:
    """And for the second that the process may take after it."""
    (patience,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    drain: float = Settings.model_fields["drain_s"].default
    assert int(patience) >= 2 * (drain + 1)


def test_nginx_asks_where_the_unit_binds() -> None:
    """The two files are for one machine."""
    (bind,) = re.findall(r"--bind (\S+)", UNIT)
    assert set(re.findall(r"^    server (\S+);", NGINX, re.MULTILINE)) == {bind}


def test_the_unit_sets_settings_that_there_are() -> None:
    """By their names."""
    names = re.findall(rf"^Environment={PREFIX}(\w+)=", UNIT, re.MULTILINE)
    assert names
    assert {name.lower() for name in names} <= set(Settings.model_fields)


@pytest.mark.skipif(SYSTEMD is None, reason="needs systemd-analyze, which comes with systemd")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """Every line of it, with a command that is there."""
    program = "/opt/trio-sse/bin/hypercorn"
    assert program in UNIT
    path = tmp_path / "trio-sse.service"
    path.write_text(UNIT.replace(program, str(Path(sys.executable).parent / "hypercorn")))
    done = subprocess.run([str(SYSTEMD), "verify", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# -- what it says of others' background tasks -------------------------------------------------------------------------

PROGRAM = """
import time
import trio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from trio_sse.server import guard_hypercorn

guard_hypercorn(write_timeout_s=1, drain_s=1)

async def work():
    try:
        await trio.sleep(3600)
    finally:
        print("the work is over", flush=True)

async def begin(request):
    return PlainTextResponse("begun", background=BackgroundTask(work))

async def ready(request):
    return PlainTextResponse("ready")

app = Starlette(routes=[Route("/begin", begin), Route("/readyz", ready)])
"""


def test_a_background_task_ends_a_write_timeout_after_its_client_left(tmp_path: Path) -> None:
    """As long as the client keeps its connection, nothing ends it."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with serving("program:app", folder=tmp_path) as server:
        with Wire(server) as wire:
            wire.send(b"GET /begin HTTP/1.1\r\nHost: hub\r\n\r\n")
            wire.take(b"begun")
            assert not eventually(lambda: "the work is over" in server.log(), within=2)
        assert eventually(lambda: "the work is over" in server.log())
