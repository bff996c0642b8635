"""AbortSignal: how a running handler learns that it should end.

Coroutines are cancelled as well; plain functions in threads can only look, so the signal can be waited for and read
from any thread. It is created lazily inside: a job whose signal nobody touches pays for one small object.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Literal

AbortReason = Literal["stopping", "job_timeout", "lease_lost", "cancelled"]

_Waiter = Callable[[], object]
_LOCK = threading.Lock()  # One for all signals: it is held for nanoseconds, and a lock per job would cost more.


class JobAborted(Exception):
    """Raised by `AbortSignal.raise_if_aborted`; ``reason`` says why the job should end."""

    def __init__(self, reason: AbortReason) -> None:
        super().__init__(f"the job should end: {reason}")
        self.reason: AbortReason = reason


class AbortSignal:
    """Tells a handler, at most once, that it should end; usable from any thread."""

    __slots__ = ("_waiters", "reason")

    def __init__(self) -> None:
        self.reason: AbortReason | None = None
        """Why, or None while the handler may go on."""
        self._waiters: list[_Waiter] | None = None

    @property
    def aborted(self) -> bool:
        return self.reason is not None

    def raise_if_aborted(self) -> None:
        """Raise `JobAborted` if the handler should end."""
        if self.reason is not None:
            raise JobAborted(self.reason)

    async def wait(self) -> AbortReason:
        """Wait until aborted, and return the reason. Cancelling the wait has no effect on the signal."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # That loop is closed, and who waited in it is gone.
                loop.call_soon_threadsafe(_finish, future)

        if self._add(wake):
            try:
                await future
            finally:
                self._remove(wake)
        assert self.reason is not None
        return self.reason

    def wait_sync(self, timeout: float | None = None) -> bool:
        """Block this thread until aborted or for ``timeout`` seconds; True if aborted. Never call it in a coroutine."""
        event = threading.Event()
        if self._add(event.set):
            try:
                event.wait(timeout)
            finally:
                self._remove(event.set)
        return self.reason is not None

    def abort(self, reason: AbortReason) -> None:
        """Set the reason and wake everybody who waits; later calls change nothing. For the engine."""
        with _LOCK:
            if self.reason is not None:
                return
            self.reason = reason
            waiters, self._waiters = self._waiters or [], None
        for wake in waiters:
            wake()

    def _add(self, wake: _Waiter) -> bool:
        with _LOCK:
            if self.reason is not None:
                return False
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(wake)
            return True

    def _remove(self, wake: _Waiter) -> None:
        with _LOCK:
            if self._waiters is not None and wake in self._waiters:
                self._waiters.remove(wake)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
