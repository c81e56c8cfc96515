"""What a stream costs to open, and what it holds while nothing happens.

    .venv/bin/python benchmarks/opening.py                  # this hub and raw ASGI, in turn, and how they compare
    .venv/bin/python benchmarks/opening.py --held           # the objects of one idle stream of this hub, by type

Streams are opened one after another, each with the headers a browser sends, and kept. What has been opened before the
first figure is taken warms the server up and is not counted.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contenders import DIRECT, RAW
from benchmarks.servers import Running, Server, pinned, running, usage

CORES = (0, -1)
WARM = 200
SETTLE_S = 0.5
HELD = replace(DIRECT, name="held", app="benchmarks.held:app")
HEADERS = """\
Host: 127.0.0.1:8000
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36
Accept: text/event-stream
Accept-Language: en-GB,en;q=0.9
Accept-Encoding: gzip, deflate, br, zstd
Cache-Control: no-cache
Connection: keep-alive
Referer: http://127.0.0.1:8000/
Sec-Fetch-Dest: empty
Sec-Fetch-Mode: cors
Sec-Fetch-Site: same-origin
""".replace("\n", "\r\n")


def open_streams(process: Running, count: int) -> list[socket.socket]:
    """Open so many streams; done when each has had the first bytes of its body."""
    request = f"GET {process.server.subscribe} HTTP/1.1\r\n{HEADERS}\r\n".encode()
    streams = []
    for _ in range(count):
        stream = socket.create_connection(("127.0.0.1", process.port), timeout=20)
        stream.sendall(request)
        received = b""
        while not received.partition(b"\r\n\r\n")[2]:
            piece = stream.recv(65536)
            if not piece:
                raise SystemExit(f"{process.server.name} refused a stream: {received[:80]!r}")
            received += piece
        streams.append(stream)
    time.sleep(SETTLE_S)
    return streams


def cost(server: Server, count: int) -> tuple[float, float]:
    """Microseconds of processor time to open a stream of this server, and KiB of memory to keep it."""
    with pinned(CORES[1] % 2), running(server, CORES[0]) as process:
        streams = open_streams(process, WARM)
        before = usage(process.pid)
        streams += open_streams(process, count)
        after = usage(process.pid)
        for stream in streams:
            stream.close()
    return (after.cpu_s - before.cpu_s) * 1e6 / count, (after.rss_bytes - before.rss_bytes) / 1024 / count


# -- what is held --------------------------------------------------------------------------------------------------


def held(count: int) -> list[tuple[str, float, float]]:
    """The objects that one idle stream adds, as type, number and bytes, the largest first."""
    with running(HELD, CORES[0]) as process:
        streams = open_streams(process, WARM)
        before = _ask(process)
        streams += open_streams(process, count)
        after = _ask(process)
        for stream in streams:
            stream.close()
    rows = []
    for name, (number, size) in after.items():
        earlier = before.get(name, (0, 0))
        rows.append((name, (number - earlier[0]) / count, (size - earlier[1]) / count))
    return sorted((row for row in rows if row[1] >= 0.5), key=lambda row: -row[2])


def _ask(process: Running) -> dict[str, tuple[int, int]]:
    with socket.create_connection(("127.0.0.1", process.port), timeout=20) as asking:
        asking.sendall(b"GET /held HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := asking.recv(65536):
            received += piece
    body = received[received.index(b"{") : received.rindex(b"}") + 1]
    told: dict[str, tuple[int, int]] = json.loads(body)
    return told


@click.command()
@click.option("--streams", default=2000, show_default=True, help="How many are opened.")
@click.option("--rounds", default=3, show_default=True, help="How often; the middle figure is shown.")
@click.option("--held", "is_held", is_flag=True, help="Show what one holds instead.")
def main(streams: int, rounds: int, is_held: bool) -> None:
    """Measure what a stream costs to open and to keep."""
    if is_held:
        for name, number, size in held(streams):
            click.echo(f"{size:8.0f} B {number:6.1f}  {name}")
        return
    runs: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for server in (RAW, DIRECT):
            runs.setdefault(server.name, []).append(cost(server, streams))
    middle = {name: [statistics.median(each) for each in zip(*found, strict=True)] for name, found in runs.items()}
    for name, (cpu_us, kib) in middle.items():
        click.echo(f"{name:10} {cpu_us:6.0f} µs ({cpu_us / middle[RAW.name][0]:.2f} of {RAW.name}) {kib:6.1f} KiB")


if __name__ == "__main__":
    main()
