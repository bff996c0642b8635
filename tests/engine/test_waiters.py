"""Waiters: the stored result of the run that was asked for, or a typed error, never silence."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from jobq import (
    GiveUp,
    Job,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    JobTimeoutError,
    MemoryStorage,
    Queue,
    QueueClosedError,
    ResultExpiredError,
    SerializationError,
    State,
    StorageCorruptError,
    StorageError,
    StorageUnavailableError,
)
from jobq._watch import Waiter
from jobq.job import NewJob, Settlement, Snapshot
from jobq.storage.contract import Hint, HintKind, Ref, Storage
from jobq.testing import OnLoop, VirtualClock
from tests.engine.scenes import Events, Gated, Waiting, echo, in_loop, in_virtual_time, passing


async def act(job: Job[Any]) -> Any:
    """Give up if told so, else return the payload."""
    if job.payload == "give up":
        raise GiveUp
    return job.payload


@pytest.mark.slow
@in_loop
async def test_a_lost_hint_costs_a_second_and_never_the_answer(storage: Storage) -> None:
    """Every outcome is found by reading again: result, failure, cancel, and a result that is not kept."""
    gated = Gated(storage)
    gated.deaf = True
    caller, worker = Queue[Any, Any](gated), Queue[Any, Any](storage, concurrency=3)
    async with caller:
        waiters = [
            asyncio.create_task(caller.enqueue_and_wait("result", 7)),
            asyncio.create_task(caller.enqueue_and_wait("none", None)),
            asyncio.create_task(caller.enqueue_and_wait("failure", "give up")),
            asyncio.create_task(caller.enqueue_and_wait("not kept", 8, result_ttl=0)),
            asyncio.create_task(caller.enqueue_and_wait("failure not kept", "give up", result_ttl=0)),
            asyncio.create_task(caller.enqueue_and_wait("cancelled", 1, delay=60)),
        ]
        while (await caller.counts())[State.QUEUED] < len(waiters):
            await asyncio.sleep(0)
        begun = time.monotonic()
        await caller.cancel("cancelled")
        worker.execute(act)
        async with worker:
            answers = await asyncio.gather(*waiters, return_exceptions=True)

    assert time.monotonic() - begun < 2
    assert answers[0] == 7
    assert answers[1] is None
    assert type(answers[2]) is JobFailedError
    assert answers[3] == 8
    assert type(answers[4]) is JobFailedError
    assert type(answers[5]) is JobCancelledError


def test_a_watch_that_missed_hints_has_everything_read_at_once() -> None:
    """As after a lost subscription: nobody waits for the next look, a second later."""

    async def main() -> tuple[float, int]:
        storage = MemoryStorage(clock=VirtualClock())
        namespace = storage.namespace("default")
        gated = Gated(OnLoop(storage))
        watches: list[Callable[[Hint], None]] = []

        async def watch(handler: Callable[[Hint], None]) -> Any:
            watches.append(handler)
            return await namespace.watch(lambda hint: None)

        gated.replaced["watch"] = watch
        async with Queue[int, int](gated) as queue:
            waiter = asyncio.create_task(queue.enqueue_and_wait("job", 21))
            await asyncio.sleep(0.1)
            [claim] = (await namespace.claim("worker", 30.0, 1, "other.1")).claims
            await namespace.settle([Settlement(claim.id, claim.token, State.COMPLETED, b"42", None, 60.0)])
            await asyncio.sleep(0.1)
            assert not waiter.done()
            watches[0](Hint(HintKind.MISSED, "", ""))
            result = await waiter
            return asyncio.get_running_loop().time(), result

    assert in_virtual_time(main) == (pytest.approx(0.2, abs=0.01), 42)


def test_hints_lost_after_a_quiet_while_cost_a_second_as_well() -> None:
    """The look that is taken every second ends when nobody waits, and begins anew with the next who does."""

    async def main() -> list[float]:
        gated = Gated(OnLoop(MemoryStorage(clock=VirtualClock())))
        gated.deaf = True
        queue, took = Queue[Any, Any](gated), []
        queue.execute(echo)
        async with queue:
            for number in range(3):
                begun = asyncio.get_running_loop().time()
                assert await queue.enqueue_and_wait(str(number), number) == number
                took.append(asyncio.get_running_loop().time() - begun)
                await asyncio.sleep(10)
        return took

    assert in_virtual_time(main) == [pytest.approx(1.0, abs=0.1)] * 3


def test_who_waits_behind_a_thousand_others_is_read_as_well() -> None:
    """However long the jobs of the others take: they are read in parts, and no part is left out."""

    async def main() -> float:
        gated = Gated(OnLoop(MemoryStorage(clock=VirtualClock())))
        gated.deaf = True
        queue = Queue[Any, Any](gated)
        queue.execute(echo)
        async with queue:
            others = [asyncio.create_task(queue.enqueue_and_wait(str(n), n, delay=60.0)) for n in range(1000)]
            await asyncio.sleep(0.5)
            begun = asyncio.get_running_loop().time()
            assert await queue.enqueue_and_wait("last", 7) == 7
            for other in others:
                other.cancel()
            return asyncio.get_running_loop().time() - begun

    assert in_virtual_time(main) < 2.0


def test_a_hint_that_overtakes_the_answer_is_not_lost() -> None:
    """A wait does not know its run before the answer; by then the run may have ended, and its hint come and gone."""

    async def main() -> float:
        storage = MemoryStorage(clock=VirtualClock())
        namespace, gated = storage.namespace("default"), Gated(OnLoop(storage))

        async def slowly(refs: Sequence[Ref]) -> Any:
            answers = await namespace.get(refs)
            [claim] = (await namespace.claim("worker", 30.0, 1, "other.1")).claims
            await namespace.settle([Settlement(claim.id, claim.token, State.COMPLETED, b"42", None, 60.0)])
            await asyncio.sleep(0.1)
            return answers

        async with Queue[int, int](gated) as queue:
            await queue.enqueue("job", 21)
            gated.replaced["get"] = slowly
            begun = asyncio.get_running_loop().time()
            assert await queue.wait("job") == 42
            return asyncio.get_running_loop().time() - begun

    assert in_virtual_time(main) == pytest.approx(0.1, abs=0.01)


def test_a_wait_for_the_job_of_another_is_answered_by_a_hint() -> None:
    """At once, and not at the next look."""

    async def main() -> float:
        storage = OnLoop(MemoryStorage(clock=VirtualClock()))
        queue, waiting = Queue[Any, Any](storage), Waiting()
        queue.execute(waiting)
        async with queue:
            await queue.enqueue("job", 7)
            waiter = asyncio.create_task(queue.wait("job"))
            await waiting.begun()
            await asyncio.sleep(0.1)
            begun = asyncio.get_running_loop().time()
            waiting.release.set()
            assert await waiter == 7
            return asyncio.get_running_loop().time() - begun

    assert in_virtual_time(main) < 0.1


def test_nothing_is_kept_of_waits_that_are_over() -> None:
    """No task that looks again and again for nobody, and no result until the timeout of who has it already."""

    async def main() -> tuple[int, int]:
        gated = Gated(OnLoop(MemoryStorage(clock=VirtualClock())))
        queue = Queue[Any, Any](gated)
        queue.execute(echo)
        async with queue:
            await asyncio.sleep(1.0)
            before = len(asyncio.all_tasks())
            for number in range(10):
                await queue.enqueue_and_wait(str(number), number, timeout=3600.0)
            await asyncio.sleep(2.0)
            gc.collect()
            kept = [waiter for waiter in _waiters() if not any(waiter is other for other in others)]
            return len(asyncio.all_tasks()) - before, len(kept)

    others = _waiters()
    assert in_virtual_time(main) == (0, 0)


def _waiters() -> list[Waiter]:
    return [found for found in gc.get_objects() if isinstance(found, Waiter)]


def test_a_lost_run_is_told_from_one_that_expired_however_long_it_was_waited_for() -> None:
    """What was there at the last look, a second ago, cannot have ended and expired meanwhile."""

    async def main() -> None:
        storage = OnLoop(MemoryStorage(clock=VirtualClock()))
        gated = Gated(storage)
        async with Queue[Any, Any](gated) as queue:
            waiter = asyncio.create_task(queue.enqueue_and_wait("job", 1, timeout=None))
            await asyncio.sleep(60.5)

            async def gone(refs: Any) -> list[None]:
                return [None for _ in refs]

            gated.replaced["get"] = gone
            with pytest.raises(JobNotFoundError) as caught:
                await waiter
            assert not isinstance(caught.value, ResultExpiredError)

    in_virtual_time(main)


def test_a_look_that_a_stop_meets_is_still_answered() -> None:
    """Its answer is on the way, and a stop has time to wait for it."""

    async def main() -> Any:
        storage = MemoryStorage(clock=VirtualClock())
        namespace, gated = storage.namespace("default"), Gated(OnLoop(storage))
        queue = Queue[Any, Any](gated)

        async def slowly(refs: Sequence[Ref]) -> Any:
            await asyncio.sleep(0.2)
            return await namespace.get(refs)

        gated.replaced["get"] = slowly
        async with queue:
            await queue.enqueue("job", 7)
            look = asyncio.create_task(queue.get_status("job"))
            await asyncio.sleep(0.1)
        return (await look).state

    assert in_virtual_time(main) is State.QUEUED


@in_loop
async def test_a_hint_answers_at_once(storage: Storage) -> None:
    """Within a process, request and response take milliseconds."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    async with queue:
        begun = time.monotonic()
        for number in range(50):
            await queue.enqueue_and_wait(str(number), number)

    assert time.monotonic() - begun < 1


