"""Pushes a message to one user: to every tab and device that the user has open.

    .venv/bin/python -m examples.push

Then open http://127.0.0.1:9999/ and paste one of the tokens that were printed. They hold until the program ends;
to make your own, and to run more than one process, share a key:

    export TRIO_SSE_JWT_KEY=$(openssl rand -base64 48)
    .venv/bin/python -m examples.push --user ada --user bob

    GET /events?token=TOKEN           that user's messages; a client that can set headers sends the token in one
    GET /msg?msg=TEXT                 with Authorization: Bearer TOKEN: a message to that user; 204

A token in a URL ends up in histories and logs, which is why the library's own server takes none unless it is told to.
Where it has to be (native EventSource cannot set a header), let it be short-lived. Hypercorn's access log shows
``token=...``: the connection class in ``run.py`` sees to that.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence

import click
from quart import Response, request

from trio_sse import Authority, EventStream, Grant
from trio_sse.errors import InvalidToken, InvalidTopic
from trio_sse.topic import check_topic

from .run import HubExample, log_departure, port_option, refuse, run

HOUR_S = 3600

app = HubExample(__name__, page="push.html")
authority = Authority(os.environ.get("TRIO_SSE_JWT_KEY") or secrets.token_urlsafe(48))


@app.get("/events")
async def events() -> Response:
    """The messages to the bearer of a token, until it expires."""
    grant, inbox = bearer_of(request.headers.get("Authorization") or request.args.get("token"))
    assert grant.expires_at is not None, "a token without an end is not valid"
    subscription = app.hub.subscribe(inbox, last_event_id=request.headers.get("Last-Event-ID"))
    left_s = grant.expires_at - time.time()
    return EventStream(subscription, expires_in_s=left_s, while_open=log_departure(str(grant.subject)))


@app.get("/msg")
async def push() -> tuple[str, int]:
    """A message to all connections of the bearer."""
    _, inbox = bearer_of(request.headers.get("Authorization"))
    if not (message := request.args.get("msg")):
        refuse(400, "msg is required")
    await app.hub.publish(inbox, message)
    return "", 204


def bearer_of(token: str | None) -> tuple[Grant, str]:
    """Whose a token is, with or without ``Bearer`` before it, and the topic that is that user's inbox."""
    if not token:
        refuse(400, "token is required")
    try:
        grant = authority.verify(token.removeprefix("Bearer "), now=time.time())
        if grant.subject is None:
            raise InvalidToken("it names no user")
        return grant, check_topic(f"user/{grant.subject}")
    except (InvalidToken, InvalidTopic):
        refuse(401, "token is invalid")


@click.command()
@port_option(9999)
@click.option("--user", "users", multiple=True, help="Print a token for this user; may be repeated.")
def main(port: int, users: Sequence[str]) -> None:
    """Push messages to users; prints a token for each --user, by default for ada and bob."""
    for user in users or ("ada", "bob"):
        click.echo(f"Token of {user}, for an hour:\n{authority.issue(user, now=time.time(), ttl_s=HOUR_S)}\n")
    run(app, port)


if __name__ == "__main__":
    main()
