"""What `Queue.run` waits for: signals of the process, and any of several events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence


async def any_of(events: Sequence[asyncio.Event]) -> None:
    """Wait until one of the events is set."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def install(loop: asyncio.AbstractEventLoop, number: int, handler: Callable[[], None]) -> bool:
    """Call ``handler`` at a signal; False where that cannot be, as outside the main thread."""
    try:
        loop.add_signal_handler(number, handler)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True
