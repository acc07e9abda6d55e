"""Losses at equal budgets, and budgets for equal losses."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest

from comparison.curves import common_budget, cost_of, curve, loss_at, loss_error, speedup
from comparison.design import Design
from comparison.findings import compare
from comparison.groups import group_runs
from comparison.readings import losses_at
from tests.simulated import FLOPS_PER_TOKEN, decaying, simulated_arm, simulated_run

POINTS = [(0, 5.0), (100, 4.0), (10_000, 3.0)]


def power_law(factor: float, seed: int = 0, steps: int = 100) -> list[tuple[int, float]]:
    """A curve that needs `factor` times fewer steps for each loss; seeds shift all of it."""
    at = [0, *(round(steps * 2**-i) for i in range(6, -1, -1))]
    return [(s, 9.0 if s == 0 else 3 - math.log(factor * s / steps) + seed / 100) for s in at]


# --- One curve ---


@pytest.mark.parametrize(
    ("budget", "loss"),
    [(0, 5.0), (50, 4.5), (100, 4.0), (1000, 3.5), (10_000, 3.0), (10_001, None), (-1, None)],
)
def test_between_evaluations_the_loss_is_linear_in_the_logarithm(budget, loss):
    found = loss_at(POINTS, budget)
    assert found == loss if loss is None else found == pytest.approx(loss)


@pytest.mark.parametrize(
    ("loss", "budget"),
    [(4.5, 50), (4.0, 100), (3.5, 1000), (3.0, 10_000), (2.9, None), (5.0, None)],
)
def test_the_cost_of_a_loss_is_the_inverse(loss, budget):
    found = cost_of(POINTS, loss)
    assert found == budget if budget is None else found == pytest.approx(budget)


def test_the_first_crossing_counts():
    assert cost_of([(0, 5.0), (100, 3.0), (200, 4.0), (300, 2.0)], 3.0) == 100


def test_non_finite_losses_are_omitted():
    run = simulated_run(curve=[(0, 5.0), (10, None), (20, 4.0)])
    assert curve(run, "tokens") == [(0, 5.0), (20_000, 4.0)]
    assert curve(run, "flops") == [(0, 5.0), (20_000 * FLOPS_PER_TOKEN, 4.0)]
    assert curve(run, "seconds") == [(0, 5.0), (2.0, 4.0)]


# --- Groups at equal budgets ---


def test_the_common_budget_is_what_every_run_spent():
    short, long = group_runs(
        [
            simulated_run("a", curve=decaying(3.0, 60), flops_per_token=4),
            simulated_run("b", curve=decaying(3.0, 100), flops_per_token=2, start="2025-01-02"),
        ]
    )
    assert common_budget([short, long], "tokens") == 60_000
    assert common_budget([short, long], "flops") == 200_000
    assert losses_at(short, "tokens", 60_000) == {(1, 1): 3.0}
    assert losses_at(long, "flops", 200_000) == {(1, 1): 3.0}
    assert 3.0 < losses_at(short, "flops", 200_000)[1, 1] < 3.4


def test_a_costlier_arm_is_read_at_fewer_tokens_for_equal_flops():
    """The same curve over tokens, at twice the FLOPs each: read in mid-schedule, so descriptive."""
    plain = [simulated_run("a", s, curve=power_law(1, s)) for s in (1, 2, 3)]
    dear = [
        simulated_run("b", s, curve=power_law(1, s + s % 2), flops_per_token=2 * FLOPS_PER_TOKEN)
        for s in (1, 2, 3)
    ]
    row = compare([*plain, *dear], baseline="a").rows[1]
    reading = row.at_equal["flops"]
    assert reading.verdict is None
    assert reading.descriptive == "at 50 % and 100 % of the schedules"
    assert reading.difference == pytest.approx(math.log(2) + 0.02 / 3, abs=1e-6)
    assert row.at_equal["tokens"].losses == row.group.losses
    assert row.at_equal["tokens"].final
    assert row.at_equal["tokens"].verdict == row.verdict


def test_unknown_seconds_are_not_a_budget():
    runs = [simulated_run("a"), simulated_run("b")]
    for run in runs:
        for record in run.eval_steps:
            record["seconds"] = None
    assert set(compare(runs).axes) == {"tokens", "flops"}


def test_runs_without_an_evaluation_have_no_budget():
    findings = compare([simulated_run("a", curve=[(0, 5.0)]), simulated_run("b", curve=[(0, 5.1)])])
    assert findings.axes == ()


# --- Sound readings ---


def evaluated(arm: str, seeds: int, every: int, shift: float = 0.0, **settings) -> list:
    """Runs on one curve, 3 - log(step / 100), evaluated every so many steps."""
    at = [0, *range(every, 101, every)]
    return [
        simulated_run(
            arm,
            seed,
            curve=[(s, 9.0 if s == 0 else 3 - math.log(s / 100) + shift * seed) for s in at],
            **settings,
        )
        for seed in range(1, seeds + 1)
    ]


def longer(runs: list, steps: int) -> list:
    """The same runs, of a schedule of so many steps."""
    length = {"max_iters": steps, "warmup_iters": steps // 20}
    return [dataclasses.replace(run, config=run.config | length) for run in runs]


def test_a_reading_is_judged_at_an_evaluation_of_one_schedule():
    plain = evaluated("a", 4, 10, shift=0.01)
    arm = evaluated("b", 4, 10, shift=-0.01, model={"bias": False}, start="2025-01-02")
    reading = compare([*plain, *arm]).rows[1].at_equal["tokens"]
    assert (reading.verdict.word, reading.final) == ("better", True)


def test_readings_at_different_points_of_the_schedule_have_no_verdict():
    """Without a true difference: one run's learning rate has decayed, the other's has not."""
    plain = evaluated("a", 4, 10, shift=0.01)
    arm = longer(evaluated("b", 4, 10, shift=-0.01, model={"bias": False}, start="2025-01-02"), 200)
    reading = compare([*plain, *arm]).rows[1].at_equal["tokens"]
    assert reading.verdict is None
    assert reading.descriptive == "at 50 % and 100 % of the schedules"


def test_a_short_arm_does_not_change_the_budgets_of_others():
    plain = evaluated("a", 6, 10, shift=0.01)
    same = evaluated("b", 6, 10, shift=-0.02, model={"bias": False}, start="2025-01-02")
    short = [
        dataclasses.replace(run, eval_steps=run.eval_steps[:4])
        for run in evaluated("c", 6, 10, model={"ffn_type": "swiglu"}, start="2025-01-03")
    ]
    rows = compare([*plain, *same, *short]).rows
    assert [row.at_equal["tokens"].budget for row in rows] == [100_000, 100_000, 30_000]
    assert rows[1].at_equal["tokens"].verdict.word == "better"
    assert rows[2].verdict.reason.startswith("final losses are at unequal budgets")


def test_a_reading_between_evaluations_needs_a_large_difference():
    """Evaluated every 25 or 50 steps, with no true difference, where a third of a chord is read."""
    plain = evaluated("a", 4, 25, shift=0.001)
    coarse = evaluated("b", 4, 50, shift=-0.001, model={"bias": False}, start="2025-01-02")
    short = [dataclasses.replace(run, eval_steps=run.eval_steps[:-1]) for run in plain]
    reading = compare([*longer(short, 100), *coarse]).rows[1].at_equal["tokens"]
    assert reading.budget == 75_000
    assert reading.verdict is None
    assert reading.descriptive.startswith("between evaluations: interpolation error up to 0.")


def test_the_error_of_interpolation_is_bounded_by_convexity():
    """For a convex curve the bound covers the truth, and is better than the range of the chord."""
    at = [10, 20, 40, 80, 160]
    points = [(x, x**-0.3) for x in at]
    for budget in (25, 30, 35, 50, 70, 100, 150):
        error = loss_error(points, budget)
        off = loss_at(points, budget) - budget**-0.3
        assert 0 <= off <= error
        before, after = next(
            (y0, y1) for (x0, y0), (x1, y1) in pairwise(points) if x0 < budget < x1
        )
        assert error < before - after
    assert loss_error(points, 40) == 0.0


def test_outside_a_curve_the_error_of_interpolation_is_infinite():
    """As where a run's first evaluation comes after the last of another."""
    assert [loss_error([(20, 3.0), (40, 2.0)], budget) for budget in (10, 50)] == [math.inf] * 2
    early = [simulated_run("a", seed, 3.0 + seed / 100) for seed in (1, 2)]
    late = [
        simulated_run("b", seed, model={"bias": False}, curve=[(200, 2.0 + seed / 50)])
        for seed in (1, 2)
    ]
    reading = compare([*early, *late]).rows[1].at_equal["tokens"]
    assert (reading.losses, reading.verdict) == ({}, None)


