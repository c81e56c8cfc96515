"""How many streams there may be."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import KEY, bearer, eventually, sign
from tests.serving import Server, serving
from trio_sse.errors import HubFull
from trio_sse.web.limits import RESERVE, Limits


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Server]:
    env = {"TRIO_SSE_JOURNAL": "memory:", "TRIO_SSE_JWT_KEY": KEY, "TRIO_SSE_ANONYMOUS": "publish,subscribe"}
    caps = {"TRIO_SSE_MAX_STREAMS": "3", "TRIO_SSE_MAX_STREAMS_PER_SUBJECT": "2"}
    with serving(folder=tmp_path, env=env | caps) as server:
        yield server


def test_one_too_many_is_told_when_to_come_back(small: Server) -> None:
    """It is a stream with a jittered retry and an end, not an error, which would close an EventSource for ever."""
    url = f"{small.url}/events?topic=a"
    with httpx.Client() as client:
        streams = [client.stream("GET", url) for _ in range(3)]
        for stream in streams:
            assert stream.__enter__().status_code == 200
        retries = set()
        for _ in range(10):
            refused = httpx.get(url)
            assert refused.status_code == 200
            found = re.fullmatch(r": stream\nretry: (\d+)\n", refused.text)
            assert found
            retries.add(found[1])
        assert len(retries) > 3
        assert httpx.get(f"{small.url}/readyz").status_code == 200
        assert "trio_sse_refused_total 10.0" in httpx.get(f"{small.url}/metrics").text
        for stream in streams:
            stream.__exit__(None, None, None)
    assert eventually(lambda: "trio_sse_streams 0.0" in httpx.get(f"{small.url}/metrics").text)
    with httpx.stream("GET", url) as response:
        lines = response.iter_lines()
        assert any(line.startswith("id:") for line in (next(lines) for _ in range(3)))


def test_a_subject_has_its_own_cap(small: Server) -> None:
    """The third stream of one token is sent away, and another's is not."""
    url = f"{small.url}/events?topic=a"
    ada, bob = bearer(sign("ada")), bearer(sign("bob"))
    with httpx.stream("GET", url, headers=ada) as one, httpx.stream("GET", url, headers=ada) as two:
        assert one.status_code == two.status_code == 200
        assert "id:" not in httpx.get(url, headers=ada).text
        with httpx.stream("GET", url, headers=bob) as other:
            lines = other.iter_lines()
            assert any(line.startswith("id:") for line in (next(lines) for _ in range(3)))


def test_places_are_counted_on_every_way_out() -> None:
    """An exception gives the place back, and nothing of its holder is kept."""
    limits = Limits(1, 1, 1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), limits.place("1.2.3.4", "ada"):
            raise ZeroDivisionError
    with limits.place("1.2.3.4", "ada"):
        with pytest.raises(HubFull, match="in all"), limits.place("5.6.7.8", "bob"):
            pass
    assert not limits._by_address
    assert not limits._by_subject
    assert limits.refused == 1


@pytest.mark.parametrize(
    ("limits", "names"),
    [(Limits(9, 1, None), "MAX_STREAMS_PER_IP"), (Limits(9, None, 1), "MAX_STREAMS_PER_SUBJECT")],
)
def test_the_cap_that_was_reached_is_named(limits: Limits, names: str) -> None:
    """By its setting."""
    with limits.place("1.2.3.4", "ada"), pytest.raises(HubFull, match=names), limits.place("1.2.3.4", "ada"):
        pass


def test_without_a_cap_descriptors_are() -> None:
    """As many as the process may have, less a reserve; and it has asked for all it may have."""
    limits = Limits(None, None, None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard
    assert limits.total == hard - min(RESERVE, hard // 4)
