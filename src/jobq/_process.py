"""Which process this is, for whoever must not be used in a child of the one that made it, and its threads."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable

from jobq.errors import StorageUnavailableError

_log = logging.getLogger("jobq")


class Process:
    """This process. The system is asked at the start and after each fork, because every question is a system call."""

    id = os.getpid()

    @classmethod
    def _look(cls) -> None:
        cls.id = os.getpid()

    @classmethod
    def end_child_of(cls, parent: int) -> None:
        """End this process if it is a child that was forked within a handler, and now comes out of that handler.

        It would go on in a copy of its parent's event loop, and take away wake-ups and replies that are for the parent.
        """
        if cls.id == parent:
            return
        error = sys.exc_info()[1]
        if isinstance(error, SystemExit):
            os._exit(error.code if isinstance(error.code, int) else int(error.code is not None))
        _log.error("a handler's forked child ends where its handler ended; end it with os._exit", exc_info=error)
        os._exit(1)


os.register_at_fork(after_in_child=Process._look)


def start_thread(target: Callable[..., object], *arguments: object, name: str) -> threading.Thread:
    """Start a daemon: an interpreter that exits without a stop does not wait for it.

    Raises:
        StorageUnavailableError: the system gives no further thread now.
    """
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise StorageUnavailableError(
            f"no thread can be started ({error}): raise the limit of processes or memory, then try again",
            code="NO_THREAD",
        ) from error
    return thread
