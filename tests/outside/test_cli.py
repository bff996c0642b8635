"""The command line in processes of its own: what it prints, which code it ends with, how a worker heeds signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobq import FileStorage, Job, JsonSerde, MsgpackSerde, Queue

pytestmark = pytest.mark.slow

SOURCES = Path(__file__).resolve().parents[2] / "src"
URL = "file:./data"
MODULE = '''
import asyncio
import threading
from jobq import FileStorage, Job, Queue

queue = Queue[str, str](FileStorage("data"), concurrency=2)
number = 3

@queue.execute
async def handle(job: Job[str]) -> str:
    print("running", job.id, flush=True)
    match job.payload:
        case "block":
            threading.Event().wait(20)
        case "wait":
            await asyncio.Event().wait()
        case "half a second":
            await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=0.5)
    print("ran", job.id, flush=True)
    return job.payload.upper()

def factory():
    return queue

def failing():
    raise RuntimeError("no settings")

async def coroutine():
    return queue
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the module ``tasks``, and three ended jobs and a delayed one in ``data``."""
    (tmp_path / "tasks.py").write_text(MODULE, encoding="utf-8")
    asyncio.run(fill(tmp_path / "data"))
    return tmp_path


async def fill(directory: Path) -> None:
    """Complete ``done`` and ``binary``, fail ``broken``, and leave ``later`` queued."""
    storage = FileStorage(directory)
    queue = Queue[object, object](storage)
    binary = Queue[object, object](storage, name="binary", result_serde=MsgpackSerde())

    @queue.execute
    @binary.execute
    async def handle(job: Job[object]) -> object:
        if job.id == "broken":
            raise ValueError("red \x1b[31m\nline")
        return {"é": job.payload}

    async with queue, binary:
        await queue.enqueue_and_wait("done", 1)
        await binary.enqueue_and_wait("binary", 1)
        await queue.enqueue("broken", 1, max_attempts=1)
        with pytest.raises(Exception, match="red"):
            await queue.wait("broken")
        await queue.enqueue("later", 1, delay=3600)


async def add(directory: Path, id: str, payload: str) -> None:
    async with Queue[str, str](FileStorage(directory / "data"), payload_serde=JsonSerde(str)) as queue:
        await queue.enqueue(id, payload)


def environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("JOBQ_")}
    return own | {"PYTHONPATH": str(SOURCES), "PYTHONUTF8": "1", "COLUMNS": "100"} | more


def jobq(place: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobq", *arguments],
        cwd=place,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )


@contextmanager
def worker(place: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a worker whose stdout and stderr are one pipe; kill it if the test did not end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobq", "worker", "tasks:queue", *arguments],
        cwd=place,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read lines up to the one that holds the words; pytest's own timeout bounds it."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return
    pytest.fail(f"{words!r} was not printed, but: {seen}")
