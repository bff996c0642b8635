"""The bench of the conformance kit: a storage, a clock set by hand, and short words for the verbs.

A behaviour of the kit is a coroutine method ``test_…(self, bench)`` under `scenario`, which makes an ordinary test of
it that any runner can call, each with a new storage and a loop of its own.
"""

from __future__ import annotations

import asyncio
import functools
import unittest
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from jobq.job import Claim, NewJob, Settlement, Snapshot, State
from jobq.storage.contract import Claimed, Held, QueueStorage, Ref, SettleAnswer, Storage
from jobq.testing.clocks import ManualClock

LEASE = 30.0
"""The usual lease of the kit, in seconds."""
TTL = 3600.0
"""The usual time that a result is kept."""
SOON = 10.0
"""Real seconds within which something that was announced must have arrived."""

C = TypeVar("C", bound="StorageCase")
T = TypeVar("T")


class StorageCase:
    """The hooks of the kit: what the author of a storage supplies."""

    time_is_a_servers = False
    """Whether leases lapse by the clock of a server, which goes on when this machine is restarted."""

    async def make_storage(self, clock: ManualClock) -> Storage:
        """Return a new storage without any jobs, not yet opened, that tells its time by ``clock``."""
        raise NotImplementedError("a storage's tests override make_storage")

    async def make_peer(self, storage: Storage) -> Storage | None:
        """Return another storage object on the data of ``storage``, as another process would have it.

        None, the default, leaves out the behaviours that need one.
        """
        return None

    async def destroy(self, storage: Storage) -> None:
        """Remove what `make_storage` made; ``storage`` is closed by now."""


def scenario(behaviour: Callable[[C, Bench], Coroutine[Any, Any, None]]) -> Callable[[C], None]:
    """Make a test of a coroutine method that wants a bench."""

    def test(self: C) -> None:
        asyncio.run(_play(self, behaviour))

    # Not by functools.wraps: a runner that looks through the wrapper would take the bench for a fixture.
    for name in functools.WRAPPER_ASSIGNMENTS:
        if name != "__annotations__":
            setattr(test, name, getattr(behaviour, name, None))
    return test


async def _play(case: C, behaviour: Callable[[C, Bench], Coroutine[Any, Any, None]]) -> None:
    clock = ManualClock()
    storage = await case.make_storage(clock)
    bench = Bench(case, clock, storage)
    try:
        await storage.open()
        try:
            await behaviour(case, bench)
        finally:
            await bench.close()
    finally:
        await case.destroy(storage)


