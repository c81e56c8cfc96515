"""The message board in a real browser against the real server: what people see."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Route, expect

from trio_sse.auth import Authority

from .board import EVENTS, Visit, visits
from .chromium import chromium, in_chromium
from .nginx import behind_nginx, in_front_of
from .serving import Server, serving

pytestmark = in_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(folder=tmp_path_factory.mktemp("board")) as server:
        yield server


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    with visits(browser, server) as visit:
        yield visit


_rooms = itertools.count(1)


@pytest.fixture
def room() -> str:
    """A room nobody has been in."""
    return f"room-{next(_rooms)}"


Publish = Callable[[str], None]


@pytest.fixture
def publish(server: Server, room: str) -> Publish:
    """Say something in the room without a browser, as Grace."""

    def publish(text: str, url: str = server.url) -> None:
        message = {"name": "Grace", "author": "guest-grace", "text": text}
        httpx.post(f"{url}/topics/{room}", json=message, timeout=30).raise_for_status()

    return publish


def wait_for_subscribers(server: Server, topic: str, number: int) -> None:
    """Return when the hub counts this many; it may take it a moment to notice who left."""
    deadline = time.monotonic() + 30
    while (here := httpx.get(f"{server.url}/topics/{topic}", timeout=30).json()["subscribers"]) != number:
        assert time.monotonic() < deadline, f"{here} subscribers instead of {number}"
        time.sleep(0.02)


# -- talking ----------------------------------------------------------------------------------------------


def test_two_people_talk(visit: Visit, room: str) -> None:
    """What one says, the other reads, and the other way round."""
    ada, bob = visit(), visit()
    ada.arrive(room, "Ada")
    bob.arrive(room, "Bob")
    ada.say("Hello Bob")
    expect(bob.texts).to_have_text(["Hello Bob"])
    bob.say("Hello Ada")
    for person in (ada, bob):
        expect(person.texts).to_have_text(["Hello Bob", "Hello Ada"])


def test_own_and_others_are_told_apart(visit: Visit, room: str, publish: Publish) -> None:
    """One's own messages say "You", in words and in looks; the others' say who."""
    ada = visit()
    ada.arrive(room)
    publish("from Grace")
    ada.say("from me")
    log = ada.page.get_by_role("log")
    expect(log.locator(".name")).to_have_text(["Grace", "You"])
    expect(log.locator(".own .text")).to_have_text(["from me"])


def test_a_message_shows_once_while_it_is_sent_and_echoed(visit: Visit, room: str) -> None:
    """The optimistic copy goes when the real one comes."""
    ada = visit()
    ada.arrive(room)
    for text in ("one", "two", "three"):
        ada.say(text)
    expect(ada.texts).to_have_text(["one", "two", "three"])
    expect(ada.drafts).to_have_count(0)


def test_what_is_said_first_stands_first(visit: Visit, room: str) -> None:
    """Though the request of the first message is slow, none overtakes it."""
    ada = visit()
    ada.arrive(room)
    asked: list[Route] = []

    def hold_back_the_first(route: Route) -> None:
        if route.request.method == "POST":
            asked.append(route)
        if asked[:1] != [route]:
            route.continue_()

    ada.page.route(f"**/topics/**{room}", hold_back_the_first)
    for text in ("one", "two", "three"):
        ada.say(text)
    expect(ada.drafts).to_have_count(3)
    ada.page.wait_for_timeout(300)  # time in which the others would go
    asked[0].continue_()
    expect(ada.texts).to_have_text(["one", "two", "three"])


def test_reload_keeps_history_and_name(visit: Visit, room: str, publish: Publish) -> None:
    """After a reload everything is there and nobody is asked for their name again."""
    ada = visit()
    ada.arrive(room)
    publish("before")
    ada.say("mine")
    expect(ada.texts).to_have_text(["before", "mine"])
    ada.page.reload()
    expect(ada.texts).to_have_text(["before", "mine"])
    expect(ada.page.get_by_role("log").locator(".own .text")).to_have_text(["mine"])
    expect(ada.composer).to_be_visible()


def test_history_is_readable_before_joining(visit: Visit, room: str, publish: Publish) -> None:
    """A visitor without a name reads along."""
    publish("said before")
    visitor = visit()
    visitor.arrive(room, None)
    expect(visitor.texts).to_have_text(["said before"])
    expect(visitor.name_field).to_be_focused()
    expect(visitor.composer).to_be_hidden()


def test_history_is_not_read_out_but_news_are(visit: Visit, room: str, publish: Publish) -> None:
    """The live region is off while history comes in, and polite after that."""
    publish("history")
    ada = visit()

    def patient(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace("const QUIET = 300;", "const QUIET = 2_000;"))

    ada.page.route("**/board.js", patient)  # on a busy machine the history may come late
    ada.page.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
            const log = document.getElementById("log");
            window.heard = [];
            new MutationObserver((changes) => {
                for (const { addedNodes } of changes) {
                    for (const node of addedNodes) {
                        const text = node.querySelector?.(".text")?.textContent;
                        if (text) heard.push([log.getAttribute("aria-live"), text]);
                    }
                }
            }).observe(log, { childList: true, subtree: true });
        });"""
    )
    ada.arrive(room)
    expect(ada.page.get_by_role("log")).to_have_attribute("aria-live", "polite")
    publish("news")
    expect(ada.texts).to_have_text(["history", "news"])
    assert ada.page.evaluate("heard") == [["off", "history"], ["polite", "news"]]


