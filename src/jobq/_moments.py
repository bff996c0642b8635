"""Moments: when something happens that must happen now and then, such as an idle worker's look for work.

The queues of a process do it at the same moments: one turn of the loop, one write and one transaction then serve many
of them. Different processes do it at different ones, which their labels decide.
"""

from __future__ import annotations

import math
import zlib

_PER_SLEEP = 10
_LOOK_ALL_THE_SAME = 60.0


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


class Looks:
    """When an idle worker looks for work although nobody has woken it.

    At an empty queue of a storage that misses nothing (``vigilant``) it looks once a minute all the same, as a net for
    our own mistakes.
    """

    __slots__ = ("_at_nothing", "_usual")

    def __init__(self, block_timeout: float, label: str, *, vigilant: bool) -> None:
        self._usual = Moments(block_timeout, label)
        seldom = max(block_timeout, _LOOK_ALL_THE_SAME)
        self._at_nothing = Moments(seldom, label) if vigilant else self._usual

    def next_in(self, now: float, due_in: float) -> float:
        """Return how long to sleep if something falls due in so many seconds; with inf nothing ever does."""
        looks = self._at_nothing if due_in == math.inf else self._usual
        return min(looks.next_in(now), due_in)
