"""What an idle worker costs, and how late it begins what falls due while it sleeps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.measure import PAYLOAD, Goal, Plan, Row, directory, queue_on, rows
from jobq import FileStorage, FixedDelay, Job, MemoryStorage, Queue
from jobq.job import NewJob
from jobq.storage.contract import Storage

DELAY = 0.5
SETTLING = 0.7  # What starting costs is over by then, and a storage's first look for what others wrote.


class _CountingStorage:
    """Hands everything on to a storage, and counts the calls of its queues."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.calls = 0

    def namespace(self, name: str) -> Any:
        return _CountingQueue(self, self._storage.namespace(name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


class _CountingQueue:
    def __init__(self, counter: _CountingStorage, queue: object) -> None:
        self._counter = counter
        self._queue = queue

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Awaitable[Any]] = getattr(self._queue, name)

        async def counted(*arguments: Any) -> Any:
            self._counter.calls += 1
            return await method(*arguments)

        return counted


def measure(plan: Plan) -> Iterator[Row]:
    for kind in ("memory", "file"):
        yield from _costs(kind, 1.0 if plan.quick else 4.0)
        yield from _lateness(kind)


def lateness_goals(kind: str) -> list[Goal]:
    return [
        Goal(f"{kind}: {what} late by", 0.1, "s", at_least=False)
        for what in (f"a job delayed by {DELAY} s", f"a retry after {DELAY} s", "a lapsed lease")
    ]


def _costs(kind: str, seconds: float) -> Iterator[Row]:
    goals = (
        Goal(f"{kind}: CPU of an idle worker", 1.0, "%", at_least=False),
        Goal(f"{kind}: storage calls of an idle worker", 2.0, "calls/s", at_least=False),
    )
    yield from rows(goals, lambda: _with_storage(kind, lambda storage: _idle(storage, seconds)))


def _lateness(kind: str) -> Iterator[Row]:
    yield from rows(lateness_goals(kind), lambda: _with_storage(kind, latenesses))


def _with_storage(kind: str, measured: Callable[[Storage], Any]) -> Any:
    with _storage(kind) as storage:
        return asyncio.run(measured(storage))


@contextmanager
def _storage(kind: str) -> Iterator[Storage]:
    if kind == "memory":
        yield MemoryStorage()
    else:
        with directory() as path:
            yield FileStorage(path)


async def _idle(storage: Storage, seconds: float) -> tuple[float, float]:
    counting = _CountingStorage(storage)
    async with queue_on(counting):
        await asyncio.sleep(SETTLING)
        calls, used, started = counting.calls, time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        passed = time.perf_counter() - started
        return 100 * (time.process_time() - used) / passed, (counting.calls - calls) / passed


async def latenesses(storage: Storage) -> tuple[float, float, float]:
    """Measure all three of `lateness_goals` at the same time; each has a queue and an idle worker of its own."""
    await storage.open()
    try:
        return await asyncio.gather(_delayed(storage), _retried(storage), _lapsed(storage))
    finally:
        await storage.close()


async def _delayed(storage: Storage) -> float:
    queue = Queue[str, float](storage, name="delayed")
    queue.execute(_tell_the_time)
    async with queue:
        await asyncio.sleep(SETTLING)
        due = time.monotonic() + DELAY
        await queue.enqueue("job", PAYLOAD, delay=DELAY)
        return await queue.wait("job") - due


async def _retried(storage: Storage) -> float:
    queue = Queue[str, float](storage, name="retried", retry=FixedDelay(DELAY))
    due = 0.0

    @queue.execute
    async def fail_once(job: Job[str]) -> float:
        nonlocal due
        if job.attempts == 1:
            due = time.monotonic() + DELAY
            raise ValueError("the first attempt fails")
        return time.monotonic()

    async with queue:
        await asyncio.sleep(SETTLING)
        return await queue.enqueue_and_wait("job", PAYLOAD) - due


async def _lapsed(storage: Storage) -> float:
    """Claim a job as a worker that is never heard of again, then let another sleep until the lease ends."""
    jobs = storage.namespace("lapsed")
    await jobs.add([NewJob("job", "producer.1", f'"{PAYLOAD}"'.encode(), 3, 60.0)])
    lapses = time.monotonic() + DELAY
    await jobs.claim("lost", DELAY, 1, "lost.1")
    queue = Queue[str, float](storage, name="lapsed")
    queue.execute(_tell_the_time)
    async with queue:
        return await queue.wait("job") - lapses


async def _tell_the_time(job: Job[str]) -> float:
    return time.monotonic()
