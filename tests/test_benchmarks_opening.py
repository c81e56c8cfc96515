"""What a stream costs: the figures are of streams, and of all that belongs to one."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from benchmarks import opening


@pytest.mark.proof
def test_each_server_is_told_of() -> None:
    """With its cost to open and to keep, and how it compares."""
    told = CliRunner().invoke(opening.main, ["--streams", "20", "--rounds", "1"])
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == ["raw ASGI", "trio_sse"]
    assert all(" µs (" in line and line.endswith(" KiB") for line in lines)


def test_what_is_held_is_of_one_stream() -> None:
    """Two tasks, one subscription, one connection."""
    numbers = {name: number for name, number, _ in opening.held(20)}
    assert numbers["trio.lowlevel.Task"] == pytest.approx(2, abs=0.2)  # a connection that is closing may be counted
    assert numbers["trio_sse.subscription.Subscription"] == 1
    assert numbers["trio_sse.server.connection.Connection"] == pytest.approx(1, abs=0.2)
