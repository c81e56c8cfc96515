"""What was measured: plain rows, which are written as JSON and read again."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from benchmarks.servers import Server, Usage
from trio_sse.load import Load

SATURATED_CORE = 0.9
"""A server that uses so much of its core has nothing left."""

POSTED, STREAMED = "POST each", "streamed"


@dataclass(frozen=True, slots=True)
class Run:
    """One server under one load."""

    server: str
    ours: bool
    round: int
    """The repetition: what is measured in one round is measured under about the same conditions."""
    clients: int
    rate: float
    """Events a second that were offered."""
    way: str
    """How they were published."""
    offered: int
    accepted: int
    refused: int
    held: int
    late: int
    closed: int
    delivered: int
    lost: int
    twice: int
    disordered: int
    per_second: float
    """Deliveries a second, from the first due time to the last arrival."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: float
    """The server's processor time for one delivery."""
    core_share: float
    """How much of its core the server used."""
    load_share: float
    """How much of its core the load used."""

    @property
    def failed(self) -> bool:
        """Whether anything was lost, repeated, reordered or refused."""
        wrong = self.lost or self.twice or self.disordered or self.refused or self.closed
        return bool(wrong) or not self.accepted

    @property
    def is_behind(self) -> bool:
        """Whether more was offered than could be delivered in that time."""
        return self.per_second < 0.9 * self.rate * self.clients

    @property
    def saturated(self) -> bool:
        """Whether the server has nothing left, so that there is no use in asking more of it."""
        return self.core_share >= SATURATED_CORE and self.is_behind

    @property
    def cpu_us_per_event(self) -> float:
        """The server's processor time for one event, all its deliveries included."""
        return self.cpu_us * self.delivered / max(1, self.accepted)

    @property
    def load_bound(self) -> bool:
        """Whether the load was the bottleneck, and not the server."""
        return self.load_share >= SATURATED_CORE and self.core_share < SATURATED_CORE


def run_of(server: Server, *, round: int, clients: int, rate: float, way: str, load: Load, cpu_s: float) -> Run:
    """The row of a load: what the clients saw, and the processor time that the server used meanwhile."""
    accounts = load.accounts
    return Run(
        server=server.name,
        ours=server.ours,
        round=round,
        clients=clients,
        rate=rate,
        way=way,
        offered=load.offered,
        accepted=load.accepted,
        refused=load.refused,
        held=load.held,
        late=load.late,
        closed=load.closed,
        delivered=accounts.delivered,
        lost=accounts.lost,
        twice=accounts.twice,
        disordered=accounts.disordered,
        per_second=accounts.delivered / load.elapsed_s,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        max_ms=load.max_ms,
        cpu_us=cpu_s * 1e6 / max(1, accounts.delivered),
        core_share=cpu_s / load.elapsed_s,
        load_share=load.cpu_share,
    )


def typical(runs: Sequence[Run]) -> Run:
    """One row for the repetitions of a load: the medians of the figures, and all that went wrong."""

    def middle(name: str) -> float:
        return float(statistics.median(getattr(run, name) for run in runs))

    def total(name: str) -> int:
        return sum(getattr(run, name) for run in runs)

    figures = ("per_second", "p50_ms", "p99_ms", "max_ms", "cpu_us", "core_share", "load_share")
    counts = ("offered", "accepted", "refused", "held", "late", "closed", "delivered", "lost", "twice", "disordered")
    values: dict[str, Any] = {name: middle(name) for name in figures} | {name: total(name) for name in counts}
    return replace(runs[0], **values)


@dataclass(frozen=True, slots=True)
class Opening:
    """What it costs a fresh server to open streams, and to keep them."""

    server: str
    ours: bool
    round: int
    clients: int
    cpu_us: float
    """The server's processor time for opening one."""
    kib: float
    """The server's memory for one that is open and idle."""
    seconds: float
    """Until all were open."""


def opening_of(server: Server, *, round: int, clients: int, before: Usage, after: Usage, seconds: float) -> Opening:
    """The row of an opening: what the server had used before it, and after."""
    return Opening(
        server=server.name,
        ours=server.ours,
        round=round,
        clients=clients,
        cpu_us=(after.cpu_s - before.cpu_s) * 1e6 / clients,
        kib=(after.rss_bytes - before.rss_bytes) / 1024 / clients,
        seconds=seconds,
    )