# --- Speed-up ---


def arms(factor: float, noise: float = 0.02):
    """Baseline and an arm that needs `factor` times fewer tokens, three seeds each."""
    plain = [simulated_run("a", s, curve=power_law(1, s)) for s in (1, 2, 3)]
    arm = [
        simulated_run("b", s, curve=power_law(factor * (1 + noise * (s - 2)), s)) for s in (1, 2, 3)
    ]
    return group_runs(plain)[0], group_runs(arm)[0]


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, 2.0])
def test_the_speedup_is_the_ratio_of_budgets_for_the_same_loss(factor):
    plain, arm = arms(factor)
    log = speedup(arm, plain, "tokens")
    assert math.exp(log.value) == pytest.approx(factor, rel=0.01)
    half = log.half_width(0.05)
    assert math.exp(log.value - half) < factor < math.exp(log.value + half)
    assert (log.n, log.paired) == (3, True)
    assert speedup(plain, arm, "tokens").value == pytest.approx(-log.value)


def test_the_speedup_is_at_the_final_loss_of_the_baseline():
    plain, arm = arms(2.0)
    run = arm.counted[0]
    spent = cost_of(curve(run, "tokens"), plain.losses[run.seeds])
    assert spent == pytest.approx(100_000 / (2.0 * 0.98), rel=0.01)


