"""The hub over HTTP: its lifetime, its routes, its errors, and the board."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import trio
from quart import Request as QuartRequest
from quart.ctx import RequestContext
from quart_cors import cors
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGILifespan
from werkzeug.exceptions import HTTPException

from .. import seldom, server
from ..auth import Authority, Grant
from ..errors import HubFailed, TrioSSEError
from ..hub import Hub, open_hub
from ..retention import Retention
from ..settings import PREFIX, Settings
from ..turns import Gate
from ..wire import MAX_DATA
from . import ops, page, problem, publish, session, subscribe
from .caller import grant_of
from .connection import HTTPConnection, Request, answering
from .hosts import Hosts
from .limits import Limits, check_admitted
from .pages import Pages
from .rates import RateLimits
from .websocket import NoWebSocket

NOT_OPEN = "the hub is not open: it opens when the server starts the application's lifespan"
CORS_AGE = timedelta(hours=1)

BODY_S = 60
"""A body that becomes one event has so long to come, and again so long for each 60 KiB of it; a stream of events may
take its time."""

PATIENCE = 0.8
"""Of the drain time, who has not begun to answer by then is answered for."""

SERVED_TO_THE_END = ("/healthz", "/readyz", "/metrics", "/events")
"""Of the hub's own paths these know what to say while it ends: who asks for a stream is told when to come back."""

log = logging.getLogger(__name__)


class Lifespan(TrioASGILifespan):
    """The application's beginning and end, on Trio or not at all."""

    app: TrioSSE

    async def __call__(self, receive: Any, send: Any) -> None:
        if not trio.lowlevel.in_trio_run():
            server.give_up("it runs on Trio: hypercorn trio_sse.app:app --worker-class trio")
        try:
            await super().__call__(receive, send)
        except Exception:  # of a task in ``app.nursery``, which takes the hub with it
            if self.app.has_hub:
                await server.replace_worker()
            raise


