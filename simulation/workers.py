"""Workers and reapers of the simulation: processes that claim, run, settle and rescue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from jobq import GiveUp, Job, LeaderElection, Queue, Reaper, RetryLater
from simulation.nodes import Node, alive
from simulation.world import QUEUES, World

FATES = {"succeed": 10, "nothing": 1, "fail": 3, "later": 1, "give up": 1, "linger": 2, "ignore": 1}
"""What a payload tells its handler to do, and how often."""
_IGNORING = 1.3
"""Seconds for which a handler goes on at most that ignores its cancellation; the last second is its payload's."""


class Workers:
    """Everybody who is not a producer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reapers: list[Reaper] = []
        self.lives = [(self._work(name), "worker") for _ in range(world.rng.choice((1, 2, 3))) for name in QUEUES]
        self.lives += [(self._reap(name), "reaper") for name in QUEUES for _ in range(world.rng.choice((0, 1, 2)))]

    def _work(self, name: str) -> Callable[[Node], Awaitable[None]]:
        """Start, serve for a while, then stop or crash, perhaps start again."""
        world, rng = self._world, self._world.rng

        async def work(node: Node) -> None:
            queue = self.consumer(node, name)
            for _ in range(rng.choice((1, 1, 2))):
                if not await world.start(queue.start):
                    return
                await world.spell(rng.choice((0.3, 3.0, world.whole)) * rng.random())
                if rng.random() < 0.3:
                    node.die()
                    return
                await world.stop(queue, rng.choice((0.0, 0.2, 2.0)))
                world.seen["a worker stopped"] += 1

        return work

    def _reap(self, name: str) -> Callable[[Node], Awaitable[None]]:
        world, rng = self._world, self._world.rng

        async def reap(node: Node) -> None:
            election = LeaderElection(lock_ttl=1.0, acquire_retry_interval=0.3) if rng.random() < 0.7 else None
            reaper = Reaper(node, name=name, visibility_timeout=world.lease, leader_election=election)
            reaper.on("error", world.trouble)
            if election is not None:
                self._reapers.append(reaper)
                reaper.on("leadership_acquired", partial(self._count_leaders, name))
            if await world.start(reaper.start):
                await world.spell(rng.uniform(0.5, 8.0))
                if rng.random() < 0.3:
                    node.die()
                    return
                await reaper.stop()

        return reap

    async def watch_leaders(self) -> None:
        while self._world.weather_is_bad:
            for name in QUEUES:
                self._count_leaders(name)
            await asyncio.sleep(0.5)

    def _count_leaders(self, name: str) -> None:
        """See that there is at most one, by the clocks of all; also of those that died, while their lock lasts."""
        leaders = [one for one in self._reapers[-20:] if one.name == name and one.is_leader]
        self._world.demand(len(leaders) <= 1, name, len(leaders), "leaders at once")
        self._world.seen["a leader led"] += len(leaders)

    def consumer(self, node: Node, name: str, concurrency: int | None = None) -> Queue[Any, Any]:
        """Return a queue with a handler that does what payloads say."""
        world = self._world
        ledger = world.ledgers[name]

        async def handle(job: Job[Any]) -> Any:
            if alive():
                ledger.began(job)
                ledger.write("run", job.id, "attempt", job.attempts, job.payload[1])
            try:
                return await self._run(job)
            except asyncio.CancelledError:
                if alive():
                    ledger.interrupted(job)
                raise
            finally:
                if alive():
                    ledger.ended(job, _IGNORING if job.payload[1] == "ignore" else 0.0)

        queue = world.queue(node, name, concurrency)
        queue.execute(handle)
        return queue

    async def _run(self, job: Job[Any]) -> Any:
        """Do what the payload says."""
        (number, fate, seconds), lease = job.payload, self._world.lease
        if fate == "ignore":
            try:
                await asyncio.sleep(2.0 * lease)
            except asyncio.CancelledError:
                await asyncio.sleep(_IGNORING - 1.0)
        await asyncio.sleep(seconds + (1.5 * lease if fate == "linger" else 0.0))
        match fate:
            case "give up":
                raise GiveUp
            case "later" if job.attempts < 2:
                raise RetryLater(delay=0.1)
            case "fail" if number % 2 >= job.attempts % 3:
                raise ValueError("this attempt fails")
            case "nothing":
                return None
        return [number, job.fencing_token]

    async def heal(self, name: str) -> Callable[[], Awaitable[None]]:
        """Start a healthy reaper; the answer stops it."""
        reaper = Reaper(self._world.node(), name=name, visibility_timeout=self._world.lease)
        reaper.on("error", self._world.trouble)
        await reaper.start()
        return reaper.stop
