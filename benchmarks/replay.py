"""Many clients come back at once, each with another cursor: how soon each has what it missed, and at whose expense.

    .venv/bin/python benchmarks/replay.py                                   # 5,000 clients, 1,000 events each
    .venv/bin/python benchmarks/replay.py --clients 500 --servers sqlite,memory --no-restart

Streams of one topic are open, and events are published to it all the time. To another topic a history is published;
the server is killed and started again, so that nothing of it is in memory; and then all clients come back. Latency of
the live events is measured before and meanwhile. Servers without a database are not killed: they would have nothing to
give. A peer that has a history is measured in the same run.

Exits with 1 when our server lost, repeated, reordered or refused anything, and with 2 when something could not be
measured.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.contenders import DIRECT, NCHAN, SQLITE
from benchmarks.fanout import describe, machine
from benchmarks.herd import LONGEST_S, RECEIVE_BYTES, Body, Caught, Herd, History, wait
from benchmarks.measure import WAIT_S, WARM_UP_RATE, WARM_UP_S, cores
from benchmarks.publishers import EVENT_BYTES, check_acknowledgements, connect, data
from benchmarks.servers import START_S, BenchmarkError, Running, Server, family, pinned, running
from trio_sse.load import Generator, Load, LoadError

KEPT = 20_000
"""Events that are kept of each topic: more than are published."""

SETTLE_S = 0.5
LEAD = 25
"""So many live events are published before the clients come: on connections that are there, not behind the clients'."""

MIB = 1024 * 1024
PUBLISH = "/topics/history"


# -- who is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that has a history, and where that is."""

    server: Server
    live: str
    history: str
    """Where a client comes back to."""
    everything: str
    """Where one begins with the oldest event."""
    streams_publishing: bool = True
    survives: bool = False
    """Whether its history is there when it is killed and started again."""


def _ours(server: Server, *, survives: bool) -> Contender:
    env = {**server.env, "TRIO_SSE_RETENTION_EVENTS": str(KEPT)}
    history = "/events?topic=history"
    return Contender(
        replace(server, publish="/topics/live", env=env),
        "/events?topic=live",
        history,
        f"{history}&last_event_id=earliest",
        survives=survives,
    )


CONTENDERS: Mapping[str, Contender] = {
    "sqlite": _ours(SQLITE, survives=True),
    "memory": _ours(replace(DIRECT, name="trio_sse (memory)"), survives=False),
    "nchan": Contender(
        replace(NCHAN, publish="/topics/live"), "/live", "/history", "/history", streams_publishing=False
    ),
}


# -- the history -----------------------------------------------------------------------------------------------------


def publish(port: int, count: int) -> None:
    """Publish a history of so many events in one request.

    Raises:
      BenchmarkError: they were not all acknowledged.
    """
    body = b"".join(b"data: %b\n\n" % data(number) for number in range(count))
    head = (
        f"POST {PUBLISH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    answer = b""
    with connect(port) as sock:
        sock.sendall(head.encode() + body)
        while piece := sock.recv(RECEIVE_BYTES):
            answer += piece
    faults, _ = check_acknowledgements(answer, count)
    if faults:
        raise BenchmarkError(f"the history could not be published: {', '.join(faults)}")


def publish_each(port: int, count: int) -> None:
    """The same, with a request for each event.

    Raises:
      BenchmarkError: one was refused.
    """
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)) as connection:
        for number in range(count):
            connection.request("POST", PUBLISH, data(number), {"Content-Type": "text/plain"})
            response = connection.getresponse()
            response.read()
            if response.status >= 300:
                raise BenchmarkError(f"the history could not be published: {response.status}")


def read_history(port: int, path: str, count: int) -> History:
    """All of it, as one client gets it.

    Raises:
      BenchmarkError: it is not all there.
    """
    body, received = Body(), b""
    with connect(port) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())
        sock.settimeout(WAIT_S)
        try:
            while b"data: " + data(count - 1) + b"\n\n" not in received and (piece := sock.recv(RECEIVE_BYTES)):
                received += b"".join(body.feed(piece))
        except TimeoutError:
            pass
    return History.of(received.partition(b"\n\n")[2], count)


# -- one run ---------------------------------------------------------------------------------------------------------


FAULTS = ("lost", "twice", "disordered", "refused", "ended")


