"""Trials: a copy of the project, a bug in it, and the tests that should notice."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mutants.mutant import Mutant

COPIED = ("src", "tests", "simulation", "pyproject.toml")
TEST_LIMIT = 30
"""Seconds after which a single test counts as hanging."""
TRIAL_LIMIT = 90.0
"""Seconds after which a trial counts as hanging, should even the end of its test hang."""
BASELINE_LIMIT = 900.0

_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
_SKIPPED = re.compile(r"^SKIPPED .*$", re.MULTILINE)
_TIMED_OUT = "from pytest-timeout"


@dataclass(frozen=True)
class Run:
    """What became of some tests in one tree."""

    code: int | None
    """pytest's exit code; None if it did not end in time."""
    output: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.code == 0

    @property
    def failed(self) -> list[str]:
        """The tests that failed, as pytest names them."""
        return _FAILED.findall(self.output)

    @property
    def skipped(self) -> list[str]:
        """pytest's lines on the tests that were skipped."""
        return _SKIPPED.findall(self.output)

    @property
    def hung(self) -> bool:
        return self.code is None or _TIMED_OUT in self.output


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant."""

    mutant: Mutant
    fate: str
    """``killed``, ``hung``, ``survived``; ``stale`` if its passage does not occur once; ``broken`` if no test ran."""
    by: str = ""
    """The first test that failed; for those that are not killed, what else is to be said."""
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        return self.fate in ("killed", "hung")


def copy(source: Path, target: Path) -> Path:
    """Copy what the tests need of a tree, with what Python has compiled of it."""
    target.mkdir(parents=True)
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).exists():
            shutil.copy2(source / name, target / name)
    return target


def run_tests(tree: Path, tests: Sequence[str], *options: str, limit: float) -> Run:
    """Run tests in a copy, with the copy's sources and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {
        **kept,
        "PYTHONPATH": os.pathsep.join((str(tree / "src"), str(tree))),
        "JOBQ_ALL_SERVERS": "1",  # A test that is skipped kills nothing.
        "COLUMNS": "400",  # Else pytest cuts what it says of a failed test.
    }
    # Without the plugins that only cost time here: most of a trial is the start of pytest.
    without = (f"-pno:{plugin}" for plugin in ("randomly", "cacheprovider", "hypothesispytest"))
    limits = ("--timeout", str(TEST_LIMIT))
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=no", *without, *limits, *options, *tests]
    began = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # A server of its tests ends with it: see tests/servers.
            output, _ = process.communicate()
            code = None
    return Run(code, output, time.monotonic() - began)


def try_mutant(mutant: Mutant, pristine: Path, tree: Path) -> Verdict:
    """Put a bug into a new copy at ``tree``, and see whether its tests notice."""
    copy(pristine, tree)
    try:
        mutant.apply(tree)
        run = run_tests(tree, mutant.tests, "-x", limit=TRIAL_LIMIT)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    if run.hung:
        return Verdict(mutant, "hung", next(iter(run.failed), "the run as a whole"), run.seconds)
    if run.passed:
        return Verdict(mutant, "survived", "its tests pass", run.seconds)
    if run.code == 1 and run.failed:
        return Verdict(mutant, "killed", run.failed[0], run.seconds)
    return Verdict(mutant, "broken", _last_line(run.output), run.seconds)


def _last_line(output: str) -> str:
    return next((line for line in reversed(output.splitlines()) if line.strip()), "pytest said nothing")
