"""Bugs of belief: in what was read a moment ago, in an index, in a request that looks new, in any reply at all."""

from __future__ import annotations

from functools import partial

from mutants.mutant import Mutant, kit

_memory, _file, _valkey = partial(kit, "Memory"), partial(kit, "File"), partial(kit, "Valkey")
_WORKER = "tests/engine/test_worker.py::"
_GARBLED = "tests/faults_redis/test_garbled_replies.py::"
_TAMPERING = "tests/faults_redis/test_tampering.py::"

BELIEF = (
    Mutant(
        "stopped-run-settled-as-completed",
        "_executor.py",
        "a deploy that cuts a run short tells its caller that the job has completed",
        "makes an end of the job instead of giving it back.\n                return _given_back(claim)\n",
        'makes an end of it.\n                return _completed(claim, None, b"null", claim.result_ttl)\n',
        (f"{_WORKER}test_stop_cancels_at_its_deadline_and_gives_back[memory-0]",),
    ),
    Mutant(
        "memory-prune-of-a-running-job",
        "storage/memory.py",
        "a job that runs for long is removed under its worker",
        """            while removed < limit and (record := self._expiring.top()) and record.expires_at <= until:
                if record.lingers_until > monotonic:
                    break
""",
        """            created = list(self._records.values())
            while removed < limit and created and (record := created.pop(0)):
                if record.created_at + record.job.result_ttl > until:
                    continue
""",
        _memory("prune_keeps_a_running_job_however_long_it_runs"),
    ),
    Mutant(
        "memory-resent-revive-not-recognized",
        "storage/memory.py",
        "a revive whose reply was lost is told that there was nothing to revive",
        "self._once(id, nonce, lambda record, now: self._revive(record, nonce, now))",
        "self._once(id, object(), lambda record, now: self._revive(record, nonce, now))",
        _memory("a_revive_sent_twice_starts_one_run"),
    ),
    Mutant(
        "memory-resent-retain-not-recognized",
        "storage/memory.py",
        "a retain whose reply was lost keeps the result for longer than was asked, or is told that there is none",
        "self._once(id, nonce, lambda record, now: self._expire(record, now, ttl))",
        "self._once(id, object(), lambda record, now: self._expire(record, now, ttl))",
        _memory("a_retain_sent_twice_counts_from_the_first"),
    ),
    Mutant(
        "memory-claim-believes-the-line",
        "storage/records.py",
        "a job runs although it was cancelled, because its place in the line was still there",
        "            if getattr(record, attribute) == key:\n",
        "            if True:\n",
        _memory("a_new_run_of_a_cancelled_id_owes_nothing_to_the_old"),
    ),
    Mutant(
        "file-rescue-of-a-stale-snapshot",
        "storage/namespace.py",
        "a job is taken from a worker that was found lapsed, and has settled meanwhile",
        """        return await self._do("rescue", lambda work: work.rescue(limit))
""",
        """        from jobq.storage.rows import COLUMNS

        lapsed = f"SELECT {COLUMNS} FROM jobs WHERE queue = ? AND lease_until <= ? LIMIT ?"
        seen = await self._do("look", lambda work: work._fetch(lapsed, (work._queue, work._monotonic, limit)))

        def verb(work: Transitions) -> Rescue:
            work._fetch = lambda statement, values: seen
            return work.rescue(limit)

        return await self._do("rescue", verb)
""",
        _file("of_a_settle_and_a_rescue_one_decides"),
    ),
    Mutant(
        "file-prune-of-a-retained-job",
        "storage/transitions.py",
        "a result is removed although its expiry was put off",
        "WHERE queue = ? AND expires_at <= ? ORDER BY expires_at LIMIT ?)",
        "WHERE queue = ? AND expires_at IS NOT NULL AND finished_at <= ? ORDER BY expires_at LIMIT ?)",
        _file("prune_spares_what_was_retained"),
    ),
    Mutant(
        "file-cancel-looks-first",
        "storage/namespace.py",
        "a job answered as cancelled runs, because it was claimed in between",
        """        return await self._do("cancel", lambda work: work.cancel(id, running, nonce))
""",
        """        from jobq.storage.rows import COLUMNS

        seen = await self._do("look", lambda work: work._rows((id,), COLUMNS).get(id))

        def verb(work: Transitions) -> State | None:
            if seen is not None and seen.state.waiting:
                work._run("DELETE FROM jobs WHERE number = ?", (seen.number,))
                return seen.state
            return work.cancel(id, running, nonce)

        return await self._do("cancel", verb)
""",
        _file("cancel_and_claim_do_not_both_win"),
    ),
    Mutant(
        "file-linger-of-zero",
        "storage/rows.py",
        "a request that is sent again finds that its first answer is forgotten",
        "        if at <= now - LINGER:\n",
        "        if at <= now:\n",
        _file("a_cancel_sent_twice_is_answered_alike"),
    ),
    Mutant(
        "file-record-removed-as-it-expires",
        "storage/transitions.py",
        "a request that is sent again finds that its job is gone",
        "            (self._queue, self._now - LINGER, limit),\n",
        "            (self._queue, self._now, limit),\n",
        _file("prune_removes_only_what_has_lingered"),
    ),
    Mutant(
        "file-resent-revive-not-recognized",
        "storage/transitions.py",
        "a revive whose reply was lost is told that there was nothing to revive",
        """            row.place = self._count()
            self._announce(0.0)

        return self._once(id, nonce, change)
""",
        """            row.place = self._count()
            self._announce(0.0)

        return self._once(id, self._clock.random_bytes(8).hex(), change)
""",
        _file("a_revive_sent_twice_starts_one_run"),
    ),
    Mutant(
        "file-resent-retain-not-recognized",
        "storage/transitions.py",
        "a retain whose reply was lost keeps the result for longer than was asked, or is told that there is none",
        """ + ttl

        return self._once(id, nonce, change)
""",
        """ + ttl

        return self._once(id, self._clock.random_bytes(8).hex(), change)
""",
        _file("a_retain_sent_twice_counts_from_the_first"),
    ),
    Mutant(
        "file-claim-ignores-the-state",
        "storage/transitions.py",
        "a job that runs already is handed out again, and one that has ended runs once more",
        'FROM jobs INDEXED BY ready WHERE queue = {queue} AND state <= 1 AND due IS NULL"',
        'FROM jobs WHERE queue = {queue} AND due IS NULL"',
        _file("a_job_is_claimed_by_one"),
    ),
    Mutant(
        "file-settle-is-told-nobody",
        "storage/transitions.py",
        "callers learn of a result only by reading again",
        "            self.hints.append((addresses, row.hint(kind)))\n",
        "",
        _file("who_asked_is_told_how_a_job_ends"),
    ),
    Mutant(
        "file-damage-told-as-it-comes",
        "storage/sqlite.py",
        "a worker ends by an exception of Python's, because rows are missing in a damaged database",
        "        except _SENSELESS as error:\n",
        "        except () as error:\n",
        ("tests/hostile/test_damaged_rows.py::test_what_is_damaged_beside_the_jobs_is_told_to_whoever_claims",),
    ),
    Mutant(
        "redis-rescue-without-comparing",
        "storage/redis/_lapsing.lua",
        "a job is taken from whoever holds it now, because of the lease of one that held it before",
        "  if not record or record[TOKEN] ~= string.sub(lease, 1, 12) then\n",
        "  if not record then\n",
        (f"{_TAMPERING}test_entries_without_their_jobs_are_cleared_away[valkey]",),
    ),
    Mutant(
        "redis-prune-of-a-retained-job",
        "storage/redis/prune.lua",
        "a result is removed although its expiry was put off",
        "record[TERM] + LINGER / 1000 <= now",
        "record[FINISHED] + LINGER / 1000 <= now",
        _valkey("prune_spares_what_was_retained"),
    ),
    Mutant(
        "redis-expiry-of-another-job",
        "storage/redis/settle.lua",
        "results vanish early or stay for ever, because all get the first one's expiry",
        "ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3])\n",
        "ARGV[i], ARGV[i + 1], tonumber(ARGV[7])\n",
        _valkey("jobs_that_end_in_one_call_expire_each_in_its_own_time"),
    ),
    Mutant(
        "redis-linger-of-zero",
        "storage/redis/scripts.py",
        "a request that is sent again finds that its first answer is forgotten",
        '    "LINGER": round(LINGER * 1e6),\n',
        '    "LINGER": 0,\n',
        _valkey("a_cancel_sent_twice_is_answered_alike"),
    ),
    Mutant(
        "redis-resent-revive-not-recognized",
        "storage/redis/revive.lua",
        "a revive whose reply was lost is told that there was nothing to revive",
        "once(ARGV[4], ARGV[5], function",
        "once(ARGV[4], ARGV[5] .. redis.call('TIME')[2], function",
        _valkey("a_revive_sent_twice_starts_one_run"),
    ),
    Mutant(
        "redis-resent-retain-not-recognized",
        "storage/redis/retain.lua",
        "a retain whose reply was lost keeps the result for longer than was asked, or is told that there is none",
        "once(ARGV[4], ARGV[5], function",
        "once(ARGV[4], ARGV[5] .. redis.call('TIME')[2], function",
        _valkey("a_retain_sent_twice_counts_from_the_first"),
    ),
    Mutant(
        "redis-claim-believes-the-entry",
        "storage/redis/claim.lua",
        "a job that runs already, or has ended, is handed out because of an entry that was left behind",
        "due > 0 or (state ~= QUEUED and state ~= FAILING) or from ~= struct.unpack('>I8', entry)",
        "false",
        (f"{_TAMPERING}test_entries_without_their_jobs_are_cleared_away[valkey]",),
    ),
    Mutant(
        "redis-no-answer-taken-for-accepted",
        "storage/redis/namespace.py",
        "an enqueue is told that its job is accepted by a reply that says nothing",
        'return None if answer == b"" else read_snapshot(id, answer)',
        "return None if not answer else read_snapshot(id, answer)",
        (f"{_GARBLED}test_what_is_no_answer_is_never_taken_for_one",),
    ),
    Mutant(
        "redis-unknown-script-has-no-error-of-ours",
        "storage/redis/trouble.py",
        "a call or a start ends by an exception that no caller knows, where a proxy knows no script",
        '    if code == "NOSCRIPT" and _name(command) == "EVALSHA":\n',
        '    if code == "NOSCRIPT":\n',
        (f"{_GARBLED}test_a_script_that_is_unknown_by_its_text_as_well_is_a_typed_error",),
    ),
    Mutant(
        "redis-sleepers-forgotten-after-a-garbled-reply",
        "storage/redis/markers.py",
        "after one odd reply the workers of this process hear of no job any more, and look by chance",
        '        raise InvalidResponse("no answer to a BLPOP")\n',
        '        raise TypeError("no answer to a BLPOP")\n',
        (f"{_GARBLED}test_who_sleeps_is_still_woken_after_a_garbled_reply",),
    ),
)
