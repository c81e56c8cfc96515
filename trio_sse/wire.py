"""``text/event-stream`` in both directions (WHATWG HTML § 9.2.5 and § 9.2.6), with no I/O in it.

Lines end with CRLF, LF or CR and with nothing else: ``str.splitlines`` knows eight more and is wrong here.
A stream is bytes cut anywhere, also between CR and LF or inside a character, so :class:`Decoder` keeps the
unfinished line and remembers how far it has looked: a line that comes in ten thousand pieces is still
looked at once. Most events are blocks of one shape, as :func:`encode` writes them; one that is all there is taken
in a single step, and means what its lines would.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from .errors import InvalidEvent, TooLarge
from .event import DEFAULT_TYPE, MAX_NAME, MAX_RETRY_MS, Event

MAX_DATA = 1024 * 1024
"""Most bytes of data in one event, and of a body that becomes one."""

MAX_FRAME = 2 * MAX_DATA
"""Most bytes that the data of one event takes up on the wire, where each of its lines begins with ``data: ``. Twice its
own limit: room for a mebibyte in lines of six bytes, and a mebibyte of line ends does not become seven."""

HEARTBEAT = b":\n"
"""A comment of one line. With a second newline some parsers would dispatch an empty event."""

CONTENT_TYPE = "text/event-stream"

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BLOCK = re.compile(rb"(?:id: ?([^\r\n\0]*+)\n)?+(?:event: ?([^\r\n]*+)\n)?+data: ?([^\r\n]*+)\n\n")
_RETRY_DIGITS = len(str(MAX_RETRY_MS))
_LINE_SLACK = 4 * MAX_NAME + 64  # a line is a field name, a colon, and a value: data, or a name in UTF-8


def encode(event: Event, *, id: str | None = None) -> bytes:
    """One event as the bytes of a block, its blank line included; one space after every colon.

    ``decode(encode(event)) == event`` for every event that can be built. A given ``id`` takes the place of its own.
    """
    id = event.id if id is None else id
    lines = []
    if id is not None:
        lines.append(f"id: {id}\n")
    if event.type != DEFAULT_TYPE:
        lines.append(f"event: {event.type}\n")
    if event.retry is not None:
        lines.append(f"retry: {event.retry}\n")
    lines.append("data: " + event.data.replace("\n", "\ndata: ") + "\n\n")
    return "".join(lines).encode()


def framed_length(data: str) -> int:
    """Bytes of the lines of data that :func:`encode` makes of this, counted without making them."""
    return (len(data) if data.isascii() else len(data.encode())) + len("data: \n") + len("data: ") * data.count("\n")


def opening(retry_ms: int, position: str | None = None) -> bytes:
    """What a stream says first: a comment, the reconnection time, and a cursor that dispatches nothing.

    Without the cursor a browser that has not had an event yet reconnects with none, and loses in silence.
    """
    block = b"" if position is None else b"id: %b\n\n" % position.encode()
    return b": stream\nretry: %d\n" % retry_ms + block


class Decoder:
    """Bytes in, events out, whatever the cuts.

    Events without data dispatch nothing, as the standard says, but move :attr:`last_event_id` and
    :attr:`retry`. The stream's end dispatches no unfinished event, and does not move the last event ID to it, so
    that resuming brings it again: simply stop feeding.

    ``errors="strict"`` refuses invalid UTF-8, as a publisher deserves; the default replaces it, as the standard
    asks of a reader. Memory is bounded: the data, type and ID of the event being read and one line, none longer
    than ``max_data`` bytes and a few thousand. A fault is for good: fed on, a decoder meets it again, and never
    makes an event of what is left.
    """

    def __init__(self, *, max_data: int = MAX_DATA, errors: Literal["replace", "strict"] = "replace") -> None:
        self.last_event_id = ""
        """The stream's last event ID (§ 9.2.6), to resume with."""
        self.retry: int | None = None
        """The reconnection time the stream last asked for, in milliseconds."""
        self._max_data = max_data
        self._max_line = max_data + _LINE_SLACK
        self._errors = errors
        self._buffer = bytearray()
        self._begin = 0  # where the first line not yet taken begins
        self._looked = 0  # bytes of the buffer already known to hold no line end
        self._after_cr = False  # an LF that comes next belongs to the CR before it
        self._first_line = True
        self._between = False  # the last line taken was a blank one
        self._forget()

    def _forget(self) -> None:
        self._data = bytearray()  # every line of it, each with a LF: a list would take fifty bytes for one
        self._type = ""
        self._id: str | None = None
        self._block_retry: int | None = None

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Take ``chunk`` now and hand out, as they are asked for, the events that are whole.

        Raises (while iterating, after the events before the fault):
          TooLarge: an event holds more than ``max_data`` bytes of data, or a line is longer still.
          InvalidEvent: with ``errors="strict"``, a field is not UTF-8.
        """
        self._buffer += chunk
        return self._events()

    def _events(self) -> Iterator[Event]:
        buffer = self._buffer
        try:
            while True:
                if self._after_cr and self._begin < len(buffer):
                    self._after_cr = False
                    self._begin += buffer[self._begin] == 0x0A
                if self._between and self._looked <= self._begin and (event := self._whole()) is not None:
                    yield event
                    continue
                found = _LINE_END.search(buffer, max(self._begin, self._looked))
                self._looked = len(buffer) if found is None else found.start()
                if self._looked - self._begin > self._max_line:
                    raise TooLarge(f"a line is longer than {self._max_line} bytes")
                if found is None:
                    return
                begin = self._begin
                event = self._line(bytes(buffer[begin : self._looked]))
                self._begin = found.end()  # only now, so that a fault is not passed over
                self._after_cr = found[0] == b"\r" and self._begin == len(buffer)
                self._first_line = False
                self._between = found.start() == begin
                if event is not None:
                    yield event
        finally:
            del buffer[: self._begin]
            self._looked = max(0, self._looked - self._begin)
            self._begin = 0

    def _whole(self) -> Event | None:
        """Take the next block whole, if it is of the usual shape, all there, and within the limits."""
        block = _BLOCK.match(self._buffer, self._begin)
        if block is None or block.end() - block.start() > self._max_data:
            return None
        id, type, data = block.groups()
        event = Event.received(
            self._text(data), self._text(type) if type else DEFAULT_TYPE, None if id is None else self._text(id), None
        )
        if event.id is not None:
            self.last_event_id = event.id
        self._begin = block.end()
        return event

    def _line(self, line: bytes) -> Event | None:
        if self._first_line:
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        if line[0] == 0x3A:  # a comment
            return None
        name, colon, value = line.partition(b":")
        if colon and value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            if len(self._data) + len(value) > self._max_data:
                raise TooLarge(f"an event holds more than {self._max_data} bytes of data")
            self._data += value + b"\n"
        elif name == b"event":
            self._type = self._text(value)
        elif name == b"id":
            if b"\0" not in value:
                self._id = self._text(value)
        elif name == b"retry" and value.isdigit():
            digits = value.lstrip(b"0") or b"0"
            retry = int(digits) if len(digits) <= _RETRY_DIGITS else MAX_RETRY_MS
            self.retry = self._block_retry = min(retry, MAX_RETRY_MS)
        return None

    @property
    def has_unfinished_data(self) -> bool:
        """Whether there is data, or the beginning of a line, that no blank line has made an event yet."""
        return bool(self._data) or (bool(self._buffer) and self._buffer[0] != 0x3A)

    @property
    def held(self) -> int:
        """How many bytes are held of what is not an event yet."""
        return len(self._data) + len(self._buffer)

    def _dispatch(self) -> Event | None:
        if self._id is not None:
            self.last_event_id = self._id
        event = None
        if self._data:
            data = self._text(self._data[:-1])
            event = Event.received(data, self._type or DEFAULT_TYPE, self._id, self._block_retry)
        self._forget()
        return event

    def _text(self, value: bytes | bytearray) -> str:
        try:
            return value.decode("utf-8", self._errors)
        except UnicodeDecodeError:
            raise InvalidEvent("the stream is not UTF-8: send text encoded as UTF-8") from None
