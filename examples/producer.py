"""Hand over jobs in one program; ``worker.py`` runs them in another.

Run it with ``python examples/producer.py /tmp/jobq-example``, then the worker with the same directory.
"""

from __future__ import annotations

import asyncio
import sys

from jobq import FileStorage, Queue


async def main(directory: str) -> None:
    # Without a handler this queue only hands over: it needs no worker to be running.
    queue = Queue[str, int](FileStorage(directory), name="words")
    async with queue:
        for text in ("one", "two words", "one two three"):
            answer = await queue.enqueue(f"count {text}", text)
            print(f"handed over {text!r}: {answer.status}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

# handed over 'one': queued
# handed over 'two words': queued
# handed over 'one two three': queued
