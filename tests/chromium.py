"""Debian's Chromium, for the tests that need a real browser."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
in_chromium = pytest.mark.skipif(
    not os.access(CHROMIUM, os.X_OK), reason="needs Debian's chromium: apt-get install chromium"
)


@contextlib.contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A running one for the length of a `with` block."""
    args = [*FLAGS, *flags]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=args) as browser:
        yield browser
