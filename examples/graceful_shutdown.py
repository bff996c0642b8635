"""Stop a worker as a deploy does: by SIGTERM, while a job runs.

The running job may finish; the waiting one stays stored for the next worker. A handler that takes longer than the stop
allows is told by ``job.signal``, is then cancelled, and its job is given back.

Run it with ``python examples/graceful_shutdown.py``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile

from jobq import FileStorage, Job, Queue


async def main(directory: str) -> None:
    queue = Queue[str, str](FileStorage(directory), concurrency=1)

    @queue.execute
    async def work(job: Job[str]) -> str:
        print(f"{job.id} begins")
        os.kill(os.getpid(), signal.SIGTERM)  # Here the deploy's signal arrives.
        await asyncio.sleep(0.3)
        print(f"{job.id} ends")
        return job.payload.upper()

    @queue.on("started")
    async def hand_over() -> None:
        await queue.enqueue_many([("job-1", "first"), ("job-2", "second")])

    @queue.on("stopped")
    def say_so() -> None:
        print("stopped")

    await queue.run()

    async with Queue[str, str](FileStorage(directory)) as reader:
        print("job-1:", await reader.get_result("job-1"))
        status = await reader.get_status("job-2")
        print("job-2:", status and status.state.value)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(directory))

# job-1 begins
# job-1 ends
# stopped
# job-1: FIRST
# job-2: queued
