"""What the keys of a logged run are for.

A comparison loads neither plugins nor torch, so a run's log says the role of each of its keys. Logs
of earlier versions do not: their keys are those of training, two others, and what the model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from options import Role
from training_config import TRAINING_KEYS

_BEFORE_ROLES_WERE_LOGGED = {
    "arch_preset": Role.BOOKKEEPING,
    "attention_backend": Role.EXECUTION,
}


def role_of(key: str, recorded: Mapping[str, Any]) -> Role:
    """What a key is for: as its run recorded it, else as it was before runs did."""
    if recorded.get(key) in set(Role):
        return Role(recorded[key])
    if key in TRAINING_KEYS:
        return TRAINING_KEYS[key].role
    return _BEFORE_ROLES_WERE_LOGGED.get(key, Role.ARCHITECTURE)


def compared_by(key: str) -> tuple[str, str] | None:
    """Where a log has what a key's value came to, if runs are to be compared by that instead."""
    return TRAINING_KEYS[key].metadata.get("compared_by") if key in TRAINING_KEYS else None
