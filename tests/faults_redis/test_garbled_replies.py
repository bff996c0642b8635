"""Replies that no server gives: each call ends with an error of ours within its time, and nothing breaks behind it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hiredis import Reader
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import InvalidResponse, RedisError

from jobq import RedisStorage, State, StorageError, StorageUnavailableError
from jobq.job import NewJob, Settlement
from jobq.storage.contract import Hint, HintKind, QueueStorage, Ref
from jobq.storage.redis.parsing import UnreadableError, error_of
from tests.faults_redis.scenes import SLACK, eventually, in_loop
from tests.hostile.scenes import answered, examples, typed
from tests.servers.babbler import Babbler, Words, array, bulk

TIME_LIMIT = 0.2
LONGEST = 4 * TIME_LIMIT + 4 * SLACK
"""A call may wait for a connection and then for a reply, and send a script by its text after its digest."""
TOKEN = "1-000000000000"
URLS = {
    "single": "redis://127.0.0.1:{}/0",
    "cluster": "redis+cluster://127.0.0.1:{}",
    "sentinel": "redis+sentinel://127.0.0.1:{}/jobs",
}
CODES = (
    "ERR NOSCRIPT MOVED ASK WRONGTYPE OOM LOADING READONLY NOAUTH NOPERM TRYAGAIN CLUSTERDOWN MISCONF BUSY JOBQFORMAT"
)
HEADS = ["", "1", "1 x", "x y:z", "1 127.0.0.1:1", "7 :0", "No matching script", "\x7f"]
HUGE = [b"$9223372036854775807\r\n", b"$-7\r\n", b"*-7\r\n", b"*99999999999999\r\n", b"*100000\r\n", b"%4294967295\r\n"]

errors = st.tuples(st.sampled_from(CODES.split()), st.sampled_from(HEADS)).map(" ".join)
leaves = st.one_of(
    st.integers(-3, 30).map(lambda number: b":%d\r\n" % number),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: b":%d\r\n" % number),
    st.binary(max_size=40).map(bulk),
    errors.map(lambda text: b"-" + text.encode() + b"\r\n"),
    st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"+OK\r\n", b"_\r\n", b"#t\r\n", b",1.5\r\n", b",nan\r\n", b"(1\r\n"]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda some: array(*some)),
        st.tuples(inner, inner).map(lambda pair: b"%1\r\n" + b"".join(pair)),
        st.lists(inner, min_size=1, max_size=2).map(lambda some: b">%d\r\n" % len(some) + b"".join(some)),
    ),
    max_leaves=6,
)
replies = st.one_of(
    values,
    values.map(lambda whole: whole[:-3]),
    st.tuples(values, values).map(b"".join),
    st.binary(min_size=1, max_size=30),
    st.sampled_from(HUGE),
)

VERBS: dict[str, Callable[[QueueStorage], Awaitable[Any]]] = {
    "add": lambda queue: queue.add([NewJob("job", "a.1", b"", 3, 60.0)]),
    "claim": lambda queue: queue.claim("worker", 30.0, 1, "a.2"),
    "extend": lambda queue: queue.extend([("job", TOKEN)], 30.0),
    "settle": lambda queue: queue.settle([Settlement("job", TOKEN, State.COMPLETED, b"1", ttl=60.0)]),
    "cancel": lambda queue: queue.cancel("job", True, "a.3"),
    "revive": lambda queue: queue.revive("job", "a.4"),
    "retain": lambda queue: queue.retain("job", 60.0, "a.5"),
    "rescue": lambda queue: queue.rescue(10),
    "get": lambda queue: queue.get([Ref("job")]),
    "hold": lambda queue: queue.hold("reaper", "me", 5.0),
    "release": lambda queue: queue.release("reaper", "me"),
    "counts": lambda queue: queue.counts(),
    "page": lambda queue: queue.page(State.QUEUED, "", 10),
    "workers": lambda queue: queue.workers(),
    "watch": lambda queue: queue.watch(lambda hint: None),
    "wait_for_work": lambda queue: queue.wait_for_work(0.03),
}


kinds = st.sampled_from(list(URLS))


@examples(6)
@given(st.lists(st.tuples(kinds, st.sampled_from(list(VERBS)), st.lists(replies, min_size=1, max_size=3)), min_size=8))
def test_a_garbled_reply_to_a_call_is_a_typed_error_in_time(calls: list[tuple[str, str, list[bytes]]]) -> None:
    """Of a wrong shape, cut short, without an end or no reply at all: to each verb, the script's and others."""

    async def call(kind: str, verb: str, said: list[bytes]) -> Any:
        async with Babbler() as server:
            storage = RedisStorage(URLS[kind].format(server.port), operation_timeout=TIME_LIMIT)
            while isinstance(await answered(storage.open()), StorageUnavailableError):
                continue  # The machine was busy.
            server.answer = garbling(server, said)
            answer, seconds = await timed(VERBS[verb](storage.namespace("first")))
            server.answer = server.sensible
            await storage.close()
            return answer if seconds < LONGEST else TimeoutError(f"{seconds:.1f} s")

    assert untyped(asyncio.run(each(call(*one) for one in calls))) == []


