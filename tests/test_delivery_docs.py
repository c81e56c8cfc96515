"""What ``docs/delivery.md`` says is so: its commands print what it shows, and its bounds are the code's own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from trio_sse import hub, latest
from trio_sse.event import EventID
from trio_sse.journal import contract
from trio_sse.record import GapReason
from trio_sse.retention import Retention
from trio_sse.settings import PREFIX, Settings

from .conftest import WITHIN_S
from .serving import ROOT, Server, serving

DOCS = ROOT / "docs"
TEXT = (DOCS / "delivery.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [code for language, code in BLOCKS if language == "sh" and "curl" in code]
IDEMPOTENT = "Idempotency-Replayed"


@contextmanager
def started(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that need not end by itself; what it prints comes to an end in any case."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:

        def end() -> None:
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(WITHIN_S, end)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            if process.poll() is None:
                end()


class Reading:
    """The page, read from its beginning: which of its ids stands for which of this server's."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.ids: dict[str, str] = {}

    def run(self, commands: str, shown: str) -> str:
        """Run some commands, until they have printed what is shown; the heads of all answers."""
        for mine, real in self.ids.items():
            commands = commands.replace(mine, real)
        commands = commands.replace("localhost:8000", f"127.0.0.1:{self.server.port}")
        return self.read(["bash", "-c", commands.replace("curl ", "curl -sS -D - ")], shown)

    def read(self, command: list[str], shown: str) -> str:
        """Run a command until it has printed what is shown, and nothing else; the heads among it."""
        heads: list[str] = []
        printed: list[str] = []
        with started(command, self.folder) as process:
            assert process.stdout is not None
            for line in map(bytes.decode, process.stdout):
                if line.endswith("\r\n"):
                    heads.append(line)
                elif line != ":\n":  # a heartbeat
                    printed.append(line)
                if shown and len(printed) == len(shown.splitlines()):
                    break
        if shown:
            self._compare("".join(printed), shown)
        return "".join(heads)

    def _compare(self, printed: str, shown: str) -> None:
        form = r"\b\d{13}-\d+\b"
        assert re.sub(form, "ID", printed) == re.sub(form, "ID", shown)
        for mine, real in zip(re.findall(form, shown), re.findall(form, printed), strict=True):
            assert self.ids.setdefault(mine, real) == real, mine
        in_order = [self.ids[id] for id in sorted(self.ids)]
        assert in_order == sorted(in_order, key=EventID.parse)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The heads of the answers to each block of commands; all of them, in order, printed what the page shows."""
    folder = tmp_path_factory.mktemp("delivery")
    heads = []
    with serving(folder=folder) as server:
        reading = Reading(server, folder)
        for (language, code), (next_language, shown) in pairwise([*BLOCKS, ("", "")]):
            shown = shown if next_language == "text" else ""
            if code in COMMANDS:
                heads.append(reading.run(code, shown))
            elif language == "python":
                reading.read([sys.executable, "-c", code], shown)
    return heads


def test_the_commands_print_what_the_page_shows(heads: list[str]) -> None:
    """Byte for byte but for the ids, of which each is the same one wherever it stands."""
    assert len(heads) == len(COMMANDS)
    shown = [before for (before, _), (language, _) in pairwise(BLOCKS) if language == "text"]
    assert shown == ["sh", "sh", "sh", "python", "sh", "sh"]


def test_each_command_is_answered_as_the_page_says(heads: list[str]) -> None:
    """With 200 or 201, but for the one that is refused with 422."""
    statuses = [re.findall(r"^HTTP/1.1 (\d+)", head, re.MULTILINE) for head in heads]
    assert statuses[-1] == ["422"]
    assert {status for each in statuses[:-1] for status in each} == {"200", "201"}


def test_what_is_replayed_says_so(heads: list[str]) -> None:
    """The second of two requests with one key, and no other answer."""
    assert f"`{IDEMPOTENT}: true`" in TEXT
    replayed = [re.findall(rf"^{IDEMPOTENT}: (.*?)\r?$", head, re.MULTILINE | re.IGNORECASE) for head in heads]
    assert [each for each in replayed if each] == [["true"]]


def test_the_header_names_where_a_gap_resumes(heads: list[str]) -> None:
    """Beside the opening block, which names the old cursor until the gap has come."""
    (head,) = [head for code, head in zip(COMMANDS, heads, strict=True) if "last_event_id=1-1" in code]
    assert re.search(r"^last-event-id: \d{13}-0\r?$", head, re.MULTILINE | re.IGNORECASE)


def test_the_reasons_are_all_there() -> None:
    """Each in its row of the table, and no other."""
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)[: len(get_args(GapReason))] == list(get_args(GapReason))


BOUNDS = {
    f"{hub.MAX_IDEMPOTENCY_KEY} printable ASCII characters",
    f"known for {contract.ONCE_S // 3600} hours",
    f"more than {contract.MAX_ONCE:,} keys",
    f"the hub remembers {contract.MAX_EMPTY_TOPICS:,}",
    f"more than {latest.MAX_KEYS:,} keys",
    f"{latest.MAX_KEYS:,} keys or {latest.MAX_BYTES // 2**20} MiB",
    f"{Settings.model_fields['buffer_events'].default} events (`{PREFIX}BUFFER_EVENTS`)",
    f"{Settings.model_fields['retention_events'].default:,} events of each topic",
    f"for {Settings.model_fields['retention_seconds'].default // 86400} days",
    f"{Settings.model_fields['retention_bytes'].default // 2**20} MiB in all",
}


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_a_bound_is_the_codes_own(bound: str) -> None:
    """In these words."""
    assert bound in " ".join(TEXT.split())


def test_the_rules_for_keeping_mean_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A room keeps seven days, whatever their number; a ticker a minute; everything else what is general."""
    (rules,) = re.findall(rf"^export {PREFIX}RETENTION='(.*?)'$", TEXT, re.MULTILINE | re.DOTALL)
    monkeypatch.setenv(f"{PREFIX}RETENTION", rules)
    keeps = Retention(topics=Settings().retention)
    assert keeps.of("room/1").seconds == 7 * 24 * 3600
    assert keeps.of("room/1").events == float("inf")
    assert (keeps.of("ticker/a/b").seconds, keeps.of("ticker/a").events) == (60, keeps.events)
    assert keeps.of("ticker/a").bytes == json.loads(rules)["ticker/**"]["bytes"]
    assert keeps.of("room") == keeps.of("other") == Retention().of("anything")


@pytest.mark.parametrize("link", re.findall(r"\]\(([^):]+)\)", TEXT))
def test_a_link_leads_somewhere(link: str) -> None:
    """To a file beside it, or to a heading of its own."""
    file, _, heading = link.partition("#")
    assert (DOCS / file).exists()
    headings = re.findall(r"^##? (.*)$", TEXT, re.MULTILINE)
    assert not heading or heading in [each.lower().replace(" ", "-") for each in headings]


def test_the_readme_leads_to_it() -> None:
    """It is found by who looks for it."""
    assert "(docs/delivery.md)" in (ROOT / "README.md").read_text()


def test_the_diagram_shows_what_the_text_says() -> None:
    """What leaves under each policy, in order: everything, and the newest of each key."""
    root = ET.parse(DOCS / "delivery.svg").getroot()
    sent: dict[str, list[str]] = {}
    for use in root.iter("{http://www.w3.org/2000/svg}use"):
        if int(use.attrib["x"]) > 576:  # behind the pause
            sent.setdefault(use.attrib["y"], []).append(use.attrib["href"])
    assert list(sent.values()) == [["#a1", "#b2", "#a3", "#a4", "#b5"], ["#a4", "#b5"]]
