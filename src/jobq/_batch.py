"""Batcher: concurrent calls of one verb travel together.

Calls of one loop tick, and calls made while a storage call is in flight, leave together in the next one; alone, a call
leaves at the end of its tick. There are no timers, so nothing waits for company. For FileStorage it is group commit:
a hundred callers share one transaction and one fsync.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from jobq.clock import Clock
from jobq.errors import StorageError, StorageUnavailableError
from jobq.storage.contract import RESEND_FOR

T = TypeVar("T")
A = TypeVar("A")

MOST_BYTES = 2**20
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5

S = TypeVar("S")
_Entry = tuple[T, Callable[[Any, A | Exception], None], Any, asyncio.Future[Any] | None]
"""An item, who receives its answer and together with what, and the future whose cancel says that nobody wants it."""


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
        most: int = 256,
    ) -> None:
        self._send = send
        self._clock = clock
        self._size = size
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._pending: deque[_Entry[T, A]] = deque()
        self._scheduled = False
        self._carrier: asyncio.Task[None] | None = None
        self._carried: list[_Entry[T, A]] = []

    def submit(self, item: T) -> asyncio.Future[A]:
        """Add an item; the future has its answer. Cancelled before its batch leaves, the item stays behind."""
        future: asyncio.Future[A] = self._loop.create_future()
        self.put(item, _resolve, future, future)
        return future

    def put(
        self,
        item: T,
        receive: Callable[[S, A | Exception], None],
        subject: S,
        future: asyncio.Future[Any] | None = None,
    ) -> None:
        """Add an item; ``receive`` is called with ``subject`` and the answer or the exception.

        That is cheaper than a future of its own, and than a closure. If ``future`` is cancelled before the batch
        leaves, nobody wants the answer any more, and the item stays behind.
        """
        self._pending.append((item, receive, subject, future))
        if not self._scheduled and self._carrier is None:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Let what is pending leave now, unless a batch is in flight."""
        self._scheduled = False
        if self._pending and self._carrier is None:
            carrier = start(self._carry(), self._loop)
            self._carrier = None if carrier.done() else carrier

    async def drain(self) -> None:
        """Wait until nothing is pending or in flight."""
        self.flush()
        while self._carrier is not None:
            await asyncio.wait([self._carrier])

    async def close(self, error: Exception) -> None:
        """Give up what is in flight or pending: whoever waits for it is told ``error``; its outcome is unknown."""
        if self._carrier is not None:
            self._carrier.cancel()
            await asyncio.wait([self._carrier])
        given_up = [*self._carried, *self._pending]
        _hand(given_up, [error] * len(given_up))
        self._pending.clear()

    async def _carry(self) -> None:
        try:
            while batch := self._take():
                self._carried = batch
                await self._deliver(batch)
                self._carried = []
        finally:
            self._carrier = None

    def _take(self) -> list[_Entry[T, A]]:
        pending, size, total = self._pending, self._size, 0
        batch: list[_Entry[T, A]] = []
        while pending and len(batch) < self._most:
            entry = pending.popleft()
            item, _, _, future = entry
            if future is not None and future.cancelled():
                continue
            if size is not None:
                total += size(item)
                if batch and total > MOST_BYTES:
                    pending.appendleft(entry)
                    break
            batch.append(entry)
        return batch

    async def _deliver(self, batch: list[_Entry[T, A]]) -> None:
        items = [entry[0] for entry in batch]
        try:
            answers = await resend(self._clock, lambda: self._send(items))
            if len(answers) != len(items):  # A bug in a storage must not leave callers without an answer.
                raise StorageError(f"the storage gave {len(answers)} answers to {len(items)} questions")
        except Exception as error:
            may_be_one = isinstance(error, StorageError) and not isinstance(error, StorageUnavailableError)
            if may_be_one and len(batch) > 1:
                middle = len(batch) // 2
                await self._deliver(batch[:middle])
                await self._deliver(batch[middle:])
                return
            _hand(batch, [error] * len(batch))
        else:
            _hand(batch, answers)


async def resend(clock: Clock, call: Callable[[], Awaitable[A]]) -> A:
    """Make a call that may safely be sent again, until it is answered or `RESEND_FOR` seconds have passed.

    Raises:
        StorageUnavailableError: the outcome is unknown; the same call may be made again later.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + RESEND_FOR
    pause = _FIRST_PAUSE
    trouble: StorageUnavailableError | None = None
    while True:
        try:
            if trouble is None:
                return await call()
            async with asyncio.timeout_at(give_up_at):
                return await call()
        except TimeoutError:
            if trouble is None:
                raise
            raise trouble from None
        except StorageUnavailableError as error:
            trouble = error
            wait = pause * clock.uniform(0.5, 1.0)
            if loop.time() + wait >= give_up_at:
                raise
            await asyncio.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)


if sys.version_info >= (3, 12):

    def start(coroutine: Coroutine[Any, Any, S], loop: asyncio.AbstractEventLoop) -> asyncio.Task[S]:
        """Begin eagerly: what never waits then costs no turn of the loop."""
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:

    def start(coroutine: Coroutine[Any, Any, S], loop: asyncio.AbstractEventLoop) -> asyncio.Task[S]:
        return asyncio.Task(coroutine, loop=loop)


def _hand(batch: Sequence[_Entry[Any, A]], answers: Sequence[A | Exception]) -> None:
    for (_, receive, subject, _), answer in zip(batch, answers, strict=True):
        try:
            receive(subject, answer)
        except Exception:  # As of a log that cannot be written: it must not cost the others their answers.
            traceback.print_exc()


def _resolve(future: asyncio.Future[A], answer: A | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
