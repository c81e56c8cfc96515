"""The hub as configured by the environment: ``hypercorn trio_sse.app:app --worker-class trio``."""

from __future__ import annotations

from .settings import load_settings
from .web import create_app

app = create_app(load_settings())
