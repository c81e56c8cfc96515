"""What is installed is what was tested: the wheel in an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.serving import ROOT, Server


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_page_and_the_types(wheel: Path) -> None:
    """The board's files and the marker of typed packages travel inside."""
    names = zipfile.ZipFile(wheel).namelist()
    page = {f"trio_sse/public/{file.name}" for file in (ROOT / "public").iterdir() if file.is_file()}
    assert page | {"trio_sse/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "examples", "public"))]


def test_the_wheel_serves_the_board_from_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed where nothing else of the project is, it serves the page and its events."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    # The dependencies are those of the tests (a line of a .pth file follows no other .pth file, so this package's
    # own editable install is not among them); the package itself comes from the wheel alone.
    target = next(environment.glob("lib/python*/site-packages"))
    (target / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--quiet"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, capture_output=True)
    where = subprocess.run(
        [python, "-c", "import trio_sse; print(trio_sse.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(target))
    server = Server(folder=tmp_path, env={"TRIO_SSE_JOURNAL": "memory:"})
    server.command[0] = str(python)
    del server.env["PYTHONPATH"]
    server.start()
    try:
        page = httpx.get(server.url)
        assert page.status_code == 200
        assert "Content-Security-Policy" in page.headers
        for file in (ROOT / "public").iterdir():
            if file.is_file() and file.name != "index.html":
                assert httpx.get(f"{server.url}/{file.name}").content == file.read_bytes()
        assert httpx.post(f"{server.url}/topics/lobby", content="hello").status_code == 201
    finally:
        server.kill()
