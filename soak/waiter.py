"""A waiter: waits for many jobs at once, some of its own and some of the producers'."""

from __future__ import annotations

import asyncio
import time

from jobq import (
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    JobTimeoutError,
    Queue,
    StorageError,
)
from soak.audit import sources
from soak.part import Part
from soak.work import Done, Manner, Work, id_of, is_waited_for, options_of, work_of

_PATIENCE = 60.0
"""Seconds; a waiter that has to wait so long counts as left alone."""
_AGAIN_AFTER = 0.3
_MOST_EARLY = 50
"""Waits for jobs that nobody has handed over yet; with so many the waiter goes no further ahead of the producers."""
_ANSWERS = frozenset({"answer", "answer-failed", "answer-cancelled", "timeout"})


async def wait(part: Part) -> None:
    queue = part.queue()
    await part.begin(queue.start)
    try:
        await _Waiter(part, queue).run()
    finally:
        await queue.stop()


class _Waiter:
    """One incarnation: it waits again for what its forerunner was waiting for."""

    def __init__(self, part: Part, queue: Queue[Work, Done]) -> None:
        self._part = part
        self._queue = queue
        self._note = part.audit.note
        self._early = asyncio.Semaphore(_MOST_EARLY)

    async def run(self) -> None:
        plan = self._part.plan
        answered, rate = _history(self._part), plan.jobs / plan.chaos_seconds
        async with asyncio.TaskGroup() as group:
            for number in range(self._part.index, plan.jobs, plan.waiters):
                if number not in answered and is_waited_for(plan, number):
                    await asyncio.sleep(max(0.0, plan.begins_at + number / rate - time.monotonic()))
                    async with self._early:
                        pass
                    group.create_task(self._wait(work_of(plan, number)))

    async def _wait(self, work: Work) -> None:
        while not await self._is_answered(work):
            pass

    async def _is_answered(self, work: Work) -> bool:
        number = work.number
        self._note("wait", number)
        try:
            done = await self._result(work)
        except JobNotFoundError:
            self._note("absent", number)
            if not work.manner.cancelled:  # It will be asked for, by a producer that is late.
                async with self._early:
                    await asyncio.sleep(_AGAIN_AFTER)
                return False
        except JobTimeoutError:
            self._note("timeout", number)
        except JobFailedError as error:
            self._note("answer-failed", number, error.error.code or error.error.type)
        except JobCancelledError:
            self._note("answer-cancelled", number)
        except StorageError as error:
            self._note("wait-unknown", number, error.code)
            await asyncio.sleep(_AGAIN_AFTER)
            return False
        else:
            self._note("answer", number, done.token)
        return True

    async def _result(self, work: Work) -> Done:
        id = id_of(work.number)
        if work.manner is not Manner.REQUESTED:
            return await self._queue.wait(id, timeout=_PATIENCE)
        return await self._queue.enqueue_and_wait(id, work, timeout=_PATIENCE, **options_of(work))


def _history(part: Part) -> set[int]:
    """Return for which jobs earlier incarnations had an answer."""
    lines = (line for source in sources(part.directory, part.name) for line in source.lines())
    return {int(line.values[0]) for line in lines if line.fact in _ANSWERS}
