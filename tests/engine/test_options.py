"""Bad input: every option, argument, id and name is refused by name and value, before anything is stored."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobq import (
    ConfigError,
    EnqueueItem,
    ExponentialBackoff,
    FileStorage,
    JsonSerde,
    LeaderElection,
    MemoryStorage,
    PayloadTooLargeError,
    Queue,
    Reaper,
    RedisStorage,
    SerializationError,
    State,
    open_storage,
)
from jobq.clock import Clock
from jobq.storage.contract import Storage
from tests.engine.scenes import echo, in_loop, passing

ABSURD = [-1, -0.001, math.nan, math.inf, -math.inf, 1e18, 10**400, "5", b"5", True, False, [], object()]
NO_DURATION = [*ABSURD, timedelta(seconds=-1), timedelta.max]
NO_COUNT = [-1, 0, 0.0, 1.0, 1.5, math.nan, 10**18, "5", True, timedelta(seconds=1), []]
LONGEST = 100 * 365.25 * 86400


def shown(value: Any) -> str:
    """Name a value in a test's id, alike in every process."""
    return f"{type(value).__name__}-{ascii(value)[:24]}" if type(value) is not object else "object"


async def awaited(attempt: int, error: BaseException) -> float:
    """No retry policy, since nobody awaits its answer."""
    return 1.0


def cases(**values: list[Any]) -> Any:
    """Make one case of each option and each of its values."""
    return pytest.mark.parametrize(
        ("option", "value"),
        [pytest.param(option, value, id=f"{option}={shown(value)}") for option in values for value in values[option]],
    )


# Options


@cases(
    concurrency=[*NO_COUNT, None],
    max_attempts=[*NO_COUNT, None],
    max_payload=[*NO_COUNT, None],
    block_timeout=[*NO_DURATION, 0, 0.0, timedelta(0), None],
    visibility_timeout=[*NO_DURATION, 0, 0.0, timedelta(0), None],
    result_ttl=[*NO_DURATION, None],
    job_timeout=[*NO_DURATION, 0, 0.0, timedelta(0)],
    loop_stall_limit=[*NO_DURATION, 0, 0.0, timedelta(0)],
    retry=[3, "x", True, object(), awaited],
    after_execution=[3, "x", True, object()],
    logger=[5, "jobq", True, object(), logging.Logger],
    payload_serde=[3, "x", print, object(), JsonSerde],
    result_serde=[3, "x", print, object(), JsonSerde],
)
def test_an_option_of_a_queue_is_refused_by_name(storage: Storage, option: str, value: Any) -> None:
    """ConfigError is a ValueError, with a message that names the option."""
    with pytest.raises(ConfigError, match=option) as caught:
        Queue[Any, Any](storage, **{option: value})

    assert isinstance(caught.value, ValueError)
    assert caught.value.code == "CONFIG"


@cases(
    concurrency=[1, 100_000],
    max_attempts=[1, 1_000_000],
    max_payload=[1, 2**30],
    block_timeout=[1e-9, 5, 0.5, timedelta(milliseconds=1), LONGEST],
    visibility_timeout=[1e-9, 5, 0.5, timedelta(milliseconds=1), LONGEST],
    result_ttl=[0, 0.0, timedelta(0), LONGEST],
    job_timeout=[None, 1e-9, timedelta(days=1), LONGEST],
    loop_stall_limit=[None, 1, LONGEST],
    retry=[None, lambda attempt, error: 1.0],
    after_execution=[None, print],
    logger=[None],
    name=[None, "a", "A-1._", "0" * 128],
    worker_id=[None, "a", "_x"],
)
def test_an_option_of_a_queue_is_taken(storage: Storage, option: str, value: Any) -> None:
    """The ends of each range."""
    Queue[Any, Any](storage, **{option: value})


@cases(
    visibility_timeout=[*NO_DURATION, 0, 0.0, timedelta(0), None],
    leader_election=[3, "x", True, {"enabled": True}, LeaderElection],
    logger=[5, "jobq", True, object(), logging.Logger],
)
def test_an_option_of_a_reaper_is_refused_by_name(storage: Storage, option: str, value: Any) -> None:
    """Like a queue's."""
    with pytest.raises(ConfigError, match=option):
        Reaper(storage, **{option: value})


@cases(
    lock_ttl=[*NO_DURATION, 0, 0.0, timedelta(0), None],
    renewal_interval=[*NO_DURATION, 0, 0.0, timedelta(0), 30, 31.0],
    acquire_retry_interval=[*NO_DURATION, 0, 0.0, timedelta(0), None],
)
def test_a_setting_of_an_election_is_refused_by_name(option: str, value: Any) -> None:
    """Like a queue's."""
    with pytest.raises(ConfigError, match=option):
        LeaderElection(**{option: value})


