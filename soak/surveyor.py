"""The surveyor: once all is quiet, asks the storage about every job, and waits for those that have not ended."""

from __future__ import annotations

import asyncio
import time

from jobq import JobStatus, Queue, StorageError
from soak.part import Part
from soak.work import Done, Work, id_of

_AT_ONCE = 1000
_PATIENCE = 30.0
"""Seconds without any progress, after which what has not ended counts as lost."""


async def survey(part: Part) -> None:
    queue = part.queue()
    await part.begin(queue.start)
    try:
        await _survey(part, queue)
    finally:
        await queue.stop()


async def _survey(part: Part, queue: Queue[Work, Done]) -> None:
    left, until = list(range(part.plan.jobs)), time.monotonic() + _PATIENCE
    while left:
        patient, open_before, left_now = time.monotonic() < until, len(left), list[int]()
        for begin in range(0, len(left), _AT_ONCE):
            numbers = left[begin : begin + _AT_ONCE]
            statuses = await asyncio.gather(*(_look(part, queue, number) for number in numbers))
            for number, status in zip(numbers, statuses, strict=True):
                if status is not None and not status.state.terminal and patient:
                    left_now.append(number)
                else:
                    _note(part, number, status)
        left = left_now
        if len(left) < open_before:
            until = time.monotonic() + _PATIENCE
        if left:
            await asyncio.sleep(0.3)


async def _look(part: Part, queue: Queue[Work, Done], number: int) -> JobStatus[Done] | None:
    while True:
        try:
            return await queue.get_status(id_of(number))
        except StorageError as error:
            part.report(error)
            await asyncio.sleep(0.2)


def _note(part: Part, number: int, status: JobStatus[Done] | None) -> None:
    if status is None:
        part.audit.note("gone", number)
        return
    token = status.result.token if status.result is not None else "-"
    code = (status.error.code or status.error.type) if status.error is not None else "-"
    part.audit.note("found", number, status.state, status.attempts, token, code)