def test_there_is_no_speedup_without_pairs_or_from_one():
    plain, arm = arms(2.0)
    strangers = [simulated_run("b", s, curve=power_law(2, s)) for s in (7, 8, 9)]
    assert speedup(group_runs(strangers)[0], plain, "tokens") is None
    halfway = [simulated_run("b", s, curve=power_law(2, s + s % 2)) for s in (2, 3, 4)]
    assert speedup(group_runs(halfway)[0], plain, "tokens").n == 2
    once = group_runs(arm.runs[:1])[0]
    assert speedup(once, plain, "tokens") is None
    assert speedup(plain, plain, "tokens") is None


def test_an_arm_that_learns_nothing_has_no_speedup():
    plain = group_runs(simulated_arm("a", [3.0, 3.01, 3.02]))[0]
    flat = [simulated_run("b", s, curve=[(0, 5.0), (100, 5.0 + s / 100)]) for s in (1, 2, 3)]
    assert speedup(group_runs(flat)[0], plain, "tokens") is None


def test_readings_and_speedups_wait_for_the_declared_seeds():
    """An arm of three seeds, of five that were declared, whose FLOPs differ by 0.3 %."""
    plain = simulated_arm("a", [3.00, 3.02, 3.01], start="2025-01-01")
    arm = simulated_arm("b", [2.95, 2.968, 2.962], model={"bias": False}, flops_per_token=1_003_000)
    found = compare([*plain, *arm], design=Design(seeds=5)).rows[1]
    for reading in found.at_equal.values():
        assert reading.verdict is None
        assert reading.descriptive == "3 of 5 declared seeds of arch-b have finished"
    assert not any(found.speedups.values())
    judged = compare([*plain, *arm], design=Design(seeds=3)).rows[1]
    assert judged.at_equal["tokens"].verdict.word == "better"
    assert judged.speedups["tokens"]
