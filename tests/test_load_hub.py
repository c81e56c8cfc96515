"""``trio-sse load``, as a user runs it, against a hub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from trio_sse.cli import main

from .conftest import KEY, eventually, metric, sign
from .serving import ROOT, Server, serving

ENV = {"TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_ANONYMOUS": "publish,subscribe"}

GOOD = {"failed": False, "lost": 0, "twice": 0, "disordered": 0, "refused": 0}


def load(server: Server, *arguments: str) -> dict[str, Any]:
    """What a load of thirty clients tells; it must pass."""
    command = ["load", server.url, "--clients=30", "--rate=50", "--duration=1", "--json=-", *arguments]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    assert {name: told[name] for name in GOOD} == GOOD
    return told


@pytest.mark.parametrize(
    "options",
    [[], ["--stream"], ["--slow=10%"], ["--churn=20/s"], ["--reconnect-storm"], ["--topic=a", "--topic=b/c d"]],
    ids=["plain", "stream", "slow", "churn", "storm", "topics"],
)
def test_the_hub_passes(server: Server, options: list[str]) -> None:
    """Whatever the load, every event came to every client of its topic, once, in order."""
    told = load(server, *options)
    assert told["offered"] == 50 <= told["accepted"] + told["held"]  # a server that stands still holds some up
    assert told["delivered"] == 30 * told["accepted"] / max(1, told["topics"])
    assert 0 < told["p50_ms"] <= told["p99_ms"]


def test_everything_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow clients, churn and a storm, on two topics that are streamed to, with a token."""
    monkeypatch.setattr("trio_sse.load.engine.LINGER_S", 3.0)  # so that who left last is back by then
    options = ["--slow=2", "--churn=10/s", "--reconnect-storm", "--topic=x", "--topic=y", "--stream"]
    told = load(server, *options, f"--token={sign(publish=['**'], subscribe=['**'])}")
    assert told["left"] == told["reopened"] >= 28
    assert told["delivered"] == 15 * told["accepted"] > 0


def test_a_token_that_may_not_is_refused(server: Server) -> None:
    """Status 2, with the hub's own words."""
    command = ["load", server.url, "--topic=user/eve", "--clients=1"]
    result = CliRunner().invoke(main, command, env={"TRIO_SSE_TOKEN": sign()})
    assert result.exit_code == 2
    assert "403 Forbidden: " in result.stderr


def test_a_tuned_out_load_leaves_nothing(server: Server) -> None:
    """When it has ended, all its streams are closed."""
    load(server)
    assert eventually(lambda: metric(server, "trio_sse_streams") == 0)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A hub that a test may stop and start."""
    with serving(folder=tmp_path, env=ENV) as server:
        yield server


class Script:
    """`python benchmarks/load.py`, in a process of its own."""

    def __init__(self, server: Server, *arguments: str) -> None:
        command = [sys.executable, str(ROOT / "benchmarks" / "load.py"), server.url, "--json=-", *arguments]
        self.process = subprocess.Popen(
            command, cwd=server.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
        )

    def end(self) -> tuple[int, dict[str, Any], str]:
        """Its status, what it tells, and what it said beside it."""
        output, errors = self.process.communicate(timeout=60)
        assert output, errors
        return self.process.returncode, json.loads(output), errors


def test_a_restart_is_survived(own: Server) -> None:
    """Streams that the hub ends with a goodbye come back, and nothing that it took is lost."""
    script = Script(own, "--clients=10", "--rate=20", "--duration=5")
    assert eventually(lambda: metric(own, "trio_sse_streams") == 10)
    assert eventually(lambda: metric(own, "trio_sse_published_total") > 0)
    own.terminate()
    own.start()
    status, told, _ = script.end()
    assert told["closed"] >= 10
    assert told["reopened"] >= 10
    assert told["lost"] == told["twice"] == told["disordered"] == 0
    assert told["accepted"] > 0
    assert (status == 1) == bool(told["refused"] or told["streams_refused"])


def test_ctrl_c_ends_it_in_order(own: Server) -> None:
    """It publishes no more, waits for what is under way, and tells what there was; the status follows that."""
    script = Script(own, "--clients=5", "--duration=60")
    assert eventually(lambda: metric(own, "trio_sse_streams") == 5)
    assert eventually(lambda: metric(own, "trio_sse_published_total") > 0)
    script.process.send_signal(signal.SIGINT)
    status, told, errors = script.end()
    assert (status, told["lost"]) == (0, 0)
    assert 0 < told["offered"] < 100
    assert "delivered" in errors
    assert "Traceback" not in errors
