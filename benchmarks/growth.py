"""How our cost grows: one thing is varied, and all others stay as they are."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.contenders import DIRECT
from benchmarks.measure import WAIT_S, Bench, cores
from benchmarks.results import Growth
from benchmarks.servers import pinned, running
from trio_sse.load import Generator

CLIENTS = 1000
NUMBERS_OF_CLIENTS = (100, 1000, 5000, 9000)
SIZED_CLIENTS = 200
"""Fewer, or the load could not read it all."""

SIZES = (100, 1024, 8 * 1024, 64 * 1024)
NUMBERS_OF_TOPICS = (1, 100, 10_000)
NUMBERS_OF_SELECTORS = (1, 10, 100)

RATE = 10.0
SPREAD_CLIENTS = 10_000
"""As many as the most topics, so that each topic has a client."""

SPREAD_DELIVERIES = 10_000
"""Where each event goes to its share of the clients only: so many deliveries a second,"""

MAX_POSTED = 200.0
"""but no more events than this, or their posting is all that would be measured."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row: what is varied, and the load."""

    what: str
    value: int
    clients: int = CLIENTS
    rate: float = RATE
    payload: int = 120
    subscribe: tuple[str, ...] = (DIRECT.subscribe,)
    """The paths that the clients ask for, in turn."""
    publish: tuple[str, ...] = (DIRECT.publish,)
    """The paths that the events are published to, in turn."""


def cases() -> Iterator[Case]:
    """All rows of all tables."""
    yield from (Case("clients", clients, clients=clients) for clients in NUMBERS_OF_CLIENTS)
    yield from (Case("bytes", size, SIZED_CLIENTS, payload=size) for size in SIZES)
    for topics in NUMBERS_OF_TOPICS:
        names = [f"bench/{topic}" for topic in range(topics)]
        subscribe = tuple(f"/events?topic={name}" for name in names)
        publish = tuple(f"/topics/{name}" for name in names)
        rate = min(MAX_POSTED, SPREAD_DELIVERIES * topics / SPREAD_CLIENTS)
        yield Case("spread", topics, SPREAD_CLIENTS, rate, subscribe=subscribe, publish=publish)
    for topics in NUMBERS_OF_TOPICS:
        publish = tuple(f"/topics/bench/{topic}" for topic in range(topics))
        yield Case("all", topics, subscribe=("/events?topic=bench/*",), publish=publish)
    for selectors in NUMBERS_OF_SELECTORS:
        others = "".join(f"&topic=other/{other}" for other in range(selectors - 1))
        yield Case("selectors", selectors, subscribe=(DIRECT.subscribe + others,))


def measure(bench: Bench, case: Case) -> Growth:
    """One row, on a fresh server.

    Raises:
      BenchmarkError, LoadError: it could not be done.
    """
    core, load_core = cores()
    with (
        running(DIRECT, core) as process,
        pinned(load_core),
        Generator(process.port, case.subscribe, case.publish, case.payload) as generator,
    ):
        if len(case.subscribe) < len(case.publish):
            post_to_each(process.port, case.publish)
        bench = replace(bench, payload=case.payload)
        bench.warm_up(process)
        bench.opened(generator, process, case.clients)
        return Growth(case.what, case.value, bench.load(generator, process, case.clients, case.rate))


def post_to_each(port: int, paths: Sequence[str]) -> None:
    """Let the server know all topics."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)) as connection:
        for path in paths:
            connection.request("POST", path, b"the first", {"Content-Type": "text/plain"})
            connection.getresponse().read()


def steps(bench: Bench, keep: Callable[[Growth], None]) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """What there is to do: its name, the clients it needs, and the doing."""
    for case in cases():

        def step(case: Case = case) -> None:
            keep(measure(bench, case))

        yield f"{DIRECT.name}, {case.what} {case.value:,}", case.clients, step
