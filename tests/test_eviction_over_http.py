"""One publisher that fills the journal takes nothing from another's past, over the real server."""

from __future__ import annotations

import http.client
from contextlib import closing
from pathlib import Path

import pytest

from .conftest import KEY, WITHIN_S, Answer, bearer, kept, metric, publish, sign
from .serving import Server, running, serving

MIB = 1024 * 1024
ORDERS, KEYS = 50, 100_000


def hub(folder: Path, journal: str, mib: int | None = None) -> Server:
    """A server of so many mebibytes, or the default; the sender of no token may publish."""
    env = {"TRIO_SSE_JOURNAL": journal, "TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_ANONYMOUS": "publish,subscribe"}
    if mib is not None:
        env["TRIO_SSE_RETENTION_BYTES"] = str(mib * MIB)
    return Server(folder=folder, env=env)


def history(server: Server, topic: str) -> list[str]:
    """The data of all that is kept of a topic."""
    return [event["data"] for event in kept(server, topic)]


@pytest.mark.parametrize("journal", ["memory:", "sqlite:hub.db"])
@pytest.mark.parametrize(
    ("mib", "posts"),
    [
        pytest.param(8, 12, id="scaled"),
        pytest.param(None, 262, id="whole", marks=[pytest.mark.proof, pytest.mark.timeout(600)]),
    ],
)
def test_posts_of_a_mebibyte_to_one_topic_erase_no_others(
    tmp_path: Path, journal: str, mib: int | None, posts: int
) -> None:
    """Neither another publisher's events nor, of those without a token, another topic's; also after ``kill -9``."""
    with running(hub(tmp_path, journal, mib)) as server:
        check_others_stay(server, posts, is_kept=journal.startswith("sqlite"))


def check_others_stay(server: Server, posts: int, *, is_kept: bool) -> None:
    shop = bearer(sign("shop", publish=["orders/*"], ttl_s=3600))
    orders = [f"order {number}" for number in range(ORDERS)]
    for data in orders:
        publish(server, "orders/1", data, shop)
    publish(server, "chat", "hello")
    for _ in range(posts):
        publish(server, "scratch", "x" * MIB)
    assert metric(server, "trio_sse_journal_evicted_total") > 0
    assert server.log().count("the journal is full: the publishers that hold most give") == 1
    assert (history(server, "orders/1"), history(server, "chat")) == (orders, ["hello"])
    if is_kept:
        server.kill()
        server.start()
        assert (history(server, "orders/1"), history(server, "chat")) == (orders, ["hello"])


def post_once(connection: http.client.HTTPConnection, topic: str, key: str, headers: dict[str, str]) -> Answer:
    connection.request("POST", f"/topics/{topic}", b"x", {**headers, "Idempotency-Key": key})
    response = connection.getresponse()
    return Answer(response.status, response.msg, response.read())


@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("journal", ["memory:", "sqlite:hub.db"])
def test_a_hundred_thousand_keys_of_one_take_no_others(tmp_path: Path, journal: str) -> None:
    """Another's retry is still known for one, whatever the first has sent since."""
    with (
        serving(folder=tmp_path, env=hub(tmp_path, journal).env) as server,
        closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=WITHIN_S)) as connection,
    ):
        shop = bearer(sign("shop", publish=["orders/*"], ttl_s=3600))
        flood = bearer(sign("flood", publish=["scratch"], ttl_s=3600))
        first = post_once(connection, "orders/1", "order-1", shop)
        for number in range(KEYS + 1):
            assert post_once(connection, "scratch", f"key-{number}", flood).status == 201
        again = post_once(connection, "orders/1", "order-1", shop)
        assert (again.status, again.headers["Idempotency-Replayed"]) == (201, "true")
        assert again.json["id"] == first.json["id"]
        own = post_once(connection, "scratch", "key-0", flood)  # the first that the flood has lost
        assert own.headers["Idempotency-Replayed"] is None
