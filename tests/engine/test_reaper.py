"""The reaper: jobs of silent workers come back promptly, each is announced once, and one of several leads."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from jobq import (
    ConfigError,
    Job,
    JobCancelledError,
    LeaderElection,
    MaxRetriesError,
    MemoryStorage,
    Queue,
    Reaper,
    State,
    StorageError,
    StorageUnavailableError,
)
from jobq.storage.contract import LINGER, Storage
from jobq.testing import OnLoop, VirtualClock, run_virtual
from tests.engine.scenes import Events, Gated, Waiting, echo, in_loop, passing


async def abandon(storage: Storage, queue: Queue[Any, Any], *ids: str, lease: float = 0.1, attempts: int = 3) -> None:
    """Claim jobs as a worker that is never heard of again."""
    for id in ids:
        await queue.enqueue(id, id, max_attempts=attempts)
    claimed = await storage.namespace(queue.name).claim("crashed", lease, len(ids), f"crashed-{ids[0]}.1")
    assert [claim.id for claim in claimed.claims] == list(ids)


@in_loop
async def test_a_lapsed_job_is_rescued_and_announced(storage: Storage) -> None:
    """When its lease ends, not at the next look."""
    reaper = Reaper(storage, visibility_timeout=60)
    events = Events(reaper)
    async with Queue[Any, Any](storage) as queue, reaper:
        await passing(0.02)
        await abandon(storage, queue, "a", "b")
        await reaper.stop()
        begun = time.monotonic()
        async with reaper:
            await events.until("stalled", 2)
        took = time.monotonic() - begun
        status = await queue.get_status("a")

    assert took < 0.5
    assert sorted(events.of("stalled")) == [("a",), ("b",)]
    assert status is not None
    assert (status.state, status.attempts) == (State.FAILING, 1)


@in_loop
async def test_a_lease_taken_while_it_sleeps_is_noticed_within_its_longest_sleep(storage: Storage) -> None:
    """visibility_timeout is the longest that it sleeps between looks."""
    reaper = Reaper(storage, visibility_timeout=0.1)
    events = Events(reaper)
    async with Queue[Any, Any](storage) as queue, reaper:
        await passing(0.02)
        await abandon(storage, queue, "a")
        await events.until("stalled", within=0.6)


@in_loop
async def test_a_rescued_job_runs_at_once_and_counts_its_attempts(storage: Storage) -> None:
    """A worker need not wait for its own next look."""
    worker = Queue[Any, Any](storage, block_timeout=60)

    @worker.execute
    async def attempts(job: Job[Any]) -> int:
        return job.attempts

    async with Queue[Any, Any](storage) as queue:
        await abandon(storage, queue, "a")
        async with Reaper(storage, visibility_timeout=0.05), worker:
            assert await queue.wait("a", timeout=2) == 2


@in_loop
async def test_a_job_whose_attempts_are_used_up_fails(storage: Storage) -> None:
    """A job that kills its worker cannot run for ever; its waiter is told."""
    async with Queue[Any, Any](storage) as queue, Reaper(storage, visibility_timeout=0.05) as reaper:
        events = Events(reaper)
        await abandon(storage, queue, "a", attempts=1)
        with pytest.raises(MaxRetriesError) as caught:
            await queue.wait("a", timeout=3)
        await events.until("stalled")
        status = await queue.get_status("a")

    assert caught.value.error.code == "WORKER_LOST"
    assert caught.value.attempts == 1
    assert status is not None
    assert status.state is State.FAILED


@in_loop
async def test_a_job_that_was_asked_to_cancel_ends_cancelled(storage: Storage) -> None:
    """It does not run again for want of a worker that heard of it."""
    async with Queue[Any, Any](storage) as queue, Reaper(storage, visibility_timeout=0.05):
        await abandon(storage, queue, "a")
        assert (await queue.cancel("a", running=True)).status == "cancelling"
        with pytest.raises((JobCancelledError, Exception)) as caught:
            await queue.wait("a", timeout=3)

    assert isinstance(caught.value, JobCancelledError)


@in_loop
async def test_each_rescue_is_announced_once_by_each_reaper(storage: Storage) -> None:
    """Its own and those that it hears of; also those of a claiming worker."""
    reapers = [Reaper(storage, visibility_timeout=0.05) for _ in range(3)]
    heard = [Events(reaper) for reaper in reapers]
    async with Queue[Any, Any](storage) as queue, reapers[0], reapers[1], reapers[2]:
        ids = [str(number) for number in range(20)]
        await abandon(storage, queue, *ids)
        for events in heard:
            await events.until("stalled", 20)
        await passing(0.1)

    for events in heard:
        assert sorted(events.of("stalled")) == sorted((id,) for id in ids)


@in_loop
async def test_a_workers_rescue_is_announced_by_a_reaper_that_does_not_act(storage: Storage) -> None:
    """Every rescue is a hint."""
    election = LeaderElection(lock_ttl=30)
    reaper = Reaper(storage, leader_election=election)
    events = Events(reaper)
    async with Queue[Any, Any](storage) as queue:
        await storage.namespace("default").hold("reaper", "somebody else", 30.0)
        async with reaper:
            assert not reaper.is_leader
            await abandon(storage, queue, "a", lease=0.05)
            worker = Queue[Any, Any](storage, block_timeout=0.05)
            worker.execute(echo)
            async with worker:
                assert await queue.wait("a") == "a"
                await events.until("stalled")

    assert events.of("stalled") == [("a",)]


@in_loop
async def test_a_second_loss_of_the_same_job_is_announced_again(storage: Storage) -> None:
    """Another attempt, another rescue."""
    async with Queue[Any, Any](storage) as queue, Reaper(storage, visibility_timeout=0.03) as reaper:
        events = Events(reaper)
        await abandon(storage, queue, "a", lease=0.05)
        await events.until("stalled", 1)
        await storage.namespace("default").claim("crashed", 0.05, 1, "again.1")
        await events.until("stalled", 2)

    assert events.of("stalled") == [("a",), ("a",)]


@pytest.mark.slow
@in_loop
async def test_a_healthy_worker_is_left_alone(storage: Storage) -> None:
    """However often the reaper looks."""
    queue, waiting = Queue[Any, Any](storage, visibility_timeout=0.15), Waiting()
    queue.execute(waiting)
    async with queue, Reaper(storage, visibility_timeout=0.01) as reaper:
        events = Events(reaper)
        await queue.enqueue("a", 1)
        await waiting.begun()
        await passing(0.4)
        waiting.release.set()
        assert await queue.wait("a") == 1

    assert not events.all[:-1] or events.names == []
    assert len(waiting.jobs) == 1


@in_loop
async def test_it_prunes_what_expired_long_ago(storage: Storage) -> None:
    """Without any consuming queue."""
    gated = Gated(storage)
    asked: list[int] = []

    async def prune(limit: int) -> int:
        asked.append(limit)
        return 0

    gated.replaced["prune"] = prune
    async with Reaper(gated, visibility_timeout=0.01):
        await passing(0.05)

    assert len(asked) == 1
    assert LINGER > 0


@in_loop
async def test_starting_and_stopping_twice_is_harmless(storage: Storage) -> None:
    """And it may be started again."""
    reaper = Reaper(storage)
    await reaper.stop()
    await reaper.start()
    await reaper.start()
    assert reaper.is_leader
    await reaper.stop()
    await reaper.stop()
    assert not reaper.is_leader
    async with reaper:
        assert reaper.is_leader
    assert not reaper.is_leader


@pytest.mark.slow
@pytest.mark.parametrize("election", [None, LeaderElection()], ids=["alone", "elected"])
@in_loop
async def test_a_stop_that_is_cancelled_goes_on(storage: Storage, election: LeaderElection | None) -> None:
    """At whichever step: nothing stays open, and a queue on the same storage works."""
    for turns in range(9):
        reaper = Reaper(storage, leader_election=election)
        await reaper.start()
        await passing(0.01)
        stopping = asyncio.create_task(reaper.stop())
        for _ in range(turns):
            await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.wait([stopping])
        await reaper.stop()

        assert not reaper.is_leader
        async with asyncio.timeout(2), Queue[Any, Any](storage) as queue:
            assert (await queue.enqueue(f"job-{turns}", 1)).status == "queued"


@in_loop
async def test_stop_awaited_in_a_listener_begins_the_stop(storage: Storage) -> None:
    """It returns at once, and the stop waits for the listener."""
    reaper, ended = Reaper(storage, visibility_timeout=0.05), asyncio.Event()

    @reaper.on("stalled")
    async def enough(id: str) -> None:
        await reaper.stop()
        await asyncio.sleep(0)
        ended.set()

    async with Queue[Any, Any](storage) as queue, reaper:
        await abandon(storage, queue, "a")
        async with asyncio.timeout(2):
            await ended.wait()
        await reaper.stop()
        assert not reaper.is_leader


@pytest.mark.slow
@in_loop
async def test_an_error_of_any_kind_does_not_end_it_in_silence(storage: Storage) -> None:
    """A storage with a bug is told of like one in trouble."""
    gated, bug = Gated(storage), ConnectionResetError("a bug")
    reaper = Reaper(gated, visibility_timeout=0.05)
    events = Events(reaper)
    gated.failures["rescue"] = [bug]
    async with Queue[Any, Any](storage) as queue, reaper:
        await abandon(storage, queue, "a")
        await events.until("stalled", within=4)

    assert events.of("error") == [(bug,)]


@pytest.mark.slow
@in_loop
async def test_trouble_is_reported_once_and_sat_out(storage: Storage) -> None:
    """Then it goes on."""
    gated = Gated(storage)
    reaper = Reaper(gated, visibility_timeout=0.05)
    events = Events(reaper)
    gated.failures["rescue"] = [StorageError("odd"), StorageError("odd")]
    async with Queue[Any, Any](storage) as queue, reaper:
        await abandon(storage, queue, "a")
        await events.until("stalled", within=4)

    assert len(events.of("error")) == 1


@in_loop
async def test_each_outage_is_reported(storage: Storage) -> None:
    """Once, but the second as well as the first."""
    gated = Gated(storage)
    reaper = Reaper(gated, visibility_timeout=0.05)
    events = Events(reaper)
    async with reaper:
        for outage in (1, 2):
            looked = gated.calls.get("rescue", 0)
            gated.failures["rescue"] = [StorageError("odd")]
            await events.until("error", outage, within=2)
            while gated.calls["rescue"] < looked + 3:
                await passing(0.01)

    assert len(events.of("error")) == 2


@in_loop
async def test_a_loss_after_a_retry_is_announced_again(storage: Storage) -> None:
    """Its attempts are counted from one again, and it is another run."""
    async with Queue[Any, Any](storage) as queue, Reaper(storage, visibility_timeout=0.03) as reaper:
        events = Events(reaper)
        await abandon(storage, queue, "a", lease=0.05, attempts=1)
        await events.until("stalled", 1)
        assert (await queue.retry("a")).status == "queued"
        await storage.namespace("default").claim("crashed", 0.05, 1, "again.1")
        await events.until("stalled", 2)

    assert events.of("stalled") == [("a",), ("a",)]


@in_loop
async def test_a_reaper_that_was_stopped_announces_nothing(storage: Storage) -> None:
    """It hears no more of what others rescue."""
    stopped, acting = (Reaper(storage, visibility_timeout=0.03) for _ in range(2))
    events, heard = Events(stopped), Events(acting)
    async with Queue[Any, Any](storage) as queue:
        async with stopped:
            pass
        async with acting:
            await abandon(storage, queue, "a", lease=0.05)
            await heard.until("stalled")

    assert events.names == []


@in_loop
async def test_a_start_that_fails_leaves_nothing_open(storage: Storage) -> None:
    """Neither threads nor connections; and it can be repeated."""
    gated = Gated(storage)
    reaper = Reaper(gated)
    gated.failures["watch"] = [StorageUnavailableError("away")]
    with pytest.raises(StorageUnavailableError):
        await reaper.start()

    assert not reaper.is_leader


# Leader election


QUICK = LeaderElection(lock_ttl=0.3, acquire_retry_interval=0.03)


@in_loop
async def test_one_of_several_leads(storage: Storage) -> None:
    """The others look for the lead and do not act."""
    reapers = [Reaper(storage, leader_election=QUICK) for _ in range(3)]
    heard = [Events(reaper) for reaper in reapers]
    async with reapers[0], reapers[1], reapers[2]:
        await passing(0.15)
        leaders = [reaper.is_leader for reaper in reapers]
        acquired = [len(events.of("leadership_acquired")) for events in heard]

    assert sorted(leaders) == [False, False, True]
    assert acquired == [int(leads) for leads in leaders]


@pytest.mark.slow
@in_loop
async def test_a_leader_stays_the_leader(storage: Storage) -> None:
    """It renews before its lock lapses."""
    election = LeaderElection(lock_ttl=0.5, renewal_interval=0.05, acquire_retry_interval=0.02)
    reaper = Reaper(storage, leader_election=election)
    events = Events(reaper)
    async with reaper:
        await events.until("leadership_acquired")
        await passing(0.7)
        assert reaper.is_leader
        assert events.names == ["leadership_acquired"]

    assert events.all == [("leadership_acquired",), ("leadership_lost",)]


@in_loop
async def test_a_leader_that_stops_hands_over_at_once(storage: Storage) -> None:
    """The next one need not wait for the lock to lapse."""
    election = LeaderElection(lock_ttl=30, acquire_retry_interval=0.03)
    first, second = Reaper(storage, leader_election=election), Reaper(storage, leader_election=election)
    led, follows = Events(first), Events(second)
    async with first:
        await led.until("leadership_acquired")
        async with second:
            await passing(0.05)
            assert not second.is_leader
            await first.stop()
            assert not first.is_leader
            await follows.until("leadership_acquired", within=0.5)
            assert second.is_leader


@pytest.mark.slow
@in_loop
async def test_a_leader_that_crashed_is_followed(storage: Storage) -> None:
    """Within lock_ttl and acquire_retry_interval, and not before its lock has lapsed."""
    reaper = Reaper(storage, leader_election=QUICK)
    events = Events(reaper)
    async with Queue[Any, Any](storage):
        begun = time.monotonic()
        assert await storage.namespace("default").hold("reaper", "crashed", 0.2)
        async with reaper:
            await events.until("leadership_acquired", within=2)
            took = time.monotonic() - begun

    assert 0.19 <= took < 0.6


@pytest.mark.slow
@in_loop
async def test_a_leader_that_cannot_renew_knows_it_in_time(storage: Storage) -> None:
    """By its own clock, before another can take over."""
    gated = Gated(storage)
    reaper = Reaper(gated, leader_election=LeaderElection(lock_ttl=0.2, acquire_retry_interval=0.05))
    events = Events(reaper)
    async with reaper:
        await events.until("leadership_acquired")
        begun = time.monotonic()
        gated.gates["hold"] = asyncio.Event()
        await events.until("leadership_lost", within=2)
        took = time.monotonic() - begun
        assert not reaper.is_leader
        gated.gates["hold"].set()
        await events.until("leadership_acquired", 2, within=1)

    assert took < 1


def test_a_lead_whose_answer_came_late_counts_from_before_it_was_asked_for() -> None:
    """By then another may have it, whatever the answer said when it was given."""

    async def main() -> tuple[float, float]:
        storage = MemoryStorage(clock=VirtualClock())
        namespace, gated, asked = storage.namespace("default"), Gated(OnLoop(storage)), list[float]()
        reaper, loop = Reaper(gated, leader_election=LeaderElection(lock_ttl=30.0)), asyncio.get_running_loop()
        events = Events(reaper)

        async def slowly(*arguments: Any) -> bool:
            asked.append(loop.time())
            held = await namespace.hold(*arguments)
            await passing(20.0 if len(asked) == 1 else 100.0)
            return held

        gated.replaced["hold"] = slowly
        async with reaper:
            await events.until("leadership_lost", within=100)
            return asked[0], loop.time()

    asked_at, lost_at = run_virtual(main)
    assert lost_at == pytest.approx(asked_at + 30.0, abs=0.1)


@in_loop
async def test_a_bug_of_the_storage_does_not_end_an_election(storage: Storage) -> None:
    """It is told of, and the reaper asks for the lead again."""
    gated, bug = Gated(storage), ConnectionResetError("a bug")
    gated.failures["hold"] = [bug]
    reaper = Reaper(gated, leader_election=LeaderElection(lock_ttl=3, acquire_retry_interval=0.05))
    events = Events(reaper)
    async with reaper:
        await events.until("leadership_acquired", within=3)

    assert events.of("error") == [(bug,)]


@in_loop
async def test_a_leader_whose_lock_was_taken_stops_acting(storage: Storage) -> None:
    """The next renewal says so."""
    reaper = Reaper(storage, leader_election=QUICK)
    events = Events(reaper)
    gated = storage.namespace("default")
    async with Queue[Any, Any](storage), reaper:
        await events.until("leadership_acquired")
        real = gated.hold
        gated.hold = refused  # type: ignore[method-assign]
        try:
            await events.until("leadership_lost", within=1)
            assert not reaper.is_leader
        finally:
            gated.hold = real  # type: ignore[method-assign]


async def refused(name: str, owner: str, ttl: float) -> bool:
    return False


@in_loop
async def test_trouble_with_the_lock_is_reported(storage: Storage) -> None:
    """As an error event, once for each outage, and the election goes on."""
    gated = Gated(storage)
    gated.failures["hold"] = [StorageUnavailableError("away"), StorageUnavailableError("away")]
    reaper = Reaper(gated, leader_election=QUICK)
    events = Events(reaper)
    async with reaper:
        await events.until("leadership_acquired", within=2)
        assert [type(error) for (error,) in events.of("error")] == [StorageUnavailableError]
        gated.failures["hold"] = [StorageUnavailableError("away again")]
        await events.until("error", 2, within=2)


@pytest.mark.slow
@in_loop
async def test_stopping_before_the_first_answer_leaves_no_lock_behind(storage: Storage) -> None:
    """A lock asked for in vain would keep others waiting for its whole ttl."""
    gated = Gated(storage)
    election = LeaderElection(lock_ttl=30, acquire_retry_interval=0.03)
    first, second = Reaper(gated, leader_election=election), Reaper(storage, leader_election=election)
    namespace = storage.namespace("default")

    async def slow(*arguments: Any) -> bool:
        held = await namespace.hold(*arguments)
        await asyncio.Event().wait()
        return held

    async with second:
        await second.stop()
        gated.replaced["hold"] = slow
        await first.start()
        while not gated.calls.get("hold"):
            await asyncio.sleep(0)
        await passing(0.05)
        await first.stop()
        follows = Events(second)
        await second.start()
        await follows.until("leadership_acquired", within=1)


@in_loop
async def test_the_election_is_per_queue(storage: Storage) -> None:
    """Two queues have two leaders."""
    reapers = [Reaper(storage, name=name, leader_election=QUICK) for name in ("a", "b")]
    async with reapers[0], reapers[1]:
        await passing(0.05)
        assert [reaper.is_leader for reaper in reapers] == [True, True]


def test_the_settings_of_an_election() -> None:
    """The renewal is a third of the ttl unless said otherwise, and must be less than it."""
    assert LeaderElection().renewal_interval == 10.0
    assert LeaderElection(lock_ttl=3).renewal_interval == 1.0
    for renewal in (3, 3.0, 4):
        with pytest.raises(ConfigError, match="renewal_interval"):
            LeaderElection(lock_ttl=3, renewal_interval=renewal)
