"""Witness: a storage that tells a ledger what it accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jobq.clock import Clock
from jobq.job import Counts, NewJob, Settlement, Snapshot, State
from jobq.storage.contract import (
    AddAnswer,
    Claimed,
    GetAnswer,
    HeldAnswer,
    Hint,
    QueueStorage,
    Ref,
    Rescue,
    SettleAnswer,
    Storage,
    Watch,
)
from simulation.ledger import Ledger


class WitnessStorage:
    """The storage of all processes, each of which comes to it by a connection of its own."""

    def __init__(self, storage: Storage, ledgers: Callable[[str], Ledger]) -> None:
        self._storage = storage
        self._ledgers = ledgers
        self._namespaces: dict[str, Witness] = {}

    @property
    def clock(self) -> Clock:
        return self._storage.clock

    async def open(self) -> None:
        await self._storage.open()

    async def close(self) -> None:
        await self._storage.close()

    def namespace(self, name: str) -> QueueStorage:
        if name not in self._namespaces:
            self._namespaces[name] = Witness(self._storage.namespace(name), self._ledgers(name))
        return self._namespaces[name]

    def twin(self) -> Storage | None:
        return None


class Witness:
    """One queue. Memory answers without giving way to other tasks, so that what is told is in the true order."""

    def __init__(self, inner: QueueStorage, ledger: Ledger) -> None:
        self._inner = inner
        self._ledger = ledger

    async def add(self, jobs: Sequence[NewJob]) -> Sequence[AddAnswer]:
        answers = await self._inner.add(jobs)
        for job, answer in zip(jobs, answers, strict=True):
            self._ledger.write("add", f"{job.id} {job.nonce} -> {_short(answer)}")
            if answer is None:
                self._ledger.added(job)
        await self._look([job.id for job in jobs])
        return answers

    async def claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        answer = await self._inner.claim(worker_id, lease, limit, nonce)
        for rescued in answer.rescued:
            self._ledger.write("rscu", f"{rescued.id} -> {rescued.state}")
            self._ledger.rescued(rescued)
        for claim in answer.claims:
            self._ledger.write("clm", f"{claim.id} attempt {claim.attempts} by {worker_id} token {claim.token}")
            self._ledger.claimed(claim)
        await self._look([claim.id for claim in answer.claims])
        return answer

    async def extend(self, claims: Sequence[tuple[str, str]], lease: float) -> Sequence[HeldAnswer]:
        answers = await self._inner.extend(claims, lease)
        for (id, token), answer in zip(claims, answers, strict=True):
            self._ledger.write("ext", f"{id} token {token} -> {answer}")
            self._ledger.extended(id, token, answer)
        return answers

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleAnswer]:
        answers = await self._inner.settle(settlements)
        for one, answer in zip(settlements, answers, strict=True):
            self._ledger.write("stl", f"{one.id} token {one.token} as {one.state} -> {answer}")
            self._ledger.settled(one, answer)
        await self._look([one.id for one in settlements])
        return answers

    async def cancel(self, id: str, running: bool, nonce: str) -> State | None:
        return await self._asked("cancel", id, nonce, await self._inner.cancel(id, running, nonce))

    async def revive(self, id: str, nonce: str) -> State | None:
        return await self._asked("revive", id, nonce, await self._inner.revive(id, nonce))

    async def retain(self, id: str, ttl: float, nonce: str) -> State | None:
        return await self._asked("retain", id, nonce, await self._inner.retain(id, ttl, nonce))

    async def rescue(self, limit: int) -> Rescue:
        answer = await self._inner.rescue(limit)
        for rescued in answer.rescued:
            self._ledger.write("rscu", f"{rescued.id} -> {rescued.state}")
            self._ledger.rescued(rescued)
        return answer

    async def prune(self, limit: int) -> int:
        removed = await self._inner.prune(limit)
        self._ledger.seen["a record was pruned"] += removed
        return removed

    async def get(self, refs: Sequence[Ref]) -> Sequence[GetAnswer]:
        answers = await self._inner.get(refs)
        for answer in answers:
            if isinstance(answer, Snapshot):
                self._ledger.looked(answer)
        return answers

    async def wait_for_work(self, timeout: float) -> None:
        await self._inner.wait_for_work(timeout)

    async def watch(self, handler: Callable[[Hint], None]) -> Watch:
        return await self._inner.watch(handler)

    async def hold(self, name: str, owner: str, ttl: float) -> bool:
        held = await self._inner.hold(name, owner, ttl)
        self._ledger.seen["a lock was held" if held else "a lock was refused"] += 1
        return held

    async def release(self, name: str, owner: str) -> None:
        await self._inner.release(name, owner)

    async def counts(self) -> Counts:
        return await self._inner.counts()

    async def page(self, state: State, after: str, limit: int) -> Sequence[Snapshot]:
        return await self._inner.page(state, after, limit)

    async def workers(self) -> Sequence[tuple[str, int]]:
        return await self._inner.workers()

    async def _asked(self, verb: str, id: str, nonce: str, answer: State | None) -> State | None:
        self._ledger.write(verb[:4], f"{id} {nonce} -> {answer}")
        self._ledger.asked(verb, id, nonce, answer)
        await self._look([id])
        return answer

    async def _look(self, ids: Sequence[str]) -> None:
        for id in ids:
            run = self._ledger.holders.get(id)
            if run is not None:
                [snapshot] = await self._inner.get([Ref(id)])
                if isinstance(snapshot, Snapshot):
                    self._ledger.looked(snapshot)


def _short(answer: object) -> str:
    return "accepted" if answer is None else str(getattr(answer, "state", answer))
