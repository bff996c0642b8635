"""Store payloads in a format of your own: here compressed JSON.

A serde must give back what it was given, or raise. The storage sees only its bytes.

Run it with ``python examples/custom_serde.py``.
"""

from __future__ import annotations

import asyncio
import zlib

from jobq import Job, JsonSerde, MemoryStorage, Queue


class CompressedJson:
    """A `Serde` of lists of text; no base class is needed."""

    def __init__(self) -> None:
        self._json = JsonSerde(list[str])

    def serialize(self, value: list[str]) -> bytes:
        plain = self._json.serialize(value)
        data = zlib.compress(plain)
        print(f"{len(plain)} bytes became {'fewer' if len(data) < len(plain) else 'more'}")
        return data

    def deserialize(self, data: bytes) -> list[str]:
        return self._json.deserialize(zlib.decompress(data))


async def main() -> None:
    queue = Queue[list[str], int](MemoryStorage(), payload_serde=CompressedJson())

    @queue.execute
    async def count(job: Job[list[str]]) -> int:
        return len(job.payload)

    async with queue:
        print(await queue.enqueue_and_wait("words", ["again"] * 1000, timeout=10))


if __name__ == "__main__":
    asyncio.run(main())

# 8001 bytes became fewer
# 1000
