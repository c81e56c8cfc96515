"""The session's cookie: its name, how long it lasts, and which of several counts.

The cookie is the token itself: ``HttpOnly``, so that no script reads it, and ``SameSite=Strict``, so that no other
site's page makes requests with it. Over HTTPS its name begins with ``__Host-``: such a cookie is sent over HTTPS alone,
and nobody but this very host can have set it, no sibling subdomain and nobody on the way of plain HTTP (RFC 6265bis).

Over plain HTTP there is no such protection, and all ports of a host share their cookies: there may be several of our
name, and another hub's. So one that was not signed for this hub is none, and the first that was counts. One of ours
that has expired counts too: its owner is told so, and not taken for nobody. For that it outlives its token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import InvalidInput

if TYPE_CHECKING:
    from quart import Request, Response

PLAIN, SECURE = "trio_sse_session", "__Host-trio_sse_session"

MAX_BYTES = 4096
"""Bytes of a cookie's name and value together: browsers drop a larger one without a word (RFC 6265bis § 5.6)."""

OUTLIVES_S = 7 * 24 * 3600
"""Seconds for which a browser keeps the cookie when its token has expired: a week, for people who come back late."""

MOST = 16
"""Cookies of our name that are looked at: each costs a check of a signature. Browsers send few."""


def name_of(*, is_https: bool) -> str:
    """The only name that is set and read."""
    return SECURE if is_https else PLAIN


def values(request: Request, name: str) -> Iterator[str]:
    """The values of the cookies of this name, as they were set, in the order in which the browser sent them."""
    lines = request.headers.getlist("Cookie")
    if not any(name in line for line in lines):
        return
    found = 0
    for pair in ";".join(lines).split(";"):
        key, _, value = pair.partition("=")
        if key.strip() == name:
            yield value.strip()
            found += 1
            if found == MOST:
                return


def keep(response: Response, name: str, token: str, expires_at: int) -> None:
    """Let the browser keep a token.

    Raises:
      InvalidInput: it would not.
    """
    size = len(name) + len(token)
    if size > MAX_BYTES:
        raise InvalidInput(
            f"the token is too large for a cookie: with its name it has {size} bytes, and browsers keep {MAX_BYTES} at "
            "most. Issue one with fewer selectors, or send it as Authorization: Bearer <token>"
        )
    _set(response, name, token, expires_at + OUTLIVES_S)


def drop(response: Response, name: str) -> None:
    """Let the browser forget the token."""
    _set(response, name, "", 0)


def _set(response: Response, name: str, value: str, expires_at: int) -> None:
    secure = name == SECURE
    response.set_cookie(name, value, expires=expires_at, path="/", secure=secure, httponly=True, samesite="Strict")
