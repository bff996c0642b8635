"""What `Queue.run` waits for: signals of the process, and any of several events."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_ECHO = 0.05
"""Seconds within which a repeated signal is the same request: timeout(1), for one, passes on what it gets twice."""


async def any_of(events: Sequence[asyncio.Event]) -> None:
    """Wait until one of the events is set."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def unless(asked: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do something, but give it up as soon as the event is set."""
    working, asking = asyncio.ensure_future(work), asyncio.ensure_future(asked.wait())
    try:
        await asyncio.wait([working, asking], return_when=asyncio.FIRST_COMPLETED)
    finally:
        asking.cancel()
        working.cancel()
        await asyncio.wait([working])
    if not working.cancelled():
        working.result()


@contextmanager
def interruptions(again: Callable[[], None]) -> Iterator[asyncio.Event]:
    """Set the event at the first SIGINT or SIGTERM; call ``again`` at others, but for mere echoes.

    Outside the main thread nothing is heard of signals.
    """
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    asked_at = loop.time()

    def interrupted() -> None:
        nonlocal asked_at
        if not asked.is_set():
            asked_at = loop.time()
            asked.set()
        elif loop.time() > asked_at + _ECHO:
            again()

    _Handlers.of(loop).add(loop, interrupted)
    try:
        yield asked
    finally:
        _Handlers.of(loop).remove(loop, interrupted)


class _Handlers:
    """Whoever is told of signals in one loop, which itself keeps one handler for each."""

    _instances: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, _Handlers]] = WeakKeyDictionary()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Handlers:
        return cls._instances.setdefault(loop, cls())

    def __init__(self) -> None:
        self._handlers: list[Callable[[], None]] = []
        self._before: dict[int, Any] = {}
        """What was done at each signal, and will be again."""

    def add(self, loop: asyncio.AbstractEventLoop, handler: Callable[[], None]) -> None:
        self._handlers.append(handler)
        if len(self._handlers) == 1:
            for number in _NUMBERS:
                with suppress(NotImplementedError, RuntimeError, ValueError):
                    before = signal.getsignal(number)
                    loop.add_signal_handler(number, self._call)
                    self._before[number] = before

    def remove(self, loop: asyncio.AbstractEventLoop, handler: Callable[[], None]) -> None:
        """The last one gives the signals back."""
        self._handlers.remove(handler)
        if not self._handlers:
            for number, before in self._before.items():
                loop.remove_signal_handler(number)
                if before is not None:  # None: it was set outside of Python, and cannot be set from here.
                    signal.signal(number, before)
            self._before.clear()

    def _call(self) -> None:
        for handler in tuple(self._handlers):
            handler()
