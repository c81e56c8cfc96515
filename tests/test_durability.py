"""What was acknowledged is there, whatever is killed and however full the disk is. The real server; real faults."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import STALL_S, WITHIN_S, Answer, Listener, Wire, ask, eventually, publish
from tests.serving import Server, gone, running
from tests.test_journal_files import EVENTS, EVENTS_LEFT, KINDS, bytes_of, held, lay
from trio_sse.event import DEFAULT_TYPE, Event, EventID
from trio_sse.journal.disk import HEADROOM_BYTES
from trio_sse.wire import Decoder

EVERYTHING = "1000000000"
"""Retention that removes nothing."""

# -- killed -----------------------------------------------------------------------------------------------------------

PARTS = ("parent", "worker", "both")
SOME_KILLS, MANY_KILLS = 3, 50

ORPHAN_S = 1.0
"""A worker whose parent was killed has so long to end, and to let go of the port and the journal."""

PAUSE_S = 0.005
"""Between two events of a publisher: the machine has other things to do."""

WINDOW = 32
"""So many events of a stream may be on their way, unacknowledged."""

END = "the end"
CUT = (OSError, http.client.HTTPException)
"""How a client sees that the server was killed."""


class Trap:
    """Kills something the moment anybody has read that an event is kept."""

    def __init__(self) -> None:
        self.sprung = threading.Event()
        self._lock = threading.Lock()
        self._kill: Callable[[], None] | None = None

    def arm(self, kill: Callable[[], None]) -> None:
        self.sprung.clear()
        self._kill = kill

    def spring(self) -> None:
        with self._lock:
            kill, self._kill = self._kill, None
        if kill is not None:
            kill()
            self.sprung.set()


class Client(threading.Thread):
    """Somebody who goes on after every cut; what it did not expect is kept for the test."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.server = server
        self.fault: BaseException | None = None
        self.cuts = 0
        self.abandoned = threading.Event()

    def run(self) -> None:
        try:
            self.go_on()
        except BaseException as fault:
            self.fault = fault

    def go_on(self) -> None:
        raise NotImplementedError

    def progress(self) -> int:
        """How much it has seen of what it does."""
        raise NotImplementedError

    def was_cut(self) -> None:
        """Wait a moment, as one does who comes again."""
        if self.abandoned.is_set():
            raise RuntimeError("the server does not come back")
        self.cuts += 1
        time.sleep(0.02)


class Publisher(Client):
    """Publishes the numbers from 1 on, each with its own name before it."""

    def __init__(self, server: Server, name: str, topic: str, trap: Trap) -> None:
        super().__init__(server, name)
        self.topic = topic
        self.trap = trap
        self.acked: dict[int, str] = {}
        self.last = 0
        """Up to here, all is acknowledged."""
        self.finish = threading.Event()

    def progress(self) -> int:
        return self.last

    def data(self, number: int) -> str:
        return f"{self.name} {number}"

    def acknowledged(self, number: int, id: str) -> None:
        self.trap.spring()
        self.acked[number] = id
        self.last = number


class Poster(Publisher):
    """One request for each event, again and again until it is acknowledged; after a cut, for the one before it too."""

    def __init__(self, server: Server, name: str, topic: str, trap: Trap) -> None:
        super().__init__(server, name, topic, trap)
        self.replayed: list[int] = []
        """What was acknowledged before a cut, sent again after it, and given the same id."""
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WITHIN_S)

    def go_on(self) -> None:
        with contextlib.closing(self._connection):
            while not self.finish.is_set():
                cuts, before = self.cuts, self.last
                id, _ = self._post(before + 1)
                self.acknowledged(before + 1, id)
                if before and cuts != self.cuts:
                    assert self._post(before) == (self.acked[before], True)
                    self.replayed.append(before)
                time.sleep(PAUSE_S)

    def _post(self, number: int) -> tuple[str, bool]:
        """The id that an event has, and whether it had it before."""
        target, headers = f"/topics/{self.topic}", {"Idempotency-Key": f"{self.name}-{number}"}
        while True:
            try:
                self._connection.request("POST", target, self.data(number).encode(), headers)
                with self._connection.getresponse() as response:
                    body = response.read()
            except CUT:
                self._connection.close()
                self.was_cut()
                continue
            if response.status == 201:
                return json.loads(body)["id"], response.headers["Idempotency-Replayed"] == "true"
            assert response.status == 503, body  # it ends, because its parent was killed
            self.was_cut()


