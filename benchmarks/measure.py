"""The measurements: a server on one core, the load on another, one at a time."""

from __future__ import annotations

import http.client
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from benchmarks.results import POSTED, STREAMED, Opening, Return, Run, opening_of, run_of
from benchmarks.servers import Running, Server, pinned, running, usage
from trio_sse.load import Generator

SETTLE_S = 0.5
"""After so long without an event a server has done all that an opening left to do."""

WARM_UP_CLIENTS, WARM_UP_RATE, WARM_UP_S = 20, 500, 0.1

SATURATION_TRIALS = 10
GAIN = 1.03
"""A rate is worth raising while this brings so much more."""

CLOSE_ENOUGH = 1.15
"""Between the best rate and the first with a loss there is no more to be found."""

WAIT_S = 10

Tell = Callable[[str], None]
"""Is told what is happening."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What is the same for all servers, in one round."""

    seconds: float
    """The length of one load."""
    payload: int
    """Bytes of data in an event."""
    tell: Tell
    round: int = 0

    def serve(self, server: Server, clients: int, rates: Sequence[float]) -> tuple[Opening, list[Run]]:
        """Streams of a fresh server, opened and loaded at rising rates, until it cannot follow.

        Raises:
          BenchmarkError, LoadError: it could not be done.
        """
        core, load_core = cores()
        opening: Opening | None = None
        runs: list[Run] = []
        with running(server, core) as process, pinned(load_core):
            self.warm_up(process)
            for rate in rates:
                with self.generator(process) as generator:
                    opened = self.opened(generator, process, clients)
                    opening = opening or opened
                    runs.append(self.load(generator, process, clients, rate))
                if runs[-1].saturated:
                    break
        assert opening is not None
        return opening, runs

    def peak(self, server: Server, clients: int, rate: float, way: str = POSTED) -> Run:
        """The most deliveries a second with nothing lost: the rate is raised until it brings no more.

        Raises:
          BenchmarkError, LoadError: it could not be done.
        """
        core, load_core = cores()
        best: Run | None = None
        lossy, in_vain = math.inf, 0
        with running(server, core) as process, pinned(load_core):
            for _ in range(SATURATION_TRIALS):
                with self.generator(process, way) as generator:
                    generator.open_streams(clients, self.tell_open(process, clients))
                    run = self.load(generator, process, clients, rate, way)
                if run.failed:
                    lossy = rate
                else:
                    in_vain = 0 if best is None or run.per_second > GAIN * best.per_second else in_vain + 1
                    if best is None or run.per_second > best.per_second:
                        best = run
                    if in_vain == 2 or (in_vain and run.is_behind) or run.held > run.offered / 2:
                        break
                if lossy == math.inf:
                    rate *= 2
                elif best is None:
                    rate /= 2
                elif lossy < CLOSE_ENOUGH * best.rate:
                    break
                else:
                    rate = math.sqrt(lossy * best.rate)
        return best or run

    def come_back(self, server: Server, clients: int) -> Return:
        """Kill a server that has clients, start it again, and let them all come back at once.

        Raises:
          BenchmarkError, LoadError: it could not be done.
        """
        core, load_core = cores()
        with running(server, core) as process, pinned(load_core):
            with self.generator(process) as generator:
                self.opened(generator, process, clients)
                path = server.subscribe
                if server.resumes:
                    path += f"{'&' if '?' in path else '?'}last_event_id={quote(last_event_id(process))}"
                process.kill()
                began = time.monotonic()
                process.start()
                started_s = time.monotonic() - began
            with Generator(process.port, path, server.publish, self.payload) as generator:
                generator.open_streams(clients, self.tell_open(process, clients))
                return Return(server.name, server.ours, clients, started_s, time.monotonic() - began)

    def warm_up(self, process: Running) -> None:
        """Let it do once what will be measured: Python and Go are slower at first."""
        with self.generator(process) as generator:
            generator.open_streams(WARM_UP_CLIENTS, lambda _: None)
            generator.run(WARM_UP_RATE, WARM_UP_S, lambda *_: None)

    # -- the parts of it --------------------------------------------------------------------------------------

    def generator(self, process: Running, way: str = POSTED) -> Generator:
        """The load for a server."""
        server = process.server
        assert way == POSTED or server.streams_publishing
        return Generator(
            process.port,
            server.subscribe,
            server.publish,
            self.payload,
            publish_mode="stream" if way == STREAMED else "post",
        )

    def tell_open(self, process: Running, clients: int) -> Callable[[int], None]:
        """What a generator's opening tells."""
        return lambda count: self.tell(f"{process.server.name}: {count:,} of {clients:,} streams open")

    def opened(self, generator: Generator, process: Running, clients: int) -> Opening:
        """Open the streams, and wait until the server has nothing more to do."""
        before, began = usage(process.pid), time.monotonic()
        generator.open_streams(clients, self.tell_open(process, clients))
        seconds = time.monotonic() - began
        time.sleep(SETTLE_S)
        return opening_of(
            process.server,
            round=self.round,
            clients=clients,
            before=before,
            after=usage(process.pid),
            seconds=seconds,
        )

    def load(self, generator: Generator, process: Running, clients: int, rate: float, way: str = POSTED) -> Run:
        """Publish at a rate, and wait until everything has arrived or is lost."""
        name = process.server.name

        def tell(elapsed_s: float, count: int) -> None:
            self.tell(f"{name}, {clients:,} x {rate:,.0f}/s: {count / max(elapsed_s, 0.1):,.0f} deliveries/s")

        before = usage(process.pid)
        load = generator.run(rate, self.seconds, tell)
        cpu_s = usage(process.pid).cpu_s - before.cpu_s
        return run_of(process.server, round=self.round, clients=clients, rate=rate, way=way, load=load, cpu_s=cpu_s)


def cores() -> tuple[int, int]:
    """The server's core, and the load's: another one, where there is one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def last_event_id(process: Running) -> str:
    """Publish an event, and return the ID that its subscribers get."""
    server = process.server
    reader, publisher = (http.client.HTTPConnection("127.0.0.1", process.port, timeout=WAIT_S) for _ in range(2))
    try:
        reader.request("GET", server.subscribe, headers={"Accept": "text/event-stream"})
        stream = reader.getresponse()
        publisher.request("POST", server.publish, b"the last", {"Content-Type": "text/plain"})
        publisher.getresponse().read()
        id = b""
        while not (line := stream.readline()).startswith(b"data: the last"):
            id = line[4:].strip() if line.startswith(b"id: ") else id
        # An ID stands before or behind the data of its event; every server here writes it before.
        return id.decode()
    finally:
        reader.close()
        publisher.close()
