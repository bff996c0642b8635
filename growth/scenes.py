"""The scenes: each lets jobs flow, looks, and returns what is held against a bound."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack

from benchmarks.measure import CALLERS, PAYLOAD, Goal, Row, do_nothing
from growth.place import Place
from growth.sampling import Sample, look, megabytes_a_minute, risen, watch
from jobq import FixedDelay, Job, Queue, Reaper, State
from jobq.storage.contract import LINGER, Storage

LOAD = 0.6
KEPT = 10.0
"""Seconds for which results are kept, so that jobs expire all the time."""
WARM_UP = 0.2
"""The part of a run that does not count."""
QUEUES = 1000
FAILED = 10_000
CALLS = 1000
_MOST_BEHIND = 2.0
"""Seconds of work that may wait before the producer of a steady load holds back."""
_PRUNED_WITHIN = 20.0
"""Seconds within which a worker, which looks every 15, has removed what has lingered."""
_STEPS = 20
"""How often in a second a producer hands over its share."""


def steady(place: Place, seconds: float) -> Iterator[Row]:
    """Work at 60 % of what this machine can do."""
    rate, samples, empty, after = asyncio.run(_steady(place, seconds))
    yield _row("steady: jobs a second, 60 % of the full speed", None, "jobs/s", rate)
    yield from _unchanged("steady", samples)
    yield _row("steady: size after everything has expired / before the first job", 2.0, "×", after / empty)


async def _steady(place: Place, seconds: float) -> tuple[float, list[Sample], int, int]:
    storage, numbers = place.storage(), itertools.count()
    queue = Queue[str, None](storage, concurrency=CALLERS, result_ttl=KEPT)
    queue.execute(do_nothing)
    pace = _Pace(queue)
    async with queue, Reaper(storage, visibility_timeout=2.0):
        empty = place.size()
        await _complete(queue, numbers, 100)
        rate = LOAD * await _full_speed(queue, numbers)
        ended = asyncio.Event()
        producer = asyncio.create_task(_produce(queue, numbers, rate, pace, ended))
        samples = await watch(place, seconds)
        ended.set()
        await producer
        await asyncio.sleep(KEPT + LINGER + _PRUNED_WITHIN)
        return rate, samples, empty, place.size()


async def _full_speed(queue: Queue[str, None], numbers: Iterator[int]) -> float:
    """Let jobs be run as fast as they can; return how many a second."""
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < 5.0:
        done += await _complete(queue, numbers, 1000)
    return done / (time.perf_counter() - started)


async def _complete(queue: Queue[str, None], numbers: Iterator[int], count: int) -> int:
    ids = [str(number) for number in itertools.islice(numbers, count)]
    await queue.enqueue_many([(id, PAYLOAD) for id in ids])
    await asyncio.gather(*(queue.wait(id) for id in ids))
    return count


class _Pace:
    """How far the worker is behind the producer."""

    def __init__(self, queue: Queue[str, None]) -> None:
        self.completed = 0
        queue.on("completed", self._count)

    def _count(self, _id: str, _result: None) -> None:
        self.completed += 1


async def _produce(
    queue: Queue[str, None], numbers: Iterator[int], rate: float, pace: _Pace, ended: asyncio.Event
) -> None:
    """Hand over so many jobs a second, and have each tenth awaited; hold back while the machine has too much to do."""
    waits: set[asyncio.Task[None]] = set()
    before, sent, owed, last = pace.completed, 0, 0.0, time.perf_counter()
    while not ended.is_set():
        now = time.perf_counter()
        owed, last = min(rate, owed + (now - last) * rate), now
        if sent - (pace.completed - before) < rate * _MOST_BEHIND:
            ids = [str(number) for number in itertools.islice(numbers, int(owed))]
            sent, owed = sent + len(ids), owed - len(ids)
            await queue.enqueue_many([(id, PAYLOAD) for id in ids])
            for id in ids[::10]:
                wait = asyncio.create_task(queue.wait(id, timeout=60))
                waits.add(wait)
                wait.add_done_callback(waits.discard)
        await asyncio.sleep(1 / _STEPS)
    await asyncio.gather(*waits)


def flood(place: Place, seconds: float) -> Iterator[Row]:
    """Hand over ten times as many jobs as the worker runs."""
    samples, sent, done, left = asyncio.run(_flood(place, seconds))
    yield _row("flood: handed over / run", None, "×", sent / max(1, done))
    yield _row("flood: jobs that are missing from the backlog", 0.0, "jobs", abs(sent - done - left))
    yield from _unchanged("flood", samples)


async def _flood(place: Place, seconds: float) -> tuple[list[Sample], int, int, int]:
    rate, numbers, done = 2000.0, itertools.count(), 0
    storage = place.storage()
    queue = Queue[str, None](storage, name="flood", concurrency=CALLERS)

    @queue.execute
    async def dawdle(job: Job[str]) -> None:
        await asyncio.sleep(10 * CALLERS / rate)

    @queue.on("completed")
    def count(_id: str, _result: None) -> None:
        nonlocal done
        done += 1

    async with queue:
        ended = asyncio.Event()
        producer = asyncio.create_task(_pour(queue, numbers, rate, ended))
        samples = await watch(place, seconds)
        ended.set()
        await producer
    async with Queue[str, None](storage, name="flood") as looking:
        counts = await looking.counts()
    return samples, next(numbers), done, counts[State.QUEUED]


async def _pour(queue: Queue[str, None], numbers: Iterator[int], rate: float, ended: asyncio.Event) -> None:
    started, sent = time.perf_counter(), 0
    while not ended.is_set():
        due = round((time.perf_counter() - started) * rate) - sent
        sent += due
        await queue.enqueue_many([(str(next(numbers)), PAYLOAD) for _ in range(due)])
        await asyncio.sleep(1 / _STEPS)


def crowd(place: Place, seconds: float) -> Iterator[Row]:
    """Keep a thousand idle workers on one storage."""
    with_one, with_all, cpu = asyncio.run(_crowd(place, min(seconds, 20.0)))
    yield _row(f"crowd: CPU of {QUEUES:,} idle queues", 2.0, "%", cpu)
    for what in ("threads", "descriptors", "connections"):
        more = getattr(with_all, what) - getattr(with_one, what)
        yield _row(f"crowd: {what} more than with one queue", 4.0, what, more)


async def _crowd(place: Place, seconds: float) -> tuple[Sample, Sample, float]:
    storage = place.storage()
    async with AsyncExitStack() as queues:
        for number in range(QUEUES):
            queue = Queue[str, None](storage, name=f"queue-{number}")
            queue.execute(do_nothing)
            await queues.enter_async_context(queue)
            if number == 0:
                await queue.enqueue_and_wait("first", PAYLOAD)
                with_one = look(place)
        await queue.enqueue_and_wait("last", PAYLOAD)
        await asyncio.sleep(2.0)
        used, started = time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        cpu = 100 * (time.process_time() - used) / (time.perf_counter() - started)
        return with_one, look(place), cpu


def backoff(place: Place, seconds: float, *, failed: int = FAILED, calls: int = CALLS) -> Iterator[Row]:
    """Let thousands of jobs fail and wait for an hour, while others come and go."""
    spared, struck = asyncio.run(_backoff(place, failed, calls))
    yield _row(f"backoff: a call, median, beside {failed:,} jobs in backoff / beside none", 1.3, "×", struck / spared)


async def _backoff(place: Place, failed: int, calls: int) -> tuple[float, float]:
    storage = place.storage()
    spared, struck = _failing(storage, "spared"), _failing(storage, "struck")
    async with spared, struck:
        for start in range(0, failed, 1000):
            await struck.enqueue_many(
                [(f"failing-{number}", "fail") for number in range(start, min(start + 1000, failed))]
            )
        while (await struck.counts())[State.FAILING] < failed:
            await asyncio.sleep(0.2)
        took: dict[Queue[str, None], list[float]] = {spared: [], struck: []}
        for number in range(calls):
            for queue, times in took.items():  # In turn, so that both see the same machine.
                started = time.perf_counter()
                await queue.enqueue_and_wait(f"call-{number}", PAYLOAD)
                times.append(time.perf_counter() - started)
        return statistics.median(took[spared]), statistics.median(took[struck])


def _failing(storage: Storage, name: str) -> Queue[str, None]:
    queue = Queue[str, None](storage, name=name, concurrency=CALLERS, retry=FixedDelay(3600.0))

    @queue.execute
    async def fail(job: Job[str]) -> None:
        if job.payload == "fail":
            raise ValueError("as it was told to")

    return queue


def _unchanged(scene: str, samples: Sequence[Sample]) -> Iterator[Row]:
    counted = samples[int(len(samples) * WARM_UP) :]
    yield _row(f"{scene}: memory, MB more in a minute", 1.0, "MB/min", megabytes_a_minute(counted))
    yield _row(f"{scene}: memory, median", None, "MB", statistics.median(one.memory for one in counted) / 2**20)
    for what, bound in (("tasks", 20.0), ("threads", 0.0), ("descriptors", 0.0), ("connections", 0.0)):
        yield _row(f"{scene}: {what} more at the end", bound, what, risen(counted, what))


def _row(name: str, bound: float | None, unit: str, value: float) -> Row:
    return Row(Goal(name, bound, unit, at_least=False), (value,))


SCENES = {"steady": steady, "flood": flood, "crowd": crowd, "backoff": backoff}
