"""Life of a queue: start, stop, run, and what is left behind: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import sqlite3
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobq import (
    ConfigError,
    FileStorage,
    Job,
    JobQueueError,
    LeaderElection,
    MemoryStorage,
    Queue,
    QueueClosedError,
    Reaper,
    StorageUnavailableError,
)
from jobq.storage.contract import Storage
from jobq.testing import OnLoop, VirtualClock, run_virtual
from tests.engine.scenes import Events, Gated, Waiting, echo, in_loop, leaving_no_task, no_thread_for, passing


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Check that threads that began inside have ended soon after."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(2)
    left = [thread.name for thread in set(threading.enumerate()) - before]
    assert not left


async def tasks_left() -> set[asyncio.Task[Any]]:
    """Return the tasks of others, after what is ending has ended."""
    for _ in range(3):
        await asyncio.sleep(0)
    current = asyncio.current_task()
    # The test itself runs in a task within one.
    return {task for task in asyncio.all_tasks() if task is not current and not task.done()}


@in_loop
async def test_start_and_stop_twice_are_harmless(storage: Storage) -> None:
    """One started, one stopped, each time."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    events = Events(queue)
    await queue.stop()
    for round in range(2):
        await queue.start()
        await queue.start()
        assert await queue.enqueue_and_wait(f"job-{round}", round) == round
        await queue.stop()
        await queue.stop()

    assert events.of("started") == events.of("stopped") == [(), ()]


@in_loop
async def test_starts_at_once_make_one_worker(storage: Storage) -> None:
    """And stops at once end it once."""
    queue, waiting = Queue[Any, Any](storage, concurrency=1), Waiting()
    queue.execute(waiting)
    events = Events(queue)
    await asyncio.gather(*(queue.start() for _ in range(5)))
    await queue.enqueue_many([("a", 1), ("b", 1)])
    await waiting.begun()
    await passing(0.03)
    waiting.release.set()
    await asyncio.gather(queue.wait("a"), queue.wait("b"))
    await asyncio.gather(*(queue.stop() for _ in range(5)))

    assert waiting.most == 1
    assert (len(events.of("started")), len(events.of("stopped"))) == (1, 1)


@in_loop
async def test_a_start_during_a_stop_starts_after_it(storage: Storage) -> None:
    """The queue is open afterwards."""
    queue, waiting = Queue[Any, Any](storage), Waiting()
    queue.execute(waiting)
    events = Events(queue)
    await queue.start()
    await queue.enqueue("a", 1)
    await waiting.begun()
    stopping = asyncio.create_task(queue.stop())
    await asyncio.sleep(0)
    starting = asyncio.create_task(queue.start())
    await asyncio.sleep(0)
    waiting.release.set()
    await asyncio.gather(stopping, starting)

    assert await queue.enqueue_and_wait("b", 2) == 2
    await queue.stop()
    assert [name for name in events.names if name in ("started", "stopped")] == ["started", "stopped"] * 2


@in_loop
async def test_a_stop_during_a_start_leaves_the_queue_stopped(storage: Storage) -> None:
    """Whoever stops last is obeyed, however long the storage takes to connect."""
    gated = Gated(storage)
    gated.gates["open"] = asyncio.Event()
    queue = Queue[Any, Any](gated)
    queue.execute(echo)
    starting = asyncio.create_task(queue.start())
    await asyncio.sleep(0)
    stopping = asyncio.create_task(queue.stop())
    await asyncio.sleep(0)
    gated.gates["open"].set()
    await asyncio.gather(starting, stopping, return_exceptions=True)

    try:
        with pytest.raises(QueueClosedError):
            await queue.counts()
    finally:
        await queue.stop()


