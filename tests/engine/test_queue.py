"""The door: every member of a queue answers as documented, on every storage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from jobq import (
    ConfigError,
    EnqueueItem,
    EnqueueResult,
    GiveUp,
    Job,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    JobTimeoutError,
    MaxRetriesError,
    MemoryStorage,
    PayloadTooLargeError,
    Queue,
    QueueClosedError,
    SerializationError,
    State,
    StorageError,
)
from jobq.job import NewJob
from jobq.storage.contract import Storage
from jobq.testing import OnLoop, VirtualClock, run_virtual
from tests.engine.scenes import Events, Gated, Waiting, echo, in_loop, passing


def failing_queue(storage: Storage, **options: Any) -> Queue[Any, Any]:
    """Return a queue whose handler fails at once and for good."""
    queue = Queue[Any, Any](storage, **options)

    @queue.execute
    async def refuse(job: Job[Any]) -> None:
        raise GiveUp("no")

    return queue


# enqueue


@in_loop
async def test_enqueue_of_a_free_id_is_queued(storage: Storage) -> None:
    """The first of the three answers."""
    async with Queue[Any, Any](storage) as queue:
        assert await queue.enqueue("a", 1) == EnqueueResult("queued")


@in_loop
async def test_enqueue_of_a_held_id_is_a_duplicate_with_its_state(storage: Storage) -> None:
    """The second answer says where the job is that holds the id."""
    async with Queue[Any, Any](storage) as queue:
        await queue.enqueue("waits", 1)
        assert await queue.enqueue("waits", 2) == EnqueueResult("duplicate", State.QUEUED)

        waiting = Waiting()
        queue.execute(waiting)
        await waiting.begun()
        assert await queue.enqueue("waits", 2) == EnqueueResult("duplicate", State.PROCESSING)
        waiting.release.set()
        assert await queue.wait("waits") == 1


@in_loop
async def test_enqueue_of_a_completed_id_brings_the_cached_result(storage: Storage) -> None:
    """The third answer, also where the result is None."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    async with queue:
        for id, result in (("a", {"x": [1]}), ("b", None), ("c", False), ("d", "")):
            await queue.enqueue_and_wait(id, result)
            assert await queue.enqueue(id, "other") == EnqueueResult("completed", None, result)


@in_loop
async def test_enqueue_of_a_failed_id_is_a_duplicate(storage: Storage) -> None:
    """A failed job holds its id until it expires or is retried."""
    async with failing_queue(storage) as queue:
        with pytest.raises(JobFailedError):
            await queue.enqueue_and_wait("a", 1)

        assert await queue.enqueue("a", 1) == EnqueueResult("duplicate", State.FAILED)


@in_loop
async def test_a_failing_id_is_a_duplicate(storage: Storage) -> None:
    """Between two attempts the job holds its id as failing."""
    queue = Queue[Any, Any](storage, retry=lambda attempt, error: 60.0)
    events = Events(queue)

    @queue.execute
    async def fail(job: Job[Any]) -> None:
        raise ValueError("once more")

    async with queue:
        await queue.enqueue("a", 1)
        await events.until("failing")
        assert await queue.enqueue("a", 1) == EnqueueResult("duplicate", State.FAILING)
        status = await queue.get_status("a")
        assert status is not None
        assert (status.state, status.attempts) == (State.FAILING, 1)
        assert status.error is not None
        assert (status.error.type, status.error.message) == ("ValueError", "once more")


@in_loop
async def test_a_delayed_job_runs_when_it_is_due_and_not_before(storage: Storage) -> None:
    """Noticed when due, not at the next look of an idle worker."""
    queue = Queue[Any, float](storage, block_timeout=60)

    @queue.execute
    async def now(job: Job[Any]) -> float:
        return time.monotonic()

    async with queue:
        begun = time.monotonic()
        ran = await queue.enqueue_and_wait("a", None, delay=timedelta(seconds=0.15))

    assert 0.14 <= ran - begun < 1.0


