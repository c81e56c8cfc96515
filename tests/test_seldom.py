"""What the log hears once."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from trio_sse.seldom import AGAIN_S, TRACEBACKS, say

log = logging.getLogger(__name__)


def fail(text: str) -> Exception:
    try:
        raise ZeroDivisionError(text)
    except ZeroDivisionError as error:
        return error


async def test_the_same_is_said_once(caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock) -> None:
    """And again after a while, with how often it was not; something else is said at once."""
    for _ in range(10):
        say(log, "%s is full", "the disk")
    say(log, "%s is full", "the glass")
    await trio.sleep(AGAIN_S)
    say(log, "%s is full", "the disk")
    assert [record.getMessage() for record in caplog.records] == [
        "the disk is full",
        "the glass is full",
        "the disk is full (and 9 times more before)",
    ]


async def test_an_exception_is_said_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it says of itself; it is the same when it comes from the same line."""
    for number in range(20):
        say(log, "request %d failed", number, error=fail(str(number)))
    say(log, "request %d failed", 99, error=ValueError())
    assert len(caplog.records) == TRACEBACKS + 1
    assert caplog.records[0].exc_info is not None
