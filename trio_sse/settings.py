"""All settings, from the environment, validated at once; every default just works."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticUseDefault
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .auth import MAX_TTL_S, Authority
from .errors import InvalidInput
from .rates import ANONYMOUS, Rates
from .rates import NAMES as RATE_NAMES
from .retention import Keep
from .topic import Selector

PREFIX = "TRIO_SSE_"

MAX_S = 24 * 3600
"""The longest heartbeat, write timeout and drain. What waits for ever promises nothing."""

Right = Literal["publish", "subscribe"]

UNIX = "unix:"
"""Whoever connects over a Unix socket."""

Proxies = IPv4Network | IPv6Network | Literal["unix:"]
"""The address of a proxy, or of several: one address is a network too."""

_MAPPED = IPv6Network("::ffff:0:0/96")

_ORIGIN = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}  # which no browser writes

_HOST = re.compile(r"(?=.*[a-z])[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def _check_origin(origin: str) -> str:
    """The origin as a browser writes it, to be compared letter by letter."""
    written = origin.strip().removesuffix("/").lower()
    if not (found := _ORIGIN.fullmatch(written)):
        raise ValueError(f"{origin!r} is not an origin such as https://app.example: scheme and host, no path")
    return written.removesuffix(_DEFAULT_PORTS[found[1]])


def _check_host(written: str) -> str:
    """The name as a browser sends it, without the dot that may end it."""
    name = written.lower().removesuffix(".")
    if not _HOST.fullmatch(name):
        raise ValueError(
            f"{written!r} is not a name such as hub.example: no scheme, no port, no wildcard (addresses and localhost "
            "need not be listed)"
        )
    return name


def _check_proxies(written: object) -> object:
    """Addresses to compare with; IPv4 in IPv6 is IPv4, as it is for those who are compared."""
    if written == UNIX or not isinstance(written, str):
        return written
    try:
        network = ip_network(written)
    except ValueError:
        raise ValueError(
            f"{written!r} is not an address such as 10.0.0.1, nor a network such as 10.0.0.0/8, nor {UNIX}"
        ) from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        address = network.network_address.ipv4_mapped
        return IPv4Network((int(address or 0), network.prefixlen - _MAPPED.prefixlen))
    return network


class _Rule(BaseModel):
    """What one selector's topics keep. A limit that is left out is the general one; ``null`` is none."""

    model_config = ConfigDict(extra="forbid", strict=True)

    events: Annotated[int | None, Field(ge=1)] = None
    bytes: Annotated[int | None, Field(ge=1)] = None
    seconds: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None

    def keep(self) -> Keep:
        """The rule, as a journal takes it."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return Keep(**{name: math.inf if limit is None else limit for name, limit in given.items()})


def _read_rules(written: object) -> object:
    """Rules by selector, from JSON; in their order, which counts."""
    if not isinstance(written, str):
        return written

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(names := dict(pairs)) < len(pairs):
            raise ValueError("a name stands in it twice")
        return names

    try:
        read = json.loads(written, object_pairs_hook=once)
        if not isinstance(read, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f'it is JSON such as {{"room/*": {{"events": 500, "seconds": 86400}}}}: {error}') from None
    rules: dict[str, Keep] = {}
    for text, rule in read.items():
        try:
            Selector.parse(text)
            rules[text] = _Rule.model_validate(rule).keep()
        except InvalidInput as error:
            raise ValueError(f"{text!r}: {error}") from None
        except ValidationError as error:
            fault = error.errors()[0]
            place = "".join(f" {name}:" for name in fault["loc"])
            raise ValueError(f"{text!r}:{place} {fault['msg']}; a rule has events, bytes and seconds") from None
    return rules


class _Rates(BaseModel):
    """What one caller may do. A rate that is left out is the default; ``null`` is none."""

    model_config = ConfigDict(extra="forbid", strict=True)

    events_per_s: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    bytes_per_s: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    streams_per_s: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    guests_per_min: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None


def _read_rates(default: Rates) -> Callable[[object], object]:
    def read(written: object) -> object:
        if not isinstance(written, str):
            return written
        try:
            given = _Rates.model_validate_json(written)
        except ValidationError as error:
            fault = error.errors()[0]
            place, names = "".join(f"{name}: " for name in fault["loc"]), ", ".join(RATE_NAMES)
            raise ValueError(f'{place}{fault["msg"]}; it is JSON such as {{"events_per_s": 50}}, of {names}') from None
        return replace(default, **{name: getattr(given, name) for name in given.model_fields_set})

    return read


class Settings(BaseSettings):
    """What the operator may choose. Each field is the variable ``TRIO_SSE_`` and its name in capitals.

    An empty variable counts as one that is not set, but for two: an empty ``anonymous`` allows nothing, and an
    empty ``jwt_key`` is refused, since a secret that failed to arrive must not open the hub to everyone.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    journal: str = Field("sqlite:trio_sse.db", description="`memory:` or `sqlite:PATH`: where events are kept")
    jwt_key: SecretStr | None = Field(
        None, description="HMAC secret or PEM public key that tokens are checked with; none: *development mode*"
    )
    jwt_algorithm: Literal["HS256", "RS256", "ES256", "EdDSA"] = Field(
        "HS256", description="how tokens are signed: `HS256`, `RS256`, `ES256` or `EdDSA`"
    )
    jwt_audience: str | None = Field(None, description="if given, a token's `aud` must name it")
    jwt_issuer: str | None = Field(None, description="if given, a token's `iss` must be it")
    anonymous: Annotated[frozenset[Right] | None, NoDecode] = Field(
        None,
        description="what a caller without a token may do on public topics: `publish`, `subscribe` or both, "
        "separated by a comma; in development mode both",
    )
    query_token: bool = Field(False, description="also accept a token as `?token=`, where nothing better can be done")
    allow_origins: Annotated[tuple[Annotated[str, AfterValidator(_check_origin)], ...], NoDecode] = Field(
        (), description="origins whose pages may read and publish (CORS), separated by commas"
    )
    hosts: Annotated[tuple[Annotated[str, AfterValidator(_check_host)], ...], NoDecode] = Field(
        (),
        description="names that the hub answers to, such as `hub.example`, separated by commas; IP addresses and "
        "`localhost` always; none: every name, and in development mode no other",
    )
    cookie_secure: Literal["auto", "always"] = Field(
        "auto",
        description="whether the session cookie is for HTTPS alone: `always`, or `auto`, which is where the connection "
        "is TLS or a trusted proxy says `X-Forwarded-Proto: https`",
    )
    session_max_s: float = Field(
        7 * 24 * 3600,
        ge=1,
        le=MAX_TTL_S,
        description="seconds from a guest's first sign-in to its last moment",
    )
    retention_events: int = Field(1_000, ge=1, description="events kept of each topic")
    retention_seconds: float = Field(7 * 24 * 3600, gt=0, description="seconds for which an event is kept")
    retention_bytes: int = Field(256 * 1024 * 1024, ge=1, description="bytes that a journal takes with all it keeps")
    retention: Annotated[dict[str, Keep], NoDecode, BeforeValidator(_read_rules)] = Field(
        {},
        description="JSON, what each topic of a selector keeps instead: "
        '`{"room/*": {"events": 500, "bytes": 1000000, "seconds": 86400}}`; the first selector that chooses a topic '
        "counts, what it leaves out is as above, and `null` is no limit",
    )
    heartbeat_s: float = Field(15, gt=0, le=MAX_S, description="seconds that a stream is silent at the longest")
    write_timeout_s: float = Field(20, gt=0, le=MAX_S, description="seconds for which a client may take no byte")
    drain_s: float = Field(5, ge=0, le=MAX_S, description="seconds for goodbyes when the server is stopped")
    buffer_events: int = Field(256, ge=1, description="events that wait for a slow client in memory")
    max_streams: int | None = Field(
        None, ge=1, description="streams in all; none: as many as file descriptors allow, less a reserve"
    )
    max_streams_per_ip: int | None = Field(
        None,
        ge=1,
        description="streams from one address, or one IPv6 /64; none are counted of loopback, private networks and "
        "trusted proxies",
    )
    max_streams_per_subject: int | None = Field(None, ge=1, description="streams of one token's `sub`")

    rates_anonymous: Annotated[Rates, NoDecode, BeforeValidator(_read_rates(ANONYMOUS))] = Field(
        ANONYMOUS,
        description="JSON, what the callers of one address who have no token may do, each with ten seconds' worth at "
        'once; guests have none: `{"events_per_s": 50, "bytes_per_s": 1000000, "streams_per_s": 20, '
        '"guests_per_min": 30}`; what is left out is as here, and `null` is no limit',
    )
    rates_token: Annotated[Rates, NoDecode, BeforeValidator(_read_rates(Rates()))] = Field(
        Rates(), description="the same, what the callers with one token's `sub` may do"
    )
    rates_address: Annotated[Rates, NoDecode, BeforeValidator(_read_rates(Rates()))] = Field(
        Rates(), description="the same, what all callers of one address may do together"
    )
    trusted_proxies: Annotated[tuple[Annotated[Proxies, BeforeValidator(_check_proxies)], ...], NoDecode] = Field(
        (),
        description="proxies whose `X-Forwarded-For` says which address a request is of, and `X-Forwarded-Proto` "
        "whether it came over HTTPS: addresses and networks such as `10.0.0.0/8`, and `unix:` for whoever connects "
        "over a Unix socket, separated by commas",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object, info: ValidationInfo) -> object:
        if value == "" and info.field_name not in ("jwt_key", "anonymous"):
            raise PydanticUseDefault
        return value

    @field_validator("anonymous", "allow_origins", "hosts", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if self.jwt_key is not None:
            key = self.jwt_key.get_secret_value()
            if not key:
                raise ValueError(f"{PREFIX}JWT_KEY: it is empty: give a key, or unset it for development mode")
            try:
                self.authority(key)
            except InvalidInput as error:
                raise ValueError(f"{PREFIX}JWT_KEY: {error}") from None
        elif self.jwt_algorithm != "HS256":
            raise ValueError(f"{PREFIX}JWT_KEY: {self.jwt_algorithm} needs a PEM public key")
        return self

    @property
    def development(self) -> bool:
        """No key was given: anyone may read and publish public topics, and guests may sign in."""
        return self.jwt_key is None

    def authority(self, key: str) -> Authority:
        """Who checks tokens, with this key.

        Raises:
          InvalidInput: the key does not fit the algorithm.
        """
        anonymous = self.anonymous
        if anonymous is None:
            anonymous = frozenset[Right](("publish", "subscribe") if self.development else ())
        return Authority(
            key,
            self.jwt_algorithm,
            audience=self.jwt_audience,
            issuer=self.jwt_issuer,
            anonymous=anonymous,
        )


def load_settings() -> Settings:
    """The settings, or the end: a wrong one exits with a line that names the variable and says what it takes.

    Raises:
      SystemExit: with that line.
    """
    try:
        return Settings()
    except ValidationError as error:
        fault = error.errors()[0]
        name = PREFIX + str(fault["loc"][0]).upper() + ": " if fault["loc"] else ""
        message = fault["msg"].removeprefix("Value error, ")
        raise SystemExit(f"trio_sse: {name}{message}") from None
