"""Process: which process this is, for whoever must not be used in a child of the one that made it."""

from __future__ import annotations

import logging
import os
import sys

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
