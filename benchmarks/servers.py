"""A server that is measured: the process a user would start, pinned to a core, and what it costs."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_S = 30
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class BenchmarkError(Exception):
    """The run could not be made; the message says why, to a person."""


def hypercorn(app: str, port: int, folder: Path) -> Sequence[str]:
    """The command that serves an ASGI application with Hypercorn's Trio worker."""
    return [sys.executable, "-m", "hypercorn", app, "--worker-class", "trio", "--bind", f"127.0.0.1:{port}"]


def nothing() -> str:
    """What is missing of a server that came with us."""
    return ""


@dataclass(frozen=True, slots=True)
class Server:
    """A server to be measured."""

    name: str
    app: str
    """What it serves; for ``command``."""
    subscribe: str
    publish: str
    ready: str
    ours: bool
    env: Mapping[str, str] = field(default_factory=dict)
    command: Callable[[str, int, Path], Sequence[str]] = hypercorn
    """What starts it on a port; an empty folder is its working directory."""
    missing: Callable[[], str] = nothing
    """Prepares what it needs; why that cannot be, or an empty text."""
    resumes: bool = False
    """Whether its events have IDs, and a client that comes back says which it had last."""
    streams_publishing: bool = False
    """Whether it is also measured with many events published in one request."""


class Running:
    """A server that answers."""

    def __init__(self, server: Server, core: int, folder: Path) -> None:
        self.server = server
        self._core = core
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._holder = socket.socket()  # of its port, so that nobody is given it before it is started or meanwhile
        self._holder.bind(("127.0.0.1", 0))
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.port: int = self._holder.getsockname()[1]

    @property
    def pid(self) -> int:
        """The process that was started; others may be its children."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, on the same port as before, and return when it answers.

        Raises:
          BenchmarkError: it did not; the message holds what it wrote.
        """
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TRIO_SSE_")}
        env = {**inherited, "PYTHONPATH": str(ROOT), **self.server.env}
        command = self.server.command(self.server.app, self.port, self._folder)
        log = self._folder / "server.log"
        with log.open("wb") as output, pinned(self._core):  # the child inherits the core
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=env, stdout=output, stderr=output, start_new_session=True
            )
        if not self._wait_ready(self._process):
            raise BenchmarkError(f"{self.server.name} did not start:\n{log.read_text(errors='replace')}")

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", self.server.ready)
                if connection.getresponse().status < 500:
                    return True
            time.sleep(0.02)
        return False

    def kill(self) -> None:
        """End it and all its processes at once, as a power cut would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """End it, and give up its port."""
        self.kill()
        self._holder.close()


@contextlib.contextmanager
def running(server: Server, core: int) -> Iterator[Running]:
    """A server on a free port, its processes pinned to one core; afterwards nothing of it is left.

    Raises:
      BenchmarkError: it did not answer; the message holds what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        process = Running(server, core, Path(folder))
        try:
            process.start()
            yield process
        finally:
            process.close()


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this thread, and the processes it starts, on one core for the length of the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children have used."""

    cpu_s: float
    """Processor time, user and system."""
    rss_bytes: int
    """Memory that is resident now; what they share counts for each, so look at differences."""


def usage(pid: int) -> Usage:
    """The usage of a process and everything it started that still lives."""
    cpu_ns, rss_bytes = 0, 0
    for each in family(pid):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # The same user and system time as in /proc/PID/stat, which rounds it to a hundredth of a second.
            cpu_ns += time.clock_gettime_ns(_cpu_clock(each))
            rss_bytes += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * PAGE_BYTES
    return Usage(cpu_ns / 1e9, rss_bytes)


def family(pid: int) -> Iterator[int]:
    """A process and everything it started that still lives."""
    waiting = [pid]
    while waiting:
        yield (pid := waiting.pop())
        with contextlib.suppress(OSError):  # it ended meanwhile
            for thread in Path(f"/proc/{pid}/task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]


def _cpu_clock(pid: int) -> int:
    """The clock that counts a process's processor time; what the C library's clock_getcpuclockid gives."""
    return (~pid << 3) | 2
