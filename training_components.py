"""The catalog of training components: every registry and its config key.

    python training_components.py

prints them in the format of `model_components.py`.
"""

from __future__ import annotations

import recipe.adafactor
import recipe.lion
import recipe.muon  # noqa: F401  (imported to register their components)
from cli import run_cli
from components.registry import Registry
from model_components import REGISTRIES, main
from recipe.adapters import ADAPTERS
from recipe.dtypes import DTYPES
from recipe.log_sinks import LOG_SINKS
from recipe.objectives import OBJECTIVES
from recipe.optimizers import OPTIMIZERS
from recipe.schedules import LR_SCHEDULES

TRAINING_REGISTRIES: dict[str, Registry] = {
    registry.key: registry
    for registry in (OPTIMIZERS, LR_SCHEDULES, OBJECTIVES, ADAPTERS, LOG_SINKS, DTYPES)
}

ALL_REGISTRIES: dict[str, Registry] = REGISTRIES | TRAINING_REGISTRIES
"""All registries, including those of model components."""

__all__ = [
    "ADAPTERS",
    "ALL_REGISTRIES",
    "DTYPES",
    "LOG_SINKS",
    "LR_SCHEDULES",
    "OBJECTIVES",
    "OPTIMIZERS",
    "TRAINING_REGISTRIES",
]

if __name__ == "__main__":
    run_cli(lambda argv: main(argv, TRAINING_REGISTRIES, __doc__))
