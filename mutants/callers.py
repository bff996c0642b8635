"""Bugs in what adds jobs and waits for them: callers are answered late, wrongly or never."""

from __future__ import annotations

from mutants.mutant import Mutant

_WAITERS = "tests/engine/test_waiters.py::"
_QUEUE = "tests/engine/test_queue.py::"

CALLERS = (
    Mutant(
        "waiter-reads-again-once-only",
        "_watch.py",
        "of the callers whose hints were lost only the first are ever answered",
        "            await self._read_all()\n        self._rereader = None\n",
        "            await self._read_all()\n",
        (f"{_WAITERS}test_hints_lost_after_a_quiet_while_cost_a_second_as_well",),
    ),
    Mutant(
        "waiter-reads-the-first-thousand",
        "_watch.py",
        "a caller behind a thousand others whose hint was lost waits for theirs",
        "waiters[start : start + _MOST_AT_ONCE]",
        "waiters[:_MOST_AT_ONCE]",
        (f"{_WAITERS}test_who_waits_behind_a_thousand_others_is_read_as_well",),
    ),
    Mutant(
        "hint-before-the-answer-dropped",
        "_watch.py",
        "a caller whose hint overtook its answer waits for a second",
        "                elif waiter.seen_at is None:\n                    waiter.aside = snapshot\n",
        "",
        (f"{_WAITERS}test_a_hint_that_overtakes_the_answer_is_not_lost",),
    ),
    Mutant(
        "waiter-entry-not-removed",
        "_watch.py",
        "a process that ever waited looks for nobody every second, and keeps an entry for each id",
        "            if not waiters:\n                del self._waiters[waiter.id]\n",
        "",
        (f"{_WAITERS}test_nothing_is_kept_of_waits_that_are_over",),
    ),
    Mutant(
        "waiter-timeout-not-discarded",
        "_watch.py",
        "results are kept in memory until the timeouts of those who have them",
        "        if waiter.tick >= 0:\n            self._timeouts.discard(waiter, waiter.tick)\n",
        "",
        (f"{_WAITERS}test_nothing_is_kept_of_waits_that_are_over",),
    ),
    Mutant(
        "seen-at-not-renewed",
        "_watch.py",
        "a lost job is taken for one that ended and expired",
        "                waiter.answer(answer)\n                waiter.seen_at = self._loop.time()\n",
        "                waiter.answer(answer)\n",
        (f"{_WAITERS}test_a_lost_run_is_told_from_one_that_expired_however_long_it_was_waited_for",),
    ),
    Mutant(
        "wait-asks-for-no-hint",
        "_producer.py",
        "every wait(id) is answered a second late",
        "Ref(id, None, address)",
        "Ref(id, None, None)",
        (f"{_WAITERS}test_a_wait_for_the_job_of_another_is_answered_by_a_hint",),
    ),
    Mutant(
        "stop-leaves-looks-unanswered",
        "_producer.py",
        "a look that a stop meets raises, although its answer is on the way",
        "                await self._reader.drain()\n",
        "",
        (f"{_WAITERS}test_a_look_that_a_stop_meets_is_still_answered",),
    ),
    Mutant(
        "order-lost-at-a-full-batch",
        "_batch.py",
        "large jobs run in another order than they were added",
        "pending.appendleft(entry)",
        "pending.append(entry)",
        (f"{_QUEUE}test_large_jobs_are_added_in_their_order_and_a_mebibyte_at_a_time[memory]",),
    ),
    Mutant(
        "batch-without-limit-of-bytes",
        "_batch.py",
        "a crowd of large jobs holds up the storage for seconds",
        "                if batch and total > MOST_BYTES:\n",
        "                if False:\n",
        (f"{_QUEUE}test_large_jobs_are_added_in_their_order_and_a_mebibyte_at_a_time[memory]",),
    ),
    Mutant(
        "close-forgets-what-is-in-flight",
        "_batch.py",
        "a call that a stop meets is never answered",
        "given_up = [*self._carried, *self._pending]",
        "given_up = [*self._pending]",
        (f"{_QUEUE}test_a_call_that_is_never_answered_ends_with_the_stop",),
    ),
    Mutant(
        "pair-refused-as-a-whole",
        "_batch.py",
        "a job that is refused fails the one that travelled with it",
        "if may_be_one and len(batch) > 1:",
        "if may_be_one and len(batch) > 2:",
        (f"{_QUEUE}test_a_job_that_the_storage_refuses_does_not_fail_its_neighbour[memory]",),
    ),
)