class Streamer(Publisher):
    """One request for all events; after a cut it goes on behind the last of them that it finds in the journal."""

    def go_on(self) -> None:
        while True:
            try:
                self._stream(self._find_last())
            except CUT:
                self.was_cut()
            else:
                return

    def _find_last(self) -> int:
        """Its last number in the journal: more may be kept than was acknowledged."""
        answer = ask(self.server, "GET", f"/topics/{self.topic}")
        if answer.status == 503:
            raise ConnectionError(answer.body)
        newest = answer.json["last_event_id"]
        if newest is None or newest == self.acked.get(self.last):
            return self.last
        after = self.acked.get(self.last, "earliest")
        for event in received(self.server, f"/events?topic={self.topic}&last_event_id={after}"):
            if event.id == newest:
                return int(event.data.rpartition(" ")[2])
        raise ConnectionError("the stream ended before its newest event")

    def _stream(self, sent: int) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=WITHIN_S) as sock:
            sock.sendall(
                b"POST /topics/%b HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" % self.topic.encode()
            )
            response = None
            while not self.finish.is_set() or sent > self.last:
                while not self.finish.is_set() and sent < self.last + WINDOW:
                    sent += 1
                    block = b"id: %d\ndata: %b\n\n" % (sent, self.data(sent).encode())
                    sock.sendall(b"%x\r\n%b\r\n" % (len(block), block))
                    time.sleep(PAUSE_S)
                if response is None:
                    response = http.client.HTTPResponse(sock, method="POST")
                    response.begin()
                line = response.readline()
                if not line or json.loads(line).get("status") == 503:
                    raise ConnectionError(line)
                acked = json.loads(line)
                self.acknowledged(acked["acked"], acked["id"])


def received(server: Server, target: str, cursor: str = "", decoder: Decoder | None = None) -> Iterator[Event]:
    """The events of a stream, which is left with the iterator.

    Raises:
      OSError, HTTPException: it was cut.
    """
    decoder = decoder or Decoder(errors="strict")
    headers = {"Last-Event-ID": cursor} if cursor else {}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WITHIN_S)
    with contextlib.closing(connection):
        connection.request("GET", target, headers=headers)
        with connection.getresponse() as response:
            assert response.status == 200
            while piece := response.read1(65536):
                yield from decoder.feed(piece)


class Subscriber(Client):
    """Reads on where it was, as EventSource does: behind the last ``id:`` it has seen, that of a position too."""

    def __init__(self, server: Server, name: str, target: str) -> None:
        super().__init__(server, name)
        self.target = target
        self.events: list[Event] = []
        self.gaps: list[Event] = []
        self._cursor = ""
        self._decoder = Decoder(errors="strict")

    @property
    def cursor(self) -> str:
        return self._decoder.last_event_id or self._cursor

    def progress(self) -> int:
        return len(self.events)

    def go_on(self) -> None:
        while True:
            self._cursor, self._decoder = self.cursor, Decoder(errors="strict")
            with contextlib.suppress(*CUT):
                for event in received(self.server, self.target, self._cursor, self._decoder):
                    if event.type == DEFAULT_TYPE:
                        self.events.append(event)
                    elif event.type == "trio-sse.gap":
                        self.gaps.append(event)
                    if event.data == END:
                        return
            self.was_cut()


@contextlib.contextmanager
def reading(server: Server, target: str) -> Iterator[Subscriber]:
    """A subscriber who has begun; it must end itself."""
    subscriber = Subscriber(server, target, target)
    subscriber.start()
    try:
        assert eventually(lambda: subscriber.cursor != "")
        yield subscriber
    finally:
        subscriber.abandoned.set()


@dataclass
class Ordeal:
    """A server that is killed again and again, and what came of it."""

    server: Server
    publishers: list[Publisher] = field(default_factory=list)
    subscribers: list[Subscriber] = field(default_factory=list)
    journal: list[Event] = field(default_factory=list)
    kills: int = 0

    @property
    def clients(self) -> list[Client]:
        return [*self.publishers, *self.subscribers]

    def run(self, kills: int) -> None:
        trap = Trap()
        kinds: list[type[Publisher]] = [Poster, Poster, Poster, Streamer, Streamer]
        topics = ["ordeal/0", "ordeal/1", "ordeal/1", "ordeal/2", "ordeal/3"]
        self.publishers = [
            kind(self.server, f"{kind.__name__}{number}", topic, trap)
            for number, (kind, topic) in enumerate(zip(kinds, topics, strict=True))
        ]
        named = "/events?" + "&".join(f"topic=ordeal/{number}" for number in range(4))
        targets = ["/events?topic=ordeal/*", "/events?topic=**", named]
        self.subscribers = [Subscriber(self.server, target, target) for target in targets]
        for subscriber in self.subscribers:
            subscriber.start()
        assert eventually(lambda: all(subscriber.cursor for subscriber in self.subscribers))
        for publisher in self.publishers:
            publisher.start()
        for number, part in zip(range(kills), itertools.cycle(PARTS)):
            self.wait_progress()
            kill, worker = self.aim(part)
            trap.arm(kill)
            assert trap.sprung.wait(WITHIN_S), self.faults()
            self.start_again(part, worker)
            if number % len(PARTS) == 2:
                self.die_young()
        self.wait_progress()
        for publisher in self.publishers:
            publisher.finish.set()
        for publisher in self.publishers:
            publisher.join(WITHIN_S)
        kill, worker = self.aim("both")
        kill()
        self.start_again("both", worker)
        publish(self.server, "ordeal/0", END)
        for subscriber in self.subscribers:
            subscriber.join(WITHIN_S)
        for event in received(self.server, "/events?topic=ordeal/*&last_event_id=earliest"):
            self.journal.append(event)
            if event.data == END:
                break

    def wait_progress(self) -> None:
        """Until every client has got further since the last restart."""
        before = {client: client.progress() for client in self.clients}
        assert eventually(
            lambda: not self.faults() and all(client.progress() > reached for client, reached in before.items())
        ), (self.faults(), before, self.server.log()[-2000:])

    def faults(self) -> dict[str, BaseException]:
        return {client.name: client.fault for client in self.clients if client.fault is not None}

    def aim(self, part: str) -> tuple[Callable[[], None], int]:
        """What kills a part of the server; and its worker."""
        assert self.server.process is not None
        parent, (worker,) = self.server.process.pid, self.server.workers()
        if part == "both":
            return partial(os.killpg, parent, signal.SIGKILL), worker
        return partial(os.kill, parent if part == "parent" else worker, signal.SIGKILL), worker

    def start_again(self, part: str, worker: int) -> None:
        """As a supervisor does: when the parent has ended, and the worker with it."""
        assert self.server.process is not None
        assert self.server.process.wait(WITHIN_S) == (0 if part == "worker" else -signal.SIGKILL)
        assert eventually(lambda: gone(worker), within=2 * ORPHAN_S + STALL_S)
        self.server.start()
        self.kills += 1

    def die_young(self) -> None:
        """Killed, and started again, and killed before it has come far."""
        self.server.kill()
        dead = self.server.process
        with ThreadPoolExecutor(max_workers=1) as pool:
            starting = pool.submit(self.server.start)
            assert eventually(lambda: self.server.process is not dead)
            time.sleep(random.uniform(0, 1.5))
            self.server.kill()
            with contextlib.suppress(RuntimeError):
                starting.result()
        self.server.start()
        self.kills += 2


