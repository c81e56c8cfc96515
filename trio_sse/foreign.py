"""Any async iterable of events as a source of a stream.

It may not be cancelled in the middle of a step, so a task of its own reads it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterable, Callable
from types import TracebackType
from typing import Self

import trio

from . import seldom, server, wire
from .broadcast import EndReason
from .errors import TrioSSEError
from .event import Event

log = logging.getLogger(__name__)


async def close(source: object) -> None:
    """Close a source, if it is one that can be closed."""
    aclose = getattr(source, "aclose", None)
    if aclose is not None:
        await aclose()


def say_failed(error: Exception) -> None:
    """Tell the operator that a source failed; of one that fails for everybody, once."""
    known = isinstance(error, TrioSSEError)  # then it has been logged where it was raised
    seldom.say(log, "a stream's source failed; the stream is ended", error=None if known else error)


class _Encoded:
    __slots__ = ("frame",)

    def __init__(self, event: Event) -> None:
        self.frame = wire.encode(event)


class Foreign:
    """Any async iterable of events as a source: a task reads it, one event ahead at the most."""

    def __init__(self, events: AsyncIterable[Event], end: Callable[[EndReason], None]) -> None:
        self.ended: EndReason | None = None
        self._events = events
        self._end = end
        self._send, self._receive = trio.open_memory_channel[_Encoded](0)
        self._ahead: _Encoded | None = None
        self._waiting = trio.CancelScope()
        self._nursery_manager = trio.open_nursery()

    async def __aenter__(self) -> Self:
        self._nursery = await self._nursery_manager.__aenter__()
        self._nursery.start_soon(self._read)
        self._nursery.start_soon(self._watch_shutdown)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._nursery.cancel_scope.cancel()
        await self._nursery_manager.__aexit__(None, None, None)  # the error is not of its tasks: do not wrap it
        self._receive.close()

    def receive_nowait(self) -> _Encoded:
        if self._ahead is None:
            return self._receive.receive_nowait()
        taken, self._ahead = self._ahead, None
        return taken

    async def wait(self) -> None:
        with trio.CancelScope() as self._waiting, contextlib.suppress(trio.EndOfChannel):
            self._ahead = await self._receive.receive()

    def wake(self) -> None:
        self._waiting.cancel()

    def written(self) -> None:
        pass

    def kept(self) -> bytes:
        frames: list[bytes] = []
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                frames.append(self.receive_nowait().frame)
        return b"".join(frames)

    async def _read(self) -> None:
        try:
            async for event in self._events:
                await self._send.send(_Encoded(event))
        except Exception as error:
            say_failed(error)
            self.ended = "failed"
        finally:
            self._send.close()
            try:
                await close(self._events)
            except Exception as error:
                say_failed(error)

    async def _watch_shutdown(self) -> None:
        connection = server.current_connection.get()
        if connection is not None:
            await connection.context.terminated.wait()
            self._end("shutdown")
