"""Bugs in MemoryStorage, the contract in its clearest text."""

from __future__ import annotations

from functools import partial

from mutants.mutant import Mutant, kit

_memory = partial(kit, "Memory")
_CONTRACT = "tests/contract/test_memory.py::"
_FILE = "storage/memory.py"

MEMORY = (
    Mutant(
        "memory-settle-without-token",
        _FILE,
        "a worker that was given up overwrites its successor's work",
        "        if record.token != settlement.token:\n",
        "        if record.token is None:\n",
        _memory("an_old_token_cannot_settle_the_next_attempt"),
        quick=True,
    ),
    Mutant(
        "memory-give-back-without-token",
        _FILE,
        "a late give-back takes a job from whoever runs it now",
        "        if record.token != settlement.token:\n",
        "        if record.token != settlement.token and settlement.state is not State.QUEUED:\n",
        _memory("an_old_token_cannot_settle_the_next_attempt"),
    ),
    Mutant(
        "memory-extend-without-token",
        _FILE,
        "a worker that lost its lease keeps renewing its successor's",
        "        if record is None or record.token != token:\n",
        "        if record is None or record.token is None:\n",
        _memory("a_stale_extend_does_not_extend"),
        quick=True,
    ),
    Mutant(
        "memory-unlock-by-anybody",
        _FILE,
        "a reaper that stops takes the lead from another",
        '            if self._locks.get(name, ("", 0.0))[0] == owner:\n',
        "            if name in self._locks:\n",
        _memory("only_the_owner_releases"),
    ),
    Mutant(
        "memory-rescue-of-a-stale-snapshot",
        _FILE,
        "a job is taken from a worker that was found lapsed, and has settled meanwhile",
        """        with self._transition():
            rescued = self._rescue(limit)
""",
        """        with self._lock:
            lapsed = self._lapsed(self._clock.monotonic())
        await asyncio.sleep(0)
        with self._transition():
            self._lapsed = lambda monotonic: lapsed
            rescued = self._rescue(limit)
            del self._lapsed
""",
        _memory("racing_rescuers_rescue_each_job_once"),
    ),
    Mutant(
        "memory-claim-in-two-steps",
        _FILE,
        "two workers see the same job free, and both take it",
        """        with self._transition():
            answer = self._claim(worker_id, lease, limit, nonce)
""",
        """        with self._lock:
            seen = [record for record in self._records.values() if record.state.waiting and record.due == NEVER]
        await asyncio.sleep(0)
        with self._transition():
            for record in seen:
                self._make_ready(record, record.place)
            answer = self._claim(worker_id, lease, limit, nonce)
""",
        _memory("concurrent_claims_share_the_jobs_without_overlap"),
        quick=True,
    ),
    Mutant(
        "memory-attempt-of-a-dead-worker-not-counted",
        _FILE,
        "a job that kills its workers is run for ever",
        "                record.state = State.FAILING\n                self._enqueue(record, 0.0, now)\n",
        "                record.state = State.FAILING\n                record.attempts -= 1\n"
        "                self._enqueue(record, 0.0, now)\n",
        _memory("a_job_that_kills_its_workers_fails"),
        quick=True,
    ),
    Mutant(
        "memory-give-back-uses-an-attempt",
        _FILE,
        "deploys use up the attempts of jobs that were given back",
        "        record.attempts -= 1\n",
        "",
        _memory("a_job_given_back_keeps_its_place_and_its_attempts"),
    ),
    Mutant(
        "memory-give-back-to-the-end-of-the-line",
        _FILE,
        "a job that was given back waits behind all that came later",
        "        self._make_ready(record, record.place)\n        self._wake_one()\n",
        "        self._make_ready(record, self._count(self._clock.now()))\n        self._wake_one()\n",
        _memory("a_job_given_back_keeps_its_place_and_its_attempts"),
    ),
    Mutant(
        "memory-prune-of-a-retained-job",
        _FILE,
        "a result is removed although its expiry was put off",
        "record.expires_at <= until:\n",
        "(record.finished_at or 0.0) <= until:\n",
        _memory("prune_spares_what_was_retained"),
    ),
    Mutant(
        "memory-cancel-looks-first",
        _FILE,
        "a job answered as cancelled runs, because it was claimed in between",
        """        with self._transition():
            return self._once(id, nonce, lambda record, now: self._cancel(record, running, now))
""",
        """        seen = self._records.get(id)
        waiting = seen is not None and seen.state.waiting
        await asyncio.sleep(0)
        with self._transition():
            if seen is not None and waiting:
                self._drop(seen)
                return State.QUEUED
            return self._once(id, nonce, lambda record, now: self._cancel(record, running, now))
""",
        _memory("cancel_and_claim_do_not_both_win"),
    ),
    Mutant(
        "memory-add-looks-first",
        _FILE,
        "two producers find an id free, and the second replaces the job of the first",
        """        with self._transition():
            now = self._clock.now()
            answers = [self._add(job, now) for job in jobs]
""",
        """        free = [job.id for job in jobs if job.id not in self._records]
        await asyncio.sleep(0)
        with self._transition():
            now = self._clock.now()
            for id in free:
                self._records.pop(id, None)
            answers = [self._add(job, now) for job in jobs]
""",
        _memory("concurrent_adds_of_one_id_are_accepted_once"),
        quick=True,
    ),
    Mutant(
        "memory-resent-add-not-recognized",
        _FILE,
        "an enqueue whose reply was lost is told that somebody else holds the id",
        "if held.generation == job.nonce or held.answered(job.nonce, self._clock.monotonic()) is not UNKNOWN:\n",
        "if False:\n",
        _memory("an_add_sent_twice_is_accepted_twice_and_done_once"),
        quick=True,
    ),
    Mutant(
        "memory-resent-claim-not-recognized",
        _FILE,
        "jobs of a claim whose reply was lost wait for their leases to lapse",
        "        if last is not None and last.nonce == nonce:\n",
        "        if False:\n",
        _memory("a_claim_sent_twice_gets_the_same_claims"),
        quick=True,
    ),
    Mutant(
        "memory-resent-cancel-not-recognized",
        _FILE,
        "a cancel whose reply was lost is told that there is no such job",
        "        if isinstance(answer, State):\n            return answer\n",
        "",
        _memory("a_cancel_sent_twice_is_answered_alike"),
    ),
    Mutant(
        "memory-result-of-a-cancelled-run-stored",
        _FILE,
        "a job that was asked to stop completes all the same",
        "        decided, state = Settled.CANCELLED if record.cancel_asked else Settled.APPLIED, settlement.state\n",
        "        decided, state = Settled.APPLIED, settlement.state\n        record.cancel_asked = False\n",
        _memory("what_a_job_yields_after_it_was_asked_to_stop_is_dropped"),
    ),
    Mutant(
        "memory-lease-shortened",
        _FILE,
        "a renewal that arrives late takes time from the next",
        "        if until > record.lease_until:\n",
        "        if True:\n",
        _memory("extend_never_shortens_a_lease"),
    ),
    Mutant(
        "memory-lease-by-the-wall-clock",
        _FILE,
        "every lease lapses when the clock of the machine is set",
        """    def _claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        monotonic, now = self._clock.monotonic(), self._clock.now()
""",
        """    def _claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        monotonic, now = self._clock.now(), self._clock.now()
""",
        _memory("leases_ignore_the_wall_clock"),
    ),
    Mutant(
        "memory-delay-not-waited-for",
        _FILE,
        "a retry's backoff is ignored, and a broken job spins",
        "            record.place, record.due = int(now * 1e6), now + delay\n",
        "            record.place, record.due = int(now * 1e6), now\n",
        _memory("a_retried_job_waits_for_its_delay"),
    ),
    Mutant(
        "memory-priority-turned-round",
        _FILE,
        "what is urgent runs last",
        "place - (record.job.priority << 64)",
        "place + (record.job.priority << 64)",
        _memory("higher_priority_runs_first"),
    ),
    Mutant(
        "memory-wake-up-lost-with-a-cancelled-sleeper",
        _FILE,
        "a job that is ready lies until somebody looks by chance",
        "                self._wake_one()  # It may have been woken",
        "                pass  # It may have been woken",
        _memory("a_cancelled_sleeper_passes_its_wake_up_on"),
    ),
    Mutant(
        "linger-of-zero",
        "storage/contract.py",
        "a request that is sent again finds that its first answer is forgotten",
        "LINGER = 10.0\n",
        "LINGER = 0.0\n",
        _memory("a_cancel_sent_twice_is_answered_alike"),
        quick=True,
    ),
    Mutant(
        "memory-claims-of-many-workers-forgotten",
        "storage/memory.py",
        "of many workers those whose reply was lost wait for their leases to lapse",
        "if last.at < monotonic - LINGER:",
        "if last.at <= monotonic:",
        _memory("each_of_very_many_workers_repeats_its_own_claim"),
    ),
    Mutant(
        "memory-claim-wakes-nobody-for-its-lapse",
        "storage/memory.py",
        "the job of a worker that dies waits until somebody wakes up by chance",
        "            self._wake_if_earlier(due_in)  # What the claimer knew of it may be too busy for by then.\n",
        "            pass\n",
        _memory("a_claim_wakes_a_sleeper_who_would_sleep_through_its_lapse"),
    ),
    Mutant(
        "memory-later-than-the-next-event-asleep",
        "storage/memory.py",
        "a delayed job that was added after a worker's claim is overslept",
        """                timeout = min(timeout, due_in)  # What came since the caller's claim counts as well.
""",
        "                pass\n",
        _memory("waiting_ends_when_something_falls_due"),
    ),
    Mutant(
        "memory-extend-keeps-the-first-length",
        "storage/memory.py",
        "a job that was renewed for longer is taken away when the clock jumps back",
        "            record.lease, record.lease_until = lease, until\n",
        "            record.lease_until = until\n",
        _memory("a_lease_that_was_renewed_for_longer_is_set_back_to_that_length"),
    ),
    Mutant(
        "memory-lock-until-the-end-of-its-last-moment",
        "storage/memory.py",
        "a lock is held for a moment longer than its owner believes it to be",
        "now < until",
        "now <= until",
        _memory("a_lock_ends_with_its_time"),
    ),
    Mutant(
        "memory-prune-of-the-lingering",
        "storage/memory.py",
        "a wall clock that is set makes a job run again whose enqueue was sent again",
        "                if record.lingers_until > monotonic:\n                    break\n",
        "",
        (f"{_CONTRACT}test_a_job_that_ended_before_the_wall_clock_jumped_is_not_run_again",),
    ),
    Mutant(
        "memory-lingers-not-after-an-end",
        "storage/memory.py",
        "a wall clock that is set makes a job run again whose enqueue was sent again",
        "        record.lingers_until = self._clock.monotonic() + LINGER\n",
        "",
        (f"{_CONTRACT}test_a_job_that_ended_before_the_wall_clock_jumped_is_not_run_again",),
    ),
    Mutant(
        "memory-lingers-not-after-a-change",
        "storage/records.py",
        "a change whose reply was lost before the wall clock was set finds no job",
        "        self.lingers_until = monotonic + LINGER\n",
        "",
        (f"{_CONTRACT}test_a_change_that_was_made_before_the_wall_clock_jumped_is_answered_alike",),
    ),
    Mutant(
        "memory-compaction-breaks-the-heap",
        "storage/records.py",
        "among many jobs those that were due first come last",
        "        heapq.heapify(self._heap)\n",
        "",
        (f"{_CONTRACT}test_a_heap_is_in_order_whatever_left_it_before_it_was_cleared_of_that",),
    ),
)
