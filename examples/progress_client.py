"""Reads the progress of a job with httpx-sse, on Trio, until the server closes.

    .venv/bin/python -m examples.progress_client

What ``progress_lines.py`` knows of the format, a library knows better.
"""

from __future__ import annotations

import click
import httpx
import httpx_sse
import trio

READ_TIMEOUT_S = 30
"""No stream of ours is silent for longer than 15 seconds."""


async def read(url: str) -> None:
    async with (
        httpx.AsyncClient(timeout=httpx.Timeout(5, read=READ_TIMEOUT_S)) as client,
        httpx_sse.aconnect_sse(client, "GET", url) as source,
    ):
        source.response.raise_for_status()
        async for event in source.aiter_sse():
            if event.data:  # httpx-sse hands out blocks without data too, which a browser does not
                click.echo(event.json()["resMsg"])


@click.command()
@click.option("--url", default="http://127.0.0.1:9090/sse", show_default=True)
def main(url: str) -> None:
    """Read the progress of a job, and end with it."""
    try:
        trio.run(read, url)
    except (httpx.HTTPError, httpx_sse.SSEError) as error:
        raise click.ClickException(f"{url}: {error}") from None
    click.echo("The server closed the stream.")


if __name__ == "__main__":
    main()
