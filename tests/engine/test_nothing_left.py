"""The looks that every test of the engine ends with see what they should see."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.engine.conftest import opened
from tests.engine.scenes import alone, in_loop, in_virtual_time


def test_an_open_descriptor_is_seen() -> None:
    """By its number and by what it stands for."""
    before = opened()
    reading, writing = os.pipe()

    found = {number for number, _ in opened() - before}

    os.close(reading)
    os.close(writing)
    assert found == {str(reading), str(writing)}
    assert opened() == before


@in_loop
async def test_a_task_that_does_not_end_is_seen() -> None:
    """`asyncio.run` would cancel it without a word."""
    task = asyncio.create_task(asyncio.Event().wait())

    with pytest.raises(AssertionError, match="left tasks behind"):
        await alone()
    task.cancel()


def test_a_task_that_does_not_end_is_seen_in_virtual_time() -> None:
    """Three virtual seconds later, which cost nothing."""
    tasks = set()

    async def main() -> None:
        tasks.add(asyncio.create_task(asyncio.Event().wait()))

    with pytest.raises(AssertionError, match="left tasks behind"):
        in_virtual_time(main)
