"""What is measured, in which order, and how long it takes: the steps of a run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import Progress, TaskID

from benchmarks import growth
from benchmarks.contenders import DIRECT, GO, NCHAN, SQLITE
from benchmarks.measure import Bench
from benchmarks.results import POSTED, STREAMED, Results
from benchmarks.servers import ROOT, BenchmarkError, Server
from trio_sse.load import LoadError

FIRST_RATE = 400_000
"""The search for a server's limit begins with so many deliveries a second."""

PUBLISHING_S = 75

JUDGED_LOAD = (1000, 100.0)
MORE_ROUNDS = 6

# What a step takes beyond its loads, roughly; it is only for the bar.
START_S = 1.5
AFTER_LOAD_S = 0.7
OPENING_S = 0.0006
TRIALS = 4


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement, of one server; what it finds it keeps in the results."""

    name: str
    seconds: float
    """How long it will take, roughly."""
    do: Callable[[], None]


def round_of(
    bench: Bench,
    results: Results,
    servers: Sequence[Server],
    *,
    loads: Sequence[tuple[int, float]],
    saturate: Sequence[int],
) -> Iterator[Step]:
    """All servers under every load, and at their limits, once."""
    if bench.round % 2:
        servers = servers[::-1]  # a machine that becomes slower or faster is so to nobody's advantage
    for clients in sorted({clients for clients, _ in loads}):
        rates = sorted(rate for count, rate in loads if count == clients)
        for server in servers:

            def serve(server: Server = server, clients: int = clients, rates: Sequence[float] = rates) -> None:
                opening, runs = bench.serve(server, clients, rates)
                results.openings.append(opening)
                results.runs += runs

            yield Step(f"{server.name}, {clients:,}", _seconds(bench, clients, len(rates)), serve)
    for clients in saturate:
        for server in servers:
            for way in (POSTED, STREAMED) if server.streams_publishing else (POSTED,):

                def seek(server: Server = server, clients: int = clients, way: str = way) -> None:
                    results.peaks.append(bench.peak(server, clients, FIRST_RATE / clients, way))

                yield Step(f"{server.name}, {clients:,}, the most", _seconds(bench, clients, TRIALS), seek)


def more_rounds(bench: Bench, results: Results, servers: Sequence[Server], rounds: int) -> Iterator[Step]:
    """The load that most is judged by, again, for those that are judged: alike so closely, they need more rounds."""
    judged = [server for server in servers if server in (DIRECT, SQLITE, NCHAN, GO)]
    for number in range(rounds, rounds + MORE_ROUNDS):
        yield from round_of(replace(bench, round=number), results, judged, loads=[JUDGED_LOAD], saturate=[])


def restarts(bench: Bench, results: Results, servers: Sequence[Server], sizes: Sequence[int]) -> Iterator[Step]:
    """Every server is killed and started again, and its clients come back."""
    for clients in sizes:
        for server in servers:

            def come_back(server: Server = server, clients: int = clients) -> None:
                results.returns.append(bench.come_back(server, clients))

            yield Step(f"{server.name}, {clients:,} come back", START_S + 2 * clients * OPENING_S, come_back)


def growing(bench: Bench, results: Results) -> Iterator[Step]:
    """The tables that show how our own cost grows."""
    for name, clients, do in growth.steps(bench, results.growth.append):
        yield Step(name, _seconds(bench, clients, 1), do)


def publishing(results: Results) -> Step:
    """What publish.py measures."""

    def do() -> None:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            path = Path(folder, "publish.json")
            command = [sys.executable, str(ROOT / "benchmarks" / "publish.py"), "--json", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if not path.exists():
                raise BenchmarkError(done.stderr)
            results.publishing += json.loads(path.read_text())["runs"]

    return Step("publishing", PUBLISHING_S, do)


def _seconds(bench: Bench, clients: int, loads: int) -> float:
    return START_S + loads * (bench.seconds + AFTER_LOAD_S + clients * OPENING_S)


def carry_out(steps: Sequence[Step], results: Results, progress: Progress, bar: TaskID) -> None:
    """Do all steps; what cannot be done is told, and the next is done."""
    for place, step in enumerate(steps):
        progress.update(bar, step=f"{place + 1} of {len(steps)}", description=step.name, refresh=True)
        try:
            step.do()
        except (BenchmarkError, LoadError) as error:
            results.faults.append(f"{step.name}: {error}")
        progress.advance(bar, step.seconds)
