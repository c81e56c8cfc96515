"""The command line: ``trio-sse serve``, ``trio-sse token``, ``trio-sse backup`` and ``trio-sse load``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from . import server
from .auth import Authority
from .errors import TrioSSEError
from .journal import back_up, read_signing_key
from .load.command import load
from .settings import PREFIX, Settings, load_settings
from .web import create_app

DEFAULT_BIND = "127.0.0.1:8000"
DAY_S = 24 * 3600

SOON_S = 1.0
"""Seconds after which a person is shown how far a copy has come. Most are made by then."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trio-sse")
def main() -> None:
    """A server-push hub: publish with one POST, receive with one EventSource.

    Settings come from environment variables that begin with TRIO_SSE_; the README lists them.
    """


main.add_command(load)


@main.command()
@click.option("--bind", "binds", multiple=True, metavar="HOST:PORT", help=f"Where to listen.  [{DEFAULT_BIND}]")
def serve(binds: Sequence[str]) -> None:
    """Serve the hub and the message board, in this one process.

    SIGINT or SIGTERM says goodbye to every stream and ends; a second one ends at once.
    """
    app = create_app(load_settings())
    binds = binds or (DEFAULT_BIND,)
    try:
        trio.run(partial(_serve, app, list(binds)))
    except* (OSError, OverflowError) as group:
        why = next(server.leaves(group))
        errno = why.errno or 0 if isinstance(why, OSError) else 0
        reason = os.strerror(errno) if errno > 0 else str(why)
        raise click.ClickException(
            f"cannot listen on {', '.join(binds)}: {reason}; choose another with --bind"
        ) from None
    if server.has_failed():
        raise click.ClickException("the hub failed; its log says how")


async def _serve(app: Any, binds: list[str]) -> None:
    stopped = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_listen_to_signals, stopped)
        await server.serve(app, binds, until=stopped.wait)
        nursery.cancel_scope.cancel()


async def _listen_to_signals(stopped: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if stopped.is_set():
                os._exit(1)
            stopped.set()


@main.command()
@click.option("--sub", "subject", metavar="NAME", help="Whose token it is; its inbox is user/NAME.")
@click.option("--name", help="The name to show.")
@click.option("--publish", multiple=True, metavar="SELECTOR", help="Topics it may publish to; may be repeated.")
@click.option("--subscribe", multiple=True, metavar="SELECTOR", help="Topics it may read; may be repeated.")
@click.option("--ttl", "ttl_s", default=DAY_S, show_default=True, metavar="SECONDS", help="How long it holds.")
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"The private PEM key, where {PREFIX}JWT_KEY is a public one.",
)
def token(
    subject: str | None,
    name: str | None,
    publish: Sequence[str],
    subscribe: Sequence[str],
    ttl_s: int,
    key_file: Path | None,
) -> None:
    """Print a token, signed with the hub's key.

    \b
    Example: a backend that may publish everywhere, for ten days:
      trio-sse token --sub backend --publish '**' --ttl 864000
    """
    settings = load_settings()
    try:
        authority = _signing_authority(settings, key_file)
        signed = authority.issue(subject, now=time.time(), ttl_s=ttl_s, publish=publish, subscribe=subscribe, name=name)
    except TrioSSEError as error:
        raise click.ClickException(str(error)) from None
    click.echo(signed)
    if Console(stderr=True).is_terminal:
        click.echo(f"It holds for {ttl_s} s. Send it as: Authorization: Bearer <token>", err=True)


def _signing_authority(settings: Settings, key_file: Path | None) -> Authority:
    if key_file is not None:
        return settings.authority(key_file.read_text())
    if settings.jwt_key is not None:
        return settings.authority(settings.jwt_key.get_secret_value())
    key = read_signing_key(settings.journal)
    if key is None:
        raise click.ClickException(
            f"there is no key yet: set {PREFIX}JWT_KEY, or start the server once, which in development mode keeps "
            f"a key beside its SQLite journal (this one is {settings.journal})"
        )
    return settings.authority(key)


@main.command()
@click.argument("target", metavar="PATH", type=click.Path())
def backup(target: str) -> None:
    """Copy the journal to a new file, also while a server serves it.

    The copy is whole, of one instant, and its owner's alone. docs/delivery.md says how to put it back. The signing key
    of development mode is not in it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left behind either
    settings = load_settings()
    began = time.monotonic()
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", visible=False)

        def tell(copied: int, whole: int) -> None:
            progress.update(task, completed=copied, total=whole, visible=time.monotonic() - began >= SOON_S)

        try:
            size = back_up(settings.journal, target, tell)
        except TrioSSEError as error:
            raise click.ClickException(str(error)) from None
    click.echo(f"{target}: {size} bytes")
