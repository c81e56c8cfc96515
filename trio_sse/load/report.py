"""What a run has shown: the verdict, a table and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from .outcome import Load

MAX_FAILURES = 5


@dataclass(frozen=True, slots=True)
class Report:
    """A run, and what it was asked to do."""

    url: str
    clients: int
    slow: int
    topics: int
    way: str
    """How events were published, to a person."""
    listening: bool
    """Nothing was published."""
    load: Load

    @property
    def failed(self) -> bool:
        """Whether anything was lost, repeated, reordered or refused."""
        load, accounts = self.load, self.load.accounts
        if load.refused or load.streams_refused or load.never_opened:
            return True
        if not self.listening and not load.accepted:
            return True
        return load.comparable and bool(accounts.lost or accounts.twice or accounts.disordered)

    @property
    def _per_second(self) -> float:
        return (self.load.events if self.listening else self.load.accounts.delivered) / self.load.elapsed_s

    def table(self) -> Table:
        """It all, for a person."""
        table = Table(title=self.url, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        for name, value, bad in self._rows():
            table.add_row(name, value, style="red" if bad else None)
        return table

    def _rows(self) -> Iterator[tuple[str, str, bool]]:
        load, accounts = self.load, self.load.accounts
        slow = f", {self.slow:,} of them slow" if self.slow else ""
        yield "clients", f"{self.clients - load.never_opened:,} of {self.clients:,}{slow}", load.never_opened > 0
        if self.listening:
            yield "events received", f"{load.events:,} ({self._per_second:,.0f} a second)", False
        else:
            on = f"{self.topics:,} topics" if self.topics > 1 else "one topic"
            yield "published", f"{load.accepted:,} of {load.offered:,} events, to {on}, {self.way}", False
            yield "delivered", f"{accounts.delivered:,} ({self._per_second:,.0f} a second)", False
            times = f"p50 {load.p50_ms:,.1f} ms · p99 {load.p99_ms:,.1f} ms · max {load.max_ms:,.1f} ms"
            without = ", without the slow" if self.slow else ""
            yield "latency", "not known" if math.isnan(load.p50_ms) else times + without, False
        if load.comparable:
            told = f", of which the server said so of {load.told:,}" if load.told else ""
            yield "lost", f"{accounts.lost:,}{told}", accounts.lost > 0
            yield "twice", f"{accounts.twice:,}", accounts.twice > 0
            yield "out of order", f"{accounts.disordered:,}", accounts.disordered > 0
        else:
            yield "lost, twice, out of order", "not known", False
        refused = f"{load.refused:,} events, {load.streams_refused:,} streams"
        yield "refused", refused, bool(load.refused or load.streams_refused)
        yield "reconnects", f"{load.reopened:,} ({load.left:,} asked for; the server ended {load.closed:,})", False
        if load.storm_s is not None:
            yield "after the storm", f"all were back in {load.storm_s:,.2f} s", False
        yield (
            "this program",
            f"{load.cpu_share:.0%} of a core; its loop was busy {load.busy_share:.0%} of the time",
            False,
        )

    def remarks(self) -> Iterator[str]:
        """What a reader of the table should not overlook."""
        load = self.load
        if load.bottleneck == "load":
            late = f" ({load.late:,} events were sent late)" if load.late else ""
            yield f"The load itself was the bottleneck{late}: the server may be better than these figures."
        if load.bottleneck == "server":
            hint = ""
            if self.way.startswith("by single"):
                hint = "; on a hub of ours, --stream publishes with less"
            yield f"The server was the bottleneck: {load.held:,} events waited for its answers to earlier ones{hint}."
        if self.listening:
            yield "Nothing was published, so latency is not known: give --publish URL to have all accounted for."
            if not load.events:
                yield "No event came at all."
            elif not load.comparable:
                yield "What was lost cannot be known: clients did not see the same event IDs, or none."
        elif load.others:
            yield f"{load.others:,} events were no events of this run."
        if load.told:
            yield (
                "What the server said of was no longer kept when a client asked for it: a hub of ours keeps "
                "TRIO_SSE_RETENTION_EVENTS of each topic."
            )
        if not self.listening and load.reopened:
            yield "Latency counts from when an event was due, so it holds the time a client was away."
        worst = sorted((load.failures or {}).items(), key=lambda failure: -failure[1])
        for why, count in worst[:MAX_FAILURES]:
            yield f"{count:,} times: {why}."

    def json(self) -> dict[str, Any]:
        """It all, for a program; ``null`` is what is not known."""
        load = asdict(self.load)
        accounts: Mapping[str, int] = load.pop("accounts")
        known = self.load.comparable
        about = {"url": self.url, "clients": self.clients, "slow": self.slow, "topics": self.topics}
        verdict = {"failed": self.failed, "bottleneck": self.load.bottleneck, "remarks": list(self.remarks())}
        rates = {"deliveries_per_s": self._per_second}
        counts = {name: value if known or name == "delivered" else None for name, value in accounts.items()}
        whole = {**about, "published": self.way, **verdict, **rates, **counts, **load}
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in whole.items()
        }
