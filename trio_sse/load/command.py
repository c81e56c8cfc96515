"""``trio-sse load``: a load test of any server of event streams."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..errors import InvalidTopic
from ..settings import PREFIX
from ..topic import check_new_topic
from .accounting import MAX_STAMP
from .engine import Engine
from .machine import make_room
from .outcome import Plan
from .report import Report
from .target import Link, LoadError, Target, check_headers

LINE_S = 5.0
"""Where no terminal shows how it stands, a line does so this often."""

MAX_PAYLOAD = 512 * 1024
MAX_TOPICS = 10_000


_DECIMAL = r"[0-9]{1,9}(\.[0-9]{1,6})?"


def _amount(unit: str, example: str) -> Callable[[click.Context, click.Parameter, str], str]:
    """A number, with a unit that may be left out."""
    pattern = re.compile(f"{_DECIMAL}({unit})?")

    def check(_: click.Context, __: click.Parameter, value: str) -> str:
        if not pattern.fullmatch(value):
            raise click.BadParameter(f"{value!r} is no such amount: give one such as {example}")
        return value

    return check


_share = _amount("%", "1% or 50")
_per_second = _amount("/s", "20/s")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("url")
@click.option("--clients", type=click.IntRange(1), default=100, show_default=True, help="Streams that are held open.")
@click.option(
    "--rate",
    callback=_per_second,
    default="10/s",
    show_default=True,
    metavar="NUMBER/s",
    help="Events published a second, in all.",
)
@click.option(
    "--duration",
    type=click.FloatRange(0.1, 7 * 24 * 3600),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long events are published.",
)
@click.option(
    "--payload",
    type=click.IntRange(MAX_STAMP, MAX_PAYLOAD),
    default=120,
    show_default=True,
    help="Bytes of data in an event.",
)
@click.option(
    "--topic",
    "topics",
    multiple=True,
    help="Topic of a hub; may be repeated, then they share clients and events.  [one of its own]",
)
@click.option("--publish", "publish_url", metavar="URL", help="Where events are POSTed to, if URL is a stream.")
@click.option("--stream", is_flag=True, help="Publish to a hub in one request for each topic, not one for each event.")
@click.option(
    "--token",
    envvar=f"{PREFIX}TOKEN",
    help=f"Sent as a bearer token; better given as {PREFIX}TOKEN, where no other user of this machine sees it.",
)
@click.option(
    "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Sent with every request; may be repeated."
)
@click.option(
    "--slow", callback=_share, default="0", metavar="SHARE", help="So many clients read slowly, such as 1% or 50."
)
@click.option(
    "--churn",
    callback=_per_second,
    default="0",
    metavar="NUMBER/s",
    help="So many clients a second leave and come back, such as 20/s.",
)
@click.option("--reconnect-storm", "storm", is_flag=True, help="In mid-run cut all streams, which come back at once.")
@click.option("--insecure", is_flag=True, help="Trust any certificate.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Also write it all here, as JSON; - is the standard output.",
)
def load(
    url: str,
    clients: int,
    rate: str,
    duration: float,
    payload: int,
    topics: Sequence[str],
    publish_url: str | None,
    stream: bool,
    token: str | None,
    headers: Sequence[str],
    slow: str,
    churn: str,
    storm: bool,
    insecure: bool,
    json_path: Path | None,
) -> None:
    """Put a server of event streams under load, and account for every delivery.

    URL is a hub of this project (http://host:port), or any event stream, that is a URL with a path. Where events
    can be published, every client must be given each event once and in order. Where they cannot, the load only
    listens: it counts, and compares the IDs that its clients see.

    \b
    Examples:
      trio-sse load http://127.0.0.1:8000 --clients 5000 --rate 50 --slow 1% --churn 20/s
      trio-sse load https://example.org/stream --publish https://example.org/send --rate 5

    A client that comes back sends the last event ID it saw; a slow one reads a tenth of what comes, and has to catch
    up at the end. At most 64 streams are opened at a time. Ctrl-C ends it early.

    \b
    Exits with 0 when everything was delivered once and in order; with 1 when anything was lost, repeated, reordered
    or refused; with 2 when there could be no test.
    """
    told = Console(stderr=json_path is not None and str(json_path) == "-", highlight=False)
    hidden = [word for word in (token, *(header.partition(":")[2].strip() for header in headers)) if word]
    try:
        _check_writable(json_path)
        make_room(clients, len(topics))
        per_second = float(rate.removesuffix("/s"))
        if not per_second:
            raise LoadError("a rate of 0 publishes nothing: give --rate 1/s or more")
        target = _target(url, topics, publish_url, stream, token, headers, verify=not insecure)
        plan = Plan(_slow(slow, clients), float(churn.removesuffix("/s")), storm)
        with (
            Engine(target, payload=payload, mode="stream" if stream else "post", plan=plan) as engine,
            _stopping(engine),
            _Screen(engine, clients, duration) as screen,
        ):
            engine.open_streams(clients, screen.opened, strict=False)
            result = engine.run(per_second, duration, screen.running)
    except LoadError as error:
        click.echo(f"trio-sse load: {_hide(str(error), hidden)}", err=True)
        raise SystemExit(2) from None
    way = "streamed" if stream else "by single POSTs"
    listening = target.publishing is None
    report = Report(
        _shown(url), clients, plan.slow, len(target.subscribe), "nothing" if listening else way, listening, result
    )
    told.print(report.table())
    for line in report.remarks():
        told.print(_hide(line, hidden), soft_wrap=True, markup=False)
    if json_path is not None:
        text = _hide(json.dumps(report.json(), indent=2), hidden)
        with click.open_file(str(json_path), "w") as file:
            file.write(text + "\n")
    raise SystemExit(1 if report.failed else 0)


def _target(
    url: str,
    topics: Sequence[str],
    publish_url: str | None,
    stream: bool,
    token: str | None,
    headers: Sequence[str],
    *,
    verify: bool,
) -> Target:
    link = Link.parse(url)
    if token:
        headers = (f"Authorization: Bearer {token}", *headers)
    headers = check_headers(headers)
    if not link.is_base:
        if topics or stream:
            raise LoadError("--topic and --stream go with the URL of a hub, which has no path")
        publish = None if publish_url is None else Link.parse(publish_url)
        site = link.find(verify=verify)
        publishing = None if publish is None else publish.find(verify=verify)
        return Target(site, (link.target,), publishing, () if publish is None else (publish.target,), headers)
    if publish_url is not None:
        raise LoadError("--publish goes with the URL of a stream; a hub is published to by its topics")
    if len(topics) > MAX_TOPICS or len(set(topics)) < len(topics):
        raise LoadError(f"give each topic once, and at most {MAX_TOPICS:,}")
    topics = topics or (f"load/{secrets.token_hex(4)}",)
    try:
        for topic in topics:
            check_new_topic(topic)
    except InvalidTopic as error:
        raise LoadError(str(error)) from None
    site = link.find(verify=verify)
    subscribe = tuple(f"/events?topic={quote(topic, safe='')}" for topic in topics)
    return Target(site, subscribe, site, tuple(f"/topics/{quote(topic)}" for topic in topics), headers)


def _check_writable(path: Path | None) -> None:
    """Whether a file can be written, seen before the run and not after it; what is in it stays.

    Raises:
      LoadError: it cannot.
    """
    if path is None or str(path) == "-":
        return
    try:
        path.open("a").close()
    except OSError as error:
        raise LoadError(f"{path} cannot be written: {error.strerror}") from None


def _slow(text: str, clients: int) -> int:
    """So many of the clients: of a share at least one."""
    number = float(text.removesuffix("%"))
    if text.endswith("%") and number:
        number = max(1.0, clients * number / 100)
    return min(clients, round(number))


def _shown(url: str) -> str:
    """The URL without its query, which may hold what nobody else should see."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def _hide(text: str, words: Sequence[str]) -> str:
    for word in words:
        text = text.replace(word, "***")
    return text


@contextlib.contextmanager
def _stopping(engine: Engine) -> Iterator[None]:
    """Let the first Ctrl-C end the run in order; the second ends the program."""

    def stop(*_: object) -> None:
        engine.stop()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Screen:
    """How it stands, on the terminal; where there is none, as a line now and then."""

    # No thread that draws: it would take its time from the load. It draws when it is told something.

    def __init__(self, engine: Engine, clients: int, duration_s: float) -> None:
        self._engine = engine
        self._clients = clients
        self._duration_s = duration_s
        console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(20))
        self._progress = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._bar = self._progress.add_task("connecting", total=duration_s)
        self._terminal = console.is_terminal
        self._told_s = time.monotonic()
        self._before = (0.0, 0)

    def __enter__(self) -> _Screen:
        if self._terminal:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._terminal:
            self._progress.stop()

    def opened(self, count: int) -> None:
        """So many streams are open."""
        self._tell(0, lambda: f"{count:,} of {self._clients:,} open")

    def running(self, elapsed_s: float, count: int) -> None:
        """So many events have come."""
        self._tell(elapsed_s, lambda: self._standing(elapsed_s, count))

    def _standing(self, elapsed_s: float, count: int) -> str:
        standing = self._engine.standing()
        then_s, then = self._before
        self._before = elapsed_s, count
        per_second = (count - then) / max(0.001, elapsed_s - then_s)
        times = f"p50 {standing.p50_ms:,.1f} ms · p99 {standing.p99_ms:,.1f} ms · " if standing.p50_ms > 0 else ""
        return f"{standing.open:,} open · {per_second:,.0f} deliveries/s · {times}lost {standing.missing:,}"

    def _tell(self, elapsed_s: float, text: Callable[[], str]) -> None:
        if self._terminal:
            self._progress.update(self._bar, completed=min(elapsed_s, self._duration_s), description=text())
            self._progress.refresh()
        elif time.monotonic() - self._told_s > LINE_S:
            self._told_s = time.monotonic()
            click.echo(f"{elapsed_s:,.0f} s: {text()}", err=True)
