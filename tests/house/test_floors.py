"""The floors of the house: a module imports only from lower floors or its own wing, and nothing imports in a circle.

Imports inside functions and under TYPE_CHECKING count like any other, since a hidden circle must still be understood.
"""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.house.sources import modules, tree

FLOORS = ("words", "contract", "backends and engine", "opening", "door", "outside")
WORDS = {"errors", "job", "events", "clock", "serde", "_exact", "_home", "_process", "retry", "signal", "checks"}
CONTRACT = {"storage.contract", "storage.connection"}
DOOR = {"queue", "reaper"}
OUTSIDE = {"cli", "dashboard", "integrations", "metrics", "otel", "testing"}


def wing(module: str) -> tuple[int, str]:
    """Return a module's floor and its wing of that floor. A new module is entered here first."""
    name = module.removeprefix("jobq").removeprefix(".")
    first = name.partition(".")[0]
    if name in WORDS:
        return 0, "words"
    if name in CONTRACT:
        return 1, "contract"
    if name == "storage":
        return 3, "opening"  # `open_storage` knows every backend by name; no backend and no engine may know it.
    if first == "storage":
        return 2, "backends"
    if first.startswith("_") and first != "__main__":
        return 2, "engine"
    if name in DOOR:
        return 4, "door"
    if first in OUTSIDE or name in ("", "__main__"):
        return 5, "outside"
    raise AssertionError(f"{module} stands on no floor: enter it in tests/house/test_floors.py")


def imports_of(module: str) -> set[str]:
    """Return the modules of jobq that a module names in any import, wherever it stands."""
    known = modules()
    named = {name for node in ast.walk(tree(known[module])) for name in _named(module, node)}
    return {found for name in named if (found := _nearest(name, known)) and found != module}


def _named(module: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            parts = module.split(".")
            is_package = modules()[module].name == "__init__.py"
            kept = parts[: len(parts) - node.level + is_package]
            source = ".".join([*kept, *([source] if source else [])])
        yield from (f"{source}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        # A module named in a text is an import as well.
        called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value)


def _nearest(name: str, known: Container[str]) -> str | None:
    """Return the module that holds a dotted name: itself, or what it is an attribute of."""
    while name.partition(".")[0] == "jobq":
        if name in known:
            return name
        name = name.rpartition(".")[0]
    return None


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_from_lower_floors_or_its_own_wing(module: str) -> None:
    """Whoever reads a floor needs only the floors below; the two wings can be exchanged without each other."""
    floor, own = wing(module)

    wrong = {other for other in imports_of(module) if wing(other)[0] >= floor and wing(other)[1] != own}

    assert not wrong, f"{module} ({own}) may not import {', '.join(sorted(f'{o} ({wing(o)[1]})' for o in wrong))}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """A circle has no place to begin to read."""
    graph = {module: imports_of(module) for module in modules()}

    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("a circle of imports: " + " → ".join(error.args[1]))


@pytest.mark.parametrize("module", [name for name in modules() if name.startswith("jobq.cli")])
def test_the_command_uses_only_the_public_door(module: str) -> None:
    """What is optional needs nothing that another user of the library could not have."""
    private = {other for other in imports_of(module) if wing(other)[1] == "engine"}

    assert not private, f"{module} imports {', '.join(sorted(private))}"
