"""Other hands in FileStorage's database: a job whose record is damaged is told of, alone; the others go on."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq import FileStorage, Job, Queue, State, StorageCorruptError
from jobq.job import Settlement
from jobq.storage.contract import Ref
from jobq.storage.rows import Row
from jobq.testing import Bench
from jobq.testing.bench import LEASE
from tests.hostile.scenes import answered, examples, on_a_new_directory, prepare, tamper, typed

pytestmark = pytest.mark.storage("file")

COLUMNS = (*(name for name in Row.__struct_fields__ if name not in ("number", "id")), "payload")
STATES = (State.QUEUED, State.PROCESSING, State.FAILING, State.COMPLETED, State.FAILED)
NO_UTF8 = "CAST(x'ff00fe' AS TEXT)"


class Bytes(bytes):
    """Bytes to be kept as a text, whatever they are."""


VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.binary(max_size=12),
    st.binary(max_size=12).map(Bytes),
    st.sampled_from([-1, 0, 1, 2, 3, 4, 5, 6, 7, 1e308, float("inf"), "", "1", "\0", Bytes(b"\xff")]),
)


@examples(60)
@given(
    st.sampled_from(STATES),
    st.dictionaries(st.sampled_from(COLUMNS), VALUES, min_size=1, max_size=3),
    st.booleans(),
)
def test_whatever_stands_in_its_columns_a_record_fails_alone(
    state: State, changes: dict[str, Any], claimed_first: bool
) -> None:
    """Every verb answers, and typed; a neighbour before and behind it are run, now and after every lease is over."""

    async def play(bench: Bench, directory: Path) -> None:
        await prepare(bench, "damaged", state)
        await bench.add("behind")
        for column, value in changes.items():
            place = "CAST(? AS TEXT)" if isinstance(value, Bytes) else "?"
            try:
                tamper(directory, f"UPDATE jobs SET {column} = {place} WHERE id = 'damaged'", value)
            except sqlite3.IntegrityError:  # Not even others can put a NULL there.
                continue

        claimed = (await bench.claim()).claims if claimed_first else []
        answers = [await answered(call) for call in every_verb(bench)]
        claims = {claim.id: claim for claim in (*claimed, *(await bench.claim()).claims)}
        bench.clock.advance(LEASE + 1.0)
        rescued = await answered(bench.queue.rescue(100))
        later = {claim.id: claim for claim in (await bench.claim()).claims}

        assert [answer for answer in (*answers, rescued) if not typed(answer)] == []
        assert {"neighbour", "behind"} <= claims.keys() & later.keys()
        assert str(await bench.settle(later["behind"])) == "applied"
        assert (await bench.found("behind")).result == b"result"

    on_a_new_directory(play)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE queues SET number = number + 100",
        "DELETE FROM queues",
        "UPDATE queues SET counter = x'00ff'",
        "DROP TABLE jobs",
        "ALTER TABLE jobs RENAME COLUMN lease TO leash",
    ],
)
def test_what_is_damaged_beside_the_jobs_is_told_to_whoever_claims(change: str) -> None:
    """As damage that a backup mends, and not as an exception of Python's that no caller is prepared for."""

    async def play(bench: Bench, directory: Path) -> Any:
        await bench.add()
        tamper(directory, change)
        return await answered(bench.claim())

    answer = on_a_new_directory(play)

    assert isinstance(answer, StorageCorruptError)
    assert "from a backup" in str(answer)


def every_verb(bench: Bench) -> list[Any]:
    return [
        bench.queue.get([Ref("damaged"), Ref("behind")]),
        bench.queue.add([bench.new("damaged"), bench.new("neighbour")]),
        bench.queue.extend([("damaged", "1-0000000000")], 5.0),
        bench.queue.settle([Settlement("damaged", "1-0000000000", State.COMPLETED, b"forged", ttl=5.0)]),
        bench.queue.counts(),
        *(bench.queue.page(state, "", 100) for state in STATES),
        bench.queue.workers(),
        bench.queue.rescue(100),
        bench.cancel("damaged", running=True),
        bench.revive("damaged"),
        bench.retain("damaged", ttl=5.0),
    ]


def test_a_text_that_is_no_utf8_fails_one_answer_of_a_batch(tmp_path: Path) -> None:
    """SQLite gives it out as it is, and Python refuses to read it, with all rows that come along."""

    async def main() -> tuple[list[str], list[Any]]:
        async with Queue[int, int](FileStorage(tmp_path)) as producer:
            await producer.enqueue_many([(id, 1) for id in "abcde"])
            tamper(tmp_path, f"UPDATE jobs SET generation = {NO_UTF8} WHERE id = 'b'")
            tamper(tmp_path, f"UPDATE jobs SET id = {NO_UTF8} WHERE id = 'd'")
            waits = [producer.wait(id, timeout=5) for id in "abce"]
            waiting = asyncio.gather(*waits, return_exceptions=True)
            async with Queue[int, int](FileStorage(tmp_path), concurrency=3, block_timeout=0.2) as worker:
                completed: list[str] = []
                worker.on("completed", lambda id, result: completed.append(id))

                @worker.execute
                async def double(job: Job[int]) -> int:
                    return 2 * job.payload

                return completed, await waiting

    completed, answers = asyncio.run(main())

    assert completed == ["a", "c", "e"]
    assert [answers[0], *answers[2:]] == [2, 2, 2]
    assert isinstance(answers[1], StorageCorruptError)
    assert "'b'" in str(answers[1])
