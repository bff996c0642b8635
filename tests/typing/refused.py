"""Mistakes of users that the types must refuse: exactly the marked lines, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from jobq import EnqueueItem, Job, LeaderElection, MemoryStorage, Queue, Reaper


@dataclass
class Email:
    to: str


@dataclass
class Receipt:
    number: int


queue = Queue[Email, Receipt](MemoryStorage())
Queue[Email, Receipt](MemoryStorage(), concurency=5)  # refused: a misspelt option of the queue
Queue[Email, Receipt](MemoryStorage(), 5)  # refused: an option without its name
Queue[Email, Receipt]("./data")  # refused: a path in place of a storage
Reaper(MemoryStorage(), leader_election=True)  # refused: a switch in place of a LeaderElection
LeaderElection(lock_tll=3.0)  # refused: a misspelt option of the election


async def takes_another_payload(job: Job[int]) -> Receipt:
    return Receipt(job.payload)


async def gives_another_result(job: Job[Email]) -> str:
    return job.payload.to


def plainly_takes_another_payload(job: Job[int]) -> Receipt:
    return Receipt(job.payload)


queue.execute(takes_another_payload)  # refused: a handler of another payload
queue.execute(gives_another_result)  # refused: a handler of another result
queue.execute(plainly_takes_another_payload)  # refused: a plain handler of another payload


async def calls() -> None:
    await queue.enqueue("a", Receipt(1))  # refused: a payload of another type
    await queue.enqueue(1, Email("a"))  # refused: an id that is no text
    await queue.enqueue("a", Email("a"), priorty=1)  # refused: a misspelt option of a call
    await queue.enqueue("a", Email("a"), 3)  # refused: an option of a call without its name
    await queue.enqueue_and_wait("a", Receipt(1))  # refused: a payload of another type, waited for
    await queue.enqueue_many([EnqueueItem("a", Receipt(1))])  # refused: an item of another type
    answer: str = await queue.enqueue_and_wait("a", Email("a"))  # refused: a result taken for another type
    print(answer)
