"""What comes on the streams, and what it means for the accounts.

All clients of a channel are sent the very same bytes, so what a chunk holds is worked out once and remembered
(:class:`_Piece`): for all others it is a look in a dictionary, and one comparison that shows that the client is where
the piece begins. Everything else, a chunk cut anywhere, a hole, a repetition, goes the slow and exact way, through
the decoders of HTTP and of the event stream; a client is back on the fast one where both stand between two events.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from ..event import Event
from ..record import RESERVED_PREFIX
from .accounting import Arrival, Ledger
from .client import Client
from .connection import READ_BYTES, Loop
from .histogram import FINE, FINE_NS, Histogram
from .response import Body, ends_between_events

BATCH = 128
"""So many sockets are read before it is looked whether an event is due."""

GAP = RESERVED_PREFIX + "gap"

_MEMO_PIECES = 1024
_MEMO_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Piece:
    """What some bytes hold: whole events, the known ones of which stand one behind the other in their ledger."""

    begin: int
    end: int
    events: int
    dues: tuple[int, ...]
    last_event_id: str


class Reading:
    """All that has come to all clients.

    An event is known by its stamp or, where nothing is published here, by the server's ID.
    """

    def __init__(self, stamps: re.Pattern[str] | None, ledgers: Sequence[Ledger]) -> None:
        self.latencies = Histogram()
        self.events = 0
        """Events that came, ours and others, repetitions too."""
        self.others = 0
        """Those of them that nobody here can account for."""
        self.delivered_fast = 0
        """Those that a ledger was not asked about, since they were the next."""
        self.spoken = 0
        """Clients that something has come for."""
        self.arrived_ns = 0
        self.between: dict[int, Client] = {}
        """By descriptor, those that stand between two events, and where nothing is in the way."""
        self._stamps = stamps
        self._ledgers = ledgers
        self._memo: dict[bytes, _Piece] = {}
        self._memo_bytes = 0

    def receive(self, loop: Loop, take: Callable[[Client, bytes], None]) -> None:
        """Read what has come, and let the others of the loop have their turns; ``take`` is given what is not known."""
        between, memo, turns = self.between, self._memo, loop.turns
        fine, clock = self.latencies.fine, time.monotonic_ns
        fast = events = now = 0
        # No call that can be spared: this is what every delivery costs.
        for fd, mask in loop.epoll.poll(0, BATCH):
            client = between.get(fd)
            if client is None:
                if fd in turns:  # else it was closed in an earlier turn
                    turns[fd](mask)
                continue
            try:
                data = client.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            piece = memo.get(data)
            if piece is None or piece.begin != client.place:
                take(client, data)
                continue
            now = clock()
            client.place = piece.end
            client.last_event_id = piece.last_event_id
            fast += piece.end - piece.begin
            events += piece.events
            for due in piece.dues:
                ns = now - due
                if ns < FINE_NS:
                    fine[ns >> FINE] += 1
                else:
                    self.latencies.add(ns)
        if events:
            self.arrived_ns = now
            self.delivered_fast += fast
            self.events += events
            self.others += events - fast

    def read(self, client: Client, body: Body, data: bytes) -> bool:
        """Take chunks one by one, since most are known; whether the stream goes on.

        Where more has come than was read, a part of a chunk waits for the rest of it.

        Raises:
          BadResponse, TooLarge: this is no stream of events any more.
        """
        full = len(data) >= READ_BYTES
        tail, client.tail = client.tail, b""
        data = tail + data
        at = 0
        while at < len(data) and not body.ended:
            end = body.chunk_end(data, at) if client.between else at + body.left
            piece = self._memo.get(data[at:end]) if client.between and end > 0 else None
            if piece is not None and piece.begin == client.place and not client.slow:
                self._skip(client, piece)
            elif client.between and not end and full and not client.slow:
                client.tail = data[at:]
                break
            else:
                if not at < end < len(data):
                    end = len(data)
                self._read(client, body, data[at:end])
            at = end
        self._stand(client)
        return not body.ended

    def _skip(self, client: Client, piece: _Piece) -> None:
        """What a known piece holds has come."""
        now = self.arrived_ns = time.monotonic_ns()
        client.place = piece.end
        client.last_event_id = piece.last_event_id
        known = piece.end - piece.begin
        self.delivered_fast += known
        self.events += piece.events
        self.others += piece.events - known
        for due in piece.dues:
            self.latencies.add(now - due)

    def read_tail(self, client: Client) -> bool:
        """Take what waits for more, though it is a part; whether the stream goes on."""
        tail, client.tail = client.tail, b""
        if client.body is None:
            return True
        if tail:
            self._read(client, client.body, tail)
        return not client.body.ended

    def _read(self, client: Client, body: Body, data: bytes) -> None:
        """Take some bytes the slow and exact way."""
        content = body.feed(data)
        if content and not client.spoke:
            client.spoke = True
            self.spoken += 1
        ledger, decoder = self._ledgers[client.channel], client.decoder
        begin, mended, was_between = client.place, ledger.mended, client.between
        decoder.last_event_id = client.last_event_id
        count, dues, plain = 0, list[int](), True
        now = time.monotonic_ns()
        for event in decoder.feed(content):
            count += 1
            due, arrival = self._account(client, ledger, event)
            plain = plain and arrival is Arrival.NEXT
            if due is not None and not client.slow:
                dues.append(due)
                self.latencies.add(now - due)
        if count:
            self.events += count
            self.arrived_ns = now
        client.last_event_id = decoder.last_event_id
        if decoder.retry is not None:
            client.retry_s = decoder.retry / 1000
        if ledger.mended != mended:
            self._memo.clear()
        client.between = body.at_boundary and ends_between_events(content, began_between=was_between)
        # A reader that begins here has no place yet, which is none of the piece's.
        begun = begin >= 0 or client.place < 0
        if was_between and client.between and plain and begun and count and not client.slow:
            self._remember(data, _Piece(begin, client.place, count, tuple(dues), client.last_event_id))

    def _account(self, client: Client, ledger: Ledger, event: Event) -> tuple[int | None, Arrival | None]:
        """When the event was due, if that is known and it has not come before; and how it came."""
        if event.type.startswith(RESERVED_PREFIX):
            client.told = client.told or event.type == GAP
            return None, None
        key: Hashable
        due: int | None = None
        if self._stamps is None:
            key = event.id
        else:
            stamp = self._stamps.search(event.data)
            key, due = (None, None) if stamp is None else (int(stamp[2]), int(stamp[1]))
        if key is None:
            self.others += 1
            return None, Arrival.NEXT
        arrival = ledger.take(client, key)
        return (None if arrival is Arrival.AGAIN else due), arrival

    def _stand(self, client: Client) -> None:
        """Where a client stands now decides which way its next bytes go."""
        connection = client.connection
        assert connection is not None
        if client.between and not (client.tail or client.slow or connection.is_secure):
            self.between[connection.fileno] = client
        else:
            self.between.pop(connection.fileno, None)

    def _remember(self, data: bytes, piece: _Piece) -> None:
        self._memo_bytes += len(data)
        if len(self._memo) >= _MEMO_PIECES or self._memo_bytes > _MEMO_BYTES:
            self._memo.clear()
            self._memo_bytes = len(data)
        self._memo[data] = piece
