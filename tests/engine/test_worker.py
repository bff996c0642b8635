"""The worker: slots, time limits, leases, and how a stop ends what runs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from jobq import (
    EnqueueItem,
    Job,
    JobFailedError,
    MaxRetriesError,
    MemoryStorage,
    Queue,
    QueueClosedError,
    Reaper,
    State,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)
from jobq._lease import LeaseGroup
from jobq._running import Running
from jobq.job import Claim, NewJob, Settlement
from jobq.storage.contract import Storage
from jobq.testing import OnLoop, VirtualClock
from tests.engine.scenes import Events, Gated, Waiting, echo, in_loop, in_virtual_time, leaving_no_task, passing

IGNORES = pytest.mark.parametrize("timeout", [0, 0.2])


def block(seconds: float) -> None:
    """Hold up this thread, as blocking code in a handler does."""
    threading.Event().wait(seconds)


class Stubborn:
    """A handler that ignores every cancellation until it is released."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.release = asyncio.Event()
        self.jobs: list[Job[Any]] = []
        self.ended = asyncio.Event()

    async def __call__(self, job: Job[Any]) -> str:
        self.jobs.append(job)
        self.begun.set()
        ignored = 0
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                ignored += 1
                if ignored == 5:  # The loop of a failed test must be able to end.
                    raise
        self.ended.set()
        return "too late"


