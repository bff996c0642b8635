"""Workers and reapers of the simulation: processes that claim, run, settle and rescue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from jobq import GiveUp, Job, LeaderElection, Queue, Reaper, RetryLater
from simulation.nodes import Node, alive
from simulation.world import QUEUES, World

FATES = {"succeed": 10, "fail": 3, "later": 1, "give up": 1, "linger": 2, "ignore": 1}
"""What a payload tells its handler to do, and how often."""


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

    def consumer(self, node: Node, name: str) -> Queue[Any, Any]:
        """Return a queue with a handler that does what payloads say."""
        world = self._world
        ledger = world.ledgers[name]

        async def handle(job: Job[Any]) -> Any:
            number, fate, seconds = job.payload
            if alive():
                ledger.began(job)
                ledger.write("run", job.id, "attempt", job.attempts, fate)
            if fate == "ignore":
                try:
                    await asyncio.sleep(2.0 * world.lease)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.3)
            await asyncio.sleep(seconds + (1.5 * world.lease if fate == "linger" else 0.0))
            if fate == "give up":
                raise GiveUp
            if fate == "later" and job.attempts < 2:
                raise RetryLater(delay=0.1)
            if fate == "fail" and number % 2 >= job.attempts % 3:
                raise ValueError("this attempt fails")
            return [number, job.fencing_token]

        queue = world.queue(node, name)
        queue.execute(handle)
        return queue
