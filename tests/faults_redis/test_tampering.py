"""Other hands in the queue's keys and channels: what can be mended is, what cannot is told, and the others go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis.asyncio as redis

from jobq import JobQueueError, Queue, RedisStorage, State, StorageCorruptError
from jobq.job import Claim, Snapshot
from jobq.storage.contract import Ref
from jobq.storage.redis.records import TOKEN_SIZE, token_bytes
from jobq.testing import Bench, ManualClock, StorageCase
from tests.engine.scenes import Waiting
from tests.faults_redis.scenes import Work, benched, counted, eventually, in_loop, leftovers, names, states, stored
from tests.hostile.scenes import answered, prepare
from tests.servers.server import Server

STEM = "{first}:"
SETTLED_AS = 22
"""Where in a record it is told as what its job was settled."""


@pytest.mark.parametrize("wrong", [("RPUSH", "x"), ("HSET", "a", "b"), ("SADD", "x"), ("ZADD", 1, "x")])
@in_loop
async def test_a_key_of_another_type_harms_no_other_job(
    either_server: Server, key_prefix: str, wrong: tuple[Any, ...]
) -> None:
    """It reads as absent, and an add replaces it."""
    async with Work(RedisStorage(either_server.url, key_prefix=key_prefix), handles=False) as work:
        ids = names(5)
        await work.queue.enqueue_many([(id, 1) for id in ids])
        key = f"{key_prefix}{{default}}:j:job-2"
        either_server.command("DEL", key)
        either_server.command(wrong[0], key, *wrong[1:])

        assert await states(work.queue, ids) == {id: None if id == "job-2" else State.QUEUED for id in ids}
        assert (await work.queue.cancel("job-2")).status == "not_found"
        assert (await work.queue.enqueue("job-2", 21)).status == "queued"
        async with Work(RedisStorage(either_server.url, key_prefix=key_prefix)) as worker:
            assert await work.queue.wait("job-2") == 42
            await eventually(lambda: len(worker.completed) == 5, "all jobs")
            assert set(worker.runs.values()) == {1}


@in_loop
async def test_a_key_of_another_type_harms_no_other_job_when_the_clock_jumps_back(
    either_server: Server, key_prefix: str
) -> None:
    """Then every lease is looked at together with its record, and for as long as that fails nobody could claim."""
    async with benched(either_server, key_prefix, by_hand=True) as bench:
        await bench.processing("overwritten")
        lost = await bench.processing("lost", lease=30.0)
        await bench.add("waiting")
        key = f"{key_prefix}{STEM}j:overwritten"
        either_server.command("DEL", key)
        either_server.command("RPUSH", key, "x")

        bench.clock.jump_monotonic(-3600.0)

        assert [claim.id for claim in (await bench.claim()).claims] == ["waiting"]
        bench.clock.advance(31.0)
        assert "lost" in [job.id for job in (await bench.queue.rescue(10)).rescued]
        assert str(await bench.extend(lost)) == "lost"


@pytest.mark.parametrize("key", ["ready", "later", "leases", "seq", "wake"])
@in_loop
async def test_an_index_of_another_type_is_told_and_mended_by_removing_it(
    either_server: Server, key_prefix: str, key: str
) -> None:
    """The queue of that key stands still with a typed error, its neighbours do not; nothing of it is lost."""
    storage = RedisStorage(either_server.url, key_prefix=key_prefix)
    options: dict[str, Any] = {"block_timeout": 0.2, "visibility_timeout": 1.0}
    async with Work(storage, **options) as work, Work(storage, name="neighbour", **options) as neighbour:
        await work.queue.enqueue("before", 1)
        await eventually(lambda: work.completed == ["before"], "the first job")
        either_server.command("DEL", f"{key_prefix}{{default}}:{key}")
        either_server.command("SET", f"{key_prefix}{{default}}:{key}", "tampered")

        answer = await answered(work.queue.enqueue("after", 21, delay=0.1 if key == "later" else 0))

        if key in ("ready", "later", "seq"):
            assert isinstance(answer, StorageCorruptError)
            assert "remove that key" in str(answer)
        else:
            assert answer.status == "queued"
        assert await neighbour.queue.enqueue_and_wait("job", 21) == 42
        either_server.command("DEL", f"{key_prefix}{{default}}:{key}")
        assert await work.queue.enqueue_and_wait("after", 21, timeout=10) == 42
        assert all(isinstance(error, JobQueueError) for error in work.of("error"))


@pytest.mark.parametrize(("key", "delay"), [("ready", 0.0), ("later", 0.1)])
@in_loop
async def test_a_job_that_was_refused_because_of_an_index_is_not_stored(
    either_server: Server, key_prefix: str, key: str, delay: float
) -> None:
    """One alone or several together: stored without its entry it would never run, and count as a duplicate."""
    async with Work(RedisStorage(either_server.url, key_prefix=key_prefix), block_timeout=0.1) as work:
        await work.queue.enqueue_and_wait("before", 1)
        either_server.command("DEL", f"{key_prefix}{{default}}:{key}")
        either_server.command("SET", f"{key_prefix}{{default}}:{key}", "tampered")
        ids = names(4)

        answers = [await answered(work.queue.enqueue(ids[0], 1, delay=delay))]
        adding = (work.queue.enqueue(id, 1, delay=delay) for id in ids[1:])
        answers += await asyncio.gather(*adding, return_exceptions=True)

        assert [type(answer) for answer in answers] == [StorageCorruptError] * len(ids)
        assert await states(work.queue, ids) == dict.fromkeys(ids)
        either_server.command("DEL", f"{key_prefix}{{default}}:{key}")
        assert await asyncio.gather(*(work.queue.enqueue_and_wait(id, 21) for id in ids)) == [42] * len(ids)


@in_loop
async def test_a_change_that_an_index_refuses_leaves_the_lease_in_place(either_server: Server, key_prefix: str) -> None:
    """A running job without one is rescued by nobody."""
    async with benched(either_server, key_prefix) as bench:
        stem = f"{key_prefix}{STEM}"
        claim = await bench.processing(lease=0.05)
        either_server.command("SET", f"{stem}ready", "tampered")

        async def refused() -> bool:
            return isinstance(await answered(bench.queue.rescue(10)), StorageCorruptError)

        assert isinstance(await answered(bench.settle(claim, State.FAILING)), StorageCorruptError)
        await eventually(refused, "refused rescue")

        either_server.command("DEL", f"{stem}ready")
        assert [job.id for job in (await bench.queue.rescue(10)).rescued] == ["job"]
        assert [(again.id, again.attempts) for again in (await bench.claim()).claims] == [("job", 2)]


@pytest.mark.parametrize("state", [State.QUEUED, State.PROCESSING])
@in_loop
async def test_whoever_asks_for_a_job_is_told_of_an_index_of_another_type(
    either_server: Server, key_prefix: str, state: State
) -> None:
    """Each answer is an error of its own that names the remedy, also where many are asked for together."""
    async with benched(either_server, key_prefix) as bench:
        await bench.completed("completed")
        await prepare(bench, "job", state)
        key = f"{key_prefix}{STEM}{'leases' if state is State.PROCESSING else 'ready'}"
        either_server.command("DEL", key)
        either_server.command("SET", key, "tampered")

        problem, fine = await bench.queue.get([Ref("job"), Ref("completed")])
        cancelled = await answered(bench.cancel("job"))

        assert isinstance(problem, StorageCorruptError)
        assert "remove that key" in str(problem)
        assert isinstance(cancelled, StorageCorruptError)
        assert isinstance(fine, Snapshot)


@in_loop
async def test_a_job_whose_id_is_no_text_harms_no_other(either_server: Server, key_prefix: str) -> None:
    """Nobody can have added it: its neighbours are claimed, listed and counted, and it is left alone."""
    foreign = b"\xff\xfe"
    stem = f"{key_prefix}{STEM}".encode()
    async with benched(either_server, key_prefix) as bench, redis.Redis.from_url(either_server.url) as tamperer:
        await bench.add()
        record = await stored(tamperer, f"{key_prefix}{STEM}j:job")
        entries: Any = await tamperer.zrange(stem + b"ready", 0, 0)
        await tamperer.set(stem + b"j:" + foreign, record)
        await tamperer.zadd(stem + b"ready", {entries[0][:8] + foreign: 0})

        assert await counts_of(bench) == {State.QUEUED: 1}
        assert [snapshot.id for snapshot in await bench.queue.page(State.QUEUED, "", 10)] == ["job"]
        assert [claim.id for claim in (await bench.claim()).claims] == ["job"]
        assert list(await bench.queue.workers()) == [("worker", 1)]
        assert await tamperer.zcard(stem + b"leases") == 2


@in_loop
async def test_a_remembered_answer_that_was_altered_is_told_as_damage(either_server: Server, key_prefix: str) -> None:
    """The request that is sent again gets a typed error, whatever stands in the place of its answer."""
    async with benched(either_server, key_prefix) as bench, redis.Redis.from_url(either_server.url) as tamperer:
        await bench.completed()
        await bench.retain(ttl=60.0, nonce="the nonce")
        key = f"{key_prefix}{STEM}j:job"
        record = await stored(tamperer, key)
        answer = record.index(b"the nonce") + len(b"the nonce")
        # 0; -1; an empty text, list and map; true.
        for value in (b"\x00", b"\xff", b"\xa0", b"\x90", b"\x80", b"\xc3"):
            await tamperer.setrange(key, answer, value)

            told = [
                await answered(bench.retain(ttl=60.0, nonce="the nonce")),
                await answered(bench.revive(nonce="the nonce")),
                await answered(bench.cancel(nonce="the nonce")),
            ]

            assert [type(error) for error in told] == [StorageCorruptError] * 3
            assert all("'job'" in str(error) for error in told)


@in_loop
async def test_damaged_memories_of_requests_fail_alone(either_server: Server, key_prefix: str) -> None:
    """A record whose list of requests is damaged, and one that was settled as nothing that there is."""
    async with benched(either_server, key_prefix) as bench, redis.Redis.from_url(either_server.url) as tamperer:
        damaged, odd = f"{key_prefix}{STEM}j:damaged", f"{key_prefix}{STEM}j:odd"
        await bench.completed("damaged")
        await bench.queue.retain("damaged", 5.0, "the nonce")
        record = bytearray(await stored(tamperer, damaged))
        record[record.index(b"the nonce") - 3] = 0xC1  # No byte of MessagePack.
        await tamperer.set(damaged, bytes(record))
        claim = await bench.completed("odd")
        await tamperer.setrange(odd, SETTLED_AS, b"\x07")
        neighbour = await bench.processing("neighbour")

        changed = [
            await answered(bench.cancel("damaged")),
            await answered(bench.revive("damaged")),
            await answered(bench.retain("damaged", ttl=5.0)),
        ]
        settled = await bench.queue.settle([bench.settlement(claim), bench.settlement(neighbour)])

        assert [type(answer) for answer in changed] == [StorageCorruptError] * 3
        assert all("'damaged'" in str(answer) for answer in changed)
        assert isinstance(settled[0], StorageCorruptError)
        assert str(settled[1]) == "applied"


@in_loop
async def test_a_settle_that_a_damaged_memory_refuses_leaves_the_lease_in_place(
    either_server: Server, key_prefix: str
) -> None:
    """Else the job would be nobody's, and never rescued."""
    async with (
        benched(either_server, key_prefix, by_hand=True) as bench,
        redis.Redis.from_url(either_server.url) as tamperer,
    ):
        first = await bench.processing(lease=5.0)
        await bench.settle(first, State.FAILING)
        claim = await bench.take(lease=5.0)
        key, token = f"{key_prefix}{STEM}j:job", token_bytes(first.token)
        record = await stored(tamperer, key)
        length = record.index(token) + len(token)
        assert record[length : length + 2] == b"\x00\x00"
        await tamperer.set(key, record[:length] + b"\x00\x01\xc1" + record[length + 2 :])

        [told] = await bench.queue.settle([bench.settlement(claim)])

        assert isinstance(told, StorageCorruptError)
        bench.clock.advance(6.0)
        assert [one.id for one in (await bench.queue.rescue(10)).rescued] == ["job"]


