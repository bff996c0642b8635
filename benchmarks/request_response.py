"""Calls per second from one process to a worker in another, over a directory, and back."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from benchmarks.measure import CALLERS, PAYLOAD, Goal, Plan, Row, directory, per_second, rows
from benchmarks.worker import serving
from jobq import FileStorage, Queue


def measure(plan: Plan) -> Iterator[Row]:
    for durability in ("normal", "full"):
        goals = (
            Goal(f"file, {durability}: request/response, 1 caller", 2_000, "calls/s"),
            Goal(f"file, {durability}: request/response, 100 callers", 15_000, "calls/s"),
        )
        with directory() as path, serving(path, durability):
            names = itertools.count()
            yield from rows(goals, functools.partial(_measure_once, path, durability, names, plan))


def _measure_once(
    path: Path, durability: Literal["normal", "full"], names: Iterator[int], plan: Plan
) -> tuple[float, float]:
    return asyncio.run(_call(FileStorage(path, durability=durability), next(names), plan))


async def _call(storage: FileStorage, run: int, plan: Plan) -> tuple[float, float]:
    queue = Queue[str, float](storage)

    async def call(prefix: str, number: int) -> None:
        await queue.enqueue_and_wait(f"{prefix}-{run}-{number}", PAYLOAD)

    async with queue:
        alone = await per_second(plan.jobs(2_000), functools.partial(call, "alone"), callers=1)
        together = await per_second(plan.jobs(20_000), functools.partial(call, "together"), callers=CALLERS)
    return alone, together
