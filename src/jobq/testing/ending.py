"""Behaviours of `cancel`, `revive`, `retain` and `prune`."""

from __future__ import annotations

import asyncio

from jobq.job import State
from jobq.storage.contract import LINGER, Held, Settled
from jobq.testing.bench import TTL, Bench, StorageCase, near, scenario


class Cancelling(StorageCase):
    """``queued, failing → absent``, and the wish that a running job should stop."""

    @scenario
    async def test_a_cancelled_job_is_absent_and_never_runs(self, bench: Bench) -> None:
        """Queued, delayed or failing: the state found is told, and the id is free."""
        await bench.add("queued")
        await bench.add("delayed", delay=5.0)
        await bench.settle(await bench.take(), State.FAILING, delay=2.0)

        answers = [await bench.cancel("queued"), await bench.cancel("delayed")]
        bench.clock.advance(60.0)

        assert answers == [State.FAILING, State.QUEUED]
        assert [await bench.state(id) for id in ("queued", "delayed")] == [None, None]
        assert (await bench.claim()).claims == []
        assert await bench.queue.counts() == {}

    @scenario
    async def test_what_expired_at_once_is_absent_by_every_clock(self, bench: Bench) -> None:
        """Cancelled, or not to be kept: it does not come back when the wall clock jumps back or differs."""
        await bench.add("cancelled")
        await bench.cancel("cancelled")
        await bench.completed("not kept", ttl=0.0)
        bench.clock.jump_wall(-3600.0)

        assert [await bench.state(id) for id in ("cancelled", "not kept")] == [None, None]
        assert await bench.queue.counts() == {}
        for id in ("cancelled", "not kept"):
            await bench.add(id)

    @scenario
    async def test_cancelling_what_is_absent_finds_nothing(self, bench: Bench) -> None:
        """Unknown, cancelled before, expired."""
        await bench.completed("expired", ttl=1.0)
        await bench.add("cancelled")
        await bench.cancel("cancelled")
        bench.clock.advance(2.0)

        for id in ("unknown", "cancelled", "expired"):
            assert await bench.cancel(id, running=True) is None

    @scenario
    async def test_cancelling_an_ended_job_changes_nothing(self, bench: Bench) -> None:
        """The state found is told."""
        await bench.completed("completed")
        await bench.failed("failed")
        before = await bench.picture(("completed", "failed"))

        for running in (False, True):
            assert await bench.cancel("completed", running=running) is State.COMPLETED
            assert await bench.cancel("failed", running=running) is State.FAILED

        assert await bench.picture(("completed", "failed")) == before

    @scenario
    async def test_a_running_job_is_left_alone_unless_asked_for(self, bench: Bench) -> None:
        """Plain cancel only says that it is processing."""
        claim = await bench.processing()
        before = await bench.picture()

        assert await bench.cancel() is State.PROCESSING

        assert await bench.picture() == before
        assert await bench.extend(claim) == Held.HELD
        assert await bench.settle(claim) == Settled.APPLIED

    @scenario
    async def test_a_running_job_is_asked_to_stop(self, bench: Bench) -> None:
        """Its holder hears of it with the next extend, and keeps its lease meanwhile."""
        claim = await bench.processing(lease=10.0)

        assert await bench.cancel(running=True) is State.PROCESSING
        snapshot = await bench.found()

        assert (snapshot.state, snapshot.cancel_asked) == (State.PROCESSING, True)
        for _ in range(3):
            bench.clock.advance(8.0)
            assert await bench.extend(claim, 10.0) == Held.CANCEL_ASKED
        assert (await bench.queue.rescue(10)).rescued == []

    @scenario
    async def test_what_a_job_yields_after_it_was_asked_to_stop_is_dropped(self, bench: Bench) -> None:
        """Any outcome ends it as cancelled: absent, without a result, free for a new run."""
        for state in (State.COMPLETED, State.FAILED, State.FAILING, State.QUEUED):
            id = f"job-{state}"
            claim = await bench.processing(id)
            await bench.cancel(id, running=True)

            assert await bench.settle(claim, state, result=b"late", ttl=TTL) == Settled.CANCELLED

            snapshot = await bench.found(id, claim.generation)
            assert (snapshot.state, snapshot.result, snapshot.error) == (State.CANCELLED, None, None)
            assert await bench.state(id) is None
            assert (await bench.claim()).claims == []
            await bench.add(id)
            assert (await bench.take()).attempts == 1

    @scenario
    async def test_a_settle_written_before_the_request_wins(self, bench: Bench) -> None:
        """The answer says that there was nothing left to stop."""
        claim = await bench.processing()
        await bench.settle(claim)

        assert await bench.cancel(running=True) is State.COMPLETED

        assert (await bench.found()).result == b"result"

    @scenario
    async def test_a_stale_settle_does_not_end_a_job_that_was_asked_to_stop(self, bench: Bench) -> None:
        """Only its holder's settle does."""
        old = await bench.failing()
        claim = await bench.take()
        await bench.cancel(running=True)
        before = await bench.picture()

        await bench.settle(old, State.QUEUED)

        assert await bench.picture() == before
        assert await bench.settle(claim) == Settled.CANCELLED

    @scenario
    async def test_a_new_run_of_a_cancelled_id_owes_nothing_to_the_old(self, bench: Bench) -> None:
        """The new payload runs, once; the wish to stop does not linger."""
        await bench.add(payload=b"old", priority=9)
        await bench.cancel()
        await bench.add(payload=b"new")
        claims = (await bench.claim()).claims
        await bench.cancel(running=True)
        await bench.settle(claims[0])
        await bench.add(payload=b"third")

        third = await bench.take()

        assert [claim.payload for claim in claims] == [b"new"]
        assert (third.payload, third.attempts) == (b"third", 1)
        assert await bench.extend(third) == Held.HELD

    @scenario
    async def test_a_waiter_still_learns_of_the_cancel(self, bench: Bench) -> None:
        """By the generation, for as long as the record lingers."""
        job = await bench.add()
        await bench.cancel()
        bench.clock.advance(LINGER - 0.5)

        assert (await bench.found("job", job.nonce)).state is State.CANCELLED

    @scenario
    async def test_cancel_and_claim_do_not_both_win(self, bench: Bench) -> None:
        """A job answered as cancelled is held by nobody."""
        for number in range(10):
            id = f"job-{number}"
            await bench.add(id)
            state, claimed = await asyncio.gather(bench.cancel(id), bench.claim())
            assert (state is State.QUEUED) == (claimed.claims == [])
            for claim in claimed.claims:
                await bench.settle(claim)


