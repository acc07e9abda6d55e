"""The best learning rate of an arm, from a curve of losses over a grid of rates.

Every arm is tuned by the same grid, one run per rate, and then trained anew at the fitted optimum.
The runs of the curve are not those of the verdict: the best of several noisy numbers flatters. The
fitted rate is not exactly the best one, so an arm might do better than its final runs show; the
*allowance* bounds by how much, and widens the interval of its difference (`verdicts.Results`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from inference.quantiles import f_quantile

REACH = 2
"""Points of the grid on either side of the lowest that are fitted, at most."""

HIGHEST = 0.2
"""Points that lie more than this many nats above the lowest are not on the parabola."""

FEWEST = 3
"""Points that a range of losses can be told from."""

ASYMMETRY = 0.05
"""Squared grid steps that pay for curves which rise up to four times as fast on one side."""

CONFIDENCE = 0.95

SCATTER = 2.0
"""Standard deviations around the parabolas by which the lowest point may be so by chance alone: an
allowance is limited by the range of the fitted losses only if that is more."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """A parabola b0 + b1 z + c z^2 through the lowest points of a curve, and its minimum.

    Attributes:
        kept: First and last grid point of those fitted, both included.
        lowest: Grid point of the lowest loss.
        coefficients: (b0, b1, c); None for fewer than three points.
        inverse: (X'X)^-1 of the least-squares fit, 3 x 3; None likewise.
        optimum: The fitted optimum in grid steps, at most one step from the lowest point.
        vertex: The minimum of the parabola wherever it lies; the lowest point if there is none.
        range: See `range_of` the kept losses.
        at_edge: Whether the optimum lies at an end of the grid, which should then be extended.
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
        """The fitted loss at a place on the grid; needs three points."""
        b0, b1, c = self.coefficients
        return b0 + b1 * z + c * z * z

    def band(self, z: float, noise: Noise) -> float:
        """Half-width of the 95 % band of the fitted loss; needs three points."""
        x = np.array([1.0, z, z * z])
        variance = noise.variance * float(x @ self.inverse @ x)
        return math.sqrt(f_quantile(CONFIDENCE, 1, noise.df) * variance)


@dataclasses.dataclass(frozen=True)
class Noise:
    """How far losses scatter around their parabolas, over all arms of a sweep.

    Attributes:
        variance: Mean squared residual.
        df: Residuals beyond those that the parabolas take up; 0 if there are none.
    """

    variance: float
    df: int


def fit(losses: Sequence[float | None]) -> Fit | None:
    """The optimum of one arm's curve; None if no loss is finite.

    Args:
        losses: Of each grid point in order, None or infinite where the run failed.
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
    # Never past the lowest point towards a neighbour that failed or lies too high.
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
    """Highest minus lowest of the losses of those of several trials of a number that did not fail
    or end too high. HIGHEST if fewer than three are left, since the optimum may then lie anywhere
    between the points; 0 if there was one trial, and so nothing to choose."""
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
    """How far the loss at the best rate may lie below that at the fitted one, nats per token.

    c times the squared distance, in grid steps, that the optimum may be off: the variance of the
    vertex times F_.95, what clipping moved it, and ASYMMETRY. It is at most the range of the kept
    losses or SCATTER standard deviations, whichever is more, and equal to that where no minimum was
    fitted or nothing is known of the scatter.
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
    """The rate at a place between grid points, geometrically."""
    low = min(int(z), len(rates) - 2) if len(rates) > 1 else 0
    if len(rates) == 1:
        return rates[0]
    share = z - low
    return rates[low] ** (1 - share) * rates[low + 1] ** share


def _stretch(finite: dict[int, float], lowest: int, step: int) -> int:
    """The farthest grid point from the lowest in a direction that may be fitted with it."""
    z = lowest
    while abs(z + step - lowest) <= REACH and finite.get(z + step, math.inf) <= (
        finite[lowest] + HIGHEST
    ):
        z += step
    return z


def _parabola(
    kept: range, losses: Sequence[float]
) -> tuple[tuple[float, float, float] | None, np.ndarray | None]:
    """Least squares of 1, z, z^2, and (X'X)^-1; None for fewer than three points."""
    if len(kept) < FEWEST:
        return None, None
    x = np.vander(np.array(kept, dtype=float), 3, increasing=True)
    inverse = np.linalg.inv(x.T @ x)
    b0, b1, c = inverse @ x.T @ np.array(losses)
    return (float(b0), float(b1), float(c)), inverse
