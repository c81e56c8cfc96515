"""Every line that is added to a file becomes a notification: ``tail -f``, for browsers.

    .venv/bin/python -m examples.notifications

Then open http://127.0.0.1:8081/, and notify everybody who is there:

    echo 'Dinner is ready' >> notifications.txt

The file is looked at once a second, by one task, however many are listening; what is new goes through the hub,
so a browser that was away is given what it missed. A file that has become shorter is read from its beginning.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
import trio
from quart import Response, request

from trio_sse import Event, EventStream

from .run import HubExample, log_departure, port_option, run

TOPIC = "notifications"

app = HubExample(__name__, page="notifications.html")
app.config["FILE"] = "notifications.txt"
app.config["EVERY_S"] = 1.0


@app.get("/events")
async def events() -> Response:
    """Notifications, each an ``event: notification``."""
    subscription = app.hub.subscribe(TOPIC, last_event_id=request.headers.get("Last-Event-ID"))
    return EventStream(subscription, while_open=log_departure(str(request.remote_addr)))


@app.before_serving
async def start() -> None:
    file = trio.Path(app.config["FILE"])
    await file.touch()
    app.nursery.start_soon(poll, file, (await file.stat()).st_size)


async def poll(file: trio.Path, offset: int) -> None:
    """Publish each whole line that comes after an offset in bytes; all of them once the file is shorter than that."""
    while True:
        async with await file.open("rb") as lines:
            if await lines.seek(0, os.SEEK_END) < offset:
                offset = 0
            await lines.seek(offset)
            async for line in lines:
                if not line.endswith(b"\n"):
                    break  # its end has not been written yet
                offset += len(line)
                text = line.decode(errors="replace").rstrip("\n")
                await app.hub.publish(TOPIC, Event(text, type="notification"))
        await trio.sleep(app.config["EVERY_S"])


@click.command()
@port_option(8081)
@click.option("--file", default="notifications.txt", show_default=True, type=click.Path(path_type=Path))
@click.option("--every", default=1.0, show_default=True, help="Seconds from one look at the file to the next.")
def main(port: int, file: Path, every: float) -> None:
    """Notify every client of each line added to a file."""
    app.config.update(FILE=file, EVERY_S=every)
    run(app, port)


if __name__ == "__main__":
    main()