@pytest.mark.slow
@in_loop
async def test_a_start_that_is_cancelled_leaves_nothing_open(storage: Storage) -> None:
    """While the storage connects, and while a started listener runs."""
    gated = Gated(storage)
    queue = Queue[Any, Any](gated)
    queue.execute(echo)
    begun, go = asyncio.Event(), asyncio.Event()

    @queue.on("started")
    async def slow() -> None:
        begun.set()
        await go.wait()

    gated.gates["open"] = asyncio.Event()
    starting = asyncio.create_task(queue.start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    with pytest.raises(QueueClosedError):
        await queue.counts()

    gated.gates["open"].set()
    starting = asyncio.create_task(queue.start())
    await begun.wait()
    starting.cancel()
    await asyncio.wait([starting])
    go.set()
    try:
        # Either it is closed, or a further start makes it work: it is not left in between.
        await queue.start()
        assert await queue.enqueue_and_wait("a", 1, timeout=1) == 1
    finally:
        await queue.stop()


@in_loop
async def test_a_start_that_fails_can_be_repeated(storage: Storage) -> None:
    """The storage is closed again as often as it was opened."""
    gated = Gated(storage)
    gated.failures["watch"] = [StorageUnavailableError("away")]
    queue = Queue[Any, Any](gated)
    queue.execute(echo)
    with pytest.raises(StorageUnavailableError):
        await queue.start()
    with pytest.raises(QueueClosedError):
        await queue.counts()
    async with queue:
        assert await queue.enqueue_and_wait("a", 1) == 1


@in_loop
async def test_a_stop_that_is_cancelled_goes_on(storage: Storage) -> None:
    """In the background."""
    queue, waiting = Queue[Any, Any](storage), Waiting()
    queue.execute(waiting)
    events = Events(queue)
    await queue.start()
    await queue.enqueue("a", 1)
    await waiting.begun()
    stopping = asyncio.create_task(queue.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait([stopping])
    waiting.release.set()
    await events.until("stopped")

    assert events.of("completed") == [("a", 1)]
    with pytest.raises(QueueClosedError):
        await queue.counts()


@in_loop
async def test_a_handler_may_be_registered_after_the_start(storage: Storage) -> None:
    """It begins to consume at once."""
    async with Queue[Any, Any](storage) as queue:
        await queue.enqueue("a", 1)
        queue.execute(echo)
        assert await queue.wait("a", timeout=2) == 1


class Point(msgspec.Struct):
    """A type that JSON has no word for."""

    x: int


@in_loop
async def test_the_types_of_a_handler_that_is_registered_after_the_start_count_for_callers(storage: Storage) -> None:
    """What is enqueued, and what a waiter gets, is what the handler says, as with one registered before."""
    async with Queue(storage) as queue:

        @queue.execute
        async def square(job: Job[Point]) -> set[int]:
            return {job.payload.x**2}

        assert await queue.enqueue_and_wait("a", Point(3), timeout=2) == {9}
        assert await queue.get_result("a") == {9}


@in_loop
async def test_a_handler_registered_during_a_start_waits_for_the_listeners(storage: Storage) -> None:
    """What it needs may not be open before."""
    queue, order = Queue[Any, Any](storage), []
    opening, go = asyncio.Event(), asyncio.Event()

    @queue.on("started")
    async def open_pool() -> None:
        opening.set()
        await go.wait()
        order.append("opened")

    async with Queue[Any, Any](storage) as producer:
        await producer.enqueue("a", 1)
        starting = asyncio.create_task(queue.start())
        await opening.wait()
        queue.execute(lambda job: order.append("ran"))
        await passing(0.1)
        go.set()
        await starting
        await producer.wait("a", timeout=2)
        await queue.stop()

    assert order == ["opened", "ran"]


class Opaque:
    """A class that msgspec cannot decode."""


@in_loop
async def test_a_type_that_cannot_be_decoded_is_refused_at_start(storage: Storage) -> None:
    """And a serde of one's own is the remedy."""
    queue = Queue[Opaque, Any](storage)

    @queue.execute
    async def handler(job: Job[Opaque]) -> None: ...

    with pytest.raises(ConfigError, match="serde"):
        await queue.start()
    await queue.stop()


@in_loop
async def test_a_handler_that_is_refused_after_the_start_is_not_registered(storage: Storage) -> None:
    """Another one can take its place."""
    queue = Queue(storage)

    async def refused(job: Job[Opaque]) -> None: ...

    async with queue:
        with pytest.raises(ConfigError, match="serde"):
            queue.execute(refused)
        queue.execute(echo)
        assert await queue.enqueue_and_wait("a", 1, timeout=1) == 1


@pytest.mark.slow
@in_loop
async def test_stopping_leaves_no_task_and_no_thread(storage: Storage) -> None:
    """After every kind of work: async and plain handlers, waiters, listeners, reapers."""
    before = await tasks_left()
    with nothing_left():
        for plain in (False, True):
            queue = Queue[Any, Any](storage, name=f"plain-{plain}", concurrency=4, job_timeout=10)
            queue.execute((lambda job: job.payload) if plain else echo)
            reaper = Reaper(storage, name=queue.name, leader_election=LeaderElection())
            async with queue, reaper:
                await asyncio.gather(*(queue.enqueue_and_wait(str(number), number) for number in range(20)))
                with contextlib.suppress(TimeoutError):
                    await queue.enqueue_and_wait("later", 1, delay=60, timeout=0.02)
            assert await tasks_left() == before


@pytest.mark.slow
@in_loop
async def test_a_stopped_storage_is_not_kept_alive() -> None:
    """A program may make and drop any number of storages."""
    other = MemoryStorage()
    gone = weakref.ref(other)
    queue = Queue[Any, Any](other, visibility_timeout=0.1, block_timeout=0.05)
    queue.execute(echo)
    async with queue:
        await queue.enqueue_and_wait("a", 1, timeout=0.1)
    del queue, other
    await passing(0.2)
    gc.collect()

    assert gone() is None


@pytest.mark.storage("memory")
def test_a_storage_is_not_kept_alive_by_a_queue_that_was_never_stopped() -> None:
    """Nor when its leases are renewed in the loop, which has ended: tests in virtual time make thousands of them."""

    async def begin() -> weakref.ref[MemoryStorage]:
        other = MemoryStorage(clock=VirtualClock())
        queue = Queue[Any, Any](OnLoop(other))
        queue.execute(echo)
        await queue.start()
        return weakref.ref(other)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gone = run_virtual(begin)
        gc.collect()

    assert gone() is None


@pytest.mark.slow
@in_loop
async def test_a_stopped_queue_is_not_kept_alive(storage: Storage) -> None:
    """Nor is anything that hangs on it, once the times that it was given are over."""
    # The loop keeps a cancelled timer, and the context it was made in, until its time comes.
    queue = Queue[Any, Any](storage, visibility_timeout=0.1, block_timeout=0.05)
    queue.execute(echo)
    async with queue:
        await queue.enqueue_and_wait("a", 1, timeout=0.1)
    gone = weakref.ref(queue)
    del queue
    await passing(0.2)
    gc.collect()

    assert gone() is None


@pytest.mark.slow
@in_loop
async def test_queues_that_come_and_go_keep_their_leases(storage: Storage) -> None:
    """The last one leaves the thread that renews while the next one joins it."""
    for round in range(6):
        leaving = Queue[Any, Any](storage, name="leaving")
        leaving.execute(echo)
        await leaving.start()
        staying = Queue[Any, Any](storage, name="staying", visibility_timeout=0.3, block_timeout=0.05)
        waiting = Waiting()
        staying.execute(waiting)
        events = Events(staying)
        await asyncio.gather(leaving.stop(), staying.start())
        await staying.enqueue(f"job-{round}", round)
        await waiting.begun()
        await passing(0.4)
        waiting.release.set()
        assert await staying.wait(f"job-{round}") == round
        await staying.stop()
        assert not events.of("lease_lost")


def _no_loop_at_first(monkeypatch: pytest.MonkeyPatch, *, failures: int) -> list[str]:
    """Let the thread that renews fail to make a loop, as it does while no descriptor is free."""
    make, failed = asyncio.events.new_event_loop, []

    def new_event_loop() -> asyncio.AbstractEventLoop:
        name = threading.current_thread().name
        if name == "jobq-leases" and len(failed) < failures:
            failed.append(name)
            raise OSError(errno.EMFILE, "Too many open files")
        return make()

    monkeypatch.setattr(asyncio.events, "new_event_loop", new_event_loop)
    return failed


@pytest.mark.slow
@in_loop
async def test_leases_are_renewed_although_no_descriptor_was_free_at_first(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread tries again until it can, and says once why."""
    monkeypatch.setattr("jobq._lease._PAUSE", 0.02)
    failed = _no_loop_at_first(monkeypatch, failures=2)
    queue, waiting = Queue[Any, Any](storage, visibility_timeout=1.0, max_attempts=1), Waiting()
    queue.execute(waiting)
    events = Events(queue)
    async with queue:
        await queue.enqueue("a", 7)
        await waiting.begun()
        await passing(1.3)
        waiting.release.set()
        assert await queue.wait("a", timeout=1) == 7

    assert len(failed) == 2
    assert not events.of("lease_lost")
    assert len([record for record in caplog.records if "cannot be renewed" in record.getMessage()]) == 1


@pytest.mark.slow
@in_loop
async def test_a_queue_stops_in_time_while_its_leases_cannot_be_renewed(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that tries again ends with the last queue."""
    failed = _no_loop_at_first(monkeypatch, failures=1000)
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    with nothing_left():
        async with queue:
            await queue.enqueue_and_wait("a", 1)
        begun = time.monotonic()
        await queue.stop()

    assert failed
    assert time.monotonic() - begun < 1


# Loops and processes


def test_a_queue_may_be_started_again_in_another_loop(storage: Storage) -> None:
    """After it was stopped, with its jobs where they are."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)

    async def use(id: str) -> Any:
        async with queue:
            return await queue.enqueue_and_wait(id, id)

    assert [asyncio.run(leaving_no_task(use(id))) for id in "aab"] == ["a", "a", "b"]


@in_loop
async def test_use_in_another_loop_is_refused(storage: Storage) -> None:
    """With a code; never a silent hang."""

    async def use() -> list[str]:
        codes = []
        for call in (lambda: queue.enqueue("a", 1), queue.start, queue.stop, lambda: queue.wait("a")):
            with pytest.raises(JobQueueError) as caught:
                await call()
            codes.append(caught.value.code)
        return codes

    async with Queue[Any, Any](storage) as queue:
        assert await asyncio.to_thread(lambda: asyncio.run(leaving_no_task(use()))) == ["WRONG_LOOP"] * 4


@in_loop
async def test_use_of_a_reaper_in_another_loop_is_refused(storage: Storage) -> None:
    """A stop there would wait for ever, and a start would claim to have done what it has not."""

    async def use() -> list[str]:
        codes = []
        for call in (reaper.start, reaper.stop):
            with pytest.raises(JobQueueError) as caught:
                async with asyncio.timeout(1):
                    await call()
            codes.append(caught.value.code)
        return codes

    async with Reaper(storage) as reaper:
        assert await asyncio.to_thread(lambda: asyncio.run(use())) == ["WRONG_LOOP"] * 2


@pytest.mark.parametrize("kind", [Queue, Reaper])
@in_loop
async def test_of_two_loops_that_start_at_the_same_moment_the_second_is_refused(
    storage: Storage, kind: Callable[[Any], Queue[Any, Any] | Reaper]
) -> None:
    """While the first start is still under way: it must not lose its place, nor the second wait in the first's loop."""
    gated = Gated(storage)
    gated.gates["open"] = asyncio.Event()
    started = kind(gated)

    async def refused() -> str:
        with pytest.raises(JobQueueError) as caught:
            async with asyncio.timeout(2):
                await started.start()
        return caught.value.code

    starting = asyncio.create_task(started.start())
    await passing(0.01)
    assert await asyncio.to_thread(lambda: asyncio.run(refused())) == "WRONG_LOOP"
    gated.gates["open"].set()
    await starting
    assert isinstance(started, Reaper) or (await started.enqueue("a", 1)).status == "queued"
    await started.stop()


def test_of_two_loops_that_open_a_storage_at_the_same_moment_the_second_is_refused(tmp_path: Path) -> None:
    """Two queues have two locks, but the storage is one."""
    storage = FileStorage(tmp_path, durability="normal")
    holder = sqlite3.connect(tmp_path / "jobq.sqlite3", isolation_level=None)

    async def refused() -> str:
        with pytest.raises(JobQueueError) as caught:
            async with asyncio.timeout(2):
                await Queue[Any, Any](storage, name="second").start()
        return caught.value.code

    async def use() -> tuple[str, str]:
        holder.execute("BEGIN EXCLUSIVE")
        starting = asyncio.create_task(Queue[Any, Any](storage, name="first").start())
        await passing(0.05)
        code = await asyncio.to_thread(lambda: asyncio.run(refused()))
        holder.execute("ROLLBACK")
        await starting
        async with Queue[Any, Any](storage, name="third") as queue:
            status = (await queue.enqueue("a", 1)).status
        await storage.close()
        return code, status

    with contextlib.closing(holder), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        assert asyncio.run(use()) == ("WRONG_LOOP", "queued")
        gc.collect()


@in_loop
async def test_a_start_cancelled_while_a_stop_is_under_way_disconnects_once(storage: Storage) -> None:
    """The storage may be shared, and its other queues must not find it closed."""
    gate = asyncio.Event()
    other = Queue[Any, Any](storage, name="other")
    other.on("started", gate.wait)
    async with Queue[Any, Any](storage) as healthy:
        starting = asyncio.create_task(other.start())
        await passing(0.01)
        stopping = asyncio.create_task(other.stop(0.2))
        await passing(0.01)
        starting.cancel()
        answers = await asyncio.gather(starting, stopping, return_exceptions=True)

        assert [type(answer) for answer in answers] == [asyncio.CancelledError, type(None)]
        assert (await healthy.enqueue("a", 1)).status == "queued"


@in_loop
async def test_a_start_that_is_cancelled_twice_disconnects_all_the_same(storage: Storage) -> None:
    """The second cancel comes while what the first began waits for a listener."""
    queue = Queue[Any, Any](storage)
    begun, gates = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]

    @queue.on("started")
    async def hold_up() -> None:
        begun[0].set()
        await gates[0].wait()

    @queue.on("stopped")
    async def hold_up_again() -> None:
        begun[1].set()
        await gates[1].wait()

    starting = asyncio.create_task(queue.start())
    for one in begun:
        await one.wait()
        starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    for gate in gates:
        gate.set()
    await queue.stop()
    async with queue:
        assert (await queue.enqueue("a", 1)).status == "queued"


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.storage(kind)) for kind in ("memory", "file")])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A storage of this machine: what a closed loop leaves on a server ends with its connections."""
    return MemoryStorage() if request.param == "memory" else FileStorage(tmp_path / "jobs")


def broken_off(act: Callable[[], Coroutine[Any, Any, None]], steps: int) -> None:
    """Close a loop after so many steps, without a cancel; what it ran is garbage then."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(act())
    for _ in range(steps):
        loop.call_later(0.001, loop.stop)
        loop.run_forever()
    loop.close()
    del task


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_loop_closed_in_the_middle_of_a_start_or_a_stop_leaves_the_next_alone(here: Storage) -> None:
    """What is collected later must not end, or count off, what was begun since."""

    async def start_and_stop() -> None:
        await queue.start()
        await queue.stop()

    async def use(id: str) -> Any:
        async with asyncio.timeout(5), queue:
            gc.collect()
            return await queue.enqueue_and_wait(id, id)

    for steps in (*range(1, 12), *range(1, 12)):
        queue = Queue[Any, Any](here, visibility_timeout=0.3)
        queue.execute(echo)
        broken_off(start_and_stop, steps)
        assert asyncio.run(use("a")) == "a"
        assert asyncio.run(use("b")) == "b"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_loop_closed_under_a_listener_does_not_hold_up_the_next_stop(here: Storage) -> None:
    """It will never end, and nobody can cancel it any more."""
    queue = Queue[Any, Any](here)
    waiting: list[asyncio.Event] = []

    @queue.on("started")
    async def wait() -> None:
        if not waiting:
            waiting.append(asyncio.Event())
            await waiting[0].wait()

    async def use() -> None:
        await queue.start()
        async with asyncio.timeout(2):
            await queue.stop()

    begun = asyncio.new_event_loop()
    task = begun.create_task(queue.start())
    while not waiting:
        begun.call_later(0.001, begun.stop)
        begun.run_forever()
    begun.close()
    asyncio.run(use())
    assert not task.done()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_worker_of_a_closed_loop_is_not_woken_instead_of_the_next(here: Storage) -> None:
    """It slept there, and is the first in the row."""
    queue = Queue[Any, Any](here, visibility_timeout=0.3)
    queue.execute(echo)

    async def begin() -> None:
        await queue.start()
        await passing(0.05)

    async def use() -> Any:
        async with queue:
            await passing(0.05)
            return await queue.enqueue_and_wait("a", 1, timeout=3)

    left = asyncio.new_event_loop()
    left.run_until_complete(begin())
    left.close()
    assert asyncio.run(use()) == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_stop_after_its_loop_was_closed_is_harmless(here: Storage) -> None:
    """There is no other loop in which it could be stopped; and it may be started again."""

    async def use(started: Queue[Any, Any] | Reaper) -> None:
        await started.stop()
        async with started:
            pass

    for started in (Queue[Any, Any](here), Reaper(here)):
        left = asyncio.new_event_loop()
        left.run_until_complete(started.start())
        left.close()
        asyncio.run(use(started))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jobq-leases", "jobq-file"])
