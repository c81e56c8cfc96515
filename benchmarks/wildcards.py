"""What wildcards cost: readers of very many topics, publishers beside very many wildcards, and memory.

Usage: ``python benchmarks/wildcards.py [--topics 100000] [--streams 1000]``. All is in one process, without HTTP;
times are of the processor.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import trio

from trio_sse import Event, open_hub
from trio_sse.broadcast import ChannelOutlet
from trio_sse.hub import Hub
from trio_sse.record import Draft
from trio_sse.retention import Retention
from trio_sse.topic import parse_selectors

BATCH = 500
WILDCARDS = 100


async def read_all(hub: Hub, selector: str, count: int) -> float:
    """Seconds of the processor for reading so many events from the beginning."""
    began = time.process_time()
    async with hub.subscribe(selector, last_event_id="earliest") as subscription:
        for _ in range(count):
            await subscription.receive()
    return time.process_time() - began


async def measure_reading(topics: int, folder: Path) -> None:
    """``**`` over as many topics as there are events, and the same events in one topic."""
    retention = Retention(events=math.inf, bytes=math.inf)
    for journal in ("memory:", "sqlite:{}.db"):
        seconds = []
        for kind in ("many", "one"):
            async with open_hub(journal.format(folder / kind), retention=retention) as hub:
                for begin in range(0, topics, BATCH):
                    numbers = range(begin, min(begin + BATCH, topics))
                    drafts = [Draft(f"many/{n}" if kind == "many" else "one", Event(str(n))) for n in numbers]
                    await hub.journal.append(drafts)
                seconds.append(await read_all(hub, "**" if kind == "many" else "one", topics))
        ratio = seconds[0] / seconds[1]
        say(
            f"{journal[:6]} {topics} events from earliest: ** over as many topics {seconds[0]:.2f} s, in one topic "
            f"{seconds[1]:.2f} s of the processor: {ratio:.2f} times as much"
        )


async def measure_publishing(streams: int) -> None:
    """Publishing to fresh topics, alone and beside streams of other wildcards."""
    async with open_hub("memory:") as hub:
        alone = await publish_rate(hub, "alone")
        tracemalloc.start()
        for stream in range(streams):
            texts = [f"room-{stream}/{number}/*" for number in range(WILDCARDS)]
            hub.broadcaster.attach(ChannelOutlet(parse_selectors(texts), 256))
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        beside = await publish_rate(hub, "beside")
    say(
        f"fresh topics a second: {alone:.0f}; beside {streams} streams of {WILDCARDS} wildcards each {beside:.0f}: "
        f"{beside / alone:.2f} times as many"
    )
    say(f"memory of an attached stream, for each of its wildcards: {held / (streams * WILDCARDS):.0f} bytes")


async def publish_rate(hub: Hub, name: str) -> float:
    began = time.process_time()
    for number in range(5_000):
        await hub.publish(f"{name}/{number}", "x")
    return 5_000 / (time.process_time() - began)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topics", type=int, default=100_000)
    parser.add_argument("--streams", type=int, default=1_000)
    asked = parser.parse_args()
    await measure_publishing(asked.streams)
    with tempfile.TemporaryDirectory() as folder:
        await measure_reading(asked.topics, Path(folder))


if __name__ == "__main__":
    trio.run(main)
