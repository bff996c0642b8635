"""A mutant: one bug, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path("src/jobq")


@dataclass(frozen=True)
class Mutant:
    """One bug: a passage of a source, what stands there instead, and the tests that should notice."""

    name: str
    file: str
    """Where it is, below `PACKAGE`."""
    breaks: str
    """What becomes of users, in a few words."""
    before: str
    """The passage, which must occur exactly once."""
    after: str
    tests: tuple[str, ...]
    """As pytest names them; the quickest first, since the first that fails ends the trial."""
    quick: bool = False
    """Whether it is among the few that every check tries."""

    def path(self, tree: Path) -> Path:
        return tree / PACKAGE / self.file

    def occurs(self, tree: Path) -> int:
        """Return how often the passage stands in a tree's source; anything but 1 means that the mutant is stale."""
        path = self.path(tree)
        return path.read_text(encoding="utf-8").count(self.before) if path.exists() else 0

    def apply(self, tree: Path) -> None:
        """Put the bug into a copy of the project."""
        path = self.path(tree)
        path.write_text(path.read_text(encoding="utf-8").replace(self.before, self.after), encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()  # It may be as old and as long as the source.


def kit(storage: str, *behaviours: str) -> tuple[str, ...]:
    """Return behaviours of the conformance kit as pytest names them."""
    return tuple(f"tests/contract/test_storage.py::Test{storage}::test_{behaviour}" for behaviour in behaviours)
