"""A worker whose handlers fork, as a program of its own: ``forking.py URL AUDIT``.

What a job's handler does is the job's payload; every fact is one line appended to AUDIT. A child lives for three leases
before it does what it is to do last, so that it would renew, settle and claim if it could.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from jobq import FixedDelay, Job, JobQueueError, Queue, open_storage
from tests.faults.program import LEASE, Audit

LONGER = 3 * LEASE


def child(audit: Audit, queue: Queue[str, str], last: str) -> str:
    """What a forked child does until its handler ends."""
    audit.note("child", os.getpid())
    try:
        queue.enqueue("of-the-child", "nothing").send(None)
        audit.note("accepted", os.getpid())
    except JobQueueError as error:
        audit.note("refused", error.code)
    time.sleep(LONGER)
    match last:
        case "exits":
            os._exit(0)
        case "raises":
            raise ValueError("in the child")
        case "leaves":
            sys.exit(3)
    return "by the child"


def compute(audit_path: str) -> str:
    Audit(Path(audit_path)).note("child", os.getpid())
    time.sleep(LONGER)
    return "by the parent"


def forked(audit: Audit, queue: Queue[str, str], last: str) -> str:
    number = os.fork()
    if number == 0:
        return child(audit, queue, last)
    audit.note("forked", number)
    return "by the parent"


async def main(url: str, audit_path: str) -> None:
    audit = Audit(Path(audit_path))
    options = {"visibility_timeout": LEASE, "block_timeout": 0.5, "concurrency": 8}
    coroutines = Queue[str, str](open_storage(url), name="coroutines", retry=FixedDelay(0), **options)
    functions = Queue[str, str](open_storage(url), name="functions", retry=FixedDelay(0), **options)

    @coroutines.execute
    async def in_the_loop(job: Job[str]) -> str:
        audit.note("started", job.id, os.getpid())
        if job.payload == "pool":
            with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
                return await asyncio.get_running_loop().run_in_executor(pool, compute, audit_path)
        if job.payload == "nothing":
            return "by the parent"
        answer = forked(audit, coroutines, job.payload)
        await asyncio.sleep(0.5)
        return answer

    @functions.execute
    def in_a_thread(job: Job[str]) -> str:
        audit.note("started", job.id, os.getpid())
        if job.payload == "process":
            process = multiprocessing.get_context("fork").Process(target=compute, args=(audit_path,))
            process.start()
            process.join()
            return "by the parent"
        if job.payload == "nothing":
            return "by the parent"
        return forked(audit, functions, job.payload)

    for queue in (coroutines, functions):
        queue.on("completed", lambda id, result: audit.note("completed", id, os.getpid(), result))
        queue.on("failing", lambda id, error, attempt: audit.note("failing", id, os.getpid(), repr(error)))
        queue.on("lease_lost", lambda id: audit.note("lease_lost", id, os.getpid()))
        queue.on("error", lambda error: audit.note("error", os.getpid(), repr(error)))
    async with functions:
        await coroutines.run()
    audit.note("stopped", os.getpid())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
