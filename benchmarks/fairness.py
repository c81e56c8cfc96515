"""Fairness: how long one caller's POST takes beside others who publish as fast as TCP takes it.

Run it as ``python benchmarks/fairness.py`` or ``python -m benchmarks.fairness``. Thirty-two connections stream events
into a fresh server without a pause, and read what it acknowledges; a caller on a connection of its own posts an event
every twenty milliseconds, and its answers are timed. Once nobody else publishes, for comparison.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.publish import JOURNALS
from benchmarks.publishers import KEY, WAIT_S, connect, read_answer
from benchmarks.servers import BenchmarkError, Running, Server, pinned, running, usage
from trio_sse import Authority

TOPIC = "bench"
FLOODS = 32
"""Connections that publish without a pause."""

PAUSE_S = 0.02
"""Seconds between two POSTs that are timed."""

SETTLE_S = 0.5
"""Seconds for which the flood runs before the first is."""

CHUNK_BYTES = 32 * 1024
"""Bytes of one HTTP chunk of a flood."""

SIZES = {"tiny": 0, "small": 120, "large": 16 * 1024}
"""Bytes of data in one event of a flood."""

CALLERS = {
    "tokens": (True, True),
    "no tokens beside a token": (False, True),
    "no tokens beside none": (False, False),
}
"""Whether those who flood have tokens, one each, and whether the one that is timed has."""


@dataclass(frozen=True, slots=True)
class Run:
    """The POSTs of one caller beside one kind of flood."""

    journal: str
    callers: str
    flood: str
    posts: int
    p50_ms: float
    p99_ms: float
    most_ms: float
    cpu_p99_ms: float
    """Processor time that the server used between a POST and its answer: what it takes on a machine at rest."""
    refused: int
    """POSTs that were answered with anything but 201."""


def head(subject: str | None, *lines: str) -> bytes:
    """The request line and headers of a POST, with a token of this subject, or without one."""
    request = [f"POST /topics/{TOPIC} HTTP/1.1", "Host: bench"]
    if subject is not None:
        token = Authority(KEY).issue(subject, now=time.time(), ttl_s=3600, publish=[TOPIC])
        request.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*request, *lines, "", ""]).encode()


def flood(port: int, have_tokens: bool, size: int) -> None:
    """Publish on all connections as fast as they take it, until killed."""
    event = b"data: " + b"x" * size + b"\n\n"
    body = event * max(1, CHUNK_BYTES // len(event))
    chunk = b"%x\r\n%b\r\n" % (len(body), body)
    poll, socks, waiting = select.epoll(), {}, {}
    for number in range(FLOODS):
        sock = connect(port)
        subject = f"flood{number}" if have_tokens else None
        sock.sendall(head(subject, "Content-Type: text/event-stream", "Transfer-Encoding: chunked"))
        sock.setblocking(False)
        socks[sock.fileno()], waiting[sock.fileno()] = sock, memoryview(chunk)
        poll.register(sock, select.EPOLLIN | select.EPOLLOUT)
    while True:
        for number, ready in poll.poll():
            if ready & ~select.EPOLLOUT and not socks[number].recv(256 * 1024):
                raise BenchmarkError("the server ended a stream")
            if ready & select.EPOLLOUT:
                waiting[number] = waiting[number][socks[number].send(waiting[number]) :] or memoryview(chunk)


@contextlib.contextmanager
def flooding(port: int, have_tokens: bool, size: int | None) -> Iterator[None]:
    """A flood of events of this size, or none, for the length of the block.

    Raises:
      BenchmarkError: it ended before the block did.
    """
    if size is None:
        yield
        return
    process = multiprocessing.get_context("fork").Process(target=flood, args=(port, have_tokens, size), daemon=True)
    process.start()
    try:
        time.sleep(SETTLE_S)
        yield
        if not process.is_alive():
            raise BenchmarkError("those who flood were sent away")
    finally:
        process.kill()
        process.join()


def post(server: Running, subject: str | None, seconds: float) -> tuple[list[float], list[float], int]:
    """Post an event again and again, and time the answers; how many were no 201.

    How many seconds passed until each answer, sorted; and how many of the server's processor time, sorted.
    """
    request = head(subject, "Content-Type: text/plain", "Content-Length: 5") + b"hello"
    waited, used, refused = [], [], 0
    with contextlib.closing(connect(server.port)) as sock:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began, before = time.perf_counter(), usage(server.pid).cpu_s
            sock.sendall(request)
            status, _ = read_answer(sock)
            waited.append(time.perf_counter() - began)
            used.append(usage(server.pid).cpu_s - before)
            refused += status != 201
            time.sleep(PAUSE_S)
    return sorted(waited), sorted(used), refused


def share(times: Sequence[float], of_all: float) -> float:
    """What so many of all times are not above, in milliseconds."""
    return times[min(len(times) - 1, int(len(times) * of_all))] * 1e3


def measure(journal: str, callers: str, size: str | None, seconds: float) -> Run:
    """One run, on a fresh server with a core of its own.

    Raises:
      BenchmarkError: it could not be made; or a POST was not answered in half a minute.
    """
    have_tokens, has_token = CALLERS[callers]
    env = {
        "TRIO_SSE_JOURNAL": JOURNALS[journal],
        "TRIO_SSE_JWT_KEY": KEY,
        "TRIO_SSE_ANONYMOUS": "subscribe,publish",
    }
    cores = sorted(os.sched_getaffinity(0))
    with (
        running(Server(journal, "trio_sse.app:app", "", "", "/readyz", True, env), cores[0]) as server,
        pinned(cores[-1]),
        flooding(server.port, have_tokens, None if size is None else SIZES[size]),
    ):
        try:
            waited, used, refused = post(server, "ada" if has_token else None, seconds)
        except TimeoutError:
            raise BenchmarkError(f"beside {callers} and {size} events a POST had no answer in {WAIT_S:g} s") from None
    return Run(
        journal,
        callers,
        size or "none",
        len(waited),
        share(waited, 0.5),
        share(waited, 0.99),
        waited[-1] * 1e3,
        share(used, 0.99),
        refused,
    )


def table_of(runs: Sequence[Run]) -> Table:
    """A row for each run."""
    title = f"A POST beside {FLOODS} connections that publish without a pause, milliseconds"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("journal", "flood of", "events"):
        table.add_column(name)
    for name in ("POSTs", "p50", "p99", "most", "CPU p99"):
        table.add_column(name, justify="right")
    for run in runs:
        figures = (f"{figure:.1f}" for figure in (run.p50_ms, run.p99_ms, run.most_ms, run.cpu_p99_ms))
        style = "red" if run.refused else None
        table.add_row(run.journal, run.callers, run.flood, f"{run.posts}", *figures, style=style)
    return table


@click.command()
@click.option("--journal", type=click.Choice([*JOURNALS, "all"]), default="all", show_default=True)
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=5, show_default=True, help="Length of a run.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Also write it all here.")
def main(journal: str, seconds: float, json_path: Path | None) -> None:
    """Measure how long a POST takes beside others who publish without a pause.

    Exits with 1 when a POST was refused, and with 2 when it could not be measured.
    """
    runs: list[Run] = []
    try:
        for name in JOURNALS if journal == "all" else [journal]:
            kinds = [(callers, size) for callers in CALLERS for size in SIZES]
            for callers, size in [("tokens", None), *kinds]:
                runs.append(measure(name, callers, size, seconds))
                click.echo(f"{name}, {callers}, {size}: p99 {runs[-1].p99_ms:.1f} ms", err=True)
    except BenchmarkError as error:
        click.echo(str(error), err=True)
        raise SystemExit(2) from None
    Console().print(table_of(runs))
    if json_path is not None:
        json_path.write_text(json.dumps({"runs": [asdict(run) for run in runs]}, indent=2) + "\n")
    if any(run.refused for run in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
