"""Moments: never too late, and the same for all who share a label."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq._moments import Moments

LABEL = st.text(max_size=20)
TIME = st.floats(0.0, 1e8)
SLEEP = st.floats(0.001, 1e6)


@given(SLEEP, LABEL, TIME)
def test_a_sleep_is_no_longer_than_the_longest_and_not_much_shorter(longest: float, label: str, now: float) -> None:
    """What was promised to happen by then does."""
    assert 0.899 * longest <= Moments(longest, label).next_in(now) <= longest


@given(LABEL, TIME, st.lists(st.floats(0.0, 0.49), min_size=2, max_size=9))
def test_those_who_fall_asleep_at_about_the_same_time_wake_up_at_few_moments(
    label: str, now: float, after: list[float]
) -> None:
    """Within a tenth of the longest sleep there are two moments at most."""
    moments = Moments(5.0, label)
    ends = sorted(now + late + moments.next_in(now + late) for late in after)
    assert sum(later - sooner > 0.001 for sooner, later in pairwise(ends)) <= 1


def test_processes_wake_up_at_different_moments() -> None:
    """Or a storage would be asked by all of them at once."""
    ends = {round(Moments(5.0, f"host-{number}").next_in(0.0), 3) for number in range(64)}

    assert len(ends) > 32


def test_an_endless_sleep_stays_one() -> None:
    """A queue may be told hardly ever to look by itself."""
    assert Moments(1e9, "host-1").next_in(100.0) == pytest.approx(1e9, rel=0.1)


@given(st.floats(0.0, 0.001, exclude_min=True), LABEL, TIME)
def test_a_tiny_sleep_is_one(longest: float, label: str, now: float) -> None:
    """Nothing is divided by what is hardly more than zero, and no sleep is negative."""
    assert 0.0 <= Moments(longest, label).next_in(now) <= max(longest, 1e-6)
