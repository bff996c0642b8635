"""Bytes on disk: for each completed job, and once the jobs have expired and were pruned."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import CALLERS, PAYLOAD, Goal, Plan, Row, directory, per_second, rows
from jobq import FileStorage, Job, Queue
from jobq.clock import Clock

_GOALS = (
    Goal("file: bytes on disk for a completed job", 350, "bytes", at_least=False),
    Goal("file: size after expiry and prune / new file", 2.0, "×", at_least=False),
)
_YEAR = 365 * 86_400.0


class _MovableClock(Clock):
    """The machine's clock, until it is moved on."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


def measure(plan: Plan) -> Iterator[Row]:
    yield from rows(_GOALS, lambda: _sizes(plan.jobs(20_000)))


def _sizes(count: int) -> tuple[float, float]:
    with directory() as path:
        clock = _MovableClock()
        storage = FileStorage(path, durability="normal", clock=clock)
        asyncio.run(_complete(storage, 0))
        new = checkpointed(path)
        asyncio.run(_complete(storage, count))
        full = checkpointed(path)
        clock.ahead = _YEAR
        asyncio.run(_prune(storage))
        return (full - new) / count, checkpointed(path) / new


async def _complete(storage: FileStorage, count: int) -> None:
    queue = Queue[str, str](storage, concurrency=CALLERS)

    @queue.execute
    async def answer(job: Job[str]) -> str:
        return "done"

    async with queue:
        await per_second(count, lambda number: queue.enqueue_and_wait(f"{number:010}", PAYLOAD))


async def _prune(storage: FileStorage) -> None:
    await storage.open()
    queue = storage.namespace("default")
    while await queue.prune(1000):
        pass
    await storage.close()


def checkpointed(path: Path) -> int:
    """Move the log into the database, and return the bytes of both."""
    connection = sqlite3.connect(path / "jobq.sqlite3")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
