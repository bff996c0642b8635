"""Nodes: processes of the simulation, each with a connection of its own that fails by a plan, and that may die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jobq.storage.contract import Storage
from jobq.testing import FaultyStorage, RandomPlan, Trouble

T = TypeVar("T")


class Weather:
    """Trouble by chance until it clears up, and now and then a stall that is longer than a lease."""

    def __init__(self, rng: random.Random, lease: float) -> None:
        self._plan = RandomPlan(
            rng.getrandbits(32),
            rate=rng.choice((0.0, 0.02, 0.1)),
            slow=rng.choice((0.0, 0.1, 0.4)),
            longest=rng.choice((0.01, lease / 2)),
            hints=rng.choice((0.0, 0.3, 1.0)),
        )
        self._stalls = rng.choice((0.0, 0.0, 0.01))
        self._cut = rng.random() < 0.1
        """Whether the line is cut for some seconds, longer than the library asks again by itself."""
        self._lease = lease
        self._random = random.Random(rng.getrandbits(32))
        self.clear = False

    def __call__(self, verb: str, index: int) -> Trouble | None:
        if self.clear:
            return None
        if self._cut and 4.0 < asyncio.get_running_loop().time() % 20.0 < 11.0:
            return Trouble(request_lost=True)
        if verb != "hint" and self._random.random() < self._stalls:
            return Trouble(delay=self._random.uniform(1.0, 2.5) * self._lease)
        return self._plan(verb, index)


class NodeStorage(FaultyStorage):
    """A process's connection: when the process has died, nothing of it arrives any more, and nothing is answered."""

    def __init__(self, storage: Storage, weather: Weather) -> None:
        super().__init__(storage, weather)
        self.weather = weather
        self.dead = False

    async def meet(self, verb: str, call: Callable[[], Awaitable[T]]) -> T:
        async def living() -> T:
            await self._hang_if_dead()
            answer = await call()
            await self._hang_if_dead()
            return answer

        return await super().meet(verb, living)

    def loses_hint(self) -> bool:
        return self.dead or super().loses_hint()

    async def _hang_if_dead(self) -> None:
        if self.dead:
            await asyncio.get_running_loop().create_future()
