"""Tokens: every trap on the way from a text to a grant."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sse.auth import (
    CLOCK_SKEW_S,
    EVERYTHING,
    GUEST_PREFIX,
    GUEST_TTL_S,
    KEYS,
    MAX_NAME,
    MAX_SELECTORS,
    MAX_SUBJECT,
    MAX_TTL_S,
    Authority,
    Grant,
)
from trio_sse.errors import InvalidInput, InvalidToken, InvalidTopic, NotAllowed, TrioSSEError
from trio_sse.topic import Selector, parse_selectors

NOW = 1_700_000_000.25
SECRET = "a secret of the tests, of no less than 32 bytes"
SEGMENT = "it is no token of anybody's, only long enough to be found"


# -- keys and tokens -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A key to sign with and one to check with, as an operator would have them."""

    private: str
    public: str


def pair(key: Any) -> Pair:
    return Pair(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    )


@cache
def keys(kind: str) -> Pair:
    """A fresh pair of each kind, made once a run."""
    match kind:
        case "RS256":
            return pair(rsa.generate_private_key(public_exponent=65537, key_size=2048))
        case "RSA of 1024 bits":
            return pair(rsa.generate_private_key(public_exponent=65537, key_size=1024))
        case "ES256":
            return pair(ec.generate_private_key(ec.SECP256R1()))
        case "P-384":
            return pair(ec.generate_private_key(ec.SECP384R1()))
        case "EdDSA":
            return pair(ed25519.Ed25519PrivateKey.generate())
        case "Ed448":
            return pair(ed448.Ed448PrivateKey.generate())
        case "DSA":
            return pair(dsa.generate_private_key(key_size=2048))
        case _:
            return Pair(SECRET, SECRET)


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forge(header: dict[str, Any], payload: bytes, key: bytes = SECRET.encode()) -> str:
    """A token with any header and any payload, signed as HS256 would."""
    signed = base64url(json.dumps(header).encode()) + "." + base64url(payload)
    return signed + "." + base64url(hmac.new(key, signed.encode(), hashlib.sha256).digest())


def token(**claims: Any) -> str:
    """A token with these claims, well signed; it expires in a minute unless they say otherwise."""
    payload = {"exp": NOW + 60, **claims}
    kept = {claim: value for claim, value in payload.items() if value is not ...}
    return forge({"alg": "HS256", "typ": "JWT"}, json.dumps(kept).encode())


def verify(**claims: Any) -> Grant:
    return Authority(SECRET).verify(token(**claims), NOW)


def texts(selectors: tuple[Selector, ...]) -> list[str]:
    return [selector.text for selector in selectors]


# -- what a good token gives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", KEYS)
def test_each_algorithm_signs_and_checks(algorithm: str) -> None:
    """What the private key signs, the public key alone can check."""
    signed = Authority(keys(algorithm).private, algorithm).issue(
        "ada", now=NOW, ttl_s=60, publish=["room/*"], subscribe=["**"], name="Ada"
    )
    assert Authority(keys(algorithm).public, algorithm).verify(signed, NOW) == Grant(
        subject="ada",
        name="Ada",
        publish=parse_selectors(["room/*"]),
        subscribe=parse_selectors(["**", "user/ada"]),
        expires_at=int(NOW) + 60,
    )


@pytest.mark.parametrize("algorithm", KEYS)
def test_who_can_sign_can_check(algorithm: str) -> None:
    """A private key, which a hub with guests needs, also checks what it signed."""
    authority = Authority(keys(algorithm).private, algorithm)
    assert authority.verify(authority.issue("ada", now=NOW, ttl_s=60), NOW).subject == "ada"


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_of_pyjwt_is_a_token(algorithm: str) -> None:
    """Tokens are ordinary JWTs, whoever makes them."""
    made = jwt.encode({"sub": "ada", "exp": int(NOW) + 60}, keys(algorithm).private, algorithm)
    assert Authority(keys(algorithm).public, algorithm).verify(made, NOW).subject == "ada"


def test_a_token_may_say_nothing_but_its_end() -> None:
    """Then its bearer has no name and no rights."""
    assert verify() == Grant(expires_at=int(NOW) + 60)


def test_unknown_claims_say_nothing() -> None:
    """Also where PyJWT would have an opinion."""
    assert verify(jti=5, scope="admin", sse={"delete": ["**"]}).publish == ()


# -- time ------------------------------------------------------------------------------------------------------------


def test_a_token_must_expire() -> None:
    """Without exp it would be valid for ever."""
    with pytest.raises(InvalidToken, match='no "exp"'):
        verify(exp=...)


