"""Malformed requests, over every carrier: each ends its own connection at most, and nobody else notices."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import WITHIN_S, eventually
from .fuzzing import PATIENCE_S, Attack, Fuzzer, carry_out, corpus, h1_subscription, h2_subscription
from .serving import SecureServer

STREAMS = 50
CARRIERS = ("plain", "http/1.1", "h2", "plain h2")
NUMBERS = "/events?topic=numbers"
EVENT = re.compile(rb"id: (\S+)\ndata: number (\d+)\n\n")
LINE = re.compile("one connection ended by|more connections ended by exceptions: ([0-9]+)$")

SEED = 1
FUZZING_S = 5.0
PROOF_S = 600.0

ATTACKS = {attack.name: attack for attack in corpus()}


class Siege:
    """A server with a port in the clear and one with TLS, fifty streams of numbers, and all that was done to it."""

    def __init__(self, folder: Path) -> None:
        env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_WRITE_TIMEOUT_S": "2"}
        self.server = SecureServer("tests.apps:app", folder=folder, env=env, args=("--keep-alive", "120"))
        self.server.start()
        self._contexts = {name: self.server.trusted(name) for name in ("http/1.1", "h2")}
        self._publisher = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=WITHIN_S)
        self.baseline = min((self.worker() for _ in range(20)), key=lambda told: told["tasks"])
        self.attacks = 0
        self.ids: list[str] = []
        self.publish()
        self.streams = [Stream(self, carrier) for carrier in itertools.islice(itertools.cycle(CARRIERS), STREAMS)]
        self._lines = len(self.log())

    def connect(self, carrier: str) -> socket.socket:
        """A connection; ``http/1.1`` and ``h2`` are TLS with this protocol agreed on, ``tls`` is a bare one to TLS."""
        port = self.server.port if carrier.startswith("plain") else self.server.secure_port
        client = socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S)
        if carrier in self._contexts:
            return self._contexts[carrier].wrap_socket(client, server_hostname="localhost")
        return client

    def _ask(self, method: str, target: str, body: bytes | None = None) -> Any:
        self._publisher.request(method, target, body)
        with self._publisher.getresponse() as response:
            return json.loads(response.read())

    def worker(self) -> dict[str, int]:
        told: dict[str, int] = self._ask("GET", "/test/worker")
        return told

    def publish(self) -> None:
        """Publish the next number."""
        self.ids.append(self._ask("POST", "/topics/numbers", b"number %d" % len(self.ids))["id"])

    def log(self) -> list[str]:
        return self.server.log().splitlines()

    def attack(self, attack: Attack, carrier: str, *, patience: float = PATIENCE_S) -> bool:
        """Attack once; whether a stream on the same connection goes on. If it does not, it is resumed.

        However that may be, it loses nothing.
        """
        self.attacks += 1
        before = len(self.ids)
        with self.connect(carrier) as client:
            answered = carry_out(attack, client, h2_subscription(NUMBERS))
            self._ask("POST", "/topics/a", b"for those that the attack has opened")
            if not attack.is_h2:
                return False
            self.publish()
            with contextlib.suppress(OSError):
                client.settimeout(patience)
                while len(EVENT.findall(answered)) < len(self.ids) - before and (piece := client.recv(65536)):
                    answered += piece
        seen = [int(number) for _, number in EVENT.findall(answered)]
        assert seen == list(range(before, len(self.ids)))[: len(seen)]
        last = before + len(seen) - 1
        if last == len(self.ids) - 1:
            return True
        with Stream(self, "plain", self.ids[last], after=last).socket as resumed:
            resumed.settimeout(WITHIN_S)
        return False

    def check(self) -> None:
        """Nobody but attackers has noticed anything."""
        self.publish()
        for stream in self.streams:
            stream.take(len(self.ids) - 1)
        assert self.worker()["pid"] == self.baseline["pid"]
        lines = self.log()[self._lines :]
        assert [line for line in lines if not LINE.match(line)] == []
        assert len(lines) <= self.attacks

    def leave(self) -> None:
        """Close every connection that is not an attack; one that is needed again is opened anew."""
        for stream in self.streams:
            stream.socket.close()
        self._publisher.close()

    def is_as_before(self) -> bool:
        """Whether the worker holds what it did before the first stream, and nothing more."""
        told = self.worker()
        return all(told[name] <= self.baseline[name] for name in ("tasks", "descriptors", "streams", "subscribers"))


class Stream:
    """A stream of the numbers, each of which must be the next."""

    def __init__(self, siege: Siege, carrier: str, cursor: str | None = None, *, after: int | None = None) -> None:
        self.socket = siege.connect(carrier)
        subscription = h2_subscription if carrier.endswith("h2") else h1_subscription
        self.socket.sendall(subscription(NUMBERS, cursor))
        self._last = len(siege.ids) - 1 if after is None else after
        self._received = b""
        while b"id: " not in self._received:  # its position: it misses nothing from now on
            self._receive()
        self.take(len(siege.ids) - 1)

    def take(self, number: int) -> None:
        """Read up to a number."""
        while self._last < number:
            found = EVENT.search(self._received)
            if found is None:
                self._receive()
                continue
            assert int(found[2]) == self._last + 1
            self._last += 1
            self._received = self._received[found.end() :]

    def _receive(self) -> None:
        piece = self.socket.recv(65536)
        assert piece, f"the stream ended after number {self._last}"
        self._received += piece


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    siege = Siege(tmp_path_factory.mktemp("siege"))
    try:
        yield siege
        assert siege.server.terminate() == 0
    finally:
        siege.leave()
        siege.server.kill()


def carriers(attack: Attack) -> tuple[str, ...]:
    """What an attack is meant for."""
    if attack.is_below_tls:
        return ("tls",)
    return ("plain", "h2") if attack.is_h2 else ("plain", "http/1.1")


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_harms_nobody(siege: Siege, name: str) -> None:
    """Fifty other streams lose nothing, the process is the same, and the log has one line at most."""
    for carrier in carriers(ATTACKS[name]):
        siege.attack(ATTACKS[name], carrier)
    siege.check()


@pytest.mark.parametrize(
    "name",
    [
        *("h2-path-not-ascii", "h2-path-query-high", "h2-method-high", "h2-connect", "h2-websocket-path-high"),
        "h2-websocket-field-high",
        *("h2-data-after-response", "h2-data-on-websocket-refused", "h2-priority-flood", "h2-rapid-reset"),
    ],
)
def test_a_stream_outlives_what_is_malformed_on_its_connection(siege: Siege, name: str) -> None:
    """What one stream of an HTTP/2 connection is refused for, the others do not notice."""
    assert siege.attack(ATTACKS[name], "plain", patience=WITHIN_S)


def wait_quiet(siege: Siege) -> list[str]:
    """Wait until nothing more is to be said of what was; the log until then."""
    before: list[str] = []
    while before != (before := siege.log()):
        time.sleep(3)  # a line a second, and one that is late
    return before


def test_the_log_says_what_ended_a_connection(siege: Siege) -> None:
    """One line names the exception, without a traceback."""
    before = wait_quiet(siege)
    siege.attack(ATTACKS["websocket-extensions-odd"], "plain")
    assert eventually(lambda: len(siege.log()) > len(before))
    (line,) = siege.log()[len(before) :]
    assert line.startswith("one connection ended by UnicodeDecodeError: ")


def test_a_flood_of_attacks_is_no_flood_of_lines(siege: Siege) -> None:
    """The log has a line a second, and in all of them together the number of connections that were ended."""

    def told() -> list[int]:
        found = [LINE.match(line) for line in siege.log()[before:]]
        return [int(match[1] or 1) for match in found if match is not None]

    before, began = len(wait_quiet(siege)), time.monotonic()
    for _ in range(200):
        siege.attack(ATTACKS["websocket-extensions-odd"], "plain")
    assert eventually(lambda: sum(told()) == 200)
    assert len(told()) <= time.monotonic() - began + 2
    siege.check()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_tls_may_be_begun_anew(siege: Siege, version: str) -> None:
    """A client that wants a new handshake, or new keys, again and again, harms nobody."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs Debian's openssl: apt-get install openssl")
    siege.attacks += 1
    command = [openssl, "s_client", version, "-connect", f"127.0.0.1:{siege.server.secure_port}"]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with contextlib.suppress(BrokenPipeError), client:  # the first may be the last
        assert client.stdin is not None
        for _ in range(10):
            client.stdin.write(b"R\n" if version == "-tls1_2" else b"K\n")
            client.stdin.flush()
            time.sleep(0.02)  # a command is one that comes alone
        client.kill()
    siege.check()


