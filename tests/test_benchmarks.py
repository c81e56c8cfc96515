"""The benchmark tells the truth: what it counts is what happened, to us and to our peers."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import contenders, fanout, plot
from benchmarks.contenders import SERVERS
from benchmarks.measure import last_event_id
from benchmarks.peers import obvious, raw_asgi
from benchmarks.results import POSTED, STREAMED, Growth, Opening, Results, Return, Run, typical
from benchmarks.servers import Server, running, usage
from benchmarks.tables import GROWING, remarks, tables_of
from benchmarks.targets import judge
from trio_sse.load import Generator
from trio_sse.wire import Decoder

from .serving import ROOT

RUN = Run("trio_sse", True, 0, 1000, 100, POSTED, 10, 10, 0, 0, 0, 0, 10, 0, 0, 0, 1e6, 1, 2, 3, 4, 0.5, 0.5)
MACHINE = {
    "cpu": "A Processor",
    "cores": 2,
    "server_core": 0,
    "load_core": 1,
    "load_average": 0.1,
    "kernel": "6.1",
    "python": "3.11",
    "versions": {"trio-sse": "0.1.0", "nginx": "1.22.1"},
    "date": "2026-01-02",
}


def full_results() -> Results:
    """Every server under every load, with wide figures."""
    results = Results(MACHINE)
    for place, server in enumerate(SERVERS.values(), 1):
        run = replace(RUN, server=server.name, ours=server.ours, cpu_us=98.7 * place, p50_ms=13_630.8, p99_ms=16_999.9)
        loads = [(1000, 10.0), (1000, 100.0), (9000, 10.0), (9000, 20.0)]
        results.runs += [replace(run, clients=clients, rate=rate, max_ms=17_077.5) for clients, rate in loads]
        results.peaks.append(replace(run, rate=12_800, per_second=1e6 / place))
        results.openings += [
            Opening(server.name, server.ours, 0, clients, 1740, 137.6, 12.3) for clients in (1000, 9000)
        ]
        results.returns.append(Return(server.name, server.ours, 9000, 0.9, 12.3))
    results.peaks.append(replace(RUN, way=STREAMED, rate=1600, per_second=1_612_345))
    results.growth = [Growth(what, 10_000, replace(RUN, clients=10_000)) for what in GROWING]
    results.publishing = [
        {"journal": journal, "way": way, "events": 60_000, "elapsed_s": 1.0, "cpu_s": 0.9, "faults": []}
        for journal in ("memory", "sqlite")
        for way in ("one a POST", "streamed, 100 to a chunk")
    ]
    return results


# -- the peers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encode", [obvious.encode, raw_asgi.encode])
def test_lines_are_split_as_the_standard_does(encode: Callable[[str], bytes]) -> None:
    """What a peer sends is decoded to what was published, whatever the line ends."""
    (event,) = Decoder().feed(encode("one\rtwo\r\nthree\n\u2028four\n"))
    assert event.data == "one\ntwo\nthree\n\u2028four\n"


@pytest.mark.parametrize("name", SERVERS)
def test_every_server_delivers(name: str) -> None:
    """Each, as it is started for the benchmark, brings every event to every client, once; ours in one order."""
    server = SERVERS[name]
    why = server.missing()
    if why:
        pytest.skip(f"{server.name}: {why}")
    with running(server, 0) as process, Generator(process.port, server.subscribe, server.publish, 120) as generator:
        generator.open_streams(5, lambda _: None)
        load = generator.run(20, 0.5, lambda *_: None)
    assert (load.offered, load.accepted, load.refused, load.closed) == (10, 10, 0, 0)
    assert (load.accounts.delivered, load.accounts.lost) == (50, 0)
    assert load.accounts.twice == 0
    assert load.accounts.disordered == 0 or not server.ours  # the peers promise none to several who publish at once


def test_a_server_comes_back_on_its_port() -> None:
    """It can be killed with its clients and started again, and its last ID is what a client resumes from."""
    with running(contenders.DIRECT, 0) as process:
        first, port = process.pid, process.port
        assert last_event_id(process)
        process.kill()
        assert usage(first).rss_bytes == 0
        process.start()
        assert (process.pid != first, process.port) == (True, port)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is not there is named, with what would bring it."""
    monkeypatch.setattr(contenders, "SYSTEM_PATH", "/nowhere")
    assert "apt-get install nginx" in contenders.NCHAN.missing()
    assert "apt-get install golang-go" in contenders.GO.missing()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in contenders.STARLETTE.missing()


