"""A worker process whose server goes away for longer than requests are sent again, as its log shows it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobq import Queue, RedisStorage, State
from tests.faults_redis.scenes import RESUMES_WITHIN, eventually, in_loop, passing
from tests.servers.fixtures import REDIS_KINDS, Starter
from tests.servers.server import Server

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "faults" / "program.py"
OUTAGE = 6.5
"""Seconds; a request is sent again for 5."""

pytestmark = pytest.mark.slow


@pytest.fixture(params=REDIS_KINDS)
def server(request: pytest.FixtureRequest, start: Starter) -> Server:
    return start.server(request.param, persistence="always")


@pytest.fixture
def worker(server: Server, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command: list[str | Path] = [sys.executable, PROGRAM, "serve", server.url, tmp_path / "audit", "-", "0.2"]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as worker:
        yield worker
        worker.kill()


@pytest.mark.parametrize("how", ["killed", "frozen"])
@in_loop
async def test_it_resumes_within_two_seconds_and_says_each_thing_once(
    server: Server, worker: subprocess.Popen[str], how: str
) -> None:
    """Also with four jobs running when it begins, whose results find no server before their leases end."""
    async with Queue[int, int](RedisStorage(server.url), max_attempts=10) as queue:
        assert await queue.enqueue_and_wait("before", 1) == 2
        await queue.enqueue_many([(f"job-{number}", number) for number in range(4)])
        await eventually(partial(_runs, queue), "a running job")
    server.kill() if how == "killed" else server.pause()
    await passing(OUTAGE)
    server.start() if how == "killed" else server.resume()
    back_at = time.monotonic()

    async with Queue[int, int](RedisStorage(server.url)) as queue:
        assert await queue.enqueue_and_wait("after", 21) == 42
        assert time.monotonic() - back_at < RESUMES_WITHIN
        assert await asyncio.gather(*(queue.wait(f"job-{number}") for number in range(4))) == [0, 2, 4, 6]
    worker.send_signal(signal.SIGTERM)
    said = (await asyncio.to_thread(worker.communicate))[1].splitlines()

    assert worker.returncode == 0
    by_storage = [line for line in said if line.startswith(server.url)]
    by_queue = [line for line in said if line not in by_storage]
    assert len(by_storage) == 2, said
    assert " is unavailable" in by_storage[0]
    assert " is back after" in by_storage[1]
    # A frozen server is noticed after 5 s only, and what is then sent again is answered in time.
    assert len(by_queue) == 2 or (how == "frozen" and not by_queue), said
    if by_queue:
        assert by_queue[0].startswith("jobq: "), "what an error event tells if nobody listens"
        assert " is unavailable" in by_queue[0]
        assert "the storage answers again" in by_queue[1]


async def _runs(queue: Queue[int, int]) -> bool:
    return (await queue.counts())[State.PROCESSING] > 0
