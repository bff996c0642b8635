"""What the hostile tests share: a bench on a directory, and hands that reach into its database from outside."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

from jobq import FileStorage, Job, State, StorageError
from jobq.testing import Bench, ManualClock, StorageCase

MORE = int(os.environ.get("JOBQ_EXAMPLES", "1"))
"""How many times the usual number of examples are tried."""
T = TypeVar("T")
DATABASE = "jobq.sqlite3"
LONGEST = 40.0
"""Seconds after which a test counts as hanging."""


def examples(usual: int) -> settings:
    """Try as many examples, times what the environment says in JOBQ_EXAMPLES."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=usual * MORE, deadline=None, suppress_health_check=checks)


@asynccontextmanager
async def benched(directory: Path) -> AsyncIterator[Bench]:
    """A bench on a directory, with a clock set by hand."""
    clock = ManualClock()
    storage = FileStorage(directory, durability="normal", clock=clock)
    await storage.open()
    bench = Bench(StorageCase(), clock, storage)
    try:
        yield bench
    finally:
        await bench.close()


def on_a_new_directory(play: Callable[[Bench, Path], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a bench of its own: one example of many in a test."""

    async def bounded(directory: Path) -> T:
        async with asyncio.timeout(LONGEST), benched(directory) as bench:
            return await play(bench, directory)

    with tempfile.TemporaryDirectory(prefix="jobq-") as directory:
        return asyncio.run(bounded(Path(directory)))


def tamper(directory: Path, statement: str, *values: object) -> int:
    """Write to the database as another program could, and return how many rows that changed."""
    with closing(sqlite3.connect(directory / DATABASE, isolation_level=None, timeout=5.0)) as connection:
        return connection.execute(statement, values).rowcount


async def prepare(bench: Bench, id: str, state: State) -> None:
    """Leave a job in a state."""
    ways = {
        State.QUEUED: bench.add,
        State.PROCESSING: bench.processing,
        State.FAILING: bench.failing,
        State.COMPLETED: bench.completed,
        State.FAILED: bench.failed,
    }
    await ways[state](id)


async def answered(call: Awaitable[Any]) -> Any:
    """Return an answer, or what was raised instead."""
    try:
        return await call
    except Exception as error:
        return error


def typed(answer: Any) -> bool:
    """Tell whether there is nothing in an answer but answers and errors of storages."""
    parts = answer if isinstance(answer, list) else [answer]
    return all(not isinstance(part, BaseException) or isinstance(part, StorageError) for part in parts)


async def double(job: Job[int]) -> int:
    return 2 * job.payload
