"""An event, and the ID the journal gives it. Neither can be built wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, Self

from .errors import InvalidEvent, InvalidEventID

MAX_NAME = 1024
"""Most characters in an event's type or ID. They stand in a header or a cursor, not in a body."""

SEQ_BITS = 13
"""Bits of an ID's ``seq``: with 50 for ``ms`` an ID packs into a 63-bit integer."""

MAX_RETRY_MS = 2_147_483_647
"""The longest reconnection time a browser's timer can hold, in milliseconds: about 24 days."""

DEFAULT_TYPE = "message"
"""The type of an event that names none (WHATWG HTML § 9.2.6, step "dispatch")."""

_EVENT_ID = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")
_LINE_END = re.compile(r"\r\n?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # all of Unicode's category Cc


class EventID(NamedTuple):
    """A time, an order and a cursor in one: ``1700000000000-3``.

    ``ms`` is the wall clock in milliseconds when the journal took the event, or later: IDs never go back,
    whatever the clock does. ``seq`` counts the events of one millisecond from 1. An ID with ``seq`` 0 is a
    *position*: a cursor that no event ever has.
    """

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the printed form; nothing looser.

        Raises:
          InvalidEventID: it is anything else.
        """
        match = _EVENT_ID.fullmatch(text)
        if match is None:
            raise InvalidEventID("an event ID looks like 1700000000000-3: digits, a dash, digits")
        return cls(int(match[1]), int(match[2]))

    def next(self, now_ms: int) -> EventID:
        """The ID of an event that comes after this one, at ``now_ms`` on a clock that may have gone back."""
        if now_ms > self.ms:
            return EventID(now_ms, 1)
        if self.seq + 1 >> SEQ_BITS:
            return EventID(self.ms + 1, 1)
        return EventID(self.ms, self.seq + 1)

    def packed(self) -> int:
        """One integer in the order of IDs; a ``seq`` that no ID has packs as the highest."""
        return self.ms << SEQ_BITS | min(self.seq, (1 << SEQ_BITS) - 1)

    @classmethod
    def unpacked(cls, number: int) -> Self:
        """The ID that packs into this integer."""
        return cls(number >> SEQ_BITS, number & (1 << SEQ_BITS) - 1)


ORIGIN = EventID(0, 0)
"""The position before every event."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event as an application sees it (WHATWG HTML § 9.2).

    ``data`` may hold any text; its line ends become ``\\n``, since the format knows no other. ``type`` is what
    a page listens for. ``id`` becomes the page's ``lastEventId``; an event given to a hub has none, because the
    journal gives it. ``retry`` is the reconnection time in milliseconds. ``None`` leaves a field out.

    Raises:
      InvalidEvent: a type or ID holds a control character or is too long, a type is empty, ``retry`` is not
        a whole number from 0 to :data:`MAX_RETRY_MS`, or a text cannot be written as UTF-8.
    """

    data: str
    type: str = DEFAULT_TYPE
    id: str | None = None
    retry: int | None = None

    def __post_init__(self) -> None:
        if "\r" in self.data:
            object.__setattr__(self, "data", _LINE_END.sub("\n", self.data))
        self.check()

    def check(self) -> None:
        """Raises InvalidEvent for what could not have been built, as an event that was :meth:`received` may be."""
        _check_text("data", self.data)
        if self.type != DEFAULT_TYPE:
            if not self.type:
                raise InvalidEvent("the type is empty: leave it out, or name one")
            _check_name("type", self.type)
        if self.id is not None:
            _check_name("id", self.id)
        retry = self.retry
        if retry is not None and (type(retry) is not int or not 0 <= retry <= MAX_RETRY_MS):
            raise InvalidEvent(f"retry is a whole number of milliseconds from 0 to {MAX_RETRY_MS}")

    @classmethod
    def received(cls, data: str, type: str, id: str | None, retry: int | None) -> Self:
        """What a stream from elsewhere said, taken as it is: the standard lets it hold more than we would build.

        It is still safe to encode, because a parsed field holds no line end.
        """
        event = object.__new__(cls)
        object.__setattr__(event, "data", data)
        object.__setattr__(event, "type", type)
        object.__setattr__(event, "id", id)
        object.__setattr__(event, "retry", retry)
        return event


def _check_text(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidEvent(f"the event's {field} holds half of a surrogate pair, which UTF-8 cannot say") from None


def _check_name(field: str, text: str) -> None:
    if len(text) > MAX_NAME:
        raise InvalidEvent(f"the event's {field} has {len(text)} characters; {MAX_NAME} are allowed")
    if control := _CONTROL.search(text):
        raise InvalidEvent(f"the event's {field} holds the control character U+{ord(control[0]):04X}: leave it out")
    _check_text(field, text)
