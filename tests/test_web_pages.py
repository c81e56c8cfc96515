"""Which pages may make their visitor write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.datastructures import Headers

from tests.conftest import KEY, Answer, ask, bearer, sign
from tests.serving import Server, serving
from trio_sse.errors import ForeignPage
from trio_sse.settings import Settings
from trio_sse.web.pages import Pages

LISTED = "https://app.example"
SETTINGS = Settings.model_validate({"allow_origins": f"{LISTED}, http://localhost:5173"})


def is_taken(
    headers: Sequence[tuple[str, str]], *, method: str = "POST", path: str = "/topics/a", host: str = "hub.example:8000"
) -> bool:
    """Whether a request with these headers may be sent."""
    every = [("host", host), *headers]
    scope = {"headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in every]}
    request: Any = SimpleNamespace(method=method, path=path, scope=scope, headers=Headers(every))
    try:
        Pages(SETTINGS).check(request)
    except ForeignPage:
        return False
    return True


def from_page(site: str | None = None, origin: str | None = None) -> list[tuple[str, str]]:
    """The headers that a browser adds."""
    given = {"Sec-Fetch-Site": site, "Origin": origin}
    return [(name, value) for name, value in given.items() if value is not None]


OWN = "http://hub.example:8000"
SIBLING = "http://blog.hub.example:8000"
FOREIGN = "https://evil.example"
WRITES = [
    *(("POST", "/topics/a"), ("POST", "/session"), ("DELETE", "/session")),
    *(("PUT", "/x"), ("PATCH", "/"), ("BREW", "/")),
]


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize(
    ("site", "origin", "taken"),
    [
        # what the browser says of the page comes first
        *((site, origin, True) for site in ("same-origin", "none") for origin in (None, OWN, FOREIGN, "null")),
        # then the origin: a listed one, or the hub's own
        *((site, origin, True) for site in (None, "same-site") for origin in (OWN, LISTED, "http://localhost:5173")),
        *((site, origin, False) for site in (None, "same-site", "cross-site") for origin in (SIBLING, FOREIGN, "null")),
        # one without the other
        *((site, None, False) for site in ("same-site", "cross-site")),
        # no page at all
        (None, None, True),
        # nothing that a browser writes
        *((site, None, False) for site in ("", "Same-Origin", "same-origin, none", "same-origin;x", "'none'", "x")),
        *((None, origin, False) for origin in ("", "*", OWN + "/", f"{LISTED}/", f"{LISTED} {OWN}", f"{LISTED}:8443")),
    ],
)
def test_who_may_write(method: str, path: str, site: str | None, origin: str | None, taken: bool) -> None:
    """Whatever it is that is written."""
    assert is_taken(from_page(site, origin), method=method, path=path) == taken


@pytest.mark.parametrize("origin", [OWN, LISTED])
def test_a_page_of_another_site_may_write_and_not_sign_in(origin: str) -> None:
    """Where its origin is listed, or differs in the scheme alone; the browser would drop the cookie."""
    page = from_page("cross-site", origin)
    assert is_taken(page)
    assert is_taken(page, method="DELETE", path="/session")
    assert not is_taken(page, path="/session")
    assert not is_taken([*page, ("Authorization", "Bearer x")], path="/session")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_who_only_reads_is_not_asked(method: str) -> None:
    """A link may lead here from anywhere, and CORS asks before it writes."""
    for path in ("/topics/a", "/session", "/events"):
        assert is_taken(from_page("cross-site", FOREIGN), method=method, path=path)


def test_a_token_of_its_own_lets_any_page_write() -> None:
    """CORS says which pages may send one; to sign in or out is another matter."""
    for token in ("Bearer x", "bearer x", "BEARER x", "Bearer "):
        page = [*from_page("cross-site", FOREIGN), ("Authorization", token)]
        assert is_taken(page)
        assert not is_taken(page, method="DELETE", path="/session")
        assert not is_taken(page, path="/session")


@pytest.mark.parametrize("value", ["Basic YTpi", "Negotiate x", "Digest x", "", "x", "Basic x, Bearer y"])
def test_what_the_browser_adds_itself_is_no_token(value: str) -> None:
    """A remembered password comes with the requests of every page."""
    assert not is_taken([*from_page("cross-site", FOREIGN), ("Authorization", value)])


def test_a_header_that_comes_twice_counts_for_nothing() -> None:
    """No browser sends it so."""
    own, none, site = ("Origin", OWN), ("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")
    for headers in ([own, own], [own, ("Origin", FOREIGN)], [none, none], [none, site], [site, none]):
        assert not is_taken(headers), headers


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        *(("hub.example", f"{scheme}://hub.example") for scheme in ("http", "https")),
        *(("hub.example:443", "https://hub.example"), ("hub.example:80", "http://hub.example")),
        *(("hub.example", "https://hub.example:443"), ("Hub.Example", "https://hub.example")),
        *(("hub.example:8000", f"{scheme}://hub.example:8000") for scheme in ("http", "https")),
        *(("[::1]:8000", "http://[::1]:8000"), ("[::1]", "https://[::1]"), ("127.0.0.1:80", "http://127.0.0.1")),
        *(("hub.example.", "https://hub.example."), ("hub.example:", "https://hub.example")),
    ],
)
def test_the_hubs_own_origin_is_its_host_and_port(host: str, origin: str) -> None:
    """Whatever the scheme, since a proxy may do TLS; the scheme's own port need not be written."""
    assert is_taken(from_page(None, origin), host=host)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        *(("hub.example:80", "https://hub.example"), ("hub.example:443", "http://hub.example")),
        *(("hub.example", "https://hub.example:8000"), ("hub.example:8000", "https://hub.example")),
        *(("hub.example", "https://hub.example."), ("hub.example", "https://x@hub.example")),
        *(("hub.example", "https://hub.example@evil.example"), ("hub.example", "https://xhub.example")),
        *(("hub.example", "ftp://hub.example"), ("hub.example", "//hub.example"), ("hub.example", "hub.example")),
        *(("", "http://"), ("", "null"), ("null", "null"), ("", "http://x"), ("hub.example", "https://hub.example:0")),
        *(("[::1]", "https://[::2]"), ("[::1]", "https://::1"), ("hub.example", "https://hub.example:44300000")),
        *(("a b", "https://a b"), ("hub.example/", "https://hub.example/"), ("x@hub.example", "https://x@hub.example")),
        ("hub.example", "chrome-extension://hub.example"),
    ],
)
def test_what_is_not_the_hubs_own_origin(host: str, origin: str) -> None:
    """Another port is another server; what is no origin or no host is nobody's."""
    assert not is_taken(from_page(None, origin), host=host)


