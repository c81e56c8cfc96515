"""One heartbeat for all the open streams of a hub.

A wheel of slots turns once in a period. A stream is put into the slot that was beaten last, so its first heartbeat
comes one period after it opened and then one in each: no timer for each stream, and none is silent for longer.
A slot is beaten a slice at a time, so that ten thousand streams which came at once do not hold up an event.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import trio

from .broadcast import EndReason

SLOTS = 16

MARGIN = 0.9
"""The wheel turns in this share of the longest silence that is promised, so that the promise holds."""


SLICE = 32
"""So many heartbeats are sent between two checkpoints. An event needs several turns on its way, and waits at each."""


class Stream(Protocol):
    """What carries a subscription to a client, as a hub sees it."""

    def beat(self) -> None:
        """Send a heartbeat, unless bytes are on their way already."""

    def end(self, reason: EndReason) -> None:
        """Say goodbye and finish."""


class Ticker:
    """The open streams; each is here from its first byte to its last."""

    def __init__(self, silence_s: float) -> None:
        self._pause = silence_s * MARGIN / SLOTS
        self._wheel: list[dict[Stream, None]] = [{} for _ in range(SLOTS)]
        self._slot_of: dict[Stream, int] = {}
        self._beaten = 0

    def __len__(self) -> int:
        return len(self._slot_of)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._slot_of))

    def add(self, stream: Stream) -> None:
        """Beat for this stream, one period from now and then in each."""
        self._slot_of[stream] = self._beaten
        self._wheel[self._beaten][stream] = None

    def discard(self, stream: Stream) -> None:
        """Beat for it no more."""
        slot = self._slot_of.pop(stream, None)
        if slot is not None:
            del self._wheel[slot][stream]

    async def run(self) -> None:
        """Turn the wheel until cancelled."""
        turn_at = trio.current_time()
        while True:
            # What a worker that stood still has missed is not made up for, beyond one turn of the wheel.
            turn_at = max(turn_at + self._pause, trio.current_time() - SLOTS * self._pause)
            await trio.sleep_until(turn_at)
            self._beaten = (self._beaten + 1) % SLOTS
            streams = list(self._wheel[self._beaten])
            for begin in range(0, len(streams), SLICE):
                for stream in streams[begin : begin + SLICE]:
                    stream.beat()
                await trio.lowlevel.checkpoint()