@in_loop
async def test_a_lock_is_not_held_for_longer_because_the_clock_jumped_back(
    either_server: Server, key_prefix: str
) -> None:
    """A leader that crashed is followed within its lock's length, and until then nobody takes the lock from it."""
    async with benched(either_server, key_prefix, by_hand=True) as bench:
        assert await bench.queue.hold("reaper", "crashed", 30.0) is True

        bench.clock.jump_monotonic(-3600.0)

        assert await bench.queue.hold("reaper", "other", 5.0) is False
        bench.clock.advance(29.0)
        assert await bench.queue.hold("reaper", "other", 5.0) is False
        await bench.queue.release("reaper", "other")
        bench.clock.advance(2.0)
        assert await bench.queue.hold("reaper", "other", 5.0) is True
        await bench.queue.release("reaper", "other")
        assert await bench.queue.hold("reaper", "third", 5.0) is True


@in_loop
async def test_a_lock_that_was_overwritten_is_taken(either_server: Server, key_prefix: str) -> None:
    """Nobody can hold what names no owner, and reapers must not stand still for ever."""
    async with benched(either_server, key_prefix) as bench:
        either_server.command("SET", f"{key_prefix}{STEM}lock:reaper", "tampered")

        assert await bench.queue.hold("reaper", "me", 5.0) is True
        assert await bench.queue.hold("reaper", "other", 5.0) is False


