"""Journals as earlier versions of the code wrote them, and what they said to it: ``tests/corpus/journals``.

``version-N.db.gz`` is a journal whose file has schema version N, byte for byte as the last code that wrote that version
left it. ``version-N.json`` is what that code said of it: the answers of :func:`tell`. :mod:`tests.test_journal_corpus`
opens each with the code of today and compares.

A new schema version needs one more pair, so that the versions after it have something to be held to:

1. Let :func:`write` put into a journal what the new version can keep, and :func:`tell` ask for it.
2. With that code, at the commit that brings the new version, run ``python tests/journal_corpus.py``. It writes the pair
   of the version that the code writes; commit it. (``PYTHONPATH`` chooses other code: version 2 was written with
   ``PYTHONPATH=`` a checkout of 71d1d44.)

The older pairs stay as they are for ever. A question that :func:`tell` did not ask then has no answer to compare with;
an answer that is to change needs a word in the changelog, since somebody's journal says something else from then on.

The clock stands where :func:`write` puts it, so the same code writes the same journal. Two bounds are made small for
it: beyond 10,000 empty topics a journal forgets the floor of the oldest, and beyond 100,000 lost keys the key; here two
and five are enough.
"""

from __future__ import annotations

import gzip
import json
import math
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import trio

from trio_sse.errors import KeyReused
from trio_sse.event import ORIGIN, Event
from trio_sse.hub import Hub, open_hub
from trio_sse.record import Record
from trio_sse.retention import Keep, Retention
from trio_sse.subscription import Slow
from trio_sse.testing import NOON, WallClock
from trio_sse.topic import parse_selectors

FOLDER = Path(__file__).parent / "corpus" / "journals"

RETENTION = Retention(topics={"busy/*": Keep(events=3), "old/*": Keep(seconds=60), "keyed": Keep(bytes=600)})
EVERYTHING = Retention(events=math.inf, seconds=math.inf, bytes=math.inf)
"""What it keeps while it is written, and while it is asked."""

WRITTEN_S, TOLD_S = 3600, 2 * 3600
"""When it was written, and when it is asked, in seconds after noon."""

KEY, NO_KEY = "the signing key of this journal, which nobody else has", "no key was in this journal, so this is kept"
"""Version 2 kept its key in the journal; later ones have it in a file beside it, which is not in the corpus."""

END = "end"
"""The topic of the newest event, and of the oldest."""

SHAPES = (
    Event(""),
    Event("plain"),
    Event("two\nlines"),
    Event("\n\nblank lines\n\n"),
    Event(" a space first"),
    Event(": no comment\nid: no id\ndata: no field"),
    Event("tab\tform feed\fnext line\x85line separator\u2028nul\0"),
    Event("\ufeffa byte order mark"),
    Event("مثال 👨‍👩‍👧 ‏ 漢字 \U0010ffff"),
    Event("typed", type="rename"),
    Event("typed in letters of its own", type="värde/更新"),
    Event('{"json": [1, 2.5, null, "ü"]}', type="json"),
    Event("x" * 3000),
)
"""Events of all shapes."""

TOPICS = ("lobby", "räume/übung", "مثال/نام", "room/1/chat", "user/ada", "busy/1", "busy/2", "old/1", "keyed")
FORGOTTEN = ("old/2", "old/3", "old/4")
"""Topics that have been emptied so long ago that of the first two the journal knows no floor of their own."""

UNKNOWN = "never/heard/of"
SELECTORS = (
    *TOPICS,
    *FORGOTTEN,
    UNKNOWN,
    END,
    "**",
    "busy/*",
    "old/*",
    "room/*/chat",
    "user/ada lobby",
    "keyed busy/1",
)
"""What is asked for, each with spaces between selectors."""