def test_a_plain_curl_shows_up_in_the_lobby(visit: Visit, server: Server) -> None:
    """`curl -d hello …/topics/lobby` is a message of someone in the room the page opens by itself."""
    visitor = visit()
    visitor.page.goto(server.url)
    expect(visitor.link).to_have_text("live")
    form = {"content-type": "application/x-www-form-urlencoded"}
    httpx.post(f"{server.url}/topics/lobby", content="hello from curl", headers=form).raise_for_status()
    row = visitor.page.get_by_role("log").get_by_role("listitem").filter(has_text="hello from curl")
    expect(row.locator(".name")).to_have_text("someone")


def test_lines_stay_lines(visit: Visit, room: str) -> None:
    """Shift+Enter starts a new line, and the line break arrives."""
    ada, bob = visit(), visit()
    bob.arrive(room, None)
    ada.arrive(room)
    ada.composer.press_sequentially("one")
    ada.composer.press("Shift+Enter")
    ada.composer.press_sequentially("two")
    ada.composer.press("Enter")
    expect(bob.texts).to_have_text(["one\ntwo"], use_inner_text=True)


def test_one_voice_in_a_row_is_one_group(visit: Visit, room: str, publish: Publish) -> None:
    """A second message in a row shows no second heading, though it keeps one for those who listen."""
    visitor = visit()
    visitor.arrive(room, None)
    publish("one")
    publish("two")
    expect(visitor.texts).to_have_count(2)
    expect(visitor.page.locator(".message.follows .text")).to_have_text(["two"])
    expect(visitor.page.locator(".message.follows .name")).to_have_text(["Grace"])
    expect(visitor.page.locator(".day:visible")).to_have_text(["today"])


def test_time_stamps_are_times_of_publication(visit: Visit, server: Server, room: str) -> None:
    """A message carries the time at which it was published, taken from its id."""
    answer = httpx.post(f"{server.url}/topics/{room}", json={"name": "Grace", "author": "g", "text": "hi"})
    published = int(answer.json()["id"].partition("-")[0])
    visitor = visit()
    visitor.arrive(room, None)
    stamp = visitor.page.get_by_role("log").locator("time")
    expect(stamp).to_have_text(re.compile(r"\d:\d\d"))
    assert stamp.evaluate("time => Date.parse(time.dateTime)") == published


# -- rooms and people -------------------------------------------------------------------------------------


def test_people_are_counted(visit: Visit, server: Server, room: str) -> None:
    """How many are here follows those who come and go."""
    ada = visit()
    ada.page.clock.install()
    ada.arrive(room)
    people = ada.page.locator("#people")
    expect(people).to_have_text("only you here")
    bob = visit()
    bob.arrive(room, None)
    ada.page.clock.fast_forward(5_000)
    expect(people).to_have_text("2 here")
    bob.page.close()
    wait_for_subscribers(server, room, 1)
    ada.page.clock.fast_forward(5_000)
    expect(people).to_have_text("only you here")


def test_switching_rooms(visit: Visit, room: str) -> None:
    """Each room has its own messages; anyone makes one by naming it, and its address can be shared."""
    ada = visit()
    ada.arrive(room)
    ada.say("in the first")
    expect(ada.texts).to_have_text(["in the first"])
    ada.page.get_by_label("Open or create a room").fill(f"#{room}/café au lait")
    ada.page.keyboard.press("Enter")
    expect(ada.page.get_by_role("heading", level=1)).to_have_text(f"#{room}/café au lait")
    expect(ada.texts).to_have_count(0)
    ada.say("in the second")
    expect(ada.texts).to_have_text(["in the second"])
    bob = visit()
    bob.page.goto(ada.page.url)
    expect(bob.texts).to_have_text(["in the second"])
    ada.page.get_by_role("navigation").get_by_role("link", name=room, exact=False).first.click()
    expect(ada.texts).to_have_text(["in the first"])


