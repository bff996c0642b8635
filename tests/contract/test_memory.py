"""What is special to memory: clocks that jump make it forget nothing, and its heaps stay in order while they shrink."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from jobq import MemoryStorage, State
from jobq.job import NewJob
from jobq.storage.contract import LINGER
from jobq.storage.records import NEVER, NO_ANSWERS, LazyHeap, Record
from jobq.testing import Bench, ManualClock, StorageCase


def with_memory(behaviour: Callable[[Bench], Awaitable[None]]) -> None:
    """Play a scene on a new storage with a clock that is set by hand."""

    async def play() -> None:
        clock = ManualClock()
        bench = Bench(StorageCase(), clock, MemoryStorage(clock=clock))
        await bench.storage.open()
        await behaviour(bench)
        await bench.close()

    asyncio.run(play())


def test_a_job_that_ended_before_the_wall_clock_jumped_is_not_run_again() -> None:
    """Its add may still be sent again, although by the new time it has expired long ago."""

    async def behaviour(bench: Bench) -> None:
        job = bench.new()
        await bench.queue.add([job])
        await bench.settle(await bench.take(), ttl=0.0)
        bench.clock.jump_wall(3600.0)

        assert await bench.queue.prune(100) == 0
        assert await bench.queue.add([job]) == [None]
        assert (await bench.claim()).claims == []

        bench.clock.advance(LINGER)
        assert await bench.queue.prune(100) == 1

    with_memory(behaviour)


def test_a_change_that_was_made_before_the_wall_clock_jumped_is_answered_alike() -> None:
    """However long ago the job had ended."""

    async def behaviour(bench: Bench) -> None:
        await bench.completed(ttl=3600.0)
        bench.clock.advance(100.0)
        assert await bench.retain(ttl=0.0, nonce="n.1") is State.COMPLETED
        bench.clock.jump_wall(3600.0)

        assert await bench.queue.prune(100) == 0
        assert await bench.retain(ttl=0.0, nonce="n.1") is State.COMPLETED

        bench.clock.advance(LINGER)
        assert await bench.queue.prune(100) == 1

    with_memory(behaviour)


def test_a_heap_is_in_order_whatever_left_it_before_it_was_cleared_of_that() -> None:
    """It is cleared now and then of what has moved, and what stays must come out in its order."""
    chance = random.Random(7)
    heap, records = LazyHeap("due"), list[Record]()
    for number in range(20_000):
        record = Record(NewJob(str(number), f"n.{number}", b"", 1, 60.0), 0.0, NO_ANSWERS)
        record.due = chance.random()
        records.append(record)
        heap.push(record.due, record)
        if chance.random() < 0.8:
            chance.choice(records[-1000:]).due = NEVER

    popped = []
    while record := heap.pop():
        popped.append(record.due)

    assert popped == sorted(record.due for record in records if record.due != NEVER)
