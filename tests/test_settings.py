"""Settings: every variable, its default, and the one line that a wrong one ends with."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from trio_sse.errors import InvalidInput
from trio_sse.rates import Rates
from trio_sse.retention import Keep
from trio_sse.settings import MAX_S, PREFIX, Settings, load_settings

SECRET = "a secret of the tests, of no less than 32 bytes"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    """The settings with these variables, named without their prefix."""
    for name, value in variables.items():
        monkeypatch.setenv(PREFIX + name, value)
    return load_settings()


def line(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """The line with which wrong variables end the program."""
    with pytest.raises(SystemExit) as caught:
        load(monkeypatch, **variables)
    message = caught.value.code
    assert isinstance(message, str)
    assert len(message.splitlines()) == 1
    return message


def pem(key: Any) -> str:
    written: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return written.decode()


# -- what is right -------------------------------------------------------------------------------------------------

DEFAULTS: dict[str, object] = {
    "journal": "sqlite:trio_sse.db",
    "jwt_key": None,
    "jwt_algorithm": "HS256",
    "jwt_audience": None,
    "jwt_issuer": None,
    "anonymous": None,
    "query_token": False,
    "allow_origins": (),
    "retention_events": 1_000,
    "retention_seconds": 7 * 24 * 3600,
    "retention_bytes": 256 * 1024 * 1024,
    "retention": {},
    "heartbeat_s": 15,
    "write_timeout_s": 20,
    "drain_s": 5,
    "buffer_events": 256,
    "max_streams": None,
    "max_streams_per_ip": None,
    "max_streams_per_subject": None,
    "trusted_proxies": (),
    "hosts": (),
    "cookie_secure": "auto",
    "session_max_s": 7 * 24 * 3600,
    "rates_anonymous": Rates(events_per_s=50, bytes_per_s=1_000_000, streams_per_s=20, guests_per_min=30),
    "rates_token": Rates(),
    "rates_address": Rates(),
}


@pytest.mark.parametrize(("field", "default"), DEFAULTS.items())
def test_the_defaults(field: str, default: object) -> None:
    """They are the documented ones."""
    assert getattr(load_settings(), field) == default


def test_every_setting_has_its_default_here_and_a_description() -> None:
    """So that none is added in silence; the description is what the documentation shows."""
    assert set(Settings.model_fields) == set(DEFAULTS)
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        *(("JOURNAL", "memory:", "memory:"), ("JOURNAL", "sqlite:/var/lib/a b.db", "sqlite:/var/lib/a b.db")),
        *(("JWT_AUDIENCE", "us", "us"), ("JWT_ISSUER", "https://id.example/", "https://id.example/")),
        *(("ANONYMOUS", "publish", {"publish"}), ("ANONYMOUS", "subscribe", {"subscribe"})),
        *(("ANONYMOUS", text, {"publish", "subscribe"}) for text in ("publish,subscribe", " subscribe , publish,, ")),
        *(("ANONYMOUS", text, frozenset()) for text in ("", " ", ",")),
        *(("QUERY_TOKEN", text, True) for text in ("1", "true", "on", "yes", "True")),
        *(("QUERY_TOKEN", text, False) for text in ("0", "false", "off", "no")),
        *(("RETENTION_EVENTS", "1", 1), ("RETENTION_EVENTS", "1000000", 1_000_000)),
        *(("RETENTION_SECONDS", "0.5", 0.5), ("RETENTION_SECONDS", "inf", float("inf"))),
        *(("RETENTION_BYTES", "1", 1), ("BUFFER_EVENTS", "1", 1), ("HEARTBEAT_S", "0.5", 0.5)),
        *(("WRITE_TIMEOUT_S", "1", 1), ("DRAIN_S", "0", 0), ("DRAIN_S", str(MAX_S), MAX_S)),
        ("ALLOW_ORIGINS", "https://app.example", ("https://app.example",)),
    ],
)
def test_each_variable_is_read(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, value: object) -> None:
    """A variable is the prefix and the setting's name in capitals."""
    assert getattr(load(monkeypatch, **{variable: text}), variable.lower()) == value


