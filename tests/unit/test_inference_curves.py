"""Fitted learning rates, means over seeds and documents, and ladders: known answers and others'."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from inference.crossed import crossed
from inference.estimates import PAIRED, Estimate
from inference.ladder import FADES, GROWS, HOLDS, Ladder, Rung, climb
from inference.quantiles import ALPHA, sidak_level, t_critical
from inference.tuning import HIGHEST, Noise, allowance, at_grid, fit, noise_of

CURVES = ((2.10, 2.03, 2.00, 2.02, 2.09), (2.08, 2.01, 1.985, 2.015, 2.9))


# Learning rates


def test_known_fits():
    fits = [fit(curve) for curve in CURVES]
    noise = noise_of(CURVES, fits)
    assert [own.optimum for own in fits] == pytest.approx([2.0636, 1.94], abs=5e-5)
    assert [own.coefficients[2] for own in fits] == pytest.approx([0.02357, 0.025], abs=5e-6)
    assert [allowance(own, noise) for own in fits] == pytest.approx([0.00124, 0.00147], abs=5e-6)
    assert [own.kept for own in fits] == [(0, 4), (0, 3)]
    assert not any(own.at_edge for own in fits)


def test_a_fit_is_numpys():
    """Coefficients, their covariance, and the band, by polyfit."""
    own = fit(CURVES[0])
    noise = noise_of(CURVES[:1], [own])
    coefficients, covariance = np.polyfit(range(5), CURVES[0], 2, cov=True)
    assert own.coefficients == pytest.approx(tuple(coefficients[::-1]))
    assert noise.variance * own.inverse == pytest.approx(covariance[::-1, ::-1])
    at = np.array([1.5**2, 1.5, 1.0])
    half = t_critical(noise.df, 0.05) * math.sqrt(at @ covariance @ at)
    assert own.band(1.5, noise) == pytest.approx(half)


def test_the_variance_of_the_optimum_is_that_of_the_delta_method():
    """Numerically, from the gradient of -b1 / 2c, for a curve with scatter of its own."""
    curve = (2.10, 2.028, 2.004, 2.017, 2.091)
    own = fit(curve)
    noise = noise_of([curve], [own])
    b1, c = own.coefficients[1:]
    gradient = np.array([0, -1 / (2 * c), b1 / (2 * c * c)])
    variance = noise.variance * gradient @ own.inverse @ gradient
    off = variance * t_critical(noise.df, 0.05) ** 2 + 0.05
    assert allowance(own, noise) == pytest.approx(c * off)


def test_a_constant_changes_nothing_and_a_mirror_mirrors():
    noise = noise_of(CURVES, [fit(curve) for curve in CURVES])
    for curve in CURVES:
        own = fit(curve)
        higher = fit([y + 3 for y in curve])
        mirrored = fit(curve[::-1])
        assert higher.optimum == pytest.approx(own.optimum)
        assert mirrored.optimum == pytest.approx(4 - own.optimum)
        assert allowance(mirrored, noise) == pytest.approx(allowance(own, noise))


@pytest.mark.parametrize(
    ("curve", "optimum", "kept", "at_edge"),
    [
        ((2.0, 2.1, 2.2), 0.0, (0, 2), True),  # still rising: the vertex lies outside
        ((None, 2.0, 2.09, 2.1), 1.0, (1, 3), False),  # never past the lowest to a failure
        ((2.5, 2.0, 2.6), 1.0, (1, 1), False),  # both neighbours lie too high
        ((2.1, 2.0, math.inf, 1.9, 2.0), 3.0, (3, 4), False),  # contiguous
        ((2.0,), 0.0, (0, 0), False),
    ],
)
def test_where_a_fit_stops(curve, optimum, kept, at_edge):
    own = fit(curve)
    assert own.optimum == pytest.approx(optimum)
    assert (own.kept, own.at_edge) == (kept, at_edge)


def test_only_two_points_on_either_side_are_fitted():
    own = fit([2.19, 2.15, 2.1, 2.03, 2.0, 2.02, 2.09, 2.15])
    assert own.kept == (2, 6)
    assert abs(own.optimum - own.lowest) <= 1


def test_without_a_minimum_the_allowance_is_the_range():
    peak = (2.0, 2.01, 2.0, 2.01, 2.0)
    noise = noise_of(CURVES, [fit(c) for c in CURVES])
    assert allowance(fit(peak), noise) == pytest.approx(max(peak) - min(peak))
    falling = (2.001, 2.0005, 2.0)
    assert allowance(fit(falling), noise) == pytest.approx(2 * math.sqrt(noise.variance))


def test_two_rates_are_too_few_for_an_allowance():
    """Optima half a step apart, curves of 0.05 nats per squared step: a difference by tuning alone,
    which the two losses do not show."""
    own = fit([2.0 + 0.05 * 0.5**2, 2.0 + 0.05 * 0.5**2])
    other = fit([2.0, 2.0 + 0.05])
    noise = noise_of([], [])
    assert [allowance(each, noise) for each in (own, other)] == [HIGHEST, HIGHEST]
    assert (own.at_edge, other.at_edge) == (True, True)
    assert allowance(fit([2.0]), noise) == 0  # no choice
    assert allowance(fit((2.0,)), Noise(0.0, 0)) == 0


@pytest.mark.parametrize(
    "curve", [(2.5, 2.0, 2.6), (2.5, 2.0, 2.01), (None, 2.0), (2.0, None, 2.0)]
)
def test_a_grid_that_is_too_coarse_says_little(curve):
    assert allowance(fit(curve), Noise(0.001**2, 8)) == pytest.approx(0.2)
    assert fit([None, math.inf, math.nan]) is None


def test_an_allowance_is_at_most_two_standard_deviations_of_the_scatter():
    """Of a curve so flat that its vertex is not known."""
    flat = (2.0, 1.999, 2.0, 2.001, 2.0)
    assert allowance(fit(flat), Noise(0.01**2, 8)) == pytest.approx(0.02)


def test_rates_between_grid_points_are_geometric():
    rates = [1e-3, 2e-3, 4e-3]
    assert [at_grid(rates, z) for z in (0, 1, 2)] == pytest.approx(rates)
    assert at_grid(rates, 0.5) == pytest.approx(math.sqrt(2) * 1e-3)
    assert at_grid(rates, 1.25) == pytest.approx(2e-3 * 2**0.25)
    assert at_grid([3e-4], 0.0) == 3e-4


# Seeds and documents


def drawn(rng, seeds: int, documents: int, sd: tuple[float, float, float]) -> np.ndarray:
    of_seeds, of_documents, of_both = sd
    return (
        0.1
        + of_seeds * rng.normal(size=(seeds, 1))
        + of_documents * rng.normal(size=(1, documents))
        + of_both * rng.normal(size=(seeds, documents))
    )


def test_the_variance_over_seeds_and_documents_is_unbiased():
    """Over 2,000 draws of known components the mean of V is the true variance of the mean."""
    rng, sd, n, w = np.random.default_rng(0), (0.3, 1.0, 2.0), 5, 40
    found = [crossed(drawn(rng, n, w, sd)).both.error ** 2 for _ in range(2000)]
    true = sd[0] ** 2 / n + sd[1] ** 2 / w + sd[2] ** 2 / (n * w)
    assert np.mean(found) == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize(("ratio", "seeds_alone"), [(1, 0.88), (2, 0.81)])
def test_known_coverage_of_new_text(ratio, seeds_alone):
    """n = 5, 1,000 trials; the variance of the mean is `ratio` times as large from text as from
    seeds."""
    rng, n, w, trials = np.random.default_rng(1), 5, 60, 1000
    sd = (1.0, math.sqrt(ratio * w / n), 0.5)
    hits = {"rows": 0, "both": 0}
    for _ in range(trials):
        found = crossed(drawn(rng, n, w, sd))
        for name in hits:
            own = getattr(found, name)
            hits[name] += abs(own.value - 0.1) <= own.half_width(0.05)
    assert hits["rows"] / trials == pytest.approx(seeds_alone, abs=0.035)
    assert hits["both"] / trials == pytest.approx(0.95, abs=0.02)


def test_columns_that_do_not_vary_leave_the_rows_alone():
    values = np.array([[1.0] * 8, [2.0] * 8, [4.0] * 8])
    found = crossed(values)
    assert found.both.error == pytest.approx(found.rows.error)
    assert not found.columns_matter
    assert crossed(np.ones((3, 4))) is None


def test_a_better_known_error_of_rows_is_used():
    values = drawn(np.random.default_rng(2), 4, 30, (0.3, 0.0, 0.1))
    known = Estimate(float(values.mean()), 0.5, 8, 4, PAIRED)
    assert crossed(values, known).both.error == pytest.approx(0.5, rel=0.05)


# Blocks of one text


def alike(rng, shape: tuple[int, ...], rho: float) -> np.ndarray:
    """Normal numbers of variance 1 that follow an AR(1) along the last axis."""
    found = rng.normal(size=shape)
    for k in range(1, shape[-1]):
        found[..., k] = rho * found[..., k - 1] + math.sqrt(1 - rho * rho) * found[..., k]
    return found


def text_alike(rng, seeds: int, blocks: int, rho: float, ratio: float) -> np.ndarray:
    """The variance of the mean is `ratio` times as large from text as from seeds."""
    lags = np.arange(1, blocks)
    of_mean = (1 + 2 * ((1 - lags / blocks) @ rho**lags)) / blocks
    text = math.sqrt(ratio / seeds / of_mean) * alike(rng, (1, blocks), rho)
    return 0.1 + rng.normal(size=(seeds, 1)) + text + 0.5 * alike(rng, (seeds, blocks), rho)


@pytest.mark.parametrize(
    ("blocks", "rho", "independent"),
    [(27, 0.0, 0.95), (27, 0.3, 0.87), (27, 0.5, 0.78), (250, 0.5, 0.79)],
)
def test_known_coverage_where_neighbours_are_alike(blocks, rho, independent):
    """5 seeds, ten times as much variance from text, 600 trials."""
    rng, trials, hits = np.random.default_rng(4), 600, np.zeros(2)
    for _ in range(trials):
        values = text_alike(rng, 5, blocks, rho, ratio=10)
        both = [crossed(values, in_order=own).both for own in (True, False)]
        hits += [abs(own.value - 0.1) <= own.half_width(0.05) for own in both]
    assert hits[0] / trials == pytest.approx(0.945, abs=0.025)
    assert hits[1] / trials == pytest.approx(independent, abs=0.04)


def test_the_variance_of_text_is_nearly_unbiased_where_neighbours_are_alike():
    """Of 500 draws with 250 blocks; seeds have an effect of their own on each block."""
    rng, rho, n, w = np.random.default_rng(5), 0.5, 4, 250
    of_mean = (1 + rho) / (1 - rho) / w  # variance of the mean of an AR(1), up to 1 %
    known = Estimate(0.1, 0.01, n - 1, n, PAIRED)
    found = []
    for _ in range(500):
        values = alike(rng, (1, w), rho) + 0.5 * alike(rng, (n, w), rho)
        found.append(crossed(values, known, in_order=True).both.error ** 2)
    assert np.mean(found) == pytest.approx(of_mean, rel=0.08)


@pytest.mark.parametrize(
    ("blocks", "df"), [(2, 1), (20, 2), (21, 3), (27, 3), (60, 6), (250, 15), (1000, 40)]
)
def test_degrees_of_freedom_of_columns_in_an_order(blocks, df):
    values = np.random.default_rng(6).normal(size=(3, blocks))
    assert crossed(values, in_order=True).columns.df == df
    assert crossed(values).columns.df == blocks - 1


def test_all_cosines_give_the_variance_of_independent_columns(monkeypatch):
    """The cosines below the constant one are a basis of what varies."""
    values = drawn(np.random.default_rng(7), 4, 9, (0.3, 1.0, 2.0))
    found = crossed(values).both
    angles = np.outer(np.arange(9) + 0.5, np.arange(1, 9)) / 9
    monkeypatch.setattr(
        "inference.crossed._cosines", lambda columns: math.sqrt(2 / 9) * np.cos(np.pi * angles)
    )
    again = crossed(values, in_order=True).both
    assert again.error == pytest.approx(found.error, rel=1e-12)
    assert again.df == pytest.approx(found.df, rel=1e-12)


def test_known_numbers_of_independent_columns():
    """A grid of seeds crossed with orders of the data."""
    values = drawn(np.random.default_rng(8), 3, 4, (0.3, 0.2, 0.1))
    both = crossed(values).both
    known = (-0.47712096660431863, 0.11227855604501119, 3.0574486793240743)
    assert (both.value, both.error, both.df) == pytest.approx(known, rel=1e-13)


def test_columns_matter_by_the_variance_that_allows_for_neighbours():
    """A slow wave moves the mean much more than independent columns of its variance would."""
    rng = np.random.default_rng(9)
    wave = 0.3 * np.cos(np.pi * (np.arange(60) + 0.5) / 60)
    values = np.array([[-0.4], [0.0], [0.4]]) + wave + 0.001 * rng.normal(size=(3, 60))
    assert not crossed(values).columns_matter
    assert crossed(values, in_order=True).columns_matter


# Ladders


def curve(compute: float) -> float:
    return 1.7 + 4.0 * (compute / 1e15) ** -0.1


def ladder(multiplier: float, exponent: float, sd: float = 0.0, rungs: int = 4, seed: int = 0):
    """An arm that needs multiplier x (C / middle)^exponent times less compute."""
    rng = np.random.default_rng(seed)
    compute = 1e15 * np.geomspace(1, 4.0 ** (rungs - 1), rungs)
    middle = np.exp(np.log(compute).mean())
    return [
        Rung(
            c,
            [curve(c) + e for e in sd * rng.normal(size=3)],
            [curve(c * multiplier * (c / middle) ** exponent) + e for e in sd * rng.normal(size=3)],
        )
        for c in compute
    ]


@pytest.mark.parametrize("multiplier", [0.7, 1.35, 2.0])
@pytest.mark.parametrize("exponent", [-0.1, 0.0, 0.1])
def test_exact_power_laws_are_found(multiplier, exponent):
    found = climb(ladder(multiplier, exponent))
    assert found.exponent == pytest.approx(exponent, abs=0.012)
    middle = math.exp(np.mean(np.log(found.multipliers)))
    assert middle == pytest.approx(multiplier, rel=0.02)


def test_an_arm_that_is_the_baseline_has_a_multiplier_of_1():
    rungs = [Rung(r.compute, r.baseline, r.baseline) for r in ladder(1.0, 0.0, sd=0.01)]
    found = climb(rungs)
    assert found.multipliers == pytest.approx([1.0] * 4)
    assert found.verdict == HOLDS


def test_swapping_the_arm_inverts_the_multiplier():
    rungs = ladder(1.35, 0.05, sd=0.005)
    swapped = [Rung(r.compute, r.arm, r.baseline) for r in rungs]
    one, other = climb(rungs), climb(swapped)
    assert np.log(other.multipliers) == pytest.approx(-np.log(one.multipliers), rel=0.1)


@pytest.mark.parametrize("mistuned", [(1, 1, 1, 1), (0, 0, 0, 1), (1, 0, 0, 0)])
def test_allowances_cover_what_tuning_missed(mistuned):
    """Losses of an arm that are 0.01 too high at some rungs; without allowances the ladder is
    sure of a wrong exponent."""
    right = climb(ladder(1.35, 0.0, sd=0.0005))
    missed = [
        dataclasses.replace(rung, arm=[loss + 0.01 * off for loss in rung.arm])
        for rung, off in zip(ladder(1.35, 0.0, sd=0.0005), mistuned, strict=True)
    ]
    allowed = climb([dataclasses.replace(rung, arm_allowance=0.01) for rung in missed])
    for (low, high), multiplier in zip(allowed.intervals, right.multipliers, strict=True):
        assert low <= multiplier <= high
    low, high = allowed.exponent_interval
    assert low <= right.exponent <= high
    assert climb(missed).intervals[mistuned.index(1)][1] < right.multipliers[mistuned.index(1)]
    assert [own[0] for own in allowed.intervals] == pytest.approx(
        [own[0] for own in climb(missed).intervals]
    )


@pytest.mark.parametrize("mistuned", [(1, 0, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (1, 1, 1)])
def test_allowances_cover_a_baseline_that_tuning_missed(mistuned):
    """Losses of the baseline that are 0.03 too high at some rungs bend its curve, which all
    multipliers are read along; without allowances the ladder is sure of wrong ones."""
    missed = [
        dataclasses.replace(
            rung,
            baseline=[loss + 0.03 * off for loss in rung.baseline],
            baseline_allowance=0.03 * off,
        )
        for rung, off in zip(ladder(2.5, 0.0, sd=0.0005, rungs=3), mistuned, strict=True)
    ]
    allowed = climb(missed)
    for low, high in allowed.intervals:
        assert low <= 2.5 <= high
    low, high = allowed.exponent_interval
    assert low <= 0.0 <= high
    without = climb([dataclasses.replace(rung, baseline_allowance=0.0) for rung in missed])
    assert not all(low <= 2.5 <= high for low, high in without.intervals)


def test_known_coverage():
    """m = 1.35, beta = 0.1, sd 0.01, 4 rungs of 3 seeds: coverage .94 or more, 600 trials."""
    hits = exponents = 0
    for seed in range(600):
        found = climb(ladder(1.35, 0.1, sd=0.01, seed=seed))
        low, high = found.exponent_interval
        exponents += low <= 0.1 <= high
        compute = 4.0 ** (np.arange(4) - 1.5)
        true = 1.35 * compute**0.1
        hits += np.mean([lo <= m <= hi for m, (lo, hi) in zip(true, found.intervals, strict=True)])
    assert hits / 600 > 0.94
    assert exponents / 600 > 0.91


def test_a_rung_that_is_noisier_than_the_others_has_its_own_noise():
    """Runs at the first rung scatter ten times as much: its multiplier is known badly, and those of
    the others as well as before. Of 100 trials."""
    hits, width = np.zeros(3), np.zeros(3)
    for seed in range(100):
        rungs = ladder(1.35, 0.0, sd=0.002, rungs=3, seed=seed)
        plain = climb(rungs)
        mean = np.mean(rungs[0].arm)
        far = curve(1.35 * rungs[0].compute)
        noisy = [far + 10 * (loss - far) for loss in rungs[0].arm]
        assert np.mean(noisy) - far == pytest.approx(10 * (mean - far))
        found = climb([dataclasses.replace(rungs[0], arm=noisy), *rungs[1:]])
        hits += [low <= 1.35 <= high for low, high in found.intervals]
        width += [
            np.log(own[1] / own[0]) / np.log(before[1] / before[0])
            for own, before in zip(found.intervals, plain.intervals, strict=True)
        ]
    assert min(hits) >= 85  # pooled over the rungs, 75
    assert width[0] / 100 > 4
    assert max(width[1:]) / 100 < 2


@pytest.mark.parametrize("ratio", [0.8, 2.0])
def test_what_the_arm_spends_counts(ratio):
    """An arm that learns like the baseline from each FLOP, at other FLOPs, has a multiplier of 1;
    one that has the baseline's losses at twice the FLOPs has 1/2."""
    alike = [
        dataclasses.replace(r, arm=[curve(ratio * r.compute)] * 3, arm_compute=ratio * r.compute)
        for r in ladder(1.0, 0.0)
    ]
    assert climb(alike).multipliers == pytest.approx([1.0] * 4, rel=0.005)
    same = [dataclasses.replace(r, arm_compute=ratio * r.compute) for r in ladder(1.0, 0.0)]
    assert climb(same).multipliers == pytest.approx([1 / ratio] * 4)


