"""Means over two crossed sources of chance: seeds and documents, or seeds and orders of the data.

Numbers that share a seed, or share a document, are not independent. The variance of their mean is
that of the means of rows plus that of the means of columns, less what both count twice (Cameron,
Gelbach and Miller 2011, "Robust inference with multiway clustering").
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from inference.estimates import CROSSED, PAIRED, Estimate
from inference.grids import Grid
from inference.samples import Sample

NOTABLE = 0.1
"""Columns whose variance is below this share of that of rows change nothing."""


@dataclasses.dataclass(frozen=True)
class Crossed:
    """A mean over rows and columns.

    Attributes:
        both: For new rows and new columns.
        rows: For new rows and these columns.
        columns_matter: Whether the variance of columns is notable beside that of rows.
    """

    both: Estimate
    rows: Estimate
    columns_matter: bool


def crossed(values: np.ndarray, rows: Estimate | None = None) -> Crossed | None:
    """The mean of differences and its error.

    Args:
        values: One difference for each row (seed) and column (document), two or more of each.
        rows: The estimate from the means of rows, if something better than their own variance is
            known, such as a moderated one; `both` then has its value.

    Returns:
        None if the means of rows do not vary.
    """
    n, columns = values.shape
    mean, of_rows, of_columns = values.mean(), values.mean(axis=1), values.mean(axis=0)
    if rows is None:
        error = math.sqrt(of_rows.var(ddof=1) / n)
        if error == 0:
            return None
        rows = Estimate(float(mean), error, n - 1, n, PAIRED)
    left = values - of_rows[:, None] - of_columns + mean
    interaction = float((left**2).sum()) / ((n - 1) * (columns - 1))
    row_part = rows.error**2
    column_part = float(of_columns.var(ddof=1)) / columns
    shared = interaction / (n * columns)
    total = max(row_part + column_part - shared, row_part, column_part)
    spread = row_part**2 / rows.df + column_part**2 / (columns - 1)
    spread += shared**2 / ((n - 1) * (columns - 1))
    both = Estimate(rows.value, math.sqrt(total), total**2 / spread, n, CROSSED)
    return Crossed(both, rows, column_part > NOTABLE * row_part)


def crossed_sample(sample: Sample, grid: Grid) -> Estimate | None:
    """The mean over a grid of seeds crossed with orders of the data; None if it does not vary."""
    values = np.array([[sample[r, c] for c in grid.columns] for r in grid.rows])
    found = crossed(values)
    return found and dataclasses.replace(found.both, n=min(values.shape))
