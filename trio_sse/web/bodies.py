"""What the server holds of request bodies: whole ones that become an event, and of streams what is no event yet.

Each is a mebibyte at most, but one HTTP/2 connection carries a hundred at once, and a client may send each slowly. So
there is a budget for one connection, and one for all. A body that goes beyond its connection's is refused. When that of
all is used up, the connection that holds most gives its largest unfinished body, so a few that send slowly hold up
nobody else. A refused body is thrown away as it comes, and so is one whose request has been answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from quart_trio.wrappers.request import TrioBody

from .. import server
from ..errors import HubFull, TooLarge, TrioSSEError

CONNECTION_BYTES = 8 * 1024 * 1024
"""Bytes of bodies held for one connection: eight of the largest at once, more than a browser or a proxy sends."""

TOTAL_BYTES = 64 * 1024 * 1024
"""Bytes of bodies held in all: a small part of a machine's memory, and sixty-four of the largest at once."""


class Body(Protocol):
    """Something that bytes are held for."""

    connection: Any
    held: int

    @property
    def is_over(self) -> bool: ...

    @property
    def is_complete(self) -> bool: ...

    def refuse(self) -> None: ...


class Held:
    """The bytes of bodies that are held, by connection."""

    def __init__(self) -> None:
        self.bytes = 0
        self.refused = 0
        """How many bodies were refused for want of room."""
        self._connections: dict[object, dict[Body, None]] = {}
        self._sums: dict[object, int] = {}

    def take(self, body: Body, size: int) -> None:
        """A body has grown; it, or a larger one of a connection that holds more, is refused where that is too much."""
        connection = body.connection
        self._connections.setdefault(connection, {})[body] = None
        self._sums[connection] = self._sums.get(connection, 0) + size
        body.held += size
        self.bytes += size
        if self._sums[connection] > CONNECTION_BYTES:
            self._refuse(body)
        while self.bytes > TOTAL_BYTES and not body.is_over:
            most = max(self._sums, key=self._sums.__getitem__)
            unfinished = [each for each in self._connections[most] if not each.is_complete] or [body]
            self._refuse(max(unfinished, key=lambda each: each.held))

    def give_back(self, body: Body) -> None:
        """A body is held no more."""
        if body.held:
            self.bytes -= body.held
            self._sums[body.connection] -= body.held
            body.held = 0
            del self._connections[body.connection][body]
            if not self._connections[body.connection]:
                del self._connections[body.connection], self._sums[body.connection]

    def _refuse(self, body: Body) -> None:
        self.refused += 1
        body.refuse()


held = Held()


class BoundedBody(TrioBody):
    """Quart's body within the budgets; what is not needed is not kept."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self._expected = expected_content_length or 0
        self._is_over = False
        self._too_large: TooLarge | None = None  # what is said where the limit is a smaller one
        self.connection = _connection_of(self)
        self.held = 0
        """How many of its bytes are counted."""

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is kept any more."""
        return self._is_over

    @property
    def is_complete(self) -> bool:
        """Whether all of it is here, or it was refused."""
        return self._complete.is_set()

    def append(self, data: bytes) -> None:
        if self._is_over or self._must_raise is not None or not data:
            return
        super().append(data)
        if self._must_raise is None:
            held.take(self, len(data))
        else:
            self._must_raise = self._too_large or self._must_raise
            self.drop()

    def limit(self, size: int, what: str) -> None:
        """Let it be no larger than so many bytes.

        Raises:
          TooLarge: it is, or says that it will be.
        """
        self._max_content_length = size
        self._too_large = TooLarge(f"{what} has more than {size} bytes: send less")
        if max(self._expected, len(self._data)) > size:
            raise self._too_large

    def refuse(self) -> None:
        """There is no room for it."""
        self._must_raise = HubFull("the server holds as much of requests' bodies as it may: send it again in a moment")
        self.drop()
        self.set_complete()

    def drop(self) -> None:
        """Keep nothing of it, and nothing that still comes."""
        self._is_over = True
        held.give_back(self)
        self.clear()


class StreamRest:
    """What is held of a stream of events and is no event yet, within the same budgets.

    It may be refused at any time; ``let_go`` then ends the stream.
    """

    is_complete = False

    def __init__(self, let_go: Callable[[TrioSSEError], None]) -> None:
        self.connection = _connection_of(self)
        self.held = 0
        self.is_over = False
        self._let_go = let_go

    def keep(self, size: int) -> None:
        """So many bytes are held now."""
        if self.is_over:
            return
        if size < self.held:
            held.give_back(self)
        if size > self.held:
            held.take(self, size - self.held)

    def refuse(self) -> None:
        """There is no room for it."""
        self.drop()
        self._let_go(HubFull("the server holds as much of requests' bodies as it may: send the rest again in a moment"))

    def drop(self) -> None:
        """Nothing of it is held any more."""
        self.is_over = True
        held.give_back(self)


def _connection_of(body: object) -> Any:
    """The connection that a body comes by; under a server that does not say, each has one of its own."""
    connection = server.current_connection.get()
    return body if connection is None else connection
