"""Each example as a person runs it: a process of its own, read over a socket, and its page in a real browser."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import BrowserContext, Dialog, Page, expect, sync_playwright

from trio_sse import Authority

from .chromium import CHROMIUM, FLAGS, in_chromium
from .serving import ROOT, Server, free_port, serving

WITHIN_S = 30
"""The longest that a test waits for anything."""

get = partial(httpx.get, timeout=WITHIN_S)
post = partial(httpx.post, timeout=WITHIN_S)

OPENING = rb": stream\nretry: 2000\nid: \d+-0\n\n"
RFC_3339 = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"
KEY = "a key of the tests, which nobody else has to know"

FOLDER = ROOT / "examples"
PROGRAMS = [path.stem for path in sorted(FOLDER.glob("*.py")) if path.stem not in ("__init__", "run")]

DEFAULTS: dict[str, dict[str, float]] = {
    "ticker": {"port": 8080, "every": 2.0},
    "push": {"port": 9999},
    "progress": {"port": 9090, "every": 0.3},
    "updates": {"port": 8080, "every": 2.0},
    "notifications": {"port": 8081, "every": 1.0},
    "metrics": {"port": 8082, "every": 5.0},
    "chat": {"port": 8083},
}


class Example:
    """One `python -m examples.NAME`, what it said, and where it listens."""

    def __init__(self, name: str, args: tuple[str, ...], folder: Path, env: Mapping[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._out, self._err = folder / f"{name}.out", folder / f"{name}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*command(name), "--port", str(self.port), *args],
                cwd=ROOT,
                env={**os.environ, **env},
                stdout=out,
                stderr=err,
            )

    def said(self) -> str:
        """What it told the person who started it."""
        return self._out.read_text()

    def log(self) -> str:
        """What it wrote into its log."""
        return self._err.read_text()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WITHIN_S)


def command(name: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", f"examples.{name}"]


def wait_until(condition: Callable[[], object], what: str, page: Page | None = None) -> None:
    """Return as soon as a condition holds; a page's events are told only while the page is asked something.

    Raises:
      TimeoutError: it did not, within the time.
    """
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        if page is not None:
            page.evaluate("null")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {WITHIN_S} s")
        time.sleep(0.02)


@contextlib.contextmanager
def running(name: str, *args: str, folder: Path, **env: str) -> Iterator[Example]:
    """An example that answers, for the length of a `with` block."""
    example = Example(name, args, folder, env)
    try:
        wait_until(lambda: "Open http" in example.said() or example.process.poll() is not None, "start-up")
        assert example.process.poll() is None, example.log()
        yield example
        assert "Traceback" not in example.log()
    finally:
        example.process.kill()
        example.process.wait()


class Reader:
    """A client in the middle of a stream, which looks at the bytes as they come."""

    def __init__(self, response: httpx.Response) -> None:
        assert response.status_code == 200, response.read()
        self.headers = response.headers
        self._chunks = response.iter_raw()
        self._bytes = b""

    def block(self) -> bytes:
        """The next block, with its blank line."""
        while b"\n\n" not in self._bytes:
            self._bytes += next(self._chunks)
        block, _, self._bytes = self._bytes.partition(b"\n\n")
        return block + b"\n\n"

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        return self._bytes + b"".join(self._chunks)


@contextlib.contextmanager
def reading(url: str, headers: Mapping[str, str] | None = None) -> Iterator[Reader]:
    """A stream that is open for the length of a `with` block."""
    with httpx.stream("GET", url, headers=headers, timeout=WITHIN_S) as response:
        yield Reader(response)


def blocks(url: str, number: int, headers: Mapping[str, str] | None = None) -> list[bytes]:
    """The first blocks of a stream."""
    with reading(url, headers) as stream:
        return [stream.block() for _ in range(number)]


def event_id(block: bytes) -> str:
    match = re.search(rb"^id: (.+)$", block, re.MULTILINE)
    assert match is not None
    return match[1].decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def ticker(folder: Path) -> Iterator[Example]:
    with running("ticker", "--every", "0.1", folder=folder) as example:
        yield example


@pytest.fixture(scope="module")
def push(folder: Path) -> Iterator[Example]:
    with running("push", folder=folder, TRIO_SSE_JWT_KEY=KEY) as example:
        yield example


@pytest.fixture(scope="module")
def progress(folder: Path) -> Iterator[Example]:
    with running("progress", "--every", "0.05", folder=folder) as example:
        yield example


@pytest.fixture(scope="module")
def updates(folder: Path) -> Iterator[Example]:
    with running("updates", "--every", "0.1", folder=folder) as example:
        yield example


@pytest.fixture(scope="module")
def notified_file(folder: Path) -> Path:
    file = folder / "notifications.txt"
    file.write_text("written before the start\n")
    return file


@pytest.fixture(scope="module")
def notifications(folder: Path, notified_file: Path) -> Iterator[Example]:
    with running("notifications", "--every", "0.05", "--file", str(notified_file), folder=folder) as example:
        yield example


@pytest.fixture(scope="module")
def metrics(folder: Path) -> Iterator[Example]:
    with running("metrics", "--every", "0.1", folder=folder) as example:
        yield example


@pytest.fixture(scope="module")
def chat(folder: Path) -> Iterator[Example]:
    with running("chat", folder=folder) as example:
        yield example


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as launched:
        context = launched.new_context()
        context.set_default_timeout(WITHIN_S * 1000)
        expect.set_options(timeout=WITHIN_S * 1000)
        yield context


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    """A fresh tab, in which no script may fail."""
    tab = browser.new_page()
    failures: list[str] = []
    tab.on("pageerror", lambda error: failures.append(str(error)))
    yield tab
    tab.close()
    assert not failures


def console(page: Page) -> list[str]:
    """What the page logs from now on."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    return said


