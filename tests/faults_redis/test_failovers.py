"""Another server becomes the master while two thousand jobs are handed over, run and waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import pytest

from jobq import RedisStorage, State, StorageUnavailableError
from tests.faults_redis.scenes import (
    RESUMES_WITHIN,
    Work,
    eventually,
    in_loop,
    leftovers,
    names,
    reached,
    states,
    twice,
)
from tests.servers.sentinel import NAME, SentinelGroup
from tests.servers.server import Server
from tests.servers.waiting import wait_for

pytestmark = pytest.mark.slow
JOBS = 2000
CALLERS = 100


async def ask(work: Work, ids: list[str], number: int) -> None:
    """Hand over every hundredth job and wait for each; the same call again tells what became of one in doubt."""
    for payload in range(number, JOBS, CALLERS):
        while True:
            try:
                assert await work.queue.enqueue_and_wait(ids[payload], payload, timeout=30) == 2 * payload
                break
            except StorageUnavailableError:
                continue


def planned(group: SentinelGroup, old: Server) -> Server:
    """Ask a sentinel for it; it gives up if the replica's news are too old, and is asked again."""

    def asked() -> bool:
        return group.sentinels[0].command("SENTINEL", "FAILOVER", NAME) == "OK"

    wait_for(asked, "planned fail-over")
    return group.wait_for_new_master(old)


def by_death(group: SentinelGroup, old: Server) -> Server:
    group.kill_master()
    return group.wait_for_new_master(old)


def by_silence(group: SentinelGroup, old: Server) -> Server:
    """As when its machine is gone: connections stay open, and nobody answers on them."""
    old.pause()
    return group.wait_for_new_master(old)


def change_master(group: SentinelGroup, change: Callable[[SentinelGroup, Server], Server]) -> Server:
    """Have the replica catch up first, and the master accept nothing meanwhile: then nothing is lost."""
    old = group.master
    old.command("CLIENT", "PAUSE", 60_000, "WRITE")
    written = int(old.info("replication")["master_repl_offset"])
    wait_for(lambda: int(group.replica.info("replication")["slave_repl_offset"]) >= written, "replica that has all")
    return change(group, old)


@pytest.mark.parametrize("change", [planned, by_death, by_silence])
@in_loop
async def test_a_new_master_takes_over_two_thousand_jobs_in_the_middle(
    own_sentinel_group: SentinelGroup, change: Callable[[SentinelGroup, Server], Server]
) -> None:
    """Every job is completed, once; each caller is answered; workers go on as soon as there is a master."""
    ids, url = names(JOBS), own_sentinel_group.url
    first = Work(RedisStorage(url), seconds=0.03, visibility_timeout=3.0)
    second = Work(RedisStorage(url), seconds=0.03, visibility_timeout=3.0)
    completed = first.events["completed"] = second.events["completed"] = []
    async with first, second, Work(RedisStorage(url), handles=False) as producer:
        callers = [asyncio.create_task(ask(producer, ids, number)) for number in range(CALLERS)]
        await eventually(partial(reached, completed, JOBS // 4), "a quarter of the jobs")

        new = await asyncio.to_thread(change_master, own_sentinel_group, change)
        known_at, before = time.monotonic(), len(completed)
        await eventually(lambda: len(completed) > before, "further jobs")
        resumed_in = time.monotonic() - known_at
        await asyncio.gather(*callers)

        await eventually(lambda: len(completed) == JOBS, "all events")
        assert resumed_in < RESUMES_WITHIN
        assert before < JOBS
        assert twice(completed) == []
        assert set((await states(producer.queue, ids)).values()) == {State.COMPLETED}
        assert leftovers(new, "jobq:{default}:") == {"ready": 0, "later": 0, "leases": 0}


@in_loop
async def test_an_idle_worker_leaves_a_master_that_fell_silent(own_sentinel_group: SentinelGroup) -> None:
    """It asks for nothing that could remain unanswered; jobs at the new master do not wait for its next look."""
    url = own_sentinel_group.url
    async with Work(RedisStorage(url), block_timeout=30.0) as idle:
        assert await idle.queue.enqueue_and_wait("before", 1) == 2

        await asyncio.to_thread(change_master, own_sentinel_group, by_silence)
        known_at = time.monotonic()
        async with Work(RedisStorage(url), handles=False) as producer:
            assert await producer.queue.enqueue_and_wait("after", 21) == 42

        assert time.monotonic() - known_at < RESUMES_WITHIN
        await eventually(lambda: idle.completed == ["before", "after"], "event")
