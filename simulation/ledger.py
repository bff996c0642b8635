"""Ledger: what the storage accepted, told line by line, and what must never be in it.

It stands between the storage and every connection, so it sees each call that arrives and the answer that leaves, also
where the answer is then lost. The rules are the safety predicates of the contract; each that is broken is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from jobq.job import Claim, Job, NewJob, Settlement, Snapshot, State
from jobq.storage.contract import LINGER, Held, Ref, Rescued, Settled
from simulation.notes import Notes
from simulation.turns import Turn, Turns

_ROUNDING = 1e-6
_REACTION = 0.05
"""Seconds that a process may take to begin or to end a handler that it has decided to begin or to end."""
_GIVEN_BACK = ("stopping", "lease_lost", "cancelled")
"""Why a handler may be asked to end without its attempt having failed."""


class Run:
    """One generation of a job: from an accepted add or revive to its one end."""

    def __init__(self, job: NewJob, turn: Turn, at: float, *, revived: bool = False) -> None:
        self.job = job
        self.number, self.fate, _ = msgspec.json.decode(job.payload)
        self.turn = turn
        self.accepted_at = at
        self.revived = revived
        self.attempts = 0
        self.was_claimed = False
        self.cancel_asked_at: float | None = None
        self.end: State | None = None
        self.ended_at: float | None = None
        self.result: bytes | None = None
        self.wall_at_end = self.absent_at = 0.0
        """By the storage's wall clock. What expires as it ends is absent by whatever clock."""
        self.was_absent = False
        """Whether it had been absent when the wall clock was set: then its record may be gone, or come back."""


class Holding:
    """One claim: which run it is of, until when it must be left alone, and how it ended."""

    def __init__(self, run: Run, worker_id: str, until: float) -> None:
        self.run = run
        self.worker_id = worker_id
        self.until = until
        self.began = False
        self.asked_to_end: str | None = None
        """Why its handler was cancelled, if it was."""
        self.lapsed = False
        self.answer: Settled | None = None
        self.settled_at = 0.0