def test_null_is_no_end() -> None:
    """An exp of null is none."""
    with pytest.raises(InvalidToken, match='no "exp"'):
        verify(exp=None)


@pytest.mark.parametrize(
    "exp",
    [str(int(NOW) + 60), "", [], {}, [NOW + 60], True, False, -1, -1.5, -(10**400), float("nan"), -float("inf")],
    ids=lambda exp: repr(exp)[:12],
)
def test_an_end_is_a_number(exp: Any) -> None:
    """A text that looks like one, a bool, a negative number and NaN are not."""
    with pytest.raises(InvalidToken, match='"exp" is not a number of seconds'):
        verify(exp=exp)


@pytest.mark.parametrize(
    "exp", [int(NOW) + MAX_TTL_S + 2, 2**63, 10**400, 1e308, float("inf")], ids=lambda exp: repr(exp)[:12]
)
def test_an_end_is_not_too_far(exp: float) -> None:
    """What is farther than a year and a day is refused, long before a clock overflows."""
    with pytest.raises(InvalidToken, match="more than 366 days"):
        verify(exp=exp)


def test_the_farthest_end() -> None:
    """It passes."""
    assert verify(exp=NOW + MAX_TTL_S).expires_at == int(NOW) + MAX_TTL_S


@pytest.mark.parametrize("exp", [NOW, int(NOW), NOW - 1, 0, 0.0, -0.0])
def test_a_token_that_expires_now_has_expired(exp: float) -> None:
    """Not at the next second, and with no leeway."""
    with pytest.raises(InvalidToken, match="has expired"):
        verify(exp=exp)


def test_an_end_is_cut_to_whole_seconds() -> None:
    """A fraction ends earlier, never later."""
    grant = verify(exp=NOW + 60.7)
    assert grant.expires_at == int(NOW) + 60
    assert type(grant.expires_at) is int


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_token_may_be_a_little_early(claim: str) -> None:
    """Clocks differ; a minute is allowed."""
    assert verify(**{claim: NOW + CLOCK_SKEW_S}).expires_at is not None


@pytest.mark.parametrize("claim", ["nbf", "iat"])
@pytest.mark.parametrize("value", [NOW + CLOCK_SKEW_S + 1, 10**400, float("inf")], ids=lambda value: repr(value)[:12])
def test_a_token_of_the_future_is_refused(claim: str, value: float) -> None:
    """The message says which claim it is."""
    with pytest.raises(InvalidToken, match=f'not valid yet: its "{claim}"'):
        verify(**{claim: value})


@pytest.mark.parametrize("claim", ["nbf", "iat"])
@pytest.mark.parametrize("value", ["0", True, [], float("nan"), -1])
def test_other_times_are_numbers_too(claim: str, value: Any) -> None:
    """Whatever else they are is refused, not ignored."""
    with pytest.raises(InvalidToken, match=f'"{claim}" is not a number'):
        verify(**{claim: value})


# -- signatures and algorithms ---------------------------------------------------------------------------------------

FORGED = "not one that was signed for this hub"
CLAIMS = json.dumps({"sub": "ada", "exp": int(NOW) + 60}).encode()


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, "HS512", "RS256", "hs256", 1, [], {}])
def test_the_token_does_not_choose_the_algorithm(alg: Any) -> None:
    """Only the one that is set is accepted, also if the signature would be right."""
    forged = forge({"alg": alg}, CLAIMS)
    for text in (forged, forged[: forged.rindex(".") + 1]):
        with pytest.raises(InvalidToken, match=FORGED):
            Authority(SECRET).verify(text, NOW)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("alg", ["HS256", "none"])
def test_a_public_key_is_no_secret(algorithm: str, alg: str) -> None:
    """A token that is signed with the public key as if it were an HMAC secret is forged."""
    public = keys(algorithm).public
    for key in (public, public.strip()):
        with pytest.raises(InvalidToken, match=FORGED):
            Authority(public, algorithm).verify(forge({"alg": alg}, CLAIMS, key.encode()), NOW)


@pytest.mark.parametrize("algorithm", KEYS)
def test_another_key_signs_in_vain(algorithm: str) -> None:
    """A token is for the hub whose key signed it."""
    match algorithm:
        case "RS256":
            other = pair(rsa.generate_private_key(public_exponent=65537, key_size=2048)).private
        case "ES256":
            other = pair(ec.generate_private_key(ec.SECP256R1())).private
        case "EdDSA":
            other = pair(ed25519.Ed25519PrivateKey.generate()).private
        case _:
            other = SECRET[::-1]
    signed = Authority(other, algorithm).issue("ada", now=NOW, ttl_s=60)
    with pytest.raises(InvalidToken, match=FORGED):
        Authority(keys(algorithm).public, algorithm).verify(signed, NOW)


