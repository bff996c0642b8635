"""Replies that get lost: the call is sent again under its own name, and answered as if nothing had happened.

In virtual time, on a MemoryStorage; `tests/faults_redis` has the same on real lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from jobq import GiveUp, Job, JobFailedError, MemoryStorage, Queue, State, StorageUnavailableError
from jobq._batch import resend
from jobq.job import NewJob
from jobq.storage.contract import RESEND_FOR
from jobq.testing import LOSE_REPLY, FaultyStorage, VirtualClock, planned
from tests.engine.scenes import Events, echo, in_virtual_time, passing

pytestmark = pytest.mark.storage("memory")


def losing(*verbs: str) -> FaultyStorage:
    """Return a storage that loses the first reply to each of these verbs."""
    return FaultyStorage(MemoryStorage(clock=VirtualClock()), planned({(verb, 0): LOSE_REPLY for verb in verbs}))


async def give_up(job: Job[Any]) -> None:
    raise GiveUp


def test_an_enqueue_is_accepted_once() -> None:
    """Its caller is neither told of trouble, nor that somebody else holds the id."""

    async def main() -> None:
        storage = losing("add")
        async with Queue[int, int](storage) as queue:
            assert (await queue.enqueue("a", 1)).status == "queued"
            assert (await queue.enqueue("a", 1)).status == "duplicate"
            assert (await queue.counts())[State.QUEUED] == 1
        assert storage.calls["add"] == 3

    in_virtual_time(main)


def test_a_claimed_job_runs_at_once() -> None:
    """It does not wait for the lease of a claim that nobody heard of, and no attempt is counted twice."""

    async def main() -> float:
        storage = losing("claim")
        queue = Queue[int, int](storage, visibility_timeout=30.0)
        queue.execute(echo)
        await storage.namespace("default").add([NewJob("a", "other.1", b"7", 3, 60.0)])
        async with queue:
            assert await queue.wait("a") == 7
            status = await queue.get_status("a")
        assert status is not None
        assert status.attempts == 1
        assert storage.troubles["claim"] == 1
        return asyncio.get_running_loop().time()

    assert in_virtual_time(main) < 1.0


def test_a_run_is_completed_once() -> None:
    """And announced once."""

    async def main() -> None:
        storage = losing("settle")
        queue, runs = Queue[int, int](storage), []

        @queue.execute
        async def note(job: Job[int]) -> int:
            runs.append(job.attempts)
            return job.payload

        events = Events(queue)
        async with queue:
            assert await queue.enqueue_and_wait("a", 7) == 7
        assert runs == [1]
        assert (events.of("completed"), events.of("lease_lost")) == ([("a", 7)], [])
        assert storage.troubles["settle"] == 1

    in_virtual_time(main)


CHANGES: dict[str, tuple[str, Callable[[Queue[Any, Any]], Awaitable[Any]], str]] = {
    "cancel": ("cancel", lambda queue: queue.cancel("waits"), "cancelled"),
    "retry": ("revive", lambda queue: queue.retry("failed"), "queued"),
    "update_result_ttl": ("retain", lambda queue: queue.update_result_ttl("failed", 0), "updated"),
}


@pytest.mark.parametrize("member", CHANGES)
def test_a_change_is_answered_by_what_it_found_at_first(member: str) -> None:
    """Not by what it made itself: the job that it cancelled is not unknown to it."""
    verb, change, expected = CHANGES[member]

    async def main() -> None:
        storage = losing(verb)
        queue, other = Queue[Any, Any](storage), Queue[Any, Any](storage)
        queue.execute(give_up)
        async with other:
            async with queue:
                with pytest.raises(JobFailedError):
                    await queue.enqueue_and_wait("failed", 1)
            await other.enqueue("waits", 1)
            assert (await change(other)).status == expected
        assert storage.troubles[verb] == 1

    in_virtual_time(main)


def test_a_look_is_taken_again() -> None:
    """Its caller sees a call that took longer."""

    async def main() -> None:
        storage = losing("get")
        async with Queue[int, int](storage) as queue:
            await queue.enqueue("a", 1)
            assert await queue.get_status("a") is not None
        assert storage.troubles["get"] == 1

    in_virtual_time(main)


@pytest.mark.parametrize("first_ends_at", [0.5, 4.5])
def test_a_call_that_is_made_again_and_hangs_is_given_up_when_the_time_is_over(first_ends_at: float) -> None:
    """A server that swallows both requests costs five seconds, not five for each; the outcome is unknown."""

    async def main() -> None:
        loop, begun, calls = asyncio.get_running_loop(), asyncio.get_running_loop().time(), []

        async def ask() -> None:
            calls.append(loop.time() - begun)
            if len(calls) == 1:
                await passing(first_ends_at)
                raise StorageUnavailableError("lost")
            await loop.create_future()

        with pytest.raises(StorageUnavailableError, match="lost"):
            await resend(VirtualClock(), ask)

        assert len(calls) == 2
        assert loop.time() - begun <= RESEND_FOR + 0.001

    in_virtual_time(main)


def test_a_first_call_may_take_longer_than_it_would_be_made_again() -> None:
    """Nobody gives up on a storage that is only slow."""

    async def main() -> None:
        async def ask() -> str:
            await passing(2 * RESEND_FOR)
            return "answer"

        assert await resend(VirtualClock(), ask) == "answer"

    in_virtual_time(main)
