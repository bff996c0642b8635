"""The connection for commands: one write for many callers, replies in order, and typed errors when it breaks."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from jobq.errors import StorageError, StorageUnavailableError
from jobq.storage.redis.link import Link
from jobq.storage.redis.urls import Place
from tests.engine.scenes import in_loop, passing
from tests.redis_link.scenes import Ear, answers, connected, dialer_to, outcome, server_shows
from tests.servers.fixtures import Starter
from tests.servers.server import Server
from tests.servers.trouble import Direction


@in_loop
async def test_what_one_turn_of_the_loop_sends_leaves_in_one_write(valkey_server: Server, start: Starter) -> None:
    """A write for each command would cost the server and us a system call for each."""
    proxy = start.proxy(valkey_server.port)
    async with connected(proxy.url) as servers:
        await servers.call("k", ("PING",))
        before = proxy.reads

        replies = await asyncio.gather(*(servers.call("k", ("ECHO", number)) for number in range(200)))

        assert replies == [b"%d" % number for number in range(200)]
        assert proxy.reads - before == 1


@in_loop
async def test_every_caller_gets_its_own_reply_however_many_are_cancelled(either_server: Server) -> None:
    """A reply that goes to the wrong caller would be another job's result."""
    chance = random.Random(7)
    async with connected(either_server.url) as servers:

        async def ask(number: int) -> bool:
            reply = await servers.call("k", ("ECHO", number))
            return bool(reply == b"%d" % number)

        async def ask_on(numbers: range) -> int:
            right = 0
            for number in numbers:
                asking = asyncio.create_task(ask(number))
                if chance.random() < 0.3:
                    for _ in range(chance.randrange(3)):
                        await asyncio.sleep(0)
                    asking.cancel()
                try:
                    assert await asking
                    right += 1
                except asyncio.CancelledError:
                    pass
            return right

        right = await asyncio.gather(*(ask_on(range(first, first + 100)) for first in range(0, 5000, 100)))

    assert 3000 < sum(right) < 4500


@in_loop
async def test_an_error_reply_is_its_callers_alone(either_server: Server, key_prefix: str) -> None:
    """Its neighbours in the same write get their replies."""
    key = f"{key_prefix}text"
    async with connected(either_server.url) as servers:
        replies = await asyncio.gather(
            servers.call(key, ("SET", key, "x")),
            outcome(servers.call(key, ("LPUSH", key, 1))),
            servers.call(key, ("GET", key)),
        )
        await servers.call(key, ("DEL", key))

    assert replies[0] == b"OK"
    assert (type(replies[1]).__name__, replies[1].code) == ("StorageCorruptError", "CORRUPT")
    assert replies[2] == b"x"


@in_loop
async def test_commands_of_any_size_and_content_arrive_as_they_are(either_server: Server) -> None:
    """Every byte, empty texts, numbers, and what needs many packets."""
    parts: list[bytes | str | int | float] = [bytes(range(256)), "", "é\r\n$3", 0, -(2**63), 0.25, b"x" * 3_000_000]
    async with connected(either_server.url) as servers:
        replies = await asyncio.gather(*(servers.call("k", ("ECHO", part)) for part in parts))

    assert replies == [part if isinstance(part, bytes) else str(part).encode() for part in parts]


@in_loop
async def test_a_lost_connection_fails_what_is_in_flight_at_once_and_is_made_again(either_server: Server) -> None:
    """The outcome of those calls is unknown; the next calls wait and are answered."""
    lost, back = Ear(), Ear()
    async with connected(either_server.url) as servers:
        servers.report_outages(lost, back)
        number = await servers.call("k", ("CLIENT", "ID"))
        blocked = [asyncio.ensure_future(outcome(servers.call("k", ("BLPOP", "never", 0)))) for _ in range(3)]
        await server_shows(lambda: "flags=b" in _client(either_server, number))
        begun = time.monotonic()

        either_server.command("CLIENT", "KILL", "ID", number)
        failed = await asyncio.gather(*blocked)
        await answers(servers)

        assert time.monotonic() - begun < 0.5
        assert {type(error) for error in failed} == {StorageUnavailableError}
        assert len(set(map(id, failed))) == len(failed)
        assert (len(lost.heard), len(back.heard)) == (1, 1)
        assert servers.address in str(lost.heard[0])


@in_loop
async def test_a_connection_that_ends_as_it_begins_is_followed_by_another(either_server: Server) -> None:
    """A server on its way down greets and hangs up: calls wait for the next connection, and the loop goes on."""
    places, lost = [either_server.port], Ear()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"PING" not in (asked := await reader.read(4096)):
            writer.write(b"+OK\r\n" * asked.count(b"SETINFO"))
        writer.write(b"+OK\r\n+PONG\r\n")
        writer.close()

    async def locate() -> Place:
        return Place("127.0.0.1", places.pop() if len(places) > 1 else places[0])

    leaving = await asyncio.start_server(greet, "127.0.0.1", 0)
    places.append(leaving.sockets[0].getsockname()[1])
    dialer = dialer_to(either_server, "commands", locate=locate)
    link = Link(dialer, time_limit=5.0, connected=Ear(), lost=lost)
    link.begin()

    reply = await link.call(("PING",))

    await link.close()
    leaving.close()
    assert reply == b"PONG"
    assert len(lost.heard) == 1