@pytest.mark.parametrize("kind", [Queue, Reaper])
@pytest.mark.parametrize("value", [None, 5, "memory://", MemoryStorage, FileStorage, object()], ids=shown)
def test_what_is_no_storage_is_refused(kind: Any, value: Any) -> None:
    """With a word on what it should be, and not at the first use."""
    with pytest.raises(ConfigError, match=r"^storage: .*open_storage"):
        kind(value)


@pytest.mark.parametrize("path", ["", "a\0b", "lone \ud800", b"bytes", 5, None], ids=shown)
def test_what_is_no_path_is_refused(path: Any) -> None:
    """By name and value, and before anything is made."""
    with pytest.raises(ConfigError, match="base_path"):
        FileStorage(path)


@pytest.mark.parametrize("clock", [5, 0, "now", Clock, object()], ids=shown)
@pytest.mark.parametrize(
    "make",
    [MemoryStorage, functools.partial(FileStorage, "unused"), RedisStorage, ExponentialBackoff],
    ids=["memory", "file", "redis", "backoff"],
)
def test_what_is_no_clock_is_refused(make: Any, clock: Any) -> None:
    """By name, and not when the first job is enqueued."""
    with pytest.raises(ConfigError, match="clock"):
        make(clock=clock)


@pytest.mark.parametrize("durability", [["full"], {}, None, "fast", 1], ids=shown)
def test_what_is_no_durability_is_refused(tmp_path: Path, durability: Any) -> None:
    """Also what cannot be looked up in a table."""
    with pytest.raises(ConfigError, match="durability"):
        FileStorage(tmp_path, durability=durability)


@pytest.mark.parametrize("url", ["file://[::1", "file:///a%00b", "file:", "file:///", "file://elsewhere/x"])
def test_a_url_of_files_that_is_none_is_refused(url: str) -> None:
    """Typed, whatever is wrong with it."""
    with pytest.raises(ConfigError):
        open_storage(url)


@in_loop
async def test_a_path_in_a_url_is_any_bytes(tmp_path: Path) -> None:
    """A file's name need not be text."""
    async with Queue[Any, Any](open_storage(f"file://{tmp_path}/x%ff")) as queue:
        await queue.enqueue("a", 1)

    assert os.listdir(os.fsencode(tmp_path)) == [b"x\xff"]  # noqa: PTH208


@pytest.mark.parametrize("block_timeout", [5e-324, 1e-9])
@in_loop
async def test_a_tiny_block_timeout_works(storage: Storage, block_timeout: float) -> None:
    """It is taken, so jobs must run with it."""
    queue = Queue[Any, Any](storage, block_timeout=block_timeout)
    queue.execute(echo)
    async with queue:
        await passing(0.02)
        assert await queue.enqueue_and_wait("a", 1, timeout=2) == 1


@pytest.mark.parametrize("kind", [Queue, Reaper])
def test_an_unknown_option_is_a_type_error(storage: Storage, kind: Any) -> None:
    """A misspelt keyword is not ignored."""
    for wrong in ("concurency", "maxAttempts", "timeout"):
        with pytest.raises(TypeError, match=wrong):
            kind(storage, **{wrong: 1})


def test_options_are_given_by_name(storage: Storage) -> None:
    """A row of bare values cannot be read."""
    with pytest.raises(TypeError):
        Queue(storage, "name")  # type: ignore[misc]
    with pytest.raises(TypeError):
        Reaper(storage, "name")  # type: ignore[misc]


# Arguments of calls


@cases(
    max_attempts=NO_COUNT,
    result_ttl=NO_DURATION,
    delay=NO_DURATION,
    priority=[-1001, 1001, 0.0, 1.5, math.nan, "5", True, False, None, timedelta(0), 10**400],
)
@in_loop
async def test_an_argument_of_enqueue_is_refused_and_nothing_stored(storage: Storage, option: str, value: Any) -> None:
    """By each way of enqueueing."""
    async with Queue[Any, Any](storage) as queue:
        with pytest.raises(ConfigError, match=option):
            await queue.enqueue("a", 1, **{option: value})
        with pytest.raises(ConfigError, match=option):
            await queue.enqueue_and_wait("a", 1, **{option: value})
        with pytest.raises(ConfigError, match=option):
            await queue.enqueue_many([EnqueueItem("a", 1, **{option: value})])

        assert await queue.get_status("a") is None


@pytest.mark.parametrize("value", NO_DURATION, ids=shown)
@in_loop
async def test_a_timeout_is_refused_and_nothing_stored(storage: Storage, value: Any) -> None:
    """Of waits and of stop; a refused stop stops nothing."""
    async with Queue[Any, Any](storage) as queue:
        with pytest.raises(ConfigError, match="timeout"):
            await queue.enqueue_and_wait("a", 1, timeout=value)
        with pytest.raises(ConfigError, match="timeout"):
            await queue.wait("a", timeout=value)
        with pytest.raises(ConfigError, match="timeout"):
            await queue.stop(value)
        with pytest.raises(ConfigError, match="ttl"):
            await queue.update_result_ttl("a", value)

        assert await queue.get_status("a") is None


