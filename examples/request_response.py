"""Answer a web request with a job's result, within a time limit.

``respond`` is what a route of a web framework would call. The request's own id is the job's id, so a client that asks
again joins the same job, or gets its stored result.

Run it with ``python examples/request_response.py``.
"""

from __future__ import annotations

import asyncio

from jobq import GiveUp, Job, JobFailedError, JobTimeoutError, MemoryStorage, Queue


async def respond(queue: Queue[int, int], request_id: str, number: int) -> tuple[int, str]:
    """Return an HTTP status and a body."""
    try:
        square = await queue.enqueue_and_wait(request_id, number, timeout=0.2)
    except JobTimeoutError:
        return 202, "accepted; ask again with the same id"
    except JobFailedError as error:
        return 422, error.error.message
    return 200, str(square)


async def main() -> None:
    queue = Queue[int, int](MemoryStorage(), concurrency=2)
    ready = asyncio.Event()

    @queue.execute
    async def square(job: Job[int]) -> int:
        if job.payload < 0:
            raise GiveUp("the number must not be negative")
        if job.payload > 100:  # It takes long.
            await ready.wait()
        return job.payload**2

    async with queue:
        print(*await respond(queue, "request-1", 7))
        print(*await respond(queue, "request-2", -1))
        print(*await respond(queue, "request-3", 1000))
        ready.set()
        print(*await respond(queue, "request-3", 1000))


if __name__ == "__main__":
    asyncio.run(main())

# 200 49
# 422 the number must not be negative
# 202 accepted; ask again with the same id
# 200 1000000
