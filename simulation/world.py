"""World: one seed is one history. What exists is drawn first, then it lives through bad weather, then through good.

Producers, workers and reapers share one storage in memory, each by a connection that loses requests, replies and hints,
or stalls for longer than a lease. Workers crash, stop and start; callers wait, cancel, retry and give up. When the
weather has cleared, everything must come to its end within a bound: that is the liveness half of the promise.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from jobq import (
    ConfigError,
    GiveUp,
    Job,
    JobQueueError,
    LeaderElection,
    MemoryStorage,
    Queue,
    QueueClosedError,
    Reaper,
    RetryLater,
    StorageUnavailableError,
)
from jobq.testing import VirtualClock, run_virtual
from simulation.ledger import Ledger
from simulation.nodes import NodeStorage, Weather
from simulation.witness import WitnessStorage

QUEUES = ("one", "two")
LASTING = 12.0
"""Virtual seconds of bad weather."""
GRACE = 0.5
RESENDING = 5.0
"""Seconds for which the library asks again by itself."""


class World:
    """One history; `run` lives it through."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.lines: list[str] = []
        self.seen: Counter[str] = Counter()
        self.broken: list[str] = []
        self.lease = self.rng.choice((0.5, 2.0))
        self.block = self.rng.choice((0.5, 5.0))
        self.clock = VirtualClock(seed=seed)
        self.ledgers = {name: Ledger(self._writer(name), self.now) for name in QUEUES}
        self.storage = WitnessStorage(MemoryStorage(clock=self.clock), self.ledgers.__getitem__)
        self.ids = [f"job-{number}" for number in range(self.rng.choice((2, 6, 20)))]
        self.nodes: list[NodeStorage] = []
        self.reapers: list[Reaper] = []
        self.payloads = 0
        self.completed: Counter[tuple[str, Any]] = Counter()
        self.weather_is_bad = True

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def run(self) -> World:
        """Live the history through; afterwards `broken` tells what went wrong, and `lines` how."""
        try:
            run_virtual(self._live, limit=600.0)
        except Exception as error:
            self._demand(False, f"the history did not end: {type(error).__name__}: {error}")
        for ledger in self.ledgers.values():
            self.broken += ledger.broken
            self.seen += ledger.seen
        self.seen["a hint was lost"] += sum(node.troubles["hint"] for node in self.nodes)
        return self

    async def _live(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._unhandled)
        lives = [self._worker(number, name) for number in range(self.rng.choice((1, 2, 3))) for name in QUEUES]
        lives += [self._producer(number) for number in range(self.rng.choice((1, 2, 4)))]
        lives += [self._reaper(name) for name in QUEUES for _ in range(self.rng.choice((0, 1, 2)))]
        lives.append(self._watch_leaders())
        tasks = [asyncio.create_task(life) for life in lives]
        await asyncio.sleep(LASTING)
        self.weather_is_bad = False
        for node in self.nodes:
            node.weather.clear = True
        self.write("----", "the weather clears up")
        await asyncio.gather(*tasks)
        await self._survive()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()  # What is left belongs to processes that died.
        await asyncio.sleep(0)

    async def _survive(self) -> None:
        """Let one healthy worker for each queue finish everything, and look whether it does."""
        queues = [self._queue(name, self._node(), consuming=True) for name in QUEUES]
        for queue in queues:
            await queue.start()
        begun = self.now()
        for name, ledger in self.ledgers.items():
            for run in ledger.runs.values():
                while run.end is None and self.now() < begun + 90.0:
                    await asyncio.sleep(0.25)
                self._demand(run.end is not None, f"{name}: {run.job.id} {run.job.nonce} never ended")
        before = len(asyncio.all_tasks())
        for queue in queues:
            await self._stop(queue, 1.0)
        self._demand(len(asyncio.all_tasks()) <= before, "stop left tasks behind")

    # The lives.

    async def _worker(self, number: int, name: str) -> None:
        while self.weather_is_bad:
            node = self._node()
            queue = self._queue(name, node, consuming=True)
            if not await self._started(queue):
                continue
            await asyncio.sleep(self.rng.choice((0.3, 3.0, LASTING)) * self.rng.random())
            if self.rng.random() < 0.5:
                node.dead = True
                self.seen["a worker crashed"] += 1
                self.write(f"w{number}", f"{name}: crashes")
            else:
                await self._stop(queue, self.rng.choice((0.0, 0.2, 2.0)))
                self.seen["a worker stopped"] += 1

    async def _reaper(self, name: str) -> None:
        while self.weather_is_bad:
            node = self._node()
            election = LeaderElection(lock_ttl=1.0, acquire_retry_interval=0.3) if self.rng.random() < 0.7 else None
            reaper = Reaper(node, name=name, visibility_timeout=self.lease, leader_election=election)
            reaper.on("error", _ignore)
            try:
                await reaper.start()
            except StorageUnavailableError:
                continue
            if election is not None:
                self.reapers.append(reaper)
            await asyncio.sleep(self.rng.uniform(0.5, 8.0))
            if election is not None:
                self.reapers.remove(reaper)
            node.dead = self.rng.random() < 0.3
            if not node.dead:
                await reaper.stop()

    async def _watch_leaders(self) -> None:
        while self.weather_is_bad:
            for name in QUEUES:
                leaders = [one for one in self.reapers if one.is_leader and one.name == name]
                self._demand(len(leaders) <= 1, f"{name}: {len(leaders)} leaders at once")
                self.seen["a leader led"] += len(leaders)
            await asyncio.sleep(0.1)

    async def _producer(self, number: int) -> None:
        name = self.rng.choice(QUEUES)
        queue = self._queue(name, self._node(), consuming=False)
        while not await self._started(queue):
            pass
        acts: list[Callable[[Queue[Any, Any], str], Awaitable[Any]]] = [
            *(self._enqueue,) * 4,
            *(self._request,) * 4,
            self._wait,
            self._cancel,
            self._retry,
            self._update,
            self._look,
        ]
        errands: set[asyncio.Task[None]] = set()
        while self.weather_is_bad:
            errand = asyncio.create_task(self._errand(f"p{number}", queue, self.rng.choice(acts)))
            errands.add(errand)
            errand.add_done_callback(errands.discard)
            if self.rng.random() < 0.05:
                await asyncio.sleep(self.rng.uniform(0.0, 1.0))
                errand.cancel()
                self.seen["a call was cancelled"] += 1
            await asyncio.sleep(self.rng.expovariate(3.0))
        await asyncio.gather(*errands, return_exceptions=True)
        await self._stop(queue, 1.0)

    async def _errand(
        self, who: str, queue: Queue[Any, Any], act: Callable[[Queue[Any, Any], str], Awaitable[Any]]
    ) -> None:
        id = self.rng.choice(self.ids)
        verb = act.__name__.strip("_")
        begun = self.now()
        try:
            answer = await act(queue, id)
        except (JobQueueError, asyncio.CancelledError) as error:
            answer = type(error).__name__
            self._demand(not isinstance(error, ConfigError | QueueClosedError), f"{id}: {verb} raised {error!r}")
        self.seen[f"{verb} gave {answer}"] += 1
        self.write(who, f"{verb} {id} -> {answer} after {self.now() - begun:.3f} s")

    # What callers do.

    async def _enqueue(self, queue: Queue[Any, Any], id: str) -> str:
        result = await queue.enqueue(id, self._payload(), **self._options())
        return result.status

    async def _request(self, queue: Queue[Any, Any], id: str) -> str:
        timeout = self.rng.choice((0.0, 0.5, 5.0, 30.0))
        begun = self.now()
        try:
            result = await queue.enqueue_and_wait(id, self._payload(), timeout=timeout, **self._options())
        finally:
            took = self.now() - begun
            # One look takes as long as the storage takes to answer; every other wait ends when its time is over.
            longest = timeout if timeout > 0.0 else RESENDING + 5.0 * self.lease
            self._demand(took <= longest + GRACE, f"{id}: a wait of {timeout} s took {took} s")
        self._believe(queue, id, result, begun)
        return "a result"

    async def _wait(self, queue: Queue[Any, Any], id: str) -> str:
        begun = self.now()
        self._believe(queue, id, await queue.wait(id, timeout=self.rng.choice((0.5, 10.0))), begun)
        return "a result"

    async def _cancel(self, queue: Queue[Any, Any], id: str) -> str:
        return (await queue.cancel(id, running=self.rng.random() < 0.5)).status

    async def _retry(self, queue: Queue[Any, Any], id: str) -> str:
        return (await queue.retry(id)).status

    async def _update(self, queue: Queue[Any, Any], id: str) -> str:
        return (await queue.update_result_ttl(id, self.rng.choice((0.0, 1.0, 60.0)))).status

    async def _look(self, queue: Queue[Any, Any], id: str) -> str:
        status = await queue.get_status(id)
        return "nothing" if status is None else str(status.state)

    def _believe(self, queue: Queue[Any, Any], id: str, result: Any, begun: float) -> None:
        """A result must be that of a run that held the id at some time of the call."""
        ledger = self.ledgers[queue.name]
        encoded = _encoded(result)
        runs = [run for run in ledger.runs.values() if run.job.id == id and run.result == encoded]
        self._demand(bool(runs), f"{id}: {result!r} was returned, and no run of it ended so")
        for run in runs:
            assert run.ended_at is not None
            self._demand(run.ended_at <= self.now(), f"{id}: {result!r} was returned before the run ended")

    def _payload(self) -> list[Any]:
        self.payloads += 1
        fate = self.rng.choices(("succeed", "fail", "later", "give up", "linger", "ignore"), (10, 3, 1, 1, 2, 1))[0]
        return [self.payloads, fate, round(self.rng.choice((0.0, 0.1, 1.0)) * self.rng.random(), 3)]

    def _options(self) -> dict[str, Any]:
        return {
            "max_attempts": self.rng.choice((1, 3, 5)),
            "result_ttl": self.rng.choice((0.0, 0.5, 5.0, 3600.0)),
            "delay": self.rng.choice((0.0, 0.0, 0.0, 0.3, 3.0)),
            "priority": self.rng.choice((-1, 0, 0, 1)),
        }

    # What workers do.

    def _queue(self, name: str, node: NodeStorage, *, consuming: bool) -> Queue[Any, Any]:
        queue: Queue[Any, Any] = Queue(
            node,
            name=name,
            concurrency=self.rng.choice((1, 3, 10)),
            block_timeout=self.block,
            visibility_timeout=self.lease,
            job_timeout=self.rng.choice((None, 1.5)),
            retry=lambda attempt, error: 0.2 * attempt,
        )
        queue.on("error", _ignore)
        queue.on("completed", lambda id, result: self._told(node, name, id, result))
        if consuming:
            queue.execute(self._handler(node, name))
        return queue

    def _handler(self, node: NodeStorage, name: str) -> Callable[[Job[Any]], Awaitable[Any]]:
        ledger = self.ledgers[name]

        async def handle(job: Job[Any]) -> Any:
            number, fate, seconds = job.payload
            if not node.dead:
                run = ledger.holders[job.id]
                run.starts += 1
                self.write("run", f"{job.id} attempt {job.attempts} {fate}")
            if fate == "ignore":
                try:
                    await asyncio.sleep(2.0 * self.lease)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.3)
            await asyncio.sleep(seconds + (1.5 * self.lease if fate == "linger" else 0.0))
            if fate == "give up":
                raise GiveUp
            if fate == "later" and job.attempts < 2:
                raise RetryLater(delay=0.1)
            if fate == "fail" and number % 2 >= job.attempts % 3:
                raise ValueError("this attempt fails")
            return [number, job.fencing_token]

        return handle

    def _told(self, node: NodeStorage, name: str, id: str, result: Any) -> None:
        if not node.dead:
            told = self.completed[name, str(result)] = self.completed[name, str(result)] + 1
            self._demand(told == 1, f"{id}: completed was told {told} times")
            ended = any(run.result == _encoded(result) for run in self.ledgers[name].runs.values())
            self._demand(ended, f"{id}: completed was told, and the storage has it not")

    # Small things.

    def _node(self) -> NodeStorage:
        node = NodeStorage(self.storage, Weather(self.rng, self.lease))
        node.weather.clear = not self.weather_is_bad
        self.nodes.append(node)
        return node

    async def _started(self, queue: Queue[Any, Any]) -> bool:
        try:
            await queue.start()
        except StorageUnavailableError:
            return False
        return True

    async def _stop(self, queue: Queue[Any, Any], timeout: float) -> None:
        begun = self.now()
        await queue.stop(timeout)
        took = self.now() - begun
        self._demand(took <= timeout + 1.0 + GRACE, f"stop({timeout}) took {took} s")

    def _writer(self, name: str) -> Callable[[str, str], None]:
        return lambda who, text: self.write(who, f"{name}: {text}")

    def write(self, who: str, text: str) -> None:
        self.lines.append(f"{self.now():10.4f} {who:<4} {text}")

    def _demand(self, holds: bool, rule: str) -> None:
        if not holds:
            self.broken.append(rule)
            self.lines.append(f"           !!!! {rule}")

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._demand(False, f"unhandled: {context.get('message')}: {context.get('exception')!r}")


def _encoded(result: Any) -> bytes:
    return b"[%d,%d]" % tuple(result)


def _ignore(*_: object) -> None:
    """Trouble is what this is about."""
