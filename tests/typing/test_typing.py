"""The types of the public interface: right uses pass the strictest check, and each common mistake is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REFUSED = HERE / "refused.py"
MARKED = {
    number: match[1]
    for number, line in enumerate(REFUSED.read_text(encoding="utf-8").splitlines(), 1)
    if (match := re.search(r"# refused: (.+)$", line))
}

# One process runs these, since the checker is slow to start; on a cold cache it reads the types of everything.
pytestmark = [pytest.mark.xdist_group("mypy"), pytest.mark.timeout(240), pytest.mark.slow]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, str]]:
    """Run the checker once; return what it says by file and line."""
    # A cache of its own, because two checkers that write to one at the same time may crash.
    cache = tmp_path_factory.mktemp("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-pretty", "--hide-error-context"]
    run = subprocess.run(
        [*command, "--cache-dir", str(cache), "tests/typing/api.py", "tests/typing/refused.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found: dict[str, dict[int, str]] = {}
    for path, line, text in re.findall(r"(?m)^([^:\n]+):(\d+): error: (.+)$", run.stdout):
        found.setdefault(Path(path).name, {})[int(line)] = text
    return found


def test_right_uses_of_the_public_interface_type_check(complaints: dict[str, dict[int, str]]) -> None:
    """The answers' types follow from the queue's, without a cast by its user."""
    assert complaints.get("api.py", {}) == {}


@pytest.mark.parametrize("line", MARKED, ids=MARKED.get)
def test_a_mistake_is_refused(line: int, complaints: dict[str, dict[int, str]]) -> None:
    """A mistake that the checker finds never reaches a queue."""
    assert line in complaints.get(REFUSED.name, {}), f"{REFUSED.name}:{line} passes: {MARKED[line]}"


def test_nothing_but_the_mistakes_is_refused(complaints: dict[str, dict[int, str]]) -> None:
    """A complaint elsewhere would hide that a mistake is refused for the wrong reason."""
    assert {line: text for line, text in complaints.get(REFUSED.name, {}).items() if line not in MARKED} == {}
