"""A server-push hub for Python on Trio: Server-Sent Events that are never lost in silence.

    async with open_hub() as hub:
        await hub.publish("lobby", "hello")

and, in a view of any Quart-Trio app, ``return EventStream(hub.subscribe("lobby"))``.
"""

# The house, from the door down; imports only go down.
#
#   doors          app (what Hypercorn serves) · cli · load (a load test, of any server) · __main__
#   upper floor    web (the HTTP face) · stream (EventStream) · foreign (a source that is no subscription)
#                  server (all that is known of Hypercorn)
#   middle floor   hub · subscription (history, then live) · ticker (heartbeats) · broadcast (fan-out)
#                  journal (every event's place) · expiry (tokens go by the wall clock)
#                  background (tasks beside the connections) · seldom (what the log hears once)
#   ground floor   latest (the newest value of each key) · settings · auth · retention · topic
#                  record · wire (the format) · event · errors
#
# testing is for our users' tests: it may import every floor, and none imports it.

from __future__ import annotations

from .auth import Authority, Grant
from .errors import TrioSSEError
from .event import Event, EventID
from .hub import Hub, open_hub
from .record import Gap, Record
from .retention import Keep, Retention
from .settings import Settings
from .stream import EventStream
from .subscription import Subscription
from .web import create_app

__all__ = [
    "Authority",
    "Event",
    "EventID",
    "EventStream",
    "Gap",
    "Grant",
    "Hub",
    "Keep",
    "Record",
    "Retention",
    "Settings",
    "Subscription",
    "TrioSSEError",
    "create_app",
    "open_hub",
]
