"""A storage in trouble: what passes is survived, and what is refused is typed."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from jobq import FileStorage, Job, Queue, StorageCorruptError, StorageUnavailableError

LEASE = 1.0
LOCKED_FOR = 6.5
"""Longer than a request is sent again, and several leases."""


@pytest.mark.slow
@pytest.mark.storage("file")
def test_a_worker_survives_a_database_that_another_program_locks(tmp_path: Path) -> None:
    """Calls wait or fail typed, the loop goes on, and afterwards every job ends, none twice."""
    asyncio.run(_survive_a_lock(tmp_path))


async def _survive_a_lock(path: Path) -> None:
    queue = Queue[int, int](FileStorage(path), concurrency=4, visibility_timeout=LEASE, block_timeout=0.5)
    ended: Counter[str] = Counter()
    errors: list[BaseException] = []

    @queue.execute
    async def double(job: Job[int]) -> int:
        await asyncio.sleep(0)
        return 2 * job.payload

    queue.on("completed", lambda id, result: ended.update([id]))
    queue.on("error", errors.append)
    async with queue:
        await queue.enqueue_many([(f"job-{n}", n) for n in range(200)])
        released = asyncio.ensure_future(asyncio.to_thread(_hold_the_lock, path / "jobq.sqlite3", LOCKED_FOR))
        longest = await _longest_turn(released)
        await released
        results = await asyncio.gather(*(queue.wait(f"job-{n}", timeout=15) for n in range(200)))

    assert results == [2 * n for n in range(200)]
    assert max(ended.values()) == 1
    assert longest < 0.5
    assert all(isinstance(error, StorageUnavailableError) for error in errors)


def _hold_the_lock(path: Path, seconds: float) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=5.0)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        threading.Event().wait(seconds)
        connection.execute("COMMIT")


async def _longest_turn(until: asyncio.Future[None]) -> float:
    """Return the longest time that the loop needed for a turn."""
    loop = asyncio.get_running_loop()
    longest = 0.0
    while not until.done():
        began = loop.time()
        await asyncio.wait([until], timeout=0.02)
        longest = max(longest, loop.time() - began - 0.02)
    return longest


FULL = """
import asyncio, resource, sys
from jobq import FileStorage, Queue, StorageError

async def main():
    async with Queue(FileStorage(sys.argv[1])) as queue:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
        accepted, refused = [], []
        for number in range(40):
            try:
                await queue.enqueue(f"job-{number}", "x" * 200_000)
                accepted.append(number)
            except StorageError as error:
                refused.append(error)
                if len(refused) == 2:
                    break
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        statuses = [await queue.get_status(f"job-{number}") for number in accepted]
        again = await queue.enqueue("afterwards", 1)
        print(len(accepted) > 3, len(refused), all(statuses), again.status, type(refused[0]).__name__)

asyncio.run(main())
"""


@pytest.mark.storage("file")
def test_a_file_that_may_not_grow_refuses_and_keeps_what_it_accepted(tmp_path: Path) -> None:
    """A quota behaves like a full disk: the add is refused, typed, and works again once there is room."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, timeout=50, check=False
    )

    assert done.stdout.split()[:4] == ["True", "2", "True", "queued"], done.stdout + done.stderr
    assert done.stdout.split()[4] in ("StorageFullError", "StorageUnavailableError")


@pytest.mark.slow
@pytest.mark.storage("file")
def test_waiters_hear_of_files_that_are_gone_for_good(tmp_path: Path) -> None:
    """Every call says so, and no wait may last longer than that."""
    answers = asyncio.run(_wait_for_what_is_removed(tmp_path / "jobs"))

    assert [type(answer) for answer in answers] == [StorageCorruptError] * 3


async def _wait_for_what_is_removed(path: Path) -> list[object]:
    async with Queue[int, int](FileStorage(path)) as queue:
        waiters = [asyncio.ensure_future(queue.enqueue_and_wait(f"job-{n}", n, timeout=5)) for n in range(3)]
        while sum((await queue.counts()).values()) < len(waiters):
            await asyncio.sleep(0)
        shutil.rmtree(path)
        return [*await asyncio.gather(*waiters, return_exceptions=True)]


@pytest.mark.slow
@pytest.mark.storage("file")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_stop_is_not_held_up_by_a_database_that_another_program_locks(tmp_path: Path, busy: bool) -> None:
    """It returns within its timeout and one second, although what is to be given back cannot be written."""
    assert asyncio.run(_stop_beside_a_lock(tmp_path, busy)) < 1.5


async def _stop_beside_a_lock(path: Path, busy: bool) -> float:
    queue, begun = Queue[int, int](FileStorage(path), visibility_timeout=3, block_timeout=0.1), asyncio.Event()

    @queue.execute
    async def endless(job: Job[int]) -> int:
        begun.set()
        await asyncio.Event().wait()
        return job.payload

    await queue.start()
    if busy:
        await queue.enqueue("a", 1)
        await begun.wait()
    with closing(sqlite3.connect(path / "jobq.sqlite3", isolation_level=None, timeout=5.0)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        await queue.stop(0)
        took = time.monotonic() - started
        connection.execute("ROLLBACK")
    return took
