"""Error rates and power of the verdicts, from simulations; writes docs/calibration.md.

python scripts/calibration.py
python scripts/calibration.py --trials=200 --report=/tmp/page.md

Simulates experiments with known true differences and evaluates them with the same functions as
real runs. Except for one real sweep, all numbers on the page come from these simulations.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparison.new_text import with_text
from comparison.tables import markdown_table
from inference.crossed import crossed
from inference.ladder import FADES, GROWS, Rung, climb
from inference.looks import Look, Standing, scheduled_looks, take_looks
from inference.rules import ConfidenceSequence, DeclaredSeeds, Rule
from inference.tuning import allowance, fit, noise_of
from inference.verdicts import BETTER, WORSE, Results, Verdict, judge
from scripts.claims import CASES as CLAIMS
from scripts.claims import claimed
from scripts.runs import PASSED, PROJECT, run_script

REPORT = PROJECT / "docs" / "calibration.md"
TRIALS = 2000
SD = 0.01
"""Standard deviation of a run, nats."""

SEEDS = (3, 4, 5, 10)

STUDY = (0.008, 0.014, 0.018, 0.2, 0.08, 0.015, 0.007, 0.02)
"""Standard deviations of the arms of a real study, which differ by a factor of 30."""

Draw = Callable[[np.random.Generator, int, int], np.ndarray]
"""Losses (arms + 1, seeds) without a true difference; the baseline first."""


# Losses


def paired(noise: np.ndarray, common: np.ndarray, rho: float, sds: np.ndarray) -> np.ndarray:
    """Losses with a correlation of rho between arms over seeds."""
    return sds[:, None] * (np.sqrt(rho) * common + np.sqrt(1 - rho) * noise)


def normal(
    rho: float = 0.5, sds: Callable[[np.random.Generator, int], np.ndarray] | None = None
) -> Draw:
    def draw(rng: np.random.Generator, arms: int, seeds: int) -> np.ndarray:
        each = np.full(arms + 1, SD) if sds is None else sds(rng, arms)
        noise = rng.normal(size=(arms + 1, seeds))
        return paired(noise, rng.normal(size=seeds), rho, each)

    return draw


def with_noise(noise: Callable[..., np.ndarray]) -> Draw:
    def draw(rng: np.random.Generator, arms: int, seeds: int) -> np.ndarray:
        own = noise(rng, (arms + 1, seeds))
        return paired(own, noise(rng, seeds), 0.5, np.full(arms + 1, SD))

    return draw


def mild(rng: np.random.Generator, arms: int) -> np.ndarray:
    return SD * rng.uniform(0.7, 1.4, size=arms + 1)


def study(rng: np.random.Generator, arms: int) -> np.ndarray:
    return np.array([STUDY[0], *(STUDY[i % len(STUDY)] for i in range(arms))])


def noisy_baseline(rng: np.random.Generator, arms: int) -> np.ndarray:
    return SD * np.array([5.0, *np.ones(arms)])


def half_noisy(rng: np.random.Generator, arms: int) -> np.ndarray:
    return SD * np.array([1.0, *np.where(np.arange(arms) % 2, 3.0, 1.0)])


def lognormal(rng: np.random.Generator, arms: int) -> np.ndarray:
    return SD * np.exp(rng.normal(size=arms + 1))


def skewed(rng: np.random.Generator, size: object) -> np.ndarray:
    return rng.exponential(size=size) - 1


def contaminated(rng: np.random.Generator, size: object) -> np.ndarray:
    """Noise that is ten times as large in one run out of twenty."""
    return rng.normal(size=size) * np.where(rng.random(size) < 0.05, 10.0, 1.0)


def rounded(rng: np.random.Generator, arms: int, seeds: int) -> np.ndarray:
    """Losses rounded to multiples of a standard deviation, which take few values."""
    return np.round(normal()(rng, arms, seeds) / SD) * SD


def near_copies(rng: np.random.Generator, arms: int, seeds: int) -> np.ndarray:
    return normal(rho=0.99)(rng, arms, seeds)


def student(df: int) -> Callable[..., np.ndarray]:
    return lambda rng, size: rng.standard_t(df, size=size)


# Error rates and power


@dataclasses.dataclass(frozen=True)
class Case:
    """A noise distribution of runs.

    Attributes:
        losses: Draws the losses of an experiment without a true difference.
        unequal: Whether a third of the runs of every second arm are missing.
        failing: Whether the run with the highest loss of an arm fails half of the time.
    """

    name: str
    losses: Draw
    unequal: bool = False
    failing: bool = False

    def results(self, rng: np.random.Generator, losses: np.ndarray) -> list[Results]:
        return [self._arm(rng, own, index) for index, own in enumerate(losses)]

    def _arm(self, rng: np.random.Generator, losses: np.ndarray, index: int) -> Results:
        known = dict(enumerate(losses.tolist()))
        if self.unequal and index % 2:
            known = {seed: loss for seed, loss in known.items() if seed % 3 or seed == 0}
        if self.failing and rng.random() < 0.5:
            del known[max(known, key=known.__getitem__)]
            return Results(known, failures=1)
        return Results(known)


CASES = (
    Case("equal variances", normal()),
    Case("mild spread, 0.7 to 1.4", normal(sds=mild)),
    Case("a study's spread, 0.007 to 0.2", normal(sds=study)),
    Case("uncorrelated pairs", normal(rho=0.0)),
    Case("correlation 0.9", normal(rho=0.9)),
    Case("near-copies, correlation 0.99", near_copies),
    Case("baseline 5 times as noisy", normal(sds=noisy_baseline)),
    Case("half of the arms 3 times as noisy", normal(sds=half_noisy)),
    Case("lognormal standard deviations", normal(sds=lognormal)),
    Case("Student's t, 4 df", with_noise(student(4))),
    Case("Student's t, 3 df", with_noise(student(3))),
    Case("skewed (exponential)", with_noise(skewed)),
    Case("one run in 20 with 10 times the noise", with_noise(contaminated)),
    Case("losses rounded to one sd", rounded),
    Case("a third of the runs missing", normal(), unequal=True),
    Case("high-loss runs fail", normal(), failing=True),
)


def rates(case: Case, arms: int, seeds: int, trials: int, seed: int = 0) -> tuple[float, float]:
    """The rate of any false verdict if no arm differs, and the rate at which an arm that is worse
    by two standard deviations of a run is detected."""
    rng = np.random.default_rng([seed, arms, seeds])
    false = found = 0
    for _ in range(trials):
        losses = case.losses(rng, arms, seeds)
        base, *others = case.results(rng, losses)
        false += any(v.word in (BETTER, WORSE) for v in judge(base, others))
        first = {own: loss + 2 * SD for own, loss in others[0].losses.items()}
        shifted = dataclasses.replace(others[0], losses=first)
        found += judge(base, [shifted, *others[1:]])[0].word == WORSE
    return false / trials, found / trials


def error_rows(trials: int) -> Iterator[Sequence[str]]:
    for case in CASES:
        cells = [rates(case, arms, n, trials) for arms in (4, 8) for n in SEEDS]
        yield (case.name, *(f"{error:.3f} / {power:.2f}" for error, power in cells))


# Looks


def look_rows(trials: int) -> Iterator[Sequence[str]]:
    for arms in (1, 4, 8):
        yield (
            str(arms),
            f"{scheduled_error(arms, trials):.3f}",
            f"{peeked(arms, ConfidenceSequence(arms), trials):.3f}",
            f"{peeked(arms, DeclaredSeeds(arms), trials):.3f}",
        )


def scheduled_error(arms: int, trials: int) -> float:
    """The rate of any false verdict at looks at 5, 10 and 20 seeds if no arm differs."""
    rng, schedule = np.random.default_rng([1, arms]), scheduled_looks(20)
    false = 0
    for _ in range(trials):
        standings = _until_sure(normal()(rng, arms, 20), schedule)
        false += any(own.verdict.word in (BETTER, WORSE) for own in standings)
    return false / trials


def mean_seeds(effect: float, arms: int, trials: int) -> float:
    """Mean number of seeds at which arms stop, if all differ by `effect` sd of a difference."""
    rng, schedule = np.random.default_rng([2, arms]), scheduled_looks(20)
    seeds = 0
    for _ in range(trials):
        losses = normal()(rng, arms, 20)
        losses[1:] += effect * SD  # with a correlation of 0.5, differences have the sd of a run
        standings = _until_sure(losses, schedule)
        seeds += sum(own.seeds for own in standings) / arms
    return seeds / trials


def _until_sure(losses: np.ndarray, schedule: Sequence[Look]) -> list[Standing]:
    """The standings after a sweep that trains only the seeds needed for the next looks."""
    arms, whole = len(losses) - 1, _by_count(losses)
    reached = [schedule[0].n] * arms
    while True:

        def results(arm: int | None, n: int, reached: list[int] = reached) -> Results | None:
            return whole(arm, n) if n <= (max(reached) if arm is None else reached[arm]) else None

        standings = take_looks(results, arms, schedule)
        needed = [own.next_look or n for own, n in zip(standings, reached, strict=True)]
        if needed == reached:
            return standings
        reached = needed


def _by_count(losses: np.ndarray) -> Callable[[int | None, int], Results]:
    def results(arm: int | None, count: int) -> Results:
        own = losses[0 if arm is None else arm + 1, :count]
        return Results(dict(enumerate(own.tolist())))

    return results


def peeked(arms: int, rule: Rule, trials: int, most: int = 20) -> float:
    """The rate of any false verdict if the arms are judged after each seed from 3 to `most`."""
    rng = np.random.default_rng([3, arms])
    false = 0
    for _ in range(trials):
        results = _by_count(normal()(rng, arms, most))
        false += any(
            verdict.word in (BETTER, WORSE)
            for n in range(3, most + 1)
            for verdict in judge(results(None, n), [results(a, n) for a in range(arms)], rule)
        )
    return false / trials


# Tuning


@dataclasses.dataclass(frozen=True)
class Curve:
    """Loss over the grid of rates, in sd of a run: `rise` z^2 on the left of the optimum.

    Attributes:
        asymmetry: Ratio of the curvature on the right to that on the left.
        differ: Whether the optima of arms differ by up to a grid step.
        cliff: Whether runs two steps above the optimum fail.
        shared: Fraction of the variance of a tuning run that is common to all rates of an arm,
            because they are tried with the same seed.
    """

    name: str
    rise: float
    asymmetry: float = 1.0
    differ: bool = False
    cliff: bool = False
    shared: float = 0.5

    def loss(self, z: float) -> float:
        return SD * self.rise * z * z * (self.asymmetry if z > 0 else 1.0)


CURVES = (
    Curve("flat", 0.0),
    Curve("symmetric, 0.25", 0.25),
    Curve("symmetric, 1", 1.0),
    Curve("4:1, 1 to 4, optima differ", 1.0, asymmetry=4.0, differ=True),
    Curve("cliff, 1, optima differ", 1.0, differ=True, cliff=True),
    Curve("symmetric, 0.25, rates uncorrelated", 0.25, shared=0.0),
    Curve("cliff, 1, rates uncorrelated", 1.0, differ=True, cliff=True, shared=0.0),
)
GRID, TUNED_ARMS = 5, 8
PEEKS = (10, 20, 30)


def tuning_rows(trials: int) -> Iterator[Sequence[str]]:
    for curve in CURVES:
        cells = [tuned_rates(curve, n, trials) for n in (3, 5, 10, 20)]
        yield (curve.name, *(" / ".join(f"{rate:.3f}" for rate in cell) for cell in cells))


def tuned_rates(curve: Curve, seeds: int, trials: int) -> tuple[float, float]:
    """The rate of any false verdict without and with the allowances. No arm differs at its best
    rate; each is tuned with one seed on 5 rates and trained at the fitted optimum."""
    rng = np.random.default_rng([4, seeds])
    false = np.zeros(2)
    for _ in range(trials):
        false += _tuned_errors(rng, curve, seeds)
    return tuple(false / trials)


@dataclasses.dataclass(frozen=True)
class _Tuned:
    """The tuning results of each arm: how far the loss at the fitted rate is above that at the best
    rate, and the allowance."""

    excess: list[float]
    allowances: list[float]


def _tuned(rng: np.random.Generator, curve: Curve, arms: int) -> _Tuned:
    best = 2 + curve.differ * rng.uniform(-0.5, 0.5, arms)
    luck, rest = rng.normal(size=(arms, 1)), rng.normal(size=(arms, GRID))
    noise = SD * (np.sqrt(curve.shared) * luck + np.sqrt(1 - curve.shared) * rest)
    grids = [
        [
            None if curve.cliff and z - at > 1.5 else curve.loss(z - at) + noise[arm, z]
            for z in range(GRID)
        ]
        for arm, at in enumerate(best)
    ]
    fits = [fit(grid) for grid in grids]
    scatter = noise_of(grids, fits)
    return _Tuned(
        [curve.loss(own.optimum - at) for own, at in zip(fits, best, strict=True)],
        [allowance(own, scatter) for own in fits],
    )


def _tuned_errors(rng: np.random.Generator, curve: Curve, seeds: int) -> list[bool]:
    tuned = _tuned(rng, curve, TUNED_ARMS + 1)
    losses = normal()(rng, TUNED_ARMS, seeds) + np.array(tuned.excess)[:, None]
    errors = []
    for factor in (0, 1):
        base, *arms = (
            Results(dict(enumerate(own.tolist())), 0, factor * allowed)
            for own, allowed in zip(losses, tuned.allowances, strict=True)
        )
        errors.append(any(verdict.word in (BETTER, WORSE) for verdict in judge(base, arms)))
    return errors


# New text

TEXTS = (27, 60, 250, 1000)
"""Numbers of blocks of a validation text."""

ALIKE = (0.0, 0.3, 0.5, 0.7)
"""Correlations of neighboring blocks."""

RATIOS = (0.5, 2, 10)
"""Variances of the mean due to text, as multiples of that due to seeds."""


def text_rows(trials: int) -> Iterator[Sequence[str]]:
    for blocks in TEXTS:
        for seeds in (3, 5, 10):
            cells = [
                [text_rates(blocks, seeds, rho, ratio, trials) for ratio in RATIOS] for rho in ALIKE
            ]
            covered = [" / ".join(f"{found[0]:.3f}" for found in cell) for cell in cells]
            naive = " / ".join(f"{found[1]:.3f}" for found in cells[ALIKE.index(0.5)])
            width = " / ".join(f"{found[2]:.2f}" for found in cells[0])
            yield (str(blocks), str(seeds), *covered, naive, width)


def text_rates(
    blocks: int, seeds: int, rho: float, ratio: float, trials: int
) -> tuple[float, float, float]:
    """The coverage of the interval for new text, the coverage if blocks are assumed independent,
    and the mean width of the former as a multiple of the latter."""
    rng = np.random.default_rng([5, blocks, seeds])
    hits, width = np.zeros(2), np.zeros(2)
    for values in _differences_by_block(rng, blocks, seeds, rho, ratio, trials):
        own = dict(enumerate(values.mean(axis=1).tolist()))
        [verdict] = judge(Results(dict.fromkeys(own, 0.0)), [Results(own)])
        found = with_text(verdict, values)
        low, high = found.interval if found is not None else verdict.interval
        both = crossed(values, verdict.difference).both
        naive = max(verdict.rule.half_width(both), verdict.rule.half_width(verdict.difference))
        hits += low <= EFFECT <= high, abs(both.value - EFFECT) <= naive
        width += (high - low) / 2, naive
    return (*(hits / trials).tolist(), float(width[0] / width[1]))


EFFECT = 1e3
"""True difference in standard deviations over seeds; large enough for a verdict in every
experiment, which is then extended to new text."""


MANY_ARMS, MANY_TEXTS, MANY_ALIKE, MANY_SEEDS = (1, 8, 20), (27, 250), (0.3, 0.5, 0.7), 5


def family_rows(trials: int) -> Iterator[Sequence[str]]:
    for arms in MANY_ARMS:
        for blocks in MANY_TEXTS:
            cells = [
                [family_rates(arms, blocks, rho, ratio, trials) for ratio in RATIOS]
                for rho in MANY_ALIKE
            ]
            covered = [" / ".join(f"{found[0]:.3f}" for found in cell) for cell in cells]
            t = " / ".join(f"{found[1]:.3f}" for found in cells[MANY_ALIKE.index(0.5)])
            yield (str(arms), str(blocks), *covered, t)


def family_rates(
    arms: int, blocks: int, rho: float, ratio: float, trials: int
) -> tuple[float, float]:
    """The rate at which the intervals for new text of all arms cover, and the same for single t
    intervals with Satterthwaite's degrees of freedom. Half of the variance of each difference is
    that of the baseline, which the arms share."""
    rng = np.random.default_rng([6, arms, blocks])
    hits = np.zeros(2)
    settings = (rng, blocks, MANY_SEEDS, rho, ratio)
    shared = _differences_by_block(*settings, trials)
    own = _differences_by_block(*settings, arms * trials)
    for base in shared:
        values = [EFFECT + ((next(own) - base) / np.sqrt(2)) for _ in range(arms)]
        means = [dict(enumerate(each.mean(axis=1).tolist())) for each in values]
        verdicts = judge(Results(dict.fromkeys(means[0], 0.0)), list(map(Results, means)))
        hits += np.all([_both_cover(*pair) for pair in zip(verdicts, values, strict=True)], axis=0)
    return tuple(hits / trials)


def _both_cover(verdict: Verdict, values: np.ndarray) -> tuple[bool, bool]:
    found = with_text(verdict, values)
    low, high = found.interval if found is not None else verdict.interval
    both = crossed(values, verdict.difference, in_order=True).both
    half = verdict.rule.half_width(both if found is not None else verdict.difference)
    half = max(half, verdict.rule.half_width(verdict.difference))
    return low <= EFFECT <= high, abs(both.value - EFFECT) <= half


def _differences_by_block(
    rng: np.random.Generator, blocks: int, seeds: int, rho: float, ratio: float, trials: int
) -> Iterator[np.ndarray]:
    """Yield the differences (seeds, blocks) of experiments: block effects, and smaller interactions
    with seeds, both with a correlation of rho^k at a distance of k blocks."""
    lags = np.arange(1, blocks)
    of_mean = (1 + 2 * float((1 - lags / blocks) @ rho**lags)) / blocks
    for start in range(0, trials, 100):
        many = min(100, trials - start)
        own = _neighbours_alike(rng, (many, seeds + 1, blocks), rho)
        text = np.sqrt(ratio / seeds / of_mean) * own[:, :1]
        yield from EFFECT + rng.normal(size=(many, seeds, 1)) + text + 0.5 * own[:, 1:]


def _neighbours_alike(
    rng: np.random.Generator, shape: tuple[int, int, int], rho: float
) -> np.ndarray:
    """Normal numbers with variance 1 that form an AR(1) process along the last axis."""
    found = rng.normal(size=shape)
    for k in range(1, shape[-1]):
        found[..., k] = rho * found[..., k - 1] + np.sqrt(1 - rho * rho) * found[..., k]
    return found


# Ladders


@dataclasses.dataclass(frozen=True)
class Ladders:
    """Ladders on L = offset + scale C^-power, with C from 1 to `span`.

    Attributes:
        multiplier: The true multiplier of every arm at every rung.
        arms: Number of arms besides the baseline.
        noise: Standard deviations of runs at the first and the last rung, as multiples of that at
            the others.
    """

    offset: float
    scale: float
    power: float
    rungs: int
    span: float
    multiplier: float
    arms: int = 1
    noise: tuple[float, float] = (1.0, 1.0)

    @property
    def name(self) -> str:
        curve = f"{self.offset:g} + {self.scale:g} C^-{self.power:g}"
        arms = f", {self.arms} arms" if self.arms > 1 else ""
        places = zip(("first", "last"), self.noise, strict=True)
        noise = "".join(f", noise x{own:g} at the {which}" for which, own in places if own != 1)
        return f"{curve}, {self.rungs} rungs, {self.span:g}x, m={self.multiplier:g}{arms}{noise}"

    def losses(self, rng: np.random.Generator, seeds: int) -> np.ndarray:
        """The losses of an experiment, (arms + 1, rungs, seeds); the baseline first."""
        reached = np.array([1.0, *[self.multiplier] * self.arms])[:, None] * self.compute
        noise = [normal()(rng, self.arms, seeds) for _ in range(self.rungs)]
        noise[0] *= self.noise[0]
        noise[-1] *= self.noise[1]
        means = self.offset + self.scale * reached**-self.power
        return means[:, :, None] + np.stack(noise, axis=1)

    @property
    def compute(self) -> np.ndarray:
        return np.geomspace(1.0, self.span, self.rungs)


LADDERS = (
    Ladders(1.7, 4.0, 0.1, 3, 16.0, 1.35),
    Ladders(1.7, 4.0, 0.1, 4, 64.0, 2.5),
    Ladders(0.0, 3.0, 0.05, 4, 64.0, 0.5),
    Ladders(1.5, 3.0, 0.2, 5, 256.0, 2.5),
    Ladders(1.5, 2.5, 0.3, 4, 64.0, 2.5),
    Ladders(2.0, 2.0, 0.3, 6, 1000.0, 4.0),
    Ladders(1.7, 4.0, 0.1, 3, 16.0, 2.5, arms=8),
    Ladders(1.7, 4.0, 0.1, 3, 16.0, 1.35, noise=(10.0, 1.0)),
    Ladders(1.7, 4.0, 0.1, 3, 16.0, 1.35, noise=(1.0, 3.0)),
    Ladders(1.5, 3.0, 0.2, 5, 256.0, 2.5, noise=(10.0, 1.0)),
    Ladders(1.5, 3.0, 0.2, 5, 256.0, 2.5, noise=(1.0, 3.0)),
)


def ladder_rows(trials: int) -> Iterator[Sequence[str]]:
    for case in LADDERS:
        cells = [climbed(case, n, trials) for n in (3, 5)]
        yield (case.name, *(f"{error:.3f} / {coverage:.3f}" for error, coverage in cells))


def climbed(case: Ladders, seeds: int, trials: int) -> tuple[float, float]:
    """The rate at which the multiplier of any arm is called growing or fading, and the coverage of
    the intervals of single multipliers."""
    rng = np.random.default_rng([5, seeds])
    false, covered = 0, []
    for _ in range(trials):
        base, *arms = case.losses(rng, seeds)
        found = [climb(list(map(Rung, case.compute, base, arm)), case.arms) for arm in arms]
        false += any(own is not None and own.verdict in (GROWS, FADES) for own in found)
        ends = [ends for own in found if own is not None for ends in own.intervals]
        covered += [low <= case.multiplier <= high for low, high in ends]
    return false / trials, float(np.mean(covered))


TUNED_LADDERS = (LADDERS[0], LADDERS[3], LADDERS[5])
TUNED_CURVES = (CURVES[1], CURVES[3], CURVES[6])


def tuned_ladder_rows(trials: int) -> Iterator[Sequence[str]]:
    for case in TUNED_LADDERS:
        for curve in TUNED_CURVES:
            cells = [tuned_climbs(case, curve, n, trials) for n in (3, 5)]
            yield (
                case.name,
                curve.name,
                *(" / ".join(f"{rate:.3f}" for rate in cell) for cell in cells),
            )


def tuned_climbs(
    case: Ladders, curve: Curve, seeds: int, trials: int
) -> tuple[float, float, float, float]:
    """Like `climbed`, with the baseline and the arm tuned at each rung: error and coverage without
    the allowances, then with them."""
    rng = np.random.default_rng([7, seeds])
    false, covered = np.zeros(2), np.zeros(2)
    for _ in range(trials):
        losses = case.losses(rng, seeds)
        grids = [_tuned(rng, curve, len(losses)) for _ in case.compute]
        losses += np.array([own.excess for own in grids]).T[:, :, None]
        allowed = np.array([own.allowances for own in grids]).T
        for k, factor in enumerate((0, 1)):
            rungs = zip(case.compute, *losses, *(factor * allowed), strict=True)
            found = climb([Rung(*map(_plain, own)) for own in rungs])
            if found is None:
                covered[k] += 1  # no interval, so nothing false
                continue
            false[k] += found.verdict in (GROWS, FADES)
            inside = [low <= case.multiplier <= high for low, high in found.intervals]
            covered[k] += np.mean(inside)
    (e0, e1), (c0, c1) = (false / trials).tolist(), (covered / trials).tolist()
    return e0, c0, e1, c1


def _plain(value: np.ndarray | float) -> list[float] | float:
    return value.tolist() if isinstance(value, np.ndarray) else float(value)


# From simulated logs


def claim_rows(trials: int) -> Iterator[Sequence[str]]:
    for name, case in CLAIMS.items():
        yield (name, *(f"{claimed(case, n, trials):.3f}" for n in SEEDS[1:]))


def peek_rows(trials: int) -> Iterator[Sequence[str]]:
    for rule, name in ((ConfidenceSequence(1), "now"), (DeclaredSeeds(1), "without the safeguard")):
        yield (name, *(f"{peeked(1, rule, trials, most):.3f}" for most in PEEKS))


# The page

PAGE = """\
# Calibration

