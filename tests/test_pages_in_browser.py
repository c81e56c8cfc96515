"""What pages of other origins can make their visitor do, and what becomes of a session: in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import jwt
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Response, expect

from .board import Person, Visit, visits
from .chromium import chromium, in_chromium
from .conftest import KEY, ask, sign
from .serving import Server, free_port, serving

pytestmark = in_chromium

COOKIE = "trio_sse_session"


class AnyPage(BaseHTTPRequestHandler):
    """An empty page at every address."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title><form method=post enctype=text/plain><input></form>")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """The port of another server on this machine, whose pages are anybody's."""
    port = free_port()
    with ThreadingHTTPServer(("127.0.0.1", port), AnyPage) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        yield port
        server.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, elsewhere: int) -> Iterator[Server]:
    """A hub that lets anybody read and write public topics, and is called 127.0.0.1 or hub.test."""
    env = {
        "TRIO_SSE_JOURNAL": "memory:",
        "TRIO_SSE_JWT_KEY": KEY,
        "TRIO_SSE_ANONYMOUS": "publish,subscribe",
        "TRIO_SSE_HOSTS": "hub.test",
        "TRIO_SSE_ALLOW_ORIGINS": f"http://listed.test:{elsewhere}",
    }
    with serving(folder=tmp_path_factory.mktemp("pages"), env=env) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One that finds every name under .test on this machine."""
    with chromium("--host-resolver-rules=MAP *.test 127.0.0.1") as browser:
        yield browser


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    with visits(browser, server) as visit:
        yield visit


# -- pages of other origins --------------------------------------------------------------------------------------------

WRITES = {
    "fetch": "([url, body]) => { fetch(url, { method: 'POST', mode: 'no-cors', credentials: 'include', body }); }",
    "beacon": "([url, body]) => { navigator.sendBeacon(url, body); }",
    "form": """([url, body]) => {
        const form = document.querySelector("form");
        [form.firstChild.name, form.firstChild.value] = body.split("=");
        form.action = url;
        form.submit();
    }""",
}
"""Ways in which a page sends something without asking anybody."""


def send(page: Page, how: str, url: str, body: str) -> Response:
    """Let a page send something; what the hub answers, which the page itself cannot see."""
    with page.expect_response(url) as answered:
        page.evaluate(WRITES[how], [url, body])
    return answered.value


def sign_in(window: Page, url: str, token: str) -> None:
    """Give a visitor a session."""
    window.goto(f"{url}/healthz")
    send = "token => fetch('/session', { method: 'POST', headers: { authorization: `Bearer ${token}` } })"
    with window.expect_response("**/session") as answered:
        window.evaluate(send, token)
    assert answered.value.status == 200


@pytest.mark.parametrize(
    ("hub", "page"), [("127.0.0.1", "127.0.0.1"), ("hub.test", "blog.hub.test"), ("127.0.0.1", "evil.test")]
)
def test_a_foreign_page_cannot_publish(
    context: BrowserContext, server: Server, elsewhere: int, topic: str, hub: str, page: str
) -> None:
    """On another port, on a sibling subdomain, with the visitor's cookie; on another site, as anybody."""
    url, window = f"http://{hub}:{server.port}", context.new_page()
    sign_in(window, url, sign("ada", publish=[topic]))
    for how in WRITES:
        window.goto(f"http://{page}:{elsewhere}/")
        assert send(window, how, f"{url}/topics/{topic}", "spam=").status == 403
    assert ask(server, "GET", f"/topics/{topic}").json["last_event_id"] is None


def test_a_foreign_page_cannot_sign_its_visitor_in_as_a_guest(
    context: BrowserContext, server: Server, elsewhere: int
) -> None:
    """The visitor's session stays what it was, though a form's text can be JSON."""
    window = context.new_page()
    sign_in(window, server.url, token := sign("ada"))
    for how in WRITES:
        window.goto(f"http://evil.test:{elsewhere}/")
        assert send(window, how, f"{server.url}/session", '{"name":"Eve","x":"="}').status == 403
    assert [cookie["value"] for cookie in context.cookies(server.url)] == [token]


def test_a_name_that_was_pointed_at_the_hub_is_not_served(context: BrowserContext, server: Server) -> None:
    """A page under it would be of the hub's own origin, for the browser."""
    window = context.new_page()
    answer = window.goto(f"http://evil.test:{server.port}/")
    assert answer is not None
    assert answer.status == 421
    assert "TRIO_SSE_HOSTS" in answer.json()["detail"]