@pytest.mark.parametrize("header", [{"crit": ["x"]}, {"kid": 1}, {"b64": False, "crit": ["b64"]}, {"crit": []}])
def test_a_header_that_must_be_understood_is_refused(header: dict[str, Any]) -> None:
    """Extensions we do not know, and ones that would move the payload, end the token."""
    with pytest.raises(InvalidToken, match=FORGED):
        Authority(SECRET).verify(forge({"alg": "HS256", **header}, CLAIMS), NOW)


GOOD = token(sub="ada")


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", "..", "...", "a.b.c", "é.é.é", "\udcff.\ud800.\0", "=.=.=", "😀", "Bearer " + GOOD),
        *(GOOD + "x", GOOD + ".", GOOD[:-2], GOOD.upper(), GOOD.replace(".", "..", 1), GOOD + "\n" + GOOD),
        *(GOOD.rsplit(".", 1)[0], GOOD.rsplit(".", 1)[0] + ".", GOOD[1:], "\n".join(GOOD)),
        *("a" * 1_000_000, "." * 100_000, (SEGMENT * 10_000) + ".e30." + SEGMENT),
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_garbage_is_no_token(text: str) -> None:
    """Empty, huge, cut, doubled and in any script: refused in one way, and never an error of another kind."""
    with pytest.raises(InvalidToken, match=FORGED):
        Authority(SECRET).verify(text, NOW)


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000),
        *(b'{"exp": ' + b"9" * 5_000 + b"}", b'{"exp": 1e}', b"[" * 200_000 + b"]" * 200_000),
    ],
    ids=lambda payload: ascii(payload[:12].decode("latin-1")),
)
def test_a_signed_payload_may_be_garbage_too(payload: bytes) -> None:
    """Who has the key may still be wrong: nesting without end and numbers without end do no harm."""
    with pytest.raises(InvalidToken, match=FORGED):
        Authority(SECRET).verify(forge({"alg": "HS256"}, payload), NOW)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
claim_names = st.sampled_from(["sub", "name", "exp", "iat", "nbf", "aud", "iss", "jti", "sse"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(claim_names, json_values | st.just(NOW + 60), max_size=6), json_values)
def test_any_claims_are_a_grant_or_refused(claims: dict[str, Any], right: Any) -> None:
    """Whatever the claims are, there is a grant or one kind of error."""
    for sse in (claims.get("sse", {}), {"publish": right}, {"subscribe": right}):
        try:
            grant = verify(**{**claims, "sse": sse})
        except InvalidToken:
            continue
        assert grant.expires_at is not None


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.text("eyJ.e30-_=A", max_size=40))
def test_any_text_is_refused(text: str) -> None:
    """No text that was not signed is a token, and none fails in another way."""
    with pytest.raises(InvalidToken):
        Authority(SECRET).verify(text, NOW)


@pytest.mark.parametrize(
    "claims",
    [
        *({"sub": SEGMENT * 5}, {"name": SEGMENT * 5}, {"exp": SEGMENT}, {"iat": SEGMENT}, {"exp": 1}, {"exp": ...}),
        *({"sse": SEGMENT}, {"sse": {"publish": SEGMENT}}, {"aud": SEGMENT}, {"iss": SEGMENT}),
    ],
)
def test_no_message_holds_the_token(claims: dict[str, Any]) -> None:
    """Neither a part of it nor what it says of its bearer can reach a log by way of an error."""
    text = token(**claims)
    authority = Authority(SECRET, audience="us" if "aud" in claims else None, issuer="us" if "iss" in claims else None)
    for wrong in (text, text[:-4], "x" + text):
        with pytest.raises(InvalidToken) as caught:
            authority.verify(wrong, NOW)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        for part in (*wrong.split("."), SEGMENT, SECRET):
            assert part not in str(caught.value)


