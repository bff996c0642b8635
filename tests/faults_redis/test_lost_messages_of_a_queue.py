"""A queue, a worker and a reaper whose requests and replies are lost: callers see nothing but the time it takes."""

from __future__ import annotations

import asyncio
import time

import pytest

from jobq import FixedDelay, Job, LeaderElection, Queue, Reaper, RedisStorage, State, StorageUnavailableError
from jobq.storage.contract import RESEND_FOR
from tests.engine.scenes import Events
from tests.faults_redis.scenes import SLACK, Work, counted, eventually, in_loop, names, of_verb, states, twice
from tests.servers.fixtures import Starter
from tests.servers.server import Server
from tests.servers.trouble import Ending

DIRECTIONS = ("drop_request", "drop_reply")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("verb", ["add", "claim", "settle", "rest"])
@in_loop
async def test_forty_jobs_run_once_each_whatever_is_lost(
    either_server: Server, start: Starter, key_prefix: str, verb: str, direction: str
) -> None:
    """The first, the third and the fourth message of the verb are lost on their way."""
    proxy = start.proxy(either_server.port)
    # Eight callers, each with five jobs one after the other, so that there are many messages.
    async with Work(RedisStorage(proxy.url, key_prefix=key_prefix), concurrency=4) as work:
        drop = getattr(proxy, direction)
        faults = [drop(when=of_verb(verb)), drop(when=of_verb(verb), nth=2, times=2)]

        async def caller(number: int) -> list[int]:
            return [await work.queue.enqueue_and_wait(f"{number}-{n}", n, timeout=20) for n in range(5)]

        answers = await asyncio.gather(*map(caller, range(8)))

        ids = [f"{number}-{n}" for number in range(8) for n in range(5)]
        await eventually(lambda: len(work.completed) == 40, "all events")
        assert answers == [[0, 2, 4, 6, 8]] * 8
        assert work.runs == dict.fromkeys(ids, 1)
        assert twice(work.completed) == []
        statuses = [await work.queue.get_status(id) for id in ids]
        assert {status and status.attempts for status in statuses} == {1}
        # How often a worker says for how long it may sleep depends on what it finds before.
        assert [fault.done for fault in faults] == [1, 2] or (verb == "rest" and faults[0].done == 1)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("part", [1, 2, 8])
@in_loop
async def test_a_thousand_jobs_of_one_call_are_added_once_each_in_their_order(
    valkey_server: Server, start: Starter, key_prefix: str, direction: str, part: int
) -> None:
    """They travel in parts, and one of those is lost; each is new to the caller, and keeps its place."""
    proxy = start.proxy(valkey_server.port)
    ids = [f"job-{number}" for number in range(1000)]
    completed: list[str] = []
    async with Queue[int, int](RedisStorage(proxy.url, key_prefix=key_prefix)) as producer:
        fault = getattr(proxy, direction)(when=of_verb("add"), nth=part)
        answers = await producer.enqueue_many([(id, number) for number, id in enumerate(ids)])
        assert fault.done == 1
        assert {answer.status for answer in answers} == {"queued"}

        async with Work(RedisStorage(valkey_server.url, key_prefix=key_prefix)) as work:
            work.queue.on("completed", lambda id, result: completed.append(id))
            await eventually(lambda: len(completed) == 1000, "all jobs")
            assert work.runs == dict.fromkeys(ids, 1)
    assert completed == ids


@pytest.mark.parametrize("direction", DIRECTIONS)
@in_loop
async def test_a_lost_renewal_costs_no_lease(
    valkey_server: Server, start: Starter, key_prefix: str, direction: str
) -> None:
    """It is repeated while two thirds of the lease are left."""
    proxy = start.proxy(valkey_server.port)
    storage = RedisStorage(proxy.url, key_prefix=key_prefix)
    async with Work(storage, visibility_timeout=0.9, seconds=2.0) as work:
        fault = getattr(proxy, direction)(when=of_verb("extend"))

        assert await work.queue.enqueue_and_wait("job", 21, timeout=10) == 42

        assert fault.done == 1
        assert work.runs == {"job": 1}
        assert work.of("lease_lost") == []


@pytest.mark.parametrize("direction", DIRECTIONS)
@in_loop
async def test_cancel_retry_and_a_new_ttl_are_answered_as_if_nothing_was_lost(
    valkey_server: Server, start: Starter, key_prefix: str, direction: str
) -> None:
    proxy = start.proxy(valkey_server.port)
    storage = RedisStorage(proxy.url, key_prefix=key_prefix)
    async with Queue[int, int](storage) as queue, failing_worker(valkey_server, key_prefix) as failing:
        events = Events(failing)
        await queue.enqueue("failed", 1, max_attempts=1)
        await events.until("failed")
        await failing.stop()
        await queue.enqueue("waiting", 1)
        faults = [getattr(proxy, direction)(when=of_verb(verb)) for verb in ("cancel", "revive", "retain", "get")]

        answers = [
            (await queue.cancel("waiting")).status,
            (await queue.update_result_ttl("failed", 60)).status,
            (await queue.retry("failed")).status,
            await states(queue, ["waiting", "failed"]),
        ]

        assert answers == ["cancelled", "updated", "queued", {"waiting": None, "failed": State.QUEUED}]
        assert [fault.done for fault in faults] == [1] * 4