class Reviving(StorageCase):
    """``failed → queued``, longer and shorter lives, and the broom."""

    @scenario
    async def test_a_failed_job_starts_anew(self, bench: Bench) -> None:
        """With its payload, its attempts from zero, its creation kept, and a generation of its own."""
        first = await bench.failed(payload=b"again", max_attempts=2, priority=4)
        bench.clock.advance(5.0)
        nonce = bench.nonce()

        assert await bench.revive(nonce=nonce) is State.FAILED
        snapshot = await bench.found()
        claim = await bench.take()

        assert (snapshot.state, snapshot.attempts, snapshot.generation) == (State.QUEUED, 0, nonce)
        assert (snapshot.error, snapshot.finished_at, snapshot.expires_at) == (None, None, None)
        assert (snapshot.max_attempts, snapshot.priority) == (2, 4)
        assert snapshot.created_at == first.created_at
        assert (claim.payload, claim.attempts, claim.generation) == (b"again", 1, nonce)
        assert claim.created_at == first.created_at

    @scenario
    async def test_a_job_whose_worker_was_lost_can_be_revived(self, bench: Bench) -> None:
        """Its payload was kept as well."""
        await bench.processing(payload=b"again", max_attempts=1, lease=5.0)
        bench.clock.advance(5.25)
        await bench.queue.rescue(10)

        assert await bench.revive() is State.FAILED

        assert (await bench.take()).payload == b"again"

    @scenario
    async def test_a_revived_job_does_not_expire(self, bench: Bench) -> None:
        """The expiry of its failure is gone with it, also for the broom."""
        await bench.failed(ttl=5.0)
        await bench.revive()
        bench.clock.advance(5.0 + LINGER + 1.0)

        await bench.queue.prune(100)

        assert await bench.state() is State.QUEUED
        assert (await bench.take()).attempts == 1

    @scenario
    async def test_a_revived_job_queues_anew(self, bench: Bench) -> None:
        """Behind those that were waiting."""
        await bench.failed("revived")
        await bench.add("waiting")
        await bench.revive("revived")

        assert await bench.drained() == ["waiting", "revived"]

    @scenario
    async def test_the_old_generation_is_gone_after_a_revive(self, bench: Bench) -> None:
        """Its token decides nothing, and a waiter of it finds another run."""
        old = await bench.failed()
        await bench.revive()
        before = await bench.picture()

        await bench.settle(old, State.COMPLETED)

        assert await bench.picture() == before
        assert (await bench.found("job", old.generation)).generation != old.generation

    @scenario
    async def test_only_a_failed_job_is_revived(self, bench: Bench) -> None:
        """In every other state nothing changes, and the state found is told."""
        await bench.failing("failing", max_attempts=2)
        await bench.cancel("failing")
        await bench.completed("completed")
        await bench.processing("processing")
        await bench.add("queued")
        ids = ("queued", "processing", "completed")
        before = await bench.picture(ids)

        answers = [await bench.revive(id) for id in (*ids, "failing", "unknown")]

        assert answers == [State.QUEUED, State.PROCESSING, State.COMPLETED, None, None]
        assert await bench.picture(ids) == before

    @scenario
    async def test_an_expired_job_is_not_revived(self, bench: Bench) -> None:
        """Absent is absent, although its record lingers."""
        await bench.failed(ttl=5.0)
        bench.clock.advance(5.25)

        assert await bench.revive() is None
        assert await bench.state() is None
        assert (await bench.claim()).claims == []

    @scenario
    async def test_concurrent_revives_start_one_run(self, bench: Bench) -> None:
        """One finds it failed, the others find it queued."""
        await bench.failed()

        answers = await asyncio.gather(*(bench.revive() for _ in range(5)))

        assert sorted(answers, key=str) == [State.FAILED] + [State.QUEUED] * 4
        assert len((await bench.claim()).claims) == 1

    @scenario
    async def test_retain_moves_the_expiry(self, bench: Bench) -> None:
        """Later and sooner, from now; the rest stays."""
        for id, end in (("completed", bench.completed), ("failed", bench.failed)):
            await end(id, ttl=5.0)
            before = await bench.found(id)

            bench.clock.advance(4.0)
            answer = await bench.retain(id, ttl=100.0)
            later = await bench.found(id)
            bench.clock.advance(50.0)
            await bench.retain(id, ttl=2.0)
            sooner = await bench.found(id)
            bench.clock.advance(2.0)

            assert answer is before.state
            assert near(later.expires_at, bench.clock.now() + 48.0)
            assert near(sooner.expires_at, bench.clock.now())
            assert (later.state, later.result, later.error) == (before.state, before.result, before.error)
            assert later.finished_at == before.finished_at
            assert await bench.state(id) is None

    @scenario
    async def test_retain_for_no_time_expires_at_once(self, bench: Bench) -> None:
        """The id is free."""
        await bench.completed()

        assert await bench.retain(ttl=0.0) is State.COMPLETED

        assert await bench.state() is None
        await bench.add()

    @scenario
    async def test_retain_keeps_what_ended_by_a_clock_that_was_ahead(self, bench: Bench) -> None:
        """For as long as it says, at least: that its end lies ahead does not make it expired."""
        await bench.completed()
        bench.clock.jump_wall(-3600.0)

        assert await bench.retain(ttl=60.0) is State.COMPLETED

        assert await bench.state() is State.COMPLETED
        bench.clock.advance(59.0)
        assert await bench.state() is State.COMPLETED
        bench.clock.advance(3602.0)
        assert await bench.state() is None

    @scenario
    async def test_retain_touches_only_what_has_ended(self, bench: Bench) -> None:
        """A job that waits or runs has no expiry to move."""
        await bench.processing("processing")
        await bench.add("queued")
        before = await bench.picture(("processing", "queued"))

        answers = [await bench.retain(id, ttl=0.0) for id in ("queued", "processing", "unknown")]

        assert answers == [State.QUEUED, State.PROCESSING, None]
        assert await bench.picture(("processing", "queued")) == before

    @scenario
    async def test_retain_does_not_bring_back_what_expired(self, bench: Bench) -> None:
        """Nor what was cancelled: absent is absent, although the record lingers."""
        await bench.completed("expired", ttl=5.0)
        await bench.add("cancelled")
        await bench.cancel("cancelled")
        bench.clock.advance(5.25)

        answers = [await bench.retain(id, ttl=TTL) for id in ("expired", "cancelled")]

        assert answers == [None, None]
        assert [await bench.state(id) for id in ("expired", "cancelled")] == [None, None]

    @scenario
    async def test_prune_removes_only_what_has_lingered(self, bench: Bench) -> None:
        """Jobs that wait, run or are kept stay, as do records that somebody may still ask for."""
        claim = await bench.processing("processing", lease=TTL)
        kept = await bench.completed("kept", ttl=TTL)
        old = await bench.completed("old", ttl=1.0)
        bench.clock.advance(LINGER)
        recent = await bench.completed("recent", ttl=0.0)
        await bench.add("queued")
        bench.clock.advance(2.0)
        ids = ("processing", "kept", "queued")
        before = await bench.picture(ids)

        removed = await bench.queue.prune(100)

        assert removed <= 1
        assert await bench.picture(ids) == before
        assert await bench.look("old", old.generation) is None
        assert (await bench.found("recent", recent.generation)).result == b"result"
        assert (await bench.found("kept", kept.generation)).result == b"result"
        assert await bench.settle(claim) == Settled.APPLIED

    @scenario
    async def test_prune_keeps_a_running_job_however_long_it_runs(self, bench: Bench) -> None:
        """Also one whose lease has lapsed, and one that waits for a late due time."""
        await bench.processing("running", lease=1.0)
        await bench.add("delayed", delay=10 * TTL)
        bench.clock.advance(5 * TTL)

        assert await bench.queue.prune(100) == 0

        assert await bench.state("running") is State.PROCESSING
        assert await bench.state("delayed") is State.QUEUED

    @scenario
    async def test_prune_removes_no_more_than_its_limit(self, bench: Bench) -> None:
        """So that it never takes long; called again, it finds the rest."""
        for number in range(7):
            await bench.completed(f"job-{number}", ttl=0.0)
        bench.clock.advance(LINGER + 1.0)

        removed = [await bench.queue.prune(3) for _ in range(4)]

        assert all(count <= 3 for count in removed)
        assert sum(removed) <= 7
        assert removed[-1] == 0

    @scenario
    async def test_prune_spares_what_replaced_an_expired_job(self, bench: Bench) -> None:
        """The old record's time is not the new one's."""
        await bench.completed(ttl=0.0)
        await bench.add(payload=b"new")
        bench.clock.advance(LINGER + 1.0)

        await bench.queue.prune(100)

        assert (await bench.take()).payload == b"new"

    @scenario
    async def test_prune_spares_what_was_retained(self, bench: Bench) -> None:
        """The later expiry counts."""
        await bench.completed(ttl=1.0)
        await bench.retain(ttl=TTL)
        bench.clock.advance(LINGER + 5.0)

        await bench.queue.prune(100)

        assert await bench.state() is State.COMPLETED
