"""Ten thousand callers wait in one process, and the connection that tells them is killed again and again."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobq import Queue, RedisStorage
from tests.faults_redis.scenes import eventually, in_loop, kill_clients, reached
from tests.servers.fixtures import Starter
from tests.servers.server import Server

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "faults" / "program.py"
WAITERS = 10_000
LATEST = 2.0
"""Seconds after a job has ended within which whoever waits for it is answered."""


@pytest.fixture
def server_with_workers(start: Starter, tmp_path: Path) -> Iterator[Server]:
    server = start.server("valkey")
    paths = os.pathsep.join([str(ROOT), *sys.path])
    command: list[str | Path] = [sys.executable, PROGRAM, "serve", server.url, tmp_path / "audit", "-", "0"]
    workers = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}) for _ in range(2)]
    yield server
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    for worker in workers:
        assert worker.wait(20) == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
@in_loop
async def test_each_of_ten_thousand_waiters_is_answered_soon_after_its_job_has_ended(
    server_with_workers: Server,
) -> None:
    server = server_with_workers
    answered: dict[str, float] = {}
    most = 0

    async def kill() -> None:
        """Kill the subscriptions of everybody whenever a further sixth of the answers has come."""
        nonlocal most
        for share in range(1, 6):
            await eventually(partial(reached, answered, share * WAITERS // 6), "answers", within=40)
            most = max(most, len([line for line in server.command("CLIENT", "LIST").splitlines() if pid in line]))
            kill_subscription = partial(kill_clients, server, f"jobq-channels-{os.getpid()}")
            await eventually(kill_subscription, "subscription to kill")

    pid = f"-{os.getpid()} "
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with Queue[int, int](RedisStorage(server.url)) as queue:

        async def wait(number: int) -> None:
            assert await queue.enqueue_and_wait(f"job-{number}", number, timeout=60) == 2 * number
            answered[f"job-{number}"] = time.time()

        tasks = len(asyncio.all_tasks())
        await asyncio.gather(kill(), *(wait(number) for number in range(WAITERS)))
        statuses = await asyncio.gather(*(queue.get_status(id) for id in answered))

        assert 0 < most <= 4
        late = [
            (status.id, answered[status.id] - status.finished_at)
            for status in statuses
            if status is not None and status.finished_at is not None
            if answered[status.id] - status.finished_at > LATEST
        ]
        assert late == []
        assert {status and status.attempts for status in statuses} == {1}
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks + 1, "end of the tasks")  # One reads again.
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 150 * 1024
