"""Leases: a healthy worker renews what it holds, for as long as its handlers run.

One thread per storage object renews for all its queues, over a second connection (`Storage.twin`), so a handler that
blocks the event loop does not lose its job. The thread also watches that loop: one that has not ticked for
``stall_limit`` seconds is given up, and its jobs go to somebody else. Where a storage has no twin, the same code runs
on the worker's own loop.

Deadlines are local and early: a lease counts from before its extend was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar
from weakref import WeakKeyDictionary

from jobq._moments import Moments
from jobq._process import start_thread
from jobq._running import Running
from jobq.clock import Clock
from jobq.errors import StorageError
from jobq.storage.contract import Held, HeldAnswer, Namespace, Storage

_MOST_AT_ONCE = 256
_PAUSE = 0.2

_logger = logging.getLogger("jobq")


class LeaseGroup:
    """The claims that one worker holds, and how it wants to hear about them."""

    def __init__(
        self,
        namespace: str,
        lease: float,
        *,
        stall_limit: float,
        lost: Callable[[Running], None],
        cancel_asked: Callable[[Running], None],
        stalled: Callable[[float], None],
    ) -> None:
        self.namespace = namespace
        self.lease = lease
        self.held: dict[str, Running] = {}
        """By token. The worker's loop changes it; the renewing thread only copies it."""
        self._stall_limit = stall_limit
        self._lost = lost
        self._cancel_asked = cancel_asked
        self._stalled = stalled
        self._loop = asyncio.get_running_loop()
        self._ticked_at: float | None = None
        self._stall_told = False
        self.abandoned = False
        """Whether the worker's loop is gone."""

    def to_renew(self, now: float) -> list[Running]:
        """Return what should be renewed: nothing for a loop that has stood still for too long."""
        if self._loop.is_closed():
            self._abandon()
            return []
        if not self.held:
            return []  # Nothing could be lost by a loop that stands still, so an idle one need not wake up for this.
        waiting_since = self._ticked_at
        if waiting_since is not None and now - waiting_since > self._stall_limit:
            if not self._stall_told:
                self._stall_told = True
                self._tell(self._stalled, now - waiting_since)
            return []
        if waiting_since is None:
            self._ticked_at = now
            self._tell(self._tick)
        return [running for running in list(self.held.values()) if running.renew_until > now]

    def answered(self, sent: Sequence[Running], answers: Sequence[HeldAnswer], sent_at: float) -> None:
        """Take the storage's answers, in any thread."""
        lost: list[Running] = []
        asked: list[Running] = []
        for running, answer in zip(sent, answers, strict=True):
            if answer is Held.LOST:
                lost.append(running)
            elif isinstance(answer, Held):
                running.lease_until = max(running.lease_until, sent_at + self.lease)
                if answer is Held.CANCEL_ASKED:
                    asked.append(running)
        if lost or asked:
            self._tell(self._pass_on, lost, asked)

    def _pass_on(self, lost: list[Running], asked: list[Running]) -> None:
        # What is settled or being settled meanwhile is no longer held, and its "lost" means nothing.
        for running in lost:
            if running.claim.token in self.held:
                self._lost(running)
        for running in asked:
            if running.claim.token in self.held:
                self._cancel_asked(running)

    def _tick(self) -> None:
        self._ticked_at = None
        self._stall_told = False

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._abandon()

    def _abandon(self) -> None:
        """The loop was closed under a queue that was never stopped: its jobs must lapse."""
        self.abandoned = True
        self.held.clear()


class Inquiry:
    """Asks the storage whether claims should stop, of which a hint says so.

    A hint may come from anybody who can write to its channel, so it makes nobody stop: the storage's answer does. While
    one question is under way, further hints wait and are asked about together, so many cost no more than a few.
    """

    def __init__(self, group: LeaseGroup, namespace: Namespace, clock: Clock) -> None:
        self._group = group
        self._namespace = namespace
        self._clock = clock
        self._wanted: dict[Running, None] = {}
        self._asking: asyncio.Task[None] | None = None

    def ask(self, id: str) -> None:
        """Look into the claims on a job; without a hint the next renewal does."""
        now = self._clock.monotonic()
        for running in self._group.held.values():
            if running.claim.id == id and running.renew_until > now:
                self._wanted[running] = None
        if self._wanted and self._asking is None:
            asking = asyncio.get_running_loop().create_task(self._ask())
            self._asking = None if asking.done() else asking  # Done: begun eagerly, and answered without waiting.

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> None:
        try:
            while self._wanted:
                asked = list(self._wanted)[:_MOST_AT_ONCE]
                for running in asked:
                    del self._wanted[running]
                await _extend(self._group, self._namespace, asked, self._clock)
        finally:
            self._asking = None


