"""Does anything stay behind when clients come and go, a hundred a second, for as long as one likes?

    .venv/bin/python benchmarks/soak.py                        # 15 minutes
    .venv/bin/python benchmarks/soak.py --minutes 480          # a night; Ctrl-C ends it early, with its verdict
    .venv/bin/python benchmarks/soak.py --minutes 15 --json soak.json

The clients are those of ``churn.py``: they leave in every way there is. After each stretch of them the server is looked
at when it is at rest: what then is left of tasks, descriptors, objects and memory should be what was left the last
time. So what is told is not what the end differs by from the beginning, but the *slope*: the line through all the looks
(least squares), with its standard error, and how much of it falls to a visit. The first stretches, in which caches are
filled, do not count.

Exits with 1 when something grows, and with 2 when visitors were not served as they should have been.
"""

from __future__ import annotations

import json
import math
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
import trio
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import churn
from benchmarks.contenders import versions
from benchmarks.measure import cores
from benchmarks.servers import Running, Server, hypercorn, pinned, running
from tests.serving import free_port, make_certificate

APP = "tests.apps:app"
LEAST_LOOKS = 5
"""So few looks make no line."""

MOST_LIKE = 0.95
"""The highest correlation of neighbouring looks that is reckoned with."""

SIGMAS = 3.0
"""What grows must grow by more than so many times the uncertainty of its slope, in all and in the later half,"""

PER_VISIT = {"memory": 256.0, "objects": 0.01, "blocks": 0.05}
"""and by more than so much in a visit, in bytes or in numbers (a block is a piece of memory that Python gave out);"""

ANYTHING_PER_VISIT = 0.0001
"""for all the rest, one in ten thousand visits is too much."""


# -- the line through the looks ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slope:
    """A straight line's rise, with its standard error."""

    per_second: float
    error: float


def slope_of(times: Sequence[float], values: Sequence[float]) -> Slope:
    """The slope of the line of least squares; without an end to its error when the points are too few."""
    count = len(times)
    if count < LEAST_LOOKS:
        return Slope(0.0, math.inf)
    time_mean, value_mean = sum(times) / count, sum(values) / count
    spread = sum((each - time_mean) ** 2 for each in times)
    rise = sum((at - time_mean) * (value - value_mean) for at, value in zip(times, values, strict=True)) / spread
    residuals = [value - value_mean - rise * (at - time_mean) for at, value in zip(times, values, strict=True)]
    squares = sum(each * each for each in residuals)
    # Memory is like it was a moment ago, so neighbouring looks are not independent, and say less than as many others.
    likeness = sum(one * other for one, other in pairwise(residuals)) / squares if squares else 0.0
    likeness = min(max(likeness, 0.0), MOST_LIKE)
    return Slope(rise, math.sqrt(squares / (count - 2) / spread * (1 + likeness) / (1 - likeness)))


@dataclass
class Soak:
    """What was seen."""

    rate: float
    looks: list[dict[str, float]] = field(default_factory=list)
    """What the server held at rest, each with the ``time`` in seconds and the ``visits`` so far."""
    baseline: dict[str, int] = field(default_factory=dict)
    """What it held before the first visit."""
    left_over: dict[str, int] = field(default_factory=dict)
    """What there was more of at any rest, of that which has to be as at first: the most of each."""
    visits: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    """What visitors were not served, and how often."""

    def take(self, at: float, visits: int, now: dict[str, int]) -> None:
        """Note a look."""
        self.looks.append({**now, "time": at, "visits": visits})
        for name, more in churn.remains(self.baseline, now).items():
            self.left_over[name] = max(more, self.left_over.get(name, 0))

    @property
    def names(self) -> list[str]:
        """What is looked at."""
        return [name for name in self.baseline if name not in ("pid", "lagging")]

    def slope(self, name: str, *, of_late: bool = False) -> Slope:
        """How fast it grows, or grew in the later half of the looks."""
        looks = self._looks(of_late)
        return slope_of([look["time"] for look in looks], [look[name] for look in looks])

    def per_visit(self, name: str, *, of_late: bool = False) -> float:
        """How much of its growth falls to one visit."""
        looks = self._looks(of_late)
        visits, seconds = (looks[-1][each] - looks[0][each] for each in ("visits", "time"))
        return self.slope(name, of_late=of_late).per_second * seconds / visits if visits else 0.0

    def grows(self, name: str) -> bool:
        """Whether it grows, as far as one can tell: what did so at first, and then no more, has been filled."""
        return all(self._grew(name, of_late) for of_late in (False, True))

    def _grew(self, name: str, of_late: bool) -> bool:
        slope = self.slope(name, of_late=of_late)
        is_certain = slope.per_second > SIGMAS * slope.error
        return is_certain and self.per_visit(name, of_late=of_late) > PER_VISIT.get(name, ANYTHING_PER_VISIT)

    def _looks(self, of_late: bool) -> list[dict[str, float]]:
        return self.looks[len(self.looks) // 2 :] if of_late else self.looks

    @property
    def growing(self) -> list[str]:
        """All that grows, and all that was left over at a rest."""
        return [name for name in self.names if self.grows(name) or name in self.left_over]

    def told(self) -> dict[str, object]:
        """Everything, for a program."""
        slopes = {name: {**asdict(self.slope(name)), "per_visit": self.per_visit(name)} for name in self.names}
        return {**asdict(self), "slopes": slopes, "growing": self.growing}


# -- the run -------------------------------------------------------------------------------------------------------


def server(folder: Path, tls_port: int) -> Server:
    """The hub, in plain text and over TLS, with a window into the worker."""

    def command(app: str, port: int, own_folder: Path) -> Sequence[str]:
        certificate = str(make_certificate(folder))
        secure = ["--certfile", certificate, "--keyfile", certificate, "--insecure-bind", f"127.0.0.1:{port}"]
        return [*hypercorn(app, tls_port, own_folder), *secure]

    return Server("trio_sse", APP, "/events", "/topics", "/readyz", ours=True, env=churn.ENV, command=command)


async def soak(
    found: Soak, process: Running, tls_port: int, *, seconds: float, stretch_s: float, warm_up: int, progress: Progress
) -> None:
    """Let visitors come, and look at the server after each stretch of them, until the time is over or somebody asks."""
    crowd = churn.Churn(churn.Site(process.port, tls_port))
    bar = progress.add_task("filling what is bounded", total=seconds + warm_up * stretch_s)
    progress.refresh()
    found.baseline = await crowd.held()
    await crowd.prepare()
    began = trio.current_time()
    stretches = 0

    def tell() -> None:
        visits = sum(crowd.visits.values())
        if visits % int(max(1, found.rate)) == 0:
            what = "warming up" if stretches < warm_up else " · ".join(_briefly(found))
            told = f"{visits:,} visits, {sum(crowd.faults.values())} faults: {what}"
            progress.update(bar, completed=trio.current_time() - began, description=told, refresh=True)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_interrupt, nursery.cancel_scope)
            while trio.current_time() - began < seconds + warm_up * stretch_s:
                await crowd.run(found.rate, stretch_s, tell)
                now = await crowd.at_rest(found.baseline)
                stretches += 1
                if stretches > warm_up:
                    found.take(trio.current_time() - began, sum(crowd.visits.values()), now)
            nursery.cancel_scope.cancel()
    finally:
        found.visits, found.faults = sum(crowd.visits.values()), dict(crowd.faults)


