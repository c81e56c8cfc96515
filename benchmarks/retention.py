"""What a journal takes of disk and memory when it is full, beside what ``TRIO_SSE_RETENTION_BYTES`` allows.

Each shape of what may be published fills a journal of its own, in a fresh process, several times over, while the
database with its log and the growth of resident memory are watched. Both should stay within 1.5 times the setting.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import click
import trio

from trio_sse.event import Event
from trio_sse.journal import open_journal
from trio_sse.journal.contract import Journal
from trio_sse.record import Draft, Once
from trio_sse.retention import Retention

MIB = 1024 * 1024
PROMISED = 1.5
"""Times the setting that the disk, and memory, may take."""

CHARACTER = "\U0001f600"
"""One of four bytes in UTF-8, and in Python's memory."""

BATCH = 200
"""Events that are published at once, where that is no part of the shape."""

EMPTY = Event("")


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of load that fills a journal: drafts without an end, or idempotency keys."""

    drafts: Callable[[], Iterator[Draft]]
    events: int
    """How many there are at most, where the journal is not full before: then as many go as it keeps."""
    once: bool = False
    batch: int = BATCH
    of_each_topic: float = math.inf
    """Events that a topic may keep."""
    seconds: float = math.inf
    """For which an event is kept; each batch takes a second of the journal's clock."""


def name(number: int, size: int, fill: str = "n") -> str:
    """A text of so many characters, another for each number."""
    return f"{number:07}".rjust(size, fill)


def of_one_topic(event: Event = EMPTY, key: int = 0) -> Iterator[Draft]:
    """Events of one topic, with keys of so many characters."""
    return (Draft("t", event, name(number, key, CHARACTER) if key else None) for number in count())


def of_topics(topics: int) -> Iterator[Draft]:
    """An event for each of so many topics of the longest names, over and over."""
    return (Draft(name(number % topics, 256), EMPTY) for number in count())


def of_publishers(publishers: int, size: int) -> Iterator[Draft]:
    """An event for each of so many publishers with names of so many characters, over and over."""
    return (Draft("t", EMPTY, None, name(number % publishers, size, CHARACTER)) for number in count())


