"""A plan as a person reads it: arms, seeds, cost, time, and what difference it can detect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from comparison.formatting import assignments, format_path
from comparison.tables import aligned, wrapped
from experiment.arms import Arm
from experiment.jobs import COMPLETED
from experiment.plan import Plan
from experiment.request import MATCHED
from experiment.trials import count_trials
from inference.differences import FEWEST_OTHERS
from inference.planning import POWER
from inference.planning import Plan as SeedPlan
from inference.rules import DeclaredSeeds
from inference.samples import deviation
from training_logger import format_count, format_duration, format_flops

LONGEST_LABEL = 45
"""Characters; arms of longer names are numbered in the table, so that its columns stay together."""


UNEQUAL = 0.1
"""A share of active parameters or FLOPs per token by which no arm should differ unnoticed."""


def overview(
    plan: Plan,
    seconds: Mapping[str, float] | None = None,
    workers: int = 1,
    gpus: int | None = None,
    processes: int = 1,
) -> str:
    """The plan in words and a table.

    Args:
        plan: What is to be run.
        seconds: Of each arm, how long a run of it takes; None: time is not told.
        workers: Runs at a time.
        gpus: That they share; None: they are not on GPUs of this machine.
        processes: That train a run together.
    """
    labels = _labels(plan)
    lines = [f"Sweep {plan.name}", f"  in {format_path(plan.folder)}"]
    for arm in plan.arms:
        if labels[arm.name] != arm.name:
            lines += wrapped(f"{labels[arm.name]}  {arm.name}")
    lines += aligned(*_table(plan, labels, seconds))
    for sentence in _sentences(plan, seconds, workers, gpus, processes):
        lines += wrapped(sentence)
    return "\n".join(lines)


def _labels(plan: Plan) -> dict[str, str]:
    """Of each arm what the table calls it: its name, or a number."""
    names = [arm.name for arm in plan.arms]
    if max(map(len, names)) <= LONGEST_LABEL:
        return {name: name for name in names}
    return {name: str(number) for number, name in enumerate(names, start=1)}


def _table(
    plan: Plan, labels: Mapping[str, str], seconds: Mapping[str, float] | None
) -> tuple[Sequence[str], list[Sequence[str]]]:
    header = ["arm", "parameters", "FLOPs/token"]
    header += [] if plan.is_timed else ["steps", "tokens", "FLOPs a run"]
    header += ["a run"] if seconds else []
    return header, [_row(arm, labels[arm.name], plan, seconds) for arm in plan.arms]


def _row(arm: Arm, label: str, plan: Plan, seconds: Mapping[str, float] | None) -> Sequence[str]:
    first = plan.baseline
    cells = [
        label,
        f"{arm.parameters:,}{_more(arm.parameters, first.parameters)}",
        format_flops(arm.flops_per_token) + _more(arm.flops_per_token, first.flops_per_token),
    ]
    if not plan.is_timed:
        steps = arm.settings.training.max_iters
        cells += [f"{steps:,}", format_count(arm.tokens), format_flops(arm.flops)]
    return cells + ([format_duration(seconds[arm.name])] if seconds else [])


def _more(own: float, first: float) -> str:
    """How much more than the baseline's: ` +0.12 %`; nothing where they are equal."""
    return "" if own == first else f" {100 * (own / first - 1):+.2f} %"


