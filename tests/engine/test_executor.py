"""A table: what a handler does, and what becomes of its job."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from jobq import (
    ConfigError,
    GiveUp,
    Job,
    JobAborted,
    JobFailedError,
    MaxRetriesError,
    Queue,
    RetryLater,
    SerializationError,
    State,
)
from jobq.storage.contract import Storage
from tests.engine.scenes import Events, in_loop, no_thread_for, passing

Handler = Callable[[Job[Any]], Any]
BOTH = pytest.mark.parametrize("threaded", [False, True], ids=["coroutine", "thread"])


def handler_of(act: Handler, threaded: bool) -> Handler:
    """Make an async or a plain handler of one and the same body."""
    if threaded:
        return lambda job: act(job)

    async def coroutine(job: Job[Any]) -> Any:
        return act(job)

    return coroutine


def raising(error: BaseException) -> Handler:
    def act(job: Job[Any]) -> None:
        raise error

    return act


class Odd(BaseException):
    """Not an Exception."""


class Panic(Exception):
    """Asked for its text or its code, it raises what is no Exception."""

    def __str__(self) -> str:
        raise Odd

    @property
    def code(self) -> str:
        raise SystemExit(3)


class Nameless(type):
    """Of its classes one cannot even say what they are called."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class Anonymous(Exception, metaclass=Nameless):
    """It has no name."""


class Slotted(Exception):
    """It has no room for a code."""

    __slots__ = ()


class Unprintable(Exception):
    """It cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class HostileCode(Exception):
    """Reading its code raises."""

    @property
    def code(self) -> str:
        raise RuntimeError("no code")


@BOTH
@pytest.mark.parametrize(
    "value",
    [None, False, 0, 0.0, "", [], {}, "\0", "é😀", 2**63, -0.5, [None, [False]], {"": {"a": []}}, "x" * 100_000],
    ids=lambda value: ascii(value)[:20],
)
@in_loop
async def test_a_value_comes_back_exactly(storage: Storage, value: Any, threaded: bool) -> None:
    """Falsy values are results like others, and the waiter returns at once."""
    queue = Queue[Any, Any](storage)
    queue.execute(handler_of(lambda job: value, threaded))
    events = Events(queue)
    async with queue:
        got = await queue.enqueue_and_wait("a", 1, timeout=2)
        status = await queue.get_status("a")

    assert got == value
    assert type(got) is type(value)
    assert status is not None
    assert status.state is State.COMPLETED
    assert events.of("completed") == [("a", value)]


ERRORS: list[BaseException] = [
    ValueError("no"),
    SystemExit(3),
    KeyboardInterrupt(),
    asyncio.CancelledError("mine"),
    GeneratorExit("mine"),
    StopIteration(5),
    StopAsyncIteration(),
    RecursionError("deep"),
    MemoryError(),
    Odd("odd"),
    Slotted("slotted"),
    TimeoutError("its own"),
    JobAborted("stopping"),
    AssertionError(),
    ExceptionGroup("several", [ValueError(1), KeyError(2)]),
    ValueError("\ud800 lone"),
    ValueError("x" * 100_000),
    Unprintable(),
    HostileCode(),
    Panic(),
    RetryLater(0.0),
]


@BOTH
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@in_loop
async def test_whatever_is_raised_fails_the_attempt_and_never_the_worker(
    storage: Storage, error: BaseException, threaded: bool
) -> None:
    """It is run again, then failed with the exception's name, and the worker goes on with the next job."""
    queue = Queue[Any, Any](storage, max_attempts=2, retry=lambda attempt, error: 0.0, visibility_timeout=1)
    events = Events(queue)

    def act(job: Job[Any]) -> str:
        if job.id == "next":
            return "fine"
        raise error

    queue.execute(handler_of(act, threaded))
    async with queue:
        with pytest.raises(MaxRetriesError) as caught:
            await queue.enqueue_and_wait("a", 1, timeout=2)
        assert await queue.enqueue_and_wait("next", 1, timeout=2) == "fine"
        status = await queue.get_status("a")

    assert status is not None
    assert status.state is State.FAILED
    assert status.attempts == caught.value.attempts == 2
    assert caught.value.error == status.error
    names = {type(error).__name__, "RuntimeError"} if isinstance(error, StopIteration) else {type(error).__name__}
    names |= {"RuntimeError"} if isinstance(error, StopAsyncIteration) else set()
    assert caught.value.error.type in names
    assert len(caught.value.error.message) <= 16 * 1024
    assert len(caught.value.error.stack or "") <= 64 * 1024
    assert [event[::2] for event in events.of("failing")] == [("a", 1)]


