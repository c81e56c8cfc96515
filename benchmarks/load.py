"""The load test as a script: the same as ``trio-sse load``.

Run it as ``python benchmarks/load.py URL``, from anywhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trio_sse.load.command import load

if __name__ == "__main__":
    load()
