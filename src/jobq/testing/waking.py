"""Behaviours of `watch` and `wait_for_work`: who is told, and who is woken.

These run in real time, but no test sleeps: each waits for an event, and fails if it does not come within `SOON`.
A storage that loses hints must be able to deliver them all on a quiet machine: that is what is checked here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from jobq.job import State
from jobq.storage.contract import MOST_ADDRESSES, PUSHED_RESULT_LIMIT, Hint, HintKind, Ref, Watch
from jobq.testing.bench import SOON, Bench, StorageCase, near, scenario, soon

LONG = 3 * SOON
"""Real seconds for which a sleeper would sleep if nobody woke it: longer than `soon` has patience."""


class Telling(StorageCase):
    """``reply_to`` and hints."""

    @scenario
    async def test_who_asked_is_told_how_a_job_ends(self, bench: Bench) -> None:
        """With the snapshot inside, so that there is nothing left to read."""
        async with _watching(bench) as (watch, hints):
            for state in (State.COMPLETED, State.FAILED):
                job = await bench.add(str(state), reply_to=watch.address)
                await bench.settle(await bench.take(), state)

                hint = await soon(hints.get())

                assert (hint.kind, hint.id, hint.generation) == (HintKind.SETTLED, str(state), job.nonce)
                assert hint.snapshot is None or hint.snapshot == await bench.found(str(state))

    @scenario
    async def test_who_asked_is_told_of_a_cancel(self, bench: Bench) -> None:
        """Of a waiting job, and of one that ran when it was asked to stop."""
        async with _watching(bench) as (watch, hints):
            waiting = await bench.add("waiting", reply_to=watch.address)
            await bench.cancel("waiting")
            hint = await soon(hints.get())
            assert (hint.kind, hint.id, hint.generation) == (HintKind.CANCELLED, "waiting", waiting.nonce)

            await bench.add("running", reply_to=watch.address)
            claim = await bench.take()
            await bench.cancel("running", running=True)
            await bench.settle(claim)
            kinds = {(await soon(hints.get())).kind, (await soon(hints.get())).kind}
            assert kinds == {HintKind.CANCEL_ASKED, HintKind.CANCELLED}

    @scenario
    async def test_who_asked_is_told_of_a_result_that_is_not_kept(self, bench: Bench) -> None:
        """``ttl=0`` means no cache, not no answer."""
        async with _watching(bench) as (watch, hints):
            job = await bench.add(reply_to=watch.address)
            await bench.settle(await bench.take(), ttl=0.0)

            hint = await soon(hints.get())

            assert (hint.kind, hint.generation) == (HintKind.SETTLED, job.nonce)
            assert hint.snapshot is None or hint.snapshot.result == b"result"

    @scenario
    async def test_who_asked_is_told_of_a_lost_worker(self, bench: Bench) -> None:
        """A job that fails by a lapse has ended like any other."""
        async with _watching(bench) as (watch, hints):
            await bench.processing(max_attempts=1, lease=5.0, reply_to=watch.address)
            bench.clock.advance(5.25)
            await bench.queue.rescue(10)

            kinds = {(await soon(hints.get())).kind, (await soon(hints.get())).kind}

            assert kinds == {HintKind.SETTLED, HintKind.RESCUED}

    @scenario
    async def test_a_duplicate_may_ask_too(self, bench: Bench) -> None:
        """Everybody who joins a run hears of its end, each once."""
        async with _watching(bench) as (first, hints), _watching(bench) as (second, others):
            await bench.add(reply_to=first.address)
            await bench.queue.add([bench.new(reply_to=second.address), bench.new(reply_to=second.address)])
            await bench.settle(await bench.take())

            assert (await soon(hints.get())).kind is HintKind.SETTLED
            assert (await soon(others.get())).kind is HintKind.SETTLED
            assert (hints.empty(), others.empty()) == (True, True)

    @scenario
    async def test_a_reader_may_ask_too(self, bench: Bench) -> None:
        """A `get` with an address notes it, while the job has not ended."""
        async with _watching(bench) as (watch, hints):
            await bench.processing()
            claim = (await bench.queue.claim("worker", 30.0, 1, "another.1")).claims
            assert claim == []
            [snapshot] = await bench.queue.get([Ref("job", None, watch.address)])
            assert getattr(snapshot, "state", None) is State.PROCESSING
            await bench.cancel(running=True)
            assert (await soon(hints.get())).kind is HintKind.CANCEL_ASKED

            bench.clock.advance(30.25)
            await bench.queue.rescue(10)

            kinds = {(await soon(hints.get())).kind, (await soon(hints.get())).kind}
            assert kinds == {HintKind.CANCELLED, HintKind.RESCUED}

    @scenario
    async def test_a_retry_is_not_an_end(self, bench: Bench) -> None:
        """The address stays noted through attempts and give-backs, and is used once."""
        async with _watching(bench) as (watch, hints):
            await bench.add(reply_to=watch.address)
            await bench.settle(await bench.take(), State.FAILING)
            await bench.settle(await bench.take(), State.QUEUED)
            await bench.settle(await bench.take())

            hint = await soon(hints.get())

            assert hint.kind is HintKind.SETTLED
            assert hints.empty()

    @scenario
    async def test_nobody_is_told_who_did_not_ask(self, bench: Bench) -> None:
        """Results go to those who wait for them."""
        async with _watching(bench) as (watch, hints), _watching(bench) as (_, others):
            await bench.completed("unasked")
            await bench.add("asked", reply_to=watch.address)
            await bench.settle(await bench.take())

            assert (await soon(hints.get())).id == "asked"
            assert (hints.empty(), others.empty()) == (True, True)

    @scenario
    async def test_every_watch_hears_of_rescues(self, bench: Bench) -> None:
        """With the attempt that was lost, so that one rescue is announced once."""
        async with _watching(bench) as (_, hints), _watching(bench) as (_, others):
            claim = await bench.processing(lease=5.0)
            bench.clock.advance(5.25)
            await bench.claim()

            for received in (hints, others):
                hint = await soon(received.get())
                assert (hint.kind, hint.id, hint.attempts) == (HintKind.RESCUED, "job", 1)
                assert hint.generation == claim.generation

    @scenario
    async def test_every_watch_hears_that_a_running_job_should_stop(self, bench: Bench) -> None:
        """One of them is its worker's."""
        async with _watching(bench) as (_, hints), _watching(bench) as (_, others):
            claim = await bench.processing()
            await bench.cancel(running=True)

            for received in (hints, others):
                hint = await soon(received.get())
                assert (hint.kind, hint.id, hint.generation) == (HintKind.CANCEL_ASKED, "job", claim.generation)

    @scenario
    async def test_a_watch_hears_nothing_of_another_queue(self, bench: Bench) -> None:
        """Queues never see each other."""
        other = bench.on(bench.storage.namespace("second"))
        async with _watching(bench) as (_, hints), _watching(other) as (_, others):
            await other.processing("theirs")
            await other.cancel("theirs", running=True)
            assert (await soon(others.get())).id == "theirs"
            await bench.processing("ours")
            await bench.cancel("ours", running=True)

            assert (await soon(hints.get())).id == "ours"
            assert (hints.empty(), others.empty()) == (True, True)

    @scenario
    async def test_a_large_result_is_announced_without_it(self, bench: Bench) -> None:
        """It is read instead, exactly."""
        large = b"\xff" * (PUSHED_RESULT_LIMIT + 1)
        async with _watching(bench) as (watch, hints):
            await bench.add(reply_to=watch.address)
            await bench.settle(await bench.take(), result=large)

            hint = await soon(hints.get())

            assert (hint.kind, hint.snapshot) == (HintKind.SETTLED, None)
            assert (await bench.found()).result == large

    @scenario
    async def test_a_closed_watch_hears_nothing(self, bench: Bench) -> None:
        """Closing twice is harmless, and a job that wanted to tell it ends like any other."""
        async with _watching(bench) as (closed, hints), _watching(bench) as (_, others):
            await bench.processing(reply_to=closed.address)
            await closed.close()
            await closed.close()
            await bench.cancel(running=True)
            assert (await soon(others.get())).kind is HintKind.CANCEL_ASKED

            assert hints.empty()

    @scenario
    async def test_of_many_who_asked_the_latest_are_told(self, bench: Bench) -> None:
        """Or the record of a job that is due in a year would grow with each program that looks for it."""
        async with _watching(bench) as (early, hints), _watching(bench) as (late, others):
            await bench.add("a", reply_to=early.address)
            for number in range(MOST_ADDRESSES - 1):
                await bench.queue.get([Ref("a", reply_to=f"nobody:{number}.x")])
            await bench.queue.get([Ref("a", reply_to=late.address)])

            await bench.settle(await bench.take())

            assert (await soon(others.get())).kind is HintKind.SETTLED
            assert hints.empty()

    @scenario
    async def test_a_senseless_address_harms_nobody(self, bench: Bench) -> None:
        """It is somebody else's text."""
        async with _watching(bench) as (watch, hints):
            await bench.add(reply_to=watch.address)
            await bench.queue.add([bench.new(reply_to=text) for text in ("", "nobody", "../x\r\n", "a b\u00e9" * 50)])

            assert await bench.settle(await bench.take()) == "applied"

            assert (await soon(hints.get())).kind is HintKind.SETTLED


