"""Markers: whoever waits is woken by one, and none is lost whatever becomes of those who waited."""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from jobq.errors import StorageUnavailableError
from jobq.storage.redis import markers
from jobq.storage.redis.markers import Markers
from jobq.storage.redis.servers import Servers
from jobq.storage.redis.settings import Settings
from jobq.storage.redis.urls import Place
from tests.engine.scenes import in_loop, passing
from tests.redis_link.scenes import comes_true, connected, dialer_to, server_shows
from tests.servers.fixtures import Starter
from tests.servers.server import Server


@in_loop
async def test_a_marker_wakes_one_who_waits_for_it(either_server: Server, key_prefix: str) -> None:
    """The first of several; the others go on waiting, until there are markers for them or their time is over."""
    key = f"{key_prefix}{{q}}:wake"
    async with connected(either_server.url) as servers:
        waiting = [asyncio.ensure_future(servers.wait_for_marker(key, 0.4)) for _ in range(3)]
        await _blocks(either_server)
        for _ in range(2):
            await servers.call(key, ("LPUSH", key, 1))

        assert await asyncio.gather(*waiting) == [True, True, False]
        assert await servers.call(key, ("LLEN", key)) == 0


@in_loop
async def test_who_comes_later_waits_at_once_and_on_the_same_connection(either_server: Server, key_prefix: str) -> None:
    """A further list joins the blocking read that is on its way."""
    keys = [f"{key_prefix}{{q{number}}}:wake" for number in range(8)]
    async with connected(either_server.url) as servers:
        waiting: list[asyncio.Future[bool]] = []
        for key in keys:
            waiting.append(asyncio.ensure_future(servers.wait_for_marker(key, 10)))
            await _blocks(either_server)
        begun = time.monotonic()
        for key in reversed(keys):
            await servers.call(key, ("LPUSH", key, 1))

        assert await asyncio.gather(*waiting) == [True] * len(keys)
        assert time.monotonic() - begun < 2
        assert len(_connections(either_server, "jobq-markers-")) == 1


@in_loop
async def test_whoever_comes_later_is_heard_however_many_came_before(either_server: Server, key_prefix: str) -> None:
    """Each joins at once, and not with the end of the blocking read of the others."""
    keys = [f"{key_prefix}{{q{number}}}:wake" for number in range(4)]
    async with connected(either_server.url) as servers:
        waiting: list[asyncio.Future[bool]] = []
        begun = time.monotonic()
        for key in keys:
            waiting.append(asyncio.ensure_future(servers.wait_for_marker(key, 10)))
            await _blocks(either_server)
            await servers.call(key, ("LPUSH", f"{key}:another", 1))
            await servers.call(key, ("DEL", f"{key}:another"))
        await servers.call(keys[-1], ("LPUSH", keys[-1], 1))

        assert await waiting.pop() is True
        assert time.monotonic() - begun < 3
        for waiter in waiting:
            waiter.cancel()
        await asyncio.wait(waiting)


@in_loop
async def test_a_list_that_is_never_empty_keeps_no_other_waiting(either_server: Server, key_prefix: str) -> None:
    """A server looks at the lists of a blocking read in order, so each must come first now and then."""
    busy, other = f"{key_prefix}{{busy}}:wake", f"{key_prefix}{{other}}:wake"
    taken = 0
    async with connected(either_server.url) as servers:

        async def take() -> None:
            nonlocal taken
            while True:
                taken += await servers.wait_for_marker(busy, 10)

        takers = [asyncio.create_task(take()) for _ in range(2)]
        waiting = asyncio.ensure_future(servers.wait_for_marker(other, 10))
        await _blocks(either_server)
        await servers.call(busy, ("LPUSH", busy, *range(1000)))
        await servers.call(other, ("LPUSH", other, 1))

        assert await waiting is True
        for taker in takers:
            taker.cancel()
        await asyncio.wait(takers)
        await servers.call(busy, ("DEL", busy))

    assert taken < 500


