"""Long curves with fewer points, their spikes kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Point = TypeVar("Point")


def with_spikes(
    points: Sequence[Point], most: int, height: Callable[[Point], float]
) -> list[Point]:
    """At most `most` of the points, at least 4, in order.

    They are the first, the last, and of each of equally many points between them the lowest and the
    highest: no spike is lost, also if the result is thinned again.
    """
    if len(points) <= most:
        return list(points)
    buckets = (most - 2) // 2
    inner = len(points) - 2
    chosen = {0, len(points) - 1}
    for bucket in range(buckets):
        stretch = range(1 + bucket * inner // buckets, 1 + (bucket + 1) * inner // buckets)
        chosen.add(min(stretch, key=lambda i: height(points[i])))
        chosen.add(max(stretch, key=lambda i: height(points[i])))
    return [points[i] for i in sorted(chosen)]