class TrioSSE(QuartTrio):
    """The application: one hub for as long as the server lives."""

    asgi_http_class = HTTPConnection
    asgi_lifespan_class = Lifespan
    asgi_websocket_class = NoWebSocket  # type: ignore[assignment]
    request_class = Request

    def __init__(self, settings: Settings) -> None:
        super().__init__(__name__, static_folder=None)
        self.settings = settings
        self.limits = Limits(settings.max_streams, settings.max_streams_per_ip, settings.max_streams_per_subject)
        self.rates = RateLimits(settings)
        self.hosts = Hosts(settings)
        self.pages = Pages(settings)
        self.turns = Gate(publish.DECODING)
        """Of those who publish streams of events."""
        self.metrics = ops.Metrics(self)
        self.exact_paths: frozenset[str] = frozenset()
        """The hub's own paths but for topics: they are served as they are written, and in no other spelling."""
        self._hub: Hub | None = None
        self._authority: Authority | None = None

    def asgi_app(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:  # type: ignore[override]
        """Quart's, which middleware may wrap; for a request it costs no coroutine of its own."""
        if scope["type"] == "http":
            return self.asgi_http_class(self, scope)(receive, send)
        return super().asgi_app(scope, receive, send)

    def dispatch_request(self, request_context: RequestContext | None = None) -> Awaitable[Any]:  # type: ignore[override]
        """Quart's, for a request that is admitted.

        Raises:
          HubFull, HubFailed, WrongHost, ForeignPage: it is not.
        """
        if request_context is not None:
            request = request_context.request
            check_admitted(request.path)
            self.check_open(request.path)
            self.hosts.check(request.scope, request.path)
            self.pages.check(request)
        return super().dispatch_request(request_context)

    @property
    def has_hub(self) -> bool:
        """Whether the hub has been opened."""
        return self._hub is not None

    @property
    def hub(self) -> Hub:
        """The hub; there is one from start-up on."""
        if self._hub is None:
            raise HubFailed(NOT_OPEN)
        return self._hub

    @property
    def authority(self) -> Authority:
        """Who checks tokens."""
        if self._authority is None:
            raise HubFailed(NOT_OPEN)
        return self._authority

    @property
    def guests_allowed(self) -> bool:
        """Whether a display name is enough to sign in."""
        anonymous = self.authority.anonymous()
        return self.authority.symmetric and bool(anonymous.publish or anonymous.subscribe)

    def grant(self, request: QuartRequest) -> Grant:
        """What the sender of a request may do.

        Raises:
          InvalidToken: it came with a token that does not hold.
        """
        grant = grant_of(request, self.authority, self.settings)
        if grant.unusable:
            of = "its token" if grant.subject is None else f"the token of {grant.subject!r}"
            many, first = len(grant.unusable), grant.unusable[0]
            seldom.say(log, "%d of the selectors in %s count for nothing, the first of them %s", many, of, first)
        return grant

    def check_open(self, path: str) -> None:
        """Whether a request may be served; when the hub ends, few are.

        Raises:
          HubFailed: it may not.
        """
        if self._hub is not None and self._hub.ending is not None and path not in SERVED_TO_THE_END:
            self._hub.check_running()

    @contextmanager
    def cancelled_on_ending(self) -> Iterator[trio.CancelScope]:
        """A cancel scope that is cancelled when the hub ends, if there is one."""
        with trio.CancelScope() if self._hub is None else self._hub.cancelled_on_ending() as scope:
            yield scope

    async def keep_hub(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Hold the hub open. If it breaks, its streams have been ended; end this worker, for a fresh one to start."""
        settings = self.settings
        retention = Retention(
            settings.retention_events, settings.retention_seconds, settings.retention_bytes, settings.retention
        )
        try:
            async with open_hub(
                settings.journal,
                retention=retention,
                buffer_events=settings.buffer_events,
                heartbeat_s=settings.heartbeat_s,
            ) as hub:
                await self._open_door(hub)
                task_status.started()
                await server.wait_shutdown()
                hub.end_streams("shutdown")
                await trio.sleep(self.settings.drain_s * PATIENCE)
                for request in list(answering):
                    request.give_up()
                await trio.sleep_forever()
        except* Exception as group:
            error = next(server.leaves(group))  # the groups round it would only repeat its traceback
            if not self.has_hub:
                _give_up(error)
            log.error("the hub failed; its streams are ended, and this worker ends for a fresh one", exc_info=error)
            await server.replace_worker()

    async def _open_door(self, hub: Hub) -> None:
        key = self.settings.jwt_key
        if key is not None:
            self._authority = self.settings.authority(key.get_secret_value())
            await hub.journal.forget_signing_key()
        else:
            key_of_its_own = await hub.journal.signing_key(secrets.token_urlsafe(48))
            self._authority = self.settings.authority(key_of_its_own)
            log.warning(
                "trio_sse runs in DEVELOPMENT MODE: anyone may read and publish every public topic, because "
                "%sJWT_KEY is not set",
                PREFIX,
            )
        self._hub = hub
        self.metrics.watch_latency()


def _give_up(error: BaseException) -> NoReturn:
    """There is no hub to begin with, and there will not be one."""
    if not isinstance(error, TrioSSEError):
        log.error("the hub cannot be opened", exc_info=error)
    server.give_up(str(error))


def create_app(settings: Settings) -> TrioSSE:
    """The application of some settings, for Hypercorn's Trio worker; mends that worker in this process."""
    server.guard_hypercorn(write_timeout_s=settings.write_timeout_s, drain_s=settings.drain_s)
    app = TrioSSE(settings)
    app.config["MAX_CONTENT_LENGTH"] = MAX_DATA
    app.config["BODY_TIMEOUT"] = BODY_S
    app.url_map.merge_slashes = False
    for room in (subscribe, publish, session, ops, page):
        room.add_routes(app)
    app.exact_paths = frozenset(rule.rule for rule in app.url_map.iter_rules() if not rule.arguments)
    app.register_error_handler(TrioSSEError, problem.from_own)
    app.register_error_handler(HTTPException, problem.from_http)
    app.register_error_handler(Exception, problem.from_bug)

    @app.before_serving
    async def open_for_service() -> None:
        server.refuse_siblings(
            f"run one worker, not {server.workers()}: a memory: or sqlite: journal is embedded and serves one; several "
            "workers need one journal between them, in Redis, which this version does not have"
        )
        app.nursery.start_soon(server.watch_parent)
        app.nursery.start_soon(server.watch_signals)
        await app.nursery.start(app.keep_hub)

    if settings.allow_origins:
        app = cors(
            app,
            allow_origin=settings.allow_origins,
            allow_credentials=True,
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            allow_methods=["GET", "HEAD", "POST", "DELETE", "OPTIONS"],
            expose_headers=["Idempotency-Replayed", "Last-Event-ID", "Retry-After"],
            max_age=CORS_AGE,
        )
    return app
