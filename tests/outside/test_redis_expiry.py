"""What a Redis server removes by itself: nobody else would, since `prune` leaves it to the server."""

from __future__ import annotations

import asyncio

from jobq import RedisStorage, State
from jobq.storage.contract import LINGER
from jobq.testing import Bench, ManualClock, StorageCase
from tests.servers.server import Server


def test_a_server_keeps_a_record_until_it_has_expired_and_lingered(either_server: Server, key_prefix: str) -> None:
    """Neither for ever, which would fill the server, nor for as long as its job has not ended."""

    def left(id: str) -> float:
        """Return the seconds after which the server removes a record; below 0: it does not."""
        milliseconds: int = either_server.command("PTTL", f"{key_prefix}{{first}}:j:{id}")
        return milliseconds / 1000

    async def main() -> None:
        storage = RedisStorage(either_server.url, key_prefix=key_prefix)
        bench = Bench(StorageCase(), ManualClock(), storage)
        await storage.open()
        await bench.completed("completed", ttl=60.0)
        await bench.failed("failed", ttl=600.0)
        await bench.failed("revived", ttl=60.0)
        await bench.completed("retained", ttl=60.0)
        await bench.retain("retained", ttl=6000.0)
        await bench.revive("revived")
        await bench.add("cancelled", delay=1.0)
        await bench.cancel("cancelled")
        await bench.add("waits", delay=1.0)
        states = [await bench.state(id) for id in ("revived", "waits")]
        await bench.close()
        assert states == [State.QUEUED, State.QUEUED]

    asyncio.run(main())

    # Up to half a minute may have passed.
    assert 30.0 < left("completed") <= 60.0 + LINGER
    assert 570.0 < left("failed") <= 600.0 + LINGER
    assert 5970.0 < left("retained") <= 6000.0 + LINGER
    assert left("cancelled") <= LINGER
    assert left("cancelled") != -0.001, "it would stay for ever"
    assert left("revived") < 0.0
    assert left("waits") < 0.0


def test_a_server_remembers_a_claim_for_as_long_as_it_may_be_sent_again(either_server: Server, key_prefix: str) -> None:
    """Else the jobs of a claim whose reply was lost wait for their leases to lapse; and no longer than that."""

    async def main() -> float:
        storage = RedisStorage(either_server.url, key_prefix=key_prefix)
        bench = Bench(StorageCase(), ManualClock(), storage)
        await storage.open()
        await bench.add()
        await bench.queue.claim("worker", 30.0, 1, "session.1")
        milliseconds: int = either_server.command("PTTL", f"{key_prefix}{{first}}:claims:session")
        await bench.close()
        return milliseconds / 1000

    assert LINGER - 5.0 < asyncio.run(main()) <= LINGER
