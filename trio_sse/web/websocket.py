"""WebSockets: there are none here, and asking for one is answered with a 403 and no more ado."""

from __future__ import annotations

import contextlib
from typing import Any


class NoWebSocket:
    """Refuses, whatever the client does meanwhile: what it sends may be junk that breaks the refusal off."""

    def __init__(self, app: object, scope: object) -> None:
        pass

    async def __call__(self, receive: Any, send: Any) -> None:
        with contextlib.suppress(Exception):
            await receive()
            await send({"type": "websocket.close"})