@in_loop
async def test_higher_priority_runs_first_and_equals_in_order(storage: Storage) -> None:
    """One worker, one slot: the order is exact."""
    queue = Queue[Any, Any](storage)
    ran: list[str] = []
    async with queue:
        for id, priority in (("low", -1000), ("first", 0), ("second", 0), ("high", 1000), ("third", 0)):
            await queue.enqueue(id, None, priority=priority)

        @queue.execute
        async def note(job: Job[Any]) -> None:
            ran.append(job.id)

        await queue.wait("low")

    assert ran == ["high", "first", "second", "third", "low"]


@in_loop
async def test_max_attempts_of_one_job_overrides_the_queues(storage: Storage) -> None:
    """Options of the call win over options of the queue."""
    queue = Queue[Any, Any](storage, max_attempts=5, retry=lambda attempt, error: 0.0)

    @queue.execute
    async def fail(job: Job[Any]) -> None:
        assert job.max_attempts == 2
        raise ValueError("always")

    async with queue:
        with pytest.raises(MaxRetriesError) as caught:
            await queue.enqueue_and_wait("a", None, max_attempts=2)

    assert caught.value.attempts == 2
    assert caught.value.job_id == "a"
    assert (caught.value.error.type, caught.value.error.message) == ("ValueError", "always")


@in_loop
async def test_result_ttl_of_one_job_overrides_the_queues(storage: Storage) -> None:
    """The record says until when it can be read."""
    queue = Queue[Any, Any](storage, result_ttl=10)
    queue.execute(echo)
    async with queue:
        await queue.enqueue_and_wait("a", 1, result_ttl=timedelta(seconds=100))
        status = await queue.get_status("a")

    assert status is not None
    assert status.expires_at is not None
    assert status.finished_at is not None
    assert status.expires_at - status.finished_at == pytest.approx(100, abs=0.01)


@in_loop
async def test_an_expired_result_is_absent_and_its_id_free(storage: Storage) -> None:
    """Expiry is exact: no prune is needed for it."""
    queue = Queue[Any, Any](storage, result_ttl=0.05)
    queue.execute(echo)
    async with queue:
        await queue.enqueue_and_wait("a", 1)
        async with asyncio.timeout(2):
            while await queue.get_status("a") is not None:
                await asyncio.sleep(0)
        assert await queue.get_result("a") is None
        assert await queue.enqueue_and_wait("a", 2) == 2


# enqueue_many


@in_loop
async def test_enqueue_many_answers_in_order_and_the_first_of_an_id_wins(storage: Storage) -> None:
    """Pairs and items may be mixed."""
    queue = Queue[Any, Any](storage)
    async with queue:
        answers = await queue.enqueue_many([("a", 1), EnqueueItem("b", 2, delay=60, priority=7), ("a", 3)])
        queue.execute(echo)

        assert [answer.status for answer in answers] == ["queued", "queued", "duplicate"]
        assert await queue.wait("a") == 1
        assert (await queue.enqueue_many([("a", 9)]))[0] == EnqueueResult("completed", None, 1)
        assert await queue.enqueue_many([]) == []


@in_loop
async def test_enqueue_many_hands_on_each_option(storage: Storage) -> None:
    """An item has the options of enqueue."""
    async with Queue[Any, Any](storage) as queue:
        await queue.enqueue_many([EnqueueItem("a", 1, max_attempts=7, result_ttl=5, delay=60, priority=-3)])
        status = await queue.get_status("a")

    assert status is not None
    assert status.max_attempts == 7
    assert status.run_at - status.created_at == pytest.approx(60, abs=0.01)


@in_loop
async def test_enqueue_many_takes_more_jobs_than_one_batch(storage: Storage) -> None:
    """The batches of the engine do not show."""
    async with Queue[Any, Any](storage) as queue:
        answers = await queue.enqueue_many([(str(number), number) for number in range(1000)])

        assert len(answers) == 1000
        assert {answer.status for answer in answers} == {"queued"}
        assert (await queue.counts())[State.QUEUED] == 1000


