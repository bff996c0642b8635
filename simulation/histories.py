"""Histories: many seeds lived through, and whether enough has happened in them to prove anything."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from simulation.world import World

GOALS = (
    "a job was added",
    "an accepted add was sent again",
    "a job was claimed",
    "a claim was sent again",
    "a lease was extended",
    "an extend was refused",
    "a settle was refused",
    "a settle was sent again",
    "a job was given back",
    "an attempt failed",
    "a job was rescued",
    "a job ended as completed",
    "a job ended as failed",
    "a job ended as cancelled",
    "a cancel was sent again",
    "a cancel found processing",
    "a revive found failed",
    "a revive was sent again",
    "a retain was sent again",
    "a record was pruned",
    "a lock was refused",
    "a leader led",
    "a worker crashed",
    "a worker stopped",
    "a call was cancelled",
    "a hint was lost",
    "enqueue gave completed",
    "enqueue gave duplicate",
    "enqueue gave StorageUnavailableError",
    "request gave a result",
    "request gave JobTimeoutError",
    "request gave JobCancelledError",
    "request gave MaxRetriesError",
    "cancel gave cancelling",
)
"""What must have happened, each at least once in a hundred seeds: else the simulation has proved nothing."""


class Outcome(NamedTuple):
    """What one seed came to."""

    seed: int
    broken: list[str]
    seen: Counter[str]


def live(seed: int) -> Outcome:
    """Live through one history."""
    world = World(seed).run()
    return Outcome(seed, world.broken, world.seen)


def live_through(seeds: range, processes: int) -> Iterator[Outcome]:
    """Live through many histories, in several processes."""
    if processes == 1:
        be_quiet()
        yield from map(live, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes, be_quiet) as pool:
        yield from pool.imap_unordered(live, seeds, chunksize=8)


def be_quiet() -> None:
    """Log nothing: that processes die and connections break is the point."""
    logging.disable(logging.CRITICAL)


def missed(seen: Counter[str], seeds: int) -> list[str]:
    """Return the goals that did not come up often enough."""
    least = max(1, seeds // 100)
    return [f"{goal}: {seen[goal]} times, at least {least} wanted" for goal in GOALS if seen[goal] < least]
