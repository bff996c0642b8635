"""Behaviours of `claim`: the order of work, due times, attempts, and what a claim carries."""

from __future__ import annotations

import asyncio

from jobq.job import State
from jobq.testing.bench import LEASE, Bench, StorageCase, near, scenario


class Claiming(StorageCase):
    """``queued, failing → processing``."""

    @scenario
    async def test_a_claim_carries_all_that_running_needs(self, bench: Bench) -> None:
        """There is no second read before the handler runs."""
        job = await bench.add(payload=b"work", max_attempts=4, result_ttl=9.0)
        created = (await bench.found()).created_at

        claim = await bench.take(worker="me")

        assert (claim.id, claim.payload, claim.generation) == ("job", b"work", job.nonce)
        assert (claim.attempts, claim.max_attempts, claim.result_ttl) == (1, 4, 9.0)
        assert claim.created_at == created

    @scenario
    async def test_a_claimed_job_reads_as_processing(self, bench: Bench) -> None:
        """With the label of who holds it and the time it began."""
        await bench.add()
        bench.clock.advance(3.0)

        await bench.take(worker="me")
        snapshot = await bench.found()

        assert (snapshot.state, snapshot.attempts, snapshot.worker_id) == (State.PROCESSING, 1, "me")
        assert near(snapshot.started_at, bench.clock.now())
        assert (snapshot.finished_at, snapshot.expires_at) == (None, None)

    @scenario
    async def test_a_job_is_claimed_by_one(self, bench: Bench) -> None:
        """What is held is not handed out again."""
        await bench.processing()

        assert (await bench.claim()).claims == []

    @scenario
    async def test_concurrent_claims_share_the_jobs_without_overlap(self, bench: Bench) -> None:
        """Each job has one holder, and none is left out."""
        await bench.queue.add([bench.new(f"job-{number}") for number in range(30)])
        workers = [bench.on(bench.queue) for _ in range(10)]

        answers = await asyncio.gather(*(worker.claim(4) for worker in workers))

        claims = [claim for answer in answers for claim in answer.claims]
        assert len(claims) == 30
        assert len({claim.id for claim in claims}) == 30
        assert len({claim.token for claim in claims}) == 30
        assert all(len(answer.claims) <= 4 for answer in answers)

    @scenario
    async def test_no_more_is_claimed_than_asked_for(self, bench: Bench) -> None:
        """The limit is the number of free slots."""
        await bench.queue.add([bench.new(f"job-{number}") for number in range(5)])

        first, second = await bench.claim(3), await bench.claim(3)

        assert [len(first.claims), len(second.claims)] == [3, 2]

    @scenario
    async def test_equal_jobs_run_in_the_order_they_were_added(self, bench: Bench) -> None:
        """Across calls and within one."""
        await bench.queue.add([bench.new(id) for id in "cab"])
        await bench.add("z")
        await bench.queue.add([bench.new(id) for id in "yx"])

        assert await bench.drained() == list("cabzyx")

    @scenario
    async def test_higher_priority_runs_first(self, bench: Bench) -> None:
        """Equals keep their order, from the lowest to the highest."""
        for id, priority in (("a", 0), ("b", -1000), ("c", 1000), ("d", 5), ("e", 0), ("f", 1000), ("g", -1)):
            await bench.add(id, priority=priority)

        assert await bench.drained() == list("cfdaegb")

    @scenario
    async def test_a_job_keeps_its_priority_whenever_it_becomes_ready(self, bench: Bench) -> None:
        """When its delay is over, after a failed attempt, given back, rescued and revived."""
        await bench.add("plain")
        await bench.add("delayed", priority=5, delay=1.0)
        retried = await bench.processing("retried", priority=4)
        given_back = await bench.processing("given back", priority=3)
        await bench.processing("rescued", priority=2, lease=5.0)
        await bench.failed("revived", priority=1)
        await bench.settle(retried, State.FAILING)
        await bench.settle(given_back, State.QUEUED)
        await bench.revive("revived")

        bench.clock.advance(6.0)

        assert await bench.drained() == ["delayed", "retried", "given back", "rescued", "revived", "plain"]

    @scenario
    async def test_the_claims_of_one_call_are_in_order(self, bench: Bench) -> None:
        """The first of the answer is the first to start."""
        for id, priority in (("a", 0), ("b", 1), ("c", 0), ("d", 2)):
            await bench.add(id, priority=priority)

        claims = (await bench.claim(3)).claims

        assert [claim.id for claim in claims] == list("dba")

    @scenario
    async def test_a_delayed_job_is_not_claimed_before_it_is_due(self, bench: Bench) -> None:
        """And is at once when it is; `next_in` tells when to look."""
        await bench.add(delay=5.0)

        early = await bench.claim()
        bench.clock.advance(4.75)
        still_early = await bench.claim()
        bench.clock.advance(0.25)
        due = await bench.claim()

        assert (early.claims, still_early.claims) == ([], [])
        assert near(early.next_in, 5.0)
        assert near(still_early.next_in, 0.25)
        assert [claim.id for claim in due.claims] == ["job"]

    @scenario
    async def test_a_delayed_job_says_when_it_runs(self, bench: Bench) -> None:
        """``run_at`` is its due time, while waiting and afterwards."""
        await bench.add(delay=5.0)

        assert near((await bench.found()).run_at, bench.clock.now() + 5.0)

    @scenario
    async def test_delays_far_apart_are_each_kept(self, bench: Bench) -> None:
        """A millisecond and a century do not disturb each other."""
        await bench.add("late", delay=3_155_760_000.0)
        await bench.add("early", delay=0.001)
        await bench.add("now", delay=0.0)

        assert await bench.drained() == ["now"]
        bench.clock.advance(0.002)
        assert await bench.drained() == ["early"]
        assert await bench.state("late") is State.QUEUED

    @scenario
    async def test_a_delayed_job_queues_by_the_moment_it_fell_due(self, bench: Bench) -> None:
        """Before what was added after that moment, behind what was added before it."""
        await bench.add("delayed", delay=5.0)
        bench.clock.advance(3.0)
        await bench.add("before")
        bench.clock.advance(4.0)
        await bench.add("after")

        assert await bench.drained() == ["before", "delayed", "after"]

    @scenario
    async def test_due_jobs_run_in_the_order_of_their_due_times(self, bench: Bench) -> None:
        """Whoever claims late finds them in the order they came due, priority first."""
        for id, delay, priority in (("c", 3.0, 0), ("a", 1.0, 0), ("b", 2.0, 0), ("p", 4.0, 1)):
            await bench.add(id, delay=delay, priority=priority)
        bench.clock.advance(10.0)

        assert await bench.drained() == list("pabc")

    @scenario
    async def test_jobs_that_fall_due_at_once_run_in_the_order_they_were_added(self, bench: Bench) -> None:
        """Whatever their ids are."""
        await bench.queue.add([bench.new(id, delay=5.0) for id in "dbca"])
        bench.clock.advance(5.0)

        assert await bench.drained() == list("dbca")

    @scenario
    async def test_a_cancelled_delay_falls_due_for_nobody(self, bench: Bench) -> None:
        """Else workers would look again and again for what is not there."""
        await bench.add(delay=5.0)
        await bench.cancel()

        assert (await bench.claim()).next_in is None
        bench.clock.advance(6.0)
        assert (await bench.claim()).next_in is None

    @scenario
    async def test_a_job_without_delay_is_ready_whatever_the_wall_clock_says(self, bench: Bench) -> None:
        """A clock that was set back leaves neither old nor new jobs waiting."""
        await bench.add("before")
        bench.clock.jump_wall(-3600.0)
        await bench.add("after")

        assert await bench.drained() == ["before", "after"]

    @scenario
    async def test_tokens_rise_and_are_never_used_again(self, bench: Bench) -> None:
        """Also across jobs, attempts, and a wall clock that was set back."""
        tokens = []
        for number in range(20):
            await bench.add(f"job-{number}")
            claims = (await bench.claim()).claims
            tokens += [(claim.fencing_token, claim.token) for claim in claims]
            for claim in claims:
                await bench.settle(claim, State.FAILING if claim.attempts < 3 else State.COMPLETED)
            bench.clock.jump_wall(-10.0 if number % 3 else 1.0)

        counters = [counter for counter, _ in tokens]
        assert counters == sorted(set(counters))
        assert len({token for _, token in tokens}) == len(tokens)

    @scenario
    async def test_tokens_do_not_fall_behind_the_clock(self, bench: Bench) -> None:
        """So that they also rise over a restart without data; however long ago the last number was given."""
        await bench.add()
        bench.clock.advance(100.0)
        claim = await bench.take()

        assert claim.fencing_token >= int(bench.clock.now() * 1e6)

    @scenario
    async def test_every_claim_counts_an_attempt(self, bench: Bench) -> None:
        """A retried job is claimed with the next number."""
        await bench.add(max_attempts=3)

        seen = []
        for _ in range(3):
            claim = await bench.take()
            seen.append((claim.attempts, (await bench.found()).attempts))
            await bench.settle(claim, State.FAILING)

        assert seen == [(1, 1), (2, 2), (3, 3)]

    @scenario
    async def test_next_in_is_zero_while_work_is_left(self, bench: Bench) -> None:
        """So whoever has a slot comes back at once."""
        await bench.queue.add([bench.new(id) for id in "ab"])

        assert (await bench.claim(1)).next_in == 0.0
        assert (await bench.claim(1)).next_in != 0.0

    @scenario
    async def test_next_in_does_not_count_what_the_same_claim_has_dealt_with(self, bench: Bench) -> None:
        """What it found due or lapsed is no reason to come back at once."""
        await bench.processing("lapsed", lease=5.0, max_attempts=1)
        bench.clock.advance(5.25)
        claimed = await bench.claim()
        assert (len(claimed.rescued), claimed.next_in) == (1, None)

        await bench.add("due", delay=5.0)
        bench.clock.advance(5.0)
        assert near((await bench.claim()).next_in, LEASE)

    @scenario
    async def test_next_in_is_none_when_nothing_is_left(self, bench: Bench) -> None:
        """No job, no lease: nothing will fall due, however the last one ended."""
        assert (await bench.claim()).next_in is None

        for end in (State.COMPLETED, State.FAILED):
            await bench.settle(await bench.processing(end), end)
            assert (await bench.claim()).next_in is None, end
        claim = await bench.processing("cancelled")
        await bench.cancel("cancelled", running=True)
        await bench.settle(claim)

        assert (await bench.claim()).next_in is None

    @scenario
    async def test_next_in_is_never_later_than_the_next_lapse(self, bench: Bench) -> None:
        """A held job may come back when its lease ends."""
        await bench.processing(lease=LEASE)
        bench.clock.advance(10.0)

        next_in = (await bench.claim()).next_in

        assert next_in is not None
        assert 0.0 < next_in <= LEASE - 10.0 + 0.01

    @scenario
    async def test_a_retried_job_waits_for_its_delay(self, bench: Bench) -> None:
        """It reads as failing, keeps its error, and is due when the delay is over."""
        claim = await bench.processing()

        await bench.settle(claim, State.FAILING, delay=5.0)
        snapshot = await bench.found()
        early = (await bench.claim()).claims
        bench.clock.advance(5.25)
        second = await bench.take()

        assert (snapshot.state, snapshot.attempts, snapshot.error) == (State.FAILING, 1, b"error")
        assert near(snapshot.run_at, bench.clock.now() - 0.25)
        assert early == []
        assert (second.attempts, second.payload) == (2, b"payload")

    @scenario
    async def test_a_retried_job_queues_anew(self, bench: Bench) -> None:
        """It does not pass those that waited meanwhile."""
        await bench.add("a")
        claim = await bench.take()
        await bench.add("b")

        await bench.settle(claim, State.FAILING)

        assert await bench.drained() == ["b", "a"]

    @scenario
    async def test_a_job_given_back_keeps_its_place_and_its_attempts(self, bench: Bench) -> None:
        """Nobody's try was used up: it is as if it had not been claimed."""
        for id in "abc":
            await bench.add(id)
        claims = (await bench.claim(2)).claims
        bench.clock.advance(5.0)
        await bench.add("d")

        answers = await bench.queue.settle([bench.settlement(claim, State.QUEUED) for claim in reversed(claims)])
        snapshot = await bench.found("a")

        assert list(answers) == ["applied", "applied"]
        assert (snapshot.state, snapshot.attempts) == (State.QUEUED, 0)
        assert await bench.drained() == list("abcd")
        assert (await bench.found("a")).attempts == 1

    @scenario
    async def test_a_retried_job_given_back_reads_as_failing(self, bench: Bench) -> None:
        """An attempt is still counted."""
        await bench.failing()
        claim = await bench.take()

        await bench.settle(claim, State.QUEUED)
        snapshot = await bench.found()

        assert (claim.attempts, snapshot.attempts, snapshot.state) == (2, 1, State.FAILING)
        assert snapshot.error == b"error"

    @scenario
    async def test_giving_back_for_ever_uses_up_no_attempt(self, bench: Bench) -> None:
        """A job may be given back more often than it may be tried."""
        await bench.add(max_attempts=1)

        for _ in range(5):
            claim = await bench.take()
            assert claim.attempts == 1
            await bench.settle(claim, State.QUEUED)

        assert await bench.settle(await bench.take()) == "applied"