@in_loop
async def test_a_start_without_a_thread_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """Neither for this queue nor for others of the storage: with a thread again, leases are renewed."""
    storage = FileStorage(tmp_path, durability="normal")
    queues = [Queue[Any, Any](storage, name=name, visibility_timeout=0.4, block_timeout=0.1) for name in "ab"]
    events = [Events(queue) for queue in queues]

    async def longer_than_a_lease(job: Job[Any]) -> int:
        await passing(1)
        return job.attempts

    for queue in queues:
        queue.execute(longer_than_a_lease)
    with no_thread_for(name):
        for _ in range(2):
            with pytest.raises(StorageUnavailableError, match="thread") as caught:
                await queues[0].start()
            await queues[0].stop()
    for queue in queues:
        await queue.start()
    assert await asyncio.gather(*(queue.enqueue_and_wait("a", 1, timeout=5) for queue in queues)) == [1, 1]
    for queue in queues:
        await queue.stop()

    assert caught.value.code == "NO_THREAD"
    assert [event.of("lease_lost") for event in events] == [[], []]


@in_loop
async def test_a_handler_registered_when_no_thread_can_be_had_may_be_registered_again(tmp_path: Path) -> None:
    """The queue goes on as it was."""
    async with Queue[Any, Any](FileStorage(tmp_path)) as queue:
        with no_thread_for("jobq-leases"), pytest.raises(StorageUnavailableError):
            queue.execute(echo)
        queue.execute(echo)
        assert await queue.enqueue_and_wait("a", 1) == 1