@in_loop
async def test_an_outage_is_told_once_and_calls_wait_for_its_end(start: Starter) -> None:
    """However often it is tried in vain; and nobody has to do anything when the server is back."""
    server, lost, back = start.server(), Ear(), Ear()
    async with connected(server.url) as servers:
        servers.report_outages(lost, back)
        server.kill()
        await lost.hears(1)

        waiting = [asyncio.ensure_future(servers.call("k", ("ECHO", number))) for number in range(10)]
        await asyncio.to_thread(server.start)
        begun = time.monotonic()
        replies = await asyncio.gather(*waiting)

        assert time.monotonic() - begun < 2
        assert replies == [b"%d" % number for number in range(10)]
        assert (len(lost.heard), len(back.heard)) == (1, 1)


@in_loop
async def test_a_call_while_the_server_is_away_fails_at_the_time_limit(start: Starter) -> None:
    """It says which server, and never hangs."""
    server, lost = start.server(), Ear()
    async with connected(server.url, time_limit=0.5) as servers:
        servers.report_outages(lost, Ear())
        server.kill()
        await lost.hears(1)
        begun = time.monotonic()

        error = await outcome(servers.call("k", ("PING",)))

        assert 0.45 < time.monotonic() - begun < 1.0
        assert type(error) is StorageUnavailableError
        assert servers.address in str(error)


@in_loop
async def test_a_server_that_stops_answering_is_given_up_at_the_time_limit(start: Starter) -> None:
    """A frozen server closes nothing; whoever waits for it is told in time, and it may come back."""
    server = start.server("redis")
    async with connected(server.url, time_limit=0.6) as servers:
        server.pause()
        try:
            begun = time.monotonic()
            first = asyncio.ensure_future(outcome(servers.call("k", ("PING",))))
            await asyncio.sleep(0)
            second = asyncio.ensure_future(outcome(servers.call("k", ("PING",))))
            errors = await asyncio.gather(first, second)
            passed = time.monotonic() - begun
        finally:
            server.resume()

        assert {type(error) for error in errors} == {StorageUnavailableError}
        assert 0.55 < passed < 1.0
        assert await answers(servers) < 2


@in_loop
async def test_replies_that_each_come_in_time_do_not_break_the_connection(
    valkey_server: Server, start: Starter
) -> None:
    """However many were asked for at once: they may be large, and the line slow."""
    proxy = start.proxy(valkey_server.port)
    async with connected(proxy.url, time_limit=1.0) as servers:
        number = await servers.call("k", ("CLIENT", "ID"))

        proxy.slice(0.05, Direction.REPLIES)  # Each takes a third of a second.
        await asyncio.gather(*(servers.call("k", ("PING",)) for _ in range(5)))
        proxy.heal()

        assert await servers.call("k", ("CLIENT", "ID")) == number


@in_loop
async def test_what_was_lost_with_a_connection_is_not_held_against_the_next(
    valkey_server: Server, start: Starter
) -> None:
    """The replies that the old one owed will never come, and the new one owes none of them."""
    proxy = start.proxy(valkey_server.port)
    async with connected(proxy.url, time_limit=0.5) as servers:
        proxy.delay(replies=10.0)
        lost = [asyncio.ensure_future(outcome(servers.call("k", ("ECHO", number)))) for number in range(100)]
        await passing(0.1)
        proxy.end_connections()
        proxy.heal()
        assert {type(answer) for answer in await asyncio.gather(*lost)} == {StorageUnavailableError}
        await answers(servers)
        before = proxy.connections_ever

        for number in range(2):
            assert await servers.call("k", ("ECHO", number)) == b"%d" % number
            await passing(0.7)  # Longer than a reply may be owed.

        assert proxy.connections_ever == before


@in_loop
async def test_what_had_to_wait_for_a_busy_server_is_sent_when_it_takes_more(start: Starter) -> None:
    """And not only when somebody asks for something else."""
    server = start.server("valkey")
    async with connected(server.url) as servers:
        server.pause()
        try:
            large = [asyncio.ensure_future(servers.call("k", ("SET", "k", b"x" * 4_000_000))) for _ in range(4)]
            await passing(0.1)
            small = asyncio.ensure_future(servers.call("k", ("ECHO", "small")))
            await passing(0.1)
        finally:
            server.resume()

        async with asyncio.timeout(4):
            assert await asyncio.gather(*large) == [b"OK"] * 4
            assert await small == b"small"


@in_loop
async def test_a_black_hole_costs_two_seconds_after_its_end_at_most(valkey_server: Server, start: Starter) -> None:
    """Connections tried in the hole hang on; further ones are tried beside them."""
    proxy = start.proxy(valkey_server.port)
    async with connected(proxy.url, time_limit=1.0) as servers:
        proxy.black_hole()
        errors = [await outcome(servers.call("k", ("PING",))) for _ in range(3)]
        proxy.heal()

        assert {type(error) for error in errors} == {StorageUnavailableError}
        assert await answers(servers) < 2


