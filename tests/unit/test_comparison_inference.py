"""Intervals, p values, corrections and plans, against scipy.stats, tables and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from comparison.findings import compare
from comparison.inference import ALPHA, Estimate, contrast, deviation, holm
from comparison.verdicts import judge
from tests.simulated import simulated_arm

BASE = {1: 3.01, 2: 2.98, 3: 3.05, 4: 2.97, 5: 3.00}
ARM = {1: 2.97, 2: 2.99, 3: 2.96, 4: 2.93, 5: 2.95}


def values(sample):
    return np.array(list(sample.values()))


# --- Differences ---


def test_paired_seeds_are_judged_by_the_paired_t_test():
    estimate = contrast((-1, 1), (BASE, ARM))
    expected = stats.ttest_rel(values(ARM), values(BASE))
    interval = expected.confidence_interval(0.95)
    assert (estimate.paired, estimate.df, estimate.seeds) == (True, 4, 5)
    assert estimate.value == pytest.approx(np.mean(values(ARM) - values(BASE)))
    assert estimate.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert estimate.interval() == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_unpaired_seeds_are_judged_by_welchs_t_test():
    arm = {seed + 3: loss for seed, loss in list(ARM.items())[:4]}
    estimate = contrast((-1, 1), (BASE, arm))
    expected = stats.ttest_ind(values(arm), values(BASE), equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (estimate.paired, estimate.seeds) == (False, 4)
    assert estimate.df == pytest.approx(expected.df)
    assert estimate.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert estimate.interval() == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_a_seed_that_one_arm_lacks_does_not_unpair_the_others():
    fewer = {seed: loss for seed, loss in ARM.items() if seed != 3}
    estimate = contrast((-1, 1), (BASE, fewer))
    without = {seed: loss for seed, loss in BASE.items() if seed != 3}
    assert estimate == contrast((-1, 1), (without, fewer))
    assert (estimate.paired, estimate.df) == (True, 3)


def test_the_order_of_seeds_does_not_matter():
    backwards = dict(reversed(ARM.items()))
    assert contrast((-1, 1), (BASE, backwards)).p_value == pytest.approx(
        contrast((-1, 1), (BASE, ARM)).p_value
    )


@pytest.mark.parametrize("arm", [{}, {1: 2.9}, {1: 2.9, 2: 2.9, 3: 2.9}])
def test_no_noise_no_judgement(arm):
    assert contrast((-1, 1), (BASE, arm)) is None
    assert contrast((-1, 1), (arm, BASE)) is None


def test_runs_that_are_equal_seed_by_seed_do_not_differ():
    estimate = contrast((-1, 1), (BASE, dict(BASE)))
    assert (estimate.p_value, estimate.interval()) == (1.0, (0.0, 0.0))


def test_the_deviation_is_that_of_a_sample():
    assert deviation([1.0, 2.0, 4.0]) == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert deviation([1.0]) is None


# --- Holm ---


def test_holm_steps_down_from_the_smallest_p():
    # Worked by hand: 4 x 0.01, 3 x 0.015, max(0.045, 2 x 0.02) and 1 x 0.6.
    assert holm([0.6, 0.01, 0.02, 0.015]) == pytest.approx([0.6, 0.04, 0.045, 0.045])
    assert holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.8, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


# --- Plans ---


def of_size(effect: float, seeds: int, paired: bool) -> Estimate:
    """What a pilot of so many seeds knows, where the sd of a difference (paired) or of a run is 1
    and the difference is `effect`."""
    variance = 1 / seeds if paired else 2 / seeds
    df = seeds - 1 if paired else 2 * (seeds - 1)
    return Estimate(effect, variance**0.5, df, seeds, paired)


@pytest.mark.parametrize(
    ("effect", "paired", "needed"),
    # Textbook sizes for power 0.8 at a two-sided 0.05 (Cohen 1988, table 2.4.1; G*Power).
    [(0.5, True, 34), (1.0, True, 10), (0.5, False, 64), (0.8, False, 26), (1.0, False, 17)],
)
def test_the_seeds_needed_are_those_of_the_tables(effect, paired, needed):
    assert of_size(effect, 6, paired).seeds_needed(effect, 0.05) == needed


def test_what_is_detectable_is_found_with_the_power_planned():
    estimate = of_size(0.3, 5, paired=True)
    smallest = estimate.detectable(0.05)
    assert estimate.power(smallest, 5, 0.05) == pytest.approx(0.8, abs=2e-3)
    found = stats.ttest_1samp(
        np.random.default_rng(0).normal(smallest, 1, (5, 40_000)), 0
    ).pvalue < 0.05  # fmt: skip
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_a_plan_beyond_all_measure_is_none():
    estimate = of_size(0.3, 5, paired=True)
    assert estimate.seeds_needed(1e-6, 0.05) is None
    assert estimate.seeds_needed(0.0, 0.05) is None
    assert estimate.seeds_needed(1e9, 0.05) == 2
    assert estimate.power(1e9, 5, 0.05) == 1


# --- Calibration: the verdicts on simulated arms ---

ARMS = 5
TRIALS = 2000


def experiments(effect: float, seeds: int, *, paired: bool, sd: float = 0.01, shared: float = 0.5):
    """Baseline and arms of normal losses, TRIALS times. The first arm differs by `effect`; where
    seeds are paired, `shared` of the variance is the seed's own."""
    generator = np.random.default_rng([seeds, paired])
    common = generator.normal(0, sd * shared**0.5, (TRIALS, 1, seeds)) if paired else 0.0
    own_sd = sd * (1 - shared) ** 0.5 if paired else sd
    losses = 3 + common + generator.normal(0, own_sd, (TRIALS, ARMS + 1, seeds))
    losses[:, 1] += effect
    for trial in losses.tolist():
        groups = [
            {seed if paired else (arm, seed): loss for seed, loss in enumerate(row)}
            for arm, row in enumerate(trial)
        ]
        yield judge(groups[0], groups[1:])


