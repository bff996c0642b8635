"""The program of the other process: a worker on a directory or a server, told what to do on the command line.

It says ``ready`` once it consumes, and ends when its standard input does, so that it never outlives the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from benchmarks.measure import CALLERS, queue_on
from jobq import FileStorage, Job, Queue, open_storage
from jobq.storage.contract import Storage

_ROOT = Path(__file__).resolve().parents[1]


def drained_per_second(place: Path | str, durability: str, count: int) -> float:
    """Let a new process run ``count`` jobs that are queued, and return how many it did in a second."""
    command = _command(place, durability, "--drain", str(count))
    run = subprocess.run(command, cwd=_ROOT, stdin=subprocess.PIPE, capture_output=True, text=True, check=True)
    return float(run.stdout)


@contextmanager
def serving(place: Path | str, durability: str) -> Iterator[None]:
    """Keep a worker process at work; its results are the instants at which its handler began.

    ``place`` is a directory, or a server's URL, for which ``durability`` means nothing.
    """
    command = _command(place, durability)
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("the worker process did not start")
            yield
        finally:
            process.stdin.close()


def _command(place: Path | str, durability: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.worker", str(place), durability, *more]


def main() -> None:
    parser = argparse.ArgumentParser(description="The worker process of the benchmarks.")
    parser.add_argument("place", help="a directory, or the URL of a server")
    parser.add_argument("durability", choices=["full", "normal"])
    parser.add_argument("--drain", type=int, metavar="COUNT", help="run so many jobs, print jobs per second, end")
    options = parser.parse_args()
    storage = _storage(options.place, options.durability)
    if options.drain is None:
        asyncio.run(_serve(storage))
    else:
        print(asyncio.run(_drain(storage, options.drain)))


def _storage(place: str, durability: Literal["full", "normal"]) -> Storage:
    return open_storage(place) if "://" in place else FileStorage(place, durability=durability)


async def _drain(storage: Storage, count: int) -> float:
    queue, done, left = queue_on(storage), asyncio.Event(), count

    @queue.on("completed")
    def completed(id: str, result: None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()

    started = time.perf_counter()
    async with queue:
        await done.wait()
        return count / (time.perf_counter() - started)


async def _serve(storage: Storage) -> None:
    queue = Queue[str, float](storage, concurrency=CALLERS)

    @queue.execute
    async def tell_the_time(job: Job[str]) -> float:
        return time.monotonic()

    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
    async with queue:
        print("ready", flush=True)
        await ended.wait()


if __name__ == "__main__":
    main()
