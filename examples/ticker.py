"""Says hello to everybody who listens, every two seconds.

    .venv/bin/python -m examples.ticker

Then open http://127.0.0.1:8080/, in a few tabs. http://localhost:8080/c1.html is the same page on what a browser
holds to be another origin: it names the stream by its absolute URL, and may read it because the allow-list says
so.

What a server of events has to offer, and where it is:

==========================  ===================================================================
send data, type             ``hub.publish(topic, Event(data, type="..."))``; the journal gives the ID
send data, type, your ID    ``EventStream(channel)``, and into it ``Event(data, type="...", id="...")``
send a retry                ``EventStream(..., retry_ms=2000)``
count the consumers         ``hub.subscribers(topic)``
close all                   ``hub.end_streams("ended")``: each says goodbye; the hub takes no more
write timeout               ``guard_hypercorn(write_timeout_s=20, ...)``
idle timeout                ``open_hub(heartbeat_s=15)``: an idle stream beats, so who left is found out;
                            ``EventStream(..., expires_in_s=1800)`` ends any stream in time
extra response headers      ``EventStream(..., headers={...})``
==========================  ===================================================================
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

import click
import trio
from quart import Response, request
from quart_cors import cors

from trio_sse import EventStream

from .run import HubExample, port_option, run

TOPIC = "ticker"
PAGE = Path(__file__).with_name("pages") / "ticker.html"

log = logging.getLogger(__name__)

app = cors(HubExample(__name__, page=PAGE.name), allow_headers=["Last-Event-ID"], expose_headers=[])
app.config["QUART_CORS_ALLOW_ORIGIN"] = ["http://localhost:8080"]
app.config["EVERY_S"] = 2.0


@app.get("/events")
async def events() -> Response:
    """The stream: from now on, or from where a browser was when its connection broke."""
    subscription = app.hub.subscribe(TOPIC, last_event_id=request.headers.get("Last-Event-ID"))
    return EventStream(subscription, retry_ms=2000, headers={"X-Every": f"{app.config['EVERY_S']:g}"})


@app.get("/c1.html")
async def page_for_another_origin() -> str:
    """The page, with the stream's URL in full."""
    assert request.server is not None
    host, port = request.server
    text = await trio.Path(PAGE).read_text()
    return text.replace('href="/events"', f'href="http://{host}:{port}/events"')


@app.before_serving
async def start() -> None:
    app.nursery.start_soon(say_hello)


async def say_hello() -> None:
    while True:
        await trio.sleep(app.config["EVERY_S"])
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        await app.hub.publish(TOPIC, f"hello, now is: {now}")
        log.info("Hello has been sent (consumers: %d)", app.hub.subscribers(TOPIC))


@click.command()
@port_option(8080)
@click.option("--every", default=2.0, show_default=True, help="Seconds from one hello to the next.")
@click.option("--allow-origin", multiple=True, help="An origin whose pages may listen; may be repeated.")
def main(port: int, every: float, allow_origin: tuple[str, ...]) -> None:
    """Say hello to everybody who listens."""
    app.config["EVERY_S"] = every
    app.config["QUART_CORS_ALLOW_ORIGIN"] = allow_origin or [f"http://localhost:{port}"]
    run(app, port)


if __name__ == "__main__":
    main()