@pytest.mark.parametrize("field", ["count", "longest", "looked"])
@pytest.mark.parametrize("value", ["tampered", "nan", "inf", "1e300"])
@in_loop
async def test_a_counter_that_was_overwritten_costs_no_job(
    either_server: Server, key_prefix: str, field: str, value: str
) -> None:
    """It is no number that jobq wrote, so it is written anew; every token is its own, and who sleeps is woken."""
    async with benched(either_server, key_prefix) as bench:
        await bench.add("before")
        await bench.add("later", delay=0.02)
        either_server.command("HSET", f"{key_prefix}{STEM}seq", field, value)

        await bench.add("after")
        await bench.queue.add([bench.new(id, delay=0.01) for id in ("delayed", "other")])
        taken: list[Claim] = []

        async def all_taken() -> bool:
            taken.extend((await bench.claim(1)).claims)
            await bench.queue.rescue(10)
            return len(taken) == 5

        await eventually(all_taken, "all jobs")

        assert {claim.id for claim in taken} == {"before", "later", "after", "delayed", "other"}
        counters = [int(claim.token.partition("-")[0]) for claim in taken]
        assert counters == sorted(set(counters))
        assert counters[0] > 10**15
        await bench.queue.wait_for_work(0.05)
        assert either_server.command("HGET", f"{key_prefix}{STEM}seq", "longest") not in (value, None)