STREAMS = ("**", "busy/*", "old/*", "keyed busy/1", "lobby", "old/1", UNKNOWN)
ONCE = (
    ("lobby", None, "key-1", "published once"),
    ("lobby", "ada", "key-1", "the same key, another's"),
    ("räume/übung", "ada", "key-1", "the same key, another topic"),
    ("lobby", "مها", "~ key with !", "a subject of other letters"),
    ("busy/1", "ada", "gone", "its event is removed, and its key is not"),
)
"""Topic, subject, key and data of what was published under an idempotency key."""


async def write(path: Path) -> None:
    """Write a journal that holds something of everything a journal can hold, over two lives."""
    clock = WallClock()
    async with open_hub(f"sqlite:{path}", retention=RETENTION, clock=clock) as hub:
        await hub.publish(END, "the oldest")
        for topic in FORGOTTEN:
            clock.move(1)
            await hub.publish(topic, "will be forgotten")
        clock.move(120)
        await hub.journal.trim()
        await hub.publish("old/1", "will be removed")
        clock.move(120)
        await hub.journal.trim()
        for event in SHAPES:
            clock.move(0.001)
            await hub.publish("lobby", event)
        await hub.publish_many("räume/übung", [Event(f"übung {number}") for number in range(3)])
        await hub.publish("مثال/نام", "سلام", key="کلید")
        await hub.publish("user/ada", "for ada only", key="inbox 1")
        for number in range(4):  # keys that are replaced, keys that are not, and no key
            for key in ("1", f"only {number}", None):
                await hub.publish("busy/1", f"busy {number}", key=key)
        for number in range(6):
            await hub.publish("busy/2", f"busy {number}", key=f"key {number}")
    clock.now = NOON + WRITTEN_S
    async with open_hub(f"sqlite:{path}", retention=RETENTION, clock=clock) as hub:
        for topic, subject, key, data in ONCE:
            await hub.publish_once(topic, Event(data), key, key="k" if topic == "busy/1" else None, subject=subject)
        for number in range(3):
            await hub.publish("busy/1", f"later {number}", key=f"later {number}")
        for number in range(10):
            clock.move(0.001)
            await hub.publish("keyed", f"value {number}" + "." * 50, key=f"cell {number % 4}")
        await hub.publish("room/1/chat", "hello")
        await hub.journal.signing_key(KEY)
        await hub.publish(END, "the newest")
        clock.move(60)
        hub.journal.position()