class Bench:
    """One storage under test, with a queue of it."""

    def __init__(self, case: StorageCase, clock: ManualClock, storage: Storage, session: str = "bench") -> None:
        self._case = case
        self.clock = clock
        self.storage = storage
        self.queue: QueueStorage = storage.namespace("first")
        self._session = session
        self._others = 0
        self._peers: list[Storage] = []
        self._requests = 0

    def on(self, queue: QueueStorage) -> Bench:
        """Return a bench that speaks to another queue, or to the same one by another object."""
        self._others += 1
        other = Bench(self._case, self.clock, self.storage, f"{self._session}.{self._others}")
        other.queue = queue
        return other

    async def peer(self) -> Bench:
        """Return a bench on another storage object with the same data; skip the test if there is none."""
        storage = await self._case.make_peer(self.storage)
        if storage is None:
            raise unittest.SkipTest("the storage has no make_peer")
        await storage.open()
        self._peers.append(storage)
        return self.on(storage.namespace("first"))

    async def close(self) -> None:
        for storage in (*self._peers, self.storage):
            await storage.close()

    def nonce(self) -> str:
        """Return a nonce that was not used before."""
        self._requests += 1
        return f"{self._session}.{self._requests:x}"

    def new(self, id: str = "job", payload: bytes = b"payload", **options: Any) -> NewJob:
        """Return a job to be added, with a new nonce unless one is given."""
        filled: dict[str, Any] = {"nonce": self.nonce(), "max_attempts": 3, "result_ttl": TTL, **options}
        return NewJob(id=id, payload=payload, **filled)

    async def add(self, id: str = "job", payload: bytes = b"payload", **options: Any) -> NewJob:
        """Add a job, which must be accepted."""
        job = self.new(id, payload, **options)
        answer = await self.queue.add([job])
        assert list(answer) == [None], f"the job was not accepted: {answer}"
        return job

    async def claim(self, limit: int = 100, *, lease: float = LEASE, worker: str = "worker") -> Claimed:
        return await self.queue.claim(worker, lease, limit, self.nonce())

    async def take(self, *, lease: float = LEASE, worker: str = "worker") -> Claim:
        """Claim one job, which must be there."""
        claimed = await self.claim(1, lease=lease, worker=worker)
        assert len(claimed.claims) == 1, f"there was nothing to claim: {claimed}"
        return claimed.claims[0]

    async def drained(self) -> list[str]:
        """Claim everything that is due, one by one, and return the ids in that order."""
        ids: list[str] = []
        while claims := (await self.claim(1)).claims:
            ids += (claim.id for claim in claims)
        return ids

    async def settle(self, claim: Claim, state: Any = State.COMPLETED, **outcome: Any) -> SettleAnswer:
        """Settle a claim: by default as completed with the result ``b"result"``, kept for an hour."""
        [answer] = await self.queue.settle([self.settlement(claim, state, **outcome)])
        return answer

    def settlement(self, claim: Claim, state: Any = State.COMPLETED, **outcome: Any) -> Settlement:
        usual: dict[State, dict[str, Any]] = {
            State.COMPLETED: {"result": b"result", "ttl": TTL},
            State.FAILED: {"error": b"error", "ttl": TTL},
            State.FAILING: {"error": b"error"},
        }
        return Settlement(claim.id, claim.token, state, **{**usual.get(state, {}), **outcome})

    async def extend(self, claim: Claim, lease: float = LEASE) -> Held:
        [answer] = await self.queue.extend([(claim.id, claim.token)], lease)
        assert isinstance(answer, Held), answer
        return answer

    async def cancel(self, id: str = "job", *, running: bool = False, nonce: str = "") -> State | None:
        return await self.queue.cancel(id, running, nonce or self.nonce())

    async def revive(self, id: str = "job", *, nonce: str = "") -> State | None:
        return await self.queue.revive(id, nonce or self.nonce())

    async def retain(self, id: str = "job", *, ttl: float, nonce: str = "") -> State | None:
        return await self.queue.retain(id, ttl, nonce or self.nonce())

    async def look(self, id: str = "job", generation: str | None = None) -> Snapshot | None:
        """Return a job's snapshot, or None if it is absent."""
        [answer] = await self.queue.get([Ref(id, generation)])
        assert answer is None or isinstance(answer, Snapshot), answer
        return answer

    async def found(self, id: str = "job", generation: str | None = None) -> Snapshot:
        """Return the snapshot of a job that must be there."""
        snapshot = await self.look(id, generation)
        assert snapshot is not None, f"job {id!r} is absent"
        return snapshot

    async def state(self, id: str = "job") -> State | None:
        snapshot = await self.look(id)
        return None if snapshot is None else snapshot.state

    async def picture(self, ids: Iterable[str] = ("job",)) -> object:
        """Return all that can be seen of some jobs and of the queue, to compare before and after."""
        snapshots = list(await self.queue.get([Ref(id) for id in ids]))
        return snapshots, dict(await self.queue.counts()), list(await self.queue.workers())

    # Jobs in the states that many behaviours begin with.

    async def processing(self, id: str = "job", *, lease: float = LEASE, **options: Any) -> Claim:
        await self.add(id, **options)
        return await self.take(lease=lease)

    async def completed(self, id: str = "job", *, ttl: float = TTL, **options: Any) -> Claim:
        claim = await self.processing(id, **options)
        await self.settle(claim, State.COMPLETED, ttl=ttl)
        return claim

    async def failed(self, id: str = "job", *, ttl: float = TTL, **options: Any) -> Claim:
        claim = await self.processing(id, **options)
        await self.settle(claim, State.FAILED, ttl=ttl)
        return claim

    async def failing(self, id: str = "job", **options: Any) -> Claim:
        claim = await self.processing(id, **options)
        await self.settle(claim, State.FAILING)
        return claim


async def soon(awaitable: Awaitable[T]) -> T:
    """Await something that must happen, and fail if it does not within `SOON` real seconds."""
    async with asyncio.timeout(SOON):
        return await awaitable


def near(instant: float | None, wanted: float) -> bool:
    """Whether two instants are the same to the millisecond, which is as exact as some storages keep them."""
    return instant is not None and abs(instant - wanted) < 0.001
