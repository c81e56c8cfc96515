"""Load: many streams of one server at once, events published at a rate, and every delivery accounted for.

:class:`~trio_sse.load.engine.Engine` does it, for any server; :mod:`~trio_sse.load.command` is its command line.
"""

from __future__ import annotations

from .accounting import MAX_STAMP, Accounts
from .engine import Engine, Generator, Mode
from .outcome import Load, Plan
from .target import LoadError

__all__ = ["MAX_STAMP", "Accounts", "Engine", "Generator", "Load", "LoadError", "Mode", "Plan"]