LONG = pytest.param(MANY_KILLS, marks=[pytest.mark.proof, pytest.mark.timeout(1800)], id="fifty")


@pytest.fixture(scope="module", params=[pytest.param(SOME_KILLS, id="some"), LONG])
def ordeal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ordeal]:
    """A server killed so many times while everybody publishes and reads; the facts are told by the tests."""
    env = {"TRIO_SSE_JOURNAL": "sqlite:hub.db", "TRIO_SSE_RETENTION_EVENTS": EVERYTHING}
    with running(Server(folder=tmp_path_factory.mktemp("ordeal"), env=env)) as server:
        ordeal = Ordeal(server)
        try:
            ordeal.run(request.param)
        finally:
            for client in ordeal.clients:
                client.abandoned.set()
        assert ordeal.kills >= request.param
        assert not ordeal.faults()
        assert not [client.name for client in ordeal.clients if client.is_alive()]
        assert all(client.cuts >= request.param for client in ordeal.subscribers)
        yield ordeal
        assert server.terminate() == 0
        assert "Traceback" not in server.log()


def test_what_was_acknowledged_is_there_after_kills(ordeal: Ordeal) -> None:
    """Each event, under the id that its publisher was told."""
    there = {event.id: event.data for event in ordeal.journal}
    for publisher in ordeal.publishers:
        assert len(publisher.acked) > ordeal.kills / 2
        for number, id in publisher.acked.items():
            assert there.get(id) == publisher.data(number)


def numbers(ordeal: Ordeal, publisher: Publisher) -> list[int]:
    """What is kept of a publisher, in the journal's order."""
    told = [event.data.rpartition(" ") for event in ordeal.journal]
    return [int(number) for name, _, number in told if name == publisher.name]


def test_ids_increase_over_kills(ordeal: Ordeal) -> None:
    """From one life to the next too."""
    ids = [EventID.parse(event.id or "") for event in ordeal.journal]
    assert all(one < next for one, next in itertools.pairwise(ids))


def test_each_publishers_order_is_kept_over_kills(ordeal: Ordeal) -> None:
    """No number stands behind a higher one, and none is missing."""
    for publisher in ordeal.publishers:
        found = numbers(ordeal, publisher)
        assert found == sorted(found)
        assert set(found) == set(range(1, publisher.last + 1))


def test_an_event_that_was_sent_again_after_a_kill_is_there_once(ordeal: Ordeal) -> None:
    """It was kept, and its answer lost: the same key, or a look into the journal, makes no second one of it."""
    for publisher in ordeal.publishers:
        found = numbers(ordeal, publisher)
        assert len(found) == len(set(found))
        assert not isinstance(publisher, Poster) or len(publisher.replayed) > ordeal.kills / 3


def test_every_subscriber_has_the_journals_sequence_over_kills(ordeal: Ordeal) -> None:
    """Nothing is missing, and nothing comes again, for who comes back with its cursor."""
    for subscriber in ordeal.subscribers:
        assert subscriber.events == ordeal.journal


def test_no_gap_is_told_for_a_kill(ordeal: Ordeal) -> None:
    """Nothing was lost, so nothing is said."""
    assert [subscriber.gaps for subscriber in ordeal.subscribers] == [[], [], []]


# -- full -------------------------------------------------------------------------------------------------------------

HEARTBEAT_S = 0.2
PAGE = 4096
"""What a file system gives out at a time, and what SQLite writes at a time."""

KEY = {"Idempotency-Key": "one of its own"}
SOME_ROUNDS, MANY_ROUNDS = 100, 1500


