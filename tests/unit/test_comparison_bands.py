"""The spread of a group's curve over its seeds."""

from __future__ import annotations

import pytest

from comparison.bands import Band, band
from comparison.groups import group_runs
from tests.simulated import TOKENS_PER_STEP, simulated_arm, simulated_run


def only_group(runs):
    (group,) = group_runs(runs)
    return group


def test_mean_and_extremes_at_every_evaluation():
    found = band(only_group(simulated_arm("a", [3.0, 3.2, 3.7])), "tokens")
    assert found.budgets == [step * TOKENS_PER_STEP for step in (0, 25, 50, 75, 100)]
    assert found.mean[-1] == pytest.approx(3.3)
    assert (found.low[-1], found.high[-1]) == (3.0, 3.7)
    assert found.low[0] < found.mean[0] < found.high[0]


def test_seeds_of_different_speed_are_compared_at_common_budgets():
    runs = [
        simulated_run("a", seed, 3.0, seconds_per_step=pace) for seed, pace in ((1, 0.1), (2, 0.2))
    ]
    found = band(only_group(runs), "seconds")
    assert found.budgets[-1] == 10.0  # where the faster one ended
    assert found.low[-1] == 3.0 < found.high[-1]
    assert found.budgets == sorted(set(found.budgets))


def test_none_without_a_finite_loss():
    runs = [simulated_run("a", 1, curve=[(0, None), (100, None)])]
    assert band(only_group(runs), "tokens") is None


def test_large_budgets_become_floats():
    runs = [simulated_run("a", 1, curve=[(1, 2**64), (10**40, 3)])]
    found = band(only_group(runs), "tokens")
    numbers = [*found.budgets, *found.mean, *found.low, *found.high]
    assert {type(number) for number in numbers} == {float}


def numbered_band(count: int) -> Band:
    """A band with points at budgets 0, 1, 2, ..."""
    budgets = [float(budget) for budget in range(count)]
    return Band(budgets, mean=budgets, low=budgets, high=budgets)


def test_parts_of_a_band():
    whole = numbered_band(5)
    assert whole.since(2.5).mean == [3, 4]
    assert whole.since(3).high == [3, 4]
    assert whole.trained.budgets == [1, 2, 3, 4]
    assert numbered_band(1).trained is None


def test_a_thinned_band_keeps_its_ends():
    assert numbered_band(101).thinned(3).budgets == [0, 50, 100]
    assert numbered_band(101).thinned(3).low == [0, 50, 100]
    assert numbered_band(4).thinned(4).budgets == [0, 1, 2, 3]
