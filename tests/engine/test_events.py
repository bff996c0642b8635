"""Events: each of the ten with its arguments, and listeners that harm nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Sequence
from typing import Any

import pytest

from jobq import ConfigError, GiveUp, Job, JobFailedError, JobTimeoutError, MaxRetriesError, Queue, QueueClosedError
from jobq._batch import Batcher
from jobq.clock import Clock
from jobq.events import QUEUE_EVENTS, Emitter
from jobq.storage.contract import Storage
from tests.engine.scenes import Events, Waiting, echo, in_loop


@in_loop
async def test_a_job_that_completes(storage: Storage) -> None:
    """started, enqueued(id), completed(id, result), stopped, in this order."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    events = Events(queue)
    async with queue:
        await queue.enqueue("a", {"x": 1})
        await events.until("completed")

    assert events.all == [("started",), ("enqueued", "a"), ("completed", "a", {"x": 1}), ("stopped",)]


@in_loop
async def test_a_job_that_fails_on_every_attempt(storage: Storage) -> None:
    """failing(id, error, attempt) has the handler's exception; failed(id, error) has it as its cause."""
    queue = Queue[Any, Any](storage, max_attempts=3, retry=lambda attempt, error: 0.0)
    events = Events(queue)
    raised: list[Exception] = []

    @queue.execute
    async def fail(job: Job[Any]) -> None:
        raised.append(ValueError(job.attempts))
        raise raised[-1]

    async with queue:
        await queue.enqueue("a", 1)
        (failed,) = await events.until("failed")

    assert events.names == ["started", "enqueued", "failing", "failing", "failed", "stopped"]
    assert events.of("failing") == [("a", raised[0], 1), ("a", raised[1], 2)]
    id, error = failed
    assert id == "a"
    assert type(error) is MaxRetriesError
    assert error.__cause__ is raised[2]
    assert (error.job_id, error.attempts, error.error.message) == ("a", 3, "3")


@in_loop
async def test_a_job_that_gives_up(storage: Storage) -> None:
    """It fails with attempts left, which is not a MaxRetriesError."""
    queue = Queue[Any, Any](storage)
    events = Events(queue)

    @queue.execute
    async def refuse(job: Job[Any]) -> None:
        raise GiveUp("hopeless")

    async with queue:
        await queue.enqueue("a", 1)
        ((_, error),) = await events.until("failed")

    assert type(error) is JobFailedError
    assert isinstance(error.__cause__, GiveUp)
    assert not events.of("failing")


@in_loop
async def test_cancelled_is_emitted_where_the_cancel_was_called(storage: Storage) -> None:
    """Once, and only for a job that was cancelled."""
    queue = Queue[Any, Any](storage)
    events = Events(queue)
    async with queue:
        await queue.enqueue("a", 1)
        await queue.cancel("a")
        await queue.cancel("a")
        await queue.cancel("nobody")

    assert events.of("cancelled") == [("a",)]


@in_loop
async def test_requeued_is_emitted_for_a_job_given_back_by_stop(storage: Storage) -> None:
    """The attempt is refunded."""
    queue = Queue[Any, Any](storage)
    events, waiting = Events(queue), Waiting()
    queue.execute(waiting)
    async with queue:
        await queue.enqueue("a", 1)
        await waiting.begun()
        await queue.stop(0)

    assert events.of("requeued") == [("a",)]
    assert not events.of("failing")
    waiting.release.set()
    async with queue:
        assert await queue.wait("a") == 1
    assert [job.attempts for job in waiting.jobs] == [1, 1]


@in_loop
async def test_a_worker_tells_of_jobs_that_ended_by_a_lapse_which_it_found(storage: Storage) -> None:
    """Nobody else would: their own workers are gone."""
    queue, namespace = Queue[Any, Any](storage, max_attempts=1), storage.namespace("default")
    events = Events(queue)
    async with queue:
        await queue.enqueue_many([("lost", 1), ("asked to stop", 2)])
        assert len((await namespace.claim("crashed", 0.1, 2, "crashed.1")).claims) == 2
        assert (await queue.cancel("asked to stop", running=True)).status == "cancelling"
        queue.execute(echo)
        await events.until("failed")
        await events.until("cancelled")

    ((id, error),) = events.of("failed")
    assert (id, type(error)) == ("lost", MaxRetriesError)
    assert events.of("cancelled") == [("asked to stop",)]


