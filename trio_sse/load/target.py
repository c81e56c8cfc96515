"""What is put under load: where it listens, and what is asked of it."""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

DIAL_S = 10.0
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[^\r\n\0]*")


class LoadError(Exception):
    """The load could not be made; the message says why, to a person."""


@dataclass(frozen=True, slots=True)
class Site:
    """A server's address, found once, so that no look-up is measured."""

    family: int
    address: Any
    """As ``socket.connect`` takes it."""
    authority: str
    """What the header ``Host`` says."""
    name: str
    """What a certificate has to name."""
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A URL, taken apart."""

    secure: bool
    host: str
    port: int
    target: str
    """The path and the query, as a request line has them."""

    @classmethod
    def parse(cls, url: str) -> Link:
        """Read a URL of http or https.

        Raises:
          LoadError: it is none, or cannot be used.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
            host = (parts.hostname or "").encode("idna" if "[" not in parts.netloc else "ascii").decode()
        except ValueError as error:
            raise LoadError(f"this is no URL that can be used: {error}") from None
        if parts.scheme not in ("http", "https") or not host or _CONTROL.search(url):
            raise LoadError("give a URL such as http://127.0.0.1:8000, with http or https and a host")
        if parts.username is not None:
            raise LoadError("a URL may hold no user or password: give them as --token or --header")
        secure = parts.scheme == "https"
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]")
        return cls(secure, host, port or (443 if secure else 80), target)

    @property
    def is_base(self) -> bool:
        """Whether it names a server, and no place in it."""
        return self.target == "/"

    def find(self, *, verify: bool = True) -> Site:
        """Look the host up, and see which of its addresses answers.

        Raises:
          LoadError: none does.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        authority = host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise LoadError(f"the host {self.host} is not known: {error.strerror}") from None
        problem = ""
        for family, _, _, _, address in found:
            try:
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    sock.settimeout(DIAL_S)
                    sock.connect(address)
                    return Site(family, address, authority, self.host, _tls(verify) if self.secure else None)
            except OSError as error:
                problem = reason(error)
        raise LoadError(f"the server at {authority} cannot be reached: {problem}")


def _tls(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def reason(error: OSError) -> str:
    """Why, to a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message} (--insecure does without)"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def check_room(error: OSError) -> None:
    """Go on, unless this machine has no room for another connection.

    Raises:
      LoadError: it has none.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise LoadError("there are no file descriptors left: allow more (ulimit -n), or use fewer clients") from None
    if error.errno == errno.EADDRNOTAVAIL:
        raise LoadError(
            "there are no local ports left: widen net.ipv4.ip_local_port_range, use fewer clients, or share them "
            "between several machines"
        ) from None


@dataclass(frozen=True, slots=True)
class Target:
    """Where to subscribe and where to publish."""

    streams: Site
    subscribe: tuple[str, ...]
    """Of each channel, what to ask for; all clients of a channel are given the same events."""
    publishing: Site | None
    """None to listen only."""
    publish: tuple[str, ...] = ()
    """The topics, as places to POST to; the first belongs to the first channel, and so on and round again."""
    headers: tuple[str, ...] = ()

    def topic(self, number: int) -> int:
        """Which topic an event is published to: they take turns."""
        return number % len(self.publish)

    def channel(self, number: int) -> int:
        """Whose clients are to have an event."""
        return self.topic(number) % len(self.subscribe)

    def get(self, channel: int, last_event_id: str) -> bytes:
        """The request for a stream."""
        lines = [f"GET {self.subscribe[channel]} HTTP/1.1", f"Host: {self.streams.authority}"]
        lines += ["Accept: text/event-stream", "Accept-Encoding: identity", "Cache-Control: no-store", *self.headers]
        request = "\r\n".join(lines).encode("latin-1")
        if last_event_id:
            request += b"\r\nLast-Event-ID: " + last_event_id.encode()
        return request + b"\r\n\r\n"

    def post(self, number: int, *more: str) -> bytes:
        """The head of a request that publishes an event, and maybe more of its topic."""
        assert self.publishing is not None
        lines = [
            f"POST {self.publish[self.topic(number)]} HTTP/1.1",
            f"Host: {self.publishing.authority}",
            *self.headers,
            *more,
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def check_headers(headers: Iterable[str]) -> tuple[str, ...]:
    """The same, if each is a header such as ``Name: value``.

    Raises:
      LoadError: one is not; what it says is not repeated, since it may be a secret.
    """
    headers = tuple(headers)
    for number, header in enumerate(headers, 1):
        if not _HEADER.fullmatch(header) or not header.isascii():
            raise LoadError(f"header {number} is not of the form 'Name: value'")
    return headers