def claims_a_difference(verdict) -> bool:
    return verdict.verdict in ("better", "worse")


@pytest.mark.parametrize("paired", [True, False])
def test_where_nothing_differs_at_most_5_percent_of_families_claim_it(paired):
    false = [
        sum(any(map(claims_a_difference, verdicts)) for verdicts in trials)
        for trials in (experiments(0, seeds, paired=paired) for seeds in range(3, 11))
    ]
    assert sum(false) <= ALPHA * TRIALS * len(false)
    # Of one number of seeds 2,000 trials scatter: a rate of exactly 5 % passes 125 once in 200.
    assert max(false) <= stats.binom.isf(0.005, TRIALS, ALPHA)


def power_of_paired_t(difference: float, seeds: int, alpha: float) -> float:
    """Of a difference in units of the sd of a pair's difference."""
    df = seeds - 1
    return stats.nct.sf(stats.t.isf(alpha / 2, df), df, difference * seeds**0.5)


def power_of_welch_t(difference: float, seeds: int, alpha: float) -> float:
    """Of a difference in units of the sd of a run, the same in both groups.

    The share of one group in the sum of both variances is Beta distributed and independent of that
    sum: given the share, the statistic is a noncentral t of 2 (n - 1) degrees of freedom, judged by
    the quantile at Welch's.
    """
    df = seeds - 1
    share = stats.beta(df / 2, df / 2).ppf((np.arange(2000) + 0.5) / 2000)
    critical = stats.t.isf(alpha / 2, df / (share**2 + (1 - share) ** 2))
    return stats.nct.sf(critical, 2 * df, difference / (2 / seeds) ** 0.5).mean()


@pytest.mark.parametrize(
    ("paired", "theory", "in_fairness_md"),
    # Where seeds are paired and share half the variance, a pair's difference has the sd of a run.
    [(True, power_of_paired_t, 0.55), (False, power_of_welch_t, 0.42)],
)
def test_a_difference_of_2_sd_is_found_as_often_as_theory_says(paired, theory, in_fairness_md):
    """Holm's test of five arms is at least as powerful as each at a fifth of the level."""
    expected = theory(2, 5, ALPHA / ARMS)
    assert round(expected, 2) == in_fairness_md
    trials = experiments(0.02, 5, paired=paired, sd=0.01)
    found = sum(verdicts[0].verdict == "worse" for verdicts in trials) / TRIALS
    assert found >= expected - 2 * (expected * (1 - expected) / TRIALS) ** 0.5


def test_equal_is_seldom_said_of_what_differs_by_more():
    """Whatever the margin, since it is the interval that has to hold."""
    sd, wrong = 0.01, 0
    for verdicts in experiments(1.2 * sd, 10, paired=True, shared=0.9):
        verdict = verdicts[0]
        wrong += verdict.verdict == "equal" and verdict.margin < 1.2 * sd
    assert wrong <= ALPHA / ARMS * TRIALS


def test_equal_is_said_where_seeds_suffice():
    trials = experiments(0, 10, paired=True, shared=0.9)
    assert sum(verdicts[0].verdict == "equal" for verdicts in trials) > 0.9 * TRIALS


def test_whole_comparisons_of_runs_are_calibrated_too():
    """The way from runs to verdicts adds nothing to chance."""
    generator = np.random.default_rng(3)
    false, trials = 0, 100
    for trial in range(trials):
        runs = [
            run
            for arm, losses in enumerate(generator.normal(3, 0.01, (ARMS + 1, 3 + trial % 8)))
            for run in simulated_arm(str(arm), losses.tolist(), start=f"2025-01-{arm + 1:02}")
        ]
        found = compare(runs)
        direct = judge(found.rows[0].group.losses, [r.group.losses for r in found.rows[1:]])
        assert [row.verdict for row in found.rows[1:]] == direct
        false += any(claims_a_difference(row.verdict) for row in found.rows)
    assert false <= 11  # of 100 at 5 %: more has a chance of 0.4 %


def test_verdicts_do_not_depend_on_the_order_of_arms():
    arms = [ARM, {seed: 2 * loss - 2.95 for seed, loss in BASE.items()}]
    assert judge(BASE, arms[::-1]) == judge(BASE, arms)[::-1]