class Disk:
    """A small file system of its own, and a file in it that takes what room is to be taken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = (folder / "filler").open("wb")

    @property
    def room(self) -> int:
        told = os.statvfs(self.folder)
        return told.f_bavail * told.f_frsize

    def leave(self, room: int) -> None:
        """Take all but so many bytes, whatever others take meanwhile."""
        size = self._filler.tell()
        for _ in range(100):
            wanted = size + self.room - room
            with contextlib.suppress(OSError):  # somebody was quicker
                if wanted > size:
                    os.posix_fallocate(self._filler.fileno(), size, wanted - size)
                else:
                    os.ftruncate(self._filler.fileno(), max(0, wanted))
                self._filler.seek(0, os.SEEK_END)
                return
        raise AssertionError(f"there are {self.room} bytes left, not {room}")

    def fill(self) -> None:
        self.leave(0)

    def empty(self) -> None:
        self._filler.truncate(0)
        self._filler.seek(0)

    def close(self) -> None:
        self._filler.close()


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Disk]:
    """A disk of this size, mounted for the length of the block."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    disk = Disk(folder)
    try:
        yield disk
    finally:
        disk.close()
        # A process that was killed a moment ago may still have files there.
        assert eventually(lambda: subprocess.run(["umount", folder], capture_output=True, check=False).returncode == 0)


@contextlib.contextmanager
def serving_from(disk: Disk, **env: str) -> Iterator[Server]:
    """A server with its journal on a disk, and its log elsewhere."""
    env = {
        "TRIO_SSE_JOURNAL": f"sqlite:{disk.folder / 'hub.db'}",
        "TRIO_SSE_RETENTION_EVENTS": EVERYTHING,
        "TRIO_SSE_HEARTBEAT_S": str(HEARTBEAT_S),
    } | env
    with running(Server(folder=disk.folder.parent, env=env)) as server:
        yield server


def kept(server: Server, topic: str) -> list[str]:
    """The data of all events of a topic, in the journal's order."""
    end = publish(server, topic, END)
    found = []
    for event in received(server, f"/events?topic={topic}&last_event_id=earliest"):
        if event.id == end:
            break
        found.append(event.data)
    return [data for data in found if data != END]


def status_of(server: Server, path: str) -> int:
    return ask(server, "GET", path).status


