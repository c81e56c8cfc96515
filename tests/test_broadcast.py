"""Fan-out: topics, outlets, cloned send channels."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from trio_sse.broadcast import BUFFER_BYTES, SLICE, Batch, Broadcaster, ChannelOutlet, EndReason, Taken
from trio_sse.event import ORIGIN, Event, EventID
from trio_sse.record import Draft, Record
from trio_sse.topic import Selector, parse_selectors


def record(seq: int, topic: str = "a", data: str = "") -> Record:
    return Record.write(EventID(1, seq), Draft(topic, Event(data)))


def attached(broadcaster: Broadcaster, *selectors: str, buffer_events: int = 100) -> ChannelOutlet:
    outlet = ChannelOutlet(parse_selectors(selectors), buffer_events)
    broadcaster.attach(outlet)
    return outlet


def received(outlet: ChannelOutlet) -> list[Record]:
    records = []
    while True:
        try:
            records.append(outlet.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return records


async def test_each_of_n_subscribers_gets_every_record() -> None:
    """Fan-out copies; it does not share a stream out."""
    broadcaster = Broadcaster()
    outlets = [attached(broadcaster, "a") for _ in range(50)]
    records = [record(seq) for seq in range(1, 21)]
    await broadcaster.deliver(records)
    for outlet in outlets:
        assert received(outlet) == records


async def test_a_record_goes_to_whoever_asked_for_its_topic() -> None:
    """Exact selectors and wildcards, and nobody else."""
    broadcaster = Broadcaster()
    exact, wild, other = attached(broadcaster, "room/1"), attached(broadcaster, "room/*"), attached(broadcaster, "b")
    await broadcaster.deliver([record(1, "room/1"), record(2, "room/2")])
    assert [r.id.seq for r in received(exact)] == [1]
    assert [r.id.seq for r in received(wild)] == [1, 2]
    assert received(other) == []


async def test_overlapping_selectors_get_each_record_once() -> None:
    """An outlet is offered a record once, however many of its selectors match."""
    broadcaster = Broadcaster()
    outlet = attached(broadcaster, "room/1", "room/*", "**")
    await broadcaster.deliver([record(1, "room/1"), record(2, "room/2"), record(3, "x")])
    assert [r.id.seq for r in received(outlet)] == [1, 2, 3]


async def test_all_get_one_order() -> None:
    """Alternating topics arrive in the order of the batch, also where selectors overlap."""
    broadcaster = Broadcaster()
    both, one = attached(broadcaster, "a", "b"), attached(broadcaster, "b")
    await broadcaster.deliver([record(1, "a"), record(2, "b"), record(3, "a")])
    assert [r.id.seq for r in received(both)] == [1, 2, 3]
    assert [r.id.seq for r in received(one)] == [2]


async def test_an_outlet_holds_a_clone_for_each_selector() -> None:
    """The send end is cloned once a selector, and the original is closed."""
    outlet = ChannelOutlet(parse_selectors(["a", "b", "c"]), 10)
    assert outlet.receive_channel.statistics().open_send_channels == 3


async def test_a_revoked_selector_ends_alone() -> None:
    """Its clone is closed; the other selectors go on."""
    broadcaster = Broadcaster()
    outlet = attached(broadcaster, "a", "b")
    broadcaster.revoke(outlet, Selector.parse("a"))
    await broadcaster.deliver([record(1, "a"), record(2, "b")])
    assert [r.id.seq for r in received(outlet)] == [2]
    assert outlet.reason is None
    assert outlet.receive_channel.statistics().open_send_channels == 1


async def test_closing_the_last_clone_ends_the_channel() -> None:
    """The receiver sees EndOfChannel, after what was sent before; the reason stands on the outlet."""
    broadcaster = Broadcaster()
    outlet = attached(broadcaster, "a", "b")
    await broadcaster.deliver([record(1, "a")])
    broadcaster.revoke(outlet, Selector.parse("a"))
    broadcaster.revoke(outlet, Selector.parse("b"))
    assert outlet.receive_nowait().id.seq == 1
    with pytest.raises(trio.EndOfChannel):
        outlet.receive_nowait()
    assert outlet.reason == "revoked"
    assert broadcaster.outlets == 0


async def test_a_full_channel_is_lagging() -> None:
    """The outlet that cannot take a record is closed and forgotten; the others get theirs."""
    broadcaster = Broadcaster()
    slow, healthy = attached(broadcaster, "a", buffer_events=2), attached(broadcaster, "a")
    await broadcaster.deliver([record(seq) for seq in range(1, 5)])
    assert slow.reason == "lagging"
    assert [r.id.seq for r in received(slow)] == [1, 2]
    assert [r.id.seq for r in received(healthy)] == [1, 2, 3, 4]
    assert (broadcaster.outlets, broadcaster.lagging) == (1, 1)


async def test_a_channel_is_bounded_in_bytes() -> None:
    """A few large frames are as much as many small ones."""
    broadcaster = Broadcaster()
    outlet = attached(broadcaster, "a")
    await broadcaster.deliver([record(seq, data="x" * (BUFFER_BYTES // 2)) for seq in range(1, 4)])
    assert outlet.reason == "lagging"
    assert len(received(outlet)) == 1


async def test_a_frame_over_the_limit_passes_alone() -> None:
    """An empty channel takes one frame of any size."""
    broadcaster = Broadcaster()
    outlet = attached(broadcaster, "a")
    await broadcaster.deliver([record(1, data="x" * (2 * BUFFER_BYTES))])
    assert len(received(outlet)) == 1


async def test_what_was_taken_makes_room() -> None:
    """Bytes that the subscriber has taken count no more."""
    broadcaster = Broadcaster()
    outlet = attached(broadcaster, "a")
    for seq in range(1, 6):
        await broadcaster.deliver([record(seq, data="x" * (BUFFER_BYTES // 2))])
        assert len(received(outlet)) == 1
    assert outlet.reason is None


class LeavesOthers:
    """An outlet that does something to the broadcaster in the middle of a delivery."""

    def __init__(self, act: object) -> None:
        self.selectors: Sequence[Selector] = parse_selectors(["a"])
        self.act = act
        self.cursor = ORIGIN

    def offer(self, batch: Batch) -> Taken:
        assert callable(self.act)
        self.act()
        return "waiting"

    def end_selector(self, selector: Selector, reason: EndReason) -> None:
        self.selectors = ()

    def close(self, reason: EndReason) -> None:
        self.selectors = ()


async def test_who_leaves_in_mid_delivery_is_skipped() -> None:
    """An outlet detached while a record is being delivered is offered nothing more."""
    broadcaster = Broadcaster()
    leaving: list[ChannelOutlet] = []
    broadcaster.attach(LeavesOthers(lambda: broadcaster.detach(leaving[0], "ended")))
    leaving.append(attached(broadcaster, "a"))
    staying = attached(broadcaster, "a")
    await broadcaster.deliver([record(1)])
    assert received(leaving[0]) == []
    assert len(received(staying)) == 1


async def test_who_loses_a_selector_in_mid_delivery_is_skipped() -> None:
    """A right taken while a record is being delivered counts at once."""
    broadcaster = Broadcaster()
    losing: list[ChannelOutlet] = []
    broadcaster.attach(LeavesOthers(lambda: broadcaster.revoke(losing[0], Selector.parse("a"))))
    losing.append(attached(broadcaster, "a", "b"))
    await broadcaster.deliver([record(1, "a")])
    assert received(losing[0]) == []


async def test_who_arrives_in_mid_delivery_gets_the_next_record() -> None:
    """A new outlet finds the record in the journal, so it is not offered it here."""
    broadcaster = Broadcaster()
    arrived: list[ChannelOutlet] = []

    def arrive() -> None:
        if not arrived:
            arrived.append(attached(broadcaster, "a"))

    broadcaster.attach(LeavesOthers(arrive))
    await broadcaster.deliver([record(1)])
    assert received(arrived[0]) == []
    await broadcaster.deliver([record(2)])
    assert [r.id.seq for r in received(arrived[0])] == [2]


async def test_delivery_is_served_in_slices() -> None:
    """Other tasks get their turn after so many outlets, and see some served and some not."""
    broadcaster = Broadcaster()
    outlets = [attached(broadcaster, "a") for _ in range(3 * SLICE)]
    progress: list[int] = []

    async def watch() -> None:
        while True:
            progress.append(sum(outlet.receive_channel.statistics().current_buffer_used for outlet in outlets))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await broadcaster.deliver([record(1)])
        nursery.cancel_scope.cancel()
    assert {SLICE, 2 * SLICE} & set(progress)
    assert set(progress) <= {0, SLICE, 2 * SLICE, 3 * SLICE}


async def test_one_that_left_without_saying_so_harms_nobody() -> None:
    """A closed receive end is taken for a subscriber that has gone."""
    broadcaster = Broadcaster()
    gone, staying = attached(broadcaster, "a"), attached(broadcaster, "a")
    gone.receive_channel.close()
    await broadcaster.deliver([record(1)])
    assert len(received(staying)) == 1
    assert broadcaster.outlets == 1


async def test_detaching_twice_does_nothing() -> None:
    """The first reason stays."""
    broadcaster = Broadcaster()
    outlet = attached(broadcaster, "a")
    broadcaster.detach(outlet, "shutdown")
    broadcaster.detach(outlet, "ended")
    assert outlet.reason == "shutdown"


async def test_publishing_to_fresh_topics_does_not_look_at_every_selector() -> None:
    """With 20 times the streams of other wildcards, a look-up visits no node more; and none is cached."""
    visits = []
    for streams in (5, 100):
        broadcaster = Broadcaster()
        for stream in range(streams):
            attached(broadcaster, *(f"*/{stream}-{number}/**" for number in range(100)))
        before = broadcaster._groups.visits
        await broadcaster.deliver([record(1, "fresh/topic")])
        visits.append(broadcaster._groups.visits - before)
    assert visits[0] == visits[1] <= 3


async def test_closing_ends_everybody() -> None:
    """Every outlet is closed with the reason, and nothing is left."""
    broadcaster = Broadcaster()
    outlets = [attached(broadcaster, "a", "b/*"), attached(broadcaster, "b/*")]
    broadcaster.close("failed")
    assert [outlet.reason for outlet in outlets] == ["failed", "failed"]
    assert len(broadcaster._groups) == broadcaster.outlets == 0


async def test_the_last_write_is_observed_when_the_last_has_written() -> None:
    """Latency runs until the slowest subscriber's write; who left is not waited for."""
    broadcaster = Broadcaster()
    fast, slow, gone = (attached(broadcaster, "a") for _ in range(3))
    observed: list[EventID] = []
    broadcaster.last_write.observe = observed.append
    broadcaster.last_write.watch(record(5), broadcaster.audience("a"))
    for outlet, seq in ((fast, 5), (slow, 4)):
        outlet.cursor = EventID(1, seq)
        broadcaster.last_write.written(outlet)
    broadcaster.detach(gone, "ended")
    assert observed == []
    slow.cursor = EventID(1, 6)
    broadcaster.last_write.written(slow)
    assert observed == [EventID(1, 5)]


