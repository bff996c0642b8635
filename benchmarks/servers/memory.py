"""Bytes that a completed job takes in the server's memory: an id of 10 bytes, a small result, a full status."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from benchmarks.measure import CALLERS, PAYLOAD, Goal, Plan, Row, per_second, rows
from benchmarks.servers.server import Server
from jobq import Job, Queue


def measure(server: Server, plan: Plan) -> Iterator[Row]:
    goal = Goal(f"{server.kind}: memory for a completed job", 250, "bytes", at_least=False)
    # The tables of the server's keys double now and then: with this many jobs they are filled as on average.
    yield from rows([goal], lambda: (asyncio.run(_bytes_per_job(server, plan.jobs(20_000))),))


async def _bytes_per_job(server: Server, count: int) -> float:
    queue = Queue[str, str](server.storage(), concurrency=CALLERS)

    @queue.execute
    async def answer(job: Job[str]) -> str:
        return "done"

    async def call(number: int) -> None:
        await queue.enqueue_and_wait(f"{number:010}", PAYLOAD)

    # Both looks come while the same connections are open and have been used, so that their buffers cancel out.
    async with queue:
        await per_second(CALLERS, lambda number: call(count + number))
        before = server.used_memory()
        await per_second(count, call)
        after = server.used_memory()
    server.empty()
    return (after - before) / count
