"""A ladder of sweeps: one comparison at several sizes or budgets, each tuned and decayed by itself.

Every rung is a sweep with a folder of its own; `series_file` says where they are.
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
"""Compute goes as this power of the unit: longer runs of larger models."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """What a ladder grows.

    Attributes:
        unit: params, tokens or flops.
        amounts: Of each rung, as written and as a number, in rising order.
    """

    unit: str
    amounts: tuple[tuple[str, float], ...]


def parse_ladder(words: str) -> Steps:
    """`params=1M,2M,4M,8M`. Raises UserError for anything else, or a ladder too short to climb."""
    unit, _, listed = words.partition("=")
    try:
        amounts = tuple((word, _amount(word)) for word in listed.split(","))
    except ValueError:
        amounts = ()
    numbers = [amount for _, amount in amounts]
    rising = all(low < high for low, high in zip(numbers, numbers[1:], strict=False))
    if unit not in UNITS or not amounts or not rising or not 0 < numbers[0] <= numbers[-1] < 1e30:
        raise UserError(
            f"cannot read {words!r}; write params=1M,2M,4M, tokens=1M,4M,16M or flops=1e13,1e14,"
            "1e15, with rising numbers above 0."
        )
    if not FEWEST_RUNGS <= len(amounts) <= MOST_MEMBERS:
        raise UserError(
            f"{words!r} has {len(amounts)} rungs; a ladder has {FEWEST_RUNGS} to {MOST_MEMBERS}."
        )
    span = (numbers[-1] / numbers[0]) ** _POWER[unit]
    if span < FEWEST_SPAN * (1 - TOLERANCE):
        raise UserError(
            f"{words!r} spans {span:.3g}x of compute; a ladder needs {FEWEST_SPAN:.0f}x to tell "
            "whether a difference grows. Raise the last number or lower the first."
        )
    return Steps(unit, amounts)


def _amount(word: str) -> float:
    scale = SUFFIXES.get(word[-1:].upper(), 1.0)
    return float(word[:-1] if scale > 1 else word) * scale


def make_rungs(request: Request, steps: Steps, directory: Path) -> list[tuple[str, Plan]]:
    """The label and the plan of each rung, in rising order.

    With `params`, every rung is as wide (`n_embd`) as gives the baseline about as many parameters,
    active ones in a mixture of experts. The first trains on the tokens that the request says, the
    others on more in proportion to their parameters. With `tokens` and `flops`, models are as they
    are and train on so much.

    Raises:
        ConfigError: The request cannot be a ladder.
        UserError: A rung cannot be made.
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
    """The request with the first of these widths that every arm can have: RoPE, for one, needs an
    even size of heads."""
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
    """The training tokens of the first rung."""
    training = arm.settings.training
    if request.budget is None:
        return training.max_iters * training.tokens_per_step
    if request.budget.unit == "tokens":
        return request.budget.amount
    raise UserError("--ladder params=... needs the budget of its first rung in tokens.")
