"""Publishing: what one event costs the hub, posted alone, streamed with others, and from inside the process.

Run it as ``python benchmarks/publish.py`` or ``python -m benchmarks.publish``. Each load goes to a fresh server on
a core of its own, with a token, and each answer is checked: an event that was not acknowledged in its turn, or that
the journal does not hold under the ID it was acknowledged with, is a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
import trio
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.publishers import (
    EVENT_BYTES,
    KEY,
    TOPIC,
    WAIT_S,
    Publisher,
    Subscriber,
    connect,
    data,
    head,
    read_answer,
    read_history,
)
from benchmarks.servers import BenchmarkError, Running, Server, pinned, running, usage
from trio_sse import Event, EventID, Hub, open_hub

JOURNALS = {"memory": "memory:", "sqlite": "sqlite:bench.db"}
CONNECTIONS = 8
RETENTION = 1_000
"""Events kept of the topic, the hub's default: from then on, adding one removes one."""
STREAMS = [(1, 0), (100, 0), (500, 0), (100, 100)]
"""Events to an HTTP chunk, and subscribers."""
CALLS = [(1, 1), (100, 1), (1, 100)]
"""Tasks that publish, and events to a call."""


@dataclass(frozen=True, slots=True)
class Run:
    """One way of publishing into one journal: one row."""

    journal: str
    way: str
    events: int
    elapsed_s: float
    cpu_s: float
    """Processor time of the server's processes."""
    faults: Sequence[str] = ()
    """What was not as it must be."""
    deliveries: int = 0
    gaps: int = 0
    """How often a subscriber was told that it could not have everything, because it was too slow."""

    @property
    def per_second(self) -> float:
        """Events a second."""
        return self.events / self.elapsed_s

    @property
    def cpu_us(self) -> float:
        """The server's processor time for one event."""
        return self.cpu_s * 1e6 / max(1, self.events)


def server_of(journal: str) -> Server:
    """Our hub as an operator starts it, with a key, so that publishing takes a token."""
    env = {
        "TRIO_SSE_JOURNAL": JOURNALS[journal],
        "TRIO_SSE_JWT_KEY": KEY,
        "TRIO_SSE_ANONYMOUS": "subscribe",
        "TRIO_SSE_RETENTION_EVENTS": str(RETENTION),
    }
    return Server(journal, "trio_sse.app:app", f"/events?topic={TOPIC}", f"/topics/{TOPIC}", "/readyz", True, env)


# -- ways of publishing -------------------------------------------------------------------------------------


def post(server: Running, journal: str, seconds: float) -> Run:
    """Kept-alive connections, each of which posts its next event when it has read the answer to the last."""
    request = head("Content-Type: text/plain", f"Content-Length: {EVENT_BYTES}")
    ids: list[EventID] = []
    faults: list[str] = []
    sent = 0
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(server.port)) for _ in range(CONNECTIONS)]
        before, began = usage(server.pid), time.monotonic()
        for sock in sockets:
            sock.sendall(request + data(sent))
            sent += 1
        while sockets:
            for sock in list(sockets):
                status, body = read_answer(sock)
                if status == 201:
                    ids.append(EventID.parse(json.loads(body)["id"]))
                else:
                    faults.append(f"an event was answered with {status} {body!r}")
                if status != 201 or time.monotonic() - began >= seconds:
                    sockets.remove(sock)
                    continue
                sock.sendall(request + data(sent))
                sent += 1
        elapsed_s, after = time.monotonic() - began, usage(server.pid)
    if len(set(ids)) != sent:
        faults.append(f"{sent:,} events were sent, and {len(set(ids)):,} acknowledged")
    last = max(ids, default=EventID(0, 0))
    numbers, newest = read_history(server.port, last)
    if len(set(numbers)) != min(sent, RETENTION) or newest != last:
        faults.append(f"the journal holds {len(set(numbers)):,} events up to {newest}; acknowledged was {last}")
    return Run(journal, "one a POST", len(ids), elapsed_s, after.cpu_s - before.cpu_s, faults)


def stream(server: Running, journal: str, seconds: float, *, per_chunk: int, subscribers: int) -> Run:
    """One connection that streams events, so many to an HTTP chunk, while so many subscribers read them."""
    poll = select.epoll()
    readers = {reader.socket.fileno(): reader for reader in [Subscriber(server.port) for _ in range(subscribers)]}
    for descriptor in readers:
        poll.register(descriptor, select.EPOLLIN)
    before, began = usage(server.pid), time.monotonic()
    publisher = Publisher(server.port, per_chunk, seconds)
    poll.register(publisher.socket, publisher.wants)
    elapsed_s = 0.0
    while not elapsed_s or any(reader.next < publisher.sent for reader in readers.values()):
        ready = poll.poll(WAIT_S)
        if not ready:
            break
        for descriptor, events in ready:
            if descriptor in readers:
                readers[descriptor].read()
                continue
            if events & select.EPOLLOUT:
                publisher.write()
            if events & ~select.EPOLLOUT:
                publisher.read()
            if publisher.done:
                elapsed_s = time.monotonic() - began
                poll.unregister(publisher.socket)
            else:
                poll.modify(publisher.socket, publisher.wants)
    after = usage(server.pid)
    if not elapsed_s:
        raise BenchmarkError(f"the server was silent for {WAIT_S:g} s")
    for sock in (publisher.socket, *(reader.socket for reader in readers.values())):
        sock.close()
    faults, last = publisher.check()
    numbers, newest = read_history(server.port, last)
    if numbers != list(range(max(0, publisher.sent - RETENTION), publisher.sent)) or newest != last:
        faults.append(f"the journal holds {len(numbers):,} events up to {newest}; acknowledged was {last}")
    if behind := sum(reader.next < publisher.sent for reader in readers.values()):
        faults.append(f"{behind} of {subscribers} subscribers did not get the end")
    if wrong := sum(reader.faults > 0 for reader in readers.values()):
        faults.append(f"{wrong} of {subscribers} subscribers lost events in silence, or got them in another order")
    return Run(
        journal,
        f"streamed, {per_chunk} a chunk" + (f", {subscribers} subscribers" if subscribers else ""),
        publisher.sent,
        elapsed_s,
        after.cpu_s - before.cpu_s,
        faults,
        sum(reader.received for reader in readers.values()),
        sum(reader.gaps for reader in readers.values()),
    )