def test_a_listed_page_works_with_a_token(context: BrowserContext, server: Server, elsewhere: int, topic: str) -> None:
    """It publishes and reads with it, over fetch; to sign in from another site is refused, with words."""
    window = context.new_page()
    window.goto(f"http://listed.test:{elsewhere}/")
    told = window.evaluate(
        """async ([hub, topic, token]) => {
            const headers = { authorization: `Bearer ${token}` };
            const stream = await fetch(`${hub}/events?topic=${topic}`, { headers });
            const posted = await fetch(`${hub}/topics/${topic}`, { method: "POST", headers, body: "hello" });
            const reader = stream.body.pipeThrough(new TextDecoderStream()).getReader();
            let read = "";
            while (!read.includes("data: hello")) read += (await reader.read()).value;
            const sent = { method: "POST", credentials: "include", headers };
            const session = await fetch(`${hub}/session`, sent);
            return [posted.status, session.status, (await session.json()).detail];
        }""",
        [server.url, topic, sign(publish=[topic], subscribe=[topic])],
    )
    assert told[:2] == [201, 403]
    assert "browsers drop the cookie" in told[2]


def test_the_board_works_where_browsers_tell_the_origin_alone(visit: Visit, server: Server, topic: str) -> None:
    """Over plain HTTP, under a name, there is no Sec-Fetch-Site."""
    ada = visit()
    ada.url = f"http://hub.test:{server.port}"
    ada.arrive(topic)
    with ada.page.expect_request(lambda request: request.method == "POST") as asked:
        ada.say("hello")
    assert "sec-fetch-site" not in asked.value.all_headers()
    expect(ada.texts).to_have_text(["hello"])


# -- sessions on the board ---------------------------------------------------------------------------------------------


def come_with_a_token(ada: Person, topic: str) -> None:
    """Join, as somebody who has one."""
    ada.arrive(topic, None)
    ada.page.get_by_text("access token").first.click()
    ada.page.get_by_label("Access token", exact=True).fill(sign("ada", ttl_s=600))
    ada.page.keyboard.press("Enter")
    expect(ada.page.locator("#me-kind")).to_have_text("with a token")
    expect(ada.composer).to_be_visible()


@pytest.mark.parametrize("why", ["expired", "another key"])
def test_a_session_of_a_token_that_is_over_is_told_of(visit: Visit, topic: str, why: str) -> None:
    """In a room that is open to everybody nobody goes on under a name that they no longer have."""
    ada = visit()
    come_with_a_token(ada, topic)
    (cookie,) = ada.context.cookies()
    late, key = {"expired": (-1, KEY), "another key": (60, KEY + "!")}[why]
    value = jwt.encode({"sub": "ada", "exp": int(time.time()) + late}, key)
    ada.context.add_cookies([{**cookie, "value": value}])  # type: ignore[typeddict-item]
    ada.change_network()
    expect(ada.page.get_by_role("alert")).to_contain_text("sign in again.")
    expect(ada.page.locator("#me-kind")).to_have_text("session ended")
    expect(ada.page.get_by_label("Access token", exact=True)).to_be_visible()


def test_a_guests_session_is_renewed_in_time(visit: Visit, topic: str) -> None:
    """After half of its life, by its cookie, while the page stands open: the same guest for longer."""
    ada = visit()
    ada.page.clock.install()
    ada.arrive(topic)
    (first,) = ada.context.cookies()
    with ada.page.expect_response("**/session") as answered:
        ada.page.clock.fast_forward(25 * 3600 * 1000)
    assert answered.value.request.post_data == "{}"
    (second,) = ada.context.cookies()
    one, other = (jwt.decode(each["value"], KEY, ["HS256"]) for each in (first, second))
    assert one["sub"] == other["sub"] == answered.value.json()["sub"]
    assert one["sse"]["guest_since"] == other["sse"]["guest_since"]
    assert second["value"] != first["value"] or one["iat"] == other["iat"]


def test_a_token_too_large_for_a_cookie_is_told_of(visit: Visit, topic: str) -> None:
    """The board says so, and does not ask again and again."""
    ada = visit()
    ada.arrive(topic, None)
    ada.page.get_by_text("access token").first.click()
    field = ada.page.get_by_label("Access token", exact=True)
    field.fill(sign("ada", subscribe=[f"{'x' * 60}/{n}" for n in range(60)]))
    field.press("Enter")
    expect(ada.page.get_by_role("alert")).to_contain_text("too large for a cookie")
    expect(field).to_be_focused()
