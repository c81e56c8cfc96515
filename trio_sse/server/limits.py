"""How long things may take in this process. One place, because one process has one worker."""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass, field

import trio


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

    def next_deadline(self) -> float:
        """Until when a write that begins to wait now may wait."""
        return min(trio.current_time() + self.write_timeout_s, self.drain_deadline, write_before.get())


write_before: ContextVar[float] = ContextVar("trio_sse_write_before", default=math.inf)
"""A time on Trio's clock; a task sets it for what it writes, and a client that has not taken it by then is let go."""

limits = Limits()
