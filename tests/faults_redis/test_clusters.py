"""A queue in a Cluster: its master changes, and its slot moves to another node, while jobs run and are waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from jobq import Queue, RedisStorage, State, StorageError, StorageUnavailableError
from tests.faults_redis.scenes import (
    RESUMES_WITHIN,
    Work,
    eventually,
    in_loop,
    leftovers,
    names,
    passing,
    reached,
    states,
    twice,
)
from tests.servers.cluster import Cluster, ClusterNode
from tests.servers.waiting import wait_for

pytestmark = pytest.mark.slow
JOBS = 1000
CALLERS = 50


class Load:
    """A queue whose slot is at the node that has a replica, two workers on it, and callers that wait for each job."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.name, self.slot = queue_at(cluster, cluster.nodes[0])
        options: dict[str, Any] = {"name": self.name, "visibility_timeout": 3.0}
        self.workers = [Work(RedisStorage(cluster.url), seconds=0.04, **options) for _ in range(2)]
        self.producer = Work(RedisStorage(cluster.url), handles=False, **options)
        self.ids = names(JOBS)
        self.completed: list[str] = []
        for worker in self.workers:
            worker.events["completed"] = self.completed

    @asynccontextmanager
    async def under_way(self) -> AsyncIterator[None]:
        """Have a quarter of the jobs done before what the block does, and all of them, once, after it."""
        first, second = self.workers
        async with first, second, self.producer:
            callers = [asyncio.create_task(self._ask(number)) for number in range(CALLERS)]
            await eventually(partial(reached, self.completed, JOBS // 4), "a quarter of the jobs")
            yield
            await asyncio.gather(*callers)
            await eventually(lambda: len(self.completed) == JOBS, "all events")
            assert twice(self.completed) == []
            assert set((await states(self.producer.queue, self.ids)).values()) == {State.COMPLETED}
            left = leftovers(self.cluster.node_of(self.slot), f"jobq:{{{self.name}}}:")
            assert left == {"ready": 0, "later": 0, "leases": 0}

    async def resumes(self) -> float:
        """Wait for a further job, and return after how many seconds it is completed."""
        begun, before = time.monotonic(), len(self.completed)
        assert before < JOBS, "nothing is left to resume with"
        await eventually(lambda: len(self.completed) > before, "further jobs")
        return time.monotonic() - begun

    async def _ask(self, number: int) -> None:
        for payload in range(number, JOBS, CALLERS):
            while True:
                try:
                    answer = await self.producer.queue.enqueue_and_wait(self.ids[payload], payload, timeout=30)
                except StorageUnavailableError:
                    continue
                assert answer == 2 * payload
                break


def planned(cluster: Cluster) -> None:
    cluster.failover()


def by_silence(cluster: Cluster) -> None:
    """As when a machine is gone: connections stay open, and nobody answers on them. What it had is replicated first."""
    old, replica = cluster.nodes[0], cluster.replica
    old.command("CLIENT", "PAUSE", 60_000, "WRITE")
    written = int(old.info("replication")["master_repl_offset"])
    wait_for(lambda: int(replica.info("replication")["slave_repl_offset"]) >= written, "replica that has all")
    old.pause()
    wait_for(lambda: replica.is_master, "promotion of the replica")


@pytest.mark.parametrize("change", [planned, by_silence])
@in_loop
async def test_a_promoted_replica_takes_over_the_jobs_in_the_middle(
    own_cluster: Cluster, change: Callable[[Cluster], None]
) -> None:
    """Every job is completed, once; each caller is answered; workers go on as soon as there is a master."""
    load = Load(own_cluster)
    async with load.under_way():
        await asyncio.to_thread(change, own_cluster)

        resumed_in = await load.resumes()
        own_cluster.nodes[0].kill()  # Frozen, it could not be asked whose the slot is.
    assert resumed_in < RESUMES_WITHIN


@in_loop
async def test_a_cluster_is_refused_if_any_of_its_masters_may_evict(cluster: Cluster) -> None:
    """A queue may be on each of them."""
    for node in cluster.masters:
        node.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(StorageError, match="noeviction") as caught:
                await Queue[int, int](RedisStorage(cluster.url)).start()
        finally:
            node.command("CONFIG", "SET", "maxmemory-policy", "noeviction")

        assert caught.value.code == "MISCONFIGURED"
    async with Work(RedisStorage(cluster.url)) as work:
        assert await work.queue.enqueue_and_wait("job", 21) == 42


@in_loop
async def test_a_master_that_is_away_keeps_no_queue_of_another_from_starting(own_cluster: Cluster) -> None:
    """Where a Cluster serves what it can, one dead master must not be everybody's."""
    slot = int(own_cluster.nodes[0].command("CLUSTER", "KEYSLOT", "{-}"))
    asked = own_cluster.node_of(slot)  # For what the user may do.
    for node in own_cluster.nodes:
        node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
    dead, *_ = (node for node in own_cluster.masters if node is not asked)
    name, _ = queue_at(own_cluster, asked)
    dead.kill()

    storage = RedisStorage(own_cluster.url)
    async with Queue[int, int](storage, name=name) as queue:
        assert (await queue.enqueue("job", 1)).status == "queued"


@in_loop
async def test_a_slot_that_moves_under_a_queue_takes_its_jobs_along(own_cluster: Cluster) -> None:
    """There and back again, a few keys at a time, and with everything that is asked in between."""
    load = Load(own_cluster)
    home, away = own_cluster.nodes[0], own_cluster.nodes[1]
    async with load.under_way():
        for target in (away, home):
            await asyncio.to_thread(own_cluster.begin_migration, load.slot, target)
            while await asyncio.to_thread(own_cluster.move_keys, load.slot, target, limit=50):
                await passing(0.01)
            await asyncio.to_thread(own_cluster.end_migration, load.slot, target)
            assert await load.resumes() < RESUMES_WITHIN
            source = home if target is away else away
            met = source.info("errorstats")
            assert {"errorstat_ASK", "errorstat_MOVED"} <= met.keys(), "nothing was asked in between"


def queue_at(cluster: Cluster, node: ClusterNode) -> tuple[str, int]:
    """Return the name of a queue that is at a certain node, and its slot."""
    slots = ((f"q{number}", int(node.command("CLUSTER", "KEYSLOT", f"{{q{number}}}"))) for number in range(100))
    return next((name, slot) for name, slot in slots if cluster.node_of(slot) is node)
