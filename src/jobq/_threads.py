"""Daemon threads for plain functions: as many as the worker has slots, made when needed.

The loop's default executor has too few threads for a worker's slots, and joins them at exit: a function that never
returns would keep the process alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

from jobq._process import Process, start_thread
from jobq.errors import StorageUnavailableError

Ended = tuple[Any, BaseException | None]
"""What a function returned, and what it raised instead: a future itself refuses some exceptions, as StopIteration."""
_Call = tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Ended]]


class NoThreadError(StorageUnavailableError):
    """A function was not called, since no thread could be had for it."""

    def __init__(self, error: StorageUnavailableError, *, first: bool) -> None:
        super().__init__(str(error), code=error.code)
        self.first = first
        """Whether the last attempt to start a thread succeeded."""


class Threads:
    """Runs functions, each in a thread of its own at that time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._idle = 0
        self._count = 0
        self._short = False
        self._lock = threading.Lock()

    def submit(self, function: Callable[..., Any], argument: object) -> asyncio.Future[Ended]:
        """Call ``function(argument)`` in a thread, with a copy of the current context. It cannot be cancelled.

        Raises:
            NoThreadError: none is free, and no further one can be started. It was not called.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ended] = loop.create_future()
        context = contextvars.copy_context()
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                self._grow()
        self._calls.put((lambda: context.run(function, argument), loop, future))
        return future

    def close(self) -> None:
        """Let idle threads end; busy ones end when their function returns."""
        for _ in range(self._count):
            self._calls.put(None)

    def _grow(self) -> None:
        try:
            start_thread(self._work, name=f"{self._name}-{self._count + 1}")
        except StorageUnavailableError as error:
            first, self._short = not self._short, True
            raise NoThreadError(error, first=first) from error
        self._short = False
        self._count += 1

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, loop, future = call
            value, error, process = None, None, Process.id
            try:
                try:
                    value = function()
                finally:
                    Process.end_child_of(process)
            except BaseException as raised:
                error = raised
            with self._lock:
                self._idle += 1
            with contextlib.suppress(RuntimeError):  # The loop was closed: nobody waits for the value.
                loop.call_soon_threadsafe(_finish, future, (value, error))
            del call, function, future, value, error


def _finish(future: asyncio.Future[Ended], ended: Ended) -> None:
    if not future.done():
        future.set_result(ended)
