"""``POST /session``: a cookie in place of a token in a URL, for pages; ``DELETE`` signs out.

The cookie is the token itself: ``HttpOnly``, so that no script reads it, and ``SameSite=Strict``, so that no other
site's page makes requests with it.
"""

from __future__ import annotations

import json
import time
import unicodedata
from typing import TYPE_CHECKING

from quart import Response, request

from ..auth import MAX_NAME, Grant
from ..errors import InvalidInput, InvalidToken, NotAllowed
from ..wire import CONTENT_TYPE
from .bodies import BoundedBody
from .caller import COOKIE, bearer

if TYPE_CHECKING:
    from . import TrioSSE


MAX_BODY = 4096
"""Most bytes of the JSON that signs a guest in: a name of 64 characters, each as an escape, and room to spare."""

MAX_COMPOSED = 4
"""Most code points that become one when a name is normalised, as in Vietnamese or Greek with all its marks."""


def add_routes(app: TrioSSE) -> None:
    """Serve ``/session``."""

    @app.post("/session")
    async def sign_in() -> Response:
        token = bearer(request)
        if token is not None:
            grant = app.authority.verify(token, time.time())
        else:
            token, grant = app.authority.issue_guest(await _guest_name(app), now=time.time())
        return _signed_in(token, grant)

    @app.delete("/session")
    async def sign_out() -> Response:
        response = app.response_class(status=204)
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="Strict")
        return response


async def _guest_name(app: TrioSSE) -> str:
    if not app.guests_allowed:
        raise InvalidToken("guests are not let in here: send your token as Authorization: Bearer <token>")
    app.rates.check(app.rates.callers(request, app.authority.anonymous()), {"guests_per_min": 1})
    if request.mimetype == CONTENT_TYPE:
        raise InvalidInput("a stream of events goes to /topics/<topic>: send the name as JSON")
    body = request.body
    assert isinstance(body, BoundedBody)
    body.limit(MAX_BODY, "what signs a guest in")
    written = await request.get_data()  # outside the try below: that it is too large is a ValueError too
    try:
        name = json.loads(written)["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidInput('send a token as Authorization: Bearer <token>, or as a guest {"name": "Ada"}') from None
    if not isinstance(name, str):
        raise InvalidInput("the name is not a text")
    # Before it is normalised, which takes time that grows with the square of what has to be reordered.
    if len(name) > MAX_COMPOSED * MAX_NAME:
        raise InvalidInput(f"the name is longer than {MAX_NAME} characters: give a shorter one")
    return unicodedata.normalize("NFC", name).strip()


def _signed_in(token: str, grant: Grant) -> Response:
    if grant.expires_at is None:
        raise NotAllowed("the token does not expire")
    told = {"sub": grant.subject, "name": grant.name, "expires_at": grant.expires_at}
    response = Response(json.dumps(told) + "\n", 200, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    response.set_cookie(
        COOKIE,
        token,
        expires=grant.expires_at,
        path="/",
        secure=request.scheme == "https",
        httponly=True,
        samesite="Strict",
    )
    return response