Error rates of the verdicts in simulated experiments with known true differences, using the same
code as for real runs. `python scripts/calibration.py` writes this page. {trials:,} trials per cell:
a rate of 0.05 has a standard error of {error:.3f}. [statistics.md](statistics.md) describes the
procedure.

## Declared seeds

Error: the probability that at least one arm is called better or worse although none differs; the
target is at most 0.05. Power: the probability that an arm that is worse by two standard deviations
of a typical run is called worse. Each cell is error / power. Comparisons with 3 seeds are labeled
"preliminary".

{errors}

## Comparisons with known pitfalls

The rate of false verdicts (`better` or `worse`) when the architectures do not differ: simulated
logs of runs, compared as real logs are, on final losses and on losses at equal budgets
(`scripts/claims.py`). Verdicts that name an edit of the code as a difference between the arms are
excluded.

{claims}

One model under several names in a real sweep (`tests/integration/test_one_config_two_names.py`:
GPT-2 with 30K parameters, 150 steps on Tiny Shakespeare, 5 seeds). With the FFN of the baseline
registered under another name, all losses are equal bit for bit, and the verdict is inconclusive:
"every seed has the loss of the baseline, as the same model would". With other initial weights from
the same distribution, it is inconclusive, too: +0.0064 [-0.0455, +0.0582] nats. A sweep refuses two
arms that are equal key by key, and an arm with a seed of its own.

