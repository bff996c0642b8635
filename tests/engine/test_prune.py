"""Pruning: all that there is, some at a time, and less and less often where nothing happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any, cast

import pytest

from jobq import StorageUnavailableError
from jobq._prune import Pruner, prune
from jobq.storage.contract import LINGER, Namespace
from jobq.testing import run_virtual


class Pruned:
    """A queue of which so many records are removed at each call, and the times of the calls."""

    def __init__(self, removed: Iterator[int]) -> None:
        self._removed = removed
        self.asked_at: list[float] = []
        self.trouble: Exception | None = None

    async def prune(self, limit: int) -> int:
        assert limit == 1000
        self.asked_at.append(asyncio.get_running_loop().time())
        if self.trouble is not None:
            raise self.trouble
        return next(self._removed, 0)


@pytest.mark.parametrize(
    ("removed", "found", "calls"),
    [([0], False, 1), ([7], True, 1), ([1000, 0], True, 2), ([1000, 1000, 3], True, 3)],
)
def test_everything_is_removed(removed: list[int], found: bool, calls: int) -> None:
    """Also if the last part was a full one, something was found."""
    queue = Pruned(iter(removed))

    assert run_virtual(lambda: prune(cast(Namespace, queue))) is found
    assert len(queue.asked_at) == calls


def _pauses(queue: Pruned, *, needed: bool = False) -> list[float]:
    """Prune for ten virtual minutes, and return how long it was from call to call."""

    async def main() -> None:
        pruner = Pruner(cast(Any, queue), queue="q", label="host-1", logger=logging.getLogger("jobq"))
        task = asyncio.create_task(pruner.keep_pruning())
        for _ in range(600):
            pruner.needed = needed
            await asyncio.wait([task], timeout=1.0)
        task.cancel()
        await asyncio.wait([task])

    run_virtual(main)
    return [later - sooner for sooner, later in zip([0.0, *queue.asked_at], queue.asked_at, strict=False)]


def test_an_idle_queue_is_pruned_less_and_less_often() -> None:
    """But so often that what has expired is gone within a minute, although it lingers."""
    assert _pauses(Pruned(iter([])))[:8] == pytest.approx([15, 30, *[45] * 6], rel=0.1)
    assert 45 + LINGER < 60


@pytest.mark.parametrize("why", ["work", "records", "trouble", "bug"])
def test_a_queue_with_something_to_prune_is_pruned_soon_again(why: str) -> None:
    """After work, after something was found, if the storage was away, and if it raised what none should."""
    queue = Pruned(iter([5] * 99 if why == "records" else []))
    if why == "trouble":
        queue.trouble = StorageUnavailableError("away")
    if why == "bug":
        queue.trouble = ConnectionResetError("a bug")

    assert all(13.0 < pause < 15.1 for pause in _pauses(queue, needed=why == "work"))
    assert len(queue.asked_at) >= 39
