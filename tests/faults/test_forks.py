"""Forks: of handlers, whose child neither renews nor settles nor claims, while its parent works and stops as ever; and
under storages, where the child may use what was not open, and no more."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobq import FileStorage, Job, JobQueueError, Queue, open_storage
from tests.engine.scenes import passing
from tests.faults.program import LEASE
from tests.servers.fixtures import Starter
from tests.servers.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
IN_THE_LOOP = ("exits", "returns", "raises", "leaves", "pool")
IN_A_THREAD = ("exits", "returns", "raises", "leaves", "process")


class Worker:
    """The program that forks, and what it told."""

    def __init__(self, url: str, audit: Path) -> None:
        self._audit = audit
        self.process = subprocess.Popen([sys.executable, "-m", "tests.faults.forking", url, audit], cwd=ROOT)

    def facts(self, kind: str) -> list[list[str]]:
        lines = self._audit.read_text().splitlines() if self._audit.exists() else []
        return [words for _, *words in map(str.split, (line for line in lines if line.startswith(f"{kind} ")))]

    def await_end_of_children(self, count: int) -> None:
        wait_for(lambda: len(self.facts("child")) >= count, f"{count} children")
        wait_for(lambda: not any(map(alive, self.facts("child"))), "end of the children")

    def end(self) -> None:
        for (number,) in self.facts("child"):
            if alive([number]):
                os.kill(int(number), signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def alive(fact: list[str]) -> bool:
    """Whether a process is there, and no zombie that its parent has not looked at yet."""
    try:
        state = Path(f"/proc/{fact[0]}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def in_child(act: Callable[[], object]) -> str:
    """Fork, and return what it answers in the child, or the code of what it raises there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = str(act())
        except JobQueueError as error:
            answer = error.code
        except BaseException as error:
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    told = os.read(reading, 1000).decode()
    os.close(reading)
    os.waitpid(child, 0)
    return told


def enqueued_in(directory: Path) -> str:
    """Enqueue a job by a queue and a storage made anew."""

    async def main() -> str:
        async with Queue[int, int](FileStorage(directory)) as queue:
            return (await queue.enqueue("made anew", 1)).status

    return asyncio.run(main())


@contextmanager
def working(url: str, audit: Path) -> Iterator[Worker]:
    worker = Worker(url, audit)
    try:
        yield worker
    finally:
        worker.end()


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.storage(kind)) for kind in ("file", "redis")])
def url(request: pytest.FixtureRequest, start: Starter, tmp_path: Path) -> str:
    return start.server("redis").url if request.param == "redis" else f"file://{tmp_path}/data"


@pytest.mark.slow
def test_children_of_handlers_leave_the_queue_alone(url: str, tmp_path: Path) -> None:
    """Whether they end by themselves, return, raise or leave; of coroutines, functions, and multiprocessing."""

    async def use(worker: Worker) -> tuple[list[str], list[int]]:
        async with (
            Queue[str, str](open_storage(url), name="coroutines") as coroutines,
            Queue[str, str](open_storage(url), name="functions") as functions,
        ):
            every = [(coroutines, one) for one in IN_THE_LOOP] + [(functions, one) for one in IN_A_THREAD]
            answers = await asyncio.gather(*(queue.enqueue_and_wait(one, one, timeout=15) for queue, one in every))
            await asyncio.to_thread(worker.await_end_of_children, len(every))
            answers += [await queue.enqueue_and_wait("after", "nothing") for queue in (coroutines, functions)]
            statuses = await asyncio.gather(*(queue.get_status(one) for queue, one in every))
            assert await coroutines.get_status("of-the-child") is None
            return answers, [status.attempts for status in statuses if status is not None]

    with working(url, tmp_path / "audit") as worker:
        answers, attempts = asyncio.run(use(worker))
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(PATIENCE) == 0

    assert set(answers) == {"by the parent"}
    assert attempts == [1] * 10
    assert worker.facts("refused") == [["FORKED"]] * 8
    for kind in ("started", "completed"):
        assert [process for _, process, *_ in worker.facts(kind)] == [str(worker.process.pid)] * 12
    for kind in ("accepted", "failing", "lease_lost", "error"):
        assert worker.facts(kind) == []


