"""Producer: hands jobs to the storage, and waits for what becomes of them.

Every request is checked here before anything is sent; adds of concurrent callers travel together (`_batch`); whoever
waits listens before the job is sent (`_watch`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import msgspec

from jobq._batch import Batcher, resend
from jobq._failure import failure_of
from jobq._nonces import Nonces
from jobq._watch import Waiter, Waiters
from jobq.checks import check_id, check_integer, check_seconds
from jobq.clock import Clock
from jobq.errors import (
    ConfigError,
    JobCancelledError,
    JobNotFoundError,
    PayloadTooLargeError,
    QueueClosedError,
    SerializationError,
)
from jobq.events import Emitter
from jobq.job import EnqueueItem, EnqueueResult, NewJob, Snapshot, State
from jobq.serde import Serde
from jobq.storage.contract import Namespace, Ref

P = TypeVar("P")
R = TypeVar("R")

MOST_ATTEMPTS = 1_000_000
_PRIORITY = 1000
_MOST_ADDED = 1024
_QUEUED: EnqueueResult[Any] = EnqueueResult("queued")  # It is always the same, and it cannot be changed.


class ProducerOptions(msgspec.Struct, frozen=True):
    """What a producer needs to know of its queue's options."""

    max_attempts: int
    result_ttl: float
    max_payload: int


