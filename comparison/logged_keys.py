"""The keys of a logged run: their values in the keys of today, and what each is for.

A comparison never loads plugins, so a run's log says the role of each of its keys. Logs of earlier
versions do not; every key of theirs is known here, or else says what the model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from configurator import PRESET_KEYS
from errors import UserError
from model_config import MODEL_KEYS, ModelArchitectureConfig, architecture_keys
from options import Role
from saved_configs import upgraded
from training.config import TRAINING_KEYS

_OF_EVERY_RUN = PRESET_KEYS | MODEL_KEYS | TRAINING_KEYS


def role_of(key: str, recorded: Mapping[str, Any]) -> Role:
    """What a key is for: as its run recorded it, else as it is declared now."""
    if recorded.get(key) in set(Role):
        return Role(recorded[key])
    return _OF_EVERY_RUN[key].role if key in _OF_EVERY_RUN else Role.ARCHITECTURE


def compared_by(key: str) -> tuple[str, str] | None:
    """Where a log has what a key's value came to, if runs are to be compared by that instead."""
    return _OF_EVERY_RUN[key].metadata.get("compared_by") if key in _OF_EVERY_RUN else None


def readable_config(logged: Mapping[str, Any]) -> dict[str, Any]:
    """A logged config in the keys of today, without those of parts that no layer has.

    One with parts that are not loaded comes back with only its spelling brought up to date.
    """
    config = upgraded(logged)
    known = architecture_keys()
    model = {key: value for key, value in config.items() if key in known}
    try:
        made = ModelArchitectureConfig.from_dict(model).to_dict()
    except UserError:
        return config
    others = {key: value for key, value in config.items() if key not in known}
    return {**others, **{key: value for key, value in made.items() if key in model}}