def test_pyjwt_has_nothing_to_warn_of() -> None:
    """It warns, where it should refuse; what it warns of was refused before."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        verify(sub="ada")
    assert caught == []


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "short", "x" * 31, "é" * 15 + "x"])
def test_a_short_secret_is_refused(key: str) -> None:
    """HS256 needs 32 bytes; PyJWT by itself only warns. The message says how to make one."""
    with pytest.raises(InvalidInput, match="at least 32 bytes: openssl rand"):
        Authority(key)


@pytest.mark.parametrize("key", ["x" * 32, "é" * 16])
def test_a_secret_of_32_bytes_is_enough(key: str) -> None:
    """Bytes, not characters."""
    assert Authority(key).symmetric


@pytest.mark.parametrize("kind", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("line_end", ["\n", "\\n", " ", ""], ids=["PEM", "escaped", "spaces", "joined"])
def test_a_pem_is_no_secret(kind: str, line_end: str) -> None:
    """Whole, or mangled by an environment: everybody knows a public key, so anybody could sign with it."""
    for key in (keys(kind).public, keys(kind).private):
        with pytest.raises(InvalidInput, match="HS256 needs a secret"):
            Authority(key.replace("\n", line_end))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize(
    "key",
    [
        *("", "x", SECRET, "\0", "é", "\udcff", "-----BEGIN PUBLIC KEY-----", "ssh-rsa AAAA", "ssh-ed25519 x"),
        *("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", '{"kty": "RSA"}'),
        *("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "-----BEGIN PRIVATE KEY-----"),
    ],
)
def test_garbage_is_no_key(algorithm: str, key: str) -> None:
    """The message says what the algorithm needs, and not what it was given."""
    with pytest.raises(InvalidInput) as caught:
        Authority(key, algorithm)
    assert str(caught.value) == f"the key does not fit: {algorithm} needs {KEYS[algorithm]}"


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        *(("RS256", kind) for kind in ("ES256", "EdDSA", "DSA", "RSA of 1024 bits")),
        *(("ES256", kind) for kind in ("RS256", "EdDSA", "DSA", "P-384")),
        *(("EdDSA", kind) for kind in ("RS256", "ES256", "DSA")),
    ],
)
def test_a_key_of_another_kind_is_refused(algorithm: str, kind: str) -> None:
    """At once, and not with the first token: another algorithm's, a curve it is not made for, one too short."""
    for key in (keys(kind).public, keys(kind).private):
        with pytest.raises(InvalidInput, match="the key does not fit"):
            Authority(key, algorithm)


# Keys on secp112r1, a curve that the cryptography library does not know.
UNKNOWN_PRIVATE = """\
-----BEGIN PRIVATE KEY-----
ME4CAQAwEAYHKoZIzj0CAQYFK4EEAAYENzA1AgEBBA4IwyPDXkHN+uVSFR4hSqEg
Ax4ABI0ztkguasxiIN4nhUMHpWPg3UjWDAzO21CUVgc=
-----END PRIVATE KEY-----
"""
UNKNOWN_PUBLIC = """\
-----BEGIN PUBLIC KEY-----
MDIwEAYHKoZIzj0CAQYFK4EEAAYDHgAEjTO2SC5qzGIg3ieFQwelY+DdSNYMDM7b
UJRWBw==
-----END PUBLIC KEY-----
"""


@pytest.mark.parametrize("key", [UNKNOWN_PRIVATE, UNKNOWN_PUBLIC], ids=["private", "public"])
@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_key_that_nobody_knows_is_refused(algorithm: str, key: str) -> None:
    """A curve that the cryptography library lacks is one more key that does not fit."""
    with pytest.raises(InvalidInput, match="the key does not fit"):
        Authority(key, algorithm)


def test_a_key_with_a_passphrase_is_refused() -> None:
    """There is nobody to ask."""
    key = ec.generate_private_key(ec.SECP256R1())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")).decode()
    with pytest.raises(InvalidInput, match="the key does not fit"):
        Authority(locked, "ES256")


@pytest.mark.parametrize("algorithm", ["none", "None", "", "HS384", "HS512", "PS256", "ES512", "hs256"])
@pytest.mark.parametrize("key", ["", SECRET])
def test_there_are_four_algorithms(algorithm: str, key: str) -> None:
    """None is none of them."""
    with pytest.raises(InvalidInput, match="use one of HS256, RS256, ES256, EdDSA"):
        Authority(key, algorithm)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_public_key_does_not_sign(algorithm: str) -> None:
    """The message says which key would."""
    with pytest.raises(InvalidInput, match="give the private key"):
        Authority(keys(algorithm).public, algorithm).issue("ada", now=NOW, ttl_s=60)


def test_the_key_is_not_shown() -> None:
    """An authority that is printed does not tell its secret."""
    assert SECRET not in repr(Authority(SECRET))


# -- parties ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aud", ["us", ["us"], ["them", "us"], ["them", 1, None, "us"]])
def test_a_token_for_us(aud: Any) -> None:
    """The audience that is set may be the only one or one of many."""
    assert Authority(SECRET, audience="us").verify(token(sub="ada", aud=aud), NOW).subject == "ada"


@pytest.mark.parametrize("aud", [..., None, "", "them", "us ", "US", [], ["them"], [["us"]], {"us": 1}, 1, True])
def test_a_token_for_others(aud: Any) -> None:
    """For nobody is for others too."""
    with pytest.raises(InvalidToken, match="not for the audience 'us'"):
        Authority(SECRET, audience="us").verify(token(aud=aud), NOW)


