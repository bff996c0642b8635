"""Lines that are cut, slow, half open or reset: workers fence themselves by their own clock, and nothing is doubled."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import pytest

from jobq import FixedDelay, Job, JobFailedError, Queue, RedisStorage, State, StorageUnavailableError
from tests.engine.scenes import Events
from tests.faults_redis.scenes import (
    RESUMES_WITHIN,
    SLACK,
    Work,
    counted,
    eventually,
    in_loop,
    names,
    of_verb,
    passing,
    reached,
    states,
    twice,
)
from tests.servers.fixtures import Starter
from tests.servers.server import Server
from tests.servers.trouble import Direction, Ending

LEASE = 1.0


class Stubborn:
    """A handler that runs on after it was cancelled, and returns who it was."""

    def __init__(self, answer: int) -> None:
        self._answer = answer
        self.began = asyncio.Event()
        self.cancelled_at = 0.0
        self.reason: str | None = None
        self.release = asyncio.Event()

    async def __call__(self, job: Job[int]) -> int:
        self.began.set()
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled_at, self.reason = time.monotonic(), job.signal.reason
        return self._answer


@in_loop
async def test_a_worker_that_is_cut_off_fences_itself_before_others_begin(
    either_server: Server, start: Starter, key_prefix: str
) -> None:
    """Cut off for three leases: its handler is cancelled in time, its value dropped, and the other's result stays."""
    proxy = start.proxy(either_server.port)
    options: dict[str, Any] = {"visibility_timeout": LEASE, "block_timeout": 0.2, "retry": FixedDelay(0)}
    cut_off = Queue[int, int](RedisStorage(proxy.url, key_prefix=key_prefix), **options)
    other = Queue[int, int](RedisStorage(either_server.url, key_prefix=key_prefix), **options)
    stubborn, began_there = Stubborn(1), asyncio.Event()
    cut_off.execute(stubborn)
    cut_off_events = Events(cut_off)
    async with cut_off:
        await cut_off.enqueue("job", 1)
        await stubborn.began.wait()
        proxy.black_hole()
        cut_at = time.monotonic()

        @other.execute
        async def answer(job: Job[int]) -> int:
            began_there.set()
            return 2

        async with other:
            await asyncio.wait_for(began_there.wait(), LEASE + 2.0)
            began_at = time.monotonic()
            assert 0 < stubborn.cancelled_at < began_at
            assert stubborn.cancelled_at - cut_at < LEASE + SLACK
            assert stubborn.reason == "lease_lost"
            assert await other.wait("job") == 2
            stubborn.release.set()
            await passing(max(0.0, cut_at + 3 * LEASE - time.monotonic()))
            proxy.heal()
            await eventually(lambda: "lease_lost" in cut_off_events.names, "lease_lost")

            assert await cut_off.enqueue_and_wait("job", 1, timeout=10) == 2
            assert cut_off_events.of("completed") == []
            assert await states(other, ["job"]) == {"job": State.COMPLETED}


@in_loop
async def test_a_settle_that_arrives_after_its_lease_is_refused(
    either_server: Server, start: Starter, key_prefix: str
) -> None:
    """It was on its way while the job lapsed, ran elsewhere and ended."""
    proxy = start.proxy(either_server.port)
    late = Work(RedisStorage(proxy.url, key_prefix=key_prefix), visibility_timeout=LEASE)
    async with late:
        held = proxy.drop_request(when=of_verb("settle"), ending=Ending.HOLD)
        await late.queue.enqueue("job", 21)
        await eventually(lambda: held.done, "held settle")
        async with Queue[int, int](
            RedisStorage(either_server.url, key_prefix=key_prefix), visibility_timeout=LEASE, block_timeout=0.2
        ) as other:

            @other.execute
            async def answer(job: Job[int]) -> int:
                return 99

            assert await other.wait("job", timeout=LEASE + 2.0) == 99
            before = await other.get_status("job")

            proxy.heal()
            await eventually(lambda: late.of("lease_lost"), "refusal")

            assert late.completed == []
            assert await other.get_status("job") == before


@in_loop
async def test_latency_near_the_lease_lets_short_jobs_through_and_takes_long_ones_away(
    valkey_server: Server, start: Starter, key_prefix: str
) -> None:
    """Every message takes 0.2 s, a lease lasts 0.5 s: progress where it is possible, else a clear end."""
    proxy = start.proxy(valkey_server.port)
    storage = RedisStorage(proxy.url, key_prefix=key_prefix)
    async with Work(storage, visibility_timeout=0.5, concurrency=30, max_attempts=3) as work:
        proxy.delay(requests=0.2, replies=0.2)
        ids = names(20)

        answers = await asyncio.gather(*(work.queue.enqueue_and_wait(id, 1, timeout=20) for id in ids))
        work.seconds = 30.0
        with pytest.raises(JobFailedError) as failed:
            await work.queue.enqueue_and_wait("long", 1, max_attempts=2, timeout=20)

        assert answers == [2] * 20
        assert twice(work.completed) == []
        assert failed.value.error.code == "WORKER_LOST"
        assert work.runs["long"] <= 2
        assert work.of("lease_lost") != []