@pytest.mark.slow
@in_loop
async def test_a_thousand_waiters_are_all_answered(storage: Storage) -> None:
    """Of one process, on one subscription; and nothing is left of them."""
    queue = Queue[Any, Any](storage, concurrency=50)
    queue.execute(echo)
    async with queue:
        results = await asyncio.gather(*(queue.enqueue_and_wait(str(number), number) for number in range(1000)))
        assert len(asyncio.all_tasks()) < 20

    assert results == list(range(1000))


@in_loop
async def test_a_waiter_that_is_cancelled_leaves_the_job_alone(storage: Storage) -> None:
    """The others go on waiting, and get their answer."""
    queue, waiting = Queue[Any, Any](storage), Waiting()
    queue.execute(waiting)
    async with queue:
        first, second = (asyncio.create_task(queue.enqueue_and_wait("a", number)) for number in range(2))
        await waiting.begun()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        waiting.release.set()
        assert await second == 0
        assert await queue.get_result("a") == 0


@in_loop
async def test_a_call_cancelled_in_its_first_step_is_all_or_nothing(storage: Storage) -> None:
    """At each of its first awaits; the queue works on."""
    queue = Queue[Any, Any](storage)
    async with queue:
        for turns in range(6):
            task = asyncio.create_task(queue.enqueue_and_wait(f"a{turns}", turns))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        queue.execute(echo)
        for turns in range(6):
            assert await queue.enqueue_and_wait(f"a{turns}", turns) == turns


