"""Rules that turn an estimate into an interval: for a declared number of seeds, and for any number.

A rule says which estimates it admits, how wide their intervals are and what p value goes with them.
The intervals of one family of arms hold together with probability 1 - alpha.
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
    """How intervals are made for a family of arms.

    Attributes:
        family: How many arms were declared; those that failed or were stopped early included.
        alpha: Accepted probability that some interval misses its true difference.
        needs_pairs: Whether it has no estimates without shared seeds.
    """

    family: int
    alpha: float = ALPHA
    needs_pairs: ClassVar[bool] = False

    @property
    def level(self) -> float:
        """The level of one comparison with a declared number of seeds."""
        return sidak_level(self.alpha, self.family)

    def estimates(self, baseline: Sample, arms: Sequence[Sample]) -> list[Difference | None]:
        """The difference of each arm from the baseline; None if the rule has none for it."""
        raise NotImplementedError

    def critical(self, df: float, n: int) -> float:
        """Half the width of the interval in standard errors; may be infinite."""
        raise NotImplementedError

    def half_width(self, estimate: Estimate) -> float:
        """Half the width of the interval; may be infinite."""
        return self.critical(estimate.df, estimate.n) * estimate.error

    def p_adjusted(self, estimate: Estimate, allowance: float = 0.0) -> float:
        """The p value of no difference, after the value is moved toward 0 by `allowance`: below
        ALPHA exactly if the interval, so much wider, excludes 0."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class DeclaredSeeds(Rule):
    """Intervals of Student's t for a number of seeds that was fixed before the runs.

    The family is covered by Sidak's correction (1967): the intervals of arms that share a baseline
    are positively dependent, for which it is conservative.
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
    """Intervals that hold for every number of seeds at once, however it came about.

    For seeds that were added after a comparison was seen. Lai 1976, "On confidence sequences", in
    the form of Wang and Ramdas 2023, "Anytime-valid t-tests and confidence sequences for Gaussian
    means with unknown variance" (arXiv 2310.03722), with prior precision 1/4 seed and a union bound
    over arms. It is for paired seeds, whose own variance it uses.
    """

    needs_pairs = True

    def estimates(self, baseline: Sample, arms: Sequence[Sample]) -> list[Difference | None]:
        alone = [differences(baseline, [arm])[0] for arm in arms]  # nothing to borrow from
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
    """How much n seeds tell beside the prior."""
    return 1 + 4 * n
