"""Announcing: which event tells of which transition that a worker has made."""

from __future__ import annotations

from jobq._executor import Outcome
from jobq._failure import decode_error, failure
from jobq.events import Emitter
from jobq.job import State
from jobq.storage.contract import WORKER_LOST, Rescued


def tell_settled(emitter: Emitter, id: str, outcome: Outcome, attempts: int) -> None:
    """Tell of an outcome that was stored."""
    match outcome.settlement.state:
        case State.COMPLETED:
            emitter.emit("completed", id, outcome.value)
        case State.FAILING:
            emitter.emit("failing", id, outcome.exception, attempts)
        case State.FAILED:
            emitter.emit("failed", id, outcome.exception)
        case State.QUEUED:
            emitter.emit("requeued", id)


def tell_rescued(emitter: Emitter, rescued: Rescued) -> None:
    """Tell of a job that ended as its lapsed lease was found."""
    if rescued.state is State.FAILED:
        error = failure(rescued.id, decode_error(WORKER_LOST), rescued.attempts, rescued.attempts)
        emitter.emit("failed", rescued.id, error)
    elif rescued.state is State.CANCELLED:
        emitter.emit("cancelled", rescued.id)
