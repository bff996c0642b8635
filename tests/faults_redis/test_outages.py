"""The server forgets, hangs up, dies, freezes or is emptied while jobs run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import pytest

from jobq import JobNotFoundError, JobQueueError, RedisStorage, State, StorageUnavailableError
from jobq.job import NewJob
from tests.faults_redis.scenes import (
    RESUMES_WITHIN,
    SLACK,
    Work,
    clients,
    counted,
    eventually,
    in_loop,
    kill_clients,
    leftovers,
    names,
    passing,
    reached,
    states,
    twice,
)
from tests.servers.binaries import Kind
from tests.servers.fixtures import REDIS_KINDS, Starter
from tests.servers.server import Server

JOBS = 200
CONNECTIONS = ("jobq-commands", "jobq-channels", "jobq-markers", "jobq-twin")
STEM = "{default}:"


async def disturbed(server: Server, prefix: str, disturb: Callable[[], object]) -> Work:
    """Run 200 jobs on two workers, disturb them a few times in between, and check that nothing was lost or doubled."""
    ids = names(JOBS)
    first = Work(RedisStorage(server.url, key_prefix=prefix), seconds=0.02, visibility_timeout=3.0)
    second = Work(RedisStorage(server.url, key_prefix=prefix), seconds=0.02, visibility_timeout=3.0)
    completed = first.events["completed"] = second.events["completed"] = []
    async with first, second:
        waits = [asyncio.create_task(first.queue.enqueue_and_wait(id, n, timeout=30)) for n, id in enumerate(ids)]
        for share in (20, 60, 120):
            await eventually(partial(reached, completed, share), f"{share} jobs")
            disturb()

        assert await asyncio.gather(*waits) == [2 * n for n in range(JOBS)]

        await eventually(lambda: len(completed) == JOBS, "all events")
        assert twice(completed) == []
        assert set((await states(first.queue, ids)).values()) == {State.COMPLETED}
        assert leftovers(server, prefix + STEM) == {"ready": 0, "later": 0, "leases": 0}
        first.runs.update(second.runs)
    return first


@in_loop
async def test_what_came_before_a_sleeper_was_known_is_not_overslept(either_server: Server, key_prefix: str) -> None:
    """As when the server had to be given the script first, and a delayed job overtook it: nobody was woken for that."""
    storage = RedisStorage(either_server.url, key_prefix=key_prefix)
    await storage.open()
    try:
        queue = storage.namespace("default")
        assert (await queue.claim("worker", 30.0, 1, "session.1")).next_in is None
        await queue.add([NewJob("job", "nonce.1", b"null", 1, 60.0, delay=60.0)])

        async with asyncio.timeout(5):
            await queue.wait_for_work(100.0)

        assert (await queue.claim("worker", 30.0, 1, "session.2")).next_in == pytest.approx(60.0, abs=5.0)
    finally:
        await storage.close()


@in_loop
async def test_a_forgotten_script_is_sent_again(either_server: Server, key_prefix: str) -> None:
    """``SCRIPT FLUSH``: nobody notices, and nothing runs twice."""
    work = await disturbed(either_server, key_prefix, lambda: either_server.command("SCRIPT", "FLUSH"))

    assert set(work.runs.values()) == {1}


@pytest.mark.parametrize("kind", CONNECTIONS)
@in_loop
async def test_connections_that_are_killed_are_made_again(either_server: Server, key_prefix: str, kind: str) -> None:
    """Of each of the four kinds, three times."""
    killed: list[int] = []

    work = await disturbed(either_server, key_prefix, lambda: killed.append(kill_clients(either_server, kind)))

    # A marker connection is made again when somebody waits, which busy workers do not.
    assert sum(killed) >= (1 if kind == "jobq-markers" else 3)
    assert set(work.runs.values()) == {1}


@pytest.mark.parametrize("kind", REDIS_KINDS)
@in_loop
async def test_a_server_killed_in_the_middle_loses_nothing_that_it_wrote(
    start: Starter, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``appendfsync always`` every job is completed, once; each storage tells each outage's beginning and end."""
    server = start.server(kind, persistence="always")

    def crash() -> None:
        server.kill()
        server.start()

    await disturbed(server, "jobq:", crash)

    told = [record.getMessage() for record in caplog.records if record.name == "jobq.storage"]
    assert sum("is unavailable" in text for text in told) == 2 * 3
    assert sum("is back after" in text for text in told) == 2 * 3


