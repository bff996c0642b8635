"""Worker: claims jobs, runs them as tasks, and settles what became of them.

    claim ──► Running ──► Executor.execute ──► Outcome ──► settle
                 │  ▲
                 │  └── lease renewed by `_lease`, from a thread
                 └───── asked to end: job_timeout, lease lost, cancelled, stopping

Rules that the code below keeps:

1. Never more claims than free slots; a slot is free again when the handler has really ended.
2. One decision per claim (`Running.decided`); whatever a handler does after it is dropped.
3. The flush of what is settled and the next claim leave together.
4. Trouble with the storage never becomes a failure of a job: settling is repeated until the lease ends, then left.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from jobq._announce import tell_rescued, tell_settled
from jobq._batch import Batcher, resend, start
from jobq._executor import Executor, Outcome
from jobq._lease import Inquiry, LeaseGroup, Renewer
from jobq._moments import Looks
from jobq._nonces import Nonces
from jobq._prune import Pruner
from jobq._running import JobTime, Running
from jobq._timeouts import Timeouts
from jobq.errors import StorageError, StorageUnavailableError
from jobq.events import Emitter
from jobq.job import Claim, Settlement, State
from jobq.signal import AbortReason
from jobq.storage.contract import LINGER, Claimed, Held, Settled, Storage, is_remote, is_vigilant

IGNORED_AFTER = 1.0
"""Seconds after which a cancelled handler that has not ended counts as one that ignores cancellation."""
_STOP_GRACE, _SETTLE_GRACE = 0.5, 0.2
_LONGEST_PAUSE = 1.0

current_worker: contextvars.ContextVar[weakref.ref[Worker] | None] = contextvars.ContextVar("jobq_worker", default=None)
"""The worker whose handler this code runs in. A context outlives what it was made for, in any timer, so it is weak."""


class _Taken(NamedTuple):
    """What a claim brought."""

    claims: Sequence[Claim]
    sent_at: float
    next_in: float | None
    full: bool
    """Whether it brought all that was asked for, so that more may be there."""


class WorkerOptions(msgspec.Struct, frozen=True):
    """What a worker needs to know of its queue's options."""

    queue: str
    worker_id: str
    concurrency: int
    block_timeout: float
    lease: float
    job_timeout: float | None
    loop_stall_limit: float


