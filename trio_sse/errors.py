"""Everything that can go wrong, as one small tree.

::

    TrioSSEError                 500
    ├── InvalidInput             400   what somebody gave us cannot be used as it is  (also a ValueError)
    │   ├── InvalidEvent         400   a field of an event
    │   ├── InvalidEventID       400   text that is no event ID of ours
    │   ├── InvalidTopic         400   a topic or a selector
    │   │   └── TooWild          400   a selector with too many segments or wildcards
    │   ├── TooLarge             413   more bytes than the limit
    │   └── KeyReused            422   an idempotency key that stands for another event
    ├── InvalidToken             401   who are you?
    │   └── ForeignToken         401   a token that was not made for this hub
    ├── NotAllowed               403   I know who you are, and no
    │   └── ForeignPage          403   a page of another origin, and no token of its own
    ├── WrongHost                421   a name that the hub does not answer to
    ├── TooManyRequests          429   later, and when
    ├── JournalError             503   the journal could not do it now; trying again may help
    │   └── JournalFull          507   no room on the disk
    ├── JournalUnusable          503   the journal cannot be opened at all: start-up ends with this line
    ├── HubFull                  503   there are as many streams as there may be
    └── HubFailed                503   the hub broke or ends; its streams were ended and a fresh one is on its way

``str(error)`` is always a sentence a person can act on, and never holds a token.
"""

from __future__ import annotations

import math
from typing import ClassVar


class TrioSSEError(Exception):
    """The root of the tree; catch it to catch them all."""

    #: The HTTP status that says the same to a client.
    status_hint: ClassVar[int] = 500


class InvalidInput(TrioSSEError, ValueError):
    """What was given cannot be used as it is."""

    status_hint = 400


class InvalidEvent(InvalidInput):
    """A field of an event holds what the format cannot carry."""


class InvalidEventID(InvalidInput):
    """The text is no event ID of ours: digits, a dash, digits."""


class InvalidTopic(InvalidInput):
    """The text is no topic, or no selector of topics."""


class TooWild(InvalidTopic):
    """A selector with more segments or wildcards than a look-up can be asked to try."""


class TooLarge(InvalidInput):
    """More bytes than the limit allows."""

    status_hint = 413


class KeyReused(InvalidInput):
    """An idempotency key came again, with another event than before."""

    status_hint = 422


class InvalidToken(TrioSSEError):
    """A token is missing, malformed, forged or expired."""

    status_hint = 401


class ForeignToken(InvalidToken):
    """A token of another key, audience or issuer, or none at all: it says nothing of who its bearer is here."""


class NotAllowed(TrioSSEError):
    """The caller is known and may not do this."""

    status_hint = 403


class ForeignPage(NotAllowed):
    """A page of another origin may not do this as its visitor."""


class WrongHost(TrioSSEError):
    """The request is for a name that the hub does not answer to."""

    status_hint = 421


class TooManyRequests(TrioSSEError):
    """A caller does more in a time than it may; made with the seconds it has to wait, or with a sentence."""

    status_hint = 429

    def __init__(self, told: float | str) -> None:
        self.wait_s = 1.0 if isinstance(told, str) else told
        """Seconds after which it may."""
        seconds = math.ceil(self.wait_s)
        super().__init__(told if isinstance(told, str) else f"this is more than you may do: wait {seconds} s")


class JournalError(TrioSSEError):
    """The journal could not do it now. Nothing of the request was kept."""

    status_hint = 503


class JournalFull(JournalError):
    """There is no room left where the journal lives."""

    status_hint = 507


class JournalUnusable(TrioSSEError):
    """The journal cannot be opened; its message is one line for the operator."""

    status_hint = 503


class HubFull(TrioSSEError):
    """There is no room for another stream."""

    status_hint = 503
    retry_ms: int | None = None
    """Milliseconds after which to come back; without them a stream's own reconnection time."""


class HubFailed(TrioSSEError):
    """The hub broke, or is being ended, and serves no longer."""

    status_hint = 503
