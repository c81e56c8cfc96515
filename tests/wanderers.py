"""Clients who come and go with their cursor, publishers who do not give up, and a server that is killed meanwhile.

All of them are Trio tasks of one thread. Hundreds of clients cost a part of a core, because each rests a little
between two looks, and reads then what has gathered.

What a client receives is judged at once, by its steps. A *step* leads from a cursor to the event that came behind it.
All clients share one table of steps, so two who were told different things are found out where it happens. When each
step is one of the journal's own, no client can have missed, repeated or swapped anything: it began at a cursor, went
from each event to the next, and stands at the last.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from random import Random

import trio

from trio_sse.event import EventID
from trio_sse.load.response import Body, Head
from trio_sse.wire import CONTENT_TYPE

from .conftest import Listener, last_event_id
from .serving import Server

STAY_S, AWAY_S = (0.2, 8.0), (0.0, 1.5)
"""So long a client reads before it leaves, and so long it is away."""

REST_S = (0.05, 0.25)
"""So long it rests between two looks, unless there was more than it took."""

MOUTHFUL = 64 * 1024
"""So much is taken in a look, most often; sometimes little, so that events are cut anywhere."""

LAST_LOOK_S = 0.05
"""Who leaves looks once more, and takes a few bytes: so it leaves in the middle of an event, if anything is there."""

TICK_S = 0.05
"""What is due in this time is streamed together."""

PAUSE_S = 0.05
"""A publisher whose connection broke tries again after this."""

Event = tuple[bytes, bytes]
"""Its ID, and its data."""

BROKEN = (OSError, trio.BrokenResourceError)

_OPENING = re.compile(rb": stream\nretry: [0-9]+\nid: ([0-9]+-[0-9]+)")
_EVENT = re.compile(rb"id: ([0-9]+-[0-9]+)\ndata: ([^\n]+)\n\n")


class Fault(Exception):
    """Something came that must never come; the message says what, to a person."""


def order(id: bytes) -> EventID:
    """What IDs and positions are compared by."""
    return EventID.parse(id.decode())


# -- those who read ----------------------------------------------------------------------------------------------------


class Blocks:
    """What is whole of one stream, its bytes cut anywhere. The rest goes with this, as with an EventSource."""

    def __init__(self, cursor: bytes | None) -> None:
        self.position: bytes | None = None
        """The cursor that the stream opened with, once it has; it should be the one that was asked for."""
        self._cursor = cursor
        self.unfinished = b""
        self._body: Body | None = None

    def feed(self, piece: bytes) -> list[Event]:
        """The events that this piece makes whole.

        Raises:
          Fault: something else came: a status that closes an EventSource for ever, or an event of the hub's own.
        """
        if self._body is None:
            head, end, piece = (self.unfinished + piece).partition(b"\r\n\r\n")
            if not end:
                self.unfinished = head
                return []
            answer = Head.parse(head)
            if answer.status != 200:
                raise Fault(f"an EventSource was closed for ever: {head[:80]!r}")
            self._body, self.unfinished = answer.body(), b""
        whole, end, self.unfinished = (self.unfinished + self._body.feed(piece)).rpartition(b"\n\n")
        whole += end
        if self.position is None and whole:
            first, _, whole = whole.partition(b"\n\n")
            opening = _OPENING.fullmatch(first)
            if opening is None or self._cursor not in (None, opening[1]):
                raise Fault(f"the stream opened with {first!r}")
            self.position = opening[1]
        events: list[Event] = _EVENT.findall(whole)
        if len(events) != whole.count(b"\n\n"):
            raise Fault(f"this is no event of a publisher's: {_EVENT.sub(b'', whole)[:300]!r}")
        return events


class Client:
    """One reader. When it comes back it has nothing but its cursor."""

    def __init__(self, crowd: Crowd, number: int, cursor: bytes | None = None) -> None:
        self.number = number
        self.first = cursor
        """Its first cursor: what is behind it is owed to it."""
        self.cursor = cursor
        self.received = 0
        self.staying = trio.CancelScope()
        self._crowd = crowd
        self._dice = Random(f"{crowd.seed}/{number}")

    async def run(self) -> None:
        """Come and go until it has everything."""
        try:
            while not self.has_everything:
                with contextlib.suppress(*BROKEN):
                    await self._visit()
                if not self.has_everything:
                    await trio.sleep(self._dice.uniform(*AWAY_S))
        except Fault as fault:
            self._crowd.accuse(f"client {self.number}, which had {self.received} events, at {self.cursor!r}: {fault}")

    @property
    def has_everything(self) -> bool:
        """Whether all is published, and all of it has come."""
        last = self._crowd.last
        return last is not None and self.cursor is not None and order(self.cursor) >= order(last)

    async def _visit(self) -> None:
        """Ask for what is behind the cursor, read for a while, and leave without a word."""
        blocks = Blocks(self.cursor)
        stay_s = self._dice.uniform(*STAY_S) if self._crowd.last is None else float("inf")
        with trio.socket.socket() as sock:
            # A reset, so what the kernel still holds for this client is gone, too.
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
            with trio.move_on_after(stay_s) as self.staying:
                await sock.connect(("127.0.0.1", self._crowd.port))
                await sock.send(self._request())
                self._crowd.visits += 1
                while True:
                    most = self._dice.choice((MOUTHFUL, MOUTHFUL, MOUTHFUL, self._dice.randrange(200, 4000)))
                    piece = await sock.recv(most)
                    self._take(blocks.feed(piece), blocks.position)
                    if not piece or self.has_everything:
                        break
                    if len(piece) < most:
                        await trio.sleep(self._dice.uniform(*REST_S))
            if self.staying.cancelled_caught:
                with trio.move_on_after(LAST_LOOK_S):
                    self._take(blocks.feed(await sock.recv(self._dice.randrange(1, 200))), blocks.position)
        self._crowd.cuts += bool(blocks.position and blocks.unfinished)

    def _request(self) -> bytes:
        lines = [f"GET {self._crowd.target} HTTP/1.1", "Host: localhost", f"Accept: {CONTENT_TYPE}"]
        if self.cursor is not None:
            lines.append(f"Last-Event-ID: {self.cursor.decode()}")
        return "\r\n".join([*lines, "", ""]).encode()

    def _take(self, events: Sequence[Event], position: bytes | None) -> None:
        """Go on from the cursor; where there is none, from the position that the stream opened with."""
        if position is None:
            return
        if self.cursor is None:
            self.first = self.cursor = position
        steps, cursor = self._crowd.steps, self.cursor
        for event in events:
            if steps.setdefault(cursor, event) != event:
                raise Fault(f"behind {cursor!r} came {event}, and for another client {steps[cursor]}")
            cursor = event[0]
        self.cursor = cursor
        self.received += len(events)


class Crowd:
    """All clients of one server, and what they have seen."""

    def __init__(self, server: Server, selector: str, seed: int) -> None:
        self.port = server.port
        self.target = f"/events?topic={selector}"
        self.seed = seed
        self.clients: list[Client] = []
        self.steps: dict[bytes, Event] = {}
        self.last: bytes | None = None
        """The ID of the last event, once all is published."""
        self.visits = 0
        self.cuts = 0
        """So many visits ended in the middle of a block."""
        self.faults: list[str] = []
        self.running = trio.CancelScope()

    def accuse(self, what: str) -> None:
        """Say that something went wrong, which ends it all."""
        self.faults.append(f"seed {self.seed}: {what}")
        self.running.cancel()

    def bring_in(self, last: bytes) -> None:
        """All is published: whoever is there comes once more, and from now on each stays until it has everything."""
        self.last = last
        for client in self.clients:
            client.staying.cancel()

    def compare(self, journal: Sequence[Event]) -> list[str]:
        """How what they have seen differs from what there is; nothing, if each had it all, once and in order."""
        faults = []
        place = {id: number for number, (id, _) in enumerate(journal)}
        ids = [order(id) for id, _ in journal]
        for cursor, event in self.steps.items():
            number = place[cursor] + 1 if cursor in place else bisect_right(ids, order(cursor))
            if journal[number : number + 1] != [event]:
                faults.append(f"behind {cursor!r} came {event}: it should have been {journal[number : number + 1]}")
        for client in self.clients:
            assert client.first is not None
            owed = len(journal) - bisect_right(ids, order(client.first))
            if client.received != owed or not client.has_everything:
                faults.append(f"client {client.number} had {client.received} of {owed} events, up to {client.cursor!r}")
        return self.faults + [f"seed {self.seed}: {fault}" for fault in faults]


def read_journal(server: Server, selector: str, last: str, after: str = "earliest") -> list[Event]:
    """What is in the journal up to an event, as a client of the plainest kind reads it."""
    events: list[Event] = []
    with Listener(server, f"/events?topic={selector}&last_event_id={after}") as listener:
        listener.take()
        while not events or events[-1][0] != last.encode():
            block = listener.take()
            event = _EVENT.fullmatch(block.lstrip(b":\n"))  # of heartbeats
            assert event is not None, block
            events.append((event[1], event[2]))
    return events


# -- those who publish -------------------------------------------------------------------------------------------------


class Answer:
    """An answer, read as it comes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.head: Head
        self._stream = stream
        self._body: Body | None = None

    async def read(self) -> bytes:
        """What comes next of the body; nothing at its end.

        Raises:
          trio.BrokenResourceError: the connection ended before the answer.
        """
        data = b""
        while self._body is None:
            data += await self._receive()
            head, end, rest = data.partition(b"\r\n\r\n")
            if end:
                self.head = Head.parse(head)
                self._body = self.head.body()
                data = self._body.feed(rest)
        while not data and not self._body.ended:
            data = self._body.feed(await self._receive())
        return data

    async def read_all(self) -> bytes:
        """The whole body."""
        whole = b""
        while piece := await self.read():
            whole += piece
        return whole

    async def _receive(self) -> bytes:
        data = bytes(await self._stream.receive_some())
        if not data:
            raise trio.BrokenResourceError
        return data


