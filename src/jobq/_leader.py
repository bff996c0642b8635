"""Leadership: at most one of several holds a named lock, by everybody's own clock.

A lock of the storage with a time limit. Being leader is computed when it is asked for, by a local deadline that counts
from before the lock was asked for, so a leader that cannot renew knows it before another can take over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from jobq.clock import Clock
from jobq.storage.contract import Lock


class Leadership:
    """Tries to become and stay the leader, from `start` to `stop`."""

    def __init__(
        self,
        lock: Lock,
        owner: str,
        *,
        times: tuple[float, float, float],
        clock: Clock,
        changed: Callable[[bool], None],
        report: Callable[[BaseException], None],
    ) -> None:
        self._lock = lock
        self._owner = owner
        self._ttl, self._renew_every, self._retry_every = times
        self._clock = clock
        self._changed = changed
        self._report = report
        self._until = 0.0
        self._told = self._troubled = False
        self._task: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def is_leader(self) -> bool:
        return self._clock.monotonic() < self._until

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """Give the lead up at once, so that another need not wait for the lock to lapse."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self._until = 0.0
        if self._expiry is not None:
            self._expiry.cancel()
        self._tell(False)
        with contextlib.suppress(Exception):  # Unreachable: then the lock lapses by itself.
            # Also without the lead: a request for it may have been granted unheard.
            await self._lock.release(_NAME, self._owner)

    async def _keep(self) -> None:
        while True:
            asked_at = self._clock.monotonic()
            try:
                held = await self._lock.hold(_NAME, self._owner, self._ttl)
            except Exception as error:  # A bug in a storage must not end an election in silence.
                if not self._troubled:  # Once for an outage.
                    self._report(error)
                self._troubled = True
                # While the lock may still be ours, it is worth asking again soon.
                await asyncio.sleep(min(self._renew_every, self._retry_every) / 2)
                continue
            self._troubled = False
            self._until = asked_at + self._ttl if held else 0.0
            self._tell(self.is_leader)
            self._watch_expiry()
            await asyncio.sleep(self._renew_every if held else self._retry_every)

    def _watch_expiry(self) -> None:
        """Announce a loss when the local deadline passes, even while no answer comes."""
        loop = asyncio.get_running_loop()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._until:
            left = max(0.0, self._until - self._clock.monotonic()) + 0.001
            self._expiry = loop.call_later(left, lambda: self._tell(self.is_leader))

    def _tell(self, leads: bool) -> None:
        if leads != self._told:
            self._told = leads
            self._changed(leads)


_NAME = "reaper"
