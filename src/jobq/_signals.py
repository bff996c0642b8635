"""What `Queue.run` waits for: signals of the process, and any of several events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

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


def interruption(asked: asyncio.Event, again: Callable[[], None]) -> Callable[[], None]:
    """Return what to do at a signal: set ``asked`` at the first, call ``again`` at others, but for mere echoes."""
    loop = asyncio.get_running_loop()
    asked_at = loop.time()

    def interrupted() -> None:
        nonlocal asked_at
        if not asked.is_set():
            asked_at = loop.time()
            asked.set()
        elif loop.time() > asked_at + _ECHO:
            again()

    return interrupted


def install(loop: asyncio.AbstractEventLoop, number: int, handler: Callable[[], None]) -> bool:
    """Call ``handler`` at a signal; False where that cannot be, as outside the main thread."""
    try:
        loop.add_signal_handler(number, handler)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True
