"""``POST /topics/<topic>``: publish one event, or a stream of them; ``GET`` the same: what is known of it."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Never

import trio
from quart import Response, request
from quart.wrappers.response import ResponseBody
from werkzeug.exceptions import NotFound
from werkzeug.routing import BaseConverter

from ..errors import HubFailed, InvalidEvent, InvalidInput, InvalidToken, TrioSSEError
from ..event import DEFAULT_TYPE, Event, EventID
from ..expiry import Expiry
from ..hub import check_publishable
from ..topic import Selector, check_new_topic, topic_from_path
from ..wire import CONTENT_TYPE, MAX_DATA, Decoder
from .bodies import StreamRest
from .caller import is_utf8, parameters, single
from .connection import Disconnected, Incoming
from .problem import problem

if TYPE_CHECKING:
    from ..auth import Grant
    from . import TrioSSE
    from .rates import Callers

PREFIX = b"/topics/"
PLAIN_TYPES = ("", "text/plain", "application/x-www-form-urlencoded")  # the last is what curl -d says
IDEMPOTENCY_KEY, REPLAYED = "Idempotency-Key", "Idempotency-Replayed"
"""The header that makes publishing again harmless, and the one that says that it was again."""

ACKNOWLEDGEMENTS = "application/x-ndjson"
READ_BYTES = 64 * 1024
"""Bytes of a stream of events that are held undecoded, beyond the message that reaches it."""

COMMIT_EVENTS = 256
"""Events of a stream that are appended at once, beyond the slice that reaches it: about 5 ms of a journal's time, so
that others who publish have their turn, and enough that what is the same for each append hardly counts."""

SLICE_BYTES = 2 * 1024
"""Most bytes that are decoded in one go: about 1 ms, where events or comments are as small as they can be."""

SLICE_S = 0.001
"""Seconds after which others have their turn when one stream is decoded."""

DECODING = 2
"""Streams of events that are decoded or appended at the same time, so that while a journal's thread keeps the events
of one, those of the next are decoded. The others wait for their turn, and their clients in TCP."""

ONE_EVENT = {"events_per_s": 1, "bytes_per_s": 1}
"""What a publisher that streams has to be allowed for more of its stream to be taken; what that is, is counted then."""

COST_BYTES = 64
"""Bytes of a stream that count as one event of it when it is decided whose turn it is."""

_NUMBER = re.compile("0|[1-9][0-9]{0,14}")  # which every reader of JSON reads exactly; other names stay text


class AnyPath(BaseConverter):
    """Everything behind a prefix, also what is empty or begins with a slash: the topic's own rules judge it."""

    regex = "(?s:.*)"
    part_isolating = False


def add_routes(app: TrioSSE) -> None:
    """Serve ``/topics/<topic>``."""
    app.url_map.converters["any"] = AnyPath

    @app.post("/topics/<any:_topic>")
    async def publish(_topic: str) -> Response:
        topic = check_new_topic(_topic_of_request())
        grant = app.grant(request)
        grant.check_publish(topic)
        publisher, callers = grant.publisher, app.rates.callers(request, grant)
        values = parameters(request)
        type, key = single(values, "event"), single(values, "key")
        if request.mimetype == CONTENT_TYPE:
            if type is not None or key is not None:
                raise InvalidInput("a stream says the type of each event itself: leave event and key out")
            if _idempotency_key() is not None:
                raise InvalidInput(
                    f"a stream is acknowledged as it is taken, by its own ids: leave {IDEMPOTENCY_KEY} out, and after "
                    "a break send what was not acknowledged"
                )
            incoming = getattr(request, "incoming", None)
            assert isinstance(incoming, Incoming)
            acknowledgements = _Acknowledgements(app, topic, incoming, grant, callers)
            await acknowledgements.begin()
            response = Response(acknowledgements, content_type=ACKNOWLEDGEMENTS)
            response.timeout = None
            return response
        said = min(request.content_length or 0, MAX_DATA)
        app.rates.check(callers, {"events_per_s": 1, "bytes_per_s": said})
        body = await request.get_data(cache=True, as_text=False, parse_form_data=False)
        app.rates.spend(callers, {"bytes_per_s": len(body) - said})
        event = Event(_text(body, request.mimetype), type=DEFAULT_TYPE if type is None else type)
        idempotency_key, replayed = _idempotency_key(), False
        if idempotency_key is None:
            id = await app.hub.publish(topic, event, key=key, publisher=publisher)
        else:
            id, replayed = await app.hub.publish_once(
                topic, event, idempotency_key, key=key, subject=grant.subject, publisher=publisher
            )
        response = _json({"id": str(id), "topic": topic, "subscribers": app.hub.subscribers(topic)}, 201)
        if replayed:
            response.headers[REPLAYED] = "true"
        return response

    @app.get("/topics/<any:_topic>")
    async def information(_topic: str) -> Response:
        topic = _topic_of_request()
        (selector,) = app.grant(request).readable([Selector.parse(topic)])
        last, floor = await app.hub.journal.last_event_id(topic), await app.hub.journal.floor([selector])
        told = {
            "topic": topic,
            "subscribers": app.hub.subscribers(topic),
            "floor": str(floor),
            "last_event_id": None if last is None else str(last),
        }
        return _json(told, 200)


