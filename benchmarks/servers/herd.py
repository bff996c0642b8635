"""64 idle workers and one job: it runs once, and the others sleep on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

from benchmarks.idle import SETTLING
from benchmarks.measure import PAYLOAD, Goal, Plan, Row, rows
from benchmarks.servers.server import Server, growth, scripts_in
from jobq import Job, Queue

_WORKERS = 64
_AFTERMATH = 0.3  # Whoever was woken has asked by then.


def measure(server: Server, plan: Plan) -> Iterator[Row]:
    goals = (
        Goal(f"{server.kind}: {_WORKERS} idle workers, one job: executions", 1, "runs", at_least=False),
        Goal(f"{server.kind}: {_WORKERS} idle workers, one job: more scripts than for 1", 2, "scripts", at_least=False),
    )
    yield from rows(goals, lambda: asyncio.run(_wake(server)), warm_up=False)


async def _wake(server: Server) -> tuple[float, float]:
    executions, scripts = await _job_among(server, _WORKERS)
    _, least = await _job_among(server, 1)
    return executions, max(0, scripts - least)


async def _job_among(server: Server, workers: int) -> tuple[int, int]:
    """Return how often the job ran, and how many scripts the server ran meanwhile."""
    executions = 0

    async def count(job: Job[str]) -> None:
        nonlocal executions
        executions += 1

    async with AsyncExitStack() as ending:
        for _ in range(workers):
            # Each on connections of its own, as in processes of their own; none looks around by itself meanwhile.
            queue = Queue[str, None](server.storage(), block_timeout=60.0)
            queue.execute(count)
            await ending.enter_async_context(queue)
        caller = await ending.enter_async_context(Queue[str, None](server.storage()))
        await asyncio.sleep(SETTLING)
        calls = server.calls()
        await caller.enqueue_and_wait("job", PAYLOAD)
        await asyncio.sleep(_AFTERMATH)
        scripts = scripts_in(growth(calls, server.calls()))
    server.empty()
    return executions, scripts
