"""Pruning: every worker now and then removes what has lingered in its queue."""

from __future__ import annotations

import asyncio
import logging

from jobq._moments import Moments
from jobq.storage.contract import Namespace

_EVERY = 15.0
_IDLE_EVERY = 45.0
"""Seconds; what a queue without work leaves to prune can wait longer, and thousands of such queues may be idle. With
`LINGER` it makes less than a minute from the expiry."""
_LIMIT = 1000
_PAUSE = 0.05
"""Seconds between two parts, for claims and settles go first."""


class Pruner:
    """Prunes one queue, less and less often while nothing happens in it."""

    def __init__(self, namespace: Namespace, *, queue: str, label: str, logger: logging.Logger) -> None:
        self._namespace = namespace
        self._queue = queue
        self._label = label
        self._logger = logger
        self.needed = False
        """Set by whoever did something that leaves records behind."""

    async def keep_pruning(self) -> None:
        """Prune until cancelled."""
        loop, pause = asyncio.get_running_loop(), _EVERY
        while True:
            await asyncio.sleep(Moments(pause, self._label).next_in(loop.time()))
            needed, self.needed = self.needed, False
            pause = _EVERY if await self._prune() or needed else min(2 * pause, _IDLE_EVERY)

    async def _prune(self) -> bool:
        """Remove what has lingered; False if there was nothing."""
        try:
            return await prune(self._namespace)
        except Exception as error:
            self._logger.info("queue %s: pruning put off: %s", self._queue, error)
            return True


async def prune(namespace: Namespace) -> bool:
    """Remove all that has lingered in a queue, some at a time; False if there was nothing."""
    found = False
    while removed := await namespace.prune(_LIMIT):
        found = True
        if removed < _LIMIT:
            break
        await asyncio.sleep(_PAUSE)
    return found