def _sentences(
    plan: Plan,
    seconds: Mapping[str, float] | None,
    workers: int,
    gpus: int | None,
    processes: int,
) -> Iterator[str]:
    yield from _equal(plan)
    yield from _runs(plan)
    if processes > 1:
        yield f"Each run trains in {processes} processes, which torchrun starts on one machine."
    yield detects(plan)
    if seconds:
        each = sum(seconds.values())
        runs = len(plan.seeds) + plan.trials_each * len(plan.tuning_seeds)
        told = "not counting validation" if plan.is_timed else "by timing a few steps of each arm"
        yield (
            f"Time: about {format_duration(each * runs / workers)} for all runs with {workers} "
            f"worker{'s' * (workers > 1)}, {told}."
        )
    if workers > (gpus // processes if gpus else 1):
        yield from _shared(workers, gpus, processes, plan.is_timed)


def _shared(workers: int, gpus: int | None, processes: int, timed: bool) -> Iterator[str]:
    """What several workers on one device mean for what their runs log."""
    if gpus:
        each = f", of {processes} processes each," if processes > 1 else ""
        yield (
            f"{workers} workers{each} share {gpus} GPU{'s' * (gpus > 1)}: the speeds and the MFU "
            "that runs log are not those of a GPU alone."
        )
    if timed:
        yield (
            "Runs that share a device slow each other down, and not all alike: minutes then buy "
            "unequal work. Use one worker for each device."
        )


def _equal(plan: Plan) -> Iterator[str]:
    """What was made equal, and how."""
    match, solved = plan.match, [arm for arm in plan.arms if arm.solved]
    if match == "none":
        yield "Sizes are as they are (--match=none)."
    elif not solved:
        yield f"Equal {MATCHED[match]} within 0.5 % as they are."
    else:
        told = "; ".join(f"{arm.name}: {assignments(arm.solved)}" for arm in solved)
        yield f"Equal {MATCHED[match]} within 0.5 %, by changing widths. {told}."
    for arm in plan.arms:
        if arm.is_sparse:
            total, active = format_count(arm.parameters), format_count(arm.active_parameters)
            yield (
                f"{arm.name}: {active} of {total} parameters are active for a token; "
                f"{_ratio(arm, plan, 'flops'):.2f}x the FLOPs per token of the baseline."
            )
    yield from _unequal(plan)
    budget = plan.request.budget
    if plan.is_timed:
        yield f"Every run trains for {budget.amount:g} minutes; validation is not counted."
    else:
        unit = budget.unit if budget else "tokens"
        shown = format_flops(plan.baseline.flops)
        shown = shown if unit == "flops" else f"{format_count(plan.baseline.tokens)} tokens"
        yield f"Every run spends {shown}."


def _unequal(plan: Plan) -> Iterator[str]:
    """A warning of each arm that uses much more or less for a token than the baseline."""
    if plan.match == "none":  # unequal as asked
        return
    budget = plan.request.budget
    same_tokens = budget is None or budget.unit == "tokens"  # else not the same number of them
    compared = ("active_params", "flops") if same_tokens else ("active_params",)
    for arm in plan.arms:
        far = [match for match in compared if abs(_ratio(arm, plan, match) - 1) > UNEQUAL]
        if far:
            told = " and ".join(f"{_ratio(arm, plan, m):.2f}x the {MATCHED[m]}" for m in far)
            yield (
                f"Warning: {arm.name} has {told} of the baseline, more than {100 * UNEQUAL:.0f} % "
                f"apart; --match={far[0]} makes them equal."
            )


def _ratio(arm: Arm, plan: Plan, match: str) -> float:
    """How many times as much as the baseline an arm has of something to match."""
    return arm.amount(match) / plan.baseline.amount(match)


def _runs(plan: Plan) -> Iterator[str]:
    first, last = plan.seeds[0][0], plan.seeds[-1][0]
    told = f"{len(plan.seeds)} seeds from {first} to {last}" if last > first else f"seed {first}"
    if plan.trials_each:
        tried = plan.trials_each * len(plan.tuning_seeds)
        yield (
            f"Tuning: {count_trials(plan.trials_each)} {_tuned(plan)}, with seeds from "
            f"{plan.tuning_seeds[0][0]}: {len(plan.arms) * tried} runs. Then fresh seeds:"
        )
    if plan.schedule:
        looks = ", ".join(str(look.n) for look in plan.schedule)
        told = f"up to {told}"
        yield f"Until sure: looks at {looks} seeds; an arm stops once its verdict is decided."
    yield (
        f"{len(plan.arms)} arms x {told} (paired: the same "
        f"data order, and the same initial numbers where shapes agree) = "
        f"{len(plan.arms) * len(plan.seeds)} runs."
    )


def _tuned(plan: Plan) -> str:
    """Of which keys the trials are: of each arm, where not all have the same."""
    keys = {
        name: " and ".join(dict.fromkeys(key for trial in trials for key in trial.choice))
        for name, trials in plan.trials.items()
    }
    if len(set(keys.values())) == 1:
        return f"of {keys[plan.baseline.name]} for every arm"
    told = "; ".join(f"{name}: {own or 'as it is'}" for name, own in keys.items())
    return f"for every arm ({told})"


def detects(plan: Plan) -> str:
    """The minimum detectable effect in standard deviations from seed to seed; in nats if runs of
    the baseline are done."""
    seeds, arms = len(plan.seeds), len(plan.arms) - 1
    if seeds < 2:
        return "One seed gives no verdict, since its variance is unknown. Use --seeds=5."
    spread = math.sqrt(2 / seeds)  # of a difference, if pairs of seeds are not correlated
    df = (seeds - 1) * (2 if arms > FEWEST_OTHERS else 1)
    times = SeedPlan(spread, df, seeds, DeclaredSeeds(arms)).detectable()
    jobs = plan.final_jobs(plan.tuned())
    done = [job.loss for job in jobs if job.arm == plan.baseline.name and job.status == COMPLETED]
    noise = deviation([loss for loss in done if loss is not None])
    measured = f" = {times * noise:.4f} nats at the SD so far, {noise:.4f}" if noise else ""
    return (
        f"Minimum detectable effect ({100 * POWER:.0f} % power): {times:.1f} seed SDs{measured}; "
        "less if paired seeds are positively correlated."
    )
