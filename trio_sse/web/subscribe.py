"""``GET /events``: subscribe."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio
from quart import Response, request

from ..auth import Grant
from ..errors import InvalidInput, TooManyRequests
from ..event import EventID
from ..hub import check_count
from ..selector_index import without_contained
from ..stream import EventStream, come_back
from ..subscription import EARLIEST, Slow
from ..topic import Selector, inbox, parse_selectors
from .caller import origin_of, parameters, single

if TYPE_CHECKING:
    from . import TrioSSE


def add_routes(app: TrioSSE) -> None:
    """Serve ``/events``."""

    @app.get("/events")
    async def subscribe() -> Response:
        values = parameters(request)
        grant = app.grant(request)
        topics = values.get("topic", [])
        if not topics:
            if grant.subject is None:
                raise InvalidInput("name at least one topic: /events?topic=lobby")
            topics = [inbox(grant.subject)]
        selectors = await _readable(grant, topics)
        origin = origin_of(request, app.settings.trusted_proxies)
        try:
            app.rates.check(app.rates.callers(request, grant), {"streams_per_s": 1})
        except TooManyRequests as error:
            return come_back(max(app.rates.retry_ms(origin, grant.subject), int(error.wait_s * 1000)))
        subscription = app.hub.subscribe_to(selectors, last_event_id=_cursor(values), slow=_slow(values))
        await subscription.locate()
        return EventStream(
            subscription,
            expires_in_s=None if grant.expires_at is None else grant.expires_at - time.time(),
            while_open=app.limits.place(origin, grant.subject, app.rates),
        )


async def _readable(grant: Grant, topics: list[str]) -> tuple[Selector, ...]:
    """What the caller may read of what was asked for: counted, then read, then cut down, with pauses for others."""
    asked = dict.fromkeys(topics)
    check_count(asked)
    met: list[Selector] = []
    for some in grant.met(parse_selectors(asked)):
        met += some
        await trio.lowlevel.checkpoint()
    kept: list[Selector] = []
    for some_kept in without_contained(met):
        kept += some_kept
        await trio.lowlevel.checkpoint()
    return tuple(kept)


def _slow(values: dict[str, list[str]]) -> Slow:
    """What the stream gets that is slow: what may be left out for it, a person says."""
    slow = single(values, "slow")
    if slow is None or slow == "catch-up":
        return "catch-up"
    if slow == "latest":
        return "latest"
    raise InvalidInput("slow is catch-up, which leaves nothing out, or latest, the newest event of each key")


def _cursor(values: dict[str, list[str]]) -> str | None:
    """The header, which a browser wrote and is never refused, or the query, which a person wrote."""
    header = request.headers.get("Last-Event-ID")
    if header:
        return header
    given = values.get("last_event_id") or values.get("lastEventId") or [""]
    if given[0] and given[0] != EARLIEST:
        EventID.parse(given[0])
    return given[0] or None