# -- what is counted ----------------------------------------------------------------------------------------


def test_usage_counts_children() -> None:
    """A server's cost holds that of the processes it started."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        both, own = usage(parent.pid), Path(f"/proc/{parent.pid}/statm").read_text().split()[1]
        assert both.rss_bytes > 1.5 * int(own) * 4096
        parent.communicate(b"\n")
    assert usage(parent.pid).rss_bytes == 0


def test_usage_is_what_proc_says() -> None:
    """Processor time is user and system time as in /proc/PID/stat, but not rounded."""
    with subprocess.Popen([sys.executable, "-c", "sum(range(5_000_000)); print(1, flush=True); input()"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        told = (int(user) + int(system)) / 100
        assert usage(process.pid).cpu_s == pytest.approx(told, abs=0.05)
        process.communicate(b"\n")


def test_a_failure_fails() -> None:
    """A run with anything lost, repeated, reordered, refused or closed has failed; it is of ours that it matters."""
    assert not RUN.failed
    for name in ("lost", "twice", "disordered", "refused", "closed"):
        values: dict[str, Any] = {name: 1}
        wrong = replace(RUN, **values)
        assert wrong.failed
        assert Results(MACHINE, runs=[RUN, wrong]).failed
        assert Results(MACHINE, peaks=[wrong]).failed
        assert Results(MACHINE, growth=[Growth("bytes", 1, wrong)]).failed
        assert not Results(MACHINE, runs=[replace(wrong, ours=False)]).failed
    assert Results(MACHINE, publishing=[{"faults": ["an ID came twice"]}]).failed


def test_repetitions_become_medians() -> None:
    """Of several rounds the figures are medians, and what went wrong in any is not forgotten."""
    runs = [replace(RUN, cpu_us=cpu_us, lost=lost) for cpu_us, lost in ((3, 0), (9, 7), (4, 0))]
    assert (typical(runs).cpu_us, typical(runs).lost, typical(runs).delivered) == (4, 7, 30)


def test_servers_are_compared_within_a_round() -> None:
    """A machine that is slower in one round is so for both."""
    rounds = itertools.product(range(3), (("trio_sse", 1.0), ("Nchan", 2.0)))
    runs = [replace(RUN, server=name, round=number, cpu_us=us * 3**number) for number, (name, us) in rounds]
    results = Results(MACHINE, runs=runs[:-1])
    assert results.ratio(lambda run: run.cpu_us, "trio_sse", "Nchan", 1000, 100) == 0.5


def test_targets_are_judged_by_ratios() -> None:
    """A target that is reached, one that is not, and none where there is nothing to compare."""
    results = full_results()
    told = {(target.name, target.unit): target.is_reached for target in judge(results)}
    assert told["CPU per delivery, 1,000 x 100/s", "x Nchan"]
    assert told["most deliveries/s, streamed", "x Nchan"]
    assert not told["memory of an idle stream, of 9,000", "KiB"]
    assert told["publishing, streamed, memory", "events/s"]
    assert judge(Results(MACHINE, runs=[RUN])) == []


# -- what is shown ------------------------------------------------------------------------------------------


def test_no_line_of_a_table_wraps_in_80_columns() -> None:
    """Also where every server is saturated, and there is no terminal whose width is known."""
    for table in tables_of(full_results()):
        table.title = None  # it may
        narrow, wide = (Console(width=width, file=io.StringIO()).render_lines(table) for width in (80, 300))
        text = "\n".join("".join(segment.text for segment in line) for line in narrow)
        assert len(narrow) == len(wide), text
        assert "…" not in text


def test_remarks_say_what_went_wrong() -> None:
    """Losses, a load that was too slow, peers that are not there and measurements that failed."""
    wrong = replace(RUN, lost=3, refused=2, load_share=0.97)
    results = Results(MACHINE, missing={"Nchan": "no nginx"}, faults=["raw ASGI: stuck"], runs=[wrong])
    told = "\n".join(remarks(results))
    for part in ("NOT MEASURED: Nchan: no nginx", "FAILED: raw ASGI: stuck", "3 lost", "2 events were not accepted"):
        assert part in told
    assert "the load was the bottleneck" in told


def test_the_plot_shows_all_servers_and_the_machine() -> None:
    """It is well-formed, in two colour schemes, with generic fonts, and nothing is outside of it."""
    svg = ElementTree.fromstring(plot.draw(full_results()))
    told = "\n".join(text for text in svg.itertext())
    for part in (*(server.name for server in SERVERS.values()), "A Processor", "nginx 1.22.1", "1.61 M"):
        assert part in told
    assert "prefers-color-scheme: dark" in told
    assert "sans-serif" in told
    for shape in svg.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(shape.attrib["x"]) + float(shape.attrib["width"]) <= float(svg.attrib["width"])


def test_a_plot_of_little_is_a_plot() -> None:
    """Of one run, and of nothing."""
    for results in (Results(MACHINE), Results(MACHINE, runs=[RUN])):
        ElementTree.fromstring(plot.draw(results))


def test_results_are_written_and_read(tmp_path: Path) -> None:
    """What was measured comes back from its file, so that it can be drawn again."""
    results, path = full_results(), tmp_path / "results.json"
    results.write(path)
    assert Results.read(path) == results
    assert json.loads(path.read_text())["runs"][0]["server"] == "trio_sse"


# -- the command --------------------------------------------------------------------------------------------


SHORT = ["--rounds=1", "--seconds=0.5", "--saturate=", "--no-growth", "--no-publishing"]


@pytest.mark.proof
def test_a_small_real_run(tmp_path: Path) -> None:
    """As a user runs it: every event came to every client, once, in order, and it is told in three ways."""
    report, picture = tmp_path / "report.json", tmp_path / "plot.svg"
    command = [sys.executable, str(ROOT / "benchmarks" / "fanout.py"), "--servers=direct,raw", "--loads=20x20"]
    command += [*SHORT, "--restart=20", f"--json={report}", f"--plot={picture}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 clients, 20 events/s" in done.stdout
    assert "raw ASGI" in picture.read_text()
    results = Results.read(report)
    assert results.machine["versions"]["trio"]
    assert results.servers() == ["trio_sse", "raw ASGI"]
    for run in results.runs:
        assert (run.offered, run.accepted, run.delivered, run.failed) == (10, 10, 200, False)
        assert 0 < run.p50_ms <= run.p99_ms <= run.max_ms
        assert run.cpu_us > 0
    assert all(row.all_back_s > row.started_s > 0 for row in results.returns)


async def faulty(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """A server that forgets every third event."""
    if scope["type"] == "http" and scope["method"] == "POST" and next(_events) % 3 == 2:
        await raw_asgi.answer(send, 201, b"published\n")
    else:
        await raw_asgi.app(scope, receive, send)


_events = itertools.count()


@pytest.mark.proof
def test_a_loss_of_ours_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that loses events is found out, in the table, in a remark and by the exit status."""
    server = Server("trio_sse", "tests.test_benchmarks:faulty", "/events", "/publish", "/", True)
    monkeypatch.setitem(SERVERS, "direct", server)
    done = CliRunner().invoke(fanout.main, [*SHORT, "--servers=direct", "--loads=5x20", "--restart="])
    assert done.exit_code == 1, done.output
    assert "lost, 0 twice" in done.output