@in_loop
async def test_a_handler_that_cancels_its_own_task_fails_its_attempt(storage: Storage) -> None:
    """The task is usable for the judgement afterwards, and the worker unharmed."""
    queue = Queue[Any, Any](storage, max_attempts=1)

    @queue.execute
    async def suicidal(job: Job[Any]) -> str:
        if job.id == "next":
            return "fine"
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return "not reached"

    async with queue:
        with pytest.raises(MaxRetriesError) as caught:
            await queue.enqueue_and_wait("a", 1, timeout=2)
        assert await queue.enqueue_and_wait("next", 1, timeout=2) == "fine"

    assert caught.value.error.type == "CancelledError"


@in_loop
async def test_a_handler_may_swallow_a_cancel_of_its_own(storage: Storage) -> None:
    """Its value counts: nobody of jobq's asked it to end."""
    queue = Queue[Any, Any](storage)

    @queue.execute
    async def handler(job: Job[Any]) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return "went on"
        return "not reached"

    async with queue:
        assert await queue.enqueue_and_wait("a", 1, timeout=2) == "went on"


def self_referencing() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


async def nothing() -> None:
    """Return nothing."""


async def endless() -> AsyncIterator[int]:
    yield 1


class Hostile:
    """It does something when it is pickled."""

    def __reduce__(self) -> Any:
        raise AssertionError("pickled")


UNSERIALISABLE: dict[str, Callable[[], Any]] = {
    "NaN": lambda: float("nan"),
    "infinity": lambda: [float("inf")],
    "set": lambda: {1, 2},
    "object": object,
    "hostile": Hostile,
    "int key": lambda: {1: 2},
    "lone surrogate": lambda: "\ud800",
    "self-referencing": self_referencing,
    "deep": deep,
    "function": lambda: print,
    "generator": lambda: (number for number in range(3)),
    "async generator": endless,
    "coroutine": nothing,
    "future": lambda: asyncio.Event(),
    "exception": lambda: ValueError("returned"),
}


@BOTH
@pytest.mark.parametrize("name", UNSERIALISABLE)
@in_loop
async def test_a_result_that_cannot_be_stored_fails_at_once(storage: Storage, name: str, threaded: bool) -> None:
    """Running it again cannot help: one run, and an error that says why."""
    queue = Queue[Any, Any](storage)
    runs: list[int] = []

    def act(job: Job[Any]) -> Any:
        runs.append(job.attempts)
        return UNSERIALISABLE[name]()

    queue.execute(handler_of(act, threaded))
    async with queue:
        with pytest.raises(JobFailedError) as caught:
            await queue.enqueue_and_wait("a", 1, timeout=3)

    assert runs == [1]
    assert type(caught.value) is JobFailedError
    assert caught.value.error.type == "SerializationError"
    assert caught.value.error.code == "SERIALIZATION"


@in_loop
async def test_an_oversized_result_fails_at_once_with_a_code_of_its_own(storage: Storage) -> None:
    """The waiter is told, and the message says what to do."""
    queue = Queue[Any, Any](storage, max_payload=100)
    runs: list[str] = []

    @queue.execute
    async def large(job: Job[Any]) -> str:
        runs.append(job.id)
        return "x" * (job.payload - 2)  # Two more bytes are the quotes.

    async with queue:
        assert len(await queue.enqueue_and_wait("fits", 100)) == 98
        with pytest.raises(JobFailedError) as caught:
            await queue.enqueue_and_wait("a", 101)

    assert caught.value.error.code == "RESULT_TOO_LARGE"
    assert "max_payload" in caught.value.error.message
    assert runs == ["fits", "a"]


@in_loop
async def test_give_up_fails_at_once(storage: Storage) -> None:
    """Whatever attempts are left; the reason is the message."""
    queue = Queue[Any, Any](storage, max_attempts=10)

    @queue.execute
    async def refuse(job: Job[Any]) -> None:
        raise GiveUp("the address is invalid")

    async with queue:
        with pytest.raises(JobFailedError) as caught:
            await queue.enqueue_and_wait("a", 1)

    assert caught.value.attempts == 1
    assert (caught.value.error.type, caught.value.error.message) == ("GiveUp", "the address is invalid")
    assert caught.value.error.code == "GIVE_UP"


