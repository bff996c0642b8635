"""The ledger: about seventy bytes for each job, whatever was written about it, and what must hold of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import IntFlag

from jobq import State

STATES = list(State)
ABSENT = 0
"""How the survey's answer is kept: 0 for an absent job, 1 and up for a state."""


class Mark(IntFlag):
    """Facts about one job that are true or not."""

    ASKED = 1
    TOLD = 2
    UNKNOWN = 4
    """The outcome of an enqueue was unknown: it raised, or its process was killed."""
    FULL = 8
    """An enqueue was refused because the storage was full."""
    CANCEL_ASKED = 16
    CANCELLED = 32
    """A cancel was answered ``cancelled``."""
    CANCELLING = 64
    """A cancel was answered ``cancelling``: it hit a running job."""
    SURVEYED = 128


class Ledger:
    """What is known of each job, by its number."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.marks = array("H", bytes(2 * jobs))
        self.queued = bytearray(jobs)
        """How often an enqueue was answered ``queued``; like all counts here, at most 255."""
        self.completed = bytearray(jobs)
        self.failed = bytearray(jobs)
        self.runs = array("H", bytes(2 * jobs))
        self.attempts = array("H", bytes(2 * jobs))
        """The highest number of an attempt."""
        self.last_token = _instants(jobs)
        """The highest token that a run had."""
        self.last_start = _instants(jobs)
        self.completed_by = _instants(jobs)
        """The token of the run whose completion was accepted."""
        self.completed_at = _instants(jobs)
        self.answered_by = _instants(jobs)
        """The token in a waiter's answer."""
        self.cancelled_at = _instants(jobs)
        self.state = bytearray(jobs)
        """What the survey found."""
        self.stored_by = _instants(jobs)
        """The token in the stored result, or in the stored error of a handler."""

    def mark(self, number: int, mark: Mark) -> None:
        self.marks[number] |= mark

    def has(self, number: int, mark: Mark) -> bool:
        return bool(self.marks[number] & mark)

    def found(self, number: int) -> State | None:
        """Return what the survey found there."""
        return None if self.state[number] == ABSENT else STATES[self.state[number] - 1]

    def count(self, mark: Mark) -> int:
        return sum(1 for marks in self.marks if marks & mark)


def add_one(counts: bytearray, number: int) -> int:
    counts[number] = min(255, counts[number] + 1)
    return counts[number]


def lost(ledger: Ledger, number: int) -> Iterator[str]:
    """Tell how an accepted job is missing or has not ended."""
    if not ledger.has(number, Mark.TOLD):
        return
    state = ledger.found(number)
    if state is None and not ledger.has(number, Mark.CANCEL_ASKED):
        yield "accepted, and the storage does not have it"
    elif state is not None and not state.terminal:
        yield f"accepted, and still {state} when all was quiet"


def doubled(ledger: Ledger, number: int) -> Iterator[str]:
    """Tell how a job had more than one end, or more than one beginning."""
    if ledger.queued[number] > 1:
        yield f"accepted {ledger.queued[number]} times"
    if ledger.completed[number] > 1:
        yield f"completed {ledger.completed[number]} times"
    if ledger.failed[number] > 1:
        yield f"failed {ledger.failed[number]} times"
    if ledger.completed[number] and ledger.failed[number]:
        yield "completed and failed"
    state, stored = ledger.found(number), ledger.stored_by[number]
    if state is State.COMPLETED:
        for what, token in (("completed", ledger.completed_by[number]), ("answered", ledger.answered_by[number])):
            if token and token != stored:
                yield f"{what} with the result of run {token}, and that of run {stored} is stored"
    elif ledger.completed[number] or ledger.answered_by[number]:
        yield f"completed, and {state or 'absent'} in the end"
    if state is not None and state.terminal and stored and ledger.last_token[number] > stored:
        # It was claimed after its end, or a stale settle was accepted.
        yield f"run {ledger.last_token[number]} began, and the older run {stored} settled it"


def unexpected(ledger: Ledger, number: int, *, fails: bool) -> Iterator[str]:
    """Tell what else cannot be, of a job whose handler always fails or never does."""
    state = ledger.found(number)
    if not ledger.has(number, Mark.ASKED) and (ledger.runs[number] or state is not None):
        yield "it exists, and nobody asked for it"
    if state is State.FAILED and not fails:
        yield "failed, and its handler never does"
    if state is State.COMPLETED and fails:
        yield "completed, and its handler always fails"
    if ledger.has(number, Mark.CANCELLED):
        if state is not None:
            yield f"cancelled, and {state} in the end"
        if ledger.last_start[number] > ledger.cancelled_at[number]:
            yield "run after it was cancelled"


def _instants(jobs: int) -> array[int]:
    return array("q", bytes(8 * jobs))
