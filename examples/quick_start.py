"""Hand over a job, wait for another one's result, and get it again from the cache.

Run it with ``python examples/quick_start.py``.
"""

from __future__ import annotations

import asyncio

import msgspec

from jobq import Job, MemoryStorage, Queue


class Email(msgspec.Struct):
    to: str


class Receipt(msgspec.Struct):
    text: str


async def main() -> None:
    queue = Queue[Email, Receipt](MemoryStorage(), concurrency=5)

    @queue.execute
    async def send(job: Job[Email]) -> Receipt:
        await asyncio.sleep(0.1)  # A mail server takes its time.
        return Receipt(f"sent to {job.payload.to}")

    async with queue:
        accepted = await queue.enqueue("email-1", Email(to="ann@example.com"))
        print(accepted.status)
        receipt = await queue.enqueue_and_wait("email-2", Email(to="bob@example.com"), timeout=10)
        print(receipt.text)
        again = await queue.enqueue("email-2", Email(to="bob@example.com"))
        print(again.status, again.result)


if __name__ == "__main__":
    asyncio.run(main())

# queued
# sent to bob@example.com
# completed Receipt(text='sent to bob@example.com')
