"""Records and gaps: what a journal hands out, as bytes."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sse.event import Event, EventID
from trio_sse.record import Draft, Gap, GapReason, Record
from trio_sse.wire import Decoder


def decode_one(frame: bytes) -> Event:
    (event,) = Decoder().feed(frame)
    return event


def test_a_record_is_written_with_the_journals_id() -> None:
    """Its frame is the whole block, with the place it was given as its ID."""
    record = Record.write(EventID(17, 3), Draft("lobby", Event("hi", type="chat"), key="k"))
    assert record == Record(EventID(17, 3), "lobby", b"id: 17-3\nevent: chat\ndata: hi\n\n", "k")


def test_the_journals_id_replaces_the_publishers() -> None:
    """Only the journal gives IDs."""
    record = Record.write(EventID(17, 3), Draft("lobby", Event("hi", id="mine")))
    assert decode_one(record.frame).id == "17-3"


@pytest.mark.parametrize("reason", get_args(GapReason))
def test_a_gap_is_an_event_of_our_own(reason: GapReason) -> None:
    """It says what was asked for, where the stream goes on, and why; its ID moves the reader's cursor there."""
    event = decode_one(Gap("5-1", EventID(17, 0), reason).frame)
    assert (event.type, event.id) == ("trio-sse.gap", "17-0")
    assert json.loads(event.data) == {"requested": "5-1", "resumed_from": "17-0", "reason": reason}


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters() | st.sampled_from('\r\n\0\ud800\u2028"\\'), max_size=64))
def test_any_cursor_can_stand_in_a_gap(requested: str) -> None:
    """A cursor that is none may be any text; the gap is one event all the same, and says it exactly."""
    event = decode_one(Gap(requested, EventID(17, 0), "unknown").frame)
    assert json.loads(event.data)["requested"] == requested
