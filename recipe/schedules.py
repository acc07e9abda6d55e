"""Learning-rate schedules after the warm-up: `lr_schedule`. A schedule is created from the training
config with its derived values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from components.registry import Registry
from errors import Problem
from options import Role, Section

_schedule = Section("Length and learning rate", Role.RECIPE)


class Schedule:
    """A learning-rate schedule, starting at the end of the warm-up."""

    def __init__(self, config: Any):
        self.config = config

    def rate(self, position: float) -> float:
        """The learning rate at a position after the warm-up, in steps."""
        raise NotImplementedError

    @classmethod
    def problems(cls, config: Any) -> Iterator[Problem]:
        """Yield problems with the training config."""
        return iter(())


LR_SCHEDULES = Registry(
    "lr_schedule",
    "Learning-rate schedule",
    variable="LR_SCHEDULES",
    base=Schedule,
    role=Role.RECIPE,
)


class Decay(Schedule):
    """Decays from the peak to `min_lr` at `lr_decay_iters`, and stays there."""

    class Options:
        lr_decay_iters: int | None = _schedule.option(
            None,
            "step at which the learning-rate decay ends; none: max_iters",
            at_least=1,
            role=Role.LENGTH,
            derive=lambda config: max(config.max_iters, 1),
        )
        min_lr: float | None = _schedule.option(
            None,
            "final learning rate; none: learning_rate/10",
            at_least=0,
            derive=lambda config: config.learning_rate / 10,
        )

    def rate(self, position: float) -> float:
        begin, end = self.decay_begins(), self.config.lr_decay_iters
        progress = 1.0 if position >= end else max(position - begin, 0.0) / (end - begin)
        peak, lowest = self.config.learning_rate, self.config.min_lr
        return lowest + self.share(progress) * (peak - lowest)

    def decay_begins(self) -> float:
        """The step at which the decay starts."""
        return self.config.warmup_iters

    def share(self, progress: float) -> float:
        """The position between `min_lr` (0) and the peak (1), from 1 at progress 0 to 0 at 1."""
        raise NotImplementedError

    @classmethod
    def problems(cls, config: Any) -> Iterator[Problem]:
        if config.min_lr > config.learning_rate:
            yield Problem(
                ("min_lr", "learning_rate"),
                f"min_lr={config.min_lr:g} is above learning_rate={config.learning_rate:g}; lower "
                "min_lr.",
            )


@LR_SCHEDULES.register(
    "cosine", label="Cosine", paper="Loshchilov and Hutter 2016 (SGDR), arXiv 1608.03983"
)
class Cosine(Decay):
    """Half a cosine period, without restarts."""

    def share(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))


@LR_SCHEDULES.register("linear", label="Linear")
class Linear(Decay):
    """Linear decay."""

    def share(self, progress: float) -> float:
        return 1.0 - progress


@LR_SCHEDULES.register("wsd", label="WSD", paper="Hu et al. 2024 (MiniCPM), arXiv 2404.06395")
class WarmupStableDecay(Linear):
    """Constant at the peak, then linear decay over the last `wsd_decay_fraction` of the steps."""

    class Options:
        wsd_decay_fraction: float = _schedule.option(
            0.2,
            "fraction of lr_decay_iters over which the learning rate decays",
            above=0,
            at_most=1,
        )

    def decay_begins(self) -> float:
        stable = self.config.lr_decay_iters * (1.0 - self.config.wsd_decay_fraction)
        return max(stable, self.config.warmup_iters)


@LR_SCHEDULES.register("constant", label="Constant")
class Constant(Schedule):
    """Constant at the peak."""

    def rate(self, position: float) -> float:
        return self.config.learning_rate


def learning_rate_at(position: float, config: Any) -> float:
    """The learning rate at a position on the schedule, in steps from 0; may be fractional.

    Linear warm-up over `warmup_iters` steps, above zero from the first step, then `lr_schedule`.
    """
    if position < config.warmup_iters:
        return config.learning_rate * (position + 1) / (config.warmup_iters + 1)
    return LR_SCHEDULES[config.lr_schedule](config).rate(position)
