"""Records with other bytes than jobq wrote: every verb answers, and typed, and whatever lies beside them goes on."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Sequence
from functools import reduce
from typing import Any, Literal, TypeAlias

import redis.asyncio as redis
from hypothesis import given
from hypothesis import strategies as st

from jobq import State
from jobq.job import Snapshot
from jobq.storage.contract import Ref
from jobq.testing import Bench
from tests.faults_redis.scenes import LONGEST, benched, stored
from tests.hostile.scenes import answered, examples, prepare, typed
from tests.servers.server import Server

STATES = (State.QUEUED, State.PROCESSING, State.FAILING, State.COMPLETED, State.FAILED)
TOKEN = "1-000000000000"
Change: TypeAlias = tuple[Literal["flip", "overwrite", "insert", "cut", "replace"], int, bytes]
"""What is done, at which byte, and with which bytes."""

PLACES = st.integers(0, 250)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.tuples(st.just("flip"), PLACES, st.sampled_from([bytes([1 << bit]) for bit in range(8)])),
    st.tuples(st.just("overwrite"), PLACES, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("cut"), PLACES, st.just(b"")),
    st.tuples(st.just("replace"), st.just(0), st.binary(max_size=200)),
)


@examples(25)
@given(st.sampled_from(STATES), st.lists(CHANGES, min_size=1, max_size=3), st.booleans())
def test_a_record_that_was_altered_fails_alone(
    either_server: Server, state: State, changes: list[Change], flushed: bool
) -> None:
    """Bits flipped, bytes overwritten, removed or added at any place."""
    prefix = f"altered-{uuid.uuid4().hex[:12]}:"
    if flushed:
        either_server.command("SCRIPT", "FLUSH")

    async def play() -> None:
        async with benched(either_server, prefix) as bench, redis.Redis.from_url(either_server.url) as tamperer:
            await prepare(bench, "job", state)
            key = f"{prefix}{{first}}:j:job"
            await tamperer.set(key, reduce(altered, changes, await stored(tamperer, key)))

            answers = [await answered(call) for call in every_verb(bench, state)]
            claims = {claim.id: claim for claim in (await bench.claim()).claims}

            assert [answer for answer in answers if not typed(answer)] == []
            assert {snapshot.id for snapshot in snapshots(answers)} <= {"job", "neighbour"}
            assert claims["neighbour"].payload == b"its own payload"
            assert str(await bench.settle(claims["neighbour"])) == "applied"
            assert (await bench.found("neighbour")).result == b"result"

    asyncio.run(asyncio.wait_for(play(), LONGEST))


def altered(record: bytes, change: Change) -> bytes:
    """Return the bytes of a record with something done to them."""
    kind, place, data = change
    at = place % (len(record) + 1)
    match kind:
        case "flip":
            return record[:at] + bytes(byte ^ data[0] for byte in record[at : at + 1]) + record[at + 1 :]
        case "overwrite":
            return record[:at] + data + record[at + len(data) :]
        case "insert":
            return record[:at] + data + record[at:]
        case "cut":
            return record[:at]
        case "replace":
            return data


def every_verb(bench: Bench, state: State) -> Sequence[Awaitable[Any]]:
    queue = bench.queue
    return (
        queue.get([Ref("job"), Ref("neighbour")]),
        queue.add([bench.new("job"), bench.new("neighbour", b"its own payload")]),
        bench.cancel("job", running=True),
        bench.revive("job"),
        bench.retain("job", ttl=5.0),
        queue.extend([("job", TOKEN)], 5.0),
        queue.counts(),
        queue.page(state, "", 100),
        queue.workers(),
        queue.rescue(100),
        queue.get([Ref("job"), Ref("neighbour")]),
    )


def snapshots(answers: list[Any]) -> list[Snapshot]:
    parts = [part for answer in answers if isinstance(answer, list) for part in answer]
    return [part for part in parts if isinstance(part, Snapshot)]
