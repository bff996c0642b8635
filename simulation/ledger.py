"""Ledger: what the storage accepted, told line by line, and what must never be in it.

It stands between the storage and every connection, so it sees each call that arrives and the answer that leaves, also
where the answer is then lost. The rules are the safety predicates of the contract; each that is broken is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from jobq.job import Claim, NewJob, Settlement, Snapshot, State
from jobq.storage.contract import Held, Rescued, Settled


class Run:
    """One generation of a job: from an accepted add or revive to its one end."""

    def __init__(self, job: NewJob, begun: float) -> None:
        self.job = job
        self.begun = begun
        self.attempts = 0
        self.was_claimed = False
        self.starts = 0
        """How often a handler began."""
        self.end: State | None = None
        self.ended_at: float | None = None
        self.result: bytes | None = None


class Holding:
    """One claim: which run it is of, and how it ended."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.lapsed = False
        self.answer: Settled | None = None


class Ledger:
    """One queue's accepted transitions, and the rules that they keep."""

    def __init__(self, write: Callable[[str, str], None], now: Callable[[], float]) -> None:
        self.write = write
        self.now = now
        self.broken: list[str] = []
        self.seen: Counter[str] = Counter()
        """What happened how often: the goals without which a simulation proves nothing."""
        self.runs: dict[str, Run] = {}
        """By generation."""
        self.holders: dict[str, Run] = {}
        """The latest run of each id."""
        self._holdings: dict[str, Holding] = {}
        self._current: dict[Run, str] = {}
        self._answered: dict[str, State | None] = {}
        self._highest = 0
        self._ends: dict[str, Snapshot] = {}

    def demand(self, holds: bool, rule: str) -> None:
        """Note a broken rule; the simulation goes on, so that all of them are told."""
        if not holds:
            self.broken.append(rule)
            self.write("!!!!", rule)

    def added(self, job: NewJob) -> None:
        if job.nonce in self.runs:
            self.seen["an accepted add was sent again"] += 1
            return
        before = self.holders.get(job.id)
        self.demand(before is None or before.end is not None, f"{job.id}: accepted while another run holds the id")
        self.runs[job.nonce] = self.holders[job.id] = Run(job, self.now())
        self.seen["a job was added"] += 1

    def claimed(self, claim: Claim) -> None:
        run = self.runs.get(claim.generation)
        if run is None or claim.token in self._holdings:
            self.demand(run is not None, f"{claim.id}: claimed, and was never added")
            self.seen["a claim was sent again"] += run is not None
            return
        self.demand(claim.fencing_token > self._highest, f"{claim.id}: token {claim.token} does not rise")
        self._highest = claim.fencing_token
        self.demand(run is self.holders[claim.id], f"{claim.id}: a run that was replaced is claimed")
        self.demand(run.end is None, f"{claim.id}: claimed after its end as {run.end}")
        self.demand(run not in self._current, f"{claim.id}: claimed while another claim stands")
        self.demand(claim.attempts == run.attempts + 1, f"{claim.id}: attempt {claim.attempts} after {run.attempts}")
        self.demand(claim.attempts <= claim.max_attempts, f"{claim.id}: more attempts than {claim.max_attempts}")
        self.demand(claim.payload == run.job.payload, f"{claim.id}: another payload than was added")
        run.attempts, run.was_claimed = claim.attempts, True
        self._holdings[claim.token] = Holding(run)
        self._current[run] = claim.token
        self.seen["a job was claimed"] += 1

    def extended(self, id: str, token: str, answer: Any) -> None:
        held = answer in (Held.HELD, Held.CANCEL_ASKED)
        holding = self._holdings.get(token)
        current = holding is not None and self._current.get(holding.run) == token
        self.demand(held == current, f"{id}: a lease is {answer} and its claim {'stands' if current else 'is over'}")
        self.seen["a lease was extended" if held else "an extend was refused"] += 1

    def settled(self, settlement: Settlement, answer: Any) -> None:
        holding = self._holdings.get(settlement.token)
        if holding is None or holding.answer is not None:
            expected = Settled.LOST if holding is None else holding.answer
            self.demand(answer is expected, f"{settlement.id}: settled again, {answer} after {expected}")
            self.seen["a settle was sent again"] += 1
            return
        run = holding.run
        if holding.lapsed or answer is Settled.LOST:
            self.demand(answer is Settled.LOST, f"{settlement.id}: settled as {answer} after the lease had ended")
            self.demand(holding.lapsed or run.end is not None, f"{settlement.id}: a standing claim was refused")
            self.seen["a settle was refused"] += 1
            return
        self.demand(self._current.pop(run, None) == settlement.token, f"{settlement.id}: settled with an old token")
        holding.answer = answer
        if answer is Settled.CANCELLED:
            self.end(run, State.CANCELLED)
        elif settlement.state in (State.COMPLETED, State.FAILED):
            self.end(run, settlement.state, settlement.result)
        elif settlement.state is State.QUEUED:
            run.attempts -= 1
            self.seen["a job was given back"] += 1
        else:
            self.seen["an attempt failed"] += 1

    def rescued(self, one: Rescued) -> None:
        run = self.runs.get(one.generation)
        token = None if run is None else self._current.pop(run, None)
        self.demand(token is not None, f"{one.id}: rescued, and no claim stands")
        if run is None or token is None:
            return
        self._holdings[token].lapsed = True
        self.seen["a job was rescued"] += 1
        if one.state.terminal:
            self.end(run, one.state)

    def asked(self, verb: str, id: str, nonce: str, answer: State | None) -> None:
        """Take the answer to a cancel, a revive or a retain."""
        first = self._answered.get(nonce)
        if first is not None:  # Where nothing was found, there is no record that could remember the request.
            self.demand(answer is first, f"{id}: {verb} was answered {answer} after {first}")
            self.seen[f"a {verb} was sent again"] += 1
            return
        self._answered[nonce] = answer
        run = self.holders.get(id)
        self.seen[f"a {verb} found {answer or 'nothing'}"] += 1
        if verb == "cancel" and run is not None and answer is not None and answer.waiting:
            self.end(run, State.CANCELLED)
        elif verb == "revive" and run is not None and answer is State.FAILED:
            self.demand(run.end is State.FAILED, f"{id}: revived after its end as {run.end}")
            self.runs[nonce] = self.holders[id] = Run(run.job, self.now())

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
        self.demand(same, f"{snapshot.id}: was {before}, is {snapshot}")

    def end(self, run: Run, state: State, result: bytes | None = None) -> None:
        self.demand(run.end is None, f"{run.job.id}: ended as {state} after its end as {run.end}")
        if state is State.CANCELLED and not run.was_claimed:
            self.demand(run.starts == 0, f"{run.job.id}: cancelled before its first run, and it ran")
        run.end, run.ended_at, run.result = state, self.now(), result
        self.seen[f"a job ended as {state}"] += 1
