"""The tree of errors: what its docstring draws is what there is."""

from __future__ import annotations

import inspect
import re
from http import HTTPStatus

import pytest

from trio_sse import errors
from trio_sse.errors import InvalidInput, TrioSSEError

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, TrioSSEError)]


def drawn() -> dict[str, tuple[str | None, int]]:
    """The parent and the status of every error in the docstring's drawing."""
    found: dict[str, tuple[str | None, int]] = {}
    path: list[str] = []
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        match = re.match(r"^([ │├└─]+)([A-Z]\w+) +(\d{3})\b", line)
        if match:
            depth = len(match[1]) // 4 - 1
            path[depth:] = [match[2]]
            found[match[2]] = (path[depth - 1] if depth else None, int(match[3]))
    return found


def test_the_drawing_names_every_error() -> None:
    """No error is missing from the drawing, and none is drawn that does not exist."""
    assert sorted(drawn()) == sorted(kind.__name__ for kind in ALL)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_drawing_is_right(kind: type[TrioSSEError]) -> None:
    """An error stands under its parent, with its status."""
    parent = None if kind is TrioSSEError else kind.__bases__[0].__name__
    assert drawn()[kind.__name__] == (parent, kind.status_hint)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_hint_is_a_status(kind: type[TrioSSEError]) -> None:
    """The hint is a status of HTTP that says that something went wrong."""
    assert HTTPStatus(kind.status_hint) >= 400


def test_invalid_input_is_a_value_error() -> None:
    """Who does not know our tree catches what was given wrong as ValueError."""
    assert issubclass(InvalidInput, ValueError)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_message_is_the_text(kind: type[TrioSSEError]) -> None:
    """What str() says is the sentence that was given, and nothing more."""
    assert str(kind("a sentence")) == "a sentence"
