"""The real Hypercorn in a subprocess, for tests of the whole system."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60

HOSTS = "x,y,z,hub,test"
"""Names that requests of the tests give in Host, to hubs of which many are in development mode."""

_held = contextlib.ExitStack()
atexit.register(_held.close)


def free_port() -> int:
    """A TCP port of the loopback address that nobody holds, and that nobody else is given while this process lives.

    The kernel gives it to no client, and no other process of the tests finds it free: it stays bound here. Who sets
    SO_REUSEADDR, as servers do, may listen on it all the same.
    """
    below_the_ephemeral = range(12_000, 32_000)
    while True:
        port = random.choice(below_the_ephemeral)
        sock = socket.socket()
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            sock.close()
            continue
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # only now: it may not share a port itself
        _held.enter_context(sock)
        return port


def kept_waiting_s(pid: int | str) -> float:
    """Seconds that the main thread of a process spent ready to run, and not running; none if the kernel doesn't say."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0


class Server:
    """One `hypercorn APP --worker-class trio` on a fixed port, which can be killed and started again."""

    def __init__(
        self,
        app: str = "trio_sse.app:app",
        *,
        folder: Path,
        env: Mapping[str, str] | None = None,
        args: tuple[str, ...] = (),
        ready_path: str = "/readyz",
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.log_path = folder / "server.log"
        self.command = [sys.executable, "-W", "error", "-m", "hypercorn", app, "--worker-class", "trio"]
        self.command += ["--bind", f"127.0.0.1:{self.port}", *args]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRIO_SSE_")}
        self.env = {**inherited, "PYTHONPATH": str(ROOT), "TRIO_SSE_HOSTS": HOSTS, **(env or {})}
        self.ready_path = ready_path
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return when it answers; the port stays the same from life to life."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + self.ready_path, timeout=10).status_code < 500:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"the server did not come up:\n{self.log()}")

    def log(self) -> str:
        """All that any life of the server wrote to its standard output and error."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def workers(self) -> list[int]:
        """Process ids of the workers: those children of the parent that are not its resource tracker."""
        assert self.process is not None
        found = []
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):  # it has just gone
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if command and b"resource_tracker" not in command:
                    found.append(int(pid))
        return found

    def kept_waiting_s(self) -> float:
        """Seconds for which the workers could have run so far, while other programs had the processors."""
        return sum(kept_waiting_s(pid) for pid in self.workers())

    def kill(self) -> None:
        """SIGKILL to the parent and every worker at once, as a power cut would."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def terminate(self, *, within: float = 30) -> int:
        """SIGTERM to the parent; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(within)


class SecureServer(Server):
    """The same, and on another port over TLS, with a certificate of its own."""

    def __init__(
        self,
        app: str = "trio_sse.app:app",
        *,
        folder: Path,
        env: Mapping[str, str] | None = None,
        args: tuple[str, ...] = (),
    ) -> None:
        super().__init__(app, folder=folder, env=env, args=args)
        self.secure_port = free_port()
        self.certificate = make_certificate(folder)
        name, place = str(self.certificate), self.command.index("--bind")
        keys = ["--certfile", name, "--keyfile", name]
        self.command[place : place + 1] = [*keys, "--bind", f"127.0.0.1:{self.secure_port}", "--insecure-bind"]

    def trusted(self, *protocols: str) -> ssl.SSLContext:
        """What a client trusts it with, and speaks."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context


AnyServer = TypeVar("AnyServer", bound=Server)


@contextlib.contextmanager
def running(server: AnyServer) -> Iterator[AnyServer]:
    """Start a server for the length of a `with` block; afterwards nothing of it is left."""
    try:
        server.start()
        yield server
    finally:
        server.kill()


def gone(pid: int) -> bool:
    """Whether a process has ended; one that only waits to be reaped has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def serving(
    app: str = "trio_sse.app:app",
    *,
    folder: Path,
    env: Mapping[str, str] | None = None,
    args: tuple[str, ...] = (),
    ready_path: str = "/readyz",
) -> Iterator[Server]:
    """A running server for the length of a `with` block; afterwards nothing of it is left."""
    with running(Server(app, folder=folder, env=env, args=args, ready_path=ready_path)) as server:
        yield server


def make_certificate(folder: Path) -> Path:
    """A certificate for localhost that vouches for itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = folder / "localhost.pem"
    path.write_bytes(
        certificate.public_bytes(encoding) + key.private_bytes(encoding, form, serialization.NoEncryption())
    )
    return path