@in_loop
async def test_the_ends_of_each_range_are_taken(storage: Storage) -> None:
    """The longest durations overflow nowhere, and wait for ever as far as anybody can tell."""
    queue = Queue[Any, Any](
        storage,
        block_timeout=LONGEST,
        visibility_timeout=LONGEST,
        job_timeout=LONGEST,
        result_ttl=LONGEST,
        loop_stall_limit=LONGEST,
    )
    queue.execute(echo)
    async with queue:
        assert await queue.enqueue_and_wait("a", 1, timeout=LONGEST, priority=1000, max_attempts=1_000_000) == 1
        assert await queue.enqueue_and_wait("b", 1, result_ttl=LONGEST, priority=-1000) == 1
        assert (await queue.enqueue("c", 1, delay=LONGEST)).status == "queued"
        assert (await queue.update_result_ttl("a", LONGEST)).status == "updated"
        assert (await queue.counts())[State.QUEUED] == 1
        await queue.stop(LONGEST)


@in_loop
async def test_an_unknown_argument_is_a_type_error(storage: Storage) -> None:
    """A misspelt keyword is not ignored."""
    async with Queue[Any, Any](storage) as queue:
        with pytest.raises(TypeError, match="dealy"):
            await queue.enqueue("a", 1, dealy=5)  # type: ignore[call-arg]


# Ids


class EvilStr(str):
    """A text that lies about itself."""

    __slots__ = ()

    def __str__(self) -> str:
        raise AssertionError("__str__ was called")

    __repr__ = __str__

    def encode(self, *arguments: Any) -> bytes:
        raise AssertionError("encode was called")

    def __len__(self) -> int:
        return 10**6

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


GOOD_IDS = [
    " ", "a", "A", "a:exp", "a:b", "a/b", "../../x", "/etc/passwd", ".", "..", "a\\b", "C:\\x", "~", "\n",
    "\r\nSET x 1", "*",
    "?[a-z]", "{tag}", "}{", "%s%n", "'; DROP TABLE jobs;--", "<script>", "__proto__", "NaN", "null", "None",
    "\u00e9", "e\u0301", "👩\u200d👩\u200d👧", "\u200fabc", "\ufeff", "\x01", "\x7f", "x" * 255, "x" * 256, "x" * 1024,
    "é" * 512, "\U0010ffff" * 256, "a ", " a", "a\t", "CON", "aux.", "0", "1e3",
]  # fmt: skip
BAD_IDS = [
    "", "\0", "a\0b", "\ud800", "a\udfffb", "x" * 1025, "é" * 513, "x" * 10_000_000, b"a", 1, None, True, 1.5,
    ("a",), object(),
]  # fmt: skip


@pytest.mark.slow
@in_loop
async def test_good_ids_come_back_exactly_and_stay_distinct(storage: Storage) -> None:
    """In every member that takes or tells an id."""
    queue = Queue[Any, Any](storage, concurrency=10)
    seen: list[str] = []
    async with queue:
        answers = await queue.enqueue_many([(id, number) for number, id in enumerate(GOOD_IDS)])
        assert {answer.status for answer in answers} == {"queued"}
        assert (await queue.counts())[State.QUEUED] == len(GOOD_IDS)
        for id in GOOD_IDS[::2]:
            assert (await queue.cancel(id)).status == "cancelled"
        for number, id in enumerate(GOOD_IDS):
            status = await queue.get_status(id)
            assert (status is None) == (number % 2 == 0)
            assert status is None or status.id == id
            assert (await queue.enqueue(id, number)).status == ("duplicate" if number % 2 else "queued")

        @queue.execute
        async def note(job: Any) -> Any:
            seen.append(job.id)
            return job.payload

        for number, id in enumerate(GOOD_IDS):
            assert await queue.wait(id) == number
            assert await queue.get_result(id) == number
            assert (await queue.update_result_ttl(id, 60)).status == "updated"
            assert (await queue.retry(id)).status == "not_failed"

    assert sorted(seen) == sorted(GOOD_IDS)


