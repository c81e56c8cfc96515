"""``trio-sse load``, against servers that misbehave: it notices everything, and its status says so."""

from __future__ import annotations

import errno
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trio_sse.cli import main
from trio_sse.load import Engine, LoadError
from trio_sse.load.target import Link, Target

from .faulty import END, PLAIN, Deliver, Faulty, chunk
from .serving import make_certificate

GOOD = {"lost": 0, "twice": 0, "disordered": 0, "refused": 0}


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these servers have not sent after this time they never will."""
    monkeypatch.setattr("trio_sse.load.engine.QUIET_S", 1.5)
    monkeypatch.setattr("trio_sse.load.engine.LINGER_S", 0.1)
    monkeypatch.setattr("trio_sse.load.engine.AWAY_S", 5.0)


@pytest.fixture
def _patience(_impatience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something happens after the last event."""
    monkeypatch.setattr("trio_sse.load.engine.LINGER_S", 1.5)


def invoke(*arguments: str, **env: str) -> Result:
    return CliRunner(env=env).invoke(main, ["load", *arguments])


def load(server: Faulty, *arguments: str, status: int = 0, way: Sequence[str] = ("--publish",)) -> dict[str, Any]:
    """What a short load of three clients and ten events tells, as JSON."""
    more = [*way, server.url] if way else []
    result = invoke(
        server.url, "--clients=3", "--rate=25", "--duration=0.4", "--payload=60", "--json=-", *more, *arguments
    )
    assert result.exit_code == status, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def one_stream_gets(pieces: dict[int, list[bytes]]) -> Deliver:
    """Stream 1 is sent these pieces for these events, made of their blocks; all else is as it should be."""

    def deliver(stream: int, number: int, block: bytes) -> list[bytes]:
        if stream == 1 and number in pieces:
            return [chunk(piece.replace(b"BLOCK", block)) for piece in pieces[number]]
        return [chunk(block)]

    return deliver


# -- faults ---------------------------------------------------------------------------------------------------


def test_a_good_server_passes() -> None:
    """Everything was delivered once and in order: status 0."""
    with Faulty().running() as server:
        told = load(server)
    assert {name: told[name] for name in GOOD} == GOOD
    assert (told["offered"], told["accepted"], told["delivered"]) == (10, 10, 30)
    assert 0 < told["p50_ms"] <= told["p99_ms"] <= told["max_ms"]


@pytest.mark.usefixtures("_patience")
@pytest.mark.parametrize(
    ("pieces", "fault"),
    [
        ({4: []}, {"lost": 1}),
        ({9: []}, {"lost": 1}),
        ({4: [b"BLOCK", b"BLOCK"]}, {"twice": 1}),
        ({4: [b"BLOCKBLOCK"]}, {"twice": 1}),
        ({9: [b"BLOCK", b"BLOCK"]}, {"twice": 1}),
    ],
    ids=["lost", "last lost", "twice", "twice in a chunk", "last twice"],
)
def test_a_fault_at_one_client_is_noticed(pieces: dict[int, list[bytes]], fault: dict[str, int]) -> None:
    """One event of thirty was lost or repeated: it is counted, and the status is 1."""
    with Faulty(one_stream_gets(pieces)).running() as server:
        told = load(server, status=1)
    assert {name: told[name] for name in GOOD} == GOOD | fault
    assert told["failed"]


def test_a_reordering_server_is_noticed() -> None:
    """A client that is sent 4 after 5 got one event out of order, and lost none."""
    held: list[bytes] = []

    def deliver(stream: int, number: int, block: bytes) -> list[bytes]:
        if stream == 1 and number == 4:
            held.append(block)
            return []
        return [chunk(block), chunk(held.pop())] if stream == 1 and number == 5 else [chunk(block)]

    with Faulty(deliver).running() as server:
        told = load(server, status=1)
    assert told["disordered"] > 0
    assert (told["lost"], told["twice"], told["delivered"]) == (0, 0, 30)


def test_a_loss_that_the_server_owns_up_to_is_a_loss() -> None:
    """A gap event tells of what is missing, which is shown apart, and fails all the same."""
    gap = b"event: trio-sse.gap\ndata: {}\n\n"
    with Faulty(one_stream_gets({4: [], 5: [], 6: [gap + b"BLOCK"]})).running() as server:
        told = load(server, status=1)
    assert (told["lost"], told["told"]) == (2, 2)


