"""Witness: a storage that tells a ledger what it accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from jobq.job import NewJob, Settlement, Snapshot, State
from jobq.storage.contract import (
    AddAnswer,
    Claimed,
    GetAnswer,
    HeldAnswer,
    QueueStorage,
    Ref,
    Rescue,
    SettleAnswer,
    Settled,
    Storage,
)
from jobq.storage.memory import MemoryNamespace
from jobq.testing import FaultyStorage
from jobq.testing.faults import FaultyNamespace
from simulation.ledger import Ledger


class WitnessStorage(FaultyStorage):
    """The storage of all processes, each of which comes to it by a connection of its own; nothing fails in here."""

    def __init__(self, storage: Storage, ledgers: Callable[[str], Ledger]) -> None:
        super().__init__(storage, lambda verb, index: None)
        self._ledgers = ledgers

    def namespace(self, name: str) -> QueueStorage:
        if name not in self._namespaces:
            self._namespaces[name] = Witness(self, self._storage.namespace(name), self._ledgers(name))
        return self._namespaces[name]

    def wake_all(self) -> int:
        """Wake all sleepers, and return how many those were."""
        return sum(queue.wake_all() for queue in self._namespaces.values() if isinstance(queue, Witness))


class Witness(FaultyNamespace):
    """One queue. Memory answers without giving way to other tasks, so that what is told is in the true order."""

    def __init__(self, storage: WitnessStorage, inner: QueueStorage, ledger: Ledger) -> None:
        super().__init__(storage, inner)
        self._ledger = ledger

    def wake_all(self) -> int:
        # A storage that looks at a file has one look for all sleepers; in memory there is none, and no verb for it.
        memory = cast(MemoryNamespace, self._inner)
        sleepers = len(memory._sleepers)
        for _ in range(sleepers):
            memory._wake_one()
        return sleepers

    async def add(self, jobs: Sequence[NewJob]) -> Sequence[AddAnswer]:
        answers = await self._inner.add(jobs)
        for job, answer in zip(jobs, answers, strict=True):
            if isinstance(answer, Snapshot):
                self._ledger.write("add", job.id, job.nonce, "-> held,", answer.state)
                self._ledger.refused(job, answer)
            elif answer is None:
                self._ledger.write("add", job.id, job.nonce, "-> accepted")
                self._ledger.added(job)
        await self._look([job.id for job in jobs])
        return answers

    async def claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        answer = await self._inner.claim(worker_id, lease, limit, nonce)
        self._ledger.rescued(answer.rescued)
        for claim in answer.claims:
            self._ledger.write("clm", claim.id, "attempt", claim.attempts, "by", worker_id, "token", claim.token)
        self._ledger.claimed(worker_id, answer.claims, lease)
        await self._look([claim.id for claim in answer.claims])
        return answer

    async def extend(self, claims: Sequence[tuple[str, str]], lease: float) -> Sequence[HeldAnswer]:
        answers = await self._inner.extend(claims, lease)
        for (id, token), answer in zip(claims, answers, strict=True):
            self._ledger.write("ext", id, "token", token, "->", answer)
            self._ledger.extended(id, token, lease, answer)
        return answers

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleAnswer]:
        ids = [one.id for one in settlements]
        before = await self._look(ids)
        answers = await self._inner.settle(settlements)
        for one, answer in zip(settlements, answers, strict=True):
            self._ledger.write("stl", one.id, "token", one.token, "as", one.state, "->", answer)
            self._ledger.settled(one, answer)
        after = await self._look(ids)
        if all(answer is Settled.LOST for answer in answers):
            self._ledger.unchanged(before, after)
        return answers

    async def cancel(self, id: str, running: bool, nonce: str) -> State | None:
        answer = await self._inner.cancel(id, running, nonce)
        self._ledger.asked("cancel", id, nonce, answer, running=running)
        await self._look([id])
        return answer

    async def revive(self, id: str, nonce: str) -> State | None:
        answer = await self._inner.revive(id, nonce)
        self._ledger.asked("revive", id, nonce, answer)
        await self._look([id])
        return answer

    async def retain(self, id: str, ttl: float, nonce: str) -> State | None:
        answer = await self._inner.retain(id, ttl, nonce)
        self._ledger.asked("retain", id, nonce, answer, ttl=ttl)
        await self._look([id])
        return answer

    async def rescue(self, limit: int) -> Rescue:
        answer = await self._inner.rescue(limit)
        self._ledger.rescued(answer.rescued)
        return answer

    async def prune(self, limit: int) -> int:
        removed = await self._inner.prune(limit)
        self._ledger.count("a record was pruned", removed)
        return removed

    async def get(self, refs: Sequence[Ref]) -> Sequence[GetAnswer]:
        answers = await self._inner.get(refs)
        for answer in answers:
            if isinstance(answer, Snapshot):
                self._ledger.looked(answer)
        return answers

    async def hold(self, name: str, owner: str, ttl: float) -> bool:
        held = await self._inner.hold(name, owner, ttl)
        self._ledger.count("a lock was held" if held else "a lock was refused")
        return held

    async def _look(self, ids: Sequence[str]) -> Sequence[GetAnswer]:
        answers = await self._inner.get([Ref(id) for id in ids])
        for answer in answers:
            if isinstance(answer, Snapshot):
                self._ledger.looked(answer)
        return answers
