"""WebSockets are refused."""

from __future__ import annotations

from typing import Any

from trio_sse.web.websocket import NoWebSocket


async def test_a_websocket_is_refused() -> None:
    """The server is told to close, which it says as a 403."""
    sent = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await NoWebSocket(None, None)(receive, send)
    assert sent == [{"type": "websocket.close"}]
