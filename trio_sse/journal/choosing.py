"""Finding the topics of a reader on a shelf, with pauses where that takes long."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ..event import EventID
from ..selector_index import Selection
from .removals import Told
from .shelf import Shelf, Topic


async def choose(shelf: Shelf, selection: Selection, after: EventID, told: Told) -> Sequence[Topic] | None:
    """The topics that the selectors choose; none if there are too many to look at each.

    Then the reader has been told of what was removed of these, but for what happens from now on. In between, others
    have had their turn; afterwards nobody has, so that with one more word the shelf is seen as it is in one instant.
    """
    topics = shelf.few(selection)
    if topics is None:
        for _ in shelf.removals.tell(selection, after, told):
            await trio.lowlevel.checkpoint()
    return topics
