"""Run the jobs that ``producer.py`` handed over, and end when none is left.

Run it with ``python examples/worker.py /tmp/jobq-example``, after the producer. Any number may run at once.
"""

from __future__ import annotations

import asyncio
import sys

from jobq import FileStorage, Job, Queue


async def main(directory: str) -> None:
    queue = Queue[str, int](FileStorage(directory), name="words")

    @queue.execute
    def count(job: Job[str]) -> int:
        # A plain function runs in a thread of its own, so it may block.
        words = len(job.payload.split())
        print(f"{job.id}: {words}")
        return words

    # A worker that never ends calls run() without until_empty, and is stopped by SIGTERM or Ctrl-C.
    await queue.run(until_empty=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

# count one: 1
# count two words: 2
# count one two three: 3
