"""The public names: few, sorted, documented, and exactly those that ``jobq.__all__`` tells."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import types
from functools import cache
from itertools import pairwise

import pytest

import jobq
from tests.house.sources import modules, tree

MOST_NAMES = 60
UNOFFERED = {"annotations", "Any", "TYPE_CHECKING"}
"""What the package itself needs."""
LATE = {"RedisStorage"}
"""What is imported when it is first asked for, since it needs an extra; a star leaves it out."""
EXPORTED = tuple(getattr(jobq, "__all__", ()))


def test_all_is_sorted_and_without_repeats() -> None:
    """A name has one place where it is looked for."""
    assert list(EXPORTED) == sorted(set(EXPORTED))


def test_the_public_names_are_few() -> None:
    """Each is a promise for years."""
    assert 0 < len(EXPORTED) <= MOST_NAMES


def test_all_tells_exactly_what_the_package_offers() -> None:
    """What can be imported by accident is soon relied upon."""
    offered = {
        name
        for name, value in vars(jobq).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in UNOFFERED
    }

    assert offered - LATE == {name for name in EXPORTED if not name.startswith("_")}


def test_all_public_names_can_be_imported_without_an_extra() -> None:
    """Who needs no server need not have its package, also where a star is written."""
    program = "import sys; sys.modules['redis'] = None\nfrom jobq import *\nprint(Queue.__name__)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (ended.stdout, ended.stderr) == ("Queue\n", "")


@pytest.mark.parametrize("name", [*sorted(LATE), *(name for name in EXPORTED if not name.startswith("_"))])
def test_a_public_name_is_documented(name: str) -> None:
    """A signature cannot tell what a thing is for."""
    value = getattr(jobq, name)

    if inspect.isclass(value) or inspect.isroutine(value):
        text = value.__doc__ if inspect.isroutine(value) else vars(value).get("__doc__")
    else:
        text = _documented_names().get(name)

    assert text, f"jobq.{name} has no docstring of its own"
    assert text.strip()


@cache
def _documented_names() -> dict[str, str]:
    """Return the texts that stand below assignments at the top level of modules."""
    texts: dict[str, str] = {}
    for path in modules().values():
        body = tree(path).body
        for node, after in pairwise(body):
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                texts.update((target.id, str(after.value.value)) for target in targets if isinstance(target, ast.Name))
    return texts
