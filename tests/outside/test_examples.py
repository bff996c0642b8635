"""The examples run as printed, end by themselves, and print what their last comment says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name != "demo.py")
PLACEHOLDER = re.compile(r"<[a-z ]+>")
"""In an expected line it stands for whatever differs from run to run, such as ``<seconds>``."""
AFTER = {"worker": "producer"}
"""Examples that take up what another one left."""


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_its_last_comment_says(path: Path, tmp_path: Path) -> None:
    """Examples are copied before they are understood."""
    if path.stem in AFTER:
        run(path.with_stem(AFTER[path.stem]), tmp_path)

    printed = run(path, tmp_path)

    assert re.fullmatch(expected(path), printed), printed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_how_to_run_it(path: Path) -> None:
    """The line in the docstring is the one that the test above runs."""
    assert f"``python examples/{path.name}" in path.read_text(encoding="utf-8")


def run(path: Path, directory: Path) -> str:
    """Run the command of the docstring; where that names a directory, in one of this test."""
    match = re.search(r"``(python [^`]+)``", path.read_text(encoding="utf-8"))
    assert match is not None
    arguments = [str(directory) if word.startswith("/tmp/") else word for word in match[1].split()[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "error", "PYTHONUTF8": "1"}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def expected(path: Path) -> str:
    """Return the last comment as a regular expression."""
    lines: list[str] = []
    for line in reversed(path.read_text(encoding="utf-8").rstrip().splitlines()):
        if not line.startswith("#"):
            break
        lines.insert(0, line[2:])
    assert lines, f"{path.name} ends without its expected output"
    return "".join(".+".join(map(re.escape, PLACEHOLDER.split(line))) + "\n" for line in lines)