def alerts(page: Page) -> list[str]:
    """What the page alerts from now on; each is dismissed."""
    said: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    return said


# -- all of them --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def defaults() -> dict[str, dict[str, object]]:
    """What each example's options are when nobody says otherwise; asked of a process of its own."""
    script = (
        "import importlib, json, sys\n"
        "mains = {name: importlib.import_module('examples.' + name).main for name in sys.argv[1:]}\n"
        "options = {name: {o.name: o.default for o in main.params} for name, main in mains.items()}\n"
        "print(json.dumps(options, default=str))"
    )
    options = subprocess.check_output([sys.executable, "-c", script, *DEFAULTS], cwd=ROOT, timeout=WITHIN_S)
    return dict(json.loads(options))


@pytest.mark.parametrize("name", DEFAULTS)
def test_has_the_port_and_the_pace_of_its_description(name: str, defaults: dict[str, dict[str, object]]) -> None:
    """What nobody chooses otherwise is as the description says."""
    assert DEFAULTS[name].items() <= defaults[name].items()


@pytest.mark.parametrize("name", PROGRAMS)
def test_its_first_lines_say_how_to_run_it(name: str) -> None:
    """A docstring's second paragraph is the command."""
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert docstring is not None
    assert re.match(rf".+\n\n    \.venv/bin/(python -m|hypercorn) examples\.{name}\b", docstring)


def test_a_port_in_use_ends_with_one_clear_line() -> None:
    """Whoever starts a second one is told what is wrong, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        end = subprocess.run(
            [*command("ticker"), "--port", str(port)], cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S
        )
    assert end.returncode == 1
    assert end.stderr == f"Error: port {port}: Address already in use. Choose another with --port.\n"


# -- ticker -------------------------------------------------------------------------------------------------


def test_ticker_says_which_url_to_open(ticker: Example) -> None:
    """Start-up tells a person where to look."""
    assert ticker.said() == f"Open {ticker.url}/ in a browser. Ctrl-C ends it.\n"


def test_ticker_opens_with_the_position(ticker: Example) -> None:
    """The first bytes come at once: a comment, the reconnection time, a cursor."""
    (opening,) = blocks(f"{ticker.url}/events", 1)
    assert re.fullmatch(OPENING, opening)


def test_ticker_says_hello_and_the_time(ticker: Example) -> None:
    """A hello is data, with the journal's ID and no type."""
    _, hello = blocks(f"{ticker.url}/events", 2)
    assert re.fullmatch(rb"id: \d+-\d+\ndata: hello, now is: " + RFC_3339 + rb"\n\n", hello)


def test_ticker_says_the_same_to_everybody(ticker: Example) -> None:
    """Two clients get the same bytes."""
    with reading(f"{ticker.url}/events") as one, reading(f"{ticker.url}/events") as other:
        one.block(), other.block()
        hello = other.block()
        wait_until(lambda: one.block() == hello, "the same hello")


def test_ticker_counts_its_consumers(ticker: Example) -> None:
    """The log says how many a hello was sent to."""
    with reading(f"{ticker.url}/events"), reading(f"{ticker.url}/events"):
        wait_until(lambda: "Hello has been sent (consumers: 2)\n" in ticker.log(), "a hello to two")