def call(journal: str, seconds: float, *, tasks: int, batch: int) -> Run:
    """``hub.publish``, or ``publish_many`` of so many events, by so many tasks in this process, with no HTTP."""
    ids: list[EventID] = []

    async def publish(hub: Hub, until: float) -> None:
        while trio.current_time() < until:
            if batch == 1:
                ids.append(await hub.publish(TOPIC, "x" * EVENT_BYTES))
            else:
                ids.extend(await hub.publish_many(TOPIC, [Event("x" * EVENT_BYTES) for _ in range(batch)]))

    async def measure(url: str) -> tuple[float, float]:
        async with open_hub(url) as hub:
            began, before = time.monotonic(), time.process_time()
            async with trio.open_nursery() as nursery:
                for _ in range(tasks):
                    nursery.start_soon(publish, hub, trio.current_time() + seconds)
            return time.monotonic() - began, time.process_time() - before

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, pinned(min(os.sched_getaffinity(0))):
        elapsed_s, cpu_s = trio.run(measure, "memory:" if journal == "memory" else f"sqlite:{folder}/bench.db")
    way = ("publish" if batch == 1 else f"publish_many of {batch}") + (f", {tasks} tasks" if tasks > 1 else "")
    faults = [] if len(set(ids)) == len(ids) else ["an ID was given twice"]
    return Run(journal, way, len(ids), elapsed_s, cpu_s, faults)


def runs_of(journal: str, seconds: float) -> Iterator[Run]:
    """All runs of one journal."""
    cores = sorted(os.sched_getaffinity(0))
    loads: list[Callable[[Running, str, float], Run]] = [post]
    loads += [partial(stream, per_chunk=per_chunk, subscribers=subscribers) for per_chunk, subscribers in STREAMS]
    for load in loads:
        with running(server_of(journal), cores[0]) as server, pinned(cores[-1]):
            yield load(server, journal, seconds)
    for tasks, batch in CALLS:
        yield call(journal, seconds, tasks=tasks, batch=batch)


# -- the command --------------------------------------------------------------------------------------------


def table_of(runs: Sequence[Run]) -> Table:
    """A row for each run."""
    title = f"Publishing, events of {EVENT_BYTES} bytes"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, name in enumerate(("journal", "way", "events\na second", "CPU µs\neach", "deliveries\na second")):
        table.add_column(name, justify="right" if place > 1 else "left")
    for run in runs:
        deliveries = f"{run.deliveries / run.elapsed_s:,.0f}" if run.deliveries else ""
        figures = f"{run.per_second:,.0f}", f"{run.cpu_us:,.1f}", deliveries
        table.add_row(run.journal, run.way, *figures, style="red" if run.faults else None)
    return table


def remarks(runs: Sequence[Run]) -> list[str]:
    """What a reader of the table should not overlook."""
    told = [f"{run.journal}, {run.way}: {fault}" for run in runs for fault in run.faults]
    return told + [f"{run.journal}, {run.way}: {run.gaps:,} gaps were told" for run in runs if run.gaps]


@click.command()
@click.option("--journal", type=click.Choice([*JOURNALS, "all"]), default="all", show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=3, show_default=True, help="Length of a run.")
@click.option("--quick", is_flag=True, help="Runs of one second.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Also write it all here.")
def main(journal: str, seconds: float, quick: bool, json_path: Path | None) -> None:
    """Measure publishing: one event a request, a stream of them in one, and from inside the process.

    Exits with 1 when an event was not acknowledged, not kept, or lost in silence, and with 2 when it could not be
    measured.
    """
    runs: list[Run] = []
    try:
        for name in JOURNALS if journal == "all" else [journal]:
            for run in runs_of(name, min(seconds, 1) if quick else seconds):
                runs.append(run)
                click.echo(f"{name}, {run.way}: {run.per_second:,.0f} events/s", err=True)
    except BenchmarkError as error:
        click.echo(str(error), err=True)
        raise SystemExit(2) from None
    console = Console()
    console.print(table_of(runs))
    for line in remarks(runs):
        console.print(line, highlight=False, soft_wrap=True)
    if json_path is not None:
        rows = [{**asdict(run), "per_second": run.per_second, "cpu_us": run.cpu_us} for run in runs]
        json_path.write_text(json.dumps({"runs": rows}, indent=2) + "\n")
    if any(run.faults for run in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
