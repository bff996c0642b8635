"""``jobq worker``: serve a queue until a signal, and end at once on the second."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from types import FrameType
from typing import Any

from jobq.cli.exits import Exit
from jobq.cli.target import load_queue
from jobq.cli.text import plain

logger = logging.getLogger("jobq.cli")

_ECHO = 0.05
"""A signal that comes as soon after another is the same one, forwarded by a wrapper such as timeout(1), in seconds."""


def serve(target: str, *, burst: bool) -> int:
    """Serve the queue that ``target`` names; return the exit code."""
    queue = load_queue(target)
    # The application's own logging, if its module set one up, stays as it is.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    signals = _Signals()
    queue.on("started", signals.watch)
    queue.on("started", lambda: logger.info("jobq worker serves %s%s", plain(target), " until empty" if burst else ""))
    asyncio.run(queue.run(until_empty=burst))
    logger.info("jobq worker stopped serving %s", plain(target))
    return Exit.DONE


class _Signals:
    """Counts signals beside whoever else handles them; the second one ends the process.

    It must not depend on the event loop, because a handler may block it. Python runs this handler between two
    instructions of the main thread; the loop hears of the signal as well, through its wake-up descriptor.
    """

    def __init__(self) -> None:
        self._first_at: float | None = None

    def watch(self) -> None:
        """Put this before the handlers that `Queue.run` has installed by the time it emits ``started``."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._chained(signal.getsignal(number)))
            signal.siginterrupt(number, False)

    def _chained(self, previous: Any) -> Any:
        def handle(number: int, frame: FrameType | None) -> None:
            self._count(number)
            if callable(previous):
                previous(number, frame)

        return handle

    def _count(self, number: int) -> None:
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
            _write("jobq: stopping; running jobs may finish, a second signal aborts\n")
        elif now - self._first_at > _ECHO:
            _write("jobq: aborted; other workers take its jobs over when their leases lapse\n")
            # Nothing is given back or closed: that is what a lease is for.
            os._exit(128 + number)


def _write(line: str) -> None:
    """Write past Python's buffers, which the interrupted code may hold."""
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
