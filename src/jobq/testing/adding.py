"""Behaviours of `add` and `get`: one holder of an id, exact ids and bytes, queues that never see each other."""

from __future__ import annotations

import asyncio

from jobq.job import Snapshot, State
from jobq.storage.contract import LINGER, Ref
from jobq.testing.bench import TTL, Bench, StorageCase, near, scenario

ODD_IDS = (
    " ", "a", "A", "a:b", "a:b:c", "a/b", "../x", "../../etc/passwd", "/etc/passwd", ".", "..", "a\\b", "C:\\x", "~",
    "CON", "a.", "a ", "\n", "\r\nSET x 1\r\n", "*", "?[a-z]", "{tag}", "}{", "%s%n", "'; DROP TABLE jobs;--", '"', "`",
    "<script>", "__proto__", "NaN", "null", "0", "-1", "\u00e9", "e\u0301", "\U0001f468\u200d\U0001f469",
    "\u202egnp", "\ufeffx", "\x7f\x01", "x" * 1024, "\u20ac" * 341, "x" * 255, "x" * 256,
)  # fmt: skip
"""Ids that somebody's storage has confused, interpreted or refused."""


class Adding(StorageCase):
    """``absent → queued``, and what can be read."""

    @scenario
    async def test_an_added_job_can_be_read(self, bench: Bench) -> None:
        """The snapshot says what was asked for."""
        before = bench.clock.now()

        job = await bench.add(max_attempts=7, result_ttl=12.5, priority=-3)
        snapshot = await bench.found()

        assert snapshot.generation == job.nonce
        assert (snapshot.state, snapshot.attempts) == (State.QUEUED, 0)
        assert (snapshot.max_attempts, snapshot.result_ttl, snapshot.priority) == (7, 12.5, -3)
        assert near(snapshot.created_at, before)
        assert near(snapshot.run_at, before)
        assert (snapshot.started_at, snapshot.finished_at, snapshot.expires_at) == (None, None, None)
        assert (snapshot.result, snapshot.error, snapshot.cancel_asked) == (None, None, False)

    @scenario
    async def test_an_unknown_id_is_absent(self, bench: Bench) -> None:
        """Absent is None, with a generation or without."""
        assert list(await bench.queue.get([Ref("job"), Ref("job", "tests.1")])) == [None, None]

    @scenario
    async def test_the_first_writer_wins(self, bench: Bench) -> None:
        """A second add with another nonce changes nothing, and is told who holds the id."""
        first = await bench.add(payload=b"first")
        before = await bench.picture()

        [answer] = await bench.queue.add([bench.new(payload=b"second", priority=5, delay=9.0)])

        assert isinstance(answer, Snapshot)
        assert (answer.generation, answer.state) == (first.nonce, State.QUEUED)
        assert await bench.picture() == before
        assert (await bench.take()).payload == b"first"

    @scenario
    async def test_a_duplicate_is_told_the_state_and_the_result_that_it_found(self, bench: Bench) -> None:
        """One call is enough to learn the cached result: there is no second read."""
        found = []
        await bench.add()
        for state in (State.PROCESSING, State.FAILING, State.PROCESSING, State.COMPLETED):
            if state is State.PROCESSING:
                claim = await bench.take()
            else:
                await bench.settle(claim, state)
            [answer] = await bench.queue.add([bench.new()])
            assert isinstance(answer, Snapshot)
            found.append((answer.state, answer.attempts, answer.result))

        assert found == [
            (State.PROCESSING, 1, None),
            (State.FAILING, 1, None),
            (State.PROCESSING, 2, None),
            (State.COMPLETED, 2, b"result"),
        ]

    @scenario
    async def test_a_failed_job_holds_its_id(self, bench: Bench) -> None:
        """Only `revive` runs it again before it expires."""
        await bench.failed()

        [answer] = await bench.queue.add([bench.new()])

        assert isinstance(answer, Snapshot)
        assert (answer.state, answer.error) == (State.FAILED, b"error")

    @scenario
    async def test_of_an_id_that_occurs_twice_in_one_call_the_first_wins(self, bench: Bench) -> None:
        """The second is answered with the first."""
        jobs = [bench.new(payload=b"1"), bench.new("other"), bench.new(payload=b"2")]

        first, other, second = await bench.queue.add(jobs)

        assert (first, other) == (None, None)
        assert isinstance(second, Snapshot)
        assert second.generation == jobs[0].nonce
        assert (await bench.take()).payload == b"1"

    @scenario
    async def test_of_an_expired_id_that_occurs_twice_in_one_call_the_first_wins(self, bench: Bench) -> None:
        """What the first has replaced does not let the second in."""
        await bench.completed(ttl=0.0)
        jobs = [bench.new(payload=b"1"), bench.new(payload=b"2")]

        first, second = await bench.queue.add(jobs)

        assert first is None
        assert isinstance(second, Snapshot)
        assert second.generation == jobs[0].nonce
        assert (await bench.take()).payload == b"1"
        assert (await bench.claim()).claims == []

    @scenario
    async def test_concurrent_adds_of_one_id_are_accepted_once(self, bench: Bench) -> None:
        """Test and insert are one step."""
        answers = await asyncio.gather(*(bench.queue.add([bench.new()]) for _ in range(20)))

        assert sum(list(answer) == [None] for answer in answers) == 1
        assert await bench.queue.counts() == {State.QUEUED: 1}

    @scenario
    async def test_answers_come_in_the_order_asked(self, bench: Bench) -> None:
        """Of add and of get, with repeats."""
        await bench.add("b")

        added = await bench.queue.add([bench.new(id) for id in "cba"])
        got = await bench.queue.get([Ref(id) for id in "axcbab"])

        assert [answer if answer is None else "held" for answer in added] == [None, "held", None]
        assert [getattr(answer, "id", None) for answer in got] == ["a", None, "c", "b", "a", "b"]

    @scenario
    async def test_empty_calls_are_answered_empty(self, bench: Bench) -> None:
        """A batch of nothing is no error."""
        assert list(await bench.queue.add([])) == []
        assert list(await bench.queue.get([])) == []
        assert list(await bench.queue.extend([], 1.0)) == []
        assert list(await bench.queue.settle([])) == []

    @scenario
    async def test_a_large_batch_is_one_call(self, bench: Bench) -> None:
        """As many as the engine sends at once, and more."""
        ids = [f"job-{number}" for number in range(1100)]

        answers = await bench.queue.add([bench.new(id) for id in ids])
        got = await bench.queue.get([Ref(id) for id in ids])
        claims = (await bench.claim(2000)).claims

        assert list(answers) == [None] * 1100
        assert [getattr(answer, "id", None) for answer in got] == ids
        assert [claim.id for claim in claims] == ids
        settled = await bench.queue.settle([bench.settlement(claim) for claim in claims])
        assert set(settled) == {"applied"}
        assert await bench.queue.counts() == {State.COMPLETED: 1100}

    @scenario
    async def test_an_expired_job_does_not_hold_its_id(self, bench: Bench) -> None:
        """A new add replaces it, with nothing of the old run left."""
        await bench.completed(ttl=2.0)
        bench.clock.advance(2.5)

        job = await bench.add(payload=b"new", max_attempts=1)
        snapshot = await bench.found()

        assert (snapshot.generation, snapshot.state, snapshot.attempts) == (job.nonce, State.QUEUED, 0)
        assert (snapshot.result, snapshot.expires_at, snapshot.finished_at) == (None, None, None)
        assert (await bench.take()).payload == b"new"

    @scenario
    async def test_odd_ids_stay_exact_and_distinct(self, bench: Bench) -> None:
        """An id is data: no letter of it means anything, and no two of them are the same."""
        await bench.queue.add([bench.new(id, id.encode()) for id in ODD_IDS])

        claims = (await bench.claim()).claims

        assert [(claim.id, claim.payload) for claim in claims] == [(id, id.encode()) for id in ODD_IDS]
        for number, claim in enumerate(claims):
            assert await bench.settle(claim, result=b"%d" % number) == "applied"
        for number, id in enumerate(ODD_IDS):
            snapshot = await bench.found(id)
            assert (snapshot.id, snapshot.result) == (id, b"%d" % number)
        page = await bench.queue.page(State.COMPLETED, "", 1000)
        assert sorted(snapshot.id for snapshot in page) == sorted(ODD_IDS)

    @scenario
    async def test_every_verb_takes_odd_ids(self, bench: Bench) -> None:
        """Cancel, extend, revive and retain find the very job."""
        for id in ODD_IDS:
            claim = await bench.processing(id)
            assert await bench.extend(claim) == "held", id
            await bench.settle(claim, State.FAILED)
            assert await bench.retain(id, ttl=5.0) is State.FAILED, id
            assert await bench.revive(id) is State.FAILED, id
            assert await bench.cancel(id) is State.QUEUED, id
            assert await bench.state(id) is None, id

    @scenario
    async def test_payloads_results_and_errors_are_kept_to_the_byte(self, bench: Bench) -> None:
        """Storage sees bytes and never what they mean: all 256 values, in any order, and none at all."""
        every = bytes(range(256))
        for number, data in enumerate((every, every[::-1], b"", b"\0", b"\r\n" * 3, b"\xff" * 70_000)):
            await bench.add(f"job-{number}", data)
            claim = await bench.take()
            await bench.settle(claim, result=data)
            failed = await bench.processing(f"failed-{number}", payload=data)
            await bench.settle(failed, State.FAILED, error=data)

            assert (claim.payload, failed.payload) == (data, data)
            assert (await bench.found(f"job-{number}")).result == data
            assert (await bench.found(f"failed-{number}")).error == data

    @scenario
    async def test_no_result_and_an_empty_one_differ(self, bench: Bench) -> None:
        """None is not ``b""``."""
        for id, result in (("none", None), ("empty", b"")):
            await bench.settle(await bench.processing(id), result=result)

        assert (await bench.found("none")).result is None
        assert (await bench.found("empty")).result == b""

    @scenario
    async def test_numbers_are_kept_exactly(self, bench: Bench) -> None:
        """Side by side, the shortest and the longest."""
        wanted = (("a", 0.001, 1, -1000), ("b", 3_155_760_000.0, 2**31 - 1, 1000), ("c", 0.0, 1, 0))
        for id, ttl, attempts, priority in wanted:
            await bench.add(id, result_ttl=ttl, max_attempts=attempts, priority=priority)

        for id, ttl, attempts, priority in wanted:
            snapshot = await bench.found(id)
            assert (snapshot.result_ttl, snapshot.max_attempts, snapshot.priority) == (ttl, attempts, priority)

    @scenario
    async def test_queues_do_not_see_each_other(self, bench: Bench) -> None:
        """The same id in two queues is two jobs, also where their names overlap."""
        names = ("first", "second", "first.x", "FIRST", "first_", "f")
        benches = {name: bench.on(bench.storage.namespace(name)) for name in names}
        for name, one in benches.items():
            await one.add("job", name.encode())
            await one.add(f"{name}:job", b"")

        for name, one in benches.items():
            claims = (await one.claim()).claims
            assert [(claim.id, claim.payload) for claim in claims] == [("job", name.encode()), (f"{name}:job", b"")]
            assert await one.queue.counts() == {State.PROCESSING: 2}

    @scenario
    async def test_nothing_done_to_one_queue_changes_another(self, bench: Bench) -> None:
        """Every verb, with the ids, tokens and nonces of the other."""
        other = bench.on(bench.storage.namespace("second"))
        claim = await bench.processing()
        await bench.failed("failed")
        await bench.add("queued")
        before = await bench.picture(("job", "failed", "queued"))

        assert await other.settle(claim) == "lost"
        assert await other.extend(claim) == "lost"
        assert await other.cancel("queued") is None
        assert await other.cancel("job", running=True) is None
        assert await other.revive("failed") is None
        assert await other.retain("failed", ttl=0.0) is None
        assert (await other.claim()).claims == []
        await other.add("job")
        await other.queue.prune(100)
        assert (await other.queue.rescue(100)).rescued == []
        assert await other.queue.page(State.FAILED, "", 10) == []

        assert await bench.picture(("job", "failed", "queued")) == before

    @scenario
    async def test_a_queue_is_always_the_same_object(self, bench: Bench) -> None:
        """Two Queue objects on one storage share what it remembers."""
        assert bench.storage.namespace("first") is bench.queue
        assert bench.storage.namespace("second") is not bench.queue

    @scenario
    async def test_jobs_survive_closing_and_opening(self, bench: Bench) -> None:
        """The storage object may be used again, with what was in it."""
        claim = await bench.processing("held", payload=b"1")
        await bench.completed("done", ttl=TTL)
        await bench.add("waits", b"2", delay=5.0)
        ids = ("held", "done", "waits")
        before = await bench.picture(ids)

        await bench.storage.close()
        await bench.storage.open()

        assert await bench.picture(ids) == before
        assert await bench.settle(claim) == "applied"
        bench.clock.advance(5.5)
        assert (await bench.take()).payload == b"2"

    @scenario
    async def test_a_storage_is_closed_by_the_last_who_opened_it(self, bench: Bench) -> None:
        """Queues that share a storage open and close it in any order."""
        await bench.storage.open()
        await bench.storage.open()
        await bench.storage.close()
        await bench.add()
        await bench.storage.close()

        assert await bench.state() is State.QUEUED

    @scenario
    async def test_an_absent_record_is_found_by_its_generation(self, bench: Bench) -> None:
        """A waiter of that run still learns how it ended, for a while; nobody else does."""
        generation = (await bench.add()).nonce
        await bench.settle(await bench.take(), ttl=0.0)

        snapshot = await bench.found("job", generation)

        assert (snapshot.state, snapshot.result) == (State.COMPLETED, b"result")
        assert await bench.look() is None
        assert await bench.look("job", "another") is None
        bench.clock.advance(LINGER - 0.5)
        assert await bench.look("job", generation) is not None

    @scenario
    async def test_naming_another_generation_reads_the_present_job(self, bench: Bench) -> None:
        """So a waiter sees that its run is gone."""
        job = await bench.add()

        assert (await bench.found("job", "another")).generation == job.nonce
