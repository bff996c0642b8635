"""What every process of a soak has: its plan, its audit, its way to the storage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from jobq import FileStorage, FixedDelay, JobQueueError, Queue, StorageError, open_storage
from jobq.storage.contract import Storage
from soak.audit import Audit
from soak.plan import RESULT_TTL, Plan
from soak.work import MANY_ATTEMPTS, Done, Work

QUEUE = "soak"


class Part:
    """What every role needs."""

    def __init__(self, role: str, index: int, incarnation: int, directory: Path) -> None:
        self.name = f"{role}-{index}"
        self.index = index
        self.directory = directory
        self.plan = Plan.read(directory)
        self.audit = Audit(directory, self.name, incarnation)
        shift_wall_clock(self.plan.offset(role, index))

    def storage(self) -> Storage:
        urls = self.plan.urls
        return open_storage(urls[self.index % len(urls)]) if urls else FileStorage(self.directory / "jobs")

    def queue(self) -> Queue[Work, Done]:
        queue = Queue[Work, Done](
            self.storage(),
            name=QUEUE,
            worker_id=self.name,
            concurrency=self.plan.concurrency,
            max_attempts=MANY_ATTEMPTS,
            block_timeout=0.5,
            visibility_timeout=self.plan.lease,
            result_ttl=RESULT_TTL,
            retry=FixedDelay(0.05),
        )
        queue.on("error", self.report)
        return queue

    def report(self, error: BaseException) -> None:
        """Note an error that an event carried; only the documented ones may occur."""
        if isinstance(error, JobQueueError):
            self.audit.note("trouble", error.code)
        else:
            self.audit.note("unexpected", f"{type(error).__name__}: {error}")

    async def begin(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a queue or a reaper, however long its storage is out of reach."""
        while True:
            try:
                await start()
            except StorageError as error:
                self.report(error)
                await asyncio.sleep(0.2)
            else:
                self.audit.note("serving")
                return

    async def run(self, main: Callable[[Part], Coroutine[Any, Any, None]]) -> None:
        asyncio.get_running_loop().set_exception_handler(self._unhandled)
        await main(self)
        self.audit.note("stopped")

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.audit.note("unexpected", f"{context.get('message')} {context.get('exception')!r}")
        loop.default_exception_handler(context)


def shift_wall_clock(seconds: float) -> None:
    """Make this process's wall clock wrong, as if somebody had set it; a `clock=` would replace a server's as well."""
    if seconds:
        right = time.time
        time.time = lambda: right() + seconds
