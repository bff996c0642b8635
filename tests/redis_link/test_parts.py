"""A large batch leaves in parts, and is one call all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, cast

import pytest

from jobq.errors import StorageError, StorageUnavailableError
from jobq.job import NewJob
from jobq.storage.redis.namespace import Commands, RedisNamespace
from jobq.storage.redis.packing import Part
from jobq.testing import ManualClock
from tests.engine.scenes import in_loop, passing


class Unanswered:
    """Connections on which every script waits for the test to answer it."""

    def __init__(self) -> None:
        self.answers: list[asyncio.Future[Any]] = []

    def run(self, slot_key: str, verb: str, times: tuple[Part, Part], arguments: Sequence[Part]) -> Awaitable[Any]:
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]

    def events(self, stem: str) -> str:
        return f"{stem}events"


@in_loop
async def test_a_batch_has_not_failed_before_its_last_part_has_ended() -> None:
    """Whoever is told so sends it again, and must not meet parts of the first attempt that are still under way."""
    commands = Unanswered()
    queue = RedisNamespace(cast(Commands, commands), "{queue}:", ManualClock(), counts_time=True)
    jobs = [
        NewJob(id=f"job-{number}", payload=b"", nonce=f"n.{number}", max_attempts=3, result_ttl=60.0)
        for number in range(300)
    ]
    adding = asyncio.ensure_future(queue.add(jobs))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first, *others = commands.answers
    assert len(others) == 2

    first.set_exception(StorageUnavailableError("the first part was lost"))
    others[0].set_result([b""] * 128)
    await passing(0.01)
    assert not adding.done()

    others[1].set_result([b""] * 44)
    with pytest.raises(StorageError, match="the first part"):
        await adding
