"""How commands end: exit codes, and the error that carries one."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes. When adding one, also extend `HELP`, which every ``--help`` prints."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    FAILED = 4
    NOT_NOW = 5
    INTERRUPTED = 130
    """128 + SIGINT."""
    OUTPUT_CLOSED = 141
    """128 + SIGPIPE."""
    TERMINATED = 143
    """128 + SIGTERM."""


HELP = (
    ("0", "done; for a worker: stopped as asked, or nothing left to do"),
    ("1", "an error, told in one line on stderr"),
    ("2", "wrong usage"),
    ("3", "no job holds that id: never added, cancelled, or expired"),
    ("4", "get: the job has failed"),
    ("5", "get: the job has not ended; cancel: the job is past cancelling"),
    ("130", "interrupted (Ctrl-C); for a worker: aborted by a second signal"),
    ("141", "the output was closed before everything was written"),
    ("143", "terminated; for a worker: aborted by a second signal"),
)


class CommandError(Exception):
    """A command cannot go on: one line for stderr, and the exit code."""

    def __init__(self, message: str, exit: Exit = Exit.ERROR) -> None:
        super().__init__(message)
        self.exit = exit