@pytest.mark.parametrize("id", BAD_IDS, ids=shown)
@in_loop
async def test_a_bad_id_is_refused_everywhere(storage: Storage, id: Any) -> None:
    """Alike on every storage, with a message that can be printed."""
    calls: list[Callable[[Queue[Any, Any]], Any]] = [
        lambda queue: queue.enqueue(id, 1),
        lambda queue: queue.enqueue_many([(id, 1)]),
        lambda queue: queue.enqueue_many([EnqueueItem(id, 1)]),
        lambda queue: queue.enqueue_and_wait(id, 1),
        lambda queue: queue.wait(id),
        lambda queue: queue.cancel(id),
        lambda queue: queue.get_result(id),
        lambda queue: queue.get_status(id),
        lambda queue: queue.update_result_ttl(id, 1),
        lambda queue: queue.retry(id),
    ]
    async with Queue[Any, Any](storage) as queue:
        for call in calls:
            with pytest.raises(ConfigError, match="id=") as caught:
                await call(queue)
            assert str(caught.value).replace("…", "").isascii()
            assert len(str(caught.value)) < 300

        assert sum((await queue.counts()).values()) == 0


@in_loop
async def test_a_subclass_of_str_is_stored_as_plain_text(storage: Storage) -> None:
    """Whatever its methods say."""
    async with Queue[Any, Any](storage) as queue:
        assert (await queue.enqueue(EvilStr("evil"), 1)).status == "queued"
        assert (await queue.enqueue("evil", 1)).status == "duplicate"
        assert (await queue.enqueue_many([(EvilStr("evil"), 1)]))[0].status == "duplicate"
        status = await queue.get_status(EvilStr("evil"))
        assert status is not None
        assert type(status.id) is str
        assert (await queue.cancel(EvilStr("evil"))).status == "cancelled"


# Names

BAD_NAMES = [
    "", " ", "a b", "a:b", "a/b", "../x", ".", "..", ".a", "-a", "a\\b", "C:\\x", "~", "a\0b", "\n", "a\n", "*",
    "{tag}", "%s", "'; DROP TABLE jobs;--", "<script>", "é", "x" * 129, "\ud800", b"a", 1, True, 1.5, object(), ["a"],
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_NAMES, ids=shown)
def test_a_bad_name_is_refused(storage: Storage, value: Any) -> None:
    """Of queues, reapers and workers."""
    with pytest.raises(ConfigError, match=r"^name="):
        Queue[Any, Any](storage, name=value)
    with pytest.raises(ConfigError, match=r"^name="):
        Reaper(storage, name=value)
    with pytest.raises(ConfigError, match=r"^worker_id="):
        Queue[Any, Any](storage, worker_id=value)


@pytest.mark.parametrize("value", ["a", "A", "0", "_", "a.b-c_D", "x" * 128, "CON", "null", "__proto__"])
@in_loop
async def test_a_good_name_works(storage: Storage, value: str) -> None:
    """And is a queue of its own."""
    queue = Queue[Any, Any](storage, name=value, worker_id=value)
    queue.execute(echo)
    async with queue, Queue[Any, Any](storage, name="other") as other:
        assert await queue.enqueue_and_wait("a", 1) == 1
        assert await other.get_status("a") is None


# Payloads


@pytest.mark.parametrize(
    "payload",
    [math.nan, math.inf, [-math.inf], {1: 2}, {None: 1}, {1, 2}, object(), print, lambda: 1, "\ud800", b"raw", 1 + 2j],
    ids=lambda value: type(value).__name__,
)
@in_loop
async def test_a_payload_that_would_not_come_back_is_refused_and_nothing_stored(storage: Storage, payload: Any) -> None:
    """Exact or refused."""
    async with Queue[Any, Any](storage) as queue:
        for call in (
            lambda: queue.enqueue("a", payload),
            lambda: queue.enqueue_and_wait("a", payload),
            lambda: queue.enqueue_many([("b", 1), ("a", payload)]),
        ):
            with pytest.raises(SerializationError, match="'a'"):
                await call()

        assert sum((await queue.counts()).values()) == 0


@pytest.mark.parametrize("payload", [None, -0.0, 2**70, "\0", "", [], {}, [None], {"": None}, "é\u200f"], ids=shown)
@in_loop
async def test_a_payload_comes_back_exactly(storage: Storage, payload: Any) -> None:
    """To the handler."""
    queue = Queue[Any, Any](storage)
    seen: list[Any] = []

    @queue.execute
    async def note(job: Any) -> None:
        seen.append(job.payload)

    async with queue:
        await queue.enqueue_and_wait("a", payload)

    assert repr(seen) == repr([payload])


@in_loop
async def test_max_payload_is_exact(storage: Storage) -> None:
    """It limits the encoded bytes; one more is too large, and nothing is stored."""
    async with Queue[Any, Any](storage, max_payload=10) as queue:
        assert (await queue.enqueue("fits", "x" * 8)).status == "queued"
        for payload in ("x" * 9, "x" * 10_000_000):
            with pytest.raises(PayloadTooLargeError, match="max_payload") as caught:
                await queue.enqueue("a", payload)
            assert caught.value.code == "PAYLOAD_TOO_LARGE"
        assert await queue.get_status("a") is None
