"""What the examples share, so that each can say its one thing: pages, a hub, a port, and a clean end.

An application of your own needs no more of it than ``quart_app.py``, ``starlette_app.py`` and ``fastapi_app.py``
show.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

import click
import hypercorn.trio
import trio
from hypercorn.config import Config
from hypercorn.typing import Framework
from quart import Response, abort
from quart_trio import QuartTrio

from trio_sse import Hub, Retention, open_hub
from trio_sse.server import guard_hypercorn, wait_shutdown
from trio_sse.web.connection import HTTPConnection, Request

log = logging.getLogger(__name__)


class Example(QuartTrio):
    """An application that serves the files in ``pages/``, one of them as ``/``."""

    asgi_http_class = HTTPConnection  # mends quart-trio's, and keeps tokens out of the access log
    request_class = Request

    def __init__(self, name: str, page: str) -> None:
        super().__init__(name, static_folder="pages", static_url_path="")
        guard_hypercorn(write_timeout_s=20, drain_s=2)
        self.add_url_rule("/", "page", partial(self.send_static_file, page))


class HubExample(Example):
    """One that has a hub, open for as long as it serves."""

    hub: Hub

    def __init__(self, name: str, page: str, *, retention: Retention | None = None) -> None:
        super().__init__(name, page)
        self._retention = retention
        self.before_serving(self._open_hub)

    async def _open_hub(self) -> None:
        self.hub = await self.nursery.start(self._keep_hub)

    async def _keep_hub(self, *, task_status: trio.TaskStatus[Hub]) -> None:
        async with open_hub(retention=self._retention) as hub:
            task_status.started(hub)
            await end_streams_on_shutdown(hub)
            await trio.sleep_forever()


async def end_streams_on_shutdown(hub: Hub) -> None:
    """When the server is asked to end, let every stream say goodbye while there is still time to."""
    await wait_shutdown()
    hub.end_streams("shutdown")


@contextmanager
def log_departure(who: str) -> Iterator[None]:
    """For a stream's ``while_open``: says in the log when its client has gone, at once or within a heartbeat."""
    try:
        yield
    finally:
        log.info("client %s disconnected", who)


def refuse(status: int, why: str) -> NoReturn:
    """Answer the request in hand with a status and a reason."""
    abort(Response(why, status, content_type="text/plain; charset=utf-8"))


def port_option(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``--port``, as every example has it."""
    return click.option("--port", default=default, show_default=True, help="The TCP port to serve on.")


def run(app: Framework, port: int) -> None:
    """Serve on the loopback address until Ctrl-C or SIGTERM; say where to look, or why there is nothing to see."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        sock = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise click.ClickException(f"port {port}: {why}. Choose another with --port.") from None
    config = Config()
    config.bind = [f"fd://{sock.detach()}"]
    config.loglevel = "WARNING"
    trio.run(_serve, app, config)


async def _serve(app: Framework, config: Config) -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(hypercorn.trio.serve, app, config, shutdown_trigger=_wait_signal)
        (url,) = await nursery.start(serve)
        click.echo(f"Open {url}/ in a browser. Ctrl-C ends it.")


async def _wait_signal() -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(aiter(signals))
