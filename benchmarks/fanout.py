"""Fan-out: one event to N subscribers, on this hub and on its peers, in turn and in one run.

Run it as ``make bench``, ``python benchmarks/fanout.py`` or ``python -m benchmarks.fanout``; README.md explains.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import contenders, growth, plan, plot
from benchmarks.measure import Bench, cores
from benchmarks.results import Results
from benchmarks.servers import Server
from benchmarks.tables import remarks, tables_of
from trio_sse.load import MAX_STAMP

SPARE_FILES = 256
QUICK = {
    "loads": "1000x100",
    "rounds": 1,
    "seconds": 1.2,
    "saturate": "1000",
    "restart": "1000",
    "grows": False,
    "publishing": False,
}


# -- the machine ------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    server_core, load_core = cores()
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "server_core": server_core,
        "load_core": load_core,
        "load_average": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": contenders.versions(),
        "date": time.strftime("%Y-%m-%d"),
    }


def describe(facts: dict[str, Any]) -> str:
    """The machine, in a few lines for a person."""
    told = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['cpu']}, {facts['cores']} cores (server on {facts['server_core']}, load on {facts['load_core']}; "
        f"load average before: {facts['load_average']:.1f}), Linux {facts['kernel']}\nPython {facts['python']}, {told}"
    )


def _raise_file_limit(clients: int) -> None:
    """Let this process, and the servers it starts, open as many files as they are allowed to.

    Raises:
      click.UsageError: that is not enough.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and clients + SPARE_FILES > hard:
        raise click.UsageError(f"{clients:,} clients need more open files than the {hard:,} of `ulimit -Hn`")


# -- the command ------------------------------------------------------------------------------------------------


def _servers(_: click.Context, __: click.Parameter, value: str) -> list[Server]:
    names = list(contenders.SERVERS) if value == "all" else value.split(",")
    for name in names:
        if name not in contenders.SERVERS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(contenders.SERVERS)}")
    return [contenders.SERVERS[name] for name in names]


def _loads(_: click.Context, __: click.Parameter, value: str) -> list[tuple[int, float]]:
    try:
        loads = [
            (int(clients), float(rate)) for clients, rate in (part.split("x") for part in value.split(",") if part)
        ]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not like 1000x100, several with commas between them") from None
    if not all(1 <= clients <= 20_000 and 0.1 <= rate <= 10_000 for clients, rate in loads):
        raise click.BadParameter("a load is of 1 to 20,000 clients and of 0.1 to 10,000 events a second")
    return loads


def _clients(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    try:
        counts = [int(part) for part in value.split(",") if part]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number, or several with commas between them") from None
    if not all(1 <= count <= 20_000 for count in counts):
        raise click.BadParameter("each number of clients is from 1 to 20,000")
    return counts


def _quick(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.default_map = QUICK


FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option(
    "--quick", is_flag=True, is_eager=True, expose_value=False, callback=_quick, help="Two minutes: few loads."
)
@click.option("--servers", default="all", callback=_servers, help=f"Of: {', '.join(contenders.SERVERS)}.")
@click.option(
    "--loads",
    default="1000x10,1000x100,1000x400,5000x20,9000x10,9000x20",
    callback=_loads,
    show_default=True,
    help="Clients x events a second.",
)
@click.option("--rounds", type=click.IntRange(1, 99), default=3, show_default=True, help="Repeat; medians are shown.")
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=2, show_default=True, help="Length of a load.")
@click.option(
    "--payload",
    type=click.IntRange(MAX_STAMP, 65_536),
    default=120,
    show_default=True,
    help="Bytes of data in an event.",
)
@click.option("--saturate", default="1000", callback=_clients, show_default=True, help="Clients of the most.")
@click.option("--restart", default="1000,9000", callback=_clients, show_default=True, help="Clients that come back.")
@click.option("--growth/--no-growth", "grows", default=True, show_default=True, help="How our own cost grows.")
@click.option("--publishing/--no-publishing", default=True, show_default=True, help="What publish.py measures.")
@click.option("--json", "json_path", type=FILE, help="Also write it all here.")
@click.option("--plot", "plot_path", type=FILE, help="Also draw it here, as SVG.")
def main(
    servers: list[Server],
    loads: list[tuple[int, float]],
    rounds: int,
    seconds: float,
    payload: int,
    saturate: list[int],
    restart: list[int],
    grows: bool,
    publishing: bool,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure fan-out: one event to every subscriber, on this hub and on its peers.

    Exits with 1 when our hub lost, repeated, reordered or refused anything, and with 2 when something could not
    be measured.
    """
    sizes = [*(clients for clients, _ in loads), *saturate, *restart, *(growth.NUMBERS_OF_CLIENTS if grows else ())]
    _raise_file_limit(max(sizes, default=0))
    console = Console()
    results = Results(machine())
    console.print(describe(results.machine), highlight=False, soft_wrap=True)
    results.missing = {server.name: why for server in servers if (why := server.missing())}
    for name, why in results.missing.items():
        console.print(f"NOT MEASURED: {name}: {why}", style="bold red", highlight=False, soft_wrap=True)
    servers = [server for server in servers if server.name not in results.missing]
    # Nothing draws by itself: it would take its time from the load. It draws when it is told something.
    columns = (
        TextColumn("{task.fields[step]}"),
        BarColumn(16),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        bar = progress.add_task("", total=None, step="")
        bench = Bench(seconds, payload, lambda text: progress.update(bar, description=text, refresh=True))
        steps: list[plan.Step] = []
        for number in range(rounds):
            turn = replace(bench, round=number)
            steps += plan.round_of(turn, results, servers, loads=loads, saturate=saturate)
            steps += plan.growing(turn, results) if grows else []
        if len(loads) > 1 and plan.JUDGED_LOAD in loads:
            steps += plan.more_rounds(bench, results, servers, rounds)
        steps += plan.restarts(bench, results, servers, restart)
        steps += [plan.publishing(results)] if publishing else []
        progress.update(bar, total=sum(step.seconds for step in steps))
        plan.carry_out(steps, results, progress, bar)
    for table in tables_of(results):
        console.print()
        console.print(table)
    for line in remarks(results):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"load average behind: {os.getloadavg()[0]:.1f}", highlight=False)
    if json_path is not None:
        results.write(json_path)
    if plot_path is not None:
        plot_path.write_text(plot.draw(results))
    if results.failed:
        raise SystemExit(1)
    if results.faults:
        raise SystemExit(2)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
