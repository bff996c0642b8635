"""The `storage` fixture: each kind in turn, and `--storage` chooses."""

from __future__ import annotations

import asyncio

from jobq import Job, Queue
from jobq.storage.contract import Storage


def test_a_job_runs_on_every_storage(storage: Storage) -> None:
    """The shortest way through all of it, on the machine's own clock."""

    async def main() -> int:
        queue = Queue[int, int](storage)

        @queue.execute
        async def double(job: Job[int]) -> int:
            return 2 * job.payload

        async with queue:
            return await queue.enqueue_and_wait("job", 21, timeout=10)

    assert asyncio.run(main()) == 42
