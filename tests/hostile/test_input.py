"""Any id, name, option, payload: it comes back exactly, or it is refused with a typed error and nothing is stored."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq import (
    ConfigError,
    Job,
    JsonSerde,
    MemoryStorage,
    MsgpackSerde,
    PayloadTooLargeError,
    Queue,
    SerializationError,
    State,
)
from jobq.storage.contract import Storage
from tests.engine.test_serde import strictly_equal
from tests.hostile.scenes import LONGEST, examples

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")

TRICKY = "\0\n\r\t :/\\.*?[]{}%$'\"<>&;|`~é\u0301\u200d\u202e\ufeff\ud800\udfff\U0001f468ÿ\x1b\x7f"
TEXTS = st.text(st.one_of(st.characters(), st.sampled_from(TRICKY)), max_size=40)
IDS = st.one_of(
    TEXTS,
    st.sampled_from(["a", "é", "\U0001f468", "\ud800", "a\0"]).flatmap(
        lambda letter: st.sampled_from([255, 256, 341, 342, 512, 1023, 1024, 1025]).map(lambda size: letter * size)
    ),
    st.sampled_from([b"a", 1, None, True, 1.5, ("a",), ["a"]]),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=20)
PAYLOADS = st.recursive(
    SCALARS | st.sampled_from([object(), timedelta(1), {1}, 2**70, -0.0, math.nan, lambda: 1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.one_of(TEXTS, SCALARS), inner, max_size=4),
    max_leaves=12,
)
OPTIONS = st.one_of(SCALARS, st.timedeltas(), st.sampled_from([10**400, 1e18, timedelta.max, [], {}, object()]))
MAX_PAYLOAD = 2000


class Raw:
    """A serde of bytes."""

    def serialize(self, value: Any) -> bytes:
        assert isinstance(value, bytes)
        return value

    def deserialize(self, data: bytes) -> Any:
        return data


class Served:
    """A queue whose handler returns what it is given, in a loop that runs from example to example."""

    def __init__(self, storage: Storage, runner: asyncio.Runner, **options: Any) -> None:
        self._runner = runner
        self._count = 0
        self.queue = Queue[Any, Any](storage, concurrency=10, max_payload=MAX_PAYLOAD, **options)
        self.seen: list[str] = []
        self.queue.execute(self._echo)

    async def _echo(self, job: Job[Any]) -> Any:
        self.seen.append(job.id)
        return job.payload

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(LONGEST):
                return await coroutine

        return self._runner.run(bounded())

    def new_id(self) -> str:
        self._count += 1
        return f"job-{self._count}"


@contextmanager
def served(storage: Storage, **options: Any) -> Iterator[Served]:
    with asyncio.Runner() as runner:
        served = Served(storage, runner, **options)
        served.run(served.queue.start())
        try:
            yield served
        finally:
            served.run(served.queue.stop(1.0))


def valid(id: object) -> bool:
    """An independent notion of a good id."""
    if not isinstance(id, str) or "\0" in id:
        return False
    return 1 <= len(id.encode("utf-8", "surrogatepass")) <= 1024 and not re.search("[\ud800-\udfff]", id)


def test_an_id_comes_back_exactly_or_is_refused_by_every_call(storage: Storage) -> None:
    """Alike on every storage, and a refused one leaves nothing behind."""
    with served(storage) as work:

        @examples(60)
        @given(IDS)
        def check(id: Any) -> None:
            work.run(accepted(work, id) if valid(id) else refused(work.queue, id))

        check()

        assert len(set(work.seen)) == len(work.seen) > 10


async def accepted(work: Served, id: str) -> None:
    before = len(work.seen)
    assert await work.queue.enqueue_and_wait(id, [id]) == [id]
    assert work.seen[before:] in ([id], [])  # The latter if an earlier example was the same.
    assert (await work.queue.enqueue(id, 1)).result == [id]
    status = await work.queue.get_status(id)
    assert status is not None
    assert (status.id, status.state, status.result) == (id, State.COMPLETED, [id])


async def refused(queue: Queue[Any, Any], id: Any) -> None:
    before = await queue.counts()
    calls = (
        queue.enqueue(id, 1),
        queue.enqueue_many([("good", 1), (id, 1)]),
        queue.enqueue_and_wait(id, 1),
        queue.wait(id),
        queue.get_status(id),
        queue.get_result(id),
        queue.cancel(id),
        queue.retry(id),
        queue.update_result_ttl(id, 1),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=r"^id=.*: ") as caught:
            await call
        assert str(caught.value).isprintable()
    assert await queue.counts() == before


@pytest.mark.parametrize("kind", [JsonSerde, MsgpackSerde])
def test_a_payload_comes_back_exactly_or_is_refused_and_nothing_stored(storage: Storage, kind: Any) -> None:
    """Through the queue, to the handler, and back as its result."""
    with served(storage, payload_serde=kind(), result_serde=kind()) as work:

        async def play(payload: Any) -> None:
            id = work.new_id()
            try:
                answer = await work.queue.enqueue_and_wait(id, payload)
            except (SerializationError, PayloadTooLargeError):
                assert await work.queue.get_status(id) is None
                assert id not in work.seen
            else:
                assert strictly_equal(payload, answer)

        @examples(60)
        @given(PAYLOADS)
        def check(payload: Any) -> None:
            work.run(play(payload))

        check()
        assert work.seen


def test_any_bytes_come_back_exactly(storage: Storage) -> None:
    """A storage keeps bytes, whatever they are; up to the limit, and not one more."""
    every = [bytes(range(256)), b"", b"\0" * MAX_PAYLOAD, bytes(range(256)) * 8]
    with served(storage, payload_serde=Raw(), result_serde=Raw()) as work:

        @examples(40)
        @given(st.sampled_from(every) | st.binary(max_size=300))
        def check(payload: bytes) -> None:
            call = work.queue.enqueue_and_wait(work.new_id(), payload)
            if len(payload) <= MAX_PAYLOAD:
                assert work.run(call) == payload
            else:
                with pytest.raises(PayloadTooLargeError):
                    work.run(call)

        check()
        assert work.seen


def test_an_argument_is_taken_or_refused_by_name_and_nothing_stored(storage: Storage) -> None:
    """None that is taken makes anything overflow."""
    with served(storage) as work:

        async def play(option: str, value: Any) -> None:
            id = work.new_id()
            try:
                answer = await work.queue.enqueue(id, 1, **{option: value})
            except ConfigError as error:
                check_wording(option, error)
                assert await work.queue.get_status(id) is None
            else:
                assert answer.status == "queued"
                status = await work.queue.get_status(id)
                assert status is None or math.isfinite(status.run_at + (status.expires_at or 0.0))

        @examples(80)
        @given(st.sampled_from(["max_attempts", "result_ttl", "delay", "priority"]), OPTIONS)
        def check(option: str, value: Any) -> None:
            work.run(play(option, value))

        check()
        assert work.seen


SECONDS = ("block_timeout", "visibility_timeout", "result_ttl", "job_timeout", "loop_stall_limit")
NUMBERS = ("concurrency", "max_attempts", "max_payload")
NAMES = ("name", "worker_id")


@examples(300)
@given(st.sampled_from(SECONDS + NUMBERS + NAMES), OPTIONS)
def test_an_option_is_taken_or_refused_by_name(option: str, value: Any) -> None:
    """With the value and the remedy, in one printable line."""
    try:
        queue = Queue[Any, Any](MemoryStorage(), **{option: value})
    except ConfigError as error:
        check_wording(option, error)
        assert not (option in NAMES and isinstance(value, str) and NAME.fullmatch(value))
    else:
        assert option not in NAMES or value is None or NAME.fullmatch(value)
        assert option not in NUMBERS or (type(value) is int and value > 0)
        assert repr(queue).isprintable()


def check_wording(option: str, error: ConfigError) -> None:
    """See that an error says which option it was, which value, and what it must be, in one printable line."""
    assert re.match(rf"{option}=.+: .*must be", str(error)), error
    assert str(error).isprintable()