class Sleeping(StorageCase):
    """`wait_for_work`."""

    @scenario
    async def test_waiting_ends_at_its_timeout(self, bench: Bench) -> None:
        """When nothing comes."""
        loop = asyncio.get_running_loop()
        began = loop.time()

        await soon(bench.queue.wait_for_work(0.05))

        assert loop.time() - began < SOON

    @scenario
    async def test_waiting_ends_at_once_when_there_is_work(self, bench: Bench) -> None:
        """What arrived before the wait began is not slept through."""
        await bench.add()

        await soon(bench.queue.wait_for_work(LONG))

    @scenario
    async def test_a_claim_is_said_to_be_in_vain_only_if_it_is(self, bench: Bench) -> None:
        """And what comes after that is found by the next wait, which begins by looking."""
        assert isinstance(await soon(bench.queue.wait_for_work(0.05)), bool)
        await bench.add("later", delay=1000.0)
        assert await soon(bench.queue.wait_for_work(0.05)) is True
        await bench.processing("running", lease=1000.0)
        assert await soon(bench.queue.wait_for_work(0.05)) is True
        await bench.add("ready")
        assert await soon(bench.queue.wait_for_work(LONG)) is True

    @scenario
    async def test_an_add_wakes_a_sleeper(self, bench: Bench) -> None:
        """Without waiting for the next poll."""
        async with _sleeper(bench) as sleeper:
            await bench.add()

            await soon(sleeper)

    @scenario
    async def test_a_retry_wakes_a_sleeper(self, bench: Bench) -> None:
        """And so does a job given back."""
        for state in (State.FAILING, State.QUEUED):
            claim = await bench.processing(str(state))
            async with _sleeper(bench) as sleeper:
                await bench.settle(claim, state)
                await soon(sleeper)
            await bench.drained()

    @scenario
    async def test_a_rescue_wakes_a_sleeper(self, bench: Bench) -> None:
        """The reaper only says that the job may run; somebody must run it."""
        await bench.processing(lease=1000.0)
        async with _sleeper(bench) as sleeper:
            bench.clock.advance(1000.25)
            await bench.queue.rescue(10)

            await soon(sleeper)

    @scenario
    async def test_a_revive_wakes_a_sleeper(self, bench: Bench) -> None:
        """The job is ready at once."""
        await bench.failed()
        async with _sleeper(bench) as sleeper:
            await bench.revive()

            await soon(sleeper)

    @scenario
    async def test_an_earlier_due_time_wakes_a_sleeper(self, bench: Bench) -> None:
        """So that it learns when to be back: it cannot have known."""
        async with _sleeper(bench) as sleeper:
            await bench.add(delay=LONG / 2)

            await soon(sleeper)

        assert near((await bench.claim()).next_in, LONG / 2)

    @scenario
    async def test_a_retry_that_is_due_earlier_wakes_a_sleeper(self, bench: Bench) -> None:
        """As the delay of a new job does."""
        claim = await bench.processing(lease=1000.0)
        async with _sleeper(bench) as sleeper:
            await bench.settle(claim, State.FAILING, delay=LONG / 2)

            async with asyncio.timeout(SOON / 4):  # By itself it may look a little later, since it knows of the lease.
                await sleeper

        assert near((await bench.claim()).next_in, LONG / 2)

    @scenario
    async def test_a_claim_wakes_a_sleeper_who_would_sleep_through_its_lapse(self, bench: Bench) -> None:
        """Else the job of a worker that dies waits until somebody wakes up by chance."""
        async with _sleeper(bench) as first, _sleeper(bench) as second:
            await bench.add()
            await soon(asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED))
            await bench.take(lease=LONG / 2)

            await soon(asyncio.gather(first, second))

    @scenario
    async def test_waiting_ends_when_something_falls_due(self, bench: Bench) -> None:
        """Also if it was added after the claim by which the caller knows for how long to wait."""
        assert (await bench.claim()).next_in is None
        await bench.add(delay=0.05)

        assert await soon(bench.queue.wait_for_work(LONG)) is True

    @scenario
    async def test_a_wake_up_is_passed_on_while_work_is_left(self, bench: Bench) -> None:
        """Five sleepers that take one job each, and one add of five jobs: none is left to the next poll."""
        workers = [asyncio.create_task(_take_one(bench.on(bench.queue))) for _ in range(5)]
        await _turns()
        await bench.queue.add([bench.new(id) for id in "abcde"])

        assert sorted(await soon(asyncio.gather(*workers))) == list("abcde")

    @scenario
    async def test_a_claim_that_leaves_work_behind_wakes_the_next(self, bench: Bench) -> None:
        """Of jobs that fall due together one sleeper hears, by its own timer; each wakes the next."""
        await bench.queue.add([bench.new(id, delay=5.0) for id in "abcde"])
        workers = [asyncio.create_task(_take_one(bench.on(bench.queue))) for _ in range(4)]
        await _turns()
        bench.clock.advance(5.25)

        first = await bench.take()

        assert sorted([first.id, *await soon(asyncio.gather(*workers))]) == list("abcde")

    @scenario
    async def test_a_cancelled_sleeper_passes_its_wake_up_on(self, bench: Bench) -> None:
        """Else a worker that stops would take the news with it."""
        async with _sleeper(bench) as first, _sleeper(bench) as second:
            await bench.add()
            first.cancel()
            await asyncio.wait([first])

            if first.cancelled():
                await soon(second)

    @scenario
    async def test_a_sleeper_may_be_cancelled(self, bench: Bench) -> None:
        """And those that sleep on are woken as ever."""
        async with _sleeper(bench) as first, _sleeper(bench) as second:
            first.cancel()
            await asyncio.wait([first])
            await bench.add()

            await soon(second)

        assert first.cancelled()

    @scenario
    async def test_sleeping_on_one_queue_ignores_another(self, bench: Bench) -> None:
        """Work elsewhere is no reason to be here at once: who sleeps here is woken by work here."""
        other = bench.on(bench.storage.namespace("second"))
        async with _sleeper(bench) as ours, _sleeper(other) as theirs:
            await other.add()
            await soon(theirs)
            await bench.add()

            await soon(ours)


