"""The command line in processes of its own: what it prints, which code it ends with, how a worker heeds signals."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
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
MODULE = """
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
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the module ``tasks``, and three ended jobs and a delayed one in ``data``."""
    directory = tmp_path_factory.mktemp("original")
    (directory / "tasks.py").write_text(MODULE, encoding="utf-8")
    asyncio.run(fill(directory / "data"))
    return directory


@pytest.fixture
def place(original: Path, tmp_path: Path) -> Path:
    """A copy of it for one test, since filling one takes longer than the test."""
    return shutil.copytree(original, tmp_path / "place", ignore=shutil.ignore_patterns("sockets"))


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_stops_a_worker_gently(place: Path, number: int) -> None:
    """A deploy must not cost the jobs that are running."""
    asyncio.run(add(place, "short", "half a second"))
    with worker(place) as process:
        read_until(process, "running short")
        process.send_signal(number)
        read_until(process, "stopping")
        read_until(process, "ran short")
        assert process.wait(10) == 0

    assert jobq(place, "get", "short", "--storage", URL).stdout == '"HALF A SECOND"\n'


@pytest.mark.parametrize("payload", ["wait", "block"])
@pytest.mark.parametrize(("number", "aborted"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_aborts_at_once(place: Path, number: int, aborted: int, payload: str) -> None:
    """Also when a handler blocks the event loop, which is when people press Ctrl-C twice."""
    asyncio.run(add(place, "long", payload))
    with worker(place) as process:
        read_until(process, "running long")
        process.send_signal(number)
        read_until(process, "stopping")
        # The worker takes two signals at the same moment for one, which a wrapper forwarded.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.send_signal(number)
        assert process.wait(1) == aborted


def test_a_burst_ends_when_nothing_is_left(place: Path) -> None:
    """The delayed job is something left, so it is cancelled first."""
    assert jobq(place, "cancel", "later", "--storage", URL).stdout == "cancelled\n"
    asyncio.run(add(place, "short", "hello"))

    ended = jobq(place, "worker", "tasks:factory", "--burst")

    assert (ended.returncode, ended.stdout) == (0, "running short\nran short\n")


def test_a_running_job_can_be_cancelled(place: Path) -> None:
    asyncio.run(add(place, "long", "wait"))
    with worker(place) as process:
        read_until(process, "running long")

        refused = jobq(place, "cancel", "long", "--storage", URL)
        asked = jobq(place, "cancel", "long", "--running", "--storage", URL)

        assert (refused.returncode, asked.returncode, asked.stdout) == (5, 0, "cancelling\n")
        assert "--running" in refused.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert jobq(place, "status", "long", "--storage", URL).returncode == 3


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("tasks", 2, "module:attribute"),
        ("tasks:", 2, "module:attribute"),
        ("tasks:number", 1, "not a Queue"),
        ("tasks:missing", 1, "no attribute"),
        ("missing:queue", 1, "no module 'missing'"),
        ("tasks:failing", 1, "RuntimeError: no settings"),
        ("tasks:coroutine", 1, "coroutine function"),
    ],
)
def test_a_wrong_target_is_told_in_one_line(place: Path, target: str, code: int, words: str) -> None:
    ended = jobq(place, "worker", target)

    assert (ended.returncode, ended.stdout) == (code, "")
    assert words in one_line(ended)


@pytest.mark.parametrize(
    ("arguments", "code", "printed", "told"),
    [
        ("get done", 0, '{\n  "é": 1\n}\n', ""),
        ("get done --json", 0, '{"id":"done","state":"completed","result":{"\\u00e9":1}}\n', ""),
        ("get broken", 4, "", "ValueError: red \\x1b[31m\\nline"),
        ("get later", 5, "", "it is queued"),
        ("get none", 3, "", "no job 'none'"),
        ("get binary --queue binary", 1, "", "not JSON"),
        ("status none --json", 3, "", "no job 'none'"),
        ("cancel done", 5, "", "it is completed"),
        ("cancel none --json", 3, '{"id":"none","status":"not_found"}\n', ""),
        ("cancel done --json", 5, '{"id":"done","status":"completed"}\n', ""),
        ("get", 2, "", "jobq --help"),
        ("get done --storage mysql://x", 1, "", "no storage for the scheme"),
        ("get done --storage memory://", 2, "", "memory://"),
    ],
)
def test_a_question_is_answered_and_its_code_tells(
    place: Path, arguments: str, code: int, printed: str, told: str
) -> None:
    ended = jobq(place, *arguments.split(), JOBQ_STORAGE=URL)

    assert (ended.returncode, ended.stdout) == (code, printed)
    assert told in (one_line(ended) if told else "")


def one_line(ended: subprocess.CompletedProcess[str]) -> str:
    """Return what was told on stderr, which must be one printable line."""
    line = ended.stderr.removesuffix("\n")
    assert line.startswith("jobq: ")
    assert line.isprintable()
    return line


def test_status_shows_a_job_to_people_and_to_programs(place: Path) -> None:
    shown = jobq(place, "status", "broken", JOBQ_STORAGE=URL).stdout
    told = json.loads(jobq(place, "status", "broken", "--json", JOBQ_STORAGE=URL).stdout)

    assert "state      failed\nattempts   1 of 1\n" in shown
    assert "error      ValueError: red \\x1b[31m\\nline" in shown
    assert (told["state"], told["error"]["type"], told["result"]) == ("failed", "ValueError", None)


def test_the_environment_names_the_queue(place: Path) -> None:
    told = json.loads(jobq(place, "status", "binary", "--json", JOBQ_STORAGE=URL, JOBQ_QUEUE="binary").stdout)

    assert (told["state"], told["result"], told["unreadable_result_bytes"]) == ("completed", None, 5)


def test_looking_makes_no_storage(place: Path) -> None:
    """A mistyped path must not look like an empty queue."""
    (place / "empty").mkdir()

    for url in ("file:./empty", "file:./missing"):
        assert "no storage at" in one_line(jobq(place, "status", "done", "--storage", url))

    assert not list((place / "empty").iterdir())
    assert not (place / "missing").exists()


def test_a_damaged_storage_is_told_in_one_line(place: Path) -> None:
    (place / "bad").mkdir()
    (place / "bad" / "jobq.sqlite3").write_bytes(b"garbage\xff" * 1000)

    ended = jobq(place, "status", "done", "--storage", "file:./bad")

    assert ended.returncode == 1
    assert "damaged" in one_line(ended)


def test_a_closed_pipe_is_no_traceback(place: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jobq", "status", "done", "--storage", URL]
    ended = subprocess.run(
        command,
        cwd=place,
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=10,
        check=False,
    )
    os.close(writing)

    assert ended.returncode == 141
    assert "closed" in one_line(ended)


def test_without_typer_one_line_says_what_to_install(tmp_path: Path) -> None:
    """The extra is optional, and the command is installed without it as well."""
    program = "import sys; sys.modules['typer'] = None; from jobq.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=10, check=False
    )

    assert ended.returncode == 1
    assert "pip install jobq[cli]" in one_line(ended)


@pytest.mark.parametrize("command", ["worker", "status", "get", "cancel"])
def test_help_lists_the_exit_codes(tmp_path: Path, command: str) -> None:
    ended = jobq(tmp_path, command, "--help")

    assert ended.returncode == 0
    assert "\n      3  no job holds that id" in ended.stdout
