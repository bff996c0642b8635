"""Timeouts: any number of deadlines behind one timer, each in time and in order, and nothing kept of what ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from jobq._timeouts import Timeouts
from tests.engine.scenes import in_virtual_time, passing

HOUR = 3600.0


class Noted:
    """Notes when it expires, and then does what it was made for."""

    def __init__(self, expired: list[tuple[str, float]], name: str, then: Callable[[], None] = lambda: None) -> None:
        self._expired = expired
        self._name = name
        self._then = then

    def expire(self) -> None:
        self._expired.append((self._name, asyncio.get_running_loop().time()))
        self._then()


def test_nothing_is_kept_of_long_timeouts_that_ended_at_once() -> None:
    """A hundred waits a second with an hour each would else be remembered for an hour."""

    async def main() -> int:
        timeouts = Timeouts()
        for number in range(20_000):
            item = Noted([], str(number))
            timeouts.discard(item, timeouts.add(item, HOUR + 0.01 * number))
        kept = len(timeouts._items)
        timeouts.close()
        return kept

    assert in_virtual_time(main) <= 1024


def test_those_that_wait_outlast_a_sweep_and_expire_in_order() -> None:
    """Those that a sweep finds in use, and those that came before and after it."""

    async def main() -> list[tuple[str, float]]:
        timeouts, expired = Timeouts(), list[tuple[str, float]]()
        timeouts.add(Noted(expired, "first"), 1.0)
        _fill_and_discard(timeouts, 1500)
        timeouts.add(Noted(expired, "third"), 3.0)
        _fill_and_discard(timeouts, 1500)
        timeouts.add(Noted(expired, "second"), 2.0)
        await passing(5)
        timeouts.close()
        return expired

    expired = in_virtual_time(main)
    assert [name for name, _ in expired] == ["first", "second", "third"]
    assert [at for _, at in expired] == pytest.approx([1, 2, 3], abs=0.02)


def test_a_sweep_while_others_expire_loses_none() -> None:
    """Whoever is told of its end may begin a thousand new waits; those due at once are told as well."""

    async def main() -> list[str]:
        timeouts, expired = Timeouts(), list[tuple[str, float]]()

        def crowd() -> None:
            timeouts.add(Noted(expired, "begun meanwhile"), 0.5)
            _fill_and_discard(timeouts, 3000)
            timeouts.add(Noted(expired, "due at once"), 0.0)

        for name, seconds in (("before", 1.0), ("sweeps", 1.0), ("alike", 1.0), ("next", 1.01), ("later", 2.0)):
            timeouts.add(Noted(expired, name, crowd if name == "sweeps" else lambda: None), seconds)
        await passing(3)
        timeouts.close()
        return [name for name, _ in expired]

    told = in_virtual_time(main)
    assert told[:3] == ["before", "sweeps", "alike"]
    assert sorted(told[3:5]) == ["due at once", "next"]
    assert told[5:] == ["begun meanwhile", "later"]


def _fill_and_discard(timeouts: Timeouts, count: int) -> None:
    for number in range(count):
        item = Noted([], str(number))
        timeouts.discard(item, timeouts.add(item, HOUR + 0.01 * number))
