"""Channels: heard from the confirmation on, and again after every loss, of which their owner is told."""

from __future__ import annotations

import asyncio

import pytest

from jobq.errors import StorageError, StorageUnavailableError
from jobq.storage.redis.channels import Channels, Subscription
from jobq.storage.redis.servers import Servers
from tests.engine.scenes import in_loop, passing
from tests.redis_link.scenes import PATIENCE, Ear, comes_true, connected, dialer_to, server_shows
from tests.servers.fixtures import Starter
from tests.servers.secret import SECRET
from tests.servers.server import Server


@in_loop
async def test_what_is_published_after_the_confirmation_is_heard(either_server: Server, key_prefix: str) -> None:
    """Also at once after it, on another connection, by hundreds of subscribers of one connection."""
    names = [f"{key_prefix}{number}" for number in range(300)]
    ears = [Ear() for _ in names]
    async with connected(either_server.url) as servers:

        async def listen(name: str, ear: Ear) -> None:
            await servers.subscribe(name, name, ear, Ear())
            await servers.call(name, ("PUBLISH", name, f"to {name}"))

        await asyncio.gather(*(listen(name, ear) for name, ear in zip(names, ears, strict=True)))
        for name, ear in zip(names, ears, strict=True):
            assert await ear.hears(1) == [f"to {name}".encode()]
        assert len(_listeners(either_server, names)) == 1


@in_loop
async def test_a_channel_that_was_left_is_not_heard(either_server: Server, key_prefix: str) -> None:
    """Also when it is left and entered again while the server has not confirmed either."""
    channel = f"{key_prefix}left"
    first, second, other = Ear(), Ear(), Ear()
    async with connected(either_server.url) as servers:
        await servers.subscribe("k", channel, first, Ear())
        await servers.subscribe("k", f"{channel}-other", other, Ear())

        await servers.unsubscribe(channel)
        await servers.call("k", ("PUBLISH", channel, "lost"))
        await servers.subscribe("k", channel, second, Ear())
        await servers.call("k", ("PUBLISH", channel, "heard"))
        await servers.unsubscribe(f"{channel}-other")

        assert await second.hears(1) == [b"heard"]
        assert first.heard == []


@in_loop
async def test_a_killed_subscription_is_made_again_and_its_owner_told(either_server: Server, key_prefix: str) -> None:
    """Told after the confirmation, so that whoever looks then misses nothing."""
    channels = [f"{key_prefix}{number}" for number in range(3)]
    ears, missed = [Ear() for _ in channels], [Ear() for _ in channels]
    async with connected(either_server.url) as servers:
        for channel, ear, told in zip(channels, ears, missed, strict=True):
            await servers.subscribe("k", channel, ear, told)

        for turn in range(1, 6):
            (number,) = _listeners(either_server, channels)
            either_server.command("CLIENT", "KILL", "ID", number)
            for told in missed:
                await told.hears(turn)
            for channel in channels:
                assert await servers.call("k", ("PUBLISH", channel, turn)) == 1

        for ear, told in zip(ears, missed, strict=True):
            assert await ear.hears(5) == [b"1", b"2", b"3", b"4", b"5"]
            assert len(told.heard) == 5


@in_loop
async def test_it_hears_again_after_a_restart(start: Starter) -> None:
    """A new server knows nothing of its predecessor's subscribers."""
    server, ear, missed = start.server(), Ear(), Ear()
    async with connected(server.url) as servers:
        await servers.subscribe("k", "news", ear, missed)
        server.kill()
        await asyncio.to_thread(server.start)
        await missed.hears(1)
        await servers.call("k", ("PUBLISH", "news", "again"))

        assert await ear.hears(1) == [b"again"]


@in_loop
async def test_a_connection_that_died_silently_is_noticed(valkey_server: Server, start: Starter) -> None:
    """Silence is normal on a channel, so the server is asked from time to time."""
    ear, missed = Ear(), Ear()
    proxy = start.proxy(valkey_server.port)
    async with connected(proxy.url, time_limit=0.3) as servers:
        await servers.subscribe("k", "news", ear, missed)
        proxy.drop_reply("PING", when=lambda words: len(words) == 1)
        ever = proxy.connections_ever
        await server_shows(lambda: proxy.connections_ever > ever)
        await missed.hears(1)


