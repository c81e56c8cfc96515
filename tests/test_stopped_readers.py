"""Readers that stop, seen from outside: each is let go in time, holds little meanwhile, and delays nobody."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded
from h2.settings import SettingCodes, Settings

from tests.conftest import STALL_S, WITHIN_S, Listener, ask, eventually, publish
from tests.serving import SecureServer, free_port, resident, running, serving

KIB, MIB = 1024, 1024 * 1024
WRITE_TIMEOUT_S = HEARTBEAT_S = 1.0
RELEASED_S = 2 * 1.25 * WRITE_TIMEOUT_S + STALL_S
"""The bound is a write timeout and a quarter of it; a test gives it twice, and a busy machine some time."""

PATIENT_S = 3.0
RELEASED_BY_PATIENT_S = 2 * 1.25 * PATIENT_S + STALL_S

SEND_BUFFER = 256 * KIB
"""What the kernel may keep for one connection, and the last piece that it took may be more by one segment."""

SEGMENT = 64 * KIB + 4 * KIB

WAYS = ("http/1.1", "tls", "h2", "h2 over tls")
EVERY_WAY = pytest.mark.parametrize("way", WAYS)
SMALL = 4096
"""A receive buffer: the client's kernel takes no more than this for it."""


class Serving:
    """One server, in plain text and over TLS; requests of the tests themselves go in plain text."""

    def __init__(self, folder: Path, **env: str) -> None:
        settings = {"TRIO_SSE_JOURNAL": "memory:", **env}
        self.server = SecureServer("tests.apps:app", folder=folder, env=settings)
        self.ports = {"tls": self.server.secure_port, "plain": self.server.port}

    def worker(self) -> dict[str, int]:
        """What the worker holds."""
        told: dict[str, int] = ask(self.server, "GET", "/test/worker").json
        return told


@contextlib.contextmanager
def served(folder: Path, **env: str) -> Iterator[Serving]:
    here = Serving(folder, **env)
    with running(here.server):
        yield here
        assert "Traceback" not in here.server.log()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    env = {"WRITE_TIMEOUT_S": str(WRITE_TIMEOUT_S), "HEARTBEAT_S": str(HEARTBEAT_S), "RETENTION_BYTES": str(8 * MIB)}
    settings = {f"TRIO_SSE_{name}": value for name, value in env.items()}
    with served(tmp_path_factory.mktemp("hub"), **settings) as here:
        yield here


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """For clients that must be there together, or go on reading, though a busy machine stands still now and then."""
    env = {"TRIO_SSE_WRITE_TIMEOUT_S": str(PATIENT_S), "TRIO_SSE_RETENTION_BYTES": str(8 * MIB)}
    with served(tmp_path_factory.mktemp("patient"), **env) as here:
        yield here


_open: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """No client outlives its test."""
    yield
    while _open:
        _open.pop().close()


class Client:
    """A connection in one of the ways. It reads when it is told to, and not otherwise."""

    def __init__(self, here: Serving, way: str, *, receive_buffer: int | None = SMALL, window: int = 65535) -> None:
        raw = socket.socket()
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.settimeout(WITHIN_S)
        raw.connect(("127.0.0.1", here.ports["tls" if "tls" in way else "plain"]))
        self.socket: socket.socket = raw
        if "tls" in way:
            context = here.server.trusted("h2" if "h2" in way else "http/1.1")
            self.socket = context.wrap_socket(raw, server_hostname="localhost")
        _open.append(self.socket)
        self.h2: H2Connection | None = None
        self.body = b""
        self.ended = False
        if "h2" in way:
            self.h2 = H2Connection(H2Configuration(client_side=True))
            self.h2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
            self.h2.initiate_connection()
            self.socket.sendall(self.h2.data_to_send())

    def ask(self, path: str, *, times: int = 1) -> None:
        """Ask for something, over HTTP/1.1 again and again without waiting, over HTTP/2 at the same time."""
        if self.h2 is None:
            self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * times)
            return
        for _ in range(times):
            headers = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "localhost")]
            self.h2.send_headers(self.h2.get_next_available_stream_id(), headers, end_stream=True)
        self.socket.sendall(self.h2.data_to_send())

    def read(self, most: int = 65536) -> int:
        """Read once; how much came of bodies, framing and all."""
        assert not self.ended
        data = self.socket.recv(most)
        self.ended = not data
        if self.h2 is None:
            self.body += data
            return len(data)
        before = len(self.body)
        for event in self.h2.receive_data(data):
            if isinstance(event, DataReceived):
                self.body += event.data or b""
                if event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id or 0)
            self.ended = self.ended or isinstance(event, StreamEnded)
        self.socket.sendall(self.h2.data_to_send())
        return len(self.body) - before

    def read_until(self, mark: bytes) -> None:
        """Read until something has come."""
        while mark not in self.body:
            self.read()
            assert not self.ended, f"it ended before {mark!r}"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


