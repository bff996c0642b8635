"""The engine on another event loop: nothing in it is made for asyncio's own alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jobq import FixedDelay, Job, JobFailedError, JobTimeoutError, Queue, Reaper
from jobq.storage.contract import Storage
from tests.engine.scenes import LONGEST, Waiting, alone

uvloop: Any = pytest.importorskip("uvloop")


@pytest.fixture(scope="module", autouse=True)
def _loop_of_a_process() -> None:
    """The first loop of a process opens what uvloop then keeps for all others."""
    loop = uvloop.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.parametrize("plain", [False, True], ids=["coroutine", "function"])
def test_a_queue_lives_its_whole_life_on_uvloop(storage: Storage, plain: bool) -> None:
    """Results, failures, retries, a wait that is too short, a reaper; twice, since a queue may be started again."""

    async def main() -> None:
        async with asyncio.timeout(LONGEST):
            queue = Queue[int, int](storage, concurrency=20, retry=FixedDelay(0), block_timeout=0.3)
            queue.execute(half if plain else half_in_the_loop)
            for turn in range(2):
                async with queue, Reaper(storage):
                    ids = [f"job-{turn}-{number}" for number in range(50)]
                    halves = await asyncio.gather(*(queue.enqueue_and_wait(id, 42) for id in ids))
                    assert halves == [21] * 50
                    with pytest.raises(JobFailedError, match="odd"):
                        await queue.enqueue_and_wait(f"odd-{turn}", 3, max_attempts=2)
                    with pytest.raises(JobTimeoutError):
                        await queue.enqueue_and_wait(f"later-{turn}", 2, delay=60, timeout=0.05)
            await alone()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
        assert type(runner.get_loop()).__module__.startswith("uvloop")


def test_a_running_job_is_cancelled_and_a_stop_gives_back_on_uvloop(storage: Storage) -> None:
    """Cancellation is where loops differ most."""

    async def main() -> list[str]:
        async with asyncio.timeout(LONGEST):
            queue, waiting = Queue[int, int](storage, concurrency=2), Waiting()
            queue.execute(waiting)
            await queue.start()
            await queue.enqueue_many([("cancelled", 1), ("given-back", 2)])
            await waiting.begun(2)
            assert (await queue.cancel("cancelled", running=True)).status == "cancelling"
            while waiting.running > 1:
                await asyncio.sleep(0)
            await queue.stop(0)
            await alone()
            return waiting.cancelled

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == ["cancelled", "given-back"]


def half(job: Job[int]) -> int:
    if job.payload % 2:
        raise ValueError("odd")
    return job.payload // 2


async def half_in_the_loop(job: Job[int]) -> int:
    await asyncio.sleep(0)
    return half(job)