@pytest.mark.parametrize("iss", [..., None, "", "them", "us/", ["us"], {"us": 1}, 1])
def test_a_token_from_others(iss: Any) -> None:
    """The issuer that is set is the only one."""
    with pytest.raises(InvalidToken, match="not issued by 'us'"):
        Authority(SECRET, issuer="us").verify(token(iss=iss), NOW)


@pytest.mark.parametrize("claim", ["aud", "iss"])
@pytest.mark.parametrize("value", ["anyone", ["a", "b"], 1, None])
def test_parties_that_are_not_set_are_not_checked(claim: str, value: Any) -> None:
    """Then a token may name any."""
    assert verify(**{claim: value}).expires_at is not None


def test_what_we_issue_is_for_us() -> None:
    """An authority's tokens name the parties it checks."""
    authority = Authority(SECRET, audience="us", issuer="me")
    signed = authority.issue("ada", now=NOW, ttl_s=60)
    assert authority.verify(signed, NOW).subject == "ada"
    assert jwt.decode(signed, options={"verify_signature": False})["aud"] == "us"


# -- subjects and names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["sub", "name"])
@pytest.mark.parametrize(
    "value",
    [
        *(1, 1.5, True, False, [], {}, ["ada"], "", " ", "   ", "a\nb", "a\0", "\x1b[2J", "\u202e", "a\u200db"),
        *("\u2028", "\x85", "\ud800", "\u00a0", "x" * 1_000),
    ],
)
def test_a_subject_and_a_name_can_be_shown(claim: str, value: Any) -> None:
    """They are short texts of printable characters; the message says how long."""
    most = MAX_SUBJECT if claim == "sub" else MAX_NAME
    with pytest.raises(InvalidToken, match=f'the "{claim}" is not 1 to {most} printable characters'):
        verify(**{claim: value})


@pytest.mark.parametrize(("claim", "most"), [("sub", MAX_SUBJECT), ("name", MAX_NAME)])
def test_the_longest_subject_and_name(claim: str, most: int) -> None:
    """The limit passes, one more does not."""
    verify(**{claim: "é" * most})
    with pytest.raises(InvalidToken, match=claim):
        verify(**{claim: "é" * (most + 1)})


@pytest.mark.parametrize("claim", ["sub", "name"])
def test_a_subject_and_a_name_are_normal(claim: str) -> None:
    """Two that look the same are the same."""
    with pytest.raises(InvalidToken, match=f'"{claim}" is not in Unicode normal form C'):
        verify(**{claim: "e\u0301"})


def test_null_is_nobody() -> None:
    """A sub of null is none."""
    assert verify(sub=None).subject is None


@pytest.mark.parametrize("subject", ["ada", "auth0|5", "ada@example.org", "日本", "a b", "org/ada"])
def test_everybody_may_read_their_own_inbox(subject: str) -> None:
    """Without being given it, and no one else's."""
    grant = verify(sub=subject)
    assert texts(grant.subscribe) == [f"user/{subject}"]
    assert grant.publish == ()


@pytest.mark.parametrize(
    "subject", ["*", "**", "a/*", "a/**", "/", "a/", "//", "..", "a/../b", ".", "https://a.example/5", "é" * 128]
)
def test_a_subject_that_names_no_topic_has_no_inbox(subject: str) -> None:
    """Above all none that is a wildcard, or that reaches into another's."""
    grant = verify(sub=subject)
    assert (grant.subject, grant.publish, grant.subscribe) == (subject, (), ())


# -- rights ----------------------------------------------------------------------------------------------------------


def test_rights_are_selectors() -> None:
    """Each list becomes what its selectors choose."""
    grant = verify(sse={"publish": ["room/*", "user/bob"], "subscribe": ["**"]})
    assert (texts(grant.publish), texts(grant.subscribe)) == (["room/*", "user/bob"], ["**"])


@pytest.mark.parametrize("sse", [None, 1, True, "**", [], ["**"], [["publish", ["**"]]]])
def test_rights_are_an_object(sse: Any) -> None:
    """Anything else is refused, not taken for none."""
    with pytest.raises(InvalidToken, match='"sse" is not an object'):
        verify(sse=sse)


@pytest.mark.parametrize("right", ["publish", "subscribe"])
@pytest.mark.parametrize("value", [None, 1, True, "**", {}, {"**": 1}, [1], ["a", None], [["a"]], [True]])
def test_a_right_is_a_list_of_texts(right: str, value: Any) -> None:
    """The message says which is not."""
    with pytest.raises(InvalidToken, match=f'"sse.{right}" is not a list of selectors'):
        verify(sse={right: value})


