"""Real processes on real servers, killed with SIGKILL at every verb: nothing is lost, and nothing completes twice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobq import Queue, RedisStorage, State
from tests.faults_redis.scenes import leftovers, states
from tests.servers.binaries import Kind
from tests.servers.fixtures import REDIS_KINDS, Starter
from tests.servers.server import Server
from tests.servers.waiting import wait_for

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "faults" / "program.py"
LEASE = 1.0
"""As in the program."""
RECOVERY = LEASE + 2.0
PATIENCE = 20.0


class World:
    """A server of its own, an audit file, and the processes that use them."""

    def __init__(self, server: Server, path: Path) -> None:
        self.server = server
        self._audit = path / "audit"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, mode: str, number: float, failpoint: str = "-") -> subprocess.Popen[bytes]:
        command: list[str | Path] = [
            sys.executable,
            PROGRAM,
            mode,
            self.server.url,
            self._audit,
            failpoint,
            f"{number:g}",
        ]
        paths = os.pathsep.join([str(ROOT), *sys.path])
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
        self._processes.append(process)
        return process

    def facts(self, kind: str) -> list[str]:
        if not self._audit.exists():
            return []
        lines = (line.split() for line in self._audit.read_text().splitlines())
        return [line[1] for line in lines if line[0] == kind]

    def await_facts(self, kind: str, count: int) -> None:
        wait_for(lambda: len(self.facts(kind)) >= count, f"{count} x {kind}")

    def produce(self, count: int) -> None:
        """Enqueue jobs from here, as the program does."""

        async def enqueue() -> None:
            async with Queue[int, int](RedisStorage(self.server.url), max_attempts=10) as queue:
                await queue.enqueue_many([(f"job-{number}", number) for number in range(count)])

        asyncio.run(enqueue())
        self._audit.write_text("".join(f"asked job-{number}\nqueued job-{number}\n" for number in range(count)))

    def states(self) -> dict[str, State | None]:
        """Read every job that the audit knows."""

        async def read() -> dict[str, State | None]:
            async with Queue[int, int](RedisStorage(self.server.url)) as queue:
                return dict(await states(queue, sorted(set(self.facts("asked")))))

        return asyncio.run(read())

    def check(self) -> None:
        """Assert that what was acknowledged is completed or cancelled, nothing twice, and nothing is left over."""
        found, cancelled = self.states(), set(self.facts("cancelled"))
        lost = [id for id in self.facts("queued") if found.get(id) is not State.COMPLETED and id not in cancelled]
        twice = [id for id, count in Counter(self.facts("completed")).items() if count > 1]
        both = [id for id in cancelled if found.get(id) is not None or id in self.facts("started")]
        assert (lost, twice, both) == ([], [], [])
        assert leftovers(self.server, "jobq:{default}:") == {"ready": 0, "later": 0, "leases": 0}

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


@pytest.fixture(params=REDIS_KINDS)
def world(request: pytest.FixtureRequest, start: Starter, tmp_path: Path) -> Iterator[World]:
    kind: Kind = request.param
    world = World(start.server(kind), tmp_path)
    yield world
    world.end()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before", "after"])
def test_a_producer_killed_in_add_loses_nothing_that_it_acknowledged(world: World, point: str) -> None:
    assert world.start("produce", 10, f"add.{point}:5").wait(PATIENCE) == -signal.SIGKILL

    assert world.start("work", 0).wait(PATIENCE) == 0

    assert len(world.facts("queued")) == 4
    assert len(world.facts("completed")) == (4 if point == "before" else 5)
    assert set(world.facts("started")) <= set(world.facts("asked"))
    world.check()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before", "after"])
def test_one_killed_in_cancel_leaves_each_job_whole(world: World, point: str) -> None:
    """Cancelled or not: what was answered ``cancelled`` never runs, the rest does."""
    world.produce(10)

    assert world.start("cancel", 10, f"cancel.{point}:5").wait(PATIENCE) == -signal.SIGKILL
    assert world.start("work", 0).wait(PATIENCE) == 0

    assert len(world.facts("cancelled")) == 4
    assert len(world.facts("completed")) == (6 if point == "before" else 5)
    twice = [id for id, count in Counter(world.facts("started")).items() if count > 1]
    assert (twice, set(world.facts("started")) & set(world.facts("cancelled"))) == ([], set())


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["claim", "settle", "extend"])
@pytest.mark.parametrize("point", ["before", "after"])
def test_a_worker_killed_in_any_verb_loses_no_job(world: World, verb: str, point: str) -> None:
    world.produce(12)
    seconds = 0.6 if verb == "extend" else 0.0

    died = world.start("work", seconds, f"{verb}.{point}:{1 if verb == 'extend' else 2}")
    assert died.wait(PATIENCE) == -signal.SIGKILL
    heir = world.start("work", seconds)
    world.await_facts("serving", 2)
    serving_at = time.monotonic()
    assert heir.wait(PATIENCE) == 0

    assert time.monotonic() - serving_at < RECOVERY + 3 * seconds
    world.check()


@pytest.mark.slow
def test_a_worker_stopped_for_three_leases_completes_nothing_twice(world: World) -> None:
    """Its connections, its threads and its clock stand still; awake again, it gives up what others have done."""
    world.produce(4)
    frozen = world.start("serve", 1.5)
    world.await_facts("started", 4)

    frozen.send_signal(signal.SIGSTOP)
    assert world.start("work", 0.0).wait(PATIENCE) == 0
    frozen.send_signal(signal.SIGCONT)

    world.await_facts("lease_lost", 4)
    frozen.send_signal(signal.SIGTERM)
    assert frozen.wait(PATIENCE) == 0
    assert sorted(world.facts("lease_lost")) == [f"job-{n}" for n in range(4)]
    assert len(world.facts("completed")) == 4
    world.check()


@pytest.mark.slow
def test_workers_that_are_killed_again_and_again_lose_nothing(world: World) -> None:
    """Two at a time, each killed in the middle of its jobs; the last two end the work."""
    world.produce(120)
    for round in range(2):
        workers = [world.start("serve", 0.02) for _ in range(2)]
        world.await_facts("completed", 30 * (round + 1))
        for worker in workers:
            worker.kill()
            worker.wait()

    workers = [world.start("work", 0.0) for _ in range(2)]

    assert [worker.wait(PATIENCE) for worker in workers] == [0, 0]
    world.check()
