"""A worker: runs jobs as they want it, also those that kill it."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from jobq import GiveUp, Job, JobFailedError, Queue, StorageError
from soak.part import Part
from soak.work import Done, Manner, Work, number_of, work_of


class HandlerFailed(Exception):
    """What a failing job raises; its code tells which run it was."""

    def __init__(self, token: int) -> None:
        super().__init__("as it was told")
        self.code = str(token)


async def work(part: Part) -> None:
    queue = part.queue()
    queue.execute(_Handler(part).handle)
    _listen(part, queue)
    while True:
        try:
            await queue.run()
        except StorageError as error:
            # Out of reach at the start; a running worker sits it out by itself.
            part.report(error)
            await asyncio.sleep(0.2)
        else:
            return


class _Handler:
    """The handler, with its notes."""

    def __init__(self, part: Part) -> None:
        self._plan = part.plan
        self._note = part.audit.note

    async def handle(self, job: Job[Work]) -> Done:
        work, token = job.payload, job.fencing_token
        self._note("start", work.number, token, job.attempts)
        if work != work_of(self._plan, work.number) or number_of(job.id) != work.number:
            self._note("unexpected", f"{job.id} has the payload of another job: {work}")
        try:
            return await self._run(job, work)
        except asyncio.CancelledError:
            self._note("aborted", work.number, token, job.signal.reason)
            raise
        finally:
            self._note("end", work.number, token)

    async def _run(self, job: Job[Work], work: Work) -> Done:
        match work.manner:
            case Manner.POISON:
                os.kill(os.getpid(), signal.SIGKILL)
            case Manner.FREEZING if job.attempts == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Manner.BLOCKING:
                time.sleep(work.seconds)  # noqa: ASYNC251 (on purpose: it is what some handlers do)
            case _:
                await asyncio.sleep(work.seconds)
        if work.manner is Manner.GIVING_UP:
            raise GiveUp
        if work.manner is Manner.FAILING or (work.manner is Manner.FLAKY and job.attempts <= 2):
            raise HandlerFailed(job.fencing_token)
        return Done(work.number, job.fencing_token, work.text)


def _listen(part: Part, queue: Queue[Work, Done]) -> None:
    note = part.audit.note

    def failed(id: str, error: BaseException) -> None:
        code = error.error.code or error.error.type if isinstance(error, JobFailedError) else type(error).__name__
        note("failed", number_of(id), code)

    queue.on("started", lambda: note("serving"))
    queue.on("completed", lambda id, done: note("completed", number_of(id), done.token))
    queue.on("failed", failed)
    queue.on("failing", lambda id, error, attempt: note("failing", number_of(id), attempt))
    queue.on("requeued", lambda id: note("requeued", number_of(id)))
    queue.on("cancelled", lambda id: note("cancelled", number_of(id)))
    queue.on("lease_lost", lambda id: note("lost", number_of(id)))