async def tell(path: Path) -> dict[str, Any]:
    """What the code says of the journal in this file, which it may change, as a JSON value."""
    clock = WallClock(NOON + TOLD_S)
    async with open_hub(f"sqlite:{path}", retention=EVERYTHING, clock=clock) as hub:
        journal = hub.journal
        records = await _read(hub, "**")
        ids = [str(record.id) for record in records]
        told: dict[str, Any] = {
            "born": str(journal.born),
            "tail": str(journal.tail),
            "records": [_record(record) for record in records],
            "events": journal.statistics().events,
            "topics": journal.statistics().topics,
            "signing key": await journal.signing_key(NO_KEY),
            "newest": {topic: str(await journal.last_event_id(topic)) for topic in (*TOPICS, *FORGOTTEN, UNKNOWN, END)},
        }
        cursors = ["earliest", "nonsense", "1-1", f"{journal.born.ms}-0", ids[1], ids[len(ids) // 2], ids[-1]]
        cursors += [f"{journal.tail.ms}-8000"]
        told["floors"] = {texts: await _floors(hub, texts) for texts in SELECTORS}
        told["streams"] = {
            f"{texts} after {cursor}, {slow}": await _stream(hub, texts, cursor, slow)
            for texts in STREAMS
            for cursor in cursors
            for slow in ("catch-up", "latest")
        }
        told["once"] = [await _publish_again(hub, *once) for once in ONCE]
        clock.now = NOON  # far back: what comes now comes after all that was given all the same
        told["position after"] = str(journal.position())
        told["id after"] = str(await hub.publish("lobby", "after all this"))
    return told


async def _read(hub: Hub, texts: str) -> list[Record]:
    """What is kept of some topics, read page by page."""
    records: list[Record] = []
    more = True
    while more:
        page = await hub.journal.read(parse_selectors(texts.split()), records[-1].id if records else ORIGIN, 7)
        records += page.records
        more = page.more
    return records


def _record(record: Record) -> list[str | None]:
    return [str(record.id), record.topic, record.key, record.frame.decode()]


async def _floors(hub: Hub, texts: str) -> dict[str, Any]:
    selectors = parse_selectors(texts.split())
    page = await hub.journal.read(selectors, ORIGIN, 1000)
    return {
        "floor": str(await hub.journal.floor(selectors)),
        "lost": str(page.lost),
        "ids": [str(record.id) for record in page.records],
    }


async def _stream(hub: Hub, texts: str, cursor: str, slow: Slow) -> list[str]:
    """What a subscriber gets up to the newest event: of each event the ID, of a gap what it says."""
    found: list[str] = []
    async with hub.subscribe(*texts.split(), END, last_event_id=cursor, slow=slow) as subscription:
        found.append(f"from {await subscription.locate()}")
        while found[-1] not in (str(hub.journal.tail), f"from {hub.journal.tail}"):
            received = await subscription.receive()
            found.append(str(received.id) if isinstance(received, Record) else received.frame.decode())
    return found


async def _publish_again(hub: Hub, topic: str, subject: str | None, key: str, data: str) -> list[Any]:
    """What is said to somebody who publishes again what was published, and to one who publishes something else."""
    name = "k" if topic == "busy/1" else None
    id, replayed = await hub.publish_once(topic, Event(data), key, key=name, subject=subject)
    try:
        await hub.publish_once(topic, Event(data + "!"), key, key=name, subject=subject)
    except KeyReused as refusal:
        return [str(id), replayed, str(refusal)]
    return [str(id), replayed, None]


def unpack(version: int, path: Path) -> None:
    """Lay the journal of a version there."""
    path.touch(mode=0o600)
    path.write_bytes(gzip.decompress((FOLDER / f"version-{version}.db.gz").read_bytes()))


def told_then(version: int) -> dict[str, Any]:
    """What was said of the journal of a version by the code that wrote it."""
    told: dict[str, Any] = json.loads((FOLDER / f"version-{version}.json").read_text())
    return told


def versions() -> list[int]:
    """The versions of which there is a journal."""
    return sorted(int(path.stem.removeprefix("version-")) for path in FOLDER.glob("version-*.json"))


def main() -> None:
    """Write the pair of the version that this code writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hub.db"
        with (
            mock.patch("trio_sse.journal.writer.MAX_EMPTY_TOPICS", 2),
            mock.patch("trio_sse.journal.lost.MAX_LOST", 5),
        ):
            trio.run(write, path)
        written = path.read_bytes()
        with closing(sqlite3.connect(path)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
        copy = Path(folder) / "copy.db"
        copy.touch(mode=0o600)
        copy.write_bytes(written)
        told = trio.run(tell, copy)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"version-{version}.db.gz").write_bytes(gzip.compress(written, mtime=0))
    (FOLDER / f"version-{version}.json").write_text(_text(told))
    sys.stdout.write(f"version {version}: {len(written)} bytes, {len(told['records'])} records\n")


def _text(told: dict[str, Any]) -> str:
    """JSON with an answer a line."""

    def text(value: object) -> str:
        return json.dumps(value, ensure_ascii=False)

    answers = []
    for question, answer in told.items():
        if isinstance(answer, dict):
            lines = ",\n".join(f"{text(name)}: {text(value)}" for name, value in answer.items())
            answers.append(f"{text(question)}: {{\n{lines}\n}}")
        elif isinstance(answer, list):
            lines = ",\n".join(map(text, answer))
            answers.append(f"{text(question)}: [\n{lines}\n]")
        else:
            answers.append(f"{text(question)}: {text(answer)}")
    return "{\n" + ",\n".join(answers) + "\n}\n"


if __name__ == "__main__":
    main()
