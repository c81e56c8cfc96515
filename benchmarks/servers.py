"""The servers that are compared, each as the process a user would start, and what they cost (``/proc``)."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_S = 30
STOP_S = 15
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class BenchmarkError(Exception):
    """The run could not be made; the message says why, to a person."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server to be measured."""

    name: str
    app: str
    subscribe: str
    publish: str
    ready: str
    ours: bool
    env: Mapping[str, str] = field(default_factory=dict)


def _hub(journal: str) -> Server:
    env = {"TRIO_SSE_JOURNAL": journal}
    name = f"ours, {journal.partition(':')[0]}"
    return Server(name, "trio_sse.app:app", "/events?topic=bench", "/topics/bench", "/readyz", True, env)


MEMORY = _hub("memory:")
SQLITE = _hub("sqlite:bench.db")
OBVIOUS = Server("obvious way", "benchmarks.obvious:app", "/events", "/publish", "/", False)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    pid: int
    port: int


@contextlib.contextmanager
def running(server: Server, core: int) -> Iterator[Running]:
    """A server on a free port, its processes pinned to one core; afterwards nothing of it is left.

    Raises:
      BenchmarkError: it did not answer; the message holds what it wrote.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    command = [sys.executable, "-m", "hypercorn", server.app, "--worker-class", "trio"]
    command += ["--bind", f"127.0.0.1:{port}"]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TRIO_SSE_")}
    env = {**inherited, "PYTHONPATH": str(ROOT), **server.env}
    with tempfile.TemporaryDirectory(prefix="fanout-") as folder:
        log = Path(folder, "server.log")
        with log.open("wb") as output, pinned(core):  # the child inherits the core
            process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
            )
        try:
            if not _wait_ready(process, port, server.ready):
                raise BenchmarkError(f"{server.name} did not start:\n{log.read_text(errors='replace')}")
            yield Running(process.pid, port)
        finally:
            _stop(process)


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this thread, and the processes it starts, on one core for the length of the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _wait_ready(process: subprocess.Popen[bytes], port: int, path: str) -> bool:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", path)
            if connection.getresponse().status < 500:
                return True
        time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children have used."""

    cpu_s: float
    """Processor time, user and system."""
    rss_bytes: int
    """Memory that is resident now; what they share counts for each, so look at differences."""


def usage(pid: int) -> Usage:
    """The usage of a process and everything it started that still lives."""
    cpu_s, rss_bytes = 0.0, 0
    waiting = [pid]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            cpu_s += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
            rss_bytes += int(fields[21]) * PAGE_BYTES
            for thread in (process / "task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]
    return Usage(cpu_s, rss_bytes)
