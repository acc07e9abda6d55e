"""The curves of a run, thinned to a bounded number of points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pages.thinning import with_spikes

MOST_POINTS = 500
"""Maximum number of points of a curve on the page; spikes are kept."""

BYTES = (" B", " kB", " MB", " GB", " TB")
COUNTS = ("", "K", "M", "B", "T")


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve of a panel.

    Attributes:
        kind: The kind of records that contain its values.
        places: Key paths at which a record may have the value; the first one found is used.
        hue: The CSS class of its color.
        dash: Lengths of dashes and gaps in pixels; `none`: solid.
        marked: Whether each point has a marker.
    """

    name: str
    kind: str
    places: tuple[tuple[str, ...], ...]
    hue: str
    dash: str = "none"
    marked: bool = False

    def value(self, record: Mapping[str, Any]) -> float | None:
        """The value in a record; None if there is no finite one."""
        for place in self.places:
            found: Any = record
            for key in place:
                found = found.get(key) if isinstance(found, Mapping) else None
            if found is not None:
                return found
        return None


@dataclasses.dataclass(frozen=True)
class Panel:
    """A chart of the page.

    Attributes:
        name: The anchor of the panel.
        unit: The unit of its values, for the title.
        units: Scaled units of the axis labels; None: plain decimals.
        logarithmic: Whether a large range of values gets a logarithmic axis.
        from_zero: Whether the axis starts at zero.
    """

    name: str
    title: str
    unit: str
    curves: tuple[Curve, ...]
    units: tuple[str, ...] | None = None
    logarithmic: bool = False
    from_zero: bool = False


PANELS = (
    Panel(
        "loss",
        "Loss",
        "nats per token",
        (
            Curve("training", "train", (("loss",),), "hue-5"),
            Curve("validation", "eval", (("val_loss",),), "hue-2", marked=True),
        ),
        logarithmic=True,
    ),
    Panel(
        "lr", "Learning rate", "", (Curve("lr", "train", (("lr",),), "hue-1"),), ("",), False, True
    ),
    Panel(
        "gradient",
        "Gradient norm",
        "",
        (Curve("norm", "train", (("gradients", "norm"),), "hue-3"),),
        logarithmic=True,
    ),
    Panel(
        "throughput",
        "Throughput",
        "tokens/s",
        (Curve("tokens/s", "train", (("tokens_per_second",),), "hue-1"),),
        COUNTS,
        from_zero=True,
    ),
    Panel(
        "memory",
        "Memory",
        "",
        (
            Curve("in use", "train", (("memory", "allocated"), ("memory", "resident")), "hue-4"),
            Curve("peak so far", "train", (("memory", "peak"),), "hue-0", "4 4"),
        ),
        BYTES,
        from_zero=True,
    ),
)

_FAR_APART = 30.0  # ratio of highest to lowest value above which the axis is logarithmic

Point = tuple[float, float, float, float]
"""Steps, tokens, wall-clock seconds, value."""


class Series:
    """The points of one curve; stores at most twice MOST_POINTS."""

    def __init__(self, curve: Curve):
        self._curve = curve
        self._points: list[Point] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Add the point of a record of metrics.jsonl, if it has one."""
        value = self._curve.value(record) if record["kind"] == self._curve.kind else None
        if value is None:
            return
        self._points.append((record["iter"], record["tokens_seen"], record["wall_seconds"], value))
        if len(self._points) > 2 * MOST_POINTS:
            self._points = self.thinned()

    def thinned(self) -> list[Point]:
        """At most MOST_POINTS of the points, including every spike."""
        return with_spikes(self._points, MOST_POINTS, lambda point: point[3])


class Panels:
    """The panels of a run, filled record by record."""

    def __init__(self) -> None:
        self._series = {panel: [Series(curve) for curve in panel.curves] for panel in PANELS}

    def add(self, record: Mapping[str, Any]) -> None:
        for series in self._every():
            series.add(record)

    def _every(self) -> Iterator[Series]:
        for own in self._series.values():
            yield from own

    def data(self) -> dict[str, Any]:
        """The data that run.js draws: axes, and panels with their points."""
        points = {
            panel: [series.thinned() for series in own] for panel, own in self._series.items()
        }
        longest = max((p[2] for own in points.values() for c in own for p in c), default=0.0)
        time, seconds = _time_unit(longest)
        return {
            "axes": {
                "steps": _axis("steps", "optimizer steps", COUNTS, "step {number}", whole=True),
                "tokens": _axis("tokens", "training tokens", COUNTS, "{number}{unit} tokens"),
                "time": _axis("time", f"wall-clock time ({time})", ("",), f"{{number}} {time}"),
            },
            "panels": [_panel(panel, own, seconds) for panel, own in points.items() if any(own)],
        }


def _axis(
    short: str, title: str, units: tuple[str, ...], words: str, *, whole: bool = False
) -> dict[str, Any]:
    decimals = 0 if whole else 2
    return {
        "short": short,
        "title": title,
        "units": units,
        "tellUnits": ("",) if whole else units,
        "decimals": decimals,
        "words": words,
    }


def _time_unit(longest: float) -> tuple[str, float]:
    """The unit for times up to `longest` seconds, and its length in seconds."""
    units = (("s", 1.0, 300.0), ("min", 60.0, 4 * 3600.0), ("h", 3600.0, 10 * 86400.0))
    fitting = (unit[:2] for unit in units if longest <= unit[2])
    return next(fitting, ("days", 86400.0))


def _panel(panel: Panel, points: list[list[Point]], seconds: float) -> dict[str, Any]:
    values = [point[3] for own in points for point in own]
    far = min(values) > 0 and max(values) > _FAR_APART * min(values)
    return {
        "name": panel.name,
        "units": panel.units,
        "logarithmic": panel.logarithmic and far,
        "fromZero": panel.from_zero and min(values) >= 0,
        "curves": [
            {
                "name": curve.name,
                "hue": curve.hue,
                "dash": curve.dash,
                "marked": curve.marked,
                "steps": [point[0] for point in own],
                "tokens": [point[1] for point in own],
                "time": [_rounded(point[2] / seconds) for point in own],
                "values": [_rounded(point[3]) for point in own],
            }
            for curve, own in zip(panel.curves, points, strict=True)
            if own
        ],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
