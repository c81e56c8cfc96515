"""One client: what it remembers from connection to connection, and what an answer means to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus

from ..wire import CONTENT_TYPE, Decoder
from .accounting import Reader
from .connection import Connection
from .response import Body, Head

RETRY_S = 3.0
"""How long a client stays away where the server has not said it (``retry:``); browsers do about the same."""

MAX_DATA = 16 * 1024 * 1024
MAX_DETAIL = 300


class Client(Reader):
    """One subscriber, who may have many connections one after another."""

    __slots__ = (
        "between",
        "body",
        "channel",
        "connection",
        "decoder",
        "head",
        "joined",
        "last_event_id",
        "recv",
        "retry_s",
        "slow",
        "spoke",
        "tail",
        "tried",
    )

    def __init__(self, channel: int, *, slow: bool) -> None:
        super().__init__()
        self.channel = channel
        self.slow = slow
        self.last_event_id = ""
        self.retry_s = RETRY_S
        self.connection: Connection | None = None
        self.head = b""
        self.body: Body | None = None  # while a stream is open
        self.decoder = Decoder(max_data=MAX_DATA)
        self.between = True  # the decoders of its stream stand between two events,
        self.tail = b""  # and this, a part of a chunk, they have not seen
        self.recv: Callable[[int], bytes] = _closed
        self.tried = False  # it had an answer, whichever
        self.joined = False  # it had a stream
        self.spoke = False  # something came on it

    def opened(self, connection: Connection, body: Body) -> None:
        """A stream begins."""
        self.connection, self.body = connection, body
        self.recv = connection.sock.recv
        self.head = b""
        self.decoder = Decoder(max_data=MAX_DATA)
        self.between = True
        self.tail = b""

    def closed(self) -> None:
        """There is no connection any more."""
        self.connection = self.body = None
        self.recv = _closed
        self.head = b""


def _closed(_: int) -> bytes:
    return b""


def is_stream(head: Head) -> bool:
    """Whether this is the beginning of an event stream."""
    is_right = head.status == 200 and _encoding(head) == "identity"
    return is_right and _type(head).partition(";")[0].strip().lower() == CONTENT_TYPE


def _type(head: Head) -> str:
    return head.headers.get("content-type", "none")


def _encoding(head: Head) -> str:
    return head.headers.get("content-encoding", "identity").lower()


def refusal(head: Head, body: bytes) -> str:
    """What an answer says that is not what was asked for, to a person."""
    if head.status == 200 and _encoding(head) != "identity":
        return f"the answer is encoded as {_encoding(head)[:MAX_DETAIL]}, which nobody asked for"
    if head.status == 200:
        return f"the answer is no event stream but of type {_type(head)[:MAX_DETAIL]}"
    try:
        phrase = f"{head.status} {HTTPStatus(head.status).phrase}"
    except ValueError:
        phrase = str(head.status)
    if 300 <= head.status < 400:
        return f"{phrase}, to {head.headers.get('location', 'nowhere')[:MAX_DETAIL]}: give that URL"
    try:
        detail = json.loads(body)["detail"]  # RFC 9457
    except (ValueError, LookupError, TypeError):
        return phrase
    return f"{phrase}: {str(detail)[:MAX_DETAIL]}"