@in_loop
async def test_large_jobs_are_added_in_their_order_and_a_mebibyte_at_a_time(storage: Storage) -> None:
    """So that a storage is held up for moments only; one that is larger than that travels alone."""
    namespace, sent = storage.namespace("default"), list[list[int]]()

    async def add(jobs: Sequence[NewJob]) -> Any:
        sent.append([len(job.payload) for job in jobs])
        return await namespace.add(jobs)

    gated = Gated(storage)
    gated.replaced["add"] = add
    sizes = (400_000, 400_000, 400_000, 10, 2_000_000, 10, 700_000, 700_000, 10)
    async with Queue[str, None](gated) as queue:
        await queue.enqueue_many([(str(number), "x" * (size - 2)) for number, size in enumerate(sizes)])
        claims = [(await namespace.claim("worker", 30.0, 1, f"session.{n}")).claims[0].id for n in range(len(sizes))]

    assert claims == [str(number) for number in range(len(sizes))]
    assert all(len(some) == 1 or sum(some) <= 2**20 for some in sent), sent


def test_a_call_that_is_never_answered_ends_with_the_stop() -> None:
    """Its outcome is unknown, and so it is said."""

    async def main() -> float:
        gated = Gated(OnLoop(MemoryStorage(clock=VirtualClock())))
        gated.gates["add"] = asyncio.Event()
        async with Queue[int, None](gated) as queue:
            in_flight = asyncio.create_task(queue.enqueue("in flight", 1))
            await passing(0.1)
            behind = asyncio.create_task(queue.enqueue("behind it", 2))
            await passing(0.1)
            begun = asyncio.get_running_loop().time()
            await queue.stop(1.0)
            took = asyncio.get_running_loop().time() - begun
        done, _ = await asyncio.wait([in_flight, behind], timeout=60.0)
        assert {type(call.exception()) for call in done} == {QueueClosedError}
        assert len(done) == 2
        return took

    assert run_virtual(main) <= 2.0


@in_loop
async def test_a_job_that_the_storage_refuses_does_not_fail_its_neighbour(storage: Storage) -> None:
    """However few travelled together."""
    namespace = storage.namespace("default")

    async def add(jobs: Sequence[NewJob]) -> Any:
        if any(job.id == "refused" for job in jobs):
            raise StorageError("not this one")
        return await namespace.add(jobs)

    gated = Gated(storage)
    gated.replaced["add"] = add
    async with Queue[int, None](gated) as queue:
        first, refused = await asyncio.gather(
            queue.enqueue("first", 1), queue.enqueue("refused", 2), return_exceptions=True
        )

    assert isinstance(first, EnqueueResult)
    assert isinstance(refused, StorageError)


@in_loop
async def test_callers_that_gave_up_hold_up_nobody(storage: Storage) -> None:
    """More cancelled calls than fit into one batch stay behind, and the call after them is answered all the same."""
    async with Queue[Any, Any](storage) as queue:
        given_up = [asyncio.create_task(queue.enqueue(f"given up {number}", number)) for number in range(600)]
        await asyncio.sleep(0)
        for task in given_up:
            task.cancel()

        async with asyncio.timeout(10):
            await queue.enqueue("kept", 1)

        assert (await queue.counts())[State.QUEUED] == 1


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (("bad\0", 1), ConfigError),
        (("b", float("nan")), SerializationError),
        (("b", "x" * 200), PayloadTooLargeError),
        (("b",), ConfigError),
        (["b", 1], ConfigError),
        ("bc", ConfigError),
        (None, ConfigError),
        (EnqueueItem("b", 1, delay=-1), ConfigError),
        (EnqueueItem("b", 1, priority=1001), ConfigError),
        (EnqueueItem("b", 1, max_attempts=0), ConfigError),
        (EnqueueItem("b", 1, result_ttl=float("inf")), ConfigError),
    ],
)
@in_loop
async def test_enqueue_many_stores_nothing_if_one_item_is_refused(
    storage: Storage, item: Any, error: type[Exception]
) -> None:
    """All items are checked before any is sent."""
    async with Queue[Any, Any](storage, max_payload=100) as queue:
        with pytest.raises(error):
            await queue.enqueue_many([("a", 1), item])

        assert sum((await queue.counts()).values()) == 0


