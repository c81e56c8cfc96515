"""The benchmark tells the truth: what it counts is what happened."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.accounting import MAX_STAMP, Accounts, StampReader, account, percentile, stamped
from benchmarks.fanout import SERVERS, Run, tables_of
from benchmarks.generator import Generator, Load
from benchmarks.obvious import encode
from benchmarks.servers import BenchmarkError, usage
from trio_sse.wire import Decoder

from .serving import ROOT

ONE_PUBLISHER = [0] * 5
TWO_PUBLISHERS = [0, 1, 0, 1, 0]
ALL = set(range(5))
OPENING = b"HTTP/1.1 200 \r\nContent-Type: text/event-stream\r\n\r\n: open\n\n"


def read(*pieces: bytes) -> list[tuple[int, int]]:
    reader = StampReader()
    return [(int(due), int(number)) for piece in pieces for due, number in reader.feed(piece)]


def accounts(*clients: Sequence[int], sent: Sequence[int] = ONE_PUBLISHER) -> Accounts:
    return account([array("I", numbers) for numbers in clients], sent, ALL & set(range(len(sent))))


# -- stamps -------------------------------------------------------------------------------------------------


def test_stamp_fills_the_payload() -> None:
    """An event's data has exactly the size asked for, and begins with its stamp."""
    assert len(stamped(123456789012345, 42, 120)) == 120
    assert read(stamped(123456789012345, 42, 120)) == [(123456789012345, 42)]
    assert len(stamped(10**17, 10**6, MAX_STAMP)) == MAX_STAMP


def test_every_cut_inside_a_stamp_is_mended() -> None:
    """Wherever the bytes are cut, also in many pieces, each stamp is found once and whole."""
    whole = b"data: @1001:7@xxx\n\ndata: @1002:8@xxx\n\n"
    for cut in range(len(whole) + 1):
        assert read(whole[:cut], whole[cut:]) == [(1001, 7), (1002, 8)]
    assert read(*(whole[at : at + 1] for at in range(len(whole)))) == [(1001, 7), (1002, 8)]


def test_a_stray_sign_is_no_stamp() -> None:
    """The sign that begins a stamp may stand elsewhere, and hides no stamp behind it."""
    assert read(b"from: a@b\n\n", b"data: @1:2@") == [(1, 2)]
    assert read(b"@", b"y" * MAX_STAMP, b"@1:2@") == [(1, 2)]


# -- accounts -----------------------------------------------------------------------------------------------


def test_all_is_well() -> None:
    """Every client has every event, in order: nothing to complain of."""
    assert accounts([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]) == Accounts(10, 0, 0, 0)


def test_a_lost_event_is_noticed() -> None:
    """An event that one client of three did not get is lost once, also if it was the last or the only."""
    assert accounts([0, 1, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3, 4]) == Accounts(14, 1, 0, 0)
    assert accounts([0, 1, 2, 3], [0, 1, 2, 3, 4]) == Accounts(9, 1, 0, 0)
    assert accounts([]) == Accounts(0, 5, 0, 0)


def test_a_repeated_event_is_noticed() -> None:
    """An event that came twice is delivered once, and makes up for no lost one."""
    assert accounts([0, 1, 1, 2, 3, 4]) == Accounts(5, 0, 1, 0)
    assert accounts([0, 1, 1, 2, 3]) == Accounts(4, 1, 1, 0)
    assert accounts([0, 1, 2, 3, 4, 1, 0]) == Accounts(5, 0, 2, 0)


def test_a_publishers_events_come_in_its_order() -> None:
    """What one publisher sent later may not come earlier, even if all clients agree."""
    assert accounts([0, 2, 1, 3, 4], [0, 2, 1, 3, 4]) == Accounts(10, 0, 0, 2)


def test_all_clients_see_one_order() -> None:
    """Events of two publishers may come in any order, but in the same for all clients."""
    swapped = [1, 0, 2, 3, 4]
    assert accounts(swapped, swapped, sent=TWO_PUBLISHERS) == Accounts(10, 0, 0, 0)
    assert accounts(swapped, swapped, [0, 1, 2, 3, 4], sent=TWO_PUBLISHERS) == Accounts(15, 0, 0, 1)


def test_a_hole_is_no_disorder() -> None:
    """A client that lost an event still has the others in order, also those that the first client lost."""
    assert accounts([0, 1, 3, 4], [0, 1, 3, 4], [0, 2, 3, 4]) == Accounts(12, 3, 0, 0)


def test_what_was_not_accepted_cannot_be_lost() -> None:
    """An event that the server refused is neither delivered nor lost."""
    received = [array("I", [0, 2])]
    assert account(received, [0, 0, 0], {0, 2}) == Accounts(2, 0, 0, 0)


def test_percentiles_are_values_that_occurred() -> None:
    """The nearest rank: half of two values is the first, all of them the last."""
    assert percentile([1.0, 2.0], 0.5) == 1.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert percentile([3.0], 1) == 3.0
    assert percentile([], 0.5) != percentile([], 0.5)


# -- the generator, against a server that misbehaves ----------------------------------------------------------


Answer = Callable[[int, bytes], list[bytes]]
"""What a stream is sent, in pieces, when the n-th event was published."""


