"""What the fault tests on servers share: bounded loops, polling, and jobs whose every run is counted."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence, Sized
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import redis.asyncio as redis

from jobq import FixedDelay, Job, Queue, RedisStorage, State
from jobq.storage.contract import Storage
from jobq.storage.redis.scripts import script
from jobq.testing import Bench, ManualClock, StorageCase
from tests.servers.server import Server
from tests.servers.trouble import Predicate

T = TypeVar("T")
LONGEST = 45.0
"""Seconds after which a test counts as hanging."""
PATIENCE = 15.0
"""Seconds after which something that should happen counts as never happening, also on a busy machine."""
RESUMES_WITHIN = 2.0
"""Seconds after the end of an outage within which a worker works again."""
SLACK = 0.5
"""Seconds by which what takes its full time by design may be late on a machine that others use as well."""


def in_loop(test: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
    """Run a test written as a coroutine in an event loop of its own, and see that it leaves no task behind."""

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(LONGEST):
                answer = await test(*arguments, **options)
            await eventually(lambda: len(asyncio.all_tasks()) == 1, "end of all tasks")
            return answer

        return asyncio.run(bounded())

    return run


async def passing(seconds: float) -> None:
    """Let the loop go on for a while."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


async def eventually(look: Callable[[], Any], what: str, within: float = PATIENCE) -> Any:
    """Look, or await a look, until something true is seen, and return it."""
    give_up_at = time.monotonic() + within
    while True:
        answer = look()
        seen = await answer if isinstance(answer, Awaitable) else answer
        if seen:
            return seen
        assert time.monotonic() < give_up_at, f"no {what} within {within:g} s"
        await passing(0.02)


def of_verb(verb: str) -> Predicate:
    """Choose requests that run the script of a verb, by its digest or by its text."""
    one = script(verb)
    known = (one.digest.encode(), one.text.encode())
    return lambda words: len(words) > 1 and words[0].upper() in (b"EVALSHA", b"EVAL") and words[1] in known


class Work:
    """A queue whose handler doubles numbers, and everything that it emits."""

    def __init__(self, storage: Storage, *, handles: bool = True, seconds: float = 0.0, **options: Any) -> None:
        usual: dict[str, Any] = {
            "concurrency": 10,
            "visibility_timeout": 5.0,
            "block_timeout": 0.5,
            "max_attempts": 10,
            "retry": FixedDelay(0),
        }
        self.queue = Queue[int, int](storage, **{**usual, **options})
        self.runs: Counter[str] = Counter()
        self.seconds = seconds
        self.events: dict[str, list[Any]] = {}
        for name in ("completed", "failed", "failing", "requeued", "cancelled", "lease_lost", "error"):
            self.queue.on(name, functools.partial(self._note, name))
        if handles:
            self.queue.execute(self._double)

    @property
    def completed(self) -> list[str]:
        return self.of("completed")

    def of(self, event: str) -> list[Any]:
        """Return the first argument of every event of that name, in order."""
        return self.events.setdefault(event, [])

    async def __aenter__(self) -> Work:
        await self.queue.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.queue.stop(1.0)

    async def _double(self, job: Job[int]) -> int:
        self.runs[job.id] += 1
        if self.seconds:
            await passing(self.seconds)
        return 2 * job.payload

    def _note(self, name: str, first: Any = None, *_: Any) -> None:
        self.of(name).append(first)


def twice(completed: Iterable[str]) -> list[str]:
    """Return the ids of jobs that completed more than once."""
    return [id for id, count in Counter(completed).items() if count > 1]


async def states(queue: Queue[Any, Any], ids: Sequence[str]) -> Mapping[str, State | None]:
    """Return the state of each job; None for one that is absent."""
    found = await asyncio.gather(*(queue.get_status(id) for id in ids))
    return {id: None if status is None else status.state for id, status in zip(ids, found, strict=True)}


async def counted(queue: Queue[Any, Any]) -> Mapping[State, int]:
    """Count a queue's jobs; states without jobs are left out."""
    return {state: count for state, count in (await queue.counts()).items() if count}


def reached(done: Sized, count: int) -> bool:
    return len(done) >= count


def names(count: int) -> list[str]:
    return [f"job-{number}" for number in range(count)]


def clients(server: Server, begins: str) -> list[str]:
    """Return the numbers of the connections whose name begins so."""
    found = []
    for line in server.command("CLIENT", "LIST").splitlines():
        fields = dict(field.partition("=")[::2] for field in line.split())
        if fields.get("name", "").startswith(begins):
            found.append(fields["id"])
    return found


def kill_clients(server: Server, begins: str) -> int:
    """End the connections whose name begins so, and return how many those were."""
    victims = clients(server, begins)
    return sum(int(server.command("CLIENT", "KILL", "ID", victim)) for victim in victims)


@asynccontextmanager
async def benched(server: Server, prefix: str, *, by_hand: bool = False) -> AsyncIterator[Bench]:
    """A bench on the server's own clock, or on one that is set by hand."""
    clock = ManualClock()
    storage = RedisStorage(server.url, key_prefix=prefix, clock=clock if by_hand else None)
    bench = Bench(StorageCase(), clock, storage)
    await storage.open()
    try:
        yield bench
    finally:
        await bench.close()


async def stored(client: redis.Redis, key: str) -> bytes:
    """Return the bytes of a record."""
    record = await client.get(key)
    assert isinstance(record, bytes)
    return record


def leftovers(server: Server, stem: str) -> dict[str, int]:
    """Return how many entries each of a queue's sorted sets has."""
    return {name: int(server.command("ZCARD", stem + name)) for name in ("ready", "later", "leases")}
