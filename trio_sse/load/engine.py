"""The load: clients, publishers and the clock, in one thread.

Events are due at fixed times, whatever the server does (an open loop), and latency counts from the due time: a
server that holds up its publishers does not look faster for it. An event that cannot be sent since all
publishers wait for an answer is *held*; one that was sent late since this program was busy is *late*, and then
the figures are no more the server's alone.
"""

from __future__ import annotations

import secrets
import select
import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self

from .accounting import Accounts, Ledger, stamped, stamps_of
from .connection import Loop
from .crowd import SLOW_STEP_S, Crowd
from .outcome import Load, Plan, Standing
from .publishing import Posts, Publishing, Streaming
from .reading import Reading
from .target import LoadError, Site, Target

HOST = "127.0.0.1"
LATE_NS = 10_000_000
SILENCE_S = 10.0
"""No stream opened for so long: the server is stuck."""

SETTLE_S = 1.0
"""A server that opens a stream without a word is given so long to mean it."""

QUIET_S = 3.0
"""Nothing arrived for so long after the last publishing: nothing will."""

LINGER_S = 0.3
"""Everything has arrived; but what comes twice may come a little later."""

DRAIN_S = 60.0
"""What has not arrived so long after the last publishing is lost."""

AWAY_S = 10.0
"""The same, while some clients have yet to come back."""

CATCH_UP_S = 1.0
"""What fell due while this program was busy may be sent so long after the end."""

TICK_S = 0.5
REST_NS = 100_000_000
HELD_NS = 5_000_000
HOPELESS = frozenset({400, 401, 403, 404, 405, 411, 413, 415, 421, 422, 501})
"""An answer that will be the same next time."""

BURST = 64
"""So many events are sent before it is looked what has come."""

SLOW_SHARE = 0.1
"""Of the bytes that its topic is sent, a slow client reads this share while events are published."""

FRAMING_BYTES = 40
"""What an event costs on its way beside its data, or thereabouts."""

SLOW_BYTES_PER_S = 1024
"""What a slow client reads where it is not known how much it is sent."""

Mode = Literal["post", "stream"]