@in_loop
async def test_sleepers_are_woken_for_delayed_jobs_also_after_the_data_is_gone(
    either_server: Server, key_prefix: str
) -> None:
    """A server that was emptied no longer knows that somebody sleeps, and is told again after the next claim."""
    async with benched(either_server, key_prefix) as bench:
        sequence = f"{key_prefix}{STEM}seq"
        for id in ("before", "after"):
            waiting = asyncio.ensure_future(bench.queue.wait_for_work(5.0))
            told = "told of the sleeper"
            await eventually(lambda: either_server.command("HGET", sequence, "longest") == "5000", told, within=3.0)
            begun = time.monotonic()

            await bench.add(id, delay=4.0)
            await waiting

            assert time.monotonic() - begun < 3.0
            either_server.command("DEL", sequence, f"{key_prefix}{STEM}later")
            await bench.claim()


@in_loop
async def test_a_watch_that_is_cancelled_as_it_begins_listens_to_nothing(
    either_server: Server, key_prefix: str
) -> None:
    """At whatever moment that is: it has two channels to subscribe, and leaves both."""

    def channels() -> list[str]:
        found = either_server.command("PUBSUB", "CHANNELS", f"{key_prefix}*")
        assert isinstance(found, list)
        return found

    async with benched(either_server, key_prefix) as bench, benched(either_server, f"{key_prefix}other:") as other:
        neighbour = await bench.storage.namespace("neighbour").watch(lambda hint: None)
        kept = sorted(channels())
        for turns in range(30):
            watching = asyncio.ensure_future(bench.queue.watch(lambda hint: None))
            for _ in range(turns):
                await asyncio.sleep(0)
                await (other.look() if turns > 10 else asyncio.sleep(0))
            watching.cancel()
            await asyncio.wait([watching])
            if not watching.cancelled():
                await watching.result().close()

            await eventually(lambda: sorted(channels()) == kept, "end of the subscriptions")
        await neighbour.close()


