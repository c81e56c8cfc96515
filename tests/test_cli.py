"""The command line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jwt
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.serving import ROOT, free_port
from trio_sse.cli import main

KEY = "k" * 40


def invoke(*arguments: str, **env: str) -> tuple[int, str]:
    result = CliRunner(env={f"TRIO_SSE_{name}": value for name, value in env.items()}).invoke(main, arguments)
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default journal is a file in the current folder."""
    monkeypatch.chdir(tmp_path)


class Process:
    """`trio-sse serve` as a user runs it."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "trio_sse", "serve", "--bind", self.url.removeprefix("http://")]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRIO_SSE_")}
        variables = {f"TRIO_SSE_{name}": value for name, value in env.items()}
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, "PYTHONPATH": str(ROOT), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("the server did not come up")


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    running = Process(tmp_path, DRAIN_S="30", WRITE_TIMEOUT_S="30")
    running.wait_ready()
    yield running
    running.process.kill()
    running.process.communicate()


def test_serve_serves_until_a_signal(process: Process) -> None:
    """It publishes and says goodbye, in one process, and its status is 0."""
    assert httpx.post(f"{process.url}/topics/lobby", content="hello").status_code == 201
    with httpx.stream("GET", f"{process.url}/events?topic=lobby&last_event_id=earliest") as response:
        lines = response.iter_lines()
        assert "data: hello" in (next(lines) for _ in range(10))
        process.process.send_signal(signal.SIGINT)
        assert "event: trio-sse.goodbye" in list(lines)
    assert process.process.wait(10) == 0


def test_a_second_signal_ends_at_once(process: Process) -> None:
    """Who is in a hurry need not wait for a client that does not read."""
    with httpx.stream("GET", f"{process.url}/events?topic=flood"):
        for _ in range(20):
            httpx.post(f"{process.url}/topics/flood", content="x" * 1_000_000)
        process.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.process.wait(1)
        process.process.terminate()
        assert process.process.wait(5) == 1


def test_a_port_in_use_is_one_line(process: Process, tmp_path: Path) -> None:
    """The second server says which address it cannot have."""
    folder = tmp_path / "second"
    folder.mkdir()
    second = Process(folder)
    second.process.kill()
    second.process.communicate()
    command = [sys.executable, "-m", "trio_sse", "serve", "--bind", process.url.removeprefix("http://")]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.fullmatch(
        r"Error: cannot listen on 127.0.0.1:\d+: Address already in use; choose another with --bind",
        done.stderr.splitlines()[-1],
    )
    assert "Traceback" not in done.stderr


def test_a_token_is_signed_with_the_hubs_key() -> None:
    """The claims are what the options said."""
    status, output = invoke("token", "--sub", "ada", "--publish", "room/*", "--ttl", "60", JWT_KEY=KEY)
    assert status == 0
    claims = jwt.decode(output.strip(), KEY, algorithms=["HS256"])
    assert claims["sub"] == "ada"
    assert claims["sse"] == {"publish": ["room/*"], "subscribe": []}
    assert claims["exp"] - claims["iat"] == 60


def test_a_token_in_development_mode_uses_the_journals_key(process: Process, tmp_path: Path) -> None:
    """The key that the server made is found in its journal, while it runs."""
    status, output = invoke("token", "--sub", "ada")
    assert status == 0
    headers = {"Authorization": f"Bearer {output.strip()}"}
    with httpx.stream("GET", f"{process.url}/events", headers=headers) as response:
        assert response.status_code == 200


def test_without_any_key_there_is_no_token() -> None:
    """The line says what to do."""
    status, output = invoke("token", "--sub", "ada")
    assert status == 1
    assert "set TRIO_SSE_JWT_KEY, or start the server once" in output


def test_a_wrong_selector_is_said() -> None:
    """What the hub would refuse is not signed."""
    status, output = invoke("token", "--publish", "user/*", JWT_KEY=KEY)
    assert status == 1
    assert "wildcards never reach user/" in output


def test_a_private_key_signs_where_the_hub_has_the_public_one(tmp_path: Path) -> None:
    """With a PEM key the token is signed by a file that the server need not have."""
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    file = tmp_path / "private.pem"
    file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    env = {"JWT_KEY": public, "JWT_ALGORITHM": "EdDSA"}
    status, output = invoke("token", "--sub", "ada", "--key-file", str(file), **env)
    assert status == 0, output
    assert jwt.decode(output.strip(), public, algorithms=["EdDSA"])["sub"] == "ada"
    status, output = invoke("token", "--sub", "ada", **env)
    assert status == 1
    assert "private key" in output


def test_a_wrong_setting_is_one_line() -> None:
    """The variable is named."""
    status, output = invoke("token", HEARTBEAT_S="never")
    assert status == 1
    assert "TRIO_SSE_HEARTBEAT_S" in output