def _topic_of_request() -> str:
    """The topic, from the path as it came over the wire.

    Raises:
      NotFound: the path leads here only when it is decoded, so it does not say where its topic begins.
    """
    raw: bytes = request.scope["raw_path"]
    prefix = request.root_path.encode() + PREFIX
    if not raw.startswith(prefix):
        raise NotFound
    return topic_from_path(raw[len(prefix) :])


def _idempotency_key() -> str | None:
    given = request.headers.getlist(IDEMPOTENCY_KEY)
    if len(given) > 1:
        raise InvalidInput(f"{IDEMPOTENCY_KEY} is given {len(given)} times: give it once")
    return given[0] if given else None


def _text(body: bytes, mimetype: str) -> str:
    """The data that a body of this type means.

    Raises:
      InvalidEvent: it is not UTF-8, or not the JSON it says it is.
      UnsupportedType: it is of a type that is no event.
    """
    if mimetype not in (*PLAIN_TYPES, "application/json") or not is_utf8(request):
        raise UnsupportedType
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise InvalidEvent("the body is not UTF-8: send text encoded as UTF-8") from None
    if mimetype == "application/json":
        _check_json(text)
    return text


class UnsupportedType(InvalidInput):
    """A body of a type that means nothing here."""

    status_hint = 415

    def __init__(
        self,
        message: str = "the body may be text/plain or application/json in UTF-8, which become one event, or "
        "text/event-stream, which is a stream of events: say so in Content-Type",
    ) -> None:
        super().__init__(message)


def _check_json(text: str) -> None:
    """Whether it is JSON (RFC 8259), which ``NaN`` is not, and a number of any length is."""

    def refuse(constant: str) -> Never:
        raise ValueError(f"{constant} is no JSON value")

    try:
        json.loads(text, parse_constant=refuse, parse_int=len, parse_float=len)
    except RecursionError:
        raise InvalidEvent("the JSON is nested too deeply") from None
    except ValueError as error:
        raise InvalidEvent(f"the body is not valid JSON: {error}") from None


