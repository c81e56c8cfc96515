"""Whose rates bind a request, and what it is told when it is over them.

A caller without a token is its address; guests have tokens that anybody gets, and count as having none. A caller with a
token is its subject, or the token itself. And all callers of one address together are one, where that has rates. An
address that may stand for many, such as a proxy's or a private one, is none of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from ..auth import Grant
from ..errors import TooManyRequests
from ..rates import Meter, Refusals
from ..stream import RETRY_MS
from .caller import Origin, origin_of

if TYPE_CHECKING:
    from quart import Request

    from ..settings import Settings

ANONYMOUS, TOKEN, ADDRESS = "anonymous", "token", "address"
"""The classes of callers."""

MOST_RETRY_MS = 60_000
"""Milliseconds after which a stream that is refused again and again is told to come back, at the longest."""

Callers = Sequence[tuple[str, str]]


class RateLimits:
    """The rates of an application, and who has done what."""

    def __init__(self, settings: Settings) -> None:
        self._trusted = settings.trusted_proxies
        self.meter = Meter(
            anonymous=settings.rates_anonymous, token=settings.rates_token, address=settings.rates_address
        )
        self._refusals = Refusals()

    def callers(self, request: Request, grant: Grant) -> Callers:
        """Whom the request counts for, of those who have rates."""
        has_token = not grant.is_guest and (grant.subject or grant.token_id) is not None
        callers = []
        if has_token and self.meter.binds(TOKEN):
            callers.append((TOKEN, grant.publisher))
        if self.meter.binds(ADDRESS) or (not has_token and self.meter.binds(ANONYMOUS)):
            origin = origin_of(request, self._trusted)
            if origin.is_one:
                callers += [(kind, origin.name) for kind in ((ADDRESS,) if has_token else (ANONYMOUS, ADDRESS))]
        return callers

    def check(self, callers: Callers, costs: Mapping[str, float]) -> None:
        """Count what a request wants to do.

        Raises:
          TooManyRequests: it may not yet; then nothing is counted.
        """
        if callers:
            now = trio.current_time()
            if seconds := self.meter.wait(callers, costs, now):
                raise TooManyRequests(seconds)
            self.meter.spend(callers, costs, now)

    def spend(self, callers: Callers, costs: Mapping[str, float]) -> None:
        """Count what was done already."""
        if callers:
            self.meter.spend(callers, costs, trio.current_time())

    async def wait(self, callers: Callers, costs: Mapping[str, float]) -> None:
        """Wait until so much may be done."""
        while callers and (seconds := self.meter.wait(callers, costs, trio.current_time())):  # noqa: ASYNC110
            await trio.sleep(seconds)

    # -- streams ------------------------------------------------------------------------------------------

    def retry_ms(self, origin: Origin, subject: str | None) -> int:
        """A stream is refused: about when to come back, later each time, but for those who may be many."""
        name = _name(origin, subject)
        times = 0 if name is None else self._refusals.note(name, trio.current_time())
        return int(min(MOST_RETRY_MS, RETRY_MS * 2 ** min(times, 16)))

    def forgive(self, origin: Origin, subject: str | None) -> None:
        """A stream is served."""
        if (name := _name(origin, subject)) is not None:
            self._refusals.forgive(name)


def _name(origin: Origin, subject: str | None) -> str | None:
    return subject or (origin.name if origin.is_one else None)
