"""Callers of the simulation: processes that enqueue, wait, ask and change their mind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from jobq import ConfigError, EnqueueItem, JobQueueError, JobTimeoutError, Queue, QueueClosedError
from simulation.nodes import Node, alive
from simulation.workers import FATES
from simulation.world import GRACE, QUEUES, World, encoded

RESENDING = 5.0
"""Seconds for which the library asks again by itself."""
READ_AGAIN = 1.0
"""Seconds after which the library reads again what it waits for."""


class Callers:
    """All that producers do."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._payloads = 0
        self.lives = [(self.call, "producer") for _ in range(world.rng.choice((1, 2, 4)))]

    async def call(self, node: Node) -> None:
        """Start, make calls for a while, stop: some when all calls have ended, some in the middle of them."""
        world, rng = self._world, self._rng
        queue = world.queue(node, rng.choice(QUEUES))
        if not await world.start(queue.start):
            return
        process = _Process(queue)
        until = world.now() + rng.choice((0.3, 1.0, 2.0)) * rng.random() * world.whole
        while world.weather_is_bad and world.now() < until:
            errand = asyncio.create_task(self._errand(process, rng.choice(ACTS)))
            process.errands[errand] = None
            errand.add_done_callback(process.errands.pop)
            if rng.random() < 0.1:
                await world.moment()
                world.seen["a call was cancelled"] += errand.cancel()
            await asyncio.sleep(rng.expovariate(5.0))
        process.closing = rng.random() < 0.3
        if process.errands and not process.closing:
            await asyncio.wait(process.errands)
        await world.stop(queue, 1.0)
        if process.errands:
            stopped = world.now()
            await asyncio.wait(process.errands)
            took = world.now() - stopped
            world.demand(took <= RESENDING + 5.0 * world.lease, "a call went on for", took, "s after the stop")

    async def probe(self, queue: Queue[Any, Any]) -> None:
        """Ask for a few jobs in good weather, when hints may still be lost, and nothing else."""
        await asyncio.gather(*(self._errand(_Process(queue), Callers._request) for _ in range(3)))

    async def _errand(self, process: _Process, act: Act) -> None:
        world, id = self._world, self._rng.choice(self._world.ids)
        verb, begun = act.__name__.strip("_"), self._world.now()
        try:
            answer = await act(self, process.queue, id)
        except asyncio.CancelledError:
            answer = "CancelledError"
        except Exception as error:
            answer = type(error).__name__
            closed = isinstance(error, QueueClosedError) and process.closing
            typed = isinstance(error, JobQueueError) and not isinstance(error, ConfigError | QueueClosedError)
            world.demand(closed or typed, id, verb, "raised", repr(error))
        if alive():
            world.seen[f"{verb} gave {answer}"] += 1
            world.write("call", process.queue.name, verb, id, "->", answer, "after", round(world.now() - begun, 3), "s")

    async def _enqueue(self, queue: Queue[Any, Any], id: str) -> str:
        return (await queue.enqueue(id, self._payload(), **self._options())).status

    async def _enqueue_many(self, queue: Queue[Any, Any], id: str) -> str:
        ids = [id, *(self._rng.choice(self._world.ids) for _ in range(self._rng.randrange(5)))]
        await queue.enqueue_many([EnqueueItem(one, self._payload(), **self._options()) for one in ids])
        return "answers"

    async def _request(self, queue: Queue[Any, Any], id: str) -> str:
        world, timeout = self._world, self._rng.choice((0.0, 0.5, 5.0, 30.0))
        begun = world.now()
        try:
            result = await queue.enqueue_and_wait(id, self._payload(), timeout=timeout, **self._options())
        except JobTimeoutError:
            self._see_why(queue, id, begun)
            raise
        finally:
            took = world.now() - begun
            # One look takes as long as the storage takes to answer; every other wait ends when its time is over.
            longest = timeout if timeout > 0.0 else RESENDING + 5.0 * world.lease
            world.demand(took <= longest + GRACE or not alive(), id, "a wait of", timeout, "s took", took, "s")
        self._believe(queue, id, result, begun)
        return "a result"

    async def _wait(self, queue: Queue[Any, Any], id: str) -> str:
        begun = self._world.now()
        self._believe(queue, id, await queue.wait(id, timeout=self._rng.choice((0.5, 10.0))), begun)
        return "a result"

    async def _cancel(self, queue: Queue[Any, Any], id: str) -> str:
        return (await queue.cancel(id, running=self._rng.random() < 0.5)).status

    async def _retry(self, queue: Queue[Any, Any], id: str) -> str:
        return (await queue.retry(id)).status

    async def _update(self, queue: Queue[Any, Any], id: str) -> str:
        return (await queue.update_result_ttl(id, self._rng.choice((0.0, 1.0, 60.0)))).status

    async def _look(self, queue: Queue[Any, Any], id: str) -> str:
        status = await queue.get_status(id)
        return "nothing" if status is None else str(status.state)

    async def _get(self, queue: Queue[Any, Any], id: str) -> str:
        begun = self._world.now()
        result = await queue.get_result(id)
        if result is None:
            return "nothing"
        self._believe(queue, id, result, begun)
        return "a result"

    def _believe(self, queue: Queue[Any, Any], id: str, result: Any, begun: float) -> None:
        """A result must be that of a run of the id which has ended, and in good weather it comes soon after the end."""
        world, written = self._world, encoded(result)
        ends = [
            run.ended_at
            for run in world.ledgers[queue.name].runs.values()
            if run.job.id == id and run.result == written and run.ended_at is not None
        ]
        world.demand(bool(ends), id, result, "was returned, and no run of it ended so")
        if ends and ends[0] > begun > world.lasting:
            late = world.now() - ends[0]
            world.demand(late <= READ_AGAIN + GRACE, id, result, "was returned", late, "s after the end")
            world.seen["a waiter was answered in good weather"] += 1

    def _see_why(self, queue: Queue[Any, Any], id: str, begun: float) -> None:
        """In good weather, a wait is only given up if its run has not ended; that is the next one of the id to end."""
        world = self._world
        runs = world.ledgers[queue.name].runs.values()
        ends = [run.ended_at for run in runs if run.job.id == id and run.ended_at is not None and run.ended_at > begun]
        if ends and begun > world.lasting:
            late = world.now() - min(ends)
            world.demand(late <= READ_AGAIN + GRACE, id, "a wait was given up", late, "s after the end")

    def _payload(self) -> list[Any]:
        self._payloads += 1
        fate = self._rng.choices(tuple(FATES), tuple(FATES.values()))[0]
        return [self._payloads, fate, round(self._rng.choice((0.0, 0.1, 1.0)) * self._rng.random(), 3)]

    def _options(self) -> dict[str, Any]:
        return {
            "max_attempts": self._rng.choice((1, 3, 5)),
            "result_ttl": self._rng.choice((0.0, 0.5, 5.0, 3600.0)),
            "delay": self._rng.choice((0.0, 0.0, 0.0, 0.3, 3.0)),
            "priority": self._rng.choice((-1, 0, 0, 1)),
        }


class _Process:
    """One producer, and what it is about."""

    def __init__(self, queue: Queue[Any, Any]) -> None:
        self.queue = queue
        self.errands: dict[asyncio.Task[None], None] = {}
        """Calls that have not ended, in their order."""
        self.closing = False
        """Whether it stops in the middle of them."""


Act = Callable[[Callers, Queue[Any, Any], str], Awaitable[str]]
ACTS: tuple[Act, ...] = (
    *(Callers._enqueue,) * 4,
    *(Callers._request,) * 4,
    Callers._enqueue_many,
    Callers._wait,
    *(Callers._cancel,) * 2,
    Callers._retry,
    *(Callers._update,) * 2,
    Callers._look,
    Callers._get,
)
