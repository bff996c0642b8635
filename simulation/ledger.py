"""Ledger: what the storage accepted, told line by line, and what must never be in it.

It stands between the storage and every connection, so it sees each call that arrives and the answer that leaves, also
where the answer is then lost. The rules are the safety predicates of the contract; each that is broken is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jobq.job import Claim, Job, NewJob, Settlement, Snapshot, State
from jobq.storage.contract import LINGER, Held, Rescued, Settled
from simulation.notes import Notes

_ROUNDING = 1e-6


class Run:
    """One generation of a job: from an accepted add or revive to its one end."""

    def __init__(self, job: NewJob) -> None:
        self.job = job
        self.attempts = 0
        self.was_claimed = False
        self.end: State | None = None
        self.ended_at: float | None = None
        self.result: bytes | None = None
        self.wall_at_end = self.absent_at = 0.0
        """By the storage's wall clock. What expires as it ends is absent by whatever clock."""
        self.was_absent = False
        """Whether it had been absent when the wall clock was set: then its record may be gone, or come back."""


class Holding:
    """One claim: which run it is of, until when it must be left alone, and how it ended."""

    def __init__(self, run: Run, until: float) -> None:
        self.run = run
        self.until = until
        self.began = False
        self.lapsed = False
        self.answer: Settled | None = None


