"""What others choose, ids, messages, stored errors, stays data: no line of a log is forged, no class is looked up."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq import FileStorage, GiveUp, Job, JobFailedError, Queue, State
from jobq._failure import decode_error, failure
from jobq.errors import ErrorInfo
from jobq.storage.contract import Storage
from tests.engine.scenes import in_loop
from tests.hostile.scenes import examples, tamper

EVIL = "id\r\nERROR:root:forged\x1b[2J\x9b\u2028\u202e"


@in_loop
async def test_no_line_of_the_log_is_forged_by_an_id_or_a_message(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that ignores its stop, and an error that nobody listens to: each is one printable line."""
    caplog.set_level(logging.DEBUG)
    queue = Queue[int, int](storage, concurrency=3)
    begun, release = asyncio.Event(), asyncio.Event()

    @queue.execute
    async def ignore(job: Job[int]) -> int:
        begun.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return 1

    @queue.on("enqueued")
    def fail(id: str) -> None:
        raise ValueError(f"of {id}")

    async with queue:
        await queue.enqueue(EVIL, 1)
        await begun.wait()
        await queue.stop(0)
    release.set()

    lines = [record.getMessage() for record in caplog.records if record.name.startswith("jobq")]
    assert any("ignores that its worker stops" in line for line in lines)
    assert any("jobq: 'of id" in line for line in lines)
    assert all(line.isprintable() for line in lines)


@pytest.mark.storage("file")
@in_loop
async def test_a_damaged_record_is_logged_in_one_printable_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The id is not to be believed there either."""
    async with Queue[int, int](FileStorage(tmp_path), block_timeout=0.1) as queue:
        await queue.enqueue(EVIL, 1)
        assert tamper(tmp_path, "UPDATE jobs SET created_at = 'x'") == 1
        queue.execute(lambda job: 1)
        while not caplog.records:
            await queue.counts()

    [line] = [record.getMessage() for record in caplog.records]
    assert "damaged" in line
    assert line.isprintable()


@in_loop
async def test_a_failure_comes_back_as_data_and_never_as_its_class(storage: Storage) -> None:
    """Whatever the class is called, and whatever its constructor would do."""

    class SystemExit(Exception):
        code = "rm -rf"

    queue = Queue[str, int](storage, max_attempts=1)

    @queue.execute
    async def fail(job: Job[str]) -> int:
        raise {"own": SystemExit, "built-in": KeyboardInterrupt, "given up": GiveUp}[job.payload](EVIL)

    async with queue:
        for kind in ("own", "built-in", "given up"):
            with pytest.raises(JobFailedError) as caught:
                await queue.enqueue_and_wait(kind, kind)

            assert type(caught.value).__module__ == "jobq.errors"
            assert type(caught.value.error) is ErrorInfo
            assert caught.value.error.message == EVIL
            assert caught.value.__cause__ is None


STORED = st.binary(max_size=60) | st.builds(
    lambda value: json.dumps(value).encode(),
    st.dictionaries(
        st.sampled_from(["type", "message", "code", "stack", "__class__", "py/object"]),
        st.sampled_from(["os.system", "builtins.SystemExit", "", "\ud800", None, 1, [], {"type": "x"}]),
        max_size=6,
    ),
)


@examples(200)
@given(STORED)
def test_any_stored_error_is_read_as_text_or_as_unreadable(data: bytes) -> None:
    """Other hands may have written it."""
    info = decode_error(data)

    told = failure("job", info, 1, 3)

    assert type(info) is ErrorInfo
    assert isinstance(told, JobFailedError)
    assert all(value is None or type(value) is str for value in (info.type, info.message, info.code, info.stack))


@pytest.mark.storage("file")
@in_loop
async def test_an_error_that_others_stored_is_told_as_one(tmp_path: Path) -> None:
    """To whoever waits and to whoever asks."""
    forged: Any = json.dumps({"type": "SystemExit", "message": "0", "__reduce__": ["os.system", ["true"]]}).encode()
    queue = Queue[int, int](FileStorage(tmp_path), max_attempts=1)
    queue.execute(lambda job: 1 // 0)
    async with queue:
        with pytest.raises(JobFailedError, match="ZeroDivisionError"):
            await queue.enqueue_and_wait("job", 1)
        deep = b'{"type":"A","message":"","x":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
        for stored, wanted in ((forged, "SystemExit"), (b"\x80\x04garbage", "Unknown"), (deep, "Unknown")):
            assert tamper(tmp_path, "UPDATE jobs SET error = ?", stored) == 1

            with pytest.raises(JobFailedError, match=wanted):
                await queue.wait("job")
            status = await queue.get_status("job")
            assert status is not None
            assert status.error is not None
            assert (status.state, status.error.type) == (State.FAILED, wanted)
