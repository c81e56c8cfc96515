"""The progress of a job: a worker task sends ten events through a memory channel, then the stream ends.

    .venv/bin/python -m examples.progress

Then open http://127.0.0.1:9090/, or read it with a program:

    .venv/bin/python -m examples.progress_lines
    .venv/bin/python -m examples.progress_client

A program ends when the server closes. A browser would come back and start the job again: every event carries its
number as its ID, so a browser that has the last one says so, is answered 204, and never asks again (WHATWG
HTML § 9.2.2). One whose connection broke half-way is given the rest.
"""

from __future__ import annotations

import json
import logging

import click
import trio
from quart import Response, request

from trio_sse import Event, EventStream

from .run import Example, port_option, run

STEPS = 10

log = logging.getLogger(__name__)

app = Example(__name__, page="progress.html")
app.config["EVERY_S"] = 0.3


@app.get("/sse")
async def progress() -> Response | tuple[str, int]:
    """Ten events 300 ms apart; nothing, and never again, for who has them all."""
    last = request.headers.get("Last-Event-ID", "")
    done = int(last) if last in map(str, range(1, STEPS + 1)) else 0
    if done == STEPS:
        return "", 204
    to_stream, from_worker = trio.open_memory_channel[Event](STEPS)
    app.nursery.start_soon(work, to_stream, done)
    return EventStream(from_worker)


async def work(to_stream: trio.MemorySendChannel[Event], done: int) -> None:
    """Do what is left to do.

    When the client leaves, the stream closes its end of the channel, and the next step finds nobody there: the
    work does not outlive the request. The channel has room for every step, so the worker never waits for a reader,
    not even for one that asked for the headers only. (The nursery is everybody's: a real job catches its errors.)
    """
    try:
        async with to_stream:
            for step in range(done + 1, STEPS + 1):
                await trio.sleep(app.config["EVERY_S"])
                message = {"resMsg": f"server sent event message: {step}", "status": 200}
                await to_stream.send(Event(json.dumps(message, separators=(",", ":")), id=str(step)))
    except trio.BrokenResourceError:
        log.info("client disconnected; the job is stopped")


@click.command()
@port_option(9090)
@click.option("--every", default=0.3, show_default=True, help="Seconds from one step to the next.")
def main(port: int, every: float) -> None:
    """Do a job, and say how far it is."""
    app.config["EVERY_S"] = every
    run(app, port)


if __name__ == "__main__":
    main()