class Ledger:
    """One queue's accepted transitions, and the rules that they keep."""

    def __init__(self, name: str, notes: Notes, wall: Callable[[], float]) -> None:
        self.name = name
        self._notes = notes
        self._demand = notes.demand
        self._seen = notes.seen
        self._now = notes.now
        self._wall = wall
        self.runs: dict[str, Run] = {}
        """By generation."""
        self.holders: dict[str, Run] = {}
        """The latest run of each id."""
        self._holdings: dict[str, Holding] = {}
        self._numbered: dict[int, Holding] = {}
        self._current: dict[Run, str] = {}
        self._last_settled: dict[str, str] = {}
        """The token that settled each id last: of earlier ones a record need not remember the answer."""
        self._answered: dict[str, tuple[State | None, float]] = {}
        self._ends: dict[str, Snapshot] = {}

    def write(self, verb: str, *words: object) -> None:
        self._notes.write(verb, f"{self.name}:", *words)

    def wall_is_set(self) -> None:
        """Take note of what is absent before the wall clock is set."""
        for run in self.holders.values():
            run.was_absent = run.was_absent or self._absent(run)

    def count(self, what: str, times: int = 1) -> None:
        self._seen[what] += times

    def added(self, job: NewJob) -> None:
        if job.nonce in self.runs:
            self._seen["an accepted add was sent again"] += 1
            return
        before = self.holders.get(job.id)
        self._demand(before is None or self._may_be_absent(before), job.id, "accepted while another run holds the id")
        self.runs[job.nonce] = self.holders[job.id] = Run(job)
        self._seen["a job was added"] += 1

    def refused(self, job: NewJob, held: Snapshot) -> None:
        run = self.holders.get(job.id)
        self._demand(run is not None and self.runs.get(held.generation) is run, job.id, "refused for a run long gone")
        self._demand(run is None or not self._absent(run), job.id, "refused although nobody holds the id")

    def claimed(self, claim: Claim, lease: float) -> None:
        run = self.runs.get(claim.generation)
        if run is None or claim.token in self._holdings:
            self._demand(run is not None, claim.id, "claimed, and was never added")
            self._seen["a claim was sent again"] += run is not None
            return
        rises = not self._numbered or claim.fencing_token > next(reversed(self._numbered))
        self._demand(rises, claim.id, "token", claim.token, "does not rise")
        self._demand(run is self.holders[claim.id], claim.id, "a run that was replaced is claimed")
        self._demand(run.end is None, claim.id, "claimed after its end as", run.end)
        self._demand(run not in self._current, claim.id, "claimed while another claim stands")
        self._demand(claim.attempts == run.attempts + 1, claim.id, "attempt", claim.attempts, "after", run.attempts)
        self._demand(claim.attempts <= run.job.max_attempts, claim.id, "more attempts than", claim.max_attempts)
        self._demand(claim.payload == run.job.payload, claim.id, "another payload than was added")
        run.attempts, run.was_claimed = claim.attempts, True
        self._holdings[claim.token] = self._numbered[claim.fencing_token] = Holding(run, self._now() + lease)
        self._current[run] = claim.token
        self._seen["a job was claimed"] += 1
        self._seen["a delayed job was claimed"] += run.job.delay > 0.0
        self._seen["a job with priority was claimed"] += run.job.priority > 0

    def began(self, job: Job[Any]) -> None:
        """Take that a handler begins: once for each claim."""
        holding = self._numbered.get(job.fencing_token)
        self._demand(holding is not None and not holding.began, job.id, "runs twice by one claim, or by none")
        if holding is not None:
            holding.began = True

    def extended(self, id: str, token: str, lease: float, answer: Any) -> None:
        held = answer in (Held.HELD, Held.CANCEL_ASKED)
        holding = self._holdings.get(token)
        current = holding is not None and self._current.get(holding.run) == token
        self._demand(held == current, id, "a lease is", answer, "and its claim", "stands" if current else "is over")
        if held and holding is not None:
            holding.until = max(holding.until, self._now() + lease)
        self._seen["a lease was extended" if held else "an extend was refused"] += 1

    def settled(self, settlement: Settlement, answer: Any) -> None:
        holding = self._holdings.get(settlement.token)
        if holding is None or holding.answer is not None:
            expected = Settled.LOST if holding is None else holding.answer
            forgotten = answer is Settled.LOST and self._last_settled.get(settlement.id) != settlement.token
            self._demand(answer is expected or forgotten, settlement.id, "settled again:", answer, "after", expected)
            self._seen["a settle was sent again"] += 1
            return
        run = holding.run
        if holding.lapsed or answer is Settled.LOST:
            self._demand(answer is Settled.LOST, settlement.id, "settled as", answer, "after the lease had ended")
            self._demand(holding.lapsed or run.end is not None, settlement.id, "a standing claim was refused")
            self._seen["a settle was refused"] += 1
            return
        self._demand(self._current.pop(run, None) == settlement.token, settlement.id, "settled with an old token")
        holding.answer = answer
        self._last_settled[settlement.id] = settlement.token
        if answer is Settled.CANCELLED:
            self._end(run, State.CANCELLED, 0.0)
        elif settlement.state in (State.COMPLETED, State.FAILED):
            self._end(run, settlement.state, settlement.ttl, settlement.result)
        elif settlement.state is State.QUEUED:
            run.attempts -= 1
            self._seen["a job was given back"] += 1
        else:
            self._seen["an attempt failed"] += 1

    def unchanged(self, before: object, after: object) -> None:
        """See that a refused call has changed nothing."""
        self._demand(before == after, "a refused settle has changed", before, "to", after)

    def rescued(self, answer: Sequence[Rescued]) -> None:
        for one in answer:
            self.write("rscu", one.id, "->", one.state)
            run = self.runs.get(one.generation)
            token = None if run is None else self._current.pop(run, None)
            self._demand(token is not None, one.id, "rescued, and no claim stands")
            if run is None or token is None:
                continue
            holding = self._holdings[token]
            self._demand(holding.until <= self._now() + _ROUNDING, one.id, "rescued before its lease ended")
            holding.lapsed = True
            self._seen["a job was rescued"] += 1
            if one.state.terminal:
                self._end(run, one.state, 0.0 if one.state is State.CANCELLED else run.job.result_ttl)

    def asked(self, verb: str, id: str, nonce: str, answer: State | None, ttl: float = 0.0) -> None:
        """Take the answer to a cancel, a revive or a retain."""
        self.write(verb[:4], id, nonce, "->", answer)
        first, at = self._answered.get(nonce, (None, 0.0))
        if first is not None:  # Where nothing was found, there is no record that could remember the request.
            timely = self._now() < at + LINGER  # It may have been on its way for longer than it is remembered.
            self._demand(answer is first or not timely, id, verb, "was answered", answer, "after", first)
            self._seen[f"a {verb} was sent again"] += 1
            return
        self._answered[nonce] = answer, self._now()
        run = self.holders.get(id)
        self._seen[f"a {verb} found {answer or 'nothing'}"] += 1
        if answer is None:
            self._demand(run is None or self._may_be_absent(run), id, verb, "found nothing, and a run holds the id")
            return
        self._demand(run is not None and not self._absent(run), id, verb, "found", answer, "where nobody holds the id")
        if run is None:
            return
        if verb == "cancel" and answer.waiting:
            self._end(run, State.CANCELLED, 0.0)
        elif verb == "revive" and answer is State.FAILED:
            self._demand(run.end is State.FAILED, id, "revived after its end as", run.end)
            self.runs[nonce] = self.holders[id] = Run(run.job)
        elif verb == "retain" and answer.terminal:
            # Counted from the end, should that lie ahead because the clock was set back.
            run.absent_at = max(self._wall(), run.wall_at_end) + ttl

    def looked(self, snapshot: Snapshot) -> None:
        """See that what has ended stays as it ended."""
        if not snapshot.state.terminal:
            return
        before = self._ends.setdefault(snapshot.generation, snapshot)
        same = (before.state, before.result, before.error, before.attempts) == (
            snapshot.state,
            snapshot.result,
            snapshot.error,
            snapshot.attempts,
        )
        if not same:
            self._demand(False, f"{snapshot.id}: was {before}, is {snapshot}")

    def _absent(self, run: Run) -> bool:
        return run.end is not None and run.absent_at <= max(self._wall(), run.wall_at_end)

    def _may_be_absent(self, run: Run) -> bool:
        return run.was_absent or self._absent(run)

    def _end(self, run: Run, state: State, ttl: float, result: bytes | None = None) -> None:
        self._demand(run.end is None, run.job.id, "ended as", state, "after its end as", run.end)
        run.end, run.ended_at, run.result = state, self._now(), result
        run.wall_at_end = self._wall()
        run.absent_at = run.wall_at_end + ttl
        self._seen[f"a job ended as {state}"] += 1
