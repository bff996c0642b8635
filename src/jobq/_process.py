"""Process: which process this is, for whoever must not be used in a child of the one that made it."""

from __future__ import annotations

import os


class Process:
    """This process. The system is asked at the start and after each fork, because every question is a system call."""

    id = os.getpid()

    @classmethod
    def _look(cls) -> None:
        cls.id = os.getpid()


os.register_at_fork(after_in_child=Process._look)
