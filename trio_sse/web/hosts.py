"""The names that the hub answers to.

A web page may not read what another origin answers. But its owner can point the page's own name at an address of the
visitor's network, such as 127.0.0.1 (DNS rebinding): then the browser takes the hub for the page's own server, and what
it sends is same-origin. Such a request has the page's name as its ``Host``. So a hub that anybody on its network may
use, which is what development mode is, answers to no name but those it was told. An IP address is not looked up, so no
page can have been loaded from it by somebody else's doing; ``localhost`` is this machine (RFC 6761 § 6.3). A request
without a ``Host`` is no browser's.

It costs a look into a table for each request, because clients keep to few names.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import WrongHost
from ..settings import PREFIX

if TYPE_CHECKING:
    from ..settings import Settings

ANY_NAME = ("/healthz",)
"""Served under whatever name: it tells nothing, and a probe may call the hub as it likes."""

LONGEST_SHOWN = 100
"""Characters of a client's header that are repeated in a refusal, so that its sender recognises it."""

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.%a-z_-]+\]|[^\s:/@\[\]?#\\]*)(?::(?P<port>[0-9]{0,5}))?")


class Host(NamedTuple):
    """A host and its port, as a URL has them; ``None`` stands for the scheme's own port."""

    name: str
    port: int | None

    @classmethod
    def parse(cls, written: str) -> Host | None:
        """The host in a ``Host`` header or an origin; none if it is not one."""
        found = _HOST.fullmatch(written.lower())
        return None if found is None else cls(found["name"], int(found["port"]) if found["port"] else None)

    def is_with(self, other: Host, default_port: int) -> bool:
        """Whether it is the same host and port as another."""
        mine, other_port = (default_port if port is None else port for port in (self.port, other.port))
        return (self.name, mine) == (other.name, other_port)

    @property
    def needs_no_name(self) -> bool:
        """Whether it is an IP address, or this machine."""
        if self.name.removesuffix(".") == "localhost":
            return True
        try:
            return (ip_address(self.name.strip("[]")).version == 6) == self.name.startswith("[")
        except ValueError:
            return False


def host_of(scope: Any) -> str:
    """The ``Host`` of a request, of which this is the ASGI scope; empty where there is none."""
    for name, value in scope["headers"]:
        if name == b"host":  # the server lets no second one pass
            return str(value, "latin-1")
    return ""


class Hosts:
    """Which names a request may be for."""

    def __init__(self, settings: Settings) -> None:
        self._names: Collection[str] | None = frozenset(settings.hosts)
        if not (settings.hosts or settings.development):
            self._names = None
        self._knows = lru_cache(256)(self._look_up)

    def check(self, scope: Any, path: str) -> None:
        """Whether a request, of which this is the ASGI scope, may be served.

        Raises:
          WrongHost: it is for another name.
        """
        if self._names is None or self._knows(host := host_of(scope)) or path in ANY_NAME:
            return
        raise WrongHost(
            f"the hub does not answer to the name in Host, {host[:LONGEST_SHOWN]!r}: list it in {PREFIX}HOSTS, or use "
            "localhost or an IP address"
        )

    def _look_up(self, written: str) -> bool:
        if not written:
            return True
        host = Host.parse(written)
        assert self._names is not None
        return host is not None and (host.needs_no_name or host.name.removesuffix(".") in self._names)
