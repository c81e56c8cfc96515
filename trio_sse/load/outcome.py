"""What is to become of a run, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .accounting import Accounts

BUSY = 0.9
"""A loop that rests less than the rest of this is no measure of anything but itself."""

Bottleneck = Literal["load", "server"]


@dataclass(frozen=True, slots=True)
class Load:
    """One run, as the clients saw it."""

    offered: int
    """Events that were due."""
    accepted: int
    """Those that the server answered with success."""
    refused: int
    """Those that it answered otherwise, or not at all."""
    held: int
    late: int
    closed: int
    """How often the server ended a stream."""
    accounts: Accounts
    elapsed_s: float
    """From the first due time to the last arrival."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    told: int = 0
    """Lost events that the server owned up to."""
    events: int = 0
    """All that came, also what nobody here can account for."""
    others: int = 0
    """What nobody here can account for: no event of ours, or where it is only listened, one without an ID."""
    comparable: bool = True
    """Whether lost, twice and out of order say anything: where it is only listened, clients must see the same IDs."""
    left: int = 0
    """How often a client left and came back, by churn or in the storm."""
    reopened: int = 0
    """How often one came back, whoever had ended its stream."""
    storm_s: float | None = None
    """From the moment when all were cut until all were back."""
    never_opened: int = 0
    """Clients that had no stream at all."""
    streams_refused: int = 0
    """How often a stream was answered with something else."""
    failures: dict[str, int] | None = None
    """Why streams were not opened and events not accepted, and how often."""
    cpu_share: float = 0
    """How much of a core this program used."""
    busy_share: float = 0
    """How much of the time its loop did not rest."""

    @property
    def bottleneck(self) -> Bottleneck | None:
        """Who held up whom: this program, the server, or nobody."""
        if self.busy_share > BUSY or self.cpu_share > BUSY or self.late > self.offered / 100:
            return "load"
        return "server" if self.held > self.offered / 100 else None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen beside publishing."""

    slow: int = 0
    """So many of the clients read slowly."""
    churn: float = 0
    """So many clients a second leave and come back."""
    storm: bool = False
    """In the middle of the run all are cut at once."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands in the middle of a run."""

    open: int
    delivered: int
    missing: int
    p50_ms: float
    p99_ms: float