@pytest.mark.slow
def test_a_child_that_outlives_its_worker_does_not_keep_the_job(url: str, tmp_path: Path) -> None:
    """The lease lapses although the child is alive and has the worker's connections; another worker runs the job."""

    async def use(first: Worker) -> tuple[str, bool]:
        async with Queue[str, str](open_storage(url), name="functions") as functions:
            waiting = asyncio.create_task(functions.enqueue_and_wait("job", "process", timeout=15))
            await asyncio.to_thread(wait_for, lambda: first.facts("child"), "the child")
            first.process.kill()
            with working(url, tmp_path / "second") as second:
                await asyncio.to_thread(wait_for, lambda: second.facts("started"), "the second run", LEASE + 5.0)
                outlived = alive(first.facts("child")[0])
                answer = await waiting
                status = await functions.get_status("job")
                assert status is not None
                assert status.attempts == 2
                completed = await asyncio.to_thread(wait_for, lambda: second.facts("completed"), "the event")
                assert [process for _, process, *_ in completed] == [str(second.process.pid)]
            return answer, outlived

    with working(url, tmp_path / "first") as first:
        answer, outlived = asyncio.run(use(first))

    assert answer == "by the parent"
    assert outlived
    assert first.facts("completed") == []


def test_a_queue_of_the_parent_is_refused_in_the_child(tmp_path: Path) -> None:
    """And its parent's job is done all the same."""

    async def main() -> tuple[str, int]:
        queue = Queue[int, int](FileStorage(tmp_path))

        @queue.execute
        async def double(job: Job[int]) -> int:
            return 2 * job.payload

        async with queue:
            told = in_child(lambda: queue.enqueue("child", 1).send(None))
            return told, await queue.enqueue_and_wait("parent", 21, timeout=5)

    assert asyncio.run(main()) == ("FORKED", 42)


def test_a_directory_that_was_open_at_the_fork_is_refused_in_the_child_also_by_a_new_object(tmp_path: Path) -> None:
    """SQLite would take the parent's locks for the child's, and jobs that it accepted would be gone with the log."""

    async def main() -> list[str]:
        async with Queue[int, int](FileStorage(tmp_path / "open")) as queue:
            await queue.enqueue("parent", 1)
            return [
                in_child(lambda: enqueued_in(tmp_path / "open")),
                in_child(lambda: in_child(lambda: enqueued_in(tmp_path / "open"))),
                in_child(lambda: enqueued_in(tmp_path / "other")),
            ]

    assert asyncio.run(main()) == ["FORKED", "FORKED", "queued"]
    assert in_child(lambda: enqueued_in(tmp_path / "open")) == "queued"  # The parent has closed it.


@pytest.mark.slow
def test_a_queue_whose_loop_ended_before_the_fork_keeps_its_leases_in_the_child(url: str) -> None:
    """The thread that renewed them is the parent's; files that were open are refused instead."""
    queue = Queue[int, int](open_storage(url), name="left", visibility_timeout=0.5, block_timeout=0.2)
    lost: list[str] = []
    queue.on("lease_lost", lost.append)

    @queue.execute
    async def longer_than_a_lease(job: Job[int]) -> int:
        await passing(1.5 * job.payload)
        return job.attempts

    async def leave() -> None:
        await queue.start()
        await queue.enqueue_and_wait("parent", 0)

    async def use(id: str) -> tuple[int, list[str]]:
        async with queue:
            return await queue.enqueue_and_wait(id, 1, timeout=8), lost

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(leave())
        told = in_child(lambda: asyncio.run(use("child")))
        assert asyncio.run(use("parent again")) == (1, [])

    assert told == ("FORKED" if url.startswith("file") else "(1, [])")
