"""The engine in a loop that begins every task eagerly, as Python 3.12 and later can be told to."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from jobq import JobCancelledError, Queue, Reaper
from jobq.storage.contract import Storage
from tests.engine.scenes import Events, Waiting, echo, in_loop

if sys.version_info >= (3, 12):

    @in_loop
    async def test_jobs_run_and_are_cancelled_while_tasks_begin_eagerly(storage: Storage) -> None:
        """Also a job that is there before the worker is, and more than one cancel."""
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        queue, producer = Queue[Any, Any](storage, concurrency=2), Queue[Any, Any](storage)
        handler, events = Waiting(), Events(queue)
        queue.execute(handler)
        async with producer:
            await producer.enqueue("early", 1)
            async with queue:
                await handler.begun()
                handler.release.set()
                assert await producer.wait("early", timeout=5) == 1
                handler.release.clear()
                for count, id in enumerate(("first", "second"), 2):
                    waiting = asyncio.create_task(producer.enqueue_and_wait(id, 1, timeout=5))
                    await handler.begun(count)
                    assert (await producer.cancel(id, running=True)).status == "cancelling"
                    with pytest.raises(JobCancelledError):
                        await waiting
        assert events.of("error") == []
        assert handler.cancelled == ["first", "second"]

    @in_loop
    async def test_listeners_stop_and_start_while_tasks_begin_eagerly(storage: Storage) -> None:
        """They are known as listeners from their first step, so nothing waits for itself."""
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        queue, reaper, stopped = Queue[Any, Any](storage), Reaper(storage), asyncio.Event()
        queue.execute(echo)

        @queue.on("started")
        async def start_again() -> None:
            await queue.start()

        @queue.on("completed")
        async def stop(id: str, result: Any) -> None:
            await queue.stop()
            stopped.set()

        async with asyncio.timeout(5), reaper:
            await queue.start()
            await queue.enqueue("a", 1)
            await stopped.wait()
            await queue.stop()