async def _cancel_on_interrupt(scope: trio.CancelScope) -> None:
    """Let Ctrl-C, or ``timeout``, end the visits, and what was seen by then be told."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def _briefly(found: Soak) -> Iterator[str]:
    for name in ("tasks", "descriptors", "objects", "memory"):
        if len(found.looks) >= LEAST_LOOKS:
            yield f"{name} {_rise(found, name)}/h"


def _rise(found: Soak, name: str) -> str:
    """A slope, in an hour, in words."""
    slope = found.slope(name)
    unit = 1024 if name == "memory" else 1
    return f"{slope.per_second * 3600 / unit:+,.1f} ± {slope.error * 3600 / unit:,.1f}"


def table_of(found: Soak) -> Table:
    """What there was at the rests, and how it grew."""
    table = Table(title=f"{found.visits:,} visits, {len(found.looks)} rests", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("at rest")
    for heading in ("before", "first", "last", "slope, an hour", "a visit"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for name in found.names:
        unit = 1024 if name == "memory" else 1
        first, last = found.looks[0][name] / unit, found.looks[-1][name] / unit
        verdict = "GROWS" if found.grows(name) else "LEFT OVER" if name in found.left_over else ""
        table.add_row(
            f"{name}, KiB" if name == "memory" else name,
            *(f"{value:,.0f}" for value in (found.baseline[name] / unit, first, last)),
            _rise(found, name),
            f"{found.per_visit(name) / unit:+.4f}",
            verdict,
        )
    return table


@click.command()
@click.option(
    "--minutes", type=click.FloatRange(0.01), default=15, show_default=True, help="How long, after the warm-up."
)
@click.option("--rate", type=click.FloatRange(1, 1000), default=100, show_default=True, help="Visits a second.")
@click.option(
    "--stretch",
    "stretch_s",
    type=click.FloatRange(0.5),
    default=15,
    show_default=True,
    help="Seconds of visits between two looks.",
)
@click.option("--warm-up", type=click.IntRange(0), default=8, show_default=True, help="Stretches that do not count.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Also write it all here.")
def main(minutes: float, rate: float, stretch_s: float, warm_up: int, json_path: Path | None) -> None:
    """Let clients come and go, and tell what stays behind of them."""
    console = Console()
    found = Soak(rate)
    server_core, load_core = cores()
    tls_port = free_port()
    columns = (
        BarColumn(16),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        running(server(Path(folder), tls_port), server_core) as process,
        pinned(load_core),
        Progress(*columns, console=console, auto_refresh=False, transient=True) as progress,
    ):
        go = partial(
            soak,
            found,
            process,
            tls_port,
            seconds=minutes * 60,
            stretch_s=stretch_s,
            warm_up=warm_up,
            progress=progress,
        )
        try:
            trio.run(go)
        except* (OSError, churn.Fault, ValueError) as errors:
            raise SystemExit(f"the server does not answer any more: {errors.exceptions[0]!r}") from None
    if json_path is not None:
        about = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "versions": versions()}
        json_path.write_text(json.dumps({**about, **found.told()}, indent=1) + "\n")
    if not found.looks:
        raise SystemExit("it ended before the first look: nothing is known")
    console.print(table_of(found))
    for fault, times in sorted(found.faults.items()):
        console.print(f"NOT SERVED: {times} x {fault}", style="bold red", highlight=False, soft_wrap=True)
    if found.growing:
        console.print(f"It grows: {', '.join(found.growing)}", style="bold red", highlight=False)
        raise SystemExit(1)
    if len(found.looks) < LEAST_LOOKS:
        console.print(f"Nothing was left over; {len(found.looks)} looks say nothing of a slope", highlight=False)
    else:
        console.print("Nothing grows", highlight=False)
    if found.faults:
        raise SystemExit(2)


if __name__ == "__main__":
    main()
