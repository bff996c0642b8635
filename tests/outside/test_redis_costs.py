"""What a job costs a server: counted, so that it does not grow unnoticed."""

from __future__ import annotations

import asyncio

import pytest

from jobq import Job, JobTimeoutError, Queue, RedisStorage
from tests.servers.fixtures import Starter

JOBS = 2000
CALLERS = 100


@pytest.mark.slow
@pytest.mark.storage("valkey")
def test_what_a_job_costs_a_server(start: Starter) -> None:
    """From add to result, with a hundred callers: commands inside scripts, scripts, and reads of sockets."""
    server = start.server("valkey")

    async def main() -> None:
        storage = RedisStorage(server.url)
        queue = Queue[int, int](storage, concurrency=CALLERS)

        @queue.execute
        async def double(job: Job[int]) -> int:
            return 2 * job.payload

        numbers = iter(range(JOBS))

        async def call() -> None:
            for number in numbers:
                assert await queue.enqueue_and_wait(f"job-{number}", number) == 2 * number

        async with queue:
            server.command("CONFIG", "RESETSTAT")
            await asyncio.gather(*(call() for _ in range(CALLERS)))

    asyncio.run(main())
    calls = server.calls()
    scripts = calls.pop("evalsha", 0) + calls.pop("eval", 0)
    reads = int(server.info("stats")["total_reads_processed"])

    assert sum(calls.values()) / JOBS < 2.5, calls
    assert scripts / JOBS < 0.2
    assert reads / JOBS < 0.3


@pytest.mark.storage("valkey")
def test_whoever_looks_at_a_job_does_not_get_its_payload(start: Starter) -> None:
    """A thousand waiters look again every second; with a payload of a megabyte that would be a gigabyte."""
    server = start.server("valkey")

    async def main() -> None:
        queue = Queue[bytes, int](RedisStorage(server.url))
        async with queue:
            await queue.enqueue("large", bytes(2**20))
            before = int(server.info("stats")["total_net_output_bytes"])

            status = await queue.get_status("large")
            again = await queue.enqueue("large", b"")
            with pytest.raises(JobTimeoutError):
                await queue.wait("large", timeout=0.0)

            assert status is not None
            assert (status.state, again.status) == ("queued", "duplicate")
            assert int(server.info("stats")["total_net_output_bytes"]) - before < 50_000

    asyncio.run(main())
