"""A source of events as an HTTP response, in any framework.

:class:`EventStream` is two things. To Quart it is a response without time limit whose body is the stream. To
everybody else it is an ASGI application, so a Starlette endpoint may return it and a mount may hold it.

Its source is a :class:`~trio_sse.subscription.Subscription`, or any async iterable of events, above all a
``MemoryReceiveChannel``: the progress of a job, the tokens of a language model. Then IDs, if any, are the caller's
own, and there is no resuming.

One task carries a stream: it waits for something to send, and sends it. What a heartbeat and a goodbye need of it is
asked for from elsewhere, by ending its wait; while bytes are on their way there is no wait, so a stream with unsent
bytes gets no heartbeat. While it waits, a broadcaster may write to the client in its place (``server.direct``).
(A foreign source may not be cancelled in mid-step, so it is read by a task of its own.)
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import random
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

import trio
from quart import has_request_context, request
from quart.wrappers.response import ResponseBody
from quart_trio.wrappers import TrioResponse

from . import server, wire
from .broadcast import EndReason
from .errors import HubFull
from .event import Event
from .expiry import Expiry
from .foreign import Foreign, close, say_failed
from .record import RESERVED_PREFIX
from .subscription import Subscription
from .ticker import MARGIN

RETRY_MS = 2000
"""The reconnection time a stream opens with, in milliseconds."""

CHUNK_BYTES = 64 * 1024
"""What waits is sent together, up to about so many bytes."""

SPREAD_MS, SPREAD_MS_PER_STREAM = 200, 2
"""When many streams end at once, each adds so much to the span over which they come back; it is this long at least."""

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Of every stream: nobody on its way keeps it, or waits for more of it."""

Message = MutableMapping[str, Any]

log = logging.getLogger(__name__)


class Source(Protocol):
    """Where a stream's frames come from: a subscription, or the adapter round a foreign source."""

    ended: EndReason | None

    def receive_nowait(self) -> Framed:
        """The next frame; raises ``WouldBlock``, or ``EndOfChannel``, after which :attr:`ended` may say why."""

    async def wait(self) -> None:
        """Wait until there may be a frame, or :meth:`wake` is called; cancelling it loses nothing."""

    def wake(self) -> None:
        """End the wait."""

    def written(self) -> None:
        """All frames so far were sent."""

    def kept(self) -> bytes:
        """What was taken from where it came from, cannot be had again, and was not yet received."""


class Framed(Protocol):
    """Anything that is bytes already."""

    @property
    def frame(self) -> bytes: ...


