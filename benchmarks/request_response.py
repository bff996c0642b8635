"""Calls per second from one process to a worker in another, over a directory, and back."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Iterator

from benchmarks.measure import CALLERS, PAYLOAD, Goal, Plan, Row, directory, per_second, rows
from benchmarks.worker import serving
from jobq import FileStorage, Queue

_GOALS = (
    Goal("file, full: request/response, 1 caller", 2_000, "calls/s"),
    Goal("file, full: request/response, 100 callers", 15_000, "calls/s"),
)


def measure(plan: Plan) -> Iterator[Row]:
    with directory() as path, serving(path, "full"):
        names = itertools.count()
        yield from rows(_GOALS, lambda: asyncio.run(_call(FileStorage(path), next(names), plan)))


async def _call(storage: FileStorage, run: int, plan: Plan) -> tuple[float, float]:
    queue = Queue[str, float](storage)

    async def call(prefix: str, number: int) -> None:
        await queue.enqueue_and_wait(f"{prefix}-{run}-{number}", PAYLOAD)

    async with queue:
        alone = await per_second(plan.jobs(2_000), functools.partial(call, "alone"), callers=1)
        together = await per_second(plan.jobs(20_000), functools.partial(call, "together"), callers=CALLERS)
    return alone, together