@contextlib.asynccontextmanager
async def _watching(bench: Bench) -> AsyncIterator[tuple[Watch, asyncio.Queue[Hint]]]:
    hints: asyncio.Queue[Hint] = asyncio.Queue()
    watch = await bench.queue.watch(hints.put_nowait)
    try:
        yield watch, hints
    finally:
        await watch.close()


@contextlib.asynccontextmanager
async def _sleeper(bench: Bench) -> AsyncIterator[asyncio.Task[bool]]:
    """A task that sleeps until there is work, for much longer than a test waits for it."""
    for _ in range(2):  # A wake-up that earlier steps have left would end its sleep, and the test would show nothing.
        await bench.queue.wait_for_work(0.05)
    sleeper = asyncio.create_task(bench.queue.wait_for_work(LONG))
    await _turns()
    try:
        yield sleeper
    finally:
        sleeper.cancel()
        await asyncio.wait([sleeper])


async def _take_one(worker: Bench) -> str:
    """Be a worker with one slot, until it has a job."""
    while not (claims := (await worker.claim(1)).claims):
        await worker.queue.wait_for_work(LONG)
    return claims[0].id


async def _turns() -> None:
    """Let tasks begin. It is no matter how far they come: the contract covers every moment."""
    for _ in range(10):
        await asyncio.sleep(0)
