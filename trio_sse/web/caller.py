"""Who is asking: the token, wherever a request carries it, as a grant.

In this order: ``Authorization: Bearer``, the session cookie, and, only where the operator switched it on, the
``token`` query parameter. No token is the anonymous grant; a bad one is never taken for none.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from quart import Request

from ..auth import Authority, Grant
from ..errors import InvalidInput

COOKIE = "trio_sse_session"
PARAMETER = "token"


def bearer(request: Request) -> str | None:
    """The token in the Authorization header, if there is one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def grant_of(request: Request, authority: Authority, *, query_token: bool) -> Grant:
    """The grant of whoever sent this request.

    Raises:
      InvalidToken: there is a token, and it does not hold.
    """
    token = bearer(request)
    if token is None:
        token = request.cookies.get(COOKIE)
    if token is None and query_token:
        token = next(iter(parameters(request).get(PARAMETER, [])), None)
    return authority.anonymous() if token is None else authority.verify(token, time.time())


def parameters(request: Request) -> dict[str, list[str]]:
    """The query's parameters, strictly: what is not percent-encoded UTF-8 is refused, not replaced.

    Raises:
      InvalidInput: it is not.
    """
    try:
        raw = request.query_string.decode("ascii")
        pairs = parse_qsl(raw, keep_blank_values=True, errors="strict")
    except (UnicodeDecodeError, ValueError):
        raise InvalidInput("the query is not percent-encoded UTF-8") from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return values


def hide_token(scope: MutableMapping[str, Any]) -> None:
    """Take a token's value out of what the server will write into its access log; also where none is accepted."""
    parts = scope["query_string"].decode("latin-1").split("&")
    hidden = [f"{PARAMETER}=..." if unquote_plus(part.partition("=")[0]) == PARAMETER else part for part in parts]
    scope["query_string"] = "&".join(hidden).encode("latin-1")
