"""What every benchmark shares: goals, rows, repetition, and callers.

A benchmark runs once to warm up and then three times; the median counts. Everything is measured with jobs that do
nothing and have payloads of 100 bytes, at a concurrency of 100, in the event loop of the standard library.
"""

from __future__ import annotations

import asyncio
import gc
import math
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jobq import Job, Queue
from jobq.storage.contract import Storage

CALLERS = 100
PAYLOAD = "x" * 98
"""100 bytes as JSON."""
REPETITIONS = 3


class Goal(NamedTuple):
    """What is measured, and how good it is meant to be."""

    name: str
    target: float | None
    """None if nothing is promised, and the figure is only reported."""
    unit: str
    at_least: bool = True
    """Whether more is better."""


class Row(NamedTuple):
    """A goal and what was measured."""

    goal: Goal
    values: Sequence[float]
    details: Mapping[str, float] = {}
    """More about one of the runs: requests, and milliseconds by their name, such as ``p99``."""

    @property
    def measured(self) -> float:
        return statistics.median(self.values)

    @property
    def passed(self) -> bool | None:
        if self.goal.target is None:
            return None
        return self.measured >= self.goal.target if self.goal.at_least else self.measured <= self.goal.target


class Plan(NamedTuple):
    """How much to do."""

    quick: bool = False
    million: bool = False
    """Whether a long backlog on a server has a million jobs instead of a hundred thousand."""

    def jobs(self, count: int) -> int:
        """Return how many jobs stand for ``count`` of them."""
        return count // 10 if self.quick else count


def rows(goals: Sequence[Goal], measure: Callable[[], Sequence[float]], *, warm_up: bool = True) -> Iterator[Row]:
    """Measure some goals together: ``measure`` answers with one value for each."""
    if warm_up:
        measure()
    runs = []
    for _ in range(REPETITIONS):
        gc.collect()
        runs.append(measure())
    for goal, values in zip(goals, zip(*runs, strict=True), strict=True):
        yield Row(goal, values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least so many percent of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


async def per_second(count: int, call: Callable[[int], Awaitable[object]], *, callers: int = CALLERS) -> float:
    """Make ``count`` calls by concurrent callers; return how many were answered in a second."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return count / (time.perf_counter() - started)


def queue_on(storage: Storage, *, consume: bool = True) -> Queue[str, None]:
    """Return a queue whose jobs do nothing."""
    queue = Queue[str, None](storage, concurrency=CALLERS)
    if consume:
        queue.execute(do_nothing)
    return queue


async def do_nothing(job: Job[str]) -> None:
    """Stand for a handler whose own time does not count."""


@contextmanager
def directory() -> Iterator[Path]:
    """Make a directory for one measurement."""
    with tempfile.TemporaryDirectory(prefix="jobq-benchmark-") as path:
        yield Path(path)
