"""A request's messages, on their way to the application."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from hypercorn.app_wrappers import WSGIWrapper
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup

from trio_sse.server.messages import MOST_BYTES, Messages, call_app, messages_behind, spawn_app

LEFT = {"type": "http.disconnect"}


def piece(body: bytes = b"", *, more: bool = True) -> dict[str, Any]:
    """A message with some of a body."""
    return {"type": "http.request", "body": body, "more_body": more}


async def test_messages_come_in_their_order() -> None:
    """As many as were put, one at a time."""
    messages = Messages(10)
    for number in range(5):
        await messages.put(piece(b"%d" % number))
    assert [(await messages.receive())["body"] for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_who_receives_waits_for_a_message() -> None:
    """Until one is put."""
    messages = Messages(10)
    received: list[Any] = []

    async def receive() -> None:
        received.append(await messages.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        assert not received
        await messages.put(LEFT)
    assert received == [LEFT]


async def test_a_client_waits_for_room_for_its_bytes() -> None:
    """However few its messages are."""
    messages = Messages(10)
    put: list[int] = []

    async def send() -> None:
        for number in range(4):
            await messages.put(piece(b"x" * MOST_BYTES))
            put.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for count in range(1, 5):
            await trio.testing.wait_all_tasks_blocked()
            assert len(put) == count
            await messages.receive()


async def test_a_client_waits_for_room() -> None:
    """What does not fit is not taken from the connection."""
    messages = Messages(2)
    put: list[int] = []

    async def send() -> None:
        for number in range(4):
            await messages.put(piece())
            put.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert put == [0, 1]
        await messages.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert put == [0, 1, 2]
        nursery.cancel_scope.cancel()


async def test_there_is_always_room_for_the_last_message() -> None:
    """An application that has stopped receiving does not hold up the server that says goodbye to it."""
    messages = Messages(1)
    await messages.put(piece())
    await messages.put(LEFT)
    assert [await messages.receive(), await messages.receive()] == [piece(), LEFT]


async def test_who_waits_for_room_does_not_outlast_the_application() -> None:
    """The connection's reader goes on when the response is over, though nobody has received what it brings."""
    messages = Messages(1)
    await messages.put(piece(b"1"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(messages.put, piece(b"2"))
        await trio.testing.wait_all_tasks_blocked()
        await messages.put(LEFT)
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
        nursery.cancel_scope.cancel()
    assert [await messages.receive(), await messages.receive()] == [piece(b"1"), LEFT]


async def test_there_is_room_for_one_message_at_least() -> None:
    """Hypercorn may be told that none may wait, which a memory channel can do."""
    messages = Messages(0)
    with trio.move_on_after(0):
        await messages.put(piece(b"x"))
    assert messages.receive_nowait() == piece(b"x")


async def test_a_cancelled_receive_loses_nothing() -> None:
    """Neither before a message has come nor when one is there."""
    messages = Messages(10)
    with trio.CancelScope() as scope:
        scope.cancel()
        await messages.receive()
    await messages.put(piece(b"x"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await messages.receive()
    assert (await messages.receive())["body"] == b"x"


async def test_leaving_is_told_without_a_task() -> None:
    """The callback runs when the last message is put, which may be received all the same."""
    messages = Messages(10)
    told: list[str] = []
    messages.when_left = lambda: told.append("left")
    await messages.put(piece(more=False))
    assert told == []
    await messages.put(LEFT)
    assert told == ["left"]
    assert await messages.receive() == piece(more=False)
    assert await messages.receive() == LEFT


@pytest.mark.parametrize(
    ("put", "taken"),
    [
        ([piece(more=False)], b""),
        ([piece(b"a"), piece(b"b"), piece(more=False)], b"ab"),
        ([piece(b"a")], None),
        ([piece(more=False), LEFT], None),
        ([], None),
    ],
)
async def test_a_body_is_taken_whole_or_not_at_all(put: list[dict[str, Any]], taken: bytes | None) -> None:
    """A body of which more may come, or whose client has left, stays where it is."""
    messages = Messages(10)
    for message in put:
        await messages.put(message)
    assert messages.take_body() == taken
    rest = put if taken is None else []
    assert [await messages.receive() for _ in rest] == rest


async def test_a_wrapped_receive_leads_to_no_queue() -> None:
    """Who stands in between wants to see the messages."""
    messages = Messages(10)

    async def wrapped() -> Any:
        return await messages.receive()

    assert messages_behind(messages.receive) is messages
    assert messages_behind(wrapped) is None


async def test_a_wsgi_application_keeps_hypercorns_threads() -> None:
    """It is run as before; what its body was is what it answers."""
    sent: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "path": "/", "method": "POST", "query_string": b"", "http_version": "1.1"}
    async with TaskGroup() as tasks:
        put = await spawn_app(tasks, WSGIWrapper(app, 100), Config(), scope, send)
        await put(piece(b"hello", more=False))
    assert [message.get("body") for message in sent if message] == [None, b"hello", b""]


async def test_an_application_is_called_as_it_is() -> None:
    """With the three arguments of ASGI."""
    called: list[Any] = []

    async def app(*args: Any) -> None:
        called.append(args)

    wrapper: Any = type("Wrapper", (), {"app": staticmethod(app)})()
    await call_app(wrapper, "scope", "receive", "send", "spawn", "call_soon")  # type: ignore[arg-type]
    assert called == [("scope", "receive", "send")]
