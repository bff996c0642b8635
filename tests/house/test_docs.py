"""The documents keep their word: examples run, links lead somewhere, commands exist, versions agree."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.house.sources import ROOT, modules, shown

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)``` *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)[^)]*\)")
RUNNABLE = "runnable"
"""A block that opens with ```python runnable is a whole program, and is run."""


class Block(NamedTuple):
    """A fenced piece of Python in a document."""

    path: Path
    line: int
    code: str
    runnable: bool

    def __str__(self) -> str:
        return f"{shown(self.path)}:{self.line}"


def _python_blocks() -> Iterator[Block]:
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            words = match["info"].split()
            if words and words[0] in ("python", "py"):
                code = re.sub(rf"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
                yield Block(path, text.count("\n", 0, match.start()) + 1, code, RUNNABLE in words)


BLOCKS = list(_python_blocks())


@pytest.mark.parametrize("module", [name for name in modules() if not name.endswith("__main__")])
def test_the_examples_of_a_module_are_true(module: str) -> None:
    """An example is the part of a docstring that is read first."""
    answer = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)

    assert answer.failed == 0


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_piece_of_python_compiles(block: Block) -> None:
    """Whoever copies it meets our mistakes first; a top-level await stands for one inside a coroutine."""
    compile(block.code, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.runnable], ids=str)
def test_a_runnable_piece_of_python_runs(block: Block, tmp_path: Path) -> None:
    """It is run as a reader would: saved to a file in an empty folder."""
    program = tmp_path / "program.py"
    program.write_text(block.code, encoding="utf-8")

    run = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=50)

    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=shown)
def test_links_within_the_project_lead_somewhere(path: Path) -> None:
    """A link is a promise that there is more to read."""
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = {match["target"] for match in LINK.finditer(prose)}

    dead = [target for target in targets if not re.match(r"[a-z]+:", target) and not _leads(path, target)]

    assert not dead


@pytest.mark.parametrize("path", DOCUMENTS, ids=shown)
def test_every_make_target_that_a_document_names_exists(path: Path) -> None:
    """A command that fails ends the reading."""
    text = path.read_text(encoding="utf-8")
    code = [match["body"] for match in FENCE.finditer(text)] + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    named = {target for piece in code for target in re.findall(r"(?m)^\s*(?:\$ )?make ([a-z][a-z-]*)", piece)}

    assert named <= set(re.findall(r"(?m)^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8")))


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    """The next change has a place to be told."""
    assert _changelog_versions()[0] == "Unreleased"


def test_the_latest_release_in_the_changelog_is_the_version_of_the_package() -> None:
    """Until the first release there is none."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

    assert _changelog_versions()[1:2] in ([], [version])


def _changelog_versions() -> list[str]:
    return re.findall(r"(?m)^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def _leads(path: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    found = path.parent / name if name else path
    if not found.exists() or not found.resolve().is_relative_to(ROOT):
        return False
    return not anchor or found.suffix != ".md" or anchor in _anchors(found)


def _anchors(path: Path) -> set[str]:
    """Return the names that a renderer gives to the headings of a document."""
    headings = re.findall(r"(?m)^#+ +(.+?) *$", FENCE.sub("", path.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
