"""after_execution: what it is shown, what it may change, and what it cannot harm."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from jobq import (
    ConfigError,
    ExecutionContext,
    GiveUp,
    Job,
    JobFailedError,
    MaxRetriesError,
    MemoryStorage,
    Queue,
    StorageUnavailableError,
)
from jobq.storage.contract import Storage
from jobq.testing import OnLoop, VirtualClock, run_virtual
from tests.engine.scenes import Events, Gated, Waiting, in_loop, passing

Context = ExecutionContext[Any, Any]


async def act(job: Job[Any]) -> Any:
    """Fail if told so, else return the payload."""
    if job.payload == "fail":
        raise ValueError("handler")
    if job.payload == "give up":
        raise GiveUp("handler")
    return job.payload


def queue_with(storage: Storage, hook: Callable[[Context], Any], **options: Any) -> Queue[Any, Any]:
    queue = Queue[Any, Any](storage, after_execution=hook, retry=lambda attempt, error: 0.0, **options)
    queue.execute(act)
    return queue


@in_loop
async def test_it_sees_a_success_before_it_is_stored(storage: Storage) -> None:
    """Every field, and the job still processing."""
    seen: list[Any] = []

    async def look(context: Context) -> None:
        status = await queue.get_status(context.id)
        seen.append((context, status and status.state))

    queue = queue_with(storage, look, worker_id="label", result_ttl=77)
    async with queue:
        await queue.enqueue_and_wait("a", {"x": 1})

    ((context, state),) = seen
    assert state == "processing"
    assert (context.id, context.payload, context.result) == ("a", {"x": 1}, {"x": 1})
    assert (context.status, context.error, context.ttl, context.worker_id) == ("completed", None, 77.0, "label")
    assert (context.attempts, context.max_attempts) == (1, 3)
    assert context.created_at <= context.started_at <= context.finished_at
    assert context.duration == context.finished_at - context.started_at


@in_loop
async def test_it_sees_only_the_last_failure(storage: Storage) -> None:
    """Not the attempts before; the error is the exception itself."""
    seen: list[Context] = []
    queue = queue_with(storage, seen.append)
    async with queue:
        with pytest.raises(MaxRetriesError):
            await queue.enqueue_and_wait("a", "fail")
        with pytest.raises(JobFailedError):
            await queue.enqueue_and_wait("b", "give up")

    assert [(context.id, context.status, context.attempts) for context in seen] == [
        ("a", "failed", 3),
        ("b", "failed", 1),
    ]
    assert [type(context.error) for context in seen] == [ValueError, GiveUp]
    assert seen[0].result is None


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@in_loop
async def test_it_changes_the_result(storage: Storage, is_async: bool) -> None:
    """For the waiter, the cache and the event."""

    def plain(context: Context) -> None:
        context.result = {"wrapped": context.result}

    async def coroutine(context: Context) -> None:
        await asyncio.sleep(0)
        plain(context)

    queue = queue_with(storage, coroutine if is_async else plain)
    events = Events(queue)
    async with queue:
        assert await queue.enqueue_and_wait("a", 1) == {"wrapped": 1}
        assert await queue.get_result("a") == {"wrapped": 1}

    assert events.of("completed") == [("a", {"wrapped": 1})]


@in_loop
async def test_it_changes_the_result_in_place(storage: Storage) -> None:
    """A changed list is a changed result."""

    def change(context: Context) -> None:
        context.result.append("added")

    queue = queue_with(storage, change)
    events = Events(queue)
    async with queue:
        result = await queue.enqueue_and_wait("a", ["mine"])
        await events.until("completed")

    assert events.of("completed") == [("a", result)]
    assert result == ["mine", "added"]


@in_loop
async def test_it_makes_a_success_a_failure(storage: Storage) -> None:
    """By setting an error."""
    refused = ValueError("not good enough")

    def refuse(context: Context) -> None:
        context.error = refused

    queue = queue_with(storage, refuse)
    events = Events(queue)
    async with queue:
        with pytest.raises(JobFailedError) as caught:
            await queue.enqueue_and_wait("a", 1)

    assert (caught.value.error.type, caught.value.error.message) == ("ValueError", "not good enough")
    assert events.of("failed")[0][1].__cause__ is refused
    assert not events.of("completed")


@in_loop
async def test_it_replaces_an_error(storage: Storage) -> None:
    """What is stored and told is the other exception."""

    def hide(context: Context) -> None:
        context.error = RuntimeError("hidden")

    queue = queue_with(storage, hide)
    async with queue:
        with pytest.raises(MaxRetriesError) as caught:
            await queue.enqueue_and_wait("a", "fail")

    assert (caught.value.error.type, caught.value.error.message) == ("RuntimeError", "hidden")


@pytest.mark.parametrize("payload", [1, "fail"])
@pytest.mark.parametrize("ttl", [500, 500.0, timedelta(seconds=500)])
@in_loop
async def test_it_changes_the_ttl(storage: Storage, ttl: Any, payload: Any) -> None:
    """Of results and of failures, in any form of a duration."""

    def keep(context: Context) -> None:
        context.ttl = ttl

    queue = queue_with(storage, keep, max_attempts=1)
    async with queue:
        await asyncio.gather(queue.enqueue_and_wait("a", payload), return_exceptions=True)
        status = await queue.get_status("a")

    assert status is not None
    assert status.expires_at is not None
    assert status.finished_at is not None
    assert status.expires_at - status.finished_at == pytest.approx(500, abs=0.01)


@in_loop
async def test_it_changes_the_ttl_of_what_it_makes_a_failure(storage: Storage) -> None:
    """Who changes two things at once gets both."""

    def refuse(context: Context) -> None:
        context.error, context.ttl = ValueError("not good enough"), 500

    queue = queue_with(storage, refuse)
    async with queue:
        with pytest.raises(JobFailedError):
            await queue.enqueue_and_wait("a", 1)
        status = await queue.get_status("a")

    assert status is not None
    assert status.expires_at is not None
    assert status.finished_at is not None
    assert status.expires_at - status.finished_at == pytest.approx(500, abs=0.01)


@in_loop
async def test_a_ttl_of_zero_frees_the_id_and_answers_the_waiter(storage: Storage) -> None:
    """As the option of the queue does."""

    def forget(context: Context) -> None:
        context.ttl = 0

    queue = queue_with(storage, forget)
    async with queue:
        assert await queue.enqueue_and_wait("a", 1) == 1
        assert await queue.get_status("a") is None


@pytest.mark.parametrize("payload", [1, "fail"])
@pytest.mark.parametrize("ttl", [-1, float("nan"), float("inf"), 1e18, "5", None, True, [1]], ids=repr)
@in_loop
async def test_an_absurd_ttl_is_reported_and_the_original_stands(storage: Storage, ttl: Any, payload: Any) -> None:
    """The job ends as it would have."""

    def absurd(context: Context) -> None:
        context.ttl = ttl

    queue = queue_with(storage, absurd, result_ttl=77, max_attempts=1)
    events = Events(queue)
    async with queue:
        await asyncio.gather(queue.enqueue_and_wait("a", payload), return_exceptions=True)
        status = await queue.get_status("a")

    ((error,),) = events.of("error")
    assert isinstance(error, ConfigError)
    assert "ttl" in str(error)
    assert status is not None
    assert status.state == ("completed" if payload == 1 else "failed")
    assert status.expires_at is not None
    assert status.finished_at is not None
    assert status.expires_at - status.finished_at == pytest.approx(77, abs=0.01)


@pytest.mark.parametrize("result", [float("nan"), {1}, object(), "x" * 2000], ids=lambda result: type(result).__name__)
@in_loop
async def test_an_unserialisable_result_is_reported_and_the_original_stands(storage: Storage, result: Any) -> None:
    """In the store and in the event."""

    def spoil(context: Context) -> None:
        context.result = result

    queue = queue_with(storage, spoil, max_payload=1000)
    events = Events(queue)
    async with queue:
        assert await queue.enqueue_and_wait("a", 7) == 7

    assert len(events.of("error")) == 1
    assert events.of("completed") == [("a", 7)]


@pytest.mark.parametrize("error", ["a text", 3, ValueError, {"type": "x"}], ids=repr)
@pytest.mark.parametrize("payload", [7, "fail"])
@in_loop
async def test_an_error_that_is_no_exception_is_reported_and_the_original_stands(
    storage: Storage, error: Any, payload: Any
) -> None:
    """A text in its place neither loses the job nor runs it again."""

    def spoil(context: Context) -> None:
        context.error = error

    queue = queue_with(storage, spoil, max_attempts=1, visibility_timeout=0.5)
    events = Events(queue)
    async with queue:
        (answer,) = await asyncio.gather(queue.enqueue_and_wait("a", payload, timeout=2), return_exceptions=True)

    if payload == 7:
        assert answer == 7
    else:
        assert isinstance(answer, MaxRetriesError)
        assert answer.error.type == "ValueError"
    assert len(events.of("error")) == 1


class Odd(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize("payload", [7, "fail"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize(
    "raised",
    [ValueError("hook"), asyncio.CancelledError("hook"), SystemExit(1), Odd("hook")],
    ids=lambda e: type(e).__name__,
)
@in_loop
async def test_a_hook_that_raises_is_reported_and_changes_nothing(
    storage: Storage, raised: BaseException, is_async: bool, payload: Any
) -> None:
    """Not even what it had changed before."""

    def plain(context: Context) -> None:
        context.result, context.ttl, context.error = "changed", 5.0, RuntimeError("changed")
        raise raised

    async def coroutine(context: Context) -> None:
        plain(context)

    queue = queue_with(storage, coroutine if is_async else plain, max_attempts=1, result_ttl=77)
    events = Events(queue)
    async with queue:
        (answer,) = await asyncio.gather(queue.enqueue_and_wait("a", payload), return_exceptions=True)
        status = await queue.get_status("a")

    if payload == 7:
        assert answer == 7
    else:
        assert isinstance(answer, MaxRetriesError)
        assert answer.error.type == "ValueError"
    assert events.of("error") == [(raised,)]
    assert status is not None
    assert status.expires_at is not None
    assert status.finished_at is not None
    assert status.expires_at - status.finished_at == pytest.approx(77, abs=0.01)


@in_loop
async def test_it_is_not_called_for_a_job_given_back_or_cancelled(storage: Storage) -> None:
    """Neither is a success or a last failure."""
    seen: list[Context] = []
    queue, waiting = Queue[Any, Any](storage, after_execution=seen.append, max_attempts=1), Waiting()
    queue.execute(waiting)
    events = Events(queue)
    async with queue:
        await queue.enqueue("a", 1)
        await waiting.begun()
        await queue.cancel("a", running=True)
        await events.until("cancelled")
        await queue.enqueue("b", 1)
        await waiting.begun(2)
        await queue.stop(0)

    assert not seen


@in_loop
async def test_it_is_called_when_a_coroutine_used_up_its_time(storage: Storage) -> None:
    """JOB_TIMEOUT on the last attempt is a last failure."""
    seen: list[Context] = []
    queue, waiting = Queue[Any, Any](storage, after_execution=seen.append, max_attempts=1, job_timeout=0.05), Waiting()
    queue.execute(waiting)
    async with queue:
        with pytest.raises(MaxRetriesError):
            await queue.enqueue_and_wait("a", 1)

    assert [(context.id, context.status, type(context.error)) for context in seen] == [("a", "failed", TimeoutError)]


@in_loop
async def test_it_is_called_when_a_function_used_up_its_time(storage: Storage) -> None:
    """The same for a function that still runs in its thread."""
    seen: list[Context] = []
    queue = Queue[Any, Any](storage, after_execution=seen.append, max_attempts=1, job_timeout=0.05)
    go = threading.Event()

    @queue.execute
    def slow(job: Job[Any]) -> None:
        go.wait(5)

    async with queue:
        with pytest.raises(MaxRetriesError):
            await queue.enqueue_and_wait("a", 1)
        told = [(context.id, context.status, type(context.error)) for context in seen]
        go.set()

    assert told == [("a", "failed", TimeoutError)]
    assert len(seen) == 1


@pytest.mark.slow
@pytest.mark.parametrize("threaded", [False, True], ids=["coroutine", "thread"])
@in_loop
async def test_it_is_called_once_although_the_handler_ends_while_it_judges(storage: Storage, threaded: bool) -> None:
    """A handler that ends after its time waits for what was begun without it."""
    seen: list[Context] = []
    called, go, end = asyncio.Event(), asyncio.Event(), threading.Event()

    async def slow_hook(context: Context) -> None:
        seen.append(context)
        called.set()
        await go.wait()

    queue = Queue[Any, Any](storage, after_execution=slow_hook, max_attempts=1, job_timeout=0.05)
    ignored, ended = asyncio.Event(), asyncio.Event()

    def function(job: Job[Any]) -> None:
        end.wait(5)

    async def ignoring(job: Job[Any]) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await ignored.wait()
        await ignored.wait()

    queue.execute(function if threaded else ignoring)
    queue.on("failed", lambda id, error: ended.set())
    async with queue:
        await queue.enqueue("a", 1)
        await called.wait()
        end.set()
        ignored.set()
        await passing(0.05)
        go.set()
        await ended.wait()
        with pytest.raises(MaxRetriesError):
            await queue.wait("a", timeout=1)

    assert [(context.id, context.status, type(context.error)) for context in seen] == [("a", "failed", TimeoutError)]


@pytest.mark.slow
@pytest.mark.parametrize("threaded", [False, True], ids=["coroutine", "thread"])
@in_loop
async def test_it_is_called_once_although_the_time_ends_while_it_reviews_a_success(
    storage: Storage, threaded: bool
) -> None:
    """What it was told of stands: not a success for it, and a failure for everybody else."""
    seen: list[str] = []
    go = asyncio.Event()

    async def stubborn(context: Context) -> None:
        seen.append(context.status)
        with contextlib.suppress(asyncio.CancelledError):
            await go.wait()
        await go.wait()

    queue = Queue[Any, Any](storage, after_execution=stubborn, max_attempts=1, job_timeout=0.05)
    queue.execute((lambda job: job.payload) if threaded else act)
    async with queue:
        assert await queue.enqueue_and_wait("a", 1, timeout=5) == 1
        go.set()

    assert seen == ["completed"]


@pytest.mark.slow
@in_loop
async def test_it_is_called_once_although_it_takes_long_to_review_a_job_whose_time_is_over(storage: Storage) -> None:
    """It may take longer than a handler may ignore its cancel, and what it changes counts."""
    seen: list[str] = []
    waiting = Waiting()

    async def slow(context: Context) -> None:
        seen.append(context.status)
        await passing(1.3)
        context.error = RuntimeError("reviewed")

    queue = Queue[Any, Any](storage, after_execution=slow, max_attempts=1, job_timeout=0.05)
    queue.execute(waiting)
    async with queue:
        with pytest.raises(MaxRetriesError) as caught:
            await queue.enqueue_and_wait("a", 1, timeout=5)

    assert (seen, caught.value.error.type) == (["failed"], "RuntimeError")


@in_loop
async def test_a_stop_ends_its_review_of_what_a_function_returned(storage: Storage) -> None:
    """The function has ended, so its result is stored and not left to its lease."""
    begun = asyncio.Event()

    async def endless(context: Context) -> None:
        begun.set()
        await asyncio.Event().wait()

    queue = Queue[Any, Any](storage, after_execution=endless)
    queue.execute(lambda job: job.payload)
    async with Queue[Any, Any](storage) as caller:
        await queue.start()
        await caller.enqueue("a", 7)
        await begun.wait()
        await queue.stop(0)
        assert await caller.wait("a", timeout=0) == 7


@pytest.mark.slow
@in_loop
async def test_it_is_not_called_for_a_run_that_lost_its_lease(storage: Storage) -> None:
    """What such a run returns is dropped: only the run that counts is told."""
    gated, seen = Gated(storage), []
    gated.twin = lambda: None  # type: ignore[method-assign]
    queue = Queue[Any, Any](gated, after_execution=seen.append, visibility_timeout=0.15, block_timeout=0.05)
    runs: list[int] = []

    @queue.execute
    async def ignoring(job: Job[Any]) -> int:
        runs.append(job.attempts)
        if job.attempts == 1:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return job.attempts

    async with queue:
        gated.failures["extend"] = [StorageUnavailableError("away") for _ in range(1000)]
        assert await queue.enqueue_and_wait("a", 1, timeout=3) == 2

    assert runs == [1, 2]
    assert [context.attempts for context in seen] == [2]


def test_a_hook_that_outlasts_the_lease_decides_nothing_any_more() -> None:
    """The job is another's by then, and that was told already."""

    async def main() -> list[str]:
        async def think(context: Context) -> None:
            await passing(60.0)

        async def away(*arguments: Any) -> None:
            raise StorageUnavailableError("away")

        gated = Gated(OnLoop(MemoryStorage(clock=VirtualClock())))
        gated.replaced["extend"] = away
        queue = Queue[Any, Any](gated, after_execution=think, max_attempts=1, visibility_timeout=30.0, job_timeout=1.0)
        events, ended = Events(queue), asyncio.Event()

        @queue.execute
        async def ignore(job: Job[Any]) -> None:
            while not ended.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await ended.wait()

        async with queue:
            await queue.enqueue("a", 1)
            await events.until("lease_lost", within=60)
            await passing(100.0)
            told = list(events.names)
            ended.set()
        return told

    assert run_virtual(main) == ["started", "enqueued", "lease_lost"]


@in_loop
async def test_it_may_use_the_queue_and_stop_it(storage: Storage) -> None:
    """It runs within the handler's place."""

    async def last(context: Context) -> None:
        await queue.enqueue("next", None, delay=60)
        await queue.stop()

    queue = queue_with(storage, last)
    events = Events(queue)
    await queue.start()
    await queue.enqueue("a", 1)
    await events.until("stopped", within=2)
    await queue.stop()

    assert events.of("completed") == [("a", 1)]
    assert ("next",) in events.of("enqueued")
