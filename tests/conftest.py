"""What the tests of the whole system share: a server for a module, and clients that see every byte."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, settings

from trio_sse.auth import Authority

from .serving import Server, kept_waiting_s, serving

WITHIN_S = 30.0
"""How long a test waits for what should come at once."""

STALL_S = 5.0
"""So long a busy machine may stand still; the limit of what is promised in time is twice the promise, and this."""

KEY = "an example key, long enough to sign with"

# A suite must not fail by chance: the same examples in every run, and none of them too slow.
# For others, `pytest --hypothesis-profile=default`.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

_names = itertools.count(1)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The module's server, of its APP, PROGRAM, ENV and ARGS; it must end well, and have no traceback in its log."""
    module, folder = request.module, tmp_path_factory.mktemp("hub")
    env = {"TRIO_SSE_JOURNAL": "memory:", **getattr(module, "ENV", {})}
    app = getattr(module, "APP", "trio_sse.app:app")
    if program := getattr(module, "PROGRAM", None):
        (folder / "program.py").write_text(program)
        app = "program:app"
    with serving(app, folder=folder, env=env, args=getattr(module, "ARGS", ())) as server:
        yield server
        assert server.terminate() == 0
        assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def baseline(server: Server) -> dict[str, int]:
    """What a worker of :mod:`tests.apps` holds when it is idle; to be asked for by the module's first test."""
    told = []
    for _ in range(20):
        time.sleep(0.03)  # or the connection of the question before is counted too, each time
        told.append(ask(server, "GET", "/test/worker").json)
    return {name: min(each[name] for each in told) for name in ("tasks", "descriptors", "streams")}


@pytest.fixture
def topic() -> str:
    """A topic that no other test uses."""
    return f"test/{next(_names)}"


def sign(
    subject: str | None = "ada", *, ttl_s: int = 60, publish: Sequence[str] = (), subscribe: Sequence[str] = ()
) -> str:
    """A token of the key that the servers of the tests check with."""
    return Authority(KEY).issue(subject, now=time.time(), ttl_s=ttl_s, publish=publish, subscribe=subscribe)


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def eventually(holds: Callable[[], bool], within: float = WITHIN_S) -> bool:
    """Whether it comes to hold in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


class Stopwatch:
    """The seconds since it was made, but for those in which the server or this process waited for a processor.

    So a bound is asserted of the server, and not of what else runs on the machine.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began = self._now()

    def _now(self) -> float:
        return time.monotonic() - self._server.kept_waiting_s() - kept_waiting_s("self")

    def seconds(self) -> float:
        return self._now() - self._began