@pytest.mark.parametrize("field", [field for field in DEFAULTS if field not in ("jwt_key", "anonymous")])
def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """As in a compose file that passes on what was not given."""
    assert getattr(load(monkeypatch, **{field.upper(): ""}), field) == DEFAULTS[field]


def test_settings_do_not_change() -> None:
    """They are read once."""
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().journal = "memory:"  # type: ignore[misc]


def test_other_variables_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has our prefix and is none of ours does no harm."""
    assert load(monkeypatch, SOMETHING_ELSE="x").journal == DEFAULTS["journal"]


# -- keys ----------------------------------------------------------------------------------------------------------


def test_without_a_key_the_hub_is_in_development_mode() -> None:
    """Then anyone may publish and subscribe."""
    settings = load_settings()
    grant = settings.authority(SECRET).anonymous()
    assert settings.development
    assert [selector.text for selector in (*grant.publish, *grant.subscribe)] == ["**", "**"]


def test_with_a_key_nobody_may_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key ends development mode."""
    settings = load(monkeypatch, JWT_KEY=SECRET)
    grant = settings.authority(SECRET).anonymous()
    assert not settings.development
    assert (grant.publish, grant.subscribe) == ((), ())


def test_what_anyone_may_can_be_said_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as to read."""
    grant = load(monkeypatch, JWT_KEY=SECRET, ANONYMOUS="subscribe").authority(SECRET).anonymous()
    assert (bool(grant.publish), bool(grant.subscribe)) == (False, True)


def test_what_anyone_may_can_be_nothing_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty list is a list."""
    grant = load(monkeypatch, ANONYMOUS="").authority(SECRET).anonymous()
    assert (grant.publish, grant.subscribe) == ((), ())


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        ("RS256", lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        ("ES256", lambda: ec.generate_private_key(ec.SECP256R1())),
        ("EdDSA", ed25519.Ed25519PrivateKey.generate),
    ],
)
def test_a_public_key_fits_its_algorithm(monkeypatch: pytest.MonkeyPatch, algorithm: str, make: Any) -> None:
    """A PEM of several lines stands in a variable as it is."""
    key = pem(make())
    settings = load(monkeypatch, JWT_ALGORITHM=algorithm, JWT_KEY=key)
    assert settings.jwt_key is not None
    assert settings.authority(settings.jwt_key.get_secret_value()).algorithm == algorithm


def test_the_parties_reach_the_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that this authority issues names them."""
    authority = load(monkeypatch, JWT_KEY=SECRET, JWT_AUDIENCE="us", JWT_ISSUER="me").authority(SECRET)
    other = load(monkeypatch, JWT_AUDIENCE="them").authority(SECRET)
    signed = authority.issue("ada", now=0, ttl_s=60)
    assert authority.verify(signed, 0).subject == "ada"
    with pytest.raises(Exception, match="audience 'them'"):
        other.verify(signed, 0)


def test_a_key_that_does_not_fit_is_no_authority() -> None:
    """Also when it comes from elsewhere than the environment."""
    with pytest.raises(InvalidInput):
        load_settings().authority("short")


def test_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings can be printed."""
    settings = load(monkeypatch, JWT_KEY=SECRET)
    for shown in (repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json()):
        assert SECRET not in shown


# -- origins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("https://a.example/", ("https://a.example",)),
        (" https://a.example , http://b.example:8000,", ("https://a.example", "http://b.example:8000")),
        ("https://App.Example", ("https://app.example",)),
        ("http://localhost:3000", ("http://localhost:3000",)),
        ("http://[::1]:8000,http://127.0.0.1", ("http://[::1]:8000", "http://127.0.0.1")),
        ("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
    ],
)
def test_origins_are_as_a_browser_writes_them(
    monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]
) -> None:
    """In small letters and without a slash at the end, for they are compared letter by letter."""
    assert load(monkeypatch, ALLOW_ORIGINS=text).allow_origins == origins


