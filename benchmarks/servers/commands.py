"""What a job makes the server do, from its add to its result: 100 callers, and a worker in another process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

from benchmarks.measure import CALLERS, PAYLOAD, Goal, Plan, Row, per_second, rows
from benchmarks.servers.server import Server, growth, inside_scripts, scripts_in
from benchmarks.worker import serving
from jobq import Queue


def measure(server: Server, plan: Plan) -> Iterator[Row]:
    goals = (
        Goal(f"{server.kind}: commands inside scripts for a job", None, "commands", at_least=False),
        Goal(f"{server.kind}: scripts for a job, {CALLERS} callers", None, "scripts", at_least=False),
        Goal(f"{server.kind}: socket reads for a job, {CALLERS} callers", None, "reads", at_least=False),
    )
    names = itertools.count()
    with serving(server.url, "full"):
        yield from rows(goals, lambda: asyncio.run(_per_job(server, next(names), plan.jobs(10_000))))
    server.empty()


async def _per_job(server: Server, run: int, count: int) -> tuple[float, float, float]:
    queue = Queue[str, float](server.storage())

    async def call(number: int) -> None:
        await queue.enqueue_and_wait(f"{run}-{number}", PAYLOAD)

    async with queue:
        await call(-1)
        calls, reads = server.calls(), server.reads()
        await per_second(count, call)
        made, read = growth(calls, server.calls()), server.reads() - reads
    return inside_scripts(made) / count, scripts_in(made) / count, read / count
