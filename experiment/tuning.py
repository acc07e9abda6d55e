"""Evaluate tuning trials: the values to train each arm with, and their uncertainty."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence

from experiment.arms import Arm
from experiment.trials import Choice, Trial
from inference.tuning import FEWEST, HIGHEST, Fit, allowance, at_grid, fit, noise_of
from options import KEYS


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The outcome of the trials of an arm.

    Attributes:
        arm: The arm with the settings of its final runs.
        choice: The values of the tuned keys; empty if nothing was tuned.
        key: The key for which a curve was fitted; None if there is no curve.
        tried: Its tried values as written on the command line, in increasing order.
        losses: The mean loss for each value; None if a run failed.
        fit: The fitted optimum; None without a curve.
        spread: Range of the losses of the trials, excluding those more than HIGHEST above the
            lowest; see `inference.tuning.range_of`.
        edges: The keys whose chosen value is the lowest or highest tried value.
    """

    arm: Arm
    choice: Choice
    key: str | None = None
    tried: tuple[str, ...] = ()
    losses: tuple[float | None, ...] = ()
    fit: Fit | None = None
    spread: float = 0.0
    edges: tuple[str, ...] = ()


def outcome(arm: Arm, trials: Sequence[Trial], losses: Sequence[float | None]) -> Tuned:
    """Evaluate the trials of an arm.

    For a single tuned number, such as the learning rate, a parabola is fitted to the losses, and
    the arm is trained at its optimum. Otherwise the trial with the lowest loss is chosen.

    Args:
        arm: The untuned arm.
        trials: All trials of the arm; empty if nothing is tuned.
        losses: The mean loss of each trial over the tuning seeds; None if a run failed.
    """
    if not trials:
        return Tuned(arm, {})
    finite = [loss for loss in losses if loss is not None]
    lowest = min(finite, default=math.inf)
    best = trials[losses.index(lowest) if finite else 0]
    key = _number_of(trials)
    near = [
        (trial, loss)
        for trial, loss in zip(trials, losses, strict=True)
        if loss is not None and loss <= lowest + HIGHEST
    ]
    spread = _spread(near, trials)
    if key is None:
        return Tuned(best.arm, best.choice, spread=spread, edges=_edges(best, trials))
    ordered = sorted(zip(trials, losses, strict=True), key=lambda pair: float(pair[0].choice[key]))
    tried = tuple(trial.choice[key] for trial, _ in ordered)
    curve = tuple(loss for _, loss in ordered)
    found = fit(curve)
    if found is None:
        return Tuned(best.arm, best.choice, key, tried, curve, spread=spread)
    value = _spelled(at_grid([float(text) for text in tried], found.optimum), tried)
    nearest = ordered[round(found.optimum)][0].arm
    fitted = dataclasses.replace(nearest, flags={**nearest.flags, key: value})
    edges = (key,) if found.at_edge else ()
    return Tuned(fitted, {key: value}, key, tried, curve, found, spread, edges)


def _spread(near: Sequence[tuple[Trial, float]], trials: Sequence[Trial]) -> float:
    """The range of the losses of the trials near the best one; HIGHEST if they include too few
    values of a numeric key, see `range_of`. For other keys, the trials are exhaustive."""
    losses = [loss for _, loss in near]
    tried, kept = _numbers(trials), _numbers([trial for trial, _ in near])
    coarse = any(
        len(values) > 1 and len(kept.get(key, ())) < FEWEST for key, values in tried.items()
    )
    if coarse or not losses:
        return HIGHEST if len(trials) > 1 else 0.0
    return max(losses) - min(losses)


def _edges(best: Trial, trials: Sequence[Trial]) -> tuple[str, ...]:
    """The numeric keys whose value in the best trial is the lowest or highest tried."""
    return tuple(
        key
        for key, values in _numbers(trials).items()
        if len(values) > 1 and float(best.choice[key]) in (min(values), max(values))
    )


def _numbers(trials: Sequence[Trial]) -> dict[str, set[float]]:
    """The tried values of each numeric key."""
    found = {}
    for key in dict.fromkeys(key for trial in trials for key in trial.choice):
        with contextlib.suppress(ValueError):
            found[key] = {float(trial.choice[key]) for trial in trials if key in trial.choice}
    return found


def allowances(tuned: Mapping[str, Tuned]) -> dict[str, float]:
    """For each arm, how much lower the loss could be at its best value than in its final runs, in
    nats per token; see `inference.tuning.allowance`. The scatter is pooled over the arms."""
    noise = noise_of([own.losses for own in tuned.values()], [own.fit for own in tuned.values()])
    return {
        name: own.spread if own.fit is None else allowance(own.fit, noise)
        for name, own in tuned.items()
    }


def _number_of(trials: Sequence[Trial]) -> str | None:
    """The only tuned key, if its values are positive numbers and it accepts any value in between;
    else None."""
    keys = {key for trial in trials for key in trial.choice}
    if len(keys) != 1:
        return None
    [key] = keys
    if KEYS[key].annotation not in (float, float | None):
        return None
    try:
        values = [float(trial.choice[key]) for trial in trials]
    except ValueError:  # `none` or a pattern
        return None
    return key if min(values) > 0 else None


def _spelled(value: float, tried: Sequence[str]) -> str:
    """Format a value with three digits; tried values keep their notation."""
    same = [text for text in tried if abs(float(text) / value - 1) < 1e-9]
    return same[0] if same else f"{value:.3g}"