class Renewer:
    """Renews the leases of all groups on one storage object."""

    # One per storage object, for all its queues: the storage is the only thing that they share.
    _instances: ClassVar[WeakKeyDictionary[Storage, Renewer]] = WeakKeyDictionary()

    @classmethod
    def forget_all(cls) -> None:
        """In the child of a fork: the threads of its parent do not run here."""
        cls._instances.clear()

    @classmethod
    def of(cls, storage: Storage) -> Renewer:
        renewer = cls._instances.get(storage)
        if renewer is None:
            renewer = cls._instances[storage] = cls(storage.clock)
        return renewer

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._label = clock.random_bytes(8).hex()
        # Nothing here keeps the storage alive between its queues: a twin may be the storage itself.
        self._groups: set[LeaseGroup] = set()
        self._tasks: dict[LeaseGroup, asyncio.Task[None]] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event | None = None
        self._lock = threading.Lock()

    def join(self, group: LeaseGroup, storage: Storage) -> None:
        """Begin to renew a group.

        Raises:
            StorageUnavailableError: no thread can be started.
        """
        with self._lock:
            twin = storage.twin() if self._thread is None else None
            if twin is not None:
                self._thread = start_thread(self._run, twin, name="jobq-leases")
            elif self._thread is None:
                task = self._tasks[group] = asyncio.get_running_loop().create_task(self._keep(group, storage))
                task.add_done_callback(lambda _: self._forget(group))
            self._groups.add(group)
            self._look_again()

    async def leave(self, group: LeaseGroup) -> None:
        """Stop renewing a group; with the last one the thread ends."""
        with self._lock:
            self._groups.discard(group)
            task, thread = self._tasks.pop(group, None), None
            if not self._groups:
                thread, self._thread = self._thread, None
            self._look_again()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if thread is not None:
            await _ended(thread)

    def _forget(self, group: LeaseGroup) -> None:
        """Keep nothing of a group whose task has ended, also with its loop: it holds the storage that names us."""
        with self._lock:
            self._groups.discard(group)
            self._tasks.pop(group, None)

    def _run(self, twin: Storage) -> None:
        """Serve until nobody needs it; also when that fails, as it does without a free descriptor for a loop."""
        troubled = False
        while True:
            try:
                with asyncio.Runner() as runner:
                    runner.run(self._serve(twin))
                return
            except Exception:
                if not troubled:
                    _logger.exception("leases cannot be renewed for now")
                troubled = True
            time.sleep(_PAUSE)
            with self._lock:
                if threading.current_thread() is not self._thread:
                    return

    async def _serve(self, twin: Storage) -> None:
        tasks: dict[LeaseGroup, asyncio.Task[None]] = {}
        changed = asyncio.Event()
        opened = False
        try:
            while True:
                changed.clear()
                with self._lock:
                    if threading.current_thread() is not self._thread:
                        return
                    self._groups = {group for group in self._groups if not group.abandoned}
                    wanted = set(self._groups)
                    if not wanted:
                        self._thread = self._loop = None
                        return
                    self._loop, self._changed = asyncio.get_running_loop(), changed
                opened = opened or await self._open(twin, changed)
                if not opened:
                    continue
                for group in tasks.keys() - wanted:
                    tasks.pop(group).cancel()
                for group in wanted - tasks.keys():
                    tasks[group] = asyncio.create_task(self._keep(group, twin))
                await changed.wait()
        finally:
            for task in tasks.values():
                task.cancel()
            if tasks:
                await asyncio.wait(tasks.values())
            if opened:
                await twin.close()

    def _look_again(self) -> None:
        """Tell the thread that groups came or went; it looks by itself when it begins."""
        if self._loop is not None and self._changed is not None:
            with contextlib.suppress(RuntimeError):  # The thread has just ended.
                self._loop.call_soon_threadsafe(self._changed.set)

    async def _open(self, twin: Storage, changed: asyncio.Event) -> bool:
        """Open the twin; while it cannot be reached, try again, since the leases are worth it."""
        while True:
            try:
                await twin.open()
                return True
            except StorageError:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), _PAUSE)
                if threading.current_thread() is not self._thread:
                    return False

    async def _keep(self, group: LeaseGroup, storage: Storage) -> None:
        namespace, loop = storage.namespace(group.namespace), asyncio.get_running_loop()
        moments = Moments(group.lease / 3, self._label)
        while not group.abandoned:
            await asyncio.sleep(moments.next_in(loop.time()))
            while not await self._renew(group, namespace):
                # A failed renewal is repeated soon, because two thirds of the lease are left to succeed in.
                await asyncio.sleep(min(group.lease / 12, 1.0))
        with self._lock:
            self._groups.discard(group)
            self._look_again()

    async def _renew(self, group: LeaseGroup, namespace: Namespace) -> bool:
        wanted = group.to_renew(self._clock.monotonic())
        for start in range(0, len(wanted), _MOST_AT_ONCE):
            if not await _extend(group, namespace, wanted[start : start + _MOST_AT_ONCE], self._clock):
                return False
        return True


os.register_at_fork(after_in_child=Renewer.forget_all)


async def _extend(group: LeaseGroup, namespace: Namespace, some: Sequence[Running], clock: Clock) -> bool:
    """Renew some claims and hand out the answers; False if the storage did not answer."""
    sent_at = clock.monotonic()
    try:
        answers = await namespace.extend([(r.claim.id, r.claim.token) for r in some], group.lease)
    except StorageError:
        return False
    except Exception:  # A bug in a storage must not end the renewing of all leases.
        _logger.exception("queue %s: leases were not renewed", group.namespace)
        return False
    group.answered(some, answers, sent_at)
    return True


async def _ended(thread: threading.Thread) -> None:
    """Wait for a thread without blocking the loop, and without another thread to wait in.

    One that a storage holds up ends by itself, later than a stop may take.
    """
    for _ in range(60):
        if not thread.is_alive():
            return
        await asyncio.sleep(0.005)