@in_loop
async def test_enqueue_many_tells_of_all_that_was_stored_beside_a_result_that_cannot_be_decoded(
    storage: Storage,
) -> None:
    """One that was stored for another type is no reason to keep silent about the others."""
    worker, producer = Queue[int, Any](storage), Queue[int, int](storage)

    @worker.execute
    async def word(job: Job[int]) -> str:
        return "text"

    async with worker:
        await worker.enqueue_and_wait("done", 1)
    told: list[str] = []
    producer.on("enqueued", told.append)
    async with producer:
        with pytest.raises(SerializationError) as caught:
            await producer.enqueue_many([("a", 1), ("done", 1), ("b", 2)])
        assert (await producer.counts())[State.QUEUED] == 2

    assert caught.value.code == "DESERIALIZATION"
    assert told == ["a", "b"]


# enqueue_and_wait, wait


@in_loop
async def test_enqueue_and_wait_joins_the_run_in_flight(storage: Storage) -> None:
    """Any number of callers share one run."""
    queue = Queue[Any, Any](storage, concurrency=5)
    waiting = Waiting()
    queue.execute(waiting)
    async with queue:
        callers = [asyncio.create_task(queue.enqueue_and_wait("a", number)) for number in range(5)]
        await waiting.begun()
        callers.append(asyncio.create_task(queue.wait("a")))
        await asyncio.sleep(0)
        waiting.release.set()
        results = await asyncio.gather(*callers)

    assert results == [0] * 6
    assert len(waiting.jobs) == 1


@in_loop
async def test_enqueue_and_wait_returns_the_cached_result(storage: Storage) -> None:
    """A completed job is not run again."""
    queue = Queue[Any, Any](storage)
    runs: list[str] = []

    @queue.execute
    async def note(job: Job[Any]) -> None:
        runs.append(job.id)

    async with queue:
        assert await queue.enqueue_and_wait("a", 1) is None
        assert await queue.enqueue_and_wait("a", 1) is None
        assert await queue.wait("a", timeout=0) is None

    assert runs == ["a"]


@in_loop
async def test_enqueue_and_wait_raises_the_stored_error_at_once(storage: Storage) -> None:
    """A job that has failed is not run again either."""
    async with failing_queue(storage) as queue:
        with pytest.raises(JobFailedError) as first:
            await queue.enqueue_and_wait("a", 1)
        with pytest.raises(JobFailedError) as second:
            await queue.enqueue_and_wait("a", 1, timeout=0)

    assert type(first.value) is type(second.value) is JobFailedError
    assert first.value.error == second.value.error
    assert first.value.error.code == "GIVE_UP"
    assert first.value.attempts == 1


@in_loop
async def test_a_wait_times_out_and_the_job_goes_on(storage: Storage) -> None:
    """The error is a TimeoutError of Python's as well."""
    queue = Queue[Any, Any](storage)
    waiting = Waiting()
    queue.execute(waiting)
    async with queue:
        begun = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            await queue.enqueue_and_wait("a", 1, timeout=0.05)
        took = time.monotonic() - begun
        waiting.release.set()

        assert isinstance(caught.value, JobTimeoutError)
        assert caught.value.job_id == "a"
        assert caught.value.code == "WAIT_TIMEOUT"
        assert 0.05 <= took < 0.5
        assert await queue.wait("a") == 1


@in_loop
async def test_a_timeout_of_zero_takes_one_look(storage: Storage) -> None:
    """The job is stored, and the caller does not wait for it."""
    async with Queue[Any, Any](storage) as queue:
        with pytest.raises(JobTimeoutError):
            await queue.enqueue_and_wait("a", 1, timeout=0)
        with pytest.raises(JobTimeoutError):
            await queue.wait("a", timeout=timedelta(0))

        assert (await queue.counts())[State.QUEUED] == 1
        queue.execute(echo)
        assert await queue.wait("a", timeout=None) == 1


@in_loop
async def test_wait_for_an_unknown_job_says_so(storage: Storage) -> None:
    """Nothing is waited for that nobody enqueued."""
    async with Queue[Any, Any](storage) as queue:
        with pytest.raises(JobNotFoundError) as caught:
            await queue.wait("nobody")

    assert caught.value.job_id == "nobody"
    assert "nobody" in str(caught.value)


