"""Errors over the real server: each is ``application/problem+json``, and its detail says what to do."""

from __future__ import annotations

import json

import h2.config
import h2.connection
import h2.events
import pytest

from .conftest import KEY, Answer, Wire, ask, bearer, sign
from .serving import Server

PROGRAM = """
from quart import request
from trio_sse import errors
from trio_sse.app import app

app.config["BODY_TIMEOUT"] = 0.3

@app.get("/test/bug")
async def bug():
    raise ZeroDivisionError("a secret of the implementation")

@app.get("/test/<name>")
async def own(name):
    raise getattr(errors, name)("what to do")
"""
ENV = {"TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_ANONYMOUS": "publish"}


def check(answer: Answer, status: int, detail: str) -> None:
    """It is a whole problem of this status, that nothing stores, whose detail holds these words."""
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json.keys() == {"type", "title", "status", "detail"}
    assert (answer.json["type"], answer.json["status"]) == ("about:blank", status)
    assert answer.json["title"]
    assert detail in answer.json["detail"]


@pytest.mark.parametrize(
    ("method", "target", "status", "detail"),
    [
        ("GET", "/nothing", 404, "/events and /topics/<topic>"),
        ("POST", "/nothing", 404, "/events and /topics/<topic>"),
        ("GET", "/events/", 404, "/events and /topics/<topic>"),
        ("GET", "/topics", 404, "/events and /topics/<topic>"),
        ("GET", "/session/x", 404, "/events and /topics/<topic>"),
        ("GET", "/%00", 404, "/events and /topics/<topic>"),
        ("GET", "/%ff", 404, "/events and /topics/<topic>"),
        ("OPTIONS", "/nothing", 404, "/events and /topics/<topic>"),
        ("POST", "/events?topic=a", 405, "POST means nothing here: use GET, HEAD"),
        ("PUT", "/topics/a", 405, "PUT means nothing here: use GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/topics/a", 405, "use GET, HEAD, OPTIONS, POST"),
        ("PUT", "/session", 405, "use DELETE, GET, HEAD, OPTIONS, POST"),
        ("POST", "/healthz", 405, "use GET, HEAD"),
        ("POST", "/", 405, "use GET, HEAD"),
        ("BREW", "/metrics", 405, "BREW means nothing here"),
        ("GET", "/topics/*", 400, "no wildcards"),
        ("GET", "/topics/a", 401, "send Authorization: Bearer"),
        ("GET", "/events?topic=a", 401, "send Authorization: Bearer"),
        ("GET", "/events", 400, "name at least one topic"),
    ],
)
def test_what_cannot_be_answered_is_a_problem(
    server: Server, method: str, target: str, status: int, detail: str
) -> None:
    """An unknown path, a wrong method, bad input, a missing right: each says what to do instead."""
    check(ask(server, method, target), status, detail)


@pytest.mark.parametrize("host", ["x" * 64, "a..b", "\xe9" * 64, ".", "x:y:z", "[::1", "a b"])
def test_a_host_that_is_none_is_refused_or_ignored(server: Server, host: str) -> None:
    """The router's opinion of a Host is the client's fault, and no traceback."""
    answer = ask(server, "GET", "/healthz", headers={"Host": host})
    assert answer.status in (200, 400)
    assert "BadHost" not in server.log()


def test_a_wrong_method_is_told_the_right_ones(server: Server) -> None:
    """405 names the methods in Allow, as the standard asks (RFC 9110 § 15.5.6)."""
    assert ask(server, "PUT", "/topics/a").headers["Allow"] == "GET, HEAD, OPTIONS, POST"


def test_a_challenge_is_only_for_who_is_unknown(server: Server) -> None:
    """401 asks for a bearer token; 403, to somebody who sent one, does not."""
    assert ask(server, "GET", "/topics/a").headers["WWW-Authenticate"] == "Bearer"
    answer = ask(server, "GET", "/topics/a", headers=bearer(sign()))
    check(answer, 403, "your token does not allow you to subscribe to 'a'")
    assert answer.headers["WWW-Authenticate"] is None


def test_a_wrong_type_is_told_the_right_ones(server: Server) -> None:
    """415 names the three types that may be published."""
    answer = ask(server, "POST", "/topics/a", b"x", {"Content-Type": "image/png"})
    for name in ("text/plain", "application/json", "text/event-stream"):
        check(answer, 415, name)


def test_a_body_too_large_is_told_the_limit(server: Server) -> None:
    """413 says how much may be sent, and what to do with more."""
    check(ask(server, "POST", "/topics/a", b"x" * (1024 * 1024 + 1)), 413, "more than 1048576 bytes")


def test_a_body_that_does_not_come_is_not_waited_for(server: Server) -> None:
    """408, after the time a body may take (here shortened)."""
    with Wire(server) as wire:
        wire.send(b"POST /topics/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhal")
        assert wire.take(b"\r\n\r\n").startswith(b"HTTP/1.1 408 ")
        assert "did not come" in json.loads(wire.take(b"}"))["detail"]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("InvalidEvent", 400),
        ("TooLarge", 413),
        ("InvalidToken", 401),
        ("NotAllowed", 403),
        ("JournalError", 503),
        ("JournalFull", 507),
        ("HubFailed", 503),
        ("TrioSSEError", 500),
    ],
)
def test_our_own_errors_know_their_status(server: Server, name: str, status: int) -> None:
    """What the hub raises is a problem of the status that says the same; 503 says when to come back."""
    answer = ask(server, "GET", f"/test/{name}")
    check(answer, status, "what to do")
    assert answer.headers["Retry-After"] == ("1" if status == 503 else None)


def test_head_has_no_body(server: Server) -> None:
    """A problem's HEAD is its headers."""
    answer = ask(server, "HEAD", "/nothing")
    assert (answer.status, answer.body) == (404, b"")
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_refusal_over_http_2_is_the_same(server: Server) -> None:
    """Over HTTP/2 an unknown path is a problem too, and its stream ends."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    names = {":method": "GET", ":scheme": "http", ":authority": "x", ":path": "/nothing"}
    client.send_headers(1, list(names.items()), end_stream=True)
    body, ended = b"", False
    with Wire(server) as wire:
        while not ended:
            wire.send(client.data_to_send())
            received = wire.socket.recv(65536)
            assert received
            for event in client.receive_data(received):
                body += (event.data or b"") if isinstance(event, h2.events.DataReceived) else b""
                ended = ended or isinstance(event, h2.events.StreamEnded)
    assert json.loads(body)["status"] == 404


def test_a_mistake_of_ours_is_in_the_log_and_nowhere_else(server: Server) -> None:
    """500 tells no more than that; the log has the reason, and the request as one line."""
    answer = ask(server, "GET", "/test/bug")
    check(answer, 500, "in its log")
    assert b"secret" not in answer.body
    log = server.log()
    assert "a secret of the implementation" in log
    assert "a request to '/test/bug' failed" in log
    server.log_path.write_text("")  # this traceback may be there; the module's server is checked for any other
