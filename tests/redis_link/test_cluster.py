"""Cluster: commands, channels and waits find the node that has their slot, also after it has changed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from jobq.errors import StorageUnavailableError
from jobq.storage.redis.servers import Servers
from tests.engine.scenes import in_loop
from tests.redis_link.scenes import Ear, answers, connected, outcome, server_shows
from tests.servers.cluster import Cluster

pytestmark = pytest.mark.slow
TAGS = [f"q{number}" for number in range(12)]


@in_loop
async def test_every_key_is_served_by_its_node(cluster: Cluster) -> None:
    """By two connections to each node, and a blocking one for each list on which somebody waits."""
    async with connected(_url(cluster)) as servers:
        ears = [Ear() for _ in TAGS]
        replies = await asyncio.gather(*(servers.call(f"{{{tag}}}", ("SET", f"{{{tag}}}k", tag)) for tag in TAGS))
        for tag, ear in zip(TAGS, ears, strict=True):
            await servers.subscribe(f"{{{tag}}}", f"{{{tag}}}news", ear, Ear())
            await servers.call(f"{{{tag}}}", ("SPUBLISH", f"{{{tag}}}news", tag))
            assert await ear.hears(1) == [tag.encode()]
        waits = [asyncio.ensure_future(servers.wait_for_marker(f"{{{tag}}}wake", 20)) for tag in TAGS[:3]]
        for tag in TAGS[:3]:
            await servers.call(f"{{{tag}}}", ("LPUSH", f"{{{tag}}}wake", 1))

        assert replies == [b"OK"] * len(TAGS)
        assert await asyncio.gather(*waits) == [True, True, True]
        for node in cluster.masters:
            names = str(node.command("CLIENT", "LIST"))
            assert (names.count("name=jobq-commands-"), names.count("name=jobq-channels-")) == (1, 1)
        for tag in TAGS:
            await servers.call(f"{{{tag}}}", ("DEL", f"{{{tag}}}k"))


@in_loop
async def test_a_slot_that_moves_under_load_takes_everything_with_it(own_cluster: Cluster) -> None:
    """Calls are answered rightly or fail typed, and end at the new node; the subscriber is told that it moved."""
    async with connected(_url(own_cluster)) as servers:
        slot = int(await servers.call("{q1}", ("CLUSTER", "KEYSLOT", "{q1}")))
        target = next(node for node in own_cluster.masters if node is not own_cluster.node_of(slot))
        ear, missed, ended = Ear(), Ear(), asyncio.Event()
        await servers.subscribe("{q1}", "{q1}news", ear, missed)
        waiting = asyncio.ensure_future(servers.wait_for_marker("{q1}wake", 60))
        counting = [asyncio.ensure_future(_count(servers, f"{{q1}}{number}", ended)) for number in range(20)]
        await servers.call("{q1}", ("SET", "{q1}0-before", 1))

        await asyncio.to_thread(own_cluster.migrate_slot, slot, target)
        ended.set()
        counts = await asyncio.gather(*counting)
        await missed.hears(1)
        await servers.call("{q1}", ("SPUBLISH", "{q1}news", "moved"))
        await ear.hears(1)

        for number, (answered, unknown) in enumerate(counts):
            value = int(await servers.call("{q1}", ("GET", f"{{q1}}{number}")))
            assert answered <= value <= answered + unknown
        assert target.command("CLUSTER", "COUNTKEYSINSLOT", slot) >= 20
        await servers.call("{q1}", ("LPUSH", "{q1}wake", 1))
        assert await waiting is True


@in_loop
async def test_a_script_is_not_sent_after_a_slot_on_the_move(own_cluster: Cluster) -> None:
    """Where the slot goes, the keys that it touches are missing as yet; it waits, and a plain command does not."""
    async with connected(_url(own_cluster), time_limit=1.0) as servers:
        slot = int(await servers.call("{q1}", ("CLUSTER", "KEYSLOT", "{q1}")))
        target = next(node for node in own_cluster.masters if node is not own_cluster.node_of(slot))
        await servers.call("{q1}", ("SET", "{q1}there", 1))
        await asyncio.to_thread(own_cluster.begin_migration, slot, target)

        script = ("EVAL", "return redis.call('EXISTS', '{q1}there')", 1, "{q1}")
        error = await outcome(servers.call("{q1}", script))
        plain = await servers.call("{q1}", ("GET", "{q1}missing"))
        await asyncio.to_thread(own_cluster.move_keys, slot, target)
        await asyncio.to_thread(own_cluster.end_migration, slot, target)

        assert type(error) is StorageUnavailableError
        assert plain is None
        assert await servers.call("{q1}", script) == 1


@in_loop
async def test_a_promoted_replica_is_found(own_cluster: Cluster) -> None:
    """By a planned fail-over without an error that lasts, and after the death of a master as soon as it is promoted."""
    first = own_cluster.nodes[0]
    key = "{q1}"
    ear, missed, lost, back = Ear(), Ear(), Ear(), Ear()
    async with connected(_url(own_cluster)) as servers:
        key = await _key_at(servers, own_cluster, first.port)
        servers.report_outages(lost, back)
        await servers.subscribe(key, f"{key}news", ear, missed)
        await servers.call(key, ("SET", key, 1))

        new = await asyncio.to_thread(own_cluster.failover)
        assert await _writes(servers, key) < 2
        assert new.command("GET", key) is not None
        await missed.hears(1)

        new.kill()
        await server_shows(lambda: first.is_master)
        assert await _writes(servers, key) < 2.5
        await missed.hears(2)
        await servers.call(key, ("SPUBLISH", f"{key}news", "still here"))
        await ear.hears(1)
        await back.hears(len(lost.heard))


@in_loop
async def test_a_node_that_restarts_is_used_again(own_cluster: Cluster) -> None:
    """Nobody takes over a master without a replica: its queues wait for it, and the others do not notice."""
    third = own_cluster.nodes[2]
    async with connected(_url(own_cluster), time_limit=1.0) as servers:
        here, there = (
            await _key_at(servers, own_cluster, third.port),
            await _key_at(servers, own_cluster, own_cluster.nodes[1].port),
        )
        await servers.call(here, ("SET", here, 1))
        third.kill()
        assert isinstance(await outcome(servers.call(here, ("GET", here))), StorageUnavailableError)
        assert await servers.call(there, ("EXISTS", there)) == 0
        await asyncio.to_thread(third.start)
        await asyncio.to_thread(own_cluster.wait_until_whole)

        assert await answers(servers, here) < 2


@in_loop
async def test_any_living_node_lets_us_in(cluster: Cluster) -> None:
    """The URL may name nodes that are gone, and a replica knows the map as well."""
    async with connected(f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.replica.port}") as servers:
        assert await servers.call("{q1}", ("SET", "{q1}", 1)) == b"OK"
        await servers.call("{q1}", ("DEL", "{q1}"))


def _url(cluster: Cluster) -> str:
    return f"redis+cluster://127.0.0.1:{cluster.nodes[0].port},127.0.0.1:{cluster.nodes[1].port}"


async def _count(servers: Servers, key: str, ended: asyncio.Event) -> tuple[int, int]:
    """Count up until the end, and return how many were answered, and of how many the outcome is unknown."""
    answered = unknown = 0
    while not ended.is_set():
        reply: Any = await outcome(servers.call(key, ("INCR", key)))
        if isinstance(reply, StorageUnavailableError):
            unknown += 1
        else:
            answered += 1
    return answered, unknown


async def _writes(servers: Servers, key: str) -> float:
    """Write until it succeeds, and return after how many seconds it did."""
    begun = time.monotonic()
    while isinstance(await outcome(servers.call(key, ("INCR", key))), StorageUnavailableError):
        assert time.monotonic() - begun < 15
    return time.monotonic() - begun


async def _key_at(servers: Servers, cluster: Cluster, port: int) -> str:
    """Return a key that is at a certain node."""
    for number in range(100):
        slot = int(await servers.call("k", ("CLUSTER", "KEYSLOT", f"{{at{number}}}")))
        if cluster.node_of(slot).port == port:
            return f"{{at{number}}}"
    raise AssertionError(f"no key is at {port}")