@examples(2)
@given(st.lists(st.tuples(kinds, st.lists(replies, min_size=1, max_size=3)), min_size=5))
def test_a_garbled_reply_while_opening_is_a_typed_error_in_time(openings: list[tuple[str, list[bytes]]]) -> None:
    """To the first words that are said, and to what is tried before the first job."""

    async def open(kind: str, said: list[bytes]) -> Any:
        async with Babbler() as server:
            server.answer = garbling(server, said)
            storage = RedisStorage(URLS[kind].format(server.port), operation_timeout=TIME_LIMIT)
            answer, seconds = await timed(storage.open())
            if answer is None:
                await storage.close()
            # It says a dozen things, and each may take its time.
            return answer if seconds < 4 * LONGEST else TimeoutError(f"{seconds:.1f} s")

    assert untyped(asyncio.run(each(open(*one) for one in openings))) == []


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("add", b"*1\r\n$-1\r\n"),
        ("add", b"*1\r\n:0\r\n"),
        ("extend", b"*1\r\n:-2\r\n"),
        ("extend", b"$1\r\n\x01\r\n"),
        ("cancel", b":-1\r\n"),
        ("cancel", b"$-1\r\n"),
        ("hold", b"+OK\r\n"),
        ("hold", b":7\r\n"),
        ("counts", b":0\r\n"),
        ("claim", b"*0\r\n"),
        ("rescue", b"*2\r\n:0\r\n:1\r\n"),
        ("workers", b"$1\r\nx\r\n"),
    ],
)
@in_loop
async def test_what_is_no_answer_is_never_taken_for_one(verb: str, said: bytes) -> None:
    """A job that is told accepted, a lease that is told held or a lock that is told taken must be so."""
    async with quiet(), Babbler() as server:
        storage = RedisStorage(URLS["single"].format(server.port), operation_timeout=5.0)
        await storage.open()
        server.answer = garbling(server, [said])

        answer = await answered(VERBS[verb](storage.namespace("first")))

        assert isinstance(answer, StorageError)
        assert (answer.code, "the outcome is unknown" in str(answer)) == ("GARBLED", True)
        await storage.close()


@pytest.mark.parametrize("text", ["", "ASK", "ASK ", "MOVED 1 x", "MOVED x y:z", "ERR \x7f", "NOSCRIPT", "\u00e9"])
def test_an_error_reply_becomes_an_exception_and_raises_none(text: str) -> None:
    """Raised while hiredis takes a nested reply apart, it would crash the whole process."""
    assert isinstance(error_of(text), RedisError)


def test_an_error_that_cannot_be_read_within_a_nested_reply_crashes_nothing() -> None:
    """Found by the first test here, now and then: it ended the process that it ran in."""
    reader = Reader(protocolError=InvalidResponse, replyError=error_of)
    pair = b"%1\r\n-LOADING \r\n-ASK \r\n"
    said = array(array(b":1\r\n", b">2\r\n%1\r\n*-1\r\n$1\r\na\r\n" + pair, b"-MOVED 1 x\r\n", b"%1\r\n:1\r\n:7\r\n"))

    for _ in range(100):
        reader.feed(said)
        [[one, [_, found], *_]] = reader.gets()
        assert (one, [type(error) for error in found.values()]) == (1, [UnreadableError])


