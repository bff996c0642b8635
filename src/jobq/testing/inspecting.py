"""Behaviours of `Lock` and `Inspector`: who leads, and what people see."""

from __future__ import annotations

import asyncio

from jobq.job import State
from jobq.testing.bench import LEASE, Bench, StorageCase, scenario


class Locking(StorageCase):
    """Mutual exclusion with a time limit."""

    @scenario
    async def test_a_lock_has_one_owner(self, bench: Bench) -> None:
        """Others are refused, and the owner may renew."""
        hold = bench.queue.hold

        answers = [await hold("lead", owner, 10.0) for owner in ("a", "b", "a")]

        assert answers == [True, False, True]

    @scenario
    async def test_racing_owners_get_it_once(self, bench: Bench) -> None:
        """Test and set are one step."""
        answers = await asyncio.gather(*(bench.queue.hold("lead", f"owner-{n}", 10.0) for n in range(10)))

        assert sum(answers) == 1

    @scenario
    async def test_a_lock_ends_with_its_time(self, bench: Bench) -> None:
        """Then anybody may have it, and the former owner may not."""
        await bench.queue.hold("lead", "a", 10.0)
        bench.clock.advance(9.75)
        early = await bench.queue.hold("lead", "b", 10.0)
        bench.clock.advance(0.25)

        assert [early, await bench.queue.hold("lead", "b", 10.0)] == [False, True]
        assert await bench.queue.hold("lead", "a", 10.0) is False

    @scenario
    async def test_renewing_counts_from_now(self, bench: Bench) -> None:
        """By the new length."""
        await bench.queue.hold("lead", "a", 10.0)
        bench.clock.advance(8.0)
        await bench.queue.hold("lead", "a", 10.0)
        bench.clock.advance(8.0)

        assert await bench.queue.hold("lead", "b", 10.0) is False

    @scenario
    async def test_only_the_owner_releases(self, bench: Bench) -> None:
        """Releasing what one does not hold is harmless."""
        await bench.queue.release("lead", "a")
        await bench.queue.hold("lead", "a", 10.0)
        await bench.queue.release("lead", "b")

        assert await bench.queue.hold("lead", "b", 10.0) is False

        await bench.queue.release("lead", "a")
        assert await bench.queue.hold("lead", "b", 10.0) is True

    @scenario
    async def test_locks_are_apart_by_name_and_by_queue(self, bench: Bench) -> None:
        """One leader for each."""
        other = bench.storage.namespace("second")
        await bench.queue.hold("lead", "a", 10.0)

        assert await bench.queue.hold("other", "b", 10.0) is True
        assert await other.hold("lead", "b", 10.0) is True

    @scenario
    async def test_a_lock_ignores_the_wall_clock(self, bench: Bench) -> None:
        """A clock that is set makes no second leader."""
        await bench.queue.hold("lead", "a", 10.0)
        bench.clock.jump_wall(3600.0)

        assert await bench.queue.hold("lead", "b", 10.0) is False


class Inspecting(StorageCase):
    """Reads for people."""

    @scenario
    async def test_counts_tell_jobs_by_state(self, bench: Bench) -> None:
        """States without jobs are left out; what is absent is not counted."""
        assert await bench.queue.counts() == {}

        await bench.completed("completed")
        await bench.completed("gone", ttl=0.0)
        await bench.failed("failed")
        claim = await bench.processing("failing")
        await bench.settle(claim, State.FAILING, delay=60.0)
        await bench.processing("processing")
        for id in ("one", "two", "cancelled"):
            await bench.add(id)
        await bench.add("delayed", delay=60.0)
        await bench.cancel("cancelled")

        assert await bench.queue.counts() == {
            State.QUEUED: 3,
            State.PROCESSING: 1,
            State.FAILING: 1,
            State.COMPLETED: 1,
            State.FAILED: 1,
        }

    @scenario
    async def test_a_lapsed_lease_reads_as_processing(self, bench: Bench) -> None:
        """Until somebody rescues it, in every view."""
        await bench.processing(lease=5.0)
        bench.clock.advance(6.0)

        assert await bench.queue.counts() == {State.PROCESSING: 1}
        assert len(await bench.queue.page(State.PROCESSING, "", 10)) == 1
        assert await bench.queue.workers() == [("worker", 1)]

    @scenario
    async def test_pages_go_through_all_jobs_of_a_state(self, bench: Bench) -> None:
        """In the order of ids, each once, whatever the ids."""
        ids = [f"job-{number:03}" for number in range(25)] + ["A", "z", "\u00e9", "\U0001f468", " "]
        await bench.queue.add([bench.new(id) for id in reversed(ids)])
        await bench.completed("done", priority=1000)

        seen: list[str] = []
        while page := await bench.queue.page(State.QUEUED, seen[-1] if seen else "", 7):
            assert len(page) <= 7
            assert {snapshot.state for snapshot in page} == {State.QUEUED}
            seen += (snapshot.id for snapshot in page)

        assert seen == sorted(ids)

    @scenario
    async def test_a_page_shows_what_get_shows(self, bench: Bench) -> None:
        """One truth."""
        await bench.failed()

        [snapshot] = await bench.queue.page(State.FAILED, "", 10)

        assert snapshot == await bench.found()

    @scenario
    async def test_a_page_leaves_out_what_has_expired(self, bench: Bench) -> None:
        """Absent is absent for people too."""
        await bench.completed("a", ttl=5.0)
        await bench.completed("b", ttl=50.0)
        bench.clock.advance(6.0)

        assert [snapshot.id for snapshot in await bench.queue.page(State.COMPLETED, "", 10)] == ["b"]
        assert await bench.queue.page(State.CANCELLED, "", 10) == []

    @scenario
    async def test_workers_are_those_that_hold_jobs(self, bench: Bench) -> None:
        """By label, with how many each holds."""
        await bench.queue.add([bench.new(f"job-{number}") for number in range(5)])
        mine = (await bench.claim(2, worker="mine")).claims
        await bench.claim(3, worker="yours", lease=LEASE)
        before = sorted(await bench.queue.workers())
        for claim in mine:
            await bench.settle(claim)

        assert before == [("mine", 2), ("yours", 3)]
        assert sorted(await bench.queue.workers()) == [("yours", 3)]
