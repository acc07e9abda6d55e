"""The overview of a plan: arms, seeds, cost, time, and minimum detectable effect."""

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
"""Arms with longer names (in characters) are numbered in the table to keep it narrow."""


UNEQUAL = 0.1
"""Relative difference in active parameters or FLOPs per token above which a warning is printed."""


def overview(
    plan: Plan,
    seconds: Mapping[str, float] | None = None,
    workers: int = 1,
    gpus: int | None = None,
    processes: int = 1,
) -> str:
    """Describe a plan with a table and sentences.

    Args:
        plan: The plan.
        seconds: Duration of a run of each arm; None: omit times.
        workers: Number of concurrent runs.
        gpus: Number of GPUs that they share; None: they do not use GPUs of this machine.
        processes: Number of processes per run.
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
    """The label of each arm in the table: its name, or a number."""
    names = [arm.name for arm in plan.arms]
    if max(map(len, names)) <= LONGEST_LABEL:
        return {name: name for name in names}
    return {name: str(number) for number, name in enumerate(names, start=1)}


def _table(
    plan: Plan, labels: Mapping[str, str], seconds: Mapping[str, float] | None
) -> tuple[Sequence[str], list[Sequence[str]]]:
    header = ["arm", "parameters", "FLOPs/token"]
    header += [] if plan.is_timed else ["steps", "tokens", "FLOPs/run"]
    header += ["time/run"] if seconds else []
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
    """The difference from the baseline, such as ` +0.12 %`; empty if equal."""
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
        yield f"Each run uses {processes} processes, started by torchrun on one machine."
    yield detects(plan)
    if seconds:
        each = sum(seconds.values())
        runs = len(plan.seeds) + plan.trials_each * len(plan.tuning_seeds)
        note = "excluding validation" if plan.is_timed else "estimated from a few steps of each arm"
        yield (
            f"Time: about {format_duration(each * runs / workers)} for all runs with {workers} "
            f"worker{'s' * (workers > 1)}, {note}."
        )
    if workers > (gpus // processes if gpus else 1):
        yield from _shared(workers, gpus, processes, plan.is_timed)


def _shared(workers: int, gpus: int | None, processes: int, timed: bool) -> Iterator[str]:
    """Yield notes on the consequences of several workers sharing a device."""
    if gpus:
        each = f", of {processes} processes each," if processes > 1 else ""
        yield (
            f"{workers} workers{each} share {gpus} GPU{'s' * (gpus > 1)}: the logged speed and MFU "
            "are not those of an exclusively used GPU."
        )
    if timed:
        yield (
            "Runs that share a device slow each other down unequally, so a time budget buys "
            "unequal amounts of work. Use one worker per device."
        )


def _equal(plan: Plan) -> Iterator[str]:
    """Yield sentences on what was made equal, and how."""
    match, solved = plan.match, [arm for arm in plan.arms if arm.solved]
    if match == "none":
        yield "Sizes are not matched (--match=none)."
    elif not solved:
        yield f"{_capitalized(MATCHED[match])} match within 0.5 %; no width had to be adjusted."
    else:
        changes = "; ".join(f"{arm.name}: {assignments(arm.solved)}" for arm in solved)
        yield f"{_capitalized(MATCHED[match])} match within 0.5 %, by adjusting widths. {changes}."
    for arm in plan.arms:
        if arm.is_sparse:
            total, active = format_count(arm.parameters), format_count(arm.active_parameters)
            yield (
                f"{arm.name}: {active} of {total} parameters are active per token; "
                f"{_ratio(arm, plan, 'flops'):.2f}x the FLOPs per token of the baseline."
            )
    yield from _unequal(plan)
    budget = plan.request.budget
    if plan.is_timed:
        yield f"Budget: {budget.amount:g} minutes of training per run, excluding validation."
    else:
        unit = budget.unit if budget else "tokens"
        shown = format_flops(plan.baseline.flops)
        shown = shown if unit == "flops" else f"{format_count(plan.baseline.tokens)} tokens"
        yield f"Budget: {shown} per run."


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def _unequal(plan: Plan) -> Iterator[str]:
    """Yield a warning for each arm that uses much more or less per token than the baseline."""
    if plan.match == "none":  # unequal as requested
        return
    budget = plan.request.budget
    same_tokens = budget is None or budget.unit == "tokens"
    compared = ("active_params", "flops") if same_tokens else ("active_params",)
    for arm in plan.arms:
        far = [match for match in compared if abs(_ratio(arm, plan, match) - 1) > UNEQUAL]
        if far:
            ratios = " and ".join(f"{_ratio(arm, plan, m):.2f}x the {MATCHED[m]}" for m in far)
            yield (
                f"Warning: {arm.name} has {ratios} of the baseline, a difference of more than "
                f"{100 * UNEQUAL:.0f} %; --match={far[0]} makes them equal."
            )


def _ratio(arm: Arm, plan: Plan, match: str) -> float:
    """The ratio of an arm's count to that of the baseline."""
    return arm.amount(match) / plan.baseline.amount(match)


def _runs(plan: Plan) -> Iterator[str]:
    first, last = plan.seeds[0][0], plan.seeds[-1][0]
    seeds = f"{len(plan.seeds)} seeds from {first} to {last}" if last > first else f"seed {first}"
    if plan.trials_each:
        tried = plan.trials_each * len(plan.tuning_seeds)
        yield (
            f"Tuning: {count_trials(plan.trials_each)} {_tuned(plan)}, with seeds from "
            f"{plan.tuning_seeds[0][0]}: {len(plan.arms) * tried} runs. The final runs use other "
            "seeds:"
        )
    if plan.schedule:
        looks = ", ".join(str(look.n) for look in plan.schedule)
        seeds = f"up to {seeds}"
        yield f"Sequential testing: looks at {looks} seeds; arms stop once they are conclusive."
    yield (
        f"{len(plan.arms)} arms x {seeds} (paired: the same "
        f"data order, and the same initial weights where shapes match) = "
        f"{len(plan.arms) * len(plan.seeds)} runs."
    )


def _tuned(plan: Plan) -> str:
    """The keys of the trials, for each arm if they differ."""
    keys = {
        name: " and ".join(dict.fromkeys(key for trial in trials for key in trial.choice))
        for name, trials in plan.trials.items()
    }
    if len(set(keys.values())) == 1:
        return f"of {keys[plan.baseline.name]} for every arm"
    listed = "; ".join(f"{name}: {own or 'nothing'}" for name, own in keys.items())
    return f"for every arm ({listed})"


def detects(plan: Plan) -> str:
    """The minimum detectable effect in seed standard deviations, and in nats once runs of the
    baseline are completed."""
    seeds, arms = len(plan.seeds), len(plan.arms) - 1
    if seeds < 2:
        return "One seed gives no verdict, since its variance is unknown. Use --seeds=5."
    spread = math.sqrt(2 / seeds)  # SD of a difference if paired seeds are uncorrelated
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