@in_loop
async def test_a_subscription_that_waits_as_its_channels_are_closed_fails(start: Starter) -> None:
    """At once: no confirmation can come any more."""
    server = start.server()
    channels = Channels(dialer_to(server, "closed"), time_limit=60.0)
    await channels.subscribe(Subscription("first", Ear(), Ear()))
    server.pause()
    try:
        waiting = asyncio.ensure_future(channels.subscribe(Subscription("second", Ear(), Ear())))
        await passing(0.1)
        await channels.close()
        with pytest.raises(StorageUnavailableError):
            await waiting
    finally:
        server.resume()


@in_loop
async def test_a_subscription_without_confirmation_fails_at_the_time_limit(start: Starter) -> None:
    """And leaves nothing behind that could hear later."""
    server, ear = start.server(), Ear()
    async with connected(server.url, time_limit=0.4) as servers:
        await servers.subscribe("k", "first", Ear(), Ear())
        server.pause()
        try:
            with pytest.raises(StorageUnavailableError):
                await servers.subscribe("k", "second", ear, Ear())
        finally:
            server.resume()

        await _silent(servers, "second")


@in_loop
async def test_a_cancelled_subscription_is_left(either_server: Server, key_prefix: str) -> None:
    """A waiter that is cancelled while it subscribes must not be listened for, for ever."""
    channel = f"{key_prefix}cancelled"
    async with connected(either_server.url) as servers:
        await servers.subscribe("k", f"{channel}-other", Ear(), Ear())
        for turns in range(6):
            subscribing = asyncio.ensure_future(servers.subscribe("k", channel, Ear(), Ear()))
            for _ in range(turns):
                await asyncio.sleep(0)
            subscribing.cancel()
            await asyncio.wait([subscribing])

            if subscribing.cancelled():
                await _silent(servers, channel)
            else:
                await servers.unsubscribe(channel)


@in_loop
async def test_a_raising_listener_harms_nobody(either_server: Server, key_prefix: str) -> None:
    """The loop is told of it, and the next message is delivered."""
    channel, ear, told = f"{key_prefix}raising", Ear(), Ear()

    def receive(message: bytes) -> None:
        ear(message)
        raise RuntimeError(message.decode())

    asyncio.get_running_loop().set_exception_handler(lambda _, context: told(str(context["exception"])))
    async with connected(either_server.url) as servers:
        await servers.subscribe("k", channel, receive, Ear())
        await servers.call("k", ("PUBLISH", channel, "1"))
        await servers.call("k", ("PUBLISH", channel, "2"))

        assert await ear.hears(2) == [b"1", b"2"]
        assert told.heard == ["1", "2"]


@pytest.mark.parametrize("times", [1, 2])
@in_loop
async def test_channels_closed_as_they_connect_anew_leave_no_connection(either_server: Server, times: int) -> None:
    """The server was found to be the wrong one at the moment of the end, perhaps by two who looked."""
    channels = Channels(dialer_to(either_server, "renewed"), time_limit=5.0)
    await channels.subscribe(Subscription("news", Ear(), Ear()))

    for _ in range(times):
        channels.renew()
    await channels.close()

    await server_shows(lambda: "name=jobq-renewed-" not in str(either_server.command("CLIENT", "LIST")))


@in_loop
async def test_channels_that_connect_anew_are_heard_again(either_server: Server, key_prefix: str) -> None:
    """On one connection, however often that is asked for at a time."""
    ear, missed = Ear(), Ear()
    channels = Channels(dialer_to(either_server, "renewed"), time_limit=5.0)
    await channels.subscribe(Subscription(f"{key_prefix}news", ear, missed))

    channels.renew()
    channels.renew()

    await missed.hears(1)
    assert either_server.command("PUBLISH", f"{key_prefix}news", "again") == 1
    assert await ear.hears(1) == [b"again"]
    await channels.close()