def test_compute_that_differs_at_one_rung_changes_its_multiplier_only():
    rungs = ladder(1.35, 0.0, sd=0.003)
    other = [dataclasses.replace(rungs[0], arm_compute=1.5 * rungs[0].compute), *rungs[1:]]
    before, after = climb(rungs).multipliers, climb(other).multipliers
    assert after == pytest.approx([before[0] / 1.5, *before[1:]])


def test_the_exponents_of_several_arms_hold_together():
    """The half-width from chance is the critical value at Sidak's level times the same error; the
    intervals of the multipliers do not change."""
    rungs = ladder(1.0, 0.0, sd=0.003)
    one, eight = climb(rungs), climb(rungs, family=8)
    assert eight.intervals == one.intervals
    assert eight.exponent == one.exponent
    halves = [(high - low) / 2 for low, high in (one.exponent_interval, eight.exponent_interval)]
    critical = [t_critical(8, level) for level in (ALPHA, sidak_level(ALPHA, 8))]
    assert halves[1] / halves[0] >= 0.99 * critical[1] / critical[0]


def trends(offset, scale, power, rungs, multiplier, trials, shared=0.8) -> tuple[int, int, float]:
    """How often ladders of 5 seeds, sd 0.005, grow or fade and hold at a constant multiplier; and
    the share of multipliers that their intervals cover."""
    rng = np.random.default_rng(0)
    compute = 4.0 ** np.arange(rungs)
    words, covered = [], []
    for _ in range(trials):
        common = math.sqrt(shared) * rng.normal(size=(rungs, 5))
        losses = [
            offset
            + scale * (m * compute[:, None]) ** -power
            + 0.005 * (common + math.sqrt(1 - shared) * rng.normal(size=(rungs, 5)))
            for m in (1.0, multiplier)
        ]
        found = climb([Rung(c, b, a) for c, b, a in zip(compute, *losses, strict=True)])
        words.append(found.verdict)
        covered += [low <= multiplier <= high for low, high in found.intervals]
    return words.count(GROWS) + words.count(FADES), words.count(HOLDS), float(np.mean(covered))