@contextmanager
def misbehaving(answer: Answer) -> Iterator[int]:
    """A server of one stream, in a thread; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        streams: list[socket.socket] = []

        def serve(sock: socket.socket) -> None:
            with closing(sock):
                while request := sock.recv(65536):
                    if request.startswith(b"GET"):
                        sock.sendall(OPENING)
                        streams.append(sock)
                        continue
                    number = int(request.rpartition(b":")[2].partition(b"@")[0])
                    for piece in answer(number, request.partition(b"\r\n\r\n")[2]):
                        streams[0].sendall(piece)
                    sock.sendall(b"HTTP/1.1 201 \r\nContent-Length: 2\r\n\r\nok")

        def accept() -> None:
            for _ in range(9):  # one stream, eight publishers
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=serve, args=(sock,))
                thread.start()
                threads.append(thread)

        threads = [threading.Thread(target=accept)]
        threads[0].start()
        yield listener.getsockname()[1]
        for thread in threads:
            thread.join()


def load_of(answer: Answer) -> Load:
    with misbehaving(answer) as port, Generator(port, "/events", "/publish", 60) as generator:
        generator.open_streams(1, lambda _: None)
        return generator.run(20, 0.5, lambda *_: None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda n, data: [data], Accounts(10, 0, 0, 0)),
        (lambda n, data: [data[:5], data[5:]], Accounts(10, 0, 0, 0)),
        (lambda n, data: [data, data] if n == 4 else [data], Accounts(10, 0, 1, 0)),
        (lambda n, data: [data, b"@1:2@"] if n == 9 else [data], Accounts(10, 0, 1, 0)),
    ],
    ids=["whole", "cut", "twice", "late repetition"],
)
def test_the_generator_sees_what_a_stream_was_sent(answer: Answer, expected: Accounts) -> None:
    """Events sent whole, in pieces or twice are counted as such, from the socket to the accounts."""
    load = load_of(answer)
    assert (load.offered, load.accepted, load.refused, load.closed) == (10, 10, 0, 0)
    assert load.accounts == expected


def test_the_generator_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost event ends the run after a while of silence, and is counted."""
    monkeypatch.setattr("benchmarks.generator.QUIET_S", 0.3)
    assert load_of(lambda n, data: [] if n == 4 else [data]).accounts == Accounts(9, 1, 0, 0)


def test_a_server_that_is_not_there() -> None:
    """Where nobody listens, the benchmark says so."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with Generator(port, "/", "/", 60) as generator, pytest.raises(BenchmarkError, match="cannot be reached"):
            generator.open_streams(1, lambda _: None)


# -- around it ------------------------------------------------------------------------------------------------


def test_the_obvious_way_splits_lines_as_the_standard_does() -> None:
    """What the peer sends is decoded to what was published, whatever the line ends."""
    (event,) = Decoder().feed(encode("one\rtwo\r\nthree\n\u2028four\n"))
    assert event.data == "one\ntwo\nthree\n\u2028four\n"


def test_usage_counts_children() -> None:
    """A server's cost holds that of the processes it started."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        both, own = usage(parent.pid), Path(f"/proc/{parent.pid}/statm").read_text().split()[1]
        assert both.rss_bytes > 1.5 * int(own) * 4096
        parent.communicate(b"\n")
    assert usage(parent.pid).rss_bytes == 0


def test_our_failures_fail() -> None:
    """A run with anything lost, repeated, reordered, refused or closed has failed."""

    def failed(*, refused: int = 0, closed: int = 0, accounts: Accounts) -> bool:
        load = Load(10, 10 - refused, refused, 0, 0, closed, accounts, 1, 1, 1, 1)
        run = Run("ours", True, 1, 10, load, 1, 1, 1, 1, 1)
        assert tables_of([run])
        return run.failed

    assert not failed(accounts=Accounts(10, 0, 0, 0))
    assert failed(accounts=Accounts(9, 1, 0, 0))
    assert failed(accounts=Accounts(10, 0, 1, 0))
    assert failed(accounts=Accounts(10, 0, 0, 1))
    assert failed(refused=1, accounts=Accounts(9, 0, 0, 0))
    assert failed(closed=1, accounts=Accounts(10, 0, 0, 0))


def test_no_line_of_a_table_wraps_in_80_columns() -> None:
    """Also where every server is saturated, and there is no terminal whose width is known."""
    load = Load(1000, 1000, 0, 0, 0, 0, Accounts(30_000, 0, 0, 16_971), 1, 13_630.8, 16_999.9, 17_077.5)
    runs = [Run(each.name, each.ours, 1000, 100, load, 98.7, 1, 1740, 137.6, 1) for each in SERVERS["all"]]
    (table,) = tables_of(runs)
    narrow, wide = (Console(width=width, file=io.StringIO()).render_lines(table) for width in (80, 200))
    assert len(narrow) == len(wide)


def test_a_small_real_run(tmp_path: Path) -> None:
    """Both servers, as a user runs it: every event that was published came to every client, once, in order."""
    report = tmp_path / "report.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "fanout.py"), "--clients=20", "--rate=20", "--seconds=2"]
    command += ["--saturate=0", "--server=both", f"--json={report}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deliveries a second" in done.stdout
    told = json.loads(report.read_text())
    assert told["machine"]["packages"]["trio"]
    assert [run["server"] for run in told["runs"]] == ["ours, memory", "obvious way"]
    for run in told["runs"]:
        load = run["load"]
        assert load["offered"] == 40
        assert 0 < load["accepted"] <= 40
        assert load["refused"] == load["closed"] == 0
        assert load["accounts"] == {
            "delivered": 20 * load["accepted"],
            "lost": 0,
            "twice": 0,
            "disordered": 0,
        }
        assert 0 < load["p50_ms"] <= load["p99_ms"] <= load["max_ms"]
        assert run["cpu_us"] > 0


def test_wrong_options_are_explained(tmp_path: Path) -> None:
    """A number of clients that is none ends with a line that says so."""
    command = [sys.executable, "-m", "benchmarks.fanout", "--clients", "10,x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "'10,x' is not a number" in done.stderr
