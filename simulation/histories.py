"""Histories: many seeds lived through, and whether enough has happened in them to prove anything."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from jobq import Queue
from simulation.callers import Callers
from simulation.notes import Notes
from simulation.workers import Workers
from simulation.world import QUEUES, World

GOALS = (
    "a job was added",
    "an accepted add was sent again",
    "a job was claimed",
    "a claim was sent again",
    "a lease was extended",
    "an extend was refused",
    "a settle was refused",
    "a settle was sent again",
    "a job was given back",
    "an attempt failed",
    "a job was rescued",
    "a job ended as completed",
    "a job ended as failed",
    "a job ended as cancelled",
    "a cancel was sent again",
    "a cancel found processing",
    "a revive found failed",
    "a revive was sent again",
    "a retain was sent again",
    "a record was pruned",
    "a lock was refused",
    "a leader led",
    "a delayed job was claimed",
    "a job with priority was claimed",
    "a worker crashed",
    "a worker stopped",
    "a reaper crashed",
    "a producer crashed",
    "a call was cancelled",
    "a start was cancelled",
    "a stop was cancelled",
    "a hint was lost",
    "a hint came late",
    "a hint came twice",
    "the storage's wall clock was set",
    "a machine's wall clock was set",
    "enqueue gave completed",
    "enqueue gave duplicate",
    "enqueue gave StorageUnavailableError",
    "request gave a result",
    "request gave JobTimeoutError",
    "request gave JobCancelledError",
    "request gave MaxRetriesError",
    "request gave QueueClosedError",
    "cancel gave cancelling",
    "a waiter was answered in good weather",
)
"""What must have happened, each at least once in a hundred seeds: else the simulation has proved nothing."""


_PATIENCE = 90.0
"""Virtual seconds of good weather within which every accepted job must end."""


class Outcome(NamedTuple):
    """What one seed came to."""

    seed: int
    broken: list[str]
    seen: Counter[str]
    cpu: float
    """Seconds of the processor that it took."""


def tell(seed: int, lasting: float | None = None) -> Notes:
    """Live through one history, or only so many seconds of its bad weather; they are the same in both."""
    # What a history leaves behind is collected at its end, when nobody minds that queues of dead processes were never
    # stopped. Nothing else is looked at, which would take longer than the history.
    gc.freeze()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            notes = _lived(seed, lasting)
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return notes


def _lived(seed: int, lasting: float | None) -> Notes:
    world = World(seed, lasting)
    world.run(_history)
    return world.notes


def live(seed: int) -> Outcome:
    """Live through one history."""
    begun = time.process_time()
    notes = tell(seed)
    return Outcome(seed, notes.broken, notes.seen, time.process_time() - begun)


def shortened(seed: int) -> float:
    """Return the fewest seconds of bad weather after which the history of a broken seed is still broken."""
    cuts = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
    return next(lasting for lasting in cuts if lasting == cuts[-1] or tell(seed, lasting).broken)


def live_through(seeds: range, processes: int) -> Iterator[Outcome]:
    """Live through many histories, in several processes."""
    if processes == 1:
        logging.disable(logging.CRITICAL)
        yield from map(live, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes, _be_quiet) as pool:
        yield from pool.imap_unordered(live, seeds, chunksize=8)


def missed(seen: Counter[str], seeds: int) -> list[str]:
    """Return the goals that did not come up often enough."""
    least = max(1, seeds // 100)
    return [f"{goal}: {seen[goal]} times, at least {least} wanted" for goal in GOALS if seen[goal] < least]


def _be_quiet() -> None:
    """Log nothing, for that connections break is the point; and leave an interruption to the process that began."""
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


async def _history(world: World) -> None:
    workers, callers = Workers(world), Callers(world)
    lives = [asyncio.create_task(world.keep_up(life, kind)) for life, kind in (*workers.lives, *callers.lives)]
    lives += [asyncio.create_task(workers.watch_leaders()), asyncio.create_task(world.set_clocks())]
    await asyncio.sleep(world.lasting)
    world.clear_up()
    survivors = await _healthy(world, workers)
    await asyncio.gather(*lives)
    await _finish(world)
    await _stop(world, survivors)
    before = asyncio.all_tasks()
    survivors = await _healthy(world, workers)
    for queue in survivors:
        await callers.probe(queue)
    await _stop(world, survivors)
    await asyncio.sleep(2.0)  # Handlers that ignore cancellation go on for a while after the stop.
    left = asyncio.all_tasks() - before
    world.demand(not left, "stop left tasks behind:", *left)


async def _healthy(world: World, workers: Workers) -> list[Queue[Any, Any]]:
    """Start one healthy worker for each queue, which is enough to finish everything."""
    queues = [workers.consumer(world.node(), name) for name in QUEUES]
    for queue in queues:
        await queue.start()
    return queues


async def _stop(world: World, queues: list[Queue[Any, Any]]) -> None:
    for queue in queues:
        await world.stop(queue, 1.0)


async def _finish(world: World) -> None:
    """Wait until every accepted job has ended."""
    begun = world.now()
    for name, ledger in world.ledgers.items():
        for run in ledger.runs.values():
            while run.end is None and world.now() < begun + _PATIENCE:
                await asyncio.sleep(0.25)
            world.demand(run.end is not None, name, run.job.id, run.job.nonce, "never ended")
