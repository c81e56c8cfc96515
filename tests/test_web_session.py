"""Who is asking, over the real server: tokens wherever they come, guests, sessions, and CORS."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import jwt
import pytest

from trio_sse.auth import GUEST_TTL_S, Authority
from trio_sse.web.cookie import MAX_BYTES, MOST, OUTLIVES_S

from .conftest import KEY, STALL_S, WITHIN_S, Answer, Listener, Wire, ask, bearer, eventually, publish, sign
from .serving import SecureServer, Server, running, serving

ARGS = ("--access-logfile", "-", "--access-logformat", "%(R)s %(Uq)s %(q)s %(s)s %(f)s")
ENV = {"TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_QUERY_TOKEN": "1"}
PAGE = "https://app.example"
OPEN = {
    "TRIO_SSE_JOURNAL": "memory:",
    "TRIO_SSE_JWT_KEY": KEY,
    "TRIO_SSE_ANONYMOUS": "publish,subscribe",
    "TRIO_SSE_ALLOW_ORIGINS": f"{PAGE}, http://localhost:5173",
}
COOKIE = "trio_sse_session"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A hub that lets anybody read and write public topics, takes no token from a query, and knows two pages."""
    with serving(folder=tmp_path_factory.mktemp("open"), env=OPEN, args=ARGS) as server:
        yield server
        assert server.terminate() == 0
        assert "Traceback" not in server.log()


def claims(**other: Any) -> dict[str, Any]:
    """The claims of a token that may do everything, with some that are other."""
    now = int(time.time())
    return {"sub": "ada", "iat": now, "exp": now + 60, "sse": {"publish": ["**"], "subscribe": ["**"]}, **other}


def unsigned() -> str:
    """A token whose own header says that it need not be signed."""
    parts = ({"alg": "none", "typ": "JWT"}, claims())
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


BAD = {
    "no token": "garbage",
    "empty": "",
    "expired": jwt.encode(claims(exp=int(time.time()) - 1), KEY),
    "without end": jwt.encode({"sub": "ada", "sse": {"publish": ["**"]}}, KEY),
    "another key": jwt.encode(claims(), KEY + "!"),
    "another algorithm": jwt.encode(claims(), KEY * 2, "HS512"),
    "unsigned": unsigned(),
    "latin": "\xe9\xe8.x.y",
}


def carried(carrier: str, token: str, target: str) -> tuple[str, dict[str, str]]:
    """A target and headers that carry a token."""
    if carrier == "header":
        return target, bearer(token)
    if carrier == "cookie":
        return target, {"Cookie": f"other=1; {COOKIE}={token}"}
    return f"{target}{'&' if '?' in target else '?'}token={token}", {}


def post(server: Server, target: str, headers: dict[str, str] | None = None) -> int:
    """The status of a POST."""
    return ask(server, "POST", target, b"x", headers).status


# -- a token, wherever it comes ---------------------------------------------------------------------------------------

CARRIERS = ["header", "cookie", "query"]


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_token_holds_on_every_carrier(server: Server, topic: str, carrier: str) -> None:
    """In the header, the cookie and (switched on) the query, a token lets its bearer publish and read."""
    token = sign(publish=[topic], subscribe=[topic])
    target, headers = carried(carrier, token, f"/topics/{topic}")
    assert post(server, target, headers) == 201
    target, headers = carried(carrier, token, f"/events?topic={topic}")
    with Listener(server, target, headers) as listener:
        assert listener.response.status == 200


