"""How soon an idle worker in another process begins a job."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import PAYLOAD, Goal, Plan, Row, directory, rows
from benchmarks.worker import serving
from jobq import FileStorage, Queue
from jobq.storage.contract import Storage

_GOALS = (Goal("file, full: pick-up by an idle worker, median", 5.0, "ms", at_least=False),)
_PAUSE = 0.03  # Long enough for the worker to go to sleep again.


def measure(plan: Plan) -> Iterator[Row]:
    with directory() as path, serving(path, "full"):
        numbers = itertools.count()
        yield from rows(_GOALS, lambda: (_median(path, numbers, plan.jobs(100)),))


async def pick_up(storage: Storage, numbers: Iterator[int], count: int) -> list[float]:
    """Return milliseconds from the call of enqueue to the first line of the handler, for each of so many jobs."""
    queue = Queue[str, float](storage)
    taken = []
    async with queue:
        for number in itertools.islice(numbers, count):
            await asyncio.sleep(_PAUSE)
            asked = time.monotonic()  # It is the same for all processes of a machine.
            began = await queue.enqueue_and_wait(f"job-{number}", PAYLOAD)
            taken.append(1000 * (began - asked))
    return taken


def _median(path: Path, numbers: Iterator[int], count: int) -> float:
    return statistics.median(asyncio.run(pick_up(FileStorage(path), numbers, count)))
