"""The house: imports only go down, and each thing is done in one room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import trio_sse

ROOT = Path(trio_sse.__file__).parent

# From the ground up: a room may import what has a lower number than its own.
FLOORS = {
    "errors": 0, "event": 1, "wire": 2, "record": 3,
    "topic": 1, "selector_index": 2, "auth": 3, "retention": 2, "rates": 2, "settings": 4, "latest": 4,
    "seldom": 10, "background": 10, "client": 10, "turns": 10, "journal": 11, "broadcast": 12, "ticker": 13,
    "expiry": 13,
    "subscription": 14, "hub": 15,
    "server": 20, "foreign": 21, "stream": 22, "web": 23,
    "load": 29, "app": 30, "cli": 30, "testing": 30, "": 31, "__main__": 32,
}  # fmt: skip
GROUND = {name for name, number in FLOORS.items() if number < 10}
MIDDLE = {name for name, number in FLOORS.items() if 10 <= number < 20}
# Two chains stand side by side on the ground, and neither leans on the other.
WALLS = [{"event", "wire", "record"}, {"topic", "selector_index", "auth", "retention", "settings"}]

MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
EVERY = pytest.mark.parametrize("module", MODULES)


def source(module: str) -> str:
    return (ROOT / module).read_text()


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(source(module))


def dotted(module: str) -> list[str]:
    """A module's name within the package, in parts: ``web/ops.py`` is web, ops."""
    return [part for part in module.removesuffix(".py").split("/") if part != "__init__"]


def room(module: str) -> str:
    """The room a module is in: the first part of its name."""
    return (dotted(module) or [""])[0]


def running(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all in it, without what only the type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield from running(child)


@cache
def imports(module: str) -> frozenset[str]:
    """Every module this one imports, in full; also inside a function."""
    package = ["trio_sse", *dotted(module)]
    if not module.endswith("__init__.py"):
        package.pop()
    found: set[str] = set()
    for node in running(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            found.update(".".join([*base, alias.name]) for alias in node.names)
    return frozenset(found)


def rooms_imported(module: str) -> set[str]:
    """The other rooms of the package that this one imports."""
    parts = [name.split(".") for name in imports(module) if name.split(".")[0] == "trio_sse"]
    names = {part[1] if len(part) > 1 and part[1] in FLOORS else "" for part in parts}
    return names - {room(module)}


def packages_imported(module: str) -> set[str]:
    """The top-level packages that a module imports."""
    return {name.split(".")[0] for name in imports(module)}


def rooms_with(*needles: str) -> set[str]:
    """The modules whose code holds any of these texts, comments and documentation apart."""
    found = set()
    for module in MODULES:
        stripped = ast.unparse(without_docstrings(source(module)))
        if any(needle in stripped for needle in needles):
            found.add(module)
    return found


def without_docstrings(text: str) -> ast.Module:
    whole = ast.parse(text)
    for node in ast.walk(whole):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for place, statement in enumerate(body):
                if (
                    isinstance(statement, ast.Expr)
                    and isinstance(statement.value, ast.Constant)
                    and isinstance(statement.value.value, str)
                ):
                    body[place] = ast.Pass()
    return whole


# -- the test itself -------------------------------------------------------------------------------------------------


def test_the_whole_house_is_seen() -> None:
    """Every room is on a floor, so that a new one is given its place here; and the parser finds imports."""
    assert {room(module) for module in MODULES} <= set(FLOORS)
    assert rooms_imported("wire.py") == {"errors", "event"}
    assert "trio_sse.web.create_app" in imports("app.py")
    assert {"server", "hub"} <= rooms_imported("web/__init__.py")


# -- imports only go down ----------------------------------------------------------------------------------------------


@EVERY
def test_imports_go_down(module: str) -> None:
    """A room imports only rooms below it."""
    assert {name for name in rooms_imported(module) if FLOORS[name] >= FLOORS[room(module)]} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) in GROUND])
