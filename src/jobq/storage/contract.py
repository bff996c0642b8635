"""The storage contract: what a storage must do so that jobq's promises hold on it.

A storage keeps jobs, each under an id, in named queues that never see each other. It moves jobs between states, and
every move is one method, one atomic step. It sees bytes and numbers, never what a payload means. Whoever writes one
needs this file and `jobq.testing`, whose conformance kit checks every line of it.

Transitions
-----------

    ====================  =====================  =========================  ==========================================
    from                  to                     verb                       only if
    ====================  =====================  =========================  ==========================================
    absent                queued                 add                        nobody holds the id
    queued, failing       processing             claim                      it is due
    processing            processing             extend                     the token is the current one
    processing            completed              settle(COMPLETED)          the token is the current one
    processing            failed                 settle(FAILED)             the token is the current one
    processing            failing                settle(FAILING)            the token is the current one
    processing            queued or failing      settle(QUEUED)             the token is the current one
    processing            cancelled (absent)     settle(any)                the token is current and a cancel was asked
    queued, failing       cancelled (absent)     cancel
    processing            processing, asked      cancel(running=True)
    processing            failing, due at once   rescue, claim              the lease lapsed, attempts are left
    processing            failed (WORKER_LOST)   rescue, claim              the lease lapsed, no attempts are left
    processing            cancelled (absent)     rescue, claim              the lease lapsed and a cancel was asked
    failed                queued                 revive                     unexpired
    completed, failed     the same               retain                     unexpired
    completed, failed     absent                 time passing               ``expires_at`` is reached
    ====================  =====================  =========================  ==========================================

What is true in every state
---------------------------

    ==================  ======================================================================================
    queued, failing     no token, no lease; waits in the order of readiness, or for its due time
    processing          one token, one lease; ``attempts`` counts this attempt
    completed           no token, no lease, no payload; result and ``expires_at`` are set
    failed              no token, no lease; payload kept for `revive`; error and ``expires_at`` are set
    cancelled           absent; its record lingers
    ==================  ======================================================================================

Invariants
----------

1.  **One holder of an id.** Test and insert of `add` are one step; the first writer wins. Of an id that occurs twice in
    one call the first wins. An expired or cancelled record does not hold its id: a new add replaces it.
2.  **One decision per token.** A claim's token is ``"<counter>-<random>"``. The counter is
    ``max(previous + 1, clock in µs)``, strictly increasing within a queue; the token is never reused and is compared
    whole. `settle` and `extend` act only where the token is the current one; a refused call changes nothing at all.
3.  **Terminal is absorbing.** State, result, error and attempts of a completed or failed job never change, until it
    expires or `revive` starts a new generation.
4.  **Attempts are counted at claim**, in the step that takes the job, so a job that kills its worker cannot run for
    ever. Giving back (settle to QUEUED) refunds the attempt: the job is ``queued`` when none is left counted, else
    ``failing``. Lapsed with ``attempts >= max_attempts`` it fails with error `WORKER_LOST`.
    A settle to FAILING is taken at its word: whether attempts are left is for the engine to know.
5.  **Order.** Higher priority first; equals by the moment they became ready. A job without delay is ready at
    once, whatever any clock says. Delayed, retried, rescued and revived jobs queue anew when due; a given-back job
    keeps its place.
6.  **Leases lapse by the storage's own clock**, one that does not jump (see `Clock.monotonic`). A deadline further
    ahead than its own lease is long is set back to now + lease by whoever rescues. A restart of the machine lapses all.
    Until rescued, a lapsed job still reads as processing and its token is still the current one.
7.  **Generation.** Every accepted add or revive gives the job a new one: the nonce of that request. Snapshots, claims
    and hints carry it.
8.  **Everything may be sent twice.** A request that repeats a nonce within `LINGER` seconds gets its first answer and
    changes nothing more, also after the job has ended, expired, been revived, or been replaced by another add.
    A repeated claim gets those of its claims that still stand; one that took nothing may take what has become ready
    since. A record keeps the last token that settled it and what was answered, and remembers those before like
    nonces, so a repeated settle is answered as at first, also after another claim, its settle or an expiry. A storage
    may forget the earliest of more than `MOST_REMEMBERED` requests about one job.
9.  **Linger.** Absent is a way of reading, not a deletion. A job cancelled, or completed with ``ttl=0``, expires at
    once, and is absent for everyone except a request that repeats its nonce and a `get` that names its generation. Its
    record may be removed `LINGER` seconds after the expiry, by `prune`. What expired as it ended is absent by every
    clock, for those of two processes, or of one before and after a jump, may differ.
10. **Hints are hints.** What `watch` delivers may be lost, late or doubled. A hint carries a snapshot only if it is
    certain to come from the storage (over a channel that others can write to: if it repeats the watch's secret).
11. **Answers are per job**, and an error may be an answer: a record that cannot be read never fails its neighbours.
12. **Durations cross this seam, never instants to compare**: the storage's clock is not its caller's. Instants in
    snapshots are for people, in epoch seconds.

Errors: a storage translates its client's exceptions at its edge into `StorageError` and its kinds. Transient trouble
(busy, connection lost) is `StorageUnavailableError`: the engine sends the same request again for `RESEND_FOR` seconds.

Cancellation: a verb cancelled while it waits may or may not have happened, as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol, TypeAlias

import msgspec

from jobq.clock import Clock
from jobq.errors import StorageError
from jobq.job import Claim, Counts, NewJob, Settlement, Snapshot, State

LINGER = 10.0
"""Seconds for which a record outlives its expiry, and a nonce is remembered."""
MOST_REMEMBERED = 1000
"""Requests of one job that are remembered; of more within `LINGER` seconds the earliest are forgotten."""
MOST_ADDRESSES = 100
"""Addresses that are noted with one job, the latest; who is forgotten is not told, and finds out by reading again."""
RESEND_FOR = 5.0
"""Seconds after its first sending within which a request may be sent again."""
WORKER_LOST = b"WORKER_LOST"
"""The error of a job whose leases lapsed on its last attempt; the engine words it."""
PUSHED_RESULT_LIMIT = 64 * 1024
"""A larger result or error is left out of hints and read instead."""


class Ref(msgspec.Struct, frozen=True, gc=False):
    """Which job a `get` asks for."""

    id: str
    generation: str | None = None
    """If given, and the record is of this generation, it is answered even when it is expired or cancelled."""
    reply_to: str | None = None
    """If given, and the job has not ended, this watch address is told how it ends."""


class Settled(StrEnum):
    """What a settle did."""

    APPLIED = "applied"
    LOST = "lost"
    """The token is not the current one: nothing was written."""
    CANCELLED = "cancelled"
    """A cancel had been asked for: the job is absent, and the outcome was dropped."""


class Held(StrEnum):
    """What an extend found."""

    HELD = "held"
    LOST = "lost"
    """The token is not the current one: somebody else decides about this job."""
    CANCEL_ASKED = "cancel_asked"
    """Held and extended, and the handler should be stopped."""


class Rescued(msgspec.Struct, frozen=True, gc=False):
    """A job taken from a worker whose lease lapsed."""

    id: str
    generation: str
    state: State
    """FAILING: it runs again; FAILED: `WORKER_LOST`; CANCELLED: a cancel had been asked for."""
    attempts: int


class Rescue(msgspec.Struct, frozen=True):
    """The answer of `rescue`."""

    rescued: list[Rescued]
    next_in: float | None
    """Seconds until the next lease lapses; None if none is held; 0.0 if more have lapsed already."""


class Claimed(msgspec.Struct, frozen=True):
    """The answer of `claim`."""

    claims: list[Claim]
    """At most ``limit``, in order; may be empty."""
    rescued: list[Rescued]
    """Jobs whose lapsed lease this claim ended on the way."""
    next_in: float | None
    """Seconds until something falls due or a lease lapses; 0.0 if something is due now; None if nothing is left."""


class HintKind(StrEnum):
    """What a hint is about."""

    SETTLED = "settled"
    """The job completed or failed; told to the addresses that asked for this job."""
    CANCELLED = "cancelled"
    """The job is cancelled; told to the same."""
    RESCUED = "rescued"
    """A lapsed lease was ended; told to every watch of the queue."""
    CANCEL_ASKED = "cancel_asked"
    """A running job should stop; told to every watch of the queue."""
    MISSED = "missed"
    """Hints may have been lost until now, of any job; told by a watch of itself, where it can know."""


class Hint(msgspec.Struct, frozen=True, gc=False):
    """Lossy news about a job."""

    kind: HintKind
    id: str
    generation: str
    snapshot: Snapshot | None = None
    """With SETTLED and CANCELLED, if small and certain."""
    attempts: int = 0
    """With RESCUED: which attempt was lost, so that one rescue is announced once."""


class Watch(Protocol):
    """A subscription to hints."""

    @property
    def address(self) -> str:
        """What to put into ``reply_to``; opaque, and it contains this watch's secret."""
        ...

    async def close(self) -> None:
        """End the subscription; closing twice is harmless."""
        ...


