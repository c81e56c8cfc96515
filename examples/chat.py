"""A chat: what anybody says, everybody sees, also who comes later or was away.

    .venv/bin/python -m examples.chat

Then open http://127.0.0.1:8083/ in two windows. Each client has a bounded channel in the hub. One that is too slow
for it is not waited for, and loses nothing: it is given the rest from the journal, at its own pace. (Should the
journal no longer keep it all, the stream says so, and so does the page.)
"""

from __future__ import annotations

import json

import click
from quart import Response, request

from trio_sse import Event, EventStream, Retention

from .run import HubExample, log_departure, port_option, refuse, run

TOPIC = "chat"
MAX_NAME = 40
MAX_TEXT = 2000

app = HubExample(__name__, page="chat.html", retention=Retention(events=200))


@app.get("/events")
async def events() -> Response:
    """What is said, after what has been said already."""
    last_event_id = request.headers.get("Last-Event-ID", "earliest")
    subscription = app.hub.subscribe(TOPIC, last_event_id=last_event_id)
    return EventStream(subscription, while_open=log_departure(str(request.remote_addr)))


@app.post("/messages")
async def say() -> tuple[str, int]:
    """Say something, as JSON: ``{"name": "Ada", "text": "hello"}``. (Other sites' pages cannot send JSON here.)"""
    said = await request.get_json()
    name, text = (said.get(field) if isinstance(said, dict) else None for field in ("name", "text"))
    if not (isinstance(name, str) and 0 < len(name) <= MAX_NAME):
        refuse(400, f"name is 1 to {MAX_NAME} characters")
    if not (isinstance(text, str) and 0 < len(text) <= MAX_TEXT):
        refuse(400, f"text is 1 to {MAX_TEXT} characters")
    await app.hub.publish(TOPIC, Event(json.dumps({"name": name, "text": text}), type="said"))
    return "", 204


@click.command()
@port_option(8083)
def main(port: int) -> None:
    """Let everybody who comes by talk to each other."""
    run(app, port)


if __name__ == "__main__":
    main()
