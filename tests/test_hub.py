"""The hub: publish, run, tick, fail."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from trio_sse.broadcast import EndReason
from trio_sse.errors import HubFailed, InvalidEvent, InvalidTopic, JournalError, JournalUnusable, TooLarge
from trio_sse.event import Event
from trio_sse.hub import MAX_KEY, Hub, open_hub
from trio_sse.journal.memory import MemoryJournal
from trio_sse.record import Record
from trio_sse.retention import Retention
from trio_sse.testing import WallClock
from trio_sse.wire import MAX_DATA, MAX_FRAME


class FakeStream:
    """What a hub sees of a stream."""

    ended: EndReason | None = None

    def beat(self) -> None:
        pass

    def end(self, reason: EndReason) -> None:
        self.ended = reason


async def test_every_subscriber_gets_every_event_in_one_order(autojump_clock: trio.testing.MockClock) -> None:
    """Many publishers at once, many subscribers: the same sequence for all of them."""
    async with open_hub() as hub, trio.open_nursery() as nursery:
        results: list[list[Record]] = []

        async def subscribe(*, task_status: trio.TaskStatus[None]) -> None:
            async with hub.subscribe("a", "b") as subscription:
                task_status.started()
                items = [await subscription.receive() for _ in range(200)]
                results.append([item for item in items if isinstance(item, Record)])

        async def publish(topic: str) -> None:
            for number in range(50):
                await hub.publish(topic, str(number))

        for _ in range(20):
            await nursery.start(subscribe)
        for topic in ("a", "b", "a", "b"):
            nursery.start_soon(publish, topic)
    assert len(results) == 20
    assert all(result == results[0] for result in results)
    assert len(set(results[0])) == 200


async def test_publishing_returns_the_id_under_which_it_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    """The ID of the publisher's answer is the one in the subscriber's frame."""
    async with open_hub() as hub, hub.subscribe("a") as subscription:
        id = await hub.publish("a", "hello", type="greeting", key="k")
        record = await subscription.receive()
        assert isinstance(record, Record)
        assert (record.id, record.key) == (id, "k")
        assert record.frame == f"id: {id}\nevent: greeting\ndata: hello\n\n".encode()


async def test_many_events_are_published_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """They follow each other, and their IDs come back in order."""
    async with open_hub() as hub, hub.subscribe("a") as subscription:
        ids = await hub.publish_many("a", [Event("1"), Event("2")])
        records = [await subscription.receive(), await subscription.receive()]
        assert [record.id for record in records if isinstance(record, Record)] == ids


@pytest.mark.parametrize(
    ("event", "key", "error", "says"),
    [
        (Event("x", id="1"), None, InvalidEvent, "the journal gives"),
        (Event("x", retry=1), None, InvalidEvent, "retry belongs"),
        (Event.received("x", "\x1b", None, None), None, InvalidEvent, "control character"),
        (Event.received("\ud800", "a", None, None), None, InvalidEvent, "surrogate"),
        (Event("x", type="trio-sse.gap"), None, InvalidEvent, "hub's own"),
        (Event("x" * (MAX_DATA + 1)), None, TooLarge, "more than"),
        (Event("é" * (MAX_DATA // 2 + 1)), None, TooLarge, "more than"),
        (Event("\n" * MAX_DATA), None, TooLarge, "each line costs 6"),
        (Event("\n" * 174_762 + "x" * (MAX_DATA - 174_762)), None, TooLarge, "each line costs 6"),
        (Event("x"), "", InvalidEvent, "key"),
        (Event("x"), "k" * (MAX_KEY + 1), InvalidEvent, "key"),
        (Event("x"), "a\nb", InvalidEvent, "key"),
    ],
)
async def test_what_cannot_be_published_is_refused(
    event: Event, key: str | None, error: type[Exception], says: str
) -> None:
    """Each with a sentence that says why; the journal is as it was."""
    async with open_hub() as hub:
        with pytest.raises(error, match=says):
            await hub.publish("a", event, key=key)
        assert hub.statistics().journal.events == 0


async def test_lines_that_take_just_the_limit_are_published() -> None:
    """A mebibyte of data, as many lines as twice as much has room for."""
    async with open_hub() as hub, hub.subscribe("a") as subscription:
        await hub.publish("a", "\n" * 174_761 + "x" * (MAX_DATA - 174_761))
        record = await subscription.receive()
        assert isinstance(record, Record)
        assert MAX_FRAME - 6 < len(record.frame) - len(f"id: {record.id}\n") <= MAX_FRAME


async def test_one_bad_event_refuses_the_whole_batch() -> None:
    """All or none."""
    async with open_hub() as hub:
        with pytest.raises(InvalidEvent):
            await hub.publish_many("a", [Event("good"), Event("bad", id="1")])
        assert hub.statistics().journal.events == 0


@pytest.mark.parametrize("selectors", [[], [f"t/{number}" for number in range(101)]])
async def test_a_subscription_has_one_to_a_hundred_selectors(selectors: Sequence[str]) -> None:
    """None, or too many, is refused."""
    async with open_hub() as hub:
        with pytest.raises(InvalidTopic, match="1 to 100"):
            hub.subscribe(*selectors)


async def test_old_events_are_removed_while_nobody_publishes(autojump_clock: trio.testing.MockClock) -> None:
    """The hub trims its journal by itself."""
    clock = WallClock()
    async with open_hub(retention=Retention(seconds=60), clock=clock) as hub:
        await hub.publish("a", "old")
        clock.move(61)
        await trio.sleep(2)
        assert hub.statistics().journal.events == 0


async def test_a_journal_that_cannot_trim_now_does_not_end_the_hub(autojump_clock: trio.testing.MockClock) -> None:
    """A passing fault of the disk is the journal's to report, and is tried again."""

    class Stubborn(MemoryJournal):
        tried = 0

        async def trim(self) -> None:
            self.tried += 1
            raise JournalError("not now")

    journal = Stubborn(Retention())
    async with trio.open_nursery() as nursery:
        hub = Hub(journal)
        await nursery.start(hub.run)
        await trio.sleep(10)
        assert journal.tried > 5
        assert not hub.failed
        nursery.cancel_scope.cancel()


