"""The best learning rate of an arm, from a curve of losses over a grid of rates.

Every arm is tuned on the same grid with one run per rate, and then trained again at the fitted
optimum. The tuning runs are not used for the verdict, because the best of several noisy values is
biased. The fitted rate is not exactly optimal, so an arm might do better than its final runs show.
The *allowance* bounds by how much, and widens the interval of its difference (`verdicts.Results`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from inference.quantiles import f_quantile

REACH = 2
"""Maximum number of grid points fitted on each side of the lowest."""

HIGHEST = 0.2
"""Points more than this many nats above the lowest are not fitted."""

FEWEST = 3
"""Minimum number of points for a fit or a range of losses."""

ASYMMETRY = 0.05
"""Squared grid steps to allow for curves that rise up to four times as fast on one side."""

CONFIDENCE = 0.95

SCATTER = 2.0
"""Standard deviations around the parabolas by which the lowest point may be low by chance. An
allowance is limited to the range of the fitted losses only if that is larger."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """A parabola b0 + b1 z + c z^2 fitted to the lowest points of a curve, and its minimum.

    Attributes:
        kept: First and last fitted grid point, inclusive.
        lowest: Grid point with the lowest loss.
        coefficients: (b0, b1, c); None for fewer than three points.
        inverse: (X'X)^-1 of the least-squares fit, 3 x 3; None for fewer than three points.
        optimum: The fitted optimum in grid steps, at most one step from the lowest point.
        vertex: The unconstrained minimum of the parabola; the lowest point if there is none.
        range: `range_of` the fitted losses.
        at_edge: Whether the optimum is at an end of the grid, which should then be extended.
    """

    kept: tuple[int, int]
    lowest: int
    coefficients: tuple[float, float, float] | None
    inverse: np.ndarray | None
    optimum: float
    vertex: float
    range: float
    at_edge: bool

    @property
    def curved(self) -> bool:
        """Whether the parabola has a minimum."""
        return self.coefficients is not None and self.coefficients[2] > 0

    def loss(self, z: float) -> float:
        """The fitted loss at a position on the grid; needs three points."""
        b0, b1, c = self.coefficients
        return b0 + b1 * z + c * z * z

    def band(self, z: float, noise: Noise) -> float:
        """Half-width of the 95 % band of the fitted loss; needs three points."""
        x = np.array([1.0, z, z * z])
        variance = noise.variance * float(x @ self.inverse @ x)
        return math.sqrt(f_quantile(CONFIDENCE, 1, noise.df) * variance)


@dataclasses.dataclass(frozen=True)
class Noise:
    """The scatter of losses around their parabolas, over all arms of a sweep.

    Attributes:
        variance: Mean squared residual.
        df: Degrees of freedom of the residuals; may be 0.
    """

    variance: float
    df: int


def fit(losses: Sequence[float | None]) -> Fit | None:
    """Fit the optimum of an arm's curve; None if no loss is finite.

    Args:
        losses: The loss at each grid point in order; None or infinite if the run failed.
    """
    finite = {z: y for z, y in enumerate(losses) if y is not None and math.isfinite(y)}
    if not finite:
        return None
    lowest = min(finite, key=finite.__getitem__)
    first, last = (_stretch(finite, lowest, step) for step in (-1, 1))
    kept = range(first, last + 1)
    coefficients, inverse = _parabola(kept, [finite[z] for z in kept])
    vertex = float(lowest)
    if coefficients is not None and coefficients[2] > 0:
        vertex = -coefficients[1] / (2 * coefficients[2])
    # Never beyond the lowest point toward a neighbor that failed or is too high.
    low = lowest - 1 if first < lowest else lowest
    high = lowest + 1 if last > lowest else lowest
    optimum = min(max(vertex, low), high)
    return Fit(
        kept=(first, last),
        lowest=lowest,
        coefficients=coefficients,
        inverse=inverse,
        optimum=optimum,
        vertex=vertex,
        range=range_of([finite[z] for z in kept], len(losses)),
        at_edge=len(losses) > 1 and not 0 < optimum < len(losses) - 1,
    )


def range_of(kept: Sequence[float], tried: int) -> float:
    """The range of the losses of the usable trials, which neither failed nor were too high, out of
    `tried`. HIGHEST if fewer than three are usable, since the optimum may be anywhere between the
    points; 0 if there was only one trial, so that there was nothing to choose."""
    if tried == 1:
        return 0.0
    return max(kept) - min(kept) if len(kept) >= FEWEST else HIGHEST


def noise_of(curves: Sequence[Sequence[float | None]], fits: Sequence[Fit | None]) -> Noise:
    """The scatter around the parabolas of all arms."""
    squares, df = 0.0, 0
    for losses, own in zip(curves, fits, strict=True):
        if own is None or own.coefficients is None:
            continue
        points = range(own.kept[0], own.kept[1] + 1)
        squares += math.fsum((losses[z] - own.loss(z)) ** 2 for z in points)
        df += len(points) - 3
    return Noise(squares / df if df else 0.0, df)


def allowance(own: Fit, noise: Noise) -> float:
    """How much lower the loss at the best rate may be than at the fitted one, in nats per token.

    This is c times the squared error of the optimum in grid steps: the variance of the vertex times
    F_.95, plus the squared shift due to clipping, plus ASYMMETRY. It is limited to the range of the
    fitted losses or SCATTER standard deviations, whichever is more, and equal to that limit if no
    minimum was fitted or the scatter is unknown.
    """
    most = max(own.range, SCATTER * math.sqrt(noise.variance))
    if not own.curved or not noise.df:
        return most
    c = own.coefficients[2]
    z, inverse = own.vertex, own.inverse
    spread = inverse[1, 1] + 4 * z * inverse[1, 2] + 4 * z * z * inverse[2, 2]
    variance = noise.variance * float(spread) / (4 * c * c)
    clipped = (own.optimum - own.vertex) ** 2
    off = variance * f_quantile(CONFIDENCE, 1, noise.df) + clipped + ASYMMETRY
    return min(c * off, most)


def at_grid(rates: Sequence[float], z: float) -> float:
    """The rate at a position on the grid, interpolated geometrically."""
    low = min(int(z), len(rates) - 2) if len(rates) > 1 else 0
    if len(rates) == 1:
        return rates[0]
    share = z - low
    return rates[low] ** (1 - share) * rates[low + 1] ** share


def _stretch(finite: dict[int, float], lowest: int, step: int) -> int:
    """The farthest grid point from the lowest, in direction `step`, that can be fitted with it."""
    z = lowest
    while abs(z + step - lowest) <= REACH and finite.get(z + step, math.inf) <= (
        finite[lowest] + HIGHEST
    ):
        z += step
    return z


def _parabola(
    kept: range, losses: Sequence[float]
) -> tuple[tuple[float, float, float] | None, np.ndarray | None]:
    """Least-squares fit of 1, z, z^2, and (X'X)^-1; None for fewer than three points."""
    if len(kept) < FEWEST:
        return None, None
    x = np.vander(np.array(kept, dtype=float), 3, increasing=True)
    inverse = np.linalg.inv(x.T @ x)
    b0, b1, c = inverse @ x.T @ np.array(losses)
    return (float(b0), float(b1), float(c)), inverse
