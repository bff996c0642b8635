"""Single bytes altered in FileStorage's database, by others or by a failing disk: whatever lies beside them goes on."""

from __future__ import annotations

import asyncio
import sqlite3
import struct
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq import State
from jobq.job import Claim, Settlement
from jobq.storage.contract import Ref
from jobq.testing import Bench
from jobq.testing.bench import LEASE
from tests.hostile.scenes import DATABASE, answered, benched, examples, on_a_new_directory, prepare, typed

pytestmark = pytest.mark.storage("file")

STATES = (State.QUEUED, State.PROCESSING, State.FAILING, State.COMPLETED, State.FAILED)
TABLES = ("jobs", "queues", "claims", "locks", "boot")
TOKEN = "1-0000000000"
PAGE, PAGES = 4096, 13
"""Of the database that `template` makes: its pages' size and number."""
PAYLOADS = {f"job-{number}": f"payload of {number}".encode() * 5 for number in range(6)}
OTHERS = {id: {other for owner, other in PAYLOADS.items() if owner != id} for id in PAYLOADS}
"""For each job the payloads that it must never run with."""


@examples(40)
@given(st.sampled_from(STATES), st.sampled_from(TABLES), st.integers(0, 30), st.integers(0, 30), st.integers(0, 7))
def test_a_bit_that_flips_in_any_column_harms_that_record_alone(
    state: State, table: str, column: int, place: int, bit: int
) -> None:
    """Numbers, texts and bytes, ids and names of queues too: every verb answers, and typed, and neighbours run."""

    async def play(bench: Bench, directory: Path) -> None:
        await bench.queue.hold("reaper", "me", 5.0)
        await bench.claim()  # So that each table has a row.
        await prepare(bench, "damaged", state)
        await bench.add("behind", b"behind's")
        flip(directory, table, column, place, bit)

        answers = [await answered(call) for call in every_verb(bench)]
        claimed = await answered(bench.claim())
        bench.clock.advance(LEASE + 1.0)
        rescued = await answered(bench.queue.rescue(100))
        later = await answered(bench.claim())

        assert [answer for answer in (*answers, claimed, rescued, later) if not typed(answer)] == []
        if table == "jobs":
            claims = {claim.id: claim for claim in later.claims}
            assert {id: claims[id].payload for id in ("behind", "neighbour")} == {
                "behind": b"behind's",
                "neighbour": b"payload",
            }
            assert str(await bench.settle(claims["behind"])) == "applied"

    on_a_new_directory(play)


pages = st.integers(0, PAGES - 1)
places = st.one_of(
    st.integers(0, PAGES * PAGE - 1),
    st.integers(0, 110),  # The head of the file, which is read first,
    st.tuples(pages, st.integers(0, 80)).map(lambda place: place[0] * PAGE + place[1]),  # that of each page,
    st.tuples(pages, st.integers(1, 300)).map(lambda place: (place[0] + 1) * PAGE - place[1]),  # and its first rows.
)


@examples(60)
@given(st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=4))
def test_bytes_that_change_in_the_file_while_nobody_has_it_open_are_told_of_or_harmless(
    changes: list[tuple[int, int]],
) -> None:
    """Whoever opens it then works, or is told that it is damaged; no job runs with what belongs to another."""
    data = bytearray(template())
    for place, mask in changes:
        data[place] ^= mask
    answers: list[Any] = []
    claims: list[Claim] = []

    async def play(directory: Path) -> None:
        async with asyncio.timeout(10.0), benched(directory) as bench:
            answers.extend([await answered(call) for call in every_verb(bench)])
            for _ in range(3):
                claimed = await answered(bench.claim(4))
                bench.clock.advance(LEASE + 1.0)
                answers.append(claimed)
                claims.extend(getattr(claimed, "claims", ()))
            answers.append(await answered(bench.queue.settle([bench.settlement(claim) for claim in claims])))
            answers.append(await answered(bench.queue.prune(100)))

    with tempfile.TemporaryDirectory(prefix="jobq-") as folder:
        (Path(folder) / DATABASE).write_bytes(data)
        answers.append(asyncio.run(answered(play(Path(folder)))))

    assert [answer for answer in answers if not typed(answer)] == []
    assert [claim for claim in claims if claim.payload in OTHERS.get(claim.id, ())] == []


def flip(directory: Path, table: str, column: int, place: int, bit: int) -> None:
    """Flip one bit of what stands in a column of a table's last row, and leave its type as it is."""
    with closing(sqlite3.connect(directory / DATABASE, isolation_level=None, timeout=5.0)) as connection:
        names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        name = names[column % len(names)]
        which = "id = 'damaged'" if table == "jobs" else "true"
        row = connection.execute(f"SELECT {name}, typeof({name}) FROM {table} WHERE {which} LIMIT 1").fetchone()
        if row is None or row[0] is None:
            return
        value, kind = row
        mark = "CAST(? AS TEXT)" if kind == "text" else "?"
        try:
            connection.execute(f"UPDATE {table} SET {name} = {mark} WHERE {which}", (flipped(value, place, bit),))
        except sqlite3.IntegrityError:  # Of a key that another row has.
            return


def flipped(value: Any, place: int, bit: int) -> Any:
    form = {int: ">q", float: ">d"}.get(type(value))
    data = bytearray(value.encode() if isinstance(value, str) else struct.pack(form, value) if form else value)
    if data:
        data[place % len(data)] ^= 1 << bit
    return struct.unpack(form, data)[0] if form else bytes(data)


def every_verb(bench: Bench) -> list[Any]:
    return [
        bench.queue.get([Ref("damaged"), Ref("behind")]),
        bench.queue.add([bench.new("damaged"), bench.new("neighbour")]),
        bench.queue.extend([("damaged", TOKEN)], 5.0),
        bench.queue.settle([Settlement("damaged", TOKEN, State.COMPLETED, b"forged", ttl=5.0)]),
        bench.queue.counts(),
        *(bench.queue.page(state, "", 100) for state in STATES),
        bench.queue.workers(),
        bench.queue.rescue(100),
        bench.cancel("damaged", running=True),
        bench.revive("damaged"),
        bench.retain("damaged", ttl=5.0),
        bench.queue.hold("reaper", "other", 5.0),
        bench.queue.release("reaper", "other"),
    ]


@cache
def template() -> bytes:
    """Return a database with jobs in every state, as it is when nobody has it open."""

    async def fill(directory: Path) -> None:
        async with benched(directory) as bench:
            for id, state in zip(PAYLOADS, (*STATES[1:], State.QUEUED, State.QUEUED), strict=True):
                await bench.add(id, PAYLOADS[id])
                if state is not State.QUEUED:
                    claim = await bench.take()
                if state not in (State.QUEUED, State.PROCESSING):
                    await bench.settle(claim, state, **({"delay": 5.0} if state is State.FAILING else {}))

    with tempfile.TemporaryDirectory(prefix="jobq-") as folder:
        asyncio.run(fill(Path(folder)))
        data = (Path(folder) / DATABASE).read_bytes()
    assert len(data) == PAGES * PAGE
    return data
