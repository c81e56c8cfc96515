"""How this machine is, every five seconds, on a page that draws it.

    .venv/bin/python -m examples.metrics

Then open http://127.0.0.1:8082/. The hub keeps the last hundred measurements, the first from the start, and a new
client begins with the earliest of them: the chart is never empty. Needs Linux, for ``/proc``.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click
import trio
from quart import Response, request

from trio_sse import Event, EventStream, Retention

from .run import HubExample, log_departure, port_option, run

TOPIC = "metrics"

app = HubExample(__name__, page="metrics.html", retention=Retention(events=100))
app.config["EVERY_S"] = 5.0
FIRST_AFTER_S = 0.1  # a share of time needs some time to be a share of


class CPUTime(NamedTuple):
    """What all processors together have done since the machine was started, in ticks."""

    idle: int
    total: int


@app.get("/events")
async def events() -> Response:
    """Measurements, each an ``event: metrics``; all that are kept come first."""
    last_event_id = request.headers.get("Last-Event-ID", "earliest")
    subscription = app.hub.subscribe(TOPIC, last_event_id=last_event_id)
    return EventStream(subscription, while_open=log_departure(str(request.remote_addr)))


@app.before_serving
async def start() -> None:
    app.nursery.start_soon(measure)


async def measure() -> None:
    before = read_cpu_time()
    await trio.sleep(FIRST_AFTER_S)
    while True:
        now = read_cpu_time()
        measurement = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpu": round(busy_share(before, now), 3),
            "memory": round(read_memory_used(), 3),
            "streams": app.hub.statistics().streams,
        }
        before = now
        await app.hub.publish(TOPIC, Event(json.dumps(measurement), type="metrics"))
        await trio.sleep(app.config["EVERY_S"])


def read_cpu_time() -> CPUTime:
    user, nice, system, idle, iowait, *other = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return CPUTime(idle + iowait, user + nice + system + idle + iowait + sum(other))


def busy_share(before: CPUTime, now: CPUTime) -> float:
    """The share of the time between two readings in which the processors were busy."""
    total = now.total - before.total
    return min(1.0, max(0.0, 1 - (now.idle - before.idle) / total)) if total > 0 else 0.0


def read_memory_used() -> float:
    """The share of the memory that no program could have now."""
    sizes = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available, total = (int(sizes[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    return 1 - available / total


@click.command()
@port_option(8082)
@click.option("--every", default=5.0, show_default=True, help="Seconds from one measurement to the next.")
def main(port: int, every: float) -> None:
    """Measure this machine, and show it."""
    app.config["EVERY_S"] = every
    run(app, port)


if __name__ == "__main__":
    main()
