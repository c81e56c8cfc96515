"""Which pages may make their visitor write.

A browser sends what any web page makes it send: a form, ``fetch`` with ``no-cors`` and ``sendBeacon`` need nobody's
leave to publish, with the visitor's cookie where page and hub are of one site (another port, a sibling subdomain), and
without one in the name of everybody who has no token. That the page does not see the answer is no help. A token in
``Authorization`` is the page's own, because only CORS lets another origin's page set that header. Any other scheme in
it is not, because browsers remember a password for Basic, and send it along.

So a write without such a token is taken when the browser says that its page is the hub's own, or that there is no page
(``Sec-Fetch-Site``). Otherwise it is taken when the page's ``Origin`` is one that the operator listed, or the hub's
own: a browser sends ``Sec-Fetch-Site`` only to HTTPS and to its own machine. And it is taken when neither header is
there, because no browser leaves both out. To sign in or out changes who the visitor is, and is judged so in any case.

The hub's own origin is told by ``Host``, host and port. The scheme is left out, because a proxy may do TLS.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import ForeignPage
from ..settings import PREFIX
from .caller import bearer
from .hosts import LONGEST_SHOWN, Host, host_of

if TYPE_CHECKING:
    from quart import Request

    from ..settings import Settings

SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
"""Methods that change nothing (RFC 9110 § 9.2.1). The preflights of CORS are among them."""

SESSION = "/session"
OWN = (b"same-origin", b"none")
"""What ``Sec-Fetch-Site`` is for a page of the hub, and where there is no page, such as an address that was typed."""

_ORIGIN = re.compile("(https?)://(.+)")
_DEFAULT_PORT = {"http": 80, "https": 443}


class Pages:
    """Whose pages may write."""

    def __init__(self, settings: Settings) -> None:
        self._listed = frozenset(settings.allow_origins)

    def check(self, request: Request) -> None:
        """Whether the page that a request is from may send it.

        Raises:
          ForeignPage: it may not; the message says what the page's author and the operator can do.
        """
        if request.method in SAFE:
            return
        sites = [value for name, value in request.scope["headers"] if name == b"sec-fetch-site"]
        origins = [str(value, "latin-1") for name, value in request.scope["headers"] if name == b"origin"]
        if not (sites or origins):
            return
        is_session = request.path == SESSION
        if not is_session and bearer(request) is not None:
            return
        if is_session and request.method == "POST" and b"cross-site" in sites:
            raise ForeignPage(
                "a page of another site cannot sign in: browsers drop the cookie. Send the token as Authorization: "
                "Bearer <token>, and read streams with fetch; or serve the hub under the page's own site"
            )
        if len(sites) == 1 and sites[0] in OWN:
            return
        if len(origins) == 1 and (origins[0] in self._listed or _is_own(origins[0], host_of(request.scope))):
            return
        origin = repr(", ".join(origins)[:LONGEST_SHOWN]) if origins else "one that is not told"
        raise ForeignPage(
            f"a page of another origin may not do this: its Origin, {origin}, is not the hub's own by Host, which is "
            f"{host_of(request.scope)[:LONGEST_SHOWN]!r}, and not in {PREFIX}ALLOW_ORIGINS"
            + ("" if is_session else "; or send a token as Authorization: Bearer <token>")
        )


def _is_own(origin: str, host: str) -> bool:
    """Whether an origin has the host and the port that a request is for."""
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return False
    page, hub, default = Host.parse(found[2]), Host.parse(host), _DEFAULT_PORT[found[1]]
    return page is not None and hub is not None and page.is_with(hub, default)
