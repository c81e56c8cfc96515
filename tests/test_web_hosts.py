"""The names that the hub answers to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import KEY, Wire, ask, bearer, publish, sign
from tests.serving import Server, serving
from trio_sse.errors import WrongHost
from trio_sse.settings import Settings
from trio_sse.web.hosts import Hosts


def answers(host: str | None, *, path: str = "/", **settings: Any) -> bool:
    """Whether a hub of these settings serves a request with this Host."""
    headers = [] if host is None else [(b"host", host.encode("latin-1"))]
    try:
        Hosts(Settings.model_validate(settings)).check({"headers": headers}, path)
    except WrongHost:
        return False
    return True


HERE = (
    *(
        "localhost",
        "LocalHost",
        "localhost.",
        "localhost:8000",
        "localhost:",
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.9.9.9",
    ),
    *("10.0.0.1", "192.168.1.20:80", "203.0.113.9", "[::1]", "[::1]:8000", "[2001:DB8::1]:443", "[::ffff:127.0.0.1]"),
    "[fe80::1%25eth0]:8000",
)
NAMES = (
    *("evil.example", "evil.example:8000", "localhost.evil.example", "evil-localhost", "a.localhost", "xlocalhost"),
    *("127.0.0.1.evil.example", "127.0.0.1.nip.io", "hub", "localhost..", ".localhost", "localhost,evil.example"),
    *("user@localhost", "localhost@evil.example", "localhost/", "localhost:80:80", "localhost:x", "localhost:800000"),
    *("[::1", "::1", "[127.0.0.1]", "[::1]x", "[v1.x]", "[]", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1"),
    *("1.2.3.4.", "1.2.3.400", "\xe9vil.example", "a b", "localhost localhost", "\xb2.0.0.1"),
)


@pytest.mark.parametrize("host", HERE)
def test_in_development_mode_an_address_and_localhost_pass(host: str) -> None:
    """They are not looked up, so nobody can point them elsewhere."""
    assert answers(host)


@pytest.mark.parametrize("host", NAMES)
def test_in_development_mode_no_other_name_passes(host: str) -> None:
    """Whoever it is that a name belongs to can point it here; and what is no host is none."""
    assert not answers(host)


@pytest.mark.parametrize("host", [None, ""])
def test_without_a_host_it_is_no_browser(host: str | None) -> None:
    """HTTP/1.0 has none."""
    assert answers(host)


@pytest.mark.parametrize("development", [True, False])
def test_the_names_of_the_setting_pass_and_no_others(development: bool) -> None:
    """In either mode; whatever the port, and in any case of letters."""
    settings = {} if development else {"jwt_key": KEY}
    for host in (*HERE, "hub.example", "Hub.Example:8443", "hub.example.", "a_b"):
        assert answers(host, hosts="Hub.example, a_b", **settings), host
    for host in (*NAMES, "x.hub.example", "hub.example.evil", "hub", "example"):
        assert not answers(host, hosts="Hub.example, a_b", **settings), host


def test_with_a_key_and_no_names_every_name_passes() -> None:
    """There a page needs a token."""
    for host in (*HERE, *NAMES):
        assert answers(host, jwt_key=KEY), host


def test_a_probe_may_use_any_name() -> None:
    """To hear that the hub is alive, which tells nothing."""
    assert answers("10-0-0-1.cluster.example", path="/healthz")
    assert not answers("10-0-0-1.cluster.example", path="/readyz")


# -- with the real server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_HOSTS": ""}
    with serving(folder=tmp_path_factory.mktemp("hosts"), env=env) as server:
        yield server


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/"), ("GET", "/board.js"), ("GET", "/metrics"), ("GET", "/readyz"), ("GET", "/nothing")),
        *(("POST", "/topics/a"), ("GET", "/topics/a"), ("GET", "/events?topic=a"), ("POST", "/session")),
    ],
)
def test_a_page_whose_name_was_pointed_here_gets_nothing(server: Server, method: str, path: str) -> None:
    """The request is misdirected (RFC 9110 § 15.5.20), and its sender is told what to set, also with a token."""
    headers = {"Host": f"evil.example:{server.port}", "Origin": f"http://evil.example:{server.port}"}
    for more in ({}, bearer(sign(publish=["a"]))):
        answer = ask(server, method, path, b"x" if method == "POST" else None, headers | more)
        assert answer.status == 421
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "TRIO_SSE_HOSTS" in answer.json["detail"]
        assert "'evil.example:" in answer.json["detail"]


def test_the_hub_is_served_by_its_address_and_to_old_clients(server: Server) -> None:
    """As it was started."""
    publish(server, "a")
    publish(server, "a", headers={"Host": f"localhost:{server.port}"})
    assert ask(server, "GET", "/healthz", headers={"Host": "probe.example"}).status == 200
    with Wire(server) as wire:
        wire.send(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert wire.rest().startswith(b"HTTP/1.1 200 ")


def test_what_is_repeated_of_a_host_is_short(server: Server) -> None:
    """However long it is."""
    answer = ask(server, "GET", "/readyz", headers={"Host": "x." * 5_000 + "example"})
    assert answer.status in (400, 421)
    assert len(answer.body) < 500
