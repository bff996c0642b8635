"""The command line on real Redis and Valkey servers: what it finds, and how it tells that it cannot."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobq import Job, JobFailedError, Queue, RedisStorage
from tests.servers.fixtures import Starter
from tests.servers.secret import SECRET
from tests.servers.server import Server

pytestmark = pytest.mark.slow

SOURCES = Path(__file__).resolve().parents[2] / "src"
MODULE = """
import os
from jobq import Job, Queue, RedisStorage

queue = Queue[str, str](RedisStorage(os.environ["SERVER"]), name=os.environ["QUEUE"])

@queue.execute
async def handle(job: Job[str]) -> str:
    return job.payload.upper()
"""


@pytest.fixture
def queue_name(key_prefix: str) -> str:
    """A queue of this test's own: the command line knows no key_prefix."""
    return key_prefix.removesuffix(":")


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Server:
    found = request.getfixturevalue(f"{request.param}_server")
    assert isinstance(found, Server)
    return found


def jobq(*arguments: str, directory: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobq", *arguments],
        cwd=directory,
        env=surroundings(**environment),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def surroundings(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("JOBQ_")}
    return own | {"PYTHONPATH": str(SOURCES), "PYTHONUTF8": "1", "COLUMNS": "100"} | more


def told(ended: subprocess.CompletedProcess[str], secret: str = SECRET) -> str:
    """Return what was told on stderr: one printable line, without the secret, and nothing on stdout."""
    line = ended.stderr.removesuffix("\n")
    assert line.startswith("jobq: ")
    assert line.isprintable()
    assert secret not in line
    assert ended.stdout == ""
    return line


async def fill(url: str, name: str) -> None:
    """Complete ``done``, fail ``broken``, and leave ``later`` queued."""
    queue = Queue[int, int](RedisStorage(url), name=name)

    @queue.execute
    async def handle(job: Job[int]) -> int:
        if job.id == "broken":
            raise ValueError("red")
        return 2 * job.payload

    async with queue:
        await queue.enqueue_and_wait("done", 21)
        with pytest.raises(JobFailedError):
            await queue.enqueue_and_wait("broken", 1, max_attempts=1)
        await queue.enqueue("later", 1, delay=3600)


def test_jobs_are_looked_at_and_cancelled(server: Server, queue_name: str) -> None:
    """The same answers and codes as with files; both spellings of the scheme."""
    asyncio.run(fill(server.url, queue_name))
    given = {"JOBQ_STORAGE": server.url.replace("redis://", "valkey://"), "JOBQ_QUEUE": queue_name}

    assert jobq("get", "done", **given).stdout == "42\n"
    assert "state      failed" in jobq("status", "broken", **given).stdout
    assert jobq("get", "broken", **given).returncode == 4
    assert jobq("cancel", "later", "--storage", server.url, "--queue", queue_name).stdout == "cancelled\n"
    assert jobq("get", "later", **given).returncode == 3


def test_a_worker_serves_until_empty_and_until_a_signal(server: Server, queue_name: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(MODULE, encoding="utf-8")
    given = {"SERVER": server.url, "QUEUE": queue_name}

    async def add(id: str) -> None:
        async with Queue[str, str](RedisStorage(server.url), name=queue_name) as queue:
            await queue.enqueue(id, "hello")

    async def wait(id: str) -> str:
        async with Queue[str, str](RedisStorage(server.url), name=queue_name) as queue:
            return await queue.wait(id, timeout=10)

    asyncio.run(add("first"))
    assert jobq("worker", "tasks:queue", "--burst", directory=tmp_path, **given).returncode == 0
    assert jobq("get", "first", "--storage", server.url, "--queue", queue_name).stdout == '"HELLO"\n'

    asyncio.run(add("second"))
    command = [sys.executable, "-m", "jobq", "worker", "tasks:queue"]
    with subprocess.Popen(command, cwd=tmp_path, env=surroundings(**given), stderr=subprocess.PIPE) as process:
        try:
            assert asyncio.run(wait("second")) == "HELLO"
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=10)
            assert process.returncode == 0
        finally:
            process.kill()


def test_a_wrong_password_is_told_without_it(start: Starter) -> None:
    server = start.server(password=SECRET)
    wrong = server.url.replace(SECRET, "another-one")
    without = server.url.replace(f":{SECRET}@", "")

    for command in ("status", "get", "cancel"):
        ended = jobq(command, "job", "--storage", wrong)
        assert ended.returncode == 1
        assert "see that the user and the password are right" in told(ended, "another-one")
    assert "Authentication required" in told(jobq("status", "job", "--storage", without))
    assert jobq("status", "job", "--storage", server.url).returncode == 3


def test_a_server_that_is_down_is_told(start: Starter, tmp_path: Path) -> None:
    """Of a worker as well, if it has not begun: a supervisor starts it again."""
    server = start.server(password=SECRET)
    server.stop()
    (tmp_path / "tasks.py").write_text(MODULE, encoding="utf-8")

    for command in ("status", "get", "cancel"):
        ended = jobq(command, "job", "--storage", server.url)
        assert ended.returncode == 1
        assert f"redis://127.0.0.1:{server.port}/0 is unavailable" in told(ended)
    ended = jobq("worker", "tasks:queue", directory=tmp_path, SERVER=server.url, QUEUE="default")

    assert ended.returncode == 1
    assert "is unavailable" in told(ended)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"redis://user:{SECRET}@host/x", "database must be a number"),
        (f"redis://user:{SECRET}@host:6379/0?colour={SECRET}", "unknown option 'colour'"),
        (f"redis://user:/{SECRET}@host", "percent-encoded"),
        (f"redis+file://user:{SECRET}@host", "unknown scheme 'redis+file'"),
    ],
)
def test_a_malformed_url_is_told_without_its_password(url: str, words: str) -> None:
    ended = jobq("status", "job", "--storage", url)

    assert ended.returncode == 1
    assert words in told(ended)


def test_a_missing_extra_is_named() -> None:
    program = "import sys; sys.modules['redis'] = None; from jobq.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, "status", "job", "--storage", "redis://localhost"],
        env=surroundings(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert ended.returncode == 1
    assert told(ended) == "jobq: RedisStorage needs an extra that is not installed: pip install 'jobq[redis]'"