@pytest.mark.parametrize(
    "text",
    [
        *("*", "null", "a.example", "//a.example", "ftp://a.example", "https://", "https:///", "https:a.example"),
        *("https://a.example/path", "https://a.example//", "https://a.example?x", "https://a.example#x"),
        *("https://*", "https://*.example", "https://u:p@a.example", "https://a b", "https://a.example:port"),
        *("https://a.example:", "https://b\u00fccher.example", "https://a.example;https://b.example", "\n"),
        "https://a.example,*",
    ],
)
def test_what_is_no_origin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Above all no wildcard, and nothing that would never match."""
    if not text.strip():
        assert load(monkeypatch, ALLOW_ORIGINS=text).allow_origins == ()
        return
    told = line(monkeypatch, ALLOW_ORIGINS=text)
    assert told.startswith("trio_sse: TRIO_SSE_ALLOW_ORIGINS: ")
    assert "is not an origin such as https://app.example" in told


# -- proxies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "proxies"),
    [
        ("10.0.0.1", ("10.0.0.1/32",)),
        (" 10.0.0.0/8 , ::1,", ("10.0.0.0/8", "::1/128")),
        ("unix:,2001:db8::/32", ("unix:", "2001:db8::/32")),
        ("::ffff:10.0.0.1,::ffff:10.0.0.0/104", ("10.0.0.1/32", "10.0.0.0/8")),
        ("0.0.0.0/0", ("0.0.0.0/0",)),
    ],
)
def test_proxies_are_addresses_and_networks(
    monkeypatch: pytest.MonkeyPatch, text: str, proxies: tuple[str, ...]
) -> None:
    """Of either version; IPv4 in IPv6 is IPv4."""
    assert tuple(str(each) for each in load(monkeypatch, TRUSTED_PROXIES=text).trusted_proxies) == proxies


@pytest.mark.parametrize(
    "text",
    ["*", "localhost", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.1:80", "unix:/run/hub.sock", "10.0.0.1;10.0.0.2", "1"],
)
def test_what_is_no_proxy(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The line shows what is one."""
    told = line(monkeypatch, TRUSTED_PROXIES=text)
    assert told.startswith("trio_sse: TRIO_SSE_TRUSTED_PROXIES: ")
    assert "is not an address such as 10.0.0.1" in told


# -- retention -----------------------------------------------------------------------------------------------------


def test_what_topics_keep_is_read_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """By selector; what is left out is left to the general limits, and null is no limit."""
    text = '{"room/*": {"seconds": 604800, "events": null}, "**": {"events": 5, "bytes": 9, "seconds": 0.5}, "a": {}}'
    rules = load(monkeypatch, RETENTION=text).retention
    assert list(rules.items()) == [
        ("room/*", Keep(events=math.inf, seconds=604800)),
        ("**", Keep(events=5, bytes=9, seconds=0.5)),
        ("a", Keep()),
    ]