@pytest.mark.parametrize(
    ("carrier", "name"),
    [(carrier, name) for carrier in CARRIERS for name in BAD if BAD[name].isascii() or carrier != "query"],
)
def test_a_bad_token_is_refused_on_every_carrier(server: Server, topic: str, carrier: str, name: str) -> None:
    """A token that does not hold is 401 and a challenge, where none would be 401 too."""
    for method, place in (("POST", f"/topics/{topic}"), ("GET", f"/events?topic={topic}"), ("GET", f"/topics/{topic}")):
        target, headers = carried(carrier, BAD[name], place)
        answer = ask(server, method, target, b"x" if method == "POST" else None, headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "token" in answer.json["detail"]
    assert last_event_id_as(server, topic) is None


def last_event_id_as(server: Server, topic: str) -> str | None:
    """The newest ID of a topic, asked for with every right."""
    last: str | None = ask(server, "GET", f"/topics/{topic}", headers=bearer(sign(subscribe=[topic]))).json[
        "last_event_id"
    ]
    return last


def test_a_bad_token_is_refused_where_none_is_needed(open_server: Server, topic: str) -> None:
    """What anybody may do, somebody with a bad token may not: the mistake is not hidden."""
    assert post(open_server, f"/topics/{topic}") == 201
    for name, token in BAD.items():
        assert post(open_server, f"/topics/{topic}", bearer(token)) == 401, name


def test_a_cookie_of_another_hub_is_none(open_server: Server, topic: str) -> None:
    """What was not signed for this hub locks nobody out of what anybody may do; what was, and holds no longer, does."""
    for name, token in BAD.items():
        status = 401 if name in ("expired", "without end") else 201
        assert post(open_server, f"/topics/{topic}", {"Cookie": f"{COOKIE}={token}"}) == status, name


def test_an_expired_session_is_told_so(open_server: Server, topic: str) -> None:
    """Its owner is not taken for nobody."""
    answer = ask(open_server, "POST", f"/topics/{topic}", b"x", {"Cookie": f"{COOKIE}={BAD['expired']}"})
    assert (answer.status, answer.json["detail"]) == (401, "the token has expired: get a new one")


def test_of_several_cookies_the_first_that_is_ours_counts(server: Server, topic: str) -> None:
    """Whatever stands around it."""
    mine, other, foreign = sign(publish=[topic]), sign(publish=["else"]), BAD["another key"]
    for tokens, status in (
        ([mine], 201),
        ([foreign, mine], 201),
        (["", foreign, "a=b", mine, other], 201),
        ([mine, foreign], 201),
        ([other, mine], 403),
        ([BAD["expired"], mine], 401),
        ([foreign, other, mine], 403),
        ([foreign] * MOST + [mine], 401),
        ([foreign] * (MOST - 1) + [mine], 201),
    ):
        cookies = "; ".join(f"{COOKIE}={token}" for token in tokens)
        assert post(server, f"/topics/{topic}", {"Cookie": f"a={mine}; {cookies};"}) == status, tokens
        assert post(server, f"/topics/{topic}", {"Cookie": cookies.replace(COOKIE, f"x{COOKIE}")}) == 401


@pytest.mark.parametrize(("first", "second"), [("header", "cookie"), ("header", "query")], ids=lambda name: name)
def test_the_first_carrier_decides(server: Server, topic: str, first: str, second: str) -> None:
    """A token in the header is the one that counts, good or bad."""
    good = sign(publish=[topic])
    for one, other, status in ((good, "garbage", 201), ("garbage", good, 401)):
        target, headers = carried(first, one, f"/topics/{topic}")
        target, more = carried(second, other, target)
        assert post(server, target, headers | more) == status


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
def test_the_schemes_name_has_no_case(server: Server, topic: str, scheme: str) -> None:
    """``bearer`` is ``Bearer`` (RFC 9110 § 11.1)."""
    assert post(server, f"/topics/{topic}", {"Authorization": f"{scheme} {sign(publish=[topic])}"}) == 201


@pytest.mark.parametrize("value", ["Basic YTpi", "Digest x", "Bearerx y", "token"])
def test_authorization_of_another_kind_is_not_ours(server: Server, open_server: Server, topic: str, value: str) -> None:
    """A proxy's own credentials neither give nor take a right: the cookie counts, or anonymity."""
    other = {"Authorization": value}
    assert post(open_server, f"/topics/{topic}", other) == 201
    assert post(server, f"/topics/{topic}", other) == 401
    assert post(server, f"/topics/{topic}", {**other, "Cookie": f"{COOKIE}={sign(publish=[topic])}"}) == 201


def test_a_token_in_the_query_counts_only_where_it_is_switched_on(open_server: Server) -> None:
    """Elsewhere ``token`` is a parameter like any other that nobody reads."""
    assert post(open_server, f"/topics/user/bob?token={sign(publish=['user/bob'])}") == 401
    assert post(open_server, "/topics/room?token=garbage") == 201


# -- what it lets one do ----------------------------------------------------------------------------------------------


def test_without_a_right_nobody_may(server: Server, topic: str) -> None:
    """No token and no right for the anonymous: 401; a token without the right: 403. Nothing is published."""
    for method, target in (
        ("POST", f"/topics/{topic}"),
        ("GET", f"/topics/{topic}"),
        ("GET", f"/events?topic={topic}"),
    ):
        body = b"x" if method == "POST" else None
        assert ask(server, method, target, body).status == 401
        answer = ask(server, method, target, body, bearer(sign(publish=["else"], subscribe=["else"])))
        assert answer.status == 403
        assert topic in answer.json["detail"]
    assert last_event_id_as(server, topic) is None


def test_reading_is_not_writing(server: Server, topic: str) -> None:
    """A right to subscribe is none to publish, and the other way round."""
    assert post(server, f"/topics/{topic}", bearer(sign(subscribe=[topic]))) == 403
    assert ask(server, "GET", f"/events?topic={topic}", headers=bearer(sign(publish=[topic]))).status == 403


def test_all_that_is_asked_for_must_be_allowed(server: Server, topic: str) -> None:
    """Of two topics one of which is not allowed, none is given."""
    reader = bearer(sign(subscribe=[topic]))
    assert ask(server, "GET", f"/events?topic={topic}&topic=else", headers=reader).status == 403


def test_the_anonymous_may_do_what_the_operator_says(tmp_path: Path) -> None:
    """With ``subscribe`` alone, everybody reads public topics and only tokens write."""
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_ANONYMOUS": "subscribe"}
    with serving(folder=tmp_path, env=env) as server:
        with Listener(server, "/events?topic=room") as listener:
            assert listener.response.status == 200
        assert post(server, "/topics/room") == 401
        assert post(server, "/topics/room", bearer(sign(publish=["room"]))) == 201


def test_a_token_adds_to_what_anybody_may(open_server: Server, topic: str) -> None:
    """A token that names no right takes none away on public topics."""
    assert post(open_server, f"/topics/{topic}", bearer(sign())) == 201


def test_a_private_topic_is_for_those_whom_a_token_names(open_server: Server) -> None:
    """Under user/, anonymity and wildcards reach nothing; a token that names the topic does."""
    inbox = "/topics/user/eve"
    everything = bearer(sign("ada", publish=["**", "*/eve"], subscribe=["**"]))
    assert post(open_server, inbox) == 401
    assert post(open_server, inbox, everything) == 403
    assert ask(open_server, "GET", inbox).status == 401
    assert ask(open_server, "GET", inbox, headers=everything).status == 403
    assert ask(open_server, "GET", "/events?topic=user/eve").status == 401
    assert ask(open_server, "GET", "/events?topic=user/eve", headers=everything).status == 403
    assert post(open_server, inbox, bearer(sign("ada", publish=["user/eve"]))) == 201


def test_a_wildcard_never_shows_what_is_private(open_server: Server, topic: str) -> None:
    """Who reads everything that is public gets nothing of an inbox, neither old nor new."""
    sender = bearer(sign("ada", publish=["user/eve"]))
    publish(open_server, "user/eve", headers=sender)
    first = publish(open_server, topic)
    with Listener(open_server, f"/events?topic=**&topic=*/*&last_event_id={first}") as listener:
        listener.take()
        publish(open_server, "user/eve", headers=sender)
        id = publish(open_server, topic)
        assert listener.event()["id"] == id


def test_ones_own_inbox_is_for_reading(open_server: Server) -> None:
    """A subject reads its inbox without any claim, and writes to it only if a claim says so."""
    eve = bearer(sign("eve"))
    with Listener(open_server, "/events?topic=user/eve", eve) as listener:
        assert listener.response.status == 200
    assert post(open_server, "/topics/user/eve", eve) == 403


# -- a token is never seen again --------------------------------------------------------------------------------------


def test_a_token_is_in_no_answer_no_log_and_no_metric(server: Server, topic: str) -> None:
    """Good or bad, on whatever carrier, well-formed or not, a token is not repeated anywhere."""
    good = sign("secret-bearer", publish=[topic], subscribe=[topic])
    bad = jwt.encode(claims(sub="secret-bearer"), KEY + "?")
    seen = b""
    for token in (good, bad):
        for carrier in CARRIERS:
            for place in (f"/topics/{topic}", "/topics/else", "/topics/*", "/nothing", "/healthz", "/session"):
                target, headers = carried(carrier, token, place)
                answer = ask(server, "POST", target, b"x", headers)
                answer.headers["Set-Cookie"] = ""
                if place != "/session":
                    seen += answer.headers.as_bytes()
                seen += answer.body
            target, headers = carried(carrier, token, f"/events?topic={topic}&last_event_id=no-cursor")
            seen += ask(server, "GET", target, None, headers).body
        seen += ask(server, "HEAD", f"/events?topic={topic}&t%6Fken={token}&x=1").body
        seen += ask(server, "HEAD", f"/healthz?x=1&token={token}&token={token}").body
        with Wire(server) as wire:
            wire.send(f"GET http://hub/events?token={token} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            seen += wire.take(b"\r\n\r\n")
    seen += ask(server, "GET", "/metrics").body
    assert eventually(lambda: "GET /metrics" in server.log())
    log = server.log()
    assert log.count("token=...") > 20
    for token in (good, bad):
        _, payload, signature = token.split(".")
        for part in (payload, signature):
            assert part not in log
            assert part.encode() not in seen


# -- signing in -------------------------------------------------------------------------------------------------------


def sign_in(server: Server, name: object, headers: dict[str, str] | None = None) -> Answer:
    """Ask for a guest's session."""
    return ask(server, "POST", "/session", json.dumps({"name": name}).encode(), JSON | (headers or {}))


def cookie_of(answer: Answer) -> dict[str, str]:
    """The cookie header that a browser would send after this answer."""
    return {"Cookie": f"{COOKIE}={SimpleCookie(answer.headers['Set-Cookie'])[COOKIE].value}"}


def test_a_name_is_enough_for_a_guest(open_server: Server) -> None:
    """A guest is told its random subject, its name and until when; no two are the same subject."""
    one, other = sign_in(open_server, "Ada").json, sign_in(open_server, "Ada").json
    assert one.keys() == {"sub", "name", "expires_at"}
    assert one["name"] == "Ada"
    assert one["sub"].startswith("guest-")
    assert one["sub"] != other["sub"]
    assert one["expires_at"] > time.time() + 3600


def test_the_cookie_is_kept_from_scripts_and_other_sites(open_server: Server) -> None:
    """HttpOnly, SameSite=Strict, for the whole site, some days longer than the token; not Secure without TLS."""
    answer = sign_in(open_server, "Ada")
    cookie = SimpleCookie(answer.headers["Set-Cookie"])[COOKIE]
    assert cookie["httponly"] is True
    assert cookie["samesite"] == "Strict"
    assert cookie["path"] == "/"
    assert not cookie["secure"]
    assert not cookie["domain"]
    lasts = int(parsedate_to_datetime(cookie["expires"]).timestamp())
    assert lasts == answer.json["expires_at"] + OUTLIVES_S
    assert OUTLIVES_S >= 2 * 24 * 3600
    assert answer.headers["Cache-Control"] == "no-store"


SECURE = f"__Host-{COOKIE}"


def test_over_https_only_the_secure_cookie_is_set_and_read(tmp_path: Path) -> None:
    """Its name keeps everybody else from setting it; a plain one of the same host is not looked at."""
    with running(SecureServer(folder=tmp_path, env={"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_JWT_KEY": KEY})) as server:
        token = sign(publish=["a"])

        def over_https(method: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
            port, trust = server.secure_port, server.trusted()
            connection = http.client.HTTPSConnection("localhost", port, timeout=WITHIN_S, context=trust)
            connection.request(method, path, b"{}", headers)
            with contextlib.closing(connection), connection.getresponse() as response:
                return response

        for method in ("POST", "DELETE"):
            lines = over_https(method, "/session", bearer(token)).headers.get_all("Set-Cookie") or []
            (cookie,) = SimpleCookie("".join(lines)).values()
            assert (len(lines), cookie.key, cookie["secure"], cookie["path"]) == (1, SECURE, True, "/")
            assert not cookie["domain"]
        for cookies, status in (
            (f"{SECURE}={token}", 201),
            (f"{COOKIE}={token}", 401),
            (f"{COOKIE}={BAD['expired']}; {SECURE}=x; {SECURE}={token}", 201),
        ):
            assert over_https("POST", "/topics/a", {"Cookie": cookies}).status == status
        assert post(server, "/topics/a", {"Cookie": f"{SECURE}={token}"}) == 401
        assert post(server, "/topics/a", {"Cookie": f"{COOKIE}={token}"}) == 201


def test_behind_a_trusted_proxy_that_does_tls_the_cookie_is_secure(tmp_path: Path) -> None:
    """As the proxy says of each request; and the operator says how long a guest may be the same."""
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_TRUSTED_PROXIES": "127.0.0.1", "TRIO_SSE_SESSION_MAX_S": "100"}
    with serving(folder=tmp_path, env=env) as server:
        answer = sign_in(server, "Ada", {"X-Forwarded-Proto": "https"})
        assert answer.headers["Set-Cookie"].startswith(f"{SECURE}=")
        assert "; secure;" in answer.headers["Set-Cookie"].lower()
        assert sign_in(server, "Ada").headers["Set-Cookie"].startswith(f"{COOKIE}=")
        assert abs(exp_of(answer) - time.time() - 100) <= WITHIN_S


def test_nobody_else_says_that_it_was_https(open_server: Server) -> None:
    """A header that any client can write counts for nothing."""
    assert sign_in(open_server, "Ada", {"X-Forwarded-Proto": "https"}).headers["Set-Cookie"].startswith(f"{COOKIE}=")


def test_the_cookie_signs_one_in(open_server: Server) -> None:
    """With it, a guest reads its own inbox, which without it nobody does."""
    answer = sign_in(open_server, "Ada")
    with Listener(open_server, "/events", cookie_of(answer)) as listener:
        assert listener.response.status == 200
        listener.take()
        inbox = f"user/{answer.json['sub']}"
        id = publish(open_server, inbox, headers=bearer(sign(publish=[inbox])))
        assert listener.event()["id"] == id


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("A" * 64, "A" * 64),
        ("  Ada ", "Ada"),
        ("<b>Ada</b> & 'Co'", "<b>Ada</b> & 'Co'"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("e\u0301" * 64, "\u00e9" * 64),
        ("毛 🦊", "毛 🦊"),
    ],
)
def test_a_guests_name_is_any_text_that_can_be_shown(open_server: Server, name: str, shown: str) -> None:
    """Markup is text, space around it goes, and it is brought into normal form C."""
    answer = sign_in(open_server, name)
    assert (answer.status, answer.json["name"]) == (200, shown)


@pytest.mark.parametrize(
    "name", ["", "   ", "A" * 65, "a\nb", "a\x00", "a\u202eb", "a\u200bb", "\ud800", None, 5, ["Ada"], {"a": "b"}]
)
def test_a_guests_name_that_cannot_be_shown_is_refused(open_server: Server, name: object) -> None:
    """Empty, over 64 characters, with control or format characters, or no text: 400, and no cookie."""
    answer = sign_in(open_server, name)
    assert answer.status == 400
    assert "name" in answer.json["detail"]
    assert answer.headers["Set-Cookie"] is None


@pytest.mark.parametrize(
    "body",
    [b"", b"Ada", b"{", b"[]", b"5", b'"name"', b"null", b'{"Name": "Ada"}', b'{"name": "\xff"}', b"[" * 4_000],
)
def test_a_sign_in_that_says_no_name_is_refused(open_server: Server, body: bytes) -> None:
    """What is not JSON with a name is 400, which shows what to send."""
    answer = ask(open_server, "POST", "/session", body, JSON)
    assert answer.status == 400
    assert '{"name": "Ada"}' in answer.json["detail"]


@pytest.mark.parametrize(
    "type",
    [
        *(None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json"),
        *("application/json; charset=latin-1", "application/jsonx", "text/plain; application/json", "application"),
        *("text/plain, application/json", "application/json, text/plain"),
    ],
)
def test_a_sign_in_is_json_by_its_type(open_server: Server, type: str | None) -> None:
    """What a form can send is refused, and its sender told what to write."""
    headers = {} if type is None else {"Content-Type": type}
    answer = ask(open_server, "POST", "/session", b'{"name": "Ada"}', headers)
    assert answer.status == 415
    assert "Content-Type: application/json" in answer.json["detail"]
    assert answer.headers["Set-Cookie"] is None
    if type:
        assert ask(open_server, "POST", "/session", b"{}", headers | bearer(sign())).status == 415


@pytest.mark.parametrize(
    "type", ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"]
)
def test_a_sign_in_may_name_its_charset(open_server: Server, type: str) -> None:
    """UTF-8, as all JSON is."""
    assert sign_in(open_server, "Zo\xeb", {"Content-Type": type}).json["name"] == "Zo\xeb"


def test_a_sign_in_is_not_a_stream_of_events(open_server: Server) -> None:
    """A body that never ends is not waited for here."""
    with Wire(open_server) as wire:
        wire.send(b"POST /session HTTP/1.1\r\nHost: x\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\n")
        assert wire.take(b"\r\n").startswith(b"HTTP/1.1 415 ")


def test_guests_are_refused_where_the_anonymous_may_nothing(server: Server) -> None:
    """A hub that wants tokens says so to a guest: 401, and no cookie."""
    answer = sign_in(server, "Ada")
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "guests are not let in" in answer.json["detail"]
    assert answer.headers["Set-Cookie"] is None


def test_a_token_is_exchanged_for_a_cookie(server: Server, topic: str) -> None:
    """A page that has a token gets it as a cookie, with which it may do the same, until the same moment."""
    token = sign("ada", publish=[topic], ttl_s=30)
    answer = ask(server, "POST", "/session", headers=bearer(token))
    assert answer.status == 200
    assert answer.json["sub"] == "ada"
    assert answer.json["name"] is None
    assert answer.json["expires_at"] == jwt.decode(token, options={"verify_signature": False})["exp"]
    assert post(server, f"/topics/{topic}", cookie_of(answer)) == 201


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_is_not_exchanged(server: Server, open_server: Server, name: str) -> None:
    """A token that does not hold is 401, also where a guest would be let in."""
    for each in (server, open_server):
        answer = ask(each, "POST", "/session", b'{"name": "Ada"}', JSON | bearer(BAD[name]))
        assert answer.status == 401
        assert answer.headers["Set-Cookie"] is None


def test_an_old_cookie_does_not_stop_a_new_sign_in(open_server: Server) -> None:
    """Somebody whose cookie holds no longer signs in again with a name."""
    assert sign_in(open_server, "Ada", {"Cookie": f"{COOKIE}={BAD['expired']}"}).status == 200


def sized(length: int, **other: Any) -> str:
    """A token of so many bytes; within three of them."""
    shorter = jwt.encode(claims(**other, pad=""), KEY)
    return jwt.encode(claims(**other, pad="x" * ((length - len(shorter)) * 3 // 4)), KEY)


def test_a_token_too_large_for_a_cookie_is_refused(server: Server) -> None:
    """With words, and without a cookie that every browser would drop."""
    room = MAX_BYTES - len(COOKIE)
    largest, larger = sized(room), sized(room + 4)
    assert len(largest) <= room < len(larger) <= room + 4
    answer = ask(server, "POST", "/session", headers=bearer(largest))
    assert (answer.status, cookie_of(answer)) == (200, {"Cookie": f"{COOKIE}={largest}"})
    answer = ask(server, "POST", "/session", headers=bearer(larger))
    assert answer.status == 400
    assert "too large for a cookie" in answer.json["detail"]
    assert str(MAX_BYTES) in answer.json["detail"]
    assert answer.headers["Set-Cookie"] is None
    assert post(server, "/topics/large", bearer(larger)) == 201


# -- sessions ---------------------------------------------------------------------------------------------------------


def exp_of(answer: Answer) -> int:
    """When the session ends that an answer has begun."""
    exp: int = answer.json["expires_at"]
    return exp


def test_a_session_tells_whose_it_is(open_server: Server) -> None:
    """And that there is none."""
    guest = sign_in(open_server, "Ada")
    assert ask(open_server, "GET", "/session", headers=cookie_of(guest)).json == guest.json
    nobody = {"sub": None, "name": None, "expires_at": None}
    for headers in ({}, {"Cookie": f"{COOKIE}={BAD['another key']}"}):
        answer = ask(open_server, "GET", "/session", headers=headers)
        assert (answer.json, answer.headers["Cache-Control"]) == (nobody, "no-store")
    assert ask(open_server, "GET", "/session", headers={"Cookie": f"{COOKIE}={BAD['expired']}"}).status == 401


@pytest.mark.parametrize(("body", "name"), [({}, "Ada"), ({"name": "Ada"}, "Ada"), ({"name": "Countess"}, "Countess")])
def test_a_guest_is_renewed_by_its_cookie(open_server: Server, body: dict[str, str], name: str) -> None:
    """It is the same guest, under the same name or another, and for longer."""
    first = sign_in(open_server, "Ada")
    earlier = Authority(KEY).issue(
        first.json["sub"], now=time.time() - GUEST_TTL_S / 2, ttl_s=GUEST_TTL_S, name="Ada",
        guest_since=int(time.time() - GUEST_TTL_S / 2),
    )  # fmt: skip
    again = ask(open_server, "POST", "/session", json.dumps(body).encode(), JSON | {"Cookie": f"{COOKIE}={earlier}"})
    assert again.status == 200
    assert (again.json["sub"], again.json["name"]) == (first.json["sub"], name)
    assert abs(exp_of(again) - time.time() - GUEST_TTL_S) <= WITHIN_S
    assert post(open_server, "/topics/renewed", cookie_of(again)) == 201


def guest_token(*, since: float, exp: float, sub: str = "guest-x") -> dict[str, str]:
    """The cookie of a guest who signed in so many seconds ago first, and whose token ends in so many."""
    now = int(time.time())
    token = jwt.encode(claims(sub=sub, name="Ada", exp=now + exp, sse={"guest_since": now - since}), KEY)
    return JSON | {"Cookie": f"{COOKIE}={token}"}


def test_a_guest_is_not_renewed_for_ever(open_server: Server) -> None:
    """Seven days after its first sign-in the session ends, however often it was renewed."""
    week = 7 * 24 * 3600
    almost = ask(open_server, "POST", "/session", b"{}", guest_token(since=week - 100, exp=50))
    assert (almost.status, almost.json["sub"]) == (200, "guest-x")
    assert abs(exp_of(almost) - time.time() - 100) <= WITHIN_S
    over = guest_token(since=week, exp=50)
    assert ask(open_server, "POST", "/session", b"{}", over).status == 400
    assert ask(open_server, "POST", "/session", b'{"name": "Ada"}', over).json["sub"] != "guest-x"


def test_a_guest_that_comes_too_late_is_not_renewed(open_server: Server) -> None:
    """It is told so, and under its name begins again as another."""
    late = guest_token(since=100, exp=-1)
    answer = ask(open_server, "POST", "/session", b"{}", late)
    assert (answer.status, answer.headers["Set-Cookie"]) == (401, None)
    assert "expired" in answer.json["detail"]
    assert ask(open_server, "POST", "/session", b'{"name": "Ada"}', late).json["sub"] != "guest-x"


@pytest.mark.parametrize("guest_since", [None, "1", 1.5, True, -1, 10**400, [1]])
def test_a_token_that_only_looks_like_a_guests_is_not_renewed(open_server: Server, guest_since: object) -> None:
    """Its subject may be anything; only this hub says since when somebody is a guest."""
    token = jwt.encode(claims(sub="guest-x", sse={"guest_since": guest_since}), KEY)
    answer = ask(open_server, "POST", "/session", b"{}", JSON | {"Cookie": f"{COOKIE}={token}"})
    assert answer.status == 400
    assert "only a new token renews" in answer.json["detail"]


def test_a_tokens_session_is_renewed_by_a_token_alone(open_server: Server) -> None:
    """Not by its cookie; another token of its subject prolongs it, one of another subject begins another session."""
    first = ask(open_server, "POST", "/session", headers=bearer(sign("ada", ttl_s=50)))
    held = cookie_of(first)
    answer = ask(open_server, "POST", "/session", b"{}", JSON | held)
    assert (answer.status, answer.headers["Set-Cookie"]) == (400, None)
    longer = ask(open_server, "POST", "/session", headers=held | bearer(sign("ada", ttl_s=500)))
    assert longer.json["sub"] == "ada"
    assert exp_of(longer) > exp_of(first)
    other = ask(open_server, "POST", "/session", headers=held | bearer(sign("bob")))
    assert ask(open_server, "GET", "/session", headers=cookie_of(other)).json["sub"] == "bob"


def test_who_has_a_token_can_become_a_guest(open_server: Server) -> None:
    """By giving a name, that is: on purpose."""
    answer = sign_in(open_server, "Ada", {"Cookie": f"{COOKIE}={sign('ada')}"})
    assert answer.json["sub"].startswith("guest-")


def test_signing_out_takes_the_cookie_away(server: Server) -> None:
    """DELETE answers 204 with the same cookie, empty and long past, whatever the cookie was."""
    for value in (sign(), "garbage"):
        answer = ask(server, "DELETE", "/session", headers={"Cookie": f"{COOKIE}={value}"})
        assert (answer.status, answer.body) == (204, b"")
        cookie = SimpleCookie(answer.headers["Set-Cookie"])[COOKIE]
        assert (cookie.value, cookie["path"], cookie["httponly"], cookie["samesite"]) == ("", "/", True, "Strict")
        assert parsedate_to_datetime(cookie["expires"]).timestamp() < time.time()


# -- pages of other origins -------------------------------------------------------------------------------------------


def cors_of(answer: Answer) -> dict[str, str]:
    """Its CORS headers, without their common prefix."""
    prefix = "access-control-"
    return {n.lower().removeprefix(prefix): v for n, v in answer.headers.items() if n.lower().startswith(prefix)}


def listed(header: str) -> set[str]:
    """The names in a header, without case."""
    return {name.strip().lower() for name in header.split(",")}


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:5173"])
def test_a_preflight_of_a_listed_page_is_allowed(open_server: Server, origin: str) -> None:
    """It may send Last-Event-ID, Authorization and Content-Type, with credentials, and is asked once an hour."""
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,last-event-id,x-other",
    }
    answer = ask(open_server, "OPTIONS", "/topics/room", headers=asked)
    assert answer.status == 200
    cors = cors_of(answer)
    assert cors["allow-origin"] == origin
    assert cors["allow-credentials"] == "true"
    assert listed(cors["allow-headers"]) == {"authorization", "content-type", "last-event-id"}
    assert {"get", "post", "delete"} <= listed(cors["allow-methods"])
    assert int(cors["max-age"]) == 3600
    assert "origin" in listed(answer.headers["Vary"])


def test_a_listed_page_may_read_answers_streams_and_errors(open_server: Server, topic: str) -> None:
    """Every answer names the page's origin, and lets it see where a stream resumed."""
    for method, target in (("POST", f"/topics/{topic}"), ("HEAD", f"/events?topic={topic}"), ("GET", "/nothing")):
        cors = cors_of(ask(open_server, method, target, headers={"Origin": PAGE}))
        assert cors["allow-origin"] == PAGE
        assert cors["allow-credentials"] == "true"
        assert "last-event-id" in listed(cors["expose-headers"])


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.evil", "http://app.example", f"{PAGE}:8443", "null", "*"]
)
def test_no_other_page_is_named(open_server: Server, topic: str, origin: str) -> None:
    """An origin that is not listed is neither echoed nor given credentials, nor is anybody by ``*``."""
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for method in ("OPTIONS", "GET"):
        assert cors_of(ask(open_server, method, f"/topics/{topic}", headers=headers)) == {}


def test_no_page_is_named_where_none_is_listed(server: Server, topic: str) -> None:
    """Without the setting there is no CORS at all."""
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    for method in ("OPTIONS", "GET"):
        assert cors_of(ask(server, method, f"/topics/{topic}", headers=headers)) == {}


def test_a_publishers_stream_does_not_outlast_its_token(server: Server, topic: str) -> None:
    """What came in time is acknowledged; then a problem says to get a new token."""
    token = sign(ttl_s=5, publish=[topic])
    with Wire(server) as wire:
        wire.send(
            f"POST /topics/{topic} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
            "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: x\n\n\r\n".encode()
        )
        began = time.monotonic()
        answer = wire.rest()
        assert time.monotonic() - began < 5 + 2 * 1 + STALL_S
    assert b'"acked": 1' in answer
    assert b'"status": 401' in answer
    assert b"get a new one" in answer
