"""Text that takes longest to look at: twice as much of it takes twice as long at most, and nobody else waits for it.

Marks that alternate between two classes have to be put in order when text is normalised, which takes CPython time that
grows with the square of their number. So every bound is looked at before that, and each of these is refused, or taken,
in time that grows with its length.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from urllib.parse import quote

import jwt
import pytest

from .conftest import KEY, Listener, ask, bearer, publish
from .serving import Server, serving

MARKS = "a" + "\u0300\u0316" * 200_000
JSON = {"Content-Type": "application/json"}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
FLOOR_S = 0.05
"""Seconds of processor time below which two figures are the same: five ticks of the kernel's clock."""

TRIES = 3


def encoded(size: int) -> str:
    """So many bytes of a percent-encoded text of marks."""
    return quote(MARKS[: size // 6])


SENT: dict[str, tuple[int, Callable[[Server, int], int]]] = {
    # What it is: so many bytes at first, and what sends them; the status.
    "a guest's name": (
        2_000,
        lambda server, size: (
            ask(
                server, "POST", "/session", json.dumps({"name": MARKS[: size // 2]}, ensure_ascii=False).encode(), JSON
            ).status
        ),
    ),
    "a guest's name beyond its limit": (
        500_000,
        lambda server, size: (
            ask(
                server, "POST", "/session", json.dumps({"name": MARKS[: size // 2]}, ensure_ascii=False).encode(), JSON
            ).status
        ),
    ),
    "a topic": (6_000, lambda server, size: ask(server, "POST", f"/topics/{encoded(size)}", b"x").status),
    "a selector": (6_000, lambda server, size: ask(server, "GET", f"/events?topic={encoded(size)}").status),
    "a key": (6_000, lambda server, size: ask(server, "POST", f"/topics/a?key={encoded(size)}", b"x").status),
    "a type": (6_000, lambda server, size: ask(server, "POST", f"/topics/a?event={encoded(size)}", b"x").status),
    "a cursor": (
        6_000,
        lambda server, size: ask(server, "GET", f"/events?topic=a&last_event_id={encoded(size)}").status,
    ),
    "many parameters": (
        6_000,
        lambda server, size: ask(server, "GET", "/events?" + "&".join(f"topic=a{n}" for n in range(size // 10))).status,
    ),
    "an address": (
        6_000,
        lambda server, size: ask(server, "POST", "/topics/a", b"x", {"X-Forwarded-For": "1," * (size // 2)}).status,
    ),
    "a host": (6_000, lambda server, size: ask(server, "POST", "/topics/a", b"x", {"Host": "a." * (size // 2)}).status),
    "a token's subject": (
        3_000,
        lambda server, size: ask(server, "POST", "/topics/a", b"x", bearer(forged(sub=MARKS[: size // 6]))).status,
    ),
    "nested JSON": (500_000, lambda server, size: ask(server, "POST", "/topics/a", b"[" * size, JSON).status),
    "a long number": (500_000, lambda server, size: ask(server, "POST", "/topics/a", b"1" * size, JSON).status),
    "line ends": (140_000, lambda server, size: ask(server, "POST", "/topics/a", b"\r" * size).status),
    "many small events": (
        20_000,
        lambda server, size: (
            ask(server, "POST", "/topics/a", b"data:\n\n" * (size // 7), {"Content-Type": "text/event-stream"}).status
        ),
    ),
}


def forged(**claims: str) -> str:
    """A token whose claims nobody checked when they were signed."""
    return jwt.encode({"exp": int(time.time()) + 60, **claims}, KEY, "HS256")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_ANONYMOUS": "publish,subscribe"}
    env |= {"TRIO_SSE_TRUSTED_PROXIES": "127.0.0.1", "TRIO_SSE_HOSTS": ""}
    with serving(folder=tmp_path_factory.mktemp("worst"), env=env) as running:
        yield running


def processor_s(server: Server) -> float:
    """Seconds of processor time, user and system, that the worker has had."""
    (worker,) = server.workers()
    fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def cost_s(server: Server, send: Callable[[Server, int], int], size: int) -> float:
    """The least that it took of some tries."""
    costs = []
    for _ in range(TRIES):
        before = processor_s(server)
        assert send(server, size) in (200, 201, 400, 401, 413)
        costs.append(processor_s(server) - before)
    return min(costs)


@pytest.mark.parametrize(("size", "send"), SENT.values(), ids=SENT)
def test_twice_as_much_takes_twice_as_long_at_most(
    server: Server, size: int, send: Callable[[Server, int], int]
) -> None:
    """User and system time of the hub; a half more for what it takes anyway."""
    once, twice = cost_s(server, send, size), cost_s(server, send, 2 * size)
    assert twice <= 2.5 * max(once, FLOOR_S)


@pytest.mark.proof
@pytest.mark.parametrize(("size", "send"), SENT.values(), ids=SENT)
def test_a_live_stream_is_not_late_for_it(server: Server, size: int, send: Callable[[Server, int], int]) -> None:
    """While it is sent again and again an event published beside it arrives within 50 ms, or twice that when busy."""
    over = Event()

    def attack() -> None:
        while not over.is_set():
            send(server, 2 * size)

    attacker = Thread(target=attack)
    late = []
    with Listener(server, "/events?topic=live") as listener:
        listener.take()
        attacker.start()
        try:
            for _ in range(50):
                time.sleep(0.02)
                began = time.monotonic()
                publish(server, "live", "now")
                listener.take()
                late.append(time.monotonic() - began)
        finally:
            over.set()
            attacker.join()
    assert sorted(late)[-1] <= 0.1
