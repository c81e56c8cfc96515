"""What the heartbeats of many idle streams cost, whether any comes too late, and whether events wait for them.

    .venv/bin/python benchmarks/heartbeats.py                                    # 10,000 streams, two minutes
    .venv/bin/python benchmarks/heartbeats.py --streams 300 --heartbeat 1 --seconds 5

The streams are opened at a fresh server, and nothing is published to them. Then, as long again, events are published
to some clients of another topic, whose latency is measured. It is done twice: with heartbeats, and with none to speak
of; so what the one costs more than the other is the heartbeats. The server has one core, and the clients another.

Exits with 1 when a stream was silent for as long as is promised that none is, and with 2 when an event was lost.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.contenders import DIRECT
from benchmarks.fanout import describe, machine
from benchmarks.measure import WAIT_S, cores
from benchmarks.servers import Running, pinned, running, usage
from trio_sse.load import Generator, Load

NEVER_S = 24 * 3600
IDLE = "/events?topic=idle/nothing"
BEAT = b"\n:\n"
"""A heartbeat, and the end of the chunk's length before it, without the carriage return between the two."""

WARM_UP_S, SETTLE_S = 0.2, 1.0
WINDOW = 200
"""So many streams are opened together."""


# -- the streams -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """What the idle streams' clients heard since they were last asked."""

    beats: int
    worst_s: float
    """The longest time that any of them heard nothing, the one that has not ended among them."""
    closed: int
    """How many streams the server ended."""


def listen(port: int, streams: int, core: int, pipe: Connection) -> None:
    """Beside all else: open the streams, and tell what was heard whenever somebody sends true, until it is false."""
    with pinned(core), contextlib.ExitStack() as stack, select.epoll() as poll:
        poll.register(pipe.fileno(), select.EPOLLIN)
        clients = _opened(port, streams, poll)
        for client in clients.values():
            stack.enter_context(client)
        heard_at = dict.fromkeys(clients, time.monotonic())
        pipe.send(len(clients))
        beats, worst_s, closed = 0, 0.0, 0
        while True:
            for number, _ in poll.poll():
                if number == pipe.fileno():
                    if not pipe.recv():
                        return
                    now = time.monotonic()
                    pipe.send(Heard(beats, max([worst_s, *(now - at for at in heard_at.values())]), closed))
                    beats, worst_s = 0, 0.0
                    continue
                try:
                    data = clients[number].recv(65536)
                except ConnectionError:
                    data = b""
                now = time.monotonic()
                worst_s = max(worst_s, now - heard_at[number])
                heard_at[number] = now
                beats += data.replace(b"\r", b"").count(BEAT)
                if not data:
                    closed += 1
                    poll.unregister(number)
                    del heard_at[number]


def _opened(port: int, streams: int, poll: select.epoll) -> dict[int, socket.socket]:
    """The streams by their number; each has had the first bytes of its body."""
    clients: dict[int, socket.socket] = {}
    request = f"GET {IDLE} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    while len(clients) < streams:
        fresh = [
            socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
            for _ in range(min(WINDOW, streams - len(clients)))
        ]
        for client in fresh:
            client.sendall(request)
        for client in fresh:
            received = b""
            while b"\nid: " not in received:
                piece = client.recv(65536)
                if not piece:
                    raise SystemExit(f"a stream was refused: {received[-200:]!r}")
                received += piece
            client.setblocking(False)
            clients[client.fileno()] = client
            poll.register(client.fileno(), select.EPOLLIN)
    return clients


