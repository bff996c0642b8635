"""The public interface as its users write it. Nobody runs this file: it must type-check, strictly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

from jobq import (
    CancelResult,
    EnqueueItem,
    EnqueueResult,
    ExponentialBackoff,
    FileStorage,
    FixedDelay,
    Job,
    JobStatus,
    JsonSerde,
    LeaderElection,
    MemoryStorage,
    Queue,
    Reaper,
    RetryResult,
    UpdateResultTTLResult,
    open_storage,
)


@dataclass
class Email:
    to: str


@dataclass
class Receipt:
    number: int


queue = Queue[Email, Receipt](
    FileStorage("./data"),
    name="mail",
    concurrency=5,
    job_timeout=timedelta(minutes=1),
    retry=ExponentialBackoff(initial=0.5),
    payload_serde=JsonSerde(Email),
)
patient = Queue[Email, Receipt](MemoryStorage(), retry=FixedDelay(5))
plain = Queue[str, int](open_storage("memory://"), retry=lambda attempt, error: 2.0 * attempt)
reaper = Reaper(MemoryStorage(), leader_election=LeaderElection(lock_ttl=10.0))


@queue.execute
async def send(job: Job[Email]) -> Receipt:
    assert_type(job.payload, Email)
    assert_type(job.attempts, int)
    assert_type(job.fencing_token, int)
    job.signal.raise_if_aborted()
    return Receipt(1)


@plain.execute
def measure(job: Job[str]) -> int:
    assert_type(job.payload, str)
    return len(job.payload)


@queue.on("completed")
def tell(job_id: str, result: Receipt) -> None: ...


@reaper.on("stalled")
async def tell_stalled(job_id: str) -> None: ...


async def decorated_functions_keep_their_types(job: Job[Email], text: Job[str]) -> None:
    assert_type(await send(job), Receipt)
    assert_type(measure(text), int)
    assert_type(tell("a", Receipt(1)), None)
    assert_type(await tell_stalled("a"), None)


async def answers_have_the_types_of_the_queue() -> None:
    async with queue:
        enqueued = await queue.enqueue("a", Email("a@example.com"), delay=timedelta(seconds=1), priority=5)
        assert_type(enqueued, EnqueueResult[Receipt])
        assert_type(enqueued.result, Receipt | None)
        assert_type(await queue.enqueue_and_wait("b", Email("b@example.com"), timeout=None), Receipt)
        assert_type(await queue.wait("b", timeout=5), Receipt)
        assert_type(await queue.get_result("b"), Receipt | None)
        assert_type(await queue.get_status("b"), JobStatus[Receipt] | None)
        assert_type(await queue.cancel("a", running=True), CancelResult)
        assert_type(await queue.retry("a"), RetryResult)
        assert_type(await queue.update_result_ttl("b", 60), UpdateResultTTLResult)


async def many_may_be_enqueued_as_items_or_as_pairs() -> None:
    pairs: list[tuple[str, Email]] = [("a", Email("a@example.com"))]
    items: Sequence[EnqueueItem[Email]] = [EnqueueItem("b", Email("b@example.com"), priority=1)]
    assert_type(await queue.enqueue_many(pairs), list[EnqueueResult[Receipt]])
    assert_type(await queue.enqueue_many(items), list[EnqueueResult[Receipt]])