def with_holes(size: int) -> Iterator[Draft]:
    """Every other event is of one publisher, and makes room when many others come."""
    event = Event("x" * size)
    for number in count():
        yield Draft("t", event, None, "most" if number % 2 else name(number // 2 % 500, 8))


SHAPES: dict[str, Shape] = {
    "empty events": Shape(of_one_topic, 1_000_000),
    "long keys": Shape(lambda: of_one_topic(key=256), 200_000),
    "one key": Shape(lambda: (Draft("t", EMPTY, "k") for _ in count()), 400_000),
    "topics": Shape(lambda: of_topics(100_000), 250_000),
    "more topics than there may be": Shape(lambda: of_topics(10**7), 250_000),
    "publishers": Shape(lambda: of_publishers(10**7, 128), 200_000),
    "publishers of short names": Shape(lambda: of_publishers(10**7, 7), 200_000),
    "idempotency keys": Shape(lambda: of_topics(10**7), 130_000, once=True),
    "lost values": Shape(lambda: of_one_topic(key=256), 200_000, of_each_topic=10),
    "empty topics": Shape(lambda: of_topics(10**7), 120_000, seconds=20),
    "a mebibyte each": Shape(lambda: of_one_topic(Event("x" * MIB)), 10**6, batch=1),
    "a page each": Shape(lambda: of_one_topic(Event("x" * 4_000)), 10**6),
    "half a page each": Shape(lambda: of_one_topic(Event("x" * 2_000)), 10**6),
    "holes": Shape(lambda: with_holes(1_300), 10**6),
}


@dataclass(frozen=True, slots=True)
class Taken:
    """What one shape took, in bytes: at most, and what the journal counted in the end."""

    setting: int
    counted: int
    events: int
    disk: int
    memory: int
    smallest_file: int
    at_rest: int
    """Resident memory before the first event of the shape."""

    @property
    def kept(self) -> bool:
        """Whether the promise is."""
        return max(self.disk, self.memory) <= PROMISED * self.setting


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def on_disk(url: str) -> int:
    """Bytes of the database and its log."""
    path = url.removeprefix("sqlite:")
    files = [] if url == "memory:" else [Path(path), Path(path + "-wal")]
    return sum(file.stat().st_blocks * 512 for file in files if file.exists())


async def fill(url: str, shape: Shape, setting: int) -> Taken:
    """Publish until the shape has been through, and watch."""
    now = 1_700_000_000.0
    retention = Retention(events=shape.of_each_topic, seconds=shape.seconds, bytes=setting)
    async with open_journal(url, retention=retention, clock=lambda: now) as journal:
        await journal.append([Draft("warm/up", EMPTY)])
        smallest, at_rest = on_disk(url), resident()
        disk = memory = published = 0
        drafts, now_kept = shape.drafts(), journal.statistics()
        while published < shape.events and now_kept.evicted <= now_kept.events:
            batch = [next(drafts) for _ in range(shape.batch)]
            await _publish(journal, batch, once=shape.once)
            published += len(batch)
            now += 1
            now_kept = journal.statistics()
            if shape.seconds != math.inf:
                await journal.trim()
            if published % (10 * shape.batch) == 0:
                disk, memory = max(disk, on_disk(url)), max(memory, resident() - at_rest)
        disk, memory = max(disk, on_disk(url)), max(memory, resident() - at_rest)
    return Taken(setting, now_kept.bytes, now_kept.events, disk, memory, smallest, at_rest)


async def _publish(journal: Journal, drafts: list[Draft], *, once: bool) -> None:
    if not once:
        await journal.append(drafts)
        return
    async with trio.open_nursery() as nursery:
        for draft in drafts:
            number = draft.topic[-7:]
            key = Once.of(name(int(number), 128, CHARACTER), name(int(number), 255, "k"), draft)
            nursery.start_soon(journal.append_once, draft, key)


def taken(journal: str, shape: str, setting: int) -> Taken:
    """What a shape takes of a journal, ``memory`` or ``sqlite``, in a process of its own."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks.retention", "--inside", journal, "--shapes", shape]
    command += ["--mib", str(setting / MIB)]
    told = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    if told.returncode:
        raise click.ClickException(told.stderr)
    return Taken(**json.loads(told.stdout))


@click.command(help=__doc__)
@click.option("--mib", default=64.0, show_default=True, help="TRIO_SSE_RETENTION_BYTES, in MiB.")
@click.option("--journals", default="memory,sqlite", show_default=True, help="Which, in order.")
@click.option("--shapes", default=",".join(SHAPES), help="Which, in order; all by default.")
@click.option("--inside", help="Fill this journal in this process, and print what came of it as JSON.", hidden=True)
def main(mib: float, journals: str, shapes: str, inside: str | None) -> None:
    """Measure, print a table, and exit with 1 if a journal took more than is promised."""
    setting = int(mib * MIB)
    if inside is not None:
        with tempfile.TemporaryDirectory() as folder:
            url = "memory:" if inside == "memory" else f"sqlite:{folder}/journal.db"
            click.echo(json.dumps(asdict(trio.run(fill, url, SHAPES[shapes], setting))))
        return
    click.echo(f"{'MiB':30} {'journal':8} {'counted':>8} {'events':>8} {'file+log':>9} {'memory':>9}  of {mib:g} MiB")
    failed = False
    for shape in shapes.split(","):
        for journal in journals.split(","):
            one = taken(journal, shape, setting)
            failed |= not one.kept
            disk, memory = one.disk / setting, one.memory / setting
            click.echo(
                f"{shape:30} {journal:8} {one.counted / MIB:8.1f} {one.events:8} {one.disk / MIB:9.1f} "
                f"{one.memory / MIB:9.1f}  {disk:.2f} {memory:.2f}{'' if one.kept else '  MORE THAN PROMISED'}"
            )
    click.echo(f"at rest {one.at_rest / MIB:.0f} MiB of memory; the smallest file {one.smallest_file / 1024:.0f} KiB")
    sys.exit(failed)


if __name__ == "__main__":
    main()
