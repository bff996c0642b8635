"""``python -m soak``: run a soak, check it, say what was found. It fails if anything broke, or was not tried."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from soak import report
from soak.checker import check
from soak.conductor import Conductor
from soak.plan import KINDS, Plan

_JOBS_A_MINUTE = 20_000


def main() -> int:
    options = _options()
    if options.check is not None:
        return _judge(Plan.read(options.check), options.check, as_json=options.json, began=time.monotonic())
    jobs = options.jobs or round(_JOBS_A_MINUTE * options.minutes)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    plan = Plan(options.storage, options.minutes, jobs, seed)
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="jobq-soak-"))
    tell(report.command(plan))
    plan = Conductor(plan, directory, tell).run()
    code = _judge(plan, directory, as_json=options.json, began=began)
    if code == 0 and not options.keep:
        shutil.rmtree(directory)
    else:
        tell(f"the audit files are in {directory}; to check them again: python -m soak --check {directory}")
    if code != 0:
        tell(f"to run it again: {report.command(plan)}")
    return code


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m soak", description="Hurt jobq, and check that it keeps its word.")
    parser.add_argument("--storage", choices=KINDS, default="file")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long it takes, about; 1 by default")
    parser.add_argument("--jobs", type=int, help=f"how many jobs; {_JOBS_A_MINUTE:,} for each minute by default")
    parser.add_argument("--seed", type=int, help="of the nemesis and of the jobs; drawn by default")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--keep", action="store_true", help="keep the audit files of a run that passed as well")
    parser.add_argument("--check", type=Path, metavar="DIRECTORY", help="only check the audit files of an earlier run")
    return parser.parse_args()


def _judge(plan: Plan, directory: Path, *, as_json: bool, began: float) -> int:
    verdict = check(directory)
    verdict.seconds["all of it"] = time.monotonic() - began
    where = report.machine(None if plan.storage == "file" else plan.storage)
    (directory / "report.json").write_bytes(report.as_json(plan, verdict, where))
    print(report.as_json(plan, verdict, where).decode() if as_json else report.as_text(plan, verdict, where))
    if verdict.findings:
        tell(report.trail(directory, verdict))
    if verdict.missed:
        tell(f"it proves nothing, since it was not seen often enough: {', '.join(verdict.missed)}")
    tell("passed" if verdict.passed else "FAILED")
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
