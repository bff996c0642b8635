"""The gate: the tests must pass without a bug, and fail with each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mutants.mutant import Mutant
from mutants.trial import BASELINE_LIMIT, Verdict, copy, run_tests, try_mutant


@dataclass(frozen=True)
class Judgement:
    """What became of all mutants."""

    verdicts: tuple[Verdict, ...]
    """In the order of the catalogue."""
    problem: str
    """Why nothing was tried: what is wrong with the tests without any bug. Empty if nothing is."""
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.problem and all(verdict.killed for verdict in self.verdicts)


def judge(root: Path, mutants: Sequence[Mutant], *, jobs: int, tell: Callable[[str], None]) -> Judgement:
    """Try mutants on copies of the project at ``root``, so many at once; ``tell`` hears of each as it is done."""
    began = time.monotonic()
    fresh = [mutant for mutant in mutants if mutant.occurs(root) == 1]
    verdicts = {
        mutant.name: Verdict(mutant, "stale", f"its passage occurs {mutant.occurs(root)} times in {mutant.file}")
        for mutant in mutants
        if mutant not in fresh
    }
    with tempfile.TemporaryDirectory(prefix="jobq-mutants-") as directory:
        pristine = copy(root, Path(directory) / "pristine")
        problem = _problem_without_bugs(pristine, fresh, jobs) if fresh else ""
        if not problem:
            tell(f"without a bug the tests pass ({time.monotonic() - began:.1f} s)")
            for verdict in _trials(pristine, Path(directory), fresh, jobs):
                verdicts[verdict.mutant.name] = verdict
                tell(
                    f"{len(verdicts)} of {len(mutants)}: {verdict.mutant.name} {verdict.fate} ({verdict.seconds:.1f} s)"
                )
    found = tuple(verdicts[mutant.name] for mutant in mutants if mutant.name in verdicts)
    return Judgement(found, problem, time.monotonic() - began)


def _problem_without_bugs(pristine: Path, mutants: Sequence[Mutant], jobs: int) -> str:
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    shares = [tests[number::jobs] for number in range(min(jobs, len(tests)))]
    with ThreadPoolExecutor(jobs) as pool:
        runs = list(pool.map(partial(run_tests, pristine, limit=BASELINE_LIMIT), shares))
    said = [line for run in runs for line in run.failed + run.skipped]
    for run in runs:
        if not run.passed and not run.failed:
            said += run.output.splitlines()[-10:]
    return "\n  ".join(("without a bug the tests do not pass, so they prove nothing:", *said)) if said else ""


def _trials(pristine: Path, directory: Path, mutants: Sequence[Mutant], jobs: int) -> Iterator[Verdict]:
    with ThreadPoolExecutor(jobs) as pool:
        trials = [pool.submit(try_mutant, mutant, pristine, directory / mutant.name) for mutant in mutants]
        try:
            for trial in as_completed(trials):
                yield trial.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Whoever interrupts it waits for those under way only.
