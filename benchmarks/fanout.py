"""Fan-out: one event to N subscribers, on this hub and in the obvious way, as a table.

Run it as ``make bench``, ``python benchmarks/fanout.py`` or ``python -m benchmarks.fanout``; README.md explains.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from benchmarks.accounting import MAX_STAMP
from benchmarks.generator import Generator, Load
from benchmarks.servers import MEMORY, OBVIOUS, SQLITE, BenchmarkError, Server, pinned, running, usage

SERVERS = {
    "ours": [MEMORY],
    "sqlite": [SQLITE],
    "obvious": [OBVIOUS],
    "both": [MEMORY, OBVIOUS],
    "all": [MEMORY, SQLITE, OBVIOUS],
}
PACKAGES = ("trio-sse", "trio", "hypercorn", "h11", "quart", "quart-trio")
SPARE_FILES = 256
SETTLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Run:
    """One server under one load: one row."""

    server: str
    ours: bool
    clients: int
    rate: float
    load: Load
    cpu_us: float
    """The server's processor time for one delivery."""
    core_share: float
    """How much of its core the server used during the run."""
    stream_cpu_us: float
    """The server's processor time for opening one stream."""
    stream_kib: float
    """The server's memory for one open stream."""
    opening_s: float

    @property
    def per_second(self) -> float:
        """Deliveries a second."""
        return self.load.accounts.delivered / self.load.elapsed_s

    @property
    def failed(self) -> bool:
        """Whether anything was lost, repeated, reordered or refused."""
        load, accounts = self.load, self.load.accounts
        wrong = accounts.lost or accounts.twice or accounts.disordered or load.refused or load.closed
        return bool(wrong) or not load.accepted


def measure(server: Server, *, clients: int, rate: float, seconds: float, payload: int, progress: Progress) -> Run:
    """Start the server on one core, load it from another, and stop it.

    Raises:
      BenchmarkError: the run could not be made.
    """
    cores = sorted(os.sched_getaffinity(0))
    bar = progress.add_task(f"{server.name}, {clients:,} at {rate:g}/s: starting", total=seconds)
    with (
        running(server, cores[0]) as process,
        pinned(cores[-1]),
        Generator(process.port, server.subscribe, server.publish, payload) as generator,
    ):
        idle, began = usage(process.pid), time.monotonic()

        def opened(count: int) -> None:
            progress.update(bar, description=f"{server.name}, {clients:,} at {rate:g}/s: {count:,} open")

        generator.open_streams(clients, opened)
        opening_s = time.monotonic() - began
        time.sleep(SETTLE_S)
        before = usage(process.pid)

        def delivered(elapsed_s: float, count: int) -> None:
            told = f"{server.name}, {clients:,} at {rate:g}/s: {count:,} delivered"
            progress.update(bar, completed=min(elapsed_s, seconds), description=told)

        load = generator.run(rate, seconds, delivered)
        after = usage(process.pid)
    progress.update(bar, completed=seconds)
    cpu_s = after.cpu_s - before.cpu_s
    return Run(
        server=server.name,
        ours=server.ours,
        clients=clients,
        rate=rate,
        load=load,
        cpu_us=cpu_s * 1e6 / max(1, load.accounts.delivered),
        core_share=cpu_s / load.elapsed_s,
        stream_cpu_us=(before.cpu_s - idle.cpu_s) * 1e6 / clients,
        stream_kib=(before.rss_bytes - idle.rss_bytes) / 1024 / clients,
        opening_s=opening_s,
    )


