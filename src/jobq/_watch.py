"""Waiters: any number of callers that wait for results, on one subscription.

A hint with the result inside answers at once. Hints may be lost, so every second the jobs that are still waited for are
read again: a lost hint costs a second, never the answer.

A waiter is bound to a generation, the run it asked for, and never gets another run's result. Until its generation is
known, the latest hint is kept aside.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from jobq._batch import resend
from jobq._timeouts import Timeouts
from jobq.clock import Clock
from jobq.errors import (
    JobNotFoundError,
    JobTimeoutError,
    QueueClosedError,
    ResultExpiredError,
    StorageCorruptError,
    StorageError,
)
from jobq.job import Snapshot
from jobq.storage.contract import LINGER, Hint, HintKind, Namespace, Ref, Watch

READ_AGAIN_EVERY = 1.0
_MOST_AT_ONCE = 1000


class Waiter:
    """One caller that waits for one run of a job."""

    __slots__ = ("aside", "future", "generation", "id", "look_once", "seen_at", "tick")

    def __init__(self, id: str, generation: str | None, future: asyncio.Future[Snapshot]) -> None:
        self.id = id
        self.generation = generation
        """The run that it waits for; None until that is known."""
        self.future = future
        self.aside: Snapshot | None = None
        self.seen_at: float | None = None
        """When the job was last read and had not ended; None before the job is known to be stored."""
        self.tick = -1
        self.look_once = False

    def expire(self) -> None:
        """End the wait because its time is over."""
        self.fail(
            JobTimeoutError(
                self.id,
                f"job {self.id!r} did not end within the timeout; it goes on, and wait(id) or get_result(id) will tell",
            )
        )

    def answer(self, snapshot: Snapshot) -> None:
        """End the wait if this is how the job ended."""
        if snapshot.state.terminal and not self.future.done():
            self.future.set_result(snapshot)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # Nobody may be left to await it, and that is fine.


class Waiters:
    """All waiters of one queue in this process."""

    def __init__(self, namespace: Namespace, clock: Clock, timeouts: Timeouts) -> None:
        self._namespace = namespace
        self._clock = clock
        self._timeouts = timeouts
        self.cancel_asked: Callable[[str], None] | None = None
        """Told of jobs that should stop running; set by whoever runs them."""
        self._loop = asyncio.get_running_loop()
        self._waiters: dict[str, dict[Waiter, None]] = {}
        """By id, in the order in which they came."""
        self._watch: Watch | None = None
        self._rereader: asyncio.Task[None] | None = None
        self._reading: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._watch = await self._namespace.watch(self._hinted)

    async def close(self) -> None:
        """Tell every waiter that the queue is closed, and unsubscribe."""
        for waiters in list(self._waiters.values()):
            for waiter in list(waiters):
                waiter.fail(QueueClosedError(f"the queue was stopped while waiting for job {waiter.id!r}"))
        tasks = [*self._reading, *([self._rereader] if self._rereader else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._rereader = None
        if self._watch is not None:
            with contextlib.suppress(StorageError):
                await self._watch.close()

    @property
    def address(self) -> str:
        """What storages should reply to."""
        assert self._watch is not None
        return self._watch.address

    def register(self, id: str, generation: str | None, timeout: float | None) -> Waiter:
        """Begin to listen, before the request is sent: a hint that comes first is not lost."""
        waiter = Waiter(id, generation, self._loop.create_future())
        self._waiters.setdefault(id, {})[waiter] = None
        if timeout == 0.0:
            waiter.look_once = True
        elif timeout is not None:
            waiter.tick = self._timeouts.add(waiter, timeout)
        return waiter

    def bind(self, waiter: Waiter) -> None:
        """Say that the run that the waiter asked for is stored."""
        waiter.seen_at = self._loop.time()
        if waiter.aside is not None and waiter.aside.generation == waiter.generation:
            waiter.answer(waiter.aside)
        if waiter.look_once:
            waiter.expire()
        elif self._rereader is None:
            self._rereader = self._loop.create_task(self._read_again())

    def forget(self, waiter: Waiter) -> None:
        """Stop listening. To be called for every registered waiter."""
        waiters = self._waiters.get(waiter.id)
        if waiters is not None:
            waiters.pop(waiter, None)
            if not waiters:
                del self._waiters[waiter.id]
        if waiter.tick >= 0:
            self._timeouts.discard(waiter, waiter.tick)

    def _hinted(self, hint: Hint) -> None:
        snapshot = hint.snapshot
        if snapshot is not None:  # Only the hint of an end brings one.
            for waiter in self._waiters.get(hint.id, ()):
                if waiter.generation == snapshot.generation:
                    waiter.answer(snapshot)
                elif waiter.seen_at is None:
                    waiter.aside = snapshot
        elif hint.kind is HintKind.CANCEL_ASKED:
            if self.cancel_asked is not None:
                self.cancel_asked(hint.id)
        elif hint.kind is HintKind.MISSED:
            self._begin_reading(self._read_all())
        elif hint.kind is not HintKind.RESCUED and hint.id in self._waiters:
            self._begin_reading(self._read(self._known(self._waiters[hint.id])))

    def _begin_reading(self, reading: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(reading)
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _read_again(self) -> None:
        """Every second, read what is waited for; end when nothing is."""
        while self._waiters:
            await asyncio.sleep(READ_AGAIN_EVERY)
            await self._read_all()
        self._rereader = None

    async def _read_all(self) -> None:
        waiters = self._known(waiter for some in self._waiters.values() for waiter in some)
        for start in range(0, len(waiters), _MOST_AT_ONCE):
            await self._read(waiters[start : start + _MOST_AT_ONCE])

    def _known(self, waiters: Iterable[Waiter]) -> list[Waiter]:
        return [waiter for waiter in waiters if waiter.seen_at is not None and not waiter.future.done()]

    async def _read(self, waiters: list[Waiter]) -> None:
        refs = [Ref(waiter.id, waiter.generation) for waiter in waiters]
        if not refs:
            return
        try:
            answers = await resend(self._clock, lambda: self._namespace.get(refs))
        except StorageError as error:
            if isinstance(error, StorageCorruptError):  # Of one job, or of all that is stored.
                await self._read_apart(waiters, error)
            return  # Else it is read again in a second.
        except Exception as error:  # A bug in a storage; its waiters must not wait for ever.
            await self._read_apart(waiters, error)
            return
        for waiter, answer in zip(waiters, answers, strict=True):
            if isinstance(answer, StorageCorruptError):
                waiter.fail(answer)
            elif answer is None or (isinstance(answer, Snapshot) and answer.generation != waiter.generation):
                waiter.fail(self._gone(waiter))
            elif isinstance(answer, Snapshot):
                waiter.answer(answer)
                waiter.seen_at = self._loop.time()

    async def _read_apart(self, waiters: list[Waiter], error: Exception) -> None:
        """Find those who cannot be answered, and tell them why."""
        if len(waiters) == 1:
            waiters[0].fail(error)
            return
        middle = len(waiters) // 2
        await self._read(waiters[:middle])
        await self._read(waiters[middle:])

    def _gone(self, waiter: Waiter) -> Exception:
        """Word the loss of a run: a record that was there a moment ago cannot have expired in the ordinary way."""
        assert waiter.seen_at is not None
        if self._loop.time() - waiter.seen_at < LINGER:
            return JobNotFoundError(
                waiter.id, f"job {waiter.id!r} is gone: its record was replaced or lost; enqueue it again if it matters"
            )
        return ResultExpiredError(
            waiter.id,
            f"job {waiter.id!r} ended and its record expired before it could be read; use a longer result_ttl",
        )
