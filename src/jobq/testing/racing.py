"""Behaviours of two storage objects on the same data, as two processes would have them.

They are left out for a storage without `make_peer`.
"""

from __future__ import annotations

import asyncio

from jobq.job import State
from jobq.storage.contract import Hint, HintKind, Settled
from jobq.testing.bench import TTL, Bench, StorageCase, scenario, soon


class Racing(StorageCase):
    """Exactly one wins, whoever asks."""

    @scenario
    async def test_a_peer_sees_everything(self, bench: Bench) -> None:
        """There is one truth, and it is not in any process."""
        ids = ("done", "held", "waits")
        await bench.completed("done")
        claim = await bench.processing("held")
        await bench.add("waits", delay=5.0)
        peer = await bench.peer()

        assert await peer.picture(ids) == await bench.picture(ids)
        assert await peer.settle(claim) == Settled.APPLIED
        assert await bench.state("held") is State.COMPLETED

    @scenario
    async def test_jobs_outlive_the_object_that_stored_them(self, bench: Bench) -> None:
        """An accepted job survives whatever its storage survives."""
        ids = ("done", "held", "waits")
        await bench.completed("done")
        claim = await bench.processing("held", lease=TTL)
        await bench.add("waits", b"\x00\xff", delay=5.0)
        before = await bench.picture(ids)
        await bench.storage.close()

        peer = await bench.peer()

        assert await peer.picture(ids) == before
        assert await peer.settle(claim) == Settled.APPLIED
        bench.clock.advance(5.25)
        assert (await peer.take()).payload == b"\x00\xff"
        await bench.storage.open()

    @scenario
    async def test_of_racing_adds_one_is_accepted(self, bench: Bench) -> None:
        """For each of many ids, from two objects at once."""
        peer = await bench.peer()
        ids = [f"job-{number}" for number in range(20)]

        first, second = await asyncio.gather(
            bench.queue.add([bench.new(id, b"1") for id in ids]),
            peer.queue.add([peer.new(id, b"2") for id in reversed(ids)]),
        )

        for one, other in zip(first, reversed(second), strict=True):
            assert (one is None) != (other is None)
        assert await bench.queue.counts() == {State.QUEUED: 20}

    @scenario
    async def test_of_racing_claims_one_gets_each_job(self, bench: Bench) -> None:
        """Tokens rise over both, and never repeat."""
        peer = await bench.peer()
        await bench.queue.add([bench.new(f"job-{number}") for number in range(40)])

        answers = await asyncio.gather(*(one.claim(5) for one in (bench, peer) * 5))

        claims = [claim for answer in answers for claim in answer.claims]
        assert len({claim.id for claim in claims}) == len(claims) == 40
        assert len({claim.fencing_token for claim in claims}) == 40

    @scenario
    async def test_of_racing_rescuers_one_gets_each_job(self, bench: Bench) -> None:
        """A lapse is ended once, by rescue or by claim."""
        peer = await bench.peer()
        await bench.queue.add([bench.new(f"job-{number}") for number in range(20)])
        await bench.claim(20, lease=5.0)
        bench.clock.advance(5.25)

        answers = await asyncio.gather(bench.queue.rescue(100), peer.queue.rescue(100), bench.claim(20), peer.claim(20))

        rescued = [one.id for answer in answers for one in answer.rescued]
        assert len(rescued) == len(set(rescued)) == 20
        assert {(await bench.found(id)).attempts for id in rescued} <= {1, 2}

    @scenario
    async def test_of_racing_settlements_one_decides(self, bench: Bench) -> None:
        """The same token from two places: one outcome is stored, and stays."""
        peer = await bench.peer()
        for number in range(10):
            id = f"job-{number}"
            claim = await bench.processing(id)
            await asyncio.gather(bench.settle(claim, result=b"1"), peer.settle(claim, State.FAILED))
            first = await bench.found(id)
            await peer.settle(claim, result=b"3")
            assert await bench.found(id) == first

    @scenario
    async def test_a_rescued_worker_is_fenced_from_its_successor_elsewhere(self, bench: Bench) -> None:
        """The late result of one process does not overwrite that of another."""
        peer = await bench.peer()
        first = await bench.processing(lease=5.0)
        bench.clock.advance(5.25)
        second = await peer.take()

        assert second.fencing_token > first.fencing_token
        assert await bench.settle(first, result=b"late") == Settled.LOST
        assert await bench.extend(first) == "lost"
        assert await peer.settle(second, result=b"right") == Settled.APPLIED
        assert (await bench.found()).result == b"right"

    @scenario
    async def test_a_request_may_be_sent_again_through_another_object(self, bench: Bench) -> None:
        """What is remembered is remembered with the job."""
        peer = await bench.peer()
        job = await bench.add()
        nonce = bench.nonce()
        claimed = await bench.queue.claim("worker", 30.0, 1, nonce)

        assert list(await peer.queue.add([job])) == [None]
        assert (await peer.queue.claim("worker", 30.0, 1, nonce)).claims == claimed.claims
        assert await bench.settle(claimed.claims[0], ttl=0.0) == Settled.APPLIED
        assert await peer.settle(claimed.claims[0], ttl=0.0) == Settled.APPLIED

    @scenario
    async def test_a_lock_excludes_across_objects(self, bench: Bench) -> None:
        """There is one leader."""
        peer = await bench.peer()

        answers = await asyncio.gather(
            bench.queue.hold("lead", "a", 10.0), peer.queue.hold("lead", "b", 10.0), bench.queue.hold("lead", "a", 10.0)
        )

        assert list(answers) in ([True, False, True], [False, True, False])

    @scenario
    async def test_hints_reach_another_object(self, bench: Bench) -> None:
        """A caller in one process hears of a worker in another."""
        peer = await bench.peer()
        hints: asyncio.Queue[Hint] = asyncio.Queue()
        watch = await bench.queue.watch(hints.put_nowait)
        job = await bench.add(reply_to=watch.address)

        await peer.settle(await peer.take())
        hint = await soon(hints.get())
        await watch.close()

        assert (hint.kind, hint.id, hint.generation) == (HintKind.SETTLED, "job", job.nonce)

    @scenario
    async def test_an_add_elsewhere_wakes_a_sleeper(self, bench: Bench) -> None:
        """At the latest by the storage's own polling."""
        peer = await bench.peer()
        sleeper = asyncio.create_task(bench.queue.wait_for_work(60.0))
        await asyncio.sleep(0)

        await peer.add()

        await soon(sleeper)

    @scenario
    async def test_a_short_sleep_elsewhere_hides_nothing_from_a_long_one(self, bench: Bench) -> None:
        """What falls due behind the end of the one and before that of the other wakes the other."""
        peer = await bench.peer()
        sleeper = asyncio.create_task(bench.queue.wait_for_work(60.0))
        for length in (0.05, 0.06):  # The second, which is longer, is told of when the long one surely is.
            await soon(peer.queue.wait_for_work(length))

        await peer.add(delay=30.0)

        await soon(sleeper)

    @scenario
    async def test_each_end_of_one_call_is_told_to_another_object(self, bench: Bench) -> None:
        """Whoever waits there waits for each of them."""
        peer = await bench.peer()
        hints: asyncio.Queue[Hint] = asyncio.Queue()
        watch = await bench.queue.watch(hints.put_nowait)
        await bench.queue.add([bench.new(id, reply_to=watch.address) for id in "abc"])

        claims = (await peer.claim()).claims
        await peer.queue.settle([peer.settlement(claim) for claim in claims])
        told = [(await soon(hints.get())).id for _ in "abc"]
        await watch.close()

        assert sorted(told) == list("abc")