# -- with the real server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {
        "TRIO_SSE_JOURNAL": "memory:",
        "TRIO_SSE_JWT_KEY": KEY,
        "TRIO_SSE_ANONYMOUS": "publish,subscribe",
        "TRIO_SSE_QUERY_TOKEN": "1",
        "TRIO_SSE_ALLOW_ORIGINS": LISTED,
    }
    with serving(folder=tmp_path_factory.mktemp("pages"), env=env) as server:
        yield server


def post(server: Server, target: str, page: list[tuple[str, str]], **more: str) -> Answer:
    return ask(server, "POST", target, b"{}", {**dict(page), "Content-Type": "application/json", **more})


@pytest.mark.parametrize("carrier", ["none", "cookie", "query"])
def test_another_origins_page_publishes_nothing(server: Server, topic: str, carrier: str) -> None:
    """As its visitor, as anybody, or with a token in the query: 403, which names the setting."""
    token = sign(publish=[topic])
    target = f"/topics/{topic}" + (f"?token={token}" if carrier == "query" else "")
    more = {"Cookie": f"trio_sse_session={token}"} if carrier == "cookie" else {}
    for page in (from_page("cross-site", FOREIGN), from_page("same-site", SIBLING), from_page(None, "null")):
        answer = post(server, target, page, **more)
        assert answer.status == 403
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "TRIO_SSE_ALLOW_ORIGINS" in answer.json["detail"]
    assert ask(server, "GET", f"/topics/{topic}").json["last_event_id"] is None
    assert post(server, target, from_page("same-origin"), **more).status == 201
    assert post(server, target, from_page("cross-site", LISTED), **more).status == 201
    assert post(server, target, [], **more).status == 201
    assert post(server, f"/topics/{topic}", from_page("cross-site", FOREIGN), **bearer(token)).status == 201


def test_another_origins_page_streams_nothing(server: Server, topic: str) -> None:
    """A stream of events is a write like any other."""
    body, headers = b"data: x\n\n", {"Content-Type": "text/event-stream", "Origin": FOREIGN}
    assert ask(server, "POST", f"/topics/{topic}", body, headers).status == 403
    assert ask(server, "POST", f"/topics/{topic}", body, headers | {"Origin": LISTED}).status == 200


def test_another_sites_page_is_told_why_it_cannot_sign_in(server: Server) -> None:
    """With words that it may read, because its origin is listed; before, it had a 200 and no cookie."""
    for more in ({}, bearer(sign())):
        answer = post(server, "/session", from_page("cross-site", LISTED), **more)
        assert answer.status == 403
        assert "browsers drop the cookie" in answer.json["detail"]
        assert "Authorization: Bearer" in answer.json["detail"]
        assert answer.headers["Access-Control-Allow-Origin"] == LISTED
        assert answer.headers["Set-Cookie"] is None
    assert post(server, "/session", from_page("same-site", LISTED), **bearer(sign())).status == 200


@pytest.mark.parametrize("path", ["/session", "/%73ession", "http://hub/session", "/topics/..%2fsession", "/sessio%6e"])
def test_no_spelling_of_a_path_gets_round_it(server: Server, path: str) -> None:
    """The path is judged that the router sees, or leads nowhere."""
    answer = post(server, path, from_page("cross-site", FOREIGN), **bearer(sign()))
    assert answer.status in (400, 403, 404)
    assert answer.headers["Set-Cookie"] is None


def test_what_is_repeated_of_an_origin_is_short(server: Server) -> None:
    """However long it is."""
    answer = post(server, "/topics/a", from_page(None, "https://" + "x" * 8_000))
    assert answer.status == 403
    assert len(answer.body) < 800