class Publisher(ABC):
    """One who numbers its events, sends each when it is due, and again when it was not answered."""

    def __init__(self, run: Run, name: str, rate: float, seconds: float) -> None:
        self.name = name
        self.topic = f"{ROOM}/{name}"
        self.total = round(rate * seconds)
        self.sent = 0
        """So many events are in the journal, as far as it was told."""
        self.acknowledged: dict[bytes, bytes] = {}
        """The data of events by their ID."""
        self._run, self._rate = run, rate

    def text(self, number: int) -> bytes:
        """The data of one event."""
        return f"{self.name}-{number}".encode()

    async def run(self) -> None:
        """Publish everything, with one connection after another."""
        while self.sent < self.total:
            with contextlib.suppress(*BROKEN):
                await self.publish()
            if self.sent < self.total:
                await trio.sleep(PAUSE_S)

    @abstractmethod
    async def publish(self) -> None:
        """Publish with one connection until everything is acknowledged.

        Raises:
          OSError, trio.BrokenResourceError: the connection broke.
        """

    async def connect(self) -> trio.SocketStream:
        """A new connection."""
        return await trio.open_tcp_stream("127.0.0.1", self._run.server.port)

    def advance(self, id: str, sent: int) -> None:
        """So many are in the journal now, the last of them under this ID."""
        self.sent = sent
        self.acknowledged[id.encode()] = self.text(sent - 1)
        self._run.answered.unpark_all()

    async def wait_due(self, number: int) -> int:
        """Wait until an event is due; how many are by then. Who is late has no time to wait."""
        await trio.sleep_until(self._run.began + number / self._rate)
        due = int((trio.current_time() - self._run.began) * self._rate)
        return min(self.total, max(number + 1, due))

    def request(self, *headers: str) -> bytes:
        """The head of a request to publish."""
        lines = [f"POST /topics/{self.topic} HTTP/1.1", "Host: localhost", *headers]
        return "\r\n".join([*lines, "", ""]).encode()


