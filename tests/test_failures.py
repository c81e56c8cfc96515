"""When one of our own parts fails: who is told, who goes on, and how it heals. The real server; real faults."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import STALL_S, WITHIN_S, Answer, Wire, ask, eventually, last_event_id, publish
from tests.serving import Server, serving
from tests.test_server_h2 import Client
from tests.test_shutdown import APP, Alone, Reader, alive, sqlite, subscribe

TOLD = {"TOLD_S": str(STALL_S)}
"""Who asks while the worker goes is told, and this is longer than its second: a test may stand still."""

END = b"\r\n0\r\n\r\n"
FAILED = re.compile(rb'event: trio-sse\.goodbye\nretry: (\d+)\ndata: {"reason": "failed"}\n\n')

COME_BACK = re.compile(rb"^: stream\nretry: \d+\n", re.MULTILINE)


def status_of(server: Server, path: str) -> int | None:
    """What it answers now, if it answers."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(server.url + path, timeout=WITHIN_S).status_code
    return None


def refused(server: Server, topic: str = "lobby") -> Answer | None:
    """How an event is refused, if it is."""
    with contextlib.suppress(OSError):
        answer = ask(server, "POST", f"/topics/{topic}", b"lost")
        return answer if answer.status != 201 else None
    return None


def healed(server: Server, before: list[int]) -> bool:
    """Whether another worker comes to serve."""
    return eventually(lambda: server.workers() not in ([], before) and status_of(server, "/readyz") == 200)


# -- the hub and its parts ------------------------------------------------------------------------------------


def part_fails(folder: Path, part: str) -> None:
    """What each part that fails brings about."""
    with serving(APP, folder=folder, env=sqlite(folder, DRAIN_S="2", HEARTBEAT_S="1") | TOLD) as server:
        before = server.workers()
        ids = [publish(server, "lobby", str(number)) for number in range(3)]
        with Reader(server, f"/events?topic=lobby&last_event_id={ids[0]}") as stream:
            stream.take(b"data: 2\n\n")
            ask(server, "POST", f"/test/break/{part}")
            answer = None
            with contextlib.suppress(OSError):
                answer = ask(server, "POST", "/topics/lobby", b"3")
            assert FAILED.search(stream.take(END))
            assert status_of(server, "/readyz") == 503
        if answer is not None and answer.status == 201:  # then it is kept, as it says
            ids.append(answer.json["id"])
        late = refused(server)
        assert late is not None
        assert late.status == 503
        assert "try again" in late.json["detail"]
        assert healed(server, before)
        with Reader(server, f"/events?topic=lobby&last_event_id={ids[0]}") as stream:
            received = stream.take(f"id: {ids[-1]}\n".encode()).decode()
            assert re.findall(r"^id: (.*)$", received, re.MULTILINE)[1:] == ids[1:]
        assert server.log().count("Traceback") == 1
        assert server.log().count("the hub failed") == 1
        assert server.terminate() == 0


def task_fails(folder: Path) -> None:
    """A task of the application's own takes the hub with it, and both are replaced."""
    with serving(APP, folder=folder, env=sqlite(folder, DRAIN_S="2") | TOLD) as server, subscribe(server) as stream:
        before = server.workers()
        ask(server, "POST", "/test/break/task")
        assert b"event: trio-sse.goodbye" in stream.take(END)
        assert status_of(server, "/readyz") == 503
        assert healed(server, before)


def background_fails(folder: Path, part: str) -> None:
    """What each part that serves all connections brings about."""
    with serving(APP, folder=folder, env=sqlite(folder, DRAIN_S="2"), args=("--keep-alive", "1")) as server:
        before = server.workers()
        with subscribe(server) as stream, Reader(server, "/board.js", deaf=True) as deaf, Wire(server):
            ask(server, "POST", f"/test/break/{part.replace(' ', '%20')}")
            if part == "slow readers":
                with contextlib.suppress(OSError):
                    deaf.socket.settimeout(1)
                    deaf.send(b"GET /board.js HTTP/1.1\r\nHost: x\r\n\r\n" * 300)
            with contextlib.suppress(OSError):
                Wire(server).socket.close()
            assert b"event: trio-sse.goodbye\nretry: " in stream.take(END)
        assert healed(server, before)
        assert server.log().count("Traceback") == 1
        assert server.log().count("a part of the server failed") == 1
        assert server.terminate() == 0


def spins(folder: Path) -> None:
    with serving(APP, folder=folder, env=sqlite(folder)) as server:
        marker = folder / "fails at once"
        marker.touch()
        ask(server, "POST", "/test/break/hub")
        publish(server, "lobby")
        assert eventually(lambda: marker.read_text().count("\n") >= 2)
        first, second = (float(line) for line in marker.read_text().splitlines()[:2])
        assert second - first > 2.5
        marker.unlink()
        assert eventually(lambda: status_of(server, "/readyz") == 200)