@dataclass
class Filled:
    """What everybody saw of a disk that was full, and then was not."""

    workers: list[list[int]] = field(default_factory=list)
    posted: list[Answer] = field(default_factory=list)
    streamed: Answer | None = None
    open_stream: list[Any] = field(default_factory=list)
    heartbeats: int = 0
    healthy: int = 0
    ready: list[int] = field(default_factory=list)
    history: str = ""
    resumed: Answer | None = None
    taken: bytes = b""
    kept: list[str] = field(default_factory=list)
    kept_after_a_kill: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    saw = Filled()
    with (
        mounted(tmp_path_factory.mktemp("filled") / "disk", "16m") as disk,
        serving_from(disk) as server,
        Listener(server, "/events?topic=disk") as listener,
        Wire(server) as publisher,
    ):
        publish(server, "disk", "before")
        listener.take(b"data: before\n\n")
        publisher.send(
            b"POST /topics/disk HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        publisher.chunk(b"id: 1\ndata: streamed\n\n")
        publisher.take(b"\r\n{")
        saw.open_stream.append(json.loads(b"{" + publisher.take(b"}\n")))
        saw.workers.append(server.workers())
        disk.fill()
        large = b"x" * 10_000
        saw.posted = [ask(server, "POST", "/topics/disk", b"lost " + large, KEY) for _ in range(3)]
        events = b"id: 1\ndata: lost too %b\n\n" % large
        saw.streamed = ask(server, "POST", "/topics/disk", iter([events]), {"Content-Type": "text/event-stream"})
        publisher.chunk(b"id: 2\ndata: lost as well %b\n\n" % large)
        publisher.take(b"\r\n{")
        saw.open_stream.append(json.loads(b"{" + publisher.take(b"}\n")))
        saw.healthy = status_of(server, "/healthz")
        saw.ready.append(status_of(server, "/readyz"))
        until = time.monotonic() + 5 * HEARTBEAT_S
        while time.monotonic() < until or saw.heartbeats < 2:
            listener.take(b":\n")
            saw.heartbeats += 1
        for event in received(server, "/events?topic=disk&last_event_id=earliest"):
            saw.history += event.data + "\n"
            if event.data == "streamed":
                break
        saw.workers.append(server.workers())
        disk.empty()
        eventually(lambda: status_of(server, "/readyz") == 200)
        saw.ready.append(status_of(server, "/readyz"))
        saw.resumed = ask(server, "POST", "/topics/disk", b"after", KEY)
        saw.taken = listener.take(b"data: after\n\n")
        saw.workers.append(server.workers())
        saw.kept = kept(server, "disk")
        disk.fill()
        saw.posted.append(ask(server, "POST", "/topics/disk", b"lost again " + large))
        server.kill()
        disk.empty()
        server.start()
        saw.kept_after_a_kill = kept(server, "disk")
        yield saw
        assert server.terminate() == 0
        assert "Traceback" not in server.log()


def test_an_event_for_which_there_is_no_room_is_refused(filled: Filled) -> None:
    """507 says so, with a sentence for who runs the server."""
    assert [answer.status for answer in filled.posted] == [507] * 4
    assert "no room" in filled.posted[0].json["detail"]


def test_a_stream_of_events_for_which_there_is_no_room_is_refused(filled: Filled) -> None:
    """As a whole, when nothing of it was kept; and with a last line, when something was."""
    assert filled.streamed is not None
    assert filled.streamed.status == 507
    assert [line.get("acked", line.get("status")) for line in filled.open_stream] == [1, 507]


def test_streams_live_on_without_room(filled: Filled) -> None:
    """They have their heartbeats, and who comes has its history."""
    assert filled.heartbeats >= 2
    assert filled.history.splitlines() == ["before", "streamed"]


def test_a_server_without_room_is_alive_and_not_ready(filled: Filled) -> None:
    """A supervisor leaves it alone, a load balancer sends nothing."""
    assert filled.healthy == 200
    assert filled.ready[0] == 503


def test_a_server_that_has_room_again_is_ready(filled: Filled) -> None:
    """It finds out by itself: no publisher comes to a server that is not ready."""
    assert filled.ready[1] == 200


def test_publishing_goes_on_when_there_is_room(filled: Filled) -> None:
    """With the same worker, and to the streams that were open."""
    assert filled.resumed is not None
    assert filled.resumed.status == 201
    assert filled.taken.endswith(b"data: after\n\n")
    first, *others = filled.workers
    assert others == [first, first]


def test_the_key_of_an_event_that_was_refused_is_free(filled: Filled) -> None:
    """Nothing was kept under it: also with another body it is the first."""
    assert filled.resumed is not None
    assert "Idempotency-Replayed" not in filled.resumed.headers


def test_nothing_that_was_refused_is_kept(filled: Filled) -> None:
    """Not in this life, and not when the server is killed while there is no room."""
    assert filled.kept == ["before", "streamed", "after"]
    assert filled.kept_after_a_kill == ["before", "streamed", "after"]


def publish_some(server: Server, topic: str, number: int) -> tuple[list[str], list[str]]:
    """Publish some events of any size, each by itself or all in a stream; those acknowledged, and those refused."""
    events = [f"{number}.{n} " + "x" * int(10 ** random.uniform(0, 5)) for n in range(random.randrange(1, 5))]
    if random.random() < 0.5:
        answers = [ask(server, "POST", f"/topics/{topic}", data.encode()).status for data in events]
        assert set(answers) <= {201, 507}
        told = list(zip(events, answers, strict=True))
        return [data for data, status in told if status == 201], [data for data, status in told if status == 507]
    body = (f"id: {n}\ndata: {data}\n\n".encode() for n, data in enumerate(events, 1))
    answer = ask(server, "POST", f"/topics/{topic}", body, {"Content-Type": "text/event-stream"})
    if answer.status != 200:
        assert answer.status == 507
        return [], events
    acked = max((line["acked"] for line in answer.lines if "acked" in line), default=0)
    assert answer.lines[-1].get("done") or answer.lines[-1]["status"] == 507
    return events[:acked], events[acked:]


ROUNDS = [
    pytest.param(SOME_ROUNDS, id="some"),
    pytest.param(MANY_ROUNDS, marks=[pytest.mark.proof, pytest.mark.timeout(900)], id="many"),
]
ROUNDS_OF_A_LIFE = 50


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_disk_may_be_as_full_as_it_likes(tmp_path: Path, rounds: int) -> None:
    """With any number of pages left, an event is kept or refused with 507, by one worker; now and then it is killed."""
    acknowledged: list[str] = []
    refused = 0
    with (
        mounted(tmp_path / "disk", "64m") as disk,
        serving_from(disk) as server,
        reading(server, "/events?topic=disk") as subscriber,
    ):
        workers = server.workers()
        for number in range(rounds):
            disk.leave(random.choice([0, random.randrange(64) * PAGE, HEADROOM_BYTES + 2000 * PAGE]))
            some, others = publish_some(server, "disk", number)
            acknowledged += some
            refused += len(others)
            assert server.workers() == workers
            if number % ROUNDS_OF_A_LIFE == ROUNDS_OF_A_LIFE - 1:
                server.kill()
                disk.empty()
                server.start()
                workers = server.workers()
        disk.empty()
        assert kept(server, "disk") == acknowledged
        subscriber.join(WITHIN_S)
        assert [event.data for event in subscriber.events] == [*acknowledged, END]
        assert min(len(acknowledged), refused) > rounds / 10
        assert server.terminate() == 0
        assert "Traceback" not in server.log()
        with contextlib.closing(sqlite3.connect(disk.folder / "hub.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


INDEXED_FRAMES = 4062
"""So many pages of the write-ahead log have room in the index that SQLite makes at first (of 32 KiB)."""


LEFT_BESIDE_A_LONG_LOG = HEADROOM_BYTES + (INDEXED_FRAMES + 40) * PAGE
"""With so much left of the disk there is room for some pages more, and for all that is only in the log."""


@contextlib.contextmanager
def long_log(disk: Disk, server: Server) -> Iterator[list[str]]:
    """Somebody reads the file for the length of the block, and the log of what was published meanwhile has grown so
    long that its index must grow with the next events; what was published.
    """
    acknowledged: list[str] = []
    with contextlib.closing(sqlite3.connect(disk.folder / "hub.db", isolation_level=None)) as backup:
        backup.execute("BEGIN")
        backup.execute("SELECT count(*) FROM record").fetchall()
        while (left := INDEXED_FRAMES - frames(disk)) > 25:
            acknowledged.append(f"{len(acknowledged)} " + "x" * PAGE * (200 if left > 250 else 20))
            publish(server, "disk", acknowledged[-1])
        yield acknowledged


def frames(disk: Disk) -> float:
    """So many pages are in the write-ahead log; each has a header of 24 bytes."""
    return (disk.folder / "hub.db-wal").stat().st_size / (PAGE + 24)


def test_a_full_disk_and_a_long_log_do_not_end_the_worker(tmp_path: Path) -> None:
    """Its index has had its room since the file was opened, and streams live on."""
    statuses: list[int] = []
    with mounted(tmp_path / "disk", "64m") as disk, serving_from(disk) as server:
        workers = server.workers()
        with Listener(server, "/events?topic=disk") as listener, long_log(disk, server) as acknowledged:
            for pages in range(30):
                disk.leave(LEFT_BESIDE_A_LONG_LOG + pages * PAGE)
                data = f"{pages} pages " + "x" * PAGE
                statuses.append(ask(server, "POST", "/topics/disk", data.encode()).status)
                acknowledged += [data] if statuses[-1] == 201 else []
            disk.empty()
            id = publish(server, "disk", END)
            listener.take(f"id: {id}\n".encode())
        assert frames(disk) > INDEXED_FRAMES
        assert kept(server, "disk") == acknowledged
        assert set(statuses) <= {201, 507}
        assert server.workers() == workers
        assert server.terminate() == 0


def test_what_was_refused_for_want_of_an_index_is_not_there_after_a_kill(tmp_path: Path) -> None:
    """It would stand in the log, whole, and the next life would find it there."""
    with mounted(tmp_path / "disk", "64m") as disk, serving_from(disk) as server:
        with long_log(disk, server) as acknowledged:
            for pages in range(30):
                disk.leave(LEFT_BESIDE_A_LONG_LOG + pages * PAGE)
                data = f"{pages} pages " + "x" * PAGE
                if ask(server, "POST", "/topics/disk", data.encode()).status == 201:
                    acknowledged.append(data)
                elif frames(disk) > INDEXED_FRAMES:
                    break
            assert frames(disk) > INDEXED_FRAMES
            server.kill()
        disk.empty()
        server.start()
        assert kept(server, "disk") == acknowledged


# -- unusable ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The file of a journal that two servers want."""
    path = tmp_path / "journal" / "hub.db"
    path.parent.mkdir()
    return path


def server_of(journal: Path, folder: Path) -> Server:
    folder.mkdir()
    return Server(folder=folder, env={"TRIO_SSE_JOURNAL": f"sqlite:{journal}"})


def trio_sse_serve(server: Server) -> None:
    """Let it run as one process, without a parent."""
    server.command = [sys.executable, "-W", "error", "-m", "trio_sse", "serve", "--bind", f"127.0.0.1:{server.port}"]


def hypercorn(_: Server) -> None:
    """As it is."""


def refused_line(server: Server, path: Path) -> str:
    """The one line that a server says before it ends, of a file that it cannot use."""
    with pytest.raises(RuntimeError, match="did not come up"):
        server.start()
    assert server.process is not None
    server.process.wait(WITHIN_S)
    log = server.log()
    server.log_path.unlink()
    assert "Traceback" not in log
    (line,) = [line for line in log.splitlines() if "trio_sse" in line or path.name in line]
    assert line.startswith("trio_sse: ")
    assert str(path) in line
    return line


@pytest.mark.parametrize(
    ("name", "run_by"),
    [
        ("a page of zeros left by a killed process", hypercorn),
        ("foreign left with its log", trio_sse_serve),
        ("newer", trio_sse_serve),
        ("ours with words for numbers", hypercorn),
    ],
)
def test_a_server_whose_journal_cannot_be_used_ends_with_one_line(
    tmp_path: Path, journal: Path, name: str, run_by: Callable[[Server], None]
) -> None:
    """It names the file, and leaves it as it was."""
    KINDS[name](journal)
    before = bytes_of(journal.parent)
    server = server_of(journal, tmp_path / "server")
    run_by(server)
    try:
        refused_line(server, journal)
    finally:
        server.kill()
    assert bytes_of(journal.parent) == before


def test_a_server_whose_journal_another_serves_ends_with_one_line(tmp_path: Path, journal: Path) -> None:
    """It says which process that is, which notices nothing."""
    second = server_of(journal, tmp_path / "second")
    with running(server_of(journal, tmp_path / "first")) as first:
        publish(first, "lobby", "before")
        try:
            assert f"process {first.workers()[0]}" in refused_line(second, journal)
        finally:
            second.kill()
        publish(first, "lobby", "after")
        assert kept(first, "lobby") == ["before", "after"]
        assert first.terminate() == 0


def test_a_server_whose_journal_is_locked_ends_with_one_line(tmp_path: Path, journal: Path) -> None:
    """When it is no longer locked, it starts."""
    server = server_of(journal, tmp_path / "server")
    trio_sse_serve(server)
    lay(journal, "left")
    try:
        with held(journal, "BEGIN EXCLUSIVE"):
            before = bytes_of(journal.parent)
            assert "another program holds it" in refused_line(server, journal)
            assert bytes_of(journal.parent) == before
        server.start()
        assert len(kept(server, "a")) == EVENTS + EVENTS_LEFT
        assert server.terminate() == 0
    finally:
        server.kill()