@pytest.mark.parametrize("right", ["publish", "subscribe"])
@pytest.mark.parametrize("value", ["", "**/a", "user/*", "a//b", "a\n", "\ud800", "x" * 257])
def test_a_right_holds_valid_selectors(right: str, value: str) -> None:
    """The message says which right and what rule is broken."""
    with pytest.raises(InvalidToken, match=f'"sse.{right}" cannot be used: '):
        verify(sse={right: ["a", value]})


@pytest.mark.parametrize("right", ["publish", "subscribe"])
def test_a_right_has_a_most(right: str) -> None:
    """A hundred selectors pass, one more does not."""
    verify(sse={right: [f"room/{number}" for number in range(MAX_SELECTORS)]})
    with pytest.raises(InvalidToken, match=f'"sse.{right}" holds more than 100 selectors'):
        verify(sse={right: ["a"] * (MAX_SELECTORS + 1)})


def test_who_may_publish_there_may() -> None:
    """A right is to the topics its selectors choose."""
    verify(sse={"publish": ["room/*"]}).check_publish("room/a")


@pytest.mark.parametrize("topic", ["room", "room/a/b", "lobby", "user/ada"])
def test_who_may_not_is_refused(topic: str) -> None:
    """A known caller gets 403, and the topic is named."""
    with pytest.raises(NotAllowed, match=f"does not allow you to publish to '{topic}'") as caught:
        verify(sub="ada", sse={"publish": ["room/*"], "subscribe": ["**"]}).check_publish(topic)
    assert caught.value.status_hint == 403


def test_wildcards_do_not_publish_to_inboxes() -> None:
    """Only a token that names it does."""
    with pytest.raises(NotAllowed):
        verify(sse={"publish": ["**", "*/*"]}).check_publish("user/bob")
    verify(sse={"publish": ["user/bob"]}).check_publish("user/bob")


def test_what_is_asked_for_is_cut_down_to_what_is_allowed() -> None:
    """A wildcard that is allowed in part is narrowed, in silence."""
    grant = verify(sub="ada", sse={"subscribe": ["room/*", "news"]})
    assert texts(grant.readable(parse_selectors(["**", "user/ada"]))) == ["room/*", "news", "user/ada"]


def test_what_is_wholly_disallowed_is_refused() -> None:
    """Also beside something that is allowed: nothing asked for is dropped in silence."""
    with pytest.raises(NotAllowed, match="subscribe to 'other/\\*'"):
        verify(sub="ada", sse={"subscribe": ["room/*"]}).readable(parse_selectors(["room/a", "other/*"]))


def test_what_another_selector_contains_is_left_out() -> None:
    """Of what is asked for and of what is allowed: the topics are the same, and the selectors fewer."""
    grant = verify(sub="ada", sse={"subscribe": ["room/*", "room/1", "news"]})
    assert texts(grant.readable(parse_selectors(["**", "room/2", "*"]))) == ["room/*", "news"]


def test_a_hundred_rights_and_two_wildcards_make_as_many_selectors_as_they_do() -> None:
    """What comes of it is not what was asked for, and is not counted."""
    grant = verify(sse={"subscribe": [f"room/{number}/**" for number in range(100)]})
    assert len(grant.readable(parse_selectors(["*/*/a", "*/*/b"]))) == 200


@pytest.mark.parametrize("right", ["publish", "subscribe"])
def test_a_selector_that_is_too_wild_costs_itself_alone(right: str) -> None:
    """A token that was signed before there was a bound keeps its other rights, and the grant tells the log."""
    grant = verify(sub="ada", sse={right: ["*/*/*/*", "room/*"]})
    assert texts(getattr(grant, right)) == (["room/*"] if right == "publish" else ["room/*", "user/ada"])
    assert grant.unusable == (
        f"sse.{right}: '*/*/*/*': the selector has 4 times *; 3 are allowed, and ** as the last segment",
    )


def test_no_token_is_signed_with_a_selector_that_is_too_wild() -> None:
    """It would count for nothing."""
    with pytest.raises(InvalidTopic, match="4 times"):
        Authority(SECRET).issue("ada", now=NOW, ttl_s=60, subscribe=["*/*/*/*"])


def test_asking_for_nothing_gives_nothing() -> None:
    """No selector, no topic."""
    assert verify(sse={"subscribe": ["**"]}).readable([]) == ()


def test_a_token_without_a_subject_is_still_known() -> None:
    """Its bearer gets 403, for another token would be needed and not just any."""
    with pytest.raises(NotAllowed):
        verify().readable(EVERYTHING)


# -- tokens that are remembered ------------------------------------------------------------------------------------