@pytest.mark.slow
def test_a_loop_closed_under_a_running_queue_ends_its_threads_and_the_job_recovers(storage: Storage) -> None:
    """Nobody stopped it: its leases lapse, and another queue runs the job."""
    waiting: list[str] = []

    async def abandon() -> None:
        queue = Queue[Any, Any](storage, visibility_timeout=0.2)

        @queue.execute
        async def endless(job: Job[Any]) -> None:
            waiting.append(job.id)
            await asyncio.Event().wait()

        await queue.start()
        await queue.enqueue("a", 7)
        while not waiting:
            await asyncio.sleep(0)

    with nothing_left():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            asyncio.run(abandon())
            begun = time.monotonic()
            while time.monotonic() - begun < 1.5 and not any(w.category is ResourceWarning for w in caught):
                threading.Event().wait(0.05)
                gc.collect()
        messages = [
            str(w.message) for w in caught if w.category is ResourceWarning and "never stopped" in str(w.message)
        ]

        async def recover() -> Any:
            queue = Queue[Any, Any](storage, block_timeout=0.1)
            queue.execute(echo)
            async with queue:
                return await queue.wait("a", timeout=3)

        assert asyncio.run(leaving_no_task(recover())) == 7
    assert messages == ["queue 'default' was never stopped"]


