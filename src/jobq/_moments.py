"""Moments: when something happens that must happen now and then, such as an idle worker's look for work.

The queues of a process do it at the same moments: one turn of the loop, one write and one transaction then serve many
of them. Different processes do it at different ones, which their labels decide.
"""

from __future__ import annotations

import zlib

_PER_SLEEP = 10


class Moments:
    """The moments at which something happens that may wait for ``longest`` seconds, but for no longer."""

    __slots__ = ("_apart", "_longest", "_offset")

    def __init__(self, longest: float, label: str) -> None:
        self._longest = longest = max(longest, 1e-9)  # The smallest floats are 0 when divided.
        self._apart = longest / _PER_SLEEP
        self._offset = zlib.crc32(label.encode()) / 2**32 * self._apart

    def next_in(self, now: float) -> float:
        """Return how long to sleep: at least nine tenths of the longest sleep."""
        return self._longest - (now + self._longest - self._offset) % self._apart
