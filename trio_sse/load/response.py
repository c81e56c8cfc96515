"""An answer over HTTP/1.1, its bytes cut anywhere, with no I/O in it (RFC 9112 § 6 and § 7)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MAX_HEAD = 64 * 1024
_MAX_SIZE_LINE = 4096
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r|\Z)")
_COMMENTS = re.compile(rb"(?::[^\r\n]*\r?\n)*")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")


class BadResponse(Exception):
    """The bytes are no HTTP; the message says why, to a person."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first lines of an answer."""

    status: int
    headers: dict[str, str]
    """Names in lower case; of several of one name, the last."""

    @classmethod
    def parse(cls, head: bytes) -> Head:
        """Read everything before the empty line.

        Raises:
          BadResponse: it is not the head of an answer.
        """
        first, *lines = head.split(b"\r\n")
        found = _STATUS.match(first)
        if found is None:
            raise BadResponse(f"this is no HTTP server: it said {first[:60]!r}")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.strip().lower().decode("latin-1")] = value.strip().decode("latin-1")
        return cls(int(found[1]), headers)

    def body(self) -> Body:
        """What decodes the bytes that follow.

        Raises:
          BadResponse: the length is no number.
        """
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            return Body(chunked=True)
        length = self.headers.get("content-length")
        if self.status in (204, 304):
            length = "0"
        if length is not None and not length.isdecimal():
            raise BadResponse(f"the length {length[:60]!r} is no number")
        return Body(chunked=False, length=None if length is None else int(length))


class Body:
    """Takes the framing off: chunks, a length, or neither, where the body ends with the connection."""

    __slots__ = ("_chunked", "_left", "_rest", "_trailing", "ended")

    def __init__(self, *, chunked: bool, length: int | None = None) -> None:
        self._chunked: Final = chunked
        self._left = length or 0  # of the body, or of the chunk and the line end behind it
        self._rest = b""
        self._trailing = False  # behind the last chunk, which is empty
        self.ended = length == 0
        if not chunked and length is None:
            self._left = -1

    @property
    def at_boundary(self) -> bool:
        """Whether the next byte begins a chunk, or framing has no say."""
        return self._left < 0 or (self._chunked and not self._left and not self._rest and not self._trailing)

    @property
    def left(self) -> int:
        """So many bytes to the end of the chunk that has begun; otherwise 0 or less."""
        return self._left if self._chunked else 0

    def chunk_end(self, data: bytes, begin: int) -> int:
        """Where the chunk ends that begins here; 0 where it is a part of one, -1 where that is not to be seen."""
        if not self._chunked:
            return -1
        line_end = data.find(b"\r\n", begin, begin + 20)
        if line_end < 0:
            return 0 if len(data) - begin < 20 else -1
        try:
            length = int(data[begin:line_end], 16)
        except ValueError:
            return -1
        end = line_end + length + 4
        return (end if end <= len(data) else 0) if length > 0 else -1

    def feed(self, data: bytes) -> bytes:
        """What is body of these bytes.

        Raises:
          BadResponse: a chunk has no proper size.
        """
        if not self._chunked:
            if self._left < 0:
                return data
            data = data[: self._left]
            self._left -= len(data)
            self.ended = not self._left
            return data
        if self._rest:
            data = self._rest + data
            self._rest = b""
        pieces = []
        at = 0
        while at < len(data) and not self.ended:
            if self._left:
                if self._left > 2:
                    pieces.append(data[at : at + self._left - 2])
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._rest = data[at:]
                if len(self._rest) > _MAX_SIZE_LINE:
                    raise BadResponse("the size of a chunk does not end")
                break
            line = data[at:end]
            at = end + 2
            if self._trailing:
                self.ended = not line
                continue
            size = line.partition(b";")[0].strip()
            if not _SIZE.fullmatch(size):
                raise BadResponse(f"{size[:60]!r} is not the size of a chunk")
            length = int(size, 16)
            self._trailing = not length
            self._left = length + 2 if length else 0
        return b"".join(pieces)


def ends_between_events(piece: bytes, *, began_between: bool) -> bool:
    """Whether a piece of an event stream ends behind a blank line, or comments after one.

    It may say no where it is so, if the blank line was cut, or is made of CR alone.
    """
    last = max(piece.rfind(b"\n\n"), piece.rfind(b"\n\r\n"))
    if last < 0:
        return began_between and _COMMENTS.fullmatch(piece) is not None
    return _COMMENTS.fullmatch(piece, last + (2 if piece[last + 1] == 0x0A else 3)) is not None