@pytest.mark.slow
def test_an_abandoned_queue_can_be_started_in_a_new_loop(storage: Storage) -> None:
    """The same object; it forgets what the closed loop left behind."""
    queue = Queue[Any, Any](storage, visibility_timeout=0.2, block_timeout=0.1)
    attempts: list[int] = []

    @queue.execute
    async def at_first_endless(job: Job[Any]) -> int:
        attempts.append(job.attempts)
        if len(attempts) == 1:
            await asyncio.Event().wait()
        return job.attempts

    async def abandon() -> None:
        await queue.start()
        await queue.enqueue("a", 1)
        while not attempts:
            await asyncio.sleep(0)

    async def recover() -> Any:
        async with queue:
            return await queue.wait("a", timeout=3)

    with nothing_left():
        asyncio.run(abandon())
        assert asyncio.run(leaving_no_task(recover())) == 2


@pytest.mark.slow
def test_an_abandoned_reaper_can_be_started_in_a_new_loop(storage: Storage) -> None:
    """It looks again, and does not merely say that it is started."""
    reaper = Reaper(storage, visibility_timeout=0.05)
    events = Events(reaper)

    async def again() -> None:
        queue = Queue[Any, Any](storage)
        async with queue:
            await reaper.start()
            await queue.enqueue("a", 1)
            await storage.namespace("default").claim("crashed", 0.05, 1, "crashed.1")
            try:
                await events.until("stalled", within=2)
            finally:
                await reaper.stop()

    asyncio.run(reaper.start())
    asyncio.run(leaving_no_task(again()))


