"""One storage object used in one loop after another, also where the first was closed under it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from jobq import RedisStorage
from jobq.storage.contract import Hint, HintKind
from jobq.testing import Bench, ManualClock, StorageCase
from tests.faults_redis.scenes import eventually, in_loop
from tests.servers.server import Server


def benched(server: Server, prefix: str) -> Bench:
    """A bench on the server's own clock, whose storage is not open yet."""
    return Bench(StorageCase(), ManualClock(), RedisStorage(server.url, key_prefix=prefix))


def test_several_watches_begin_together_in_every_loop(either_server: Server, key_prefix: str) -> None:
    """The second one waits for the first, as it did in the loop before."""
    bench = benched(either_server, key_prefix)

    async def watch() -> None:
        await bench.storage.open()
        watches = await asyncio.gather(*(bench.queue.watch(lambda hint: None) for _ in range(3)))
        await asyncio.gather(*(watch.close() for watch in watches))
        await bench.storage.close()

    for _ in range(2):
        in_loop(watch)()


def test_hints_come_in_a_new_loop_after_the_last_was_closed_under_a_watch(
    either_server: Server, key_prefix: str
) -> None:
    """A watch that nobody could end is no reason to take the channel of events for subscribed."""
    bench, hints = benched(either_server, key_prefix), list[Hint]()

    async def leave() -> Callable[[], Awaitable[None]]:
        await bench.storage.open()
        return (await bench.queue.watch(lambda hint: None)).close

    async def watch() -> None:
        await bench.storage.open()
        await bench.queue.watch(hints.append)
        await end_of_the_first()
        await bench.processing()

        await bench.cancel(running=True)

        await eventually(lambda: [hint.kind for hint in hints] == [HintKind.CANCEL_ASKED], "the hint")
        await bench.close()

    end_of_the_first = asyncio.run(leave())
    in_loop(watch)()
