"""The benchmarks of what lasts: real runs, a few seconds of each."""

from __future__ import annotations

import json
import os
import time
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from benchmarks import heartbeats, soak
from tests.conftest import STALL_S, WITHIN_S
from tests.serving import serving


def test_a_soak_tells_what_stays_behind(tmp_path: Path) -> None:
    """By name, with what there was before, and what of it was too much."""
    file = tmp_path / "soak.json"
    options = ["--minutes", "0.01", "--rate", "50", "--stretch", "1", "--warm-up", "0", "--json", str(file)]
    told = CliRunner().invoke(soak.main, options)
    found = json.loads(file.read_text())
    assert told.exit_code == 0, told.output
    assert found["faults"] == {}
    assert found["growing"] == []
    assert found["visits"] == 50 * len(found["looks"]) > 0
    assert {"tasks", "descriptors", "streams", "objects", "memory"} <= found["slopes"].keys()
    assert all(look["tasks"] <= found["baseline"]["tasks"] for look in found["looks"])
    assert "tasks" in told.output


def test_of_many_idle_streams_none_is_silent_for_long(tmp_path: Path) -> None:
    """300 of them, with a heartbeat in a second: each has its own, again and again."""
    streams, heartbeat_s = 300, 1
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_HEARTBEAT_S": str(heartbeat_s)}
    ours, theirs = Pipe()
    with serving(folder=tmp_path, env=env) as server, ours, theirs:
        core = min(os.sched_getaffinity(0))
        listening = Thread(target=heartbeats.listen, args=(server.port, streams, core, theirs))
        listening.start()
        assert ours.recv() == streams
        heard: list[heartbeats.Heard] = []
        deadline = time.monotonic() + WITHIN_S
        while sum(each.beats for each in heard) < 3 * streams and time.monotonic() < deadline:
            time.sleep(0.2)
            ours.send(True)
            heard.append(ours.recv())
        ours.send(False)
        listening.join()
    assert sum(each.beats for each in heard) >= 3 * streams
    assert max(each.worst_s for each in heard) < 2 * heartbeat_s + STALL_S
    assert heard[-1].closed == 0


@pytest.mark.proof
@pytest.mark.timeout(300)
def test_heartbeats_are_measured(tmp_path: Path) -> None:
    """Beside the same streams without them; and events go on meanwhile."""
    file = tmp_path / "heartbeats.json"
    options = ["--streams", "300", "--seconds", "3", "--heartbeat", "1", "--clients", "5", "--rate", "20"]
    told = CliRunner().invoke(heartbeats.main, [*options, "--json", str(file)])
    found = json.loads(file.read_text())
    assert found["lost"] == found["closed"] == 0, told.output
    assert found["beats"] >= 300
    assert all(part["idle"]["beats"] == 0 for part in found["silent"])
    assert "the longest silence of a stream" in told.output


@pytest.mark.proof
@pytest.mark.timeout(300)
def test_ten_thousand_idle_streams_have_their_heartbeats() -> None:
    """With the settings that there are, none is silent for fifteen seconds."""
    told = CliRunner().invoke(heartbeats.main, ["--streams", "10000", "--seconds", "30"])
    assert told.exit_code == 0, told.output
