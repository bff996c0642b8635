"""Behaviours of resending: the same request again gets its first answer, and changes nothing more.

Its first answer may have been lost on the way; meanwhile anything may have happened to the job.
"""

from __future__ import annotations

from jobq.job import Claim, State
from jobq.storage.contract import LINGER, Held, Settled
from jobq.testing.bench import LEASE, Bench, StorageCase, scenario

WITHIN = LINGER - 0.5
"""Seconds after which a request must still be known."""


class Resending(StorageCase):
    """Every verb, sent twice."""

    @scenario
    async def test_an_add_sent_twice_is_accepted_twice_and_done_once(self, bench: Bench) -> None:
        """Right away, and within one call."""
        job = bench.new()

        answers = [*await bench.queue.add([job, job]), *await bench.queue.add([job])]

        assert answers == [None, None, None]
        assert await bench.queue.counts() == {State.QUEUED: 1}
        assert await bench.drained() == ["job"]

    @scenario
    async def test_an_add_is_still_accepted_whatever_became_of_its_job(self, bench: Bench) -> None:
        """Claimed, retried, completed, failed, cancelled, expired: it runs no second time."""
        for end in ("claimed", "failing", "completed", "failed", "cancelled", "asked", "expired"):
            job = await bench.add(end)
            if end == "cancelled":
                await bench.cancel(end)
            else:
                await self._bring(bench, await bench.take(), end)
            bench.clock.advance(WITHIN)
            before = await bench.picture((end,))

            assert list(await bench.queue.add([job])) == [None], end

            assert await bench.picture((end,)) == before, end
            await bench.drained()

    @scenario
    async def test_an_add_is_still_accepted_after_its_job_was_revived(self, bench: Bench) -> None:
        """The run that revive began is not replaced."""
        job = await bench.add()
        await bench.settle(await bench.take(), State.FAILED)
        await bench.revive()
        bench.clock.advance(WITHIN)
        before = await bench.picture()

        assert list(await bench.queue.add([job])) == [None]

        assert await bench.picture() == before

    @scenario
    async def test_an_add_is_still_accepted_after_another_replaced_it(self, bench: Bench) -> None:
        """The successor stays, also when it has ended or was replaced again."""
        job = await bench.add()
        await bench.cancel()
        await bench.add(payload=b"second")
        await bench.cancel()
        third = await bench.add(payload=b"third")
        bench.clock.advance(WITHIN)
        before = await bench.picture()

        assert list(await bench.queue.add([job])) == [None]

        assert await bench.picture() == before
        claim = await bench.take()
        assert (claim.payload, claim.generation) == (b"third", third.nonce)
        await bench.settle(claim, ttl=0.0)
        assert list(await bench.queue.add([third])) == [None]
        assert (await bench.claim()).claims == []

    @scenario
    async def test_a_claim_sent_twice_gets_the_same_claims(self, bench: Bench) -> None:
        """Else a lost reply would burn an attempt, and hold the jobs until the lease lapses."""
        await bench.queue.add([bench.new(id, id.encode()) for id in "abcde"])
        nonce = bench.nonce()

        first = await bench.queue.claim("worker", LEASE, 3, nonce)
        bench.clock.advance(WITHIN)
        second = await bench.queue.claim("worker", LEASE, 3, nonce)

        assert second.claims == first.claims
        assert [claim.id for claim in first.claims] == ["a", "b", "c"]
        assert await bench.queue.counts() == {State.PROCESSING: 3, State.QUEUED: 2}
        assert (await bench.found("a")).attempts == 1

    @scenario
    async def test_a_repeated_claim_leaves_out_what_no_longer_stands(self, bench: Bench) -> None:
        """Settled, given back and taken again, cancelled, lapsed: others decide about those."""
        await bench.queue.add([bench.new(id) for id in "abcd"])
        nonce = bench.nonce()
        claims = (await bench.queue.claim("worker", LEASE, 4, nonce)).claims
        other = bench.on(bench.queue)
        await other.settle(claims[0])
        await other.settle(claims[1], State.QUEUED)
        await other.take()
        await other.cancel("c", running=True)
        await other.settle(claims[2])

        repeated = await bench.queue.claim("worker", LEASE, 4, nonce)

        assert repeated.claims == [claims[3]]

    @scenario
    async def test_a_repeated_claim_takes_nothing_new(self, bench: Bench) -> None:
        """Although there is work by now, and room within its limit."""
        await bench.add("a")
        nonce = bench.nonce()
        first = await bench.queue.claim("worker", LEASE, 5, nonce)
        await bench.add("b")

        second = await bench.queue.claim("worker", LEASE, 5, nonce)

        assert second.claims == first.claims
        assert second.next_in == 0.0
        assert await bench.state("b") is State.QUEUED

    @scenario
    async def test_each_worker_repeats_its_own_claim(self, bench: Bench) -> None:
        """A session is one worker's; those of others do not push its last claim out."""
        workers = [bench.on(bench.queue) for _ in range(5)]
        nonces = [worker.nonce() for worker in workers]
        await bench.queue.add([bench.new(f"job-{number}") for number in range(5)])

        first = [await bench.queue.claim("same label", LEASE, 1, nonce) for nonce in nonces]
        second = [await bench.queue.claim("same label", LEASE, 1, nonce) for nonce in nonces]

        assert [answer.claims for answer in second] == [answer.claims for answer in first]

    @scenario
    async def test_each_of_very_many_workers_repeats_its_own_claim(self, bench: Bench) -> None:
        """However many claim meanwhile, and although what has lingered is pruned."""
        workers = [bench.on(bench.queue) for _ in range(100)]
        nonces = [worker.nonce() for worker in workers]
        await bench.queue.add([bench.new(str(number)) for number in range(len(workers))])
        first = [(await bench.queue.claim("worker", LEASE, 1, nonce)).claims for nonce in nonces]
        bench.clock.advance(WITHIN)
        await bench.queue.prune(100)

        second = [(await bench.queue.claim("worker", LEASE, 1, nonce)).claims for nonce in nonces]

        assert second == first
        assert all(len(claims) == 1 for claims in first)

    @scenario
    async def test_a_settle_sent_twice_is_applied_once(self, bench: Bench) -> None:
        """Whatever the outcome, it is answered as at first."""
        for state in (State.COMPLETED, State.FAILED, State.FAILING, State.QUEUED):
            id = f"job-{state}"
            settlement = bench.settlement(await bench.processing(id), state)
            await bench.queue.settle([settlement])
            bench.clock.advance(WITHIN)
            before = await bench.picture((id,))

            assert list(await bench.queue.settle([settlement])) == [Settled.APPLIED], state

            assert await bench.picture((id,)) == before, state
            await bench.drained()

    @scenario
    async def test_a_settle_is_answered_as_at_first_after_another_claim(self, bench: Bench) -> None:
        """The holder of the next attempt is not disturbed."""
        for state in (State.FAILING, State.QUEUED):
            id = f"job-{state}"
            settlement = bench.settlement(await bench.processing(id), state)
            await bench.queue.settle([settlement])
            claim = await bench.take()
            before = await bench.picture((id,))

            assert list(await bench.queue.settle([settlement])) == [Settled.APPLIED], state

            assert await bench.picture((id,)) == before, state
            assert await bench.settle(claim) == Settled.APPLIED, state

    @scenario
    async def test_a_settle_is_answered_as_at_first_after_the_next_attempt_was_settled(self, bench: Bench) -> None:
        """A reply may be lost for longer than the next attempt takes; its failure was stored all the same."""
        for state in (State.FAILING, State.QUEUED):
            for later in (State.FAILING, State.QUEUED, State.COMPLETED):
                id = f"job-{state}-{later}"
                settlement = bench.settlement(await bench.processing(id), state)
                await bench.queue.settle([settlement])
                last = bench.settlement(await bench.take(), later)
                await bench.queue.settle([last])
                bench.clock.advance(WITHIN)
                before = await bench.picture((id,))

                assert list(await bench.queue.settle([settlement])) == [Settled.APPLIED], (state, later)
                assert list(await bench.queue.settle([last])) == [Settled.APPLIED], (state, later)

                assert await bench.picture((id,)) == before, (state, later)
                await bench.drained()

    @scenario
    async def test_a_settle_is_answered_as_at_first_whatever_became_of_its_job(self, bench: Bench) -> None:
        """Expired, revived, retained, cancelled, replaced by another."""
        for later in ("expired", "revived", "retained", "cancelled", "replaced"):
            state = {"revived": State.FAILED, "cancelled": State.FAILING}.get(later, State.COMPLETED)
            claim = await bench.processing(later)
            settlement = bench.settlement(claim, state, ttl=0.0 if later in ("expired", "replaced") else 60.0)
            await bench.queue.settle([settlement])
            if later == "revived":
                await bench.revive(later)
            elif later == "retained":
                await bench.retain(later, ttl=1.0)
            elif later == "cancelled":
                await bench.cancel(later)
            elif later == "replaced":
                await bench.add(later)
            bench.clock.advance(WITHIN)
            before = await bench.picture((later,))

            assert list(await bench.queue.settle([settlement])) == [Settled.APPLIED], later

            assert await bench.picture((later,)) == before, later
            await bench.drained()

    @scenario
    async def test_a_settle_of_a_cancelled_job_is_answered_as_at_first(self, bench: Bench) -> None:
        """Also when the id has a new job."""
        claim = await bench.processing()
        await bench.cancel(running=True)
        answers = [await bench.settle(claim), await bench.settle(claim)]
        await bench.add()
        before = await bench.picture()

        answers.append(await bench.settle(claim))

        assert answers == [Settled.CANCELLED] * 3
        assert await bench.picture() == before

    @scenario
    async def test_an_extend_may_be_sent_twice(self, bench: Bench) -> None:
        """It is as if it was sent once, the second time."""
        claim = await bench.processing(lease=10.0)

        answers = [await bench.extend(claim, 10.0), await bench.extend(claim, 10.0)]
        bench.clock.advance(10.25)

        assert answers == [Held.HELD, Held.HELD]
        assert len((await bench.queue.rescue(10)).rescued) == 1

    @scenario
    async def test_a_cancel_sent_twice_is_answered_alike(self, bench: Bench) -> None:
        """Of a waiting job, also after the id has a new one, which stays."""
        nonce = bench.nonce()
        await bench.add()

        answers = [await bench.cancel(nonce=nonce), await bench.cancel(nonce=nonce)]
        bench.clock.advance(WITHIN)
        await bench.add(payload=b"new")
        answers.append(await bench.cancel(nonce=nonce))

        assert answers == [State.QUEUED] * 3
        assert (await bench.take()).payload == b"new"

    @scenario
    async def test_a_cancel_of_a_running_job_is_answered_alike(self, bench: Bench) -> None:
        """Also after it ended, and after a new one runs, which is not asked to stop."""
        nonce = bench.nonce()
        claim = await bench.processing()

        answers = [await bench.cancel(running=True, nonce=nonce) for _ in range(2)]
        await bench.settle(claim)
        answers.append(await bench.cancel(running=True, nonce=nonce))
        second = await bench.processing(payload=b"new")
        answers.append(await bench.cancel(running=True, nonce=nonce))

        assert answers == [State.PROCESSING] * 4
        assert await bench.extend(second) == Held.HELD

    @scenario
    async def test_a_cancel_sent_again_does_not_stop_a_later_attempt(self, bench: Bench) -> None:
        """What it found, it found: a plain cancel of a running job stays without effect."""
        nonce = bench.nonce()
        claim = await bench.processing()

        first = await bench.cancel(nonce=nonce)
        second = await bench.cancel(nonce=nonce)

        assert [first, second] == [State.PROCESSING] * 2
        assert await bench.settle(claim) == Settled.APPLIED

    @scenario
    async def test_a_revive_sent_twice_starts_one_run(self, bench: Bench) -> None:
        """Right away, while it runs, and after it ended, even as failed again."""
        nonce = bench.nonce()
        await bench.failed()

        answers = [await bench.revive(nonce=nonce), await bench.revive(nonce=nonce)]
        claim = await bench.take()
        answers.append(await bench.revive(nonce=nonce))
        await bench.settle(claim, State.FAILED)
        bench.clock.advance(WITHIN)
        before = await bench.picture()
        answers.append(await bench.revive(nonce=nonce))

        assert answers == [State.FAILED] * 4
        assert await bench.picture() == before

    @scenario
    async def test_a_revive_sent_again_leaves_the_successor_alone(self, bench: Bench) -> None:
        """The revived run expired, and another failed under the id."""
        nonce = bench.nonce()
        await bench.failed()
        await bench.revive(nonce=nonce)
        await bench.settle(await bench.take(), State.FAILED, ttl=0.0)
        await bench.failed()
        before = await bench.picture()

        assert await bench.revive(nonce=nonce) is State.FAILED

        assert await bench.picture() == before

    @scenario
    async def test_a_revive_sent_again_leaves_the_next_revive_alone(self, bench: Bench) -> None:
        """The revived run failed and was revived once more: the first request adds no third."""
        nonce = bench.nonce()
        await bench.failed()
        await bench.revive(nonce=nonce)
        await bench.settle(await bench.take(), State.FAILED)
        await bench.revive()
        await bench.settle(await bench.take(), State.FAILED)
        before = await bench.picture()

        assert await bench.revive(nonce=nonce) is State.FAILED

        assert await bench.picture() == before

    @scenario
    async def test_a_retain_sent_twice_counts_from_the_first(self, bench: Bench) -> None:
        """The expiry does not move again."""
        nonce = bench.nonce()
        await bench.completed()
        await bench.retain(ttl=20.0, nonce=nonce)
        before = await bench.found()
        bench.clock.advance(WITHIN)

        assert await bench.retain(ttl=20.0, nonce=nonce) is State.COMPLETED

        assert await bench.found() == before

    @scenario
    async def test_a_retain_is_answered_alike_after_the_job_expired_or_was_replaced(self, bench: Bench) -> None:
        """``update_result_ttl(id, 0)`` is the plainest case: the first request made the job absent."""
        nonce = bench.nonce()
        await bench.completed()

        answers = [await bench.retain(ttl=0.0, nonce=nonce), await bench.retain(ttl=0.0, nonce=nonce)]
        await bench.completed()
        answers.append(await bench.retain(ttl=0.0, nonce=nonce))

        assert answers == [State.COMPLETED] * 3
        assert await bench.state() is State.COMPLETED

    @scenario
    async def test_rescue_and_prune_may_be_sent_twice(self, bench: Bench) -> None:
        """The second finds nothing left to do."""
        await bench.processing("lapsed", lease=5.0)
        await bench.completed("old", ttl=0.0)
        bench.clock.advance(LINGER + 6.0)

        rescues = [await bench.queue.rescue(10), await bench.queue.rescue(10)]
        prunes = [await bench.queue.prune(10), await bench.queue.prune(10)]

        assert [len(rescue.rescued) for rescue in rescues] == [1, 0]
        assert prunes[1] == 0
        assert (await bench.found("lapsed")).attempts == 1

    async def _bring(self, bench: Bench, claim: Claim, end: str) -> None:
        match end:
            case "failing" | "completed" | "failed":
                await bench.settle(claim, State(end))
            case "asked":
                await bench.cancel(claim.id, running=True)
                await bench.settle(claim)
            case "expired":
                await bench.settle(claim, ttl=0.0)