@pytest.mark.parametrize("empty", ["restart", "flush"])
@pytest.mark.parametrize("kind", REDIS_KINDS)
@in_loop
async def test_waiters_are_told_when_the_server_has_lost_its_data(start: Starter, kind: Kind, empty: str) -> None:
    """The running jobs' results are refused, waiters get `JobNotFoundError`, and the worker works on."""
    server = start.server(kind)
    async with Work(RedisStorage(server.url), concurrency=4, seconds=2.5) as work:
        waits = [asyncio.create_task(work.queue.enqueue_and_wait(id, 1)) for id in names(10)]
        await eventually(lambda: len(work.runs) == 4, "four running jobs")
        tokens = set(server.command("ZRANGE", f"jobq:{STEM}leases", 0, -1))

        if empty == "restart":
            server.restart(keep_data=False)
        else:
            server.command("FLUSHALL")
        emptied_at = time.monotonic()
        errors = await asyncio.gather(*waits, return_exceptions=True)

        assert time.monotonic() - emptied_at < 2.0
        assert [type(error) for error in errors] == [JobNotFoundError] * 10
        work.seconds = 0.0
        begun = time.monotonic()
        assert await work.queue.enqueue_and_wait("job-0", 21, timeout=10) == 42
        assert time.monotonic() - begun < 3.0  # Those that ran before it hold their slots until they end.
        await eventually(lambda: len(work.of("lease_lost")) == 4, "refused results")
        await eventually(lambda: work.completed == ["job-0"], "the event")
        assert await counted(work.queue) == {State.COMPLETED: 1}
        assert len(tokens) == 4


@pytest.mark.parametrize("empty", ["restart", "flush"])
@in_loop
async def test_tokens_rise_although_the_server_forgot_them(start: Starter, empty: str) -> None:
    """What a handler hands to other systems stays in order, and no token of before is valid again."""
    server = start.server()
    storage = RedisStorage(server.url)
    namespace = storage.namespace("default")
    tokens: list[str] = []
    async with Work(storage, handles=False) as work:
        for life in range(3):
            await work.queue.enqueue("job", life)
            [claim] = (await namespace.claim("worker", 30.0, 1, f"session.{life:x}")).claims
            for before in tokens:
                assert [str(answer) for answer in await namespace.extend([("job", before)], 30.0)] == ["lost"]
            tokens.append(claim.token)
            if empty == "restart":
                server.restart(keep_data=False)
            else:
                server.command("FLUSHALL")

    counters = [int(token.partition("-")[0]) for token in tokens]
    assert counters == sorted(set(counters))
    assert len({token.partition("-")[2] for token in tokens}) == 3


@pytest.mark.slow
@in_loop
async def test_a_frozen_server_costs_five_seconds_and_the_worker_resumes(start: Starter) -> None:
    """Calls end typed, none hangs; after seven seconds the server goes on, and so does everything else."""
    server = start.server("redis")
    # What was claimed by requests that the frozen server still finds comes back when its lease lapses.
    async with Work(RedisStorage(server.url), concurrency=4, seconds=0.05, visibility_timeout=1.0) as work:
        ids = names(100)

        async def ended() -> bool:
            return set((await states(work.queue, ids)).values()) == {State.COMPLETED}

        await work.queue.enqueue_many([(id, 1) for id in ids])
        await eventually(lambda: len(work.completed) >= 10, "running jobs")
        server.pause()
        begun = time.monotonic()

        errors = await asyncio.gather(
            work.queue.enqueue("late", 1),
            work.queue.cancel("job-99"),
            work.queue.get_status("job-1"),
            work.queue.update_result_ttl("job-1", 60),
            work.queue.retry("job-1"),
            return_exceptions=True,
        )

        assert [type(error) for error in errors] == [StorageUnavailableError] * 5
        assert time.monotonic() - begun < 5.0 + SLACK
        await passing(max(0.0, begun + 7.0 - time.monotonic()))
        done = len(work.completed)
        server.resume()
        await eventually(lambda: len(work.completed) > done, "further jobs", within=RESUMES_WITHIN)
        # Its outcome was unknown; the same id again tells.
        await work.queue.enqueue("job-99", 1)
        assert await work.queue.enqueue_and_wait("late", 1, timeout=20) == 2
        # Not every end is told: the server may have done a settle whose worker waits for its answer no longer.
        await eventually(ended, "the rest")
        assert twice(work.completed) == []


