"""``trio-sse serve`` with parts that can be broken: the command on the port it is given."""

from __future__ import annotations

import sys
from typing import Any

from tests import breaking
from trio_sse import cli

command: Any = cli
command.create_app = lambda _: breaking.app
command.main(["serve", "--bind", f"127.0.0.1:{sys.argv[1]}"])
