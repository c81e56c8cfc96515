"""A moment of the wall clock, which may jump, on Trio's clock, which does not."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trio_sse import expiry
from trio_sse.expiry import WATCH_S, Expiry


class Wall:
    """By how much the wall clock is ahead of one that never jumps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 1000.0
        monkeypatch.setattr(expiry, "wall_ahead", lambda: self.ahead)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """The wall clock."""
    return Wall(monkeypatch)


@pytest.mark.parametrize("jump", [3600, -3600])
async def test_the_deadline_moves_with_a_jump(autojump_clock: trio.testing.MockClock, wall: Wall, jump: int) -> None:
    """Soon, and whoever follows it is told."""
    moment, told = Expiry(7200), []
    before = moment.deadline
    with moment.followed(lambda: told.append(moment.deadline)):
        wall.ahead += jump
        await trio.sleep(2 * WATCH_S)
    assert told == [before - jump]


async def test_clocks_that_stay_together_move_nothing(autojump_clock: trio.testing.MockClock, wall: Wall) -> None:
    """Nobody is told of what is no jump."""
    moment, told = Expiry(7200), []
    with moment.followed(lambda: told.append(moment.deadline)):
        wall.ahead += 0.01
        await trio.sleep(10)
    assert told == []


async def test_a_jump_before_it_is_followed_counts(autojump_clock: trio.testing.MockClock, wall: Wall) -> None:
    """Between a request and its stream, and between one stream and the next."""
    early, late = Expiry(7200), Expiry(7200)
    due = early.deadline
    with early.followed(lambda: None):
        pass
    wall.ahead += 3600
    with late.followed(lambda: None):
        assert late.deadline == due - 3600
        wall.ahead -= 3600
        await trio.sleep(2 * WATCH_S)
        assert late.deadline == due


async def test_it_has_not_passed_when_the_clock_went_back(autojump_clock: trio.testing.MockClock, wall: Wall) -> None:
    """Also if nobody has looked at the clock since."""
    moment = Expiry(5)
    await trio.sleep(6)
    wall.ahead -= 3600
    assert not moment.has_passed()
    await trio.sleep(3600)
    assert moment.has_passed()


async def test_what_was_jumped_over_is_over_from_then_on(autojump_clock: trio.testing.MockClock, wall: Wall) -> None:
    """And not since long ago: there is time for a goodbye. When the clock goes back, it is as if nothing had been."""
    moment = Expiry(60)
    due = moment.deadline
    with moment.followed(lambda: None):
        wall.ahead += 3600
        await trio.sleep(2 * WATCH_S)
        assert moment.has_passed()
        assert moment.deadline == pytest.approx(trio.current_time(), abs=2 * WATCH_S)
        wall.ahead -= 3600
        await trio.sleep(2 * WATCH_S)
        assert moment.deadline == due


async def test_a_scope_ends_with_it(autojump_clock: trio.testing.MockClock, wall: Wall) -> None:
    """At the moment, and sooner when the clock jumps forward."""
    began = trio.current_time()
    with trio.CancelScope() as scope, Expiry(3610).ends(scope, 1):
        wall.ahead += 3600
        await trio.sleep_forever()
    assert trio.current_time() - began == pytest.approx(11)


async def test_nothing_runs_when_nothing_expires(autojump_clock: trio.testing.MockClock, wall: Wall) -> None:
    """The task that compares the clocks ends soon after the last that needs it, and comes again with the next."""
    before = trio.lowlevel.current_statistics().tasks_living
    for _ in range(2):
        with Expiry(7200).followed(lambda: None), Expiry(7200).followed(lambda: None):
            await trio.sleep(5)
            assert trio.lowlevel.current_statistics().tasks_living == before + 1
        await trio.sleep(2 * WATCH_S)
        assert trio.lowlevel.current_statistics().tasks_living == before
