"""A request's messages, on their way from the server to the application.

Hypercorn's queue is a memory channel. The messages of most requests are one or two, and a stream's client then sends
nothing until it leaves: here a queue costs a list, and an application need not keep a task that waits for the
``http.disconnect``, because it can be called instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.typing import AppWrapper, Scope

from .heads import PROBLEM, problem

Message = dict[str, Any]

MOST_FIELDS = 256
"""A request may have so many header fields; the smallest cost twenty times in memory what they are on the wire."""

MOST_BYTES = 64 * 1024
"""Bytes of a body that wait for the application, beyond the message that reaches it: as many as are read at once from a
connection, so that the next are here when these have been taken."""

_spawn_app = TaskGroup.spawn_app


class Messages:
    """A queue of messages; so many wait in it, and so many bytes, and then the client has to."""

    __slots__ = ("_arrived", "_capacity", "_over", "_room", "_size", "_waiting", "when_left")

    def __init__(self, capacity: int) -> None:
        self.when_left: Callable[[], None] | None = None
        """Called once, at the moment when the client has left or the response is over."""
        self._capacity = max(1, capacity)
        self._over = False  # the last message was put
        self._waiting: list[Message] = []
        self._size = 0  # bytes of bodies in them
        self._arrived: trio.Event | None = None  # for who waits to receive
        self._room: trio.Event | None = None  # for who waits to put

    async def put(self, message: Message) -> None:
        """Add a message, when there is room for it; there always is for the last one.

        What waits for room when that is put is thrown away: the application has ended, or will.
        """
        is_last = message["type"].endswith(".disconnect")
        while self._is_full() and not (is_last or self._over):
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()
        if self._over:
            return
        self._over = is_last
        if is_last:
            self._make_room()
        self._waiting.append(message)
        self._size += len(message.get("body", b""))
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None
        if is_last and self.when_left is not None:
            self.when_left()

    async def receive(self) -> Message:
        """Wait for the next message. If this is cancelled, none is lost."""
        await trio.lowlevel.checkpoint()
        while (message := self.receive_nowait()) is None:
            if self._arrived is None:
                self._arrived = trio.Event()
            await self._arrived.wait()
        return message

    def take_body(self) -> bytes | None:
        """All of an HTTP request's body, if it is here, and the client too; otherwise nothing is taken."""
        if not self._waiting or self._waiting[-1].get("more_body", True):
            return None
        body = b"".join([message["body"] for message in self._waiting])
        self._waiting.clear()
        self._size = 0
        return body

    def receive_nowait(self) -> Message | None:
        """The next message, if one waits."""
        if not self._waiting:
            return None
        message = self._waiting.pop(0)
        self._size -= len(message.get("body", b""))
        if not self._is_full():
            self._make_room()
        return message

    def _is_full(self) -> bool:
        return len(self._waiting) >= self._capacity or self._size >= MOST_BYTES

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None


async def spawn_app(
    self: TaskGroup, app: AppWrapper, config: Config, scope: Scope, send: Callable[[Any], Awaitable[None]]
) -> Callable[[Any], Awaitable[None]]:
    """``TaskGroup.spawn_app`` with our queue; a WSGI application, which needs Hypercorn's threads, keeps theirs."""
    if not isinstance(app, ASGIWrapper):
        return await _spawn_app(self, app, config, scope, send)
    if scope["type"] == "http" and len(scope["headers"]) > MOST_FIELDS:  # type: ignore[arg-type]
        app = _REFUSE_FIELDS
    messages = Messages(config.max_app_queue_size)
    self.spawn(_handle, app, config, scope, messages.receive, send, None, None)
    return messages.put


async def _refuse_fields(scope: Scope, receive: Any, send: Any) -> None:
    body = problem(431)
    headers = [PROBLEM, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 431, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})


_REFUSE_FIELDS = ASGIWrapper(_refuse_fields)


def call_app(self: ASGIWrapper, scope: Scope, receive: Any, send: Any, *_: Any) -> Awaitable[None]:
    """``ASGIWrapper.__call__`` without a coroutine of its own, which would live as long as a stream."""
    return self.app(scope, receive, send)


def messages_behind(receive: object) -> Messages | None:
    """The queue that an application's ``receive`` takes its messages from, if nobody stands in between."""
    return receive.__self__ if getattr(receive, "__func__", None) is Messages.receive else None  # type: ignore[attr-defined]
