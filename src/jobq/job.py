"""The words of a job: one small value type for each thing that crosses a seam.

A job is never one mutable object. What is handed to a storage is a `NewJob`; what it tells is a `Snapshot`; the right
to run is a `Claim`; what happened while running becomes a `Settlement`; what a handler sees is a `Job`; what a caller
is told is a `JobStatus`. Each is immutable except `ExecutionContext`, which exists to be changed by a hook.

Times: durations are seconds; instants are epoch seconds by the storage's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar

import msgspec

from jobq.errors import ErrorInfo
from jobq.signal import AbortSignal

P = TypeVar("P")
R = TypeVar("R")


class State(StrEnum):
    """Where a job is. When adding one, also extend the transition table in `jobq.storage.contract`."""

    QUEUED = "queued"
    PROCESSING = "processing"
    FAILING = "failing"
    """Queued again after a failed attempt."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """Absent for everyone; only a waiter bound to that generation, and a hint, ever see it."""

    def __init__(self, word: str) -> None:
        # Attributes and not properties, because they are asked for several times in the life of each job.
        self.terminal: bool = word in {"completed", "failed", "cancelled"}
        self.waiting: bool = word in {"queued", "failing"}
        """Not held by a worker and not ended: may be claimed when due."""


class NewJob(msgspec.Struct, frozen=True, gc=False):
    """A job to be stored."""

    id: str
    nonce: str
    """Names this request; if it is accepted, also the job's generation."""
    payload: bytes
    max_attempts: int
    result_ttl: float
    delay: float = 0.0
    priority: int = 0
    reply_to: str | None = None
    """A watch's address that wants to be told how this job ends."""


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """A stored job as it was at one instant."""

    id: str
    generation: str
    """Opaque; new with every accepted add and every revive."""
    state: State
    attempts: int
    max_attempts: int
    created_at: float
    run_at: float
    """When it became, or becomes, ready to run."""
    result_ttl: float
    priority: int = 0
    started_at: float | None = None
    """Start of the latest attempt."""
    finished_at: float | None = None
    expires_at: float | None = None
    """Set while terminal: from then on the job is absent."""
    result: bytes | None = None
    error: bytes | None = None
    """An encoded `ErrorInfo`, or the constant `contract.WORKER_LOST`."""
    worker_id: str | None = None
    """Label of the worker that holds it, or held it last."""
    cancel_asked: bool = False


class Claim(msgspec.Struct, frozen=True, gc=False):
    """The right to run one attempt of a job, and to settle it."""

    id: str
    token: str
    """``"<counter>-<random>"``; never reused, compared whole."""
    generation: str
    payload: bytes
    attempts: int
    """This attempt included: 1 on the first run."""
    max_attempts: int
    created_at: float
    result_ttl: float

    @property
    def fencing_token(self) -> int:
        """The token's counter: strictly increasing within a queue."""
        return int(self.token.partition("-")[0])


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """How one claim ends."""

    id: str
    token: str
    state: Literal[State.COMPLETED, State.FAILED, State.FAILING, State.QUEUED]
    """QUEUED gives the job back: the attempt is refunded and it keeps its place."""
    result: bytes | None = None
    """With COMPLETED."""
    error: bytes | None = None
    """With FAILED and FAILING: an encoded `ErrorInfo`."""
    ttl: float = 0.0
    """With COMPLETED and FAILED: how long the record stays readable."""
    delay: float = 0.0
    """With FAILING: time until the next attempt is due."""


class Job(Generic[P]):
    """What a handler is given: one attempt of one job."""

    __slots__ = ("_claim", "attempts", "created_at", "id", "max_attempts", "payload", "signal")

    def __init__(self, claim: Claim, payload: P, signal: AbortSignal) -> None:
        self.id = claim.id
        self.payload = payload
        self.attempts = claim.attempts
        """This attempt's number, 1 on the first run."""
        self.max_attempts = claim.max_attempts
        self.created_at = claim.created_at
        """When it was enqueued, in epoch seconds by the storage's clock."""
        self.signal = signal
        """Aborted when the handler should end: stop's deadline, job_timeout, a lost lease, a cancel."""
        self._claim = claim

    @property
    def fencing_token(self) -> int:
        """Strictly increasing per queue: hand it to outside systems, so that they can refuse a late writer."""
        return self._claim.fencing_token

    def __repr__(self) -> str:
        return f"<Job {self.id!r} attempt {self.attempts} of {self.max_attempts}>"


class EnqueueItem(msgspec.Struct, Generic[P], frozen=True):
    """One job for `Queue.enqueue_many`, with the same options as `Queue.enqueue`."""

    id: str
    payload: P
    max_attempts: int | None = None
    result_ttl: Any = None
    """Seconds or a timedelta; None means the queue's."""
    delay: Any = None
    """Seconds or a timedelta; None means now."""
    priority: int = 0


class EnqueueResult(msgspec.Struct, Generic[R], frozen=True):
    """What became of an enqueue."""

    status: Literal["queued", "duplicate", "completed"]
    existing_state: State | None = None
    """With ``"duplicate"``: the state of the job that holds the id."""
    result: R | None = None
    """With ``"completed"``: the cached result."""


class CancelResult(msgspec.Struct, frozen=True):
    """What a cancel found."""

    status: Literal["cancelled", "cancelling", "not_found", "processing", "completed", "failed"]


class UpdateResultTTLResult(msgspec.Struct, frozen=True):
    """What an update of a result's time to live found."""

    status: Literal["updated", "not_found", "not_terminal"]


class RetryResult(msgspec.Struct, frozen=True):
    """What a retry found."""

    status: Literal["queued", "not_found", "not_failed"]


class JobStatus(msgspec.Struct, Generic[R], frozen=True):
    """One consistent look at a job."""

    id: str
    state: State
    created_at: float
    attempts: int
    max_attempts: int
    result: R | None = None
    """Set once completed; None is also a result."""
    error: ErrorInfo | None = None
    """The last failed attempt: set while failing and once failed."""
    generation: str = ""
    run_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    worker_id: str | None = None


class ExecutionContext(Generic[P, R]):
    """What `after_execution` may look at, and change, before anything is stored.

    Changing ``ttl``, ``result`` or ``error`` changes what is stored.
    """

    __slots__ = (
        "attempts",
        "created_at",
        "duration",
        "error",
        "finished_at",
        "id",
        "max_attempts",
        "payload",
        "result",
        "started_at",
        "status",
        "ttl",
        "worker_id",
    )

    def __init__(
        self,
        job: Job[P],
        *,
        status: Literal["completed", "failed"],
        result: R | None,
        error: BaseException | None,
        times: tuple[float, float],
        ttl: float,
        worker_id: str,
    ) -> None:
        self.id = job.id
        self.payload = job.payload
        self.attempts = job.attempts
        self.max_attempts = job.max_attempts
        self.created_at = job.created_at
        self.status = status
        self.result = result
        self.error = error
        self.ttl = ttl
        self.worker_id = worker_id
        self.started_at, self.finished_at = times
        self.duration = max(0.0, self.finished_at - self.started_at)


class RetryLater(Exception):
    """Raise it in a handler to end this attempt and run again after ``delay`` seconds; it uses up an attempt."""

    def __init__(self, delay: float | None = None, reason: str = "the handler asked to run again later") -> None:
        super().__init__(reason)
        self.delay = delay
        """None leaves the delay to the retry policy."""


class GiveUp(Exception):
    """Raise it in a handler to fail the job at once, whatever attempts are left."""

    def __init__(self, reason: str = "the handler gave up") -> None:
        super().__init__(reason)


Counts = Mapping[State, int]
"""Jobs by state."""
