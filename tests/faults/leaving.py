"""A program that ends without stopping its queue: ``leaving.py URL HOW``. It prints when it was about to end."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

from jobq import Job, Queue, Reaper, open_storage


async def main(url: str, how: str) -> None:
    storage = open_storage(url)
    queue = Queue[int, int](storage, concurrency=2, block_timeout=60.0)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def in_the_loop(job: Job[int]) -> int:
        begun.set()
        await asyncio.Event().wait()
        return job.payload

    def in_a_thread(job: Job[int]) -> int:
        loop.call_soon_threadsafe(begun.set)
        threading.Event().wait()
        return job.payload

    if how != "producing":
        queue.execute(in_a_thread if how == "in a thread" else in_the_loop)
    await Reaper(storage).start()
    await queue.start()
    if how in ("in a thread", "in the loop"):
        await queue.enqueue("job", 1)
        await begun.wait()
    waiting = asyncio.create_task(queue.enqueue_and_wait("other", 1, timeout=60))
    while await queue.get_status("other") is None:
        await asyncio.sleep(0)
    print(time.monotonic(), flush=True)
    if how == "raising":
        raise SystemExit(7)
    waiting.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