def no_more_signatures(authority: Authority, patch: pytest.MonkeyPatch) -> None:
    """From now on, a signature that is looked at is a failure."""

    def decode(*_: object, **__: object) -> None:
        raise AssertionError("a signature was looked at")

    patch.setattr(authority._jwt, "decode", decode)


def test_a_token_that_held_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its signature is looked at once, and the grant is the same each time."""
    authority, text = Authority(SECRET), token(sub="ada", sse={"publish": ["a"]})
    grant = authority.verify(text, NOW)
    no_more_signatures(authority, monkeypatch)
    assert authority.verify(text, NOW + 1) == grant


def test_a_remembered_token_expires() -> None:
    """To the second, as if it were new."""
    authority, text = Authority(SECRET), token(exp=int(NOW) + 10)
    authority.verify(text, NOW)
    authority.verify(text, int(NOW) + 9.9)
    with pytest.raises(InvalidToken, match="has expired"):
        authority.verify(text, int(NOW) + 10)


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_remembered_token_is_not_for_earlier(claim: str) -> None:
    """A clock that went back meets the same refusal as with a new one."""
    authority, text = Authority(SECRET), token(**{claim: int(NOW)})
    authority.verify(text, NOW)
    with pytest.raises(InvalidToken, match="not valid yet"):
        authority.verify(text, NOW - CLOCK_SKEW_S - 1)


def test_a_remembered_token_has_no_likes() -> None:
    """One character more, less or other, and it is another token."""
    authority, text = Authority(SECRET), token()
    authority.verify(text, NOW)
    other = "A" if text[-5] != "A" else "B"
    for unlike in (text + "A", text[:-1], text[:-5] + other + text[-4:], text + "\udcff", ""):
        with pytest.raises(InvalidToken):
            authority.verify(unlike, NOW)


def test_what_does_not_hold_is_not_remembered() -> None:
    """A token may be refused now and hold later."""
    authority, text = Authority(SECRET), token(nbf=int(NOW) + 2 * CLOCK_SKEW_S, exp=int(NOW) + 3600, sub="ada")
    with pytest.raises(InvalidToken, match="not valid yet"):
        authority.verify(text, NOW)
    assert authority.verify(text, NOW + 2 * CLOCK_SKEW_S).subject == "ada"


def test_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has been for longest goes, and is checked anew when it comes back."""
    monkeypatch.setattr("trio_sse.auth.MAX_REMEMBERED", 3)
    authority, texts = Authority(SECRET), [token(sub=str(number)) for number in range(4)]
    for text in texts:
        authority.verify(text, NOW)
    no_more_signatures(authority, monkeypatch)
    assert [authority.verify(text, NOW).subject for text in texts[1:]] == ["1", "2", "3"]
    with pytest.raises(AssertionError, match="was looked at"):
        authority.verify(texts[0], NOW)


def test_no_token_is_kept() -> None:
    """What is remembered holds none of its text."""
    authority, text = Authority(SECRET), token(sub="ada")
    authority.verify(text, NOW)
    kept = repr(authority._remembered)
    assert "ada" in kept
    assert not any(part in kept for part in text.split("."))


# -- without a token, and guests ---------------------------------------------------------------------------------------


def test_without_a_token_there_are_no_rights() -> None:
    """Unless the operator gives some."""
    assert Authority(SECRET).anonymous() == Grant()


@pytest.mark.parametrize("topic", ["lobby", "room/a", "user/ada"])
def test_without_rights_an_unknown_caller_is_asked_for_a_token(topic: str) -> None:
    """That is 401, with the way to send one."""
    nobody = Authority(SECRET).anonymous()
    with pytest.raises(InvalidToken, match=f"without a token you may not publish to '{topic}'.*Bearer"):
        nobody.check_publish(topic)
    with pytest.raises(InvalidToken, match="without a token you may not subscribe to") as caught:
        nobody.readable(parse_selectors([topic]))
    assert caught.value.status_hint == 401


@pytest.mark.parametrize(
    ("rights", "publish", "subscribe"),
    [(["publish"], ["**"], []), (["subscribe"], [], ["**"]), (["publish", "subscribe"], ["**"], ["**"])],
)
def test_anonymous_rights_are_each_its_own(rights: list[str], publish: list[str], subscribe: list[str]) -> None:
    """To publish, to subscribe, or both; on public topics only."""
    grant = Authority(SECRET, anonymous=rights).anonymous()
    assert (texts(grant.publish), texts(grant.subscribe), grant.expires_at) == (publish, subscribe, None)


