"""Batcher: concurrent calls of one verb travel together.

Calls of one loop tick, and calls made while a storage call is in flight, leave together in the next one; alone, a call
leaves at the end of its tick. There are no timers, so nothing waits for company. This is group commit for SQLite, a
multi-row statement for Postgres, one script call for Redis, and most of jobq's speed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from jobq.clock import Clock
from jobq.errors import StorageError, StorageUnavailableError
from jobq.storage.contract import RESEND_FOR

T = TypeVar("T")
A = TypeVar("A")

MOST_ITEMS = 256
MOST_BYTES = 2**20
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5

Receiver = Callable[[A | StorageError | Exception], None]


class Batcher(Generic[T, A]):
    """Gathers items, sends them with ``send`` and hands each its own answer.

    One batch is in flight at a time, so items arrive at the storage in the order in which they were submitted. A batch
    refused as a whole, for a reason that may be one item's, is split until the culprit stands alone.
    """

    def __init__(
        self,
        send: Callable[[Sequence[T]], Awaitable[Sequence[A | StorageError]]],
        *,
        clock: Clock,
        size: Callable[[T], int] | None = None,
    ) -> None:
        self._send = send
        self._clock = clock
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._pending: deque[tuple[T, asyncio.Future[A] | Receiver[A]]] = deque()
        self._scheduled = False
        self._carrier: asyncio.Task[None] | None = None

    def submit(self, item: T) -> asyncio.Future[A]:
        """Add an item; the future has its answer. Cancelled before its batch leaves, the item stays behind."""
        future: asyncio.Future[A] = self._loop.create_future()
        self._put(item, future)
        return future

    def put(self, item: T, receive: Receiver[A]) -> None:
        """Add an item; ``receive`` is called with its answer or its exception. Cheaper than a future."""
        self._put(item, receive)

    def flush(self) -> None:
        """Let what is pending leave now, unless a batch is in flight."""
        self._scheduled = False
        if self._pending and self._carrier is None:
            self._carrier = self._loop.create_task(self._carry())

    async def drain(self) -> None:
        """Wait until nothing is pending or in flight."""
        self.flush()
        while self._carrier is not None:
            await asyncio.wait([self._carrier])

    def _put(self, item: T, receiver: asyncio.Future[A] | Receiver[A]) -> None:
        self._pending.append((item, receiver))
        if not self._scheduled and self._carrier is None:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    async def _carry(self) -> None:
        try:
            while batch := self._take():
                await self._deliver(batch)
        finally:
            self._carrier = None
            if self._pending:
                self.flush()

    def _take(self) -> list[tuple[T, asyncio.Future[A] | Receiver[A]]]:
        batch: list[tuple[T, asyncio.Future[A] | Receiver[A]]] = []
        pending, size, total = self._pending, self._size, 0
        while pending and len(batch) < MOST_ITEMS:
            item, receiver = pending[0]
            if size is not None:
                total += size(item)
                if batch and total > MOST_BYTES:
                    break
            pending.popleft()
            if not (isinstance(receiver, asyncio.Future) and receiver.done()):
                batch.append((item, receiver))
        return batch

    async def _deliver(self, batch: list[tuple[T, asyncio.Future[A] | Receiver[A]]]) -> None:
        items = [item for item, _ in batch]
        try:
            answers = await resend(self._clock, lambda: self._send(items))
        except Exception as error:
            may_be_one = isinstance(error, StorageError) and not isinstance(error, StorageUnavailableError)
            if may_be_one and len(batch) > 1:
                middle = len(batch) // 2
                await self._deliver(batch[:middle])
                await self._deliver(batch[middle:])
                return
            for _, receiver in batch:
                _hand(receiver, error)
        else:
            for (_, receiver), answer in zip(batch, answers, strict=True):
                _hand(receiver, answer)


async def resend(clock: Clock, call: Callable[[], Awaitable[A]]) -> A:
    """Make a call that may safely be sent again, until it is answered or `RESEND_FOR` seconds have passed.

    Raises:
        StorageUnavailableError: the outcome is unknown; the same call may be made again later.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + RESEND_FOR
    pause = _FIRST_PAUSE
    while True:
        try:
            return await call()
        except StorageUnavailableError:
            wait = pause * clock.uniform(0.5, 1.0)
            if loop.time() + wait >= give_up_at:
                raise
            await asyncio.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _hand(receiver: asyncio.Future[A] | Receiver[A], answer: A | StorageError | Exception) -> None:
    if not isinstance(receiver, asyncio.Future):
        receiver(answer)
    elif not receiver.done():
        if isinstance(answer, Exception):
            receiver.set_exception(answer)
        else:
            receiver.set_result(answer)