@in_loop
async def test_a_script_that_is_unknown_by_its_text_as_well_is_a_typed_error() -> None:
    """Some proxies answer so; a start and a call end, and neither sends it for ever."""
    async with quiet(), Babbler() as server:
        storage = RedisStorage(URLS["single"].format(server.port))
        await storage.open()
        server.answer = garbling(server, [b"-NOSCRIPT No matching script.\r\n"])

        called = await answered(storage.namespace("first").get([Ref("job")]))
        await storage.close()
        started = await answered(storage.open())

        assert (type(called), type(started)) == (StorageError, StorageError)
        assert server.asked.count(b"EVALSHA") == 2


@in_loop
async def test_a_cluster_that_has_no_slots_yet_is_unavailable() -> None:
    """So it answers between its nodes' start and the end of its creation."""
    async with quiet(), Babbler() as server:
        server.answer = lambda words: array() if words[0] == b"CLUSTER" else server.sensible(words)

        answer = await answered(RedisStorage(URLS["cluster"].format(server.port), operation_timeout=1.0).open())

        assert isinstance(answer, StorageUnavailableError)


@pytest.mark.parametrize(
    "said", [b":1\r\n", b"*0\r\n", array(b":1\r\n", b":1\r\n"), array(bulk(b"\xff"), bulk(b"1")), b"\x00\r\n"]
)
@in_loop
async def test_who_sleeps_is_still_woken_after_a_garbled_reply(said: bytes) -> None:
    """The blocking connection is made anew; nobody is woken by block_timeout alone from then on."""
    async with quiet(), Babbler() as server:
        storage = RedisStorage(URLS["single"].format(server.port))
        await storage.open()
        first = [said]

        def answer(words: Words) -> bytes | None:
            match words[0].upper():
                case b"BLPOP":
                    return first.pop() if first else array(bulk(words[2]), bulk(b"1"))
                case b"EVALSHA":
                    return b":-1\r\n"
                case _:
                    return server.sensible(words)

        server.answer = answer
        _, seconds = await timed(storage.namespace("first").wait_for_work(6.0))
        await storage.close()

        assert seconds < 5.0


@pytest.mark.parametrize(
    "said", [b"*0\r\n", b"*1\r\n$7\r\nmessage\r\n", b"*3\r\n$7\r\nmessage\r\n*0\r\n:1\r\n", b":1\r\n"]
)
@in_loop
async def test_who_listens_still_hears_after_a_garbled_message(said: bytes) -> None:
    """Its channels are subscribed anew, and it is told that messages may have been missed."""
    async with quiet(), Babbler() as server:
        storage = RedisStorage(URLS["single"].format(server.port))
        await storage.open()
        hints: list[Hint] = []
        subscribed = [server.sensible, lambda words: (server.sensible(words) or b"") + said]
        server.answer = lambda words: (
            subscribed.pop(0)(words) if words[0] == b"SUBSCRIBE" and subscribed else server.sensible(words)
        )

        watch = await storage.namespace("first").watch(hints.append)
        await eventually(lambda: [hint.kind for hint in hints] == [HintKind.MISSED], "word of what was missed")
        await watch.close()
        await storage.close()


def garbling(server: Babbler, said: list[bytes]) -> Callable[[Words], bytes | None]:
    """Give these answers in turn, the last one for ever; say sensibly who one is, so that commands are sent at all."""
    left = list(said)

    def answer(words: Words) -> bytes | None:
        if words[0].upper() in (b"CLIENT", b"PING", b"ROLE") and len(server.asked) > 6:
            return server.sensible(words)
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


@asynccontextmanager
async def quiet() -> AsyncIterator[None]:
    """See that no task and no callback of the loop ends by an exception that nobody looks at."""
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    async with asyncio.timeout(20.0):
        yield
    gc.collect()  # A task tells of its exception when it goes.
    assert troubles == []


async def each(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await all at once, since most of them wait for what never comes."""
    async with quiet():
        return await asyncio.gather(*calls)


def untyped(answers: Iterable[Any]) -> list[Any]:
    return [answer for answer in answers if not typed(answer)]


async def timed(call: Awaitable[Any]) -> tuple[Any, float]:
    begun = time.monotonic()
    return await answered(call), time.monotonic() - begun