@pytest.mark.parametrize("direction", DIRECTIONS)
@in_loop
async def test_a_rescue_is_announced_although_its_message_was_lost(
    valkey_server: Server, start: Starter, key_prefix: str, direction: str
) -> None:
    """If the answer is lost, the reaper hears of its own rescue as of anybody's."""
    proxy = start.proxy(valkey_server.port)
    direct = RedisStorage(valkey_server.url, key_prefix=key_prefix)
    async with Work(direct, handles=False) as producer:
        await producer.queue.enqueue("job", 1)
        [claim] = (await direct.namespace("default").claim("dead", 0.3, 1, "session.1")).claims
        fault = getattr(proxy, direction)(when=of_verb("rescue"), nth=2)

        async with Reaper(RedisStorage(proxy.url, key_prefix=key_prefix)) as reaper:
            stalled = await Events(reaper).until("stalled")

        assert stalled == [("job",)]
        assert fault.done == 1
        assert await states(producer.queue, ["job"]) == {"job": State.FAILING}
        assert claim.attempts == 1


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("verb", ["hold", "release"])
@in_loop
async def test_the_lead_survives_a_lost_message(
    valkey_server: Server, start: Starter, key_prefix: str, verb: str, direction: str
) -> None:
    """The first leader renews and hands over as if nothing was lost; there are never two."""
    proxy = start.proxy(valkey_server.port)
    election = LeaderElection(lock_ttl=1.5, renewal_interval=0.3, acquire_retry_interval=0.2)
    first = Reaper(RedisStorage(proxy.url, key_prefix=key_prefix), leader_election=election)
    second = Reaper(RedisStorage(valkey_server.url, key_prefix=key_prefix), leader_election=election)
    first_events, second_events = Events(first), Events(second)
    await first.start()
    await first_events.until("leadership_acquired")
    async with second:
        fault = getattr(proxy, direction)(when=of_verb(verb))
        if verb == "hold":
            await eventually(lambda: fault.done and proxy.commands["EVALSHA"] > 5, "further renewals")
            assert first.is_leader
            assert not second.is_leader
            assert "leadership_lost" not in first_events.names
        await first.stop()

        await second_events.until("leadership_acquired", within=1.5 + 0.2 + SLACK)

    assert fault.done == 1


@in_loop
async def test_a_call_that_is_never_answered_ends_and_may_be_repeated(
    valkey_server: Server, start: Starter, key_prefix: str
) -> None:
    """The outcome is unknown, and the error says so; the same id again tells, and the job is there once."""
    proxy = start.proxy(valkey_server.port)
    async with Work(RedisStorage(proxy.url, key_prefix=key_prefix), handles=False) as work:
        fault = proxy.drop_reply(when=of_verb("add"), ending=Ending.SILENCE)
        begun = time.monotonic()

        with pytest.raises(StorageUnavailableError, match="call again with the same id") as caught:
            await work.queue.enqueue("job", 21)

        assert time.monotonic() - begun < RESEND_FOR + SLACK
        assert caught.value.code == "UNAVAILABLE"
        assert fault.done == 1
        proxy.heal()
        assert (await work.queue.enqueue("job", 21)).status == "duplicate"
        assert await counted(work.queue) == {State.QUEUED: 1}


@pytest.mark.parametrize("direction", DIRECTIONS)
@in_loop
async def test_a_thousand_adds_through_a_line_that_breaks_all_the_time(
    valkey_server: Server, start: Starter, key_prefix: str, direction: str
) -> None:
    """Every second message is lost for a while; each id is queued once, and acknowledged as such at most once."""
    proxy = start.proxy(valkey_server.port)
    ids = names(1000)
    async with Work(RedisStorage(proxy.url, key_prefix=key_prefix), handles=False) as work:
        for nth in range(1, 12, 2):
            getattr(proxy, direction)(when=of_verb("add"), nth=nth)

        answers = [
            (await asyncio.gather(*(work.queue.enqueue(id, 1) for id in ids[begin : begin + 100])))
            for begin in range(0, 1000, 100)
        ]

        assert [answer.status for some in answers for answer in some] == ["queued"] * 1000
        assert await counted(work.queue) == {State.QUEUED: 1000}
        assert sum(proxy.faults.values()) == 6


def failing_worker(server: Server, key_prefix: str) -> Queue[int, int]:
    queue = Queue[int, int](RedisStorage(server.url, key_prefix=key_prefix), retry=FixedDelay(0))

    @queue.execute
    async def fail(job: Job[int]) -> int:
        raise ValueError(job.id)

    return queue
