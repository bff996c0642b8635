"""Sentinels: before every connection they are asked who the master is."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
import redis

from jobq.errors import StorageUnavailableError
from jobq.storage.redis.servers import Servers
from jobq.storage.redis.settings import Settings
from tests.engine.scenes import in_loop
from tests.redis_link.scenes import Ear, answers, connected, outcome, server_shows
from tests.servers.sentinel import SentinelGroup, SentinelServer
from tests.servers.server import Server

pytestmark = pytest.mark.slow


@in_loop
async def test_all_connections_follow_to_the_new_master(own_sentinel_group: SentinelGroup) -> None:
    """Commands, channels and waits go on there; one outage is told, and one recovery."""
    lost, back, ear, missed = Ear(), Ear(), Ear(), Ear()
    async with connected(own_sentinel_group.url) as servers:
        servers.report_outages(lost, back)
        await servers.subscribe("k", "news", ear, missed)
        waiting = asyncio.ensure_future(servers.wait_for_marker("{q}:wake", 60))
        await servers.call("k", ("SET", "k", 1))

        old = await asyncio.to_thread(own_sentinel_group.kill_master)
        new = await asyncio.to_thread(own_sentinel_group.wait_for_new_master, old)
        assert await answers(servers) < 2.5
        await missed.hears(1)
        assert await waiting is True
        await servers.call("k", ("PUBLISH", "news", "from the new master"))
        await ear.hears(1)

        names = str(new.command("CLIENT", "LIST"))
        assert all(f"name=jobq-{role}-" in names for role in ("commands", "channels", "markers"))
        assert (len(lost.heard), len(back.heard)) == (1, 1)


@in_loop
async def test_a_master_that_is_demoted_while_it_lives_is_left(own_sentinel_group: SentinelGroup) -> None:
    """It may answer reads for long, and refuses every write."""
    async with connected(own_sentinel_group.url) as servers:
        old = own_sentinel_group.master
        await servers.call("k", ("SET", "k", 1))
        # The other Sentinels hear of it later, some of them much later: then we ask the next, and the next.
        await server_shows(lambda: _failed_over(own_sentinel_group.sentinels[0], old))

        begun = time.monotonic()
        while isinstance(await outcome(servers.call("k", ("SET", "k", 2))), StorageUnavailableError):
            assert time.monotonic() - begun < 5


@in_loop
async def test_one_sentinel_of_three_is_enough(own_sentinel_group: SentinelGroup) -> None:
    """Those that are down cost no more than a moment; without any, the servers are unavailable."""
    first, second, third = own_sentinel_group.sentinels
    first.kill()
    second.kill()
    begun = time.monotonic()
    async with connected(own_sentinel_group.url) as servers:
        assert await servers.call("k", ("PING",)) == b"PONG"
    assert time.monotonic() - begun < 2

    third.kill()
    servers = Servers(Settings.from_url(own_sentinel_group.url), 1.0)
    with pytest.raises(StorageUnavailableError) as refused:
        await servers.open()
    assert servers.address in str(refused.value)


@in_loop
async def test_a_service_that_no_sentinel_knows_is_named(sentinel_group: SentinelGroup) -> None:
    """A misspelt name is the likeliest mistake."""
    url = sentinel_group.url.removesuffix("jobs") + "other"
    with pytest.raises(StorageUnavailableError, match="'other'"):
        await Servers(Settings.from_url(url), 1.0).open()


def _failed_over(sentinel: SentinelServer, old: Server) -> bool:
    """Tell whether another server is the master, and have the sentinel see to it; it may give up a first time."""
    if sentinel.master_port() != old.port:
        return True
    with contextlib.suppress(redis.ResponseError):  # It is at it, or the replica is not well enough as yet.
        sentinel.command("SENTINEL", "FAILOVER", "jobs")
    return False
