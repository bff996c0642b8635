"""MemoryStorage: the contract in its clearest text, and the oracle that other storages are compared with.

Dicts and heaps under one lock, and no await inside a transition, so each is atomic for coroutines and threads alike.
Jobs live as long as the object: across stop and start of its queues, not across processes. It may be used from several
event loops and threads at once, and is therefore its own twin.

Heaps are never searched: a record that moves leaves its old entry behind, which counts as stale because the record's
attribute no longer equals the entry's key, and is dropped when it comes to the top.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

from jobq.checks import check_clock
from jobq.clock import Clock
from jobq.job import Counts, NewJob, Settlement, Snapshot, State
from jobq.storage.contract import (
    LINGER,
    WORKER_LOST,
    AddAnswer,
    Claimed,
    GetAnswer,
    Held,
    HeldAnswer,
    Hint,
    HintKind,
    QueueStorage,
    Ref,
    Rescue,
    Rescued,
    SettleAnswer,
    Settled,
)
from jobq.storage.records import NEVER, NO_ANSWERS, UNKNOWN, LazyHeap, MemoryWatch, Record, Sleeper, running_loop


class MemoryStorage:
    """Keeps jobs in this process's memory.

    Args:
        clock: replaces the machine's clocks, in tests.

    Example:
        >>> MemoryStorage()
        <MemoryStorage with 0 queues>
    """

    vigilant: ClassVar[bool] = True

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = check_clock(clock)
        self._namespaces: dict[str, MemoryNamespace] = {}

    @property
    def clock(self) -> Clock:
        return self._clock

    async def open(self) -> None:
        """Do nothing: memory is always there."""

    async def close(self) -> None:
        """Do nothing: jobs stay for as long as the object lives."""

    def namespace(self, name: str) -> QueueStorage:
        return self._namespaces.setdefault(name, MemoryNamespace(self._clock))

    def twin(self) -> MemoryStorage:
        return self

    def __repr__(self) -> str:
        return f"<MemoryStorage with {len(self._namespaces)} queues>"


class _LastClaim(NamedTuple):
    nonce: str
    at: float
    taken: list[tuple[Record, str]]


class MemoryNamespace:
    """One queue's jobs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._ready = LazyHeap("ready_key")
        self._later = LazyHeap("due")
        self._held: set[Record] = set()
        self._none_lapses_before = NEVER
        self._looked_at = 0.0
        self._expiring = LazyHeap("expires_at")
        self._counter = 0
        self._counted_at = 0.0
        self._last_claims: dict[str, _LastClaim] = {}
        self._locks: dict[str, tuple[str, float]] = {}
        self._sleepers: list[Sleeper] = []
        self._watches: dict[str, MemoryWatch] = {}
        self._hints: list[tuple[tuple[str, ...] | None, Hint]] = []

    async def add(self, jobs: Sequence[NewJob]) -> Sequence[AddAnswer]:
        self._clock.failpoint("add.before")
        with self._transition():
            now = self._clock.now()
            answers = [self._add(job, now) for job in jobs]
        self._clock.failpoint("add.after")
        return answers

    async def claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        self._clock.failpoint("claim.before")
        with self._transition():
            answer = self._claim(worker_id, lease, limit, nonce)
        self._clock.failpoint("claim.after")
        return answer

    async def extend(self, claims: Sequence[tuple[str, str]], lease: float) -> Sequence[HeldAnswer]:
        self._clock.failpoint("extend.before")
        with self._transition():
            until = self._clock.monotonic() + lease
            answers = [self._extend(id, token, until, lease) for id, token in claims]
        self._clock.failpoint("extend.after")
        return answers

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleAnswer]:
        self._clock.failpoint("settle.before")
        with self._transition():
            now = self._clock.now()
            answers = [self._settle(settlement, now) for settlement in settlements]
        self._clock.failpoint("settle.after")
        return answers

    async def cancel(self, id: str, running: bool, nonce: str) -> State | None:
        with self._transition():
            return self._once(id, nonce, lambda record, now: self._cancel(record, running, now))

    async def revive(self, id: str, nonce: str) -> State | None:
        with self._transition():
            return self._once(id, nonce, lambda record, now: self._revive(record, nonce, now))

    async def retain(self, id: str, ttl: float, nonce: str) -> State | None:
        with self._transition():
            return self._once(id, nonce, lambda record, now: self._expire(record, now, ttl))

    async def rescue(self, limit: int) -> Rescue:
        with self._transition():
            rescued = self._rescue(limit)
            return Rescue(rescued, self._lapses_in(self._clock.monotonic()))

    async def prune(self, limit: int) -> int:
        removed = 0
        with self._transition():
            until, monotonic = self._clock.now() - LINGER, self._clock.monotonic()
            while removed < limit and (record := self._expiring.top()) and record.expires_at <= until:
                if record.lingers_until > monotonic:
                    break
                self._drop(record)
                removed += 1
        return removed

    async def get(self, refs: Sequence[Ref]) -> Sequence[GetAnswer]:
        with self._transition():
            now = self._clock.now()
            return [self._get(ref, now) for ref in refs]

    async def wait_for_work(self, timeout: float) -> bool:
        loop = asyncio.get_running_loop()
        with self._lock:
            due_in = self._due_in()
            if due_in == 0.0:
                return True
            if due_in is not None:
                timeout = min(timeout, due_in)  # What came since the caller's claim counts as well.
            sleeper = Sleeper(loop, self._clock.monotonic() + timeout)
            self._sleepers.append(sleeper)
        timer = loop.call_later(timeout, sleeper.finish)
        try:
            await sleeper.future
            return sleeper.woken or due_in is not None
        except asyncio.CancelledError:
            with self._lock:
                self._sleepers = [other for other in self._sleepers if other is not sleeper]
                self._wake_one()  # It may have been woken, or relied upon to be awake when something falls due.
            raise
        finally:
            timer.cancel()
            with self._lock:
                if sleeper in self._sleepers:
                    self._sleepers.remove(sleeper)

    async def watch(self, handler: Callable[[Hint], None]) -> MemoryWatch:
        watch = MemoryWatch(self._watches, handler, self._clock.random_bytes(12).hex())
        self._watches[watch.address] = watch
        return watch

    async def hold(self, name: str, owner: str, ttl: float) -> bool:
        with self._lock:
            now = self._clock.monotonic()
            holder, until = self._locks.get(name, (owner, 0.0))
            if holder != owner and now < until:
                return False
            self._locks[name] = (owner, now + ttl)
            return True

    async def release(self, name: str, owner: str) -> None:
        with self._lock:
            if self._locks.get(name, ("", 0.0))[0] == owner:
                del self._locks[name]

    async def counts(self) -> Counts:
        counts: dict[State, int] = {}
        with self._lock:
            now = self._clock.now()
            for record in self._records.values():
                if not record.absent(now):
                    counts[record.state] = counts.get(record.state, 0) + 1
        return counts

    async def page(self, state: State, after: str, limit: int) -> Sequence[Snapshot]:
        with self._lock:
            now = self._clock.now()
            found = (r for r in self._records.values() if r.state is state and r.job.id > after and not r.absent(now))
            return [record.snapshot() for record in heapq.nsmallest(limit, found, key=lambda record: record.job.id)]

    async def workers(self) -> Sequence[tuple[str, int]]:
        held: dict[str, int] = {}
        with self._lock:
            for record in self._held:
                held[record.worker_id or ""] = held.get(record.worker_id or "", 0) + 1
        return sorted(held.items())

    # Transitions: each runs under the lock.

    def _add(self, job: NewJob, now: float) -> AddAnswer:
        held = self._records.get(job.id)
        recent = NO_ANSWERS
        if held is not None:
            if held.generation == job.nonce or held.answered(job.nonce, self._clock.monotonic()) is not UNKNOWN:
                return None
            if not held.absent(now):
                held.note(job.reply_to)
                return held.snapshot()
            recent = held.handed_on(self._clock.monotonic())
            self._drop(held)
        record = Record(job, now, recent)
        self._records[job.id] = record
        self._enqueue(record, job.delay, now)
        return None

    def _claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        monotonic, now = self._clock.monotonic(), self._clock.now()
        session = nonce.rpartition(".")[0]
        last = self._last_claims.get(session)
        if last is not None and last.nonce == nonce:
            claims = [record.claim() for record, token in last.taken if record.token == token]
            return Claimed(claims, [], self._due_in())
        rescued = self._rescue(limit + 100)
        self._promote(now)
        taken: list[tuple[Record, str]] = []
        random, until = self._clock.random_bytes(8).hex(), monotonic + lease
        while len(taken) < limit and (record := self._ready.pop()):
            token = f"{self._count(now)}-{random}"
            record.start(worker_id, token, lease, until, now)
            self._held.add(record)
            taken.append((record, token))
        self._none_lapses_before = min(self._none_lapses_before, until if taken else NEVER)
        self._last_claims[session] = _LastClaim(nonce, monotonic, taken)
        self._forget_sessions(monotonic)
        due_in = self._due_in()
        if due_in == 0.0:
            self._wake_one()  # One worker wakes the next, so that an add wakes no herd.
        elif taken and due_in is not None:
            self._wake_if_earlier(due_in)  # What the claimer knew of it may be too busy for by then.
        return Claimed([record.claim() for record, _ in taken], rescued, due_in)

    def _extend(self, id: str, token: str, until: float, lease: float) -> Held:
        record = self._records.get(id)
        if record is None or record.token != token:
            return Held.LOST
        if until > record.lease_until:
            record.lease, record.lease_until = lease, until
        return Held.CANCEL_ASKED if record.cancel_asked else Held.HELD

    def _settle(self, settlement: Settlement, now: float) -> Settled:
        record = self._records.get(settlement.id)
        if record is None:
            return Settled.LOST
        if record.token != settlement.token:
            repeated = record.settled_token == settlement.token
            answer = record.settled_as if repeated else record.answered(settlement.token, self._clock.monotonic())
            return answer if isinstance(answer, Settled) else Settled.LOST
        self._unlease(record)
        if record.settled_token is not None:
            record.remember(record.settled_token, record.settled_as, self._clock.monotonic())
        decided, state = Settled.CANCELLED if record.cancel_asked else Settled.APPLIED, settlement.state
        record.settled_token, record.settled_as = settlement.token, decided
        if record.cancel_asked:
            self._finish_cancelled(record, now)
        elif state.terminal:
            self._finish(record, state, settlement.result, settlement.error, now, settlement.ttl)
        elif state is State.QUEUED:
            self._give_back(record)
        else:
            record.state, record.error = state, settlement.error
            self._enqueue(record, settlement.delay, now)
        return decided

    def _cancel(self, record: Record, running: bool, now: float) -> None:
        if record.state.waiting:
            record.leave_waiting()
            self._finish_cancelled(record, now)
        elif record.state is State.PROCESSING and running:
            record.cancel_asked = True
            self._hint_all(HintKind.CANCEL_ASKED, record)

    def _revive(self, record: Record, nonce: str, now: float) -> None:
        if record.state is not State.FAILED:
            return
        record.remember_generation(self._clock.monotonic())
        record.generation = nonce
        record.state, record.attempts = State.QUEUED, 0
        record.error = record.started_at = record.finished_at = None
        record.expires_at = NEVER
        record.replies = ()
        self._enqueue(record, 0.0, now)

    def _expire(self, record: Record, now: float, ttl: float) -> None:
        if record.state.terminal and record.finished_at is not None:
            # By a clock that was set back, its end lies ahead; it must not count as expired when it ended.
            record.expires_at = max(now, record.finished_at) + ttl
            self._expiring.push(record.expires_at, record)

    def _get(self, ref: Ref, now: float) -> Snapshot | None:
        record = self._records.get(ref.id)
        if record is None or (record.absent(now) and record.generation != ref.generation):
            return None
        record.note(ref.reply_to)
        return record.snapshot()

    def _rescue(self, limit: int) -> list[Rescued]:
        monotonic, now = self._clock.monotonic(), self._clock.now()
        rescued: list[Rescued] = []
        for record in self._lapsed(monotonic)[:limit]:
            self._unlease(record)
            if record.cancel_asked:
                self._finish_cancelled(record, now)
            elif record.attempts >= record.job.max_attempts:
                self._finish(record, State.FAILED, None, WORKER_LOST, now, record.job.result_ttl)
            else:
                record.state = State.FAILING
                self._enqueue(record, 0.0, now)
            rescued.append(Rescued(record.job.id, record.generation, record.state, record.attempts))
            self._hint_all(HintKind.RESCUED, record)
        return rescued

    def _lapsed(self, monotonic: float) -> list[Record]:
        """Find lapsed leases, the oldest first. All are looked at only when the earliest known deadline has passed."""
        jumped_back = monotonic < self._looked_at
        self._looked_at = monotonic
        if monotonic < self._none_lapses_before and not jumped_back:
            return []
        for record in self._held:
            # Each lease is bounded by its own length, should the clock have jumped back.
            record.lease_until = min(record.lease_until, monotonic + record.lease)
        self._none_lapses_before = min((record.lease_until for record in self._held), default=NEVER)
        lapsed = [record for record in self._held if record.lease_until <= monotonic]
        return sorted(lapsed, key=lambda record: (record.lease_until, record.token))

    # Steps that transitions are made of.

    def _once(self, id: str, nonce: str, change: Callable[[Record, float], None]) -> State | None:
        """Apply a change unless the nonce was answered before; answer with the state found."""
        record, now, monotonic = self._records.get(id), self._clock.now(), self._clock.monotonic()
        if record is None:
            return None
        answer = record.answered(nonce, monotonic)
        if isinstance(answer, State):
            return answer
        if record.absent(now):
            return None
        found = record.state
        change(record, now)
        record.remember(nonce, found, monotonic)
        return found

    def _enqueue(self, record: Record, delay: float, now: float) -> None:
        if delay > 0.0:
            record.place, record.due = int(now * 1e6), now + delay
            self._later.push(record.due, record)
            self._wake_if_earlier(delay)
        else:
            self._make_ready(record, self._count(now))
            self._wake_one()

    def _make_ready(self, record: Record, place: int) -> None:
        record.place, record.due = place, NEVER
        record.ready_key = key = place - (record.job.priority << 64)
        self._ready.push(key, record)

    def _give_back(self, record: Record) -> None:
        record.attempts -= 1
        record.state = State.QUEUED if record.attempts == 0 else State.FAILING
        self._make_ready(record, record.place)
        self._wake_one()

    def _promote(self, now: float) -> None:
        """Make due jobs ready, in the place that their due time gives them."""
        while (record := self._later.top()) and record.due <= now:
            self._make_ready(record, int(record.due * 1e6))

    def _unlease(self, record: Record) -> None:
        record.token, record.lease_until = None, NEVER
        self._held.discard(record)
        if not self._held:
            self._none_lapses_before = NEVER

    def _finish(
        self, record: Record, state: State, result: bytes | None, error: bytes | None, now: float, ttl: float
    ) -> None:
        record.state, record.result, record.error = state, result, error
        record.finished_at = now
        record.lingers_until = self._clock.monotonic() + LINGER
        record.cancel_asked = False
        if state is not State.FAILED:
            record.payload = b""
        record.expires_at = now + ttl
        self._expiring.push(record.expires_at, record)
        if record.replies:
            kind = HintKind.CANCELLED if state is State.CANCELLED else HintKind.SETTLED
            self._hints.append((record.replies, record.hint(kind)))
            record.replies = ()

    def _finish_cancelled(self, record: Record, now: float) -> None:
        self._finish(record, State.CANCELLED, None, None, now, 0.0)

    def _drop(self, record: Record) -> None:
        record.expires_at = NEVER
        if self._records.get(record.job.id) is record:
            del self._records[record.job.id]

    def _count(self, now: float) -> int:
        """Return the next number, which is also the clock's µs unless more numbers than µs were needed."""
        if now > self._counted_at:  # The same instant counts for a whole batch.
            self._counted_at = now
            self._counter = max(self._counter, int(now * 1e6) - 1)
        self._counter += 1
        return self._counter

    def _due_in(self) -> float | None:
        if self._ready.top():
            return 0.0
        later, lapses_in = self._later.top(), self._lapses_in(self._clock.monotonic())
        due_in = None if later is None else max(0.0, later.due - self._clock.now())
        return min((seconds for seconds in (due_in, lapses_in) if seconds is not None), default=None)

    def _lapses_in(self, monotonic: float) -> float | None:
        """Seconds until a lease may lapse: never too long, since it decides how long others sleep."""
        return max(0.0, self._none_lapses_before - monotonic) if self._held else None

    def _forget_sessions(self, monotonic: float) -> None:
        if len(self._last_claims) > 64:
            for session, last in list(self._last_claims.items()):
                if last.at < monotonic - LINGER:
                    del self._last_claims[session]

    # Waking and telling.

    def _wake_one(self) -> None:
        while self._sleepers:
            if self._sleepers.pop(0).wake():
                return

    def _wake_if_earlier(self, seconds: float) -> None:
        """Wake a sleeper if none of them would be awake when ``seconds`` have passed."""
        at = self._clock.monotonic() + seconds
        if all(sleeper.until > at or sleeper.gone for sleeper in self._sleepers):
            self._wake_one()

    def _hint_all(self, kind: HintKind, record: Record) -> None:
        if self._watches:
            self._hints.append((None, Hint(kind, record.job.id, record.generation, None, record.attempts)))

    @contextmanager
    def _transition(self) -> Iterator[None]:
        """Hold the lock; deliver the hints once it is free, since a handler may come straight back."""
        with self._lock:
            yield
            hints, self._hints = self._hints, []
        here = running_loop() if hints else None
        for addresses, hint in hints:
            for address in addresses if addresses is not None else tuple(self._watches):
                if watch := self._watches.get(address):
                    watch.deliver(hint, here)
