"""What the engine's tests share: a loop per test, recorded events, handlers that wait, storages with a gate."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from jobq import Queue, Reaper
from jobq.events import QUEUE_EVENTS, REAPER_EVENTS
from jobq.storage.contract import Storage
from jobq.testing import run_virtual

T = TypeVar("T")
LONGEST = 10.0
"""Seconds after which a test counts as hanging."""


def in_loop(test: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
    """Run a test written as a coroutine in an event loop of its own, in which it must leave no task behind."""

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(LONGEST):
                return await leaving_no_task(test(*arguments, **options))

        return asyncio.run(bounded())

    return run


def in_virtual_time(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it as `run_virtual` does; it must leave no task behind."""
    return run_virtual(lambda: leaving_no_task(main()))


async def leaving_no_task(main: Coroutine[Any, Any, T]) -> T:
    """Await it, and then look for tasks, which the end of the loop would cancel without a word."""
    answer = await main
    await alone()
    return answer


async def alone() -> None:
    """Wait until there is no task but this one."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + 3.0
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        assert loop.time() < give_up_at, f"the test left tasks behind: {others}"
        await asyncio.wait(others, timeout=0.05)


class Events:
    """Everything that a queue or a reaper emits, in order."""

    def __init__(self, emitter: Queue[Any, Any] | Reaper) -> None:
        self.all: list[tuple[Any, ...]] = []
        self._changed = asyncio.Event()
        for name in QUEUE_EVENTS if isinstance(emitter, Queue) else REAPER_EVENTS:
            emitter.on(name, functools.partial(self._heard, name))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """Return the arguments of every event of that name."""
        return [event[1:] for event in self.all if event[0] == name]

    @property
    def names(self) -> list[str]:
        return [event[0] for event in self.all]

    async def until(self, name: str, count: int = 1, *, within: float = 5.0) -> list[tuple[Any, ...]]:
        """Wait until so many events of that name were heard."""
        async with asyncio.timeout(within):
            while len(self.of(name)) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.of(name)

    def _heard(self, name: str, *arguments: Any) -> None:
        self.all.append((name, *arguments))
        self._changed.set()


class Waiting:
    """A handler that says when it began, and then waits until it is released or cancelled."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []
        self.cancelled: list[str] = []
        self.running = 0
        self.most = 0
        self.release = asyncio.Event()
        self._begun = asyncio.Event()

    async def __call__(self, job: Any) -> Any:
        self.jobs.append(job)
        self.running += 1
        self.most = max(self.most, self.running)
        self._begun.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(job.id)
            raise
        finally:
            self.running -= 1
        return job.payload

    async def begun(self, count: int = 1, *, within: float = 5.0) -> Any:
        """Wait until so many runs have begun; return the job of the last one of them."""
        async with asyncio.timeout(within):
            while len(self.jobs) < count:
                self._begun.clear()
                await self._begun.wait()
        return self.jobs[count - 1]


async def passing(seconds: float) -> None:
    """Let the loop go on for a while in which nothing is expected to happen."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


@contextlib.contextmanager
def no_thread_for(name: str) -> Iterator[None]:
    """Let no thread of such a name be started, as when the system has too many."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        yield


async def echo(job: Any) -> Any:
    return job.payload


class Gated:
    """A storage that passes everything on, but for verbs whose gate is closed or that are told to fail."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.gates: dict[str, asyncio.Event] = {}
        self.failures: dict[str, list[Exception]] = {}
        self.replaced: dict[str, Callable[..., Any]] = {}
        self.calls: dict[str, int] = {}
        self.deaf = False
        """Whether every hint is lost."""
        self.vigilant: bool = getattr(storage, "vigilant", False)
        """See `jobq.storage.contract.is_vigilant`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def open(self) -> None:
        if "open" in self.gates:
            await self.gates["open"].wait()
        await self._storage.open()

    def twin(self) -> Storage | None:
        return self._storage.twin()

    def namespace(self, name: str) -> Any:
        return _GatedNamespace(self, self._storage.namespace(name))

    def __repr__(self) -> str:
        return f"<Gated {self._storage!r}>"


class _GatedNamespace:
    def __init__(self, gated: Gated, namespace: Any) -> None:
        self._gated = gated
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        gated = self._gated

        async def call(*arguments: Any) -> Any:
            method = gated.replaced.get(name) or getattr(self._namespace, name)
            gated.calls[name] = gated.calls.get(name, 0) + 1
            if name in gated.gates:
                await gated.gates[name].wait()
            if gated.failures.get(name):
                raise gated.failures[name].pop(0)
            if name == "watch" and gated.deaf:
                return await method(lambda hint: None)
            return await method(*arguments)

        return call
