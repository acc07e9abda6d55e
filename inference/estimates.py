"""An estimate and its precision."""

from __future__ import annotations

import dataclasses

from inference.quantiles import t_critical, t_p_value

PAIRED, MODERATED, CROSSED, WELCH = "paired t", "moderated paired t", "crossed t", "Welch t"
"""Names of statistical tests."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its precision.

    Attributes:
        value: The mean.
        error: Its standard error, above 0.
        df: Degrees of freedom of the error.
        n: Number of seeds used; that of the smaller sample if unpaired.
        test: Name of the test.
    """

    value: float
    error: float
    df: float
    n: int
    test: str

    @property
    def paired(self) -> bool:
        return self.test != WELCH

    def half_width(self, alpha: float) -> float:
        """Half-width of the interval that covers the true value with probability 1 - alpha."""
        return t_critical(self.df, alpha) * self.error

    def p_value(self, allowance: float = 0.0) -> float:
        """Two-sided p value of no difference, after moving the value toward 0 by `allowance`."""
        return t_p_value(max(abs(self.value) - allowance, 0.0) / self.error, self.df)
