"""Clients come and go while the server is killed again and again: nothing is lost, and nothing comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from .conftest import ask
from .serving import Server, running
from .wanderers import Client, Crowd, Event, Run, read_journal

pytestmark = pytest.mark.timeout(300)  # it takes as long as the machine wants

ENV = {
    "TRIO_SSE_RETENTION_EVENTS": "1000000",
    "COVERAGE_PROCESS_CONFIG": "",  # who is killed leaves no account, and to keep one costs more than to serve
}


# -- five hundred who wander -------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((10, 2, 240), id="ten seconds"),
        pytest.param((60, 20, 600), id="a minute", marks=[pytest.mark.proof, pytest.mark.timeout(700)]),
    ],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One that is over, with its journal; the server must end well, and have no traceback in its log."""
    seconds, kills, within_s = request.param
    with running(Server(folder=tmp_path_factory.mktemp("run"), env=ENV)) as server:
        run = Run(server, seed=5, clients=500, rate=500, seconds=seconds, kills=kills, within_s=within_s)
        trio.run(run.run)
        assert not run.crowd.faults
        assert run.crowd.last is not None
        run.journal = read_journal(server, "run/*", run.crowd.last.decode())
        yield run
        assert server.terminate() == 0
        assert "Traceback" not in server.log()


def test_each_client_has_all_that_is_in_the_journal_once(run: Run) -> None:
    """From its first cursor on, in the journal's order, and never a gap event; by many visits, cut anywhere."""
    assert not run.crowd.compare(run.journal)
    assert run.life == run.kills
    assert run.crowd.visits > 2 * len(run.crowd.clients)
    assert run.crowd.cuts > 0


def test_the_journal_has_all_that_was_acknowledged_once(run: Run) -> None:
    """Under the ID that its publisher was told, and each publisher's events in its own order."""
    published = dict(run.journal)
    for publisher in run.publishers:
        mine = [text for _, text in run.journal if text.startswith(publisher.name.encode() + b"-")]
        assert mine == [publisher.text(number) for number in range(publisher.total)], f"seed {run.seed}"
        assert publisher.acknowledged
        assert publisher.acknowledged.items() <= published.items()


# -- a herd that comes back at once ------------------------------------------------------------------------------------

HERD = 200
HISTORY, EVENT_BYTES = 4000, 1000
HISTORY_BYTES = HISTORY * EVENT_BYTES


@dataclass
class Herd:
    """What became of it."""

    crowd: Crowd
    journal: list[Event]
    read_bytes: int
    """So much more its server read than one that has no history and no clients."""

    @property
    def received_bytes(self) -> int:
        """Data that the herd was sent."""
        return sum(client.received for client in self.crowd.clients) * EVENT_BYTES


def read_so_far(pid: int) -> int:
    """Bytes that a process has read from files, from its beginning, whether the disk had to move for them or not."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.removeprefix("rchar: ")) for line in lines if line.startswith("rchar: "))


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Herd]:
    """Clients with a cursor each, who all come to a server that has just been killed and started again."""
    with running(Server(folder=tmp_path_factory.mktemp("herd"), env=ENV)) as server:
        (worker,) = server.workers()
        bare = read_so_far(worker)  # the program itself
        history = b"".join(b"data: %b\n\n" % str(number).rjust(EVENT_BYTES, "-").encode() for number in range(HISTORY))
        told = ask(server, "POST", "/topics/herd/all", history, {"Content-Type": "text/event-stream"}).lines[-1]
        journal = read_journal(server, "herd/*", told["id"])
        crowd = Crowd(server, "herd/*", seed=5)
        crowd.last = journal[-1][0]
        step = HISTORY // HERD
        crowd.clients = [Client(crowd, number, journal[number * step][0]) for number in range(HERD)]
        server.kill()
        server.start()
        (worker,) = server.workers()

        async def come() -> None:
            with trio.move_on_after(200) as crowd.running:
                async with trio.open_nursery() as nursery:
                    for client in crowd.clients:
                        nursery.start_soon(client.run)

        trio.run(come)
        yield Herd(crowd, journal, read_so_far(worker) - bare)
        assert server.terminate() == 0
        assert "Traceback" not in server.log()


def test_a_herd_has_its_rest(herd: Herd) -> None:
    """Each of the clients gets what is behind its own cursor, and nothing else."""
    assert len(herd.journal) == HISTORY
    assert not herd.crowd.compare(herd.journal)


def test_the_disk_is_read_once_and_not_once_a_client(herd: Herd) -> None:
    """A hundred times the history is sent, and not ten times read, most of it at start-up to see that it is sound."""
    assert herd.received_bytes > 100 * HISTORY_BYTES
    assert HISTORY_BYTES / 2 < herd.read_bytes < 10 * HISTORY_BYTES