@in_loop
async def test_enqueued_is_emitted_only_for_what_was_queued(storage: Storage) -> None:
    """Not for duplicates, and not for cached results; by each way of enqueueing."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    events = Events(queue)
    async with queue:
        await queue.enqueue_and_wait("a", 1)
        await queue.enqueue_and_wait("a", 1)
        await queue.enqueue("a", 1)
        await queue.enqueue_many([("b", 1), ("b", 2)])

    assert events.of("enqueued") == [("a",), ("b",)]


@in_loop
async def test_events_are_local(storage: Storage) -> None:
    """The producer's object does not hear what the worker's did."""
    producer, worker = Queue[Any, Any](storage), Queue[Any, Any](storage)
    worker.execute(echo)
    told, heard = Events(producer), Events(worker)
    async with producer, worker:
        await producer.enqueue_and_wait("a", 1)
        await heard.until("completed")

    assert told.names == ["started", "enqueued", "stopped"]
    assert heard.names == ["started", "completed", "stopped"]


@in_loop
async def test_started_listeners_are_awaited_before_the_first_claim(storage: Storage) -> None:
    """The place where a database pool is opened."""
    queue = Queue[Any, Any](storage)
    async with queue:
        await queue.enqueue("a", 1)
    order: list[str] = []

    @queue.on("started")
    async def prepare() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        order.append("prepared")

    @queue.execute
    async def note(job: Job[Any]) -> None:
        order.append("ran")

    async with queue:
        await queue.wait("a")

    assert order == ["prepared", "ran"]


@in_loop
async def test_stopped_listeners_are_awaited_after_the_last_settle(storage: Storage) -> None:
    """The place where a database pool is closed."""
    queue = Queue[Any, Any](storage)
    waiting, events = Waiting(), Events(queue)
    queue.execute(waiting)
    closed = False

    @queue.on("stopped")
    async def close() -> None:
        nonlocal closed
        await asyncio.sleep(0)
        closed = True

    async with queue:
        await queue.enqueue("a", 1)
        await waiting.begun()
        stopping = asyncio.create_task(queue.stop())
        await asyncio.sleep(0)
        waiting.release.set()
        await stopping

    assert closed
    assert events.names == ["started", "enqueued", "completed", "stopped"]


@in_loop
async def test_a_handler_registered_by_a_started_listener_is_run_by_one_worker(storage: Storage) -> None:
    """A model is loaded first, then the handler is registered: the bound of concurrency still holds."""
    queue = Queue[Any, Any](storage, concurrency=1, visibility_timeout=1)
    waiting = Waiting()

    @queue.on("started")
    async def register() -> None:
        await asyncio.sleep(0)
        if not waiting.jobs:
            queue.execute(waiting)

    async with queue:
        await queue.enqueue_many([("a", 1), ("b", 2)])
        await waiting.begun()
        for _ in range(50):
            await asyncio.sleep(0)
        waiting.release.set()
        await asyncio.gather(queue.wait("a"), queue.wait("b"))

    assert waiting.most == 1


@in_loop
async def test_on_and_off(storage: Storage) -> None:
    """The same listener twice is called twice; off removes it once, and forgives what is not there."""
    queue = Queue[Any, Any](storage)
    heard: list[str] = []

    def listen(id: str) -> None:
        heard.append(id)

    assert queue.on("enqueued", listen) is listen
    queue.on("enqueued")(listen)
    async with queue:
        await queue.enqueue("a", 1)
        queue.off("enqueued", listen)
        await queue.enqueue("b", 1)
        queue.off("enqueued", listen)
        queue.off("enqueued", listen)
        await queue.enqueue("c", 1)

    assert heard == ["a", "a", "b"]


@in_loop
async def test_a_listener_may_remove_itself(storage: Storage) -> None:
    """Changing the listeners while they are called skips nobody."""
    queue = Queue[Any, Any](storage)
    heard: list[str] = []

    def once(id: str) -> None:
        heard.append(f"once {id}")
        queue.off("enqueued", once)

    queue.on("enqueued", once)
    queue.on("enqueued", heard.append)
    async with queue:
        await queue.enqueue("a", 1)
        await queue.enqueue("b", 1)

    assert heard == ["once a", "a", "b"]


@pytest.mark.parametrize("event", ["complete", "stalled", "", None, 3, ["completed"]])
@pytest.mark.parametrize("member", ["on", "off"])
def test_an_unknown_event_is_refused_with_the_names(member: str, event: Any, storage: Storage) -> None:
    """A misspelt event would never be heard."""
    queue = Queue[Any, Any](storage)

    with pytest.raises(ConfigError, match="lease_lost"):
        getattr(queue, member)(event, print)
    with pytest.raises(ConfigError, match="lease_lost"):
        queue.on(event)


@pytest.mark.parametrize("listener", [3, "print", object()])
def test_a_listener_must_be_callable(listener: Any, storage: Storage) -> None:
    """Said when it is given, not when the event comes."""
    with pytest.raises(ConfigError, match="callable"):
        Queue[Any, Any](storage).on("completed", listener)


@in_loop
async def test_async_listeners_run_beside_the_work(storage: Storage) -> None:
    """A slow one delays no job, and stop waits for it for a moment."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    go, done = asyncio.Event(), []

    @queue.on("completed")
    async def slow(id: str, result: Any) -> None:
        await go.wait()
        done.append(id)

    async with queue:
        for id in "abc":
            await queue.enqueue_and_wait(id, 1)
        assert not done
        go.set()

    assert sorted(done) == ["a", "b", "c"]