@in_loop
async def test_an_exceptions_own_code_is_kept(storage: Storage) -> None:
    """If it is a text; a number is not a code."""
    queue = Queue[Any, Any](storage, max_attempts=1)

    @queue.execute
    async def fail(job: Job[Any]) -> None:
        error = GiveUp("no")
        error.code = job.payload  # type: ignore[attr-defined]
        raise error

    codes = []
    async with queue:
        for id, code in (("text", "MINE"), ("number", 7)):
            with pytest.raises(JobFailedError) as caught:
                await queue.enqueue_and_wait(id, code)
            codes.append(caught.value.error.code)

    assert codes == ["MINE", "GIVE_UP"]


@pytest.mark.parametrize("handler", [None, 3, "print", object(), [print]], ids=lambda value: type(value).__name__)
def test_what_is_not_callable_is_no_handler(storage: Storage, handler: Any) -> None:
    """Refused at the registration, not at the first job."""
    with pytest.raises(ConfigError, match="callable"):
        Queue[Any, Any](storage).execute(handler)


def no_arguments() -> None: ...
def two_arguments(job: Any, more: Any) -> None: ...
def only_by_name(*, job: Any) -> None: ...
async def no_arguments_async() -> None: ...


@pytest.mark.parametrize("handler", [no_arguments, two_arguments, only_by_name, no_arguments_async])
def test_a_handler_takes_one_argument(storage: Storage, handler: Any) -> None:
    """A wrong signature would fail every job."""
    with pytest.raises(ConfigError, match="one argument"):
        Queue[Any, Any](storage).execute(handler)


async def async_generator(job: Any) -> AsyncIterator[int]:
    yield 1


def generator(job: Any) -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("handler", [async_generator, generator])
def test_generators_are_refused(storage: Storage, handler: Any) -> None:
    """They would never run."""
    with pytest.raises(ConfigError, match="generator"):
        Queue[Any, Any](storage).execute(handler)


def test_a_second_handler_is_refused(storage: Storage) -> None:
    """One queue, one handler; the first stays."""
    queue = Queue[Any, Any](storage)

    assert queue.execute(async_handler) is async_handler
    with pytest.raises(ConfigError, match="already"):
        queue.execute(async_handler)


async def async_handler(job: Job[Any], extra: str = "-") -> str:
    return f"{extra}{threading.current_thread() is threading.main_thread()}"


def plain_handler(job: Job[Any], extra: str = "-") -> str:
    return f"{extra}{threading.current_thread() is threading.main_thread()}"


class Callables:
    """Handlers may be objects and bound methods."""

    async def __call__(self, job: Job[Any]) -> str:
        return await async_handler(job)

    def method(self, job: Job[Any]) -> str:
        return plain_handler(job)

    async def async_method(self, job: Job[Any]) -> str:
        return await async_handler(job)


@pytest.mark.parametrize(
    ("handler", "result"),
    [
        (async_handler, "-True"),
        (plain_handler, "-False"),
        (functools.partial(async_handler, extra="+"), "+True"),
        (functools.partial(plain_handler, extra="+"), "+False"),
        (Callables(), "-True"),
        (Callables().method, "-False"),
        (Callables().async_method, "-True"),
    ],
)
@in_loop
async def test_coroutines_run_on_the_loop_and_functions_in_threads(
    storage: Storage, handler: Handler, result: str
) -> None:
    """Whatever form they have."""
    queue = Queue[Any, Any](storage)
    queue.execute(handler)
    async with queue:
        assert await queue.enqueue_and_wait("a", 1) == result


# Retry policies