@in_loop
async def test_a_waiter_is_told_of_a_cancel(storage: Storage) -> None:
    """Never silence: also for a job that never ran."""
    async with Queue[Any, Any](storage) as queue:
        waiter = asyncio.create_task(queue.enqueue_and_wait("a", 1))
        while await queue.get_status("a") is None:
            await asyncio.sleep(0)
        assert (await queue.cancel("a")).status == "cancelled"
        with pytest.raises(JobCancelledError) as caught:
            await waiter

    assert caught.value.job_id == "a"


# counts, cancel


@in_loop
async def test_counts_has_every_state(storage: Storage) -> None:
    """A state without jobs counts zero; a cancelled job is absent."""
    queue = Queue[Any, Any](storage, retry=lambda attempt, error: 60.0)
    events = Events(queue)
    waiting = Waiting()

    @queue.execute
    async def act(job: Job[Any]) -> None:
        match job.payload:
            case "give up":
                raise GiveUp
            case "fail":
                raise ValueError
            case "wait":
                await waiting(job)

    async with queue:
        assert dict(await queue.counts()) == dict.fromkeys(
            ("queued", "processing", "failing", "completed", "failed"), 0
        )
        await queue.enqueue_many([(word, word) for word in ("give up", "fail", "complete", "wait")])
        await events.until("completed")
        await waiting.begun()
        await queue.enqueue("later", None, delay=60)
        await queue.enqueue("gone", None, delay=60)
        await queue.cancel("gone")

        assert dict(await queue.counts()) == dict.fromkeys(
            ("queued", "processing", "failing", "completed", "failed"), 1
        )
        waiting.release.set()


@in_loop
async def test_cancel_answers_with_what_it_found(storage: Storage) -> None:
    """One status for each state, and nothing changes but for a waiting job."""
    queue = Queue[Any, Any](storage, concurrency=4, retry=lambda attempt, error: 60.0)
    events = Events(queue)
    waiting = Waiting()

    @queue.execute
    async def act(job: Job[Any]) -> Any:
        match job.payload:
            case "give up":
                raise GiveUp
            case "fail":
                raise ValueError
            case "wait":
                return await waiting(job)
        return job.payload

    async with queue:
        await queue.enqueue_many([(word, word) for word in ("give up", "fail", "complete", "wait")])
        await queue.enqueue("later", None, delay=60)
        await events.until("completed")
        await events.until("failing")
        await events.until("failed")
        await waiting.begun()
        answers = [(await queue.cancel(id)).status for id in ("nobody", "give up", "fail", "complete", "wait", "later")]

        assert answers == ["not_found", "failed", "cancelled", "completed", "processing", "cancelled"]
        assert [(await queue.cancel(id)).status for id in ("later", "fail")] == ["not_found", "not_found"]
        waiting.release.set()
        assert await queue.wait("wait") == "wait"
        assert await queue.get_result("complete") == "complete"


@in_loop
async def test_a_cancelled_id_can_be_enqueued_again_and_runs_the_new_payload_once(storage: Storage) -> None:
    """The old job is forgotten, not resumed."""
    queue = Queue[Any, Any](storage)
    async with queue:
        await queue.enqueue("a", "old")
        await queue.cancel("a")
        assert (await queue.enqueue("a", "new")).status == "queued"
        seen: list[Any] = []

        @queue.execute
        async def note(job: Job[Any]) -> None:
            seen.append(job.payload)

        await queue.wait("a")
        await queue.enqueue_and_wait("b", "last")

    assert seen == ["new", "last"]


@in_loop
async def test_cancel_of_a_running_job_stops_it_and_leaves_no_trace(storage: Storage) -> None:
    """The handler is cancelled, the waiter told, the id free."""
    queue = Queue[Any, Any](storage)
    waiting, events = Waiting(), Events(queue)
    queue.execute(waiting)
    async with queue:
        waiter = asyncio.create_task(queue.enqueue_and_wait("a", 1))
        job = await waiting.begun()
        assert (await queue.cancel("a", running=True)).status == "cancelling"
        with pytest.raises(JobCancelledError):
            await waiter
        await events.until("cancelled")

        assert job.signal.reason == "cancelled"
        assert waiting.cancelled == ["a"]
        assert await queue.get_status("a") is None
        assert events.of("cancelled") == [("a",)]
        assert not events.of("requeued")
        waiting.release.set()
        assert await queue.enqueue_and_wait("a", 2) == 2


