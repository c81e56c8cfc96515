"""The message board in a real browser: somebody who uses it, for the tests of what people see."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol
from urllib.parse import quote

from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

from .serving import Server

EVENTS = "**/events?*"

expect.set_options(timeout=30_000)


class Served(Protocol):
    """Anything that a board is served at."""

    url: str


def cut(route: Route) -> None:
    """As if the network had broken."""
    route.abort()


class Person:
    """Somebody with a browser of their own, in one room."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.complaints: list[str] = []
        self.addresses: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self._overhear(message.type, message.text))
        self.page.on("request", lambda request: self.addresses.append(request.url))

    def _overhear(self, kind: str, text: str) -> None:
        # A request that failed is often what a test is about; a script error or a CSP violation never is.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.complaints.append(text)

    def arrive(self, room: str, name: str | None = "Ada") -> None:
        """Open the board, and join under a name if one is given."""
        self.page.goto(f"{self.url}/#{quote(room)}")
        expect(self.link).to_have_text("live")
        if name is not None:
            self.name_field.fill(name)
            self.page.get_by_role("button", name="Join").click()
            expect(self.composer).to_be_visible()

    @property
    def link(self) -> Locator:
        return self.page.locator("#link")

    @property
    def status(self) -> Locator:
        return self.page.locator("#status")

    @property
    def name_field(self) -> Locator:
        return self.page.get_by_label("Name", exact=True)

    @property
    def composer(self) -> Locator:
        return self.page.get_by_label("Message to")

    @property
    def texts(self) -> Locator:
        """What has been said, oldest first; not what is still to be sent."""
        return self.page.get_by_role("log").locator(".text")

    @property
    def drafts(self) -> Locator:
        return self.page.get_by_role("list", name="Not sent yet").get_by_role("listitem")

    def say(self, text: str) -> None:
        self.composer.fill(text)
        self.composer.press("Enter")

    def lose_the_stream(self) -> None:
        """Cut it off, and let no other one through."""
        self.page.route(EVENTS, cut)
        self.change_network()
        expect(self.link).to_have_text("reconnecting")

    def find_the_stream(self) -> None:
        """Let streams through again, from the next one that the page opens."""
        self.context.set_offline(True)
        self.page.unroute(EVENTS, cut)
        self.context.set_offline(False)

    def spoil_the_session(self) -> None:
        """Make its cookie worthless, as a new key of the hub or the passing of a week would."""
        (cookie,) = self.context.cookies()
        assert cookie["httpOnly"]
        self.context.add_cookies([{**cookie, "value": "spoilt"}])  # type: ignore[typeddict-item]

    def change_network(self) -> None:
        """Offline does not cut a stream that is open; coming online makes the page open a new one."""
        self.context.set_offline(True)
        self.context.set_offline(False)


class Visit(Protocol):
    """Opens a browser window for another person."""

    def __call__(self, *, server: Served = ..., width: int = ..., touch: bool = ...) -> Person: ...


@contextlib.contextmanager
def visits(browser: Browser, default: Server) -> Iterator[Visit]:
    """Opens windows for the length of a `with` block; in none of them may anything complain."""
    people: list[Person] = []

    def visit(*, server: Served = default, width: int = 1280, touch: bool = False) -> Person:
        context = browser.new_context(viewport={"width": width, "height": 720}, has_touch=touch, is_mobile=touch)
        people.append(Person(context, server.url))
        return people[-1]

    yield visit
    for person in people:
        person.context.close()
    assert [person.complaints for person in people if person.complaints] == []
