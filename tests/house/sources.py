"""The project's files as the house rules see them: paths, modules and parsed sources."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
FOLDERS = ("src", "tests", "examples", "benchmarks", "growth", "mutants", "simulation", "soak", "tools")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(*folders: str) -> list[Path]:
    """Return the Python files of the folders that exist, in a fixed order."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name; a package stands for its ``__init__``."""
    found: dict[str, Path] = {}
    for path in python_files("src"):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def comments(path: Path) -> tuple[tuple[int, str], ...]:
    """Return the comments of a file with their lines."""
    return tuple((token.start[0], token.string) for token in _tokens(path) if token.type == tokenize.COMMENT)


@cache
def code_lines(path: Path) -> frozenset[int]:
    """Return the lines that hold code: no comments, no blank lines, no texts that only document."""
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    loud: set[int] = set()
    for token in _tokens(path):
        if token.type not in quiet:
            loud.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            loud.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return frozenset(loud)


def functions(path: Path) -> Iterator[tuple[str, Function, bool]]:
    """Yield every function with its dotted name, and whether its first parameter is bound (self or cls)."""
    yield from _functions(tree(path), "")


def _functions(scope: ast.AST, prefix: str) -> Iterator[tuple[str, Function, bool]]:
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)
            yield f"{prefix}{node.name}", node, isinstance(scope, ast.ClassDef) and not static
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        else:
            yield from _functions(node, prefix)


def _tokens(path: Path) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
