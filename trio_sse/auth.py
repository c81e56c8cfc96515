"""A token in, what its bearer may do out (RFC 7519).

The claims are ``sub``, ``exp``, ``iat``, optional ``aud`` and ``iss``, ``name`` for people to read, and
``"sse": {"publish": [selectors], "subscribe": [selectors]}``. The token that a guest gets has no rights of its own, and
``"sse": {"guest_since": seconds}``, so that its session can be renewed, and not for ever.

Traps of PyJWT that are handled here: without being told it accepts a token that never expires, and an ``exp``
of 10**400, which no clock can hold; a short key only warns; a private RSA key signs but does not verify; the
algorithm must come from the settings, never from the token. PyJWT checks the signature, and every claim is
checked here, so that the refusal can say which. The time is the caller's to say, because this floor has no clock.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.types import Options

from .errors import ForeignToken, InvalidInput, InvalidToken, InvalidTopic, NotAllowed, TooWild
from .selector_index import without_contained
from .topic import Selector, inbox, matching, meet_all, parse_selectors

MAX_TTL_S = 366 * 24 * 3600
"""The longest that a token may still be valid."""

CLOCK_SKEW_S = 60
"""``nbf`` and ``iat`` may lie so far ahead of our clock. ``exp`` is taken as it stands."""

MAX_SUBJECT = 128
MAX_NAME = 64
MAX_SELECTORS = 100

KEYS = {
    "HS256": "a secret of at least 32 bytes: openssl rand -base64 48",
    "RS256": "an RSA public key in PEM, of at least 2048 bits",
    "ES256": "a P-256 public key in PEM",
    "EdDSA": "an Ed25519 public key in PEM",
}
"""The algorithms a token may be signed with, and the key that checks it (RFC 7518 § 3, RFC 8037)."""

MAX_REMEMBERED = 1024
"""Tokens whose signature is not checked again, as long as no more others came since; each by its digest alone."""

GUEST_PREFIX = "guest-"
GUEST_TTL_S = 2 * 24 * 3600
"""Seconds for which a guest's token is valid, unless it is renewed before: two days, so that a guest who comes daily is
the same one."""

_OPTIONS: Options = {
    "enforce_minimum_key_length": True,
    "verify_exp": False,  # every claim is checked here, strictly
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}
EVERYTHING = parse_selectors(["**"])
"""Every public topic."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one caller may do, and until when (seconds since the epoch; ``None``: no end)."""

    subject: str | None = None
    name: str | None = None
    publish: tuple[Selector, ...] = ()
    subscribe: tuple[Selector, ...] = ()
    expires_at: int | None = None
    unusable: tuple[str, ...] = ()
    """Why selectors of the token count for nothing; for the log, since whoever signed it does not hear of it."""
    guest_since: int | None = None
    """When a guest signed in first, in seconds since the epoch. ``None``: this hub has not signed the caller in."""
    token_id: str | None = field(default=None, compare=False)
    """What a token without a subject is known by: a digest of it. ``None``: there is a subject, or no token."""

    @property
    def is_guest(self) -> bool:
        """Whether the token is one that anybody gets for a name."""
        return self.subject is not None and self.subject.startswith(GUEST_PREFIX)

    @property
    def publisher(self) -> str:
        """The account that this caller's events and idempotency keys are charged to.

        A token's subject; without one, the token itself. All guests and all callers without a token share one account,
        the empty name, because anybody can be as many of them as they like.
        """
        if self.is_guest:
            return ""
        return self.subject or self.token_id or ""

    def check_publish(self, topic: str) -> None:
        """Raises NotAllowed unless this caller may publish to the topic."""
        if not matching(self.publish, topic):
            raise self._not_allowed("publish to", topic)

    def readable(self, asked: Iterable[Selector]) -> tuple[Selector, ...]:
        """The selectors of exactly those topics that are asked for and that this caller may read.

        Raises:
          NotAllowed: one of those asked for has nothing in it that the caller may read.
        """
        met = [selector for some in self.met(asked) for selector in some]
        return tuple(selector for some in without_contained(met) for selector in some)

    def met(self, asked: Iterable[Selector]) -> Iterator[tuple[Selector, ...]]:
        """For one of those asked for after the other, what of it this caller may read: a little work at a time.

        Raises:
          NotAllowed: there is nothing in it that the caller may read.
        """
        for selector in dict.fromkeys(asked):
            if not (met := meet_all([selector], self.subscribe)):
                raise self._not_allowed("subscribe to", selector.text)
            yield met

    def _not_allowed(self, what: str, topic: str) -> NotAllowed | InvalidToken:
        if self.subject is None and self.expires_at is None:
            return InvalidToken(f"without a token you may not {what} {topic!r}: send Authorization: Bearer <token>")
        return NotAllowed(f"your token does not allow you to {what} {topic!r}")