class Poster(Publisher):
    """It posts one event after the other, each with a key of its own: sent again it is still the same event."""

    async def publish(self) -> None:
        async with await self.connect() as stream:
            while self.sent < self.total:
                await self.wait_due(self.sent)
                text = self.text(self.sent)
                head = self.request(f"Content-Length: {len(text)}", f"Idempotency-Key: {text.decode()}")
                await stream.send_all(head + text)
                answer = Answer(stream)
                body = await answer.read_all()
                if answer.head.status != 201:
                    self._run.crowd.accuse(f"{text!r} was answered with {answer.head.status}: {body!r}")
                    return
                self._run.replayed += "idempotency-replayed" in answer.head.headers
                self.advance(json.loads(body)["id"], self.sent + 1)


class Streamer(Publisher):
    """It publishes by a request that lasts. After a break it looks in the journal for what became of the last of it."""

    _life = 0  # of the server that it last looked at

    async def _look(self) -> None:
        """Learn what the journal has, also what was not acknowledged any more. Of its own nothing is under way now."""
        if self._life == self._run.life:
            return
        async with self._run.standing:
            self._life, server = self._run.life, self._run.server
            last = await trio.to_thread.run_sync(last_event_id, server, self.topic)
            known = max(self.acknowledged, key=order, default=b"earliest")
            if last is not None and last.encode() != known:
                rest = await trio.to_thread.run_sync(read_journal, server, self.topic, last, known.decode())
                self._run.found += len(rest)
                self.advance(last, self.sent + len(rest))

    async def publish(self) -> None:
        await self._look()
        stream = await self.connect()
        try:
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._send, stream)
                await self._read(Answer(stream))
                nursery.cancel_scope.cancel()
        except* BROKEN:
            if self._life == self._run.life:
                self._run.crowd.accuse(f"a server that nobody had killed let go of {self.topic} at {self.sent}")

    async def _send(self, stream: trio.SocketStream) -> None:
        number = self.sent
        await stream.send_all(self.request(f"Content-Type: {CONTENT_TYPE}", "Transfer-Encoding: chunked"))
        while number < self.total:
            due = await self.wait_due(number)
            events = b"".join(b"id: %d\ndata: %b\n\n" % (each, self.text(each)) for each in range(number, due))
            await stream.send_all(b"%x\r\n%b\r\n" % (len(events), events))
            number = due
            await trio.sleep(TICK_S)
        await stream.send_all(b"0\r\n\r\n")

    async def _read(self, answer: Answer) -> None:
        unfinished = b""
        while piece := await answer.read():
            *lines, unfinished = (unfinished + piece).split(b"\n")
            for told in map(json.loads, lines):
                if "acked" in told:
                    self.advance(told["id"], told["acked"] + 1)
                elif "done" not in told:
                    self._run.crowd.accuse(f"{self.topic} was answered at {self.sent} with {told}")


