"""World: one seed is one history. What exists is drawn first, then it lives through bad weather, then through good.

Producers, workers and reapers share one storage in memory, each by a connection that loses requests, replies and hints,
or stalls for longer than a lease, and each with clocks of its own. Processes crash, also in the middle of a call, stop
and start; wall clocks are set, the storage's too; callers wait, cancel, retry and give up. When the weather has
cleared, everything must come to its end within a bound: that is the liveness half of the promise.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from jobq import MemoryStorage, Queue, QueueClosedError, StorageError, StorageUnavailableError
from jobq.testing import VirtualClock, VirtualTimeError
from simulation.answers import Answers, encoded
from simulation.ledger import Ledger
from simulation.nodes import Node, NodeClock, NodeLoop, Weather, alive
from simulation.notes import Notes
from simulation.witness import WitnessStorage

T = TypeVar("T")

QUEUES = ("one", "two")
LASTING = (4.0, 8.0, 12.0)
"""Virtual seconds of bad weather: the short ones meet more for the same work, the long ones meet what takes time."""
GRACE = 0.5
SETTLING_IN = 1.5
"""Seconds of good weather after which healthy workers must be quick."""
EVENTS = ("enqueued", "completed", "failed", "failing", "requeued", "cancelled")
LOOK_EVERY = 0.5
HOUR = 3600.0
_LIMIT = 600.0
"""Virtual seconds after which a history counts as endless."""


class World:
    """What a history happens in, and the ways of processes that all of them share."""

    def __init__(self, seed: int, lasting: float | None = None) -> None:
        self.rng = random.Random(seed)
        self.whole = self.rng.choice(LASTING)
        self.lasting = self.whole if lasting is None else lasting
        """What happens is drawn by how long the weather would be bad as a whole, so that a part of it begins alike."""
        self.notes = Notes()
        self.now = self.notes.now
        self.write = self.notes.write
        self.demand = self.notes.demand
        self.seen = self.notes.seen
        self.lease = self.rng.choice((1.0, 2.0))
        self.block = self.rng.choice((0.5, 5.0))
        self.vigilant = random.Random(f"{seed} vigilant").random() < 0.5
        """Whether the storage is one that misses nothing."""
        self.clock = VirtualClock(seed=seed)
        self.asked_for: dict[int, dict[str, Any]] = {}
        """The options of each enqueue, by the number in its payload."""
        longest_sleep = 0.0 if self.vigilant else self.block
        self.ledgers = {
            name: Ledger(name, self.notes, self.clock.now, longest_sleep, self.asked_for) for name in QUEUES
        }
        self.answers = {name: Answers(ledger, self.notes) for name, ledger in self.ledgers.items()}
        self.storage = WitnessStorage(MemoryStorage(clock=self.clock), self.ledgers.__getitem__)
        self.ids = [f"job-{number}" for number in range(self.rng.choice((2, 6, 20)))]
        self.nodes: list[Node] = []
        self._queues: list[Queue[Any, Any]] = []
        self.told: Counter[tuple[str, str, str]] = Counter()
        """How often each event was told, by queue, event and id."""
        self.weather_is_bad = True
        self._calm_since = 0.0
        self._is_over = False
        self._ahead = self._furthest = 0.0
        """How far the storage's wall clock is ahead of what it was at first, and the furthest that it ever was."""

    def run(self, history: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        """Live the history through; afterwards `notes` tell what went wrong, and how."""

        async def limited() -> None:
            asyncio.get_running_loop().set_exception_handler(self._unhandled)
            try:
                async with asyncio.timeout(_LIMIT):
                    await history(self)
            except Exception as error:
                self.demand(False, "the history did not end:", type(error).__name__, error)
            self._is_over = True
            await self._clear_away()

        try:
            with asyncio.Runner(loop_factory=NodeLoop) as runner:
                runner.run(limited())
        except VirtualTimeError as error:
            self.notes.broken.append(str(error))
        self.seen["a hint was lost"] += sum(node.troubles["hint"] for node in self.nodes)
        self.seen["a hint came twice"] += sum(node.doubled for node in self.nodes)
        for node in self.nodes:
            self.seen.update(node.weather.met)

    def clear_up(self) -> None:
        """End the bad weather. Delays follow the wall clock, so it is set to where all of them are over in time."""
        self.weather_is_bad = False
        for node in self.nodes:
            node.weather.clear = True
        self.jump(self._furthest - self._ahead)
        self._calm_since = self.clock.now() + SETTLING_IN
        for ledger in self.ledgers.values():
            ledger.turns.calm_since = self._calm_since
        self.write("----", "the weather clears up")

    async def look_at_all(self) -> None:
        """End every sleep now and then, as a storage does whose sleepers look at its version.

        When the weather is good nothing is left to that: a sleeper must be woken for what there is.
        """
        while self.weather_is_bad or self.clock.now() < self._calm_since:
            await asyncio.sleep(LOOK_EVERY)
            self._look()

    def _look(self) -> None:
        if self.vigilant:
            self.seen["a sleep was ended by a look"] += self.storage.wake_all()

    async def set_clocks(self) -> None:
        """Set the wall clocks of the storage and of machines, forwards and back."""
        often, storage_too = self.rng.choice((0.2, 1.0)), self.rng.random() < 0.5
        while self.weather_is_bad:
            await asyncio.sleep(self.rng.expovariate(often))
            seconds = self.rng.choice((-HOUR, HOUR, -HOUR, HOUR, -1.0, 5.0, 11.0))
            if storage_too and self.weather_is_bad and self.rng.random() < 0.5:
                self.jump(seconds)
                self.seen["the storage's wall clock was set"] += 1
            elif self.nodes:
                self.rng.choice(self.nodes[-20:]).machine.jump_wall(seconds)
                self.seen["a machine's wall clock was set"] += 1

    def jump(self, seconds: float) -> None:
        """Set the storage's wall clock."""
        for ledger in self.ledgers.values():
            ledger.wall_is_set()
        self.clock.jump_wall(seconds)
        self._ahead += seconds
        self._furthest = max(self._furthest, self._ahead)
        self.write("time", "the storage's wall clock is set by", seconds, "s")

    # Processes.

    async def keep_up(self, life: Callable[[Node], Awaitable[None]], kind: str) -> None:
        """Let processes of one kind follow each other while the weather is bad."""
        while self.weather_is_bad:
            node = self.node()
            process = asyncio.create_task(node.run(life))
            await asyncio.wait((process, node.death), return_when=asyncio.FIRST_COMPLETED)
            if node.dead:
                self.seen[f"a {kind} crashed"] += 1
                self._look()
                self.write("dead", "a", kind)
            else:
                process.result()

    def node(self) -> Node:
        weather = Weather(self.rng, self.lease)
        weather.clear = not self.weather_is_bad
        dies_at = self.rng.randrange(2, 120) / 2 if self.weather_is_bad and self.rng.random() < 0.3 else None
        node = Node(self.storage, weather, NodeClock(self.rng), dies_at)
        node.vigilant = self.vigilant
        node.remote = self.rng.random() < 0.5
        node.label = f"process-{len(self.nodes)}"
        self.nodes.append(node)
        return node

    def queue(self, node: Node, name: str, concurrency: int | None = None) -> Queue[Any, Any]:
        queue = Queue[Any, Any](
            node,
            name=name,
            worker_id=node.label,
            concurrency=concurrency or self.rng.choice((1, 3, 10)),
            block_timeout=self.block,
            visibility_timeout=self.lease,
            job_timeout=self.rng.choice((None, 1.5)),
            retry=lambda attempt, error: 0.2 * attempt,
        )
        queue.on("error", self.trouble)
        for event in EVENTS:
            queue.on(event, partial(self._told, name, event))
        self._queues.append(queue)
        return queue

    def trouble(self, error: BaseException) -> None:
        """Take an error event: the storage cannot be reached, and nothing else is wrong."""
        closed = isinstance(error, QueueClosedError)
        self.demand(isinstance(error, StorageUnavailableError) and not closed, "an error was told:", repr(error))

    async def start(self, starting: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Start something, sometimes after a start that is cancelled at any await. The answer is whether it has."""
        if self.rng.random() < 0.1:
            await self._cancelled(starting(), "start")
        try:
            await starting()
        except StorageUnavailableError:
            await asyncio.sleep(self.rng.uniform(0.05, 0.5))
            return False
        return True

    async def stop(self, queue: Queue[Any, Any], timeout: float) -> None:
        """Stop a queue, sometimes after a stop that is cancelled at any await."""
        if self.rng.random() < 0.1:
            await self._cancelled(queue.stop(timeout), "stop")
        begun = self.now()
        await queue.stop(timeout)
        took = self.now() - begun
        self.demand(took <= timeout + 1.0 + GRACE, "stop with", timeout, "s took", took, "s")

    async def spell(self, seconds: float) -> None:
        """Let time pass, but not much of the good weather."""
        await asyncio.sleep(min(seconds, max(0.0, self.lasting - self.now()) + self.rng.random()))

    async def moment(self) -> None:
        """Let some turns of the loop pass, or some time: it may end between any two steps of the others."""
        for _ in range(self.rng.randrange(10)):
            await asyncio.sleep(0)
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.random())

    async def _cancelled(self, call: Coroutine[Any, Any, None], verb: str) -> None:
        task = asyncio.create_task(call)
        await self.moment()
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            self.seen[f"a {verb} was cancelled"] += 1
        elif error := task.exception():
            self.demand(isinstance(error, StorageError), verb, "raised", repr(error))

    def _told(self, name: str, event: str, id: str, *more: Any) -> None:
        """Take an event: nothing is told that has not happened, and nothing twice."""
        if not alive():
            return
        ledger = self.ledgers[name]
        self.told[name, event, id] += 1
        times, happened = self.told[name, event, id], ledger.happened[event, id]
        self.demand(times <= happened, id, event, "was told", times, "times, and happened", happened, "times")
        if event == "completed":
            ended = any(run.result == encoded(more[0]) for run in ledger.of(id))
            self.demand(ended, id, "completed was told, and the storage has it not")

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        rule = f"unhandled: {context.get('message')}: {context.get('exception')!r}"
        if not self._is_over:
            self.demand(False, rule)
        elif (
            "exception" in context
        ):  # Told late, when it is collected; that dead processes leave tasks behind is no news.
            self.notes.broken.append(rule)

    async def _clear_away(self) -> None:
        """End what is left of processes that died."""
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)
