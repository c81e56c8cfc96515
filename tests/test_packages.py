"""``.ci/packages`` installs Debian packages, and starts none of their services."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from .conftest import eventually
from .serving import ROOT

THEIRS = "#!/bin/sh\nexit 104\n"
"""A policy that the machine had before: everything may start."""


class Machine:
    """A machine of its own: Debian's commands are fakes, and the policy is not the real one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, folder / "bin"
        self.policy, self.seen = folder / "policy-rc.d", folder / "seen"
        self.commands.mkdir()
        self.command("dpkg-query", "exit 1")
        self.command("id", "echo 0")
        self.command("apt-get", f'[ "$1" = update ] || {{ "{self.policy}"; echo $? >"{self.seen}"; }}')
        script = (ROOT / ".ci" / "packages").read_text()
        assert "policy=/usr/sbin/policy-rc.d" in script
        self.script = folder / "packages"
        self.script.write_text(script.replace("policy=/usr/sbin/policy-rc.d", f"policy={self.policy}"))

    def command(self, name: str, text: str) -> None:
        path = self.commands / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def begin(self) -> subprocess.Popen[bytes]:
        path = f"{self.commands}:{os.environ['PATH']}"
        return subprocess.Popen(["sh", str(self.script), "nginx-light"], env={"PATH": path}, start_new_session=True)

    def has_policy(self, text: str | None) -> bool:
        """Whether it has this policy, or none, and nothing beside it."""
        there = {path.name: path.read_text() for path in self.folder.glob("policy-rc.d*")}
        return there == ({} if text is None else {"policy-rc.d": text})


@pytest.fixture(params=[None, THEIRS], ids=["no policy before", "a policy of theirs"])
def before(request: pytest.FixtureRequest) -> str | None:
    policy: str | None = request.param
    return policy


@pytest.fixture
def machine(tmp_path: Path, before: str | None) -> Machine:
    machine = Machine(tmp_path)
    if before is not None:
        machine.policy.write_text(before)
        machine.policy.chmod(0o755)
    return machine


def test_no_service_starts_while_it_installs(machine: Machine, before: str | None) -> None:
    """Debian's packages ask, and are told no; afterwards the machine decides as it did."""
    assert machine.begin().wait(30) == 0
    assert machine.seen.read_text() == "101\n"
    assert machine.has_policy(before)


def test_an_installation_that_fails_changes_nothing(machine: Machine, before: str | None) -> None:
    """There may be no network: it says what is missing, and the suite goes on."""
    machine.command("apt-get", "exit 100")
    assert machine.begin().wait(30) == 0
    assert machine.has_policy(before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_installation_is_put_right(machine: Machine, before: str | None, number: signal.Signals) -> None:
    """At once, or after a power cut by the next one."""
    machine.command("apt-get", f'echo >"{machine.seen}"; exec sleep 600')
    script = machine.begin()
    assert eventually(machine.seen.exists)  # a shell that has yet to begin a command begins it, and waits for it
    assert "trio_sse" in machine.policy.read_text()
    os.killpg(script.pid, number)
    script.wait(30)
    if number is signal.SIGKILL:
        machine.command("apt-get", "exit 0")
        assert machine.begin().wait(30) == 0
    assert machine.has_policy(before)
