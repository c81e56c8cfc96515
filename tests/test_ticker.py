"""One heartbeat for all streams."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
import trio.testing

from trio_sse.broadcast import EndReason
from trio_sse.ticker import MARGIN, Ticker

SILENCE_S = 16.0


class Listener:
    """A stream that notes when it was beaten."""

    def __init__(self) -> None:
        self.times = [trio.current_time()]

    def beat(self) -> None:
        self.times.append(trio.current_time())

    def end(self, reason: EndReason) -> None:
        raise NotImplementedError


async def test_no_stream_is_silent_for_longer_than_promised(autojump_clock: trio.testing.MockClock) -> None:
    """Whenever a stream opened, its first heartbeat and each later one comes one period after the one before."""
    ticker = Ticker(SILENCE_S)
    listeners = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker.run)
        for _ in range(200):
            listeners.append(Listener())
            ticker.add(listeners[-1])
            await trio.sleep(0.37)
        await trio.sleep(5 * SILENCE_S)
        nursery.cancel_scope.cancel()
    for listener in listeners:
        pauses = [after - before for before, after in pairwise(listener.times)]
        assert len(pauses) >= 5
        assert max(pauses) <= SILENCE_S
        assert pauses[1:] == pytest.approx([SILENCE_S * MARGIN] * (len(pauses) - 1))


async def test_a_closed_stream_is_beaten_no_more(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing of it is left, and discarding it twice does nothing."""
    ticker = Ticker(SILENCE_S)
    listener = Listener()
    ticker.add(listener)
    ticker.discard(listener)
    ticker.discard(listener)
    with trio.move_on_after(3 * SILENCE_S):
        await ticker.run()
    assert len(listener.times) == 1
    assert len(ticker) == 0
    assert not any(ticker._wheel)


async def test_a_worker_that_stood_still_does_not_make_up_for_it(mock_clock: trio.testing.MockClock) -> None:
    """After minutes in which nothing ran, a stream has a heartbeat at once, and not one for each that it missed."""
    ticker = Ticker(SILENCE_S)
    listeners = [Listener() for _ in range(3)]
    for listener in listeners:
        ticker.add(listener)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker.run)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(10 * SILENCE_S)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert {len(listener.times) - 1 for listener in listeners} <= {1, 2}


async def test_many_at_once_are_beaten_in_slices(autojump_clock: trio.testing.MockClock) -> None:
    """Another task gets its turn while ten thousand streams of one slot are beaten."""
    ticker = Ticker(SILENCE_S)
    listeners = [Listener() for _ in range(10_000)]
    for listener in listeners:
        ticker.add(listener)
    begun = trio.Event()
    listeners[0].beat = begun.set  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker.run)
        await begun.wait()
        beaten = sum(len(listener.times) == 2 for listener in listeners)
        nursery.cancel_scope.cancel()
    assert 0 < beaten < 1000