@pytest.mark.parametrize(
    "answer", [-1, float("nan"), float("inf"), 1e18, "5", None, True, object(), ValueError("policy"), SystemExit(1)]
)
@in_loop
async def test_a_policy_that_raises_or_answers_nonsense_is_reported(storage: Storage, answer: Any) -> None:
    """The default takes its place, and the job waits for a second."""

    def policy(attempt: int, error: BaseException) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    queue = Queue[Any, Any](storage, retry=policy)
    queue.execute(handler_of(raising(ValueError("handler")), threaded=False))
    events = Events(queue)
    async with queue:
        await queue.enqueue("a", 1)
        ((_, error, _),) = await events.until("failing", within=2)
        status = await queue.get_status("a")

    assert str(error) == "handler"
    assert len(events.of("error")) == 1
    assert status is not None
    assert status.started_at is not None
    assert 0.8 <= status.run_at - status.started_at <= 1.3


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), 1e18, "5", True, object()])
@in_loop
async def test_retry_later_with_nonsense_is_reported(storage: Storage, delay: Any) -> None:
    """The default takes its place here, too."""
    queue = Queue[Any, Any](storage, retry=lambda attempt, error: 500.0)
    queue.execute(handler_of(raising(RetryLater(delay)), threaded=False))
    events = Events(queue)
    async with queue:
        await queue.enqueue("a", 1)
        await events.until("failing", within=2)

    assert [type(error) for (error,) in events.of("error")] == [ConfigError]


@in_loop
async def test_a_policy_is_asked_with_the_attempt_and_the_error(storage: Storage) -> None:
    """And not after the last attempt."""
    asked: list[tuple[int, str]] = []

    def policy(attempt: int, error: BaseException) -> float:
        asked.append((attempt, str(error)))
        return 0.0

    queue = Queue[Any, Any](storage, retry=policy, max_attempts=3)

    @queue.execute
    async def fail(job: Job[Any]) -> None:
        raise ValueError(f"run {job.attempts}")

    async with queue:
        with pytest.raises(MaxRetriesError):
            await queue.enqueue_and_wait("a", 1)

    assert asked == [(1, "run 1"), (2, "run 2")]


@in_loop
async def test_retry_later_says_when_and_uses_an_attempt(storage: Storage) -> None:
    """Without a delay the policy decides."""
    queue = Queue[Any, Any](storage, retry=lambda attempt, error: 500.0)

    @queue.execute
    async def later(job: Job[Any]) -> None:
        raise RetryLater(job.payload)

    events = Events(queue)
    waits = []
    async with queue:
        for number, (id, payload) in enumerate((("own", 50), ("policy", None))):
            await queue.enqueue(id, payload)
            await events.until("failing", number + 1)
            status = await queue.get_status(id)
            assert status is not None
            assert status.started_at is not None
            assert (status.state, status.attempts) == ("failing", 1)
            waits.append(round(status.run_at - status.started_at))

    assert waits == [50, 500]


@in_loop
async def test_retry_later_of_no_time_means_at_once(storage: Storage) -> None:
    """Zero is an answer, and no reason to ask the policy."""
    queue = Queue[Any, Any](storage, retry=lambda attempt, error: 500.0, max_attempts=2)

    @queue.execute
    async def later(job: Job[Any]) -> None:
        raise RetryLater(0)

    events = Events(queue)
    async with queue:
        await queue.enqueue("a", 1)
        await events.until("failed", within=3)

    assert len(events.of("failing")) == 1


# Payloads


@in_loop
async def test_a_payload_that_the_handler_changes_is_whole_again_on_retry(storage: Storage) -> None:
    """Each attempt decodes its own."""
    queue = Queue[Any, Any](storage, retry=lambda attempt, error: 0.0)
    seen: list[Any] = []

    @queue.execute
    async def spoil(job: Job[Any]) -> None:
        seen.append(list(job.payload["items"]))
        job.payload["items"].clear()
        if job.attempts == 1:
            raise ValueError

    payload = {"items": [1, 2]}
    async with queue:
        await queue.enqueue_and_wait("a", payload)

    assert seen == [[1, 2], [1, 2]]
    assert payload == {"items": [1, 2]}


