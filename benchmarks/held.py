"""The hub's application, with a window into the worker: what lives there. For ``opening.py``."""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from typing import Any

from trio_sse.app import app as hub


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The hub's application, which also tells the objects that live in the worker."""
    if scope.get("path") != "/held":
        await hub(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(living()).encode()})


def living() -> dict[str, tuple[int, int]]:
    """How many objects of each type there are, and their bytes."""
    gc.collect()
    tracked = gc.get_objects()
    plain = [each for one in tracked for each in gc.get_referents(one) if not gc.is_tracked(each)]
    numbers: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for each in {id(one): one for one in (*tracked, *plain)}.values():
        name = f"{type(each).__module__}.{type(each).__qualname__}"
        if name == "builtins.coroutine":
            name = f"coroutine {each.__qualname__}"
        numbers[name] += 1
        sizes[name] += sys.getsizeof(each)
    return {name: (number, sizes[name]) for name, number in numbers.items()}