@in_loop
async def test_the_value_of_a_handler_that_ignores_a_cancel_is_dropped(storage: Storage) -> None:
    """Once a cancel was asked for, no result of the job is ever stored."""
    queue = Queue[Any, Any](storage)
    begun, ends = asyncio.Event(), Events(queue)

    @queue.execute
    async def stubborn(job: Job[Any]) -> str:
        begun.set()
        assert await job.signal.wait() == "cancelled"
        return "a value"

    async with queue:
        waiter = asyncio.create_task(queue.enqueue_and_wait("a", 1))
        await begun.wait()
        assert (await queue.cancel("a", running=True)).status == "cancelling"
        with pytest.raises(JobCancelledError):
            await waiter
        await ends.until("cancelled")

        assert await queue.get_result("a") is None
        assert not ends.of("completed")


@in_loop
async def test_a_handler_can_cancel_its_own_job(storage: Storage) -> None:
    """Also in its first step, before it has ever waited."""
    queue = Queue[Any, Any](storage, visibility_timeout=0.5)
    events, waiting = Events(queue), Waiting()

    @queue.execute
    async def suicidal(job: Job[Any]) -> Any:
        await queue.cancel(job.id, running=True)
        return await waiting(job)

    async with queue:
        await queue.enqueue("a", 1)
        await events.until("cancelled", within=2.0)
        assert await queue.get_status("a") is None


@in_loop
async def test_running_must_be_a_bool(storage: Storage) -> None:
    """A truthy value in its place is a mistake."""
    async with Queue[Any, Any](storage) as queue:
        with pytest.raises(ConfigError, match="running"):
            await queue.cancel("a", running=1)  # type: ignore[arg-type]


# get_result, get_status


@in_loop
async def test_get_result_is_none_unless_completed(storage: Storage) -> None:
    """Unknown, waiting and failed jobs have no result."""
    async with failing_queue(storage) as queue:
        with pytest.raises(JobFailedError):
            await queue.enqueue_and_wait("failed", 1)
        await queue.enqueue("later", 1, delay=60)

        assert [await queue.get_result(id) for id in ("nobody", "failed", "later")] == [None, None, None]


@in_loop
async def test_get_status_tells_every_field(storage: Storage) -> None:
    """Each is set in the states in which it means something."""
    queue = Queue[Any, Any](storage, worker_id="label", result_ttl=100)
    waiting, before = Waiting(), time.time()
    async with queue:
        await queue.enqueue("a", 7, max_attempts=9)
        queued = await queue.get_status("a")
        queue.execute(waiting)
        await waiting.begun()
        running = await queue.get_status("a")
        waiting.release.set()
        await queue.wait("a")
        completed = await queue.get_status("a")
        assert await queue.get_status("nobody") is None

    assert queued is not None
    assert running is not None
    assert completed is not None
    assert [status.state for status in (queued, running, completed)] == ["queued", "processing", "completed"]
    assert [status.attempts for status in (queued, running, completed)] == [0, 1, 1]
    for status in (queued, running, completed):
        assert (status.id, status.max_attempts, status.error) == ("a", 9, None)
        assert status.created_at == queued.created_at
        assert status.generation == queued.generation != ""
    assert before - 1 <= queued.created_at <= queued.run_at + 0.001 <= time.time() + 1
    assert queued.started_at is queued.finished_at is queued.expires_at is queued.worker_id is queued.result is None
    assert running.worker_id == completed.worker_id == "label"
    assert running.started_at is not None
    assert running.started_at >= queued.created_at
    assert running.finished_at is running.expires_at is None
    assert completed.result == 7
    assert completed.finished_at is not None
    assert completed.finished_at >= running.started_at
    assert completed.expires_at == pytest.approx(completed.finished_at + 100, abs=0.01)