class Engine:
    """Many clients of one server, and publishers to it; a context manager."""

    # Not Trio but epoll itself: a task switch costs more than a whole delivery may here, and the load must neither be
    # the bottleneck nor share its costs with the server that it measures.

    def __init__(self, target: Target, *, payload: int, mode: Mode = "post", plan: Plan | None = None) -> None:
        self.plan = plan or Plan()
        self._payload = payload
        self._where = target.subscribe[0].partition("?")[0]  # the query may hold what nobody else should see
        self._run = secrets.token_hex(2)
        self._loop = Loop()
        self._ledgers = [
            Ledger(channel << 40, overheard=target.publishing is None) for channel in range(len(target.subscribe))
        ]
        stamps = None if target.publishing is None else stamps_of(self._run)
        self._reading = Reading(stamps, self._ledgers)
        self._crowd = Crowd(self._loop, target, self._reading, self._ledgers)
        self._publishing: Publishing | None = None
        if target.publishing is not None:
            way = Streaming if mode == "stream" else Posts
            self._publishing = way(self._loop, target, self._ledgers)
        self._sent = self._held = self._late = self._left = 0
        self._busy_until_ns = 0  # when nothing could be published last
        self._rested_ns = 0
        self._churned = 0
        self._opened = 0  # so many streams there should be
        self._storm_began_ns = 0
        self._storm_s: float | None = None
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._crowd.close()
        if self._publishing is not None:
            self._publishing.close()
        self._loop.epoll.close()

    def stop(self) -> None:
        """Publish no more; the run ends when what is under way has arrived. May be called by a signal handler."""
        self._stopped = True

    # -- opening ------------------------------------------------------------------------------------------

    def open_streams(self, count: int, tick: Callable[[int], None], *, strict: bool = True) -> None:
        """Open streams, a window at a time; done when each has had the first bytes of its body, or keeps silent.

        The first has to open; so have all others, unless ``strict`` is false: then those that do not are counted.

        Raises:
          LoadError: one was refused or closed, or none opened for a while.
        """
        crowd = self._crowd
        for number in range(count):
            crowd.add(slow=number >= count - self.plan.slow)
            if number == 0:
                self._open(1, tick, strict=True)
        self._open(count, tick, strict=strict)

    def _open(self, count: int, tick: Callable[[int], None], *, strict: bool) -> None:
        crowd = self._crowd
        tried = 0
        progress = told = time.monotonic()
        while not self._stopped:
            crowd.pace(time.monotonic_ns())
            self._rest(100_000_000)
            crowd.receive()
            now = time.monotonic()
            if strict and crowd.failures:
                raise LoadError(f"no stream at {self._where}: {next(iter(crowd.failures))}")
            if strict and crowd.ended:
                raise LoadError("the server ended a stream before all were open")
            if crowd.tried > tried:
                tried, progress = crowd.tried, now
            if now - told > TICK_S / 5:
                told = now
                tick(crowd.open)
            if tried >= count and (self._reading.spoken >= crowd.joined or now - progress > SETTLE_S):
                break
            if now - progress > SILENCE_S:
                raise LoadError(f"only {crowd.open} of {count} streams opened")
        if self._stopped:
            raise LoadError("it was stopped before all streams were open")
        tick(crowd.open)

    def _rest(self, ns: int) -> None:
        """Wait until something can be read or the time has passed."""
        began = time.monotonic_ns()
        if ns > 2_000_000:  # epoll counts in milliseconds and rounds up, and what is due would be late
            self._loop.epoll.poll(min(ns // 1_000_000 - 1, 100) / 1000, 1)
        elif ns > 0:
            select.select([self._loop.epoll.fileno()], (), (), ns / 1e9)
        self._rested_ns += time.monotonic_ns() - began

    # -- the run ------------------------------------------------------------------------------------------

    def run(self, rate: float, seconds: float, tick: Callable[[float, int], None]) -> Load:
        """Publish at a rate for a time, wait for the rest, and account for everything. Once an engine.

        ``tick`` is told, now and then, the seconds since the beginning and the events that arrived.

        Raises:
          LoadError: nothing can be published here.
        """
        self._prepare(rate)
        cpu_s = time.process_time()
        self._rested_ns = 0
        began = told = self._reading.arrived_ns = time.monotonic_ns()
        end = began + int(seconds * 1e9)
        offered = 0 if self._publishing is None else max(1, int(rate * seconds))
        while (now := time.monotonic_ns()) < end and not self._stopped:
            wait_ns = min(end - now, self._publish(began, 1e9 / rate, offered))
            self._disturb(now - began, end - began)
            self._turn(wait_ns, now)
            if now - told > TICK_S * 1e9:
                told = now
                self._tell(tick, now - began)
        self._catch_up(began, 1e9 / rate, offered)
        if self._stopped and self._publishing is not None:
            offered = min(offered, int((now - began) * rate / 1e9) + 1)
        self._held += offered - self._sent
        cpu_share = (time.process_time() - cpu_s) * 1e9 / (now - began)
        busy_share = 1 - self._rested_ns / (now - began)
        ends = [ledger.end for ledger in self._ledgers]
        self._finish(now, tick, began)
        return self._load(offered, ends, began, cpu_share, busy_share)

    def _prepare(self, rate: float) -> None:
        bytes_per_s = rate / len(self._ledgers) * (self._payload + FRAMING_BYTES) * SLOW_SHARE
        if self._publishing is None:
            bytes_per_s = SLOW_BYTES_PER_S
        self._crowd.slow_bytes = max(1, int(bytes_per_s * SLOW_STEP_S))
        self._opened = self._crowd.open

    def _turn(self, wait_ns: int, now: int) -> None:
        self._crowd.pace(now)
        self._rest(wait_ns)
        self._crowd.receive()
        if self._storm_began_ns and self._storm_s is None and self._crowd.open >= self._opened:
            self._storm_s = (time.monotonic_ns() - self._storm_began_ns) / 1e9

    def _tell(self, tick: Callable[[float, int], None], elapsed_ns: int) -> None:
        for ledger in self._ledgers:
            ledger.forget()
        publishing = self._publishing
        if publishing is not None and not publishing.accepted and publishing.status in HOPELESS:
            raise LoadError(f"nothing can be published: {next(iter(publishing.failures))}")
        tick(elapsed_ns / 1e9, self._delivered)

    def _publish(self, began: int, period: float, offered: int) -> int:
        """Send what is due; how long the next event has time."""
        publishing, wait_ns = self._publishing, REST_NS
        if publishing is None:
            return wait_ns
        for burst in range(BURST + 1):
            now = time.monotonic_ns()
            due = began + int(self._sent * period)
            if self._sent == offered:
                break
            if now < due or burst == BURST:
                wait_ns = max(0, due - now)
                break
            if not publishing.is_free(self._sent):
                self._busy_until_ns = now
                wait_ns = HELD_NS
                break
            if now - due > LATE_NS:
                held = due <= self._busy_until_ns
                self._held += held
                self._late += not held
            publishing.send(self._sent, stamped(self._run, due, self._sent, self._payload))
            self._sent += 1
        publishing.flush()
        return min(wait_ns, REST_NS)

    def _catch_up(self, began: int, period: float, offered: int) -> None:
        """Send what fell due while this program was busy; what the server held up stays unsent."""
        if self._stopped or began + int(self._sent * period) <= self._busy_until_ns:
            return
        until = time.monotonic_ns() + int(CATCH_UP_S * 1e9)
        while self._sent < offered and (now := time.monotonic_ns()) < until:
            self._turn(self._publish(began, period, offered), now)

    def _disturb(self, elapsed_ns: int, whole_ns: int) -> None:
        """Let clients leave whose time has come."""
        crowd, plan = self._crowd, self.plan
        due = int(elapsed_ns * plan.churn / 1e9) - self._churned
        if due > 0:
            self._churned += due
            self._left += crowd.cut(due)
        if plan.storm and not self._storm_began_ns and elapsed_ns > whole_ns // 2:
            self._storm_began_ns = time.monotonic_ns()
            self._opened = crowd.open
            self._left += crowd.cut(len(crowd.clients))

    # -- the end ------------------------------------------------------------------------------------------

    def _finish(self, end: int, tick: Callable[[float, int], None], began: int) -> None:
        """Wait for what is under way."""
        self._crowd.release_slow()
        if self._publishing is not None:
            self._publishing.finish()
        ends = [ledger.end for ledger in self._ledgers]
        told = 0
        now = time.monotonic_ns()
        while not self._is_over(now, end, ends):
            now = time.monotonic_ns()  # before it is read, so that what came while this program stood still has come
            self._turn(REST_NS, now)
            self._crowd.read_tails()
            if now - told > TICK_S * 1e9:
                told = now
                self._tell(tick, now - began)

    def _is_over(self, now: int, end: int, ends: list[int]) -> bool:
        """Whether everything arrived, or waiting longer is no use."""
        crowd = self._crowd
        if self._publishing is None:
            behind = any(ledger.is_behind(place) for ledger, place in zip(self._ledgers, ends, strict=True))
            return not behind or now > end + QUIET_S * 1e9
        if all(ledger.is_complete() for ledger in self._ledgers):
            return now > max(end, self._reading.arrived_ns) + LINGER_S * 1e9
        patience_s = QUIET_S if crowd.open >= self._opened else AWAY_S
        return now > max(end, self._reading.arrived_ns) + patience_s * 1e9 or now > end + DRAIN_S * 1e9

    def _load(self, offered: int, ends: list[int], began: int, cpu_share: float, busy_share: float) -> Load:
        crowd, publishing, ledgers = self._crowd, self._publishing, self._ledgers
        p50_ms, p99_ms, max_ms = self._reading.latencies.percentiles_ms(0.5, 0.99, 1)
        accepted = refused = 0
        failures = crowd.failures.copy()
        if publishing is not None:
            accepted, refused = publishing.accepted, publishing.refused + publishing.waiting
            failures += publishing.failures
        delivered = sum(ledger.delivered for ledger in ledgers) + self._reading.delivered_fast
        lost = sum(ledger.lost(None if publishing else place) for ledger, place in zip(ledgers, ends, strict=True))
        shared = crowd.joined < 2 or self._reading.delivered_fast or any(ledger.shared for ledger in ledgers)
        return Load(
            offered=offered,
            accepted=accepted,
            refused=refused,
            held=self._held,
            late=self._late,
            closed=crowd.ended,
            accounts=Accounts(
                delivered=delivered,
                lost=lost,
                twice=sum(ledger.twice for ledger in ledgers),
                disordered=sum(ledger.disordered for ledger in ledgers),
            ),
            elapsed_s=max(1, self._reading.arrived_ns - began) / 1e9,
            p50_ms=p50_ms,
            p99_ms=p99_ms,
            max_ms=max_ms,
            told=sum(ledger.told for ledger in ledgers),
            events=self._reading.events,
            others=self._reading.others,
            comparable=publishing is not None or bool(delivered and shared),
            left=self._left,
            reopened=crowd.reopened,
            storm_s=self._storm_s,
            never_opened=len(crowd.clients) - crowd.joined,
            streams_refused=crowd.refused,
            failures=dict(failures),
            cpu_share=cpu_share,
            busy_share=busy_share,
        )

    @property
    def _delivered(self) -> int:
        counted = sum(ledger.delivered for ledger in self._ledgers) + self._reading.delivered_fast
        return counted or self._reading.events

    def standing(self) -> Standing:
        """How it stands."""
        crowd = self._crowd
        p50_ms, p99_ms = self._reading.latencies.percentiles_ms(0.5, 0.99)
        missing = sum(ledger.missing for ledger in self._ledgers)
        return Standing(crowd.open, self._delivered, missing, p50_ms, p99_ms)


class Generator(Engine):
    """The load on a server of this machine; paths are as a request line has them.

    Of several topics, each is read by the clients of one path: the first by those of the first, and round again.
    """

    def __init__(
        self,
        port: int,
        subscribe: str | Sequence[str],
        publish: str | Sequence[str],
        payload: int,
        *,
        publish_mode: Mode = "post",
        plan: Plan | None = None,
    ) -> None:
        site = Site(socket.AF_INET, (HOST, port), f"{HOST}:{port}", HOST)
        subscribe, publish = ((each,) if isinstance(each, str) else tuple(each) for each in (subscribe, publish))
        target = Target(site, subscribe, site, publish)
        super().__init__(target, payload=payload, mode=publish_mode, plan=plan)
