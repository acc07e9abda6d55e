"""Suggest the command to run next if one run per arm allows no verdict."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from comparison.groups import Group

SEEDS = 5

_SHARED = (
    *("arch_preset", "n_layer", "n_head", "n_embd", "block_size", "dataset", "max_iters"),
    *("batch_size", "gradient_accumulation_steps", "learning_rate", "dtype", "eval_tokens"),
)
"""Keys that the command sets if all arms have the same value."""


def command_for_verdicts(
    baseline: Group, arms: Sequence[tuple[Group, Mapping[str, Any]]]
) -> str | None:
    """The command of a sweep that compares the same arms over several seeds; None if no sweep can.

    Args:
        baseline: The baseline of the arms.
        arms: Each arm, with the keys in which it differs from the baseline and its values.
    """
    varied = _varied(baseline, arms)
    if varied is None:
        return None
    shared = {
        key: value
        for key, value in baseline.config.items()
        if key in _SHARED
        and value is not None
        and (key in varied or all(group.config.get(key) == value for group, _ in arms))
    }
    flags = [f"--{key}={shared[key]}" for key in _SHARED if key in shared]
    lists = [
        word
        for key, values in varied.items()
        for word in ("--vary", f"{key}={','.join(map(str, values))}")
    ]
    return shlex.join(["python", "sweep.py", *flags, *lists, f"--seeds={SEEDS}"])


def _varied(
    baseline: Group, arms: Sequence[tuple[Group, Mapping[str, Any]]]
) -> dict[str, list[Any]] | None:
    """The keys to vary, and their values: the preset, or single keys of one preset."""
    presets = [baseline.config.get("arch_preset")]
    presets += [group.config.get("arch_preset") for group, _ in arms]
    if None in presets or not arms:
        return None
    if len(set(presets)) == len(presets):
        return {"arch_preset": presets[1:]}
    if len(set(presets)) > 1 or any(len(changes) != 1 for _, changes in arms):
        return None
    varied: dict[str, list[Any]] = {}
    for _, changes in arms:
        [(key, value)] = changes.items()
        varied.setdefault(key, []).append("none" if value is None else value)
    return varied
