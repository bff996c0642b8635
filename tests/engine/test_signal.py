"""AbortSignal: told at most once, and heard from coroutines and threads alike."""

from __future__ import annotations

import asyncio
import threading

import pytest

from jobq import AbortSignal, JobAborted
from tests.engine.scenes import in_loop


def test_it_begins_unset() -> None:
    """A handler may go on."""
    signal = AbortSignal()

    signal.raise_if_aborted()
    assert not signal.aborted
    assert signal.reason is None
    assert signal.wait_sync(0) is False
    assert signal.wait_sync(0.01) is False


def test_the_first_reason_stands() -> None:
    """Later ones change nothing."""
    signal = AbortSignal()
    signal.abort("cancelled")
    signal.abort("stopping")

    assert signal.aborted
    assert signal.reason == "cancelled"
    assert signal.wait_sync() is True
    with pytest.raises(JobAborted, match="cancelled") as caught:
        signal.raise_if_aborted()
    assert caught.value.reason == "cancelled"


@in_loop
async def test_all_who_wait_are_woken_from_any_thread() -> None:
    """Coroutines of this loop and of another, and threads."""
    signal, heard = AbortSignal(), []
    ready = threading.Barrier(3)

    def in_thread() -> None:
        ready.wait(5)
        heard.append(signal.wait_sync(5))

    def in_other_loop() -> None:
        async def wait() -> None:
            ready.wait(5)
            heard.append(await signal.wait())

        asyncio.run(wait())

    threads = [threading.Thread(target=in_thread), threading.Thread(target=in_other_loop)]
    for thread in threads:
        thread.start()
    waiter = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    ready.wait(5)
    threading.Thread(target=signal.abort, args=("lease_lost",)).start()

    assert await waiter == "lease_lost"
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert sorted(map(str, heard)) == ["True", "lease_lost"]


@in_loop
async def test_a_wait_that_is_cancelled_leaves_the_signal_alone() -> None:
    """And the others who wait."""
    signal = AbortSignal()
    first, second = asyncio.create_task(signal.wait()), asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    signal.abort("stopping")

    assert first.cancelled()
    assert await second == "stopping"


def test_one_who_is_gone_does_not_keep_the_others_asleep() -> None:
    """A loop that was closed while a coroutine in it waited."""
    signal = AbortSignal()
    loop = asyncio.new_event_loop()
    task = loop.create_task(signal.wait())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    event = threading.Event()

    def wait() -> None:
        if signal.wait_sync(5):
            event.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while len(signal._waiters or ()) < 2:
        thread.join(0.001)
    signal.abort("stopping")
    thread.join(5)

    assert event.is_set()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