@in_loop
async def test_a_running_job_without_its_lease_entry_is_given_one_when_it_is_touched(
    either_server: Server, key_prefix: str
) -> None:
    """By an add, a get or a cancel; else it would be processing for ever."""
    async with benched(either_server, key_prefix) as bench:
        leases = f"{key_prefix}{STEM}leases"
        touches: Sequence[Callable[[], Any]] = (
            lambda: bench.look(),
            lambda: bench.queue.add([bench.new()]),
            lambda: bench.cancel(),
        )
        for touch in touches:
            await bench.processing(lease=0.05)
            either_server.command("DEL", leases)

            await touch()

            assert either_server.command("ZCARD", leases) == 1

            async def rescue() -> bool:
                return len((await bench.queue.rescue(10)).rescued) == 1

            await eventually(rescue, "rescue")
            await bench.cancel()


@in_loop
async def test_a_waiting_job_without_its_entry_is_given_one_when_it_is_touched(
    either_server: Server, key_prefix: str
) -> None:
    """A worker that sleeps is woken for it as well."""
    async with Work(RedisStorage(either_server.url, key_prefix=key_prefix), handles=False) as producer:
        await producer.queue.enqueue("ready", 1)
        await producer.queue.enqueue("later", 1, delay=0.2)
        either_server.command("DEL", *(f"{key_prefix}{{default}}:{key}" for key in ("ready", "later", "wake")))
        async with Work(RedisStorage(either_server.url, key_prefix=key_prefix), block_timeout=20.0) as worker:
            await eventually(lambda: either_server.command("HGET", f"{key_prefix}{{default}}:seq", "longest"), "rest")

            answers = [await producer.queue.wait("ready", timeout=5), await producer.queue.wait("later", timeout=5)]

            assert answers == [2, 2]
            assert set(worker.runs.values()) == {1}


@in_loop
async def test_entries_without_their_jobs_are_cleared_away(either_server: Server, key_prefix: str) -> None:
    """Entries of no job, or in nobody's shape; leases of no job, of a completed one, of one that waits."""
    async with benched(either_server, key_prefix) as bench:
        stem = f"{key_prefix}{STEM}"
        await bench.completed("completed")
        place = "\0" * 8
        for entry in ("", "x", f"{place}absent", f"{place}completed"):
            either_server.command("ZADD", f"{stem}ready", -5, entry)
            either_server.command("ZADD", f"{stem}later", 1, entry)
        for lease in ("", "x", *("t" * TOKEN_SIZE + id for id in ("absent", "completed", "queued"))):
            either_server.command("ZADD", f"{stem}leases", 1, lease)
        before = await bench.found("completed")
        await bench.add("queued")

        claimed = await bench.claim()

        assert [(claim.id, claim.attempts) for claim in claimed.claims] == [("queued", 1)]
        assert claimed.rescued == []
        assert await bench.found("completed") == before
        await bench.claim()
        assert leftovers(either_server, stem) == {"ready": 0, "later": 0, "leases": 1}


@in_loop
async def test_many_entries_without_their_jobs_are_not_cleared_away_by_one_claim(
    either_server: Server, key_prefix: str
) -> None:
    """Nobody else is answered meanwhile; after a removal by hand that was interrupted it can be a million."""
    ready = f"{key_prefix}{STEM}ready"
    async with benched(either_server, key_prefix) as bench, redis.Redis.from_url(either_server.url) as tamperer:
        await bench.add()
        for first in range(0, 20_000, 5_000):
            await tamperer.zadd(ready, {number.to_bytes(8) + b"gone": 0 for number in range(first, first + 5_000)})

        claimed = await bench.claim(10)

        assert (claimed.claims, claimed.next_in) == ([], 0.0)
        assert await tamperer.zcard(ready) > 10_000
    async with Work(RedisStorage(either_server.url, key_prefix=key_prefix), name="first", block_timeout=20.0) as work:
        assert await work.queue.enqueue_and_wait("last", 21) == 42
        await eventually(lambda: either_server.command("ZCARD", ready) == 0, "the end of all entries")


