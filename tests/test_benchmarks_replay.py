"""The benchmark of catching up tells the truth: it counts what each client got, and sees what is wrong with it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks import contenders, replay
from benchmarks.herd import Body, Caught, Client, Faults, Herd, History
from benchmarks.publishers import data
from benchmarks.replay import Live, Part
from benchmarks.servers import BenchmarkError

EVENTS = 6
HEAD = b"HTTP/1.1 200 \r\ncontent-type: text/event-stream\r\n"
OPENING = b": stream\nretry: 2000\nid: 5-2\n\n"
BEAT = b":\n"
GAP = b'event: trio-sse.gap\nid: 5-2\ndata: {"reason": "trimmed"}\n\n'


def block(number: int) -> bytes:
    return b"id: 5-%d\ndata: %b\n\n" % (number + 1, data(number))


HISTORY = History.of(b"".join(map(block, range(EVENTS))), EVENTS)


def sent(*numbers: int) -> bytes:
    return b"".join(map(block, numbers))


def chunked(*pieces: bytes) -> bytes:
    return (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces)
    )


def client_of(answer: bytes, step: int = 1000) -> Client:
    """A client that had the events 0 and 1, and what it made of an answer that came in pieces."""
    client = Client(HISTORY, last=1)
    for begin in range(0, len(answer), step):
        client.take(answer[begin : begin + step])
    return client


# -- what is counted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100, 1000])
@pytest.mark.parametrize(
    "answer",
    [
        chunked(OPENING + sent(2, 3, 4, 5)),
        chunked(OPENING, sent(2, 3)[:50], sent(2, 3)[50:] + sent(4), sent(5)),
        HEAD + b"\r\n" + OPENING + sent(2, 3, 4, 5),
    ],
    ids=["one-chunk", "chunks", "no-chunks"],
)
def test_what_follows_the_cursor_is_all_there(answer: bytes, step: int) -> None:
    """However it is cut."""
    client = client_of(answer, step)
    assert (client.is_open, client.is_done, client.received, client.faults) == (True, True, 4, Faults())


@pytest.mark.parametrize(
    ("pieces", "received", "faults"),
    [
        ([sent(2, 3)], 2, Faults(lost=2)),
        ([sent(2, 3), sent(4, 5)[:-1]], 3, Faults(lost=1)),
        ([sent(2, 4, 5)], 3, Faults(lost=1)),
        ([sent(2, 3, 3, 4, 5)], 5, Faults(twice=1)),
        ([sent(1, 2, 3, 4, 5)], 5, Faults(twice=1)),
        ([sent(2, 3, 4, 5), sent(5)], 5, Faults(twice=1)),
        ([sent(2, 4, 3, 5)], 4, Faults(disordered=1)),
        ([GAP, sent(2, 3, 4, 5)], 4, Faults(other=1)),
        ([GAP, sent(4, 5)], 2, Faults(lost=2)),
        ([sent(2, 3, 4, 5).replace(b"id: 5-4", b"id: 5-9")], 4, Faults(other=1)),
        ([], 0, Faults(lost=4)),
    ],
)
def test_what_is_wrong_is_counted(pieces: Sequence[bytes], received: int, faults: Faults) -> None:
    """Lost, cut off, skipped, twice, twice at the end, out of order, a gap, other bytes, nothing at all."""
    client = client_of(chunked(OPENING, *pieces))
    assert (client.received, client.faults) == (received, faults)


@pytest.mark.parametrize("pieces", [[BEAT, sent(2, 3), BEAT, BEAT, sent(4, 5)], [sent(2, 3, 4, 5), BEAT]])
def test_a_heartbeat_is_no_fault(pieces: Sequence[bytes]) -> None:
    """Before events, between them and when all have come."""
    client = client_of(chunked(OPENING, *pieces))
    assert (client.is_done, client.faults) == (True, Faults())


def test_a_client_is_not_done_before_its_last_event() -> None:
    """Nor open before the first bytes of the body."""
    answer = chunked(OPENING + sent(2, 3, 4, 5))
    assert not client_of(answer[: answer.index(OPENING)]).is_open
    assert not client_of(answer[:-3]).is_done  # the last newline, and the chunk's end


def test_a_refusal_is_no_stream() -> None:
    """It is told as it came."""
    with pytest.raises(BenchmarkError, match="503"):
        list(Body().feed(b"HTTP/1.1 503 \r\n\r\n"))


@pytest.mark.parametrize("body", [sent(0, 2), sent(0, 1)[:-1], sent(1, 0), b""])
def test_a_history_has_to_be_whole(body: bytes) -> None:
    """Otherwise there is nothing to compare with."""
    with pytest.raises(BenchmarkError, match="of 2 events the server keeps"):
        History.of(body, 2)


@pytest.mark.parametrize(("clients", "places"), [(1, 1), (3, 2), (7, 5), (10, 5)])
def test_what_all_are_owed_is_what_each_is_owed(clients: int, places: int) -> None:
    """For each of its clients, what follows its cursor."""
    herd = Herd(0, 0, "/", HISTORY, clients, places, 0)
    assert herd.owed == sum(EVENTS - 1 - herd.cursor(number) for number in range(clients))
    assert {herd.cursor(number) for number in range(clients)} == set(range(min(clients, places)))


# -- what is told -------------------------------------------------------------------------------------------

CAUGHT = Caught(5_000_000, Faults(), {}, 12.3, 123.4, 120.1, 99.9, 2**30)
LIVE = Live(1.2, 3_456.7, 13_630.8, 10_000)
PART = Part("trio_sse (memory)", True, True, 5_000_000, CAUGHT, 10**9, 10**9, 10**9, LIVE, LIVE)


def test_no_line_of_the_tables_wraps_in_80_columns() -> None:
    """Also where there is no terminal whose width is known."""
    for table in replay.tables_of([PART], replay.Plan(5_000, 1_000, 100, 100, 50, 5, True)):
        narrow, wide = (Console(width=width, file=io.StringIO()).render_lines(table) for width in (80, 200))
        assert len(narrow) == len(wide)


@pytest.mark.parametrize(
    "part",
    [
        replace(PART, caught=replace(CAUGHT, faults=Faults(lost=1))),
        replace(PART, caught=replace(CAUGHT, faults=Faults(other=1))),
        replace(PART, caught=replace(CAUGHT, refused={"the server ended a stream": 1})),
        replace(PART, caught=replace(CAUGHT, received=4_999_999)),
        replace(PART, rest=replace(LIVE, lost=1)),
        replace(PART, meanwhile=replace(LIVE, ended=1)),
    ],
)
def test_whatever_is_wrong_is_a_failure(part: Part) -> None:
    """With those who came back, and with those who stayed."""
    assert part.failed
    assert not PART.failed


def test_faults_are_told() -> None:
    """Below the tables, with what they were."""
    wrong = replace(CAUGHT, faults=Faults(lost=1_234), refused={"the server ended a stream": 7})
    told = "\n".join(replay.remarks([replace(PART, caught=wrong)]))
    assert "1,234 lost" in told
    assert "7 clients: the server ended a stream" in told


# -- real runs ----------------------------------------------------------------------------------------------


def run(folder: Path, *options: str) -> dict[str, Any]:
    file = folder / "replay.json"
    told = CliRunner().invoke(replay.main, [*options, "--servers", "sqlite", "--seconds", "0.5", "--json", str(file)])
    assert told.exit_code == 0, told.output
    (part,) = json.loads(file.read_text())["parts"]
    assert isinstance(part, dict)
    return part


def test_clients_that_come_back_get_what_they_missed(tmp_path: Path) -> None:
    """All of it once, from a database after a restart, while live streams lose nothing."""
    part = run(tmp_path, "--clients", "50", "--events", "100", "--places", "10", "--live", "5", "--rate", "200")
    assert part["restarted"]
    assert part["caught"]["received"] == part["owed"] == 5 * sum(range(100, 110))
    assert part["caught"]["refused"] == {}
    assert set(part["caught"]["faults"].values()) == {0}
    assert part["peak_bytes"] >= part["before_bytes"] > 0
    assert part["read_bytes"] > 0
    assert min(part["rest"]["delivered"], part["meanwhile"]["delivered"]) > 0
    assert not any(part[when][fault] for when in ("rest", "meanwhile") for fault in replay.FAULTS)


def test_who_cannot_be_measured_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the command fails for it."""
    monkeypatch.setattr(contenders, "SYSTEM_PATH", "/nowhere")
    told = CliRunner().invoke(replay.main, ["--servers", "nchan"])
    assert told.exit_code == 2
    assert "NOT MEASURED: Nchan: no nginx" in told.output


@pytest.mark.proof
@pytest.mark.timeout(300)
def test_five_thousand_clients_catch_up_a_thousand_events(tmp_path: Path) -> None:
    """Each, after a restart, and loses none; nor do the live streams."""
    part = run(tmp_path)
    assert part["restarted"]
    assert part["caught"]["received"] == part["owed"] >= 5_000 * 1_000
    assert not any(part[when][fault] for when in ("rest", "meanwhile") for fault in replay.FAULTS)