@in_loop
async def test_latency_beyond_the_lease_runs_nothing_and_loses_nothing(
    valkey_server: Server, start: Starter, key_prefix: str
) -> None:
    """A claim that arrives when its lease is over is not run, since others may run the job already."""
    proxy = start.proxy(valkey_server.port)
    storage = RedisStorage(proxy.url, key_prefix=key_prefix)
    async with Work(storage, visibility_timeout=0.4, max_attempts=1000) as work:
        proxy.delay(requests=0.3, replies=0.3)
        await asyncio.gather(*(work.queue.enqueue(id, 1) for id in names(20)))
        await passing(2.0)
        assert work.runs == {}

        proxy.heal()

        await eventually(lambda: len(set(work.completed)) == 20, "all jobs")
        assert twice(work.completed) == []


@pytest.mark.slow
@in_loop
async def test_a_link_of_ten_bytes_a_second_costs_five_seconds(
    valkey_server: Server, start: Starter, key_prefix: str
) -> None:
    """It is given up and made again; when the line is well, everything goes on."""
    proxy = start.proxy(valkey_server.port)
    async with Work(RedisStorage(proxy.url, key_prefix=key_prefix)) as work:
        proxy.slice(0.1)
        begun = time.monotonic()

        with pytest.raises(StorageUnavailableError):
            await work.queue.enqueue("job", 1)

        assert time.monotonic() - begun < 5.0 + SLACK
        proxy.heal()
        proxy.end_connections(Ending.RESET)
        begun = time.monotonic()
        assert await work.queue.enqueue_and_wait("job", 1) == 2
        assert time.monotonic() - begun < RESUMES_WITHIN


@in_loop
async def test_single_bytes_are_put_together_again(valkey_server: Server, start: Starter, key_prefix: str) -> None:
    proxy = start.proxy(valkey_server.port)
    async with Work(RedisStorage(proxy.url, key_prefix=key_prefix)) as work:
        assert await work.queue.enqueue_and_wait("first", 1) == 2  # From here on the server knows the scripts.
        proxy.slice(0.0001, Direction.REQUESTS)

        assert await asyncio.gather(*(work.queue.enqueue_and_wait(id, 1) for id in names(2))) == [2] * 2

        assert set(work.runs.values()) == {1}


@pytest.mark.parametrize("ending", [Ending.CLOSE, Ending.RESET, Ending.HALF_CLOSE])
@in_loop
async def test_all_connections_end_in_the_middle_of_two_hundred_jobs(
    either_server: Server, start: Starter, key_prefix: str, ending: Ending
) -> None:
    """In each way in which they can end and somebody sees it."""
    proxy = start.proxy(either_server.port)
    ids = names(200)
    async with Work(RedisStorage(proxy.url, key_prefix=key_prefix), seconds=0.01) as work:
        waits = [asyncio.create_task(work.queue.enqueue_and_wait(id, n, timeout=30)) for n, id in enumerate(ids)]
        for share in (20, 80, 140):
            await eventually(partial(reached, work.completed, share), f"{share} jobs")
            proxy.end_connections(ending)

        assert await asyncio.gather(*waits) == [2 * n for n in range(200)]

        await eventually(lambda: len(work.completed) == 200, "all events")
        assert twice(work.completed) == []
        assert set(work.runs.values()) == {1}


@pytest.mark.slow
@in_loop
async def test_connections_that_die_silently_are_given_up(
    redis_server: Server, start: Starter, key_prefix: str
) -> None:
    """Nobody sees an end; silence is what tells. Waiters get their answers by asking again."""
    proxy = start.proxy(redis_server.port)
    storage = RedisStorage(proxy.url, key_prefix=key_prefix)
    async with Work(storage, seconds=0.05, concurrency=4, visibility_timeout=2.0) as work:
        waits = [asyncio.create_task(work.queue.enqueue_and_wait(id, 1, timeout=40)) for id in names(40)]
        await eventually(lambda: len(work.completed) >= 8, "some jobs")

        proxy.end_connections(Ending.SILENCE)

        assert await asyncio.gather(*waits) == [2] * 40
        assert await counted(work.queue) == {State.COMPLETED: 40}
        assert twice(work.completed) == []


@in_loop
async def test_a_subscriber_whose_results_overflow_the_server_is_answered_all_the_same(start: Starter) -> None:
    """The server hangs up on it again and again; it listens anew, and reads what it has missed."""
    server = start.server(options=["client-output-buffer-limit pubsub 32kb 16kb 1"])
    proxy = start.proxy(server.port)
    queue = Queue[int, str](RedisStorage(proxy.url), concurrency=20)

    @queue.execute
    async def large(job: Job[int]) -> str:
        return "x" * 50_000

    async with queue:
        before = proxy.connections_ever
        begun = time.monotonic()

        answers = await asyncio.gather(*(queue.enqueue_and_wait(id, 1) for id in names(60)))

        assert {len(answer) for answer in answers} == {50_000}
        assert time.monotonic() - begun < 5.0 + SLACK
        # Beside that for markers, which is made when it is first needed.
        await eventually(lambda: proxy.connections_ever > before + 1, "new connection")
