"""A password in a URL is used and never shown: not by an error, its causes and tracebacks, nor by a repr or a log."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any, Literal

import pytest

from jobq import JobQueueError, Queue, Reaper, StorageError, open_storage
from tests.faults_redis.scenes import Work, eventually, in_loop
from tests.servers.fixtures import Starter
from tests.servers.secret import SECRET, WRONG, fail_if_shown, reading_along
from tests.servers.server import Server


def spoken(error: BaseException) -> str:
    """Return all that people are shown of an error: itself, what caused it, and the lines of its tracebacks."""
    return f"{error} {error!r} {error.args} {vars(error)} {''.join(traceback.format_exception(error))}"


def log_of(caplog: pytest.LogCaptureFixture) -> str:
    return caplog.text + "".join(f"{record.args}{record.msg}" for record in caplog.records)


WRONG_URLS: list[Callable[[int], str]] = [
    lambda port: f"redis://:{WRONG}@127.0.0.1:{port}/0",
    lambda port: f"redis://nobody:{SECRET}@127.0.0.1:{port}/0",
    lambda port: f"redis://:{SECRET}@127.0.0.1:{port}/99",
    lambda port: f"rediss://:{SECRET}@127.0.0.1:{port}/0",
    lambda port: f"redis://:{SECRET}@127.0.0.1:1/0",
    lambda port: f"redis://:{SECRET}@no-such-host.invalid:{port}/0",
    lambda port: f"redis+cluster://:{SECRET}@127.0.0.1:{port}",
    lambda port: f"redis+sentinel://:{SECRET}@127.0.0.1:{port}/jobs?sentinel_password={SECRET}",
    lambda port: f"redis+unix://:{SECRET}@/no/such/socket",
]
MALFORMED = [
    f"redis://u:{SECRET}@host:port",
    f"redis://u:{SECRET}@host/0?unknown=1",
    f"redis://u:{SECRET}/x@host",
    f"rediss://u:{SECRET}@host?ssl_cert_reqs=maybe",
    f"unknown://u:{SECRET}@host",
    f"memory://u:{SECRET}@host",
    f"file://u:{SECRET}@host/path",
    f"u:{SECRET}@host",
    f"u%3A{SECRET}@host",
    SECRET,
    f"memory:{SECRET}",
    f"file:///path?password={SECRET}",
    f"redis://{SECRET}@[::1",
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Server("valkey", tmp_path_factory.mktemp("guarded"), password=SECRET) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("url_of", WRONG_URLS, ids=range(len(WRONG_URLS)))
@in_loop
async def test_a_start_that_fails_shows_no_password(
    guarded: Server, url_of: Callable[[int], str], caplog: pytest.LogCaptureFixture
) -> None:
    """Each way in which a server is not to be had."""
    caplog.set_level(logging.DEBUG)
    storage = open_storage(url_of(guarded.port))
    queue = Queue[int, int](storage)

    with pytest.raises(StorageError) as caught:
        await queue.start()

    shown = f"{spoken(caught.value)} {storage!r} {storage} {storage.twin()!r} {queue!r} {Reaper(storage)!r}"
    assert SECRET not in shown + log_of(caplog)
    assert "127.0.0.1" in shown or ".invalid" in shown or "/no/such/socket" in shown


@pytest.mark.parametrize("url", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_url_is_refused_without_its_password(url: str) -> None:
    """Also where it is not certain what the password is."""
    with pytest.raises(JobQueueError) as caught:
        open_storage(url)

    told = f"{caught.value} {caught.value!r} {caught.value.args} {vars(caught.value)}"
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert SECRET not in told


@pytest.mark.slow
@in_loop
async def test_an_outage_shows_no_password(start: Starter, caplog: pytest.LogCaptureFixture) -> None:
    """While jobs run, callers wait and a reaper looks: to callers, to listeners, in the log of everything."""
    caplog.set_level(logging.DEBUG)
    server = start.server(password=SECRET)
    storage = open_storage(server.url)
    errors: list[BaseException] = []
    async with (
        Work(storage, seconds=0.2, visibility_timeout=1.0) as work,
        Reaper(storage, visibility_timeout=0.3) as reaper,
    ):
        reaper.on("error", errors.append)
        assert await work.queue.enqueue_and_wait("before", 21) == 42
        await work.queue.enqueue_many([(f"job-{number}", 1) for number in range(20)])
        server.kill()
        calls = (work.queue.enqueue("x", 1), work.queue.cancel("job-1"), work.queue.counts(), work.queue.wait("job-9"))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await eventually(lambda: work.of("error") or errors, "an error")

    told = [answer for answer in (*answers, *work.of("error"), *errors) if isinstance(answer, BaseException)]
    assert len(told) >= 5
    assert SECRET not in "".join(map(spoken, told)) + log_of(caplog)
    assert all(str(server.port) in spoken(error) for error in told)
    assert "unavailable" in log_of(caplog)


@pytest.mark.parametrize("place", ["Captured stdout call", "Captured stderr setup", "Captured log teardown"])
def test_a_test_that_shows_the_password_fails(place: str) -> None:
    """Else nobody would notice that one did."""
    quiet, loud = (
        pytest.TestReport("x", ("x", 1, "x"), {}, "passed", None, "call", sections=[(place, text)])
        for text in ("redis://127.0.0.1", f"redis://:{SECRET}@127.0.0.1")
    )

    fail_if_shown(quiet)
    fail_if_shown(loud)

    assert (quiet.outcome, loud.outcome) == ("passed", "failed")
    assert place in str(loud.longrepr)


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_a_test_that_shows_the_password_in_how_it_ended_says_so(outcome: Literal["failed", "skipped"]) -> None:
    """A failure is printed, with the values that were compared: that is how a password comes into a public log."""
    report = pytest.TestReport("x", ("x", 1, "x"), {}, outcome, f"assert 'redis://:{SECRET}@h' == ''", "call")

    fail_if_shown(report)

    assert report.outcome == "failed"
    assert "its own report" in f"{report.longrepr}{report.sections}"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("text", [True, False])
def test_what_a_program_says_into_a_pipe_is_read_along(stream: str, text: bool) -> None:
    """A test that captures it and looks at its exit code alone would hide a password that it shows."""
    said: list[str] = []
    program = f"import sys; print('a word', file=sys.{stream})"

    with reading_along(said.append):
        subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=text, check=True)

    assert said == ["a word\n"]


def test_a_program_that_shows_the_password_is_told_in_the_report(request: pytest.FixtureRequest) -> None:
    """In a section of its own, which is looked at like what a test prints."""
    subprocess.run([sys.executable, "-I", "-S", "-c", f"print({SECRET!r})"], capture_output=True, check=True)

    told = [section for section in request.node._report_sections if SECRET in section[2]]
    request.node._report_sections = [section for section in request.node._report_sections if section not in told]

    assert [section[:2] for section in told] == [("call", "from a program")]