def file_is_removed(folder: Path) -> None:
    with serving(APP, folder=folder, env=sqlite(folder) | TOLD) as server, subscribe(server) as stream:
        before, old = server.workers(), publish(server, "lobby", "lost")
        for path in folder.glob("hub.db*"):
            path.unlink()
        answer = ask(server, "POST", "/topics/lobby", b"lost too")
        assert answer.status == 503
        assert "try again" in answer.json["detail"]
        assert FAILED.search(stream.rest())
        assert healed(server, before)
        with Reader(server, f"/events?topic=lobby&last_event_id={old}") as resumed:
            assert b'"reason": "restarted"' in resumed.take(b"trio-sse.gap") + resumed.take(b"\n\n")


def folder_is_gone(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    with serving(APP, folder=folder, env=sqlite(data)) as server, subscribe(server) as stream:
        publish(server, "lobby", "lost")
        shutil.rmtree(data)
        assert FAILED.search(stream.rest())
        assert server.process is not None
        group = server.process.pid
        assert server.process.wait(30) == 0
        assert server.log().splitlines()[-1].endswith("hub.db cannot be used: No such file or directory")
        assert eventually(lambda: not alive(group))


def disk_fails(folder: Path) -> None:
    with serving(APP, folder=folder, env=sqlite(folder, RETENTION_EVENTS="1000000") | TOLD) as server:
        (worker,) = server.workers()
        with subscribe(server) as stream:
            ids = [publish(server, "lobby", str(number)) for number in range(20)]
            size = (folder / "hub.db-wal").stat().st_size
            resource.prlimit(worker, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))  # EFBIG, which SQLite
            answers = [ask(server, "POST", "/topics/lobby", b"x" * 50_000) for _ in range(2)]  # calls an I/O error
            assert {answer.status for answer in answers} == {503}
            assert FAILED.search(stream.rest())
        assert healed(server, [worker])
        assert last_event_id(server, "lobby") == ids[-1]


PARTS = ["hub", "writer", "thread", "append", "ticker"]
BACKGROUND = ["accept", "row", "slow readers"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """What takes long, most of it waiting, goes on side by side, each with a server of its own."""
    with ThreadPoolExecutor(max_workers=5) as pool:
        others = [task_fails, spins, file_is_removed, folder_is_gone, disk_fails]
        running = {each.__name__: pool.submit(each, tmp_path_factory.mktemp("f")) for each in others}
        running |= {part: pool.submit(part_fails, tmp_path_factory.mktemp(part), part) for part in PARTS}
        running |= {part: pool.submit(background_fails, tmp_path_factory.mktemp("b"), part) for part in BACKGROUND}
        yield running


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_fails_is_replaced(begun: dict[str, Future[None]], part: str) -> None:
    """Streams end with a retry, /readyz is 503, publishers are told; then a fresh worker has everything."""
    begun[part].result()


@pytest.mark.parametrize("part", BACKGROUND)
def test_what_serves_all_connections_is_replaced(begun: dict[str, Future[None]], part: str) -> None:
    """Where Trio would end its run at once: streams get their goodbye first, and a fresh worker serves."""
    begun[part].result()


def test_a_task_that_fails_does_not_leave_an_empty_server(begun: dict[str, Future[None]]) -> None:
    """What an application runs in the nursery of its life takes the hub with it: both are replaced."""
    begun["task_fails"].result()


def test_a_fault_that_comes_back_does_not_spin(begun: dict[str, Future[None]]) -> None:
    """A hub that breaks as soon as it opens is replaced, not more often than once in three seconds, and then serves."""
    begun["spins"].result()


def test_a_journal_whose_file_was_removed_is_opened_anew(begun: dict[str, Future[None]]) -> None:
    """SQLite goes on writing to it, and keeps nothing: nobody is told that it does."""
    begun["file_is_removed"].result()


def test_a_journal_whose_folder_is_gone_ends_the_server(begun: dict[str, Future[None]]) -> None:
    """There is nothing to open anew: one line says so, and the supervisor may try again."""
    begun["folder_is_gone"].result()


def test_a_disk_that_fails_ends_the_worker(begun: dict[str, Future[None]]) -> None:
    """An error of writing that is no full disk: nothing is acknowledged, and a fresh worker has what was."""
    begun["disk_fails"].result()


def test_a_thousand_streams_end_with_one_line(tmp_path: Path) -> None:
    """However many are ended, the log has one traceback."""
    with serving(APP, folder=tmp_path, env=sqlite(tmp_path)) as server, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(subscribe(server)) for _ in range(1000)]
        before = len(server.log().splitlines())
        ask(server, "POST", "/test/break/hub")
        publish(server, "lobby")
        retries = [int(found[1]) for stream in streams if (found := FAILED.search(stream.take(END)))]
        assert len(retries) == 1000
        assert max(retries) - min(retries) > 1000
        log = server.log().splitlines()[before:]
        assert len([line for line in log if not line.startswith((" ", "Traceback"))]) < 10
        assert len(log) < 40


