"""Ladders: the same comparison at several budgets, to see whether its outcome holds at scale.

The *multiplier* of an arm is the compute that the baseline would need to reach the arm's loss,
divided by the arm's compute. Losses fall steeply at small budgets and slowly at large ones, so the
same difference in loss is worth more compute at a larger budget, and a straight line through the
differences is not informative. Therefore a power law with an offset, L = E + exp(b) C^-a (Hoffmann
et al. 2022, arXiv 2203.15556), is fitted to the baseline's losses, and differences in loss are
converted along that curve.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from inference.differences import GUARD, kappa
from inference.quantiles import ALPHA, f_quantile, sidak_level, t_critical

FEWEST_RUNGS, FEWEST_SEEDS, FEWEST_SPAN = 3, 3, 16.0
"""Requirements of a ladder: rungs, shared seeds, and ratio of the largest to the smallest
budget."""

SAME_EXPONENT = 0.05
"""An exponent within this distance of 0 means that the multiplier holds."""

_OFFSETS = 1.0 - np.geomspace(10.0, 0.01, 2000)
"""Candidate offsets E as fractions of the lowest loss, more densely spaced close to it. The curve
with the lowest one is nearly straight over ln C."""

GROWS, FADES, HOLDS, INCONCLUSIVE = "grows", "fades", "holds", "inconclusive"

_SIDES = ("baseline", "arm")


@dataclasses.dataclass(frozen=True)
class Rung:
    """Paired final losses at one budget, with the same seeds in the same order.

    Attributes:
        compute: FLOPs of a baseline run.
        baseline: Losses of the baseline by seed, in nats per token.
        arm: Losses of the arm.
        baseline_allowance: How much lower the baseline's losses could be at its best learning rate;
            see `tuning`.
        arm_allowance: The same for the arm.
        arm_compute: FLOPs of a run of the arm; None: the same as the baseline.
    """

    compute: float
    baseline: Sequence[float]
    arm: Sequence[float]
    baseline_allowance: float = 0.0
    arm_allowance: float = 0.0
    arm_compute: float | None = None


@dataclasses.dataclass(frozen=True)
class Ladder:
    """The multiplier over the rungs.

    Attributes:
        multipliers: The multiplier at each rung.
        intervals: The 95 % interval of each multiplier, for each rung separately.
        exponent: The multiplier grows as compute to this power.
        exponent_interval: Interval of the exponent, 95 % for all arms of the ladder together.
    """

    multipliers: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    exponent: float
    exponent_interval: tuple[float, float]

    @property
    def verdict(self) -> str:
        """How the multiplier changes with compute: grows, holds, fades or inconclusive."""
        low, high = self.exponent_interval
        if max(-low, high) <= SAME_EXPONENT:
            return HOLDS
        if low > 0:
            return GROWS
        return FADES if high < 0 else INCONCLUSIVE

    @property
    def better(self) -> int:
        """Number of rungs at which the arm needs less compute: their intervals are above 1."""
        return sum(low > 1 for low, _ in self.intervals)

    @property
    def worse(self) -> int:
        """Number of rungs at which the arm needs more compute."""
        return sum(high < 1 for _, high in self.intervals)


def climb(rungs: Sequence[Rung], family: int = 1) -> Ladder | None:
    """Estimate the multiplier of an arm over three or more rungs, in increasing order of compute.

    ln m_j = ln((L_j - E) / (L'_j - E)) / a - ln(C'_j / C_j), with the mean losses L of the baseline
    and L' of the arm, their compute C and C', and the offset E and exponent a of the baseline's
    curve: the arm reaches with C' what the baseline would reach with m C'. The exponent of the
    multiplier is the slope of ln m over ln C.

    The offset is uncertain. The intervals are the union of those at all offsets that are consistent
    with the baseline's losses, given noise and tuning. They are widened by the worst case of the
    tuning allowances: any loss may be lower by up to its allowance. A lower loss of the arm raises
    the multiplier at its rung. A lower loss of the baseline reduces it, and changes the slope of
    the curve and with it the multipliers at all rungs.

    Args:
        rungs: At least FEWEST_RUNGS rungs.
        family: Number of arms, for which the intervals of the exponents are simultaneous.

    Returns:
        The ladder; None if the mean loss of the baseline does not fall from each rung to the next.
    """
    assert len(rungs) >= FEWEST_RUNGS
    assert min(len(rung.arm) for rung in rungs) >= FEWEST_SEEDS
    compute = [rung.compute for rung in rungs]
    assert max(compute) >= FEWEST_SPAN * min(compute) * (1 - 1e-9)
    if np.diff([np.mean(rung.baseline) for rung in rungs]).max() >= 0:
        return None
    fits = _Fits(rungs)
    lows, highs = fits.ends(ALPHA)
    exponent_ends = [end[-1] for end in fits.ends(sidak_level(ALPHA, family))]
    *logs, exponent = fits.values[fits.best].tolist()
    with np.errstate(over="ignore"):  # for a baseline that hardly learns
        multipliers, low, high = (np.exp(own).tolist() for own in (logs, lows[:-1], highs[:-1]))
    return Ladder(
        tuple(multipliers),
        tuple(zip(low, high, strict=True)),
        exponent,
        (float(exponent_ends[0]), float(exponent_ends[1])),
    )


class _Fits:
    """The baseline's curve and the results at each candidate offset.

    The results are the log multipliers of the k rungs, followed by their exponent: k + 1 sums over
    the rungs, with the weights `sums`, (k + 1, k).
    """

    def __init__(self, rungs: Sequence[Rung]):
        baseline, arm = (np.array([getattr(r, s) for r in rungs]) for s in _SIDES)
        self.rungs = rungs
        self.noise = _Noise.of(baseline, arm)
        x = np.log([rung.compute for rung in rungs])
        x -= x.mean()
        self.to_slope = x / (x @ x)
        self.sums = np.vstack([np.eye(len(x)), self.to_slope])
        means = baseline.mean(axis=1), arm.mean(axis=1)
        offsets = np.min(means) * _OFFSETS
        self.above, self.arm_above = (own - offsets[:, None] for own in means)  # (offsets, k)
        logs = np.log(self.above)
        self.slope = -(logs @ self.to_slope)  # the exponent a of the curve, (offsets,)
        fitted = np.exp(logs.mean(axis=1, keepdims=True) - np.outer(self.slope, x))
        self.misfit = ((self.above - fitted) ** 2).sum(axis=1)
        self.best = int(self.misfit.argmin())
        self.distance = (logs - np.log(self.arm_above)) / self.slope[:, None]
        self.allowances = np.array([[getattr(r, f"{s}_allowance") for r in rungs] for s in _SIDES])

    @cached_property
    def values(self) -> np.ndarray:
        """The results, (offsets, k + 1)."""
        spent = np.log([(rung.arm_compute or rung.compute) / rung.compute for rung in self.rungs])
        return (self.distance - spent) @ self.sums.T

    def ends(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of the intervals of the results at a level, (k + 1,) each."""
        critical = np.array([t_critical(df, level) for df in self.noise.df])
        misfit = self._least_misfit
        kept = misfit - misfit.min() <= critical.max() ** 2 * self._of_baseline.max()
        half = np.sqrt((self._parts[kept] * critical**2).sum(axis=2))
        down, up = (own[kept] for own in self._open)
        values = self.values[kept]
        return (values - half - down).min(axis=0), (values + half + up).max(axis=0)

    @cached_property
    def _of_baseline(self) -> np.ndarray:
        """Variances of the baseline's means around the curve, (k,): those from seeds, or the
        residual variance of the best fit if it is larger."""
        return np.maximum(self.noise.baseline, self.misfit[self.best] / (len(self.rungs) - 2))

    @cached_property
    def _parts(self) -> np.ndarray:
        """Variances of the results given the offset, by the rung whose seeds contribute them,
        (offsets, k + 1, k)."""
        base, arm = self._per_nat(self.above, self.arm_above)
        parts = base**2 * self._of_baseline + arm**2 * self.noise.arm
        return (parts + 2 * base * arm * self.noise.both).clip(min=0)

    def _per_nat(self, above: np.ndarray, arm_above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of the results with respect to the losses of the baseline and of the arm,
        (offsets, k + 1, k) each. The baseline's losses also change the curve's exponent a."""
        distance = self.distance @ self.sums.T
        base = self.sums + distance[:, :, None] * self.to_slope
        slope = self.slope[:, None, None]
        return base / (slope * above[:, None, :]), -self.sums / (slope * arm_above[:, None, :])

    @cached_property
    def _least_misfit(self) -> np.ndarray:
        """A lower bound of the misfit at each offset, (offsets,), over all baseline losses within
        their allowances: the norm of the residuals with half of the allowances subtracted, minus
        the norm of the other half, squared."""
        half = self.allowances[0] / 2
        if not half.any():
            return self.misfit
        above = _lowered(self.above, half)
        logs = np.log(above)
        x = self.to_slope / (self.to_slope @ self.to_slope)
        slope = logs @ self.to_slope
        fitted = np.exp(logs.mean(axis=1, keepdims=True) + np.outer(slope, x))
        misfit = ((above - fitted) ** 2).sum(axis=1)
        return (np.sqrt(misfit) - np.linalg.norm(half)).clip(min=0) ** 2

    @cached_property
    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        """How much lower and higher each result could be due to tuning, (offsets, k + 1) each, to
        first order around losses with half of their allowances subtracted."""
        if not self.allowances.any():
            none = np.zeros_like(self.values)
            return none, none
        lowered = (
            _lowered(own, allowed / 2)
            for own, allowed in zip((self.above, self.arm_above), self.allowances, strict=True)
        )
        down, up = 0.0, 0.0
        for per_nat, allowed in zip(self._per_nat(*lowered), self.allowances, strict=True):
            down = down + (per_nat.clip(min=0) * allowed).sum(axis=2)
            up = up - (per_nat.clip(max=0) * allowed).sum(axis=2)
        return down, up


def _lowered(above: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Losses above an offset, reduced by their allowances but not below a quarter."""
    return np.maximum(above - allowed, above / 4)


@dataclasses.dataclass(frozen=True)
class _Noise:
    """Variances of the means over seeds at each rung, and their covariances, (k,) each.

    Small models and short runs are often noisier. So each rung has its own variances, moderated by
    those of the other rungs in the same way as those of arms in `differences`.

    Attributes:
        df: Degrees of freedom of the variances of each rung.
    """

    baseline: np.ndarray
    arm: np.ndarray
    both: np.ndarray
    df: np.ndarray

    @classmethod
    def of(cls, baseline: np.ndarray, arm: np.ndarray) -> _Noise:
        """From losses, (k, seeds) each."""
        seeds = baseline.shape[1]
        own = [losses.var(axis=1, ddof=1) for losses in (baseline, arm, baseline - arm)]
        (base, other, gap), borrowed = zip(*(_moderated(each, seeds) for each in own), strict=True)
        df = np.where(np.all(borrowed, axis=0), 2, 1) * (seeds - 1)
        return cls(base / seeds, other / seeds, (base + other - gap) / 2 / seeds, df)


def _moderated(variances: np.ndarray, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """The variance of each rung moderated by the others, and whether it is moderated. For an even
    number of others, the lower median is used, so that one noisy rung of three has no influence."""
    others = np.sort([np.delete(variances, j) for j in range(len(variances))], axis=1)
    pool = others[:, (others.shape[1] - 1) // 2] / kappa(seeds)
    borrows = variances <= f_quantile(GUARD, seeds - 1, 2 * (seeds - 1)) * pool
    return np.where(borrows, (pool + variances) / 2, variances), borrows
