"""The reaper's work: end lapsed leases promptly, and remove what expired long ago.

Workers recover lapsed leases too, whenever they claim. This does it when no worker claims, and says so. It sleeps until
the next lease lapses, at most ``longest`` seconds; there is no timer per job. Any number may run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from jobq._batch import resend
from jobq._prune import prune
from jobq.clock import Clock
from jobq.storage.contract import Namespace, Rescued

_LIMIT = 256
_PRUNE_EVERY = 10.0
_PAUSE_ON_ERROR = 0.5


class Reaping:
    """Rescues and prunes one queue for as long as its task runs."""

    def __init__(
        self,
        namespace: Namespace,
        *,
        longest: float,
        clock: Clock,
        rescued: Callable[[Rescued], None],
        report: Callable[[BaseException], None],
    ) -> None:
        self._namespace = namespace
        self._longest = longest
        self._clock = clock
        self._rescued = rescued
        self._report = report
        self._prune_at = 0.0
        self._troubled = False

    async def run(self) -> None:
        """Work until cancelled; trouble with the storage is reported once per outage."""
        while True:
            try:
                pause = await self._look()
                self._troubled = False
            except Exception as error:  # A bug in a storage must not end a reaper in silence.
                if not self._troubled:
                    self._report(error)
                self._troubled = True
                pause = _PAUSE_ON_ERROR
            await asyncio.sleep(pause)

    async def _look(self) -> float:
        """Rescue what lapsed; return how long to sleep."""
        answer = await resend(self._clock, lambda: self._namespace.rescue(_LIMIT))
        for rescued in answer.rescued:
            self._rescued(rescued)
        await self._prune()
        if answer.next_in is None:
            return self._longest
        return min(self._longest, max(answer.next_in, 0.001))

    async def _prune(self) -> None:
        now = self._clock.monotonic()
        if now < self._prune_at:
            return
        self._prune_at = now + _PRUNE_EVERY
        await prune(self._namespace)