def test_anonymous_rights_reach_no_inbox() -> None:
    """Private topics are nobody's but whom a token names."""
    grant = Authority(SECRET, anonymous=["publish", "subscribe"]).anonymous()
    with pytest.raises(InvalidToken):
        grant.check_publish("user/ada")
    with pytest.raises(InvalidToken):
        grant.readable(parse_selectors(["user/ada"]))


def test_a_token_takes_no_right_away() -> None:
    """What anybody may do, its bearer may do too."""
    grant = Authority(SECRET, anonymous=["publish", "subscribe"]).verify(token(sub="ada"), NOW)
    assert (texts(grant.publish), texts(grant.subscribe)) == (["**"], ["**", "user/ada"])


def test_a_guest_has_a_name_and_a_random_subject() -> None:
    """The name is shown as it is, and is nobody's; the subject is new each time."""
    authority = Authority(SECRET, anonymous=["subscribe"])
    (one, grant), (_, other) = (authority.issue_guest("Ada", now=NOW) for _ in range(2))
    assert grant.subject is not None
    assert grant.subject.startswith(GUEST_PREFIX)
    assert grant.subject != other.subject
    assert (grant.name, grant.expires_at) == ("Ada", int(NOW) + GUEST_TTL_S)
    assert texts(grant.subscribe) == ["**", f"user/{grant.subject}"]
    assert authority.verify(one, NOW) == grant


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\nb", "\u202e", "\ud800", "e\u0301"])
def test_a_guests_name_can_be_shown(name: str) -> None:
    """A wrong one is the guest's input, not a wrong token: 400."""
    with pytest.raises(InvalidInput, match='the "name" is not'):
        Authority(SECRET).issue_guest(name, now=NOW)


# -- issuing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        *({"subject": ""}, {"subject": "x" * 129}, {"name": "\n"}, {"ttl_s": 0}, {"ttl_s": -1}),
        *({"ttl_s": MAX_TTL_S + 2}, {"publish": [f"a/{n}" for n in range(101)]}, {"subscribe": ["a//"]}),
    ],
)
def test_what_would_be_refused_is_not_issued(wrong: dict[str, Any]) -> None:
    """Who issues a token learns at once what its bearer would."""
    with pytest.raises(InvalidInput):
        Authority(SECRET).issue(**{"subject": "ada", "now": NOW, "ttl_s": 60, **wrong})


@settings(max_examples=100, deadline=None)
@given(
    st.none() | st.text(max_size=12),
    st.none() | st.text(max_size=12),
    st.lists(st.sampled_from(["a", "a/*", "**", "user/ada", "", "*/b"]), max_size=3),
    st.integers(-5, MAX_TTL_S + 5),
)
def test_what_is_issued_holds(subject: str | None, name: str | None, selectors: list[str], ttl_s: int) -> None:
    """A token that is signed here is accepted here, and says what was asked for."""
    authority = Authority(SECRET)
    try:
        signed = authority.issue(subject, now=NOW, ttl_s=ttl_s, publish=selectors, name=name)
    except (InvalidInput, InvalidTopic):
        return
    grant = authority.verify(signed, NOW)
    assert (grant.subject, grant.name, grant.expires_at) == (subject, name, int(NOW) + ttl_s)
    assert texts(grant.publish) == list(dict.fromkeys(selectors))


def test_all_errors_are_of_our_tree() -> None:
    """So that one handler answers them."""
    for kind in (InvalidToken, InvalidInput, NotAllowed):
        assert issubclass(kind, TrioSSEError)


# -- accounts ----------------------------------------------------------------------------------------------------------


def test_a_subject_has_an_account() -> None:
    """What a token's bearer publishes is charged to its subject."""
    authority = Authority(SECRET)
    assert authority.verify(authority.issue("ada", now=NOW, ttl_s=60), NOW).publisher == "ada"


def test_guests_and_strangers_share_one_account() -> None:
    """Anybody can be many guests, so all of them are one publisher, and that of callers without a token."""
    authority = Authority(SECRET, anonymous=["publish"])
    guests = [authority.issue_guest(name, now=NOW)[1] for name in ("Ada", "Bob")]
    assert {guest.publisher for guest in guests} == {authority.anonymous().publisher} == {""}


def test_a_token_without_a_subject_is_an_account_of_its_own() -> None:
    """Two of them are two publishers, the same each time they come, and neither name holds the token."""
    authority = Authority(SECRET)
    tokens = [authority.issue(None, now=NOW, ttl_s=ttl_s) for ttl_s in (60, 61)]
    names = [[authority.verify(token, NOW).publisher for _ in range(2)] for token in tokens]
    assert names[0][0] == names[0][1] != names[1][0] == names[1][1]
    assert not any(token in names[place][0] for place, token in enumerate(tokens))
