"""A producer and a worker as programs of their own, for tests that kill, stop and signal them.

    program.py produce PLACE AUDIT FAILPOINT COUNT     enqueues COUNT jobs one by one
    program.py cancel PLACE AUDIT FAILPOINT COUNT      cancels COUNT jobs one by one
    program.py work PLACE AUDIT FAILPOINT SECONDS      runs jobs, each for SECONDS, until nothing is left
    program.py serve PLACE AUDIT FAILPOINT SECONDS     runs jobs until it is told to stop

PLACE is a directory, or the URL of a server. FAILPOINT is ``verb.point:n``: the process kills itself with SIGKILL when
it comes there the nth time; ``-`` is none. Every fact is one line appended to AUDIT before the program goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from jobq import FileStorage, FixedDelay, Job, Queue, RedisStorage
from jobq.clock import Clock

LEASE = 1.0


class DeadlyClock(Clock):
    """Kills its own process at a failpoint."""

    def __init__(self, failpoint: str) -> None:
        self._name, _, count = failpoint.partition(":")
        self._left = int(count or 0)

    def failpoint(self, name: str) -> None:
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Audit:
    """Appends facts to a file, each in one write."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, *words: object) -> None:
        os.write(self._descriptor, (" ".join(map(str, words)) + "\n").encode())


async def produce(queue: Queue[int, int], audit: Audit, count: int) -> None:
    async with queue:
        for number in range(count):
            audit.note("asked", f"job-{number}")
            result = await queue.enqueue(f"job-{number}", number)
            audit.note(result.status, f"job-{number}")


async def cancel(queue: Queue[int, int], audit: Audit, count: int) -> None:
    async with queue:
        for number in range(count):
            result = await queue.cancel(f"job-{number}")
            audit.note(result.status, f"job-{number}")


async def work(queue: Queue[int, int], audit: Audit, seconds: float, *, until_empty: bool) -> None:
    @queue.execute
    async def handle(job: Job[int]) -> int:
        audit.note("started", job.id)
        await asyncio.sleep(seconds)
        audit.note("ended", job.id)
        return job.payload * 2

    queue.on("started", lambda: audit.note("serving", os.getpid()))
    queue.on("completed", lambda id, result: audit.note("completed", id))
    queue.on("requeued", lambda id: audit.note("requeued", id))
    queue.on("lease_lost", lambda id: audit.note("lease_lost", id))
    await queue.run(until_empty=until_empty)
    audit.note("stopped", os.getpid())


def main() -> None:
    mode, place, audit_path, failpoint, number = sys.argv[1:]
    # Without a failpoint a server's own clock decides, as it does in real life.
    clock = None if failpoint == "-" else DeadlyClock(failpoint)
    storage = RedisStorage(place, clock=clock) if "://" in place else FileStorage(place, clock=clock)
    queue = Queue[int, int](
        storage, concurrency=4, visibility_timeout=LEASE, block_timeout=0.5, retry=FixedDelay(0), max_attempts=10
    )
    audit = Audit(Path(audit_path))
    match mode:
        case "produce":
            asyncio.run(produce(queue, audit, int(number)))
        case "cancel":
            asyncio.run(cancel(queue, audit, int(number)))
        case _:
            asyncio.run(work(queue, audit, float(number), until_empty=mode == "work"))


if __name__ == "__main__":
    main()
