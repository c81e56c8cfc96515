"""The one room that knows Hypercorn's insides.

What is mended here, and why (each was seen with Hypercorn 0.18.0):

- An exception in one connection's task ends the worker and every stream in it. The guard round
  ``TCPServer.run`` lets one connection's exception end that connection and nothing else.
- A write to a client that never reads is shielded from cancellation and has no deadline: the client holds its
  memory for ever, and so does a shutdown. Our ``protocol_send`` keeps the lock and the shield and adds the
  deadline.
- Over HTTP/2 a write only waits in theory: a frozen client makes the worker buffer without bound. Our
  ``StreamBuffer`` waits, with the deadline.
- One malformed HTTP/2 request, or a body that goes on behind its answer, ends all streams of its connection; and one
  that takes its requests back makes all other clients wait. Here nobody suffers but that one (``http2``).
- After a thousand requests on one HTTP/2 connection its streams are silent for ever. There is no such limit here.
- A client that has closed an idle connection keeps its task and descriptor until the keep-alive time is over. Here
  they go with the client.
- A connection that begins HTTP/2 in plain text, or resets its last stream, and then asks for nothing, is never
  closed. Here it has the keep-alive time like any other; so has one that shakes hands for TLS. Nor is one closed
  that asks for a WebSocket, and not quite as it should: here it is.
- A client that says that it will send no more, as ``nc -N`` does, is taken for one that has left, and may or may not
  have its answer. Here a whole request has a moment to be answered, unless the answer is a stream.
- There is no limit to connections but that of descriptors, at which ``accept`` fails and nobody is told anything. Here
  there is room for one more at any time, and who has to be refused is told so (``admission``).
- A request that says its length in two ways is served, a head of any size is too if it comes in one write, an upgrade
  to HTTP/2 is taken, and what is refused has no word. Here it is otherwise (``heads``).
- A request's body that its application does not read holds the connection's reader for ever. Here it is thrown away
  when the response is over.
- The application is not told that the server is going away. :func:`wait_shutdown` tells it.
- Streams are cut at ``graceful_timeout``, whatever the application needs for goodbyes, and a thread that hangs may
  hold up the exit for ever. Here both have the drain time. ``backlog`` is too small for a thousand browsers that come
  back at once.
- When the server is to end, who waits with a connection, or sent a request behind another one, is cut off without an
  answer. Here the application answers (``drain``).
- A worker whose parent was killed goes on, and keeps the port and the journal. One that is sent SIGTERM with its
  parent, as systemd does, dies at once and says goodbye to nobody.

What is made cheaper, and for all that is served here (``docs/cost.md`` has the figures):

- ``direct``: events go to the sockets of waiting streams without waking their tasks.
- ``framing``: an answer leaves in one write, and h11 is not asked for each piece of a body.
- ``messages``: a request's messages need no channel, and hearing that the client has left needs no task.
- ``idle``: waiting connections stand in a row, and have no task each.
- ``connection``: the life of a connection is Hypercorn's with fewer tasks, coroutines and cancel scopes.

Everything is patched by one named act, :func:`guard_hypercorn`, which stands aside and says so when it finds a
version it does not know, or one that lacks what is to be patched.
"""

from __future__ import annotations

import importlib.metadata
import logging
from typing import Any

import hypercorn.trio
import hypercorn.trio.run
import hypercorn.trio.tcp_server
import trio
from h2.connection import H2Connection
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer

from . import connection, drain, framing, heads, http2, idle, messages, worker, writes
from .admission import Capacity
from .connection import Connection, connections, current_connection, is_turned_away, leaves
from .direct import DirectOutlet, DirectWriter, find_direct_writer
from .idle import IdleRow
from .limits import is_ending, limits, throw_away_until, write_before
from .messages import messages_behind
from .worker import (
    end_worker,
    give_up,
    has_failed,
    refuse_siblings,
    replace_worker,
    serve,
    wait_shutdown,
    watch_parent,
    watch_signals,
    workers,
)

__all__ = [
    "Capacity",
    "Connection",
    "DirectOutlet",
    "DirectWriter",
    "IdleRow",
    "connections",
    "current_connection",
    "end_worker",
    "find_direct_writer",
    "give_up",
    "guard_hypercorn",
    "has_failed",
    "is_ending",
    "is_turned_away",
    "leaves",
    "messages_behind",
    "refuse_siblings",
    "replace_worker",
    "serve",
    "throw_away_until",
    "wait_shutdown",
    "watch_parent",
    "watch_signals",
    "workers",
    "write_before",
]

KNOWN_VERSIONS = ("0.18.",)

log = logging.getLogger(__name__)


def guard_hypercorn(*, write_timeout_s: float, drain_s: float) -> bool:
    """Patch Hypercorn's Trio worker in this process; whether it was one that we know.

    ``write_timeout_s`` is how long the kernel may take no byte for a client; ``drain_s`` is how long goodbyes may
    take on shutdown. Called again, it sets the limits anew.
    """
    version = importlib.metadata.version("hypercorn")
    if not version.startswith(KNOWN_VERSIONS):
        log.warning(
            "Hypercorn %s is not one of the versions trio_sse knows (%s*): it runs unguarded, and a single "
            "malformed request may end every stream",
            version,
            "*, ".join(KNOWN_VERSIONS),
        )
        return False
    patches: list[tuple[Any, str, object]] = [
        (TCPServer, "run", connection.guarded_run),
        (TCPServer, "_read_data", connection.read_data),
        (TCPServer, "protocol_send", writes.bounded_protocol_send),
        (hypercorn.trio.tcp_server, "TrioSingleTask", idle.IdleTimer),
        (TaskGroup, "spawn_app", messages.spawn_app),
        (ASGIWrapper, "__call__", messages.call_app),
        (HTTPStream, "app_send", framing.app_send),
        (H11Protocol, "_send_h11_event", framing.send_h11_event),
        (H11Protocol, "__init__", heads.init),
        (H11Protocol, "_check_protocol", heads.check_protocol),
        (H11Protocol, "_send_error_response", heads.send_error_response),
        (H11Protocol, "_maybe_recycle", drain.maybe_recycle),
        (H2Protocol, "__init__", http2.init),
        (H2Protocol, "_handle_events", http2.handle_events),
        (H2Protocol, "_priority_updated", http2.ignore_priority),
        (H2Connection, "MAX_CLOSED_STREAMS", http2.CLOSED_STREAMS),
        (trio.SocketListener, "accept", idle.accept),
        (H2Protocol, "initiate", idle.initiate),
        (H2Protocol, "_close_stream", idle.close_stream),
        (HTTPStream, "_send_error_response", heads.refuse_http),
        (WSStream, "_send_error_response", heads.refuse_websocket),
        (StreamBuffer, "__init__", writes.init_buffer),
        (StreamBuffer, "pop", writes.pop),
        (StreamBuffer, "push", writes.bounded_push),
        (StreamBuffer, "drain", writes.bounded_drain),
        (hypercorn.trio.run, "WorkerContext", worker.KnownWorkerContext),
        (hypercorn.trio.run, "worker_serve", worker.prepared_worker_serve),
        (hypercorn.trio, "worker_serve", worker.prepared_worker_serve),
    ]
    missing = [f"{owner.__name__}.{name}" for owner, name, _ in patches if not hasattr(owner, name)]
    if missing:
        log.warning("Hypercorn %s is not as trio_sse knows it (%s): it runs unguarded", version, ", ".join(missing))
        return False
    limits.write_timeout_s, limits.drain_s = write_timeout_s, drain_s
    for owner, name, patch in patches:
        setattr(owner, name, patch)
    return True
