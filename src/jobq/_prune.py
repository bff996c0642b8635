"""Pruning: every worker now and then removes what has lingered in its queue."""

from __future__ import annotations

import asyncio
import logging

from jobq._moments import Moments
from jobq.errors import StorageError
from jobq.storage.contract import Namespace

_EVERY = 15.0
_IDLE_EVERY = 120.0
"""Seconds; what a queue without work leaves to prune can wait longer, and thousands of such queues may be idle."""
_LIMIT = 1000


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
        """Remove what has lingered; True if there was something."""
        removed = _LIMIT
        try:
            while (removed := await self._namespace.prune(_LIMIT)) >= _LIMIT:
                await asyncio.sleep(0.05)  # Claims and settles go first.
        except StorageError as error:
            self._logger.info("queue %s: pruning put off: %s", self._queue, error)
        return removed > 0