# run


@in_loop
async def test_run_needs_a_handler(storage: Storage) -> None:
    """A worker program without one would wait for ever."""
    with pytest.raises(ConfigError, match="handler"):
        await Queue[Any, Any](storage).run()


@pytest.mark.slow
@in_loop
async def test_run_until_empty_does_all_that_is_left_and_returns(storage: Storage) -> None:
    """Retries and delayed jobs included, and soon after the last of them."""
    queue = Queue[Any, Any](storage, concurrency=3, retry=lambda attempt, error: 0.05)
    done: list[str] = []

    @queue.execute
    async def note(job: Job[Any]) -> None:
        if job.id == "twice" and job.attempts == 1:
            raise ValueError
        done.append(job.id)

    async with Queue[Any, Any](storage) as producer:
        await producer.enqueue_many([("a", 1), ("twice", 1), ("b", 1)])
        await producer.enqueue("later", 1, delay=0.2)
        begun = time.monotonic()
        await queue.run(until_empty=True)
        took = time.monotonic() - begun

    assert sorted(done) == ["a", "b", "later", "twice"]
    assert took < 1.5


@in_loop
async def test_run_until_empty_of_an_empty_queue_returns_at_once(storage: Storage) -> None:
    """There is nothing to wait for."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    begun = time.monotonic()
    await queue.run(until_empty=True)

    assert time.monotonic() - begun < 1


@in_loop
async def test_run_until_empty_does_what_came_since_the_queue_was_idle(storage: Storage) -> None:
    """A queue that was started before may have been empty then; what counts is what is left now."""
    queue = Queue[Any, Any](storage)
    queue.execute(echo)
    events = Events(queue)
    await queue.start()
    await queue.enqueue_and_wait("early", 1)
    await passing(0.05)
    await queue.enqueue("late", 2, delay=0.2)
    await queue.run(until_empty=True)

    assert events.of("completed") == [("early", 1), ("late", 2)]


@in_loop
async def test_run_until_empty_waits_for_a_slow_job_and_no_longer(storage: Storage) -> None:
    """Its end is noticed when it comes, not at the next look of an idle worker."""
    queue, waiting = Queue[Any, Any](storage, concurrency=2), Waiting()
    queue.execute(waiting)
    async with Queue[Any, Any](storage) as producer:
        await producer.enqueue("a", 1)
        running = asyncio.create_task(queue.run(until_empty=True))
        await waiting.begun()
        await passing(0.05)
        assert not running.done()
        waiting.release.set()
        begun = time.monotonic()
        await running

    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@in_loop
async def test_run_serves_until_a_signal_and_returns_normally(storage: Storage, number: signal.Signals) -> None:
    """Running handlers finish first."""
    queue, waiting = Queue[Any, Any](storage), Waiting()
    queue.execute(waiting)
    async with Queue[Any, Any](storage) as producer:
        running = asyncio.create_task(queue.run())
        waiter = asyncio.create_task(producer.enqueue_and_wait("a", 7))
        await waiting.begun()
        os.kill(os.getpid(), number)
        await passing(0.05)
        assert not running.done()
        waiting.release.set()
        await running
        assert await waiter == 7

    assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.Handlers.SIG_DFL)


@pytest.mark.parametrize("slow", ["storage", "listener"])
@in_loop
async def test_a_signal_while_it_starts_ends_the_start(storage: Storage, slow: str) -> None:
    """Else a worker whose server is silent, or whose listener waits for something else, would have to be killed."""
    gated, begun = Gated(storage), asyncio.Event()
    queue = Queue[Any, Any](gated)
    queue.execute(echo)

    async def wait_for_ever() -> None:
        begun.set()
        await asyncio.Event().wait()

    if slow == "storage":
        gated.gates["open"] = asyncio.Event()
        begun.set()
    else:
        queue.on("started", wait_for_ever)
    running = asyncio.create_task(queue.run())
    await begun.wait()
    await passing(0.05)

    os.kill(os.getpid(), signal.SIGTERM)

    async with asyncio.timeout(1.0):
        await running
    assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.Handlers.SIG_DFL)


@in_loop
async def test_a_second_signal_ends_the_handlers(storage: Storage) -> None:
    """Within a second."""
    queue, waiting = Queue[Any, Any](storage), Waiting()
    queue.execute(waiting)
    async with Queue[Any, Any](storage) as producer:
        running = asyncio.create_task(queue.run())
        await producer.enqueue("a", 7)
        await waiting.begun()
        os.kill(os.getpid(), signal.SIGTERM)
        await passing(0.2)  # Sooner it would count as an echo of the first.
        begun = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        await running

    assert time.monotonic() - begun < 1
    assert waiting.cancelled == ["a"]


@in_loop
async def test_a_signal_reaches_every_run_of_a_loop(storage: Storage, request: pytest.FixtureRequest) -> None:
    """However many there are, and until the last has ended; then it is again whose it was."""

    def of_the_program(*_: object) -> None: ...

    earlier = signal.signal(signal.SIGTERM, of_the_program)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, earlier))
    queues = [Queue[Any, Any](storage, name=name) for name in ("first", "second", "third")]
    started = [Events(queue) for queue in queues]
    for queue in queues:
        queue.execute(echo)
    first, *others = [asyncio.create_task(queue.run()) for queue in queues]
    for events in started:
        await events.until("started")
    await queues[0].stop()
    await first
    assert signal.getsignal(signal.SIGTERM) is not of_the_program
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait(others, timeout=3)
    for queue in queues:
        await queue.stop()  # So that the loop of a failed test can end.

    assert [running.done() for running in others] == [True, True]
    assert signal.getsignal(signal.SIGTERM) is of_the_program


@in_loop
async def test_run_ends_when_the_queue_is_stopped(storage: Storage) -> None:
    """From anywhere, also from within a handler."""
    queue = Queue[Any, Any](storage)

    @queue.execute
    async def last(job: Job[Any]) -> None:
        await queue.stop()

    async with Queue[Any, Any](storage) as producer:
        await producer.enqueue("a", 1)
        await queue.run()
        assert (await producer.counts())["completed"] == 1


@in_loop
async def test_run_that_is_cancelled_stops_the_queue(storage: Storage) -> None:
    """And gives back what ran."""
    queue, waiting = Queue[Any, Any](storage), Waiting()
    queue.execute(waiting)
    async with Queue[Any, Any](storage) as producer:
        running = asyncio.create_task(queue.run())
        await producer.enqueue("a", 1)
        await waiting.begun()
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        status = await producer.get_status("a")
        with pytest.raises(QueueClosedError):
            await queue.counts()

    assert status is not None
    assert (status.state, status.attempts) == ("queued", 0)