# -- one run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """One server with its streams: at rest, and while others are served."""

    heartbeat_s: float
    idle_cpu_s: float
    """The processor time of the server while nothing happened but heartbeats, in ``seconds``."""
    idle: Heard
    busy: Heard
    p50_ms: float
    p99_ms: float
    max_ms: float
    lost: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is the same in both runs."""

    streams: int
    seconds: float
    clients: int
    rate: float

    def run(self, heartbeat_s: float, tell: Callable[[str], None]) -> Part:
        """A fresh server, and all that is measured of it."""
        server_core, load_core = cores()
        env = {**DIRECT.env, "TRIO_SSE_HEARTBEAT_S": str(heartbeat_s)}
        what = "with heartbeats" if heartbeat_s < NEVER_S else "without"
        ours, theirs = multiprocessing.Pipe()
        with running(replace(DIRECT, env=env), server_core) as process, pinned(load_core):
            told = (process.port, self.streams, load_core, theirs)
            child = multiprocessing.get_context("spawn").Process(target=listen, args=told, daemon=True)
            child.start()
            theirs.close()
            try:
                tell(f"{what}: opening {self.streams:,} streams")
                ours.recv()
                with Generator(process.port, "/events?topic=other", "/topics/other", 120) as generator:
                    generator.open_streams(self.clients, lambda _: None)
                    generator.run(self.rate, WARM_UP_S, lambda *_: None)
                    time.sleep(SETTLE_S)
                    tell(f"{what}: {self.seconds:.0f} s of nothing")
                    _ask(ours)
                    idle_cpu_s, idle = self._wait(process, ours)
                    tell(f"{what}: {self.seconds:.0f} s of events to {self.clients} others")
                    load = generator.run(self.rate, self.seconds, lambda *_: None)
                    busy = _ask(ours)
                    return _part_of(heartbeat_s, idle_cpu_s, idle, busy, load, self.seconds)
            finally:
                child.kill()
                child.join()
                ours.close()

    def _wait(self, process: Running, pipe: Connection) -> tuple[float, Heard]:
        before = usage(process.pid)
        time.sleep(self.seconds)
        heard = _ask(pipe)
        return usage(process.pid).cpu_s - before.cpu_s, heard


def _ask(pipe: Connection) -> Heard:
    pipe.send(True)
    heard = pipe.recv()
    assert isinstance(heard, Heard)
    return heard


def _part_of(heartbeat_s: float, idle_cpu_s: float, idle: Heard, busy: Heard, load: Load, seconds: float) -> Part:
    times = load.p50_ms, load.p99_ms, load.max_ms
    return Part(heartbeat_s, idle_cpu_s, idle, busy, *times, load.accounts.lost, seconds)


# -- both together ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Results:
    """Runs with heartbeats and without, in turn."""

    streams: int
    heartbeat_s: float
    beating: list[Part]
    silent: list[Part]

    @property
    def worst_s(self) -> float:
        """The longest silence of any stream in any run with heartbeats."""
        return max(heard.worst_s for part in self.beating for heard in (part.idle, part.busy))

    @property
    def beats(self) -> int:
        return sum(part.idle.beats for part in self.beating)

    @property
    def us_a_beat(self) -> float:
        """Processor time of one heartbeat, in microseconds."""
        more_s = sum(part.idle_cpu_s for part in self.beating) - sum(part.idle_cpu_s for part in self.silent)
        return more_s * 1e6 / max(1, self.beats)

    @property
    def core_percent(self) -> float:
        """What all heartbeats use of a core."""
        return self.us_a_beat * self.beats / 1e4 / sum(part.seconds for part in self.beating)

    @property
    def closed(self) -> int:
        return sum(part.busy.closed for part in (*self.beating, *self.silent))

    @property
    def lost(self) -> int:
        return sum(part.lost for part in (*self.beating, *self.silent))

    def told(self) -> Mapping[str, object]:
        """Everything, for a program."""
        names = ("worst_s", "beats", "us_a_beat", "core_percent", "closed", "lost")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


def table_of(results: Results) -> Table:
    """What events had to wait, with heartbeats and without; medians of the rounds."""
    table = Table(title="events to others", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("", "server's core, idle %", "p50 ms", "p99 ms", "max ms", "lost"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, parts in (("with heartbeats", results.beating), ("without", results.silent)):
        core = statistics.median(100 * part.idle_cpu_s / part.seconds for part in parts)
        times = (statistics.median(getattr(part, each) for part in parts) for each in ("p50_ms", "p99_ms", "max_ms"))
        table.add_row(name, f"{core:.2f}", *(f"{each:.1f}" for each in times), str(sum(part.lost for part in parts)))
    return table


@click.command()
@click.option("--streams", type=click.IntRange(1, 19_000), default=10_000, show_default=True, help="How many are idle.")
@click.option("--heartbeat", "heartbeat_s", type=click.FloatRange(0.2), default=15, show_default=True, help="Seconds.")
@click.option("--seconds", type=click.FloatRange(1), default=30, show_default=True, help="Length of each part.")
@click.option("--clients", type=click.IntRange(1), default=100, show_default=True, help="Of the other topic.")
@click.option("--rate", type=click.FloatRange(1), default=50, show_default=True, help="Its events a second.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Repeat; medians are shown.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Also write it all here.")
def main(
    streams: int,
    heartbeat_s: float,
    seconds: float,
    clients: int,
    rate: float,
    rounds: int,
    json_path: Path | None,
) -> None:
    """Measure the heartbeats of many idle streams."""
    console = Console()
    facts = machine()
    console.print(describe(facts), highlight=False, soft_wrap=True)
    results = Results(streams, heartbeat_s, [], [])
    plan = Plan(streams, seconds, clients, rate)
    columns = (BarColumn(16), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        bar = progress.add_task("", total=rounds * 2)

        def tell(what: str) -> None:
            progress.update(bar, description=what, refresh=True)

        for _ in range(rounds):
            for parts, beats_s in ((results.silent, NEVER_S), (results.beating, heartbeat_s)):
                parts.append(plan.run(beats_s, tell))
                progress.advance(bar)
    console.print(table_of(results))
    console.print(
        f"{streams:,} streams, a heartbeat each in {heartbeat_s:g} s: {results.beats:,} heartbeats of "
        f"{results.us_a_beat:.1f} µs, {results.core_percent:.2f} % of a core\n"
        f"the longest silence of a stream: {results.worst_s:.2f} s",
        highlight=False,
    )
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": facts, **results.told()}, indent=1) + "\n")
    if results.worst_s >= heartbeat_s:
        console.print(f"TOO LONG: a stream may be silent for {heartbeat_s:g} s", style="bold red", highlight=False)
    if results.closed:
        console.print(f"ENDED: {results.closed} streams", style="bold red", highlight=False)
    if results.worst_s >= heartbeat_s or results.closed:
        raise SystemExit(1)
    if results.lost:
        raise SystemExit(2)


if __name__ == "__main__":
    main()