def _json(value: dict[str, Any], status: int) -> Response:
    response = Response(json.dumps(value) + "\n", status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


class _Acknowledgements(ResponseBody):
    """The answer to a stream of events: a line for each commit, while the events still come.

    What has arrived of the body is decoded and appended, a commit at a time, and only then more is asked for: what is
    not yet committed is at most what is held undecoded, and the rest waits in TCP. Few streams do so at once, in turns,
    and a long one lets the other tasks go on in between. ``retry:`` and comments concern the publisher's own
    connection and are not passed on; an ``id:`` is its own number, given back in ``acked``.
    """

    def __init__(self, app: TrioSSE, topic: str, incoming: Incoming, grant: Grant, callers: Callers) -> None:
        self._hub, self._turns, self._rates = app.hub, app.turns, app.rates
        self._topic, self._incoming, self._publisher, self._callers = topic, incoming, grant.publisher, callers
        self._expiry = None if grant.expires_at is None else Expiry(grant.expires_at - time.time())
        self._decoder = Decoder(errors="strict")
        self._undecoded = memoryview(b"")
        self._count = 0
        self._last: EventID | None = None
        self._line: dict[str, Any] | None = None
        self._fault: TrioSSEError | None = None
        self._done = False
        self._reading: trio.CancelScope | None = None
        self._rest = StreamRest(self._let_go)

    async def begin(self) -> None:
        """Wait for the first commit, or the end.

        Raises:
          TrioSSEError: nothing could be committed, so the request as a whole is refused.
        """
        try:
            self._line = await self._next()
            if self._fault is not None and self._count == 0:
                raise self._fault
        except BaseException:  # then nobody enters it, and leaves it
            self._rest.drop()
            raise

    def _let_go(self, fault: TrioSSEError) -> None:
        """What is held is too much: throw it away, and end the stream."""
        self._fault = self._fault or fault
        self._decoder, self._undecoded = Decoder(errors="strict"), memoryview(b"")
        if self._reading is not None:
            self._reading.cancel()

    async def _next(self) -> dict[str, Any] | None:
        """The next line of the answer; none when it has ended."""
        while not self._done:
            if self._fault is not None:
                self._done = True
                return problem(self._fault.status_hint, str(self._fault))
            try:
                has_more = await self._read()
            except Disconnected:
                self._done = True
                return None
            if self._fault is not None:
                continue
            if not has_more and self._decoder.has_unfinished_data:
                self._fault = InvalidEvent("the stream ended in the middle of an event: end each with a blank line")
                continue
            if not has_more:
                self._done = True
                return {"done": True, "count": self._count, "id": None if self._last is None else str(self._last)}
            async with self._turns.turn(self._publisher, 1 + len(self._undecoded) / COST_BYTES):
                acked = await self._commit()
            if acked is not None:
                return {"acked": acked, "id": str(self._last)}
        return None

    async def _read(self) -> bool:
        """Whether there is more of the body, now here; a fault is kept, if the token or the hub ends before it."""
        while self._fault is None:
            with self._hub.cancelled_on_ending() as scope:
                self._reading = scope
                with contextlib.nullcontext() if self._expiry is None else self._expiry.ends(scope):
                    await self._rates.wait(self._callers, ONE_EVENT)
                    if self._undecoded:
                        await trio.lowlevel.checkpoint()
                    else:
                        self._undecoded = await self._take()
                return bool(self._undecoded)
            if self._hub.ending is not None:
                self._fault = HubFailed("the server is going away: send the rest again in a moment")
            elif self._expiry is not None and self._expiry.has_passed():
                self._fault = InvalidToken("the token has expired: get a new one, and send the rest with it")
        return False

    async def _take(self) -> memoryview:
        body = await self._incoming.read()
        while len(body) < READ_BYTES and (piece := self._incoming.read_nowait()):
            body += piece
        return memoryview(body)

    async def _commit(self) -> int | str | None:
        """Append the next events, up to a fault; what to acknowledge, or none for nothing."""
        events: list[Event] = []
        number: str | None = None
        began, size = time.perf_counter(), len(self._undecoded)
        try:
            while self._undecoded and len(events) < COMMIT_EVENTS and self._fault is None:
                for received in self._decoder.feed(self._slice()):
                    event = Event(received.data, type=received.type)
                    check_publishable(event)
                    events.append(event)
                    number = received.id
                if time.perf_counter() - began >= SLICE_S:
                    await trio.lowlevel.checkpoint()
                    began = time.perf_counter()
        except TrioSSEError as error:
            self._fault = error
        costs = {"events_per_s": len(events), "bytes_per_s": size - len(self._undecoded)}
        self._rates.spend(self._callers, costs)
        self._rest.keep(len(self._undecoded) + self._decoder.held)
        if not events:
            return None
        try:
            ids = await self._hub.publish_many(self._topic, events, publisher=self._publisher)
        except TrioSSEError as error:
            self._fault = error
            return None
        self._count += len(ids)
        self._last = ids[-1]
        if number is None:
            return self._count
        return int(number) if _NUMBER.fullmatch(number) else number

    def _slice(self) -> bytes:
        """The next bytes to decode: up to a blank line where there is one, because whole events are decoded fastest."""
        piece = bytes(self._undecoded[:SLICE_BYTES])
        if len(piece) < len(self._undecoded) and (end := piece.rfind(b"\n\n") + 2) > 1:
            piece = piece[:end]
        self._undecoded = self._undecoded[len(piece) :]
        return piece

    async def __aenter__(self) -> _Acknowledgements:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._rest.drop()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        line = self._line if self._line is not None else await self._next()
        self._line = None
        if line is None:
            raise StopAsyncIteration
        return json.dumps(line).encode() + b"\n"