class Ledger:
    """One queue's accepted transitions, and the rules that they keep."""

    def __init__(
        self,
        name: str,
        notes: Notes,
        wall: Callable[[], float],
        longest_sleep: float,
        asked_for: Mapping[int, Mapping[str, Any]],
    ) -> None:
        self.name = name
        self._notes = notes
        self._demand = notes.demand
        self._seen = notes.seen
        self._now = notes.now
        self._wall = wall
        self._asked_for = asked_for
        self.runs: dict[str, Run] = {}
        """By generation."""
        self.accepted: dict[int, Run] = {}
        """By the number that a caller put into the payload of its add."""
        self.retained_at: dict[str, float] = {}
        """When the expiry of each id was last changed."""
        self.happened: Counter[tuple[str, str]] = Counter()
        """By event and id: how often it can have been told."""
        self._of: dict[str, list[Run]] = {}
        self.healthy: set[str] = set()
        """The labels of workers that only live in good weather."""
        self.turns = Turns(notes, wall, longest_sleep)
        self.holders: dict[str, Run] = {}
        """The latest run of each id."""
        self._holdings: dict[str, Holding] = {}
        self._numbered: dict[int, Holding] = {}
        self._current: dict[Run, str] = {}
        self._answered: dict[str, tuple[State | None, float]] = {}
        self._ends: dict[str, Snapshot] = {}

    def of(self, id: str) -> Sequence[Run]:
        """Return the runs of an id, in their order."""
        return self._of.get(id, ())

    def write(self, verb: str, *words: object) -> None:
        self._notes.write(verb, f"{self.name}:", *words)

    def wall_is_set(self) -> None:
        """Take note of what is absent before the wall clock is set."""
        for run in self.holders.values():
            run.was_absent = run.was_absent or self._absent(run)
        self.turns.wall_is_set(run.turn for run in self.holders.values())

    def count(self, what: str, times: int = 1) -> None:
        self._seen[what] += times

    def added(self, job: NewJob) -> None:
        if job.nonce in self.runs:
            self._seen["an accepted add was sent again"] += 1
            return
        before = self.holders.get(job.id)
        self._demand(before is None or self._may_be_absent(before), job.id, "accepted while another run holds the id")
        run = self._begin(job.nonce, job, job.delay)
        number = run.number
        self.accepted[number] = run
        stored = {name: getattr(job, name) for name in self._asked_for[number]}
        self._demand(stored == self._asked_for[number], job.id, "was asked for with", self._asked_for[number], stored)
        self.happened["enqueued", job.id] += 1
        self._seen["a job was added"] += 1

    def refused(self, job: NewJob, held: Snapshot) -> None:
        run = self.holders.get(job.id)
        self._demand(run is not None and self.runs.get(held.generation) is run, job.id, "refused for a run long gone")
        self._demand(run is None or not self._absent(run), job.id, "refused although nobody holds the id")

    def claimed(self, worker_id: str, claims: Sequence[Claim], lease: float) -> None:
        """Take the answer to one claim."""
        taken = [run for claim in claims if (run := self._claimed(worker_id, claim, lease)) is not None]
        waiting = [run for run in self.holders.values() if run.end is None and run not in self._current]
        self.turns.taken([run.turn for run in taken], [run.turn for run in waiting])

    def _claimed(self, worker_id: str, claim: Claim, lease: float) -> Run | None:
        """Take one of the claims of an answer; None if it was answered before."""
        run = self.runs.get(claim.generation)
        if run is None or claim.token in self._holdings:
            self._demand(run is not None, claim.id, "claimed, and was never added")
            self._seen["a claim was sent again"] += run is not None
            return None
        rises = not self._numbered or claim.fencing_token > next(reversed(self._numbered))
        self._demand(rises, claim.id, "token", claim.token, "does not rise")
        self._demand(run is self.holders[claim.id], claim.id, "a run that was replaced is claimed")
        self._demand(run.end is None, claim.id, "claimed after its end as", run.end)
        self._demand(run not in self._current, claim.id, "claimed while another claim stands")
        self._demand(claim.attempts == run.attempts + 1, claim.id, "attempt", claim.attempts, "after", run.attempts)
        self._demand(claim.attempts <= run.job.max_attempts, claim.id, "more attempts than", claim.max_attempts)
        self._demand(claim.payload == run.job.payload, claim.id, "another payload than was added")
        run.attempts, run.was_claimed = claim.attempts, True
        self._holdings[claim.token] = self._numbered[claim.fencing_token] = Holding(run, worker_id, self._now() + lease)
        self._current[run] = claim.token
        self._seen["a job was claimed"] += 1
        self._seen["a delayed job was claimed"] += run.job.delay > 0.0
        self._seen["a job with priority was claimed"] += run.job.priority > 0
        return run

    def began(self, job: Job[Any]) -> None:
        """Take that a handler begins: once for each claim, and while its lease lasts."""
        holding = self._numbered.get(job.fencing_token)
        self._demand(holding is not None and not holding.began, job.id, "runs twice by one claim, or by none")
        if holding is not None:
            holding.began = True
            late = self._now() - holding.until
            self._demand(late <= _REACTION, job.id, "begun", late, "s after its lease had ended")

    def interrupted(self, job: Job[Any]) -> None:
        """Take that a handler was cancelled."""
        self._numbered[job.fencing_token].asked_to_end = job.signal.reason

    def ended(self, job: Job[Any], patience: float) -> None:
        """Take that a handler has ended: before others may run the job, but for so long as it ignores its end."""
        holding = self._numbered[job.fencing_token]
        if holding.answer is None:  # One that ignores its end is settled all the same, and then holds nothing up.
            late = self._now() - holding.until
            self._demand(late <= patience + _REACTION, job.id, "ran on for", late, "s after its lease had ended")

    def absent_for(self, seconds: float) -> list[Ref]:
        """Return the runs that have been absent for so long."""
        until = self._wall() - seconds
        return [
            Ref(run.job.id, generation)
            for generation, run in self.runs.items()
            if run.end is not None and run.absent_at <= until
        ]

    @property
    def standing(self) -> Sequence[str]:
        """Return the ids of jobs that somebody holds, but for those whose handlers ignore that they should end."""
        return [run.job.id for run in self._current if run.fate != "ignore"]

    def extended(self, id: str, token: str, lease: float, answer: Any) -> None:
        held = answer in (Held.HELD, Held.CANCEL_ASKED)
        holding = self._holdings.get(token)
        current = holding is not None and self._current.get(holding.run) == token
        self._demand(held == current, id, "a lease is", answer, "and its claim", "stands" if current else "is over")
        if held and holding is not None:
            holding.until = max(holding.until, self._now() + lease)
            asked = holding.run.cancel_asked_at is not None
            self._demand(asked == (answer is Held.CANCEL_ASKED), id, "a lease is", answer, "cancel asked:", asked)
        self._seen["a lease was extended" if held else "an extend was refused"] += 1

    def settled(self, settlement: Settlement, answer: Any) -> None:
        holding = self._holdings.get(settlement.token)
        if holding is None or holding.answer is not None:
            expected = Settled.LOST if holding is None else holding.answer
            forgotten = answer is Settled.LOST and (holding is None or self._now() >= holding.settled_at + LINGER)
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
        holding.answer, holding.settled_at = answer, self._now()
        self._decided(holding, settlement, answer)

    def _decided(self, holding: Holding, settlement: Settlement, answer: Any) -> None:
        """Take the first decision about a claim."""
        run, id = holding.run, settlement.id
        asked = run.cancel_asked_at is not None
        self._demand(asked == (answer is Settled.CANCELLED), id, "settled as", answer, "cancel asked:", asked)
        if holding.asked_to_end in _GIVEN_BACK:
            self._demand(settlement.state is State.QUEUED, id, holding.asked_to_end, "and settled as", settlement.state)
        if answer is Settled.CANCELLED:
            self._end(run, State.CANCELLED, 0.0)
        elif settlement.state in (State.COMPLETED, State.FAILED):
            self._demand(settlement.ttl == run.job.result_ttl, id, "expires after", settlement.ttl, "s")
            self._end(run, settlement.state, settlement.ttl, settlement.result)
        elif settlement.state is State.QUEUED:
            run.attempts -= 1
            self.turns.returns(run.turn)
            self.happened["requeued", id] += 1
            self._seen["a job was given back"] += 1
        else:
            self.turns.waits(run.turn, settlement.delay)
            self.happened["failing", id] += 1
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
            healthy = holding.worker_id in self.healthy
            self._demand(not healthy, one.id, "taken from a healthy worker in good weather")
            used_up = State.FAILED if run.attempts >= run.job.max_attempts else State.FAILING
            due = used_up if run.cancel_asked_at is None else State.CANCELLED
            self._demand(one.state is due, one.id, "rescued as", one.state, "instead of", due)
            self._seen[f"a job was rescued as {one.state}"] += 1
            if one.state.terminal:
                self._end(run, one.state, 0.0 if one.state is State.CANCELLED else run.job.result_ttl)
            else:
                self.turns.joins_again(run.turn)

    def asked(
        self, verb: str, id: str, nonce: str, answer: State | None, *, ttl: float = 0.0, running: bool = False
    ) -> None:
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
        if run is not None:
            self._changed(verb, run, nonce, answer, ttl, running)

    def _changed(self, verb: str, run: Run, nonce: str, answer: State, ttl: float, running: bool) -> None:
        """Take what a cancel, a revive or a retain has done to a run."""
        id = run.job.id
        if verb == "cancel" and answer.waiting:
            self._end(run, State.CANCELLED, 0.0)
        elif verb == "cancel" and running and answer is State.PROCESSING:
            run.cancel_asked_at = self._now()
        elif verb == "revive" and answer is State.FAILED:
            self._demand(run.end is State.FAILED, id, "revived after its end as", run.end)
            self._begin(nonce, run.job, 0.0, revived=True)
        elif verb == "retain" and answer.terminal:
            # Counted from the end, should that lie ahead because the clock was set back.
            run.absent_at = max(self._wall(), run.wall_at_end) + ttl
            self.retained_at[id] = self._now()

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

    def _begin(self, generation: str, job: NewJob, delay: float, *, revived: bool = False) -> Run:
        run = Run(job, self.turns.joins(job.priority, delay), self._now(), revived=revived)
        self.runs[generation] = self.holders[job.id] = run
        self._of.setdefault(job.id, []).append(run)
        return run

    def _absent(self, run: Run) -> bool:
        return run.end is not None and run.absent_at <= max(self._wall(), run.wall_at_end)

    def _may_be_absent(self, run: Run) -> bool:
        return run.was_absent or self._absent(run)

    def _end(self, run: Run, state: State, ttl: float, result: bytes | None = None) -> None:
        self._demand(run.end is None, run.job.id, "ended as", state, "after its end as", run.end)
        run.end, run.ended_at, run.result = state, self._now(), result
        run.wall_at_end = self._wall()
        run.absent_at = run.wall_at_end + ttl
        self.happened[state.value, run.job.id] += 1
        self._seen[f"a job ended as {state}"] += 1
