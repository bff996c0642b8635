"""Timeouts: any number of deadlines behind one timer of the loop.

A timer per job or waiter costs 2 µs to set and cancel; a set per 10 ms of deadlines costs a tenth of it. A deadline is
kept to within that grain, never early.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from typing import Protocol

_GRAIN = 0.01


class Expiring(Protocol):
    """Something that is told when its time is up."""

    def expire(self) -> None: ...


class Timeouts:
    """Calls ``expire`` of each item once its deadline has passed, unless it is discarded before."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: dict[int, dict[Expiring, None]] = {}
        """Dicts as sets in order: what was added first expires first, so that a history can be repeated."""
        self._ticks: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed = -1
        self._sweep_at = 1024

    def add(self, item: Expiring, seconds: float) -> int:
        """Expire ``item`` after ``seconds``. The answer is what `discard` wants."""
        tick = math.ceil((self._loop.time() + seconds) / _GRAIN)
        items = self._items.get(tick)
        if items is None:
            if len(self._items) >= self._sweep_at:
                self._sweep()
            self._items[tick] = {item: None}
            heapq.heappush(self._ticks, tick)
            if self._timer is None or tick < self._armed:
                self._arm()
        else:
            items[item] = None
        return tick

    def discard(self, item: Expiring, tick: int) -> None:
        items = self._items.get(tick)
        if items is not None:
            items.pop(item, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._items.clear()
        self._ticks.clear()

    def _sweep(self) -> None:
        """Drop the sets that are empty; the work is paid for by those that came since the last time."""
        self._items = {tick: items for tick, items in self._items.items() if items}
        self._ticks = sorted(self._items)
        self._sweep_at = 2 * len(self._items) + 1024

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = self._ticks[0]
        self._timer = self._loop.call_at(self._armed * _GRAIN, self._fire)

    def _fire(self) -> None:
        self._timer = None
        # Its own tick is due, even where a division of floats comes out a little below it.
        now = max(self._armed, math.floor(self._loop.time() / _GRAIN))
        while self._ticks and (self._ticks[0] <= now or not self._items[self._ticks[0]]):
            for item in self._items.pop(heapq.heappop(self._ticks)):
                item.expire()
        if self._ticks and self._timer is None:
            self._arm()