async def test_closing_ends_every_stream(autojump_clock: trio.testing.MockClock) -> None:
    """Leaving the block says goodbye to all that is open, and takes no more."""
    async with open_hub() as hub:
        stream = FakeStream()
        hub._desk.streams.add(stream)
        subscription = hub.subscribe("a")
        await subscription.__aenter__()
    assert stream.ended == "shutdown"
    assert hub.ending == "shutdown"
    with pytest.raises(trio.EndOfChannel):
        await subscription.receive()
    assert subscription.ended == "shutdown"
    await subscription.__aexit__(None, None, None)


async def test_a_hub_that_breaks_ends_everything(autojump_clock: trio.testing.MockClock) -> None:
    """Its streams end with the reason, publishing is refused, and the block is left with the exception."""
    stream = FakeStream()
    with pytest.raises(ExceptionGroup) as caught:
        async with open_hub() as hub:
            hub._desk.streams.add(stream)
            async with hub.subscribe("a") as subscription:

                async def break_down(*_: object) -> None:
                    raise ZeroDivisionError

                hub.broadcaster.deliver = break_down  # type: ignore[assignment, method-assign]
                await hub.publish("a", "x")
                await trio.sleep_forever()
    assert caught.group_contains(ZeroDivisionError)
    assert hub.failed
    assert stream.ended == "failed"
    assert subscription.ended is not None
    with pytest.raises(HubFailed):
        await hub.publish("a", "y")


async def test_a_writer_that_breaks_fails_the_hub_and_its_publishers(tmp_path: object) -> None:
    """An exception in the journal's writer answers who waits for it, and is the hub's end."""
    from trio_sse.journal import writer

    async def publish(hub: Hub, errors: list[Exception]) -> None:
        try:
            await hub.publish("a", "x")
        except JournalError as error:
            errors.append(error)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    errors: list[Exception] = []
    with pytest.raises(ExceptionGroup) as caught, pytest.MonkeyPatch.context() as patch:
        async with trio.open_nursery() as nursery, open_hub(f"sqlite:{tmp_path}/j.db") as hub:
            patch.setattr(writer.Writer, "commit", broken)
            nursery.start_soon(publish, hub, errors)
            await trio.sleep_forever()
    assert caught.group_contains(ZeroDivisionError)
    assert len(errors) == 1
    assert (hub.failed, hub.ending) == (True, "failed")


async def test_statistics_count(autojump_clock: trio.testing.MockClock) -> None:
    """Published, delivered and subscribed are what happened."""
    async with open_hub() as hub, hub.subscribe("a") as subscription, hub.subscribe("b"):
        await hub.publish("a", "1")
        await hub.publish("a", "2")
        await subscription.receive()
        now = hub.statistics()
        assert (now.published, now.delivered, now.subscribers, now.streams) == (2, 1, 2, 0)
        assert hub.subscribers("a") == 1


async def test_an_unknown_journal_cannot_be_opened() -> None:
    """The hub does not begin."""
    with pytest.raises(JournalUnusable):
        async with open_hub("nonsense:"):
            pass


async def test_one_events_latency_is_watched_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """About once a second an event is followed to its last write."""
    async with open_hub() as hub, hub.subscribe("a") as subscription:
        observed: list[object] = []
        hub.broadcaster.last_write.observe = observed.append
        for _ in range(20):
            await hub.publish("a", "x")
            await subscription.receive()
            subscription.written()
            await trio.sleep(0.3)
    assert 5 <= len(observed) <= 7
