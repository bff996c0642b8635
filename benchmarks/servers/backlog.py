"""Whether a long queue slows the verbs: each backlog has a database of its own on the server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

from benchmarks.backlog import ROUNDS, SMALL, VERBS, compare, fill
from benchmarks.measure import Goal, Plan, Row, rows
from benchmarks.servers.server import Server

_LARGE, _MILLION = 100_000, 1_000_000


def measure(server: Server, plan: Plan) -> Iterator[Row]:
    large = _MILLION if plan.million else _LARGE
    goals = [
        Goal(f"{server.kind}: {verb} with {large:,} waiting / {SMALL:,}", 1.3, "×", at_least=False) for verb in VERBS
    ]
    few, many = server.storage(0), server.storage(1)
    numbers = itertools.count()
    with asyncio.Runner() as runner:
        queues = runner.run(fill(few, SMALL)), runner.run(fill(many, large))
        yield from rows(goals, lambda: runner.run(compare(queues, numbers, plan.jobs(ROUNDS))))
        runner.run(few.close())
        runner.run(many.close())
    server.empty()
