"""Histories in which the simulation found something, in the fewest steps: seeds change their meaning, these do not."""

from __future__ import annotations

import asyncio

import pytest

from jobq import MemoryStorage
from jobq.job import State
from jobq.storage.contract import Settled
from jobq.testing import Bench, ManualClock, StorageCase

pytestmark = pytest.mark.storage("memory")


def _bench() -> Bench:
    clock = ManualClock()
    return Bench(StorageCase(), clock, MemoryStorage(clock=clock))


def test_an_add_is_not_done_twice_when_the_wall_clock_is_set_forwards() -> None:
    """Its answer was lost, its job ended and was not kept; what lingers does so by the clock that is never set."""

    async def history() -> None:
        bench = _bench()
        job = await bench.add(result_ttl=0.0)
        claim = await bench.take()
        assert await bench.settle(claim, State.COMPLETED, result=b"1", ttl=0.0) is Settled.APPLIED
        bench.clock.jump_wall(3600.0)
        await bench.queue.prune(100)

        assert list(await bench.queue.add([job])) == [None]
        assert (await bench.claim()).claims == []
        assert await bench.settle(claim, State.COMPLETED, result=b"1", ttl=0.0) is Settled.APPLIED

    asyncio.run(history())


def test_a_cancel_is_answered_alike_when_the_wall_clock_is_set_forwards() -> None:
    """A repeated request finds what the first one found."""

    async def history() -> None:
        bench = _bench()
        await bench.add()
        nonce = bench.nonce()
        first = await bench.queue.cancel("job", False, nonce)
        bench.clock.jump_wall(3600.0)

        assert first is State.QUEUED
        assert await bench.queue.cancel("job", False, nonce) is State.QUEUED
        await bench.queue.prune(100)
        assert await bench.queue.cancel("job", False, nonce) is State.QUEUED

    asyncio.run(history())


def test_what_lingers_is_removed_once_requests_are_not_sent_again() -> None:
    """However the wall clock was set meanwhile."""

    async def history() -> None:
        bench = _bench()
        await bench.completed(ttl=0.0)
        bench.clock.jump_wall(3600.0)
        assert await bench.queue.prune(100) == 0

        bench.clock.advance(10.25)

        assert await bench.queue.prune(100) == 1

    asyncio.run(history())
