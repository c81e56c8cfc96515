"""trio_sse the ordinary ASGI way.

The hub writes straight to a client's socket only where nobody stands between it and the server. Here somebody
does, as a middleware would.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from trio_sse.app import app as hub

Message = MutableMapping[str, Any]


async def app(
    scope: Any, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    async def pass_on(message: Message) -> None:
        await send(message)

    await hub(scope, receive, send if scope["type"] == "lifespan" else pass_on)  # type: ignore[arg-type]
