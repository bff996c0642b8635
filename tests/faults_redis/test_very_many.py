"""Very many at once: what one command of a server can take is less than what one worker may ask for."""

from __future__ import annotations

import asyncio

import pytest

from jobq import State
from jobq.job import Snapshot
from jobq.storage.contract import Ref
from jobq.testing import Bench
from tests.faults_redis.scenes import benched, in_loop
from tests.servers.server import Server

COUNT = 4500
"""Lua hands on two values for each job, and less than 8,000 to a command."""
UNLIMITED = 100_000
LARGE = 300_000
"""Bytes of a payload, of which a claim should not bring a hundred at once."""


async def claimed(bench: Bench, lease: float = 30.0) -> list[str]:
    """Claim without a limit until nothing is left, and return the ids."""
    ids: list[str] = []
    while claims := (await bench.claim(UNLIMITED, lease=lease)).claims:
        ids += (claim.id for claim in claims)
    return ids


async def rescued(bench: Bench) -> list[str]:
    """Rescue without a limit until nothing is left, and return the ids."""
    ids: list[str] = []
    while jobs := (await bench.queue.rescue(UNLIMITED)).rescued:
        ids += (job.id for job in jobs)
    return ids


@pytest.mark.slow
@in_loop
async def test_thousands_of_jobs_are_claimed_rescued_promoted_and_listed(
    either_server: Server, key_prefix: str
) -> None:
    """By a worker with many slots: each job once, and none is taken out of a list without being handed out."""
    async with benched(either_server, key_prefix, by_hand=True) as bench:
        ids = sorted(f"job-{number}" for number in range(COUNT))
        await bench.queue.add([bench.new(id, max_attempts=4) for id in ids])

        assert sorted(await claimed(bench, lease=1.0)) == ids
        bench.clock.advance(2.0)
        assert sorted(await rescued(bench)) == ids
        assert sorted(await claimed(bench, lease=1.0)) == ids
        bench.clock.advance(2.0)
        assert sorted(await claimed(bench)) == ids

        later = sorted(f"later-{number}" for number in range(COUNT))
        await bench.queue.add([bench.new(id, delay=1.0) for id in later])
        bench.clock.advance(2.0)
        assert sorted(await claimed(bench)) == later
        assert [snapshot.id for snapshot in await bench.queue.page(State.PROCESSING, "", UNLIMITED)] == ids + later


@pytest.mark.slow
@in_loop
async def test_a_job_that_is_asked_about_again_and_again_stays_readable(either_server: Server, key_prefix: str) -> None:
    """Its record remembers no more requests than fit, and the last ones rather than the first."""
    async with benched(either_server, key_prefix, by_hand=True) as bench:
        claim = await bench.processing()
        nonces = [f"{'session' * 30}.{number}" for number in range(400)]

        asked = await asyncio.gather(*(bench.cancel(nonce=nonce) for nonce in nonces))

        assert asked == [State.PROCESSING] * len(nonces)
        assert str(await bench.settle(claim)) == "applied"
        assert (await bench.found()).result == b"result"
        assert await bench.cancel(nonce=nonces[-1]) is State.PROCESSING


@pytest.mark.slow
@in_loop
async def test_a_claim_of_large_payloads_is_answered_in_parts(either_server: Server, key_prefix: str) -> None:
    """Else one worker with many slots would stop the server for long, and wait in vain for all of it to arrive."""
    async with benched(either_server, key_prefix, by_hand=True) as bench:
        ids = [f"job-{number}" for number in range(100)]
        sizes = [1] * 4 + [LARGE] * 96  # The first ones do not tell how large the others are.
        await bench.queue.add([bench.new(id, bytes(size)) for id, size in zip(ids, sizes, strict=True)])

        taken, most = list[str](), 0
        while claims := (await bench.claim()).claims:
            taken += (claim.id for claim in claims)
            most = max(most, len(claims))

        assert taken == ids
        assert 1 < most <= 4 + 4 * 2**20 // LARGE + 1


@pytest.mark.slow
@in_loop
async def test_large_jobs_that_fall_due_together_are_promoted_in_parts(either_server: Server, key_prefix: str) -> None:
    """A claim of one would else read and write them all, while everybody waits."""
    async with benched(either_server, key_prefix, by_hand=True) as bench:
        ids = sorted(f"job-{number:02}" for number in range(40))
        await bench.queue.add([bench.new(id, bytes(LARGE), delay=1.0) for id in ids])
        bench.clock.advance(2.0)

        first = await bench.claim(1)

        assert len(first.claims) == 1
        assert first.next_in == 0.0
        assert either_server.command("ZCARD", f"{key_prefix}{{first}}:later") > 20
        assert sorted([first.claims[0].id, *await claimed(bench)]) == ids


@in_loop
async def test_large_results_are_read_in_parts(either_server: Server, key_prefix: str) -> None:
    """All in one answer would take longer to arrive than it is waited for."""
    async with benched(either_server, key_prefix, by_hand=True) as bench:
        ids = [f"job-{number}" for number in range(40)]
        await bench.queue.add([bench.new(id) for id in ids])
        for claim in (await bench.claim()).claims:
            await bench.settle(claim, result=claim.id.encode() * (LARGE // 5))
        looks = either_server.calls().get("evalsha", 0)

        found = await bench.queue.get([Ref(id) for id in [*ids, "absent"]])

        results = [one.result if isinstance(one, Snapshot) else one for one in found]
        assert results == [*(id.encode() * (LARGE // 5) for id in ids), None]
        assert either_server.calls()["evalsha"] - looks in range(2, 10)


@in_loop
async def test_renewals_and_counts_read_no_payload(either_server: Server, key_prefix: str) -> None:
    """They concern all jobs at once, and a script holds up everybody."""
    async with benched(either_server, key_prefix, by_hand=True) as bench:
        await bench.queue.add([bench.new(f"job-{number}", max_attempts=4) for number in range(60)])
        claims = (await bench.claim(30, lease=30.0)).claims
        whole = either_server.calls().get("mget", 0)

        held = await bench.queue.extend([(claim.id, claim.token) for claim in claims], 30.0)
        counts = await bench.queue.counts()

        assert list(map(str, held)) == ["held"] * 30
        assert counts == {State.QUEUED: 30, State.PROCESSING: 30}
        assert either_server.calls().get("mget", 0) == whole