class Writes(ChannelOutlet):
    """An outlet that keeps the batches it is offered, as if it wrote them."""

    def __init__(self, *selectors: str) -> None:
        super().__init__(parse_selectors(selectors), 100)
        self.batches: list[Batch] = []

    def offer(self, batch: Batch) -> Taken:
        self.batches.append(batch)
        self.cursor = batch.last
        return "written"


def writing(broadcaster: Broadcaster, *selectors: str) -> Writes:
    outlet = Writes(*selectors)
    broadcaster.attach(outlet)
    return outlet


async def test_who_gets_the_same_records_gets_the_same_batch() -> None:
    """The records of several topics are one batch for each set of them, oldest first, whatever selectors chose it."""
    broadcaster = Broadcaster()
    both, wild, one = writing(broadcaster, "a", "b"), writing(broadcaster, "*", "b"), writing(broadcaster, "b")
    await broadcaster.deliver([record(1, "a"), record(2, "b"), record(3, "a")])
    assert [[r.id.seq for r in outlet.batches[0].records] for outlet in (both, wild, one)] == [[1, 2, 3]] * 2 + [[2]]
    assert both.batches[0] is wild.batches[0]
    assert [len(outlet.batches) for outlet in (both, wild, one)] == [1, 1, 1]


async def test_a_batch_is_framed_once() -> None:
    """The bytes of a batch are joined and framed once for all who frame them in the same way."""
    made: list[bytes] = []

    def frame(data: bytes) -> bytes:
        made.append(data)
        return b"<" + data + b">"

    batch = Batch([record(1), record(2)])
    assert batch.framed[frame] is batch.framed[frame]
    assert made == [batch.records[0].frame + batch.records[1].frame]