def test_ticker_notices_that_all_have_left(ticker: Example) -> None:
    """The count goes back to zero."""
    blocks(f"{ticker.url}/events", 2)
    wait_until(lambda: ticker.log().endswith("Hello has been sent (consumers: 0)\n"), "a hello to nobody")


def test_ticker_gives_a_browser_that_returns_what_it_missed(ticker: Example) -> None:
    """A reader that comes back with an ID goes on right after it."""
    _, first, second = blocks(f"{ticker.url}/events", 3)
    _, after_first = blocks(f"{ticker.url}/events", 2, {"Last-Event-ID": event_id(first)})
    assert after_first == second


def test_ticker_adds_a_response_header(ticker: Example) -> None:
    """An application's own headers stand beside those of the stream."""
    with reading(f"{ticker.url}/events") as stream:
        assert stream.headers["X-Every"] == "0.1"
        assert stream.headers["Content-Type"] == "text/event-stream"


@pytest.mark.parametrize(("host", "allowed"), [("localhost", True), ("elsewhere", False)])
def test_ticker_allows_the_origins_on_its_list(ticker: Example, host: str, allowed: bool) -> None:
    """A page of an origin on the list may read the stream, and no other."""
    origin = f"http://{host}:{ticker.port}"
    with reading(f"{ticker.url}/events", {"Origin": origin}) as stream:
        assert stream.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)


def test_ticker_has_a_page_that_names_the_stream_in_full(ticker: Example) -> None:
    """`/c1.html` finds the stream wherever it is kept."""
    assert f'href="{ticker.url}/events"' in get(f"{ticker.url}/c1.html").text


def test_ticker_says_goodbye_and_exits_with_zero(tmp_path: Path) -> None:
    """SIGTERM ends every stream in good order, then the process."""
    with running("ticker", folder=tmp_path) as own, reading(f"{own.url}/events") as stream:
        stream.block()
        assert own.stop() == 0
        assert re.fullmatch(rb'event: trio-sse\.goodbye\nretry: \d+\ndata: \{"reason": "shutdown"\}\n\n', stream.rest())


@in_chromium
def test_ticker_page_shows_each_hello(ticker: Example, page: Page) -> None:
    """Each message is appended to the list."""
    page.goto(ticker.url)
    expect(page.locator("#log li").nth(2)).to_contain_text("hello, now is: ")


@in_chromium
def test_ticker_page_works_from_another_origin(ticker: Example, page: Page) -> None:
    """To a browser localhost and 127.0.0.1 are two origins."""
    page.goto(f"http://localhost:{ticker.port}/c1.html")
    expect(page.locator("#log li").first).to_contain_text("hello, now is: ")


@in_chromium
def test_ticker_page_logs_the_state_on_error(tmp_path: Path, page: Page) -> None:
    """When the server goes away, the page says that it is connecting again."""
    logged = console(page)
    with running("ticker", "--every", "0.1", folder=tmp_path) as own:
        page.goto(own.url)
        expect(page.locator("#log li").first).to_be_visible()
        own.stop()
        wait_until(lambda: "readyState 0" in logged, "the error", page)


# -- push ---------------------------------------------------------------------------------------------------


def token_of(user: str, ttl_s: int = 60) -> str:
    return Authority(KEY).issue(user, now=time.time(), ttl_s=ttl_s)


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token_of(user)}"}


def say(push: Example, user: str, text: str) -> httpx.Response:
    return get(f"{push.url}/msg", params={"msg": text}, headers=bearer(user))


@pytest.mark.parametrize("path", ["/events", "/events?token=", "/msg?msg=x"])
def test_push_requires_a_token(push: Example, path: str) -> None:
    """Without a token: 400, in so many words."""
    answer = get(push.url + path)
    assert (answer.status_code, answer.text) == (400, "token is required")


@pytest.mark.parametrize("token", ["nonsense", "Bearer nonsense", "é"])
def test_push_refuses_a_bad_token(push: Example, token: str) -> None:
    """With a token that does not hold: 401, in so many words."""
    answer = get(f"{push.url}/events", params={"token": token})
    assert (answer.status_code, answer.text) == (401, "token is invalid")


def test_push_refuses_a_message_with_a_bad_token(push: Example) -> None:
    """Nobody speaks in the name of another."""
    answer = get(f"{push.url}/msg?msg=x", headers={"Authorization": "Bearer nonsense"})
    assert (answer.status_code, answer.text) == (401, "token is invalid")


