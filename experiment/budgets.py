"""Equal budgets: the run length of each arm, so that all arms spend the same."""

from __future__ import annotations

import dataclasses

from configurator import Settings
from errors import UserError
from training_config import kept_share

UNITS = ("tokens", "flops", "minutes")
SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}

UNREACHED = 1_000_000_000
"""max_iters of a run with a time budget; its schedule is scaled from this many steps."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """The budget of every arm.

    Attributes:
        unit: tokens (training tokens), flops (training FLOPs, by the full convention) or minutes
            (of training steps, on the machine that runs the sweep).
        amount: The amount in that unit.
    """

    unit: str
    amount: float

    def steps(self, tokens_per_step: int, flops_per_token: float) -> int:
        """The number of steps closest to a budget of tokens or FLOPs; at least one."""
        per_step = tokens_per_step * (flops_per_token if self.unit == "flops" else 1)
        return max(1, round(self.amount / per_step))


def parse_budget(text: str) -> Budget:
    """Parse `tokens=20M`, `flops=1e15` or `minutes=10`. Raises UserError for anything else."""
    unit, _, number = text.partition("=")
    scale = SUFFIXES.get(number[-1:].upper(), 1.0)
    try:
        amount = float(number[:-1] if scale > 1 else number) * scale
    except ValueError:
        amount = 0.0
    if unit not in UNITS or not 0 < amount < float("inf"):
        raise UserError(
            f"cannot parse {text!r}; write tokens=20M, flops=1e15 or minutes=10, with a number "
            "above 0."
        )
    return Budget(unit, amount)


def length_flags(budget: Budget, settings: Settings, flops_per_token: float) -> dict[str, str]:
    """The flags that make a run spend the budget.

    If the config sets the warm-up or decay length, it keeps its fraction of max_iters; otherwise it
    is derived from the new length.
    """
    training = settings.training
    if budget.unit == "minutes":
        steps, minutes = UNREACHED, budget.amount
    else:
        steps, minutes = budget.steps(training.tokens_per_step, flops_per_token), 0.0
    flags = {"max_iters": str(steps)}
    if training.max_minutes != minutes:
        flags["max_minutes"] = repr(minutes)
    for key in ("warmup_iters", "lr_decay_iters"):
        value = training.get(key)
        if value is not None and key not in settings.derived:
            flags[key] = str(kept_share(value, training.max_iters, steps))
    return flags
