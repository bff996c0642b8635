"""The model that random sequences are compared with: the transition table of the contract, and nothing else.

It shares no code with any storage. It knows what each verb must answer and leave behind, when nothing is sent twice;
resending is judged by the machine, for which "nothing changed" is all there is to know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from jobq.job import Claim, NewJob, Settlement, State
from jobq.storage.contract import WORKER_LOST, Rescued, Settled

SAME_MOMENT = 0.001
"""Moments closer than this may be ordered either way, unless one job surely came after the other."""


@dataclass
class Entry:
    """What must be known of one job."""

    job: NewJob
    generation: str
    created_at: float
    ready_at: float
    """When it became, or becomes, ready."""
    order: int = 0
    """Among jobs made ready without delay, which came first; 0 for one that was delayed."""
    state: State = State.QUEUED
    attempts: int = 0
    token: str | None = None
    lease_until: float = math.inf
    cancel_asked: bool = False
    result: bytes | None = None
    error: bytes | None = None
    expires_at: float = math.inf


@dataclass
class Model:
    """A queue, as the contract describes it."""

    now: float
    monotonic: float = 0.0
    entries: dict[str, Entry] = field(default_factory=dict)
    moves: int = 0
    highest: int = 0
    """The highest counter of a token so far."""

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.monotonic += seconds

    def present(self, id: str) -> Entry | None:
        entry = self.entries.get(id)
        return None if entry is None or entry.expires_at <= self.now else entry

    def all_present(self) -> list[Entry]:
        return [entry for id in self.entries if (entry := self.present(id))]

    def add(self, job: NewJob) -> bool:
        """Whether the job is accepted."""
        if self.present(job.id):
            return False
        entry = self.entries[job.id] = Entry(job, job.nonce, self.now, self.now)
        self._make_ready(entry, job.delay)
        return True

    def due(self) -> list[Entry]:
        return [entry for entry in self.all_present() if entry.state.waiting and entry.ready_at <= self.now]

    def claim(self, claims: Sequence[Claim], lease: float, limit: int) -> None:
        """Take what a storage claimed, after checking that it had to be these, in this order."""
        assert len(claims) == min(limit, len(self.due())), "it claims what is due, and no more than the limit"
        for claim in claims:
            due = self.due()
            [entry] = [entry for entry in due if entry.job.id == claim.id]
            assert not [other.job.id for other in due if _must_precede(other, entry)], "others had to come first"
            assert claim.fencing_token > self.highest, "tokens rise"
            assert claim.attempts == entry.attempts + 1 <= entry.job.max_attempts, "claims count attempts"
            assert (claim.payload, claim.generation) == (entry.job.payload, entry.generation)
            self.highest = claim.fencing_token
            entry.state, entry.attempts = State.PROCESSING, claim.attempts
            entry.token, entry.lease_until = claim.token, self.monotonic + lease

    def rescue(self, rescued: Sequence[Rescued], limit: int) -> None:
        """End the leases that a storage ended, after checking that they had lapsed and what became of the jobs."""
        lapsed = self.lapsed()
        assert len(rescued) == min(limit, len(lapsed)), "it rescues what has lapsed, and no more than the limit"
        self.moves += 1
        for one in rescued:
            assert one.id in lapsed, "only a lapsed lease is ended, and only once"
            entry = self.entries[lapsed.pop(lapsed.index(one.id))]
            if entry.cancel_asked:
                self._end(entry, State.CANCELLED, 0.0)
            elif entry.attempts >= entry.job.max_attempts:
                self._end(entry, State.FAILED, entry.job.result_ttl, error=WORKER_LOST)
            else:
                self._drop_lease(entry)
                entry.state, entry.ready_at, entry.order = State.FAILING, self.now, self.moves
            assert (one.state, one.attempts, one.generation) == (entry.state, entry.attempts, entry.generation)

    def lapsed(self) -> list[str]:
        return [id for id, entry in self.entries.items() if entry.lease_until <= self.monotonic]

    def extend(self, id: str, token: str, lease: float) -> str:
        entry = self.entries.get(id)
        if entry is None or entry.token != token:
            return "lost"
        entry.lease_until = max(entry.lease_until, self.monotonic + lease)
        return "cancel_asked" if entry.cancel_asked else "held"

    def settle(self, settlement: Settlement) -> Settled:
        entry = self.entries.get(settlement.id)
        if entry is None or entry.token != settlement.token:
            return Settled.LOST
        if entry.cancel_asked:
            self._end(entry, State.CANCELLED, 0.0)
            return Settled.CANCELLED
        if settlement.state is State.QUEUED:
            self._drop_lease(entry)
            entry.attempts -= 1
            entry.state = State.FAILING if entry.attempts else State.QUEUED
        elif settlement.state is State.FAILING:
            self._drop_lease(entry)
            entry.state, entry.error = State.FAILING, settlement.error
            self._make_ready(entry, settlement.delay)
        else:
            self._end(entry, settlement.state, settlement.ttl, result=settlement.result, error=settlement.error)
        return Settled.APPLIED

    def cancel(self, id: str, running: bool) -> State | None:
        entry = self.present(id)
        if entry is None:
            return None
        found = entry.state
        if found.waiting:
            self._end(entry, State.CANCELLED, 0.0)
        elif found is State.PROCESSING and running:
            entry.cancel_asked = True
        return found

    def revive(self, id: str, nonce: str) -> State | None:
        entry = self.present(id)
        if entry is None or entry.state is not State.FAILED:
            return None if entry is None else entry.state
        entry.state, entry.attempts, entry.generation = State.QUEUED, 0, nonce
        entry.error, entry.expires_at = None, math.inf
        self._make_ready(entry, 0.0)
        return State.FAILED

    def retain(self, id: str, ttl: float) -> State | None:
        entry = self.present(id)
        if entry is None:
            return None
        if entry.state.terminal:
            entry.expires_at = self.now + ttl
        return entry.state

    def next_in(self, *, leases_only: bool = False) -> float | None:
        """Seconds until something falls due or lapses."""
        times = [entry.lease_until - self.monotonic for entry in self.entries.values() if entry.token]
        if not leases_only:
            times += [entry.ready_at - self.now for entry in self.all_present() if entry.state.waiting]
        return max(0.0, min(times)) if times else None

    def _make_ready(self, entry: Entry, delay: float) -> None:
        self.moves += 1
        entry.ready_at = self.now + delay
        entry.order = 0 if delay else self.moves

    def _drop_lease(self, entry: Entry) -> None:
        entry.token, entry.lease_until = None, math.inf

    def _end(
        self, entry: Entry, state: State, ttl: float, *, result: bytes | None = None, error: bytes | None = None
    ) -> None:
        self._drop_lease(entry)
        entry.state, entry.result, entry.error = state, result, error
        entry.cancel_asked, entry.expires_at = False, self.now + ttl


def _must_precede(one: Entry, other: Entry) -> bool:
    if one.job.priority != other.job.priority:
        return one.job.priority > other.job.priority
    if one.order and other.order:
        return one.order < other.order
    return one.ready_at < other.ready_at - SAME_MOMENT