# -- telling ------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cores = sorted(os.sched_getaffinity(0))
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": len(cores),
        "server_core": cores[0],
        "generator_core": cores[-1],
        "load_average": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def describe(facts: dict[str, Any]) -> str:
    """The machine, in two lines for a person."""
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return (
        f"{facts['cpu']}, {facts['cores']} cores (server on {facts['server_core']}, load on "
        f"{facts['generator_core']}; load average before: {facts['load_average']:.1f}), Linux {facts['kernel']}\n"
        f"Python {facts['python']}, {packages}"
    )


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table."""

    name: str
    value: Callable[[Run], float]
    form: str
    compared: bool = True


FIGURES = (
    Figure("events accepted", lambda run: run.load.accepted, ",.0f", False),
    Figure("deliveries a second", lambda run: run.per_second, ",.0f"),
    Figure("CPU per delivery, µs", lambda run: run.cpu_us, ",.1f"),
    Figure("server core used, %", lambda run: 100 * run.core_share, ",.0f", False),
    Figure("latency p50, ms", lambda run: run.load.p50_ms, ",.1f"),
    Figure("latency p99, ms", lambda run: run.load.p99_ms, ",.1f"),
    Figure("latency max, ms", lambda run: run.load.max_ms, ",.1f", False),
    Figure("lost", lambda run: run.load.accounts.lost, ",.0f", False),
    Figure("twice", lambda run: run.load.accounts.twice, ",.0f", False),
    Figure("out of order", lambda run: run.load.accounts.disordered, ",.0f", False),
    Figure("late (the load's fault)", lambda run: run.load.late, ",.0f", False),
    Figure("CPU per stream, µs", lambda run: run.stream_cpu_us, ",.0f"),
    Figure("memory per stream, KiB", lambda run: run.stream_kib, ",.1f"),
)


def tables_of(runs: Sequence[Run]) -> list[Table]:
    """A table for each load, with a column for each server; behind our figures, how they compare."""
    loads: dict[tuple[int, float], list[Run]] = {}
    for run in runs:
        loads.setdefault((run.clients, run.rate), []).append(run)
    return [_table(group) for group in loads.values()]


def _table(runs: Sequence[Run]) -> Table:
    first = runs[0]
    obvious = next((run for run in runs if not run.ours), None)
    title = f"{first.clients:,} clients, {first.rate:g} events/s ({first.load.offered:,} offered)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for run in runs:
        table.add_column(run.server, justify="right", style="red" if run.failed else None)
    for figure in FIGURES:
        cells = []
        for run in runs:
            value = figure.value(run)
            cell = f"{value:{figure.form}}"
            if obvious is not None and run.ours and figure.compared and (theirs := figure.value(obvious)):
                cell += f" ({value / theirs:.2f}x)"
            cells.append(cell)
        table.add_row(figure.name, *cells)
    if obvious is not None and len(runs) > 1:
        table.caption = "(in brackets: against the obvious way in the same run)"
        table.caption_justify = "left"
    return table


def remarks(runs: Sequence[Run]) -> list[str]:
    """What a reader of the table should not overlook."""
    lines = []
    for run in runs:
        load, name = run.load, f"{run.server}, {run.clients:,} at {run.rate:g}/s"
        if load.held:
            lines.append(f"{name}: {load.held:,} events were held back, as every publisher waited for its answer")
        if load.late:
            lines.append(f"{name}: {load.late:,} events were sent late by the load itself: trust its latencies less")
        if load.refused or load.closed:
            lines.append(f"{name}: {load.refused:,} events were not accepted, {load.closed:,} streams closed")
    return lines


# -- the command --------------------------------------------------------------------------------------------


def _clients(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    try:
        counts = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number, or several with commas between them") from None
    if not all(1 <= count <= 20_000 for count in counts):
        raise click.BadParameter("each number of clients is from 1 to 20,000")
    return counts


def _raise_file_limit(clients: int) -> None:
    """Let this process, and the servers it starts, open as many files as they are allowed to.

    Raises:
      click.UsageError: that is not enough.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and clients + SPARE_FILES > hard:
        raise click.UsageError(f"{clients:,} clients need more open files than the {hard:,} of `ulimit -Hn`")


@click.command()
@click.option(
    "--clients", default="1000", callback=_clients, show_default=True, help="Subscribers; several with commas."
)
@click.option("--rate", type=click.FloatRange(0.1, 10_000), default=10, show_default=True, help="Events a second.")
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=10, show_default=True, help="Length of a run.")
@click.option(
    "--payload",
    type=click.IntRange(MAX_STAMP, 65_536),
    default=120,
    show_default=True,
    help="Bytes of data in an event.",
)
@click.option("--server", type=click.Choice(list(SERVERS)), default="all", show_default=True, help="What to measure.")
@click.option(
    "--saturate",
    type=click.FloatRange(0, 10_000),
    default=100,
    show_default=True,
    help="One more load, without SQLite: so many events a second, more than can be followed; 0 for none.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Also write it all here.")
def main(
    clients: list[int],
    rate: float,
    seconds: float,
    payload: int,
    server: str,
    saturate: float,
    json_path: Path | None,
) -> None:
    """Measure fan-out: one event to every subscriber, on this hub and in the obvious way.

    Exits with 1 when our hub lost, repeated, reordered or refused anything, and with 2 when it could not be
    measured.
    """
    _raise_file_limit(max(clients))
    plan = [(each, count, rate) for count in clients for each in SERVERS[server]]
    if saturate:
        plan += [(each, max(clients), saturate) for each in SERVERS[server] if each is not SQLITE]
    console = Console()
    facts = machine()
    console.print(describe(facts), highlight=False, soft_wrap=True)
    runs: list[Run] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    # No thread that draws: it would take its time from the load. It draws when it is told something.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        for each, count, speed in plan:
            try:
                runs.append(
                    measure(each, clients=count, rate=speed, seconds=seconds, payload=payload, progress=progress)
                )
            except BenchmarkError as error:
                raise SystemExit(_give_up(f"{each.name}, {count:,} clients: {error}")) from None
            progress.refresh()
    for table in tables_of(runs):
        console.print()
        console.print(table)
    for line in remarks(runs):
        console.print(line, highlight=False, soft_wrap=True)
    if json_path is not None:
        rows = [{**asdict(run), "deliveries_per_s": run.per_second, "failed": run.failed} for run in runs]
        json_path.write_text(json.dumps({"machine": facts, "runs": rows}, indent=2) + "\n")
    if any(run.ours and run.failed for run in runs):
        raise SystemExit(1)


def _give_up(line: str) -> int:
    click.echo(line, err=True)
    return 2


if __name__ == "__main__":
    main()
