"""The results as one picture: a row for each server, a column of bars for each figure; light and dark.

Draw it again from what was measured before: ``python -m benchmarks.plot benchmarks/results.json docs/benchmark.svg``.
"""

# Written by hand, element by element: a plotting library fixes its colours and fonts, and this is a page of bars.

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.results import POSTED, STREAMED, Results, Run

WIDTH = 880
MARGIN = 20
NAMES = 132
"""The room for the servers' names."""
GAP = 18
LETTER = 7.6
"""About the width of a letter: behind the longest bar there is room for its figure."""
TOP = 112
ROW = 28
BAR = 14
DASH = "\N{EN DASH}"
SMALL_PRINT = 138
"""Characters of a line below."""

STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; font-size: 13px }
.card { fill: #ffffff; stroke: #d8dee4 }
text { fill: #1f2328 }
.title { font-size: 17px; font-weight: 600 }
.head { font-weight: 600 }
.muted, .small { fill: #59636e }
.small { font-size: 10.5px }
.ours { font-weight: 600 }
.axis { stroke: #d1d9e0 }
.bar { fill: #afb8c1 }
.bar.ours { fill: #0e7c66 }
.bar.more { fill: #6fc7b2 }
@media (prefers-color-scheme: dark) {
  .card { fill: #0d1117; stroke: #30363d }
  text { fill: #e6edf3 }
  .muted, .small { fill: #9198a1 }
  .axis { stroke: #3d444d }
  .bar { fill: #545d68 }
  .bar.ours { fill: #2fbf9f }
  .bar.more { fill: #1c6b5a }
}
"""


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of every server."""

    head: str
    load: str
    better: str
    value: Callable[[str], float | None]
    """Of a server by its name; none where it has none."""
    form: Callable[[float], str]
    more: Callable[[str], float | None] = lambda name: None
    """What it reaches in a better way; drawn as the same bar's continuation."""

    def label(self, name: str) -> str:
        """The figures of a server."""
        values = [value for value in (self.value(name), self.more(name)) if value is not None]
        return " / ".join(map(self.form, values)) or DASH


def draw(results: Results) -> str:
    """The SVG."""
    columns = columns_of(results)
    servers = [name for name in results.servers() if any(column.value(name) is not None for column in columns)]
    notes = notes_of(results)
    height = TOP + ROW * len(servers) + 22 + 15 * len(notes) + 8
    svg = ElementTree.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {height}", width=str(WIDTH), height=str(height)
    )
    svg.set("role", "img")
    ElementTree.SubElement(svg, "title").text = "trio_sse and its peers: " + ", ".join(c.head for c in columns)
    ElementTree.SubElement(svg, "style").text = STYLE
    box = {"x": "0.5", "y": "0.5", "width": str(WIDTH - 1), "height": str(height - 1), "rx": "8"}
    ElementTree.SubElement(svg, "rect", box, **{"class": "card"})
    _text(svg, MARGIN, 34, "One event to every subscriber: what it costs the server", "title")
    for row, name in enumerate(servers):
        _text(svg, MARGIN + NAMES - 10, _middle(row), name, "ours" if name in results.ours() else "", anchor="end")
    width = (WIDTH - 2 * MARGIN - NAMES - GAP * (len(columns) - 1)) / max(1, len(columns))
    for place, column in enumerate(columns):
        _column(svg, results, column, servers, MARGIN + NAMES + place * (width + GAP), width)
    for line, note in enumerate(notes):
        _text(svg, MARGIN, TOP + ROW * len(servers) + 26 + 15 * line, note, "small")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def columns_of(results: Results) -> list[Column]:
    """The figures that were measured, each at the load that says most."""
    loads = results.loads()
    columns = []

    def cell(load: tuple[int, float], figure: Callable[[Run], float]) -> Callable[[str], float | None]:
        def value(name: str) -> float | None:
            run = results.cell(name, *load)
            return figure(run) if run is not None else None

        return value

    for load in loads if len(loads) < 3 else [load for load in ((1000, 100), (9000, 10)) if load in loads]:
        columns.append(
            Column("CPU per delivery", _load(*load), "µs, less is better", cell(load, lambda run: run.cpu_us), _brief)
        )
    if results.peaks:
        clients = min(run.clients for run in results.peaks)

        def peak(way: str) -> Callable[[str], float | None]:
            def value(name: str) -> float | None:
                run = results.peak(name, clients, way)
                return run.per_second if run is not None and not run.failed else None

            return value

        columns.append(
            Column(
                "Most deliveries/s", f"{clients:,} subscribers", "more is better", peak(POSTED), _count, peak(STREAMED)
            )
        )
    if loads:
        heaviest = (9000, 20.0) if (9000, 20.0) in loads else loads[-1]
        columns.append(
            Column(
                "Latency, p99", _load(*heaviest), "ms, less is better", cell(heaviest, lambda run: run.p99_ms), _brief
            )
        )
    return columns


def notes_of(results: Results) -> list[str]:
    """The small print: how it was measured, on what."""
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    notes = [
        f"{machine['cpu']}, {machine['cores']} cores: the server pinned to one, the load to another; loopback; "
        f"Linux {machine['kernel']}; Python {machine['python']}; {versions}. Measured {machine['date']} in "
        "one run, one after the other.",
    ]
    if any(run.way == STREAMED for run in results.peaks):
        notes.append("Most deliveries/s: one POST for each event; the lighter bar: events streamed in one request.")
    judged = (
        "something was LOST, twice or out of order" if results.failed else "nothing was lost, twice or out of order"
    )
    notes.append(f"Of what was sent through trio_sse, {judged}. {DASH}: not asked of it, or saturated at a lower rate.")
    return [line for note in notes for line in textwrap.wrap(note, SMALL_PRINT)]


def _column(
    svg: ElementTree.Element, results: Results, column: Column, servers: Sequence[str], x: float, width: float
) -> None:
    _text(svg, x, TOP - 46, column.head, "head")
    _text(svg, x, TOP - 30, column.load, "muted")
    _text(svg, x, TOP - 14, column.better, "muted")
    values = [value for name in servers for value in (column.value(name), column.more(name)) if value is not None]
    label = max((LETTER * len(column.label(name)) for name in servers), default=0) + 8
    scale = (width - label) / max(values, default=1)
    line = {"x1": f"{x:g}", "x2": f"{x:g}", "y1": str(TOP - 4), "y2": str(TOP + ROW * len(servers) - 4)}
    ElementTree.SubElement(svg, "line", line, **{"class": "axis"})
    for row, name in enumerate(servers):
        value, more = column.value(name), column.more(name)
        ours = " ours" if name in results.ours() else ""
        if value is None:
            _text(svg, x + 6, _middle(row), DASH, "muted")
            continue
        longest = max(value, more or 0)
        if longest > value:
            _bar(svg, x, row, longest * scale, "bar more")
        _bar(svg, x, row, value * scale, "bar" + ours)
        _text(svg, x + longest * scale + 6, _middle(row), column.label(name), ours.strip())


def _bar(svg: ElementTree.Element, x: float, row: int, length: float, kind: str) -> None:
    y = TOP + ROW * row + (ROW - BAR) / 2 - 4
    sizes = {"x": f"{x:g}", "y": f"{y:g}", "width": f"{max(length, 1):.1f}", "height": str(BAR), "rx": "2"}
    ElementTree.SubElement(svg, "rect", sizes, **{"class": kind})


def _text(svg: ElementTree.Element, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
    place = {"x": f"{x:g}", "y": f"{y:g}", "text-anchor": anchor}
    ElementTree.SubElement(svg, "text", place, **({"class": kind} if kind else {})).text = text


def _middle(row: int) -> float:
    return TOP + ROW * row + ROW / 2 + 0.5


def _load(clients: int, rate: float) -> str:
    return f"{clients:,} \N{MULTIPLICATION SIGN} {rate:g} events/s"


def _brief(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _count(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:,.0f} k" if value >= 1e4 else f"{value:,.0f}"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(Results.read(source)))
