"""How an answer stands on an HTTP/1 connection: in as few writes as it needs, and without asking h11 for each piece.

Hypercorn writes a head, each piece of the body, and the end of the body, even when that is no byte. Here the head waits
for what follows it, as ASGI says it should, and nothing is not written.
"""

from __future__ import annotations

from typing import Any

import h11
from hypercorn.events import RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.typing import H11SendableEvent

from ..broadcast import Framing
from .drain import closing
from .idle import is_crowded

_app_send = HTTPStream.app_send


def chunked(data: bytes) -> bytes:
    """One chunk of an HTTP/1.1 body (RFC 9112 § 7.1); not of no bytes, which would end it."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def unframed(data: bytes) -> bytes:
    """A piece of an HTTP/1.0 body, which ends with the connection."""
    return data


FRAMINGS: dict[str, Framing] = {"ChunkedWriter": chunked, "Http10Writer": unframed}
"""By what h11 calls them."""


def framing_of(connection: object) -> Framing | None:
    """How a connection frames the body it is sending; none when it sends none, or one of a stated length.

    A piece of such a body changes nothing in h11, so it may be written without it.
    """
    if not isinstance(connection, h11.Connection) or connection.our_state is not h11.SEND_BODY:
        return None
    return FRAMINGS.get(type(connection._writer).__name__)


async def app_send(self: HTTPStream, message: Any) -> None:
    """``HTTPStream.app_send``, with a short way for a piece of a body that is not the last.

    A piece of no bytes asks for the head; and an application that fails before any has said this much.
    """
    if self.state is ASGIHTTPState.RESPONSE and (message is None or message.get("more_body")):
        protocol = self.send.__self__  # type: ignore[attr-defined]
        if type(protocol) is H11Protocol:
            body = None if message is None else message.get("body")
            if not body:
                if head := _held_head(protocol):
                    await protocol.send(RawData(head))
            elif (frame := framing_of(protocol.connection)) is not None:
                await protocol.send(RawData(_held_head(protocol) + frame(body)))
                return
    await _app_send(self, message)


async def send_h11_event(self: H11Protocol, event: H11SendableEvent) -> None:
    """``H11Protocol._send_h11_event``, which holds the head of a response back until something follows it."""
    if type(event) is h11.Response and (self.context.terminated.is_set() or is_crowded(self.context)):
        event = closing(event)
    try:
        data = self.connection.send(event)
    except h11.LocalProtocolError:
        if self.connection.their_state != h11.ERROR:
            raise
        return
    if type(event) is h11.Response:
        self.__dict__["_head"] = data
    elif data := _held_head(self) + (data or b""):
        await self.send(RawData(data))


def _held_head(protocol: H11Protocol) -> bytes:
    head: bytes = protocol.__dict__.pop("_head", b"")
    return head