AddAnswer: TypeAlias = Snapshot | StorageError | None
GetAnswer: TypeAlias = Snapshot | StorageError | None
SettleAnswer: TypeAlias = Settled | StorageError
HeldAnswer: TypeAlias = Held | StorageError


class Namespace(Protocol):
    """One queue's jobs. Every method is one atomic step per job; plural methods answer in the order asked."""

    async def add(self, jobs: Sequence[NewJob]) -> Sequence[AddAnswer]:
        """``absent → queued``. None means accepted; else the snapshot that holds the id, with its result.

        Where a job that holds the id has not ended, a ``reply_to`` is noted with it: the latest `MOST_ADDRESSES` of
        them, because many programs may ask for one job in the course of time.
        """
        ...

    async def claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        """``queued, failing → processing`` for at most ``limit`` due jobs; never waits for one.

        First it ends lapsed leases as `rescue` does. ``worker_id`` is a label; ``lease`` is in seconds.
        """
        ...

    async def extend(self, claims: Sequence[tuple[str, str]], lease: float) -> Sequence[HeldAnswer]:
        """``processing → processing``: lapse ``lease`` seconds from now. ``claims`` are (id, token) pairs."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleAnswer]:
        """End claims: compare the token, write state, result and expiry, drop the lease, hint to waiters: one step."""
        ...

    async def cancel(self, id: str, running: bool, nonce: str) -> State | None:
        """``queued, failing → absent``; with ``running`` also ask a processing job to stop.

        Returns:
            The state found, or None if absent. A cancel that is asked for twice is answered alike.
        """
        ...

    async def revive(self, id: str, nonce: str) -> State | None:
        """``failed → queued``: attempts from zero, ``created_at`` kept. Returns the state found, or None."""
        ...

    async def retain(self, id: str, ttl: float, nonce: str) -> State | None:
        """Let a terminal job expire ``ttl`` seconds from now; 0 at once. Returns the state found, or None.

        By a wall clock that is behind the one by which the job ended, the seconds count from its end.
        """
        ...

    async def rescue(self, limit: int) -> Rescue:
        """End at most ``limit`` lapsed leases. Any number of rescuers may race: each job is rescued once."""
        ...

    async def prune(self, limit: int) -> int:
        """Remove at most ``limit`` records whose expiry is `LINGER` or more seconds ago. Returns how many."""
        ...

    async def get(self, refs: Sequence[Ref]) -> Sequence[GetAnswer]:
        """One consistent snapshot per job, or None. It changes nothing, but for noting ``reply_to``."""
        ...

    async def wait_for_work(self, timeout: float) -> bool:
        """Return when a job may be claimable, or something falls due earlier than was known; else after ``timeout``.

        It may return early for nothing. Work that arrives wakes one sleeper where the storage can, and a claim that
        leaves work behind wakes the next. Cancelled after it was woken, it passes the wake-up on; where nothing is
        missed (`is_vigilant`) it wakes another in any case, since others may rely on it to look in time.

        Returns:
            True if a claim should be made; that is never wrong. False if it would be in vain: nothing was there that is
            or ever falls due, nobody has woken this sleeper, and the next call begins by looking again.
        """
        ...

    async def watch(self, handler: Callable[[Hint], None]) -> Watch:
        """Call ``handler`` in this loop for each hint; every add after the return is covered."""
        ...


class Lock(Protocol):
    """Mutual exclusion with a time limit, for leader election."""

    async def hold(self, name: str, owner: str, ttl: float) -> bool:
        """Take or renew the lock for ``ttl`` seconds; False while another owner holds it."""
        ...

    async def release(self, name: str, owner: str) -> None:
        """Free the lock if ``owner`` holds it."""
        ...


class Inspector(Protocol):
    """Reads for people: they may be slow, and are never on the hot path."""

    async def counts(self) -> Counts:
        """Jobs by state; states without jobs are left out."""
        ...

    async def page(self, state: State, after: str, limit: int) -> Sequence[Snapshot]:
        """At most ``limit`` unexpired jobs in ``state`` with an id greater than ``after``, in the order of ids."""
        ...

    async def workers(self) -> Sequence[tuple[str, int]]:
        """Labels of workers that hold jobs, and how many each holds."""
        ...


class QueueStorage(Namespace, Lock, Inspector, Protocol):
    """All of a queue's view of a storage."""