@dataclass(frozen=True, slots=True)
class Live:
    """What those had who did not leave."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    delivered: int
    lost: int = 0
    twice: int = 0
    disordered: int = 0
    refused: int = 0
    """Events that the server did not accept."""
    ended: int = 0
    """Streams that it closed."""

    @classmethod
    def of(cls, load: Load) -> Live:
        """From the account of a load."""
        faults = load.accounts.lost, load.accounts.twice, load.accounts.disordered, load.refused, load.closed
        return cls(load.p50_ms, load.p99_ms, load.max_ms, load.accounts.delivered, *faults)

    @property
    def faults(self) -> int:
        """Every one of them."""
        return self.lost + self.twice + self.disordered + self.refused + self.ended


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of that process of a server that has most, in bytes."""

    now: int
    peak: int
    """The most since it was last told to forget."""

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Of a process and its children."""
        found = [cls(0, 0)]
        for each in family(pid):
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{each}/status").read_text().splitlines()
                sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
                found.append(cls(*(int(sizes[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))))
        return max(found, key=lambda memory: memory.peak)

    @staticmethod
    def forget(pid: int) -> None:
        """Let the peak begin from here."""
        for each in family(pid):
            with contextlib.suppress(OSError):
                Path(f"/proc/{each}/clear_refs").write_text("5")


def bytes_read(pid: int) -> int:
    """What a server has read from files, whether they were in the page cache or not; what sockets received is not."""
    count = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            count += int(Path(f"/proc/{each}/io").read_text().split()[1])
    return count


@dataclass(frozen=True, slots=True)
class Part:
    """One server, and all that came back to it."""

    server: str
    ours: bool
    restarted: bool
    owed: int
    """Events, all clients together."""
    caught: Caught
    before_bytes: int
    peak_bytes: int
    read_bytes: int
    """From files, while the clients caught up."""
    rest: Live
    meanwhile: Live

    @property
    def per_second(self) -> float:
        """Events that the clients got in a second."""
        return self.caught.received / self.caught.seconds

    @property
    def cpu_us(self) -> float:
        """The server's processor time for one of them; that of opening the stream is in it."""
        return self.caught.cpu_s * 1e6 / max(1, self.caught.received)

    @property
    def failed(self) -> bool:
        """Whether anything was lost, came twice or out of order, or was refused."""
        wrong = self.caught.faults.all or self.caught.refused or self.caught.received != self.owed
        return bool(wrong or self.rest.faults or self.meanwhile.faults)

    def told(self) -> Mapping[str, object]:
        """All of it, for a program."""
        return {**asdict(self), **{name: getattr(self, name) for name in ("per_second", "cpu_us", "failed")}}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is the same for all servers."""

    clients: int
    events: int
    places: int
    live: int
    rate: float
    seconds: float
    restart: bool

    def run(self, contender: Contender, tell: Callable[[str], None]) -> Part:
        """A fresh server, and all that is measured of it.

        Raises:
          BenchmarkError, LoadError: it could not be done.
        """
        core, load_core = cores()
        server = contender.server
        count = self.events + self.places
        with running(server, core) as process, pinned(load_core):
            tell(f"{server.name}: publishing {count:,} events")
            (publish if contender.streams_publishing else publish_each)(process.port, count)
            history = read_history(process.port, contender.everything, count)
            restarts = self.restart and contender.survives
            if restarts:
                process.kill()
                process.start()
            herd = Herd(process.port, process.pid, contender.history, history, self.clients, self.places, load_core)
            with waiting(herd) as pipe:
                self._load(contender, process, WARM_UP_RATE, WARM_UP_S)
                time.sleep(SETTLE_S)
                tell(f"{server.name}: {self.live} live streams at rest")
                rest = self._load(contender, process, self.rate, self.seconds)
                return self._return(contender, process, herd, pipe, rest, restarts, tell)

    def _load(self, contender: Contender, process: Running, rate: float, seconds: float) -> Live:
        with self._generator(contender, process) as generator:
            generator.open_streams(self.live, lambda _: None)
            return Live.of(generator.run(rate, seconds, lambda *_: None))

    def _generator(self, contender: Contender, process: Running) -> Generator:
        return Generator(process.port, contender.live, contender.server.publish, EVENT_BYTES)

    def _return(
        self,
        contender: Contender,
        process: Running,
        herd: Herd,
        pipe: Connection,
        rest: Live,
        restarted: bool,
        tell: Callable[[str], None],
    ) -> Part:
        name = contender.server.name
        caught: list[Caught] = []
        done = 0
        with self._generator(contender, process) as generator:
            generator.open_streams(self.live, lambda _: None)
            time.sleep(SETTLE_S)

            def follow() -> None:
                nonlocal done
                try:
                    time.sleep(LEAD / self.rate)
                    pipe.send(True)
                    while not caught:
                        told = pipe.recv()
                        if isinstance(told, Caught):
                            caught.append(told)
                        else:
                            done = told
                except (EOFError, OSError):  # it failed, and has said why
                    pass
                finally:
                    generator.stop()

            read, before = bytes_read(process.pid), Memory.of(process.pid).now
            Memory.forget(process.pid)
            thread = Thread(target=follow, daemon=True)
            thread.start()
            load = generator.run(
                self.rate,
                2 * LONGEST_S,
                lambda *_: tell(f"{name}: {done:,} of {self.clients:,} have caught up"),
            )
            thread.join()
            if not caught:
                raise BenchmarkError("the clients' process failed")
            peak = Memory.of(process.pid).peak
            read = bytes_read(process.pid) - read
        server = contender.server
        return Part(server.name, server.ours, restarted, herd.owed, caught[0], before, peak, read, rest, Live.of(load))


@contextlib.contextmanager
def waiting(herd: Herd) -> Iterator[Connection]:
    """The clients in a process of their own, who come back when they are told so through a pipe.

    Raises:
      BenchmarkError: they do not say that they are there.
    """
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=wait, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    try:
        # Not among the arguments: more than a pipe holds would wait for ever for a process that fails to start.
        _answered(ours)
        ours.send(herd)
        _answered(ours)
        yield ours
    except (EOFError, BrokenPipeError):
        raise BenchmarkError("the clients' process failed") from None
    finally:
        child.kill()
        child.join()
        ours.close()


def _answered(pipe: Connection) -> None:
    if not pipe.poll(START_S):
        raise BenchmarkError("the clients' process did not start")
    pipe.recv()


# -- what is shown ---------------------------------------------------------------------------------------------------


def middle(parts: Sequence[Part], figure: Callable[[Part], float]) -> float:
    """The middle one of a figure."""
    return statistics.median(figure(part) for part in parts)


def by_server(parts: Sequence[Part]) -> Mapping[str, list[Part]]:
    """The rounds of each server."""
    found: dict[str, list[Part]] = {}
    for part in parts:
        found.setdefault(part.server, []).append(part)
    return found


def tables_of(parts: Sequence[Part], plan: Plan) -> Iterator[Table]:
    """How the clients caught up, what that took, and what the live streams had of it; medians of the rounds."""
    title = f"{plan.clients:,} clients catch up {plan.events:,} events each, from {plan.places:,} places"
    table = _table(title, ("s until\nall open", "s until\nall have all", "deliveries\na second", "faults"))
    for name, rounds in by_server(parts).items():
        table.add_row(
            name,
            f"{middle(rounds, lambda part: part.caught.opened_s):.1f}",
            f"{middle(rounds, lambda part: part.caught.seconds):.1f}",
            f"{middle(rounds, lambda part: part.per_second):,.0f}",
            f"{sum(part.caught.faults.all + sum(part.caught.refused.values()) for part in rounds):,}",
        )
    yield table
    headings = ("CPU µs\neach", "core\n%", "load's\ncore %", "MiB\nbefore", "MiB\npeak", "MiB read\nof files")
    table = _table("What it took", headings)
    for name, rounds in by_server(parts).items():
        table.add_row(
            name,
            f"{middle(rounds, lambda part: part.cpu_us):.2f}",
            f"{middle(rounds, lambda part: 100 * part.caught.cpu_s / part.caught.seconds):.0f}",
            f"{middle(rounds, lambda part: 100 * part.caught.load_cpu_s / part.caught.seconds):.0f}",
            f"{middle(rounds, lambda part: part.before_bytes / MIB):.0f}",
            f"{middle(rounds, lambda part: part.peak_bytes / MIB):.0f}",
            f"{middle(rounds, lambda part: part.read_bytes / MIB):.1f}",
        )
    yield table
    table = _table(
        f"{plan.live:,} live streams, {plan.rate:g} events/s: at rest, and meanwhile",
        ("p50\nms", "p99\n", "max\n", "p50\nms", "p99\n", "max\n", "faults"),
    )
    for name, rounds in by_server(parts).items():
        lives = [[part.rest for part in rounds], [part.meanwhile for part in rounds]]
        times = [
            statistics.median(getattr(live, figure) for live in some)
            for some in lives
            for figure in ("p50_ms", "p99_ms", "max_ms")
        ]
        faults = sum(live.faults for some in lives for live in some)
        table.add_row(name, *(_ms(each) for each in times), f"{faults:,}")
    yield table


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}"


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column()
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def remarks(parts: Sequence[Part]) -> Iterator[str]:
    """What a table has no room for."""
    for part in parts:
        faults = [f"{count:,} {name}" for name, count in asdict(part.caught.faults).items() if count]
        if faults:
            yield f"{part.server}: {', '.join(faults)}"
        for live in (part.rest, part.meanwhile):
            faults = [f"{getattr(live, name):,} {name}" for name in FAULTS if getattr(live, name)]
            if faults:
                yield f"{part.server}, live: {', '.join(faults)}"
        yield from (f"{part.server}: {count:,} clients: {why}" for why, count in part.caught.refused.items())
    if names := {part.server for part in parts if part.restarted}:
        yield f"{', '.join(sorted(names))}: killed, and started again, before the clients came"
    kernel = max((part.caught.kernel_bytes for part in parts), default=0)
    yield f"the kernel held at most {kernel / MIB:.0f} MiB for all connections, at both their ends"


# -- the command -----------------------------------------------------------------------------------------------------


def _contenders(_: click.Context, __: click.Parameter, value: str) -> list[Contender]:
    names = value.split(",")
    for name in names:
        if name not in CONTENDERS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(CONTENDERS)}")
    return [CONTENDERS[name] for name in names]


@click.command()
@click.option(
    "--servers", default=",".join(CONTENDERS), show_default=True, callback=_contenders, help="Who is measured."
)
@click.option("--clients", type=click.IntRange(1, 15_000), default=5_000, show_default=True, help="How many come back.")
@click.option("--events", type=click.IntRange(1, 15_000), default=1_000, show_default=True, help="What each missed.")
@click.option("--places", type=click.IntRange(1, 5_000), default=100, show_default=True, help="Different cursors.")
@click.option("--live", type=click.IntRange(1, 4_000), default=100, show_default=True, help="Streams that stay.")
@click.option("--rate", type=click.FloatRange(1, 1_000), default=50, show_default=True, help="Their events a second.")
@click.option("--seconds", type=click.FloatRange(0.5), default=5, show_default=True, help="How long at rest.")
@click.option("--restart/--no-restart", default=True, show_default=True, help="Kill and start who has a database.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Repeat; medians are shown.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Also write it all here.")
def main(
    servers: list[Contender],
    clients: int,
    events: int,
    places: int,
    live: int,
    rate: float,
    seconds: float,
    restart: bool,
    rounds: int,
    json_path: Path | None,
) -> None:
    """Measure how many clients catch up that come back at once.

    The first client had one event, the second two, and so on for so many different places, and round again; what
    each missed is so many events, and up to as many more as there are places.
    """
    console = Console()
    facts = machine()
    console.print(describe(facts), highlight=False, soft_wrap=True)
    plan = Plan(clients, events, places, live, rate, seconds, restart)
    parts: list[Part] = []
    faults: list[str] = []
    columns = (BarColumn(16), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        bar = progress.add_task("", total=rounds * len(servers))

        def tell(what: str) -> None:
            progress.update(bar, description=what, refresh=True)

        for number in range(rounds):
            for contender in servers if number % 2 == 0 else reversed(servers):
                name = contender.server.name
                try:
                    if why := contender.server.missing():
                        raise BenchmarkError(why)
                    parts.append(plan.run(contender, tell))
                except (BenchmarkError, LoadError, OSError, http.client.HTTPException) as error:
                    faults.append(f"NOT MEASURED: {name}: {error}")
                progress.advance(bar)
    for table in tables_of(parts, plan):
        console.print(table)
    for line in remarks(parts):
        console.print(line, highlight=False, soft_wrap=True)
    for line in faults:
        console.print(line, style="bold red", highlight=False, soft_wrap=True)
    if json_path is not None:
        told = {"machine": facts, "plan": asdict(plan), "parts": [part.told() for part in parts], "faults": faults}
        json_path.write_text(json.dumps(told, indent=1) + "\n")
    if any(part.failed and part.ours for part in parts):
        raise SystemExit(1)
    if faults:
        raise SystemExit(2)


if __name__ == "__main__":
    main()