# Slots


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 3, 50])
@in_loop
async def test_no_more_handlers_than_slots_run_and_all_slots_are_used(storage: Storage, concurrency: int) -> None:
    """The first jobs hold their slots until all are taken; then the bound holds while jobs come and go."""
    queue = Queue[Any, Any](storage, concurrency=concurrency)
    running, most, all_taken = 0, 0, asyncio.Event()

    @queue.execute
    async def work(job: Job[Any]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == concurrency:
            all_taken.set()
        await all_taken.wait()
        for _ in range(job.payload):
            await asyncio.sleep(0)
        running -= 1

    async with queue:
        await queue.enqueue_many([(str(number), number % 7 + 1) for number in range(300)])
        await asyncio.gather(*(queue.wait(str(number)) for number in range(300)))

    assert most == concurrency


@in_loop
async def test_a_worker_never_claims_more_than_it_runs(storage: Storage) -> None:
    """Jobs beyond its slots stay queued, for other workers."""
    queue, waiting = Queue[Any, Any](storage, concurrency=2), Waiting()
    queue.execute(waiting)
    async with queue:
        await queue.enqueue_many([(str(number), number) for number in range(10)])
        await waiting.begun(2)
        await asyncio.sleep(0)
        counts = await queue.counts()
        waiting.release.set()

    assert (counts["processing"], counts["queued"]) == (2, 8)


@in_loop
async def test_many_jobs_run_each_once(storage: Storage) -> None:
    """Two workers on one queue share the work without doing any twice."""
    queues = [Queue[Any, Any](storage, concurrency=8, worker_id=f"w{number}") for number in range(2)]
    ran: list[str] = []

    async def note(job: Job[Any]) -> None:
        ran.append(job.id)
        await asyncio.sleep(0)

    for queue in queues:
        queue.execute(note)
    async with queues[0], queues[1]:
        await queues[0].enqueue_many([(str(number), None) for number in range(500)])
        await asyncio.gather(*(queues[1].wait(str(number)) for number in range(500)))

    assert sorted(ran) == sorted(str(number) for number in range(500))


@in_loop
async def test_fencing_tokens_rise_with_every_claim(storage: Storage) -> None:
    """Across jobs, attempts and restarts of the queue."""
    queue = Queue[Any, Any](storage, retry=lambda attempt, error: 0.0)
    tokens: list[int] = []

    @queue.execute
    async def note(job: Job[Any]) -> None:
        tokens.append(job.fencing_token)
        if job.attempts == 1:
            raise ValueError

    for round in range(3):
        async with queue:
            for number in range(3):
                await queue.enqueue_and_wait(f"{round}-{number}", None)

    assert len(tokens) == 18
    assert tokens == sorted(set(tokens))


@in_loop
async def test_a_handler_may_spawn_a_task_that_outlives_it(storage: Storage) -> None:
    """The next job is unaffected."""
    queue = Queue[Any, Any](storage)
    left: list[asyncio.Task[bool]] = []
    go = asyncio.Event()

    @queue.execute
    async def spawn(job: Job[Any]) -> None:
        left.append(asyncio.create_task(go.wait()))

    async with queue:
        for id in "abc":
            await queue.enqueue_and_wait(id, None)
    go.set()

    assert await asyncio.gather(*left) == [True] * 3


@in_loop
async def test_a_handler_may_enqueue_its_own_id_and_wait_on_itself(storage: Storage) -> None:
    """A duplicate, and a timeout: no lock-up."""
    queue = Queue[Any, Any](storage)

    @queue.execute
    async def reflexive(job: Job[Any]) -> list[Any]:
        again = await queue.enqueue(job.id, "other")
        try:
            await queue.enqueue_and_wait(job.id, "other", timeout=0.05)
        except TimeoutError as error:
            return [again.status, str(again.existing_state), type(error).__name__]
        return []

    async with queue:
        assert await queue.enqueue_and_wait("a", 1) == ["duplicate", "processing", "JobTimeoutError"]


# job_timeout


@in_loop
async def test_an_attempt_beyond_job_timeout_is_cancelled_and_run_again(storage: Storage) -> None:
    """Like any failed attempt, with JOB_TIMEOUT as its code."""
    queue = Queue[Any, Any](storage, job_timeout=0.05, retry=lambda attempt, error: 0.0, max_attempts=2)
    waiting, events = Waiting(), Events(queue)
    queue.execute(waiting)
    async with queue:
        with pytest.raises(MaxRetriesError) as caught:
            await queue.enqueue_and_wait("a", 1)

    assert waiting.cancelled == ["a", "a"]
    assert [job.signal.reason for job in waiting.jobs] == ["job_timeout"] * 2
    assert (caught.value.error.type, caught.value.error.code) == ("TimeoutError", "JOB_TIMEOUT")
    ((_, error, attempt),) = events.of("failing")
    assert isinstance(error, TimeoutError)
    assert attempt == 1


@pytest.mark.slow
@in_loop
async def test_a_job_within_job_timeout_is_left_alone(storage: Storage) -> None:
    """Each attempt has its own time."""
    queue = Queue[Any, Any](storage, job_timeout=0.2, concurrency=2)

    @queue.execute
    async def short(job: Job[Any]) -> bool:
        await passing(0.05)
        return job.signal.aborted

    async with queue:
        for id in "abcdef":
            assert await queue.enqueue_and_wait(id, 1) is False


@in_loop
async def test_a_value_returned_after_the_time_is_over_is_dropped(storage: Storage) -> None:
    """A handler that turns its cancel into a value has not made it in time."""
    queue = Queue[Any, Any](storage, job_timeout=0.05, max_attempts=1)

    @queue.execute
    async def evasive(job: Job[Any]) -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "a value"

    async with queue:
        with pytest.raises(JobFailedError) as caught:
            await queue.enqueue_and_wait("a", 1)

    assert caught.value.error.code == "JOB_TIMEOUT"


@pytest.mark.slow
@in_loop
async def test_a_handler_that_ignores_its_cancel_is_settled_without_it_and_keeps_its_slot(storage: Storage) -> None:
    """After a second; the slot is free again when it really ends."""
    queue, stubborn = Queue[Any, Any](storage, job_timeout=0.05, max_attempts=1), Stubborn()
    queue.execute(stubborn)
    async with queue:
        begun = time.monotonic()
        with pytest.raises(JobFailedError) as caught:
            await queue.enqueue_and_wait("a", 1)
        took = time.monotonic() - begun
        await queue.enqueue("b", 1)
        await passing(0.1)

        assert len(stubborn.jobs) == 1
        stubborn.release.set()
        assert await queue.wait("b") == "too late"

    assert caught.value.error.code == "JOB_TIMEOUT"
    assert took < 2


@pytest.mark.parametrize("takes", [0.9, 5.0])
def test_a_short_lease_outlasts_a_handler_that_takes_its_time_to_end(takes: float) -> None:
    """Else others would run the job beside its end, and its failure would be put down to a lost worker."""

    async def main() -> tuple[str | None, list[tuple[Any, ...]]]:
        storage = OnLoop(MemoryStorage(clock=VirtualClock()))
        queue = Queue[Any, Any](storage, job_timeout=2, visibility_timeout=0.5, max_attempts=1)
        events = Events(queue)

        @queue.execute
        async def tidy(job: Job[Any]) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await passing(takes)

        async with queue, Reaper(storage, visibility_timeout=0.5):
            with pytest.raises(JobFailedError) as caught:
                await queue.enqueue_and_wait("a", 1)
            await passing(10)
        return caught.value.error.code, events.of("lease_lost")

    assert in_virtual_time(main) == ("JOB_TIMEOUT", [])


# stop


@in_loop
async def test_stop_lets_running_handlers_finish(storage: Storage) -> None:
    """Their results are stored, and they may use the queue until they end."""
    queue, waiting = Queue[Any, Any](storage, concurrency=3), Waiting()
    other: list[str] = []

    @queue.execute
    async def work(job: Job[Any]) -> Any:
        value = await waiting(job)
        other.append((await queue.enqueue(f"from {job.id}", None)).status)
        return value

    await queue.start()
    await queue.enqueue_many([("a", 1), ("b", 2)])
    await waiting.begun(2)
    stopping = asyncio.create_task(queue.stop())
    await asyncio.sleep(0)
    waiting.release.set()
    await stopping

    assert other == ["queued", "queued"]
    reader = Queue[Any, Any](storage)
    async with reader:
        assert [await reader.get_result(id) for id in "ab"] == [1, 2]
        assert (await reader.counts())["queued"] == 2


@in_loop
async def test_a_failure_while_stop_drains_is_still_written(storage: Storage) -> None:
    """The storage is closed after it."""
    queue, go = Queue[Any, Any](storage, retry=lambda attempt, error: 60.0), asyncio.Event()
    begun, events = asyncio.Event(), Events(queue)

    @queue.execute
    async def fail(job: Job[Any]) -> None:
        begun.set()
        await go.wait()
        raise ValueError("while draining")

    await queue.start()
    await queue.enqueue("a", 1)
    await begun.wait()
    stopping = asyncio.create_task(queue.stop())
    await asyncio.sleep(0)
    go.set()
    await stopping

    assert events.names[-2:] == ["failing", "stopped"]
    async with Queue[Any, Any](storage) as reader:
        status = await reader.get_status("a")
        assert status is not None
        assert status.state == "failing"


@pytest.mark.slow
@IGNORES
@in_loop
async def test_stop_cancels_at_its_deadline_and_gives_back(storage: Storage, timeout: float) -> None:
    """The job runs elsewhere at once, and the cut attempt is not counted."""
    first, second = Queue[Any, Any](storage), Queue[Any, Any](storage)
    waiting, events = Waiting(), Events(first)
    first.execute(waiting)
    await first.start()
    await first.enqueue("a", 5)
    job = await waiting.begun()

    begun = time.monotonic()
    await first.stop(timeout)
    took = time.monotonic() - begun

    assert timeout <= took < timeout + 0.5
    assert job.signal.reason == "stopping"
    assert events.of("requeued") == [("a",)]

    @second.execute
    async def attempts(job: Job[Any]) -> int:
        return job.attempts

    async with second:
        assert await second.wait("a", timeout=1) == 1


@in_loop
async def test_a_handler_that_raises_while_stop_cancels_it_is_given_back(storage: Storage) -> None:
    """What its cleaning up raises is the stop's doing; with its last attempt, a restart would fail it for good."""
    queue, begun = Queue[Any, Any](storage, max_attempts=1), asyncio.Event()
    events = Events(queue)

    @queue.execute
    async def untidy(job: Job[Any]) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionError("closed already")

    await queue.start()
    await queue.enqueue("a", 1)
    await begun.wait()
    await queue.stop(0)

    assert events.of("requeued") == [("a",)]
    assert not events.of("failed")


@in_loop
async def test_a_job_given_back_keeps_its_place(storage: Storage) -> None:
    """It was first, and is first again."""
    queue, waiting = Queue[Any, Any](storage), Waiting()
    queue.execute(waiting)
    await queue.start()
    await queue.enqueue_many([("a", 1), ("b", 2), ("c", 3)])
    await waiting.begun()
    await queue.stop(0)
    waiting.release.set()
    async with queue:
        await queue.wait("c")

    assert [job.id for job in waiting.jobs] == ["a", "a", "b", "c"]


@pytest.mark.slow
@IGNORES
@in_loop
async def test_stop_returns_whatever_handlers_do(storage: Storage, timeout: float) -> None:
    """Within its timeout and one second; the job is left to its lease, since it still runs."""
    queue, stubborn = Queue[Any, Any](storage, visibility_timeout=30), Stubborn()
    queue.execute(stubborn)
    await queue.start()
    await queue.enqueue("a", 1)
    await stubborn.begun.wait()

    begun = time.monotonic()
    await queue.stop(timeout)
    took = time.monotonic() - begun

    assert timeout <= took < timeout + 1
    async with Queue[Any, Any](storage) as reader:
        status = await reader.get_status("a")
        stubborn.release.set()  # Before any assertion, so that the loop of a failed test can end.
        await stubborn.ended.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        assert status is not None
        assert (status.state, status.attempts) == ("processing", 1)
        assert await reader.get_result("a") is None


@pytest.mark.slow
@IGNORES
@in_loop
async def test_stop_does_not_wait_for_functions_in_threads(storage: Storage, timeout: float) -> None:
    """They cannot be cancelled: their signal is aborted, and the job left to its lease."""
    queue, go = Queue[Any, Any](storage), threading.Event()
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    jobs: list[Job[Any]] = []

    @queue.execute
    def slow(job: Job[Any]) -> str:
        jobs.append(job)
        loop.call_soon_threadsafe(begun.set)
        go.wait(5)
        return "too late"

    await queue.start()
    await queue.enqueue("a", 1)
    await begun.wait()
    started = time.monotonic()
    await queue.stop(timeout)
    took = time.monotonic() - started
    go.set()

    assert timeout <= took < timeout + 1
    assert jobs[0].signal.reason == "stopping"
    async with Queue[Any, Any](storage) as reader:
        status = await reader.get_status("a")
        assert status is not None
        assert status.state == "processing"


@pytest.mark.slow
@in_loop
async def test_a_job_whose_time_ends_while_stop_waits_for_it_is_not_given_back(storage: Storage) -> None:
    """It still runs, so it is left to its lease: given back, it would run twice at the same time."""
    queue, stubborn = Queue[Any, Any](storage, visibility_timeout=30, job_timeout=0.2), Stubborn()
    events = Events(queue)
    queue.execute(stubborn)
    await queue.start()
    await queue.enqueue("a", 1)
    await stubborn.begun.wait()
    await queue.stop(0)

    async with Queue[Any, Any](storage) as reader:
        status = await reader.get_status("a")
        stubborn.release.set()  # Before any assertion, so that the loop of a failed test can end.
        await stubborn.ended.wait()
    assert status is not None
    assert (status.state, status.attempts) == ("processing", 1)
    assert not events.of("requeued")


@in_loop
async def test_stop_awaited_in_a_handler_begins_the_stop(storage: Storage) -> None:
    """It returns at once, and the handler's result is stored."""
    queue = Queue[Any, Any](storage)
    events = Events(queue)

    @queue.execute
    async def last(job: Job[Any]) -> str:
        await queue.stop()
        return "the last"

    await queue.start()
    await queue.enqueue("a", 1)
    await events.until("stopped", within=2)
    await queue.stop()

    assert events.of("completed") == [("a", "the last")]


@in_loop
async def test_a_claim_answered_after_stop_began_is_given_back(storage: Storage) -> None:
    """It is not run, and the attempt is not counted."""
    gated = Gated(storage)
    queue, ran = Queue[Any, Any](gated), []

    @queue.execute
    async def note(job: Job[Any]) -> None:
        ran.append(job.id)

    async with Queue[Any, Any](storage) as producer:
        await producer.enqueue("a", 1)
        gated.gates["claim"] = asyncio.Event()
        await queue.start()
        while not gated.calls.get("claim"):
            await asyncio.sleep(0)
        stopping = asyncio.create_task(queue.stop(1))
        await asyncio.sleep(0)
        gated.gates["claim"].set()
        await stopping
        status = await producer.get_status("a")

    assert not ran
    assert status is not None
    assert (status.state, status.attempts) == ("queued", 0)


@pytest.mark.slow
@in_loop
async def test_a_slow_claim_that_stop_meets_is_given_back(storage: Storage) -> None:
    """Also when nothing runs and the stop has no time: a claim that was dropped would hold its jobs until it lapses."""
    gated = Gated(storage)
    queue = Queue[Any, Any](gated)
    queue.execute(echo)

    async with Queue[Any, Any](storage) as producer:
        await producer.enqueue("a", 1)

        async def claim(*arguments: Any) -> Any:
            answer = await storage.namespace("default").claim(*arguments)
            claimed.set()
            await passing(0.25)
            return answer

        gated.replaced["claim"], claimed = claim, asyncio.Event()
        await queue.start()
        await claimed.wait()
        begun = time.monotonic()
        await queue.stop(0)
        took = time.monotonic() - begun
        status = await producer.get_status("a")

    assert status is not None
    assert (status.state, status.attempts) == ("queued", 0)
    assert took < 1


# A claimer that somebody else cancels


def cancel_the_claimer() -> None:
    """Do what a clean-up does that cancels all tasks but its own."""
    for task in asyncio.all_tasks():
        if "Worker._consume" in repr(task.get_coro()):
            task.cancel()


@in_loop
async def test_run_returns_when_somebody_else_cancelled_the_claimer(storage: Storage) -> None:
    """Nothing would be claimed any more, so whoever restarts the program may do it; what ran is left to its lease."""
    queue = Queue[Any, Any](storage)

    @queue.execute
    async def careless(job: Job[Any]) -> Any:
        cancel_the_claimer()
        return job.payload

    async with Queue[Any, Any](storage) as producer:
        running = asyncio.create_task(queue.run())
        await producer.enqueue("a", 7)
        async with asyncio.timeout(2):
            await running
        with pytest.raises(QueueClosedError):
            await queue.counts()
        assert (await producer.counts())[State.PROCESSING] == 1


@pytest.mark.parametrize("cancelling", ["before", "after"])
def test_a_cancel_in_the_turn_in_which_a_sleep_is_ended_is_not_taken_for_that(cancelling: str) -> None:
    """The worker ends its own sleep by a cancel, and swallows it; that of somebody else counts all the same."""

    async def main() -> float:
        storage = OnLoop(MemoryStorage(clock=VirtualClock()))
        queue, waiting = Queue[Any, Any](storage, concurrency=3, block_timeout=5), Waiting()
        queue.execute(waiting)

        @queue.on("completed")
        def cancel(id: str, result: Any) -> None:
            if id == cancelling:
                cancel_the_claimer()

        async with Queue[Any, Any](storage) as producer:
            await producer.enqueue_many([("before", 1), ("after", 1), EnqueueItem("later", 1, delay=60)])
            running = asyncio.create_task(queue.run(until_empty=True))
            await waiting.begun(2)
            await passing(1)
            waiting.release.set()  # They are settled together; after the last one the worker looks again.
            await running
            return asyncio.get_running_loop().time()

    assert in_virtual_time(main) < 2


def test_a_worker_that_sleeps_while_its_last_job_ends_is_empty_at_once() -> None:
    """It looks again by itself, however long its sleep would have been."""

    async def main() -> float:
        storage = OnLoop(MemoryStorage(clock=VirtualClock()))
        queue, waiting = Queue[Any, Any](storage, concurrency=2, block_timeout=60), Waiting()
        queue.execute(waiting)
        async with Queue[Any, Any](storage) as producer:
            await producer.enqueue("a", 1)
            running = asyncio.create_task(queue.run(until_empty=True))
            await waiting.begun()
            await passing(1)
            waiting.release.set()
            await running
            return asyncio.get_running_loop().time()

    assert in_virtual_time(main) == pytest.approx(1.0, abs=0.01)


# Leases


@pytest.mark.slow
@in_loop
async def test_a_blocked_loop_keeps_its_job(storage: Storage) -> None:
    """The lease is renewed from a thread, three times as long as the lease lasts."""
    queue, rival = (Queue[Any, Any](storage, visibility_timeout=0.3, block_timeout=0.1) for _ in range(2))
    events, runs = Events(queue), []

    @queue.execute
    async def blocking(job: Job[Any]) -> str:
        runs.append(job.attempts)
        block(0.9)
        return "done"

    taken: list[str] = []
    stop = threading.Event()

    def elsewhere() -> None:
        """Claim from another loop meanwhile, as another worker does."""

        async def claim() -> None:
            @rival.execute
            async def take(job: Job[Any]) -> str:
                taken.append(job.id)
                return "taken"

            async with rival:
                while not stop.is_set():
                    await passing(0.02)

        asyncio.run(leaving_no_task(claim()))

    async with queue:
        assert await queue.enqueue_and_wait("first", 1) == "done"
        runs.clear()
        await queue.enqueue("a", 1)
        other = threading.Thread(target=elsewhere) if type(storage).__name__ == "MemoryStorage" else None
        while not runs:
            await asyncio.sleep(0)
        if other is not None:
            other.start()
        assert await queue.wait("a") == "done"
        stop.set()
        if other is not None:
            await asyncio.to_thread(other.join)

    assert runs == [1]
    assert not taken
    assert not events.of("lease_lost")


@pytest.mark.slow
@in_loop
async def test_a_long_handler_keeps_its_job(storage: Storage) -> None:
    """As long as it takes, with a lease much shorter."""
    queue, rival = (Queue[Any, Any](storage, visibility_timeout=0.15, block_timeout=0.05) for _ in range(2))
    events, runs = Events(queue), []

    async def slow(job: Job[Any]) -> int:
        runs.append(job.attempts)
        await passing(0.7)
        return job.attempts

    queue.execute(slow)
    rival.execute(slow)
    async with queue, rival:
        assert await queue.enqueue_and_wait("a", 1) == 1

    assert runs == [1]
    assert not events.of("lease_lost")


@pytest.mark.slow
@in_loop
async def test_a_loop_that_stands_still_for_too_long_loses_its_jobs(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond loop_stall_limit its leases are left to lapse; afterwards the worker goes on."""
    queue = Queue[Any, Any](storage, visibility_timeout=0.2, loop_stall_limit=0.2, block_timeout=0.1)
    events, runs = Events(queue), []

    @queue.execute
    async def blocking(job: Job[Any]) -> str:
        runs.append(job.attempts)
        if job.attempts == 1:
            block(0.9)
            await asyncio.Event().wait()
        return "second run"

    async with queue:
        assert await queue.enqueue_and_wait("a", 1, timeout=5) == "second run"

    assert runs == [1, 2]
    assert events.of("lease_lost") == [("a",)]
    assert "stood still" in caplog.text


@pytest.mark.slow
@in_loop
async def test_a_job_whose_time_is_over_is_not_held_by_a_loop_that_stands_still(storage: Storage) -> None:
    """Nobody here can say that its time is over, so its lease is left to lapse, however patient the loop's limit is."""
    queue = Queue[Any, Any](storage, visibility_timeout=0.2, job_timeout=0.2, block_timeout=0.1)
    events = Events(queue)

    @queue.execute
    async def blocking(job: Job[Any]) -> str:
        if job.attempts == 1:
            block(1.8)
            await asyncio.Event().wait()
        return "second run"

    async with queue:
        assert await queue.enqueue_and_wait("a", 1, timeout=5) == "second run"

    assert events.of("lease_lost") == [("a",)]
    assert events.of("failing") == []


def test_a_loop_that_stands_still_twice_is_told_of_twice() -> None:
    """The limit counts from when it last moved."""

    async def main() -> list[float]:
        told = list[float]()
        group = LeaseGroup(
            "default", 30.0, stall_limit=5.0, lost=lambda _: None, cancel_asked=lambda _: None, stalled=told.append
        )
        claim = Claim("a", "1-aa", "n.1", b"1", 1, 3, 0.0, 60.0)
        group.held[claim.token] = Running(claim, math.inf, math.inf)
        for now in (0.0, 6.0, 7.0, 100.0, 110.0):
            renewed = group.to_renew(now)
            assert bool(renewed) is (now in (0.0, 100.0)), now
            if now in (7.0, 110.0):
                await asyncio.sleep(0)
        return told

    assert asyncio.run(main()) == [6.0, 10.0]


@pytest.mark.slow
@in_loop
async def test_a_worker_that_cannot_renew_fences_itself(storage: Storage) -> None:
    """By its own clock: handler cancelled, signal aborted, result dropped, lease_lost told once."""
    gated = Gated(storage)
    gated.twin = lambda: None  # type: ignore[method-assign]
    queue = Queue[Any, Any](gated, visibility_timeout=0.2, block_timeout=5)
    waiting, events = Waiting(), Events(queue)
    queue.execute(waiting)
    async with queue:
        await queue.enqueue("a", 1)
        job = await waiting.begun()
        began = time.monotonic()
        gated.failures["extend"] = [StorageUnavailableError("away") for _ in range(1000)]
        await events.until("lease_lost", within=2)
        took = time.monotonic() - began
        gated.failures["extend"] = []
        assert job.signal.reason == "lease_lost"
        waiting.release.set()
        assert await queue.wait("a") == 1

    assert took < 1
    assert waiting.cancelled == ["a"]
    assert [job.attempts for job in waiting.jobs] == [1, 2]
    assert events.of("lease_lost") == [("a",)]


@pytest.mark.slow
@pytest.mark.parametrize("twin", [True, False], ids=["in a thread", "in the loop"])
@in_loop
async def test_a_bug_of_the_storage_does_not_end_the_renewing_of_leases(
    storage: Storage, twin: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that no storage should raise is logged, and the renewal repeated."""
    gated = Gated(storage)
    other = storage.twin() if twin else None
    renewing = Gated(other) if other is not None else gated
    gated.twin = lambda: renewing if twin else None  # type: ignore[method-assign]
    renewing.failures["extend"] = [ConnectionResetError("a bug")]
    queue, waiting = Queue[Any, Any](gated, visibility_timeout=0.6, max_attempts=1), Waiting()
    queue.execute(waiting)
    events = Events(queue)
    async with queue:
        await queue.enqueue("a", 7)
        await waiting.begun()
        await passing(0.9)
        waiting.release.set()
        assert await queue.wait("a", timeout=1) == 7

    assert not events.of("lease_lost")
    assert not renewing.failures["extend"]
    assert "a bug" in caplog.text


@pytest.mark.slow
@in_loop
async def test_an_error_of_any_kind_ends_no_renewal(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a storage is logged, and the leases are renewed as soon as it works again."""
    gated, renewals, renewed = Gated(storage), [], asyncio.Event()
    gated.twin = lambda: None  # type: ignore[method-assign]
    queue = Queue[Any, Any](gated, visibility_timeout=1.5, block_timeout=5)
    waiting, events = Waiting(), Events(queue)
    queue.execute(waiting)

    async def extend(*arguments: Any) -> Any:
        renewals.append(arguments)
        if len(renewals) <= 2:
            raise RuntimeError("a bug")
        if len(renewals) == 4:
            renewed.set()
        return await storage.namespace("default").extend(*arguments)

    gated.replaced["extend"] = extend
    async with queue:
        await queue.enqueue("a", 1)
        await waiting.begun()
        async with asyncio.timeout(5):
            await renewed.wait()
        waiting.release.set()
        assert await queue.wait("a") == 1

    assert events.of("lease_lost") == []
    assert [job.attempts for job in waiting.jobs] == [1]
    assert "leases were not renewed" in caplog.text


@pytest.mark.slow
@in_loop
async def test_a_lost_token_fences_the_handler(storage: Storage) -> None:
    """Somebody else holds the job: the next renewal says so, and the first run's result is dropped."""
    gated, claimed = Gated(storage), []
    queue = Queue[Any, Any](gated, visibility_timeout=0.3, block_timeout=5)
    events, stubborn = Events(queue), Stubborn()
    queue.execute(stubborn)
    namespace = storage.namespace("default")

    async def overheard(*arguments: Any) -> Any:
        answer = await namespace.claim(*arguments)
        claimed.extend(answer.claims)
        return answer

    gated.replaced["claim"] = overheard
    async with queue:
        await queue.enqueue("a", 1)
        await stubborn.begun.wait()
        await namespace.settle([Settlement("a", claimed[0].token, State.QUEUED)])
        rival = await namespace.claim("rival", 30.0, 1, "rival.1")
        assert [claim.id for claim in rival.claims] == ["a"]
        await events.until("lease_lost", within=2)
        assert stubborn.jobs[0].signal.reason == "lease_lost"
        stubborn.release.set()
        await stubborn.ended.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        status = await queue.get_status("a")

    assert status is not None
    assert (status.state, status.worker_id) == ("processing", "rival")
    assert not events.of("completed")


def test_a_lost_lease_is_noticed_at_the_next_renewal() -> None:
    """After a third of the lease, and not when it would have ended: until then two handlers run."""

    async def main() -> float:
        storage = MemoryStorage(clock=VirtualClock())
        namespace, claimed = storage.namespace("default"), []
        gated = Gated(OnLoop(storage))
        queue, waiting = Queue[Any, Any](gated, visibility_timeout=30.0), Waiting()
        events = Events(queue)
        queue.execute(waiting)

        async def overheard(*arguments: Any) -> Any:
            answer = await namespace.claim(*arguments)
            claimed.extend(answer.claims)
            return answer

        gated.replaced["claim"] = overheard
        async with queue:
            await queue.enqueue("a", 1)
            await waiting.begun()
            await namespace.settle([Settlement("a", claimed[0].token, State.QUEUED)])
            await namespace.claim("rival", 60.0, 1, "rival.1")
            await events.until("lease_lost", within=60)
            assert waiting.jobs[0].signal.reason == "lease_lost"
            return asyncio.get_running_loop().time()

    assert in_virtual_time(main) == pytest.approx(10.0, abs=0.5)


def test_a_renewal_whose_answer_came_late_counts_from_before_it_was_sent() -> None:
    """By then others may run the job, whatever the answer said when it was given."""

    async def main() -> tuple[float, float]:
        storage = MemoryStorage(clock=VirtualClock())
        namespace, gated, sent = storage.namespace("default"), Gated(OnLoop(storage)), list[float]()
        queue, waiting, loop = Queue[Any, Any](gated, visibility_timeout=30.0), Waiting(), asyncio.get_running_loop()
        events = Events(queue)
        queue.execute(waiting)

        async def slowly(*arguments: Any) -> Any:
            sent.append(loop.time())
            answers = await namespace.extend(*arguments)
            await passing(15.0 if len(sent) == 1 else 100.0)
            return answers

        gated.replaced["extend"] = slowly
        async with queue:
            await queue.enqueue("a", 1)
            await waiting.begun()
            await events.until("lease_lost", within=100)
            return sent[0], loop.time()

    sent_at, lost_at = in_virtual_time(main)
    assert lost_at == pytest.approx(sent_at + 30.0, abs=0.1)


def test_a_claim_that_came_late_is_fenced_at_its_own_deadline() -> None:
    """Although the leases of the others, which were renewed meanwhile, last longer."""

    async def main() -> tuple[list[tuple[Any, ...]], float]:
        storage = MemoryStorage(clock=VirtualClock())
        namespace, gated, sent = storage.namespace("default"), Gated(OnLoop(storage)), list[float]()
        queue, waiting = Queue[Any, Any](gated, visibility_timeout=30.0, concurrency=2), Waiting()
        events, loop = Events(queue), asyncio.get_running_loop()
        queue.execute(waiting)

        async def slowly(*arguments: Any) -> Any:
            claimed = await namespace.claim(*arguments)
            if [claim.id for claim in claimed.claims] == ["late"]:
                sent.append(loop.time())
                await passing(25.0)
            return claimed

        async def away(*arguments: Any) -> Any:
            raise StorageUnavailableError("away")

        gated.replaced["claim"] = slowly
        async with queue:
            await queue.enqueue("early", 1)
            await waiting.begun()
            await passing(36.0)
            await queue.enqueue("late", 2)
            await waiting.begun(2, within=100)
            gated.replaced["extend"] = away
            await events.until("lease_lost", within=100)
            return events.of("lease_lost"), loop.time() - sent[0]

    lost, after = in_virtual_time(main)
    assert lost == [("late",)]
    assert after == pytest.approx(30.0, abs=0.1)


def test_a_worker_renews_the_leases_of_very_many_jobs() -> None:
    """In several requests, each for others of them."""

    async def main() -> tuple[list[Any], int]:
        storage = OnLoop(MemoryStorage(clock=VirtualClock()))
        queue, waiting = Queue[Any, Any](storage, visibility_timeout=30.0, concurrency=600), Waiting()
        events = Events(queue)
        queue.execute(waiting)
        async with queue:
            await queue.enqueue_many([(str(number), number) for number in range(600)])
            await waiting.begun(600)
            await passing(100.0)
            waiting.release.set()
            await events.until("completed", 600)
        return events.of("lease_lost"), len(waiting.jobs)

    assert in_virtual_time(main) == ([], 600)


def test_a_renewal_that_failed_is_repeated_soon() -> None:
    """A storage that is away for most of a lease costs nobody a job."""

    async def main() -> list[str]:
        storage = MemoryStorage(clock=VirtualClock())
        namespace, gated, loop = storage.namespace("default"), Gated(OnLoop(storage)), asyncio.get_running_loop()
        queue, waiting = Queue[Any, Any](gated, visibility_timeout=30.0), Waiting()
        events = Events(queue)
        queue.execute(waiting)

        async def away(*arguments: Any) -> Any:
            if loop.time() < 28.0:
                raise StorageUnavailableError("away")
            return await namespace.extend(*arguments)

        gated.replaced["extend"] = away
        async with queue:
            await queue.enqueue("a", 1)
            await waiting.begun()
            await passing(50.0)
            waiting.release.set()
            await queue.wait("a")
        return events.names

    assert "lease_lost" not in in_virtual_time(main)


def test_every_running_job_that_is_cancelled_stops_at_once() -> None:
    """The second as soon as the first, and none of them at the next renewal only."""

    async def main() -> list[float]:
        storage = OnLoop(MemoryStorage(clock=VirtualClock()))
        queue, waiting = Queue[Any, Any](storage, visibility_timeout=300.0, concurrency=3), Waiting()
        events, loop, took = Events(queue), asyncio.get_running_loop(), list[float]()
        queue.execute(waiting)
        async with queue:
            await queue.enqueue_many([(id, id) for id in "abc"])
            await waiting.begun(3)
            for number, id in enumerate("abc", 1):
                begun = loop.time()
                await queue.cancel(id, running=True)
                await events.until("cancelled", number, within=200)
                took.append(loop.time() - begun)
        return took

    assert max(in_virtual_time(main)) < 1.0


def _late_claim(gated: Gated, storage: Storage, meanwhile: Callable[[], Awaitable[Any]]) -> None:
    """Hand over the first job that is claimed when something else has happened after it."""

    async def claim(*arguments: Any) -> Any:
        answer = await storage.namespace("default").claim(*arguments)
        if answer.claims:
            del gated.replaced["claim"]
            await meanwhile()
        return answer

    gated.replaced["claim"] = claim


@in_loop
async def test_a_claim_that_arrives_past_its_lease_is_renewed_and_run(storage: Storage) -> None:
    """Nobody else has taken it, so it waits for no lease and costs no attempt."""
    gated = Gated(storage)
    queue = Queue[Any, Any](gated, visibility_timeout=0.15, block_timeout=5, max_attempts=1)
    queue.execute(echo)
    _late_claim(gated, storage, partial(passing, 0.2))
    async with queue:
        assert await queue.enqueue_and_wait("a", 1, timeout=3) == 1


@in_loop
async def test_a_claim_that_others_took_before_it_arrived_is_not_run(storage: Storage) -> None:
    """Its lease had ended, and the storage says so."""
    gated, namespace = Gated(storage), storage.namespace("default")
    queue, runs = Queue[Any, Any](gated, visibility_timeout=0.15, block_timeout=5), list[int]()
    queue.execute(lambda job: runs.append(job.attempts))
    taken = asyncio.get_running_loop().create_future()

    async def rescued_by_a_rival() -> None:
        await passing(0.2)
        taken.set_result((await namespace.claim("rival", 60.0, 1, "rival.1")).claims[0])

    _late_claim(gated, storage, rescued_by_a_rival)
    async with queue:
        await queue.enqueue("a", 1)
        token = (await taken).token
        await passing(0.1)
        await namespace.settle([Settlement("a", token, State.COMPLETED, result=b"2", ttl=60)])
        assert await queue.wait("a", timeout=3) == 2

    assert runs == []


def test_a_claim_that_was_cancelled_before_it_arrived_ends_before_its_lease() -> None:
    """Its worker is told that it should stop, and says that it has."""

    async def main() -> float:
        storage = MemoryStorage(clock=VirtualClock())
        namespace, gated = storage.namespace("default"), Gated(OnLoop(storage))
        queue, waiting = Queue[Any, Any](gated, visibility_timeout=30.0), Waiting()
        events = Events(queue)
        queue.execute(waiting)
        arrived = list[float]()

        async def cancelled_meanwhile() -> None:
            await passing(40.0)
            await namespace.cancel("a", True, "another.1")
            arrived.append(asyncio.get_running_loop().time())

        _late_claim(gated, storage, cancelled_meanwhile)
        async with queue:
            await queue.enqueue("a", 1)
            await events.until("cancelled", within=100)
            return asyncio.get_running_loop().time() - arrived[0]

    assert in_virtual_time(main) < 15.0


@in_loop
async def test_a_claim_whose_renewal_is_late_as_well_is_not_run(storage: Storage) -> None:
    """Its deadline counts from before it was sent, and others may run the job already."""
    gated = Gated(storage)
    queue, attempts = Queue[Any, Any](gated, visibility_timeout=0.15, block_timeout=5), list[int]()
    queue.execute(lambda job: attempts.append(job.attempts))

    async def extend(*arguments: Any) -> Any:
        answer = await storage.namespace("default").extend(*arguments)
        del gated.replaced["extend"]
        await passing(0.2)
        return answer

    gated.replaced["extend"] = extend
    _late_claim(gated, storage, partial(passing, 0.2))
    async with queue:
        await queue.enqueue_and_wait("a", 1, timeout=3)

    assert attempts == [2]


# Trouble


def test_a_worker_that_cannot_settle_claims_no_more_for_now() -> None:
    """What it did would pile up, and be lost with it; others may still be able to work. Afterwards it goes on."""

    async def main() -> tuple[int, int]:
        gated = Gated(OnLoop(MemoryStorage(clock=VirtualClock())))
        gated.gates["settle"] = asyncio.Event()
        queue = Queue[Any, Any](gated, visibility_timeout=30.0, concurrency=2)
        events, runs = Events(queue), list[str]()

        @queue.execute
        async def run(job: Job[Any]) -> None:
            runs.append(job.id)

        async with queue:
            await queue.enqueue_many([(str(number), number) for number in range(40)])
            await passing(5.0)
            begun = len(runs)
            gated.gates["settle"].set()
            await events.until("completed", 40)
        return begun, len(runs)

    begun, runs = in_virtual_time(main)
    assert begun <= 8
    assert runs == 40


@in_loop
async def test_a_worker_tells_of_each_outage(storage: Storage) -> None:
    """Once, but of the second as well as of the first."""
    gated = Gated(storage)
    queue = Queue[Any, Any](gated, block_timeout=0.05)
    events = Events(queue)
    queue.execute(echo)
    async with queue:
        for outage in (1, 2):
            gated.failures["claim"] = [StorageError("odd")]
            assert await queue.enqueue_and_wait(str(outage), outage) == outage
            await events.until("error", outage)

    assert len(events.of("error")) == 2


@pytest.mark.slow
@in_loop
async def test_trouble_while_settling_never_fails_a_job(storage: Storage) -> None:
    """Settling is repeated; the job ran once and is completed."""
    gated = Gated(storage)
    queue, runs = Queue[Any, Any](gated), []

    @queue.execute
    async def note(job: Job[Any]) -> str:
        runs.append(job.attempts)
        return "done"

    async with queue:
        gated.failures["settle"] = [StorageUnavailableError("away"), StorageError("odd"), StorageUnavailableError("x")]
        assert await queue.enqueue_and_wait("a", 1) == "done"

    assert runs == [1]


@pytest.mark.slow
@in_loop
async def test_a_worker_survives_trouble_while_claiming(storage: Storage) -> None:
    """It says so once, and resumes alone."""
    gated = Gated(storage)
    gated.failures["claim"] = [StorageError("odd")] * 2
    gated.failures["wait_for_work"] = [StorageError("odder")]
    queue = Queue[Any, Any](gated)
    queue.execute(echo)
    events = Events(queue)
    async with queue:
        assert await queue.enqueue_and_wait("a", 7) == 7

    assert len(events.of("error")) <= 2
    assert events.of("error")


@pytest.mark.slow
@in_loop
async def test_what_was_claimed_by_a_lost_reply_runs_as_soon_as_the_storage_answers_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the outage outlasts the time of sending again: the jobs do not wait for their lease to lapse."""
    monkeypatch.setattr("jobq._batch.RESEND_FOR", 0.1)
    gated = Gated(storage)
    lost: list[str] = []

    async def claim(worker_id: str, lease: float, limit: int, nonce: str) -> Any:
        answer = await storage.namespace("default").claim(worker_id, lease, limit, nonce)
        lost.append(nonce)
        if len(lost) < 8:
            raise StorageUnavailableError("the reply was lost")
        del gated.replaced["claim"]
        return answer

    gated.replaced["claim"] = claim
    queue = Queue[Any, Any](gated, visibility_timeout=60, max_attempts=1)
    queue.execute(echo)
    events = Events(queue)
    async with queue:
        assert await queue.enqueue_and_wait("a", 7, timeout=9) == 7

    assert len(lost) == 8
    assert set(lost) == {lost[0]}
    assert len(events.of("error")) == 1


@pytest.mark.slow
@in_loop
async def test_a_bug_of_the_storage_does_not_end_the_worker_in_silence(storage: Storage) -> None:
    """An exception that no storage should raise is an error event, and the worker tries again."""
    gated = Gated(storage)
    gated.failures["claim"] = [ValueError("a bug")]
    queue = Queue[Any, Any](gated)
    queue.execute(echo)
    events = Events(queue)
    async with queue:
        await events.until("error", within=2)
        assert await queue.enqueue_and_wait("a", 7, timeout=3) == 7


def test_a_settle_that_is_refused_is_told_of_once_for_each_job() -> None:
    """As by a full disk, for as long as it is repeated; when there is room again, all are completed."""

    async def main() -> tuple[int, int]:
        gated = Gated(OnLoop(MemoryStorage(clock=VirtualClock())))
        queue = Queue[Any, Any](gated, concurrency=5, visibility_timeout=30)
        queue.execute(echo)
        events = Events(queue)

        async def full(settlements: Any) -> Any:
            raise StorageFullError("full")

        gated.replaced["settle"] = full
        async with queue:
            await queue.enqueue_many([(str(number), number) for number in range(10)])
            await passing(20)
            del gated.replaced["settle"]
            await passing(2)
            return len(events.of("error")), (await queue.counts())[State.COMPLETED]

    assert in_virtual_time(main) == (10, 10)


@in_loop
async def test_an_idle_worker_starts_a_new_job_at_once(storage: Storage) -> None:
    """It is woken by the add, and does not wait for its next look."""
    queue = Queue[Any, Any](storage, block_timeout=60)
    queue.execute(echo)
    async with queue:
        await passing(0.05)
        begun = time.monotonic()
        await queue.enqueue_and_wait("a", 1)

    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(("vigilant", "looks"), [(False, 20), (True, 2)])
def test_an_idle_worker_claims_no_more_after_it_found_nothing(vigilant: bool, looks: int) -> None:
    """Where each sleep begins with a look, as in memory, that look is enough; and what then comes is run.

    Where nothing can be missed, a look a minute is enough.
    """

    async def main() -> tuple[int, int, float]:
        gated = Gated(MemoryStorage(clock=VirtualClock()))
        gated.vigilant = vigilant
        queue = Queue[Any, Any](gated, block_timeout=5)
        queue.execute(echo)
        async with queue:
            await passing(100)
            claims, sleeps = gated.calls["claim"], gated.calls["wait_for_work"]
            await queue.enqueue_and_wait("a", 1)
            await queue.enqueue("b", 2, delay=20)
            return claims, sleeps, await _age(queue, "b")

    claims, sleeps, age = in_virtual_time(main)
    assert claims == 1
    assert looks <= sleeps <= looks + 3
    assert age == pytest.approx(20, abs=0.1)


def test_a_worker_that_is_stopped_as_it_learns_of_a_delay_leaves_that_to_another() -> None:
    """Which sleeps longer, since the one that is stopped would have looked in time, and was woken for nothing."""

    async def main() -> float:
        storage = MemoryStorage(clock=VirtualClock())
        namespace, gated = storage.namespace("default"), Gated(storage)
        relied_upon, ignorant = Queue[Any, Any](gated), Queue[Any, Any](storage)
        relied_upon.execute(echo)
        ignorant.execute(echo)
        await relied_upon.start()
        await passing(30)
        async with ignorant:
            await passing(20)
            await ignorant.enqueue("late", 1, delay=20)
            gated.gates["claim"], before = asyncio.Event(), gated.calls["claim"]
            await namespace.add([NewJob("now", "session.1", b"1", 3, 60.0)])
            assert await namespace.cancel("now", False, "session.2") is State.QUEUED
            await passing(1)
            assert gated.calls["claim"] == before + 1
            stopping = asyncio.create_task(relied_upon.stop())
            await passing(0.05)
            gated.gates["claim"].set()
            await stopping
            return await _age(ignorant, "late")

    assert in_virtual_time(main) == pytest.approx(18.8, abs=0.3)


async def _age(queue: Queue[Any, Any], id: str) -> float:
    begun = asyncio.get_running_loop().time()
    await queue.wait(id)
    return asyncio.get_running_loop().time() - begun


def test_the_idle_queues_of_a_process_look_together() -> None:
    """A thousand of them cost a few turns of the loop each time, and not a thousand."""

    async def main() -> int:
        moments: set[float] = set()
        storage = MemoryStorage(clock=VirtualClock())
        async with contextlib.AsyncExitStack() as queues:
            for number in range(40):
                gated = Gated(storage)
                gated.vigilant = False
                queue = Queue[Any, Any](gated, name=f"queue-{number}", block_timeout=5)
                queue.execute(echo)
                gated.replaced["wait_for_work"] = _noting(storage.namespace(f"queue-{number}").wait_for_work, moments)
                await queues.enter_async_context(queue)
                await passing(0.7)
            moments.clear()
            await passing(50)
            return len(moments)

    assert in_virtual_time(main) <= 101


def _noting(wait: Callable[[float], Awaitable[bool]], moments: set[float]) -> Callable[[float], Awaitable[bool]]:
    async def noted(timeout: float) -> bool:
        moments.add(round(asyncio.get_running_loop().time(), 3))
        return await wait(timeout)

    return noted
