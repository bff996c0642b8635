"""FaultyStorage: a storage behind a bad connection.

Requests get lost before they arrive, replies get lost after the work is done, both take their time; hints vanish or
come late. What a plan decides depends only on the verb and on how many calls of it came before, so a run can be
repeated.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from jobq.clock import Clock
from jobq.errors import StorageUnavailableError
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

T = TypeVar("T")


class Trouble(msgspec.Struct, frozen=True):
    """What happens to one call."""

    request_lost: bool = False
    """It never arrives; the caller gets `StorageUnavailableError`. A hint vanishes."""
    reply_lost: bool = False
    """It is done, and the caller gets `StorageUnavailableError`. A hint vanishes."""
    delay: float = 0.0
    """Seconds on the way there. A hint comes so much later, and others may overtake it."""
    delay_back: float = 0.0
    """Seconds on the way back."""


LOSE_REQUEST = Trouble(request_lost=True)
LOSE_REPLY = Trouble(reply_lost=True)

Plan = Callable[[str, int], Trouble | None]
"""Called with the verb, as ``"settle"`` or ``"hint"``, and the number of its earlier calls: 0 for the first."""


def planned(troubles: Mapping[tuple[str, int], Trouble]) -> Plan:
    """Return a plan with trouble for certain calls only.

    Example:
        >>> plan = planned({("settle", 0): LOSE_REPLY})
        >>> plan("settle", 0).reply_lost, plan("settle", 1)
        (True, None)
    """
    return lambda verb, index: troubles.get((verb, index))


class RandomPlan:
    """Trouble by chance, the same for the same seed.

    Args:
        seed: names the run.
        rate: the share of calls that lose their request, and as large a share that lose their reply.
        slow: the share of ways that are delayed.
        longest: seconds of the longest delay.
        hints: the share of hints that are lost.
    """

    def __init__(
        self, seed: int, *, rate: float = 0.1, slow: float = 0.1, longest: float = 1.0, hints: float = 0.3
    ) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self._slow = slow
        self._longest = longest
        self._hints = hints

    def __call__(self, verb: str, index: int) -> Trouble | None:
        if verb == "hint":
            return LOSE_REQUEST if self._random.random() < self._hints else None
        fate = self._random.random()
        return Trouble(fate < self._rate, self._rate <= fate < 2 * self._rate, self._delay(), self._delay())

    def _delay(self) -> float:
        return self._random.uniform(0.0, self._longest) if self._random.random() < self._slow else 0.0


class FaultyStorage:
    """A storage whose calls meet the trouble that a plan has for them.

    It has no twin: leases are renewed in the loop, so that calls come in an order that repeats.
    """

    def __init__(self, storage: Storage, plan: Plan) -> None:
        self._storage = storage
        self._plan = plan
        self.remote = True
        """As most storages behind a connection are; see `jobq.storage.contract.is_remote`."""
        self._namespaces: dict[str, FaultyNamespace] = {}
        self.calls: Counter[str] = Counter()
        """How often each verb was called."""
        self.troubles: Counter[str] = Counter()
        """How often a call of each verb lost its request or its reply."""

    @property
    def clock(self) -> Clock:
        return self._storage.clock

    async def open(self) -> None:
        await self.meet("open", self._storage.open)

    async def close(self) -> None:
        await self._storage.close()

    def namespace(self, name: str) -> QueueStorage:
        if name not in self._namespaces:
            self._namespaces[name] = FaultyNamespace(self, self._storage.namespace(name))
        return self._namespaces[name]

    def twin(self) -> Storage | None:
        return None

    async def meet(self, verb: str, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call, with the trouble that is planned for it."""
        trouble = self._next(verb)
        if trouble is None:
            return await call()
        if trouble.delay > 0.0:
            await asyncio.sleep(trouble.delay)
        if trouble.request_lost:
            self.troubles[verb] += 1
            raise StorageUnavailableError(f"{verb}: the request was lost on purpose")
        answer = await call()
        if trouble.delay_back > 0.0:
            await asyncio.sleep(trouble.delay_back)
        if trouble.reply_lost:
            self.troubles[verb] += 1
            raise StorageUnavailableError(f"{verb}: the reply was lost on purpose")
        return answer

    def deliver(self, handler: Callable[[Hint], None], hint: Hint) -> None:
        """Pass a hint on, with the trouble that is planned for it."""
        trouble = self._next("hint")
        if trouble is None:
            handler(hint)
        elif trouble.request_lost or trouble.reply_lost:
            self.troubles["hint"] += 1
        else:
            asyncio.get_running_loop().call_later(trouble.delay + trouble.delay_back, handler, hint)

    def _next(self, verb: str) -> Trouble | None:
        index = self.calls[verb]
        self.calls[verb] += 1
        return self._plan(verb, index)


class FaultyNamespace:
    """One queue of a `FaultyStorage`."""

    def __init__(self, storage: FaultyStorage, inner: QueueStorage) -> None:
        self._meet = storage.meet
        self._storage = storage
        self._inner = inner

    async def add(self, jobs: Sequence[NewJob]) -> Sequence[AddAnswer]:
        return await self._meet("add", lambda: self._inner.add(jobs))

    async def claim(self, worker_id: str, lease: float, limit: int, nonce: str) -> Claimed:
        return await self._meet("claim", lambda: self._inner.claim(worker_id, lease, limit, nonce))

    async def extend(self, claims: Sequence[tuple[str, str]], lease: float) -> Sequence[HeldAnswer]:
        return await self._meet("extend", lambda: self._inner.extend(claims, lease))

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleAnswer]:
        return await self._meet("settle", lambda: self._inner.settle(settlements))

    async def cancel(self, id: str, running: bool, nonce: str) -> State | None:
        return await self._meet("cancel", lambda: self._inner.cancel(id, running, nonce))

    async def revive(self, id: str, nonce: str) -> State | None:
        return await self._meet("revive", lambda: self._inner.revive(id, nonce))

    async def retain(self, id: str, ttl: float, nonce: str) -> State | None:
        return await self._meet("retain", lambda: self._inner.retain(id, ttl, nonce))

    async def rescue(self, limit: int) -> Rescue:
        return await self._meet("rescue", lambda: self._inner.rescue(limit))

    async def prune(self, limit: int) -> int:
        return await self._meet("prune", lambda: self._inner.prune(limit))

    async def get(self, refs: Sequence[Ref]) -> Sequence[GetAnswer]:
        return await self._meet("get", lambda: self._inner.get(refs))

    async def wait_for_work(self, timeout: float) -> bool:
        return await self._meet("wait_for_work", lambda: self._inner.wait_for_work(timeout))

    async def watch(self, handler: Callable[[Hint], None]) -> Watch:
        return await self._inner.watch(partial(self._storage.deliver, handler))

    async def hold(self, name: str, owner: str, ttl: float) -> bool:
        return await self._meet("hold", lambda: self._inner.hold(name, owner, ttl))

    async def release(self, name: str, owner: str) -> None:
        await self._meet("release", lambda: self._inner.release(name, owner))

    async def counts(self) -> Counts:
        return await self._meet("counts", self._inner.counts)

    async def page(self, state: State, after: str, limit: int) -> Sequence[Snapshot]:
        return await self._meet("page", lambda: self._inner.page(state, after, limit))

    async def workers(self) -> Sequence[tuple[str, int]]:
        return await self._meet("workers", self._inner.workers)