class Producer(Generic[P, R]):
    """Adds, reads, cancels and waits for jobs of one queue."""

    def __init__(
        self,
        namespace: Namespace,
        options: ProducerOptions,
        *,
        payload_serde: Serde[P],
        result_serde: Serde[R],
        waiters: Waiters,
        nonces: Nonces,
        emitter: Emitter,
        clock: Clock,
    ) -> None:
        self._namespace = namespace
        self._options = options
        self._payload_serde = payload_serde
        self._result_serde = result_serde
        self._waiters = waiters
        self._nonces = nonces
        self._emitter = emitter
        self._clock = clock
        self._adder: Batcher[NewJob, Snapshot | None] = Batcher(
            namespace.add, clock=clock, size=lambda job: len(job.payload), most=_MOST_ADDED
        )
        self._reader: Batcher[Ref, Snapshot | None] = Batcher(namespace.get, clock=clock)

    def use(self, payload_serde: Serde[P], result_serde: Serde[R]) -> None:
        """Encode and decode with these from now on."""
        self._payload_serde, self._result_serde = payload_serde, result_serde

    def new_job(
        self,
        id: str,
        payload: P,
        *,
        max_attempts: int | None = None,
        result_ttl: Any = None,
        delay: Any = None,
        priority: int = 0,
        replied: bool = False,
    ) -> NewJob:
        """Check and encode one job; nothing is sent."""
        id = check_id(id)
        options = self._options
        if max_attempts is None:
            max_attempts = options.max_attempts
        else:
            check_integer("max_attempts", max_attempts, least=1, most=MOST_ATTEMPTS)
        ttl = options.result_ttl if result_ttl is None else check_seconds("result_ttl", result_ttl)
        wait = 0.0 if delay is None else check_seconds("delay", delay)
        if priority != 0 or type(priority) is not int:
            check_integer("priority", priority, least=-_PRIORITY, most=_PRIORITY)
        reply_to = self._waiters.address if replied else None
        data = self._encode(id, payload)
        return NewJob(id, self._nonces.next(), data, max_attempts, ttl, wait, priority, reply_to)

    # On the two hottest ways in, callers wait for a future: a coroutine in between would cost each of them something.

    def add(self, job: NewJob) -> asyncio.Future[Snapshot | None]:
        return self._adder.submit(job)

    def enqueued(self, job: NewJob, held: Snapshot | None) -> EnqueueResult[R]:
        """Say what an add's answer means."""
        if held is None:
            self._emitter.emit("enqueued", job.id)
            return _QUEUED
        if held.state is State.COMPLETED:
            return EnqueueResult("completed", None, self.decode(held))
        return EnqueueResult("duplicate", held.state)

    async def enqueue_many(self, items: Sequence[EnqueueItem[P] | tuple[str, P]]) -> list[EnqueueResult[R]]:
        jobs = [self._new_job_of(item) for item in items]
        if not jobs:
            return []
        answers = _Answers(len(jobs))
        for position, job in enumerate(jobs):
            self._adder.put(job, answers.receive, position, answers.complete)
        await answers.complete
        results: list[EnqueueResult[R]] = []
        failed: Exception | None = None
        for job, answer in zip(jobs, answers.received, strict=True):
            if isinstance(answer, Exception):
                failed = failed or answer
            else:
                try:
                    results.append(self.enqueued(job, answer))
                except SerializationError as error:  # Of a cached result; the other jobs are told of all the same.
                    failed = failed or error
        if failed is not None:
            raise failed
        return results

    def ask(self, job: NewJob, timeout: float | None) -> Waiter:
        """Add a job and wait for its end. The waiter must be forgotten, whatever becomes of it."""
        waiter = self._waiters.register(job.id, job.nonce, timeout)
        # One future for both the add and the end: the waiter's. The add's answer only binds it.
        self._adder.put(job, self._added, waiter, waiter.future)
        return waiter

    async def wait(self, id: str, timeout: float | None) -> R:
        waiter = self._waiters.register(id, None, timeout)
        try:
            # Who only looks need not be told later.
            address = None if timeout == 0.0 else self._waiters.address
            self._reader.put(Ref(id, None, address), self._found, waiter, waiter.future)
            return self.result(await waiter.future)
        finally:
            self._waiters.forget(waiter)

    def forget(self, waiter: Waiter) -> None:
        self._waiters.forget(waiter)

    def result(self, snapshot: Snapshot) -> R:
        """Return the result of a job that has ended, or raise what became of it instead."""
        if snapshot.state is State.COMPLETED:
            return self.decode(snapshot)
        if snapshot.state is State.FAILED:
            raise failure_of(snapshot)
        raise JobCancelledError(snapshot.id, f"job {snapshot.id!r} was cancelled; enqueue it again to run it")

    async def get(self, id: str) -> Snapshot | None:
        return await self._reader.submit(Ref(id))

    async def cancel(self, id: str, running: bool) -> State | None:
        nonce = self._nonces.next()
        return await resend(self._clock, lambda: self._namespace.cancel(id, running, nonce))

    async def revive(self, id: str) -> State | None:
        nonce = self._nonces.next()
        return await resend(self._clock, lambda: self._namespace.revive(id, nonce))

    async def retain(self, id: str, ttl: float) -> State | None:
        nonce = self._nonces.next()
        return await resend(self._clock, lambda: self._namespace.retain(id, ttl, nonce))

    def decode(self, snapshot: Snapshot) -> R:
        """Decode a completed job's result.

        Raises:
            SerializationError: it was written by a serde that does not fit this queue's.
        """
        try:
            value: R = self._result_serde.deserialize(snapshot.result or b"")
        except (SerializationError, MemoryError):
            raise
        except Exception as error:
            raise SerializationError(
                f"job {snapshot.id!r}: the result serde raised {type(error).__name__}; see the error that caused this "
                "one, and check that producer and worker use the same serde and type",
                code="DESERIALIZATION",
            ) from error
        return value

    async def close(self, within: float) -> None:
        """Let every request that was submitted be answered, for so many seconds; then give up the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._adder.drain()
                await self._reader.drain()
        error = QueueClosedError("the queue was stopped before the storage answered; the outcome is unknown")
        await self._adder.close(error)
        await self._reader.close(error)

    def _new_job_of(self, item: EnqueueItem[P] | tuple[str, P]) -> NewJob:
        if isinstance(item, EnqueueItem):
            return self.new_job(
                item.id,
                item.payload,
                max_attempts=item.max_attempts,
                result_ttl=item.result_ttl,
                delay=item.delay,
                priority=item.priority,
            )
        if isinstance(item, tuple) and len(item) == 2:
            return self.new_job(item[0], item[1])
        raise ConfigError(f"items: each must be an EnqueueItem or an (id, payload) pair, not {type(item).__name__}")

    def _encode(self, id: str, payload: P) -> bytes:
        try:
            data = self._payload_serde.serialize(payload)
        except SerializationError as error:
            raise SerializationError(f"job {id!r}: {error}", code=error.code) from error
        except Exception as error:
            raise SerializationError(
                f"job {id!r}: the payload serde raised {type(error).__name__}; see the error that caused this one"
            ) from error
        if type(data) is not bytes:
            raise SerializationError(
                f"job {id!r}: the payload serde's serialize must return bytes, not {type(data).__name__}"
            )
        if len(data) > self._options.max_payload:
            raise PayloadTooLargeError(
                f"job {id!r}: its payload has {len(data)} bytes, and max_payload is {self._options.max_payload}; "
                "store it elsewhere and send where, or raise max_payload"
            )
        return data

    def _added(self, waiter: Waiter, answer: Snapshot | Exception | None) -> None:
        if answer is None:
            self._emitter.emit("enqueued", waiter.id)
            self._waiters.bind(waiter)
        else:
            self._found(waiter, answer)

    def _found(self, waiter: Waiter, answer: Snapshot | Exception | None) -> None:
        if answer is None:
            id = waiter.id
            waiter.fail(JobNotFoundError(id, f"there is no job {id!r}, or its result has expired; enqueue it first"))
        elif isinstance(answer, Exception):
            waiter.fail(answer)
        elif answer.state.terminal:
            waiter.answer(answer)
        else:
            waiter.generation = answer.generation
            self._waiters.bind(waiter)


class _Answers:
    """The answers to many adds, for which one future is enough."""

    def __init__(self, count: int) -> None:
        self.received: list[Snapshot | Exception | None] = [None] * count
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._missing = count

    def receive(self, position: int, answer: Snapshot | Exception | None) -> None:
        self.received[position] = answer
        self._missing -= 1
        if self._missing == 0 and not self.complete.done():
            self.complete.set_result(None)