@pytest.mark.parametrize("part", ["hub", "writer", "accept"])
def test_alone_it_ends_with_one_clear_line(tmp_path: Path, part: str) -> None:
    """Without a parent that starts a fresh worker, the status says that something is wrong."""
    server = Alone(folder=tmp_path, env=sqlite(tmp_path))
    server.command[server.command.index("trio_sse") :] = ["tests.alone", str(server.port)]
    server.start()
    try:
        ask(server, "POST", f"/test/break/{part}")
        with contextlib.suppress(OSError):
            ask(server, "POST", "/topics/lobby", b"the last straw")
        assert server.process is not None
        assert server.process.wait(30) == 1
        assert server.log().splitlines()[-1] == "Error: the hub failed; its log says how"
        assert server.log().count("failed") == 2
    finally:
        server.kill()


# -- one of many ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that nothing ends."""
    folder = tmp_path_factory.mktemp("one")
    with serving(APP, folder=folder, env=sqlite(folder, HEARTBEAT_S="1")) as server:
        ask(server, "POST", "/test/break/reader")
        yield server
        assert server.terminate() == 0


def test_a_subscriber_whose_source_fails_touches_no_other(server: Server) -> None:
    """Its own stream ends with a retry; one beside it, and a foreign one, go on."""
    before = server.workers()
    with subscribe(server, "beside") as beside:
        publish(server, "broken/1", "x")
        with Reader(server, "/test/failing/3") as foreign:
            received = foreign.take(END)
            assert b"data: 2\n\n" in received
            assert FAILED.search(received)
        id = publish(server, "beside", "still here")
        beside.take(f"id: {id}\ndata: still here\n\n".encode())
    assert server.workers() == before


def test_over_http_2_other_streams_of_the_connection_go_on(server: Server) -> None:
    """One fails, its neighbours on the same connection do not notice."""
    client = Client(server)
    with contextlib.closing(client.socket):
        beside = client.open_stream("/events?topic=beside")
        failing = client.ask("/test/failing/2")
        assert client.read_until(lambda: failing in client.ended)
        assert FAILED.search(client.data[failing])
        bug = client.ask("/test/bug")
        assert client.read_until(lambda: bug in client.ended)
        id = publish(server, "beside", "still here").encode()
        assert client.read_until(lambda: id in client.data[beside])
        assert beside not in client.ended


def test_a_reader_whose_journal_fails_is_told_to_come_back(server: Server) -> None:
    """In the middle of its history the stream ends with a retry, and its neighbour goes on."""
    ask(server, "POST", "/topics/broken/2", b"data: x\n\n" * 300, {"Content-Type": "text/event-stream"})
    with subscribe(server, "beside") as beside:
        with Reader(server, "/events?topic=broken/2&last_event_id=earliest") as broken:
            received = broken.take(END)
            assert received.count(b"data: x\n\n") == 256
            assert FAILED.search(received)
        id = publish(server, "beside", "still here")
        beside.take(f"id: {id}\n".encode())


def test_a_bug_in_a_view_is_a_problem(server: Server) -> None:
    """500, one traceback, and the connection goes on; a flood of the same is no flood of the log."""

    def told() -> int:
        return server.log().count("ZeroDivisionError: a bug in a view\n")

    before = told()
    with Wire(server) as wire:
        for number in range(50):
            wire.send(b"GET /test/bug HTTP/1.1\r\nHost: x\r\n\r\n")
            head = wire.take(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 500 ")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            assert "in its log" in json.loads(wire.take_bytes(int(length[1])))["detail"]
            if number == 0:
                assert eventually(lambda: told() == before + 1)
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert wire.rest().endswith(b"alive\n")
    assert told() <= before + 5


@pytest.mark.parametrize(
    "path",
    [
        "/events?topic=unread/now&last_event_id=earliest",
        "/events?topic=unread/bug&last_event_id=earliest",
        "/test/own/unread/now",
        "/test/own/unread/bug",
    ],
)
def test_whose_stream_cannot_be_opened_is_told_to_come_back(server: Server, path: str) -> None:
    """It is our fault, and may pass: any status but 200 would close an EventSource for ever. Over HTTP/2 too."""
    with Reader(server, path) as stream:
        head, _, body = stream.take(END).partition(b"\r\n\r\n") if "/own/" in path else whole(stream)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"content-type: text/event-stream" in head
        assert COME_BACK.search(body)
    client = Client(server)
    with contextlib.closing(client.socket):
        number = client.ask(path)
        assert client.read_until(lambda: number in client.ended)
        assert COME_BACK.search(client.data[number])
    answer = ask(server, "HEAD", path)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")


def whole(wire: Wire) -> tuple[bytes, bytes, bytes]:
    """The head and the body of an answer of a known length."""
    head = wire.take(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    return head, b"", wire.take_bytes(int(length[1]))


def test_an_event_source_is_never_told_that_the_fault_is_ours(server: Server) -> None:
    """Wherever it asks. Whom no other server would serve either is told so, and so is who asks for anything else."""
    source = {"Accept": "text/event-stream"}
    answer = ask(server, "GET", "/test/bug", headers=source)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
    assert COME_BACK.search(answer.body)
    assert ask(server, "GET", "/test/bug").status == 500
    assert ask(server, "GET", "/nowhere", headers=source).status == 404
    assert ask(server, "GET", "/events?topic=//", headers=source).status == 400
    assert ask(server, "POST", "/events", b"", headers=source).status == 405