def at_rest(here: Serving) -> dict[str, int]:
    """What the worker holds when nothing is left of the clients before."""
    assert eventually(lambda: (told := here.worker())["streams"] == told["writing"] == 0)
    return here.worker()


def flood(here: Serving, topic: str, *, mib: int = 2, size: int = 500_000) -> None:
    """More than any kernel keeps for a client that does not read."""
    for _ in range(mib * MIB // size + 1):
        publish(here.server, topic, "x" * size)


def kernel_bytes(here: Serving) -> list[int]:
    """What the kernel keeps of bytes to be sent, for each connection of the server."""
    return [sent for sent, _ in kernel_buffers(here)]


def kernel_buffers(here: Serving) -> list[tuple[int, int]]:
    """For each connection of the server, the bytes that the kernel keeps to be sent, and the most that it would."""
    if shutil.which("ss") is None:
        pytest.skip("the kernel's buffers cannot be seen: apt-get install iproute2")
    of_server = " or ".join(f"sport = :{port}" for port in here.ports.values())
    told = subprocess.run(["ss", "-tmnH", of_server], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"skmem:\(r\d+,rb\d+,t\d+,tb(\d+),f(\d+),w(\d+)", told)
    return [(int(forward) + int(queued), int(most)) for most, forward, queued in found]


def released(here: Serving, before: dict[str, int], within: float = RELEASED_S) -> bool:
    """Whether the worker comes to hold no more than before."""
    names = ("tasks", "descriptors", "streams", "writing")

    def holds() -> bool:
        now = here.worker()
        return all(now[name] <= before[name] for name in names)

    return eventually(holds, within)


# -- who never reads -------------------------------------------------------------------------------------------------


@EVERY_WAY
def test_a_stream_that_is_never_read_is_let_go(here: Serving, way: str, topic: str) -> None:
    """When it has taken nothing for the write timeout; a stream that is read gets everything meanwhile, and stays."""
    before = at_rest(here)
    with Listener(here.server, f"/events?topic={topic}") as healthy, Client(here, way) as client:
        healthy.event()
        client.ask(f"/events?topic={topic}")
        assert eventually(lambda: here.worker()["streams"] == 2)
        began = time.monotonic()
        for number in range(5):
            publish(here.server, topic, f"{number} " + "x" * 500_000)
            assert healthy.event()["data"].startswith(f"{number} ")
        assert eventually(lambda: here.worker()["streams"] == 1, RELEASED_S)
        assert time.monotonic() - began >= WRITE_TIMEOUT_S
        publish(here.server, topic, "after")
        assert healthy.event()["data"] == "after"
    assert released(here, before)


def test_a_page_that_is_never_read_is_let_go(patient: Serving) -> None:
    """Asked for again and again, over HTTP/1.1 without waiting for the first: it is released like a stream."""
    before = at_rest(patient)
    for way in WAYS:
        Client(patient, way).ask("/board.js", times=90)
    assert eventually(lambda: patient.worker()["writing"] >= len(WAYS), RELEASED_BY_PATIENT_S)
    assert released(patient, before, RELEASED_BY_PATIENT_S)


def test_history_that_is_not_read_is_let_go(patient: Serving, topic: str) -> None:
    """A client that stops in the midst of what it missed."""
    flood(patient, topic)
    before = at_rest(patient)
    for way in WAYS:
        client = Client(patient, way)
        client.ask(f"/events?topic={topic}&last_event_id=earliest")
        client.read(100)
    assert eventually(lambda: patient.worker()["writing"] >= len(WAYS), RELEASED_BY_PATIENT_S)
    assert released(patient, before, RELEASED_BY_PATIENT_S)


def test_who_stops_in_the_midst_of_a_head_is_let_go(here: Serving, topic: str) -> None:
    """The head of a stream waits for its client like any other bytes."""
    before = at_rest(here)
    with Client(here, "http/1.1") as client:
        client.ask("/board.js", times=3)
        client.ask(f"/events?topic={topic}")
        while client.body.count(b"HTTP/1.1 200") < 3 or b"HTTP/1.1 200" not in client.body[-200:]:
            client.read(100)
        assert released(here, before)


def test_many_streams_of_a_frozen_connection_go_together(here: Serving, topic: str) -> None:
    """What they hold is bounded for each of them, and one wait is enough for all."""
    before, memory = at_rest(here), resident(here.worker()["pid"])
    with Client(here, "h2") as client:
        client.ask(f"/events?topic={topic}", times=50)
        assert eventually(lambda: here.worker()["streams"] == before["streams"] + 50)
        flood(here, topic)
        assert resident(here.worker()["pid"]) - memory < 50 * 3 * MIB
        assert released(here, before)


def test_who_reads_a_byte_a_second_is_let_go(here: Serving, topic: str) -> None:
    """Its kernel takes nothing for so long that the write timeout is over."""
    before = at_rest(here)
    clients = [Client(here, way, receive_buffer=None) for way in WAYS]
    for client in clients:
        client.ask(f"/events?topic={topic}")
    assert eventually(lambda: here.worker()["streams"] == before["streams"] + len(WAYS))
    flood(here, topic, mib=8)
    began = time.monotonic()
    while here.worker()["streams"] > before["streams"] and time.monotonic() - began < RELEASED_S:
        for client in clients:
            client.socket.recv(1)
        time.sleep(1)
    assert released(here, before)


def test_who_stops_at_the_last_bytes_is_let_go(patient: Serving, topic: str) -> None:
    """Nobody waits for the client any more when the kernel has all that there is for it."""
    before = at_rest(patient)
    with Client(patient, "http/1.1") as client:
        client.ask(f"/events?topic={topic}")
        client.read_until(b"id: ")
        publish(patient.server, topic, "x" * 100_000)
        assert eventually(lambda: patient.worker()["writing"] > before["writing"])
        while client.body.count(b"x") < 90_000:
            client.read(1000)
        assert eventually(lambda: patient.worker()["writing"] == before["writing"])
        assert patient.worker()["streams"] > before["streams"]
        assert released(patient, before, RELEASED_BY_PATIENT_S)


@pytest.mark.parametrize("way", ["http/1.1", "h2"])
def test_a_heartbeat_to_who_does_not_read_is_let_go_too(here: Serving, way: str, topic: str) -> None:
    """Where nothing more is published, and what was published is little."""
    before = at_rest(here)
    with Client(here, way, window=100) as client:
        client.ask(f"/events?topic={topic}")
        assert eventually(lambda: here.worker()["streams"] > before["streams"])
        publish(here.server, topic, "x" * 12_000)
        assert released(here, before, RELEASED_S + 2 * HEARTBEAT_S)


# -- who half-closes, or leaves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /events?topic=half HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /board.js HTTP/1.1\r\nHost: x\r\n\r\n" * 90,
        b"POST /topics/half HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nand no mo",
        b"POST /topics/half HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: x\n\n\r\n5\r\nda",
        b"GET /events?topic=half HTTP/1.1\r\nHo",
    ],
    ids=["stream", "pages", "body", "stream of events", "head"],
)
@pytest.mark.parametrize("way", ["http/1.1", "tls"])
def test_who_half_closes_is_let_go(here: Serving, way: str, request_: bytes) -> None:
    """In a stream, behind pages that are not read, and in the midst of a request."""
    before = at_rest(here)
    with Client(here, way) as client:
        client.socket.sendall(request_)
        time.sleep(0.2)  # it has begun when it is over
        raw = socket.socket(fileno=os.dup(client.socket.fileno()))
        raw.shutdown(socket.SHUT_WR)
        raw.close()
        assert released(here, before)