One arm evaluated after each seed, from 3 on, with seeds added until there is a verdict:

{peeks}

## Looks

Error of `--until_sure` (5, 10, 20 seeds), of the confidence sequence if the arms are evaluated
after each seed from 3 to 20, and of intervals for a declared number of seeds if they are misused in
the same way.

{looks}

Mean number of seeds at which one of 8 arms stops, by its true difference in standard deviations of
a difference ({few:,} trials): {seeds}.

## Tuning

8 arms and the baseline, each tuned on 5 learning rates with one seed and retrained at the fitted
optimum. Error without / with the allowance. The curvature is in standard deviations of a run per
squared grid step.

{tuning}

## New text

Coverage of the 95 % interval for new seeds and new text, by the correlation of neighboring blocks
({many:,} trials per cell). Each cell has three rates: the variance of the mean is 0.5 / 2 / 10
times as large from text as from seeds. "Independent": coverage of an interval that assumes
independent blocks if neighbors have a correlation of 0.5. "Width": the width of our interval as a
multiple of the width of such an interval if blocks are independent.

{text}

The same for several arms (5 seeds, {trials:,} trials per cell): the rate at which the intervals of
all arms cover. Half of the variance of each difference is that of the baseline. "Single t": one t
interval per arm with Satterthwaite's degrees of freedom, at a correlation of 0.5.