@in_loop
async def test_get_status_of_a_failed_job_tells_the_error(storage: Storage) -> None:
    """Type, message, code and stack, as data."""

    class OrderRefusedError(Exception):
        code = "NO_STOCK"

    queue = Queue[Any, Any](storage, max_attempts=1)

    @queue.execute
    async def fail(job: Job[Any]) -> None:
        raise OrderRefusedError("sold out")

    async with queue:
        with pytest.raises(MaxRetriesError):
            await queue.enqueue_and_wait("a", 1)
        status = await queue.get_status("a")

    assert status is not None
    assert status.error is not None
    assert (status.error.type, status.error.message, status.error.code) == ("OrderRefusedError", "sold out", "NO_STOCK")
    assert "in fail" in (status.error.stack or "")
    assert status.result is None
    assert status.finished_at is not None
    assert status.expires_at is not None


# update_result_ttl, retry


@in_loop
async def test_update_result_ttl_answers_with_what_it_found(storage: Storage) -> None:
    """Only what has ended expires."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    async with queue:
        await queue.enqueue_and_wait("a", 1)
        await queue.enqueue("later", 1, delay=60)
        now = time.time()

        assert (await queue.update_result_ttl("nobody", 5)).status == "not_found"
        assert (await queue.update_result_ttl("later", 5)).status == "not_terminal"
        assert (await queue.update_result_ttl("a", timedelta(seconds=500))).status == "updated"
        status = await queue.get_status("a")
        assert status is not None
        assert status.expires_at == pytest.approx(now + 500, abs=1)
        assert (await queue.update_result_ttl("a", 0)).status == "updated"
        assert await queue.get_status("a") is None
        assert (await queue.update_result_ttl("a", 5)).status == "not_found"
        assert (await queue.enqueue("a", 2)).status == "queued"


@in_loop
async def test_retry_starts_a_failed_job_anew(storage: Storage) -> None:
    """Attempts from zero, the payload and the moment of creation kept, a generation of its own."""
    queue = Queue[Any, Any](storage, max_attempts=2, retry=lambda attempt, error: 0.0)
    attempts: list[int] = []
    broken = True

    @queue.execute
    async def sometimes(job: Job[Any]) -> Any:
        attempts.append(job.attempts)
        if broken:
            raise ValueError
        return job.payload

    async with queue:
        with pytest.raises(MaxRetriesError):
            await queue.enqueue_and_wait("a", "kept")
        before = await queue.get_status("a")
        broken = False
        assert (await queue.retry("a")).status == "queued"
        assert await queue.wait("a") == "kept"
        after = await queue.get_status("a")

        assert (await queue.retry("a")).status == "not_failed"
        assert (await queue.retry("nobody")).status == "not_found"

    assert attempts == [1, 2, 1]
    assert before is not None
    assert after is not None
    assert after.created_at == before.created_at
    assert after.generation != before.generation
    assert after.error is None


@in_loop
async def test_two_retries_at_once_start_one_run(storage: Storage) -> None:
    """One transition, one winner."""
    async with failing_queue(storage) as queue:
        with pytest.raises(JobFailedError):
            await queue.enqueue_and_wait("a", 1)
        answers = await asyncio.gather(queue.retry("a"), queue.retry("a"))

    assert sorted(answer.status for answer in answers) == ["not_failed", "queued"]


# Zeros


@in_loop
async def test_a_result_ttl_of_zero_answers_the_waiter_and_frees_the_id(storage: Storage) -> None:
    """No cache is not no answer."""
    queue = Queue[Any, Any](storage, result_ttl=0)
    queue.execute(echo)
    async with queue:
        for number in range(20):
            assert await queue.enqueue_and_wait("a", number) == number
        assert await queue.get_status("a") is None
        assert await queue.get_result("a") is None


@in_loop
async def test_a_failure_with_a_result_ttl_of_zero_still_reaches_the_waiter(storage: Storage) -> None:
    """The same for an error."""
    async with failing_queue(storage, result_ttl=0) as queue:
        for _ in range(3):
            with pytest.raises(JobFailedError):
                await queue.enqueue_and_wait("a", 1)
        assert await queue.get_status("a") is None


@in_loop
async def test_a_delay_of_zero_means_now(storage: Storage) -> None:
    """Zero is the same as none."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    async with queue:
        assert await queue.enqueue_and_wait("a", 1, delay=0, timeout=2) == 1
        assert await queue.enqueue_and_wait("b", 1, delay=timedelta(0), timeout=2) == 1