def test_a_page_holds_one_stream(visit: Visit, server: Server, room: str) -> None:
    """Leaving a room closes its stream: a browser has only six connections per site."""
    ada = visit()
    ada.arrive(room)
    ada.page.goto(f"{server.url}/#{room}/next")
    expect(ada.link).to_have_text("live")
    wait_for_subscribers(server, f"{room}/next", 1)
    wait_for_subscribers(server, room, 0)


def test_a_name_no_room_can_have(visit: Visit, room: str) -> None:
    """A name the hub would refuse is refused by the form, and the room stays."""
    ada = visit()
    ada.arrive(room)
    field = ada.page.get_by_label("Open or create a room")
    field.fill("a//b")
    field.press("Enter")
    assert field.evaluate("field => field.validationMessage") != ""
    expect(ada.page.get_by_role("heading", level=1)).to_have_text(f"#{room}")


def test_a_new_name(visit: Visit, room: str) -> None:
    """A name can be changed; what was said under the old one stays one's own."""
    ada, bob = visit(), visit()
    ada.arrive(room)
    bob.arrive(room, "Bob")
    ada.say("as Ada")
    ada.page.get_by_role("button", name="Change your name").click()
    ada.name_field.fill("Countess")
    ada.page.get_by_role("button", name="Save").click()
    ada.say("as Countess")
    expect(bob.page.get_by_role("log").locator(".name")).to_have_text(["Ada", "Countess"])
    expect(ada.page.get_by_role("log").locator(".own .text")).to_have_text(["as Ada", "as Countess"])


def test_the_title_counts_what_nobody_saw(visit: Visit, room: str, publish: Publish) -> None:
    """While the page is hidden its title says how much is new."""
    ada = visit()
    ada.arrive(room)
    expect(ada.page.get_by_role("log")).to_have_attribute("aria-live", "polite")
    ada.page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    publish("one")
    publish("two")
    expect(ada.page).to_have_title(f"(2) {room} · trio_sse")
    ada.page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    expect(ada.page).to_have_title(f"{room} · trio_sse")


# -- losing and finding the connection --------------------------------------------------------------------


@pytest.mark.parametrize("end", [Server.kill, Server.terminate])
def test_a_restarted_server_loses_and_repeats_nothing(
    visit: Visit, server: Server, room: str, publish: Publish, end: Callable[[Server], object]
) -> None:
    """Ended in either way and started again under an open page: it says both, and shows each message once."""
    ada = visit()
    ada.arrive(room)
    said = [f"before {n}" for n in range(5)]
    for text in said:
        publish(text)
    expect(ada.texts).to_have_text(said)
    end(server)
    expect(ada.status).to_have_text("Connection lost. Reconnecting…")
    expect(ada.link).to_have_text("reconnecting")
    server.start()
    for text in (after := [f"after {n}" for n in range(5)]):
        publish(text)
    expect(ada.status).to_have_text("Connected again. Nothing was missed.")
    expect(ada.link).to_have_text("live")
    ada.say("I am still here")
    expect(ada.texts).to_have_text([*said, *after, "I am still here"])
    expect(ada.page.locator(".gap")).to_have_count(0)


def test_what_was_missed_for_good_is_said(
    visit: Visit, room: str, publish: Callable[..., None], tmp_path: Path
) -> None:
    """When the hub no longer has what was published meanwhile, the page says so, at the place."""
    with serving(folder=tmp_path, env={"TRIO_SSE_RETENTION_EVENTS": "5"}) as forgetful:
        ada = visit(server=forgetful)
        ada.arrive(room)
        publish("seen", forgetful.url)
        expect(ada.texts).to_have_text(["seen"])
        ada.lose_the_stream()
        for n in range(10):
            publish(f"unseen {n}", forgetful.url)
        ada.find_the_stream()
        expect(ada.page.locator(".gap")).to_contain_text("Some messages were missed here")
        expect(ada.status).to_have_text("Connected again, but some messages were missed.")
        rows = ada.page.get_by_role("log").get_by_role("listitem")
        expect(rows.nth(0)).to_contain_text("seen")
        expect(rows.nth(1)).to_contain_text("missed")
        expect(ada.texts).to_have_text(["seen", *(f"unseen {n}" for n in range(5, 10))])