@pytest.mark.slow
@in_loop
async def test_a_listener_that_never_ends_does_not_hold_up_stop(storage: Storage) -> None:
    """It is cancelled after half a second."""
    queue = Queue[Any, Any](storage)
    cancelled = asyncio.Event()

    @queue.on("enqueued")
    async def endless(id: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    await queue.start()
    await queue.enqueue("a", 1)
    async with asyncio.timeout(2):
        await queue.stop(0)
    await asyncio.sleep(0)

    assert cancelled.is_set()


class Odd(BaseException):
    """Not an Exception, as some libraries raise."""


class Unprintable(Exception):
    """What it says cannot be asked for."""

    def __init__(self, raised: BaseException) -> None:
        self.raised = raised

    def __str__(self) -> str:
        raise self.raised


@pytest.mark.parametrize("raised", [ValueError("oh"), asyncio.CancelledError("oh"), Odd("oh")], ids=repr)
@pytest.mark.parametrize("event", ["completed", "failing", "failed"])
@in_loop
async def test_a_plain_listener_that_raises_harms_no_job(storage: Storage, event: str, raised: BaseException) -> None:
    """Every job is settled, every event is told, and the worker goes on, however many travelled together."""
    queue = Queue[Any, Any](
        storage, concurrency=10, max_attempts=2, retry=lambda attempt, error: 0.0, visibility_timeout=5.0
    )

    @queue.execute
    async def act(job: Job[Any]) -> Any:
        if job.payload == "fail":
            raise ValueError
        return job.payload

    def harmful(*arguments: Any) -> None:
        raise raised

    queue.on(event, harmful)
    events = Events(queue)
    async with queue:
        await queue.enqueue_many([(f"good-{number}", number) for number in range(10)])
        await queue.enqueue_many([(f"bad-{number}", "fail") for number in range(10)])
        await events.until("completed", 10, within=2)
        await events.until("failing", 10, within=2)
        await events.until("failed", 10, within=2)
        assert await queue.enqueue_and_wait("last", 1, timeout=2) == 1

    assert len(events.of("lease_lost")) == 0
    assert len(events.of("error")) >= 10


@pytest.mark.parametrize("raised", [ValueError("oh"), asyncio.CancelledError("oh"), Odd("oh")], ids=repr)
@in_loop
async def test_a_plain_listener_that_raises_harms_no_caller(storage: Storage, raised: BaseException) -> None:
    """What was done is answered, and the error goes to the error listeners."""
    queue = Queue[Any, Any](storage)
    events = Events(queue)

    def harmful(id: str) -> None:
        raise raised

    queue.on("enqueued", harmful)
    queue.on("cancelled", harmful)
    async with queue:
        assert (await queue.enqueue("a", 1)).status == "queued"
        with pytest.raises(JobTimeoutError):
            await queue.enqueue_and_wait("b", 1, timeout=0.05)
        assert len(await queue.enqueue_many([("c", 1), ("d", 1)])) == 2
        assert (await queue.cancel("a")).status == "cancelled"

    assert len(events.of("error")) == 5


@pytest.mark.parametrize("event", ["started", "stopped", "enqueued", "completed"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@in_loop
async def test_what_a_listener_raises_becomes_an_error_event(storage: Storage, event: str, is_async: bool) -> None:
    """Somebody hears of it."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    raised = ValueError("oh")

    def plain(*arguments: Any) -> None:
        raise raised

    async def coroutine(*arguments: Any) -> None:
        raise raised

    queue.on(event, coroutine if is_async else plain)
    events = Events(queue)
    async with queue:
        await queue.enqueue_and_wait("a", 1)

    assert events.of("error") == [(raised,)]


@in_loop
async def test_an_error_without_a_listener_is_logged(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    """By the queue's logger, with its traceback."""
    queue = Queue[Any, Any](storage, logger=logging.getLogger("of-mine"))

    @queue.on("enqueued")
    def harmful(id: str) -> None:
        raise ValueError("unheard é")

    async with queue:
        await queue.enqueue("a", 1)

    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name == "of-mine"
    assert "unheard" in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("raised", [RuntimeError("no text"), Odd("no text"), asyncio.CancelledError()], ids=repr)
@in_loop
async def test_an_error_that_cannot_be_printed_harms_no_job_and_no_caller(
    storage: Storage, caplog: pytest.LogCaptureFixture, raised: BaseException
) -> None:
    """It is logged by its type, and those who travelled with it are settled and told of."""
    queue = Queue[Any, Any](storage, concurrency=10)
    queue.execute(echo)
    done: list[str] = []

    @queue.on("completed")
    def harmful_once(id: str, result: Any) -> None:
        done.append(id)
        if len(done) == 1:
            raise Unprintable(raised)

    async with queue:
        await queue.enqueue_many([(str(number), number) for number in range(5)])
        await asyncio.gather(*(queue.wait(str(number), timeout=2) for number in range(5)))
        assert await queue.enqueue_and_wait("last", 1, timeout=2) == 1

    assert sorted(done) == ["0", "1", "2", "3", "4", "last"]
    assert [record.getMessage() for record in caplog.records if "Unprintable" in record.getMessage()]


def test_an_error_event_that_is_no_exception_may_be_unprintable_too(caplog: pytest.LogCaptureFixture) -> None:
    class Mute:
        def __str__(self) -> str:
            raise Odd("no text")

    Emitter(QUEUE_EVENTS, logging.getLogger("jobq")).emit("error", Mute())

    assert [record.getMessage() for record in caplog.records] == ["jobq: '<Mute that cannot be printed>'"]


@in_loop
async def test_an_error_listener_that_raises_is_logged_and_not_called_for_ever(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own error is no further event."""
    queue = Queue[Any, Any](storage)
    calls: list[BaseException] = []

    @queue.on("error")
    def harmful(error: BaseException) -> None:
        calls.append(error)
        raise RuntimeError("from the error listener")

    @queue.on("enqueued")
    def first(id: str) -> None:
        raise ValueError("first")

    async with queue:
        await queue.enqueue("a", 1)

    assert [str(error) for error in calls] == ["first"]
    assert "from the error listener" in caplog.text


@in_loop
async def test_a_listener_may_use_the_queue(storage: Storage) -> None:
    """A chain of jobs: each completed one enqueues the next."""
    queue = Queue[int, int](storage)
    done = asyncio.Event()

    @queue.execute
    async def count(job: Job[int]) -> int:
        return job.payload + 1

    @queue.on("completed")
    async def follow(id: str, result: int) -> None:
        if result == 5:
            done.set()
        else:
            await queue.enqueue(f"job-{result}", result)

    async with queue:
        await queue.enqueue("job-0", 0)
        await done.wait()


@in_loop
async def test_stop_awaited_in_a_listener_does_not_lock_up(storage: Storage) -> None:
    """The stop goes on, and the queue is closed soon after."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    events = Events(queue)

    @queue.on("completed")
    async def last(id: str, result: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await queue.stop()

    await queue.start()
    await queue.enqueue("a", 1)
    await events.until("stopped")
    await queue.stop()


@pytest.mark.parametrize("event", ["started", "enqueued", "stopped"])
@in_loop
async def test_stop_awaited_in_a_listener_is_not_held_up_by_it(storage: Storage, event: str) -> None:
    """Whoever waits for a listener must not be waited for by it."""
    queue, returned = Queue[Any, Any](storage), []

    @queue.on(event)
    async def last(*arguments: Any) -> None:
        await queue.stop()
        returned.append(event)

    begun = time.monotonic()
    await queue.start()
    with contextlib.suppress(QueueClosedError):  # A stop that has begun may be sooner.
        await queue.enqueue("a", 1)
    await queue.stop()

    assert time.monotonic() - begun < 2
    assert returned == [event]
    with pytest.raises(QueueClosedError):
        await queue.counts()


@pytest.mark.parametrize("event", ["started", "enqueued", "stopped"])
@in_loop
async def test_stop_awaited_in_a_task_of_a_listener_is_not_held_up_by_it(storage: Storage, event: str) -> None:
    """Whoever stops several queues at once gathers their stops, which makes a task of each."""
    queue, returned = Queue[Any, Any](storage), []

    @queue.on(event)
    async def last(*arguments: Any) -> None:
        await asyncio.gather(queue.stop(), asyncio.sleep(0))
        returned.append(event)

    async with asyncio.timeout(2):
        await queue.start()
        with contextlib.suppress(QueueClosedError):
            await queue.enqueue("a", 1)
        await queue.stop()

    assert returned == [event]


@in_loop
async def test_start_awaited_in_a_listener_of_started_changes_nothing(storage: Storage) -> None:
    """It is started, and a start that waits for the listener goes on."""
    queue, returned = Queue[Any, Any](storage), []
    queue.execute(echo)

    @queue.on("started")
    async def again() -> None:
        await queue.start()
        returned.append("started")

    async with asyncio.timeout(2):
        async with queue:
            assert await queue.enqueue_and_wait("a", 1) == 1

    assert returned == ["started"]


@in_loop
async def test_start_awaited_in_a_listener_of_stopped_is_refused(storage: Storage) -> None:
    """The stop waits for the listener, so that a start after it could never come."""
    queue = Queue[Any, Any](storage)
    events = Events(queue)

    @queue.on("stopped")
    async def again() -> None:
        await queue.start()

    await queue.start()
    async with asyncio.timeout(2):
        await queue.stop()

    [(error,)] = events.of("error")
    assert type(error) is QueueClosedError


@pytest.mark.parametrize("call", ["start", "stop"])
@in_loop
async def test_a_listener_of_stopped_does_not_hold_up_a_start_that_is_cancelled(storage: Storage, call: str) -> None:
    """Such a start closes what it has opened, and tells of it while it still holds back other starts."""
    queue, begun, go = Queue[Any, Any](storage), asyncio.Event(), asyncio.Event()

    @queue.on("started")
    async def slow() -> None:
        begun.set()
        await go.wait()

    @queue.on("stopped")
    async def again() -> None:
        await getattr(queue, call)()

    events = Events(queue)
    starting = asyncio.create_task(queue.start())
    await begun.wait()
    starting.cancel()
    go.set()
    async with asyncio.timeout(2):
        await asyncio.wait([starting])

    assert starting.cancelled()
    assert len(events.of("error")) == (call == "start")


def test_the_events_are_the_documented_ones() -> None:
    """Ten of them."""
    documented = "started stopped enqueued completed failed failing requeued cancelled lease_lost error"

    assert list(QUEUE_EVENTS) == documented.split()


class FullDisk(logging.Handler):
    """A log that cannot be written."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@in_loop
async def test_a_log_that_raises_costs_nobody_an_answer(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    """Many that travelled together are told, although a listener raises for each; and the queue can be stopped."""
    logger = logging.getLogger(f"{__name__}.full")
    logger.propagate = False
    logger.addHandler(FullDisk())
    queue = Queue[Any, Any](storage, concurrency=4, logger=logger)
    queue.execute(echo)

    @queue.on("completed")
    @queue.on("enqueued")
    def harmful(*arguments: Any) -> None:
        raise ValueError("of a listener")

    async with queue:
        answers = await asyncio.gather(
            *(queue.enqueue_and_wait(str(number), number, timeout=5) for number in range(30))
        )

    assert answers == [*range(30)]
    assert "No space left on device" in capsys.readouterr().err


@in_loop
async def test_a_receiver_that_raises_costs_the_others_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same batch; and the next batch leaves as ever."""
    received: list[str] = []

    async def send(items: Sequence[str]) -> Sequence[str]:
        return [item.upper() for item in items]

    def receive(name: str, answer: str | Exception) -> None:
        if name == "harmful":
            raise OSError("of a receiver")
        received.append(f"{name} {answer}")

    batcher = Batcher[str, str](send, clock=Clock())
    for name in ("first", "harmful", "last"):
        batcher.put("a", receive, name)
    await batcher.drain()
    batcher.put("b", receive, "next")
    await batcher.drain()

    assert received == ["first A", "last A", "next B"]
    assert "of a receiver" in capsys.readouterr().err
