"""The benchmark of publishing tells the truth: what it counts is what happened, and what is wrong is seen."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.publish import Run, remarks, table_of
from benchmarks.publishers import EVENT_BYTES, Subscriber, check_acknowledgements, data
from benchmarks.servers import BenchmarkError

from .serving import ROOT

GAP = b'event: trio-sse.gap\nid: 9-0\ndata: {"reason": "trimmed"}\n\n'


def answer(*lines: object) -> bytes:
    """An answer to a stream of events, as it comes over the wire."""
    texts = [json.dumps(line).encode() + b"\n" for line in lines]
    chunks = [b"%x\r\n%b\r\n" % (len(text), text) for text in texts]
    return b"HTTP/1.1 200 \r\ncontent-type: application/x-ndjson\r\n\r\n" + b"".join(chunks) + b"0\r\n\r\n"


def block(number: int) -> bytes:
    return b"id: 5-%d\ndata: %b\n\n" % (number + 1, data(number))


ONE, TWO = {"acked": 1, "id": "5-1"}, {"acked": 2, "id": "5-2"}
DONE = {"done": True, "count": 2, "id": "5-2"}


def test_an_event_has_the_length_that_the_table_says() -> None:
    """Whatever its number."""
    assert len(data(0)) == len(data(10**9)) == EVENT_BYTES


def test_acknowledgements_in_order_are_in_order() -> None:
    """Nothing is wrong with them, and the last ID is told."""
    faults, last = check_acknowledgements(answer(ONE, TWO, DONE), 2)
    assert (faults, str(last)) == ([], "5-2")


@pytest.mark.parametrize(
    ("lines", "sent"),
    [
        ((TWO, ONE, DONE), 2),
        ((ONE, {"acked": 2, "id": "5-1"}, DONE), 2),
        ((ONE, TWO, DONE), 3),
        ((ONE, DONE), 2),
        ((ONE, TWO), 2),
        ((ONE, TWO, {**DONE, "id": "5-3"}), 2),
        ((ONE, TWO, {"status": 503, "detail": "no room"}), 2),
    ],
)
def test_wrong_acknowledgements_are_seen(lines: tuple[object, ...], sent: int) -> None:
    """Out of order, the same ID twice, too few, no end, another last ID, a problem at the end."""
    assert check_acknowledgements(answer(*lines), sent)[0]


@pytest.mark.parametrize("refused", [b"", b"HTTP/1.1 401 \r\n\r\n", answer(), answer(DONE)])
def test_an_answer_without_acknowledgements_is_an_error(refused: bytes) -> None:
    """Then there is nothing to measure."""
    with pytest.raises(BenchmarkError, match="refused"):
        check_acknowledgements(refused, 2)


@pytest.mark.parametrize(
    ("blocks", "faults", "gaps", "received"),
    [
        ([block(0) + block(1), block(2)], 0, 0, 3),
        ([block(0), block(2)], 1, 0, 2),
        ([block(0) + block(0)], 1, 0, 2),
        ([block(1) + block(0)], 1, 0, 2),
        ([block(0) + GAP + block(7) + block(8)], 0, 1, 3),
        ([block(0) + GAP + block(7) + block(9)], 1, 1, 3),
        ([block(0) + block(1) + GAP + block(0)], 1, 1, 3),
        ([block(0) + GAP, block(7) + block(8)], 0, 1, 3),
        ([block(0) + GAP, block(7), block(9)], 1, 1, 3),
    ],
)
def test_a_subscriber_sees_what_is_lost_in_silence(blocks: list[bytes], faults: int, gaps: int, received: int) -> None:
    """A hole, a repetition and another order are faults; a hole that was told is none."""
    subscriber = object.__new__(Subscriber)
    subscriber.next = subscriber.faults = subscriber.gaps = subscriber.received = 0
    subscriber.after_gap = False
    for each in blocks:
        subscriber.take(each)
    assert (subscriber.faults, subscriber.gaps, subscriber.received) == (faults, gaps, received)


def test_no_line_of_the_table_wraps_in_80_columns() -> None:
    """Also where there is no terminal whose width is known."""
    way = "streamed, 100 a chunk, 100 subscribers"
    runs = [Run(journal, way, 10**6, 1.0, 0.1, (), 2 * 10**6, 3) for journal in ("memory", "sqlite")]
    narrow, wide = (Console(width=width, file=io.StringIO()).render_lines(table_of(runs)) for width in (80, 200))
    assert len(narrow) == len(wide)


def test_faults_and_gaps_are_told() -> None:
    """Below the table, each with the run it belongs to."""
    runs = [Run("memory", "a way", 10, 1, 1, ["it burns"]), Run("sqlite", "a way", 10, 1, 1, (), 10, 2)]
    assert remarks(runs) == ["memory, a way: it burns", "sqlite, a way: 2 gaps were told"]


@pytest.mark.proof
def test_a_small_real_run(tmp_path: Path) -> None:
    """Every way of publishing into a real journal, as a user runs it: all that was sent was kept."""
    report = tmp_path / "report.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "publish.py"), "--journal=sqlite", "--seconds=0.2"]
    done = subprocess.run(
        [*command, f"--json={report}"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Publishing, events of" in done.stdout
    runs = json.loads(report.read_text())["runs"]
    assert [run["way"] for run in runs] == [
        "one a POST",
        "streamed, 1 a chunk",
        "streamed, 100 a chunk",
        "streamed, 500 a chunk",
        "streamed, 100 a chunk, 100 subscribers",
        "publish",
        "publish, 100 tasks",
        "publish_many of 100",
    ]
    for run in runs:
        assert run["faults"] == []
        assert run["events"] > 0
        assert run["cpu_us"] > 0
