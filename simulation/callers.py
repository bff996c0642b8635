"""Callers of the simulation: processes that enqueue, wait, ask and change their mind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from jobq import ConfigError, EnqueueItem, JobQueueError, JobTimeoutError, Queue, QueueClosedError
from simulation.answers import Answers
from simulation.nodes import Node, alive
from simulation.workers import FATES
from simulation.world import GRACE, QUEUES, World

RESENDING = 5.0
"""Seconds for which the library asks again by itself."""
READ_AGAIN = 1.0
"""Seconds after which the library reads again what it waits for."""
_EARLY = 0.05


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

    async def hand_over(self, queue: Queue[Any, Any]) -> None:
        """Hand one job over."""
        await self._errand(_Process(queue), Callers._enqueue)

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

    def _answers(self, queue: Queue[Any, Any]) -> Answers:
        return self._world.answers[queue.name]

    async def _enqueue(self, queue: Queue[Any, Any], id: str) -> str:
        payload = self._payload()
        answer = await queue.enqueue(id, payload, **self._options(payload))
        if alive():
            self._answers(queue).enqueued(id, payload[0], answer)
        return answer.status

    async def _enqueue_many(self, queue: Queue[Any, Any], id: str) -> str:
        ids = [id, *(self._rng.choice(self._world.ids) for _ in range(self._rng.randrange(5)))]
        payloads = [self._payload() for _ in ids]
        items = [EnqueueItem(one, it, **self._options(it)) for one, it in zip(ids, payloads, strict=True)]
        answers = await queue.enqueue_many(items)
        if alive():
            for one, payload, answer in zip(ids, payloads, answers, strict=True):
                self._answers(queue).enqueued(one, payload[0], answer)
        return "answers"

    async def _request(self, queue: Queue[Any, Any], id: str) -> str:
        payload, timeout = self._payload(), self._rng.choice((0.0, 0.5, 5.0, 30.0))
        call = queue.enqueue_and_wait(id, payload, timeout=timeout, **self._options(payload))
        return await self._waited(queue, id, call, timeout, payload[0])

    async def _wait(self, queue: Queue[Any, Any], id: str) -> str:
        timeout = self._rng.choice((0.5, 10.0))
        return await self._waited(queue, id, queue.wait(id, timeout=timeout), timeout, None)

    async def _waited(
        self, queue: Queue[Any, Any], id: str, call: Awaitable[Any], timeout: float, number: int | None
    ) -> str:
        """See that a wait is answered rightly, and in time."""
        world, begun = self._world, self._world.now()
        try:
            result = await call
        except Exception as error:
            if alive():
                self._answers(queue).raised(id, error, number)
                if isinstance(error, JobTimeoutError):
                    self._see_why(queue, id, begun, timeout)
            raise
        finally:
            took = world.now() - begun
            # One look takes as long as the storage takes to answer; every other wait ends when its time is over.
            longest = timeout if timeout > 0.0 else RESENDING + 5.0 * world.lease
            world.demand(took <= longest + GRACE or not alive(), id, "a wait of", timeout, "s took", took, "s")
        self._believe(queue, id, result, begun, number)
        return "a result"

    async def _cancel(self, queue: Queue[Any, Any], id: str) -> str:
        begun = self._world.now()
        status = (await queue.cancel(id, running=self._rng.random() < 0.5)).status
        if alive():
            self._answers(queue).cancelled(id, status, begun)
        return status

    async def _retry(self, queue: Queue[Any, Any], id: str) -> str:
        begun = self._world.now()
        status = (await queue.retry(id)).status
        if alive():
            self._answers(queue).retried(id, status, begun)
        return status

    async def _update(self, queue: Queue[Any, Any], id: str) -> str:
        begun = self._world.now()
        status = (await queue.update_result_ttl(id, self._rng.choice((0.0, 1.0, 60.0)))).status
        if alive():
            self._answers(queue).updated(id, status, begun)
        return status

    async def _look(self, queue: Queue[Any, Any], id: str) -> str:
        status = await queue.get_status(id)
        if status is None:
            return "nothing"
        if alive():
            self._answers(queue).looked(id, status)
        return str(status.state)

    async def _get(self, queue: Queue[Any, Any], id: str) -> str:
        begun = self._world.now()
        result = await queue.get_result(id)
        if result is None:
            return "nothing"
        self._believe(queue, id, result, begun, None)
        return "a result"

    def _believe(self, queue: Queue[Any, Any], id: str, result: Any, begun: float, number: int | None) -> None:
        """See whose result it is; in good weather it comes soon after the end."""
        world = self._world
        if not alive():
            return
        run = self._answers(queue).returned(id, result, number)
        if run is not None and run.ended_at is not None and run.ended_at > begun > world.lasting:
            late = world.now() - run.ended_at
            world.demand(late <= READ_AGAIN + GRACE, id, result, "was returned", late, "s after the end")
            world.seen["a waiter was answered in good weather"] += 1

    def _see_why(self, queue: Queue[Any, Any], id: str, begun: float, timeout: float) -> None:
        """A wait is not given up early; in good weather only if its run, the next one to end, has not ended."""
        world = self._world
        took = world.now() - begun
        world.demand(took >= timeout - _EARLY, id, "a wait of", timeout, "s was given up after", took, "s")
        ends = list(self._answers(queue).ends(id, begun))
        if ends and begun > world.lasting:
            late = world.now() - min(ends)
            world.demand(late <= READ_AGAIN + GRACE, id, "a wait was given up", late, "s after the end")

    def _payload(self) -> list[Any]:
        self._payloads += 1
        fate = self._rng.choices(tuple(FATES), tuple(FATES.values()))[0]
        return [self._payloads, fate, round(self._rng.choice((0.0, 0.1, 1.0)) * self._rng.random(), 3)]

    def _options(self, payload: list[Any]) -> dict[str, Any]:
        options = {
            "max_attempts": self._rng.choice((1, 3, 5)),
            "result_ttl": self._rng.choice((0.0, 0.5, 5.0, 3600.0)),
            "delay": self._rng.choice((0.0, 0.0, 0.0, 0.3, 3.0)),
            "priority": self._rng.choice((-1, 0, 0, 1)),
        }
        self._world.asked_for[payload[0]] = options
        return options


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
