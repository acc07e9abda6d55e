"""Tuning trials: what each arm tries before its final runs, with equal numbers of trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import product

from errors import ConfigError, UserError
from experiment.arms import Arm, ArmMaker, used_by_none
from experiment.request import Request
from options import KEYS

Choice = Mapping[str, str]
"""Values of the tuned keys, as written on the command line."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A combination of values that an arm tries.

    Attributes:
        choice: The values of the tuned keys that the arm uses.
        arm: The arm with these values, with equal size and budget.
    """

    choice: Choice
    arm: Arm


def equal_trials(maker: ArmMaker, arms: Sequence[Arm]) -> dict[str, tuple[Trial, ...]]:
    """Create the trials of each arm; empty if nothing is tuned.

    Args:
        maker: The maker of the arms.
        arms: The arms with equal sizes and budgets, the baseline first.

    Raises:
        ConfigError: If a trial cannot be trained, or no trial uses a key.
        UserError: If some arms have more trials than others, or trials cannot be made equal.
    """
    trials = {arm.name: _trials_of(arm, maker, arms[0]) for arm in arms}
    unused = list(used_by_none([trial.arm for own in trials.values() for trial in own]))
    if unused:
        raise ConfigError(unused)
    _refuse_unequal(maker.request, trials)
    return trials


def _trials_of(arm: Arm, maker: ArmMaker, baseline: Arm) -> tuple[Trial, ...]:
    """All combinations of the tuned values, restricted to keys that the arm uses."""
    tune = maker.request.tune
    cells = product(*tune.values()) if tune else ()
    trials: dict[str, Trial] = {}
    for cell in cells:
        values = dict(zip(tune, cell, strict=True))
        made = maker.trial(arm, values, baseline)
        choice = {key: text for key, text in values.items() if key not in made.settings.unused}
        trials.setdefault(repr(choice), Trial(choice, made))
    return tuple(trials.values())


def _refuse_unequal(request: Request, trials: Mapping[str, Sequence[Trial]]) -> None:
    """Raise UserError if arms have different numbers of trials, which would be unfair. An arm has
    fewer if it does not use a tuned key."""
    most = max(trials, key=lambda name: len(trials[name]))
    fewest = min(trials, key=lambda name: len(trials[name]))
    if len(trials[most]) == len(trials[fewest]):
        return
    uses = {key: sum(key in trial.choice for trial in trials[fewest]) for key in request.tune}
    lacking = min(uses, key=uses.__getitem__)
    raise UserError(
        f"--tune {lacking}: arm {fewest} does not use {KEYS.owned_by(lacking)}, which the key "
        f"belongs to, so it would get {count_trials(len(trials[fewest]))}, but arm {most} would "
        f"get {len(trials[most])}. Give every arm the same number: also tune a key that only "
        f"{fewest} has, with as many values, or drop --tune {lacking}."
    )


def count_trials(count: int) -> str:
    """`1 trial`, `2 trials`"""
    return f"{count} trial{'s' * (count > 1)}"
