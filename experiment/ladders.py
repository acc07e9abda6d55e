"""Ladders of sweeps: a comparison at several sizes or budgets, each tuned and decayed separately.

Every rung is a sweep in its own folder; `series_file` lists them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from errors import ConfigError, Problem, UserError
from experiment.arms import Arm, ArmMaker
from experiment.budgets import SUFFIXES, Budget
from experiment.matching import TOLERANCE, counter, embedding_widths
from experiment.plan import Plan, make_plan
from experiment.request import Request
from experiment.series_file import MOST_MEMBERS
from inference.ladder import FEWEST_RUNGS, FEWEST_SEEDS, FEWEST_SPAN

UNITS = ("params", "tokens", "flops")

_POWER = {"params": 2, "tokens": 1, "flops": 1}
"""Compute scales as this power of the unit, since larger models train for longer."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """The rungs of a ladder.

    Attributes:
        unit: params, tokens or flops.
        amounts: The amount of each rung, as written and as a number, in increasing order.
    """

    unit: str
    amounts: tuple[tuple[str, float], ...]


def parse_ladder(words: str) -> Steps:
    """Parse `params=1M,2M,4M,8M`. Raises UserError for anything else, or a ladder that is too
    short."""
    unit, _, listed = words.partition("=")
    try:
        amounts = tuple((word, _amount(word)) for word in listed.split(","))
    except ValueError:
        amounts = ()
    numbers = [amount for _, amount in amounts]
    rising = all(low < high for low, high in zip(numbers, numbers[1:], strict=False))
    if unit not in UNITS or not amounts or not rising or not 0 < numbers[0] <= numbers[-1] < 1e30:
        raise UserError(
            f"cannot parse {words!r}; write params=1M,2M,4M, tokens=1M,4M,16M or flops=1e13,1e14,"
            "1e15, with increasing numbers above 0."
        )
    if not FEWEST_RUNGS <= len(amounts) <= MOST_MEMBERS:
        raise UserError(
            f"{words!r} has {len(amounts)} rungs; a ladder needs {FEWEST_RUNGS} to {MOST_MEMBERS}."
        )
    span = (numbers[-1] / numbers[0]) ** _POWER[unit]
    if span < FEWEST_SPAN * (1 - TOLERANCE):
        raise UserError(
            f"{words!r} spans {span:.3g}x in compute; a ladder needs {FEWEST_SPAN:.0f}x to "
            "determine whether a difference grows. Raise the last number or lower the first."
        )
    return Steps(unit, amounts)


def _amount(word: str) -> float:
    scale = SUFFIXES.get(word[-1:].upper(), 1.0)
    return float(word[:-1] if scale > 1 else word) * scale


def make_rungs(request: Request, steps: Steps, directory: Path) -> list[tuple[str, Plan]]:
    """The label and plan of each rung, in increasing order.

    With `params`, the width (`n_embd`) of every rung is chosen to give the baseline about that many
    parameters (active ones for a mixture of experts). The first rung trains on the requested
    tokens, the others on proportionally more for their parameters. With `tokens` and `flops`, the
    models are unchanged and train with that budget.

    Raises:
        ConfigError: If the request is not valid for a ladder.
        UserError: If a rung cannot be created.
    """
    problems = list(_problems(request, steps))
    if problems:
        raise ConfigError(problems)
    sized = _by_size if steps.unit == "params" else _by_budget
    plans = []
    for label, own in sized(request, steps):
        name = request.name and f"{request.name}-{label.replace('=', '-')}"
        plans.append((label, make_plan(dataclasses.replace(own, name=name), directory)))
    return plans


def _problems(request: Request, steps: Steps) -> list[Problem]:
    found = []
    if request.until_sure:
        message = "--ladder compares the same seeds at every rung; use --seeds, not --until_sure."
        found.append(Problem((), message))
    elif request.seeds < FEWEST_SEEDS:
        message = f"--ladder needs at least {FEWEST_SEEDS} seeds, not {request.seeds}."
        found.append(Problem(("seeds",), message))
    if request.budget and (steps.unit != "params" or request.budget.unit == "minutes"):
        message = "--ladder sets the budget of every rung; drop --budget."
        found.append(Problem((), message))
    if steps.unit == "params" and "n_embd" in {*request.flags, *request.vary}:
        message = "--ladder params=... sets n_embd; drop it."
        found.append(Problem(("n_embd",), message))
    return found


def _by_budget(request: Request, steps: Steps) -> list[tuple[str, Request]]:
    return [
        (
            f"{steps.unit}={word}",
            dataclasses.replace(request, budget=Budget(steps.unit, amount)),
        )
        for word, amount in steps.amounts
    ]


def _by_size(request: Request, steps: Steps) -> list[tuple[str, Request]]:
    given = ArmMaker(request).designed()[0]
    settings = given.settings
    count = counter("active_params", settings.training.sequence_length)
    smallest = _tokens(request, given)
    made = []
    for word, amount in steps.amounts:
        widths = embedding_widths(settings.model, count, amount)
        sized = _of_width(request, word, widths)
        budget = Budget("tokens", smallest * amount / steps.amounts[0][1])
        made.append((f"params={word}", dataclasses.replace(sized, budget=budget)))
    return made


def _of_width(request: Request, word: str, widths: Iterable[int]) -> Request:
    """The request with the first of these widths that is valid for every arm; RoPE, for example,
    needs an even head dimension."""
    first_error: ConfigError | None = None
    for width in widths:
        sized = dataclasses.replace(request, flags={**request.flags, "n_embd": str(width)})
        try:
            ArmMaker(sized).designed()
        except ConfigError as error:
            first_error = first_error or error
        else:
            return sized
    raise first_error or UserError(f"no n_embd gives the baseline about {word} parameters.")


def _tokens(request: Request, arm: Arm) -> float:
    """The number of training tokens of the first rung."""
    training = arm.settings.training
    if request.budget is None:
        return training.max_iters * training.tokens_per_step
    if request.budget.unit == "tokens":
        return request.budget.amount
    raise UserError("--ladder params=... needs the budget of its first rung in tokens.")
