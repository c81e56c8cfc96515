"""Who makes room in a full journal: the publisher that holds most, and of what it holds the largest topic."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving import ROOT
from trio_sse.errors import KeyReused, TooLarge
from trio_sse.event import ORIGIN, Event, EventID
from trio_sse.hub import open_hub
from trio_sse.journal import Journal, accounts, keys, memory, open_journal, shelf, writer
from trio_sse.journal.accounts import Accounts, Holding
from trio_sse.journal.costs import MEMORY
from trio_sse.journal.held import FileHolding
from trio_sse.journal.sqlite import SQLiteJournal
from trio_sse.record import Draft, Gap, Once, Record
from trio_sse.retention import Keep, Retention
from trio_sse.testing import read_all
from trio_sse.topic import parse_selectors
from trio_sse.wire import MAX_DATA

Opens = Callable[[Retention], AbstractAsyncContextManager[Journal]]
MIB = 1024 * 1024


@pytest.fixture(params=["memory:", "sqlite:"])
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Opens:
    """Opens the same journal again and again, of either kind."""
    url = request.param if request.param == "memory:" else f"sqlite:{tmp_path}/journal.db"
    return lambda retention: open_journal(url, retention=retention)


def event(topic: str, publisher: str, size: int = 0, key: str | None = None) -> Draft:
    return Draft(topic, Event("x" * size), key, publisher)


async def counts(journal: Journal, *topics: str) -> list[int]:
    return [len(await read_all(journal, topic)) for topic in topics]


# -- room for events -----------------------------------------------------------------------------------------------


async def test_a_flood_does_not_erase_what_another_publisher_has(opens: Opens) -> None:
    """Hundreds of mebibytes to one topic remove nothing of a token's, which holds little."""
    async with opens(Retention(bytes=8 * MIB)) as journal:
        await journal.append([event("orders/1", "shop", 100) for _ in range(50)])
        for _ in range(40):
            await journal.append([event("scratch", "", MIB // 2)])
        assert await counts(journal, "orders/1") == [50]
        assert journal.statistics().bytes <= 8 * MIB
        assert journal.statistics().evicted > 20


async def test_a_flood_does_not_erase_another_topic_of_the_same_publisher(opens: Opens) -> None:
    """Callers without a token are one publisher, and there the largest topic gives."""
    async with opens(Retention(bytes=8 * MIB)) as journal:
        await journal.append([event("lobby", "", 100) for _ in range(50)])
        for _ in range(40):
            await journal.append([event("scratch", "", MIB // 2)])
        assert await counts(journal, "lobby") == [50]


async def test_the_one_that_holds_most_gives_to_the_others(opens: Opens) -> None:
    """Three publishers, of which one had everything, end with an even share each."""
    async with opens(Retention(bytes=9 * MIB)) as journal:
        for publisher in ("a", "b", "c"):
            for _ in range(40):
                await journal.append([event(f"of/{publisher}", publisher, MIB // 4)])
        had = await counts(journal, "of/a", "of/b", "of/c")
        assert max(had) - min(had) <= 1


async def test_in_a_shared_topic_each_gives_its_own(opens: Opens) -> None:
    """The older events of one that holds little stay, and a reader is told of the hole behind them."""
    async with opens(Retention(bytes=4 * MIB)) as journal:
        ids = await journal.append([event("room", "ada", 10) for _ in range(3)])
        for _ in range(20):
            await journal.append([event("room", "bob", MIB // 2)])
        records = await read_all(journal, "room")
        assert [record.id for record in records[:3]] == ids
        assert {record.publisher for record in records[3:]} == {"bob"}
        page = await journal.read(parse_selectors(["room"]), ids[-1], 100)
        assert page.floor > ids[-1]


async def test_the_hole_is_told_and_what_stands_before_it_is_given(opens: Opens) -> None:
    """A gap first, as always, then everything that is left, in order."""
    url = "memory:"
    async with open_hub(url, retention=Retention(bytes=4 * MIB)) as hub:
        first = await hub.publish("room", "begin", publisher="ada")
        await hub.publish("room", "little", publisher="ada")
        for number in range(20):
            await hub.publish("room", f"{number}".zfill(MIB // 2), publisher="bob")
        last = await hub.publish("room", "end", publisher="ada")
        items: list[Record | Gap] = []
        async with hub.subscribe("room", last_event_id=first) as reader:
            while not (items and isinstance(items[-1], Record) and items[-1].id == last):
                items.append(await reader.receive())
        assert isinstance(items[0], Gap)
        assert [type(item) for item in items[1:]] == [Record] * (len(items) - 1)
        given = [item.id for item in items[1:] if isinstance(item, Record)]
        assert given == sorted(given)
        assert [item.publisher for item in items[1:] if isinstance(item, Record)][:2] == ["ada", "bob"]


async def test_too_many_topics_are_those_of_the_publisher_that_has_most(
    opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of these the one that was idle for longest goes."""
    for room in (memory, writer):
        monkeypatch.setattr(room, "MAX_TOPICS", 10)
    async with opens(Retention()) as journal:
        await journal.append([event(f"quiet/{number}", "ada") for number in range(3)])
        await journal.append([event(f"many/{number}", "bob") for number in range(5)])
        await journal.append([event("many/0", "bob")])
        await journal.append([event(f"more/{number}", "bob") for number in range(4)])
        assert await counts(journal, "quiet/*", "many/0", "many/1", "many/2", "more/*") == [3, 2, 0, 0, 4]


async def test_two_that_give_all_of_a_topic_at_once_leave_nothing_of_it(
    opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the second to give had only older events than the first: memory has no more than the file."""
    for room in (memory, writer):
        monkeypatch.setattr(room, "MAX_TOPICS", 6)
    async with opens(Retention()) as journal:
        for publisher in "abaa":
            await journal.append([event("room", publisher)])
        await journal.append([event(f"{publisher}/{n}", publisher) for n in range(3) for publisher in "ab"])
        assert await counts(journal, "room", "a/*", "b/*") == [0, 3, 3]
        assert journal.statistics().evicted == 4


async def test_what_gives_way_when_a_journal_is_opened_is_counted(tmp_path: Path) -> None:
    """A smaller setting than before evicts like any other lack of room."""
    url = f"sqlite:{tmp_path}/journal.db"
    async with open_journal(url) as journal:
        await journal.append([event("a", "", MIB // 2) for _ in range(4)])
    async with open_journal(url, retention=Retention(bytes=MIB)) as journal:
        assert (journal.statistics().events, journal.statistics().evicted) == (1, 3)


async def test_a_topics_own_limits_do_not_ask_who_published(opens: Opens) -> None:
    """They remove the oldest events of the topic, and count nobody as evicted."""
    async with opens(Retention(topics={"room": Keep(events=2)})) as journal:
        await journal.append([event("room", "ada"), event("room", "bob"), event("room", "ada")])
        assert [record.publisher for record in await read_all(journal, "room")] == ["bob", "ada"]
        assert journal.statistics().evicted == 0


async def test_a_lost_value_is_told_though_an_older_one_of_its_key_is_left(opens: Opens) -> None:
    """The newest value made room; an older one, of another publisher, does not stand for it."""
    async with opens(Retention(bytes=4 * MIB)) as journal:
        (old,) = await journal.append([event("price", "ada", 10, "k")])
        (new,) = await journal.append([event("price", "bob", MIB, "k")])
        for _ in range(8):
            await journal.append([event("price", "bob", MIB // 2)])
        page = await journal.read(parse_selectors(["price"]), ORIGIN, 100)
        assert page.records[0].id == old
        assert page.lost >= new


# -- room for idempotency keys -------------------------------------------------------------------------------------


async def test_many_keys_of_one_publisher_do_not_forget_anothers(opens: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its retry is still known to be one."""
    for room in (memory, keys):
        monkeypatch.setattr(room, "MAX_ONCE", 20)
    async with opens(Retention()) as journal:
        one = event("orders", "shop")
        first, _ = await journal.append_once(one, Once.of("shop", "order-17", one))
        for number in range(60):
            other = event("scratch", "", number)
            await journal.append_once(other, Once.of(f"guest-{number}", "key", other))
        assert await journal.append_once(one, Once.of("shop", "order-17", one)) == (first, True)
        with pytest.raises(KeyReused):
            await journal.append_once(event("orders", "shop", 1), Once.of("shop", "order-17", event("orders", "", 1)))


async def test_keys_have_a_share_of_the_bytes(opens: Opens) -> None:
    """Long keys are fewer, and the publisher with most bytes of them gives."""
    async with opens(Retention(bytes=4 * MIB)) as journal:
        one = event("orders", "shop")
        first, _ = await journal.append_once(one, Once.of("shop", "order-17", one))
        for number in range(900):
            other = event("t" * 250, "", 0)
            await journal.append_once(other, Once.of("s" * 128, f"{number}".zfill(255), other))
        assert journal.statistics().bytes <= 4 * MIB
        assert (await journal.append_once(one, Once.of("shop", "order-17", one))) == (first, True)
        other = event("t" * 250, "", 0)
        assert not (await journal.append_once(other, Once.of("s" * 128, "0".zfill(255), other)))[1]


# -- what an event counts as ---------------------------------------------------------------------------------------


async def test_keys_and_topics_count(opens: Opens) -> None:
    """An empty event costs what its key and its topic take, too."""
    async with opens(Retention()) as journal:
        sizes = [0]
        for topic, key in (("a", None), ("a", None), ("a", "k" * 256), ("t" * 256, None)):
            await journal.append([event(topic, "", 0, key)])
            sizes.append(journal.statistics().bytes)
        first, again, keyed, other = (after - before for before, after in pairwise(sizes))
        assert again < keyed - 256
        assert again < first < other - 256


async def test_a_mebibyte_of_line_ends_is_refused() -> None:
    """It would be seven on the wire; text of usual lines is not."""
    async with open_hub() as hub:
        with pytest.raises(TooLarge, match="lines"):
            await hub.publish("a", "\n" * MAX_DATA)
        await hub.publish("a", ("x" * 79 + "\n") * (MAX_DATA // 80))


# -- over a kill ---------------------------------------------------------------------------------------------------

KILLED = """
    import os, sys, trio
    from trio_sse.event import Event
    from trio_sse.journal import open_journal
    from trio_sse.record import Draft
    from trio_sse.retention import Retention

    async def main():
        retention = Retention(bytes=int(sys.argv[2]))
        async with open_journal(sys.argv[1], retention=retention) as journal:
            small = int(sys.argv[3])
            for begin in range(0, small, 500):
                names = range(begin, min(begin + 500, small))
                await journal.append([Draft(f"{who}/{n}", Event("x"), None, who) for n in names for who in ("a", "b")])
                await journal.append([Draft("large", Event("x" * 20_000), None, "c") for _ in range(20)])
            os.kill(os.getpid(), 9)

    trio.run(main)
"""


@pytest.mark.parametrize(
    ("small", "large", "bytes"), [(1_000, 20, 6 * MIB), pytest.param(49_999, 250, 250 * MIB, marks=pytest.mark.proof)]
)
async def test_many_small_topics_and_a_large_one_over_a_kill(
    tmp_path: Path, small: int, large: int, bytes: int
) -> None:
    """Two publishers of small topics lose nothing to a third that fills the journal, before and after a kill."""
    url = f"sqlite:{tmp_path}/journal.db"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), url, str(bytes), str(small)]
    killed = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, check=False, timeout=110)
    assert killed.returncode == -9
    async with open_journal(url, retention=Retention(bytes=bytes)) as journal:
        before = journal.statistics()
        assert before.topics == 2 * small + 1
        for _ in range(large):
            await journal.append([event("large", "c", MIB // 2)])
        await journal.trim()
        now = journal.statistics()
        assert now.topics == 2 * small + 1
        assert now.bytes <= bytes
        assert now.evicted > 0


# -- the accounts themselves ---------------------------------------------------------------------------------------

NAMES = st.sampled_from("abc")


@given(st.lists(st.tuples(NAMES, NAMES, st.integers(-1, 9)), max_size=60))
def test_the_largest_is_found(steps: list[tuple[str, str, int]]) -> None:
    """Whatever grew and shrank before: the publisher with most bytes, its largest topic, its idlest one."""
    all_of_them = Accounts()
    held: dict[tuple[str, str], int] = {}
    order: list[tuple[str, str]] = []
    for publisher, topic, size in steps:
        holding = all_of_them.find(publisher, topic)
        if size >= 0:
            if holding is None:
                holding = Holding(all_of_them.account(publisher), topic)
                all_of_them.put(holding)
            all_of_them.add(holding, 1, size + 1)
            held[publisher, topic] = held.get((publisher, topic), 0) + size + 1
            order = [each for each in order if each != (publisher, topic)] + [(publisher, topic)]
        elif holding is not None:
            all_of_them.remove(holding, holding.events, 0)
            del held[publisher, topic]
            order.remove((publisher, topic))
        if held:
            sums = {name: sum(size for (of, _), size in held.items() if of == name) for name, _ in held}
            most = all_of_them.with_most_bytes()
            assert most.bytes == max(sums.values()) == sums[most.name]
            assert most.largest().bytes == max(size for (of, _), size in held.items() if of == most.name)
            assert most.idlest().topic == next(topic for of, topic in order if of == most.name)
        assert all_of_them.bytes == sum(held.values())
        assert all_of_them.holdings == len(held)
        assert len(all_of_them) == len({name for name, _ in held})


def test_stale_entries_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pushed for each event does not grow without end."""
    monkeypatch.setattr(accounts, "SLACK", 10)
    all_of_them = Accounts()
    holding = Holding(all_of_them.account("a"), "t")
    all_of_them.put(holding)
    for _ in range(1_000):
        all_of_them.add(holding, 1, 1)
        all_of_them.with_most_bytes().largest()
    for largest in (all_of_them._by_bytes, holding.account._largest):
        assert largest is not None
        assert largest._heap is not None
        assert len(largest._heap) <= 2 + 10


def test_finding_the_largest_stays_cheap_while_it_gives_and_grows() -> None:
    """What grew many times is looked at once more for each time, and not again whenever it gives."""
    looks = 0

    def size(item: Holding) -> int:
        nonlocal looks
        looks += 1
        return item.bytes

    holding = Holding(Accounts().account("a"), "t")
    largest = accounts.Largest[Holding](size, {"t": holding})
    holding.bytes = 2_000
    for _ in range(500):
        assert largest.find() is holding
        holding.bytes += 1
        largest.grew(holding)
    for _ in range(500):
        holding.bytes -= 1
        assert largest.find() is holding
    assert looks < 6_000


async def test_the_oldest_of_a_publisher_is_found_among_many_of_others(tmp_path: Path) -> None:
    """Without a walk past what others published before it in the topic."""
    async with open_journal(f"sqlite:{tmp_path}/journal.db", retention=Retention(events=10_000)) as journal:
        assert isinstance(journal, SQLiteJournal)
        steps: list[int] = []
        for others in (1, 5_000):
            await journal.append([event("t", "a") for _ in range(others)])
            await journal.append([event("t", str(others))])
            ledger = journal._writer._ledger
            holding = ledger.accounts.find(str(others), "t")
            assert isinstance(holding, FileHolding)
            steps.append(0)
            journal._writer.db.set_progress_handler(lambda: steps.append(steps.pop() + 1), 1)
            assert len(ledger.oldest_of(holding)) == 1
            journal._writer.db.set_progress_handler(None, 0)
        assert steps[1] <= 2 * steps[0]


async def test_in_memory_it_is_found_without_a_walk_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand publishers with an event each in one topic, each gives its own without a look at the others'."""
    looks = 0
    iterate_after = shelf.Topic.iterate_after

    def counting(topic: shelf.Topic, cursor: EventID) -> Iterator[Record]:
        nonlocal looks
        for record in iterate_after(topic, cursor):
            looks += 1
            yield record

    monkeypatch.setattr(shelf.Topic, "iterate_after", counting)
    retention = Retention(bytes=500 * (MEMORY.of_holding("t", "0000") + MEMORY.of_event(30, None)))
    async with open_journal("memory:", retention=retention) as journal:
        for number in range(1_000):
            await journal.append([event("t", f"{number:04}")])
        assert 500 <= looks == journal.statistics().evicted < 600


def test_until_the_first_question_nothing_is_kept() -> None:
    """A journal that is not full pays nothing for finding the largest."""
    all_of_them = Accounts()
    holding = Holding(all_of_them.account("a"), "t")
    all_of_them.put(holding)
    all_of_them.add(holding, 1, 1)
    assert all_of_them._by_bytes._heap is None
