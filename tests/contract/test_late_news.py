"""What falls due between a claim and the sleep after it."""

from __future__ import annotations

import asyncio
import time

from jobq.job import NewJob, Settlement, State
from jobq.storage.contract import Storage


def test_a_sleeper_does_not_sleep_past_a_retry_that_came_before_it_lay_down(storage: Storage) -> None:
    """The settle that made it due woke nobody, since nobody slept yet."""

    async def slept() -> float:
        await storage.open()
        try:
            queue = storage.namespace("late-news")
            await queue.add([NewJob("a", "adds.1", b"", 3, 60.0)])
            [claim] = (await queue.claim("worker", 30.0, 2, "claims.1")).claims
            await queue.settle([Settlement("a", claim.token, State.FAILING, error=b"{}", delay=0.1)])
            begun = time.monotonic()
            await queue.wait_for_work(5.0)
            return time.monotonic() - begun
        finally:
            await storage.close()

    assert asyncio.run(slept()) < 2.0