def test_push_refuses_a_token_that_names_no_user(push: Example) -> None:
    """A token is an address only if somebody is in it."""
    token = Authority(KEY).issue(None, now=time.time(), ttl_s=60)
    assert get(f"{push.url}/events", params={"token": token}).status_code == 401


def test_push_requires_a_message(push: Example) -> None:
    """There is something to push, or a 400."""
    answer = get(f"{push.url}/msg", headers=bearer("ada"))
    assert (answer.status_code, answer.text) == (400, "msg is required")


@pytest.mark.parametrize("prefix", ["", "Bearer "])
def test_push_takes_the_token_from_the_url(push: Example, prefix: str) -> None:
    """As native EventSource has to send it, with or without the word before it."""
    with httpx.stream(
        "GET", f"{push.url}/events", params={"token": prefix + token_of("ada")}, timeout=WITHIN_S
    ) as response:
        assert re.fullmatch(OPENING, Reader(response).block())


def test_push_takes_the_token_from_a_header(push: Example) -> None:
    """As every client that can should send it."""
    (opening,) = blocks(f"{push.url}/events", 1, bearer("ada"))
    assert re.fullmatch(OPENING, opening)


def test_push_answers_with_nothing_more_to_say(push: Example) -> None:
    """A message that was taken is answered 204."""
    assert say(push, "nobody", "hello").status_code == 204


def test_push_reaches_all_connections_of_a_user(push: Example) -> None:
    """A second tab gets the message as well as the first."""
    url = f"{push.url}/events"
    with reading(url, bearer("tabs")) as one, reading(url, bearer("tabs")) as other:
        one.block(), other.block()
        say(push, "tabs", "hello")
        for tab in (one, other):
            assert re.fullmatch(rb"id: \d+-\d+\ndata: hello\n\n", tab.block())


def test_push_reaches_nobody_else(push: Example) -> None:
    """The first that one user gets is the first that was meant for that user."""
    with reading(f"{push.url}/events", bearer("eve")) as stream:
        stream.block()
        say(push, "ada", "for Ada")
        say(push, "eve", "for Eve")
        assert stream.block().endswith(b"\ndata: for Eve\n\n")


def test_push_keeps_several_lines_one_message(push: Example) -> None:
    """Line ends cannot break the frame."""
    with reading(f"{push.url}/events", bearer("lines")) as stream:
        stream.block()
        say(push, "lines", "one\ntwo\r\n\r\nevent: four")
        assert stream.block().endswith(b"\ndata: one\ndata: two\ndata: \ndata: event: four\n\n")


def test_push_logs_who_left(push: Example) -> None:
    """The server notices that a client has gone."""
    blocks(f"{push.url}/events", 1, bearer("leaver"))
    wait_until(lambda: "client leaver disconnected\n" in push.log(), "the departure")


def test_push_ends_a_stream_with_its_token(push: Example) -> None:
    """A token that expires takes its stream with it."""
    with reading(f"{push.url}/events?token={token_of('brief', ttl_s=5)}") as stream:
        assert b'data: {"reason": "expired"}\n\n' in stream.rest()


def test_push_prints_a_token_that_works(tmp_path: Path) -> None:
    """Whoever starts it without a key gets something to paste."""
    with running("push", "--user", "zoe", folder=tmp_path, TRIO_SSE_JWT_KEY="") as own:
        heading, token = own.said().splitlines()[:2]
        assert heading == "Token of zoe, for an hour:"
        assert blocks(f"{own.url}/events?token={token}", 1)


def test_push_keeps_tokens_out_of_its_log(push: Example) -> None:
    """Neither those that hold nor those that do not."""
    token = token_of("secretive")
    blocks(f"{push.url}/events?token={token}", 1)
    get(f"{push.url}/events?token={token}spoilt")
    wait_until(lambda: "client secretive disconnected\n" in push.log(), "the departure")
    assert token not in push.log() + push.said()


def test_push_keeps_tokens_out_of_hypercorns_access_log(folder: Path) -> None:
    """Also where the operator has asked for the query to be logged."""
    token = token_of("secretive")
    args = ("--access-logfile", "-", "--access-logformat", "%(R)s %(q)s")
    env = {"TRIO_SSE_JWT_KEY": KEY}
    with serving("examples.push:app", folder=folder, env=env, args=args, ready_path="/") as server:
        blocks(f"{server.url}/events?token={token}", 1)
        wait_until(lambda: "token=" in server.log(), "the line in the log")
        assert token not in server.log()


