"""Reaper and LeaderElection: prompt recovery of jobs whose worker fell silent."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Any, overload

from jobq._home import Home
from jobq._leader import Leadership
from jobq._reaper import Reaping
from jobq.checks import check_logger, check_name, check_seconds, check_storage
from jobq.errors import ConfigError
from jobq.events import REAPER_EVENTS, Emitter, L, Listener
from jobq.storage.contract import Hint, HintKind, Rescued, Storage, Watch

_REMEMBERED = 10_000


class LeaderElection:
    """Settings for electing one acting reaper among several.

    Args:
        lock_ttl: seconds after which a silent leader has lost the lead.
        renewal_interval: how often the leader renews; a third of ``lock_ttl`` by default, and less than it.
        acquire_retry_interval: how often the others try.

    A leader that stops hands over at once; one that crashes is followed within
    ``lock_ttl + acquire_retry_interval``.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        lock_ttl: float | timedelta = 30.0,
        renewal_interval: float | timedelta | None = None,
        acquire_retry_interval: float | timedelta = 5.0,
    ) -> None:
        self.lock_ttl = check_seconds("lock_ttl", lock_ttl, zero=False)
        if renewal_interval is None:
            renewal_interval = self.lock_ttl / 3
        self.renewal_interval = check_seconds("renewal_interval", renewal_interval, zero=False)
        self.acquire_retry_interval = check_seconds("acquire_retry_interval", acquire_retry_interval, zero=False)
        if self.renewal_interval >= self.lock_ttl:
            raise ConfigError(
                f"renewal_interval={self.renewal_interval}: must be less than lock_ttl={self.lock_ttl}, "
                "or the lead is lost before it is renewed"
            )

    def __repr__(self) -> str:
        return (
            f"LeaderElection(lock_ttl={self.lock_ttl}, renewal_interval={self.renewal_interval}, "
            f"acquire_retry_interval={self.acquire_retry_interval})"
        )


