"""What the README says is so."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving import ROOT, START_SECONDS, Server, free_port, serving
from trio_sse.rates import Rates
from trio_sse.settings import PREFIX, Settings

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


CURLS = [
    command
    for block in blocks("sh")
    for command in block.replace("|\n", "| ").splitlines()
    if "curl" in command and "$TOKEN" not in command
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(folder=tmp_path_factory.mktemp("readme")) as running:
        yield running


@pytest.mark.parametrize("command", CURLS)
def test_each_curl_works_without_configuration(server: Server, command: str) -> None:
    """Every command answers 2xx on a server that was only started."""
    assert "localhost:8000" in command
    command = command.replace("localhost:8000", f"127.0.0.1:{server.port}")
    command = command.replace("curl ", "curl -sS -D - -o /dev/null ")
    with subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, text=True, start_new_session=True) as shell:
        assert shell.stdout is not None
        try:
            heads = iter(shell.stdout.readline, "")
            final = next(head for head in heads if re.match(r"HTTP/1.1 [^1]", head))
        finally:  # a stream has no end
            os.killpg(shell.pid, signal.SIGKILL)
    assert final.split()[1] in ("200", "201")


def test_the_token_example_works(tmp_path: Path) -> None:
    """With the README's own options a token is signed, and a stream opened with it."""
    (line,) = re.findall(r'^TOKEN="\$\(trio-sse (.*)\)"$', README, re.MULTILINE)
    env = {"TRIO_SSE_JWT_KEY": "k" * 48, "TRIO_SSE_JOURNAL": "memory:"}
    with serving(folder=tmp_path, env=env) as server:
        command = [sys.executable, "-m", "trio_sse", *shlex.split(line)]
        token = subprocess.run(command, env=server.env, capture_output=True, text=True, check=True).stdout.strip()
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.stream("GET", f"{server.url}/events?topic=room/1", headers=headers) as response:
            assert response.status_code == 200
        assert httpx.get(f"{server.url}/events?topic=room/1").status_code == 401


def test_the_python_example_runs(tmp_path: Path) -> None:
    """The fifteen lines stream news."""
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    port = free_port()
    code = code.replace("app.run_task", f"app.run_task, '127.0.0.1', {port}")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                with httpx.stream("GET", f"http://127.0.0.1:{port}/news") as response:
                    line = next(line for line in response.iter_lines() if line.startswith("data: It is "))
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        assert line
    finally:
        process.kill()
        process.communicate()


def test_the_settings_table_is_complete() -> None:
    """Each setting has its line, with its default and its meaning, and there is no other."""
    rows = re.findall(rf"^\| `{PREFIX}(\w+)` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    expected = []
    for name, field in Settings.model_fields.items():
        default = field.default
        if default is None or default in ((), {}, Rates()):
            shown = "none"
        elif isinstance(default, Rates):
            shown = "as said"
        elif isinstance(default, bool):
            shown = "on" if default else "off"
        else:
            shown = f"`{default:_}`" if isinstance(default, int | float) else f"`{default}`"
        expected.append((name.upper(), shown, field.description))
    assert rows == expected


def test_every_file_it_names_exists() -> None:
    """Links and pictures lead somewhere."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_board_is_served(server: Server) -> None:
    """The page is there."""
    assert "<html" in httpx.get(server.url).text


def test_the_load_test_works(server: Server) -> None:
    """The README's own command, made smaller, delivers everything and says so."""
    (line,) = re.findall(r"^trio-sse (load .*)$", README, re.MULTILINE)
    line = line.replace("http://localhost:8000", server.url)
    command = [sys.executable, "-m", "trio_sse", *shlex.split(line), "--clients", "20", "--duration", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"lost +0", done.stdout), done.stdout
