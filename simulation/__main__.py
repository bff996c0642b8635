"""Live through many seeds, and tell what was broken and whether enough has happened to prove anything."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import Counter

from simulation.histories import GOALS, Outcome, live_through, missed
from simulation.world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many histories")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", type=int, metavar="SEED", help="live through one seed, and print its history")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay)
    seeds = range(options.first, options.first + options.seeds)
    seen: Counter[str] = Counter()
    failed: list[Outcome] = []
    begun = time.perf_counter()
    for number, outcome in enumerate(live_through(seeds, options.processes), 1):
        seen += outcome.seen
        if outcome.broken:
            failed.append(outcome)
        if number % 100 == 0 or number == len(seeds):
            rate = number / (time.perf_counter() - begun)
            print(
                f"\r{number} of {len(seeds)} seeds, {len(failed)} broken, {rate:.1f} seeds/s", end="", file=sys.stderr
            )
    print(file=sys.stderr)
    return report(seeds, failed, seen)


def report(seeds: range, failed: list[Outcome], seen: Counter[str]) -> int:
    """Print the goals, then what was broken with the command that repeats it; the answer is the exit code."""
    for goal in GOALS:
        print(f"{seen[goal]:>10,}  {goal}")
    unreached = missed(seen, len(seeds))
    for text in unreached:
        print(f"proved too little: {text}")
    for outcome in sorted(failed)[:10]:
        print(f"seed {outcome.seed}: {outcome.broken[0]}")
        print(f"  repeat it by: python -m simulation --replay {outcome.seed}")
    print(f"{len(seeds) - len(failed)} of {len(seeds)} seeds clean")
    return 1 if failed or unreached else 0


def replay(seed: int) -> int:
    """Print one history."""
    logging.disable(logging.CRITICAL)
    world = World(seed).run()
    print("\n".join(world.lines))
    for rule in world.broken:
        print(f"broken: {rule}")
    return 1 if world.broken else 0


if __name__ == "__main__":
    sys.exit(main())