{families}

## Ladders

The true multiplier m is the same at every rung; runs have a standard deviation of 0.01 nats, or a
multiple of it at one rung.
Error: the probability that m is reported to grow or fade, for at least one arm if there are
several. Coverage: the fraction of multipliers of single rungs that lie in their 95 % intervals.
Each cell is error / coverage.

{ladders}

The same if the baseline and the arm are tuned at each rung, on 5 learning rates with one seed, and
retrained at the fitted optimum. Each cell is error / coverage without the allowances, then error /
coverage with them. The curvature is in standard deviations of a run per squared grid step.

{tuned_ladders}
"""


def page(trials: int) -> str:
    sizes = [f"{arms} arms, n={n}" for arms in (4, 8) for n in SEEDS]
    few, many = max(trials // 10, 20), 4 * trials
    effects = ", ".join(f"{sd:g}: {mean_seeds(sd, 8, few):.1f}" for sd in (0, 1, 1.5, 2, 3))
    return PAGE.format(
        trials=trials,
        few=few,
        many=many,
        error=(0.05 * 0.95 / trials) ** 0.5,
        errors="\n".join(markdown_table(("case", *sizes), list(error_rows(trials)))),
        claims="\n".join(
            markdown_table(("case", *(f"n={n}" for n in SEEDS[1:])), list(claim_rows(trials)))
        ),
        peeks="\n".join(
            markdown_table(
                ("error", *(f"up to {most} seeds" for most in PEEKS)), list(peek_rows(trials))
            )
        ),
        looks="\n".join(
            markdown_table(
                ("arms", "`--until_sure`", "confidence sequence", "declared, misused"),
                list(look_rows(trials)),
            )
        ),
        seeds=effects,
        tuning="\n".join(
            markdown_table(
                ("curve", *(f"n={n}" for n in (3, 5, 10, 20))), list(tuning_rows(trials))
            )
        ),
        text="\n".join(
            markdown_table(
                ("blocks", "seeds", *(f"{rho:g}" for rho in ALIKE), "independent", "width"),
                list(text_rows(many)),
            )
        ),
        families="\n".join(
            markdown_table(
                ("arms", "blocks", *(f"{rho:g}" for rho in MANY_ALIKE), "single t"),
                list(family_rows(trials)),
            )
        ),
        ladders="\n".join(markdown_table(("curve", "n=3", "n=5"), list(ladder_rows(trials)))),
        tuned_ladders="\n".join(
            markdown_table(("curve", "tuning curve", "n=3", "n=5"), list(tuned_ladder_rows(trials)))
        ),
    )


def main(argv: Sequence[str]) -> int:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--trials", type=int, default=TRIALS, help="per cell (default %(default)s)")
    flags.add_argument("--report", type=Path, default=REPORT, help="default: docs/calibration.md")
    args = flags.parse_args(argv)
    args.report.write_text(page(args.trials), encoding="utf-8")
    print(f"written: {args.report}")
    return PASSED


if __name__ == "__main__":
    run_script(main)
