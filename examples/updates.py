"""A feed that greets at once, then tells the time every two seconds, to each client from its own generator.

    .venv/bin/python -m examples.updates

Then open http://127.0.0.1:8080/. Any async iterable of events is a source; a generator is the shortest. When the
client leaves, the generator is closed where it stands, and its ``finally`` runs.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import click
import trio
from quart import Response
from quart_cors import route_cors

from trio_sse import Event, EventStream

from .run import Example, port_option, run

log = logging.getLogger(__name__)

app = Example(__name__, page="updates.html")
app.config["EVERY_S"] = 2.0


@app.get("/events")
@route_cors(allow_origin="*", allow_headers=["Last-Event-ID"], expose_headers=[])
async def events() -> Response:
    """A feed of the client's own; pages of any origin may read it."""
    return EventStream(updates())


async def updates() -> AsyncIterator[Event]:
    try:
        yield Event("Connection established", type="connected")
        for number in itertools.count(1):
            await trio.sleep(app.config["EVERY_S"])
            now = datetime.now(UTC).isoformat(timespec="seconds")
            update = {"id": number, "event": "update", "data": f"Current time: {now}"}
            yield Event(json.dumps(update, separators=(",", ":")), type="update", id=str(number))
    finally:
        log.info("Client disconnected")


@click.command()
@port_option(8080)
@click.option("--every", default=2.0, show_default=True, help="Seconds from one update to the next.")
def main(port: int, every: float) -> None:
    """Feed updates to every client."""
    app.config["EVERY_S"] = every
    run(app, port)


if __name__ == "__main__":
    main()
