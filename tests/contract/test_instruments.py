"""The instruments of jobq.testing measure what they say: virtual time, clocks, failpoints, faults."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import pytest

from jobq import Job, MemoryStorage, Queue, Reaper, State, StorageUnavailableError
from jobq.storage.contract import Hint
from jobq.testing import (
    LOSE_REPLY,
    LOSE_REQUEST,
    Bench,
    FailpointClock,
    FaultyStorage,
    ManualClock,
    OnLoop,
    Plan,
    RandomPlan,
    StorageCase,
    Trouble,
    VirtualClock,
    VirtualLoop,
    VirtualTimeError,
    at_pass,
    planned,
    run_virtual,
)


def test_virtual_time_passes_without_waiting_and_in_order() -> None:
    """Sleepers wake in the order of their times, a century included."""

    async def main() -> list[tuple[str, float]]:
        woken: list[tuple[str, float]] = []

        async def sleeper(name: str, seconds: float) -> None:
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.Event().wait()
            except TimeoutError:
                woken.append((name, asyncio.get_running_loop().time()))

        await asyncio.gather(sleeper("late", 3e9), sleeper("early", 0.001), sleeper("hour", 3600.0))
        return woken

    woken = run_virtual(main, limit=4e9)

    assert [name for name, _ in woken] == ["early", "hour", "late"]
    assert [round(at, 3) for _, at in woken] == [0.001, 3600.0, 3e9]


def test_an_endless_wait_in_virtual_time_ends() -> None:
    """By timers that go on for ever, and without any timer."""

    async def ticking() -> None:
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()

        def tick() -> None:
            loop.call_later(1.0, tick)

        tick()
        await stopped.wait()

    async def stuck() -> None:
        async with asyncio.timeout(None):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match="not ended after limit=100 virtual seconds"):
        run_virtual(ticking, limit=100.0)
    with pytest.raises(TimeoutError, match="raise the limit"):
        run_virtual(stuck, limit=100.0)


def test_a_timeout_of_the_test_itself_is_not_taken_for_the_limit() -> None:
    """It has its own message, or none."""

    async def main() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match=r"^its own$"):
        run_virtual(main)


def test_a_loop_without_anything_to_wait_for_says_so() -> None:
    """A deadlock is an error at once, instead of a test that hangs."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner, pytest.raises(VirtualTimeError):
        runner.run(asyncio.Event().wait())


def test_a_wait_that_is_shorter_than_the_loop_can_resolve_ends() -> None:
    """In real time it would, since the turns of a loop take some; a worker waits so for a job that is nearly due."""

    async def wait_until(at: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < at:
            woken = asyncio.Event()
            loop.call_later(at - loop.time(), woken.set)
            await woken.wait()

    run_virtual(lambda: wait_until(8e-11))


def test_other_threads_and_signals_are_heard_in_virtual_time() -> None:
    """Although the system is seldom asked while there is nothing to wait for but timers."""

    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        called, signalled = asyncio.Event(), asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, signalled.set)
        caller = threading.Thread(target=loop.call_soon_threadsafe, args=(called.set,))
        caller.start()
        caller.join()
        await asyncio.wait_for(called.wait(), 3600)
        signal.raise_signal(signal.SIGUSR1)
        turns = 0
        while not signalled.is_set():
            await _pause(0.001)
            turns += 1
        loop.remove_signal_handler(signal.SIGUSR1)
        return len(asyncio.all_tasks()), turns

    tasks, turns = run_virtual(main)

    assert tasks == 1
    assert turns < 100


def test_a_queue_lives_hours_in_virtual_time_without_a_thread() -> None:
    """Retries, leases and a reaper, by one clock."""

    async def main() -> tuple[int, float]:
        storage = OnLoop(MemoryStorage(clock=VirtualClock()))
        queue = Queue[int, int](storage, visibility_timeout=30.0, retry=lambda attempt, error: 600.0 * attempt)

        @queue.execute
        async def double(job: Job[int]) -> int:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pause(1000.0))
            if job.attempts < 3:
                raise ValueError("not yet")
            return 2 * job.payload

        async with queue, _running(Reaper(storage)):
            result = await queue.enqueue_and_wait("job", 21, timeout=86_000)
        return result, asyncio.get_running_loop().time()

    threads = threading.active_count()
    result, ended = run_virtual(main)

    assert result == 42
    assert 4800.0 - 1e-6 <= ended < 4830.0, "wall clocks are floats, and know no more than a quarter of a microsecond"
    assert threading.active_count() == threads


