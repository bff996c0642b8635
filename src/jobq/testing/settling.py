"""Behaviours of `settle`: one decision per token, states that absorb, records that expire."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from jobq.job import State
from jobq.storage.contract import Settled
from jobq.testing.bench import TTL, Bench, StorageCase, near, scenario

OUTCOMES = (State.COMPLETED, State.FAILED, State.FAILING, State.QUEUED)


class Settling(StorageCase):
    """``processing → completed, failed, failing, queued``."""

    @scenario
    async def test_a_completed_job_shows_its_result(self, bench: Bench) -> None:
        """With the times of its end and of its expiry, and no error of earlier attempts."""
        await bench.failing()
        claim = await bench.take()
        bench.clock.advance(2.0)

        answer = await bench.settle(claim, State.COMPLETED, result=b"42", ttl=9.0)
        snapshot = await bench.found()

        now = bench.clock.now()
        assert answer == Settled.APPLIED
        assert (snapshot.state, snapshot.result, snapshot.error) == (State.COMPLETED, b"42", None)
        assert (snapshot.attempts, snapshot.generation) == (2, claim.generation)
        assert near(snapshot.finished_at, now)
        assert near(snapshot.expires_at, now + 9.0)

    @scenario
    async def test_a_failed_job_shows_its_error(self, bench: Bench) -> None:
        """And no result."""
        claim = await bench.processing()

        answer = await bench.settle(claim, State.FAILED, error=b"why", ttl=9.0)
        snapshot = await bench.found()

        now = bench.clock.now()
        assert answer == Settled.APPLIED
        assert (snapshot.state, snapshot.result, snapshot.error) == (State.FAILED, None, b"why")
        assert near(snapshot.finished_at, now)
        assert near(snapshot.expires_at, now + 9.0)

    @scenario
    async def test_a_job_may_fail_before_its_attempts_are_used_up(self, bench: Bench) -> None:
        """The storage does what it is told: when to give up is the engine's decision."""
        claim = await bench.processing(max_attempts=9)

        await bench.settle(claim, State.FAILED)

        assert (await bench.found()).attempts == 1
        assert (await bench.claim()).claims == []

    @scenario
    async def test_an_ended_job_is_never_claimed_or_rescued(self, bench: Bench) -> None:
        """Its lease went with it."""
        await bench.completed("completed")
        await bench.failed("failed")
        bench.clock.advance(TTL / 2)

        claimed = await bench.claim()

        assert (claimed.claims, claimed.rescued) == ([], [])
        assert (await bench.queue.rescue(100)).rescued == []
        assert await bench.queue.workers() == []

    @scenario
    async def test_a_token_decides_once(self, bench: Bench) -> None:
        """A second, different outcome of the same token changes nothing, whatever the first was."""
        for first in OUTCOMES:
            for second in OUTCOMES:
                id = f"{first}-{second}"
                claim = await bench.processing(id)
                await bench.settle(claim, first)
                before = await bench.picture((id,))
                await bench.settle(claim, second, result=b"other", error=b"other", ttl=1.0, delay=9.0)
                assert await bench.picture((id,)) == before, id
                if first in (State.FAILING, State.QUEUED):
                    await bench.settle(await bench.take())

    @scenario
    async def test_an_old_token_cannot_settle_the_next_attempt(self, bench: Bench) -> None:
        """Whatever it wants to write, while another claim holds the job."""
        for first in (State.FAILING, State.QUEUED):
            for late in OUTCOMES:
                id = f"{first}-{late}"
                old = await bench.processing(id)
                await bench.settle(old, first)
                new = await bench.take()
                before = await bench.picture((id,))
                await bench.settle(old, late, result=b"late", error=b"late", ttl=1.0)
                assert await bench.picture((id,)) == before, id
                assert await bench.settle(new) == Settled.APPLIED, id

    @scenario
    async def test_the_token_of_a_lapsed_claim_cannot_settle_the_next_attempt(self, bench: Bench) -> None:
        """Its worker was silent for too long, and comes back while another runs the job."""
        for late in OUTCOMES:
            id = f"late-{late}"
            old = await bench.processing(id, lease=5.0)
            bench.clock.advance(5.25)
            await bench.queue.rescue(100)
            new = await bench.take()
            before = await bench.picture((id,))

            assert await bench.settle(old, late, result=b"late", error=b"late", ttl=1.0) == Settled.LOST, id

            assert await bench.picture((id,)) == before, id
            assert await bench.settle(new) == Settled.APPLIED, id

    @scenario
    async def test_a_wrong_token_is_lost(self, bench: Bench) -> None:
        """Of another job, cut, extended or invented; nothing changes."""
        claim = await bench.processing()
        other = await bench.processing("other")
        before = await bench.picture(("job", "other"))
        tokens = (other.token, claim.token[:-1], claim.token + "0", claim.token.partition("-")[0], "", "1-ab", "x")

        answers = await bench.queue.settle([replace(bench.settlement(claim), token=token) for token in tokens])

        assert set(answers) == {Settled.LOST}
        assert await bench.picture(("job", "other")) == before

    @scenario
    async def test_settling_what_does_not_exist_is_lost(self, bench: Bench) -> None:
        """It brings no job into being."""
        claim = await bench.processing()
        await bench.settle(claim, ttl=0.0)
        bench.clock.advance(60.0)
        await bench.queue.prune(100)

        assert await bench.settle(claim) == Settled.LOST
        assert await bench.state() is None
        assert await bench.queue.counts() == {}

    @scenario
    async def test_each_settlement_is_answered_for_itself(self, bench: Bench) -> None:
        """In the order asked; a lost one harms none of its neighbours."""
        claims = [await bench.processing(id) for id in "abcd"]
        await bench.cancel("c", running=True)
        stale = claims[1]
        await bench.settle(stale, State.FAILING)
        await bench.take()

        answers = await bench.queue.settle(
            [
                bench.settlement(claims[3], State.FAILED),
                replace(bench.settlement(claims[1]), token=claims[0].token),
                bench.settlement(claims[2]),
                bench.settlement(claims[0]),
            ]
        )

        assert list(answers) == ["applied", "lost", "cancelled", "applied"]
        assert [await bench.state(id) for id in "abcd"] == [State.COMPLETED, State.PROCESSING, None, State.FAILED]

    @scenario
    async def test_of_two_settlements_of_one_token_in_one_call_the_first_wins(self, bench: Bench) -> None:
        """One decision per token, also within a batch, whatever the two want to write."""
        for first in OUTCOMES:
            for second in OUTCOMES:
                id = f"{first}-{second}"
                claim = await bench.processing(id, priority=1)

                await bench.queue.settle([bench.settlement(claim, first), bench.settlement(claim, second)])

                assert await bench.state(id) is first, id
                await bench.cancel(id)

    @scenario
    async def test_concurrent_settlements_of_one_token_decide_once(self, bench: Bench) -> None:
        """Only one result is ever seen."""
        claim = await bench.processing()

        await asyncio.gather(*(bench.settle(claim, result=b"%d" % number) for number in range(10)))
        first = await bench.found()
        await bench.settle(claim, result=b"late")

        assert await bench.found() == first

    @scenario
    async def test_terminal_is_absorbing(self, bench: Bench) -> None:
        """No verb but retain and revive changes an ended job."""
        for end in (State.COMPLETED, State.FAILED):
            id = str(end)
            claim = await bench.processing(id)
            await bench.settle(claim, end)
            before = await bench.picture((id,))

            await bench.queue.add([bench.new(id, b"other")])
            await bench.cancel(id)
            await bench.cancel(id, running=True)
            await bench.extend(claim)
            await bench.claim()
            await bench.queue.rescue(10)
            await bench.queue.prune(10)
            for outcome in OUTCOMES:
                await bench.settle(claim, outcome, result=b"other", error=b"other")

            assert await bench.picture((id,)) == before
            await bench.retain(id, ttl=0.0)

    @scenario
    async def test_ttls_are_kept_each_for_its_own(self, bench: Bench) -> None:
        """A millisecond and ten years, side by side."""
        await bench.completed("short", ttl=0.001)
        await bench.completed("long", ttl=315_576_000.0)
        await bench.failed("middle", ttl=5.0)

        bench.clock.advance(0.002)
        first = [await bench.state(id) for id in ("short", "middle", "long")]
        bench.clock.advance(5.0)
        second = [await bench.state(id) for id in ("short", "middle", "long")]
        bench.clock.advance(315_000_000.0)

        assert first == [None, State.FAILED, State.COMPLETED]
        assert second == [None, None, State.COMPLETED]
        assert await bench.state("long") is State.COMPLETED

    @scenario
    async def test_jobs_that_end_in_one_call_expire_each_in_its_own_time(self, bench: Bench) -> None:
        """As if each had been settled alone."""
        claims = [await bench.processing(id) for id in "abcd"]
        ends = (State.COMPLETED, State.FAILED, State.COMPLETED, State.FAILED)

        await bench.queue.settle(
            [
                bench.settlement(claim, end, ttl=ttl)
                for claim, end, ttl in zip(claims, ends, (60.0, 1.0, 0.0, 60.0), strict=True)
            ]
        )
        first = [await bench.state(id) for id in "abcd"]
        bench.clock.advance(2.0)

        assert first == [State.COMPLETED, State.FAILED, None, State.FAILED]
        assert [await bench.state(id) for id in "abcd"] == [State.COMPLETED, None, None, State.FAILED]

    @scenario
    async def test_a_job_expires_when_expires_at_is_reached(self, bench: Bench) -> None:
        """Not before, for no read."""
        await bench.completed(ttl=8.0)

        bench.clock.advance(7.75)
        before = (await bench.state(), dict(await bench.queue.counts()))
        bench.clock.advance(0.25)

        assert before == (State.COMPLETED, {State.COMPLETED: 1})
        assert await bench.state() is None
        assert await bench.queue.counts() == {}
        assert await bench.queue.page(State.COMPLETED, "", 10) == []

    @scenario
    async def test_a_result_that_is_not_kept_frees_the_id_at_once(self, bench: Bench) -> None:
        """With ``ttl=0`` there is no cache, but the waiter of that run still gets its answer."""
        claim = await bench.processing()

        assert await bench.settle(claim, result=b"42", ttl=0.0) == Settled.APPLIED

        assert await bench.state() is None
        assert (await bench.found("job", claim.generation)).result == b"42"
        await bench.add()

    @scenario
    async def test_settling_does_not_touch_the_payload_of_a_retry(self, bench: Bench) -> None:
        """The next attempt sees what was enqueued."""
        for outcome in (State.FAILING, State.QUEUED):
            claim = await bench.processing(str(outcome), payload=b"\x00original\xff")
            await bench.settle(claim, outcome, result=b"no", error=b"no")
            assert (await bench.take()).payload == b"\x00original\xff"
