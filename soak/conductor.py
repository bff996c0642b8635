"""The conductor: begins a run, lets the nemesis loose, waits until all is quiet, and has the storage surveyed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from soak.audit import Audit
from soak.nemesis import Nemesis
from soak.plan import Plan
from soak.stage import Stage, open_stage
from soak.troupe import Player, Troupe

_TICK = 0.02
_LATE = 0.5
"""Seconds without a tick, other than by a blow, after which the machine itself was in trouble."""
_WARM_UP = 1.5
"""Seconds from the start of the processes to the first job."""
_PATIENCE = 90.0
"""Seconds after the chaos, or as long as that was, within which producers and waiters must be done."""
_SURVEY_PATIENCE = 300.0


class Conductor:
    """One run, in a directory of its own."""

    def __init__(self, plan: Plan, directory: Path, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._directory = directory
        self._tell = tell
        self._audit = Audit(directory, "nemesis-0")
        for name in ("audit", "logs", "jobs"):
            (directory / name).mkdir(mode=0o700, exist_ok=True)

    def run(self) -> Plan:
        """Run it to its end; what came of it is in the audit files. Returns the plan with what was filled in."""
        # The proxies write to connections that they have just ended, which asyncio finds worth a warning.
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        stage = open_stage(self._plan.storage, self._directory)
        try:
            begins_at = time.monotonic() + _WARM_UP
            plan = msgspec.structs.replace(self._plan, urls=stage.urls, begins_at=begins_at)
            plan.write(self._directory)
            troupe = Troupe(plan, self._directory, self._audit)
            try:
                self._play(plan, troupe, stage)
            finally:
                troupe.close()
        finally:
            stage.close()
            self._audit.close()
        return plan

    def _play(self, plan: Plan, troupe: Troupe, stage: Stage) -> None:
        nemesis = Nemesis(plan, troupe, stage, self._audit)
        troupe.start()
        nemesis.begin(plan.begins_at)
        self._tell(f"{plan.jobs:,} jobs, {len(troupe.players)} processes, {plan.chaos_seconds:.0f} s of chaos")
        self._attend(troupe, nemesis, until=plan.begins_at + plan.chaos_seconds)
        nemesis.end()
        self._note_connections(stage)
        self._tell(f"{nemesis.blows} blows; waiting until all is quiet")
        patience = max(_PATIENCE, plan.chaos_seconds)
        done = self._attend(troupe, nemesis, until=time.monotonic() + patience, askers=True)
        if not done:
            self._audit.note("unexpected", "producers or waiters were not done in time")
        self._tell("surveying the storage")
        self._survey(troupe, nemesis)
        troupe.end(troupe.of("worker", "reaper"))
        for name, count in stage.left().items():
            self._audit.note("left", count, name)

    def _attend(self, troupe: Troupe, nemesis: Nemesis, *, until: float, askers: bool = False) -> bool:
        """Look after everybody until then, or with ``askers`` until producers and waiters are done."""
        asking = troupe.of("producer", "waiter")
        while (now := time.monotonic()) < until:
            nemesis.step(now)
            self._look_after(troupe)
            if askers and all(player.ended for player in asking):
                return True
        return False

    def _look_after(self, troupe: Troupe) -> None:
        began_at = time.monotonic()
        troupe.attend()
        time.sleep(_TICK)
        if (seconds := time.monotonic() - began_at) > _LATE:
            self._audit.note("still", f"{seconds:.1f}")

    def _survey(self, troupe: Troupe, nemesis: Nemesis) -> None:
        surveyor = Player("surveyor", 0, self._directory)
        surveyor.start()
        until = time.monotonic() + _SURVEY_PATIENCE
        while surveyor.poll() is None and time.monotonic() < until:
            nemesis.step(time.monotonic())
            self._look_after(troupe)
        code = surveyor.poll()
        self._audit.note("died", surveyor.title, "late" if code is None else code)
        troupe.players.append(surveyor)

    def _note_connections(self, stage: Stage) -> None:
        cut, again = stage.counts()
        self._audit.note("cut", cut)
        self._audit.note("reconnected", again)
