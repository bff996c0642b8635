"""``python -m mutants``: put bugs into copies of the project, and fail unless its tests find every one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mutants import report
from mutants.catalogue import MUTANTS
from mutants.gate import judge
from mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    options = _options()
    mutants = [
        one for one in MUTANTS if (one.quick or not options.quick) and (one.name in (options.only or [one.name]))
    ]
    if options.list:
        print(report.as_list(mutants))
        return 0
    return run(ROOT, mutants, jobs=options.jobs, json=options.json)


def run(root: Path, mutants: Sequence[Mutant], *, jobs: int = 1, json: Path | None = None) -> int:
    """Judge mutants, print what became of them, and return the exit code."""
    judgement = judge(root, mutants, jobs=jobs, tell=tell)
    if json is not None:
        json.write_bytes(report.as_json(judgement))
    if judgement.verdicts:
        print(report.as_text(judgement))
    tell(report.summary(judgement))
    tell("passed" if judgement.passed else "FAILED")
    return 0 if judgement.passed else 1


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mutants", description="See whether the tests find known bugs.")
    names = [mutant.name for mutant in MUTANTS]
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help="this one; may be given several times"
    )
    parser.add_argument("--quick", action="store_true", help="the few that `make check` tries")
    parser.add_argument("--list", action="store_true", help="list them, and try none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what became of them there as well")
    parser.add_argument("--jobs", type=_jobs, default=2, metavar="N", help="how many at once; 2 by default")
    return parser.parse_args()


def _jobs(text: str) -> int:
    jobs = int(text)
    if jobs < 1:
        raise argparse.ArgumentTypeError("at least one")
    return jobs


if __name__ == "__main__":
    sys.exit(main())