@in_chromium
def test_push_page_asks_for_a_token(push: Example, page: Page) -> None:
    """Connecting without a token alerts."""
    alerted = alerts(page)
    page.goto(push.url)
    page.get_by_role("button", name="Connect").click()
    assert alerted == ["Please enter a Token."]


@in_chromium
def test_push_page_asks_for_a_message(push: Example, page: Page) -> None:
    """Sending nothing alerts."""
    alerted = alerts(page)
    page.goto(push.url)
    page.get_by_label("Token").fill(token_of("ada"))
    page.get_by_role("button", name="Send").click()
    assert alerted == ["Please enter a message."]


def connect(push: Example, page: Page, user: str) -> None:
    """Open the page, and connect it."""
    logged = console(page)
    page.goto(push.url)
    page.get_by_label("Token").fill(f"Bearer {token_of(user)}")
    page.get_by_role("button", name="Connect").click()
    wait_until(lambda: "SSE connection established." in logged, "the connection", page)


@in_chromium
@pytest.mark.parametrize("text", ["50 % of 1+1 & more #?", "<img src=x onerror=alert(1)>", "one\ntwo"])
def test_push_page_sends_and_shows_any_text(push: Example, page: Page, text: str) -> None:
    """What was typed is what is shown: encoded on its way out, text and not markup on its way in."""
    alerted = alerts(page)
    connect(push, page, "browser")
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()
    wait_until(lambda: page.locator("#messages li").count(), "the message")
    assert page.locator("#messages li").all_inner_texts() == [f"New message: {text}"]
    assert not alerted


@in_chromium
def test_push_page_scrolls_to_the_newest(push: Example, page: Page) -> None:
    """However many there are, the last is in view."""
    connect(push, page, "talker")
    for number in range(40):
        say(push, "talker", f"number {number}")
    expect(page.locator("#messages li").nth(39)).to_be_in_viewport()