class EventStream(TrioResponse):
    """The events of a source, as a response that lasts as long as they do (WHATWG HTML § 9.2).

    ``retry_ms`` is the reconnection time a client is given; ``heartbeat_s`` the longest silence of a foreign
    source's stream (a subscription's hub beats for it); ``expires_in_s`` ends the stream, with a goodbye, when so
    many seconds have passed on the wall clock, which is what tokens are dated by. ``headers`` are added to the
    response's. ``while_open`` is a context manager that is entered when the stream begins and left when it has ended,
    however it ends. When it raises, or the source cannot be opened, the stream only says when to come back; the log has
    the reason, unless it is :exc:`~trio_sse.errors.HubFull`.

    The source is entered, if it is a subscription, and closed, if it has ``aclose``, by the stream. When the
    client leaves, the stream is cancelled: the source is let go of, and nothing waits.
    """

    def __init__(
        self,
        source: Subscription | AsyncIterable[Event],
        *,
        retry_ms: int = RETRY_MS,
        heartbeat_s: float = 15.0,
        expires_in_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        while_open: AbstractContextManager[object] | None = None,
    ) -> None:
        self.body = StreamBody(source, retry_ms, heartbeat_s, expires_in_s, while_open or nullcontext())
        if has_request_context() and request.method == "HEAD":
            self.body.is_wanted = False
        super().__init__(self.body, content_type=wire.CONTENT_TYPE)
        self.timeout = None
        self.headers.update(HEADERS)
        if isinstance(source, Subscription) and source.located:
            self.headers["Last-Event-ID"] = str(source.cursor)
        self.headers.update(headers or {})

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve one request as an ASGI application."""
        if isinstance(self.body.source, Subscription):
            with contextlib.suppress(Exception):  # then the stream cannot be opened, and says when to come back
                self.headers["Last-Event-ID"] = str(await self.body.source.locate())
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        self.body.is_wanted = scope["method"] != "HEAD"
        self.body.send = send
        async with self.body as chunks:
            await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
                    async for chunk in chunks:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    nursery.cancel_scope.cancel()
            except* Exception:
                log.exception("a stream broke off, and is ended")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def come_back(retry_ms: int = RETRY_MS) -> TrioResponse:
    """The response to who asks for a stream that cannot be had now: when to come back, and the end.

    As any status but 200 closes a native ``EventSource`` for ever.
    """
    response = TrioResponse(wire.opening(_jittered(retry_ms, StreamBody.open_now)), content_type=wire.CONTENT_TYPE)
    response.headers.update(HEADERS)
    return response


async def _cancel_on_disconnect(receive: Callable[[], Awaitable[Message]], scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class StreamBody(ResponseBody):
    """The bytes of a stream; used as Quart uses a body, in one task."""

    open_now: ClassVar[int] = 0
    """How many are open in this process."""

    def __init__(
        self,
        source: Subscription | AsyncIterable[Event],
        retry_ms: int,
        heartbeat_s: float,
        expires_in_s: float | None,
        while_open: AbstractContextManager[object],
    ) -> None:
        self.source = source
        self.is_wanted = True
        """Whether there is to be a body at all; a HEAD request gets none."""
        self.send: object = None
        """The ``send`` that the server gave to the request, as far as it is known; it may lead to the socket."""
        self._retry_ms = retry_ms
        self._heartbeat_s = math.inf if isinstance(source, Subscription) else heartbeat_s * MARGIN
        self._expiry = None if expires_in_s is None else Expiry(expires_in_s)
        self._while_open = while_open
        self._frames: Source
        self._writer: server.DirectWriter | None = None
        self._opened = False
        self._over = False  # nothing more will be received
        self._reason: EndReason | None = None
        self._ended_with = 0  # so many streams were open when the reason was given, this one among them
        self._closing: Iterator[bytes] | None = None  # what is still to be said, once nothing is waited for
        self._waits = False  # everything was sent, and the task waits for more
        self._beats = False  # a heartbeat is asked for
        self._resources = AsyncExitStack()

    # -- what a hub may do to it --------------------------------------------------------------------------

    def beat(self) -> None:
        """Send a heartbeat, unless bytes are on their way already."""
        if self._waits and (self._writer is None or not self._writer.beat()):
            self._beats = True
            self._frames.wake()

    def end(self, reason: EndReason) -> None:
        """Say goodbye and finish; a write that is under way is finished first."""
        if self._reason is None:
            self._reason, self._ended_with = reason, StreamBody.open_now
        self._look_again()

    def _look_again(self) -> None:
        if self._waits:
            self._frames.wake()

    # -- what a response does with it ---------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        server.write_before.set(self._expiry)
        async with AsyncExitStack() as stack:
            try:
                if self.is_wanted:
                    await self._open(stack)
                else:
                    self._closing = iter(())
            except Exception as error:
                if not isinstance(error, HubFull):
                    say_failed(error)
                elif error.retry_ms is not None:
                    self._retry_ms = error.retry_ms
                self._closing = iter([wire.opening(self._jittered_retry())])
            if self._closing is not None:
                await close(self.source)
            self._resources = stack.pop_all()
        StreamBody.open_now += 1
        return self

    async def _open(self, stack: AsyncExitStack) -> None:
        stack.enter_context(self._while_open)
        if self._expiry is not None:
            stack.enter_context(self._expiry.followed(self._look_again))
        if not isinstance(self.source, Subscription):
            self._frames = await stack.enter_async_context(Foreign(self.source, self.end))
            return
        self._writer = server.find_direct_writer(self.send, self.source.wake)
        if self._writer is not None:
            self.source.open_outlet = self._writer.open_outlet
            stack.callback(self._writer.close)
        self._frames = await stack.enter_async_context(self.source)
        desk = self.source.desk
        desk.streams.add(self)
        stack.callback(desk.streams.discard, self)
        if desk.ending is not None:
            self.end(desk.ending)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        StreamBody.open_now -= 1
        await self._resources.__aexit__(kind, error, trace)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes to send, when there are any: everything that waits, or a heartbeat, or the goodbye."""
        if self._closing is not None:
            for chunk in self._closing:
                return chunk
            raise StopAsyncIteration
        if not self._opened:
            self._opened = True
            return self._opening() + self._received()
        self._frames.written()
        waited = False
        while True:
            if self._expiry is not None and self._expiry.has_passed():
                self.end("expired")
            chunk = self._received() if self._reason is None else self._frames.kept()
            if self._reason is not None:
                self._closing = iter(())
                return chunk + self._goodbye(self._reason)
            if self._beats and not chunk:
                chunk = wire.HEARTBEAT
            self._beats = False
            if chunk:
                if not waited:
                    await trio.lowlevel.checkpoint()
                return chunk
            if self._over:
                raise StopAsyncIteration
            await self._wait()
            waited = True

    def _opening(self) -> bytes:
        position = self.source.opening_position if isinstance(self.source, Subscription) else None
        return wire.opening(self._retry_ms, None if position is None else str(position))

    async def _wait(self) -> None:
        """Wait for a frame, or for a reason to send something else; then write what was half written meanwhile.

        A source that fails is such a reason.
        """
        self._waits = True
        try:
            if self._heartbeat_s == math.inf and self._expiry is None:  # then no cancel scope, which would cost more
                await self._frames.wait()
            else:
                deadline = trio.current_time() + self._heartbeat_s
                if self._expiry is not None:
                    deadline = min(deadline, self._expiry.deadline)
                with trio.CancelScope(deadline=deadline) as scope:
                    await self._frames.wait()
                self._beats = self._beats or scope.cancelled_caught
        except Exception as error:
            say_failed(error)
            self.end("failed")
        finally:
            self._waits = False
        if self._writer is not None and await self._writer.flush():
            self._frames.written()
            self._beats = False

    def _received(self) -> bytes:
        """What can be received now, up to about a chunk's size."""
        frames: list[bytes] = []
        size = 0
        try:
            while size < CHUNK_BYTES:
                frames.append(self._frames.receive_nowait().frame)
                size += len(frames[-1])
        except trio.WouldBlock:
            pass
        except trio.EndOfChannel:
            self._over = True
            if self._frames.ended is not None:
                self.end(self._frames.ended)
        return b"".join(frames)

    def _goodbye(self, reason: EndReason) -> bytes:
        retry = self._jittered_retry()
        return wire.encode(Event(json.dumps({"reason": reason}), type=RESERVED_PREFIX + "goodbye", retry=retry))

    def _jittered_retry(self) -> int:
        return _jittered(self._retry_ms, self._ended_with or StreamBody.open_now)


def _jittered(retry_ms: int, streams: int) -> int:
    """When to come back, for one of so many; one that has to wait longer than usual may wait half as long again."""
    return retry_ms + random.randrange(max(SPREAD_MS, SPREAD_MS_PER_STREAM * streams, (retry_ms - RETRY_MS) // 2))
