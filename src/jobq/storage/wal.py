"""How far SQLite's write-ahead log is filled. Its size does not tell: it is kept, and written anew from its start.

To overwrite is much cheaper than to append, above all with an fsync: the file system has nothing else to record.

A log is a header of 32 bytes, then frames: 24 bytes and a page each. Header and frames carry the same two salts, and
others once the log begins anew, so a frame that lies far behind tells by its salts whether the log has come that far.
Source: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import os
from pathlib import Path

_HEADER, _FRAME = 32, 24
_SALTS, _SALTS_OF_HEADER, _SALTS_OF_FRAME = 8, 16, 8


class Log:
    """The log of one open database.

    It holds no locks, and nobody else's are lost with it: SQLite locks other files.
    """

    def __init__(self, path: Path, *, page_size: int, every: int) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._frame = _FRAME + page_size
        self._every = max(1, every // self._frame)
        self._salts = b""
        self._threshold = self._every

    def grown(self) -> bool:
        """Tell whether the log has grown by ``every`` bytes since it began, or since the last checkpoint."""
        salts = os.pread(self._file, _SALTS, _SALTS_OF_HEADER)
        if salts != self._salts:
            self._salts, self._threshold = salts, self._every
        offset = _HEADER + (self._threshold - 1) * self._frame + _SALTS_OF_FRAME
        return bool(salts) and os.pread(self._file, _SALTS, offset) == salts

    def checkpointed(self, frames: int) -> None:
        """Take note that the log had so many frames, and that as many as possible were copied."""
        self._threshold = frames + self._every

    def close(self) -> None:
        os.close(self._file)