class Picky:
    """A serde that cannot read what it wrote."""

    def __init__(self, raised: BaseException) -> None:
        self.raised = raised

    def serialize(self, value: Any) -> bytes:
        return b"x"

    def deserialize(self, data: bytes) -> Any:
        raise self.raised


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("what is this"),
        SerializationError("what is this"),
        Slotted("what is"),
        Odd("a panic"),
        SystemExit(3),
        asyncio.CancelledError(),
    ],
    ids=repr,
)
@in_loop
async def test_a_payload_that_cannot_be_decoded_is_set_aside(storage: Storage, raised: BaseException) -> None:
    """failed(DESERIALIZATION) after one attempt; the worker goes on."""
    queue = Queue[Any, Any](storage, payload_serde=Picky(raised), max_attempts=5)
    ran: list[str] = []

    @queue.execute
    async def note(job: Job[Any]) -> None:
        ran.append(job.id)

    async with queue:
        for id in ("a", "b"):
            with pytest.raises(JobFailedError) as caught:
                await queue.enqueue_and_wait(id, 1)
            assert caught.value.attempts == 1
            assert type(caught.value) is JobFailedError
            if not isinstance(raised, Slotted):
                assert caught.value.error.code == "DESERIALIZATION"

    assert not ran


@in_loop
async def test_a_producer_and_a_worker_with_other_types(storage: Storage) -> None:
    """What the worker's type refuses is set aside, too."""
    producer, worker = Queue[Any, Any](storage), Queue[int, int](storage)

    @worker.execute
    async def double(job: Job[int]) -> int:
        return 2 * job.payload

    async with producer, worker:
        with pytest.raises(JobFailedError) as caught:
            await producer.enqueue_and_wait("a", "text")
        assert await producer.enqueue_and_wait("b", 21) == 42

    assert caught.value.error.code == "DESERIALIZATION"


class Wrong:
    """A serde that returns what is not bytes."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def serialize(self, value: Any) -> Any:
        if isinstance(self.data, BaseException):
            raise self.data
        return self.data

    def deserialize(self, data: bytes) -> Any:
        return data


@pytest.mark.parametrize(
    "data",
    ["text", None, 3, bytearray(b"x"), memoryview(b"x"), ValueError("refused")],
    ids=lambda data: type(data).__name__,
)
@in_loop
async def test_a_serde_must_return_bytes(storage: Storage, data: Any) -> None:
    """For payloads and results; nothing is stored, and the job is failed."""
    async with Queue[Any, Any](storage, name="p", payload_serde=Wrong(data)) as queue:
        with pytest.raises(SerializationError, match="'a'"):
            await queue.enqueue("a", 1)
        assert await queue.get_status("a") is None

    results = Queue[Any, Any](storage, name="r", result_serde=Wrong(data))
    results.execute(async_handler)
    async with results:
        with pytest.raises(JobFailedError) as caught:
            await results.enqueue_and_wait("a", 1)

    assert caught.value.error.code == "SERIALIZATION"
    assert caught.value.attempts == 1


@pytest.mark.parametrize("raised", [Odd("a panic"), SystemExit(3), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("hooked", [False, True], ids=["", "hooked"])
@in_loop
async def test_a_result_serde_that_panics_fails_its_job_and_not_the_worker(
    storage: Storage, raised: BaseException, hooked: bool
) -> None:
    """Whatever a serde of the user's raises; that of a changed result is reported, and the original stands."""
    serde = Wrong(b"stored") if hooked else Wrong(raised)

    def hook(context: Any) -> None:
        serde.data = raised

    queue = Queue[Any, Any](storage, payload_serde=Raw(), result_serde=serde, after_execution=hook if hooked else None)
    queue.execute(async_handler)
    events = Events(queue)
    async with queue:
        for id in ("a", "next"):
            if hooked:
                serde.data = b"stored"
                assert await queue.enqueue_and_wait(id, b"1", timeout=2) == b"stored"
                continue
            with pytest.raises(JobFailedError) as caught:
                await queue.enqueue_and_wait(id, b"1", timeout=2)
            assert caught.value.error.code == "SERIALIZATION"

    assert events.of("error") == ([(raised,)] * 2 if hooked else [])


class Raw:
    """Bytes as they are."""

    def serialize(self, value: bytes) -> bytes:
        return value

    def deserialize(self, data: bytes) -> bytes:
        return data


@in_loop
async def test_a_binary_serde_is_exact_for_every_byte(storage: Storage) -> None:
    """Payload bytes are opaque to a storage."""
    every = bytes(range(256)) * 3
    queue = Queue[bytes, bytes](storage, payload_serde=Raw(), result_serde=Raw())

    @queue.execute
    async def reverse(job: Job[bytes]) -> bytes:
        return job.payload[::-1]

    async with queue:
        assert await queue.enqueue_and_wait("a", every) == every[::-1]
        assert await queue.enqueue_and_wait("empty", b"") == b""


