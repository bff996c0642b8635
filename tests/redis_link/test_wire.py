"""One connection, taken over from redis-py: what comes after its end is nobody's."""

from __future__ import annotations

from typing import Any

from redis.exceptions import RedisError

from jobq.storage.redis.settings import Settings
from jobq.storage.redis.wire import Wire, opened
from tests.engine.scenes import in_loop
from tests.redis_link.scenes import Ear
from tests.servers.fixtures import Starter
from tests.servers.server import Server


async def wired(url: str) -> Wire:
    settings = Settings.from_url(url)
    place = settings.target.places[0]
    return await opened(settings.connection(place, 5.0), place)


@in_loop
async def test_what_comes_while_a_connection_closes_is_handed_to_nobody(either_server: Server) -> None:
    """Its owner may use another by then, whose callers would get replies to questions of the first."""
    wire, told = await wired(either_server.url), list[Any]()
    wire.listen(told.append, lost=told.append)

    await wire.close()
    wire.data_received(b"+LATE\r\n")
    wire.connection_lost(None)

    assert told == []


@in_loop
async def test_what_came_before_anybody_listened_is_handed_over_in_order(either_server: Server) -> None:
    """Between the greeting and the first caller nothing may be dropped."""
    wire, heard = await wired(either_server.url), Ear()
    assert await wire.ask(("PING",)) == b"PONG"
    wire.data_received(b"+ONE\r\n-ERR two\r\n")

    wire.listen(heard, lost=Ear())

    one, two = await heard.hears(2)
    assert one == b"ONE"
    assert isinstance(two, RedisError)
    await wire.close(gently=True)


@in_loop
async def test_an_end_is_told_to_whoever_listens_afterwards(start: Starter) -> None:
    """A server that hangs up right after the greeting must not be waited for."""
    server, lost = start.server(), Ear()
    wire = await wired(server.url)
    server.kill()
    wire.listen(Ear(), lost=lost)

    [error] = await lost.hears(1)

    assert isinstance(error, RedisError | OSError)
    await wire.close()
