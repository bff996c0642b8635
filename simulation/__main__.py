"""Live through many seeds, and tell what was broken and whether enough has happened to prove anything."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import Counter

from simulation.histories import GOALS, Outcome, live_through, missed, shortened, tell, until_broken

_TOLD = 10
"""Broken seeds that are told."""
_SHORTENED = 3
_INTERRUPTED = 130


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many histories")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", type=int, metavar="SEED", help="live through one seed, and print its history")
    parser.add_argument("--lasting", type=float, metavar="SECONDS", help="only so much of its bad weather")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.replay is not None:
        return replay(options.replay, options.lasting)
    progress = Progress(options.seeds)
    try:
        for outcome in live_through(range(options.first, options.first + options.seeds), options.processes):
            progress.take(outcome)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        report(progress)
        return _INTERRUPTED
    return report(progress)


class Progress:
    """What has come of the seeds so far, and a bar that tells it."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.lived = 0
        self.seen: Counter[str] = Counter()
        self.failed: list[Outcome] = []
        self.cpu = 0.0
        self._begun = self._told_at = time.perf_counter()

    def take(self, outcome: Outcome) -> None:
        self.lived += 1
        self.seen += outcome.seen
        self.cpu += outcome.cpu
        if outcome.broken:
            self.failed.append(outcome)
        now = time.perf_counter()
        moving = sys.stderr.isatty()
        if self.lived == self.wanted or now >= self._told_at + (0.2 if moving else 30.0):
            self._told_at = now
            line = f"\r{self}" if moving else str(self)
            print(line, end="" if moving and self.lived < self.wanted else "\n", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        done = 30 * self.lived // self.wanted
        rate = self.lived / (time.perf_counter() - self._begun)
        return (
            f"[{'#' * done}{'.' * (30 - done)}] {self.lived} of {self.wanted} seeds, {len(self.failed)} broken, "
            f"{rate:.1f} seeds/s, {1000 * self.cpu / self.lived:.0f} ms of a processor each"
        )


def report(progress: Progress) -> int:
    """Print the goals, then what was broken with the command that repeats it; the answer is the exit code."""
    for goal in GOALS:
        print(f"{progress.seen[goal]:>10,}  {goal}")
    unreached = missed(progress.seen, progress.lived)
    for text in unreached:
        print(f"proved too little: {text}")
    for number, outcome in enumerate(sorted(progress.failed)[:_TOLD]):
        print(f"seed {outcome.seed}: {outcome.broken[0]}")
        if number >= _SHORTENED:
            print(f"  repeat it by: python -m simulation --replay {outcome.seed}")
            continue
        lasting = shortened(outcome.seed)
        for line in until_broken(tell(outcome.seed, lasting).lines):
            print(f"  {line}")
        print(f"  repeat it by: python -m simulation --replay {outcome.seed} --lasting {lasting:g}")
    print(f"{progress.lived - len(progress.failed)} of {progress.lived} seeds clean")
    return 1 if progress.failed or unreached else 0


def replay(seed: int, lasting: float | None) -> int:
    """Print one history."""
    notes = tell(seed, lasting)
    print("\n".join(notes.lines))
    for rule in notes.broken:
        print(f"broken: {rule}")
    return 1 if notes.broken else 0


if __name__ == "__main__":
    sys.exit(main())
