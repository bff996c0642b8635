"""Real processes on FileStorage: killed, stopped, signalled. Nothing is lost, and nothing completes twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jobq import FileStorage, Queue, State

PROGRAM = Path(__file__).with_name("program.py")
LEASE = 1.0
"""As in the program."""
RECOVERY = LEASE + 2.0
PATIENCE = 20.0


class World:
    """A directory, an audit file, and the processes that use them."""

    def __init__(self, path: Path) -> None:
        self.directory = path / "data"
        self._audit = path / "audit"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, mode: str, number: float, failpoint: str = "-") -> subprocess.Popen[bytes]:
        command = [sys.executable, PROGRAM, mode, self.directory, self._audit, failpoint, f"{number:g}"]
        process = subprocess.Popen(command)
        self._processes.append(process)
        return process

    def facts(self, kind: str) -> list[str]:
        if not self._audit.exists():
            return []
        lines = (line.split() for line in self._audit.read_text().splitlines())
        return [line[1] for line in lines if line[0] == kind]

    def await_fact(self, kind: str, count: int = 1, within: float = PATIENCE) -> None:
        self.await_that(lambda: len(self.facts(kind)) >= count, f"{count} x {kind}", within)

    def await_that(self, condition: Callable[[], bool], what: str, within: float = PATIENCE) -> None:
        give_up_at = time.monotonic() + within
        while not condition():
            assert time.monotonic() < give_up_at, f"no {what} within {within} s: {self._audit.read_text()[-2000:]}"
            time.sleep(0.01)

    def states(self) -> dict[str, State | None]:
        """Read every job that the audit knows."""

        async def read() -> dict[str, State | None]:
            async with Queue[int, int](FileStorage(self.directory)) as queue:
                statuses = {id: await queue.get_status(id) for id in sorted(set(self.facts("asked")))}
                return {id: status and status.state for id, status in statuses.items()}

        return asyncio.run(read())

    def check(self) -> None:
        """Assert that what was acknowledged is completed, and that nothing completed twice."""
        states = self.states()
        lost = [id for id in self.facts("queued") if states.get(id) is not State.COMPLETED]
        twice = [id for id, count in Counter(self.facts("completed")).items() if count > 1]
        assert (lost, twice) == ([], [])

    def freeze(self, process: subprocess.Popen[bytes]) -> None:
        """Stop a process, but not while it holds the database's write lock, which would stop everybody."""
        while True:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # With all threads.
            (path,) = self.directory.glob("*.sqlite3")
            with closing(sqlite3.connect(path, timeout=0.5, isolation_level=None)) as connection:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError:
                    process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.end()


POINTS = ("before", "commit", "after")


@pytest.mark.parametrize("point", POINTS)
def test_a_producer_killed_in_add_loses_nothing_that_it_acknowledged(world: World, point: str) -> None:
    assert world.start("produce", 10, f"add.{point}:5").wait(PATIENCE) == -signal.SIGKILL

    assert world.start("work", 0).wait(PATIENCE) == 0

    assert len(world.facts("queued")) == 4
    assert set(world.facts("started")) <= set(world.facts("asked"))
    world.check()


@pytest.mark.parametrize("verb", ["claim", "settle", "extend"])
@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_in_any_verb_loses_no_job(world: World, verb: str, point: str) -> None:
    assert world.start("produce", 12).wait(PATIENCE) == 0
    seconds = 0.6 if verb == "extend" else 0.0

    died = world.start("work", seconds, f"{verb}.{point}:{1 if verb == 'extend' else 2}")
    assert died.wait(PATIENCE) == -signal.SIGKILL
    died_at = time.monotonic()
    assert world.start("work", seconds).wait(PATIENCE) == 0

    assert time.monotonic() - died_at < RECOVERY + 3 * seconds + 1.0  # One more for the start of an interpreter.
    world.check()


def test_a_worker_stopped_for_ten_leases_completes_nothing_twice(world: World) -> None:
    assert world.start("produce", 4).wait(PATIENCE) == 0
    frozen = world.start("serve", 1.5)
    world.await_fact("started", 4)

    world.freeze(frozen)
    assert world.start("work", 0.0).wait(PATIENCE) == 0
    time.sleep(10 * LEASE - RECOVERY)
    frozen.send_signal(signal.SIGCONT)

    world.await_fact("lease_lost", 4, within=3.0)
    frozen.send_signal(signal.SIGTERM)
    assert frozen.wait(PATIENCE) == 0
    assert sorted(world.facts("lease_lost")) == [f"job-{n}" for n in range(4)]
    assert len(world.facts("completed")) == 4
    world.check()


def test_sigterm_lets_running_jobs_finish_and_gives_nothing_up(world: World) -> None:
    assert world.start("produce", 8).wait(PATIENCE) == 0
    stopping = world.start("serve", 0.5)
    world.await_fact("started", 4)

    stopping.send_signal(signal.SIGTERM)
    assert stopping.wait(PATIENCE) == 0

    assert sorted(world.facts("started")) == sorted(world.facts("completed"))
    assert world.start("work", 0.0).wait(PATIENCE) == 0
    world.check()


def test_a_second_sigterm_gives_back_what_runs_within_a_second(world: World) -> None:
    assert world.start("produce", 4).wait(PATIENCE) == 0
    stopping = world.start("serve", 60)
    world.await_fact("started", 4)

    stopping.send_signal(signal.SIGTERM)
    time.sleep(0.1)  # Two signals at once would arrive as one.
    stopping.send_signal(signal.SIGTERM)
    signalled_at = time.monotonic()

    assert stopping.wait(PATIENCE) == 0
    assert time.monotonic() - signalled_at < 1.5
    assert len(world.facts("requeued")) == 4
    assert world.start("work", 0.0).wait(PATIENCE) == 0
    world.check()


def test_jobs_of_a_process_that_exits_without_stop_are_recovered(world: World) -> None:
    assert world.start("produce", 4).wait(PATIENCE) == 0
    code = (
        "import asyncio, sys\n"
        "from jobq import FileStorage, Queue\n"
        "async def main():\n"
        "    queue = Queue(FileStorage(sys.argv[1]), concurrency=4, visibility_timeout=1.0)\n"
        "    begun = asyncio.Event()\n"
        "    async def handle(job):\n"
        "        begun.set()\n"
        "        await asyncio.sleep(60)\n"
        "    queue.execute(handle)\n"
        "    await queue.start()\n"
        "    await begun.wait()\n"
        "asyncio.run(main())\n"
    )
    left_at = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", code, world.directory], capture_output=True, timeout=PATIENCE, check=True
    )

    assert time.monotonic() - left_at < 4.0
    assert b"without stop" in process.stderr
    assert world.start("work", 0.0).wait(PATIENCE) == 0
    world.check()
