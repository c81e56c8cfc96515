"""Clients come and go, a hundred a second, in every way there is: afterwards nothing of them is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from benchmarks.churn import ENV, TLS_VISITS, VISITS, Churn, Site, remains
from benchmarks.soak import LEAST_LOOKS, Soak
from tests.conftest import ask
from tests.serving import SecureServer, Server, running

RATE = 100
MUCH = {"objects": 5.0, "memory": 16 * 1024.0}
"""A visit of twenty seconds' must leave less behind; what is less than this takes a quarter of an hour to be seen."""

LOOKS = 6
"""How often a long proof looks at the server in a minute."""


@pytest.fixture
def churned(tmp_path: Path) -> Iterator[tuple[Server, Churn]]:
    """A server in plain text and over TLS, and its visitors; it must end well, and have no traceback in its log."""
    with running(SecureServer("tests.apps:app", folder=tmp_path, env=ENV)) as server:
        yield server, Churn(Site(server.port, server.secure_port))
        assert server.terminate() == 0
        assert "Traceback" not in server.log()


@pytest.mark.timeout(240)
def test_nothing_is_left_of_clients_who_came_and_went(churned: tuple[Server, Churn]) -> None:
    """After 20 seconds of them: no task, descriptor, channel, stream or count more than before the first."""
    server, churn = churned
    pid = ask(server, "GET", "/test/worker").json["pid"]

    async def run() -> list[dict[str, int]]:
        before = await churn.held()
        await churn.prepare()
        looks = [before]
        for seconds in (5, 15):
            await churn.run(RATE, seconds)
            looks.append(await churn.at_rest(before))
        return looks

    before, warm, after = trio.run(run)
    assert set(churn.visits) == {*VISITS, *TLS_VISITS}
    assert not churn.faults
    assert not remains(before, after)
    assert after["pid"] == pid
    for name, much in MUCH.items():
        assert (after[name] - warm[name]) / (15 * RATE) < much


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_nothing_grows_in_a_quarter_of_an_hour_of_clients(churned: tuple[Server, Churn]) -> None:
    """The same, and no more memory and objects with every minute, once what is bounded is full."""
    _, churn = churned
    found = Soak(RATE)

    async def run() -> None:
        found.baseline = await churn.held()
        await churn.prepare()
        await churn.run(RATE, 90)
        began = trio.current_time()
        while trio.current_time() - began < 13.5 * 60:
            await churn.run(RATE, 60 / LOOKS)
            now = await churn.at_rest(found.baseline)
            found.take(trio.current_time() - began, sum(churn.visits.values()), now)

    trio.run(run)
    assert len(found.looks) >= LEAST_LOOKS
    assert not churn.faults
    assert not found.left_over
    assert not found.growing, {name: found.slope(name) for name in found.growing}


# -- what all this rests on ------------------------------------------------------------------------------------------


def test_what_stays_behind_is_seen() -> None:
    """A leak of a stream, say, among all that is told."""
    before = {"pid": 1, "tasks": 9, "streams": 0, "objects": 5, "memory": 5}
    assert remains(before, {"pid": 2, "tasks": 9, "streams": 1, "objects": 9, "memory": 9}) == {"streams": 1}


def soak(grown: float) -> Soak:
    """A soak in which a visit left so many bytes behind, while the memory went up and down by itself."""
    found = Soak(RATE, baseline={"tasks": 9, "memory": 0})
    for look in range(40):
        noise = 50_000 if look % 2 else -50_000
        found.take(look * 10, look * 1000, {"tasks": 9, "memory": int(1e8 + noise + look * 1000 * grown)})
    return found


@pytest.mark.parametrize("grown", [400, 5000])
def test_what_grows_is_seen(grown: float) -> None:
    """Some bytes of each visitor are told from the noise, and how many they are."""
    found = soak(grown)
    assert found.growing == ["memory"]
    assert found.per_visit("memory") == pytest.approx(grown, abs=20)


@pytest.mark.parametrize("grown", [0, -100])
def test_what_does_not_grow_is_not_accused(grown: float) -> None:
    """Noise is not a slope."""
    assert soak(grown).growing == []


def test_few_looks_say_nothing_of_a_slope() -> None:
    """Its error has no end."""
    found = soak(5000)
    found.looks = found.looks[:3]
    assert found.growing == []