@in_chromium
def test_push_page_says_that_it_cannot_connect(push: Example, page: Page) -> None:
    """An error alerts once, and the stream is closed for good."""
    alerted = alerts(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(push.url)
    page.get_by_label("Token").fill("nonsense")
    page.get_by_role("button", name="Connect").click()
    wait_until(lambda: alerted, "the alert", page)
    assert alerted == ["Error connecting to server."]
    assert sum("/events" in url for url in asked) == 1


# -- progress -----------------------------------------------------------------------------------------------


def steps(first: int, last: int) -> bytes:
    """The bytes of some steps of the job."""
    return b"".join(
        b'id: %d\ndata: {"resMsg":"server sent event message: %d","status":200}\n\n' % (number, number)
        for number in range(first, last + 1)
    )


def test_progress_sends_ten_events_and_closes(progress: Example) -> None:
    """Byte for byte, up to the end."""
    assert get(f"{progress.url}/sse").content == b": stream\nretry: 2000\n" + steps(1, 10)


def test_progress_is_over_for_who_has_it_all(progress: Example) -> None:
    """A browser that comes back with the last ID is answered 204, and never asks again."""
    answer = get(f"{progress.url}/sse", headers={"Last-Event-ID": "10"})
    assert (answer.status_code, answer.content) == (204, b"")


def test_progress_goes_on_where_it_broke(progress: Example) -> None:
    """A browser that lost the connection half-way is given the rest."""
    answer = get(f"{progress.url}/sse", headers={"Last-Event-ID": "7"})
    assert answer.content == b": stream\nretry: 2000\n" + steps(8, 10)


@pytest.mark.parametrize("strange", ["11", "-1", "0", "1e1", "1700000000000-3"])
def test_progress_begins_anew_for_an_id_it_never_gave(progress: Example, strange: str) -> None:
    """What is no number of a step is no progress."""
    (first,) = blocks(f"{progress.url}/sse", 1, {"Last-Event-ID": strange})
    assert first.endswith(steps(1, 1))


def test_progress_closes_for_a_client_that_reads_to_the_end(progress: Example) -> None:
    """`Connection: close` means it."""
    with (
        socket.create_connection(("127.0.0.1", progress.port), timeout=WITHIN_S) as client,
        client.makefile("rb") as file,
    ):
        client.sendall(b"GET /sse HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert file.read().endswith(b"\r\n0\r\n\r\n")


def test_progress_stops_the_job_when_the_client_leaves(progress: Example) -> None:
    """The work does not outlive the request."""
    blocks(f"{progress.url}/sse", 1)
    wait_until(lambda: "client disconnected; the job is stopped\n" in progress.log(), "the end of the job")


@pytest.mark.parametrize("client", ["progress_lines", "progress_client"])
def test_progress_has_a_client_that_ends_with_it(progress: Example, client: str) -> None:
    """Each prints ten messages, and ends when the server closes."""
    end = subprocess.run(
        [*command(client), "--url", f"{progress.url}/sse"], cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S
    )
    messages = [f"server sent event message: {number}" for number in range(1, 11)]
    assert end.stdout.splitlines() == [*messages, "The server closed the stream."]
    assert end.returncode == 0


@pytest.mark.parametrize("client", ["progress_lines", "progress_client"])
def test_progress_has_a_client_that_says_when_nobody_is_there(client: str) -> None:
    """One line that names the URL, and an exit status."""
    url = f"http://127.0.0.1:{free_port()}/sse"
    end = subprocess.run([*command(client), "--url", url], cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S)
    assert end.returncode == 1
    assert re.fullmatch(rf"Error: {re.escape(url)}: .+\n", end.stderr)


@in_chromium
def test_progress_page_rests_when_the_job_is_done(progress: Example, page: Page) -> None:
    """The browser asks twice: for the job, and to be told that there is no more."""
    answers: list[int] = []
    page.on("response", lambda response: answers.append(response.status) if response.url.endswith("/sse") else None)
    page.goto(progress.url)
    expect(page.get_by_text("Done.", exact=True)).to_be_visible()
    wait_until(lambda: answers == [200, 204], "the answers", page)


# -- updates ------------------------------------------------------------------------------------------------


def test_updates_greets_at_once(updates: Example) -> None:
    """The first event has a type of its own."""
    (greeting,) = blocks(f"{updates.url}/events", 1)
    assert greeting == b": stream\nretry: 2000\nevent: connected\ndata: Connection established\n\n"


def test_updates_tells_the_time(updates: Example) -> None:
    """Then numbered updates, whose data repeats number and type."""
    for number, update in enumerate(blocks(f"{updates.url}/events", 3)[1:], 1):
        head = b'id: %d\nevent: update\ndata: {"id":%d,"event":"update","data":"Current time: ' % (number, number)
        assert re.fullmatch(re.escape(head) + RFC_3339 + rb'"\}\n\n', update)


def test_updates_is_open_to_every_origin(updates: Example) -> None:
    """Any page may read it."""
    with reading(f"{updates.url}/events", {"Origin": "http://anywhere.example"}) as stream:
        assert stream.headers["Access-Control-Allow-Origin"] == "*"


def test_updates_notices_that_a_client_left(updates: Example) -> None:
    """Its generator is closed, and says so."""
    before = updates.log().count("Client disconnected\n")
    with reading(f"{updates.url}/events") as stream:
        stream.block()
    wait_until(lambda: updates.log().count("Client disconnected\n") > before, "the departure")


@in_chromium
def test_updates_page_listens_to_both_events(updates: Example, page: Page) -> None:
    """The greeting, and what follows it."""
    page.goto(updates.url)
    expect(page.locator("#log li").first).to_have_text("Connection established")
    expect(page.locator("#log li").nth(1)).to_contain_text("1. Current time: ")


# -- notifications ------------------------------------------------------------------------------------------


def append(file: Path, text: str) -> None:
    with file.open("a", newline="") as end:
        end.write(text)


def test_notifications_tells_of_a_new_line(notifications: Example, notified_file: Path) -> None:
    """A line becomes an event of its own type; what was there before the start does not."""
    with reading(f"{notifications.url}/events") as stream:
        assert re.fullmatch(OPENING, stream.block())
        append(notified_file, "Dinner is ready\n")
        assert re.fullmatch(rb"id: \d+-\d+\nevent: notification\ndata: Dinner is ready\n\n", stream.block())


def test_notifications_waits_for_the_end_of_a_line(notifications: Example, notified_file: Path) -> None:
    """A line that is written in two pieces is one notification."""
    with reading(f"{notifications.url}/events") as stream:
        stream.block()
        append(notified_file, "whole\nfirst half, ")
        assert stream.block().endswith(b"\ndata: whole\n\n")
        append(notified_file, "second half\n")
        assert stream.block().endswith(b"\ndata: first half, second half\n\n")


def test_notifications_keeps_what_was_missed(notifications: Example, notified_file: Path) -> None:
    """A browser that was away is told of what came meanwhile."""
    (opening,) = blocks(f"{notifications.url}/events", 1)
    append(notified_file, "while you were away\n")
    _, missed = blocks(f"{notifications.url}/events", 2, {"Last-Event-ID": event_id(opening)})
    assert missed.endswith(b"\ndata: while you were away\n\n")


def test_notifications_begins_again_with_a_truncated_file(notifications: Example, notified_file: Path) -> None:
    """A file that has become shorter is read from its beginning."""
    with reading(f"{notifications.url}/events") as stream:
        stream.block()
        append(notified_file, "the last of the old\n")
        assert stream.block().endswith(b"\ndata: the last of the old\n\n")
        notified_file.write_text("anew\n")
        assert stream.block().endswith(b"\ndata: anew\n\n")
        append(notified_file, "and on\n")
        assert stream.block().endswith(b"\ndata: and on\n\n")


@pytest.mark.parametrize("name", ["notifications", "metrics", "chat"])
def test_the_family_notices_that_a_client_left(name: str, request: pytest.FixtureRequest) -> None:
    """What the originals never did."""
    example: Example = request.getfixturevalue(name)
    before = example.log().count("client 127.0.0.1 disconnected\n")
    blocks(f"{example.url}/events", 1)
    wait_until(lambda: example.log().count("client 127.0.0.1 disconnected\n") > before, "the departure")


@in_chromium
def test_notifications_page_shows_them(notifications: Example, notified_file: Path, page: Page) -> None:
    """The newest stands first, and as text."""
    with page.expect_response(f"{notifications.url}/events"):
        page.goto(notifications.url)
    append(notified_file, "older\n<b>newer</b>\n")
    expect(page.locator("#log li")).to_have_text(["<b>newer</b>", "older"])


# -- metrics ------------------------------------------------------------------------------------------------


def test_metrics_measures_the_machine(metrics: Example) -> None:
    """Shares between 0 and 1, and how many are listening."""
    _, block = blocks(f"{metrics.url}/events", 2)
    match = re.fullmatch(rb"id: \d+-\d+\nevent: metrics\ndata: (\{.*\})\n\n", block)
    assert match is not None
    measured = json.loads(match[1])
    assert list(measured) == ["time", "cpu", "memory", "streams"]
    assert 0 <= measured["cpu"] <= 1
    assert 0 < measured["memory"] < 1


def test_metrics_begins_with_the_earliest_that_is_kept(tmp_path: Path) -> None:
    """Who comes later sees the same past."""
    with running("metrics", "--every", "0.5", folder=tmp_path) as own:  # of which it keeps a hundred
        _, first, second = blocks(f"{own.url}/events", 3)
        assert blocks(f"{own.url}/events", 3)[1:] == [first, second]


@in_chromium
def test_metrics_page_draws_them(metrics: Example, page: Page) -> None:
    """Each measurement is a point of both curves."""
    page.goto(metrics.url)
    for curve in ("cpu", "memory"):
        expect(page.locator(f"polyline.{curve}")).to_have_attribute("points", re.compile(r"^\S+,\S+ \S+,\S+"))
    expect(page.locator("#memory")).to_have_text(re.compile(r"^\d+ %$"))


@in_chromium
def test_metrics_has_a_point_at_once(tmp_path: Path, page: Page) -> None:
    """Nobody waits for the second measurement to see the first."""
    with running("metrics", "--every", "3600", folder=tmp_path) as own:
        page.goto(own.url)
        expect(page.locator("#memory")).to_have_text(re.compile(r"^\d+ %$"))
        for curve in ("cpu", "memory"):
            dot = page.locator(f"polyline.{curve}.dot")
            expect(dot).to_have_attribute("points", re.compile(r"^(100,\S+) \1$"))
            expect(dot).to_have_css("stroke-linecap", "round")


# -- chat ---------------------------------------------------------------------------------------------------


def test_chat_reaches_everybody(chat: Example) -> None:
    """Also who said it; line ends and all."""
    with reading(f"{chat.url}/events") as one, reading(f"{chat.url}/events") as other:
        said = {"name": "Ada", "text": "one\ntwo"}
        assert post(f"{chat.url}/messages", json=said).status_code == 204
        heard = rb'(?s)event: said\ndata: \{"name": "Ada", "text": "one\\ntwo"\}\n\n$'
        for stream in (one, other):
            wait_until(lambda: re.search(heard, stream.block()), "the message")  # noqa: B023


def test_chat_tells_who_comes_later(chat: Example) -> None:
    """The past comes first."""
    post(f"{chat.url}/messages", json={"name": "Ada", "text": "first words"})
    with reading(f"{chat.url}/events") as stream:
        wait_until(lambda: b"first words" in stream.block(), "the past")


@pytest.mark.parametrize("said", [{"name": "", "text": "x"}, {"name": "Ada"}, {"name": "Ada", "text": 7}, ["Ada"]])
def test_chat_refuses_what_cannot_be_said(chat: Example, said: object) -> None:
    """A name and a text, or a 400 that says what is missing."""
    answer = post(f"{chat.url}/messages", json=said)
    assert answer.status_code == 400
    assert re.fullmatch(r"(name|text) is 1 to \d+ characters", answer.text)


def test_chat_refuses_what_another_sites_page_could_send(chat: Example) -> None:
    """A form or a simple request cannot speak for a visitor."""
    headers = {"Content-Type": "text/plain"}
    answer = post(f"{chat.url}/messages", content=b'{"name":"Ada","text":"x"}', headers=headers)
    assert 400 <= answer.status_code < 500


@in_chromium
def test_chat_page_carries_a_message_to_another(chat: Example, page: Page, browser: BrowserContext) -> None:
    """What one types, both see, as text."""
    other = browser.new_page()
    for tab in (page, other):
        tab.goto(chat.url)
    page.get_by_label("Name").fill("Ada")
    page.get_by_label("Message").fill("<b>hello</b>")
    page.get_by_label("Message").press("Enter")
    for tab in (page, other):
        expect(tab.locator("#log li").last).to_have_text("Ada: <b>hello</b>")
    other.close()


# -- in your own application --------------------------------------------------------------------------------


class App:
    """One of the applications under Hypercorn, and where its stream is and its publishers go."""

    def __init__(self, server: Server, events: str, publish: str, *, as_json: bool) -> None:
        self.server = server
        self.events = server.url + events
        self._publish = server.url + publish
        self._as_json = as_json

    def publish(self, text: str) -> str:
        """Publish one event; its ID."""
        sent = {"json": {"text": text}} if self._as_json else {"content": text}
        answer = post(self._publish, **sent)
        assert answer.status_code == 201
        return str(answer.json()["id"]) if self._as_json else answer.text.strip()


@pytest.fixture(scope="module", params=["quart_app", "starlette_app", "fastapi_app"])
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    with serving(f"examples.{name}:app", folder=folder, ready_path="/nothing") as server:
        if name == "quart_app":
            yield App(server, "/news", "/news", as_json=False)
        elif name == "starlette_app":
            yield App(server, "/events", "/messages", as_json=False)
        else:
            yield App(server, "/events/room/42", "/topics/room/42", as_json=True)


def test_app_streams_what_is_published(app: App) -> None:
    """The opening, then the event under the ID that its publisher was told."""
    event_id = app.publish("It works")
    opening, event, *_ = blocks(app.events, 2)
    assert re.fullmatch(OPENING, opening)
    assert event == f"id: {event_id}\ndata: It works\n\n".encode()


def test_app_goes_on_after_the_last_event_id(app: App) -> None:
    """A browser that returns gets what it missed, and nothing twice."""
    seen = app.publish("seen")
    missed = app.publish("missed")
    opening, event = blocks(app.events, 2, {"Last-Event-ID": seen})
    assert event_id(opening) == seen
    assert event == f"id: {missed}\ndata: missed\n\n".encode()


@pytest.mark.parametrize("app", ["quart_app"], indirect=True)
def test_app_streams_a_channel_until_it_is_closed(app: App) -> None:
    """The progress of a job, then the end."""
    reported = b"".join(b"event: progress\ndata: %d %%\n\n" % percent for percent in range(0, 101, 20))
    done = b"event: done\ndata: done\n\n"
    assert get(f"{app.server.url}/progress").content == b": stream\nretry: 2000\n" + reported + done


@pytest.mark.parametrize("app", ["fastapi_app"], indirect=True)
@pytest.mark.parametrize("topic", ["", "room//42", "user/*"])
def test_app_refuses_what_is_no_topic(app: App, topic: str) -> None:
    """The library's own errors become answers."""
    assert get(f"{app.server.url}/events/{topic}").status_code == 400


def test_app_says_goodbye(app: App) -> None:
    """On SIGTERM streams end in good order, and the process exits with zero. (The last test of each.)"""
    with reading(app.events) as stream:
        stream.block()
        assert app.server.terminate(within=WITHIN_S) == 0
        assert stream.rest().endswith(b'\ndata: {"reason": "shutdown"}\n\n')
    assert "Traceback" not in app.server.log()