def test_a_closed_event_source_is_replaced_at_its_cursor(visit: Visit, room: str, publish: Publish) -> None:
    """A proxy's 502 closes an EventSource for ever; the page opens another, where the first one stopped."""
    ada = visit()
    ada.arrive(room)
    publish("one")
    row = ada.page.get_by_role("log").get_by_role("listitem").filter(has_text="one")
    cursor = row.get_attribute("data-id")
    ada.lose_the_stream()
    publish("two")
    refused: list[str] = []

    def bad_gateway(route: Route) -> None:
        refused.append(route.request.url)
        route.fulfill(status=502, body="Bad Gateway")

    ada.page.route(EVENTS, bad_gateway, times=2)
    ada.find_the_stream()
    expect(ada.texts).to_have_text(["one", "two"])
    expect(ada.link).to_have_text("live")
    assert len(refused) == 2
    streams = [parse_qs(urlsplit(url).query) for url in ada.addresses if "/events?" in url]
    assert streams[-1]["last_event_id"] == [cursor]


@behind_nginx
def test_a_page_left_with_a_502_comes_back(
    visit: Visit, room: str, publish: Callable[..., None], tmp_path: Path
) -> None:
    """An nginx without its hub ends the page's EventSource; another one comes, with what was said meanwhile."""
    with serving(folder=tmp_path) as hub, in_front_of(hub, folder=tmp_path) as nginx:
        ada = visit(server=nginx)
        ada.arrive(room)
        publish("before", nginx.url)
        expect(ada.texts).to_have_text(["before"])
        with ada.page.expect_response(lambda answer: "/events?" in answer.url and answer.status == 502):
            hub.kill()
        expect(ada.link).to_have_text("reconnecting")
        hub.start()
        publish("meanwhile", hub.url)
        expect(ada.texts).to_have_text(["before", "meanwhile"])
        expect(ada.link).to_have_text("live")
        ada.say("I am still here")
        expect(ada.texts).to_have_text(["before", "meanwhile", "I am still here"])
        expect(ada.page.locator(".gap")).to_have_count(0)


def test_an_expired_session_is_renewed(visit: Visit, room: str, publish: Publish) -> None:
    """When the hub no longer accepts the session, the page signs in again under the same name."""
    ada = visit()
    ada.arrive(room)
    publish("one")
    expect(ada.texts).to_have_text(["one"])
    ada.spoil_the_session()
    ada.change_network()
    publish("two")
    expect(ada.texts).to_have_text(["one", "two"])
    expect(ada.link).to_have_text("live")
    ada.say("it is still me")
    row = ada.page.locator(".own.message").filter(has_text="it is still me")
    expect(row).to_have_count(1)
    expect(ada.page.locator("#me-name")).to_have_text("Ada")


def test_an_expired_session_does_not_stop_a_message(visit: Visit, room: str) -> None:
    """A message that the hub refuses for want of a session goes out after signing in again."""
    ada, bob = visit(), visit()
    ada.arrive(room)
    bob.arrive(room, None)
    ada.spoil_the_session()
    ada.say("hello all the same")
    expect(bob.texts).to_have_text(["hello all the same"])
    expect(ada.texts).to_have_text(["hello all the same"])


def test_a_hub_for_members(visit: Visit, room: str, tmp_path: Path) -> None:
    """Where reading takes a token the page says so, does not loop, and sends the token in a header only."""
    key = "0123456789abcdef" * 4
    token = Authority(key).issue("member-7", now=time.time(), ttl_s=600, publish=["**"], subscribe=["**"], name="Ada")
    with serving(folder=tmp_path, env={"TRIO_SSE_JWT_KEY": key}) as hub:
        member = visit(server=hub)
        member.page.goto(f"{hub.url}/#{room}")
        expect(member.link).to_have_text("not connected")
        expect(member.status).to_have_text("This room is not open to everybody.")
        member.name_field.fill("Eve")
        member.name_field.press("Enter")
        field = member.page.get_by_label("Access token", exact=True)
        expect(field).to_be_focused()
        expect(member.page.get_by_role("alert")).to_contain_text("Guests are not let in here.")
        assert sum("/events?" in url for url in member.addresses) == 1
        member.name_field.fill("")
        field.fill(token)
        field.press("Enter")
        expect(member.link).to_have_text("live")
        expect(member.page.locator("#me-name")).to_have_text("Ada")
        member.say("let me in")
        expect(member.page.locator(".own.message .text")).to_have_text(["let me in"])
        member.page.reload()
        expect(member.texts).to_have_text(["let me in"])
        assert not any(token in url for url in member.addresses)
        stored = member.page.evaluate("JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])")
        assert token not in stored