@pytest.mark.parametrize("seed", range(5))
def test_a_queue_behind_a_bad_connection_does_each_job_once(seed: int) -> None:
    """And the same seed is the same run."""

    async def main() -> tuple[list[object], dict[str, int], float]:
        storage = FaultyStorage(MemoryStorage(clock=VirtualClock(seed=seed)), _calls_only(RandomPlan(seed)))
        queue = Queue[int, int](storage, concurrency=4)

        @queue.execute
        async def negate(job: Job[int]) -> int:
            await _pause(0.5)
            return -job.payload

        async with queue:
            waits = (queue.enqueue_and_wait(f"job-{number}", number, timeout=600) for number in range(20))
            results: list[object] = list(await asyncio.gather(*waits))
        return results, dict(storage.troubles), asyncio.get_running_loop().time()

    first = run_virtual(main)

    assert first[0] == [-number for number in range(20)]
    assert sum(first[1].values()) > 0
    assert run_virtual(main) == first


def test_planned_troubles_meet_the_calls_they_are_planned_for() -> None:
    """A lost request did nothing, a lost reply did."""
    plan = planned({("add", 0): LOSE_REQUEST, ("add", 1): LOSE_REPLY, ("add", 2): Trouble(delay=3.0, delay_back=4.0)})

    async def main() -> None:
        storage = FaultyStorage(MemoryStorage(clock=VirtualClock()), plan)
        bench = Bench(StorageCase(), ManualClock(), storage)
        jobs = [bench.new(id) for id in "abc"]
        for job in jobs[:2]:
            with pytest.raises(StorageUnavailableError):
                await bench.queue.add([job])
        await bench.queue.add([jobs[2]])
        assert [await bench.state(id) for id in "abc"] == [None, State.QUEUED, State.QUEUED]
        assert asyncio.get_running_loop().time() == 7.0
        assert (storage.calls["add"], storage.troubles["add"]) == (3, 2)

    run_virtual(main)


def test_hints_can_be_lost() -> None:
    """Only those that the plan takes."""

    async def main() -> list[str]:
        storage = FaultyStorage(MemoryStorage(clock=VirtualClock()), planned({("hint", 0): LOSE_REQUEST}))
        bench = Bench(StorageCase(), ManualClock(), storage)
        hints: list[Hint] = []
        watch = await bench.queue.watch(hints.append)
        for id in "ab":
            await bench.add(id, reply_to=watch.address)
            await bench.cancel(id)
        return [hint.id for hint in hints]

    assert run_virtual(main) == ["b"]


def test_a_hint_that_comes_late_is_overtaken() -> None:
    """By those that are not delayed."""

    async def main() -> list[str]:
        storage = FaultyStorage(MemoryStorage(clock=VirtualClock()), planned({("hint", 0): Trouble(delay=2.0)}))
        bench = Bench(StorageCase(), ManualClock(), storage)
        hints: list[Hint] = []
        watch = await bench.queue.watch(hints.append)
        for id in "ab":
            await bench.add(id, reply_to=watch.address)
            await bench.cancel(id)
        await _pause(1.9)
        in_time = [hint.id for hint in hints]
        await _pause(0.2)
        return [*in_time, *(hint.id for hint in hints)]

    assert run_virtual(main) == ["b", "b", "a"]


def test_a_manual_clock_moves_only_by_hand() -> None:
    """Each of its ways moves what it says."""
    clock = ManualClock(now=100.0)
    monotonic, boot = clock.monotonic(), clock.boot_id()

    clock.advance(2.0)
    clock.jump_wall(-50.0)
    clock.jump_monotonic(7.0)

    assert (clock.now(), clock.monotonic() - monotonic, clock.boot_id()) == (52.0, 9.0, boot)
    clock.reboot()
    assert clock.boot_id() != boot
    assert clock.monotonic() < monotonic
    assert ManualClock(seed=1).random_bytes(8) == ManualClock(seed=1).random_bytes(8)


def test_failpoints_act_at_the_pass_they_are_told() -> None:
    """And every pass is counted."""
    acted: list[int] = []
    clock = FailpointClock({"add.after": at_pass(2, lambda: acted.append(clock.passed["add.after"]))})

    for _ in range(3):
        clock.failpoint("add.after")
        clock.failpoint("add.before")

    assert acted == [2]
    assert clock.passed == {"add.after": 3, "add.before": 3}


def test_a_process_killed_at_a_failpoint_says_nothing_more() -> None:
    """As `kill -9` does: no handler runs, nothing is flushed."""
    program = (
        "from jobq.testing import FailpointClock, kill_process\n"
        "import atexit\n"
        "atexit.register(print, 'an orderly end')\n"
        "FailpointClock({'add.before': kill_process}).failpoint('add.before')\n"
    )

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50)

    assert (run.returncode, run.stdout) == (-signal.SIGKILL, b"")


@contextlib.asynccontextmanager
async def _running(reaper: Reaper) -> AsyncIterator[None]:
    await reaper.start()
    try:
        yield
    finally:
        await reaper.stop()


async def _pause(seconds: float) -> None:
    """Let virtual time pass."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, done.set)
    await done.wait()


def _calls_only(plan: Plan) -> Plan:
    """Leave opening alone: a queue that cannot start says so, and that is another test."""
    return lambda verb, index: None if verb == "open" else plan(verb, index)
