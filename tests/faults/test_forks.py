"""Handlers that fork: the child neither renews nor settles nor claims, and its parent works and stops as ever."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobq import Queue, open_storage
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
