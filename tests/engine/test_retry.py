"""Retry policies: delays as documented, and no number that breaks them."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq import ConfigError, ExponentialBackoff, FixedDelay, Job, Queue
from jobq.storage.contract import Storage
from tests.engine.scenes import Events, in_loop

ERROR = ValueError("failed")


def test_the_default_is_exponential_with_jitter_and_a_cap() -> None:
    """1, 2, 4 … 300 seconds, give or take a tenth."""
    policy = ExponentialBackoff()

    for attempt in range(1, 30):
        middle = min(300.0, 2.0 ** (attempt - 1))
        delays = [policy(attempt, ERROR) for _ in range(50)]
        assert all(0.9 * middle <= delay <= 1.1 * middle for delay in delays)
        assert len(set(delays)) > 1


def test_a_program_that_seeds_random_keeps_its_sequence_and_gets_pauses_that_differ() -> None:
    """Workers that were all seeded alike would all come back at the same moment."""
    policy, before = ExponentialBackoff(), random.getstate()

    delays = []
    for _ in range(20):
        random.seed(7)
        delays.append(policy(1, ERROR))
    untouched = random.getstate()
    random.seed(7)

    assert random.getstate() == untouched
    assert len(set(delays)) > 1
    random.setstate(before)


def test_without_jitter_the_delay_is_exact() -> None:
    """min(maximum, initial · factor^(n−1))."""
    policy = ExponentialBackoff(initial=timedelta(seconds=0.5), factor=3, maximum=timedelta(seconds=10), jitter=0)

    assert [policy(attempt, ERROR) for attempt in (1, 2, 3, 4, 5)] == [0.5, 1.5, 4.5, 10.0, 10.0]


@given(
    initial=st.floats(0, 3e9),
    factor=st.floats(1, 1e6),
    maximum=st.floats(0, 3e9),
    jitter=st.floats(0, 1),
    attempt=st.integers(1, 1_000_000),
)
def test_no_number_makes_it_overflow(
    initial: float, factor: float, maximum: float, jitter: float, attempt: int
) -> None:
    """It is finite, not negative, and within the jitter of the cap."""
    delay = ExponentialBackoff(initial, factor, maximum, jitter)(attempt, ERROR)

    assert math.isfinite(delay)
    assert 0.0 <= delay <= maximum * (1 + jitter) + 1e-6


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((option, value) for option in ("initial", "maximum") for value in (-1, math.nan, math.inf, 1e18, "5", True)),
        *(
            (option, value)
            for option in ("factor", "jitter")
            for value in (-1, math.nan, math.inf, 1e18, "5", True, None)
        ),
        ("factor", 0.5),
        ("jitter", 1.5),
        ("initial", None),
        ("maximum", None),
    ],
)
def test_wrong_settings_are_refused_by_name(option: str, value: Any) -> None:
    """At the construction."""
    with pytest.raises(ConfigError, match=option):
        ExponentialBackoff(**{option: value})


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, 1e18, "5", True, None])
def test_a_wrong_fixed_delay_is_refused(seconds: Any) -> None:
    """The same for the simplest policy."""
    with pytest.raises(ConfigError, match="seconds"):
        FixedDelay(seconds)


def test_a_fixed_delay_is_always_the_same() -> None:
    """Zero and a timedelta are fine."""
    assert [FixedDelay(5)(attempt, ERROR) for attempt in (1, 7)] == [5.0, 5.0]
    assert FixedDelay(0)(1, ERROR) == 0.0
    assert FixedDelay(timedelta(minutes=1))(1, ERROR) == 60.0


@in_loop
async def test_the_policy_decides_when_the_next_attempt_is_due(storage: Storage) -> None:
    """By the storage's clock, and the job says so."""
    queue = Queue[Any, Any](storage, retry=FixedDelay(40))
    events = Events(queue)

    @queue.execute
    async def fail(job: Job[Any]) -> None:
        raise ERROR

    async with queue:
        await queue.enqueue("a", 1)
        await events.until("failing")
        status = await queue.get_status("a")

    assert status is not None
    assert status.started_at is not None
    assert status.run_at - status.started_at == pytest.approx(40, abs=1)


@in_loop
async def test_retries_queue_behind_what_is_ready(storage: Storage) -> None:
    """A failing job does not hold up the others."""
    queue = Queue[Any, Any](storage, retry=FixedDelay(0), max_attempts=3)
    order: list[str] = []

    @queue.execute
    async def note(job: Job[Any]) -> None:
        order.append(job.id)
        if job.id == "bad" and job.attempts < 3:
            raise ERROR

    async with Queue[Any, Any](storage) as producer:
        await producer.enqueue_many([("bad", 1), ("a", 1), ("b", 1)])
    async with queue:
        await queue.wait("bad")

    assert order[:3] == ["bad", "a", "b"]
    assert order[3:] == ["bad", "bad"]