# -- framing --------------------------------------------------------------------------------------------------


def byte_by_byte(_: int, __: int, block: bytes) -> list[bytes]:
    framed = b"".join(chunk(block[at : at + 3]) for at in range(0, len(block), 3))
    return [framed[at : at + 1] for at in range(len(framed))]


@pytest.mark.parametrize(
    "server",
    [
        Faulty(byte_by_byte),
        Faulty(lambda s, n, block: [chunk(b":\n"), chunk(block[:9]), chunk(block[9:] + b": note\n")]),
        Faulty(lambda s, n, block: [chunk(block.replace(b"\n", b"\r\n"))]),
        Faulty(lambda s, n, block: [chunk(block.replace(b"\n", b"\r"))]),
        Faulty(lambda s, n, block: [block], answer=PLAIN),
        Faulty(lambda s, n, block: [block[:7], block[7:]], answer=PLAIN),
        Faulty(opening=b"\xef\xbb\xbf: hello\n"),
        Faulty(ids=False),
        Faulty(accept="HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        Faulty(accept="HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
    ],
    ids=["bytes", "cut", "CRLF", "CR", "no chunks", "no chunks, cut", "BOM", "no IDs", "chunked answer", "no answer"],
)
def test_whatever_the_framing_nothing_is_missed(server: Faulty) -> None:
    """Chunks that cut events, other line ends, a body that ends with the connection: all is legal."""
    with server.running():
        told = load(server)
    assert {name: told[name] for name in GOOD} == GOOD
    assert told["delivered"] == 30


def test_tls_is_verified(tmp_path: Path) -> None:
    """A certificate that nobody vouches for is refused, with a hint; trusted, or with --insecure, it works."""
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Faulty(tls=context).running() as server:
        refused = invoke(server.url, "--clients=1", "--duration=0.2")
        assert refused.exit_code == 2
        assert "--insecure" in refused.stderr
        assert load(server, "--insecure")["delivered"] == 30
    with Faulty(tls=context).running() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", os.fspath(certificate))
        assert load(server)["delivered"] == 30


# -- coming back ----------------------------------------------------------------------------------------------


def ends_once(stream: int, number: int, block: bytes) -> list[bytes]:
    return [chunk(block), END] if stream == 1 and number == 4 else [chunk(block)]


def test_a_stream_that_ends_is_resumed() -> None:
    """The client comes back after the server's ``retry`` with the last ID it saw, and misses nothing."""
    with Faulty(ends_once, resume=True).running() as server:
        told = load(server)
    assert (told["closed"], told["reopened"], told["lost"]) == (1, 1, 0)
    assert sum(b"Last-Event-ID: 4" in head for head in server.requests) == 1


def test_without_resuming_what_came_meanwhile_is_lost() -> None:
    """The same at a server that does not know ``Last-Event-ID``."""
    with Faulty(ends_once, resume=False, opening=b"retry: 1000\n\n").running() as server:
        told = load(server, status=1)
    assert told["reopened"] == 1
    assert told["lost"] > 0


@pytest.mark.usefixtures("_patience")
@pytest.mark.parametrize("option", ["--churn=10/s", "--reconnect-storm"])
def test_clients_that_leave_come_back(option: str) -> None:
    """Those that are cut resume where they were: nothing is lost."""
    with Faulty(resume=True).running() as server:
        told = load(server, option, "--rate=5", "--duration=2")
    assert told["left"] == told["reopened"] >= 3
    assert (told["delivered"], told["lost"], told["twice"]) == (30, 0, 0)
    assert (told["storm_s"] is not None) == (option == "--reconnect-storm")


def test_slow_clients_catch_up() -> None:
    """They read less than they are sent, get the rest at the end, and do not count for latency."""
    with Faulty().running() as server:
        told = load(server, "--slow=34%", "--payload=2000")
    assert (told["slow"], told["delivered"], told["lost"]) == (1, 30, 0)


# -- what cannot be tested ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 25\r\n\r\n" + '{"detail": "who? s3cr3t"}',
            "401 Unauthorized: who? ***",
        ),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "no stream at /stream: 404 Not Found"),
        ("HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n", "to /there: give that URL"),
        ("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", "of type text/html"),
        (
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
            "encoded as gzip",
        ),
        ("SSH-2.0 200 \r\n\r\n", "no HTTP server"),
    ],
)
def test_a_server_that_has_no_stream_here(answer: str, said: str) -> None:
    """Status 2, and one line that says why, without the token even if the server repeats it."""
    with Faulty(answer=answer).running() as server:
        result = invoke(server.url, "--clients=3", TRIO_SSE_TOKEN="s3cr3t")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "s3cr3t" not in result.output
    assert len(result.stderr.splitlines()) == 1
    assert b"Authorization: Bearer s3cr3t" in server.requests[0]