class Storage(Protocol):
    """A place where jobs are kept; one object serves many queues."""

    @property
    def clock(self) -> Clock:
        """The clock that decides; queues on this storage use it too."""
        ...

    async def open(self) -> None:
        """Connect with the first call; later ones count. It may be opened in another loop once it is closed.

        Raises:
            StorageUnavailableError: not reachable within 5 s; try again later.
            StorageCorruptError: what is stored is damaged or of a newer version.
        """
        ...

    async def close(self) -> None:
        """Undo one `open`; the last one disconnects."""
        ...

    def namespace(self, name: str) -> QueueStorage:
        """Return the view of one queue, always the same object. It may be asked for before `open`."""
        ...

    def twin(self) -> Storage | None:
        """Return a second connection to the same data, for another thread's loop; None where there can be none."""
        ...


def is_remote(storage: Storage) -> bool:
    """Return whether a storage's work is done by another program, so that this one can go on meanwhile.

    A storage says so with an attribute ``remote`` that is true. Then a worker asks for the next jobs before it begins
    those that it was given. In the same program that would only make more and smaller calls.
    """
    return bool(getattr(storage, "remote", False))


def is_vigilant(storage: Storage) -> bool:
    """Return whether who sleeps on a storage notices within a second whatever can be claimed, told of it or not.

    A storage says so with an attribute ``vigilant`` that is true. A worker whose queue is empty need not
    look again every ``block_timeout``.
    """
    return bool(getattr(storage, "vigilant", False))