# Two queues


@in_loop
async def test_two_queues_on_one_storage_never_see_each_other(storage: Storage) -> None:
    """The same ids, other jobs; and one may stop while the other works."""
    first, second = Queue[Any, Any](storage, name="a"), Queue[Any, Any](storage, name="a.b")

    @first.execute
    async def one(job: Job[Any]) -> str:
        return "first"

    @second.execute
    async def two(job: Job[Any]) -> str:
        return "second"

    async with first:
        async with second:
            assert await second.enqueue_and_wait("x", 1) == "second"
            assert await first.get_status("x") is None
            assert await first.enqueue_and_wait("x", 1) == "first"
        assert await first.get_result("x") == "first"
        assert (await first.counts())[State.COMPLETED] == 1
        assert await first.enqueue_and_wait("y", 1) == "first"


@in_loop
async def test_no_name_is_the_queue_named_default(storage: Storage) -> None:
    """For producers and consumers alike."""
    async with Queue[Any, Any](storage) as unnamed, Queue[Any, Any](storage, name="default") as named:
        assert unnamed.name == "default"
        await unnamed.enqueue("a", 1)
        assert (await named.enqueue("a", 1)).status == "duplicate"


class Unreadable:
    """A serde that cannot read what it has written."""

    def serialize(self, value: Any) -> bytes:
        return b"x"

    def deserialize(self, data: bytes) -> Any:
        raise KeyError("boom")


@in_loop
async def test_what_a_serde_raises_about_a_result_reaches_callers_as_an_error_of_ours(storage: Storage) -> None:
    """Whoever asks for the result gets a typed error, and an enqueue beside it is still told of."""
    queue = Queue[Any, Any](storage, result_serde=Unreadable())
    queue.execute(echo)
    events = Events(queue)
    async with queue:
        calls = [
            lambda: queue.enqueue_and_wait("a", 1),
            lambda: queue.wait("a"),
            lambda: queue.get_result("a"),
            lambda: queue.get_status("a"),
            lambda: queue.enqueue("a", 1),
            lambda: queue.enqueue_many([("a", 1), ("b", 1)]),
        ]
        for call in calls:
            with pytest.raises(SerializationError, match=r"job 'a'.*KeyError") as caught:
                await call()
            assert caught.value.code == "DESERIALIZATION"

    assert events.of("enqueued") == [("a",), ("b",)]


@in_loop
async def test_a_storage_that_leaves_out_answers_is_told_of(storage: Storage) -> None:
    """With a bug of that kind in a storage of one's own, callers must not wait for ever."""
    gated = Gated(storage)

    async def silent(*_: Any) -> list[Any]:
        return []

    gated.replaced = {"add": silent, "get": silent}
    async with asyncio.timeout(2), Queue[Any, Any](gated) as queue:
        for call in (queue.enqueue("a", 1), queue.enqueue_and_wait("a", 1), queue.wait("a"), queue.get_status("a")):
            with pytest.raises(StorageError, match="0 answers to 1"):
                await call


@in_loop
async def test_calls_on_a_closed_queue_are_refused_at_once(storage: Storage) -> None:
    """Before the start and after the stop alike."""
    queue = Queue[Any, Any](storage)

    async def refused() -> None:
        calls = [
            queue.enqueue("a", 1),
            queue.enqueue_many([("a", 1)]),
            queue.enqueue_and_wait("a", 1),
            queue.wait("a"),
            queue.cancel("a"),
            queue.get_result("a"),
            queue.get_status("a"),
            queue.update_result_ttl("a", 1),
            queue.retry("a"),
            queue.counts(),
        ]
        for call in calls:
            with pytest.raises(QueueClosedError, match="default"):
                await call

    await refused()
    async with queue:
        assert sum((await queue.counts()).values()) == 0
    await refused()
