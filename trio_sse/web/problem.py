"""Errors as ``application/problem+json`` (RFC 9457), each with a ``detail`` that a person can act on.

But who asks for a stream is never told that the fault is ours: any status but 200 closes a native ``EventSource`` for
ever. It gets a stream that says when to come back, and ends. What is wrong with the request itself is said in 4xx.
"""

from __future__ import annotations

import json
import logging
import math
from http import HTTPStatus
from typing import Any

from quart import Response, request
from werkzeug.exceptions import (
    HTTPException,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
    RequestTimeout,
)

from .. import seldom
from ..errors import TooManyRequests, TrioSSEError
from ..stream import come_back
from ..wire import CONTENT_TYPE, MAX_DATA

EVENTS = "/events"
"""Where streams are."""

RETRY_AFTER_S = 1
"""What a client is told to wait when the fault is ours and may pass."""

log = logging.getLogger(__name__)


def problem(status: int, detail: str) -> dict[str, Any]:
    """The members of a problem, for a body of its own or a line of ndjson."""
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}


def respond(status: int, detail: str) -> Response:
    """A problem as a response."""
    response = Response(json.dumps(problem(status, detail)) + "\n", status, content_type="application/problem+json")
    response.headers["Cache-Control"] = "no-store"
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def answer(scope: Any, status: int, detail: str) -> Response:
    """A problem as the response to a request, of which this is the ASGI scope; if it asks for a stream, see above."""
    return come_back() if status >= 500 and asks_for_stream(scope) else respond(status, detail)


def asks_for_stream(scope: Any) -> bool:
    """Whether a request is that of an ``EventSource``, or of somebody else who subscribes."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    accepts = CONTENT_TYPE.encode()
    return scope["path"] == EVENTS or any(
        name == b"accept" and accepts in value.lower() for name, value in scope["headers"]
    )


async def from_own(error: TrioSSEError) -> Response:
    """Our own errors know their status."""
    response = answer(request.scope, error.status_hint, str(error))
    if isinstance(error, TooManyRequests):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.wait_s)))
    return response


async def from_http(error: HTTPException) -> Response:
    """What Quart and Werkzeug raise, said in our words where they have none."""
    status = error.code or 500
    detail = error.description or HTTPStatus(status).phrase
    if isinstance(error, NotFound):
        detail = "there is nothing at this path: the hub is at /events and /topics/<topic>, the board at /"
    elif isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        detail = f"{request.method} means nothing here: use {allowed}"
    elif isinstance(error, RequestEntityTooLarge):
        detail = f"the body holds more than {MAX_DATA} bytes: publish less at once, or a stream of events"
    elif isinstance(error, RequestTimeout):
        detail = "the body did not come: send it within a minute, or a kibibyte a second"
    response = answer(request.scope, status, detail)
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    return response


async def from_bug(error: Exception) -> Response:
    """What nobody expected: the log has it, the client is told no more than that."""
    seldom.say(log, "a request to %r failed", request.path, error=error)
    return answer(request.scope, 500, "the server made a mistake, which is in its log")
