"""Behaviours of leases: `extend`, lapsing, `rescue`, clocks that jump, machines that restart."""

from __future__ import annotations

import asyncio
import unittest

from jobq.job import State
from jobq.storage.contract import WORKER_LOST, Held, Settled
from jobq.testing.bench import LEASE, TTL, Bench, StorageCase, near, scenario


class Leasing(StorageCase):
    """``processing → processing``, and what happens when nobody renews."""

    @scenario
    async def test_a_held_lease_is_not_rescued(self, bench: Bench) -> None:
        """Neither by rescue nor by a claim, up to the last moment."""
        claim = await bench.processing(lease=10.0)
        bench.clock.advance(9.75)

        assert (await bench.queue.rescue(100)).rescued == []
        claimed = await bench.claim()

        assert (claimed.claims, claimed.rescued) == ([], [])
        assert await bench.extend(claim, 10.0) == Held.HELD

    @scenario
    async def test_a_lapsed_job_runs_again(self, bench: Bench) -> None:
        """Rescue makes it failing and due at once; its attempt stays counted."""
        first = await bench.processing(lease=10.0)
        bench.clock.advance(10.25)

        [rescued] = (await bench.queue.rescue(100)).rescued
        snapshot = await bench.found()
        second = await bench.take()

        assert (rescued.id, rescued.generation) == ("job", first.generation)
        assert (rescued.state, rescued.attempts) == (State.FAILING, 1)
        assert (snapshot.state, snapshot.attempts) == (State.FAILING, 1)
        assert (second.attempts, second.payload) == (2, b"payload")

    @scenario
    async def test_a_claim_rescues_on_its_way(self, bench: Bench) -> None:
        """A queue with living workers heals itself, and says what it did."""
        await bench.processing(lease=10.0)
        bench.clock.advance(10.25)

        claimed = await bench.claim()

        assert [(rescued.id, rescued.state) for rescued in claimed.rescued] == [("job", State.FAILING)]
        assert [(claim.id, claim.attempts) for claim in claimed.claims] == [("job", 2)]

    @scenario
    async def test_a_job_that_kills_its_workers_fails(self, bench: Bench) -> None:
        """Lapsed on its last attempt it ends as WORKER_LOST, and is kept as long as any result."""
        await bench.add(max_attempts=2, result_ttl=7.0)
        for _ in range(2):
            await bench.take(lease=10.0)
            bench.clock.advance(10.25)

        claimed = await bench.claim()
        snapshot = await bench.found()

        assert claimed.claims == []
        assert [(rescued.state, rescued.attempts) for rescued in claimed.rescued] == [(State.FAILED, 2)]
        assert (snapshot.state, snapshot.error, snapshot.attempts) == (State.FAILED, WORKER_LOST, 2)
        assert near(snapshot.expires_at, bench.clock.now() + 7.0)

    @scenario
    async def test_a_single_attempt_that_lapses_is_the_last(self, bench: Bench) -> None:
        """By rescue as by claim."""
        await bench.processing(max_attempts=1, lease=10.0)
        bench.clock.advance(10.25)

        [rescued] = (await bench.queue.rescue(1)).rescued

        assert (rescued.state, rescued.attempts) == (State.FAILED, 1)
        assert (await bench.found()).error == WORKER_LOST

    @scenario
    async def test_until_it_is_rescued_a_lapsed_claim_still_counts(self, bench: Bench) -> None:
        """It reads as processing, and its token may still extend or settle."""
        slow = await bench.processing("slow", lease=10.0)
        slower = await bench.processing("slower", lease=10.0)
        bench.clock.advance(11.0)

        assert await bench.state("slow") is State.PROCESSING
        assert await bench.settle(slow) == "applied"
        assert await bench.extend(slower, 10.0) == Held.HELD
        assert (await bench.queue.rescue(100)).rescued == []

    @scenario
    async def test_extend_lets_a_lease_end_later(self, bench: Bench) -> None:
        """By the given length from now, again and again."""
        claim = await bench.processing(lease=10.0)

        for _ in range(5):
            bench.clock.advance(8.0)
            assert await bench.extend(claim, 10.0) == Held.HELD
            assert (await bench.queue.rescue(100)).rescued == []
        bench.clock.advance(10.25)

        assert len((await bench.queue.rescue(100)).rescued) == 1

    @scenario
    async def test_extend_never_shortens_a_lease(self, bench: Bench) -> None:
        """A late, shorter request cannot take time away, also when others lapse meanwhile."""
        claim = await bench.processing(lease=20.0)
        await bench.processing("other", lease=5.0)

        await bench.extend(claim, 1.0)
        bench.clock.advance(6.0)
        rescued = (await bench.queue.rescue(100)).rescued
        bench.clock.advance(13.0)

        assert [one.id for one in rescued] == ["other"]
        assert (await bench.queue.rescue(100)).rescued == []

    @scenario
    async def test_a_stale_extend_does_not_extend(self, bench: Bench) -> None:
        """The lease of the successor stays as it was."""
        first = await bench.processing(lease=10.0)
        bench.clock.advance(10.25)
        await bench.take(lease=10.0)

        assert await bench.extend(first, 1000.0) == Held.LOST
        bench.clock.advance(10.25)

        assert len((await bench.queue.rescue(100)).rescued) == 1

    @scenario
    async def test_extend_is_lost_for_what_is_not_held(self, bench: Bench) -> None:
        """Settled, given back, rescued, cancelled, expired, unknown: each in its place of the answer."""
        done, given, lapsed = [await bench.processing(id, lease=10.0) for id in ("done", "given", "lapsed")]
        held = await bench.processing("held", lease=100.0)
        await bench.settle(done)
        await bench.settle(given, State.QUEUED)
        bench.clock.advance(10.25)
        await bench.queue.rescue(100)
        pairs = [(claim.id, claim.token) for claim in (done, given, held, lapsed)]
        before = await bench.picture(("done", "given", "held", "lapsed"))

        answers = await bench.queue.extend([*pairs, ("unknown", "1-x"), ("held", done.token), ("held", "")], 50.0)

        assert list(answers) == ["lost", "lost", "held", "lost", "lost", "lost", "lost"]
        assert await bench.picture(("done", "given", "held", "lapsed")) == before

    @scenario
    async def test_tokens_are_compared_whole(self, bench: Bench) -> None:
        """Neither the counter alone nor a longer text will do."""
        claim = await bench.processing()
        counter = claim.token.partition("-")[0]

        answers = await bench.queue.extend(
            [("job", counter), ("job", counter + "-"), ("job", claim.token + "0"), ("job", claim.token[:-1])], 10.0
        )

        assert set(answers) == {"lost"}

    @scenario
    async def test_rescue_takes_no_more_than_its_limit(self, bench: Bench) -> None:
        """And says that more are waiting."""
        for number in range(5):
            await bench.processing(f"job-{number}", lease=10.0)
        bench.clock.advance(10.25)

        first = await bench.queue.rescue(3)
        second = await bench.queue.rescue(3)

        assert [len(first.rescued), len(second.rescued)] == [3, 2]
        assert (first.next_in, second.next_in) == (0.0, None)

    @scenario
    async def test_racing_rescuers_rescue_each_job_once(self, bench: Bench) -> None:
        """Any number may run."""
        await bench.queue.add([bench.new(f"job-{number}") for number in range(20)])
        await bench.claim(20, lease=10.0)
        bench.clock.advance(10.25)

        answers = await asyncio.gather(*(bench.queue.rescue(7) for _ in range(10)))

        ids = [rescued.id for answer in answers for rescued in answer.rescued]
        assert len(ids) == len(set(ids)) == 20

    @scenario
    async def test_of_a_settle_and_a_rescue_one_decides(self, bench: Bench) -> None:
        """What was settled is not rescued, and what was rescued is not settled, however close they are."""
        for number in range(10):
            id = f"job-{number}"
            claim = await bench.processing(id, lease=5.0)
            bench.clock.advance(5.25)

            rescue, settled = await asyncio.gather(bench.queue.rescue(10), bench.settle(claim))

            assert (settled == Settled.APPLIED) == (rescue.rescued == [])
            assert await bench.state(id) is (State.COMPLETED if settled == Settled.APPLIED else State.FAILING)
            await bench.cancel(id)

    @scenario
    async def test_rescue_says_when_to_look_again(self, bench: Bench) -> None:
        """The next lapse at the latest; None when nothing is held."""
        assert (await bench.queue.rescue(100)).next_in is None

        await bench.processing("a", lease=10.0)
        await bench.processing("b", lease=20.0)
        bench.clock.advance(4.0)
        next_in = (await bench.queue.rescue(100)).next_in

        assert next_in is not None
        assert 0.0 < next_in <= 6.01

    @scenario
    async def test_the_other_leases_stay_when_one_lapses(self, bench: Bench) -> None:
        """Each has its own deadline."""
        await bench.processing("short", lease=5.0)
        long = await bench.processing("long", lease=50.0)
        bench.clock.advance(6.0)

        rescued = (await bench.queue.rescue(100)).rescued

        assert [one.id for one in rescued] == ["short"]
        assert await bench.settle(long) == "applied"

    @scenario
    async def test_a_rescued_job_queues_anew(self, bench: Bench) -> None:
        """It does not pass those that waited meanwhile."""
        await bench.processing("lapsed", lease=10.0)
        await bench.add("waiting")
        bench.clock.advance(10.25)

        assert await bench.drained() == ["waiting", "lapsed"]

    @scenario
    async def test_a_lapse_with_a_cancel_asked_ends_the_job(self, bench: Bench) -> None:
        """It is absent, by rescue and by claim, also on its last attempt."""
        for id, attempts in (("a", 3), ("b", 1)):
            for end in (bench.queue.rescue, bench.claim):
                await bench.processing(id, max_attempts=attempts, lease=10.0)
                await bench.cancel(id, running=True)
                bench.clock.advance(10.25)
                answer = await end(100)
                assert [(one.id, one.state) for one in answer.rescued] == [(id, State.CANCELLED)]
                assert await bench.state(id) is None
                assert (await bench.claim()).claims == []

    @scenario
    async def test_leases_ignore_the_wall_clock(self, bench: Bench) -> None:
        """A wall clock that is set takes no lease away and keeps none for ever."""
        await bench.processing(lease=10.0)

        bench.clock.jump_wall(3600.0)
        assert (await bench.queue.rescue(100)).rescued == []
        bench.clock.jump_wall(-7200.0)
        bench.clock.advance(10.25)

        assert len((await bench.queue.rescue(100)).rescued) == 1

    @scenario
    async def test_a_lease_too_far_ahead_is_set_back_to_its_own_length(self, bench: Bench) -> None:
        """When the clock of leases jumped back, a dead worker's job comes back within one lease."""
        await bench.processing(lease=10.0)

        bench.clock.jump_monotonic(-4000.0)
        next_in = (await bench.queue.rescue(100)).next_in
        bench.clock.advance(10.25)

        assert next_in is not None
        assert next_in <= 10.01
        assert len((await bench.queue.rescue(100)).rescued) == 1

    @scenario
    async def test_a_claim_sets_leases_back_as_well(self, bench: Bench) -> None:
        """Where no reaper runs, nobody else would."""
        await bench.processing(lease=10.0)

        bench.clock.jump_monotonic(-4000.0)
        next_in = (await bench.claim()).next_in
        bench.clock.advance(10.25)

        assert next_in is not None
        assert next_in <= 10.01
        assert len((await bench.claim()).claims) == 1

    @scenario
    async def test_leases_are_set_back_whatever_was_asked_first(self, bench: Bench) -> None:
        """Any verb may be the first that meets a clock that jumped back; none may hide that from the others."""
        for verb in ("add", "add later", "settle", "give back", "revive", "cancel", "extend", "get"):
            await bench.failed(f"{verb}: failed")
            held = await bench.processing(f"{verb}: held", lease=5000.0)
            await bench.processing(f"{verb}: lost", lease=10.0, max_attempts=1)
            await bench.add(f"{verb}: waits", delay=TTL)

            bench.clock.jump_monotonic(-1000.0)
            match verb:
                case "add":
                    await bench.add(f"{verb}: added")
                case "add later":
                    await bench.add(f"{verb}: added", delay=TTL)
                case "settle":
                    await bench.settle(held, State.FAILING, delay=TTL)
                case "give back":
                    await bench.settle(held, State.QUEUED)
                case "revive":
                    await bench.revive(f"{verb}: failed")
                case "cancel":
                    await bench.cancel(f"{verb}: waits")
                case "extend":
                    await bench.extend(held, 5000.0)
                case "get":
                    await bench.look(f"{verb}: held")
            await bench.queue.rescue(100)
            bench.clock.advance(10.25)
            await bench.queue.rescue(100)

            assert await bench.state(f"{verb}: lost") is State.FAILED
            for claim in (held, *(await bench.claim()).claims):
                await bench.settle(claim)

    @scenario
    async def test_leases_of_different_lengths_are_set_back_each_to_its_own(self, bench: Bench) -> None:
        """A long one does not keep a short one."""
        await bench.processing("long", lease=1000.0)
        await bench.processing("short", lease=5.0)
        bench.clock.jump_monotonic(-500.0)
        await bench.queue.rescue(100)
        bench.clock.advance(5.25)

        rescued = (await bench.queue.rescue(100)).rescued

        assert [one.id for one in rescued] == ["short"]

    @scenario
    async def test_a_lease_that_was_renewed_for_longer_is_set_back_to_that_length(self, bench: Bench) -> None:
        """A renewal may ask for another length than the claim, and counts as a whole."""
        claim = await bench.processing(lease=10.0)
        await bench.extend(claim, 1000.0)
        bench.clock.jump_monotonic(-500.0)
        await bench.queue.rescue(100)
        bench.clock.advance(900.0)

        assert (await bench.queue.rescue(100)).rescued == []
        assert await bench.settle(claim) == "applied"

    @scenario
    async def test_a_restart_of_the_machine_frees_every_lock(self, bench: Bench) -> None:
        """Whoever held it is gone, and its deadline is by a clock that began anew."""
        if self.time_is_a_servers:
            raise unittest.SkipTest("the clock of leases is a server's")
        assert await bench.queue.hold("lock", "gone", 1000.0)
        await bench.storage.close()
        bench.clock.reboot()
        peer = await bench.peer()
        await bench.storage.open()

        assert await peer.queue.hold("lock", "next", 10.0)

    @scenario
    async def test_a_restart_of_the_machine_lapses_every_lease(self, bench: Bench) -> None:
        """Whoever held them is gone; tokens rise nevertheless, and an old one stays worthless."""
        if self.time_is_a_servers:
            raise unittest.SkipTest("the clock of leases is a server's")
        claim = await bench.processing(lease=1000.0)
        await bench.storage.close()
        bench.clock.reboot()
        peer = await bench.peer()
        await bench.storage.open()

        second = await peer.take()

        assert (second.id, second.attempts) == ("job", 2)
        assert second.fencing_token > claim.fencing_token
        assert await peer.extend(claim) == Held.LOST
        assert await peer.settle(second) == "applied"

    @scenario
    async def test_a_rescued_worker_cannot_settle(self, bench: Bench) -> None:
        """Its outcome is lost, whatever it is, and changes nothing."""
        for state in (State.COMPLETED, State.FAILED, State.FAILING, State.QUEUED):
            id = f"job-{state}"
            first = await bench.processing(id, lease=LEASE)
            bench.clock.advance(LEASE + 0.25)
            assert [one.id for one in (await bench.queue.rescue(100)).rescued] == [id]
            for step in ("waiting", "held", "ended"):
                if step == "held":
                    second = await bench.take(lease=TTL)
                elif step == "ended":
                    await bench.settle(second)
                before = await bench.picture((id,))
                assert await bench.settle(first, state, result=b"late", ttl=1.0, delay=1.0) == "lost", step
                assert await bench.picture((id,)) == before, step
