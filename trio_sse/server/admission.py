"""How many connections there may be, so that one more can always be accepted, and be told no.

Each costs a descriptor, and without one to spare nobody is told anything: ``accept`` fails, and Trio logs a traceback
ten times a second. So some descriptors are kept for what is not a connection, and the others are divided. A connection
that is one too many ends the one that has waited longest for a request. A request that makes one connection too many
busy is turned away, and its connection counts as one that waits; so there always is one to end. Streams may not have
all that may be busy, and what they leave is for those who publish. And when few are left, no connection is kept for
another request: each answer over HTTP/1 says ``Connection: close``.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SPARE = 16
"""Descriptors for what is opened for a moment: by accepting, by libraries, by an application."""

ASSUMED = 32
"""Where they cannot be counted, so many descriptors are taken to be open before there is any connection."""

WAITING_SHARE, WAITING_MOST = 4, 128
"""One connection in so many, and no more than so many, is kept to wait for a request."""

OTHERS_SHARE, OTHERS_MOST = 8, 256
"""One connection in so many, and no more than so many, may be busy only with what is not a stream."""


@dataclass(frozen=True)
class Capacity:
    """What the descriptors of a process are enough for."""

    connections: int
    """Connections that are open."""
    busy: int
    """Those of them that have a request."""
    streams: int
    """Requests that are streams."""

    @classmethod
    def of_process(cls, connections: int = 0) -> Self:
        """What this one has, with what it has open now beside so many connections.

        It asks for as many descriptors as it may have.
        """
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # some systems say that it may, and do not let it
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if most == resource.RLIM_INFINITY:
            return cls(sys.maxsize, sys.maxsize, sys.maxsize)
        return cls.of_descriptors(most + connections - _count_open())

    @classmethod
    def of_descriptors(cls, free: int) -> Self:
        """What so many are enough for; some connections are served however few there are."""
        connections = max(4, free - min(SPARE, free // 2))
        busy = connections - max(1, min(WAITING_MOST, connections // WAITING_SHARE))
        return cls(connections, busy, busy - max(1, min(OTHERS_MOST, connections // OTHERS_SHARE)))


def _count_open() -> int:
    """How many descriptors this process has open."""
    try:
        return len(list(Path("/dev/fd").iterdir()))
    except OSError:  # there is no such folder here
        return ASSUMED
