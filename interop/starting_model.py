"""The model of `init_from`: the base of a run's architecture, and its first weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from configurator import Asked, Base, Settings, resolve
from errors import Problem, UserError, quoted
from interop.families import OF_A_RUN, family_of, read_fields
from model_config import ModelArchitectureConfig


def new_settings(asked: Asked, *, allow_unused: Collection[str] = ()) -> Settings:
    """The settings of a new run, whose model is a preset's or that of `init_from`.

    Raises ConfigError with every problem; see `configurator.resolve` for `allow_unused`.
    """
    base, problems = starting_base(asked)
    return resolve(asked, base, problems, allow_unused=allow_unused)


def starting_base(asked: Asked) -> tuple[Base | None, list[Problem]]:
    """The base that the model in the folder of `init_from` is, and what is wrong about it.

    Returns:
        The base, or None where no folder is named or it cannot be used; and the problems: that
        there is no such model, or which keys are at odds with it.
    """
    item = asked.given.get("init_from")
    if item is None or not isinstance(item.value, str) or item.value == "none":
        return None, []
    folder = item.value
    try:
        fields = read_fields(Path(folder))
        keys = ModelArchitectureConfig.from_dict(family_of(fields).read(fields)).to_dict()
    except UserError as error:
        message = (
            f"{item.origin}: {error} init_from takes a folder that transformers' save_pretrained "
            "wrote; to go on with a run, use resume."
        )
        return None, [Problem(("init_from",), message)]
    keys = {key: value for key, value in keys.items() if key not in OF_A_RUN}
    problems = [
        Problem(
            (key, "init_from"),
            f"{own.origin}: {key}={quoted(own.value)}, but the model of init_from={folder!r} has "
            f"{key}={keys.get(key)!r}; drop it, or train another model without init_from.",
        )
        for key, own in asked.given.items()
        if key in keys and own.value != keys[key]
    ]
    if "arch_preset" in asked.given:
        message = (
            f"{asked.given['arch_preset'].origin}: arch_preset does nothing beside "
            f"init_from={folder!r}, which says what the architecture is; drop one."
        )
        problems.append(Problem(("arch_preset", "init_from"), message))
    return Base(keys, f"init_from {folder}", "custom"), problems