@in_loop
async def test_a_result_that_comes_after_the_timeout_is_kept(storage: Storage) -> None:
    """The job is unaffected, and get_result tells."""
    queue, waiting = Queue[Any, Any](storage), Waiting()
    events = Events(queue)
    queue.execute(waiting)
    async with queue:
        with pytest.raises(JobTimeoutError):
            await queue.enqueue_and_wait("a", 5, timeout=0.03)
        waiting.release.set()
        await events.until("completed")
        assert await queue.get_result("a") == 5


@in_loop
async def test_a_job_that_a_timed_out_call_says_goes_on_was_stored(storage: Storage) -> None:
    """Also where the storage was busy with others for longer than the caller's timeout."""
    gated = Gated(storage)
    queue = Queue[Any, Any](gated)
    async with queue:
        gated.gates["add"] = asyncio.Event()
        first = asyncio.create_task(queue.enqueue("first", 1))
        while not gated.calls.get("add"):
            await asyncio.sleep(0)
        with pytest.raises(JobTimeoutError):
            await queue.enqueue_and_wait("second", 2, timeout=0.03)
        gated.gates["add"].set()
        await first
        async with asyncio.timeout(1):
            while await queue.get_status("second") is None:
                await asyncio.sleep(0)


@in_loop
async def test_waiters_end_when_the_queue_stops(storage: Storage) -> None:
    """With QueueClosedError, within a second of draining; each kind of wait."""
    queue = Queue[Any, Any](storage)
    await queue.start()
    waiters = [asyncio.create_task(queue.enqueue_and_wait(str(number), 1, delay=60)) for number in range(3)]
    while (await queue.counts())[State.QUEUED] < 3:
        await asyncio.sleep(0)
    waiters.append(asyncio.create_task(queue.wait("1", timeout=None)))
    await passing(0.01)
    begun = time.monotonic()
    await queue.stop()
    answers = await asyncio.gather(*waiters, return_exceptions=True)

    assert time.monotonic() - begun < 1
    assert [type(answer) for answer in answers] == [QueueClosedError] * 4


@in_loop
async def test_a_job_that_ends_while_stop_drains_still_answers(storage: Storage) -> None:
    """Waiters end after the draining, not before."""
    queue, waiting = Queue[Any, Any](storage), Waiting()
    queue.execute(waiting)
    await queue.start()
    waiter = asyncio.create_task(queue.enqueue_and_wait("a", 3))
    await waiting.begun()
    stopping = asyncio.create_task(queue.stop())
    await asyncio.sleep(0)
    waiting.release.set()
    await stopping

    assert await waiter == 3