@pytest.mark.proof
def test_what_cannot_be_measured_ends_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not start is told with what it wrote, and the others are measured."""
    broken = Server("broken", "tests.nowhere:app", "/events", "/publish", "/", False)
    monkeypatch.setitem(SERVERS, "nchan", broken)
    done = CliRunner().invoke(fanout.main, [*SHORT, "--servers=nchan,direct", "--loads=5x20", "--restart="])
    assert done.exit_code == 2, done.output
    assert "broken did not start" in done.output
    assert "5 clients, 20 events/s" in done.output


@pytest.mark.parametrize(
    ("option", "explanation"),
    [
        ("--loads=10,x", "'10,x' is not like 1000x100"),
        ("--loads=0x10", "a load is of 1 to 20,000 clients"),
        ("--saturate=x", "'x' is not a number"),
        ("--servers=apache", "'apache' is none of direct, asgi"),
    ],
)
def test_wrong_options_are_explained(option: str, explanation: str) -> None:
    """With a line that says what would be right."""
    done = CliRunner().invoke(fanout.main, [option])
    assert done.exit_code == 2
    assert explanation in " ".join(done.output.replace("│", " ").split())


def test_quick_is_quick() -> None:
    """It is the same command with smaller numbers, each of which can still be chosen."""
    context = fanout.main.make_context("fanout", ["--quick", "--rounds=2"])
    assert context.params["loads"] == [(1000, 100.0)]
    assert (context.params["rounds"], context.params["grows"], context.params["publishing"]) == (2, False, False)
