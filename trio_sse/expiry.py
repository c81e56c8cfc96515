"""When a token runs out: a moment of the wall clock, as a deadline on Trio's clock.

Trio's clock goes on evenly, and with it heartbeats and timeouts. The wall clock may jump, because somebody sets it or
the machine has slept; and what a token says is a moment of the wall clock. So while there is something that expires,
one task compares the two clocks, and moves the deadlines when they have come apart. A stream needs no timer for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from . import background

WATCH_S = 0.4
"""The clocks are compared so often, which leaves room in the second within which a stream ends."""

JUMP_S = 0.05
"""Clocks that come apart by less are not worth a look at everything that expires."""


def wall_ahead() -> float:
    """By how many seconds the wall clock is ahead of one that never jumps."""
    return time.time() - time.monotonic()


class Expiry:
    """A moment ``in_s`` seconds from now on the wall clock, wherever that clock jumps to meanwhile."""

    __slots__ = ("_ahead", "_due", "deadline")

    def __init__(self, in_s: float) -> None:
        self.deadline = trio.current_time() + in_s
        """The moment on Trio's clock, true within :meth:`followed`; one that was jumped over, when that was noticed."""
        self._due = self.deadline
        self._ahead = wall_ahead()

    def has_passed(self) -> bool:
        """Whether the moment is over."""
        if trio.current_time() < self.deadline:
            return False
        self._move(wall_ahead())
        return trio.current_time() >= self.deadline

    @contextmanager
    def followed(self, moved: Callable[[], None]) -> Iterator[None]:
        """Keep :attr:`deadline` true for the length of a block; ``moved`` is called when the wall clock has jumped.

        It must not raise.
        """
        watch = _watch.get()
        if watch is None:
            _watch.set(watch := _Watch())
        place = object()
        watch.follow(place, self, moved)
        try:
            yield
        finally:
            del watch.followed[place]

    @contextmanager
    def ends(self, scope: trio.CancelScope, grace_s: float = 0) -> Iterator[None]:
        """Let a cancel scope end at the moment, or so much later, for the length of a block.

        When the wall clock goes back meanwhile it ends too soon: :meth:`has_passed` tells.
        """

        def shorten() -> None:
            scope.deadline = min(scope.deadline, self.deadline + grace_s)

        with self.followed(shorten):
            shorten()
            yield

    def _move(self, ahead: float) -> None:
        self._due -= ahead - self._ahead
        self._ahead = ahead
        now = trio.current_time()
        self.deadline = self._due if self._due > now else min(self.deadline, now)


class _Watch:
    """All that is followed in one run of Trio, and the task that compares the clocks while there is anything."""

    def __init__(self) -> None:
        self._ahead = wall_ahead()
        self.followed: dict[object, tuple[Expiry, Callable[[], None]]] = {}
        self._is_running = False

    def follow(self, place: object, expiry: Expiry, moved: Callable[[], None]) -> None:
        self._compare()  # or what has jumped since the last time would be no jump for this one
        expiry._move(self._ahead)
        self.followed[place] = expiry, moved
        if not self._is_running:
            self._is_running = True
            background.spawn(self._run)

    async def _run(self) -> None:
        try:
            while self.followed:
                await trio.sleep(WATCH_S)
                self._compare()
        finally:
            self._is_running = False

    def _compare(self) -> None:
        ahead = wall_ahead()
        if abs(ahead - self._ahead) > JUMP_S:
            self._ahead = ahead
            for expiry, moved in list(self.followed.values()):
                expiry._move(ahead)
                moved()


_watch: trio.lowlevel.RunVar[_Watch | None] = trio.lowlevel.RunVar("trio_sse_expiry", None)
