"""Where something lives: the event loop and the process that it is used in, and nowhere else at that time.

It settles there with the first start, even while that is under way, so that of two threads that start it at the same
moment the second is refused. Once it is used no more, it may be started elsewhere.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from jobq._process import Process
from jobq.errors import JobQueueError


class Home:
    """The loop of one object, in which its starts and stops take turns.

    Args:
        whose: what to call the object in errors.
        refusal: the class of these.
    """

    def __init__(self, whose: str, refusal: type[JobQueueError] = JobQueueError) -> None:
        self._whose = whose
        self._refusal = refusal
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._lock = asyncio.Lock()
        self._turns = 0

    @property
    def changing(self) -> bool:
        """Whether a start or a stop has its turn."""
        return self._lock.locked()

    @asynccontextmanager
    async def turn(self, used: Callable[[], bool], forget: Callable[[], None]) -> AsyncIterator[None]:
        """Wait for a turn in the running loop.

        Args:
            used: whether the object is in use, between starts and stops.
            forget: called if it was in use in a loop that has been closed, and with it all that it had there.

        Raises:
            JobQueueError: it is in use in another loop, or was when this process was forked.
        """
        loop = asyncio.get_running_loop()
        with self._guard:
            if self._loop is not loop or self._process != Process.id:
                if self._loop is not None and (self._turns or used()):
                    if not self._loop.is_closed():
                        raise self._refused()
                    forget()
                self._loop, self._process, self._lock, self._turns = loop, Process.id, asyncio.Lock(), 0
            lock = self._lock
            self._turns += 1
        try:
            async with lock:
                yield
        finally:
            if self._lock is lock:  # Not so: a turn that ended with its loop is forgotten.
                self._turns -= 1

    @property
    def here(self) -> bool:
        """Whether this is the loop and the process in which the object was started."""
        return self._process == Process.id and self._loop is asyncio.get_running_loop()

    def check(self) -> None:
        """Raise unless this is the loop and the process in which the object is in use."""
        if not self.here:
            raise self._refused()

    def _refused(self) -> JobQueueError:
        if self._process != Process.id:
            return self._refusal(
                f"{self._whose} was in use before a fork: fork before you start it, or spawn the child process",
                code="FORKED",
            )
        return self._refusal(
            f"{self._whose} is in use in another event loop: use it there, or make one for each loop",
            code="WRONG_LOOP",
        )
