"""The worker's light event."""

from __future__ import annotations

import trio
import trio.testing

from trio_sse.server.worker import LightEvent


async def test_everybody_who_waits_is_woken() -> None:
    """Also who began before the event was cleared once more: two tasks may wait for room in one buffer."""
    event = LightEvent()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await event.wait()
        woken.append(number)

    async with trio.open_nursery() as nursery:
        for number in (1, 2):
            await event.clear()
            nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
        await event.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sorted(woken) == [1, 2]


async def test_a_cleared_event_is_waited_for_anew() -> None:
    """It is a flag that can be set again."""
    event = LightEvent()
    await event.set()
    await event.wait()
    await event.clear()
    assert not event.is_set()
    with trio.move_on_after(0) as scope:
        await event.wait()
    assert scope.cancelled_caught
