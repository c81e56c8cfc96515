"""Both kinds of stream in a Quart-Trio application of your own, with nothing between you and the library.

    .venv/bin/hypercorn examples.quart_app:app --worker-class trio

    curl -N http://127.0.0.1:8000/progress                        # any channel of events
    curl -N http://127.0.0.1:8000/news                            # a topic of the hub
    curl -d 'It works' http://127.0.0.1:8000/news                 # something said in it
    curl -N -H 'Last-Event-ID: ID' http://127.0.0.1:8000/news     # a browser that returns

The stream of a channel ends with the channel. The stream of a topic goes on, and its events have IDs to resume from.
"""

from __future__ import annotations

import trio
from quart import Response, request
from quart_trio import QuartTrio

from trio_sse import Event, EventStream, Hub, TrioSSEError, open_hub
from trio_sse.server import guard_hypercorn, wait_shutdown

guard_hypercorn(write_timeout_s=20, drain_s=2)


class App(QuartTrio):
    """An application that has a hub while it serves."""

    hub: Hub


app = App(__name__)


@app.before_serving
async def open_for_service() -> None:
    app.hub = await app.nursery.start(keep_hub)


async def keep_hub(*, task_status: trio.TaskStatus[Hub]) -> None:
    """Hold a hub open; when the server is asked to end, let its streams say goodbye first."""
    async with open_hub("memory:") as hub:
        task_status.started(hub)
        await wait_shutdown()
        hub.end_streams("shutdown")
        await trio.sleep_forever()


@app.get("/news")
async def news() -> Response:
    """A topic; from the beginning of what is kept, or from where this reader was."""
    return EventStream(app.hub.subscribe("news", last_event_id=request.headers.get("Last-Event-ID", "earliest")))


@app.post("/news")
async def publish() -> Response:
    """The body becomes an event; when this is answered, it has its place in the journal."""
    event_id = await app.hub.publish("news", (await request.body).decode(errors="replace"))
    return Response(f"{event_id}\n", 201)


@app.get("/progress")
async def progress() -> Response:
    """The progress of a job, through a memory channel."""
    to_stream, from_job = trio.open_memory_channel[Event](10)
    app.nursery.start_soon(job, to_stream)
    return EventStream(from_job)


async def job(to_stream: trio.MemorySendChannel[Event]) -> None:
    """Six reports, and the last. There is room for all of them: the job waits for no reader."""
    try:
        async with to_stream:
            for percent in range(0, 101, 20):
                await to_stream.send(Event(f"{percent} %", type="progress"))
                await trio.sleep(0.1)
            await to_stream.send(Event("done", type="done"))
    except trio.BrokenResourceError:
        pass  # the client has left


@app.errorhandler(TrioSSEError)
async def refuse(error: TrioSSEError) -> Response:
    return Response(f"{error}\n", error.status_hint)
