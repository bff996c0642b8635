"""The rules of the state machine. Imported only through `jobq.testing.machine`, since it needs ``hypothesis``.

After each rule the predicates of the contract are checked on all that can be seen: each job's snapshot, the counts,
the holders, and a second queue in which nothing may ever change.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from jobq.job import Claim, NewJob, Settlement, Snapshot, State
from jobq.storage.contract import LINGER, QueueStorage, Ref, Settled, Storage
from jobq.testing.bench import near
from jobq.testing.clocks import ManualClock
from jobq.testing.model import Entry, Model

T = TypeVar("T")

NAMES = ("a", "A")
IDS = st.sampled_from(NAMES)
LEASES = st.sampled_from((5.0, 30.0))
TTLS = st.sampled_from((0.0, 4.0, 60.0, 60.0))
DELAYS = st.sampled_from((0.0, 0.0, 0.0, 3.0, 8.0))
STEPS_OF_TIME = st.sampled_from((0.25, 0.25, 1.5, 4.25, 9.75, 31.0, 75.0))
OUTCOMES = st.sampled_from((State.COMPLETED, State.FAILED, State.FAILED, State.FAILING, State.QUEUED))
BYTES = st.sampled_from((b"", b"\x00\xff", b"text"))
OUTCOME = {"state": OUTCOMES, "ttl": TTLS, "delay": DELAYS, "value": BYTES}
RECENT = st.sampled_from((0, 0, 0, 1, 2, 3, 4))
ADD = {
    "id": IDS,
    "payload": BYTES,
    "attempts": st.integers(1, 3),
    "ttl": TTLS,
    "delay": DELAYS,
    "priority": st.sampled_from((0, 0, 7)),
}
VERBS = st.sampled_from(("add", "settle", "cancel", "revive", "retain"))


def _steps(verb: str, /, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.tuples(st.just(verb), st.fixed_dictionaries(arguments))


STEPS = st.one_of(
    _steps("add", **ADD),
    _steps("run_a_job", lease=LEASES, **OUTCOME),
    _steps("run_a_job", lease=LEASES, **OUTCOME),
    _steps("claim", lease=LEASES, limit=st.integers(1, 3)),
    _steps("claim_again"),
    _steps("extend", which=RECENT, lease=LEASES),
    _steps("settle", which=RECENT, **OUTCOME),
    _steps("settle", which=RECENT, **OUTCOME),
    _steps("settle", which=RECENT, **OUTCOME),
    _steps("cancel", id=IDS, running=st.booleans()),
    _steps("revive", id=IDS),
    _steps("retain", id=IDS, ttl=TTLS),
    _steps("send_again", verb=VERBS),
    _steps("send_again", verb=VERBS),
    _steps("rescue", limit=st.integers(1, 3)),
    _steps("prune", limit=st.integers(1, 3), reopen=st.booleans()),
    _steps("advance", seconds=STEPS_OF_TIME),
    _steps("advance", seconds=STEPS_OF_TIME),
)
"""What may happen next; twice where it makes more of the rest happen."""


@dataclass
class Sent:
    """A request that may be sent again, and how its first answer is told from a fresh one."""

    call: Callable[[], Coroutine[Any, Any, Any]]
    at: float
    first: Any
    changed: bool
    """Whether it changed anything. One that changed nothing may also be answered afresh: nobody could tell."""
    model: Callable[[], Any]
    """Make the request on the model, for a fresh answer."""


class StorageMachine(RuleBasedStateMachine):
    """Drives one storage; subclasses say how it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.model = Model(self.clock.now())
        self.claims: list[Claim] = []
        self.decided: dict[str, Settled] = {}
        """What the tokens that have settled were answered."""
        self.sent: dict[str, Sent] = {}
        self.last_claim: tuple[float, str, list[Claim]] = (0.0, "", [])
        self._requests = 0
        self._runner = asyncio.Runner()

    def make(self, clock: ManualClock) -> Storage:
        raise NotImplementedError

    def reopened(self, storage: Storage) -> Storage:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.storage = self.make(self.clock)
        self.run(self.storage.open())
        self.run(self.elsewhere.add([NewJob(id, f"elsewhere.{id}", b"other", 3, 60.0) for id in "aA"]))
        self.run(self.elsewhere.claim("other", 1.0, 1, "other.1"))
        self.before = self.run(self._elsewhere_now())

    def teardown(self) -> None:
        try:
            if hasattr(self, "storage"):
                self.run(self.storage.close())
        finally:
            self._runner.close()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.get_loop().run_until_complete(call)

    @property
    def queue(self) -> QueueStorage:
        return self.storage.namespace("first")

    @property
    def elsewhere(self) -> QueueStorage:
        return self.storage.namespace("second")

    def nonce(self) -> str:
        self._requests += 1
        return f"machine.{self._requests}"

    @rule(step=STEPS)
    def take(self, step: tuple[str, dict[str, Any]]) -> None:
        """Do one thing. A rule for each would leave half of them out of each sequence, and most sequences idle."""
        verb, arguments = step
        getattr(self, verb)(**arguments)

    # What a step may be.

    def add(self, id: str, payload: bytes, attempts: int, ttl: float, delay: float, priority: int) -> None:
        job = NewJob(id, self.nonce(), payload, attempts, ttl, delay, priority)
        self._send("add", lambda: self._add(job), lambda: self.model.add(job), lambda accepted: bool(accepted))

    def run_a_job(self, lease: float, state: Any, ttl: float, delay: float, value: bytes) -> None:
        """The usual way of a job, so that random steps get far."""
        self._provide_work()
        before = len(self.claims)
        self.claim(lease, 1)
        for claim in self.claims[before:]:
            self._settle_by(claim, state, ttl, delay, value)

    def claim(self, lease: float, limit: int) -> None:
        self._provide_work()
        nonce = self.nonce()
        claimed = self.run(self.queue.claim("worker", lease, limit, nonce))
        self.model.rescue(claimed.rescued, len(self.model.lapsed()))
        self.model.claim(claimed.claims, lease, limit)
        self._check_next_in(claimed.next_in, self.model.next_in())
        self.claims += claimed.claims
        self.last_claim = self.clock.now(), nonce, claimed.claims

    def claim_again(self) -> None:
        """Those of its claims that still stand are answered; nothing is taken."""
        at, nonce, claims = self.last_claim
        if not claims or self.clock.now() >= at + LINGER:
            return  # Of a claim that took nothing there is nothing to answer again.

        repeated = self.run(self.queue.claim("worker", 30.0, 3, nonce))

        assert repeated.claims == [claim for claim in claims if self._holds(claim)]
        assert repeated.rescued == []

    def extend(self, which: int, lease: float) -> None:
        for claim in self._claim_before(which):
            [answer] = self.run(self.queue.extend([(claim.id, claim.token)], lease))

            assert answer == self.model.extend(claim.id, claim.token, lease)

    def settle(self, which: int, state: Any, ttl: float, delay: float, value: bytes) -> None:
        """With a current token or an old one."""
        for claim in self._claim_before(which):
            self._settle_by(claim, state, ttl, delay, value)

    def _settle_by(self, claim: Claim, state: Any, ttl: float, delay: float, value: bytes) -> None:
        if state is State.FAILING and claim.attempts >= claim.max_attempts:
            state = State.FAILED  # That is the engine's part: a storage does not count for it.
        result, error = (value, None) if state is State.COMPLETED else (None, value)
        settlement = Settlement(claim.id, claim.token, state, result, error, ttl, delay)
        if self._holds(claim):
            self._send(
                "settle", lambda: self._settle(settlement), lambda: self.model.settle(settlement), lambda _: True
            )
            self.decided[claim.token] = self.sent["settle"].first
        else:
            answer = self.run(self._settle(settlement))
            # It may be taken for the settle of that token sent again, and changes nothing either way.
            assert answer in (Settled.LOST, self.decided.get(claim.token)), answer

    def cancel(self, id: str, running: bool) -> None:
        nonce = self.nonce()
        self._send(
            "cancel",
            lambda: self.queue.cancel(id, running, nonce),
            lambda: self.model.cancel(id, running),
            lambda found: found in (State.QUEUED, State.FAILING) or (running and found is State.PROCESSING),
        )

    def revive(self, id: str) -> None:
        nonce = self.nonce()
        self._send(
            "revive",
            lambda: self.queue.revive(id, nonce),
            lambda: self.model.revive(id, nonce),
            lambda found: found is State.FAILED,
        )

    def retain(self, id: str, ttl: float) -> None:
        nonce = self.nonce()
        self._send(
            "retain",
            lambda: self.queue.retain(id, ttl, nonce),
            lambda: self.model.retain(id, ttl),
            lambda found: found is not None and found.terminal,
        )

    def send_again(self, verb: str) -> None:
        """The last request of a verb, as after a lost reply."""
        sent = self.sent.get(verb)
        if sent is None or self.clock.now() >= sent.at + LINGER:
            return
        answer = self.run(sent.call())
        if sent.changed:
            assert answer == sent.first, (answer, sent.first)
        elif answer != sent.first:
            assert answer == sent.model()
            del self.sent[verb]

    def rescue(self, limit: int) -> None:
        answer = self.run(self.queue.rescue(limit))
        self.model.rescue(answer.rescued, limit)
        self._check_next_in(answer.next_in, self.model.next_in(leases_only=True))

    def prune(self, limit: int, reopen: bool) -> None:
        """And begin anew with what is stored, at times."""
        removable = [e for e in self.model.entries.values() if e.expires_at <= self.clock.now() - LINGER]

        assert self.run(self.queue.prune(limit)) <= min(limit, len(removable))

        if reopen:
            self.run(self.storage.close())
            self.storage = self.reopened(self.storage)
            self.run(self.storage.open())

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.model.advance(seconds)

    # What must hold after every rule.

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        ids = list(self.model.entries)
        answers, lingering, counts, workers, elsewhere = self.run(self._look(ids))
        present = [self.model.present(id) for id in ids]
        for entry, answer in zip(present, answers, strict=True):
            _compare(entry, answer)
        for id, answer in zip(ids, lingering, strict=True):
            entry = self.model.entries[id]
            if self.clock.now() < entry.expires_at + LINGER:
                _compare(entry, answer)
        assert counts == Counter(entry.state for entry in present if entry)
        held = sum(entry.token is not None for entry in self.model.entries.values())
        assert workers == ([("worker", held)] if held else [])
        assert elsewhere == self.before

    async def _look(self, ids: list[str]) -> tuple[Any, ...]:
        queue, entries = self.queue, self.model.entries
        return (
            await queue.get([Ref(id) for id in ids]),
            await queue.get([Ref(id, entries[id].generation) for id in ids]),
            dict(await queue.counts()),
            list(await queue.workers()),
            await self._elsewhere_now(),
        )

    async def _elsewhere_now(self) -> object:
        return list(await self.elsewhere.get([Ref(id) for id in NAMES]))

    async def _add(self, job: NewJob) -> bool:
        """Whether the job is accepted; if not, the answer must be who holds the id."""
        [answer] = await self.queue.add([job])
        if answer is not None:
            _compare(self.model.present(job.id), answer)
        return answer is None

    async def _settle(self, settlement: Settlement) -> Any:
        [answer] = await self.queue.settle([settlement])
        return answer

    def _send(
        self,
        verb: str,
        call: Callable[[], Coroutine[Any, Any, Any]],
        model: Callable[[], Any],
        changes: Callable[[Any], bool],
    ) -> None:
        answer = self.run(call())
        assert answer == model(), answer
        self.sent[verb] = Sent(call, self.clock.now(), answer, changes(answer), model)

    def _provide_work(self) -> None:
        """Add a job if there is nothing to do and an id is free."""
        free = [id for id in NAMES if self.model.present(id) is None]
        if free and not self.model.due():
            self.add(free[0], b"provided", 2, 4.0, 0.0, 0)

    def _holds(self, claim: Claim) -> bool:
        entry = self.model.entries.get(claim.id)
        return entry is not None and entry.token == claim.token

    def _claim_before(self, which: int) -> list[Claim]:
        """One of the latest claims, counted from the last; none if there are not so many."""
        return self.claims[-1 - which :][:1] if which < len(self.claims) else []

    def _check_next_in(self, answer: float | None, wanted: float | None) -> None:
        """It may be early, never late; None says that there is nothing to come back for."""
        assert (answer is None) == (wanted is None), (answer, wanted)
        assert answer is None or wanted is None or 0.0 <= answer <= wanted + 0.001, (answer, wanted)
        assert wanted != 0.0 or answer == 0.0


def _compare(entry: Entry | None, answer: object) -> None:
    """Whether a snapshot is what the model says, None being the snapshot of an absent job."""
    if entry is None:
        assert answer is None, answer
        return
    assert isinstance(answer, Snapshot), (entry, answer)
    got = (answer.generation, answer.state, answer.attempts, answer.result, answer.cancel_asked)
    assert got == (entry.generation, entry.state, entry.attempts, entry.result, entry.cancel_asked), (entry, answer)
    got_job = (answer.id, answer.max_attempts, answer.result_ttl, answer.priority)
    assert got_job == (entry.job.id, entry.job.max_attempts, entry.job.result_ttl, entry.job.priority)
    assert near(answer.created_at, entry.created_at)
    if entry.state is not State.PROCESSING:
        assert answer.error == entry.error, (entry, answer)
    if entry.state.terminal:
        assert near(answer.expires_at, entry.expires_at), (entry, answer)
        assert answer.finished_at is not None
    else:
        assert (answer.expires_at, answer.finished_at) == (None, None), (entry, answer)
