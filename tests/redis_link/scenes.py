"""What the tests of connections share: servers opened and closed without a trace, and ears for what they report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jobq.errors import StorageError, StorageUnavailableError
from jobq.storage.redis.servers import Servers
from jobq.storage.redis.settings import Settings
from jobq.storage.redis.urls import Place
from jobq.storage.redis.wire import Dialer
from tests.servers.proxy import FaultProxy
from tests.servers.server import Server
from tests.servers.waiting import wait_for

PATIENCE = 15.0
"""Seconds after which something that should happen counts as never happening, also on a busy machine."""


class Ear:
    """Remembers what was told, and lets tests wait for it."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self._changed = asyncio.Event()

    def __call__(self, *told: Any) -> None:
        self.heard.append(told[0] if told else None)
        self._changed.set()

    async def hears(self, count: int) -> list[Any]:
        """Wait until that many things were told, and return them all."""
        async with asyncio.timeout(PATIENCE):
            while len(self.heard) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.heard


@asynccontextmanager
async def connected(url: str, time_limit: float = 5.0, **options: Any) -> AsyncIterator[Servers]:
    """Open connections, and see afterwards that they left no task and no socket behind."""
    tasks, sockets = asyncio.all_tasks(), _sockets()
    servers = Servers(Settings.from_url(url), time_limit, **options)
    await servers.open()
    await asyncio.sleep(0)  # Its tasks have begun now, and belong to those that a test inside of this one finds.
    await asyncio.sleep(0)
    try:
        yield servers
    finally:
        await servers.close()
    await comes_true(lambda: asyncio.all_tasks() <= tasks and _sockets() <= sockets)


def dialer_to(
    server: Server | FaultProxy, role: str, *, locate: Callable[[], Awaitable[Place]] | None = None
) -> Dialer:
    """Return what connects to a server, or to wherever the server is said to be."""
    settings = Settings.from_url(server.url)

    async def here() -> Place:
        return settings.target.places[0]

    return Dialer(settings, role, time_limit=5.0, locate=locate or here, address=server.url)


async def comes_true(look: Callable[[], bool | Awaitable[bool]]) -> None:
    """Look until it is so, letting others run in between. For what this loop itself brings about in a moment."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        seen = look()
        if seen if isinstance(seen, bool) else await seen:
            return
        assert time.monotonic() < give_up_at, "it never came true"
        await asyncio.sleep(0)


async def server_shows(look: Callable[[], bool]) -> None:
    """Look at a server until it is so, from another thread."""
    await asyncio.to_thread(wait_for, look, "such state of the server", PATIENCE)


async def answers(servers: Servers, key: str = "k", within: float = PATIENCE) -> float:
    """Ask until there is an answer again, and return after how many seconds that was."""
    begun = time.monotonic()
    while True:
        try:
            await servers.call(key, ("EXISTS", key))
            return time.monotonic() - begun
        except StorageUnavailableError:
            assert time.monotonic() - begun < within, "no answer"


async def outcome(call: Awaitable[Any]) -> Any:
    """Return what a call answers, or the error that it raises."""
    try:
        return await call
    except StorageError as error:
        return error


def _sockets() -> set[str]:
    """Return the open sockets of this process, by their own numbers."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:  # It was that of the directory itself.
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found