@pytest.mark.parametrize("deaf", [False, pytest.param(True, marks=pytest.mark.slow)])
@in_loop
async def test_generations_are_never_mixed(storage: Storage, deaf: bool) -> None:
    """A waiter of the first run never gets the second one's result, with hints or without."""
    gated = Gated(storage)
    gated.deaf = deaf
    queue = Queue[Any, Any](gated)
    namespace = storage.namespace("default")
    async with queue:
        waiter = asyncio.create_task(queue.enqueue_and_wait("a", "first"))
        while await queue.get_status("a") is None:
            await asyncio.sleep(0)
        (claim,) = (await namespace.claim("w", 30.0, 1, "w.1")).claims
        await namespace.settle([Settlement("a", claim.token, State.COMPLETED, result=b'"first"', ttl=0.0)])
        assert list(await namespace.add([NewJob("a", "other.1", b'"second"', 3, 60.0)])) == [None]
        (claim,) = (await namespace.claim("w", 30.0, 1, "w.2")).claims
        await namespace.settle([Settlement("a", claim.token, State.COMPLETED, result=b'"second"', ttl=60.0)])
        (answer,) = await asyncio.gather(waiter, return_exceptions=True)
        assert await queue.wait("a") == "second"

    if deaf:
        assert isinstance(answer, JobNotFoundError)
        assert answer.job_id == "a"
    else:
        assert answer == "first"


def test_a_hint_of_another_run_is_no_answer() -> None:
    """Also if it comes first: a waiter keeps to the run that it asked for."""

    async def main() -> Any:
        storage = MemoryStorage(clock=VirtualClock())
        namespace = storage.namespace("default")
        gated = Gated(OnLoop(storage))
        watches: list[Callable[[Hint], None]] = []

        async def watch(handler: Callable[[Hint], None]) -> Any:
            watches.append(handler)
            return await namespace.watch(handler)

        gated.replaced["watch"] = watch
        async with Queue[int, str](gated) as queue:
            waiter = asyncio.create_task(queue.enqueue_and_wait("job", 1))
            await asyncio.sleep(0.1)
            [claim] = (await namespace.claim("worker", 30.0, 1, "worker.1")).claims
            [snapshot] = await namespace.get([Ref("job")])
            assert isinstance(snapshot, Snapshot)
            another = replace(snapshot, generation="another.1", state=State.COMPLETED, result=b'"another"')
            watches[0](Hint(HintKind.SETTLED, "job", "another.1", another))
            await asyncio.sleep(0.1)
            assert not waiter.done()
            await namespace.settle([Settlement("job", claim.token, State.COMPLETED, b'"own"', None, 60.0)])
            return await waiter

    assert in_virtual_time(main) == "own"


@in_loop
async def test_a_waiter_of_a_cancelled_run_is_not_answered_by_the_next(storage: Storage) -> None:
    """It is told of the cancel."""
    queue = Queue[Any, Any](storage)
    async with queue:
        waiter = asyncio.create_task(queue.enqueue_and_wait("a", "first"))
        while await queue.get_status("a") is None:
            await asyncio.sleep(0)
        await queue.cancel("a")
        queue.execute(echo)
        assert await queue.enqueue_and_wait("a", "second") == "second"
        with pytest.raises(JobCancelledError):
            await waiter


@in_loop
async def test_a_waiter_gets_the_run_that_a_retry_started(storage: Storage) -> None:
    """Not the failure of the run before."""
    queue = Queue[Any, Any](storage)
    fails = True

    @queue.execute
    async def at_first_not(job: Job[Any]) -> Any:
        if fails:
            raise GiveUp
        return job.payload

    async with queue:
        with pytest.raises(JobFailedError):
            await queue.enqueue_and_wait("a", 1)
        fails = False
        await queue.retry("a")
        assert await queue.wait("a") == 1