@in_loop
async def test_a_lost_reply_is_an_unknown_outcome(valkey_server: Server, start: Starter, key_prefix: str) -> None:
    """The server has done it, the caller must ask again; nothing is sent twice behind its back."""
    key = f"{key_prefix}count"
    proxy = start.proxy(valkey_server.port)
    async with connected(proxy.url) as servers:
        proxy.drop_reply("INCR")

        error = await outcome(servers.call(key, ("INCR", key)))
        count = await servers.call(key, ("GET", key))
        await servers.call(key, ("DEL", key))

    assert type(error) is StorageUnavailableError
    assert count == b"1"


@in_loop
async def test_a_reply_byte_by_byte_is_a_reply(valkey_server: Server, start: Starter) -> None:
    """A slow line is no broken one."""
    proxy = start.proxy(valkey_server.port)
    async with connected(proxy.url) as servers:
        proxy.slice(0.0)

        replies = await asyncio.gather(*(servers.call("k", ("ECHO", f"é{number}")) for number in range(20)))

        assert replies == [f"é{number}".encode() for number in range(20)]


@in_loop
async def test_closing_fails_what_is_in_flight_and_later_calls(valkey_server: Server) -> None:
    """Nobody waits for ever for connections that nobody will make."""
    async with connected(valkey_server.url) as servers:
        blocked = asyncio.ensure_future(outcome(servers.call("k", ("BLPOP", "never", 0))))
        await asyncio.sleep(0)
        await servers.close()

        assert isinstance(await blocked, StorageUnavailableError)
        with pytest.raises(StorageError) as refused:
            await servers.call("k", ("PING",))
        assert refused.value.code == "CLOSED"


@in_loop
async def test_closing_does_not_wait_for_a_frozen_server(start: Starter) -> None:
    """A worker that is stopped has a second for everything."""
    server = start.server()
    async with connected(server.url) as servers:
        await servers.subscribe("k", "news", Ear(), Ear())
        waiting = asyncio.ensure_future(servers.wait_for_marker("{q}:wake", 30))
        await server_shows(lambda: "flags=b" in str(server.command("CLIENT", "LIST")))
        server.pause()
        try:
            calling = asyncio.ensure_future(outcome(servers.call("k", ("PING",))))
            await asyncio.sleep(0)
            begun = time.monotonic()
            await servers.close()
            assert time.monotonic() - begun < 0.9
        finally:
            server.resume()

        assert isinstance(await calling, StorageUnavailableError)
        assert await waiting is False


@in_loop
async def test_a_server_that_refuses_writes_is_left_now_and_then_and_quietly(start: Starter) -> None:
    """Behind its name may be another server by now; but it is no outage, and no reason to hammer at it."""
    server, lost = start.server(), Ear()
    async with connected(server.url) as servers:
        servers.report_outages(lost, Ear())
        number = await servers.call("k", ("CLIENT", "ID"))
        server.command("REPLICAOF", "127.0.0.1", 1)
        begun = time.monotonic()
        while await servers.call("k", ("CLIENT", "ID")) == number:
            assert isinstance(await outcome(servers.call("k", ("SET", "k", 1))), StorageUnavailableError)
            assert time.monotonic() - begun < 5

        assert lost.heard == []


@in_loop
async def test_a_listener_to_outages_that_raises_does_not_keep_us_from_connecting(start: Starter) -> None:
    """The loop is told of its error."""
    server, told = start.server(), Ear()

    def listen(_: object) -> None:
        raise RuntimeError("a listener's own error")

    asyncio.get_running_loop().set_exception_handler(lambda _, context: told(str(context["exception"])))
    async with connected(server.url) as servers:
        servers.report_outages(listen, listen)
        server.command("CLIENT", "KILL", "TYPE", "normal")
        await told.hears(2)

        assert await servers.call("k", ("PING",)) == b"PONG"


@in_loop
async def test_it_can_be_opened_again_and_twice_is_two_connections(valkey_server: Server) -> None:
    """A storage is opened by the first queue and closed by the last, as often as that happens."""
    async with connected(valkey_server.url) as servers:
        first = await servers.call("k", ("CLIENT", "ID"))
        await servers.close()
        await servers.open()
        twin = servers.twin()
        await twin.open()

        numbers = [first, await servers.call("k", ("CLIENT", "ID")), await twin.call("k", ("CLIENT", "ID"))]
        await twin.close()

        assert len(set(numbers)) == 3


@in_loop
async def test_connections_have_names(valkey_server: Server, key_prefix: str) -> None:
    """Whoever looks at a busy server sees whose connections they are."""
    async with connected(valkey_server.url) as servers:
        number = await servers.call("k", ("CLIENT", "ID"))
        names = _client(valkey_server, number)

    assert "name=jobq-commands-" in names


def _client(server: Server, number: int) -> str:
    return str(server.command("CLIENT", "LIST", "ID", number))