async def test_what_outlets_wrote_themselves_is_counted() -> None:
    """Each record counts once for each outlet that wrote it."""
    broadcaster = Broadcaster()
    writing(broadcaster, "a")
    writing(broadcaster, "a")
    attached(broadcaster, "a")
    await broadcaster.deliver([record(1), record(2)])
    assert broadcaster.written == 4


async def test_the_last_write_is_observed_of_outlets_that_write_themselves() -> None:
    """When a delivery is over, the cursors of those that are waited for are looked at."""
    broadcaster = Broadcaster()
    writing(broadcaster, "a")
    observed: list[EventID] = []
    broadcaster.last_write.observe = observed.append
    broadcaster.last_write.watch(record(1), broadcaster.audience("a"))
    await broadcaster.deliver([record(1)])
    assert observed == [EventID(1, 1)]


async def test_who_left_is_not_remembered() -> None:
    """Between deliveries, an outlet that leaves is forgotten at once."""
    broadcaster = Broadcaster()
    await broadcaster.deliver([record(1)])
    outlet = attached(broadcaster, "a")
    gone = weakref.ref(outlet)
    broadcaster.detach(outlet, "ended")
    del outlet
    gc.collect()
    assert gone() is None


async def test_an_outlet_that_fails_is_ended_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """The others get the batch, those behind it too, and the log has one traceback."""

    class Broken(ChannelOutlet):
        def offer(self, batch: Batch) -> Taken:
            raise ZeroDivisionError

    broadcaster = Broadcaster()
    before = attached(broadcaster, "a")
    broken = Broken(parse_selectors(["a"]), 10)
    broadcaster.attach(broken)
    behind = attached(broadcaster, "a")
    await broadcaster.deliver([record(1)])
    await broadcaster.deliver([record(2)])
    assert [r.id.seq for r in received(before)] == [r.id.seq for r in received(behind)] == [1, 2]
    assert broken.reason == "failed"
    assert broadcaster.outlets == 2
    assert len(caplog.records) == 1
