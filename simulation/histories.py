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
from jobq.job import Snapshot
from jobq.storage.contract import LINGER, GetAnswer
from simulation.callers import Callers
from simulation.notes import Notes
from simulation.workers import Workers
from simulation.world import QUEUES, SETTLING_IN, World

_WAITING = ("queued", "failing")
_ENDED = ("completed", "failed")
GOALS = (
    # Every transition.
    "a job was added",
    "a job was claimed",
    "a delayed job was claimed",
    "a job with priority was claimed",
    "a lease was extended",
    "a job was given back",
    "an attempt failed",
    *(f"a job ended as {state}" for state in (*_ENDED, "cancelled")),
    *(f"a job was rescued as {state}" for state in ("failing", "failed", "cancelled")),
    "a record was pruned",
    "a record was gone within a minute",
    "a lock was held",
    "a leader led",
    # Every state that a request can find, and every refusal.
    *(f"a cancel found {state}" for state in (*_WAITING, "processing", *_ENDED, "nothing")),
    *(f"a revive found {state}" for state in (*_WAITING, "processing", *_ENDED, "nothing")),
    *(f"a retain found {state}" for state in (*_WAITING, "processing", *_ENDED, "nothing")),
    "an extend was refused",
    "a settle was refused",
    "a lock was refused",
    # Everything that may be sent again.
    "an accepted add was sent again",
    *(f"a {verb} was sent again" for verb in ("claim", "settle", "cancel", "revive", "retain")),
    # Every fault.
    "a request was lost",
    "a reply was lost",
    "a call was late",
    "a call stalled for longer than a lease",
    "a hint was lost",
    "a hint came late",
    "a hint came twice",
    *(f"a {kind} crashed" for kind in ("worker", "reaper", "producer")),
    "a worker stopped",
    *(f"a {what} was cancelled" for what in ("call", "start", "stop")),
    "the storage's wall clock was set",
    "a machine's wall clock was set",
    # Every answer.
    *(f"enqueue gave {answer}" for answer in ("queued", "duplicate", "completed", "StorageUnavailableError")),
    *(f"cancel gave {status}" for status in ("cancelled", "cancelling", "processing", *_ENDED, "not_found")),
    *(f"retry gave {status}" for status in ("queued", "not_failed", "not_found")),
    *(f"update gave {status}" for status in ("updated", "not_terminal", "not_found")),
    *(f"look gave {state}" for state in ("queued", "processing", *_ENDED, "nothing")),
    *(
        f"{verb} gave {answer}"
        for verb in ("request", "wait")
        for answer in ("a result", "JobTimeoutError", "JobCancelledError", "JobFailedError", "MaxRetriesError")
    ),
    "request gave QueueClosedError",
    "a waiter was answered in good weather",
    "a sleep was ended by a look",
    "a sleeper was woken in good weather",
)
"""What must have happened, each at least once in a hundred seeds: else the simulation has proved nothing."""


_PLENTY = 40
"""Slots of a healthy worker: with so many every job that is due can be begun."""
_PATIENCE = 40.0
"""Virtual seconds of good weather within which every accepted job must end: five attempts, as slow as they get."""
_FORGOTTEN = 60.0
"""Seconds after an expiry within which the record must be gone."""


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


def until_broken(lines: list[str], most: int = 40) -> list[str]:
    """Return the last lines of a history up to the first broken rule, that one included."""
    end = next((number for number, line in enumerate(lines) if "!!!!" in line), len(lines))
    return lines[max(0, end - most) : end + 1]


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
    besides = (workers.watch_leaders(), world.set_clocks(), world.look_at_all())
    lives += map(asyncio.create_task, besides)
    await asyncio.sleep(world.lasting)
    world.clear_up()
    survivors = await _healthy(world, workers)
    reapers = [await workers.heal(name) for name in QUEUES]
    helping = [asyncio.create_task(_help(world, workers, callers, name)) for name in QUEUES if world.vigilant]
    await asyncio.gather(*lives)
    await _finish(world)
    if helping:
        await asyncio.gather(*helping)
        await _finish(world)
    for stop in reapers:
        await stop()
    await _forget(world)
    await _stop(world, survivors)
    before = asyncio.all_tasks()
    survivors = await _healthy(world, workers)
    for queue in survivors:
        await callers.probe(queue)
    await _stop(world, survivors)
    for name, ledger in world.ledgers.items():
        world.demand(not ledger.standing, name, "stop left claims behind:", *ledger.standing)
    await asyncio.sleep(2.0)  # Handlers that ignore cancellation go on for a while after the stop.
    left = asyncio.all_tasks() - before
    world.demand(not left, "stop left tasks behind:", *left)


async def _healthy(world: World, workers: Workers) -> list[Queue[Any, Any]]:
    """Start one healthy worker for each queue, which is enough to finish everything."""
    queues = []
    for name in QUEUES:
        node = world.node()
        world.ledgers[name].healthy.add(node.label)
        queues.append(workers.consumer(node, name, _PLENTY))
        await queues[-1].start()
    return queues


async def _help(world: World, workers: Workers, callers: Callers, name: str) -> None:
    """Be a healthy worker with few slots for a while: busy when others rely on it, or gone; and hand jobs over."""
    node, rng = world.node(), world.rng
    world.ledgers[name].healthy.add(node.label)
    queue = workers.consumer(node, name, rng.choice((1, 2)))
    await queue.start()
    until = world.now() + SETTLING_IN + rng.expovariate(0.3)
    while world.now() < until:
        await callers.hand_over(queue)
        await asyncio.sleep(rng.expovariate(1.0))
    world.ledgers[name].healthy.discard(node.label)  # What ignores the stop is left to its lease.
    await world.stop(queue, rng.choice((0.0, 2.0)))


async def _stop(world: World, queues: list[Queue[Any, Any]]) -> None:
    for queue in queues:
        await world.stop(queue, 1.0)


async def _forget(world: World) -> None:
    """See, in one of four histories, that expired records are removed though nobody asks for them."""
    if world.rng.random() < 0.25:
        await asyncio.sleep(_FORGOTTEN + LINGER)
        for name, ledger in world.ledgers.items():
            refs = ledger.absent_for(_FORGOTTEN)
            found = await world.storage.namespace(name).get(refs)
            left = {ref for ref, one in zip(refs, found, strict=True) if _generation(one) == ref.generation}
            world.demand(not left, name, "a minute after their expiry there are still records of", *left)
            world.seen["a record was gone within a minute"] += len(refs) - len(left)


def _generation(answer: GetAnswer) -> str | None:
    return answer.generation if isinstance(answer, Snapshot) else None


async def _finish(world: World) -> None:
    """Wait until every accepted job has ended."""
    begun = world.now()
    for name, ledger in world.ledgers.items():
        for run in list(ledger.runs.values()):
            while run.end is None and world.now() < begun + _PATIENCE:
                await asyncio.sleep(0.25)
            world.demand(run.end is not None, name, run.job.id, run.job.nonce, "never ended")
