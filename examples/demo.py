"""Index the standard library with a job queue, and survive a killed worker: ``make demo``.

Every module of the running Python is one job, asked for more than once. Three worker processes share the jobs through
one directory. Half way one of them is killed with jobs in its hands; the others finish them. At the end every total is
compared with that of a plain loop over the same files, and any difference ends the program with 1.

Read it from the bottom: `main`, then `produce`, which is the application, then `serve`, which is a worker.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from jobq import FileStorage, Job, Queue, Reaper, State, StorageUnavailableError

QUEUE = "index"
WORKERS = ("worker-1", "worker-2", "worker-3")
CONCURRENCY = 4
LEASE = 2.0
"""After how many silent seconds a worker counts as dead."""


class DemoError(Exception):
    """Something did not go as promised."""


# What a job does: read one module.


class Report(msgspec.Struct, frozen=True):
    """What one file contains; the result of its job."""

    lines: int
    functions: int = 0
    classes: int = 0
    imports: dict[str, int] = {}
    """How often each top-level module is imported; ``.`` stands for the file's own package."""
    longest: str = ""
    length: int = 0
    """Name and lines of the longest function."""
    reason: str | None = None
    """Why there is no more than a number of lines: the file does not parse."""


def read_module(path: Path) -> Report:
    """Parse a file. One that cannot be parsed is a finding, not a failure: some test data is wrong on purpose."""
    source = path.read_bytes()
    lines = len(source.splitlines())
    try:
        tree = ast.parse(source, str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Report(lines, reason=f"{type(error).__name__}: {error}")
    functions = classes = length = 0
    longest = ""
    imports: Counter[str] = Counter()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                functions += 1
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > length:
                    longest, length = node.name, size
            case ast.ClassDef():
                classes += 1
            case ast.Import():
                imports.update(alias.name.partition(".")[0] for alias in node.names)
            case ast.ImportFrom():
                imports["." if node.level else (node.module or "").partition(".")[0]] += 1
    return Report(lines, functions, classes, dict(imports), longest, length)


def list_modules(limit: int | None) -> dict[str, Path]:
    """Return the standard library's files by their name in it; with a limit only the largest."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {
        str(path.relative_to(root)): path
        for path in root.rglob("*.py")
        if path.is_file() and not {"site-packages", "dist-packages"} & set(path.relative_to(root).parts)
    }
    names = sorted(found) if limit is None else sorted(found, key=lambda name: -found[name].stat().st_size)[:limit]
    return {name: found[name] for name in names}


# What is counted, twice: by the queue and by a plain loop.


class Totals(msgspec.Struct, frozen=True):
    """Sums over all files."""

    files: int
    lines: int
    functions: int
    classes: int
    imports: int
    unparsed: int


def add_up(reports: Iterable[Report]) -> Totals:
    everything = list(reports)
    return Totals(
        files=len(everything),
        lines=sum(report.lines for report in everything),
        functions=sum(report.functions for report in everything),
        classes=sum(report.classes for report in everything),
        imports=sum(sum(report.imports.values()) for report in everything),
        unparsed=sum(report.reason is not None for report in everything),
    )


def differences(found: Totals, expected: Totals) -> list[str]:
    """Say, for each total that differs, what the queue counted and what is true."""
    true = msgspec.structs.asdict(expected)
    return [
        f"{name}: the queue counted {value:,}, a plain loop {true[name]:,}"
        for name, value in msgspec.structs.asdict(found).items()
        if value != true[name]
    ]


def count_plainly(limit: int | None) -> int:
    """Print the totals of a loop without any queue; the body of a process of its own."""
    producer = os.getppid()
    reports = []
    for path in list_modules(limit).values():
        if os.getppid() != producer:
            return 1  # Nobody is left to read the answer.
        reports.append(read_module(path))
    sys.stdout.buffer.write(msgspec.json.encode(add_up(reports)))
    return 0


# A worker: a process that serves until its producer is gone.


async def serve(directory: Path, label: str) -> None:
    """Run jobs until standard input ends: a producer that dies in whatever way takes its workers along."""
    queue = Queue[str, Report](
        FileStorage(directory / "jobs"),
        name=QUEUE,
        worker_id=label,
        concurrency=CONCURRENCY,
        visibility_timeout=LEASE,
    )

    @queue.execute
    def index(job: Job[str]) -> Report:
        return read_module(Path(job.payload))

    with (directory / label).open("a", buffering=1, encoding="utf-8") as done:

        @queue.on("completed")
        def note(id: str, _result: Report) -> None:
            done.write(f"{id}\n")

        async with queue:
            reader = asyncio.StreamReader()
            await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
            )
            await reader.read()


class Crew:
    """The worker processes: started, watched, one of them killed, all of them ended."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._turn = 0
        self.killed: str | None = None
        self.held: list[str] = []
        """The ids that the killed worker held."""

    def start(self) -> None:
        # A session of their own keeps Ctrl-C from them: they end with their producer, in order.
        for label in WORKERS:
            self._processes[label] = subprocess.Popen(
                [sys.executable, __file__, "--worker", label, "--directory", str(self._directory)],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def check(self) -> None:
        """A worker that ends by itself would leave its share to the others and the demo none the wiser."""
        for label, process in self._processes.items():
            if label != self.killed and process.poll() is not None:
                raise DemoError(f"{label} ended by itself, with {process.returncode}")

    async def kill_a_busy_one(self, storage: FileStorage) -> None:
        """Freeze the next worker, and kill it if it holds jobs at that moment; else let it go on."""
        label = WORKERS[self._turn % len(WORKERS)]
        self._turn += 1
        process = self._processes[label]
        process.send_signal(signal.SIGSTOP)
        jobs = storage.namespace(QUEUE)
        # Frozen in the middle of a write it would keep everybody waiting, also this look.
        with suppress(StorageUnavailableError, TimeoutError):
            async with asyncio.timeout(0.5):
                if dict(await jobs.workers()).get(label):
                    held = await jobs.page(State.PROCESSING, "", len(WORKERS) * CONCURRENCY)
                    self.held = [snapshot.id for snapshot in held if snapshot.worker_id == label]
        if self.held:
            self.killed = label
            process.kill()
            process.wait()
        else:
            process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Let every worker finish; one that does not within three seconds is killed."""
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes.values():
            try:
                process.wait(3.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def completed(self) -> Counter[str]:
        """How often each id was announced as completed, over all workers."""
        files = (self._directory / label for label in WORKERS)
        return Counter(id for path in files if path.exists() for id in path.read_text(encoding="utf-8").splitlines())
