"""Jobs per second: in one process over memory; added to a directory by callers, and drained by one worker process."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

from benchmarks.measure import CALLERS, PAYLOAD, Goal, Plan, Row, directory, per_second, queue_on, rows
from benchmarks.worker import drained_per_second
from jobq import FileStorage, MemoryStorage

_MEMORY = (
    Goal("memory: enqueue, run, completed", 60_000, "jobs/s"),
    Goal("memory: enqueue_and_wait", 60_000, "jobs/s"),
)
_FILE: dict[Literal["full", "normal"], tuple[Goal, Goal]] = {
    "normal": (
        Goal("file, normal: add by 100 callers", 80_000, "jobs/s"),
        Goal("file, normal: drain by one process", 35_000, "jobs/s"),
    ),
    "full": (
        Goal("file, full: add by 100 callers", 60_000, "jobs/s"),
        Goal("file, full: drain by one process", 25_000, "jobs/s"),
    ),
}


def measure(plan: Plan) -> Iterator[Row]:
    count = plan.jobs(40_000)
    yield from rows(_MEMORY, lambda: (asyncio.run(_run(count)), asyncio.run(_answer(count))))
    for durability, goals in _FILE.items():
        yield from rows(goals, functools.partial(_add_and_drain, durability, count))


async def _run(count: int) -> float:
    """Enqueue by 100 callers while a worker runs the jobs; the time ends with the last job, not with its enqueue."""
    queue, done, left = queue_on(MemoryStorage()), asyncio.Event(), count

    @queue.on("completed")
    def completed(id: str, result: None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()

    async def caller(numbers: Iterator[int]) -> None:
        for number in numbers:
            await queue.enqueue(f"job-{number}", PAYLOAD)

    loop, numbers = asyncio.get_running_loop(), iter(range(count))
    async with queue:
        started = loop.time()
        await asyncio.gather(*(caller(numbers) for _ in range(CALLERS)))
        await done.wait()
        return count / (loop.time() - started)


async def _answer(count: int) -> float:
    queue = queue_on(MemoryStorage())
    async with queue:
        return await per_second(count, lambda number: queue.enqueue_and_wait(f"job-{number}", PAYLOAD))


def _add_and_drain(durability: Literal["full", "normal"], count: int) -> Sequence[float]:
    with directory() as path:
        added = asyncio.run(_add(FileStorage(path, durability=durability), count))
        return added, drained_per_second(path, durability, count)


async def _add(storage: FileStorage, count: int) -> float:
    queue = queue_on(storage, consume=False)
    async with queue:
        return await per_second(count, lambda number: queue.enqueue(f"job-{number}", PAYLOAD))
