"""Tasks that serve everybody, beside the connections; and what is done when one of them fails.

Trio ends its whole run, and cuts off every stream, when a system task raises. Here the log has the reason, and whoever
runs the process is told, who can say goodbye to the streams first and have another process take over.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

log = logging.getLogger(__name__)

_replace: trio.lowlevel.RunVar[Callable[[], Awaitable[None]] | None] = trio.lowlevel.RunVar("trio_sse_replace", None)


def replace_with(replace: Callable[[], Awaitable[None]]) -> None:
    """What is to be called in this run of Trio when a part of it has failed."""
    _replace.set(replace)


def spawn(task: Callable[[], Awaitable[None]]) -> None:
    """Run a task that ends with this run of Trio, if not before, and may fail."""
    trio.lowlevel.spawn_system_task(_run, task)


async def _run(task: Callable[[], Awaitable[None]]) -> None:
    try:
        await task()
    except Exception as error:
        await give_way(error)


async def give_way(error: Exception) -> bool:
    """A part that serves everybody has failed: say so, and have all of it replaced; whether there is who can."""
    log.error("a part of the server failed", exc_info=error)
    replace = _replace.get()
    if replace is not None:
        await replace()
    return replace is not None
