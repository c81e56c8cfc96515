"""The message board: a few small files, read once, served to anybody under a strict policy."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quart import Response, request

if TYPE_CHECKING:
    from . import TrioSSE

INDEX = "index.html"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def folder() -> Path:
    """Where the page's files are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    return next(path for path in (package / "public", package.parent / "public") if path.is_dir())


def add_routes(app: TrioSSE) -> None:
    """Serve ``/`` and each of the page's files."""
    for file in sorted(folder().iterdir()):
        if file.is_file() and not file.name.startswith("."):
            path = "/" if file.name == INDEX else f"/{file.name}"
            app.add_url_rule(path, f"page {file.name}", _view(file), methods=["GET"])


def _view(file: Path) -> Callable[[], Coroutine[Any, Any, Response]]:
    content = file.read_bytes()
    mimetype = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    tag = sha256(content).hexdigest()[:16]

    async def view() -> Response:
        response = Response(content, mimetype=mimetype)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.set_etag(tag)
        await response.make_conditional(request)
        return response

    return view