class Authority:
    """Checks tokens with one key and one algorithm, and signs them where the key can.

    ``anonymous`` is what a caller without a token may do on public topics, of ``"publish"`` and ``"subscribe"``;
    a caller with one may do it too.

    Raises:
      InvalidInput: the key does not fit the algorithm; the message says what does.
    """

    def __init__(
        self,
        key: str,
        algorithm: str = "HS256",
        *,
        audience: str | None = None,
        issuer: str | None = None,
        anonymous: Iterable[str] = (),
    ) -> None:
        self.algorithm = algorithm
        self.symmetric = algorithm.startswith("HS")
        self._audience, self._issuer = audience, issuer
        self._anonymous = dict.fromkeys(anonymous, EVERYTHING)
        self._jwt = jwt.PyJWT(_OPTIONS)
        self._signs, self._verifies = _keys(key, algorithm)
        self._remembered: dict[bytes, tuple[Mapping[str, Any], Grant]] = {}

    def anonymous(self) -> Grant:
        """The grant of a caller without a token."""
        return Grant(publish=self._anonymous.get("publish", ()), subscribe=self._anonymous.get("subscribe", ()))

    def verify(self, token: str, now: float) -> Grant:
        """The grant of a token's bearer at ``now``, in seconds since the epoch.

        What a token says does not change, so one that held is remembered; the time is checked each time.

        Raises:
          ForeignToken: the token is not one for this hub.
          InvalidToken: the token does not hold; the message says why, and never what it is.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        if (remembered := self._remembered.get(digest)) is not None:
            claims, grant = remembered
            _check_times(claims, now)
            return grant
        try:
            claims = self._jwt.decode(token, self._verifies, algorithms=[self.algorithm])
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise ForeignToken("the token is not one that was signed for this hub") from None
        grant = self._grant(claims, now)
        if grant.subject is None:
            # Not of the whole token: many signatures of the same claims hold, such as one with padding.
            signed = hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()
            grant = replace(grant, token_id=f"token {signed[:32]}")
        if len(self._remembered) >= MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[digest] = claims, grant
        return grant

    def _grant(self, claims: Mapping[str, Any], now: float) -> Grant:
        self._check_parties(claims)
        expires_at = _check_times(claims, now)
        subject = _text(claims, "sub", MAX_SUBJECT)
        rights = claims.get("sse", {})
        if not isinstance(rights, Mapping):
            raise InvalidToken('the token\'s claim "sse" is not an object with "publish" and "subscribe"')
        unusable: list[str] = []
        publish, subscribe = (_selectors(rights, right, unusable) for right in ("publish", "subscribe"))
        return Grant(
            subject,
            _text(claims, "name", MAX_NAME),
            publish + self._anonymous.get("publish", ()),
            subscribe + self._anonymous.get("subscribe", ()) + _own_inbox(subject),
            expires_at,
            tuple(unusable),
            _guest_since(rights, expires_at),
        )

    def issue(
        self,
        subject: str | None,
        *,
        now: float,
        ttl_s: int,
        publish: Iterable[str] = (),
        subscribe: Iterable[str] = (),
        name: str | None = None,
        guest_since: int | None = None,
    ) -> str:
        """Sign a token. The key must be able to: an HMAC secret, or a private PEM key.

        Raises:
          InvalidInput: a claim would not be accepted by :meth:`verify`, or the key only verifies.
        """
        rights: dict[str, Any] = {
            "publish": [selector.text for selector in parse_selectors(publish)],
            "subscribe": [selector.text for selector in parse_selectors(subscribe)],
        }
        if guest_since is not None:
            rights["guest_since"] = guest_since
        claims: dict[str, Any] = {"iat": int(now), "exp": int(now) + ttl_s, "sse": rights}
        optional = {"sub": subject, "name": name, "aud": self._audience, "iss": self._issuer}
        claims |= {claim: value for claim, value in optional.items() if value is not None}
        try:
            self._grant(claims, now)
            return self._jwt.encode(claims, self._signs, self.algorithm)
        except InvalidToken as error:
            raise InvalidInput(str(error)) from None
        except (jwt.PyJWTError, TypeError, AttributeError):
            raise InvalidInput("the key can check tokens but not sign them: give the private key") from None

    def issue_guest(
        self, name: str, *, now: float, session_s: float = math.inf, guest: Grant | None = None
    ) -> tuple[str, Grant]:
        """Sign in somebody of whom only a name is known; the name is unverified, the subject random.

        ``guest`` is the grant of a guest who was signed in before, and stays the same subject: until ``session_s``
        seconds after the first time, and no longer.

        Raises:
          InvalidInput: the name cannot be shown.
          InvalidToken: those seconds are over.
        """
        subject, since = None if guest is None else guest.subject, None if guest is None else guest.guest_since
        if subject is None or since is None:
            subject, since = GUEST_PREFIX + secrets.token_urlsafe(9), int(now)
        ttl_s = int(min(GUEST_TTL_S, since + session_s - int(now)))
        if ttl_s < 1:
            raise InvalidToken("the session has lasted as long as it may: sign in again")
        token = self.issue(subject, now=now, ttl_s=ttl_s, name=name, guest_since=since)
        return token, self.verify(token, now)

    def _check_parties(self, claims: Mapping[str, Any]) -> None:
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if self._audience is not None and self._audience not in audiences:
            raise ForeignToken(f"the token is not for the audience {self._audience!r}")
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise ForeignToken(f"the token was not issued by {self._issuer!r}")


def _keys(key: str, algorithm: str) -> tuple[Any, Any]:
    """The key, parsed once, to sign with (if it can) and to verify with."""
    if algorithm not in KEYS:
        raise InvalidInput(f"{algorithm!r} is no algorithm for tokens here: use one of {', '.join(KEYS)}")
    method = jwt.get_algorithm_by_name(algorithm)
    try:
        signs = method.prepare_key(key)
        # PyJWT knows a whole PEM file; one that an environment mangled would be a secret that everybody knows.
        fits = method.check_key_length(signs) is None and not (algorithm == "HS256" and "-----BEGIN" in key)
    except (jwt.InvalidKeyError, ValueError, TypeError, UnsupportedAlgorithm):
        fits = False
    if not fits:
        raise InvalidInput(f"the key does not fit: {algorithm} needs {KEYS[algorithm]}")
    return signs, signs.public_key() if hasattr(signs, "public_key") else signs


def _check_times(claims: Mapping[str, Any], now: float) -> int:
    expires_at = _time(claims, "exp")
    if expires_at is None:
        raise InvalidToken('the token has no "exp": issue one that expires')
    if expires_at <= now:
        raise InvalidToken("the token has expired: get a new one")
    if expires_at > now + MAX_TTL_S:
        raise InvalidToken(f"the token is valid for more than {MAX_TTL_S // 86400} days: issue a shorter one")
    for claim in ("nbf", "iat"):
        begins_at = _time(claims, claim)
        if begins_at is not None and begins_at > now + CLOCK_SKEW_S:
            raise InvalidToken(f'the token is not valid yet: its "{claim}" lies ahead of the clock')
    return int(expires_at)


def _time(claims: Mapping[str, Any], claim: str) -> int | float | None:
    value = claims.get(claim)
    if value is None:
        return None
    # Not "value < 0", which NaN is not either.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InvalidToken(f'the token\'s "{claim}" is not a number of seconds since the epoch')
    return value


def _text(claims: Mapping[str, Any], claim: str, most: int) -> str | None:
    value = claims.get(claim)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable() or not value.strip():
        raise InvalidToken(f'the "{claim}" is not 1 to {most} printable characters')
    if not unicodedata.is_normalized("NFC", value):
        raise InvalidToken(f'the "{claim}" is not in Unicode normal form C')
    return value


def _selectors(rights: Mapping[str, Any], right: str, unusable: list[str]) -> tuple[Selector, ...]:
    texts = rights.get(right, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidToken(f'the token\'s "sse.{right}" is not a list of selectors')
    if len(texts) > MAX_SELECTORS:
        raise InvalidToken(f'the token\'s "sse.{right}" holds more than {MAX_SELECTORS} selectors')
    selectors: dict[Selector, None] = {}
    for text in texts:
        try:
            selectors[Selector.parse(text)] = None
        except TooWild as error:  # signed before there was a bound: the other rights are as good as ever
            unusable.append(f"sse.{right}: {text!r}: {error}")
        except InvalidTopic as error:
            raise InvalidToken(f'the token\'s "sse.{right}" cannot be used: {error}') from None
    return tuple(selectors)


def _guest_since(rights: Mapping[str, Any], expires_at: int) -> int | None:
    since = rights.get("guest_since")
    return since if type(since) is int and 0 <= since <= expires_at else None


def _own_inbox(subject: str | None) -> tuple[Selector, ...]:
    try:
        return () if subject is None else (Selector.parse(inbox(subject)),)
    except InvalidTopic:  # such as user/*: this subject has no inbox
        return ()
