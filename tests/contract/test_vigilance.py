"""Storages that miss nothing: a worker that sleeps on them at an empty queue looks once a minute only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from jobq import FileStorage, MemoryStorage
from jobq.storage.contract import Storage, is_vigilant
from jobq.testing import Bench, ManualClock, StorageCase

Play = Callable[[Callable[[Bench], Awaitable[None]]], None]
LONG = 60.0
_SOON = 5.0

pytestmark = pytest.mark.storage("memory")


@pytest.fixture(params=["memory", "file"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Play a scene on a new storage with a clock that is set by hand."""

    def play(scene: Callable[[Bench], Awaitable[None]]) -> None:
        async def main() -> None:
            clock = ManualClock()
            memory = request.param == "memory"
            storage: Storage = MemoryStorage(clock=clock) if memory else FileStorage(tmp_path / "jobs", clock=clock)
            bench = Bench(StorageCase(), clock, storage)
            await storage.open()
            await scene(bench)
            await bench.close()
            assert is_vigilant(storage)

        asyncio.run(main())

    return play


async def asleep(bench: Bench, timeout: float) -> asyncio.Task[bool]:
    """Return a sleeper that has looked, and found nothing."""
    sleeper = asyncio.create_task(bench.queue.wait_for_work(timeout))
    await _looked(bench)
    assert not sleeper.done()
    return sleeper


async def _looked(bench: Bench) -> None:
    """Wait until sleepers have begun, and have been answered, as what was asked after them is."""
    for _ in range(2):
        await asyncio.sleep(0)
        await bench.queue.counts()


def test_a_claim_wakes_a_sleeper_for_what_it_leaves_to_fall_due(play: Play) -> None:
    """Its claimer knew of it, relied upon to be awake by then, and may be too busy."""

    async def scene(bench: Bench) -> None:
        long, short = await asleep(bench, LONG), await asleep(bench, 0.2)
        await bench.queue.add([bench.new("first", delay=1.0), bench.new("second", delay=LONG / 2)])
        assert not long.done()
        await short
        bench.clock.advance(1.0)

        await bench.take(lease=LONG)

        assert await asyncio.wait_for(long, _SOON)

    play(scene)


def test_a_sleeper_that_is_cancelled_leaves_to_another_what_it_would_have_woken_for(play: Play) -> None:
    """Nobody else may know of it: who sleeps shorter than until it falls due is relied upon."""

    async def scene(bench: Bench) -> None:
        long = await asleep(bench, LONG)
        await bench.add(delay=LONG / 2)
        await asyncio.wait_for(long, _SOON)
        ignorant = asyncio.create_task(bench.queue.wait_for_work(LONG))
        knowing = asyncio.create_task(bench.queue.wait_for_work(LONG))
        await _looked(bench)

        knowing.cancel()
        await asyncio.wait([knowing])

        assert await asyncio.wait_for(ignorant, _SOON)

    play(scene)


def test_a_sleeper_that_is_cancelled_before_it_would_have_looked_leaves_that_to_another(play: Play) -> None:
    """Nobody was woken for what falls due, since it would have been awake by then."""

    async def scene(bench: Bench) -> None:
        ignorant, short = await asleep(bench, LONG), await asleep(bench, LONG / 4)
        await bench.add(delay=LONG / 2)
        await _looked(bench)
        assert not ignorant.done()

        short.cancel()
        await asyncio.wait([short])

        assert await asyncio.wait_for(ignorant, _SOON)

    play(scene)
