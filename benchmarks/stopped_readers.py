"""What clients that stop reading cost all others: latency with them and without, and what is held for them.

    .venv/bin/python benchmarks/stopped_readers.py                  # 500 streams that are read, and 200 that are not
    .venv/bin/python benchmarks/stopped_readers.py --stopped 1000

The same load is run on a fresh server, in turn without the readers that stop and with them. Half of these have a stream
of the topic that is loaded, and half ask for a page again and again; each has a receive buffer of 4 KiB and never
reads. They are full when the load begins, and it ends before the write timeout lets them go.
"""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contenders import DIRECT
from benchmarks.measure import WAIT_S, cores
from benchmarks.servers import Running, pinned, running, usage
from trio_sse.load import Generator

FLOOD = "flood"
PAGES = 90
RECEIVE_BUFFER = 4096
SETTLE_S = 1.0
PAYLOAD = 120


@dataclass(frozen=True, slots=True)
class Figures:
    """One run."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    faults: int
    """Lost, twice or out of order."""
    closed: int
    """Streams that the server ended, of those that were read."""
    cpu_us: float
    """For one delivery."""
    rss_kib: float
    """Memory of the server for each reader that stopped."""
    kernel_kib: float
    """The kernel's."""


@contextmanager
def stopped_readers(process: Running, count: int) -> Iterator[None]:
    """So many clients that have stopped reading, for whom bytes wait."""
    with ExitStack() as stack:
        for number in range(count):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            client.connect(("127.0.0.1", process.port))
            if number % 2:
                client.sendall(b"GET /board.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * PAGES)
            else:
                client.sendall(f"GET {DIRECT.subscribe}&topic={FLOOD} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(SETTLE_S)
        post = stack.enter_context(connection(process))
        for _ in range(4 if count else 0):
            post.request("POST", f"/topics/{FLOOD}", b"x" * 500_000)
            post.getresponse().read()
        time.sleep(SETTLE_S)
        yield


@contextmanager
def connection(process: Running) -> Iterator[HTTPConnection]:
    made = HTTPConnection("127.0.0.1", process.port, timeout=WAIT_S)
    try:
        yield made
    finally:
        made.close()


def kernel_bytes(port: int) -> int:
    """What the kernel holds to be sent, over all connections of a port."""
    told = subprocess.run(["ss", "-tmnH", "sport", "=", f":{port}"], capture_output=True, text=True, check=True).stdout
    return sum(int(forward) + int(queued) for forward, queued in re.findall(r",f(\d+),w(\d+)", told))


def run(clients: int, stopped: int, rate: float, seconds: float) -> Figures:
    """The load on a fresh server that has so many readers which stopped."""
    core, load_core = cores()
    with running(DIRECT, core) as process, pinned(load_core):
        before = usage(process.pid)
        with (
            stopped_readers(process, stopped),
            Generator(process.port, DIRECT.subscribe, DIRECT.publish, PAYLOAD) as generator,
        ):
            held, kernel = usage(process.pid), kernel_bytes(process.port)
            generator.open_streams(clients, lambda _: None)
            cpu_s = usage(process.pid).cpu_s
            load = generator.run(rate, seconds, lambda *_: None)
            cpu_s = usage(process.pid).cpu_s - cpu_s
        accounts = load.accounts
        each = max(1, stopped) * 1024
        return Figures(
            load.p50_ms,
            load.p99_ms,
            load.max_ms,
            accounts.lost + accounts.twice + accounts.disordered,
            load.closed,
            cpu_s * 1e6 / max(1, accounts.delivered),
            (held.rss_bytes - before.rss_bytes) / each,
            kernel / each,
        )


def middle(runs: Sequence[Figures], name: str) -> float:
    """The middle one of a figure."""
    return float(statistics.median(getattr(each, name) for each in runs))


@click.command()
@click.option("--clients", default=500, show_default=True, help="Streams that are read.")
@click.option("--stopped", default=200, show_default=True, help="Clients that are not.")
@click.option("--rate", default=100.0, show_default=True, help="Events a second.")
@click.option("--seconds", default=5.0, show_default=True, help="Length of a load; less than the write timeout.")
@click.option("--rounds", default=5, show_default=True, help="How often; the middle figures are shown.")
def main(clients: int, stopped: int, rate: float, seconds: float, rounds: int) -> None:
    """Measure what readers that stop cost those that do not."""
    runs: dict[int, list[Figures]] = {0: [], stopped: []}
    for round in range(rounds):
        for count in (0, stopped) if round % 2 else (stopped, 0):
            runs[count].append(run(clients, count, rate, seconds))
    click.echo(f"{clients} streams, {rate:g} events/s, {rounds} rounds of {seconds:g} s\n")
    click.echo("stopped   p50 ms  p99 ms  max ms  CPU µs  faults  closed")
    for count, found in runs.items():
        figures = "".join(f"{middle(found, name):8.1f}" for name in ("p50_ms", "p99_ms", "max_ms", "cpu_us"))
        click.echo(f"{count:7} {figures}{sum(each.faults for each in found):8}{sum(each.closed for each in found):8}")
    ratios = sorted(after.p99_ms / before.p99_ms for before, after in zip(runs[0], runs[stopped], strict=True))
    click.echo(f"\np99 with them / without, in each round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    click.echo(f"the middle one: {statistics.median(ratios):.2f}")
    rss, kernel = middle(runs[stopped], "rss_kib"), middle(runs[stopped], "kernel_kib")
    click.echo(f"held for each that stopped: {rss:.0f} KiB by the server, {kernel:.0f} KiB by the kernel")
    if any(each.faults or each.closed for found in runs.values() for each in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
