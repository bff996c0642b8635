"""Executor: one claim and the handler become one Outcome.

Whatever happens while running, a value, any exception, a cancel, bytes that cannot be decoded, ends as one value that
says which state follows. The worker makes one settle from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Any, Generic, Literal, TypeVar

import msgspec

from jobq._failure import code_of, describe, encode_error, failure
from jobq._process import Process
from jobq._running import Running
from jobq._threads import NoThreadError, Threads
from jobq.checks import check_seconds
from jobq.clock import Clock
from jobq.errors import ConfigError, JobFailedError, SerializationError
from jobq.job import Claim, ExecutionContext, GiveUp, Job, RetryLater, Settlement, State
from jobq.retry import ExponentialBackoff, RetryPolicy
from jobq.serde import Serde

P = TypeVar("P")
R = TypeVar("R")

Handler = Callable[[Job[P]], Awaitable[R]] | Callable[[Job[P]], R]
Hook = Callable[[ExecutionContext[P, R]], Awaitable[None] | None]


class Outcome(msgspec.Struct, frozen=True):
    """How a claim ends, and what listeners are told about it."""

    settlement: Settlement
    value: Any = None
    """With COMPLETED: what the handler returned."""
    exception: BaseException | None = None
    """With FAILING: what it raised. With FAILED: the `JobFailedError`, with that as its cause."""


_PAUSE = 0.2
"""Seconds; less than a stop waits for what it has told to end."""
_DROPPED = Outcome(Settlement("", "", State.QUEUED))
"""Of a handler that ended after its claim was decided about."""


class Executor(Generic[P, R]):
    """Runs handlers and judges what they do."""

    def __init__(
        self,
        handler: Handler[P, R],
        *,
        payload_serde: Serde[P],
        result_serde: Serde[R],
        retry: RetryPolicy,
        after_execution: Hook[P, R] | None,
        max_payload: int,
        worker_id: str,
        clock: Clock,
        report: Callable[[BaseException], None],
    ) -> None:
        self._handler: Callable[[Job[P]], Any] = handler
        self.threaded = not is_coroutine_function(handler)
        """Whether the handler is a plain function, which cannot be cancelled."""
        self._payload_serde = payload_serde
        self._result_serde = result_serde
        self._retry = retry
        self._after_execution = after_execution
        self._max_payload = max_payload
        self._worker_id = worker_id
        self._clock = clock
        self._report = report
        self._threads = Threads("jobq-handler")

    def close(self) -> None:
        self._threads.close()

    async def execute(self, running: Running) -> Outcome:
        """Run one attempt. It raises nothing, whatever the handler does."""
        claim = running.claim
        try:
            payload = self._payload_serde.deserialize(claim.payload)
        except BaseException as error:  # As of a handler: a serde of the user's may raise SystemExit, or a panic.
            return await self._failed(running, _coded(error, "DESERIALIZATION"))
        running.job = job = Job(claim, payload, running.signal)
        if self._after_execution is not None:
            running.started_at = self._clock.now()
        try:
            if self.threaded:
                value, raised = await self._threads.submit(self._handler, job)
                if raised is not None:
                    raise raised
            else:
                process = Process.id
                try:
                    value = await self._handler(job)
                finally:
                    Process.end_child_of(process)
        except BaseException as error:
            if _closed(running, error):
                raise
            _forget_cancellation()
            return _DROPPED if await _judged(running) else await self._judge(running, error)
        if await _judged(running):
            return _DROPPED
        if running.signal.reason == "job_timeout":
            return await self.timed_out(running)
        try:
            result = self._encode(value)
        except BaseException as error:
            return await self._failed(running, _coded(error, "SERIALIZATION"))
        if self._after_execution is not None:
            return await self._reviewed(running, job, value, result)
        return _completed(claim, value, result, claim.result_ttl)

    async def timed_out(self, running: Running) -> Outcome:
        """Judge a job whose time is over; if the hook still reviews what its handler did, that stands."""
        standing: Outcome | None = running.standing
        if standing is not None:
            return standing
        error = TimeoutError(f"job {running.claim.id!r} ran for longer than job_timeout")
        return await self._judge(running, _coded(error, "JOB_TIMEOUT"), timed_out=True)

    async def _judge(self, running: Running, error: BaseException, *, timed_out: bool = False) -> Outcome:
        claim = running.claim
        match running.reason:
            case "stopping" | "cancelled" | "lease_lost":
                # Whatever it raises in cleaning up: it was asked to end. Where a cancel was asked for, the storage
                # makes an end of the job instead of giving it back.
                return _given_back(claim)
            case "job_timeout" if not timed_out:
                return await self.timed_out(running)
        match error:
            case NoThreadError():  # It did not begin to run; given back at once, it would come back at once.
                if error.first:
                    self._report(error)
                await asyncio.sleep(_PAUSE)
                return _given_back(claim)
            case GiveUp():
                return await self._failed(running, _coded(error, "GIVE_UP"))
            case _ if claim.attempts >= claim.max_attempts:
                return await self._failed(running, error)
            case _:
                return self._failing(running, error)

    def _failing(self, running: Running, error: BaseException) -> Outcome:
        claim = running.claim
        return Outcome(
            Settlement(
                claim.id,
                claim.token,
                State.FAILING,
                error=encode_error(describe(error)),
                delay=self._delay(claim.attempts, error),
            ),
            exception=error,
        )

    def _delay(self, attempt: int, error: BaseException) -> float:
        try:
            if isinstance(error, RetryLater) and error.delay is not None:
                return check_seconds("RetryLater(delay)", error.delay)
            return check_seconds("the retry policy's answer", self._retry(attempt, error))
        except BaseException as refused:  # Whatever a policy of the user's raises, the job is retried.
            self._report(refused)
            return ExponentialBackoff(clock=self._clock)(attempt, error)

    async def _reviewed(self, running: Running, job: Job[P], value: Any, result: bytes) -> Outcome:
        """Let the hook change, or refuse, what a handler returned."""
        claim, context = running.claim, self._context(running, job, "completed", value, None)
        standing = _completed(claim, value, result, claim.result_ttl)
        if not await self._hook(running, context, standing):
            return standing
        ttl = self._checked_ttl(context, claim.result_ttl)
        failed = self._checked_error(context, None)
        if failed is not None:
            return self._final(running, failed, ttl)
        value, result = self._replaced(context, value, result)  # It may be changed in place.
        return _completed(claim, value, result, ttl)

    async def _failed(self, running: Running, error: BaseException) -> Outcome:
        job, ttl = running.job, running.claim.result_ttl
        if self._after_execution is not None and job is not None:
            context = self._context(running, job, "failed", None, error)
            if await self._hook(running, context, self._final(running, error, ttl)):
                ttl = self._checked_ttl(context, ttl)
                error = self._checked_error(context, error) or error
        return self._final(running, error, ttl)

    def _final(self, running: Running, error: BaseException, ttl: float) -> Outcome:
        claim = running.claim
        info = describe(error)
        told = _caused(failure(claim.id, info, claim.attempts, claim.max_attempts), error)
        settlement = Settlement(claim.id, claim.token, State.FAILED, error=encode_error(info), ttl=ttl)
        return Outcome(settlement, exception=told)

    def _encode(self, value: Any) -> bytes:
        if isinstance(value, CoroutineType):
            value.close()
            raise SerializationError("the handler returned a coroutine: define it with async def, or await it")
        data = self._result_serde.serialize(value)
        if not isinstance(data, bytes):
            raise SerializationError(f"result serde: serialize must return bytes, not {type(data).__name__}")
        if len(data) > self._max_payload:
            raise SerializationError(
                f"the result has {len(data)} bytes, and max_payload is {self._max_payload}: "
                "store it elsewhere and return where, or raise max_payload",
                code="RESULT_TOO_LARGE",
            )
        return data

    # The hook.

    def _context(
        self,
        running: Running,
        job: Job[P],
        status: Literal["completed", "failed"],
        result: Any,
        error: BaseException | None,
    ) -> ExecutionContext[P, R]:
        return ExecutionContext(
            job,
            status=status,
            result=result,
            error=error,
            times=(running.started_at, self._clock.now()),
            ttl=running.claim.result_ttl,
            worker_id=self._worker_id,
        )

    async def _hook(self, running: Running, context: ExecutionContext[P, R], standing: Outcome) -> bool:
        """Call the hook; False if it raised, and then what it changed does not count."""
        assert self._after_execution is not None
        running.reviewed = True
        if running.reason is None:
            running.standing = standing
        elif running.reason == "job_timeout":
            running.renew_until = math.inf  # The handler has ended, and the hook may take its time.
        try:
            answer = self._after_execution(context)
            if inspect.isawaitable(answer):
                await answer
        except BaseException as error:
            if _closed(running, error):
                raise
            _forget_cancellation()
            self._report(error)
            return False
        return True

    def _checked_ttl(self, context: ExecutionContext[P, R], ttl: float) -> float:
        try:
            return check_seconds("ttl", context.ttl)
        except ConfigError as error:
            self._report(error)
            return ttl

    def _checked_error(self, context: ExecutionContext[P, R], original: BaseException | None) -> BaseException | None:
        error: object = context.error
        if error is None or isinstance(error, BaseException):
            return context.error
        self._report(ConfigError(f"after_execution: error must be an exception, not {type(error).__name__}"))
        return original

    def _replaced(self, context: ExecutionContext[P, R], value: Any, result: bytes) -> tuple[Any, bytes]:
        try:
            return context.result, self._encode(context.result)
        except BaseException as error:
            self._report(error)
            return value, result


def is_coroutine_function(handler: object) -> bool:
    """Whether calling it gives a coroutine; also for objects whose ``__call__`` is one."""
    if inspect.iscoroutinefunction(handler):
        return True
    return not inspect.isroutine(handler) and inspect.iscoroutinefunction(getattr(type(handler), "__call__", None))


def check_handler(handler: object) -> None:
    """Refuse what cannot be called with one job."""
    if not callable(handler):
        raise ConfigError(f"execute: the handler must be callable, not {type(handler).__name__}")
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        raise ConfigError("execute: the handler is a generator; return the result instead of yielding it")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # Some builtins have no signature to look at.
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise ConfigError(f"execute: the handler must take one argument, the job: {error}") from None


async def _judged(running: Running) -> bool:
    """Whether the claim is decided about, also if its time is over and that is just being judged."""
    if running.judging is not None:
        await asyncio.wait([running.judging])
    return running.decided


def _completed(claim: Claim, value: Any, result: bytes, ttl: float) -> Outcome:
    return Outcome(Settlement(claim.id, claim.token, State.COMPLETED, result, ttl=ttl), value)


def _given_back(claim: Claim) -> Outcome:
    return Outcome(Settlement(claim.id, claim.token, State.QUEUED))


def _coded(error: BaseException, code: str) -> BaseException:
    """Give an error the code that its place calls for, unless it brings one of its own."""
    own = code_of(error)
    if own is None or own == SerializationError.code:
        with contextlib.suppress(Exception):  # An exception with slots cannot be told.
            vars(error)["code"] = code
    return error


def _caused(told: JobFailedError, cause: BaseException) -> JobFailedError:
    told.__cause__ = cause
    return told


def _closed(running: Running, error: BaseException) -> bool:
    """Whether Python closes this coroutine from outside, so that nothing may be awaited. A handler can raise it too."""
    if not isinstance(error, GeneratorExit):
        return False
    try:
        current = asyncio.current_task()
    except RuntimeError:
        return True
    return current is None or (running.task is not None and current is not running.task)


def _forget_cancellation() -> None:
    """Make this task usable again after a cancel was delivered to the handler in it."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
