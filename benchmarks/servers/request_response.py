"""Calls to a worker in another process and back, at the five settings by which the original measures itself.

A hundred requests of one caller; then 10, 50 and 100 concurrent callers, with enough requests to last for a while; then
100 callers for some seconds. The latencies are those of the run whose throughput is the median.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.measure import PAYLOAD, REPETITIONS, Goal, Plan, Row, percentile
from benchmarks.servers.server import Server
from benchmarks.worker import serving
from jobq import Queue


class _Setting(NamedTuple):
    name: str
    callers: int
    requests: int | None
    """None: as many as fit into the seconds."""
    target: float | None
    seconds: float = 0.0


class _Run(NamedTuple):
    latencies: list[float]
    """Milliseconds."""
    seconds: float

    @property
    def throughput(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def details(self) -> dict[str, float]:
        taken = self.latencies
        return {
            "requests": len(taken),
            "per second": self.throughput,
            "min": min(taken),
            "p50": percentile(taken, 50),
            "p95": percentile(taken, 95),
            "p99": percentile(taken, 99),
            "max": max(taken),
            "avg": sum(taken) / len(taken),
        }


def measure(server: Server, plan: Plan) -> Iterator[Row]:
    settings = (
        _Setting("1 caller", 1, 100, 4_000),
        _Setting("10 callers", 10, plan.jobs(2_000), 16_000),
        _Setting("50 callers", 50, plan.jobs(10_000), 22_000),
        _Setting("100 callers", 100, plan.jobs(20_000), 22_000),
        _Setting("sustained, 100 callers", 100, None, 22_000, 0.5 if plan.quick else 3.0),
    )
    with serving(server.url, "full"):
        for setting in settings:
            yield from _rows(server, setting)
    server.empty()


def _rows(server: Server, setting: _Setting) -> Iterator[Row]:
    numbers = itertools.count()
    runs = []
    for _ in range(1 + REPETITIONS):
        gc.collect()
        runs.append(asyncio.run(_call(server, setting, numbers)))
    del runs[0]  # It only warmed up.
    runs.sort(key=lambda run: run.throughput)
    name = f"{server.kind}: request/response, {setting.name}"
    goal = Goal(name, setting.target, "calls/s")
    yield Row(goal, [run.throughput for run in runs], runs[len(runs) // 2].details)
    if setting.callers == 1:
        yield Row(Goal(f"{name}, p50", 0.25, "ms", at_least=False), [run.details["p50"] for run in runs])


async def _call(server: Server, setting: _Setting, numbers: Iterator[int]) -> _Run:
    queue = Queue[str, float](server.storage())
    latencies: list[float] = []
    left = itertools.count() if setting.requests is None else range(setting.requests)
    turns = iter(left)

    async def caller(until: float) -> None:
        for _ in turns:
            asked = time.perf_counter()
            if setting.requests is None and asked > until:
                return
            await queue.enqueue_and_wait(f"{setting.callers}-{next(numbers)}", PAYLOAD)
            latencies.append(1000 * (time.perf_counter() - asked))

    async with queue:
        # What a first call costs (the watch, the scripts) belongs to none of them.
        await queue.enqueue_and_wait(f"first-{setting.name}-{next(numbers)}", PAYLOAD)
        started = time.perf_counter()
        await asyncio.gather(*(caller(started + setting.seconds) for _ in range(setting.callers)))
        return _Run(latencies, time.perf_counter() - started)
