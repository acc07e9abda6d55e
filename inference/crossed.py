"""Means over two crossed random factors: seeds and documents, or seeds and data orders.

Numbers that share a seed or a document are not independent. The variance of their mean is that of
the row means plus that of the column means, minus what both count twice (Cameron, Gelbach and
Miller 2011, "Robust inference with multiway clustering").

Blocks of one text are ordered, and neighbors are correlated. The variance of the mean of such
columns is estimated from equal-weighted cosines (Mueller 2007, "A theory of robust long-run
variance estimation"; Lazarus, Lewis, Stock and Watson 2018, "HAR inference: recommendations for
practice"): the mean square of the first B cosine coefficients of the series. The coefficients are
nearly independent and their variance is nearly that of sqrt(columns) times the mean, so the
estimate has B degrees of freedom.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from inference.estimates import CROSSED, PAIRED, Estimate
from inference.grids import Grid
from inference.samples import Sample

NOTABLE = 0.1
"""Column variance below this fraction of the row variance is negligible."""


@dataclasses.dataclass(frozen=True)
class Crossed:
    """A mean over rows and columns.

    Attributes:
        both: For new rows and new columns.
        rows: For new rows and these columns.
        columns: For these rows and new columns; its error may be 0.
    """

    both: Estimate
    rows: Estimate
    columns: Estimate

    @property
    def columns_matter(self) -> bool:
        """Whether the variance of columns is notable beside that of rows."""
        return self.columns.error**2 > NOTABLE * self.rows.error**2


def crossed(
    values: np.ndarray, rows: Estimate | None = None, *, in_order: bool = False
) -> Crossed | None:
    """Estimate the mean of differences and its error.

    Args:
        values: One difference for each row (seed) and column (document), two or more of each.
        rows: An estimate over rows that is better than one from the row means, such as a moderated
            one; `both` then has the same value.
        in_order: Whether columns are ordered and neighbors may be correlated, like the blocks of
            one text. Otherwise they are independent.

    Returns:
        The estimates; None if the row means do not vary.
    """
    n, columns = values.shape
    mean, of_rows, of_columns = values.mean(), values.mean(axis=1), values.mean(axis=0)
    if rows is None:
        error = math.sqrt(of_rows.var(ddof=1) / n)
        if error == 0:
            return None
        rows = Estimate(float(mean), error, n - 1, n, PAIRED)
    left = values - of_rows[:, None] - of_columns + mean
    found = _in_order(of_columns, left) if in_order else _independent(of_columns, left)
    row_part = rows.error**2
    column_part = found.variance / columns
    shared = found.interaction / (n * columns)
    total = max(row_part + column_part - shared, row_part, column_part)
    spread = row_part**2 / rows.df + column_part**2 / found.df
    spread += shared**2 / ((n - 1) * found.df)
    both = Estimate(rows.value, math.sqrt(total), total**2 / spread, n, CROSSED)
    return Crossed(both, rows, Estimate(rows.value, math.sqrt(column_part), found.df, n, CROSSED))


@dataclasses.dataclass(frozen=True)
class _Columns:
    """The variance of columns.

    Attributes:
        variance: Variance of the mean of all columns, times their number.
        interaction: The same for the residuals of one row after removing row and column effects.
        df: Degrees of freedom of the variance; the interaction has (rows - 1) times as many.
    """

    variance: float
    interaction: float
    df: int


def _independent(of_columns: np.ndarray, left: np.ndarray) -> _Columns:
    """For independent columns, given column means (columns,) and residuals (rows, columns)."""
    n, columns = left.shape
    interaction = float((left**2).sum()) / ((n - 1) * (columns - 1))
    return _Columns(float(of_columns.var(ddof=1)), interaction, columns - 1)


def _in_order(of_columns: np.ndarray, left: np.ndarray) -> _Columns:
    """For columns whose neighbors may be correlated."""
    n, columns = left.shape
    waves = _cosines(columns)
    df = waves.shape[1]
    variance = float(((of_columns @ waves) ** 2).sum()) / df
    interaction = float(((left @ waves) ** 2).sum()) / ((n - 1) * df)
    return _Columns(variance, interaction, df)


def _cosines(columns: int) -> np.ndarray:
    """The first B orthonormal type-II cosines after the constant one, shape (columns, B).

    B is the integer part of 0.4 columns^(2/3), the rule of Lazarus et al., and at least 1. A lower
    B is less biased by correlated neighbors; a higher one gives more degrees of freedom.
    """
    count = max(int(0.4 * np.cbrt(columns) ** 2), 1)
    middles = (np.arange(columns)[:, None] + 0.5) / columns
    return math.sqrt(2 / columns) * np.cos(np.pi * np.arange(1, count + 1) * middles)


def crossed_sample(sample: Sample, grid: Grid) -> Estimate | None:
    """The mean over a grid of seeds crossed with data orders; None if it does not vary."""
    values = np.array([[sample[r, c] for c in grid.columns] for r in grid.rows])
    found = crossed(values)
    return found and dataclasses.replace(found.both, n=min(values.shape))