@in_loop
async def test_a_worker_outlives_damaged_records(either_server: Server, key_prefix: str) -> None:
    """Of a hundred jobs every fifth is cut short; the others run, and who waits for one of those is told."""
    storage = RedisStorage(either_server.url, key_prefix=key_prefix)
    ids = names(100)
    async with Work(storage, handles=False) as producer:
        await producer.queue.enqueue_many([(id, 1) for id in ids])
        for id in ids[::5]:
            either_server.command("SETRANGE", f"{key_prefix}{{default}}:j:{id}", 0, "\x07\xff\xff")
        async with Work(RedisStorage(either_server.url, key_prefix=key_prefix)) as worker:
            await eventually(lambda: len(worker.completed) == 80, "the others")

            errors = await asyncio.gather(*(producer.queue.wait(id) for id in ids[::5]), return_exceptions=True)

            assert {type(error) for error in errors} == {StorageCorruptError}
            assert all(id in str(error) for id, error in zip(ids[::5], errors, strict=True))
            assert worker.of("error") == []
            assert await worker.queue.enqueue_and_wait("last", 21) == 42
            assert (await counted(worker.queue))[State.COMPLETED] == 81


@in_loop
async def test_a_running_job_whose_record_is_damaged_ends_for_its_worker(
    either_server: Server, key_prefix: str
) -> None:
    """Its settle is refused until the lease is over; the worker says so, and goes on with others."""
    storage = RedisStorage(either_server.url, key_prefix=key_prefix)
    queue, waiting = Queue[int, int](storage, visibility_timeout=1.0, concurrency=2), Waiting()
    errors: list[BaseException] = []
    queue.on("error", errors.append)
    queue.execute(waiting)
    async with queue:
        await queue.enqueue("damaged", 1)
        await waiting.begun()
        either_server.command("SET", f"{key_prefix}{{default}}:j:damaged", "damaged")
        waiting.release.set()

        assert await queue.enqueue_and_wait("other", 21, timeout=5) == 21
        await eventually(lambda: errors, "the error")

        assert {type(error) for error in errors} == {StorageCorruptError}


@in_loop
async def test_prefixes_names_and_ids_do_not_collide(either_server: Server, key_prefix: str) -> None:
    """Whatever can be mistaken for a separator: each queue has its own job under each id."""
    prefixes = [key_prefix, f"{key_prefix}:", f"{key_prefix}a", f"{key_prefix}a:", f"{key_prefix}*"]
    queue_names = ["a", "a.b", "a-b", "A", "ab"]
    ids = [
        "x",
        "a",
        "j:a",
        "{a}",
        "{a}:j:x",
        "y:z",
        "x:y",
        "ready",
        "wake",
        "",
        "*",
        "\r\nFLUSHALL\r\n",
        "é",
        "e\u0301",
    ]
    views = []
    for prefix in prefixes:
        storage = RedisStorage(either_server.url, key_prefix=prefix)
        await storage.open()
        views += [(storage, name, Bench(StorageCase(), ManualClock(), storage)) for name in queue_names]
    for storage, name, bench in views:
        bench.queue = storage.namespace(name)
        answers = await bench.queue.add([bench.new(id, f"{storage!r}{name}{id}".encode()) for id in ids])
        assert list(answers) == [None] * len(ids)

    for storage, name, bench in views:
        claims = (await bench.claim()).claims
        assert {claim.id: claim.payload for claim in claims} == {id: f"{storage!r}{name}{id}".encode() for id in ids}
        assert (await counts_of(bench)) == {State.PROCESSING: len(ids)}
    for storage in {storage for storage, _, _ in views}:
        await storage.close()


async def counts_of(bench: Bench) -> dict[State, int]:
    return {state: count for state, count in (await bench.queue.counts()).items() if count}
