"""What an idle worker costs itself and the server, and how late it begins what falls due while it sleeps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from benchmarks.idle import SETTLING, lateness_goals, latenesses
from benchmarks.measure import Goal, Plan, Row, queue_on, rows
from benchmarks.servers.server import Server, growth, inside_scripts


def measure(server: Server, plan: Plan) -> Iterator[Row]:
    goals = (
        Goal(f"{server.kind}: CPU of an idle worker", 1.0, "%", at_least=False),
        Goal(f"{server.kind}: commands sent by an idle worker", 1.0, "commands/s", at_least=False),
        Goal(f"{server.kind}: commands inside its scripts", None, "commands/s", at_least=False),
    )
    # A full turn: after its block_timeout a worker looks around.
    seconds = 1.0 if plan.quick else 5.5
    yield from rows(goals, lambda: asyncio.run(_idle(server, seconds)), warm_up=False)
    yield from rows(lateness_goals(server.kind), lambda: _latenesses(server))


async def _idle(server: Server, seconds: float) -> tuple[float, float, float]:
    async with queue_on(server.storage()):
        await asyncio.sleep(SETTLING)
        calls = server.calls()
        used, started = time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        passed, cost = time.perf_counter() - started, time.process_time() - used
        made = growth(calls, server.calls())
    server.empty()
    inside = inside_scripts(made)
    return 100 * cost / passed, (sum(made.values()) - inside) / passed, inside / passed


def _latenesses(server: Server) -> tuple[float, float, float]:
    late = asyncio.run(latenesses(server.storage()))
    server.empty()
    return late
