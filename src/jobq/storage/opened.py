"""Which database files this process has open, and which were open when it was forked.

SQLite keeps the locks on a file once for each process. The child of a fork inherits that memory without the locks, and
takes them for its own: whoever closes last by its own count then deletes the log that the other still writes to. A
connection that the child makes anew is no better. So in a child nothing may be opened that was open at the fork.
Source: https://www.sqlite.org/howtocorrupt.html
"""

from __future__ import annotations

import os
from typing import ClassVar

FileId = tuple[int, int]
"""A file's device and its number there."""


def file_id(path: str) -> FileId | None:
    """Return which file has this name, or None if none has."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


class OpenFiles:
    """The files of this process, each by whoever has it open."""

    _here: ClassVar[dict[object, FileId]] = {}
    _inherited: ClassVar[set[FileId]] = set()

    @classmethod
    def enter(cls, user: object, file: FileId) -> bool:
        """Take note that somebody opens a file; False if it was open when this process was forked."""
        if file in cls._inherited:
            return False
        cls._here[user] = file
        return True

    @classmethod
    def leave(cls, user: object) -> None:
        cls._here.pop(user, None)

    @classmethod
    def _forked(cls) -> None:
        cls._inherited.update(cls._here.values())
        cls._here.clear()


os.register_at_fork(after_in_child=OpenFiles._forked)