@pytest.mark.parametrize(
    "first", [b"GET /events?topic=junk HTTP/1.1\r\nHost: x\r\n\r\n", b""], ids=["stream", "nothing"]
)
def test_who_pipelines_junk_and_leaves_is_let_go(here: Serving, first: bytes) -> None:
    """With what nobody will read behind a stream: two heartbeats find out that the client has gone."""
    before = at_rest(here)
    for _ in range(10):
        with Client(here, "http/1.1") as client:
            client.socket.sendall(first + bytes(range(256)) * 100)
            time.sleep(0.05)
    assert released(here, before, RELEASED_S + 2 * HEARTBEAT_S)


# -- who is stopped --------------------------------------------------------------------------------------------------

READER = """
import http.client, sys

port, topic, last = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
connection = http.client.HTTPConnection("127.0.0.1", port)
connection.request("GET", f"/events?topic={topic}", headers={"Last-Event-ID": last[0]} if last else {})
response = connection.getresponse()
print("open", flush=True)
try:
    while line := response.readline():
        if line.startswith((b"id: ", b"event: ", b"data: ")):
            print(line.decode().strip()[:80], flush=True)
except Exception as error:
    print(type(error).__name__, flush=True)
print("end", flush=True)
"""


class Reader:
    """A client in a process of its own, which can be stopped; what it was told is in its lines."""

    def __init__(self, here: Serving, topic: str, last_event_id: str | None = None) -> None:
        command = [sys.executable, "-c", READER, str(here.server.port), topic]
        command += [last_event_id] if last_event_id else []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        assert eventually(lambda: "open" in self.lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def numbers(self) -> list[int]:
        """The numbers that its events begin with."""
        return [int(line.split()[1]) for line in self.lines if line.startswith("data: ") and line[6].isdigit()]

    def last_event_id(self) -> str:
        """Of the last event that came whole: behind its ID, as the server writes it, came its data."""
        ids = [line for line, after in zip(self.lines, self.lines[1:], strict=False) if after.startswith("data: ")]
        return ids[-1].removeprefix("id: ")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def stopped_and_stays(folder: Path, *, write_timeout_s: float, stopped_s: float) -> None:
    with served(folder, TRIO_SSE_WRITE_TIMEOUT_S=str(write_timeout_s)) as here, Reader(here, "t") as reader:
        publish(here.server, "t", "0")
        assert eventually(lambda: reader.numbers() == [0])
        reader.stop()
        began, count = time.monotonic(), 1
        while time.monotonic() < began + stopped_s:
            if count < 20:
                publish(here.server, "t", f"{count} " + "x" * 900_000)
                count += 1
            time.sleep(stopped_s / 25)
        assert max(kernel_bytes(here)) > 0, "bytes must wait for it"
        reader.go_on()
        publish(here.server, "t", f"{count} last")
        assert eventually(lambda: count in reader.numbers())
        assert reader.numbers() == list(range(count + 1))
        assert "end" not in reader.lines


def test_who_is_stopped_for_less_than_the_write_timeout_stays(tmp_path: Path) -> None:
    """And loses nothing, though bytes wait for it all the time."""
    stopped_and_stays(tmp_path, write_timeout_s=8, stopped_s=2)


@pytest.mark.proof
def test_who_is_stopped_for_ten_seconds_stays(tmp_path: Path) -> None:
    """The same at full length, with the write timeout that is the default."""
    stopped_and_stays(tmp_path, write_timeout_s=20, stopped_s=10)


def stopped_and_let_go(folder: Path, *, write_timeout_s: float, stopped_s: float, retention: int | None = None) -> None:
    env = {} if retention is None else {"TRIO_SSE_RETENTION_EVENTS": str(retention)}
    with served(folder, TRIO_SSE_WRITE_TIMEOUT_S=str(write_timeout_s), **env) as here, Reader(here, "t") as reader:
        publish(here.server, "t", "0")
        assert eventually(lambda: reader.numbers() == [0])
        for _ in range(20):
            flood(here, "warm/up")
        before, memory = here.worker(), resident(here.worker()["pid"])
        reader.stop()
        began = time.monotonic()
        for number in range(1, 11):
            publish(here.server, "t", f"{number} " + "x" * 900_000)
        assert eventually(lambda: here.worker()["streams"] == 0, 2 * 1.25 * write_timeout_s + STALL_S)
        assert time.monotonic() - began >= write_timeout_s
        assert eventually(lambda: max(kernel_bytes(here), default=0) < SEND_BUFFER / 2)
        assert eventually(lambda: here.worker()["tasks"] < before["tasks"])
        assert resident(here.worker()["pid"]) - memory < 20 * MIB, "what the journal keeps, and little more"
        time.sleep(max(0, began + stopped_s - time.monotonic()))
        reader.go_on()
        assert eventually(lambda: "end" in reader.lines)
        with Reader(here, "t", reader.last_event_id()) as back:
            publish(here.server, "t", "11 last")
            assert eventually(lambda: 11 in back.numbers())
            told = reader.numbers() + back.numbers()
            if retention is None:
                assert told == list(range(12))
            else:
                assert "event: trio-sse.gap" in back.lines
                assert told[-retention:] == list(range(12))[-retention:]


def test_who_is_stopped_for_longer_is_let_go_and_resumes(tmp_path: Path) -> None:
    """What it held is given back; its next visit begins behind the last event that it had, and misses nothing."""
    stopped_and_let_go(tmp_path, write_timeout_s=WRITE_TIMEOUT_S, stopped_s=2)


def test_who_was_let_go_is_told_of_what_is_gone(tmp_path: Path) -> None:
    """Where the journal does not keep what it missed, its next visit begins with a gap."""
    stopped_and_let_go(tmp_path, write_timeout_s=WRITE_TIMEOUT_S, stopped_s=2, retention=3)


@pytest.mark.proof
@pytest.mark.timeout(180)
def test_who_is_stopped_for_a_minute_is_let_go_and_resumes(tmp_path: Path) -> None:
    """The same at full length, with the write timeout that is the default."""
    stopped_and_let_go(tmp_path, write_timeout_s=20, stopped_s=60)


# -- whose network goes away -----------------------------------------------------------------------------------------

NETWORK_READER = """
import socket, sys

client = socket.create_connection((sys.argv[1], int(sys.argv[2])))
client.sendall(b"GET /events?topic=%s HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" % sys.argv[3].encode())
while data := client.recv(65536):
    print(len(data), flush=True)
"""


@contextlib.contextmanager
def network(name: str) -> Iterator[tuple[list[str], str, str]]:
    """A network of two; the command that runs another in its far end, and the near end's address and device."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network cannot be taken away: run it as root, with apt-get install iproute2")
    space, near, far = name, f"{name}a", f"{name}b"
    number = os.getpid() % 2**14
    prefix = f"10.213.{number // 64}.{number % 64 * 4}".rpartition(".")
    ours, theirs = (f"{prefix[0]}.{int(prefix[2]) + offset}" for offset in (1, 2))
    inside = ["ip", "netns", "exec", space]
    commands = [
        ["ip", "netns", "add", space],
        ["ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", space],
        ["ip", "addr", "add", f"{ours}/30", "dev", near],
        ["ip", "link", "set", near, "up"],
        [*inside, "ip", "addr", "add", f"{theirs}/30", "dev", far],
        [*inside, "ip", "link", "set", far, "up"],
    ]
    try:
        for command in commands:
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip(f"a network cannot be taken away here: {' '.join(command)} fails")
        yield inside, ours, near
    finally:
        subprocess.run(["ip", "netns", "del", space], capture_output=True)
        subprocess.run(["ip", "link", "del", near], capture_output=True)


@pytest.mark.parametrize("is_published_to", [True, False], ids=["busy", "quiet"])
def test_whose_network_goes_away_is_let_go(tmp_path: Path, *, is_published_to: bool) -> None:
    """Whether events wait for it, or only heartbeats find out: the kernel gives up when the write timeout is over."""
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_WRITE_TIMEOUT_S": "1", "TRIO_SSE_HEARTBEAT_S": "1"}
    with network(f"sse{os.getpid() % 2**20}") as (inside, address, device):
        port = free_port()
        args = ("--bind", f"{address}:{port}")
        with serving("tests.apps:app", folder=tmp_path, env=env, args=args) as server:
            command = [*inside, sys.executable, "-c", NETWORK_READER, address, str(port), "t"]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as client, contextlib.ExitStack() as stack:
                stack.callback(client.kill)
                assert client.stdout is not None
                client.stdout.readline()
                assert ask(server, "GET", "/test/worker").json["streams"] == 1
                subprocess.run(["ip", "link", "set", device, "down"], check=True)
                for _ in range(3 if is_published_to else 0):
                    publish(server, "t", "x" * 500_000)
                within = 2 * (1.25 + 1) + STALL_S
                assert eventually(lambda: ask(server, "GET", "/test/worker").json["streams"] == 0, within)


# -- who is slow, and stays ------------------------------------------------------------------------------------------


def read_slowly(here: Serving, way: str, topic: str, *, size: int, bytes_per_s: int) -> float:
    """Read an event of some size at a rate, from a buffer that holds little; how many seconds that took."""
    with Client(here, way, receive_buffer=32 * KIB) as client:
        client.ask(f"/events?topic={topic}")
        client.read_until(b"id: ")
        publish(here.server, topic, "y" * size)
        began, taken = time.monotonic(), 0
        while client.body.count(b"y") < size:
            taken += client.read(bytes_per_s // 20)
            assert not client.ended, f"it ended after {taken} bytes and {time.monotonic() - began:.1f} s"
            time.sleep(max(0, began + taken / bytes_per_s - time.monotonic()))
        return time.monotonic() - began


def all_at_once(each: Callable[[str, int], None], rates: Sequence[int]) -> None:
    """Do it in every way and at every rate at the same time; what fails in one fails."""
    failed: list[BaseException] = []

    def run(way: str, rate: int) -> None:
        try:
            each(way, rate)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(way, rate)) for way in WAYS for rate in rates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in failed:
        raise error


def topic_of(way: str, rate: int) -> str:
    return f"{''.join(letter for letter in way if letter.isalnum())}/{rate}"


def test_a_large_event_arrives_at_a_slow_reader(patient: Serving) -> None:
    """One that takes several write timeouts for it, over HTTP/1.1, TLS and HTTP/2."""

    def each(way: str, rate: int) -> None:
        assert read_slowly(patient, way, topic_of(way, rate), size=MIB, bytes_per_s=rate) > 2 * PATIENT_S

    all_at_once(each, [150_000])


def test_who_reads_from_a_narrow_window_stays(patient: Serving, topic: str) -> None:
    """Its window is too narrow for a whole segment all the time, and the kernel would take that for a shut one."""
    with Client(patient, "http/1.1", receive_buffer=SMALL) as client:
        client.ask(f"/events?topic={topic}")
        client.read_until(b"id: ")
        flood(patient, topic)
        began = time.monotonic()
        while time.monotonic() < began + 2 * PATIENT_S:
            client.read(1000)
            assert not client.ended
            time.sleep(0.05)


@pytest.mark.proof
@pytest.mark.timeout(180)
def test_a_mebibyte_arrives_at_50_kb_a_second(tmp_path: Path) -> None:
    """In the twenty seconds that it takes, with the write timeout that is the default."""
    with served(tmp_path) as here:

        def each(way: str, rate: int) -> None:
            assert read_slowly(here, way, topic_of(way, rate), size=MIB, bytes_per_s=rate) > 20

        all_at_once(each, [50_000])


@pytest.mark.proof
@pytest.mark.timeout(300)
def test_a_kib_a_second_is_the_least(tmp_path: Path) -> None:
    """Who takes 500 bytes a second has a minute; who takes 2 KiB stays. The write timeout is the default."""
    with served(tmp_path) as here:

        def each(way: str, rate: int) -> None:
            lasted = trickle(here, way, topic_of(way, rate), rate)
            assert lasted >= 60, (way, rate, lasted)
            assert (lasted < 100) == (rate < KIB), (way, rate, lasted)

        all_at_once(each, [500, 2 * KIB, 3 * KIB])


@pytest.mark.proof
@pytest.mark.timeout(180)
def test_a_window_that_is_opened_a_byte_a_second_has_a_minute(tmp_path: Path) -> None:
    """A client that reads all that comes over HTTP/2, and asks for hardly any; its other stream it does read."""
    with served(tmp_path) as here, Client(here, "h2", receive_buffer=None, window=100) as client:
        assert client.h2 is not None
        client.ask("/events?topic=dripping")
        client.ask("/events?topic=lively")
        assert eventually(lambda: here.worker()["streams"] == 2)
        client.h2.increment_flow_control_window(10 * MIB, stream_id=3)
        flood(here, "dripping")
        began = time.monotonic()
        client.socket.settimeout(1)
        while not client.ended and time.monotonic() < began + 100:
            client.h2.increment_flow_control_window(1, stream_id=1)
            publish(here.server, "lively", "x" * 5000)
            with contextlib.suppress(TimeoutError, ConnectionError):
                client.socket.sendall(client.h2.data_to_send())
                data = client.socket.recv(65536)
                client.ended = not data
                for event in client.h2.receive_data(data):
                    if isinstance(event, DataReceived) and event.flow_controlled_length:
                        client.h2.increment_flow_control_window(event.flow_controlled_length)
            time.sleep(1)
            if here.worker()["streams"] == 0:
                break
        assert 60 <= time.monotonic() - began <= 2 * 65


def trickle(here: Serving, way: str, topic: str, bytes_per_s: int) -> float:
    """How long a client that reads so slowly keeps its stream; a hundred seconds are enough."""
    with Client(here, way, receive_buffer=SMALL) as client:
        client.ask(f"/events?topic={topic}")
        client.read_until(b"id: ")
        flood(here, topic)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while not client.ended and time.monotonic() < began + 110:
                client.read(bytes_per_s // 2)
                time.sleep(0.5)
        return time.monotonic() - began


# -- what they hold --------------------------------------------------------------------------------------------------


def test_the_kernel_keeps_little_for_who_does_not_read(here: Serving, topic: str) -> None:
    """However much the client took before; and it would not keep more than the bound for any."""
    clients = [Client(here, "http/1.1", receive_buffer=None) for _ in range(10)]
    for client in clients:
        client.ask(f"/events?topic={topic}")
        client.read_until(b"id: ")
    publish(here.server, topic, "x" * 900_000 + "!")
    for client in clients:
        client.read_until(b"!")
    flood(here, topic, mib=8)
    buffers = kernel_buffers(here)
    assert max(kept for kept, _ in buffers) <= SEND_BUFFER + SEGMENT
    assert {most for _, most in buffers} == {SEND_BUFFER}
    for client in clients:
        client.socket.close()


@pytest.mark.parametrize("size", [1000, 900_000])
def test_what_waits_for_who_does_not_read_is_bounded(here: Serving, size: int, topic: str) -> None:
    """Of large events and of small ones, live and in the history: a few MiB for a stream, however much is published."""
    flood(here, "warm/up", mib=20)
    before, memory = at_rest(here), resident(here.worker()["pid"])
    clients = [Client(here, "http/1.1") for _ in range(20)]
    for number, client in enumerate(clients):
        client.ask(f"/events?topic={topic}" + "&last_event_id=earliest" * (number % 2))
    assert eventually(lambda: here.worker()["streams"] == before["streams"] + 20)
    deadline = time.monotonic() + 0.8 * WRITE_TIMEOUT_S
    while time.monotonic() < deadline:
        publish(here.server, topic, "x" * size)
    assert resident(here.worker()["pid"]) - memory < 20 * 4 * MIB
    assert released(here, before)
    for client in clients:
        client.socket.close()
