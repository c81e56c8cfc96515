"""``POST /session``: a cookie in place of a token in a URL, for pages; ``GET`` tells whose it is, ``DELETE`` signs out.

A token becomes a session that ends when the token does; nothing but another token of the same subject renews it. A
guest is somebody of whom only a name is known. A guest's session is renewed by its own cookie, as long as that has not
expired, and no longer than the operator lets one guest be the same. To sign in as somebody else begins another session.
"""

from __future__ import annotations

import json
import time
import unicodedata
from typing import TYPE_CHECKING

from quart import Response, request

from ..auth import MAX_NAME, Grant
from ..errors import InvalidInput, InvalidToken
from . import cookie
from .bodies import BoundedBody
from .caller import bearer, cookie_name, is_utf8, session_of
from .publish import UnsupportedType

if TYPE_CHECKING:
    from . import TrioSSE

JSON = "application/json"
HOW = 'send a token as Authorization: Bearer <token>, or as a guest {"name": "Ada"}'

MAX_BODY = 4096
"""Most bytes of the JSON that signs a guest in: a name of 64 characters, each as an escape, and room to spare."""

MAX_COMPOSED = 4
"""Most code points that become one when a name is normalised, as in Vietnamese or Greek with all its marks."""


def add_routes(app: TrioSSE) -> None:
    """Serve ``/session``."""
    app.config["MAX_COOKIE_SIZE"] = 0  # Quart warns of what browsers keep: it counts the attributes too

    @app.post("/session")
    async def sign_in() -> Response:
        token = bearer(request)
        if token is None or request.content_type is not None:
            _check_json()
        if token is not None:
            grant = app.authority.verify(token, time.time())
        else:
            token, grant = await _guest(app)
        response = _told(grant)
        assert grant.expires_at is not None  # of a token
        cookie.keep(response, cookie_name(request, app.settings), token, grant.expires_at)
        return response

    @app.get("/session")
    async def who() -> Response:
        return _told(app.grant(request))

    @app.delete("/session")
    async def sign_out() -> Response:
        response = app.response_class(status=204)
        cookie.drop(response, cookie_name(request, app.settings))
        return response


def _check_json() -> None:
    """Whether the body is said to be JSON, which a form of another page cannot say."""
    if request.mimetype != JSON or not is_utf8(request):
        raise UnsupportedType(f'the body is JSON, such as {{"name": "Ada"}}: say so in Content-Type: {JSON}')


async def _guest(app: TrioSSE) -> tuple[str, Grant]:
    """A new guest; or one who comes again with its cookie, under the same name or another."""
    if not app.guests_allowed:
        raise InvalidToken("guests are not let in here: send your token as Authorization: Bearer <token>")
    name = await _name()
    now, session_s = time.time(), app.settings.session_max_s
    try:
        session = session_of(request, app.authority, app.settings)
    except InvalidToken:
        if name is None:
            raise
        session = None
    if session is not None and session.guest_since is not None and session.guest_since + session_s - now >= 1:
        kept = name if name is not None else session.name
        return app.authority.issue_guest(kept or "", now=now, session_s=session_s, guest=session)
    if name is None:
        raise InvalidInput(HOW + ("" if session is None else "; only a new token renews the session of a token"))
    app.rates.check(app.rates.callers(request, app.authority.anonymous()), {"guests_per_min": 1})
    return app.authority.issue_guest(name, now=now, session_s=session_s)


async def _name() -> str | None:
    """The name in the body; none where the body leaves it out, and so asks for no other."""
    body = request.body
    assert isinstance(body, BoundedBody)
    body.limit(MAX_BODY, "what signs a guest in")
    written = await request.get_data()  # outside the try below: that it is too large is a ValueError too
    try:
        said = json.loads(written)
    except (ValueError, RecursionError):
        raise InvalidInput(HOW) from None
    if not isinstance(said, dict) or (said and "name" not in said):
        raise InvalidInput(HOW)
    if not said:
        return None
    if not isinstance(said["name"], str):
        raise InvalidInput("the name is not a text")
    # Before it is normalised, which takes time that grows with the square of what has to be reordered.
    if len(said["name"]) > MAX_COMPOSED * MAX_NAME:
        raise InvalidInput(f"the name is longer than {MAX_NAME} characters: give a shorter one")
    return unicodedata.normalize("NFC", said["name"]).strip()


def _told(grant: Grant) -> Response:
    """Whose the session is, and until when, in seconds since the epoch; nothing but ``null`` where there is none."""
    told = {"sub": grant.subject, "name": grant.name, "expires_at": grant.expires_at}
    response = Response(json.dumps(told) + "\n", 200, content_type=JSON)
    response.headers["Cache-Control"] = "no-store"
    return response