@in_loop
async def test_its_time_is_over_when_it_is_over(either_server: Server, key_prefix: str) -> None:
    """Waits of different lengths do not wait for each other."""
    key = f"{key_prefix}{{q}}:wake"
    async with connected(either_server.url) as servers:
        begun = time.monotonic()
        long = asyncio.ensure_future(servers.wait_for_marker(key, 0.5))
        assert await servers.wait_for_marker(f"{key}2", 0.1) is False
        assert 0.09 < time.monotonic() - begun < 0.3
        assert await long is False
        assert 0.49 < time.monotonic() - begun < 0.8


@in_loop
async def test_waits_that_end_together_share_a_timer(
    either_server: Server, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes with the last of those who leave before."""
    loop = asyncio.get_running_loop()
    call_at, distant = loop.call_at, list[asyncio.TimerHandle]()

    def noted(when: float, *rest: Any, **options: Any) -> asyncio.TimerHandle:
        timer = call_at(when, *rest, **options)
        if when > loop.time() + 50:
            distant.append(timer)
        return timer

    async with connected(either_server.url) as servers:
        monkeypatch.setattr(loop, "call_at", noted)
        waits = [asyncio.ensure_future(servers.wait_for_marker(f"{key_prefix}{{q}}:{n}", 60)) for n in range(200)]
        await _blocks(either_server)
        assert 1 <= len(distant) <= 50

        for wait in waits[1:]:
            wait.cancel()
        await asyncio.wait(waits[1:])
        assert sum(not timer.cancelled() for timer in distant) == 1

        waits[0].cancel()
        await asyncio.wait(waits)
        assert all(timer.cancelled() for timer in distant)


@in_loop
async def test_an_idle_worker_costs_a_command_in_seconds(start: Starter) -> None:
    """A read lasts as long as the longest wait, not a moment."""
    server = start.server()
    async with connected(server.url) as servers:
        await servers.wait_for_marker("{q}:wake", 0.05)
        server.command("CONFIG", "RESETSTAT")

        assert await servers.wait_for_marker("{q}:wake", 2.0) is False

        assert sum(count for name, count in server.calls().items() if name in ("blpop", "lpush", "pexpire")) <= 2


@pytest.mark.slow
@in_loop
async def test_nothing_is_asked_for_those_who_wait_no_more(
    valkey_server: Server, start: Starter, key_prefix: str
) -> None:
    """An idle process whose queues were stopped costs its server nothing."""
    proxy = start.proxy(valkey_server.port)
    async with connected(proxy.url) as servers:
        for number in range(3):
            assert await servers.wait_for_marker(f"{key_prefix}{{q{number}}}:wake", 0.05) is False
        await passing(0.2)
        before = proxy.commands["BLPOP"]
        await passing(0.5)

        assert proxy.commands["BLPOP"] == before


@in_loop
async def test_no_marker_is_lost_to_those_who_leave(either_server: Server, key_prefix: str) -> None:
    """2,000 waits end by cancellation, by their time, or by a marker, in any order: the count of markers is right."""
    keys = [f"{key_prefix}{{q{number}}}:wake" for number in range(4)]
    chance = random.Random(11)
    taken = pushed = 0
    async with connected(either_server.url) as servers:

        async def wait_once() -> bool:
            key, nothing = chance.choice(keys), chance.random() < 0.3
            waiting = asyncio.ensure_future(servers.wait_for_marker(key, chance.uniform(0.0, 0.02)))
            if nothing:
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                waiting.cancel()
            await asyncio.wait([waiting])
            return not waiting.cancelled() and waiting.result()

        async def wait_again(times: int) -> int:
            return sum([await wait_once() for _ in range(times)])

        async def push(times: int) -> None:
            nonlocal pushed
            for _ in range(times):
                key = chance.choice(keys)
                await servers.call(key, ("LPUSH", key, 1))
                pushed += 1
                await asyncio.sleep(0)

        *counts, _ = await asyncio.gather(*(wait_again(100) for _ in range(20)), push(900))
        taken = sum(counts)
        await _returned(servers, keys, pushed - taken)

    assert taken > 0


@in_loop
async def test_a_marker_that_comes_when_nobody_waits_any_more_is_given_back(
    either_server: Server, key_prefix: str
) -> None:
    """The read that is on its way takes it, and another process may need it."""
    key, other = f"{key_prefix}{{q}}:wake", f"{key_prefix}{{p}}:wake"
    async with connected(either_server.url) as servers:
        lasting = asyncio.ensure_future(servers.wait_for_marker(other, 3))
        leaving = asyncio.ensure_future(servers.wait_for_marker(key, 3))
        await _blocks(either_server)
        leaving.cancel()
        await asyncio.wait([leaving])

        await servers.call(key, ("LPUSH", key, 1))
        await _returned(servers, [key], 1)
        await servers.call(key, ("LPUSH", other, 1))

        assert await lasting is True
        await servers.call(key, ("DEL", key))


@in_loop
async def test_closing_loses_no_marker(either_server: Server, key_prefix: str) -> None:
    """The read is ended, not hung up on, so what it pops at this moment comes back."""
    keys = [f"{key_prefix}{{q{number}}}:wake" for number in range(6)]
    async with connected(either_server.url) as watcher:
        for key in keys:
            async with connected(either_server.url) as servers:
                waiting = asyncio.ensure_future(servers.wait_for_marker(key, 5))
                await _blocks(either_server)
                pushing = asyncio.ensure_future(watcher.call(key, ("LPUSH", key, 1)))
                waiting.cancel()
                await servers.close()
                await pushing
            await _returned(watcher, [key], 1)
        await watcher.call("k", ("DEL", *keys))


@in_loop
async def test_who_gives_back_may_be_chosen(either_server: Server, key_prefix: str) -> None:
    """A storage pushes only where there is no marker, and is asked again while the server is away."""
    key, given = f"{key_prefix}{{q}}:wake", []

    async def give_back(key: str) -> None:
        given.append(key)
        if len(given) == 1:
            raise StorageUnavailableError("away")

    async with connected(either_server.url) as servers:
        servers.give_back = give_back
        leaving = asyncio.ensure_future(servers.wait_for_marker(key, 3))
        await _blocks(either_server)
        leaving.cancel()
        await servers.call(key, ("LPUSH", key, 1))

        await comes_true(lambda: given == [key, key])


@in_loop
async def test_a_lost_connection_sends_everybody_to_look(either_server: Server, key_prefix: str) -> None:
    """It may have taken a marker with it: looking in vain costs less than a lost marker."""
    key = f"{key_prefix}{{q}}:wake"
    async with connected(either_server.url) as servers:
        waiting = [asyncio.ensure_future(servers.wait_for_marker(key, 30)) for _ in range(2)]
        await _blocks(either_server)
        (number,) = _connections(either_server, "jobq-markers-")
        begun = time.monotonic()
        either_server.command("CLIENT", "KILL", "ID", number)

        assert await asyncio.gather(*waiting) == [True, True]
        assert time.monotonic() - begun < 1


@in_loop
async def test_while_the_server_is_away_time_passes_and_afterwards_markers_come(start: Starter) -> None:
    """A worker that waits through an outage needs nobody to wake it."""
    server = start.server()
    async with connected(server.url, time_limit=1.0) as servers:
        first = asyncio.ensure_future(servers.wait_for_marker("{q}:wake", 20))
        await _blocks(server)
        server.kill()
        begun = time.monotonic()
        assert await servers.wait_for_marker("{p}:wake", 0.3) is False
        assert time.monotonic() - begun < 0.6
        await asyncio.to_thread(server.start)

        assert await first is True
        second = asyncio.ensure_future(servers.wait_for_marker("{q}:wake", 20))
        await _blocks(server)
        await servers.call("{q}:wake", ("LPUSH", "{q}:wake", 1))
        assert await second is True


@in_loop
async def test_who_began_to_wait_while_the_server_was_away_looks_as_soon_as_it_is_back(start: Starter) -> None:
    """A server that was away may have lost the marker, and a list without one says nothing."""
    server = start.server()
    async with connected(server.url) as servers:
        server.kill()
        waiting = asyncio.ensure_future(servers.wait_for_marker("{q}:wake", 20))
        await asyncio.sleep(0)
        await asyncio.to_thread(server.start)

        assert await waiting is True


@in_loop
async def test_a_silent_server_is_given_up_after_the_end_of_the_read_and_not_before(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blocked read is no dead one; a frozen server is noticed all the same."""
    monkeypatch.setattr(markers, "LONGEST_ROUND", 0.5)
    monkeypatch.setattr(markers, "GRACE", 0.5)
    server = start.server("redis")
    async with connected(server.url, time_limit=5.0) as servers:
        waiting = asyncio.ensure_future(servers.wait_for_marker("{q}:wake", 30))
        await _blocks(server)
        (number,) = _connections(server, "jobq-markers-")

        server.pause()
        assert await servers.wait_for_marker("{p}:wake", 0.6) is False
        server.resume()
        await _blocks(server)
        assert _connections(server, "jobq-markers-") == [number]
        assert not waiting.done()

        server.pause()
        assert await servers.wait_for_marker("{p}:wake", 1.3) is False
        server.resume()
        assert await waiting is True


@in_loop
async def test_a_list_of_another_type_makes_workers_look_by_themselves(either_server: Server, key_prefix: str) -> None:
    """Other software wrote there: the queue goes on, only less promptly, and the other queues with it."""
    key, other = f"{key_prefix}{{q}}:wake", f"{key_prefix}{{p}}:wake"
    async with connected(either_server.url) as servers:
        await servers.call(key, ("SET", key, "no list"))

        waits = [servers.wait_for_marker(name, 10) for name in (key, other)]

        assert await asyncio.gather(*waits) == [True, True]
        await servers.call(key, ("DEL", key))


@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize("times", [1, 2])
@in_loop
async def test_markers_closed_as_they_connect_anew_leave_no_connection(
    either_server: Server, times: int, reachable: bool
) -> None:
    """Nor the search for one: the server was found to be the wrong one at the moment of the end."""

    async def nowhere() -> Place:
        never: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        return await never

    async def ignore(_: object) -> None:
        pass

    dialer = dialer_to(either_server, "renewed", locate=None if reachable else nowhere)
    markers = Markers(dialer, control="control", interrupt=ignore, give_back=ignore, refused=print)
    assert await markers.wait("{q}:wake", 0.05) is False
    await comes_true(lambda: (markers.wire is not None) is reachable)

    for _ in range(times):
        markers.renew()
    await markers.close()

    await server_shows(lambda: "name=jobq-renewed-" not in str(either_server.command("CLIENT", "LIST")))


async def _blocks(server: Server) -> None:
    """Wait until a blocking read is on its way and nothing else is."""
    await server_shows(lambda: bool(_connections(server, "jobq-markers-", "flags=b")))


async def _returned(servers: Servers, keys: list[str], count: int) -> None:
    """Wait until that many markers are in the lists."""

    async def all_there() -> bool:
        return sum(await asyncio.gather(*(servers.call(key, ("LLEN", key)) for key in keys))) == count

    await comes_true(all_there)


def _connections(server: Server, name: str, flag: str = "") -> list[str]:
    """Return the numbers of the connections with such a name."""
    lines = str(server.command("CLIENT", "LIST")).splitlines()
    return [line.split()[0].removeprefix("id=") for line in lines if f" name={name}" in line and flag in line]


@in_loop
async def test_a_storage_made_before_forks_has_another_control_list_in_each_child(
    either_server: Server, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the children of a server that forks would end each other's blocking reads, and find jobs seconds late."""
    made = Servers(Settings.from_url(either_server.url), control=f"{key_prefix}control")
    children = [copy.copy(made) for _ in range(2)]
    interrupted: list[str] = []
    controls: set[str] = set()
    for child in children:
        monkeypatch.setattr(child, "_interrupt", told(interrupted, child._interrupt))
        await child.open()
        earlier = asyncio.create_task(child.wait_for_marker(f"{key_prefix}{{q}}:wake", 5))
        await _blocks(either_server)
        later = asyncio.create_task(child.wait_for_marker(f"{key_prefix}{{r}}:wake", 5))
        await comes_true(lambda: bool(interrupted))
        await child.close()
        await asyncio.wait([earlier, later])
        controls.add(interrupted[0])
        interrupted.clear()

    assert len(controls) == 2


def told(
    lists: list[str], interrupt: Callable[[str], Coroutine[Any, Any, None]]
) -> Callable[[str], Coroutine[Any, Any, None]]:
    async def tell(control: str) -> None:
        lists.append(control)
        await interrupt(control)

    return tell
