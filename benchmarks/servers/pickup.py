"""How soon an idle worker in another process begins a job."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

from benchmarks.measure import Goal, Plan, Row, percentile, rows
from benchmarks.pickup import pick_up
from benchmarks.servers.server import Server
from benchmarks.worker import serving


def measure(server: Server, plan: Plan) -> Iterator[Row]:
    goals = (
        Goal(f"{server.kind}: pick-up by an idle worker, median", 1.5, "ms", at_least=False),
        Goal(f"{server.kind}: pick-up by an idle worker, p99", 5.0, "ms", at_least=False),
    )
    numbers = itertools.count()

    def run() -> tuple[float, float]:
        taken = asyncio.run(pick_up(server.storage(), numbers, plan.jobs(150)))
        return percentile(taken, 50), percentile(taken, 99)

    with serving(server.url, "full"):
        yield from rows(goals, run)
    server.empty()