@in_loop
async def test_a_forbidden_channel_is_refused(start: Starter) -> None:
    """Waiting for a confirmation that cannot come would hide what is wrong."""
    server = start.server("redis")
    server.command("ACL", "SETUSER", "worker", "on", f">{SECRET}", "+@all", "~*", "&allowed")
    async with connected(server.url.replace("redis://", f"redis://worker:{SECRET}@")) as servers:
        await servers.subscribe("k", "allowed", Ear(), Ear())
        with pytest.raises(StorageError) as refused:
            await servers.subscribe("k", "forbidden", Ear(), Ear())

    assert refused.value.code == "MISCONFIGURED"
    assert "SUBSCRIBE" in str(refused.value)
    assert SECRET not in str(refused.value)


@in_loop
async def test_a_channel_that_was_refused_for_a_while_is_asked_for_again(start: Starter, key_prefix: str) -> None:
    """After a restart a server may have its permissions, or its data, only a moment later."""
    server, channel, ear, missed = start.server("redis"), f"{key_prefix}news", Ear(), Ear()
    async with connected(server.url, time_limit=0.3) as servers:
        await servers.subscribe("k", channel, ear, missed)
        refused_before = _refused(server)
        server.command("ACL", "SETUSER", "default", "resetchannels")  # It ends who listens already.
        await server_shows(lambda: _refused(server) > refused_before)

        server.command("ACL", "SETUSER", "default", "allchannels")

        await missed.hears(1)
        await servers.call("k", ("PUBLISH", channel, "again"))
        assert await ear.hears(1) == [b"again"]


@in_loop
async def test_answers_that_a_lost_connection_owed_are_not_waited_for_on_the_next(
    valkey_server: Server, start: Starter, key_prefix: str
) -> None:
    """Else each answer would be taken for the one before it, and the last channel never be known to be heard."""
    proxy, missed = start.proxy(valkey_server.port), Ear()
    channels = Channels(dialer_to(proxy, "owed"), time_limit=60.0)
    left = Subscription(f"{key_prefix}left", Ear(), Ear())
    await channels.subscribe(left)
    await channels.subscribe(Subscription(f"{key_prefix}kept", Ear(), missed))

    proxy.drop_reply("UNSUBSCRIBE")
    channels.remove(left)

    await missed.hears(1)
    async with asyncio.timeout(PATIENCE):
        await channels.subscribe(Subscription(f"{key_prefix}new", Ear(), Ear()))
    await channels.close()


@in_loop
async def test_the_confirmation_of_another_channel_is_not_believed(valkey_server: Server, key_prefix: str) -> None:
    """From then on nobody knows which answer belongs to what: the connection is made anew, and all told."""
    missed, second = Ear(), Subscription(f"{key_prefix}second", Ear(), Ear())
    channels = Channels(dialer_to(valkey_server, "confused"), time_limit=60.0)
    await channels.subscribe(Subscription(f"{key_prefix}first", Ear(), missed))
    subscribing = asyncio.ensure_future(channels.subscribe(second))
    await asyncio.sleep(0)

    assert channels.wire is not None
    channels.wire.data_received(b"*3\r\n$9\r\nsubscribe\r\n$5\r\nother\r\n:2\r\n")

    assert not second.confirmed.done()
    await missed.hears(1)
    await subscribing
    await channels.close()


async def _silent(servers: Servers, channel: str) -> None:
    """See that nobody listens to a channel."""

    async def nobody() -> bool:
        try:
            counts = await servers.call("k", ("PUBSUB", "NUMSUB", channel))
        except StorageUnavailableError:
            return False
        return bool(counts[1] == 0)

    await comes_true(nobody)


def _listeners(server: Server, channels: list[str]) -> list[str]:
    """Return the connections that listen to as many channels as these are, by their numbers."""
    lines = str(server.command("CLIENT", "LIST", "TYPE", "pubsub")).splitlines()
    return [line.split()[0].removeprefix("id=") for line in lines if f" sub={len(channels)} " in line]


def _refused(server: Server) -> int:
    """Return how often a server refused a subscription."""
    statistics = server.info("commandstats").get("cmdstat_subscribe", "rejected_calls=0")
    return int(statistics.partition("rejected_calls=")[2].partition(",")[0])