def test_a_server_that_takes_no_events() -> None:
    """Where the first answers to publishers are no, there is no test."""
    with Faulty(accept="HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").running() as server:
        result = invoke(server.url, "--publish", server.url, "--clients=1", "--duration=2")
    assert result.exit_code == 2
    assert "nothing can be published: 403 Forbidden" in result.stderr


def test_events_that_are_refused_now_and_then_are_a_failure() -> None:
    """A server that cannot take them says 503: status 1."""
    with Faulty(accept="HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").running() as server:
        told = load(server, status=1)
    assert (told["accepted"], told["refused"]) == (0, 10)
    assert told["failures"] == {"503 Service Unavailable": 10}


def test_a_server_that_is_not_there() -> None:
    """Status 2, and one line."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        result = invoke(f"http://127.0.0.1:{sock.getsockname()[1]}")
    assert result.exit_code == 2
    assert "cannot be reached: Connection refused" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["example.org"], "http://127.0.0.1:8000"),
        (["http://u:secret@127.0.0.1/"], "--token"),
        (["http://127.0.0.1:1/x", "--topic=a"], "no path"),
        (["http://127.0.0.1:1/", "--publish=http://127.0.0.1:1/x"], "--publish goes with"),
        (["http://127.0.0.1:1/", "--topic=a", "--topic=a"], "each topic once"),
        (["http://127.0.0.1:1/", "--topic=*"], "wildcards"),
        (["http://127.0.0.1:1/", "--header=secret"], "header 1"),
        (["http://127.0.0.1:1/", "--rate=0"], "rate of 0"),
        (["http://127.0.0.1:1/", "--json=/dev/null/no"], "cannot be written: Not a directory"),
        (["http://127.0.0.1:1/", "--churn=often"], "20/s"),
        (["http://127.0.0.1:1/", "--slow=50/s"], "1% or 50"),
        (["http://127.0.0.1:1/", "--clients=100000000"], "clients need"),
        (["http://no.such.host.invalid/"], "is not known"),
    ],
)
def test_wrong_options_are_explained(arguments: list[str], said: str) -> None:
    """Status 2, and a line that says what to do, without what may be a secret."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "secret" not in result.stderr
    assert "Traceback" not in result.output


def test_stopped_before_it_began_there_was_no_test() -> None:
    """Ctrl-C while streams are opened: no figures of nothing, and no word on who was the bottleneck."""
    with Faulty().running() as server, engine_of(server) as engine:
        engine.stop()
        with pytest.raises(LoadError, match="stopped"):
            engine.open_streams(3, lambda _: None)


def test_what_is_no_event_of_the_run_is_no_delivery() -> None:
    """What others publish is told of, and is not in the rate."""
    opening = b"retry: 50\ndata: of somebody else\n\n"
    with Faulty(accept="HTTP/1.1 503 Service Unavailable\r\n\r\n", opening=opening).running() as server:
        told = load(server, status=1)
    assert (told["others"], told["delivered"], told["deliveries_per_s"]) == (3, 0, 0)


def test_where_nothing_came_the_latency_is_not_known() -> None:
    """A number is said only where there is one."""
    with Faulty(accept="HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").running() as server:
        result = invoke(server.url, "--publish", server.url, "--clients=1", "--duration=0.1")
    assert "nan" not in result.stdout


# -- listening ------------------------------------------------------------------------------------------------


