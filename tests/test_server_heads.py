"""What is refused of a request's head before an application sees it, and what its client is told."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .conftest import Wire
from .serving import Server, serving

MOST = 16 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(folder=tmp_path_factory.mktemp("heads"), env={"TRIO_SSE_JOURNAL": "memory:"}) as running:
        yield running


def answer_to(server: Server, *pieces: bytes) -> tuple[int, bytes, bytes]:
    """The status, head and body of the one answer to these bytes, after which the connection is closed."""
    with Wire(server) as wire:
        for piece in pieces:
            wire.send(piece)
        head, _, body = wire.rest().partition(b"\r\n\r\n")
    return int(head[9:12]), head.lower(), body


REFUSED = {
    "two lengths": (
        400,
        b"POST /topics/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "the other order": (
        400,
        b"POST /topics/a HTTP/1.1\r\nHost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
    ),
    "two different lengths": (
        400,
        b"POST /topics/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    ),
    "no HTTP": (400, b"hello\r\n\r\n"),
    "no host": (400, b"GET /healthz HTTP/1.1\r\n\r\n"),
    "an unknown coding": (501, b"POST /topics/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
    "a large head": (431, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * MOST + b"\r\n\r\n"),
    "many fields": (
        431,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"a:b\r\n" * 300 + b"\r\n",
    ),
    "a WebSocket": (
        403,
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    ),
    "half a WebSocket": (400, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
}


@pytest.mark.parametrize(("status", "sent"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_a_problem_and_the_end(server: Server, status: int, sent: bytes) -> None:
    """With a status, a sentence that says what to do, its length, and then the connection is closed."""
    told, head, body = answer_to(server, sent)
    assert told == status
    assert b"content-type: application/problem+json" in head
    assert b"content-length: %d" % len(body) in head
    problem = json.loads(body)
    assert problem["status"] == status
    assert len(problem["detail"]) > 20


def test_a_request_to_be_smuggled_is_not_served(server: Server) -> None:
    """What stands behind a request with two lengths is nobody's request."""
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    _, _, body = answer_to(server, REFUSED["two lengths"][1] + smuggled)
    assert b"HTTP/1.1" not in body


@pytest.mark.parametrize(("size", "status"), [(MOST, 200), (MOST + 1, 431)])
@pytest.mark.parametrize("writes", [1, 2, 100])
def test_a_head_has_one_limit_however_it_comes(server: Server, size: int, status: int, writes: int) -> None:
    """The same answer in one write and in a hundred, to the byte."""
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: %b\r\n\r\n"
    sent = head % (b"x" * (size - len(head) + 2))
    assert len(sent) == size
    step = -(-size // writes)
    told, _, _ = answer_to(server, *(sent[begin : begin + step] for begin in range(0, size, step)))
    assert told == status


def test_an_upgrade_to_http_2_is_not_taken(server: Server) -> None:
    """The request is answered as if it had not asked; to begin with HTTP/2 goes on working elsewhere."""
    told, head, body = answer_to(
        server,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    assert told == 200
    assert b"101" not in head
    assert body.count(b"HTTP/1.1 200") == 1
