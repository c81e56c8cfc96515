"""Lines for the log that a fault may give reason for again and again: said as it happens, and then not for a while."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

AGAIN_S = 60.0
"""What has been said is said again after so many seconds, with how often it was not."""

TRACEBACKS = 5
"""An exception is said so often in that time, for the same one may have several reasons."""


@dataclass(slots=True)
class _Said:
    until: float
    times: int = 0


_said: trio.lowlevel.RunVar[dict[object, _Said]] = trio.lowlevel.RunVar("trio_sse_said")


def say(log: logging.Logger, message: str, *args: object, error: BaseException | None = None) -> None:
    """Log an error, with the traceback of an exception, unless the same was said of late.

    The same is what has the same text, or a text of the same form for an exception of the same type from the same line.
    """
    try:
        said = _said.get()
    except LookupError:
        said = {}
        _said.set(said)
    line = message % args
    key = line if error is None else (message, type(error), _origin(error))
    times = 1 if error is None else TRACEBACKS
    now = trio.current_time()
    held_back = 0
    for old, before in list(said.items()):
        if now >= before.until:
            held_back = max(0, before.times - times) if old == key else held_back
            del said[old]
    here = said.setdefault(key, _Said(now + AGAIN_S))
    here.times += 1
    if here.times <= times:
        log.error("%s%s", line, f" (and {held_back} times more before)" if held_back else "", exc_info=error)


def _origin(error: BaseException) -> tuple[str, int] | None:
    """Where an exception was raised."""
    trace = error.__traceback__
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno
