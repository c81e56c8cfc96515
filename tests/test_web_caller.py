"""From which address a request came, whoever says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.datastructures import Headers

from tests.conftest import Listener, ask
from tests.serving import Server, serving
from trio_sse.settings import Settings
from trio_sse.web.caller import MOST_PROXIES, address_of, is_https

JUNK = (
    *("", "unknown", "_hidden", "a.example", "-", "1.2.3", "999.1.1.1", "010.1.1.1", "1.1.1.1:x", "1.1.1.1:80:80"),
    *("[::1", "]", "[1.1.1.1", "unix:", "\u0661"),
)
PROXIES = "10.0.0.0/8, 192.0.2.7, 2001:db8:aaaa::/48, ::ffff:198.51.100.0/120"


def address(peer: str | None, *said: str, trusted: str = PROXIES) -> str:
    """Of a request from this peer, with these lines of X-Forwarded-For."""
    headers = Headers([("X-Forwarded-For", line) for line in said])
    client = None if peer is None else (peer, 4711)
    request: Any = SimpleNamespace(scope={"client": client}, headers=headers)
    settings = Settings.model_validate({"trusted_proxies": trusted})
    return address_of(request, settings.trusted_proxies)


@pytest.mark.parametrize(
    ("peer", "said", "expected"),
    [
        # nobody who is trusted says anything
        *(("203.0.113.9", said, "203.0.113.9") for said in ([], ["1.1.1.1"], ["10.0.0.1"], ["x"])),
        *(("10.0.0.1", said, "10.0.0.1") for said in ([], [""], [" , "])),
        # the last that is no trusted proxy's; what stands before it is the client's own invention
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.5, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9, 10.0.0.2, 192.0.2.7"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9,192.0.2.8,10.0.0.2"], "192.0.2.8"),
        ("192.0.2.7", ["198.51.100.1"], "198.51.100.1"),
        # only proxies: it is the first of them
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        # several lines are one list
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9", "10.0.0.2"], "203.0.113.9"),
        # with a port, in brackets, in another form
        *(("10.0.0.1", [said], "203.0.113.9") for said in ("203.0.113.9:80", " 203.0.113.9 ", "\t203.0.113.9")),
        *(("10.0.0.1", [said], "203.0.113.9") for said in ("::ffff:203.0.113.9", "[::ffff:203.0.113.9]:80")),
        *(("10.0.0.1", [said], "2001:db8::1") for said in ("2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:443")),
        ("10.0.0.1", ["2001:DB8:0:0::1"], "2001:db8::1"),
        ("2001:db8:aaaa::1", ["203.0.113.9, 2001:db8:aaaa::2"], "203.0.113.9"),
        ("2001:db8:bbbb::1", ["203.0.113.9"], "2001:db8:bbbb::1"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("::ffff:203.0.113.9", ["1.1.1.1"], "203.0.113.9"),
        ("198.51.100.3", ["203.0.113.9"], "203.0.113.9"),
        # what is no address ends the list: the proxy that said so is as far as one can see
        *(("10.0.0.1", [f"1.1.1.1, {junk}"], "10.0.0.1") for junk in JUNK),
        ("10.0.0.1", ["1.1.1.1, junk, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["1.1.1.1;203.0.113.9"], "10.0.0.1"),
        # a peer that is none
        ("testclient", ["1.1.1.1"], "testclient"),
    ],
)
def test_the_address_is_the_last_that_is_no_trusted_proxys(peer: str, said: list[str], expected: str) -> None:
    """Whatever a client writes into the header."""
    assert address(peer, *said) == expected


def test_without_trusted_proxies_nothing_that_is_said_counts() -> None:
    """As it is unless it is set."""
    assert address("10.0.0.1", "203.0.113.9", trusted="") == "10.0.0.1"
    assert address("::ffff:10.0.0.1", "203.0.113.9", trusted="") == "10.0.0.1"
    assert address("2001:DB8::1", "203.0.113.9", trusted="") == "2001:db8::1"


def test_a_unix_socket_is_trusted_by_its_name() -> None:
    """Then who comes over it is a proxy; otherwise all of them are one."""
    assert address(None, "203.0.113.9", trusted="unix:") == "203.0.113.9"
    assert address(None, "203.0.113.9, 10.0.0.2", trusted="unix:,10.0.0.0/8") == "203.0.113.9"
    assert address(None, trusted="unix:") == address(None, "203.0.113.9") == address(None, "junk", trusted="unix:")
    assert address("10.0.0.1", "203.0.113.9", trusted="unix:") == "10.0.0.1"


def test_an_endless_list_is_not_read_to_its_beginning() -> None:
    """It costs a little, however long it is."""
    assert address("10.0.0.1", ", ".join(["203.0.113.9"] + ["10.0.0.2"] * (MOST_PROXIES - 1))) == "203.0.113.9"
    assert address("10.0.0.1", ", ".join(["203.0.113.9"] + ["10.0.0.2"] * 5_000)) == "10.0.0.2"


# -- over HTTPS, or not ------------------------------------------------------------------------------------------------


def came_by_https(
    peer: str | None, *said: str, by: tuple[str, ...] = (), scheme: str = "http", secure: str = "auto"
) -> bool:
    """Whether a request from this peer, with these lines of X-Forwarded-Proto and -For, did."""
    lines = [("X-Forwarded-Proto", line) for line in said] + [("X-Forwarded-For", line) for line in by]
    client = None if peer is None else (peer, 4711)
    request: Any = SimpleNamespace(scope={"client": client}, headers=Headers(lines), scheme=scheme)
    trusted = "" if secure == "no proxies" else f"{PROXIES}, unix:"
    secure = "always" if secure == "always" else "auto"
    return is_https(request, Settings.model_validate({"trusted_proxies": trusted, "cookie_secure": secure}))


@pytest.mark.parametrize("said", ["https", " HTTPS ", "Https"])
def test_a_trusted_proxy_says_whether_it_was_https(said: str) -> None:
    """Over TCP or a Unix socket; nobody else can."""
    assert came_by_https("10.0.0.1", said)
    assert came_by_https(None, said)
    assert came_by_https("::ffff:10.0.0.1", said)
    assert not came_by_https("203.0.113.9", said)
    assert not came_by_https("10.0.0.1", said, secure="no proxies")


@pytest.mark.parametrize("said", ["", "http", "httpss", "wss", "https;", "on", "https http", "\xe9"])
def test_what_does_not_say_https_is_not(said: str) -> None:
    """A cookie that a browser then drops would be of no use."""
    assert not came_by_https("10.0.0.1", said)


def test_https_of_our_own_and_the_operators_word_need_no_proxy() -> None:
    """They count whatever a client says."""
    assert came_by_https("203.0.113.9", scheme="https")
    assert came_by_https("203.0.113.9", "http", scheme="https")
    assert came_by_https("203.0.113.9", "http", secure="always")
    assert not came_by_https("203.0.113.9")


@pytest.mark.parametrize(
    ("said", "by", "expected"),
    [
        # the proxy next to us has written it anew
        *((["https"], by, True) for by in ((), ("203.0.113.9",), ("203.0.113.9, 10.0.0.2",))),
        # each has added how it was reached itself: what the first one says that is trusted counts
        (["https, http"], ("203.0.113.9, 10.0.0.2",), True),
        (["http, https"], ("203.0.113.9, 10.0.0.2",), False),
        (["https", "http"], ("203.0.113.9", "10.0.0.2"), True),
        # what stands before that is the client's own invention
        (["https, http"], ("203.0.113.9",), False),
        (["https, http"], (), False),
        (["https, http, http"], ("203.0.113.9, 10.0.0.2",), False),
        (["https, " + "http, " * 100 + "http"], ("203.0.113.9",), False),
    ],
)
def test_several_proxies_say_it_in_turn(said: list[str], by: tuple[str, ...], expected: bool) -> None:
    """As they say whose address it was."""
    assert came_by_https("10.0.0.1", *said, by=by) == expected


# -- with the real server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {
        "TRIO_SSE_JOURNAL": "memory:",
        "TRIO_SSE_MAX_STREAMS_PER_IP": "1",
        "TRIO_SSE_TRUSTED_PROXIES": "127.0.0.1,unix:",
    }
    folder = tmp_path_factory.mktemp("proxied")
    with serving(folder=folder, env=env, args=("--bind", f"unix:{folder}/hub.sock")) as server:
        yield server


def is_refused(server: Server, *said: str) -> bool:
    """Whether a stream that came by these addresses is."""
    answer = ask(server, "GET", "/events?topic=a", headers={"X-Forwarded-For": ", ".join(said)})
    return answer.status == 200 and b"id: " not in answer.body


def test_behind_a_proxy_each_client_has_its_own_cap(server: Server) -> None:
    """And one that claims to be another does not get around it."""
    with (
        Listener(server, "/events?topic=a", {"X-Forwarded-For": "203.0.113.9"}) as one,
        Listener(server, "/events?topic=a", {"X-Forwarded-For": "203.0.113.10"}) as other,
    ):
        assert "id" in one.event()
        assert "id" in other.event()
        assert is_refused(server, "203.0.113.9")
        assert is_refused(server, "1.1.1.1", "203.0.113.9")
        assert is_refused(server, "::ffff:203.0.113.9")


def test_over_a_unix_socket_each_client_has_its_own_cap(server: Server) -> None:
    """As behind nginx with ``proxy_pass http://unix:...``."""
    request = "GET /events?topic=a HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {}\r\n\r\n"
    opened = []
    for said in ("203.0.113.20", "203.0.113.21", "203.0.113.20"):
        client = socket.socket(socket.AF_UNIX)
        opened.append(client)
        client.settimeout(30)
        client.connect(f"{server.folder}/hub.sock")
        client.sendall(request.format(said).encode())
        answer = b""
        while b"\nretry: " not in answer or not answer.endswith(b"\n\r\n"):
            answer += client.recv(65536)
        assert (b"\nid: " in answer) == (len(opened) < 3), answer
    for client in opened:
        client.close()