# Threads

number_of_caller: contextvars.ContextVar[int] = contextvars.ContextVar("number_of_caller", default=0)


@in_loop
async def test_functions_run_side_by_side_up_to_concurrency(storage: Storage) -> None:
    """As many threads as there are slots, and no more."""
    queue = Queue[Any, Any](storage, concurrency=20)
    together = threading.Barrier(20)

    @queue.execute
    def meet(job: Job[Any]) -> int:
        together.wait(5)
        return threading.get_ident()

    async with queue:
        idents = await asyncio.gather(*(queue.enqueue_and_wait(str(number), None) for number in range(20)))
        again = await asyncio.gather(*(queue.enqueue_and_wait(f"again-{number}", None) for number in range(20)))

    assert len({*idents, *again}) == 20


@in_loop
async def test_a_function_that_no_thread_can_be_had_for_is_given_back(storage: Storage) -> None:
    """It did not run, so that is no attempt; and it is told once, however long it lasts."""
    queue = Queue[Any, Any](storage, block_timeout=0.1, max_attempts=2)
    queue.execute(lambda job: job.attempts)
    events = Events(queue)
    async with queue:
        with no_thread_for("jobq-handler"):
            await queue.enqueue("a", 1)
            await events.until("requeued", 3)
        assert await queue.wait("a", timeout=5) == 1

    assert [error.code for (error,) in events.of("error")] == ["NO_THREAD"]
    assert events.of("failing") == []


@in_loop
async def test_functions_take_turns_in_the_threads_that_there_are(storage: Storage) -> None:
    """When no further one can be had; and once it can, there are as many as slots again."""
    queue = Queue[Any, Any](storage, concurrency=3, block_timeout=0.1)
    together, threads = threading.Barrier(3), set()

    @queue.execute
    def meet(job: Job[Any]) -> int:
        threads.add(threading.get_ident())
        if job.payload:
            together.wait(5)
        return job.attempts

    async def run(payload: int) -> list[int]:
        ids = [f"{len(threads)} {payload} {number}" for number in range(3)]
        return await asyncio.gather(*(queue.enqueue_and_wait(id, payload, timeout=5) for id in ids))

    async with queue:
        await queue.enqueue_and_wait("first", 0)
        with no_thread_for("jobq-handler"):
            assert await run(0) == [1, 1, 1]
            assert len(threads) == 1
        assert await run(1) == [1, 1, 1]

    assert len(threads) == 3


@in_loop
async def test_a_function_that_no_thread_can_be_had_for_does_not_run_later(storage: Storage) -> None:
    """After it was cancelled, or its worker stopped, while another function held the only thread."""
    queue = Queue[Any, Any](storage, concurrency=2, block_timeout=0.1)
    begun, go, ran = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    @queue.execute
    def hold(job: Job[Any]) -> None:
        ran.append(job.id)
        loop.call_soon_threadsafe(begun.set)
        go.wait(5)

    events = Events(queue)
    async with queue:
        await queue.enqueue("holds", 1)
        await begun.wait()
        with no_thread_for("jobq-handler"):
            await queue.enqueue("cancelled", 1)
            await events.until("requeued", 1)
            await queue.cancel("cancelled", running=True)
            async with asyncio.timeout(3):
                while await queue.get_status("cancelled") is not None:
                    await passing(0.01)
            await queue.enqueue("left", 1)
            await events.until("requeued", 2)
            stopping = asyncio.create_task(queue.stop(2))
            await passing(0.5)
            go.set()
            await stopping

    assert ran == ["holds"]


@in_loop
async def test_a_function_gets_a_thread_as_soon_as_one_can_be_had(storage: Storage) -> None:
    """Also if another function waits for it, and holds the only thread meanwhile."""
    queue = Queue[Any, Any](storage, concurrency=3, block_timeout=0.1)
    begun, child = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @queue.execute
    def run(job: Job[Any]) -> bool:
        loop.call_soon_threadsafe(begun.set)
        if job.id == "parent":
            return child.wait(5)
        child.set()
        return True

    events = Events(queue)
    async with queue:
        parent = asyncio.create_task(queue.enqueue_and_wait("parent", 1))
        await begun.wait()
        with no_thread_for("jobq-handler"):
            await queue.enqueue("child", 1)
            await events.until("requeued")
        assert await parent


