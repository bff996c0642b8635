"""Queue: the door. Options, lifecycle and events; the work is done by `_producer` and `_worker`."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar, overload

from jobq._annotations import types_of
from jobq._executor import Executor, Handler, Hook, check_handler
from jobq._failure import decode_error
from jobq._home import Home
from jobq._nonces import Nonces
from jobq._process import Process
from jobq._producer import MOST_ATTEMPTS, Producer, ProducerOptions
from jobq._signals import any_of, interruptions, unless
from jobq._timeouts import Timeouts
from jobq._watch import Waiters
from jobq._worker import Worker, WorkerOptions, current_worker
from jobq.checks import (
    LONGEST,
    check_bool,
    check_callable,
    check_id,
    check_integer,
    check_logger,
    check_name,
    check_optional_seconds,
    check_seconds,
    check_serde,
    check_storage,
    default_label,
)
from jobq.errors import ConfigError, QueueClosedError
from jobq.events import QUEUE_EVENTS, Emitter, L, Listener
from jobq.job import (
    CancelResult,
    Counts,
    EnqueueItem,
    EnqueueResult,
    Job,
    JobStatus,
    RetryResult,
    State,
    UpdateResultTTLResult,
)
from jobq.retry import ExponentialBackoff, RetryPolicy
from jobq.serde import Serde, serde_for
from jobq.storage.contract import Storage

P = TypeVar("P")
R = TypeVar("R")

_MOST_SLOTS = 100_000
_LARGEST_PAYLOAD = 2**30
_EXTRA = 0.95
"""Seconds after stop's timeout within which everything must be over; listeners of ``stopped`` may take longer."""


