"""The nemesis: hurts processes and the storage, as its seed wants it.

What it does, to whom, in which order and for how long follows from the seed alone; what comes of it does not, since
processes and the kernel have their own pace. Three lines of trouble run beside each other: one for workers, one for all
other parts, one for the storage, which has one trouble at a time.
"""

from __future__ import annotations

import heapq
import random
import signal
from collections.abc import Callable
from functools import partial

from soak.audit import SEGMENT, Audit
from soak.plan import Plan
from soak.stage import Stage, Trouble
from soak.troupe import Player, Troupe

WORKER_EVERY = 2.0
OTHERS_EVERY = 6.0
STORAGE_CALM = (2.0, 8.0)
"""Seconds from the end of one trouble to the next, so that there are times without any."""
_FULL_AT = 2 * SEGMENT
_FULL_FOR = 1.0
_LOOK_AFTER = 0.02


class Nemesis:
    """Call `step` often; it never waits, but for a server that is restarted."""

    def __init__(self, plan: Plan, troupe: Troupe, stage: Stage, audit: Audit) -> None:
        self._plan = plan
        self._troupe = troupe
        self._stage = stage
        self._note = audit.note
        self._lots = {line: random.Random(f"{plan.seed} {line}") for line in ("workers", "others", "storage")}
        self._agenda: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0
        self.blows = 0
        """How often it struck."""

    def begin(self, now: float) -> None:
        self._at(now + WORKER_EVERY, self._hit_a_worker)
        self._at(now + OTHERS_EVERY, self._hit_another)
        self._at(now + STORAGE_CALM[0], self._hit_the_storage)

    def step(self, now: float) -> None:
        """Do what is due."""
        self._thaw_who_froze_themselves(now)
        while self._agenda and self._agenda[0][0] <= now:
            due, _, action = heapq.heappop(self._agenda)
            action(max(due, now - 1.0))

    def end(self) -> None:
        """Strike no more, and end all trouble; who froze is thawed as ever."""
        self._agenda.clear()
        self._stage.heal()
        self._note("healed", "all")
        for player in self._troupe.players:
            player.limit_files(None)
            if player.stopped:
                self._thaw(player, player.incarnation)

    def _at(self, when: float, action: Callable[[float], None]) -> None:
        self._count += 1
        heapq.heappush(self._agenda, (when, self._count, action))

    def _hit_a_worker(self, now: float) -> None:
        lot = self._lots["workers"]
        self._at(now + WORKER_EVERY, self._hit_a_worker)
        player = lot.choice(self._troupe.of("worker"))
        match lot.choices(["kill", "freeze", "terminate"], [6, 2, 2])[0]:
            case "kill":
                self._kill(player)
            case "freeze":
                self._freeze(player, now, lot.uniform(1.1, 2.0) * self._plan.lease)
            case _:
                self._strike(player, "terminated", signal.SIGTERM)
                player.terminated = True

    def _hit_another(self, now: float) -> None:
        lot = self._lots["others"]
        self._at(now + OTHERS_EVERY, self._hit_another)
        player = lot.choice(self._troupe.of("producer", "producer", "reaper", "waiter"))
        if lot.random() < 0.7:
            self._kill(player)
        else:
            self._freeze(player, now, lot.uniform(1.1, 2.0) * self._plan.lease)

    def _hit_the_storage(self, now: float) -> None:
        lot = self._lots["storage"]
        troubles = list(self._stage.troubles(lot))
        if self._plan.storage == "file":
            troubles += [self._full_disk(player) for player in self._troupe.of("worker", "producer")]
        trouble = lot.choice(troubles)
        self.blows += 1
        self._note("fault", trouble.name)
        trouble.make()
        self._at(now + trouble.seconds, partial(self._heal, trouble))

    def _heal(self, trouble: Trouble, now: float) -> None:
        if trouble.heal is not None:
            trouble.heal()
        self._note("healed", trouble.name)
        self._at(now + self._lots["storage"].uniform(*STORAGE_CALM), self._hit_the_storage)

    def _full_disk(self, player: Player) -> Trouble:
        return Trouble(
            f"full-disk-{player.name}",
            lambda: player.limit_files(_FULL_AT),
            lambda: player.limit_files(None),
            _FULL_FOR,
        )

    def _kill(self, player: Player) -> None:
        self._strike(player, "killed", signal.SIGKILL)

    def _freeze(self, player: Player, now: float, seconds: float) -> None:
        if not player.frozen:
            player.frozen = True
            self._strike(player, "frozen", signal.SIGSTOP)
            self._thaw_at(now + seconds, player)
            self._look_at(now + _LOOK_AFTER, player)

    def _thaw_at(self, when: float, player: Player) -> None:
        incarnation = player.incarnation
        self._at(when, lambda _: self._thaw(player, incarnation))

    def _strike(self, player: Player, fact: str, number: signal.Signals) -> None:
        if player.alive and not player.ended:
            self.blows += 1
            self._note(fact, player.title)
            player.send(number)

    def _thaw(self, player: Player, incarnation: int) -> None:
        if player.incarnation == incarnation:
            player.frozen = False
            self._note("thawed", player.title)
            player.send(signal.SIGCONT)

    def _thaw_who_froze_themselves(self, now: float) -> None:
        for player in self._troupe.of("worker"):
            if not player.frozen and player.stopped:
                player.frozen = True
                self._note("frozen", player.title)
                self._thaw_at(now + 1.3 * self._plan.lease, player)
                self._look_at(now, player)

    def _look_at(self, when: float, player: Player) -> None:
        incarnation = player.incarnation
        self._at(when, lambda now: self._look_what_it_holds(now, player, incarnation))

    def _look_what_it_holds(self, now: float, player: Player, incarnation: int) -> None:
        """Say whether a frozen process keeps all others from writing."""
        process = player.process
        if player.incarnation != incarnation or not player.frozen or process is None:
            return
        if not player.stands_still:
            self._look_at(now + _LOOK_AFTER, player)
        elif self._stage.held_by(process):
            self._note("holding", player.title)
