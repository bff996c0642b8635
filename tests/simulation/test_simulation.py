"""The real queues, workers and reapers in simulated weather: some hundred histories, and proof that they are judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from jobq.job import Settlement, State
from jobq.storage.contract import Settled
from jobq.storage.memory import MemoryNamespace
from jobq.storage.records import Record
from simulation.histories import live, missed, shortened, tell

SEEDS = 300
PARTS = 6


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.storage("memory")
@pytest.mark.parametrize("part", range(PARTS))
def test_histories_keep_every_rule(part: int) -> None:
    """A broken one is repeated by ``python -m simulation --replay SEED``."""
    seen: Counter[str] = Counter()
    for seed in range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS):
        outcome = live(seed)
        assert not outcome.broken, f"seed {seed}: {outcome.broken}"
        seen += outcome.seen

    assert len(missed(seen, SEEDS // PARTS)) < 5, "too little has happened to prove anything"


@pytest.mark.storage("memory")
@pytest.mark.parametrize("seed", [12, 30, 62])
def test_one_seed_is_one_history(seed: int) -> None:
    """To the last line, so that what was seen once can be seen again."""
    assert tell(seed).lines == tell(seed).lines


@pytest.mark.storage("memory")
def test_a_shorter_history_begins_alike() -> None:
    """So a broken one can be cut down to what breaks it."""
    whole, short = tell(7).lines, tell(7, 1.5).lines

    bad_weather = [line for line in whole if float(line[:10]) < 1.5]
    assert len(bad_weather) > 10
    assert short[: len(bad_weather)] == bad_weather
    assert len(short) < len(whole)


def _settle_without_token(self: MemoryNamespace, settlement: Settlement, now: float) -> Settled:
    record = self._records.get(settlement.id)
    if record is not None and record.token is not None:
        settlement = Settlement(
            settlement.id,
            record.token,
            settlement.state,
            settlement.result,
            settlement.error,
            settlement.ttl,
            settlement.delay,
        )
    return SETTLE(self, settlement, now)


def _rescue_nothing(self: MemoryNamespace, limit: int) -> list[Any]:
    return []


def _forget(self: Record, nonce: str, answer: Any, now: float) -> None:
    """Remember no request."""


def _finish_twice(self: MemoryNamespace, record: Record, running: bool, now: float) -> None:
    CANCEL(self, record, running, now)
    if record.state is State.PROCESSING:
        record.state, record.token = State.QUEUED, None
        self._enqueue(record, 0.0, now)


SETTLE = MemoryNamespace._settle
CANCEL = MemoryNamespace._cancel


@pytest.mark.storage("memory")
@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        pytest.param(MemoryNamespace, "_settle", _settle_without_token, id="settle without its token"),
        pytest.param(MemoryNamespace, "_rescue", _rescue_nothing, id="no rescue"),
        pytest.param(MemoryNamespace, "_cancel", _finish_twice, id="a cancelled run goes on"),
        pytest.param(Record, "remember", _forget, id="no request is remembered"),
    ],
)
def test_a_broken_storage_is_found_out(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, broken: Callable[..., Any]
) -> None:
    """Within a few histories; else the simulation looks at nothing."""
    monkeypatch.setattr(owner, name, broken)

    found = next(seed for seed in range(40) if tell(seed).broken)

    assert tell(found, shortened(found)).broken
