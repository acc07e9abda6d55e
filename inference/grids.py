"""Independence of the values of a sample: plain seeds, or seeds crossed with data orders.

A run has a seed and a data order (data_seed). Runs that share one of the two are not independent,
so the values of n runs may carry less information than n independent ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Hashable


@dataclasses.dataclass(frozen=True)
class Grid:
    """A full grid of seeds and data orders.

    Attributes:
        rows: The seeds, two or more.
        columns: The data orders, two or more.
    """

    rows: tuple[Hashable, ...]
    columns: tuple[Hashable, ...]

    @property
    def cells(self) -> list[tuple[Hashable, Hashable]]:
        return [(row, column) for row in self.rows for column in self.columns]


def independent(cells: Collection[Hashable]) -> bool:
    """Whether no two cells share a seed or a data order, or all of them share the same one, so that
    the result is conditional on it. Cells that are not pairs are plain seeds."""
    lines = _lines(cells)
    return lines is None or min(map(len, lines)) == 1 or {*map(len, lines)} == {len(cells)}


def full_grid(cells: Collection[Hashable]) -> Grid | None:
    """A full grid within these pairs, all of them if they form one; None if there is none.

    Rows and columns are removed until no cell is missing, those with most missing cells first.
    """
    lines = _lines(cells)
    if lines is None:
        return None
    rows, columns = lines
    have = set(cells)
    while min(len(rows), len(columns)) > 1:
        of_rows = {r: sum((r, c) not in have for c in columns) / len(columns) for r in rows}
        of_columns = {c: sum((r, c) not in have for r in rows) / len(rows) for c in columns}
        worst_row, worst_column = (max(own, key=own.__getitem__) for own in (of_rows, of_columns))
        if not of_rows[worst_row]:
            return Grid(tuple(rows), tuple(columns))
        if of_rows[worst_row] >= of_columns[worst_column]:
            rows = [r for r in rows if r != worst_row]
        else:
            columns = [c for c in columns if c != worst_column]
    return None


def _lines(cells: Collection[Hashable]) -> tuple[list[Hashable], list[Hashable]] | None:
    """The distinct rows and columns of the pairs, in order; None if the cells are not pairs."""
    if not cells or not all(isinstance(cell, tuple) and len(cell) == 2 for cell in cells):
        return None
    rows, columns = zip(*cells, strict=True)
    return list(dict.fromkeys(rows)), list(dict.fromkeys(columns))