def test_somebody_elses_private_room(visit: Visit, room: str) -> None:
    """Who is signed in and not allowed in is told so once, is not asked for a name, and asks no more."""
    ada = visit()
    ada.page.clock.install()
    ada.page.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
            const status = document.getElementById("status");
            window.told = [];
            new MutationObserver(() => told.push(status.textContent)).observe(status, { childList: true });
        });"""
    )
    ada.arrive(room)
    ada.addresses.clear()
    ada.page.goto(f"{ada.url}/#user/bob")
    expect(ada.status).to_have_text("This room is private: you are not allowed in.")
    expect(ada.link).to_have_text("not connected")
    expect(ada.name_field).to_be_hidden()
    ada.page.clock.run_for(60_000)
    expect(ada.link).to_have_text("not connected")
    assert ada.page.evaluate("told") == ["This room is private: you are not allowed in."]
    asked = [urlsplit(url) for url in ada.addresses]
    assert [url.path for url in asked if "bob" in url.path + url.query] == ["/events", "/topics/user/bob"]
    assert not any(url.path == "/session" for url in asked)
    ada.page.get_by_role("navigation").get_by_role("link", name=room).click()
    expect(ada.link).to_have_text("live")
    expect(ada.status).to_have_text("")


# -- sending that goes wrong ------------------------------------------------------------------------------


def test_what_could_not_be_sent_is_kept_and_sent_again(visit: Visit, room: str) -> None:
    """A message that got no answer stays, says so, and goes out at the press of a button."""
    ada = visit()
    ada.arrive(room)
    ada.page.route("**/topics/*", lambda route: route.abort() if route.request.method == "POST" else route.continue_())
    ada.say("hello?")
    expect(ada.drafts).to_contain_text("Not sent: The server did not answer.")
    ada.page.unroute("**/topics/*")
    ada.drafts.get_by_role("button", name="Send again").click()
    expect(ada.texts).to_have_text(["hello?"])
    expect(ada.drafts).to_have_count(0)


def test_a_lost_answer_is_not_a_lost_message(visit: Visit, room: str) -> None:
    """When only the answer got lost, the echo tells that the message arrived; it shows once, as sent."""
    ada = visit()
    ada.arrive(room)

    def lose_the_answer(route: Route) -> None:
        route.fetch()
        route.abort()

    ada.page.route("**/topics/*", lose_the_answer, times=1)
    ada.say("sent, though nobody said so")
    expect(ada.texts).to_have_text(["sent, though nobody said so"])
    expect(ada.drafts).to_have_count(0)


def test_what_is_too_long_is_not_cut(visit: Visit, room: str) -> None:
    """A pasted text that is too long stays whole in the field, which says by how much."""
    ada = visit()
    ada.arrive(room)
    ada.say("x" * 4_010)
    expect(ada.page.get_by_text("Too long by 10 characters.")).to_be_visible()
    expect(ada.composer).to_have_value("x" * 4_010)
    ada.say("x" * 4_000)
    expect(ada.texts).to_have_text(["x" * 4_000])


# -- hostile and odd input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=\"document.title='broken into'\">",
        "</script><script>document.title='broken into'</script>",
        "<style>*{display:none}</style><b>bold</b>&amp;",
        "\u202egnp.exe\u202c and \u2066isolated",
        "\u2069\u2069\u202e never closed",
    ],
)
def test_markup_and_bidi_tricks_are_text(visit: Visit, server: Server, room: str, text: str) -> None:
    """Names and messages show as they were typed; no script runs and no policy is violated."""
    reader = visit()
    reader.arrive(room, None)
    message = {"name": text, "author": text, "text": text}
    httpx.post(f"{server.url}/topics/{room}", json=message).raise_for_status()
    expect(reader.texts).to_have_text([text])
    log = reader.page.get_by_role("log")
    expect(log.locator(".name")).to_have_text([text[:60]])
    expect(log.locator("img, script, style, b")).to_have_count(0)
    expect(reader.page).to_have_title(f"{room} · trio_sse")
    # Nothing outside is turned round: the time still stands to the right of the name.
    name, stamp = log.locator(".name").bounding_box(), log.locator("time").bounding_box()
    assert name is not None
    assert stamp is not None
    assert name["x"] + name["width"] <= stamp["x"]


@pytest.mark.parametrize("data", ['{"temp": 20}', "null", "[1, 2]", '"just a string"', '{"text": 7}', "   "])
def test_any_event_is_a_message(visit: Visit, server: Server, room: str, data: str) -> None:
    """Whatever another publisher puts into the topic shows as its plain data."""
    reader = visit()
    reader.arrive(room, None)
    plain = {"content-type": "text/plain"}
    httpx.post(f"{server.url}/topics/{room}", content=data, headers=plain).raise_for_status()
    expect(reader.texts).to_have_count(1)
    assert reader.texts.text_content() == data


# -- everybody's hands, eyes and screens ------------------------------------------------------------------


def test_keyboard_alone(visit: Visit, server: Server, room: str) -> None:
    """Joining, talking and changing rooms need no pointer, and what has the focus shows it."""
    ada = visit()
    ada.page.goto(f"{server.url}/#{room}")
    expect(ada.name_field).to_be_focused()
    keyboard = ada.page.keyboard
    keyboard.type("Ada")
    keyboard.press("Enter")
    expect(ada.composer).to_be_focused()
    keyboard.type("no mouse")
    keyboard.press("Enter")
    expect(ada.texts).to_have_text(["no mouse"])
    ada.page.reload()
    expect(ada.composer).to_be_focused()
    random = ada.page.get_by_role("navigation").get_by_role("link", name="random")
    for _ in range(20):
        if random.evaluate("link => link === document.activeElement"):
            break
        keyboard.press("Shift+Tab")
    expect(random).to_be_focused()
    expect(random).to_have_css("outline-style", "solid")
    keyboard.press("Enter")
    expect(ada.page.get_by_role("heading", level=1)).to_have_text("#random")
    expect(ada.composer).to_be_focused()


def test_a_narrow_phone(visit: Visit, room: str, server: Server) -> None:
    """At 320 pixels nothing sticks out sideways, and everything to press is at least 44 pixels high."""
    phone = visit(width=320, touch=True)
    phone.arrive(f"{room}/{'longwinded' * 6}")
    path = f"{room}/{'longwinded' * 6}"
    message = {
        "name": "Wolfeschlegelsteinhausenbergerdorff" * 3,
        "author": "w",
        "text": "Donaudampfschiff" * 30,
    }
    httpx.post(f"{server.url}/topics/{path}", json=message).raise_for_status()
    expect(phone.texts).to_have_count(1)
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 320
    assert phone.page.evaluate("scroller.scrollWidth <= scroller.clientWidth")
    for button in phone.page.locator("button:visible").all():
        box = button.bounding_box()
        assert box is not None
        assert round(box["height"]) >= 44
    phone.page.get_by_role("button", name="Rooms and your name").click()
    expect(phone.page.get_by_role("link", name="random")).to_be_in_viewport()
    phone.page.get_by_role("link", name="random").click()
    expect(phone.page.get_by_role("heading", level=1)).to_have_text("#random")
    expect(phone.page.get_by_role("link", name="random")).to_be_hidden()


def test_who_reads_further_up_is_left_in_peace(visit: Visit, room: str, publish: Publish) -> None:
    """The page follows the end, unless someone scrolled up: then a button says what is new."""
    for n in range(30):
        publish(f"line {n}")
    ada = visit()
    ada.arrive(room, None)
    expect(ada.page.get_by_role("log")).to_have_attribute("aria-live", "polite")
    expect(ada.texts.last).to_be_in_viewport()
    ada.page.get_by_role("region", name="Conversation").hover()
    ada.page.mouse.wheel(0, -600)
    expect(ada.texts.last).not_to_be_in_viewport()
    publish("news")
    button = ada.page.get_by_role("button", name="1 new message")
    expect(button).to_be_visible()
    expect(ada.texts.last).not_to_be_in_viewport()
    button.click()
    expect(ada.texts.last).to_be_in_viewport()
    expect(button).to_be_hidden()
    publish("more news")
    expect(ada.texts.last).to_have_text("more news")
    expect(ada.texts.last).to_be_in_viewport()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser: Browser, server: Server, scheme: str) -> None:
    """The page follows the system's colour scheme."""
    dark = scheme == "dark"
    context = browser.new_context(color_scheme="dark" if dark else "light")
    page = context.new_page()
    page.goto(server.url)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    context.close()
    assert brightness < 60 if dark else brightness > 200