@in_loop
async def test_a_function_sees_context_variables_and_cannot_change_them(storage: Storage) -> None:
    """Each runs in a copy of the context."""
    queue = Queue[Any, Any](storage)
    number_of_caller.set(7)

    @queue.execute
    def look(job: Job[Any]) -> int:
        found = number_of_caller.get()
        number_of_caller.set(99)
        return found

    async with queue:
        assert await queue.enqueue_and_wait("a", 1) == 7
        assert await queue.enqueue_and_wait("b", 1) == 7


@in_loop
async def test_what_a_coroutine_leaves_in_its_context_is_not_seen_by_the_next(storage: Storage) -> None:
    """Also where it ran eagerly, without ever waiting."""
    queue = Queue[Any, Any](storage)

    @queue.execute
    async def look(job: Job[Any]) -> int:
        found = number_of_caller.get()
        number_of_caller.set(99)
        return found

    async with queue:
        assert [await queue.enqueue_and_wait(id, 1) for id in "abc"] == [0, 0, 0]


@pytest.mark.slow
@in_loop
async def test_a_functions_time_is_over_while_it_goes_on(storage: Storage) -> None:
    """Its signal is aborted, the attempt settled, its value dropped, its slot taken until it returns."""
    queue = Queue[Any, Any](storage, job_timeout=0.1, max_attempts=1)
    go, signals = threading.Event(), []

    @queue.execute
    def slow(job: Job[Any]) -> str:
        if job.id == "next":
            return "fine"
        assert job.signal.wait_sync(5)
        signals.append(job.signal.reason)
        go.wait(5)
        return "too late"

    async with queue:
        with pytest.raises(MaxRetriesError) as caught:
            await queue.enqueue_and_wait("a", 1, timeout=2)
        waiter = asyncio.create_task(queue.enqueue_and_wait("next", 1))
        await passing(0.1)
        assert not waiter.done()
        go.set()
        assert await waiter == "fine"
        status = await queue.get_status("a")

    assert signals == ["job_timeout"]
    assert (caught.value.error.type, caught.value.error.code) == ("TimeoutError", "JOB_TIMEOUT")
    assert status is not None
    assert status.state is State.FAILED


@in_loop
async def test_a_function_that_watches_its_signal_ends_at_a_cancel(storage: Storage) -> None:
    """`raise_if_aborted` ends it."""
    queue = Queue[Any, Any](storage)
    begun, events = asyncio.Event(), Events(queue)
    loop = asyncio.get_running_loop()

    @queue.execute
    def watch(job: Job[Any]) -> None:
        loop.call_soon_threadsafe(begun.set)
        job.signal.wait_sync(5)
        job.signal.raise_if_aborted()

    async with queue:
        await queue.enqueue("a", 1)
        await begun.wait()
        assert (await queue.cancel("a", running=True)).status == "cancelling"
        await events.until("cancelled", within=2)
        assert await queue.get_status("a") is None


@in_loop
async def test_a_function_that_watches_its_signal_is_given_back_by_stop(storage: Storage) -> None:
    """At stop's deadline its signal is aborted; ending then costs it no attempt."""
    queue = Queue[Any, Any](storage)
    begun, events = asyncio.Event(), Events(queue)
    loop = asyncio.get_running_loop()

    @queue.execute
    def watch(job: Job[Any]) -> None:
        loop.call_soon_threadsafe(begun.set)
        job.signal.wait_sync(5)
        job.signal.raise_if_aborted()

    await queue.start()
    await queue.enqueue("a", 1)
    await begun.wait()
    await queue.stop(0.05)

    assert events.of("requeued") == [("a",)]


@in_loop
async def test_an_exception_that_cannot_be_named_is_a_failure_like_any_other(storage: Storage) -> None:
    """Its job must not wait for its lease to lapse, and then count as one whose worker was lost."""
    queue = Queue[Any, Any](storage, max_attempts=1)

    @queue.execute
    async def fail(job: Job[Any]) -> None:
        raise Anonymous("boom")

    async with queue:
        with pytest.raises(MaxRetriesError) as caught:
            await queue.enqueue_and_wait("a", 1, timeout=2)

    assert (caught.value.error.type, caught.value.error.message) == ("Anonymous", "boom")
