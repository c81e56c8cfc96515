"""``TRIO_SSE_RETENTION`` over the real server: each topic keeps what its rule says, and its floor is exact."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from .conftest import STALL_S, Listener, ask, eventually, kept, publish
from .serving import Server, serving

RULES = {
    "room/*": {"seconds": 604_800, "events": None},
    "ticker/short": {"seconds": 1},
    "ticker/*": {"events": 5},
    "large/**": {"bytes": 4_000},
}


@pytest.fixture(scope="module", params=["memory:", "sqlite:hub.db"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {
        "TRIO_SSE_JOURNAL": request.param,
        "TRIO_SSE_RETENTION": json.dumps(RULES),
        "TRIO_SSE_RETENTION_EVENTS": "3",
    }
    with serving(folder=tmp_path_factory.mktemp("hub"), env=env) as running:
        yield running


@pytest.mark.parametrize(
    ("topic", "size", "stays"), [("room/1", 10, 12), ("ticker/a", 10, 5), ("other", 10, 3), ("large/a/b", 1_000, 3)]
)
def test_a_topic_keeps_what_its_rule_says(server: Server, topic: str, size: int, stays: int) -> None:
    """The first rule that chooses it counts; what it leaves out comes from the general limits; others have those."""
    ids = [publish(server, topic, "x" * size) for _ in range(12)]
    assert [event["id"] for event in kept(server, topic)] == ids[-stays:]
    floor = ask(server, "GET", f"/topics/{topic}").json["floor"]
    assert floor == ids[-stays - 1] if stays < 12 else floor < ids[0]


def test_what_grew_too_old_is_a_gap_for_its_readers_alone(server: Server) -> None:
    """It goes within a second, its floor is the highest id of it, and a reader of the room hears nothing."""
    said = publish(server, "room/2", "said")
    ids = [publish(server, "ticker/short") for _ in range(3)]
    gone_at = time.monotonic() + 1

    def is_gone() -> bool:
        return bool(ask(server, "GET", "/topics/ticker/short").json["last_event_id"] is None)

    assert eventually(is_gone, 1 + 2 * 1 + STALL_S)
    assert time.monotonic() > gone_at - 0.5
    assert ask(server, "GET", "/topics/ticker/short").json["floor"] == ids[-1]
    with Listener(server, f"/events?topic=ticker/short&last_event_id={said}") as listener:
        listener.take()
        gap = listener.event()
        assert (gap["event"], gap["id"]) == ("trio-sse.gap", ids[-1])
    with Listener(server, f"/events?topic=room/2&last_event_id={said}") as listener:
        listener.take()
        after = publish(server, "room/2", "more")
        assert listener.event() == {"id": after, "data": "more"}