@dataclass
class Answer:
    """A whole response."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which is one JSON value."""
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The body, which is one JSON value a line."""
        return [json.loads(line) for line in self.body.splitlines()]


def ask(
    server: Server,
    method: str,
    target: str,
    body: bytes | Iterator[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request, its target as it stands; a body that is an iterator goes in chunks."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WITHIN_S)
    try:
        connection.request(method, target, body, dict(headers or {}))
        with connection.getresponse() as response:
            return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def publish(server: Server, topic: str, data: str = "x", headers: Mapping[str, str] | None = None) -> str:
    """Publish one event; returns its ID."""
    answer = ask(server, "POST", f"/topics/{topic}", data.encode(), headers)
    assert answer.status == 201, answer.body
    id: str = answer.json["id"]
    return id


def last_event_id(server: Server, topic: str) -> str | None:
    """The newest ID of a public topic."""
    last: str | None = ask(server, "GET", f"/topics/{topic}").json["last_event_id"]
    return last


def metric(server: Server, name: str) -> float:
    """One number of ``/metrics``."""
    lines = ask(server, "GET", "/metrics").body.decode().splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name + " "))


def remains(server: Server, baseline: dict[str, int]) -> bool:
    """Whether the worker holds something that it did not hold when it was idle."""
    now = ask(server, "GET", "/test/worker").json
    return any(now[name] > held for name, held in baseline.items())


class Listener:
    """A subscriber, who takes one block after another; a context manager that leaves at its end."""

    def __init__(self, server: Server, target: str, headers: Mapping[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WITHIN_S)
        self._connection.request("GET", target, headers=dict(headers or {}))
        self.response = self._connection.getresponse()
        self._buffer = b""

    def take(self, end: bytes = b"\n\n") -> bytes:
        """The next bytes, up to ``end``: a block and its blank line."""
        deadline = time.monotonic() + WITHIN_S
        while end not in self._buffer:
            piece = self.response.read1(65536)
            assert piece, f"the stream ended after {self._buffer!r}"
            assert time.monotonic() < deadline, f"there was only {self._buffer!r}"
            self._buffer += piece
        taken, _, self._buffer = self._buffer.partition(end)
        return taken + end

    def event(self) -> dict[str, str]:
        """The fields of the next block, without comments; of several data lines, one text."""
        fields: dict[str, str] = {}
        for line in self.take().decode().split("\n"):
            name, _, value = line.partition(": ")
            if name and not line.startswith(":"):
                fields[name] = fields[name] + "\n" + value if name in fields else value
        return fields

    def rest(self) -> bytes:
        """Everything that still comes until the stream ends."""
        deadline = time.monotonic() + WITHIN_S
        while piece := self.response.read1(65536):
            assert time.monotonic() < deadline, f"the stream did not end after {self._buffer!r}"
            self._buffer += piece
        return self._buffer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.response.close()
        self._connection.close()


class Wire:
    """A bare TCP connection; a context manager that closes at its end."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=WITHIN_S)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def chunk(self, data: bytes) -> None:
        """Send one chunk of a chunked body; an empty one ends it."""
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def take(self, end: bytes) -> bytes:
        """The next bytes, up to ``end``."""
        deadline = time.monotonic() + WITHIN_S
        while end not in self._buffer:
            assert time.monotonic() < deadline, f"there was only {self._buffer!r}"
            self._read()
        taken, _, self._buffer = self._buffer.partition(end)
        return taken + end

    def take_bytes(self, count: int) -> bytes:
        """The next so many bytes."""
        while len(self._buffer) < count:
            self._read()
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def rest(self) -> bytes:
        """Everything that still comes until the other side closes."""
        deadline = time.monotonic() + WITHIN_S
        while piece := self.socket.recv(65536):
            assert time.monotonic() < deadline, f"the connection was not closed after {self._buffer!r}"
            self._buffer += piece
        return self._buffer

    def _read(self) -> None:
        piece = self.socket.recv(65536)
        assert piece, f"the connection was closed after {self._buffer!r}"
        self._buffer += piece

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


def kept(server: Server, topic: str) -> list[dict[str, str]]:
    """All events that are kept of a topic, whose newest is one of them."""
    last = last_event_id(server, topic)
    events: list[dict[str, str]] = []
    with Listener(server, f"/events?topic={topic}&last_event_id=earliest") as listener:
        listener.take()
        while not events or events[-1]["id"] != last:
            events.append(listener.event())
    return events


LONG = """
    failures durability shutdown stopped_readers exhaustion churn board nothing_lost model board_gap journal_files
    server_h2 benchmarks benchmarks_soak gap_in_browser nginx web_connection server_direct examples seam cli kill_shots
"""
"""The modules that take longest, by their names without ``test_``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what takes long begin first, so that at the end no worker is alone with it."""
    order = {name: place for place, name in enumerate(LONG.split())}
    items.sort(key=lambda item: order.get(item.path.stem.removeprefix("test_"), len(order)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """Say loudly, behind everything but the closing line, what was not tested for want of a package, or of root."""
    yield
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])]
    for reason in sorted({reason for reason in reasons if "apt-get install" in reason or "only root" in reason}):
        text = f"NOT TESTED ({reasons.count(reason)} tests): {reason.removeprefix('Skipped: ')}"
        terminalreporter.write_line(text, red=True, bold=True)
