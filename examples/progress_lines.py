"""Reads the progress of a job line by line, until the server closes.

    .venv/bin/python -m examples.progress_lines

An event is lines of text: this is all that a client for one known server has to know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import click
import httpx

READ_TIMEOUT_S = 30
"""No stream of ours is silent for longer than 15 seconds."""


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines in bytes that come cut anywhere. (``str.splitlines`` knows line ends that the format does not.)"""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode() for line in whole)


@click.command()
@click.option("--url", default="http://127.0.0.1:9090/sse", show_default=True)
def main(url: str) -> None:
    """Read the progress of a job, and end with it."""
    try:
        with httpx.stream("GET", url, timeout=httpx.Timeout(5, read=READ_TIMEOUT_S)) as response:
            response.raise_for_status()
            for line in lines(response.iter_bytes()):
                if line.startswith("data: "):
                    click.echo(json.loads(line.removeprefix("data: "))["resMsg"])
    except httpx.HTTPError as error:
        raise click.ClickException(f"{url}: {error}") from None
    click.echo("The server closed the stream.")


if __name__ == "__main__":
    main()
