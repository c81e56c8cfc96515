"""Turns: nobody is made to wait by how much others want."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trio_sse.turns import REMEMBERED, Gate, Turns


def taken(turns: Turns[str]) -> list[str]:
    """All that waits, in its order."""
    order = []
    while (work := turns.take()) is not None:
        order.append(work)
    return order


def test_one_publishers_work_is_done_in_its_order() -> None:
    """Where each piece costs the same."""
    turns = Turns[str]()
    for name in "abcde":
        turns.put("ada", 1, name)
    assert taken(turns) == list("abcde")
    assert turns.take() is None


def test_publishers_take_turns() -> None:
    """However much one of them wants."""
    turns = Turns[str]()
    for number in range(3):
        turns.put("ada", 10, f"a{number}")
    turns.put("bob", 10, "b0")
    turns.put("bob", 10, "b1")
    assert taken(turns) == ["a0", "b0", "a1", "b1", "a2"]


def test_who_asks_for_little_goes_before_all_who_ask_for_much() -> None:
    """And when it comes again and again, as an equal behind one of them at most."""
    turns = Turns[str]()
    for number in range(32):
        turns.put(f"flood {number}", 512, "much")
    turns.put("ada", 1, "little")
    assert turns.take() == "little"
    for number in range(1_000):
        turns.put("ada", 1, "little")
        assert "little" in (turns.take(), turns.take())
        turns.put(f"flood {number % 32}", 512, "much")


def test_among_one_publishers_callers_too() -> None:
    """All who have no token are one publisher."""
    turns = Turns[str]()
    for _ in range(32):
        turns.put("", 512, "much")
    for _ in range(100):
        turns.put("", 1, "little")
        assert turns.take() == "little"
        assert turns.take() == "much"
        turns.put("", 512, "much")


def test_what_costs_much_is_not_passed_over_for_good() -> None:
    """However many come after it who ask for little, each of them for the first time."""
    turns = Turns[str]()
    turns.put("ada", 512, "much")
    before = 0
    turns.put("new", 1, "little")
    while turns.take() == "little":
        turns.put(f"new {before}", 1, "little")
        before += 1
    assert 400 < before < 1_200


def test_among_one_publishers_callers_it_is_not_either() -> None:
    """The same, with no tokens."""
    turns = Turns[str]()
    turns.put("", 512, "much")
    before = 0
    turns.put("", 1, "little")
    while turns.take() == "little":
        turns.put("", 1, "little")
        before += 1
    assert 400 < before < 1_200


def test_who_comes_back_at_once_has_not_been_forgotten() -> None:
    """To let one's work run out for a moment gains nothing."""
    turns = Turns[str]()
    done = {"ada": 0, "bob": 0}
    for _ in range(10):
        turns.put("bob", 10, "bob")
    for _ in range(10):
        turns.put("ada", 10, "ada")  # one at a time, as a stream does
        while (work := turns.take()) != "ada":
            assert work is not None
            done[work] += 1
        done["ada"] += 1
    assert abs(done["ada"] - done["bob"]) <= 1


def test_what_is_withdrawn_is_not_taken() -> None:
    """Nor counted."""
    turns = Turns[str]()
    pieces = [turns.put("ada", 1, name) for name in "abc"]
    turns.withdraw(pieces[0])
    turns.withdraw(pieces[0])
    turns.withdraw(pieces[1])
    assert len(turns) == 1
    assert taken(turns) == ["c"]
    turns.withdraw(pieces[2])
    assert len(turns) == 0


def test_little_is_remembered_of_those_who_want_nothing() -> None:
    """Their clocks, while they are ahead; and nothing at all when nobody wants anything."""
    turns = Turns[str]()
    turns.put("ada", 10**6, "much")
    for number in range(10_000):
        turns.put(f"new {number}", 1, "little")
        turns.take()
        assert len(turns._clocks) <= REMEMBERED + 5
    assert taken(turns) == ["much"]
    assert not turns._clocks
    assert not turns._next


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100), st.integers(0, 2)), max_size=100))
def test_all_that_is_put_is_taken_once(steps: list[tuple[str, int, int]]) -> None:
    """Whatever is put, taken and withdrawn in between."""
    turns = Turns[int]()
    pieces, wanted, got = [], set(), []
    for number, (publisher, cost, then) in enumerate(steps):
        pieces.append(turns.put(publisher, cost, number))
        wanted.add(number)
        if then == 1 and (work := turns.take()) is not None:
            got.append(work)
        if then == 2:
            withdrawn = number // 2
            if pieces[withdrawn].is_waiting:
                wanted.discard(withdrawn)
            turns.withdraw(pieces[withdrawn])
    while (work := turns.take()) is not None:
        got.append(work)
    assert sorted(got) == sorted(wanted)
    assert len(turns) == 0


async def test_a_gate_lets_so_many_in() -> None:
    """The others when one leaves, in their turn."""
    gate = Gate(2)
    order: list[str] = []

    async def visit(name: str, cost: float) -> None:
        async with gate.turn(name, cost):
            order.append(name)

    async with trio.open_nursery() as nursery:
        async with gate.turn("bob", 1):
            async with gate.turn("eve", 1):
                for name, cost in [("flood", 100), ("ada", 1)]:
                    nursery.start_soon(visit, name, cost)
                    await trio.testing.wait_all_tasks_blocked()
                assert (order, gate.waiting) == ([], 2)
            await trio.testing.wait_all_tasks_blocked()
            assert (order, gate.waiting) == (["ada", "flood"], 0)


async def test_who_waits_at_a_gate_may_be_cancelled() -> None:
    """Also in the very moment when its turn comes: the next one has it."""
    gate, scope, entered = Gate(1), trio.CancelScope(), trio.Event()

    async def be_cancelled() -> None:
        with scope:
            async with gate.turn("eve", 1):
                raise AssertionError

    async def visit() -> None:
        async with gate.turn("bob", 2):
            entered.set()

    async with trio.open_nursery() as nursery:
        async with gate.turn("ada", 1):
            nursery.start_soon(be_cancelled)
            nursery.start_soon(visit)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
        with trio.fail_after(1):
            await entered.wait()
    assert gate.waiting == 0


async def test_a_place_at_a_gate_is_left_on_every_way_out() -> None:
    """An exception gives it back."""
    gate = Gate(1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            async with gate.turn("ada", 1):
                raise ZeroDivisionError
