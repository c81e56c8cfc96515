"""The results, as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from benchmarks.results import POSTED, STREAMED, Opening, Results, Return, Run
from benchmarks.targets import judge


def tables_of(results: Results) -> Iterator[Table]:
    """All of them, in the order in which they are read."""
    for clients, rate in results.loads():
        cells = [results.cell(server, clients, rate) for server in results.servers()]
        yield _loads(f"{clients:,} clients, {rate:g} events/s", [cell for cell in cells if cell is not None])
    for clients in sorted({run.clients for run in results.peaks}):
        yield _peaks(clients, results)
    if results.openings:
        yield _streams(results)
    for what in dict.fromkeys(row.what for row in results.growth):
        yield _growth(what, results)
    if results.publishing:
        yield _publishing(results)
    targets = judge(results)
    if targets:
        table = _table("What it must reach, as ratios in this run", "target", "wanted", "reached", "")
        for target in targets:
            mark = "yes" if target.is_reached else "NO"
            row = (target.name, target.wanted, target.reached, mark)
            table.add_row(*row, style=None if target.is_reached else "red")
        yield table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def _loads(title: str, runs: Sequence[Run]) -> Table:
    table = _table(
        title, "", "deliveries\na second", "CPU µs\neach", "core\n%", "p50\nms", "p99\nms", "max\nms", "lost"
    )
    for run in runs:
        latencies = (_brief(value) for value in (run.p50_ms, run.p99_ms, run.max_ms))
        lost = f"{run.lost + run.twice + run.disordered:,}"
        figures = f"{run.per_second:,.0f}", f"{run.cpu_us:.1f}", f"{100 * run.core_share:.0f}", *latencies, lost
        table.add_row(run.server, *figures, style=_style(run))
    return table


def _peaks(clients: int, results: Results) -> Table:
    table = _table(
        f"{clients:,} clients, as many events as can be delivered with nothing lost: the best of all rounds",
        "", "published", "deliveries\na second", "CPU µs\neach", "core\n%", "load's\ncore %", "offered\nevents/s",
    )  # fmt: skip
    peaks = [results.peak(server, clients, way) for server in results.servers() for way in (POSTED, STREAMED)]
    for run in sorted((run for run in peaks if run is not None), key=lambda run: -run.per_second):
        shares = f"{100 * run.core_share:.0f}", f"{100 * run.load_share:.0f}"
        figures = f"{run.per_second:,.0f}", f"{run.cpu_us:.2f}", *shares, f"{run.rate:,.0f}"
        table.add_row(run.server, run.way, *figures, style=_style(run))
    return table


def _streams(results: Results) -> Table:
    table = _table(
        "What a stream costs; and a restart: all clients come back at once",
        "", "clients", "CPU µs\nto open", "KiB to\nkeep", "s to\nopen all", "s until\nserver", "s until\nall back",
    )  # fmt: skip
    rows: list[Opening | Return] = [*results.openings, *results.returns]
    for clients, server in sorted({(row.clients, row.server): None for row in rows}, key=lambda key: key[0]):
        opening = results.opening(server, clients)
        opened = [f"{opening.cpu_us:,.0f}", f"{opening.kib:.1f}", f"{opening.seconds:.1f}"] if opening else [""] * 3
        back = [row for row in results.returns if (row.server, row.clients) == (server, clients)]
        away = [f"{back[0].started_s:.1f}", f"{back[0].all_back_s:.1f}"] if back else ["", ""]
        table.add_row(server, f"{clients:,}", *opened, *away, style="bold" if server in results.ours() else None)
    return table


@dataclass(frozen=True, slots=True)
class _Growing:
    title: str
    unit: str


GROWING = {
    "clients": _Growing("Our cost as clients become more", "clients"),
    "bytes": _Growing("as events become larger", "bytes"),
    "spread": _Growing("as topics become more, and each client follows its share of them", "topics"),
    "all": _Growing("as topics become more, and each client follows all of them by a wildcard", "topics"),
    "selectors": _Growing("as each client asks for more selectors, one of which matches", "selectors"),
}


def _growth(what: str, results: Results) -> Table:
    rows = results.grown(what)
    columns = (
        "clients",
        "events\n/s",
        "deliveries\n/s",
        "CPU µs\neach",
        "CPU µs\nan event",
        "p50\nms",
        "p99\nms",
        "lost",
    )
    table = _table(f"{GROWING[what].title} ({rows[0].run.server})", GROWING[what].unit, *columns)
    for row in rows:
        run = row.run
        wrong = f"{run.lost + run.twice + run.disordered:,}"
        loads = f"{run.clients:,}", f"{run.rate:g}", f"{run.per_second:,.0f}"
        costs = f"{run.cpu_us:,.1f}", f"{run.cpu_us_per_event:,.0f}", _brief(run.p50_ms), _brief(run.p99_ms), wrong
        table.add_row(f"{row.value:,}", *loads, *costs, style="red" if run.failed else None)
    return table


def _publishing(results: Results) -> Table:
    table = _table("Publishing", "", "journal", "events/s", "CPU µs\nan event")
    for row in results.publishing:
        figures = f"{row['events'] / row['elapsed_s']:,.0f}", f"{row['cpu_s'] * 1e6 / max(1, row['events']):,.1f}"
        table.add_row(row["way"], row["journal"], *figures, style="red" if row["faults"] else None)
    return table


def _brief(value: float) -> str:
    """Three digits or more, which is all that such a figure is good for."""
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _style(run: Run) -> str | None:
    if run.failed:
        return "red"
    return "bold" if run.ours else None


def remarks(results: Results) -> list[str]:
    """What a reader of the tables should not overlook."""
    lines = [f"NOT MEASURED: {name}: {why}" for name, why in results.missing.items()]
    lines += [f"FAILED: {fault}" for fault in results.faults]
    lines += [f"publishing, {row['way']}: {fault}" for row in results.publishing for fault in row["faults"]]
    cells = [results.cell(server, *load) for load in results.loads() for server in results.servers()]
    runs = [*(cell for cell in cells if cell is not None), *results.peaks, *(row.run for row in results.growth)]
    for run in runs:
        name = f"{run.server}, {run.clients:,} x {run.rate:,.0f}/s"
        if run.lost or run.twice or run.disordered:
            lines.append(f"{name}: {run.lost:,} lost, {run.twice:,} twice, {run.disordered:,} out of order")
        if run.refused or run.closed:
            lines.append(f"{name}: {run.refused:,} events were not accepted, {run.closed:,} streams closed")
        if run.load_bound:
            lines.append(f"{name}: the load was the bottleneck, not the server")
        elif run.late > 0.01 * run.offered:
            lines.append(f"{name}: {run.late:,} events were sent late by the load itself: trust its latencies less")
    for clients, rate in results.loads():
        left_out = [server for server in results.servers() if results.cell(server, clients, rate) is None]
        if left_out:
            told = ", ".join(left_out)
            lines.append(f"{clients:,} x {rate:g}/s was not asked of: {told} (saturated at less, or not chosen)")
    return lines