@pytest.mark.parametrize("multiplier", [0.5, 2.5])
@pytest.mark.parametrize(
    ("offset", "scale", "power", "rungs"),
    [(1.5, 3.0, 0.2, 5), (1.5, 2.5, 0.3, 4), (0.0, 3.0, 0.05, 4), (2.0, 2.0, 0.3, 3)],
)
def test_a_constant_multiplier_neither_grows_nor_fades(offset, scale, power, rungs, multiplier):
    """Steep and bent curves: a parabola in L said that the second grows in every trial."""
    wrong, _, covered = trends(offset, scale, power, rungs, multiplier, trials=60)
    assert wrong <= 3
    assert covered >= 0.93


def test_a_steep_curve_is_known_well_enough_to_hold():
    assert trends(1.5, 2.5, 0.3, 4, 2.5, trials=60)[1] >= 57


def test_what_lies_within_the_margin_holds_whatever_it_excludes():
    def verdict(low: float, high: float) -> str:
        return Ladder((1.0,) * 3, ((0.9, 1.1),) * 3, (low + high) / 2, (low, high)).verdict

    assert verdict(0.01, 0.03) == verdict(-0.05, -0.01) == verdict(-0.05, 0.05) == HOLDS
    assert verdict(0.01, 0.06) == GROWS
    assert verdict(-0.06, -0.01) == FADES
    assert verdict(-0.06, 0.01) == "inconclusive"