class Queue(Generic[P, R]):
    """A queue of jobs whose payloads are ``P`` and whose results are ``R``.

    Args:
        storage: where the jobs are kept; one storage object serves many queues.
        name: which queue of the storage; ``"default"`` if None. Letters, digits, ``_``, ``.``, ``-``.
        worker_id: a label for people; it need not be unique. By default host and process.
        concurrency: how many handlers may run here at the same time.
        max_attempts: how often a job is run before it counts as failed, the first run included.
        block_timeout: the longest an idle worker sleeps before it looks again by itself, in seconds; a minute at least
            where a storage misses nothing and nothing is left to do.
        visibility_timeout: how long a worker may be silent before its jobs go to others, in seconds. Leases are
            renewed every third of it, however long a handler runs.
        job_timeout: the longest one attempt may take, in seconds; None means no limit.
        result_ttl: how long results and failures stay readable, in seconds; 0 frees the id at once.
        retry: how long to wait after a failed attempt: ``(attempt, error) -> seconds``.
        payload_serde: how payloads become bytes; by default JSON with the type ``P``.
        result_serde: the same for results.
        after_execution: called with an `ExecutionContext` after a success or the last failure, before it is stored.
        max_payload: the most bytes that an encoded payload or result may have.
        loop_stall_limit: after how many seconds a blocked event loop loses its jobs; by default the larger of twice
            ``visibility_timeout`` and 60.
        logger: ``jobq`` by default.

    Raises:
        ConfigError: an option is out of range; the message names it.

    Example:
        >>> import asyncio
        >>> from jobq import Job, MemoryStorage, Queue
        >>> async def main():
        ...     queue = Queue[int, int](MemoryStorage())
        ...     @queue.execute
        ...     async def double(job: Job[int]) -> int:
        ...         return 2 * job.payload
        ...     async with queue:
        ...         return await queue.enqueue_and_wait("job-1", 21)
        >>> asyncio.run(main())
        42
    """

    def __init__(
        self,
        storage: Storage,
        *,
        name: str | None = None,
        worker_id: str | None = None,
        concurrency: int = 1,
        max_attempts: int = 3,
        block_timeout: float | timedelta = 5.0,
        visibility_timeout: float | timedelta = 30.0,
        job_timeout: float | timedelta | None = None,
        result_ttl: float | timedelta = 3600.0,
        retry: RetryPolicy | None = None,
        payload_serde: Serde[P] | None = None,
        result_serde: Serde[R] | None = None,
        after_execution: Hook[P, R] | None = None,
        max_payload: int = 16 * 2**20,
        loop_stall_limit: float | timedelta | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.name = check_name("name", "default" if name is None else name)
        self.worker_id = check_name("worker_id", default_label() if worker_id is None else worker_id)
        self._storage = check_storage(storage)
        self._namespace = storage.namespace(self.name)
        lease = check_seconds("visibility_timeout", visibility_timeout, zero=False)
        stall_limit = min(max(2 * lease, 60.0), LONGEST) if loop_stall_limit is None else loop_stall_limit
        self._worker_options = WorkerOptions(
            queue=self.name,
            worker_id=self.worker_id,
            concurrency=check_integer("concurrency", concurrency, least=1, most=_MOST_SLOTS),
            block_timeout=check_seconds("block_timeout", block_timeout, zero=False),
            lease=lease,
            job_timeout=check_optional_seconds("job_timeout", job_timeout, zero=False),
            loop_stall_limit=check_seconds("loop_stall_limit", stall_limit, zero=False),
        )
        self._producer_options = ProducerOptions(
            max_attempts=check_integer("max_attempts", max_attempts, least=1, most=MOST_ATTEMPTS),
            result_ttl=check_seconds("result_ttl", result_ttl),
            max_payload=check_integer("max_payload", max_payload, least=1, most=_LARGEST_PAYLOAD),
        )
        self._retry: RetryPolicy = check_callable("retry", retry, plain=True) or ExponentialBackoff(clock=storage.clock)
        self._after_execution = check_callable("after_execution", after_execution)
        self._explicit_serdes = check_serde("payload_serde", payload_serde), check_serde("result_serde", result_serde)
        self._logger = check_logger(logger)
        self._emitter = Emitter(QUEUE_EVENTS, self._logger)
        self._handler: Handler[P, R] | None = None
        self._home = Home(f"queue {self.name!r}")
        self._stopping: asyncio.Task[None] | None = None
        self._open: _Open[P, R] | None = None

    # Lifecycle.

    async def start(self) -> None:
        """Connect; consume if a handler is registered. Starting twice is harmless, and so is starting after a stop.

        Listeners of ``started`` are awaited before the first claim.

        Raises:
            StorageUnavailableError: the storage was not reachable within 5 s; try again later.
            StorageCorruptError: what is stored is damaged, or of a newer version.
            ConfigError: a type of this queue cannot be decoded by msgspec; pass a serde.
        """
        if self._emitter.calling and (self._stopping is not None or self._home.changing):
            if self._stopping is None and self._open is not None:
                return  # The start that waits for this listener has done it.
            raise QueueClosedError(f"queue {self.name!r} is being stopped and waits for this listener: start it later")
        async with self._home.turn(self._is_used, self._forget):
            if self._stopping is not None:
                await asyncio.wait([self._stopping])
            if self._open is not None:
                return
            serdes = self._serdes(self._handler)
            await self._storage.open()
            try:
                self._open = opened = await self._connect(*serdes)
            except GeneratorExit:  # Its loop has ended in here: nothing may be awaited, and the next start forgets it.
                raise
            except BaseException:
                await self._storage.close()
                raise
            try:
                await self._emitter.emit_and_wait("started")
                if self._handler is not None and self._open is opened and opened.worker is None:
                    self._consume(opened, self._handler)
            except GeneratorExit:
                raise
            except BaseException:
                if self._stopping is not None or self._open is opened:
                    # If this is cancelled again, it goes on in the background.
                    await asyncio.wait([self._stopping or self._begin_to_stop(opened, 0.0)])
                raise

    async def stop(self, timeout: float | timedelta | None = None) -> None:
        """Stop claiming, let running handlers finish, then cancel them and give their jobs back; disconnect.

        It returns within ``timeout`` and one second, whatever handlers do: what does not end is left to its lease.
        Stopping twice is harmless. Awaited inside a handler or a listener, or a task that one has made, it begins the
        stop and returns at once.
        Cancelled, the stop goes on in the background.

        Args:
            timeout: seconds for running handlers to finish; ``visibility_timeout`` if None; 0 cancels at once.
        """
        seconds = check_optional_seconds("timeout", timeout)
        calling = self._emitter.calling  # What waits for a listener must not be waited for by it.
        if not calling and (self._open is None or not self._home.here):
            async with self._home.turn(self._is_used, self._forget):  # A start that is under way ends first.
                pass
        opened = self._open
        if opened is None:
            if self._stopping is not None and not calling:
                await asyncio.wait([self._stopping])
            return
        self._home.check()
        wait = self._worker_options.lease if seconds is None else seconds
        stopping = self._stopping or self._begin_to_stop(opened, wait)
        inside = current_worker.get()
        handler_of = None if inside is None else inside()
        if (handler_of is None or handler_of is not opened.worker) and not calling:
            await asyncio.shield(stopping)

    async def __aenter__(self) -> Queue[P, R]:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def run(self, *, until_empty: bool = False) -> None:
        """Start, serve until SIGINT or SIGTERM, stop: the body of a worker program.

        A signal that comes while it starts ends the start. A second one cancels running handlers at once; jobs that do
        not end are left to their leases.

        Args:
            until_empty: also stop once nothing is left to do, now or later, here or at another worker.

        Raises:
            ConfigError: no handler is registered.
        """
        if self._handler is None:
            raise ConfigError("run: there is no handler; register one with @queue.execute first")
        with interruptions(self._hurry) as asked:
            try:
                await unless(asked, self.start())
                if self._open is not None:
                    await any_of([asked, *self._open.ends(until_empty=until_empty)])
                await self.stop()
            finally:
                if self._open is not None:
                    await self.stop(0)

    @overload
    def execute(
        self, handler: Callable[[Job[P]], Coroutine[Any, Any, R]]
    ) -> Callable[[Job[P]], Coroutine[Any, Any, R]]: ...
    @overload
    def execute(self, handler: Callable[[Job[P]], R]) -> Callable[[Job[P]], R]: ...
    def execute(self, handler: Any) -> Any:
        """Register the handler, before or after `start`; also a decorator. It is called with a `Job`.

        ``async def`` handlers run on the event loop; plain functions run in threads, as many as ``concurrency``.

        Raises:
            ConfigError: it is not callable with one argument, is a generator, or there is one already.
        """
        check_handler(handler)
        if self._handler is not None:
            raise ConfigError("execute: this queue has a handler already; use another queue name for another handler")
        opened = self._open
        # A start that still waits for its listeners consumes when they have ended.
        if opened is not None and opened.worker is None and not self._home.changing:
            self._consume(opened, handler)
        self._handler = handler
        return handler

    # Jobs.

    async def enqueue(
        self,
        id: str,
        payload: P,
        *,
        max_attempts: int | None = None,
        result_ttl: float | timedelta | None = None,
        delay: float | timedelta | None = None,
        priority: int = 0,
    ) -> EnqueueResult[R]:
        """Hand over a job under an id of your own. Once this returns, the job survives what its storage survives.

        Args:
            id: text of 1 to 1,024 bytes of UTF-8 without NUL; the job's identity until it expires.
            payload: what the handler gets; it must come back from the serde equal.
            max_attempts: instead of the queue's.
            result_ttl: instead of the queue's, in seconds.
            delay: seconds until it may start; None or 0 means now.
            priority: −1000 to 1000, higher first; equals run in the order in which they became ready.

        Returns:
            ``"completed"`` with the cached result, ``"duplicate"`` with the state of the job that holds the id, or
            ``"queued"``.

        Raises:
            ConfigError, SerializationError, PayloadTooLargeError: refused; nothing was stored.
            QueueClosedError: the queue is not started.
            StorageUnavailableError: the outcome is unknown; call again with the same id.

        Cancellation: the job may or may not have been stored; enqueue it again to know.
        """
        producer = self._require()
        job = producer.new_job(
            id, payload, max_attempts=max_attempts, result_ttl=result_ttl, delay=delay, priority=priority
        )
        return producer.enqueued(job, await producer.add(job))

    async def enqueue_many(self, items: Sequence[EnqueueItem[P] | tuple[str, P]]) -> list[EnqueueResult[R]]:
        """Hand over many jobs; each is answered as by `enqueue`, in the order given.

        All are checked before any is sent. Not atomic as a whole; of a repeated id the first wins.

        Raises:
            ConfigError, SerializationError, PayloadTooLargeError: an item was refused; nothing was stored. If it is a
                cached result that cannot be decoded (code ``DESERIALIZATION``), all other items were.
            StorageError: some may have been stored; call again with the same items.
        """
        return await self._require().enqueue_many(items)

    async def enqueue_and_wait(
        self,
        id: str,
        payload: P,
        *,
        timeout: float | timedelta | None = 30.0,
        max_attempts: int | None = None,
        result_ttl: float | timedelta | None = None,
        delay: float | timedelta | None = None,
        priority: int = 0,
    ) -> R:
        """Return the job's result: of the run in flight, from the cache, or by starting it.

        Args:
            timeout: seconds to wait; 0 takes one look, None sets no limit. The rest is as for `enqueue`.

        Raises:
            JobTimeoutError: it did not end in time; the job goes on.
            JobFailedError: it failed, now or earlier; ``MaxRetriesError`` where its attempts were used up.
            JobCancelledError: it was cancelled.
            JobNotFoundError: the run is gone; ``ResultExpiredError`` where it ended unseen.
            QueueClosedError: the queue was stopped meanwhile.

        Cancellation: the job goes on; only the waiting ends.
        """
        producer, seconds = self._require(), check_optional_seconds("timeout", timeout)
        job = producer.new_job(
            id,
            payload,
            max_attempts=max_attempts,
            result_ttl=result_ttl,
            delay=delay,
            priority=priority,
            replied=seconds != 0.0,
        )
        waiter = producer.ask(job, seconds)
        try:
            return producer.result(await waiter.future)
        finally:
            producer.forget(waiter)

    async def wait(self, id: str, *, timeout: float | timedelta | None = 30.0) -> R:
        """Return the result of a job that somebody else enqueued. It raises what `enqueue_and_wait` raises.

        Raises:
            JobNotFoundError: no job holds the id.
        """
        producer = self._require()
        return await producer.wait(check_id(id), check_optional_seconds("timeout", timeout))

    async def cancel(self, id: str, *, running: bool = False) -> CancelResult:
        """Cancel a job that waits; with ``running`` ask a running one to stop. One atomic step.

        A job answered ``"cancelled"`` is held by no worker and will not start again. ``"cancelling"``: its handler is
        cancelled and its signal aborted, within a third of ``visibility_timeout``; it ends as cancelled, and a result
        that it still returns is dropped.

        Returns:
            ``"not_found"``, ``"completed"``, ``"failed"``: too late. ``"processing"``: it runs, and ``running`` was not
            given. ``"cancelled"`` or ``"cancelling"``.
        """
        check_bool("running", running)
        match await self._require().cancel(check_id(id), running):
            case State.COMPLETED:
                return CancelResult("completed")
            case State.FAILED:
                return CancelResult("failed")
            case State.PROCESSING:
                return CancelResult("cancelling" if running else "processing")
            case State.QUEUED | State.FAILING:
                self._emitter.emit("cancelled", id)
                return CancelResult("cancelled")
            case _:
                return CancelResult("not_found")

    async def get_result(self, id: str) -> R | None:
        """Return a completed job's result; None if it is not completed, or if its result is None."""
        producer = self._require()
        snapshot = await producer.get(check_id(id))
        if snapshot is None or snapshot.state is not State.COMPLETED:
            return None
        return producer.decode(snapshot)

    async def get_status(self, id: str) -> JobStatus[R] | None:
        """Return one consistent look at a job, or None if no job holds the id."""
        producer = self._require()
        snapshot = await producer.get(check_id(id))
        if snapshot is None:
            return None
        return JobStatus(
            snapshot.id,
            snapshot.state,
            snapshot.created_at,
            snapshot.attempts,
            snapshot.max_attempts,
            producer.decode(snapshot) if snapshot.state is State.COMPLETED else None,
            None if snapshot.error is None else decode_error(snapshot.error),
            snapshot.generation,
            snapshot.run_at,
            snapshot.started_at,
            snapshot.finished_at,
            snapshot.expires_at,
            snapshot.worker_id,
        )

    async def update_result_ttl(self, id: str, ttl: float | timedelta) -> UpdateResultTTLResult:
        """Let a completed or failed job stay readable for ``ttl`` seconds from now; 0 ends it at once."""
        producer = self._require()
        state = await producer.retain(check_id(id), check_seconds("ttl", ttl))
        if state is None:
            return UpdateResultTTLResult("not_found")
        return UpdateResultTTLResult("updated" if state.terminal else "not_terminal")

    async def retry(self, id: str) -> RetryResult:
        """Start a failed job anew: queued, attempts from zero, ``created_at`` kept."""
        state = await self._require().revive(check_id(id))
        if state is None:
            return RetryResult("not_found")
        return RetryResult("queued" if state is State.FAILED else "not_failed")

    async def counts(self) -> Counts:
        """Return how many jobs are in each state; on large queues this may be slow."""
        self._require()
        found = await self._namespace.counts()
        return {state: found.get(state, 0) for state in State if state is not State.CANCELLED}

    # Events.

    @overload
    def on(self, event: str) -> Callable[[L], L]: ...
    @overload
    def on(self, event: str, listener: L) -> L: ...
    def on(self, event: str, listener: Listener | None = None) -> Any:
        """Call ``listener`` at each event; also a decorator, ``@queue.on("completed")``. It may be async.

        Events are emitted by the object whose own call made the transition: ``started()``, ``stopped()``,
        ``enqueued(id)``, ``completed(id, result)``, ``failed(id, error)``, ``failing(id, error, attempt)``,
        ``requeued(id)``, ``cancelled(id)``, ``lease_lost(id)``, ``error(error)``. A listener that raises harms nothing.

        Raises:
            ConfigError: there is no such event, or the listener is not callable.
        """
        return self._emitter.subscribe(event, listener)

    def off(self, event: str, listener: Listener) -> None:
        """Remove a listener; removing one that is not there is harmless."""
        self._emitter.off(event, listener)

    def __repr__(self) -> str:
        return f"<Queue {self.name!r} on {self._storage!r}>"

    def __del__(self) -> None:
        opened = getattr(self, "_open", None)
        if opened is not None and opened.pid == Process.id:
            warnings.warn(f"queue {self.name!r} was never stopped", ResourceWarning, stacklevel=2)

    # Within.

    def _require(self) -> Producer[P, R]:
        opened = self._open
        if opened is None:
            raise QueueClosedError(
                f"queue {self.name!r} is not started, or was stopped: await queue.start(), or use `async with queue:`"
            )
        self._home.check()
        return opened.producer

    def _serdes(self, handler: Handler[P, R] | None) -> tuple[Serde[P], Serde[R]]:
        payload_type, result_type = types_of(self, Queue, handler)
        payload_serde, result_serde = self._explicit_serdes
        payload_serde = payload_serde or serde_for(payload_type, root="payload")
        return payload_serde, result_serde or serde_for(result_type, root="result")

    async def _connect(self, payload_serde: Serde[P], result_serde: Serde[R]) -> _Open[P, R]:
        clock = self._storage.clock
        timeouts, nonces = Timeouts(), Nonces(clock)
        waiters = Waiters(self._namespace, clock, timeouts)
        await waiters.open()
        producer = Producer(
            self._namespace,
            self._producer_options,
            payload_serde=payload_serde,
            result_serde=result_serde,
            waiters=waiters,
            nonces=nonces,
            emitter=self._emitter,
            clock=clock,
        )
        return _Open(producer, waiters, timeouts, nonces)

    def _consume(self, opened: _Open[P, R], handler: Handler[P, R]) -> None:
        payload_serde, result_serde = self._serdes(handler)
        opened.producer.use(payload_serde, result_serde)  # A handler that came late may have brought types along.
        executor = Executor(
            handler,
            payload_serde=payload_serde,
            result_serde=result_serde,
            retry=self._retry,
            after_execution=self._after_execution,
            max_payload=self._producer_options.max_payload,
            worker_id=self.worker_id,
            clock=self._storage.clock,
            report=partial(self._emitter.emit, "error"),
        )
        worker = Worker(
            self._storage,
            executor,
            self._worker_options,
            emitter=self._emitter,
            timeouts=opened.timeouts,
            nonces=opened.nonces,
            logger=self._logger,
        )
        worker.start()
        opened.worker, opened.waiters.cancel_asked = worker, worker.ask_to_cancel

    def _begin_to_stop(self, opened: _Open[P, R], timeout: float) -> asyncio.Task[None]:
        self._stopping = stopping = asyncio.get_running_loop().create_task(self._close(opened, timeout))
        stopping.add_done_callback(self._stopped)
        return stopping

    async def _close(self, opened: _Open[P, R], timeout: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout + _EXTRA
        if opened.worker is not None:
            await opened.worker.stop(timeout)
        self._open = None
        await opened.waiters.close()
        await opened.producer.close(max(0.05, deadline - loop.time()))
        opened.timeouts.close()
        await self._emitter.drain(max(0.05, deadline - loop.time()))
        await self._emitter.emit_and_wait("stopped")
        await self._storage.close()
        opened.closed.set()

    def _stopped(self, task: asyncio.Task[None]) -> None:
        self._stopping = None

    def _hurry(self) -> None:
        if self._open is not None and self._open.worker is not None:
            self._open.worker.hurry()

    def _is_used(self) -> bool:
        return self._open is not None or self._stopping is not None

    def _forget(self) -> None:
        """Forget what a closed loop left behind."""
        self._open = self._stopping = None
        self._emitter.forget()


class _Open(Generic[P, R]):
    """What exists between start and stop."""

    def __init__(self, producer: Producer[P, R], waiters: Waiters, timeouts: Timeouts, nonces: Nonces) -> None:
        self.producer: Producer[P, R] = producer
        self.waiters = waiters
        self.timeouts = timeouts
        self.nonces = nonces
        self.worker: Worker | None = None
        self.closed = asyncio.Event()
        self.pid = Process.id

    def ends(self, *, until_empty: bool) -> list[asyncio.Event]:
        """Return what says that nothing is done here any more."""
        if self.worker is None:
            return [self.closed]
        if until_empty:
            self.worker.tell_when_empty()
        return [self.closed, self.worker.deserted, *([self.worker.drained] if until_empty else [])]