@in_loop
async def test_a_worker_resumes_within_two_seconds_and_says_so_once(start: Starter) -> None:
    """An outage of three seconds, in which the worker is idle."""
    server = start.server(persistence="always")
    async with Work(RedisStorage(server.url), block_timeout=30.0) as work:
        assert await work.queue.enqueue_and_wait("before", 1) == 2
        server.kill()
        await passing(3.0)
        server.start()
        begun = time.monotonic()

        assert await work.queue.enqueue_and_wait("after", 1) == 2

        assert time.monotonic() - begun < RESUMES_WITHIN
        assert len(work.of("error")) <= 1
        assert all(isinstance(error, JobQueueError) for error in work.of("error"))


@in_loop
async def test_it_uses_four_connections_whatever_is_lost(start: Starter) -> None:
    """Reconnecting leaves nothing behind at the server, and neither does stopping."""
    server = start.server()
    async with Work(RedisStorage(server.url), seconds=0.01) as work:
        for round in range(5):
            await work.queue.enqueue_many([(f"{round}-{id}", 1) for id in names(20)])
            await eventually(partial(reached, work.completed, 20 * (round + 1)), "all jobs")
            kill_clients(server, "jobq-")
            await eventually(lambda: len(clients(server, "jobq-")) == 4, "four connections")

        assert {len(clients(server, kind)) for kind in CONNECTIONS} == {1}

    await eventually(lambda: clients(server, "jobq-") == [], "end of all connections")


@pytest.mark.parametrize("kind", REDIS_KINDS)
@in_loop
async def test_calls_wait_while_a_server_loads_its_data(start: Starter, kind: Kind) -> None:
    """``LOADING`` passes by itself: callers see a call that took longer, and nothing is lost."""
    server = start.server(kind, persistence="always")
    async with Work(RedisStorage(server.url), handles=False) as work:
        await work.queue.enqueue_many([(id, 1) for id in names(300)])
        server.command("CONFIG", "SET", "key-load-delay", 4000)  # In µs for each key.
        server.command("CONFIG", "SET", "loading-process-events-interval-bytes", 1024)
        server.command("CONFIG", "REWRITE")
        starting = asyncio.create_task(asyncio.to_thread(server.restart))
        await passing(0.3)

        assert (await work.queue.enqueue("more", 1)).status == "queued"

        await starting
        assert await counted(work.queue) == {State.QUEUED: 301}


@in_loop
async def test_calls_wait_while_a_script_of_others_keeps_the_server_busy(start: Starter) -> None:
    """``BUSY`` passes by itself as well."""
    server = start.server("redis", options=["busy-reply-threshold 50"])
    async with Work(RedisStorage(server.url)) as work:
        assert await work.queue.enqueue_and_wait("before", 1) == 2
        endless = asyncio.create_task(asyncio.to_thread(server.command, "EVAL", "while true do end", 0))
        await passing(0.3)
        during = asyncio.create_task(work.queue.enqueue_and_wait("during", 21, timeout=20))
        await passing(0.5)

        assert not during.done()
        server.command("SCRIPT", "KILL")

        assert await during == 42
        await asyncio.wait([endless])
        assert "killed" in str(endless.exception())
        assert twice(work.completed) == []
