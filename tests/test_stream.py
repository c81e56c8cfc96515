"""A source of events as a response."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
import trio.testing
from quart_trio import QuartTrio

from trio_sse import Event, EventStream, open_hub, wire
from trio_sse.foreign import Foreign, _Encoded
from trio_sse.hub import Hub
from trio_sse.stream import CHUNK_BYTES, StreamBody
from trio_sse.testing import decode
from trio_sse.ticker import MARGIN

OPENING = b": stream\nretry: 2000\n"


def body_of(source: Any, **options: Any) -> StreamBody:
    return EventStream(source, **options).body


async def next_chunk(body: StreamBody) -> bytes:
    with trio.fail_after(3600):
        return await body.__anext__()


class Request:
    """One request to an ASGI application, from the server's side."""

    def __init__(self, method: str = "GET", headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.scope: dict[str, Any] = {"type": "http", "method": method, "headers": list(headers)}
        self.sent: list[dict[str, Any]] = []
        self.gone = trio.Event()
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


# -- a foreign source -------------------------------------------------------------------------------------------


async def test_a_channel_is_streamed_until_it_ends() -> None:
    """Bytes as the wire writes them, then the end, with no goodbye and no position."""
    send, receive = trio.open_memory_channel[Event](10)
    for event in (Event("1", id="a"), Event("2\n3", type="t", retry=5)):
        send.send_nowait(event)
    send.close()
    async with body_of(receive) as body:
        sent = b"".join([chunk async for chunk in body])
    assert sent == OPENING + b"id: a\ndata: 1\n\nevent: t\nretry: 5\ndata: 2\ndata: 3\n\n"


async def test_an_async_generator_is_streamed() -> None:
    """Any async iterable of events will do, and it is closed when it is done."""
    closed = []

    async def source() -> AsyncIterator[Event]:
        try:
            for number in range(3):
                yield Event(str(number))
        finally:
            closed.append(True)

    async with body_of(source()) as body:
        sent = b"".join([chunk async for chunk in body])
    assert [event.data for event in decode(sent)] == ["0", "1", "2"]
    assert closed == [True]


async def test_a_silent_source_gets_heartbeats(autojump_clock: trio.testing.MockClock) -> None:
    """A comment each time the silence has lasted long enough; no event is lost to it."""
    send, receive = trio.open_memory_channel[Event](0)
    async with trio.open_nursery() as nursery, body_of(receive, heartbeat_s=10) as body:
        assert await next_chunk(body) == OPENING
        began = trio.current_time()
        assert await next_chunk(body) == wire.HEARTBEAT
        assert await next_chunk(body) == wire.HEARTBEAT
        assert trio.current_time() - began == pytest.approx(20 * MARGIN)
        nursery.start_soon(send.send, Event("x"))
        assert await next_chunk(body) == b"data: x\n\n"


async def test_a_generator_is_not_harmed_by_a_heartbeat(autojump_clock: trio.testing.MockClock) -> None:
    """A heartbeat comes while the generator sleeps, and the generator goes on."""

    async def source() -> AsyncIterator[Event]:
        await trio.sleep(25)
        yield Event("late")

    async with body_of(source(), heartbeat_s=10) as body:
        chunks = [chunk async for chunk in body]
    assert chunks == [OPENING, b":\n", b":\n", b"data: late\n\n"]


async def test_leaving_closes_the_source(autojump_clock: trio.testing.MockClock) -> None:
    """When the client leaves, a worker that sends into the channel sees it broken."""
    send, receive = trio.open_memory_channel[Event](0)
    async with body_of(receive) as body:
        await next_chunk(body)
    with pytest.raises(trio.BrokenResourceError):
        await send.send(Event("x"))


async def test_a_source_that_fails_ends_the_stream_with_a_goodbye(caplog: pytest.LogCaptureFixture) -> None:
    """What it gave is sent, the log has the reason, and the client is told to come back."""

    async def source() -> AsyncIterator[Event]:
        yield Event("x")
        raise ZeroDivisionError("oh no")

    with caplog.at_level(logging.ERROR):
        async with body_of(source()) as body:
            events = decode(b"".join([chunk async for chunk in body]))
    assert [event.type for event in events] == ["message", "trio-sse.goodbye"]
    assert events[1].data == '{"reason": "failed"}'
    assert "oh no" in caplog.text


async def test_a_stream_ends_when_its_time_is_up(autojump_clock: trio.testing.MockClock) -> None:
    """An expiring stream says goodbye at the moment, and waits no longer for its source."""
    _send, receive = trio.open_memory_channel[Event](0)
    async with body_of(receive, expires_in_s=7, heartbeat_s=100) as body:
        began = trio.current_time()
        chunks = [chunk async for chunk in body]
    assert trio.current_time() - began == pytest.approx(7)
    assert decode(chunks[-1])[0].data == '{"reason": "expired"}'


async def test_a_busy_stream_expires_too(autojump_clock: trio.testing.MockClock) -> None:
    """A source that never pauses does not keep a stream open past its time."""

    async def source() -> AsyncIterator[Event]:
        while True:
            await trio.sleep(0.1)
            yield Event("x")

    async with body_of(source(), expires_in_s=7) as body:
        began = trio.current_time()
        async for _ in body:
            pass
    assert trio.current_time() - began == pytest.approx(7, abs=0.2)


async def test_an_event_received_at_the_moment_of_the_end_is_still_sent() -> None:
    """It was taken from a source that cannot give it again, so it goes out before the goodbye."""
    _send, receive = trio.open_memory_channel[Event](0)
    chunks: list[bytes] = []
    async with body_of(receive) as body, trio.open_nursery() as nursery:
        await next_chunk(body)

        async def read() -> None:
            chunks.append(await next_chunk(body))

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        frames = body._frames
        assert isinstance(frames, Foreign)
        frames._send.send_nowait(_Encoded(Event("last")))
        body.end("shutdown")
    assert [event.data for event in decode(chunks[0])] == ["last", '{"reason": "shutdown"}']


async def test_an_event_read_while_another_was_written_is_still_sent() -> None:
    """The end comes in the middle of a write: what was taken from the source meanwhile goes out before the goodbye."""
    send, receive = trio.open_memory_channel[Event](2)
    async with body_of(receive) as body:
        await next_chunk(body)
        send.send_nowait(Event("first"))
        await next_chunk(body)
        send.send_nowait(Event("last"))
        await trio.testing.wait_all_tasks_blocked()
        body.end("shutdown")
        chunk = await next_chunk(body)
    assert [event.data for event in decode(chunk)] == ["last", '{"reason": "shutdown"}']


# -- a hub's subscription ---------------------------------------------------------------------------------------


async def test_a_hub_stream_opens_with_a_position(autojump_clock: trio.testing.MockClock) -> None:
    """A comment, the reconnection time and a cursor that dispatches nothing, at once."""
    async with open_hub() as hub, body_of(hub.subscribe("a")) as body:
        first = await next_chunk(body)
        assert first.startswith(OPENING + b"id: ")
        assert first.endswith(b"-0\n\n")
        assert decode(first) == []


async def test_history_comes_with_the_opening(autojump_clock: trio.testing.MockClock) -> None:
    """What is there already does not wait for another write."""
    async with open_hub() as hub:
        id = await hub.publish("a", "x")
        async with body_of(hub.subscribe("a", last_event_id="earliest")) as body:
            assert [event.id for event in decode(await next_chunk(body))] == [str(id)]


async def test_what_waits_is_sent_together(autojump_clock: trio.testing.MockClock) -> None:
    """Many small events make one chunk, and a chunk has an end."""
    async with open_hub(buffer_events=10_000) as hub, body_of(hub.subscribe("a")) as body:
        await next_chunk(body)
        await hub.publish_many("a", [Event("x" * 1000) for _ in range(200)])
        await trio.testing.wait_all_tasks_blocked()
        chunks = [await next_chunk(body) for _ in range(4)]
    assert sum(len(decode(chunk)) for chunk in chunks) == 200
    assert max(map(len, chunks)) < CHUNK_BYTES + 3000


async def test_the_hub_beats_for_its_streams(autojump_clock: trio.testing.MockClock) -> None:
    """An idle stream is not silent for longer than the hub promises."""
    async with open_hub(heartbeat_s=10) as hub, body_of(hub.subscribe("a")) as body:
        await next_chunk(body)
        for _ in range(3):
            before = trio.current_time()
            assert await next_chunk(body) == wire.HEARTBEAT
            assert trio.current_time() - before <= 10


async def test_a_stream_that_is_being_written_gets_no_heartbeat(autojump_clock: trio.testing.MockClock) -> None:
    """While bytes are on their way nothing is waited for, so nothing is beaten."""
    async with open_hub(heartbeat_s=10) as hub, body_of(hub.subscribe("a")) as body:
        await next_chunk(body)
        await trio.sleep(100)  # the client takes the opening very slowly
        await hub.publish("a", "x")
        assert decode(await next_chunk(body))[0].data == "x"


async def test_a_goodbye_names_its_reason_and_when_to_come_back(autojump_clock: trio.testing.MockClock) -> None:
    """An ended stream says why, with a jittered reconnection time, and is finished."""
    retries = set()
    async with open_hub() as hub:
        for _ in range(20):
            async with body_of(hub.subscribe("a")) as body:
                await next_chunk(body)
                body.end("revoked")
                chunks = [chunk async for chunk in body]
            (goodbye,) = decode(b"".join(chunks))
            assert (goodbye.type, goodbye.data) == ("trio-sse.goodbye", '{"reason": "revoked"}')
            assert goodbye.retry is not None
            retries.add(goodbye.retry)
    assert len(retries) > 5
    assert all(2000 <= retry < 3000 for retry in retries)


async def test_many_streams_are_told_to_come_back_over_a_longer_time(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jitter is in proportion to the number of streams that end."""
    async with open_hub() as hub:
        monkeypatch.setattr(StreamBody, "open_now", 5000)
        async with body_of(hub.subscribe("a")) as body:
            retries = [decode(body._goodbye("shutdown"))[0].retry or 0 for _ in range(200)]
    assert max(retries) - min(retries) > 5000
    assert max(retries) < 2000 + 2 * 5001


async def test_a_shutdown_ends_streams_in_the_middle_of_a_wait(autojump_clock: trio.testing.MockClock) -> None:
    """Every open stream finishes with a goodbye; one that comes later says goodbye at once."""
    async with open_hub() as hub, trio.open_nursery() as nursery:
        results: list[list[Event]] = []

        async def read() -> None:
            async with body_of(hub.subscribe("a")) as body:
                results.append(decode(b"".join([chunk async for chunk in body])))

        for _ in range(3):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        hub.end_streams("shutdown")
        nursery.start_soon(read)
    assert [[event.data for event in result] for result in results] == [['{"reason": "shutdown"}']] * 4


async def test_a_gap_is_an_event_with_its_own_cursor(autojump_clock: trio.testing.MockClock) -> None:
    """In band, because a page cannot read headers."""
    async with open_hub() as hub, body_of(hub.subscribe("a", last_event_id="?")) as body:
        first = await next_chunk(body)
    (gap,) = decode(first)
    assert gap.type == "trio-sse.gap"
    assert gap.data == f'{{"requested": "?", "resumed_from": "{gap.id}", "reason": "unknown"}}'
    assert first.startswith(OPENING + b"id: 0-0\n\n")


async def test_a_stream_leaves_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    """However it ends, the hub is as it was."""
    async with open_hub() as hub:
        with trio.move_on_after(5):
            async with body_of(hub.subscribe("a")) as body:
                async for _ in body:
                    assert hub.statistics().streams == 1
        assert (hub.statistics().streams, hub.statistics().subscribers) == (0, 0)


# -- as an ASGI application -------------------------------------------------------------------------------------


async def serve(hub: Hub, request: Request) -> None:
    await EventStream(hub.subscribe("a", last_event_id="earliest"))(request.scope, request.receive, request.send)


async def test_it_is_an_asgi_application(autojump_clock: trio.testing.MockClock) -> None:
    """Headers first, then chunks; it ends when the client leaves."""
    async with open_hub() as hub, trio.open_nursery() as nursery:
        id = await hub.publish("a", "x")
        request = Request()
        nursery.start_soon(serve, hub, request)
        await trio.testing.wait_all_tasks_blocked()
        assert request.sent[0]["status"] == 200
        headers = dict(request.sent[0]["headers"])
        assert headers[b"content-type"] == b"text/event-stream"
        assert headers[b"cache-control"] == b"no-store"
        assert headers[b"x-accel-buffering"] == b"no"
        assert b"last-event-id" in headers
        assert b"connection" not in headers
        assert decode(request.body)[0].id == str(id)
        assert hub.statistics().streams == 1
        request.gone.set()
        await trio.testing.wait_all_tasks_blocked()
        assert hub.statistics().streams == 0


async def test_a_finished_source_ends_the_response() -> None:
    """The last message says that no more will come."""
    send, receive = trio.open_memory_channel[Event](1)
    send.send_nowait(Event("x"))
    send.close()
    request = Request()
    await EventStream(receive)(request.scope, request.receive, request.send)
    assert request.body == OPENING + b"data: x\n\n"
    assert request.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_stream_that_breaks_off_is_ended(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets the last message, without which an HTTP/2 stream would stay open and silent; the log says why."""
    async with open_hub() as hub, trio.open_nursery() as nursery:
        request = Request()
        nursery.start_soon(serve, hub, request)
        await trio.testing.wait_all_tasks_blocked()

        def broken(*_: object) -> None:
            raise ZeroDivisionError("oh no")

        monkeypatch.setattr(StreamBody, "_received", broken)
        await hub.publish("a", "x")
        await trio.testing.wait_all_tasks_blocked()
        assert request.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        assert "oh no" in caplog.text
        assert hub.statistics().streams == 0


async def test_a_client_that_leaves_before_the_headers_closes_the_source() -> None:
    """A worker that sends into the channel sees it broken, however early the client left."""
    send, receive = trio.open_memory_channel[Event](0)
    request = Request()

    async def gone(_: Any) -> None:
        raise trio.BrokenResourceError

    with pytest.raises(trio.BrokenResourceError):
        await EventStream(receive)(request.scope, request.receive, gone)
    with pytest.raises(trio.BrokenResourceError):
        await send.send(Event("x"))


async def test_head_is_answered_without_a_subscription(autojump_clock: trio.testing.MockClock) -> None:
    """The headers and the end."""
    async with open_hub() as hub:
        request = Request("HEAD")
        await serve(hub, request)
        assert [message["type"] for message in request.sent] == ["http.response.start", "http.response.body"]
        assert request.body == b""
        assert hub.statistics().subscribers == 0


# -- as a Quart response ----------------------------------------------------------------------------------------


async def test_a_view_of_any_quart_trio_app_returns_it() -> None:
    """A response without time limit whose body is the stream; extra headers are the view's."""
    app = QuartTrio(__name__)

    @app.get("/job")
    async def job() -> EventStream:
        send, receive = trio.open_memory_channel[Event](3)
        for number in range(3):
            send.send_nowait(Event(str(number)))
        send.close()
        stream = EventStream(receive, retry_ms=500, headers={"X-Job": "7"})
        assert stream.timeout is None
        return stream

    response = await app.test_client().get("/job")
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["X-Job"] == "7"
    data = await response.get_data(as_text=False)
    assert data == b": stream\nretry: 500\ndata: 0\n\ndata: 1\n\ndata: 2\n\n"


async def test_head_in_a_view_has_no_body() -> None:
    """Quart adds HEAD to every GET; a stream does not hang on it, and its source is closed."""
    app = QuartTrio(__name__)
    send, receive = trio.open_memory_channel[Event](0)

    @app.get("/job")
    async def job() -> EventStream:
        return EventStream(receive)

    with trio.fail_after(10):
        response = await app.test_client().head("/job")
        assert await response.get_data(as_text=False) == b""
    assert response.headers["Content-Type"] == "text/event-stream"
    with pytest.raises(trio.BrokenResourceError):
        await send.send(Event("x"))


async def test_an_event_published_when_the_headers_are_there_is_not_missed() -> None:
    """A page that publishes as soon as its stream is open receives its own event, whatever the view waited for."""
    app = QuartTrio(__name__)
    async with open_hub() as hub:

        @app.get("/events")
        async def events() -> EventStream:
            return EventStream(hub.subscribe("a"))

        async with app.test_request_context("/events"):
            stream = await events()
        await hub.publish("a", "early")
        async with stream.body as body:
            assert await next_chunk(body) == wire.opening(2000, str(stream.headers["Last-Event-ID"]))
            assert [event.data for event in decode(await next_chunk(body))] == ["early"]


async def test_what_is_held_while_open_is_let_go_on_every_way(autojump_clock: trio.testing.MockClock) -> None:
    """Entered with the stream, left with it: when it ends, when the client leaves, when it could not begin."""
    inside = 0

    @contextmanager
    def held() -> Iterator[None]:
        nonlocal inside
        inside += 1
        try:
            yield
        finally:
            inside -= 1

    async with open_hub() as hub:
        with trio.move_on_after(5):
            async with body_of(hub.subscribe("a"), while_open=held()) as body:
                async for _ in body:
                    assert inside == 1
        assert inside == 0
        with trio.CancelScope() as scope:
            scope.cancel()
            async with body_of(hub.subscribe("a", last_event_id="earliest"), while_open=held()):
                pass
        assert inside == 0
        assert (hub.statistics().streams, hub.statistics().subscribers) == (0, 0)
