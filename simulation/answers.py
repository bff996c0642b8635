"""Answers: what callers are told, held against what the storage accepted in the meantime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobq import EnqueueResult, JobStatus, State
from simulation.ledger import Ledger, Run
from simulation.notes import Notes

_ENDS = {
    "JobCancelledError": State.CANCELLED,
    "JobFailedError": State.FAILED,
    "MaxRetriesError": State.FAILED,
}
"""How the run has ended that a waiter is told of by an error."""


class Answers:
    """The answers that callers get from one queue. ``begun`` is when their call began."""

    def __init__(self, ledger: Ledger, notes: Notes) -> None:
        self._ledger = ledger
        self._demand = notes.demand

    def enqueued(self, id: str, number: int, answer: EnqueueResult[Any]) -> None:
        """Queued is what was accepted, and nothing else."""
        accepted = self._ledger.accepted.get(number)
        self._demand((accepted is not None) == (answer.status == "queued"), id, "is told to be", answer.status)
        if answer.status == "completed":
            self.returned(id, answer.result)

    def returned(self, id: str, result: Any, number: int | None = None) -> Run | None:
        """A result is that of a run which has ended so: of the caller's own, if it was accepted."""
        own, written = self._own(number), encoded(result)
        runs = self._ledger.of(id) if own is None else [own]
        found = next((run for run in runs if run.result == written and run.end is State.COMPLETED), None)
        self._demand(found is not None, id, result, "was returned, and no run of the caller's ended so")
        return found

    def raised(self, id: str, error: BaseException, number: int | None = None) -> None:
        """An error that tells of an end tells of the caller's own run, if it was accepted."""
        name, own = type(error).__name__, self._own(number)
        end = _ENDS.get(name)
        if end is not None:
            runs = self._ledger.of(id) if own is None else [own]
            self._demand(any(run.end is end for run in runs), id, name, "was raised, and no run ended so")
        elif name in ("JobNotFoundError", "ResultExpiredError") and own is not None:
            self._demand(own.end is not None, id, name, "was raised, and its run has not ended")

    def cancelled(self, id: str, status: str, begun: float) -> None:
        runs = self._ledger.of(id)
        match status:
            case "cancelled":
                true = any(run.end is State.CANCELLED and (run.ended_at or 0.0) >= begun for run in runs)
            case "cancelling":
                true = any(run.cancel_asked_at is not None and run.cancel_asked_at >= begun for run in runs)
            case "completed" | "failed":
                true = any(run.end == status for run in runs)
            case "processing":
                true = any(run.was_claimed for run in runs)
            case _:
                true = status == "not_found"
        self._demand(true, id, "is told to be", status, "by a cancel")

    def retried(self, id: str, status: str, begun: float) -> None:
        revived = any(run.revived and run.accepted_at >= begun for run in self._ledger.of(id))
        self._demand(status != "queued" or revived, id, "is told to be retried")

    def updated(self, id: str, status: str, begun: float) -> None:
        changed = self._ledger.retained_at.get(id, -1.0) >= begun
        self._demand(status != "updated" or changed, id, "is told to be", status)

    def looked(self, id: str, status: JobStatus[Any]) -> None:
        run = self._ledger.runs.get(status.generation)
        self._demand(run is not None and run.job.id == id, id, "has a generation that nobody added")
        if run is not None and status.state.terminal:
            self._demand(run.end is status.state, id, "is told to be", status.state, "and is", run.end)

    def ends(self, id: str, since: float) -> Iterator[float]:
        """Yield when runs of an id have ended since then."""
        for run in self._ledger.of(id):
            if run.ended_at is not None and run.ended_at > since:
                yield run.ended_at

    def _own(self, number: int | None) -> Run | None:
        return None if number is None else self._ledger.accepted.get(number)


def encoded(result: Any) -> bytes:
    """Return how a handler's result is stored."""
    return b"null" if result is None else b"[%d,%d]" % tuple(result)