def listen(server: Faulty, status: int = 0) -> dict[str, Any]:
    """Two clients that only listen, while somebody else publishes."""

    def publish() -> None:
        while server._opened < 3:
            time.sleep(0.01)
        for number in range(10):
            time.sleep(0.01)
            server.publish(b"%d" % number)

    publisher = threading.Thread(target=publish)
    publisher.start()
    told = load(server, "--duration=2", status=status, way=())
    publisher.join()
    return told


def test_listening_compares_ids() -> None:
    """It counts events, and what one client has and another has not; latency is not known."""
    with Faulty().running() as server:
        told = listen(server)
    assert (told["events"], told["delivered"], told["lost"], told["p50_ms"]) == (30, 30, 0, None)
    with Faulty(one_stream_gets({4: []})).running() as server:
        assert listen(server, status=1)["lost"] == 1
    with Faulty(one_stream_gets({4: [b"BLOCK", b"BLOCK"]})).running() as server:
        assert listen(server, status=1)["twice"] == 1


def test_listening_without_ids_only_counts() -> None:
    """What was lost is not known, and it says so."""
    with Faulty(ids=False).running() as server:
        told = listen(server)
    assert (told["events"], told["lost"], told["twice"]) == (30, None, None)
    assert any("cannot be known" in remark for remark in told["remarks"])


# -- who is the bottleneck ------------------------------------------------------------------------------------


def engine_of(server: Faulty) -> Engine:
    link = Link.parse(server.url)
    site = link.find()
    return Engine(Target(site, (link.target,), site, (link.target,)), payload=60)


def test_it_says_that_it_was_the_bottleneck_itself() -> None:
    """A load that has more to do than it can, here since whoever watches it takes its time, is no measure."""
    with Faulty().running() as server, engine_of(server) as engine:
        engine.open_streams(1, lambda _: None)
        load = engine.run(50, 0.9, lambda *_: time.sleep(0.45))
    assert load.bottleneck == "load"
    assert load.late > 0
    assert load.accepted == load.offered == 45


def blamed(whom: str | None, server: Faulty, *arguments: str) -> dict[str, Any]:
    """What a load tells that found who was the bottleneck; a machine that has no time for a load is asked again."""
    deadline = time.monotonic() + 60
    while (told := load(server, *arguments))["bottleneck"] != whom and time.monotonic() < deadline:
        pass
    assert told["bottleneck"] == whom
    return told


def test_it_says_that_the_server_was_the_bottleneck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that wait since no publisher has had its answer are the server's fault."""
    monkeypatch.setattr("trio_sse.load.engine.LATE_NS", 50_000_000)

    def sleepily(_: int, __: int, block: bytes) -> list[bytes]:
        time.sleep(0.1)
        return [chunk(block)]

    with Faulty(sleepily).running() as server:
        told = blamed("server", server, "--rate=100", "--clients=1")
    assert told["held"] > 0
    assert any("The server was the bottleneck" in remark for remark in told["remarks"])


def test_nobody_is_the_bottleneck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is time to rest, it says nothing."""
    monkeypatch.setattr("trio_sse.load.engine.LATE_NS", 50_000_000)
    with Faulty().running() as server:
        blamed(None, server)


# -- the whole --------------------------------------------------------------------------------------------------


def test_a_summary_for_a_person(tmp_path: Path) -> None:
    """A table on the standard output; JSON in a file beside it."""
    path = tmp_path / "load.json"
    with Faulty().running() as server:
        result = invoke(
            server.url + "?token=s3cr3t", "--publish", server.url, "--clients=2", "--duration=0.3", f"--json={path}"
        )
    assert result.exit_code == 0
    for word in ("published", "delivered", "p99", "lost", "twice", "out of order"):
        assert word in result.stdout
    assert "s3cr3t" not in result.output + path.read_text()
    assert json.loads(path.read_text())["failed"] is False


def test_help_shows_examples() -> None:
    """Two commands that can be copied."""
    result = invoke("--help")
    assert result.exit_code == 0
    assert result.output.count("trio-sse load http") == 2


def test_descriptors_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 2, and what to do about it."""

    def connection(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("trio_sse.load.crowd.Connection", connection)
    with Faulty().running() as server:
        result = invoke(server.url)
    assert result.exit_code == 2
    assert "ulimit -n" in result.stderr