class Reaper:
    """Recovers jobs whose worker's lease lapsed, and announces each with ``stalled(id)``.

    Workers recover such jobs as well, whenever they claim. A reaper does it at once when all workers are busy or gone.
    Any number may run at the same time: each job is recovered once. Leader election saves work; it is not needed for
    safety.

    Args:
        storage: where the jobs are.
        name: which queue; ``"default"`` if None.
        visibility_timeout: the longest it sleeps between looks, in seconds. Leases carry their own deadlines, so it
            need not match the queues'.
        leader_election: elect one acting reaper; None means that each acts.
        logger: where unheard errors go; ``jobq`` by default.

    Events: ``stalled(id)`` for each job rescued by this reaper or, as far as it hears of it, by somebody else;
    ``leadership_acquired()``, ``leadership_lost()``, ``error(error)``.

    Raises:
        ConfigError: an option is out of range.

    Example:
        >>> import asyncio
        >>> from jobq import MemoryStorage, Reaper
        >>> async def main():
        ...     async with Reaper(MemoryStorage()) as reaper:
        ...         return reaper.is_leader
        >>> asyncio.run(main())
        True
    """

    def __init__(
        self,
        storage: Storage,
        *,
        name: str | None = None,
        visibility_timeout: float | timedelta = 30.0,
        leader_election: LeaderElection | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        if leader_election is not None and not isinstance(leader_election, LeaderElection):
            raise ConfigError(f"leader_election: must be a LeaderElection, not {type(leader_election).__name__}")
        self.name = check_name("name", "default" if name is None else name)
        self._storage = check_storage(storage)
        self._namespace = storage.namespace(self.name)
        self._longest = check_seconds("visibility_timeout", visibility_timeout, zero=False)
        self._election = leader_election
        self._logger = check_logger(logger)
        self._emitter = Emitter(REAPER_EVENTS, self._logger)
        self._own: OrderedDict[tuple[str, str, int], None] = OrderedDict()
        self._home = Home(f"reaper {self.name!r}")
        self._started = False
        self._stops: set[asyncio.Task[None]] = set()
        self._leadership: Leadership | None = None
        self._reaping: asyncio.Task[None] | None = None
        self._watch: Watch | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this reaper acts now; without leader election, whether it is started."""
        if self._leadership is not None:
            return self._leadership.is_leader
        return self._started

    async def start(self) -> None:
        """Connect and begin to look at once. Starting twice is harmless.

        Raises:
            StorageUnavailableError: the storage was not reachable within 5 s; try again later.
        """
        async with self._home.turn(self._is_used, self._forget):
            if self._started:
                return
            await self._storage.open()
            try:
                self._watch = await self._namespace.watch(self._hinted)
            except GeneratorExit:  # Its loop has ended in here: nothing may be awaited, and the next start forgets it.
                raise
            except BaseException:
                await self._storage.close()
                raise
            self._started = True
            if self._election is None:
                self._act(True)
            else:
                self._leadership = self._new_leadership(self._election)
                self._leadership.start()

    async def stop(self) -> None:
        """Stop looking, hand over the lead, disconnect. Stopping twice is harmless; it may be started again.

        Awaited inside a listener, it begins the stop and returns at once. Cancelled, it goes on in the background.
        """
        stopping = asyncio.get_running_loop().create_task(self._stop())
        self._stops.add(stopping)
        stopping.add_done_callback(self._stops.discard)
        if not self._emitter.calling:
            await asyncio.shield(stopping)

    async def _stop(self) -> None:
        async with self._home.turn(self._is_used, self._forget):
            if not self._started:
                return
            self._started = False
            if self._leadership is not None:
                await self._leadership.stop()
                self._leadership = None
            reaping = self._reaping
            self._act(False)
            if reaping is not None:
                await asyncio.wait([reaping])
            if self._watch is not None:
                await self._watch.close()
            await self._emitter.drain(1.0)
            await self._storage.close()

    async def __aenter__(self) -> Reaper:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @overload
    def on(self, event: str) -> Callable[[L], L]: ...
    @overload
    def on(self, event: str, listener: L) -> L: ...
    def on(self, event: str, listener: Listener | None = None) -> Any:
        """Call ``listener`` at each event; also a decorator, ``@reaper.on("stalled")``."""
        return self._emitter.subscribe(event, listener)

    def off(self, event: str, listener: Listener) -> None:
        """Remove a listener; removing one that is not there is harmless."""
        self._emitter.off(event, listener)

    def __repr__(self) -> str:
        return f"<Reaper {self.name!r} on {self._storage!r}>"

    def _is_used(self) -> bool:
        return self._started

    def _forget(self) -> None:
        """Forget what a closed loop left behind."""
        self._started, self._leadership, self._reaping = False, None, None
        self._emitter.forget()

    def _new_leadership(self, election: LeaderElection) -> Leadership:
        return Leadership(
            self._namespace,
            self._storage.clock.random_bytes(12).hex(),
            times=(election.lock_ttl, election.renewal_interval, election.acquire_retry_interval),
            clock=self._storage.clock,
            changed=self._lead_changed,
            report=self._report,
        )

    def _lead_changed(self, leads: bool) -> None:
        self._act(leads)
        self._emitter.emit("leadership_acquired" if leads else "leadership_lost")

    def _act(self, acts: bool) -> None:
        if self._reaping is not None:
            self._reaping.cancel()
            self._reaping = None
        if acts:
            reaping = Reaping(
                self._namespace,
                longest=self._longest,
                clock=self._storage.clock,
                rescued=self._rescued,
                report=self._report,
            )
            self._reaping = asyncio.get_running_loop().create_task(reaping.run())

    def _rescued(self, rescued: Rescued) -> None:
        self._announce((rescued.id, rescued.generation, rescued.attempts))

    def _hinted(self, hint: Hint) -> None:
        if hint.kind is HintKind.RESCUED:
            self._announce((hint.id, hint.generation, hint.attempts))

    def _announce(self, rescue: tuple[str, str, int]) -> None:
        """Emit ``stalled`` once, although a rescue of its own is also heard of as a hint."""
        if rescue in self._own:
            return
        self._own[rescue] = None
        if len(self._own) > _REMEMBERED:
            self._own.popitem(last=False)
        self._emitter.emit("stalled", rescue[0])

    def _report(self, error: BaseException) -> None:
        self._emitter.emit("error", error)
