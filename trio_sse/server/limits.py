"""How long things may take in this process. One place, because one process has one worker."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import trio

from ..expiry import Expiry

EXPIRY_GRACE_S = 0.9
"""So much later than its time the goodbye of a stream may still be under way."""


@dataclass(eq=False)
class Limits:
    """What the patches need to know."""

    write_timeout_s: float = 20
    """For so long the kernel may take no byte for a client."""
    drain_s: float = 5
    """Goodbyes may take so long when the server is stopped."""
    drain_deadline: float = math.inf
    """When the drain is over, on Trio's clock; infinity while nobody has asked to stop."""
    writing: dict[trio.CancelScope, None] = field(default_factory=dict)
    """The writes that are waiting for a client now."""

    def begin_drain(self) -> None:
        """From now on, every write that waits has the drain time left."""
        self.drain_deadline = trio.current_time() + self.drain_s
        for scope in self.writing:
            scope.deadline = min(scope.deadline, self.drain_deadline)

    @contextlib.contextmanager
    def write(self, deadline: float) -> Iterator[trio.CancelScope]:
        """A cancel scope for a write that waits: until ``deadline``, or until no write may wait any more."""
        expiry = write_before.get()
        with trio.CancelScope(deadline=min(deadline, self.last_deadline())) as scope:
            self.writing[scope] = None
            try:
                with contextlib.nullcontext() if expiry is None else expiry.ends(scope, EXPIRY_GRACE_S):
                    yield scope
            finally:
                del self.writing[scope]

    def next_deadline(self) -> float:
        """Until when a write that begins to wait now may wait."""
        return min(trio.current_time() + self.write_timeout_s, self.last_deadline())

    def last_deadline(self) -> float:
        """Until when this task's writes may wait, however much is taken meanwhile."""
        expiry = write_before.get()
        return self.drain_deadline if expiry is None else min(self.drain_deadline, expiry.deadline + EXPIRY_GRACE_S)


write_before: ContextVar[Expiry | None] = ContextVar("trio_sse_write_before", default=None)
"""A task sets it for what it writes, and a client that has not taken it soon after is let go."""

limits = Limits()


def is_ending() -> bool:
    """Whether this worker has been asked to end."""
    return limits.drain_deadline != math.inf


def throw_away_until(seconds: float) -> float:
    """Until when what a client still sends may be thrown away, at most: sooner when the worker is to end."""
    now = trio.current_time()
    return min(now + seconds, (now + limits.drain_deadline) / 2)