def test_the_ground_floor_stands_alone(module: str) -> None:
    """Plain Python: no Trio, no server, no framework, no I/O, no clock, no environment; nothing of other floors."""
    forbidden = {"trio", "hypercorn", "quart", "quart_trio", "werkzeug", "os", "time", "socket", "datetime"}
    assert packages_imported(module) & forbidden == set()
    assert rooms_imported(module) <= GROUND


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) in GROUND])
def test_the_two_sides_of_the_ground_floor_are_apart(module: str) -> None:
    """What an event is and who may see it know nothing of each other."""
    for wall, other in (WALLS, WALLS[::-1]):
        if room(module) in wall:
            assert rooms_imported(module) & other == set()


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) in MIDDLE])
def test_the_middle_floor_knows_no_http(module: str) -> None:
    """Trio, and neither a server nor a framework."""
    assert packages_imported(module) & {"hypercorn", "quart", "quart_trio", "quart_cors", "werkzeug"} == set()


def test_client_and_load_never_see_the_hub() -> None:
    """They are for servers elsewhere."""
    for module in MODULES:
        if room(module) in ("client", "load"):
            assert rooms_imported(module) <= GROUND


@EVERY
def test_nothing_imports_the_testing_room(module: str) -> None:
    """It is for our users' tests."""
    assert "testing" not in rooms_imported(module)


def test_inside_the_journal_the_contract_is_below() -> None:
    """Each journal knows the contract, and the contract knows none of them."""
    siblings = {name for name in imports("journal/contract.py") if name.startswith("trio_sse.journal")}
    assert siblings == set()


# -- which room am I? --------------------------------------------------------------------------------------------------


def test_one_room_knows_jwt() -> None:
    """Tokens are read and written in auth."""
    assert {module for module in MODULES if "jwt" in packages_imported(module)} == {"auth.py"}
    assert rooms_with("jwt.decode") == {"auth.py"}


def test_one_room_clones() -> None:
    """The send end of a channel, in broadcast; the receive end is cloned nowhere."""
    assert rooms_with(".clone()") == {"broadcast.py"}


def test_one_room_leaves_for_a_thread() -> None:
    """Only the SQLite journal blocks."""
    assert rooms_with("to_thread") == {"journal/sqlite.py"}


def test_one_room_knows_hypercorn() -> None:
    """Its insides are patched in one place."""
    assert {room(module) for module in MODULES if "hypercorn" in packages_imported(module)} == {"server"}


def test_no_room_reads_the_environment() -> None:
    """The settings do, and what they are is a class and not a dictionary."""
    assert rooms_with("environ.", "environ[", "environ)", "import environ", "getenv") == set()


def test_two_rooms_take_the_limit_off_a_response() -> None:
    """The stream of events, and the stream of acknowledgements."""
    assert rooms_with(".timeout = None") == {"stream.py", "web/publish.py"}


def test_only_the_command_line_prints() -> None:
    """All others log, or say it in a response."""
    printing = {
        module
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing <= {"cli.py"}


def test_one_room_writes_the_format() -> None:
    """No other spells a field of the event stream."""
    fields = ("data", "event", "id", "retry")
    writing = {
        module
        for module in MODULES
        for node in ast.walk(without_docstrings(source(module)))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str | bytes)
        and any(begins(node.value, f"{field}: ") for field in fields)
    }
    assert writing == {"wire.py"}


def begins(value: str | bytes, text: str) -> bool:
    return value.startswith(text) if isinstance(value, str) else value.startswith(text.encode())


@EVERY
def test_a_room_is_named_for_what_it_does(module: str) -> None:
    """Never for being shared, and never like a module of Python's own or of a dependency."""
    name = (dotted(module) or ["trio_sse"])[-1]
    assert name not in {"utils", "util", "helpers", "common", "base", "types", "misc", "trio", "quart", "jwt"}


@EVERY
def test_a_room_can_be_read_in_one_sitting(module: str) -> None:
    """At most 400 lines."""
    assert len(source(module).splitlines()) <= 400


@EVERY
def test_a_room_says_what_it_is_for(module: str) -> None:
    """In one line, to a person."""
    documentation = ast.get_docstring(tree(module))
    assert documentation
    assert documentation.splitlines()[0].strip()
