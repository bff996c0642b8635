"""Bugs in what hands jobs over, runs them and waits for them."""

from __future__ import annotations

from mutants.mutant import Mutant

_WAITERS = "tests/engine/test_waiters.py::"
_WORKER = "tests/engine/test_worker.py::"
_QUEUE = "tests/engine/test_queue.py::"
_LOST_REPLIES = "tests/engine/test_lost_replies.py::"

ENGINE = (
    Mutant(
        "waiter-trusts-hints",
        "_watch.py",
        "a caller whose hint was lost waits for ever",
        "            await asyncio.sleep(READ_AGAIN_EVERY)\n            await self._read_all()\n",
        "            await asyncio.sleep(READ_AGAIN_EVERY)\n",
        (f"{_WAITERS}test_a_lost_hint_costs_a_second_and_never_the_answer[memory]",),
    ),
    Mutant(
        "waiter-takes-another-run",
        "_watch.py",
        "a caller gets another run's result, by a hint",
        "                if waiter.generation == snapshot.generation:\n",
        "                if True:\n",
        (f"{_WAITERS}test_a_hint_of_another_run_is_no_answer",),
        quick=True,
    ),
    Mutant(
        "waiter-reads-another-run",
        "_watch.py",
        "a caller gets another run's result, by reading again",
        "(isinstance(answer, Snapshot) and answer.generation != waiter.generation)",
        "False",
        (f"{_WAITERS}test_generations_are_never_mixed[memory-True]",),
    ),
    Mutant(
        "none-taken-for-no-result",
        "_watch.py",
        "a caller whose job returned None waits for ever",
        "        if snapshot.state.terminal and not self.future.done():\n",
        '        if snapshot.state.terminal and snapshot.result != b"null" and not self.future.done():\n',
        ("tests/engine/test_executor.py::test_a_value_comes_back_exactly[memory-None-coroutine]",),
    ),
    Mutant(
        "cached-none-taken-for-no-result",
        "_producer.py",
        "an enqueue of a job that returned None is told that it is a duplicate",
        "        if held.state is State.COMPLETED:\n",
        "        if held.state is State.COMPLETED and self.decode(held) is not None:\n",
        (f"{_QUEUE}test_enqueue_of_a_completed_id_brings_the_cached_result[memory]",),
    ),
    Mutant(
        "lost-reply-taken-for-a-failure",
        "_batch.py",
        "a call whose reply was lost raises, although it took effect",
        "            wait = pause * clock.uniform(0.5, 1.0)\n",
        "            raise\n",
        (f"{_LOST_REPLIES}test_an_enqueue_is_accepted_once",),
        quick=True,
    ),
    Mutant(
        "resent-claim-under-a-new-name",
        "_worker.py",
        "jobs of a claim whose reply was lost wait for their leases to lapse",
        "self._namespace.claim(options.worker_id, options.lease, limit, nonce)",
        "self._namespace.claim(options.worker_id, options.lease, limit, self._nonces.next())",
        (f"{_LOST_REPLIES}test_a_claimed_job_runs_at_once",),
    ),
    Mutant(
        "resent-cancel-under-a-new-name",
        "_producer.py",
        "a cancel whose reply was lost is told that there is no such job",
        "lambda: self._namespace.cancel(id, running, nonce)",
        "lambda: self._namespace.cancel(id, running, self._nonces.next())",
        (f"{_LOST_REPLIES}test_a_change_is_answered_by_what_it_found_at_first[cancel]",),
    ),
    Mutant(
        "expiry-of-the-queue",
        "_producer.py",
        "a job's own result_ttl is ignored",
        '        ttl = options.result_ttl if result_ttl is None else check_seconds("result_ttl", result_ttl)\n',
        "        ttl = options.result_ttl\n",
        (f"{_QUEUE}test_result_ttl_of_one_job_overrides_the_queues[memory]",),
        quick=True,
    ),
    Mutant(
        "renewal-ignores-the-answer",
        "_lease.py",
        "a worker goes on with a job that is another's by now, and announces its end",
        """            if answer is Held.LOST:
                lost.append(running)
            elif isinstance(answer, Held):
""",
        "            if isinstance(answer, Held):\n",
        (f"{_WORKER}test_a_lost_lease_is_noticed_at_the_next_renewal",),
    ),
    Mutant(
        "lost-lease-noticed-late",
        "_lease.py",
        "two handlers run beside each other until the lease of the first would have ended",
        "                lost.append(running)\n",
        "                pass\n",
        (f"{_WORKER}test_a_lost_lease_is_noticed_at_the_next_renewal",),
    ),
    Mutant(
        "lease-counted-from-the-answer",
        "_worker.py",
        "a claim whose answer came late is run although others may run the job by now",
        "        lease_until = sent_at + options.lease\n",
        "        lease_until = now + options.lease\n",
        (f"{_WORKER}test_a_claim_whose_renewal_is_late_as_well_is_not_run[memory]",),
    ),
    Mutant(
        "late-claim-run-unasked",
        "_worker.py",
        "a job that others took, after its lease and before the answer came, runs here as well",
        "            claims, sent_at = await self._reassure(claims)\n",
        "            sent_at = self._clock.monotonic()\n",
        (f"{_WORKER}test_a_claim_that_others_took_before_it_arrived_is_not_run[memory]",),
    ),
    Mutant(
        "late-claim-dropped-by-stop",
        "_worker.py",
        "a job that was claimed while its worker stopped waits for its lease to lapse",
        """            self._decide(running, Outcome(Settlement(claim.id, claim.token, State.QUEUED)))
            return
""",
        "            return\n",
        (f"{_WORKER}test_a_claim_answered_after_stop_began_is_given_back[memory]",),
        quick=True,
    ),
    Mutant(
        "stopped-run-counted-as-failed",
        "_executor.py",
        "every deploy uses up attempts of the jobs that ran",
        '            case "stopping" | "cancelled" | "lease_lost":\n',
        '            case "cancelled" | "lease_lost":\n',
        (f"{_WORKER}test_stop_cancels_at_its_deadline_and_gives_back[memory-0]",),
    ),
    Mutant(
        "stop-gives-back-what-still-runs",
        "_worker.py",
        "a handler that ignores a stop runs beside the next run of its job",
        "            running.decided = True  # Given back now, it would run twice at the same time.\n",
        "            self._decide(running, Outcome(Settlement(running.claim.id, running.claim.token, State.QUEUED)))\n",
        (f"{_WORKER}test_stop_returns_whatever_handlers_do[memory-0]",),
    ),
    Mutant(
        "hook-after-the-write",
        "_executor.py",
        "after_execution sees a job that is stored, and cannot change it any more",
        "            return await self._reviewed(running, job, value, result)\n",
        "            running.job = asyncio.ensure_future(self._reviewed(running, job, value, result))\n",
        ("tests/engine/test_hook.py::test_it_sees_a_success_before_it_is_stored[memory]",),
    ),
    Mutant(
        "more-claims-than-slots",
        "_worker.py",
        "jobs lie with a busy worker while others are idle",
        "        return min(concurrency - len(self._running) - taken, ",
        "        return min(concurrency, ",
        (
            f"{_WORKER}test_a_worker_never_claims_more_than_it_runs[memory]",
            f"{_WORKER}test_no_more_handlers_than_slots_run_and_all_slots_are_used[memory-3]",
        ),
    ),
    Mutant(
        "settle-given-up-at-the-first-trouble",
        "_worker.py",
        "what a handler did while the storage was away is done again",
        "        if self._ended or not isinstance(error, StorageError)",
        "        if True or self._ended or not isinstance(error, StorageError)",
        (f"{_WORKER}test_trouble_while_settling_never_fails_a_job[memory]",),
    ),
    Mutant(
        "value-after-the-time-was-over",
        "_executor.py",
        "a value that a handler returned after job_timeout is stored",
        '        if running.signal.reason == "job_timeout":\n',
        "        if False:\n",
        (f"{_WORKER}test_a_value_returned_after_the_time_is_over_is_dropped[memory]",),
    ),
    Mutant(
        "one-attempt-too-many",
        "_executor.py",
        "a job that fails runs once more than max_attempts says",
        "            case _ if claim.attempts >= claim.max_attempts:\n",
        "            case _ if claim.attempts > claim.max_attempts:\n",
        (f"{_QUEUE}test_max_attempts_of_one_job_overrides_the_queues[memory]",),
    ),
    Mutant(
        "lead-kept-without-the-lock",
        "_leader.py",
        "a reaper whose lock was taken goes on, and two lead at once",
        "            self._until = asked_at + self._ttl if held else 0.0\n",
        "            self._until = asked_at + self._ttl\n",
        ("tests/engine/test_reaper.py::test_a_leader_whose_lock_was_taken_stops_acting[memory]",),
    ),
)