@in_loop
async def test_a_result_that_is_too_large_for_a_hint_is_read(storage: Storage) -> None:
    """At once, not after a second."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    large = "x" * 300_000
    async with queue:
        begun = time.monotonic()
        assert await queue.enqueue_and_wait("a", large) == large

    assert time.monotonic() - begun < 0.9


@pytest.mark.slow
@in_loop
async def test_a_purged_job_is_told_of(storage: Storage) -> None:
    """A waiter on a job whose record is gone is not left waiting."""
    gated = Gated(storage)
    queue = Queue[Any, Any](gated)
    async with queue:
        waiter = asyncio.create_task(queue.enqueue_and_wait("a", 1))
        while await queue.get_status("a") is None:
            await asyncio.sleep(0)

        async def gone(refs: Any) -> list[None]:
            return [None for _ in refs]

        gated.replaced["get"] = gone
        with pytest.raises(JobNotFoundError):
            await waiter


@pytest.mark.parametrize("error", [StorageCorruptError("damaged"), ConnectionResetError("a bug")], ids=repr)
def test_only_the_waiter_that_cannot_be_answered_hears_why(error: Exception) -> None:
    """The others are read without it, and so is every one again whose storage was merely away."""

    async def main() -> tuple[float, list[Any]]:
        storage = OnLoop(MemoryStorage(clock=VirtualClock()))
        gated = Gated(storage)
        gated.deaf = True
        namespace = storage.namespace("default")
        away = [StorageError("away, for now")]

        async def get(refs: Any) -> Any:
            if away:
                raise away.pop()
            if any(ref.id == "2" for ref in refs):
                raise error
            return await namespace.get(refs)

        async with Queue[Any, Any](gated) as caller, Queue[Any, Any](storage) as worker:
            waiters = [asyncio.create_task(caller.enqueue_and_wait(str(number), number)) for number in range(5)]
            await asyncio.sleep(0.1)
            gated.replaced["get"] = get
            worker.execute(echo)
            answers = await asyncio.gather(*waiters, return_exceptions=True)
            return asyncio.get_running_loop().time(), answers

    took, answers = in_virtual_time(main)
    assert answers == [0, 1, error, 3, 4]
    assert took == pytest.approx(2.0, abs=0.2)


@pytest.mark.slow
@in_loop
async def test_trouble_of_the_storage_reaches_the_caller_and_the_next_call_works(storage: Storage) -> None:
    """A short one is not even noticed."""
    gated = Gated(storage)
    queue = Queue[Any, Any](gated)
    queue.execute(echo)
    async with queue:
        gated.failures["add"] = [StorageUnavailableError("away")] * 3
        assert await queue.enqueue_and_wait("a", 1) == 1
        gated.failures["get"] = [StorageUnavailableError("away")] * 3
        assert await queue.wait("a") == 1
        gated.failures["cancel"] = [StorageUnavailableError("away")] * 3
        assert (await queue.cancel("a")).status == "completed"


@in_loop
async def test_a_result_that_the_caller_cannot_decode_is_a_typed_error(storage: Storage) -> None:
    """By every way that leads to it."""
    worker, caller = Queue[Any, Any](storage), Queue[Any, int](storage)
    worker.execute(echo)
    async with worker, caller:
        with pytest.raises(SerializationError):
            await caller.enqueue_and_wait("a", "text")
        with pytest.raises(SerializationError):
            await caller.wait("a")
        with pytest.raises(SerializationError):
            await caller.get_result("a")
        with pytest.raises(SerializationError):
            await caller.enqueue("a", "text")
        assert await worker.get_result("a") == "text"


@in_loop
async def test_a_failure_never_comes_back_as_code(storage: Storage) -> None:
    """Its class name is data; no class is looked up by it."""
    queue = Queue[Any, Any](storage, max_attempts=1)

    @queue.execute
    async def fail(job: Job[Any]) -> None:
        raise type("os.system", (Exception,), {})("harmless")

    async with queue:
        with pytest.raises(JobFailedError) as caught:
            await queue.enqueue_and_wait("a", 1)

    assert caught.value.error.type == "os.system"
    assert type(caught.value).__module__ == "jobq.errors"


@pytest.mark.parametrize("timeout", [0, 0.01])
@in_loop
async def test_who_only_looks_is_not_told_later(storage: Storage, timeout: float) -> None:
    """Else each look of a new program would make the job's record longer."""
    gated, namespace = Gated(storage), storage.namespace("default")
    addresses: list[str | None] = []

    async def add(jobs: Sequence[NewJob]) -> Any:
        addresses.extend(job.reply_to for job in jobs)
        return await namespace.add(jobs)

    async def get(refs: Sequence[Ref]) -> Any:
        addresses.extend(ref.reply_to for ref in refs)
        return await namespace.get(refs)

    gated.replaced |= {"add": add, "get": get}
    async with Queue[Any, Any](gated) as queue:
        with pytest.raises(JobTimeoutError):
            await queue.enqueue_and_wait("a", 1, timeout=timeout)
        with pytest.raises(JobTimeoutError):
            await queue.wait("a", timeout=timeout)

    assert [address is not None for address in addresses] == [timeout > 0] * 2