def test_a_wrong_rule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says which selector, and which of its limits."""
    told = line(monkeypatch, RETENTION='{"room/*": {"events": 1}, "ticker/**": {"seconds": -1}}')
    assert told.startswith("trio_sse: TRIO_SSE_RETENTION: 'ticker/**': seconds: ")


# -- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *(("JWT_ALGORITHM", text) for text in ("none", "HS512", "hs256", "RS256 ")),
        *(("ANONYMOUS", text) for text in ("read", "Publish", "publish;subscribe", "*", "none")),
        *(("QUERY_TOKEN", text) for text in ("maybe", "2", " ")),
        *(("RETENTION_EVENTS", text) for text in ("0", "-1", "1.5", "many", "1e3")),
        *(("RETENTION_SECONDS", text) for text in ("0", "-1", "nan", "a week")),
        *(("RETENTION_BYTES", text) for text in ("0", "256MiB", "-1")),
        *(("RETENTION", text) for text in ("room/*", "[]", "1", '"a"', "null", "{", "{}}", "[" * 100_000)),
        *(("RETENTION", f'{{"a": {rule}}}') for rule in ("1", "null", "[]", '{"event": 1}', '{"events": "1"}')),
        *(("RETENTION", f'{{"a": {{"events": {it}}}}}') for it in ("0", "-1", "1.5", "true", "1e3", "[]")),
        *(("RETENTION", f'{{"a": {{"bytes": {it}}}}}') for it in ("0", "-1", "NaN")),
        *(("RETENTION", f'{{"a": {{"seconds": {it}}}}}') for it in ("0", "-1", "NaN", "Infinity", "1" + "0" * 400)),
        *(("RETENTION", f"{{{selector}: {{}}}}") for selector in ('""', '"/a"', '"**/a"', '"user/*"', '"a", "a"')),
        *(("RETENTION", text) for text in ('{"a": {}, "a": {}}', '{"a": {"events": 1, "events": 2}}')),
        *(("HEARTBEAT_S", text) for text in ("0", "-1", "nan", "inf", "15s", "86401")),
        *(("WRITE_TIMEOUT_S", text) for text in ("0", "-1", "nan", "inf", "1e10")),
        *(("DRAIN_S", text) for text in ("-1", "nan", "inf", "86401")),
        *(("BUFFER_EVENTS", text) for text in ("0", "-1", "1.5")),
    ],
)
def test_a_wrong_value_ends_with_its_variables_name(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    """One line, that names the variable and says what it takes."""
    assert line(monkeypatch, **{variable: text}).startswith(f"trio_sse: TRIO_SSE_{variable}: ")


PEM = pem(ed25519.Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    ("algorithm", "key", "told"),
    [
        ("HS256", "", "it is empty: give a key, or unset it for development mode"),
        ("RS256", "", "it is empty: give a key, or unset it for development mode"),
        ("HS256", "tooshort" * 3, "HS256 needs a secret of at least 32 bytes: openssl rand -base64 48"),
        ("HS256", "\udcff" * 40, "HS256 needs a secret of at least 32 bytes: openssl rand -base64 48"),
        ("HS256", PEM, "HS256 needs a secret of at least 32 bytes: openssl rand -base64 48"),
        ("HS256", PEM.replace("\n", "\\n"), "HS256 needs a secret of at least 32 bytes: openssl rand -base64 48"),
        ("RS256", SECRET, "RS256 needs an RSA public key in PEM, of at least 2048 bits"),
        ("RS256", PEM, "RS256 needs an RSA public key in PEM, of at least 2048 bits"),
        ("ES256", "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----", "ES256 needs a P-256 public key in PEM"),
        ("EdDSA", PEM[:40], "EdDSA needs an Ed25519 public key in PEM"),
    ],
)
def test_a_wrong_key_ends_with_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, key: str, told: str
) -> None:
    """And never with a letter of the key."""
    shown = line(monkeypatch, JWT_ALGORITHM=algorithm, JWT_KEY=key)
    assert shown.startswith("trio_sse: TRIO_SSE_JWT_KEY: ")
    assert shown.endswith(told)
    assert not any(part in shown for part in key.split() if len(part) > 8)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_an_asymmetric_algorithm_needs_a_key(monkeypatch: pytest.MonkeyPatch, algorithm: str) -> None:
    """None could be made for it."""
    told = line(monkeypatch, JWT_ALGORITHM=algorithm)
    assert told == f"trio_sse: TRIO_SSE_JWT_KEY: {algorithm} needs a PEM public key"


@pytest.mark.parametrize(
    "variables",
    [
        {"JWT_KEY": "a-secret-too-short"},
        {"JWT_KEY": "-----BEGIN PUBLIC KEY----- a-secret-of-somebody", "JWT_ALGORITHM": "RS256"},
        {"JWT_KEY": "a-secret-of-somebody" * 4, "HEARTBEAT_S": "soon"},
    ],
)
def test_the_app_ends_with_one_line(variables: dict[str, str]) -> None:
    """On importing it: no traceback, nothing of the secret, and a status that says it went wrong."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    done = subprocess.run(
        [sys.executable, "-c", "import trio_sse.app"],
        env=clean | {PREFIX + name: value for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("trio_sse: TRIO_SSE_")
    assert "a-secret" not in done.stderr
