"""What trio_sse must reach, as ratios to its peers in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.contenders import DIRECT, FALLBACK, GO, NCHAN, OBVIOUS, RAW, SQLITE
from benchmarks.results import POSTED, STREAMED, Results
from benchmarks.servers import Server


@dataclass(frozen=True, slots=True)
class Target:
    """One of them, judged."""

    name: str
    limit: float
    value: float
    unit: str
    """What the figures are: ``x Nchan``, ``KiB``."""
    at_most: bool = True

    @property
    def is_reached(self) -> bool:
        """Whether it is."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    @property
    def wanted(self) -> str:
        """The limit, to a person."""
        return f"{'≤' if self.at_most else '≥'} {self._figure(self.limit)} {self.unit}"

    @property
    def reached(self) -> str:
        """The value, to a person."""
        return self._figure(self.value)

    def _figure(self, value: float) -> str:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def judge(results: Results) -> list[Target]:
    """Those for which everything was measured."""
    return [*_deliveries(results), *_peaks(results), *_streams(results), *_publishing(results)]


def _deliveries(results: Results) -> Iterator[Target]:
    def against(server: Server, peer: Server, clients: int, rate: float, limit: float) -> Iterator[Target]:
        ratio = results.ratio(lambda run: run.cpu_us, server.name, peer.name, clients, rate)
        if ratio is not None:
            which = server.name.removeprefix(DIRECT.name)
            yield Target(f"CPU per delivery{which}, {clients:,} x {rate:g}/s", limit, ratio, f"x {peer.name}")

    yield from against(DIRECT, NCHAN, 1000, 100, 1.0)
    yield from against(DIRECT, GO, 1000, 100, 0.9)
    yield from against(DIRECT, NCHAN, 9000, 10, 1.1)
    yield from against(SQLITE, DIRECT, 1000, 100, 1.3)
    yield from against(FALLBACK, OBVIOUS, 1000, 10, 0.5)
    yield from against(FALLBACK, OBVIOUS, 1000, 100, 0.5)
    peers = [run for name in results.servers() if (run := results.cell(name, 9000, 20)) and not run.ours]
    best = min(peers, key=lambda run: run.p99_ms, default=None)
    if best is not None:
        ratio = results.ratio(lambda run: run.p99_ms, DIRECT.name, best.server, 9000, 20)
        if ratio is not None:
            yield Target("p99, 9,000 x 20/s", 0.5, ratio, f"x {best.server}")


def _peaks(results: Results) -> Iterator[Target]:
    for peer, limit in ((NCHAN, 2.5), (GO, 2.0)):
        for way in (STREAMED, POSTED):
            ours, theirs = results.peak(DIRECT.name, 1000, way), results.peak(peer.name, 1000, POSTED)
            if ours and theirs:
                name = f"most deliveries/s, {way}"
                yield Target(name, limit, ours.per_second / theirs.per_second, f"x {peer.name}", at_most=False)


def _streams(results: Results) -> Iterator[Target]:
    for clients in sorted({row.clients for row in results.openings}):
        ours, raw = results.opening(DIRECT.name, clients), results.opening(RAW.name, clients)
        if ours and raw:
            yield Target(f"opening a stream, CPU, of {clients:,}", 1.0, ours.cpu_us / raw.cpu_us, f"x {RAW.name}")
        if ours:
            yield Target(f"memory of an idle stream, of {clients:,}", 34, ours.kib, "KiB")


def _publishing(results: Results) -> Iterator[Target]:
    def best(journal: str, is_meant: Callable[[str], bool], unit: str) -> float | None:
        rows = [row for row in results.publishing if row["journal"] == journal and is_meant(row["way"])]
        return max((row["events"] / row[unit] for row in rows), default=None)

    def is_streamed(way: str) -> bool:
        return way.startswith("streamed") and "subscribers" not in way

    for journal, limit in (("memory", 50_000), ("sqlite", 20_000)):
        streamed = best(journal, is_streamed, "elapsed_s")
        if streamed is not None:
            yield Target(f"publishing, streamed, {journal}", limit, streamed, "events/s", at_most=False)
    posted = best("memory", lambda way: way == "one a POST", "cpu_s")
    if posted is not None:
        yield Target("publishing, one a POST, with a token", 1500, posted, "/s a core", at_most=False)