class Worker:
    """Consumes one queue in one event loop, from `start` to `stop`."""

    def __init__(
        self,
        storage: Storage,
        executor: Executor[Any, Any],
        options: WorkerOptions,
        *,
        emitter: Emitter,
        timeouts: Timeouts,
        nonces: Nonces,
        logger: logging.Logger,
    ) -> None:
        self._storage = storage
        self._namespace = storage.namespace(options.queue)
        self._remote = is_remote(storage)
        self._executor = executor
        self._options = options
        self._emitter = emitter
        self._timeouts = timeouts
        self._nonces = nonces.session()
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._clock = storage.clock
        self._settler: Batcher[Settlement, Settled] = Batcher(
            self._namespace.settle, clock=self._clock, size=lambda s: len(s.result or s.error or b"")
        )
        self._group = LeaseGroup(
            options.queue,
            options.lease,
            stall_limit=options.loop_stall_limit,
            lost=self._lost,
            cancel_asked=lambda running: self._abort(running, "cancelled"),
            stalled=self._loop_stalled,
        )
        self._pruner = Pruner(self._namespace, queue=options.queue, label=options.worker_id, logger=logger)
        self._inquiry = Inquiry(self._group, self._namespace, self._clock)
        self._running: dict[Running, None] = {}
        """A set in the order of claiming, so that a history can be repeated."""
        self._unsettled = 0
        self._looks = Looks(options.block_timeout, options.worker_id, vigilant=is_vigilant(storage))
        self._stopping = self._ended = self._troubled = False
        self._stop_at, self._next_lapse = 0.0, math.inf
        self._changed = asyncio.Event()
        self._asleep = self._awakened = False
        """Whether the claimer sleeps; whether it was us who cancelled it, and only to end its sleep."""
        self._lease_timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._unanswered: tuple[str, float] | None = None
        """The nonce of a claim whose outcome is unknown, and when it was first sent."""
        self._looked_since = True
        """Whether a look has begun since somebody asked to be told when nothing is left."""
        self.until_empty = False
        """Whether somebody waits for `drained`."""
        self.deserted = asyncio.Event()
        """Set when somebody else cancelled the claimer: nothing will be claimed here any more."""
        self.drained = asyncio.Event()
        """Set when a claim found nothing at all left to do, now or later."""

    def start(self) -> None:
        Renewer.of(self._storage).join(self._group, self._storage)
        # Never eagerly, whatever factory of tasks the loop has: the claimer must find itself among them.
        work = (self._consume(), self._pruner.keep_pruning())
        self._tasks = [asyncio.Task(coroutine, loop=self._loop) for coroutine in work]

    async def stop(self, timeout: float) -> None:
        """Stop claiming, wait, cancel, give back. Returns within ``timeout`` and one second, whatever handlers do."""
        self._stop_at = self._loop.time() + timeout
        self._stopping = True
        self._changed.set()
        self._awaken()
        claimer, pruner = self._tasks
        pruner.cancel()
        claimer.add_done_callback(lambda _: self._changed.set())
        await self._until(claimer.done, least=0.1)
        await self._until(lambda: not self._running)
        if self._running or not claimer.done():
            await self._end_handlers(claimer)
        claimer.cancel()
        await self._until(lambda: not self._unsettled, least=_SETTLE_GRACE)
        self._ended = True
        await self._settler.close(StorageUnavailableError("the worker was stopped before the storage answered"))
        await asyncio.wait(self._tasks)
        await self._inquiry.close()
        await Renewer.of(self._storage).leave(self._group)
        if self._lease_timer is not None:
            self._lease_timer.cancel()
        self._executor.close()

    def hurry(self) -> None:
        """Let a stop that waits for handlers wait no longer."""
        self._stop_at = self._loop.time()
        self._changed.set()

    def ask_to_cancel(self, id: str) -> None:
        """Stop this worker's run of a job soon, if the storage says so too; without a hint the next renewal asks."""
        self._inquiry.ask(id)

    def tell_when_empty(self) -> None:
        """Look whether anything is left, and set `drained` once nothing is; what an earlier look found is past."""
        self.until_empty = True
        self._looked_since = False
        self.drained.clear()
        self._awaken()

    # Claiming.

    async def _consume(self) -> None:
        current_worker.set(weakref.ref(self))  # The tasks of handlers are made in this context and inherit it.
        try:
            await self._claim_jobs()
        except (asyncio.CancelledError, Exception):
            if not self._stopping:
                self.deserted.set()
                self._logger.warning("queue %s ended without stop(): its jobs lapse", self._options.queue)
            raise

    async def _claim_jobs(self) -> None:
        while not self._stopping:
            room = self._room()
            if room <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            taken = await self._take(room)
            while taken is not None and taken.full:
                taken = await self._begin_while_taking_more(taken)
            if taken is not None:
                self._begin_all(taken)
                if not taken.claims:
                    await asyncio.sleep(0)  # A storage that never waits must not starve the loop.
                await self._wait_for_work(taken.next_in)

    def _room(self, taken: int = 0) -> int:
        """Return how many jobs to claim when so many more were taken.

        With a storage elsewhere it is half of the slots at most, so that the storage is busy with one half while the
        handlers have the other, instead of each waiting for the other.
        """
        concurrency = self._options.concurrency
        if self._unsettled > 2 * concurrency:
            return 0
        return min(concurrency - len(self._running) - taken, (concurrency + 1) // 2 if self._remote else concurrency)

    async def _take(self, limit: int) -> _Taken | None:
        """Claim some jobs; None after trouble."""
        self._looked_since = True
        nonce, sent_at = self._name_request()
        claimed = await self._claim(limit, nonce)
        if claimed is None:
            return None
        for rescued in claimed.rescued:
            tell_rescued(self._emitter, rescued)
        claims: Sequence[Claim] = claimed.claims
        full = len(claims) >= limit
        if claims and self._clock.monotonic() >= sent_at + self._options.lease:
            claims, sent_at = await self._reassure(claims)
        return _Taken(claims, sent_at, claimed.next_in, full)

    async def _begin_while_taking_more(self, taken: _Taken) -> _Taken | None:
        """Begin jobs when the claim of the next ones has left; None if there was no such claim."""
        room = self._room(len(taken.claims))
        if room <= 0 or not self._remote or self._stopping:
            self._begin_all(taken)
            await asyncio.sleep(0)  # A storage that answers without waiting must not starve the loop.
            return None
        more = start(self._take(room), self._loop)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            more.cancel()
            raise
        finally:
            self._begin_all(taken)
        return await more

    def _begin_all(self, taken: _Taken) -> None:
        for claim in taken.claims:
            self._begin(claim, taken.sent_at)

    def _name_request(self) -> tuple[str, float]:
        """Return the nonce of the next claim and when it was first sent: the last one's, if nobody knows its outcome.

        What it took is then handed over, instead of waiting for its leases to lapse. A new name is due when the storage
        has forgotten the old one.
        """
        now = self._clock.monotonic()
        if self._unanswered is None or now - self._unanswered[1] > LINGER:
            self._unanswered = (self._nonces.next(), now)
        return self._unanswered

    async def _claim(self, limit: int, nonce: str) -> Claimed | None:
        self._settler.flush()
        options = self._options
        try:
            claimed = await resend(
                self._clock, lambda: self._namespace.claim(options.worker_id, options.lease, limit, nonce)
            )
        except Exception as error:  # A bug in a storage must not end a worker in silence either.
            if not isinstance(error, StorageUnavailableError):
                self._unanswered = None
            await self._sit_out(error)
            return None
        self._unanswered = None
        if self._troubled:
            self._troubled = False
            self._logger.warning("queue %s: the storage answers again; claiming goes on", options.queue)
        return claimed

    async def _reassure(self, late: Sequence[Claim]) -> tuple[Sequence[Claim], float]:
        """Renew what was handed over after its lease, and return what nobody else has taken, with the time of asking.

        After an outage that is all that the worker had asked for, and would else wait until the lease lapses again.
        """
        pairs = [(claim.id, claim.token) for claim in late]
        sent_at = self._clock.monotonic()
        try:
            answers = await resend(self._clock, lambda: self._namespace.extend(pairs, self._options.lease))
        except Exception as error:
            await self._sit_out(error)
            return [], sent_at
        ours = (Held.HELD, Held.CANCEL_ASKED)
        return [claim for claim, answer in zip(late, answers, strict=True) if answer in ours], sent_at

    async def _sit_out(self, error: Exception) -> None:
        """Say once that the storage is in trouble, and try again soon."""
        self._tell_trouble(error)
        self._changed.clear()
        timer = self._loop.call_later(self._clock.uniform(0.1, _LONGEST_PAUSE), self._changed.set)
        if not self._stopping:
            await self._changed.wait()
        timer.cancel()

    def _tell_trouble(self, error: Exception) -> None:
        if not self._troubled:
            self._troubled = True
            self._emitter.emit("error", error)

    async def _wait_for_work(self, next_in: float | None) -> None:
        """Sleep until a claim is worth it."""
        if not self._looked_since:
            return
        if next_in is None and not self._running and not self._unsettled:
            self.drained.set()
        timeout = math.inf if next_in is None else next_in
        while not await self._sleep(timeout) and next_in is None and not self._stopping:
            pass

    async def _sleep(self, longest: float) -> bool:
        """Sleep until the next look at the latest; False if the next sleep begins with that look."""
        timeout = self._looks.next_in(self._loop.time(), longest)
        self._asleep = True
        if (
            self._stopping
        ):  # What a claim has just told us of is left to another, as by whoever is stopped in its sleep.
            self._loop.call_soon(self._awaken)
        try:
            return await self._namespace.wait_for_work(timeout) is not False  # One that says nothing has not looked.
        except asyncio.CancelledError:
            if not self._awakened or self._tasks[0].cancelling() > 1:
                raise
        except Exception as error:
            self._asleep = False
            await self._sit_out(error)
        finally:
            self._asleep = False
            if self._awakened:
                self._awakened = False
                self._tasks[0].uncancel()
        return True

    def _awaken(self) -> None:
        """End a sleep at once, by a cancel of the claimer: a task for each sleep would cost idle queues a fifth."""
        if self._asleep and not self._awakened:
            self._awakened = True
            self._tasks[0].cancel()

    @property
    def _abandoned(self) -> bool:
        """Whether the loop is being torn down under a queue that nobody stopped."""
        return not self._stopping and (self._tasks[0].done() or self._tasks[0].cancelling() > self._awakened)

    # Running.

    def _begin(self, claim: Claim, sent_at: float) -> None:
        options, now = self._options, self._clock.monotonic()
        lease_until = sent_at + options.lease
        if now >= lease_until:
            return  # The answer came so late that others may run the job already.
        # As long as a handler may take to end that was told to: short leases would lapse meanwhile.
        renew_until = math.inf if options.job_timeout is None else now + options.job_timeout + IGNORED_AFTER
        running = Running(claim, lease_until, renew_until)
        self._running[running] = None
        self._pruner.needed = True
        if self._stopping:
            self._running.pop(running, None)
            self._decide(running, Outcome(Settlement(claim.id, claim.token, State.QUEUED)))
            return
        self._group.held[claim.token] = running
        if lease_until < self._next_lapse:  # A claim that was answered late may lapse before those that are held.
            self._watch_leases()
        if options.job_timeout is not None:
            running.tick = self._timeouts.add(JobTime(running, self._time_is_over), options.job_timeout)
        running.task = task = start(self._run(running), self._loop)
        if running.signal.reason is not None and not self._executor.threaded and not task.done():
            task.cancel()  # Asked for in the handler's first step, when there was no task to cancel yet.

    async def _run(self, running: Running) -> None:
        try:
            outcome = await self._executor.execute(running)
            if not running.decided and not self._abandoned:
                self._decide(running, outcome)
        finally:
            self._running.pop(running, None)
            if not running.decided:
                self._group.held.pop(running.claim.token, None)
            self._changed.set()

    def _abort(self, running: Running, reason: AbortReason) -> None:
        """Ask a handler to end. Coroutines are cancelled; plain functions can only look at their signal."""
        if running.decided or running.reason is not None:
            return
        running.signal.abort(reason)
        if running.task is not None and self._can_be_cancelled(running):
            running.task.cancel()

    def _time_is_over(self, running: Running) -> None:
        if running.decided or running.reason == "stopping":
            return  # What a stop has asked to end is given back once it has ended, or left to its lease.
        if running.reviewed and running.standing is None:
            return  # Its handler was asked to end, and the hook is told so already.
        if running.reason is None:
            self._abort(running, "job_timeout")
            if self._can_be_cancelled(running):
                self._timeouts.add(JobTime(running, self._time_is_over), IGNORED_AFTER)
                return
        running.judging = start(self._decide_timed_out(running), self._loop)

    def _can_be_cancelled(self, running: Running) -> bool:
        """Whether it is a coroutine that runs: a handler, or the hook after a plain function has ended."""
        return not self._executor.threaded or running.standing is not None

    async def _decide_timed_out(self, running: Running) -> None:
        """Settle a job whose handler goes on although its time is over; its slot stays taken until it ends."""
        outcome = await self._executor.timed_out(running)
        if not running.decided:
            self._decide(running, outcome)

    # Leases.

    def _watch_leases(self) -> None:
        """Fence what is past its local deadline, then sleep until the next deadline."""
        if self._lease_timer is not None:
            self._lease_timer.cancel()
        self._lease_timer, self._next_lapse = None, math.inf
        now = self._clock.monotonic()
        for running in list(self._group.held.values()):
            if running.lease_until <= now:
                self._lost(running)
        if self._group.held:
            self._next_lapse = min(running.lease_until for running in self._group.held.values())
            self._lease_timer = self._loop.call_later(max(self._next_lapse - now, 0.001), self._watch_leases)

    def _lost(self, running: Running) -> None:
        """Stop a run whose lease is lost: somebody else decides about the job now."""
        self._abort(running, "lease_lost")
        if running.decided:
            return
        running.decided = True
        self._group.held.pop(running.claim.token, None)
        self._emitter.emit("lease_lost", running.claim.id)

    def _loop_stalled(self, seconds: float) -> None:
        self._logger.error(
            "queue %s: the event loop stood still for %.1f s, so its jobs were left to other workers; "
            "move blocking code into a plain function handler",
            self._options.queue,
            seconds,
        )

    # Settling.

    def _decide(self, running: Running, outcome: Outcome) -> None:
        running.decided = True
        self._group.held.pop(running.claim.token, None)
        if running.tick >= 0:
            self._timeouts.discard(JobTime(running, self._time_is_over), running.tick)
        self._unsettled += 1
        self._settler.put(outcome.settlement, self._settled, (running, outcome))

    def _settled(self, decision: tuple[Running, Outcome], answer: Settled | Exception) -> None:
        running, outcome = decision
        if isinstance(answer, Exception) and self._settle_again(decision, answer):
            return
        self._unsettled -= 1
        if self._unsettled == 0 or self._unsettled == 2 * self._options.concurrency:
            self._changed.set()
        if self.until_empty and not self._unsettled and not self._running:
            self._awaken()  # What was left may have been our own: look again.
        id = running.claim.id
        if answer is Settled.APPLIED:
            tell_settled(self._emitter, id, outcome, running.claim.attempts)
        elif answer is Settled.LOST:
            self._emitter.emit("lease_lost", id)
        elif answer is Settled.CANCELLED:
            self._emitter.emit("cancelled", id)

    def _settle_again(self, decision: tuple[Running, Outcome], error: Exception) -> bool:
        """Repeat a settle until the lease ends; then the job is left to whoever rescues it."""
        running, outcome = decision
        transient = isinstance(error, StorageUnavailableError)
        if transient and not self._ended and self._clock.monotonic() >= running.lease_until:
            self._tell_trouble(error)  # Once for an outage, however many jobs ran; each of them is told of as lost.
            self._emitter.emit("lease_lost", running.claim.id)
            return False
        if self._ended or not isinstance(error, StorageError) or self._clock.monotonic() >= running.lease_until:
            self._emitter.emit("error", error)
            return False
        if not transient and not self._troubled and not running.troubled:
            running.troubled = True  # Once for each job, however often its settle is repeated.
            self._emitter.emit("error", error)
        pause = self._clock.uniform(0.1, 0.3)
        self._loop.call_later(pause, self._settler.put, outcome.settlement, self._settled, decision)
        return True

    # Stopping and upkeep.

    async def _end_handlers(self, claimer: asyncio.Task[None]) -> None:
        """Cancel what runs on after stop's deadline. What does not end is left to its lease.

        A claim that is still under way has as long to be answered, and is given back.
        """
        for running in list(self._running):
            self._abort(running, "stopping")
        await self._until(lambda: not self._running and claimer.done(), least=_STOP_GRACE)
        for running in list(self._running):
            running.decided = True  # Given back now, it would run twice at the same time.
            self._group.held.pop(running.claim.token, None)
            if running.task is not None and self._executor.threaded:
                running.task.cancel()
            self._logger.warning("job %s ignores that its worker stops; left to its lease", ascii(running.claim.id))

    async def _until(self, condition: Callable[[], bool], *, least: float = 0.0) -> None:
        """Wait for a condition until stop's deadline, but at least for so many seconds."""
        earliest = self._loop.time() + least
        while not condition() and (left := max(self._stop_at, earliest) - self._loop.time()) > 0:
            self._changed.clear()
            timer = self._loop.call_later(left, self._changed.set)
            await self._changed.wait()
            timer.cancel()
