"""Who is measured: trio_sse as an operator starts it, and the peers that can be had on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.servers import ROOT, Server

PEERS = ROOT / "benchmarks" / "peers"
GO_SERVER = ROOT / "build" / "benchmarks" / "go-server"
SYSTEM_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/go/bin"
BUILD_S = 120
PACKAGES = ("trio-sse", "trio", "hypercorn", "h11", "quart", "quart-trio", "starlette", "sse-starlette", "uvicorn")


# -- how the others are started ------------------------------------------------------------------------------------


def _uvicorn(app: str, port: int, folder: Path) -> Sequence[str]:
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--loop", "uvloop", "--http", "httptools"]
    return [*command, "--no-access-log", "--log-level", "warning"]


def _missing_uvicorn() -> str:
    modules = ("sse_starlette", "uvicorn", "uvloop", "httptools")
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"no {', '.join(absent)}: pip install 'trio-sse[bench]'" if absent else ""


def _nginx(app: str, port: int, folder: Path) -> Sequence[str]:
    text = (PEERS / app).read_text().replace("@PORT@", str(port)).replace("@FOLDER@", str(folder))
    config = folder / app
    config.write_text(text)
    return [_found("nginx"), "-e", "stderr", "-c", str(config)]


def _missing_nginx() -> str:
    nginx = _found("nginx")
    if not nginx:
        return "no nginx: apt-get install nginx libnginx-mod-nchan"
    prefix = re.search(r"--modules-path=(\S+)", _output([nginx, "-V"]))
    if prefix is None or not Path(prefix[1], "ngx_nchan_module.so").exists():
        return "nginx has no Nchan: apt-get install libnginx-mod-nchan"
    return ""


def _go(app: str, port: int, folder: Path) -> Sequence[str]:
    return [str(GO_SERVER), f"-address=127.0.0.1:{port}", *app.split()]


def _missing_go() -> str:
    go = _found("go")
    if not go:
        return "no Go: apt-get install golang-go"
    command = [go, "build", "-o", str(GO_SERVER), "."]
    built = subprocess.run(command, cwd=PEERS / "go", capture_output=True, text=True, timeout=BUILD_S, check=False)
    return f"the Go server could not be built: {built.stderr}" if built.returncode else ""


def _found(program: str) -> str:
    return shutil.which(program, path=SYSTEM_PATH) or ""


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S, check=False)
    return done.stdout + done.stderr


# -- who they are --------------------------------------------------------------------------------------------------


def _hub(name: str, journal: str, app: str = "trio_sse.app:app") -> Server:
    env = {"TRIO_SSE_JOURNAL": journal}
    return Server(
        name, app, "/events?topic=bench", "/topics/bench", "/readyz", True, env,
        resumes=True,
    )  # fmt: skip


DIRECT = replace(_hub("trio_sse", "memory:"), streams_publishing=True)
FALLBACK = _hub("trio_sse (ASGI)", "memory:", "benchmarks.peers.fallback:app")
SQLITE = _hub("trio_sse (SQLite)", "sqlite:bench.db")
OBVIOUS = Server("obvious way", "benchmarks.peers.obvious:app", "/events", "/publish", "/", False)
RAW = Server("raw ASGI", "benchmarks.peers.raw_asgi:app", "/events", "/publish", "/", False)
STARLETTE = Server(
    "sse-starlette", "benchmarks.peers.starlette_app:app", "/events", "/publish", "/", False,
    command=_uvicorn, missing=_missing_uvicorn,
)  # fmt: skip
# Its clients come back without an ID: Debian's Nchan 1.3.6 aborts (spool.c:479) when it is given those of an earlier
# life, and its memory is gone with that anyway.
NCHAN = Server(
    "Nchan", "nchan.conf", "/events", "/publish", "/ready", False,
    command=_nginx, missing=_missing_nginx,
)  # fmt: skip
# More threads than cores would only cost: it is pinned to one.
GO = Server(
    "Go net/http", "", "/events", "/publish", "/", False, {"GOMAXPROCS": "1"},
    command=_go, missing=_missing_go,
)  # fmt: skip
GO_COALESCING = replace(GO, name="Go, coalescing", app="-coalesce")

SERVERS: Mapping[str, Server] = {
    "direct": DIRECT,
    "asgi": FALLBACK,
    "sqlite": SQLITE,
    "nchan": NCHAN,
    "go": GO,
    "go-coalescing": GO_COALESCING,
    "starlette": STARLETTE,
    "raw": RAW,
    "obvious": OBVIOUS,
}
"""By the name that chooses them on the command line; those of our own first, then as they are expected to do."""


def versions() -> dict[str, str]:
    """Of everything that takes part and is there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    programs = {
        "nginx": (["-v"], r"nginx/(\S+)"),
        "go": (["version"], r"go([\d.]+)"),
    }
    for name, (arguments, pattern) in programs.items():
        match = re.search(pattern, _output([_found(name), *arguments])) if _found(name) else None
        if match:
            found[name] = match[1]
    nchan = Path("/usr/share/doc/libnginx-mod-nchan")
    if nchan.exists() and shutil.which("dpkg-query"):
        found["nchan"] = _output(["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"]).strip()
    return found
