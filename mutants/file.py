"""Bugs in FileStorage: most of them in its SQL."""

from __future__ import annotations

from functools import partial

from mutants.mutant import Mutant, kit

_file = partial(kit, "File")
_FILE = "storage/transitions.py"

FILE = (
    Mutant(
        "file-settle-without-token",
        _FILE,
        "a worker that was given up overwrites its successor's work",
        "WHERE queue = ? AND id = ? AND token = ? AND cancel_asked = 0",
        "WHERE queue = ? AND id = ? AND (token = ? OR token IS NOT NULL) AND cancel_asked = 0",
        _file("an_old_token_cannot_settle_the_next_attempt"),
        quick=True,
    ),
    Mutant(
        "file-give-back-without-token",
        _FILE,
        "a late give-back takes a job from whoever runs it now",
        "        if row.token != settlement.token:\n",
        "        if row.token is None:\n",
        _file("an_old_token_cannot_settle_the_next_attempt"),
    ),
    Mutant(
        "file-extend-without-token",
        _FILE,
        "a worker that lost its lease keeps renewing its successor's",
        "            elif row is None or row.token != token:\n",
        "            elif row is None or row.token is None:\n",
        _file("a_stale_extend_does_not_extend"),
    ),
    Mutant(
        "file-add-replaces",
        _FILE,
        "an enqueue of a held id throws away the job that holds it",
        "VALUES {rows} ON CONFLICT DO NOTHING",
        "VALUES {rows} ON CONFLICT DO UPDATE SET generation = excluded.generation, payload = excluded.payload",
        _file("the_first_writer_wins"),
        quick=True,
    ),
    Mutant(
        "file-claim-in-two-steps",
        "storage/namespace.py",
        "two processes see the same job free, and both take it",
        """        def verb(work: Transitions) -> Claimed:
            session = nonce.rpartition(".")[0]
""",
        """        free = "SELECT number FROM jobs WHERE queue = ? AND state <= 1 AND due IS NULL"
        seen = await self._do("look", lambda work: work._run(free, (work._queue,)).fetchall())

        def verb(work: Transitions) -> Claimed:
            work._run_many("UPDATE jobs SET state = 0 WHERE number = ?", seen)
            session = nonce.rpartition(".")[0]
""",
        _file("of_racing_claims_one_gets_each_job"),
    ),
    Mutant(
        "file-resent-add-not-recognized",
        _FILE,
        "an enqueue whose reply was lost is told that somebody else holds the id",
        "        if row.generation == job.nonce or row.answered(job.nonce, self._now) is not UNKNOWN:\n",
        "        if False:\n",
        _file("an_add_sent_twice_is_accepted_twice_and_done_once"),
    ),
    Mutant(
        "file-resent-claim-not-recognized",
        _FILE,
        "jobs of a claim whose reply was lost wait for their leases to lapse",
        "        if last == nonce:\n",
        "        if False:\n",
        _file("a_claim_sent_twice_gets_the_same_claims"),
    ),
    Mutant(
        "file-resent-cancel-not-recognized",
        "storage/steps.py",
        "a cancel whose reply was lost is told that there is no such job",
        "        if isinstance(answer, State):\n            return answer\n",
        "",
        _file("a_cancel_sent_twice_is_answered_alike"),
    ),
    Mutant(
        "file-order-lost",
        _FILE,
        "jobs run in the order of their ids instead of their turn",
        "ORDER BY priority DESC, place LIMIT ?",
        "ORDER BY priority DESC, id LIMIT ?",
        _file("equal_jobs_run_in_the_order_they_were_added"),
        quick=True,
    ),
    Mutant(
        "file-attempt-not-counted",
        _FILE,
        "a job that kills its workers is run for ever",
        "SET state = 2, attempts = attempts + 1, worker = ?",
        "SET state = 2, worker = ?",
        _file("every_claim_counts_an_attempt"),
    ),
    Mutant(
        "file-last-attempt-of-a-dead-worker-repeated",
        _FILE,
        "a job that kills its workers is run for ever",
        "            elif row.attempts >= row.max_attempts:\n",
        "            elif row.attempts > row.max_attempts:\n",
        _file("a_single_attempt_that_lapses_is_the_last"),
    ),
    Mutant(
        "file-lease-kept-by-what-has-ended",
        _FILE,
        "leases of ended jobs pile up, and each is looked at again",
        '_UNLEASE = "token = NULL, lease_until = NULL,',
        '_UNLEASE = "token = NULL,',
        _file("next_in_is_none_when_nothing_is_left"),
    ),
    Mutant(
        "file-prune-of-a-running-job",
        _FILE,
        "a job that runs for long is removed under its worker",
        """(SELECT number FROM jobs INDEXED BY expiring
            WHERE queue = ? AND expires_at <= ? ORDER BY expires_at LIMIT ?)""",
        """(SELECT number FROM jobs
            WHERE queue = ? AND created_at + result_ttl <= ? LIMIT ?)""",
        _file("prune_keeps_a_running_job_however_long_it_runs"),
    ),
    Mutant(
        "file-expiry-of-another-job",
        _FILE,
        "results vanish early or stay for ever, because all get the first one's expiry",
        "now, now + settlement.ttl, state, 0)",
        "now, now + settlements[0].ttl, state, 0)",
        _file("jobs_that_end_in_one_call_expire_each_in_its_own_time"),
    ),
    Mutant(
        "file-result-of-a-cancelled-run-stored",
        _FILE,
        "a job that was asked to stop completes all the same",
        "AND token = ? AND cancel_asked = 0 AND replies IS NULL",
        "AND token = ? AND replies IS NULL",
        _file("what_a_job_yields_after_it_was_asked_to_stop_is_dropped"),
    ),
    Mutant(
        "file-lock-for-everybody",
        _FILE,
        "two reapers lead at once",
        " WHERE owner = excluded.owner OR until <= ?",
        " WHERE owner = excluded.owner OR until > 0 * ?",
        _file("a_lock_has_one_owner"),
    ),
    Mutant(
        "file-queues-mixed",
        "storage/steps.py",
        "a queue reads and settles the jobs of another",
        'INDEXED BY by_id WHERE queue = ? AND id IN ({marks})", (self._queue, *some)',
        'WHERE ? IS NOT NULL AND id IN ({marks})", (self._queue, *some)',
        _file("queues_do_not_see_each_other", "nothing_done_to_one_queue_changes_another"),
    ),
    Mutant(
        "file-clock-that-jumped-back-not-noticed",
        _FILE,
        "after a reboot the jobs of dead workers wait for days",
        "        self._set_back()\n",
        "",
        _file("a_lease_too_far_ahead_is_set_back_to_its_own_length"),
    ),
    Mutant(
        "file-clock-that-jumped-back-not-noticed-by-a-claim",
        _FILE,
        "where no reaper runs the jobs of dead workers wait for days",
        "        lapsed = lapses is not None and (lapses <= self._monotonic or leased > self._monotonic)\n",
        "        lapsed = lapses is not None and lapses <= self._monotonic\n",
        _file("a_claim_sets_leases_back_as_well"),
    ),
    Mutant(
        "file-fault-kept-of-a-neighbour",
        "storage/sqlite.py",
        "half of a verb that failed is committed with the verbs that travelled with it",
        '                connection.execute("ROLLBACK TO operation")\n',
        "                pass\n",
        ("tests/outside/test_file_storage.py::test_a_fault_fails_one_call_and_not_its_neighbours[commit]",),
    ),
)
