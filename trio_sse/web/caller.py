"""Who is asking: the token, wherever a request carries it, as a grant; and from which address.

In this order: ``Authorization: Bearer``, the session cookie, and, only where the operator switched it on, the
``token`` query parameter. No token is the anonymous grant; a bad one is never taken for none, except for a cookie that
was not signed for this hub, since a browser sends it for other reasons than that somebody wants to be its owner.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, MutableMapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote_plus

from quart import Request

from ..auth import Authority, Grant
from ..errors import ForeignToken, InvalidInput
from ..settings import UNIX, Proxies
from . import cookie

if TYPE_CHECKING:
    from ..settings import Settings

PARAMETER = "token"

MOST_PROXIES = 32
"""So many addresses of ``X-Forwarded-For`` are looked at, at most."""

Address = IPv4Address | IPv6Address

SHARED = tuple(
    ip_network(each)
    for each in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        "100.64.0.0/10",  # between a carrier's NAT and its customers, and in the networks of clusters
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
"""Addresses of one's own network: an office, or a bridge of containers, may stand behind one of them. Not Python's
``is_private``, which has more in it than these."""

PREFIX_BITS = 64
"""Of an IPv6 address, those that its network gives one customer, who may have any of the addresses in it."""


class Origin(NamedTuple):
    """Where a request came from."""

    name: str
    """The address; of IPv6 the network of one customer."""
    is_one: bool
    """Whether it is counted as one caller: it is no proxy's and none of one's own network."""


_WITH_PORT = re.compile(r"([^:\[\]]+):[0-9]{1,5}|\[([^\[\]]+)\](?::[0-9]{1,5})?")


def bearer(request: Request) -> str | None:
    """The token in the Authorization header, if there is one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def grant_of(request: Request, authority: Authority, settings: Settings) -> Grant:
    """The grant of whoever sent this request.

    Raises:
      InvalidToken: there is a token, and it does not hold.
    """
    token = bearer(request)
    if token is None and (grant := session_of(request, authority, settings)) is not None:
        return grant
    if token is None and settings.query_token:
        token = next(iter(parameters(request).get(PARAMETER, [])), None)
    return authority.anonymous() if token is None else authority.verify(token, time.time())


def session_of(request: Request, authority: Authority, settings: Settings) -> Grant | None:
    """The grant of the session that the sender of this request has, if it has one.

    Raises:
      InvalidToken: it has one, which holds no longer.
    """
    if "Cookie" not in request.headers:
        return None
    for token in cookie.values(request, cookie_name(request, settings)):
        try:
            return authority.verify(token, time.time())
        except ForeignToken:
            continue
    return None


def address_of(request: Request, trusted: Collection[Proxies]) -> str:
    """The address that a request came from: the last of those it came by that is no trusted proxy's.

    Each proxy adds to ``X-Forwarded-For`` whom it had the request from, so the list is read from its end, as far as
    those who wrote it are trusted; what a client has written itself is before that. Of a proxy that says nothing, or
    nothing that is an address, it is the proxy's own. All who come over a Unix socket have one address.
    """
    written = _peer(request)
    if not trusted and ":" not in written:
        return written
    address = _way(request, trusted)[-1]
    return written if address is None else str(address)


def is_https(request: Request, settings: Settings) -> bool:
    """Whether the client came over HTTPS: to us, or to the first of the proxies that are trusted, as it says itself.

    A proxy writes ``X-Forwarded-Proto`` anew, or adds to it as to ``X-Forwarded-For``; then it is read as far as that.
    """
    if settings.cookie_secure == "always" or request.scheme == "https":
        return True
    said = ",".join(request.headers.getlist("X-Forwarded-Proto")).rsplit(",", MOST_PROXIES)
    trusted = settings.trusted_proxies
    if not (said[-1] and trusted):
        return False
    proxies = [address for address in _way(request, trusted) if _is_trusted(address, trusted)]
    return bool(proxies) and said[-min(len(proxies), len(said))].strip().lower() == "https"


def cookie_name(request: Request, settings: Settings) -> str:
    """The only cookie that is set for the sender of this request, and read."""
    return cookie.name_of(is_https=is_https(request, settings))


def is_utf8(request: Request) -> bool:
    """Whether the body is text in UTF-8, as far as its type says: where it says nothing, it is."""
    return request.mimetype_params.get("charset", "utf-8").lower() in ("utf-8", "utf8", "us-ascii")


def _peer(request: Request) -> str:
    client = request.scope.get("client")  # a server need not say
    return client[0] if client else UNIX


def _way(request: Request, trusted: Collection[Proxies]) -> list[Address | None]:
    """The addresses that a request came by, from the last one back to the first that is no trusted proxy's."""
    way = [_parse(_peer(request))]
    said = ",".join(request.headers.getlist("X-Forwarded-For")).rsplit(",", MOST_PROXIES)
    while said and _is_trusted(way[-1], trusted) and (before := _parse(said.pop())) is not None:
        way.append(before)
    return way


def origin_of(request: Request, trusted: Collection[Proxies]) -> Origin:
    """Where a request came from (:func:`address_of`), as one caller."""
    return _origin(address_of(request, trusted), tuple(trusted))


@lru_cache(maxsize=4096)  # most requests come from few addresses, and to look at one takes longer than all else here
def _origin(written: str, trusted: tuple[Proxies, ...]) -> Origin:
    address = _parse(written)
    if address is None:
        return Origin(written, is_one=False)
    is_one = not (_is_trusted(address, trusted) or any(address in network for network in SHARED))
    if isinstance(address, IPv6Address) and is_one:
        return Origin(str(IPv6Network((int(address), PREFIX_BITS), strict=False)), is_one)
    return Origin(str(address), is_one)


def _is_trusted(address: Address | None, trusted: Collection[Proxies]) -> bool:
    if address is None:
        return UNIX in trusted
    return any(address in proxies for proxies in trusted if proxies != UNIX)


def _parse(written: str) -> Address | None:
    """An address, with or without a port and brackets; none if it is no address. IPv4 in IPv6 is IPv4."""
    found = _WITH_PORT.fullmatch(written.strip())
    try:
        address = ip_address((found[1] or found[2]) if found else written.strip())
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


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


def single(values: dict[str, list[str]], name: str) -> str | None:
    """A parameter's only value, if it is given.

    Raises:
      InvalidInput: it is given more than once.
    """
    given = values.get(name, [])
    if len(given) > 1:
        raise InvalidInput(f"{name} is given {len(given)} times: give it once")
    return given[0] if given else None


def hide_token(scope: MutableMapping[str, Any]) -> None:
    """Take a token's value out of what the server will write into its access log; also where none is accepted."""
    parts = scope["query_string"].decode("latin-1").split("&")
    hidden = [f"{PARAMETER}=..." if unquote_plus(part.partition("=")[0]) == PARAMETER else part for part in parts]
    scope["query_string"] = "&".join(hidden).encode("latin-1")
