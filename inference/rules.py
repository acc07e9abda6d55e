"""Rules that turn estimates into intervals, for a declared number of seeds or for any number.

A rule determines which estimates are allowed, the width of their intervals, and their p values. The
intervals of one family of arms hold together with probability 1 - alpha.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from inference.differences import Difference, differences
from inference.estimates import Estimate
from inference.quantiles import ALPHA, sidak_level, sidak_p, t_critical
from inference.samples import Sample


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule for the intervals of a family of arms.

    Attributes:
        family: Number of declared arms, including those that failed or were stopped early.
        alpha: Accepted probability that any interval misses its true difference.
        needs_pairs: Whether estimates require shared seeds.
    """

    family: int
    alpha: float = ALPHA
    needs_pairs: ClassVar[bool] = False

    @property
    def level(self) -> float:
        """The level of a single comparison with a declared number of seeds."""
        return sidak_level(self.alpha, self.family)

    def estimates(self, baseline: Sample, arms: Sequence[Sample]) -> list[Difference | None]:
        """The difference of each arm from the baseline; None if the rule does not allow one."""
        raise NotImplementedError

    def critical(self, df: float, n: int) -> float:
        """Half-width of the interval in standard errors; may be infinite."""
        raise NotImplementedError

    def half_width(self, estimate: Estimate) -> float:
        """Half-width of the interval; may be infinite."""
        return self.critical(estimate.df, estimate.n) * estimate.error

    def p_adjusted(self, estimate: Estimate, allowance: float = 0.0) -> float:
        """The p value of no difference, after moving the value toward 0 by `allowance`; below ALPHA
        exactly if the interval, widened by `allowance`, excludes 0."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class DeclaredSeeds(Rule):
    """Student's t intervals for a number of seeds that was fixed before the runs.

    Uses Sidak's correction (1967) for the family, which is conservative because the intervals of
    arms that share a baseline are positively dependent.
    """

    def estimates(self, baseline: Sample, arms: Sequence[Sample]) -> list[Difference | None]:
        return differences(baseline, arms)

    def critical(self, df: float, n: int) -> float:
        return t_critical(df, self.level)

    def p_adjusted(self, estimate: Estimate, allowance: float = 0.0) -> float:
        own = sidak_p(estimate.p_value(allowance), self.family)
        return min(own * ALPHA / self.alpha, 1.0)  # a look spends a part of ALPHA


@dataclasses.dataclass(frozen=True)
class ConfidenceSequence(Rule):
    """Intervals that hold for all numbers of seeds simultaneously, however they were chosen.

    For seeds added after looking at a comparison. Lai 1976, "On confidence sequences", in the form
    of Wang and Ramdas 2023, "Anytime-valid t-tests and confidence sequences for Gaussian means with
    unknown variance" (arXiv 2310.03722), with prior precision 1/4 seed and a union bound over arms.
    Requires paired seeds and uses only their own variance.
    """

    needs_pairs = True

    def estimates(self, baseline: Sample, arms: Sequence[Sample]) -> list[Difference | None]:
        alone = [differences(baseline, [arm])[0] for arm in arms]  # without borrowing
        return [own if own is not None and own.paired else None for own in alone]

    def critical(self, df: float, n: int) -> float:
        g = _information(n)
        growth = (math.sqrt(g) * self.family / self.alpha) ** (2 / n)
        if growth >= g:
            return math.inf
        return math.sqrt((n - 1) * (growth - 1) / (1 - growth / g))

    def p_adjusted(self, estimate: Estimate, allowance: float = 0.0) -> float:
        n = estimate.n
        g = _information(n)
        square = (max(abs(estimate.value) - allowance, 0.0) / estimate.error) ** 2
        growth = (square + n - 1) / (square / g + n - 1)
        own = self.family * math.sqrt(g) * growth ** (-n / 2)
        return min(own * ALPHA / self.alpha, 1.0)


def _information(n: int) -> int:
    """The information in n seeds relative to the prior."""
    return 1 + 4 * n