@dataclass(frozen=True, slots=True)
class Return:
    """How long clients were away when their server was killed, and started again at once."""

    server: str
    ours: bool
    clients: int
    started_s: float
    """Until the server answered again."""
    all_back_s: float
    """Until the last of the clients had its first bytes."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How our cost depends on one thing, all others being equal."""

    what: str
    value: int
    run: Run


@dataclass(slots=True)
class Results:
    """All rows of one run of the benchmark, and the machine they were measured on."""

    machine: dict[str, Any]
    missing: dict[str, str] = field(default_factory=dict)
    """The peers that could not be had, and why."""
    faults: list[str] = field(default_factory=list)
    """What could not be measured, and why."""
    runs: list[Run] = field(default_factory=list)
    peaks: list[Run] = field(default_factory=list)
    """The most deliveries a second with nothing lost, for each server and way of publishing."""
    openings: list[Opening] = field(default_factory=list)
    returns: list[Return] = field(default_factory=list)
    growth: list[Growth] = field(default_factory=list)
    publishing: list[dict[str, Any]] = field(default_factory=list)
    """The rows of publish.py."""

    def cell(self, server: str, clients: int, rate: float) -> Run | None:
        """One server under one load, all repetitions together; none where that was not measured."""
        runs = [run for run in self.runs if (run.server, run.clients, run.rate) == (server, clients, rate)]
        return typical(runs) if runs else None

    def peak(self, server: str, clients: int, way: str) -> Run | None:
        """The most that one server can do."""
        found = [run for run in self.peaks if (run.server, run.clients, run.way) == (server, clients, way)]
        return max(found, key=lambda run: (not run.failed, run.per_second), default=None)

    def opening(self, server: str, clients: int) -> Opening | None:
        """The opening of so many streams, all repetitions together."""
        found = [row for row in self.openings if (row.server, row.clients) == (server, clients)]
        if not found:
            return None
        medians = {
            name: statistics.median(getattr(row, name) for row in found) for name in ("cpu_us", "kib", "seconds")
        }
        return replace(found[0], **medians)

    def ratio(self, figure: Callable[[Run], float], ours: str, theirs: str, clients: int, rate: float) -> float | None:
        """How two servers compare under one load: the median over the rounds, each compared in itself."""
        rows: dict[int, dict[str, Run]] = {}
        for run in self.runs:
            if (run.clients, run.rate) == (clients, rate):
                rows.setdefault(run.round, {})[run.server] = run
        ratios = [figure(row[ours]) / figure(row[theirs]) for row in rows.values() if ours in row and theirs in row]
        return statistics.median(ratios) if ratios else None

    def grown(self, what: str) -> list[Growth]:
        """The rows of one table of growth, all repetitions together."""
        rows: dict[int, list[Run]] = {}
        for row in self.growth:
            if row.what == what:
                rows.setdefault(row.value, []).append(row.run)
        return [Growth(what, value, typical(runs)) for value, runs in sorted(rows.items())]

    def loads(self) -> list[tuple[int, float]]:
        """The numbers of clients and rates that were measured, rising."""
        return sorted({(run.clients, run.rate) for run in self.runs})

    def servers(self) -> list[str]:
        """The names of those that were measured, in their order."""
        return list(dict.fromkeys(row.server for row in self._rows()))

    def ours(self) -> set[str]:
        """The names of those that are trio_sse."""
        return {row.server for row in self._rows() if row.ours}

    def _rows(self) -> Iterable[Run | Opening | Return]:
        return (*self.runs, *self.peaks, *self.openings, *self.returns)

    @property
    def failed(self) -> bool:
        """Whether anything of ours was lost, repeated, reordered or refused."""
        every: Iterable[Run] = (*self.runs, *self.peaks, *(row.run for row in self.growth))
        return any(run.ours and run.failed for run in every) or any(row["faults"] for row in self.publishing)

    def write(self, path: Path) -> None:
        """Write all rows as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """What was written."""
        told = json.loads(path.read_text())
        rows: dict[str, Any] = {name: [row(**each) for each in told.pop(name)] for name, row in _ROWS.items()}
        growth = [Growth(each["what"], each["value"], Run(**each["run"])) for each in told.pop("growth")]
        return cls(**told, **rows, growth=growth)


_ROWS: dict[str, Any] = {"runs": Run, "peaks": Run, "openings": Opening, "returns": Return}
