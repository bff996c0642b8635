"""The request or the reply of every verb is lost once, in every way in which connections end, and is sent again.

The state of the queue afterwards, and the answer, are those of a run in which nothing was lost.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from jobq import RedisStorage, State
from jobq._batch import resend
from jobq.storage.contract import Ref
from jobq.testing import Bench, ManualClock, StorageCase
from tests.faults_redis.scenes import in_loop, of_verb
from tests.servers.fixtures import Starter
from tests.servers.proxy import FaultProxy
from tests.servers.server import Server
from tests.servers.trouble import Ending, Fault

Step = Callable[[], Awaitable[Any]]
Scene = Callable[[Bench], Awaitable[Step]]


async def add(bench: Bench) -> Step:
    jobs = [bench.new(id, reply_to="channel.secret") for id in ("job", "b", "job")]
    return lambda: bench.queue.add(jobs)


async def add_a_duplicate(bench: Bench) -> Step:
    await bench.completed()
    jobs = [bench.new()]
    return lambda: bench.queue.add(jobs)


async def claim(bench: Bench) -> Step:
    await bench.queue.add([bench.new(id) for id in ("job", "b", "c")])
    nonce = bench.nonce()
    return lambda: bench.queue.claim("worker", 30.0, 2, nonce)


async def claim_of_a_lapsed_job(bench: Bench) -> Step:
    await bench.processing(lease=1.0)
    bench.clock.advance(1.5)
    nonce = bench.nonce()

    async def claims() -> Any:
        return (await bench.queue.claim("worker", 30.0, 2, nonce)).claims

    return claims


async def extend(bench: Bench) -> Step:
    taken = await bench.processing()
    await bench.processing("b")
    await bench.cancel("b", running=True)
    pairs = [(taken.id, taken.token), ("b", "1-000000000000")]
    return lambda: bench.queue.extend(pairs, 60.0)


def settle(state: State) -> Scene:
    async def scene(bench: Bench) -> Step:
        settlements = [bench.settlement(await bench.processing(id), state) for id in ("job", "b")]
        return lambda: bench.queue.settle(settlements)

    return scene


async def settle_of_a_cancelled_job(bench: Bench) -> Step:
    settlements = [bench.settlement(await bench.processing())]
    await bench.cancel(running=True)
    return lambda: bench.queue.settle(settlements)


async def cancel(bench: Bench) -> Step:
    await bench.add()
    nonce = bench.nonce()
    return lambda: bench.queue.cancel("job", False, nonce)


async def cancel_of_a_running_job(bench: Bench) -> Step:
    await bench.processing()
    nonce = bench.nonce()
    return lambda: bench.queue.cancel("job", True, nonce)


async def revive(bench: Bench) -> Step:
    await bench.failed()
    nonce = bench.nonce()
    return lambda: bench.queue.revive("job", nonce)


async def retain(bench: Bench) -> Step:
    await bench.completed()
    nonce = bench.nonce()
    return lambda: bench.queue.retain("job", 0.0, nonce)


async def rescue(bench: Bench) -> Step:
    await bench.processing(lease=1.0)
    bench.clock.advance(1.5)

    async def rescues() -> Any:
        # Who was rescued is told once; the events channel tells it as well.
        return (await bench.queue.rescue(10)).next_in

    return rescues


async def prune(bench: Bench) -> Step:
    await bench.completed(ttl=1.0)
    bench.clock.advance(20.0)

    async def prunes() -> None:
        await bench.queue.prune(10)

    return prunes


async def get(bench: Bench) -> Step:
    await bench.completed()
    refs = [Ref("job"), Ref("b")]
    return lambda: bench.queue.get(refs)


async def hold(bench: Bench) -> Step:
    return lambda: bench.queue.hold("lock", "owner", 30.0)


async def release(bench: Bench) -> Step:
    await bench.queue.hold("lock", "owner", 30.0)
    return lambda: bench.queue.release("lock", "owner")


SCENES: dict[str, tuple[str, Scene]] = {
    "add": ("add", add),
    "add a duplicate": ("add", add_a_duplicate),
    "claim": ("claim", claim),
    "claim a lapsed job": ("claim", claim_of_a_lapsed_job),
    "extend": ("extend", extend),
    "settle completed": ("settle", settle(State.COMPLETED)),
    "settle failed": ("settle", settle(State.FAILED)),
    "settle failing": ("settle", settle(State.FAILING)),
    "settle given back": ("settle", settle(State.QUEUED)),
    "settle cancelled": ("settle", settle_of_a_cancelled_job),
    "cancel": ("cancel", cancel),
    "cancel a running job": ("cancel", cancel_of_a_running_job),
    "revive": ("revive", revive),
    "retain": ("retain", retain),
    "rescue": ("rescue", rescue),
    "prune": ("prune", prune),
    "get": ("get", get),
    "hold": ("hold", hold),
    "release": ("release", release),
}


def lose_request(proxy: FaultProxy, verb: str) -> Fault:
    return proxy.drop_request(when=of_verb(verb))


def lose_reply(proxy: FaultProxy, verb: str) -> Fault:
    return proxy.drop_reply(when=of_verb(verb))


def lose_reply_twice(proxy: FaultProxy, verb: str) -> Fault:
    return proxy.drop_reply(when=of_verb(verb), times=2)


def reset(proxy: FaultProxy, verb: str) -> Fault:
    return proxy.drop_reply(when=of_verb(verb), ending=Ending.RESET)


def half_close(proxy: FaultProxy, verb: str) -> Fault:
    return proxy.drop_reply(when=of_verb(verb), ending=Ending.HALF_CLOSE)


def begun(faults: list[Fault], lose: Callable[[], Fault]) -> None:
    faults.append(lose())


async def played(url: str, prefix: str, scene: Scene, lose: Callable[[], object]) -> str:
    """Play a scene, and return its answer and all that can be seen of the queue afterwards."""
    clock = ManualClock()
    storage = RedisStorage(url, key_prefix=prefix, clock=clock)
    bench = Bench(StorageCase(), clock, storage)
    await storage.open()
    try:
        step = await scene(bench)
        lose()
        answer = await resend(clock, step)
        seen = [answer, *await bench.queue.get([Ref(id) for id in ("job", "b", "c")])]
        seen += [sorted((await bench.queue.counts()).items()), list(await bench.queue.workers())]
        seen.append(await bench.queue.hold("lock", "rival", 1.0))
        # What can still be claimed, in order: a job that is stored twice, or entered twice, would show here.
        seen.append(await bench.drained())
        clock.advance(31.0)
        seen.append(await bench.drained())
    finally:
        await bench.close()
    return re.sub(r"\b\d{10,}-[0-9a-f]+\b", "token", repr(seen))


@pytest.mark.parametrize("name", SCENES)
@in_loop
async def test_what_is_lost_on_the_way_changes_nothing(
    either_server: Server, start: Starter, key_prefix: str, name: str
) -> None:
    """A request may arrive twice, and takes effect once."""
    verb, scene = SCENES[name]
    proxy = start.proxy(either_server.port)
    undisturbed = await played(either_server.url, f"{key_prefix}undisturbed:", scene, lambda: None)

    for lose in (lose_request, lose_reply, lose_reply_twice, reset, half_close):
        faults: list[Fault] = []
        begin = partial(begun, faults, partial(lose, proxy, verb))
        disturbed = await played(proxy.url, f"{key_prefix}{lose.__name__}:", scene, begin)

        proxy.heal()
        assert faults[0].done > 0, lose
        assert disturbed == undisturbed, lose
