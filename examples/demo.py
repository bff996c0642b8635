"""Index the standard library with a job queue, and survive a killed worker: ``make demo``.

Every module of the running Python is one job, asked for more than once. Three worker processes share the jobs through
one storage. Half way one of them is killed with jobs in its hands; the others finish them. At the end every total is
compared with that of a plain loop over the same files, and any difference ends the program with 1.

The storage is a directory, a Redis or Valkey server that is started for it (``--storage redis``), or whatever a URL
names (``--storage redis://localhost:6379``).

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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from jobq import Job, JobQueueError, Queue, Reaper, State, StorageUnavailableError, open_storage
from jobq.storage.contract import Storage

WORKERS = ("worker-1", "worker-2", "worker-3")
CONCURRENCY = 2
LEASE = 4.0
"""After how many silent seconds a worker counts as dead."""
KEPT = 600.0
"""Seconds after which the results are gone from a server that was here before the demo."""


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


# Where the jobs are kept.


class Place(msgspec.Struct, frozen=True):
    """A queue of this run's own on some storage; told to the workers by their environment, since a URL may hold a
    password and everybody sees command lines."""

    url: str
    queue: str

    def environment(self) -> dict[str, str]:
        return {**os.environ, "JOBQ_STORAGE": self.url, "JOBQ_QUEUE": self.queue}

    @classmethod
    def from_environment(cls) -> Place:
        return cls(os.environ["JOBQ_STORAGE"], os.environ["JOBQ_QUEUE"])


@contextmanager
def opened_place(wanted: str, directory: Path) -> Iterator[Place]:
    """Give the place that ``--storage`` asks for; a server that was started for it ends afterwards."""
    queue = f"index-{os.urandom(4).hex()}"
    if wanted == "file":
        yield Place(f"file://{quote(str(directory / 'jobs'))}", queue)
    elif wanted.startswith("memory:"):
        raise DemoError("memory:// lives inside one process; the workers of the demo are others")
    elif wanted in ("redis", "valkey"):
        with own_server(wanted) as url:
            yield Place(url, queue)
    else:
        yield Place(wanted, queue)


@contextmanager
def own_server(kind: str) -> Iterator[str]:
    """Start a server that ends when our end of its standard input does, also if we are killed."""
    command = [sys.executable, str(Path(__file__).parents[1] / "tools" / "own_server.py"), kind]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        url = keeper.stdout.readline().strip()
        if not url:
            raise DemoError(f"there is no {kind} server to work with")
        try:
            yield url
        finally:
            keeper.stdin.close()


# A worker: a process that serves until its producer is gone.


async def serve(place: Place, directory: Path, label: str) -> None:
    """Run jobs until standard input ends: a producer that dies in whatever way takes its workers along."""
    queue = Queue[str, Report](
        open_storage(place.url),
        name=place.queue,
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

    def __init__(self, place: Place, directory: Path) -> None:
        self._place = place
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
                env=self._place.environment(),
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def check(self) -> None:
        """A worker that ends by itself would leave its share to the others and the demo none the wiser."""
        for label, process in self._processes.items():
            if label != self.killed and process.poll() is not None:
                raise DemoError(f"{label} ended by itself, with {process.returncode}")

    async def kill_a_busy_one(self, storage: Storage) -> None:
        """Freeze the next worker, and kill it if it holds jobs at that moment; else let it go on."""
        label = WORKERS[self._turn % len(WORKERS)]
        self._turn += 1
        process = self._processes[label]
        process.send_signal(signal.SIGSTOP)
        jobs = storage.namespace(self._place.queue)
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


# The application: it hands over every file, waits for every result, and asks again.


class Score:
    """What happened, counted as it happens."""

    def __init__(self, files: int) -> None:
        self.files = files
        self.reports: dict[str, Report] = {}
        self.repeated = 0
        """Second requests that were answered without a second run."""
        self.rescued = 0
        self.seconds = 0.0


async def produce(place: Place, directory: Path, modules: Mapping[str, Path], console: Console) -> tuple[Score, Crew]:
    """Index all modules through the queue, and kill a worker half way."""
    storage = open_storage(place.url)
    crew, score = Crew(place, directory), Score(len(modules))
    queue = Queue[str, Report](
        storage,
        name=place.queue,
        visibility_timeout=LEASE,
        # Parsing holds the interpreter's lock, so on a machine with much else to do a worker may fall silent for longer
        # than a lease, more than once with the same file.
        max_attempts=50,
        result_ttl=KEPT,
    )
    reaper = Reaper(storage, name=place.queue, visibility_timeout=LEASE / 4)

    @reaper.on("stalled")
    def count_rescue(_id: str) -> None:
        score.rescued += 1

    try:
        async with queue, reaper:
            crew.start()
            began = time.monotonic()
            await queue.enqueue_many([(name, str(path)) for name, path in modules.items()])
            await collect(queue, storage, modules, score, crew, console)
            score.seconds = time.monotonic() - began
            again = await queue.enqueue_many([(name, str(path)) for name, path in modules.items()])
            score.repeated = sum(result.status == "completed" for result in again)
            await check_the_killed(queue, crew)
    finally:
        crew.end()
    return score, crew


async def collect(
    queue: Queue[str, Report],
    storage: Storage,
    modules: Mapping[str, Path],
    score: Score,
    crew: Crew,
    console: Console,
) -> None:
    """Wait for every result, asking for each file a second time on the way; show how far it is."""

    async def ask(name: str) -> None:
        score.reports[name] = await queue.enqueue_and_wait(name, str(modules[name]), timeout=300)

    asked = [asyncio.ensure_future(ask(name)) for name in modules]
    try:
        with progress(console) as bar:
            task = bar.add_task("indexing", total=len(modules), note="three workers")
            told = 0.0
            while len(score.reports) < len(modules):
                await asyncio.wait(asked, timeout=0.1, return_when=asyncio.FIRST_EXCEPTION)
                for future in asked:
                    if future.done():
                        future.result()
                crew.check()
                if crew.killed is None and len(score.reports) >= len(modules) // 2:
                    await crew.kill_a_busy_one(storage)
                note = "three workers" if crew.killed is None else f"{crew.killed} killed with {len(crew.held)} jobs"
                bar.update(task, completed=len(score.reports), note=note)
                if not console.is_terminal and time.monotonic() - told > 1.0:
                    told = time.monotonic()
                    console.print(f"{len(score.reports):>5} of {len(modules)} indexed; {note}")
    finally:
        for future in asked:
            future.cancel()


async def check_the_killed(queue: Queue[str, Report], crew: Crew) -> None:
    """What the killed worker held must have been run again by another."""
    if crew.killed is None:
        raise DemoError("no worker could be killed with jobs in its hands")
    for id in crew.held:
        status = await queue.get_status(id)
        if status is None or status.attempts < 2 or status.worker_id == crew.killed:
            raise DemoError(f"{id} was held by the killed {crew.killed} and not run again: {status}")


def progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


def faults_of(score: Score, crew: Crew, expected: Totals) -> list[str]:
    """Everything that is not as promised; empty if all is well."""
    faults = differences(add_up(score.reports.values()), expected)
    faults += [f"{id} was completed {n} times" for id, n in crew.completed().items() if n > 1]
    if score.repeated != score.files:
        faults.append(f"only {score.repeated} of {score.files} second requests were answered from the cache")
    if score.rescued < len(crew.held):
        faults.append(f"{len(crew.held)} jobs were held by the killed worker, and {score.rescued} were rescued")
    return faults


def show(score: Score, crew: Crew, console: Console) -> None:
    facts = Table.grid(padding=(0, 3))
    rows = {
        "files": f"{score.files:,}",
        "jobs run": f"{sum(crew.completed().values()):,}",
        "duplicates answered from the cache": f"{score.repeated:,}",
        "jobs rescued": f"{score.rescued:,} (held by {crew.killed} when it was killed: {len(crew.held)})",
        "seconds": f"{score.seconds:.1f}",
        "jobs/s": f"{score.files / score.seconds:,.0f}",
    }
    for name, value in rows.items():
        facts.add_row(name, f"[bold]{value}")
    console.print(facts)
    largest = sorted(score.reports.items(), key=lambda item: -item[1].lines)[:5]
    imported: Counter[str] = Counter()
    for report in score.reports.values():
        imported.update(report.imports)
    table = Table("largest modules", "lines", "longest function", "most imported", "times", title_justify="left")
    for (name, report), (module, times) in zip(largest, imported.most_common(5), strict=False):
        longest = f"{report.longest} ({report.length})" if report.longest else ""
        table.add_row(name, f"{report.lines:,}", longest, module, f"{times:,}")
    console.print(table)


def index(limit: int | None, wanted: str) -> int:
    """Run it all; return the exit code."""
    console, modules = Console(), list_modules(limit)
    console.print(f"Indexing the {len(modules):,} modules of the standard library of Python {sys.version.split()[0]}")
    try:
        with tempfile.TemporaryDirectory(prefix="jobq-demo-") as folder:
            directory = Path(folder)
            with opened_place(wanted, directory) as place, plain_loop(limit) as plain:
                score, crew = asyncio.run(produce(place, directory, modules, console))
                expected = msgspec.json.decode(plain.communicate()[0], type=Totals)
            show(score, crew, console)
            faults = faults_of(score, crew, expected)
    except (DemoError, JobQueueError, ImportError) as error:
        faults = [str(error)]
    for fault in faults:
        console.print("[bold red]WRONG:[/]", Text(fault), highlight=False)
    if not faults:
        console.print("[bold green]Every total agrees with a plain loop; no job was lost, none was completed twice.")
    return 1 if faults else 0


@contextmanager
def plain_loop(limit: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """Let a process of its own count the same without a queue."""
    command = [sys.executable, __file__, "--plain", *([] if limit is None else ["--limit", str(limit)])]
    plain = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        yield plain
    finally:
        plain.kill()
        plain.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="Index the standard library with a job queue.")
    parser.add_argument(
        "--storage", default="file", help="file, redis, valkey (the demo starts that server), or a URL; default: file"
    )
    parser.add_argument("--limit", type=int, help="only so many files, the largest")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Of what it reads, not of what it does.
    if options.plain:
        return count_plainly(options.limit)
    if options.worker:
        asyncio.run(serve(Place.from_environment(), options.directory, options.worker))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Clean up, as after Ctrl-C.
    try:
        return index(options.limit, options.storage)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
