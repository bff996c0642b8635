"""Words and habits that do not occur here, and state that no module keeps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.sources import FOLDERS, ROOT, comments, modules, python_files, shown, tree

EMPTY_NAMES = {"utils", "common", "helpers", "types", "constants", "base", "misc"}
# Written in halves, so that this file does not hold what it looks for.
PROMISES = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
TEXTS = ("*.py", "*.sql", "*.md", "*.toml", "Makefile")
ALLOWED_SLEEPS: dict[str, str] = {
    "tests/faults/program.py": "A handler of another process that is to be killed while it runs.",
    "tests/faults/forking.py": "A forked child outlives some leases, without a loop or a storage to wait on.",
    "tests/engine/test_waiters.py": "In virtual time, which passes at once.",
    "tests/servers/connection.py": "A fault proxy holds bytes back for as long as a test says.",
    "tests/servers/waiting.py": "The one place that polls what servers do by themselves.",
    "tests/faults/test_processes.py": "Facts are read from a file that other processes write; a frozen one stays so.",
}
"""Files of the tests that may sleep, each with the reason why no event can be waited for there."""
MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict"}
MUTABLE_CALLS |= {"WeakKeyDictionary", "WeakValueDictionary", "WeakSet"}
MUTATORS = {"append", "appendleft", "extend", "insert", "add", "update", "setdefault", "sort", "reverse"}
MUTATORS |= {"pop", "popitem", "popleft", "remove", "discard", "clear"}


def _texts() -> list[Path]:
    found = [path for folder in (*FOLDERS, "docs") for kind in TEXTS for path in (ROOT / folder).rglob(kind)]
    return sorted({*found, *(path for kind in TEXTS for path in ROOT.glob(kind))})


@pytest.mark.parametrize("path", _texts(), ids=shown)
def test_no_promise_stands_in_place_of_work(path: Path) -> None:
    """What is left to do is left out, or done."""
    assert not PROMISES.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", python_files(*FOLDERS), ids=shown)
def test_a_module_is_named_after_what_it_holds(path: Path) -> None:
    """A name that fits everything attracts everything."""
    assert path.stem.strip("_") not in EMPTY_NAMES


@pytest.mark.parametrize("path", python_files("tests"), ids=shown)
def test_a_test_does_not_sleep(path: Path) -> None:
    """A sleep is too long on every machine but the one where it is too short; sleep(0) only lets others go first."""
    sleeps = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("time.sleep", "asyncio.sleep", "sleep")
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
    ]

    assert not sleeps or shown(path) in ALLOWED_SLEEPS, f"{shown(path)} sleeps in lines {sleeps}"


def test_every_allowed_sleep_is_still_needed() -> None:
    """A permission that nobody uses hides the next offence."""
    assert not [name for name in ALLOWED_SLEEPS if "sleep(" not in (ROOT / name).read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", python_files(*FOLDERS), ids=shown)
def test_no_error_is_swallowed_whole(path: Path) -> None:
    """An error that nobody expected must be seen by somebody."""
    swallowed = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and all(isinstance(step, ast.Pass | ast.Continue) or _is_ellipsis(step) for step in node.body)
    ]

    assert not swallowed


@pytest.mark.parametrize("path", python_files("src"), ids=shown)
def test_no_type_error_is_silenced_in_the_sources(path: Path) -> None:
    """Where the checker is wrong, the code can be said more plainly."""
    assert not [line for line, text in comments(path) if re.search(r"type:\s*ignore|mypy:|pyright:", text)]


@pytest.mark.parametrize("path", python_files("src"), ids=shown)
def test_the_sequence_of_random_is_left_to_the_program(path: Path) -> None:
    """Its seed is the user's: drawing from it, in threads too, changes their sequence, and makes our pauses theirs."""
    nodes = list(ast.walk(tree(path)))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    drawn = {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        if node.module == "random"
        for alias in node.names
    }
    if "random" in imported:
        drawn |= {
            node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random"
        }

    assert drawn <= {"Random", "SystemRandom"}


@pytest.mark.parametrize("module", modules())
def test_a_module_keeps_no_state(module: str) -> None:
    """State of a module is shared by every queue of the process, and by every test."""
    top = tree(modules()[module])
    mutable = {name for node in top.body for name in _mutable_names(node)}

    rebound = [name for node in ast.walk(top) if isinstance(node, ast.Global) for name in node.names]
    changed = {name for path in _modules_that_see(module) for name in _changed_names(tree(path))} & mutable

    assert not rebound, f"{module} rebinds {rebound}"
    assert not changed, f"{module} keeps state in {sorted(changed)}"


def _is_ellipsis(step: ast.stmt) -> bool:
    return isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant) and step.value.value is ...


def _modules_that_see(module: str) -> Iterator[Path]:
    """Yield the module itself and those that import names from it."""
    for path in modules().values():
        imported = any(isinstance(node, ast.ImportFrom) and node.module == module for node in ast.walk(tree(path)))
        if imported or path == modules()[module]:
            yield path


def _mutable_names(node: ast.stmt) -> Iterator[str]:
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return
    displays = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    called = ast.unparse(node.value.func).rpartition(".")[2] if isinstance(node.value, ast.Call) else ""
    if isinstance(node.value, displays) or called in MUTABLE_CALLS:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _changed_names(top: ast.Module) -> Iterator[str]:
    """Yield the names that are changed in place: by a method, an item, or an augmented assignment."""
    for node in ast.walk(top):
        changed: ast.expr | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            changed = node.func.value
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            changed = node.value
        elif isinstance(node, ast.AugAssign):
            changed = node.target
        if isinstance(changed, ast.Name):
            yield changed.id