def test_scatter_about_the_curve_beyond_chance_widens_the_intervals():
    """A rung at which both arms are 0.03 worse, with little noise between seeds."""
    plain = ladder(1.35, 0.0, sd=0.001)
    off = [
        dataclasses.replace(
            r,
            **{s: [loss + 0.03 * (i == 1) for loss in getattr(r, s)] for s in ("baseline", "arm")},
        )
        for i, r in enumerate(plain)
    ]
    widths = [high - low for low, high in (climb(own).exponent_interval for own in (plain, off))]
    assert widths[1] > 3 * widths[0]


def test_a_baseline_that_hardly_learns_says_nothing():
    """Its losses fall by far less than chance: no multiplier is known, and nothing overflows."""
    noise = np.array([0.03, -0.01, -0.02])
    rungs = [
        Rung(10.0**i, list(3 - 1e-5 * i + noise), list(3.0 - noise - 2e-5 * i)) for i in range(3)
    ]
    found = climb(rungs)
    assert found.verdict == "inconclusive"
    assert found.better == found.worse == 0
    flat = [dataclasses.replace(rung, baseline=rungs[0].baseline) for rung in rungs]
    assert climb(flat) is None


def test_words():
    assert climb(ladder(1.35, 0.15, sd=0.003)).verdict == GROWS
    assert climb(ladder(1.35, -0.15, sd=0.003)).verdict == FADES
    assert climb(ladder(1.35, 0.0, sd=0.003)).verdict == HOLDS
    assert climb(ladder(1.35, 0.0, sd=0.2)).verdict == "inconclusive"
