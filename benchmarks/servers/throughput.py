"""Jobs per second: added in three ways, and drained by one worker process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from benchmarks.measure import CALLERS, PAYLOAD, Goal, Plan, Row, per_second, queue_on, rows
from benchmarks.servers.server import Server
from benchmarks.worker import drained_per_second

_BULK = 1_000


def measure(server: Server, plan: Plan) -> Iterator[Row]:
    kind = server.kind
    goals = (
        Goal(f"{kind}: add one by one", 20_000, "jobs/s"),
        Goal(f"{kind}: add by {CALLERS} callers", 70_000, "jobs/s"),
        Goal(f"{kind}: enqueue_many of {_BULK:,}", 100_000, "jobs/s"),
        Goal(f"{kind}: drain by one process", 45_000, "jobs/s"),
    )
    yield from rows(goals, lambda: _run(server, plan))


def _run(server: Server, plan: Plan) -> tuple[float, float, float, float]:
    count = plan.jobs(40_000)
    alone = asyncio.run(_add(server, plan.jobs(20_000), callers=1))
    together = asyncio.run(_add(server, count, callers=CALLERS))
    in_bulk = asyncio.run(_add_in_bulk(server, count))
    drained = drained_per_second(server.url, "full", count)
    server.empty()
    return alone, together, in_bulk, drained


async def _add(server: Server, count: int, *, callers: int) -> float:
    queue = queue_on(server.storage(), consume=False)
    async with queue:
        added = await per_second(count, lambda number: queue.enqueue(f"job-{number}", PAYLOAD), callers=callers)
    server.empty()
    return added


async def _add_in_bulk(server: Server, count: int) -> float:
    """Leave the jobs where they are, for a worker."""
    queue = queue_on(server.storage(), consume=False)
    bulks = [[(f"job-{number}", PAYLOAD) for number in range(start, start + _BULK)] for start in range(0, count, _BULK)]
    async with queue:
        return _BULK * await per_second(len(bulks), lambda number: queue.enqueue_many(bulks[number]), callers=1)