# -- the whole of it ---------------------------------------------------------------------------------------------------

ROOM = "run"
"""The topics of all publishers are in it."""


class Run:
    """Clients, publishers, and somebody who kills the server at random moments."""

    def __init__(
        self, server: Server, *, seed: int, clients: int, rate: float, seconds: float, kills: int, within_s: float
    ) -> None:
        self.server = server
        self.seed = seed
        self.crowd = Crowd(server, f"{ROOM}/*", seed)
        self.crowd.clients = [Client(self.crowd, number) for number in range(clients)]
        posting = 0.03 * rate
        self.publishers: list[Publisher] = [Poster(self, f"post{each}", posting, seconds) for each in range(3)]
        self.publishers.append(Streamer(self, "stream", rate - 3 * posting, seconds))
        self.kills = kills
        self.within_s = within_s
        self.life = 0
        """So often was the server killed."""
        self.answered = trio.lowlevel.ParkingLot()
        """Who waits for the progress of the publishers."""
        self.standing = trio.Lock()
        """Who holds it is not surprised by a kill."""
        self.replayed = 0
        """So many posts were answered as what had been published before."""
        self.found = 0
        """So many events of a stream were in the journal, and had not been acknowledged."""
        self.began = 0.0
        self.journal: list[Event] = []

    async def run(self) -> None:
        """Publish everything, kill as often as is wanted, and let every client have it all."""
        with trio.move_on_after(self.within_s) as self.crowd.running:
            self.began = trio.current_time()
            async with trio.open_nursery() as reading:
                for client in self.crowd.clients:
                    reading.start_soon(client.run)
                async with trio.open_nursery() as publishing:
                    for publisher in self.publishers:
                        publishing.start_soon(publisher.run)
                    publishing.start_soon(self._kill)
                acknowledged = [id for publisher in self.publishers for id in publisher.acknowledged]
                self.crowd.bring_in(max(acknowledged, key=order))
        if self.crowd.running.cancelled_caught and not self.crowd.faults:
            behind = [client.number for client in self.crowd.clients if not client.has_everything]
            sent = {publisher.name: f"{publisher.sent} of {publisher.total}" for publisher in self.publishers}
            self.crowd.accuse(f"not done in {self.within_s} s: sent {sent}, killed {self.life} times, {behind=}")

    @property
    def progress(self) -> float:
        """Which part of all events is published."""
        return sum(each.sent for each in self.publishers) / sum(each.total for each in self.publishers)

    async def _kill(self) -> None:
        """Each kill has its moment in the progress, so that however slow the machine is they all meet it."""
        dice = Random(self.seed)
        for number in range(self.kills):
            moment = (number + dice.uniform(0.1, 0.9)) / self.kills
            while self.progress < moment:
                await self.answered.park()
            await trio.sleep(dice.uniform(0, 0.05))
            async with self.standing:
                self.life += 1
                self.server.kill()
                await trio.to_thread.run_sync(self.server.start)