def fuzz(siege: Siege, seed: int, seconds: float) -> int:
    """Attack with what the fuzzer makes of a seed, for so long; how often."""
    fuzzer, done = Fuzzer(corpus(), seed), 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        some = [fuzzer.attack(number) for number in range(done, done + 5)]
        try:
            for attack in some:
                siege.attack(attack, random.Random(attack.name).choice(CARRIERS))
            siege.check()
        except (AssertionError, OSError) as error:
            told = "\n".join(f"# {attack.name}\n{attack}" for attack in some)
            raise AssertionError(f"one of these is for the corpus:\n{told}") from error
        done += len(some)
    return done


def test_attacks_that_nobody_thought_of(siege: Siege) -> None:
    """What is made of the corpus by chance, the same in each run, harms nobody."""
    assert fuzz(siege, SEED, FUZZING_S)


@pytest.mark.proof
@pytest.mark.timeout(2 * PROOF_S)
def test_ten_minutes_of_attacks_that_nobody_thought_of(siege: Siege) -> None:
    """The same for ten minutes, and others in each run; what fails is named by its seed and its number."""
    assert fuzz(siege, random.randrange(10**6), PROOF_S)


def test_nothing_is_left_of_them(siege: Siege) -> None:
    """When everybody has gone the worker is as it was: no task, no descriptor, no stream more."""
    siege.leave()
    assert eventually(siege.is_as_before)
