"""Whether a long queue slows the verbs of a storage: a backlog of 100,000 jobs against one of 1,000."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Iterator
from typing import Any

from benchmarks.measure import Goal, Plan, Row, directory, rows
from jobq import FileStorage, MemoryStorage, State
from jobq.job import NewJob, Settlement
from jobq.storage.contract import QueueStorage, Storage

VERBS = ("add", "claim", "settle")
SMALL, LARGE = 1_000, 100_000
ROUNDS = 500
_LEASE = 60.0
_TTL = 3600.0


def measure(plan: Plan) -> Iterator[Row]:
    yield from _measure("memory", MemoryStorage(), MemoryStorage(), plan)
    with directory() as path:
        # Without waiting for the disk, whose time would hide what a backlog costs.
        small, large = (FileStorage(path / name, durability="normal") for name in ("small", "large"))
        yield from _measure("file, normal", small, large, plan)


def _measure(name: str, small: Storage, large: Storage, plan: Plan) -> Iterator[Row]:
    goals = [Goal(f"{name}: {verb} with {LARGE:,} waiting / {SMALL:,}", 1.3, "×", at_least=False) for verb in VERBS]
    with asyncio.Runner() as runner:
        queues = runner.run(fill(small, SMALL)), runner.run(fill(large, LARGE))
        numbers = itertools.count()
        yield from rows(goals, lambda: runner.run(compare(queues, numbers, plan.jobs(ROUNDS))))
        runner.run(small.close())
        runner.run(large.close())


async def fill(storage: Storage, count: int) -> QueueStorage:
    """Open a storage, and return a queue of it in which so many jobs wait."""
    await storage.open()
    queue = storage.namespace("default")
    for start in range(0, count, 250):
        await queue.add([_job(f"waiting-{number}") for number in range(start, start + 250)])
    return queue


async def compare(queues: tuple[QueueStorage, QueueStorage], numbers: Iterator[int], rounds: int) -> list[float]:
    """Take turns, so that what else the machine does meets both alike; return the ratios of the medians."""
    small, large = [], []
    for number in itertools.islice(numbers, rounds):
        small.append(await _round(queues[0], number))
        large.append(await _round(queues[1], number))
    pairs = zip(zip(*small, strict=True), zip(*large, strict=True), strict=True)
    return [statistics.median(of_large) / statistics.median(of_small) for of_small, of_large in pairs]


async def _round(queue: QueueStorage, number: int) -> tuple[float, float, float]:
    """Add a job, claim the oldest and settle it; return how long each took."""
    added, _ = await _timed(queue.add([_job(f"more-{number}")]))
    claiming, claimed = await _timed(queue.claim("worker", _LEASE, 1, f"session.{number}"))
    [claim] = claimed.claims
    settlement = Settlement(claim.id, claim.token, State.COMPLETED, b"null", ttl=_TTL)
    settling, _ = await _timed(queue.settle([settlement]))
    return added, claiming, settling


async def _timed(call: Awaitable[Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = await call
    return time.perf_counter() - started, answer


def _job(id: str) -> NewJob:
    return NewJob(id, f"producer.{id}", b"x" * 100, 3, _TTL)
