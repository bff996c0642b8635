"""A producer: hands its jobs over at a steady pace, cancels some, and asks again whatever was not answered."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator

from jobq import JobStatus, Queue, State, StorageError, StorageFullError
from soak.audit import sources
from soak.part import Part
from soak.work import Done, Manner, Work, askers_of, id_of, kills_its_producer, options_of, work_of

_CALLERS = 24
_AGAIN_AFTER = 0.2
_PROBE_EVERY = 32
_LONGEST_BACKLOG = 200
"""Jobs. A longer one would tell of the speed of this machine, and hide how soon lost work begins again."""
_RUNNING_AFTER = 0.3
_ON_ITS_WAY = (0.01, 5.0)
"""Seconds: a producer is killed while its call is under way, or when it was done and nobody was told yet."""


async def produce(part: Part) -> None:
    queue = part.queue()
    await part.begin(queue.start)
    try:
        await _Producer(part, queue).run()
    finally:
        await queue.stop()


class _Producer:
    """One incarnation: it goes on where its forerunner was killed."""

    def __init__(self, part: Part, queue: Queue[Work, Done]) -> None:
        self._part = part
        self._queue = queue
        self._note = part.audit.note
        self._asked, self._told, self._cancelled = _history(part)
        self._numbers = iter(self._left())
        self._turn = asyncio.Lock()
        self._rate = part.plan.jobs / part.plan.chaos_seconds

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(_CALLERS):
                group.create_task(self._call(group))

    def _left(self) -> Iterator[int]:
        plan = self._part.plan
        for number in range(plan.jobs):
            if number in self._told:
                if number not in self._cancelled and work_of(plan, number).manner.cancelled:
                    yield number
            elif self._part.index in askers_of(plan, number):
                yield number

    async def _call(self, group: asyncio.TaskGroup) -> None:
        for number in self._numbers:
            work = work_of(self._part.plan, number)
            if number not in self._told:
                async with self._turn:
                    await self._keep_pace(number)
                await self._ask(work)
            if work.manner.cancelled:
                group.create_task(self._cancel(work))

    async def _keep_pace(self, number: int) -> None:
        due = self._part.plan.begins_at + number / self._rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        # A look at an older job tells how long the backlog is, since equals run in the order in which they came.
        probes = number % _PROBE_EVERY < self._part.plan.producers and number >= _LONGEST_BACKLOG
        while probes and not await self._began(number - _LONGEST_BACKLOG):
            await asyncio.sleep(_AGAIN_AFTER)

    async def _began(self, number: int) -> bool:
        """Whether a job has left the queue's line; one that is not there, or not due, does not stand in it."""
        status = await self._status(number)
        return status is None or status.state is not State.QUEUED or status.run_at > time.time()

    async def _status(self, number: int) -> JobStatus[Done] | None:
        while True:
            try:
                return await self._queue.get_status(id_of(number))
            except StorageError as error:
                self._part.report(error)
                await asyncio.sleep(_AGAIN_AFTER)

    async def _ask(self, work: Work) -> None:
        number = work.number
        if number not in self._asked and kills_its_producer(self._part.plan, number):
            await self._die_asking(work)
        while True:
            self._note("ask", number)
            try:
                result = await self._queue.enqueue(id_of(number), work, **options_of(work))
            except StorageFullError:
                self._note("full", number)
            except StorageError as error:
                self._note("unknown", number, error.code)
            else:
                self._note("told", number, result.status, result.existing_state or "-")
                return
            await asyncio.sleep(_AGAIN_AFTER)

    async def _die_asking(self, work: Work) -> None:
        """Be killed while a call is under way, and hear no answer."""
        self._note("ask", work.number)
        call = asyncio.create_task(self._queue.enqueue(id_of(work.number), work, **options_of(work)))
        await asyncio.wait([call], timeout=random.choice(_ON_ITS_WAY))
        os.kill(os.getpid(), signal.SIGKILL)

    async def _cancel(self, work: Work) -> None:
        running = work.manner is Manner.STOPPED
        while running and not await self._began(work.number):
            await asyncio.sleep(_RUNNING_AFTER)
        while True:
            self._note("cancel", work.number)
            try:
                result = await self._queue.cancel(id_of(work.number), running=running)
            except StorageError as error:
                self._note("cancel-unknown", work.number, error.code)
                await asyncio.sleep(_AGAIN_AFTER)
            else:
                self._note("cancel-told", work.number, result.status)
                return


def _history(part: Part) -> tuple[set[int], set[int], set[int]]:
    """Return for which jobs earlier incarnations asked, of which they were told, and which cancels were answered."""
    asked, told, cancelled = set[int](), set[int](), set[int]()
    for source in sources(part.directory, part.name):
        for line in source.lines():
            if line.fact == "ask":
                asked.add(int(line.values[0]))
            elif line.fact == "told":
                told.add(int(line.values[0]))
            elif line.fact == "cancel-told":
                cancelled.add(int(line.values[0]))
    return asked, told, cancelled
