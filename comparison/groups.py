"""Groups of runs that differ only by their seeds, and the differences between groups.

Two groups can be compared if they were trained with the same recipe on the same data and validated
on the same tokens: these are the *conditions* of a group. The model, the training length and the
machine are not conditions, but the subject of the comparison.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from comparison.formatting import assignments, format_value
from comparison.runs import LoggedRun
from errors import UserError, unknown_name
from inference.samples import Sample, deviation
from options import Role
from training_logger import format_count, format_number

SAME_BUDGET = 0.01
"""Relative difference up to which budgets count as equal, because runs stop after whole steps."""

SAME_SHARE = 0.02
"""Difference up to which fractions of a schedule count as equal, because steps are integers."""

MOST_KEYS = 3
"""Maximum number of keys in the name of a group, which tell it from groups of the same name."""

_SCHEDULE = ("warmup_iters", "lr_decay_iters")  # conditions as fractions of max_iters
_CONDITIONS = (Role.RECIPE, Role.DATA)
_TELLING_RUNS_APART = (Role.ARCHITECTURE, Role.RECIPE, Role.LENGTH, Role.DATA)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Runs that differ only by seed.

    Attributes:
        name: The name of the arm in its sweep, or of the architecture; followed by other
            differences if two groups have the same name.
        runs: All runs, in the order in which they started.
        counted: The included runs, on which all numbers are based: one per seed, of equal length in
            steps or in minutes, with a finite loss.
        left_out: For each excluded run, the reason.
        diverged: Number of runs excluded because they diverged.
        short: Number of seeds excluded because none of their runs got as far as the others.
    """

    name: str
    runs: tuple[LoggedRun, ...]
    counted: tuple[LoggedRun, ...]
    left_out: tuple[str, ...]
    diverged: int
    short: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """The config of its oldest run; the others differ only by seeds."""
        return self.runs[0].config

    @property
    def architecture(self) -> dict[str, Any]:
        return self.runs[0].architecture

    @property
    def is_sparse(self) -> bool:
        """Whether a token uses only some of the parameters, according to the log."""
        total = self.architecture["parameters"]
        return self.architecture.get("active_parameters") not in (None, total)

    @property
    def arm(self) -> str | None:
        """Its name in a sweep; None if its runs do not belong to one."""
        return self.runs[0].arm

    @property
    def arm_or_name(self) -> str:
        """Its name in its sweep, which is the same in other sweeps; otherwise its own name."""
        return self.arm or self.name

    @property
    def sweeps(self) -> set[str | None]:
        """The sweeps that its runs belong to; None for runs outside of sweeps."""
        return {run.sweep for run in self.runs}

    @property
    def model_keys(self) -> dict[str, Any]:
        """The config keys that define the model."""
        return self.runs[0].having(Role.ARCHITECTURE)

    @property
    def losses(self) -> Sample:
        """The final validation loss of each seed, in nats per token."""
        return {run.seeds: run.loss for run in self.counted}

    @property
    def failed_seeds(self) -> set[tuple[Any, Any]]:
        """Seeds with a diverged run and no finished one."""
        return {run.seeds for run in self.runs if run.diverged} - set(self.losses)

    @property
    def n(self) -> int:
        return len(self.counted)

    @property
    def loss(self) -> float | None:
        """Mean final validation loss, in nats per token."""
        return self.mean(lambda run: run.loss)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the final validation loss over seeds."""
        return deviation(list(self.losses.values()))

    def mean(self, number: Callable[[LoggedRun], float | None]) -> float | None:
        """The mean of a number over the included runs; None if one of them lacks it."""
        numbers = [number(run) for run in self.counted]
        return None if None in numbers or not numbers else fmean(numbers)

    @property
    def peak_memory(self) -> float | None:
        """The largest peak memory of the included runs, in bytes."""
        peaks = [run.summary.get("peak_memory_bytes") for run in self.counted]
        return max((peak for peak in peaks if peak is not None), default=None)

    @property
    def progress(self) -> float | None:
        """The fraction of the planned steps or minutes completed at the last evaluation."""
        return self.mean(lambda run: run.progress)

    def share_of_length(self, key: str) -> float | None:
        """A number of steps as a fraction of max_iters; None if the run does not have the key."""
        steps, planned = self.config.get(key), self.config.get("max_iters")
        return steps / planned if planned and steps is not None else None


# Gathering


def group_runs(runs: Iterable[LoggedRun]) -> list[Group]:
    """Group the runs; the group of the oldest run comes first."""
    gathered: dict[str, list[LoggedRun]] = {}
    for run in sorted(runs, key=lambda run: run.start_time):
        gathered.setdefault(_identity(run), []).append(run)
    groups = [_group(members) for members in gathered.values()]
    return _named_apart(groups)


_COST = ("parameters", "flops_per_token", "flops_per_token_causal", "attention_ffn_ratio")


def _identity(run: LoggedRun) -> str:
    """A text that is the same for runs that differ only by seed."""
    [config] = _compared([run], *_TELLING_RUNS_APART)
    cost = [run.architecture.get(key) for key in _COST]
    data = [run.data.get(key) for key in ("fingerprint", "tokenizer", "val_fingerprint")]
    sizes = [run.data.get("val_tokens"), run.environment.get("dtype")]
    resumed = run.resumed_with(*_TELLING_RUNS_APART)
    return json.dumps([cost, config, data, sizes, run.code, resumed], sort_keys=True)


def _compared(runs: Sequence[LoggedRun], *roles: Role) -> list[dict[str, Any]]:
    """For each run, the keys of these roles by which it is compared with the others; without keys
    for which every log has the resulting value, see `logged_keys.compared_by`."""
    return [
        {
            key: value
            for key, value in run.having(*roles).items()
            if not all(other.came_to(key) for other in runs)
        }
        for run in runs
    ]


def _group(runs: Sequence[LoggedRun]) -> Group:
    """Create a group from runs with the same identity, named after its arm or architecture."""
    furthest = max(runs, key=_progress)
    diverged = [run for run in runs if run.diverged]
    counted: dict[Any, LoggedRun] = {}
    left_out = [f"{run.run_name}: diverged" for run in diverged]
    copied: dict[str, LoggedRun] = {}
    short = set()
    for run in runs:
        if run.diverged:
            continue
        first = copied.setdefault(run.run_id, run) if run.run_id else run
        if first is not run:
            left_out.append(f"{run.folder}: a copy of {first.folder} (same run_id)")
        elif not run.eval_steps or _progress(run) < (1 - SAME_BUDGET) * _progress(furthest):
            left_out.append(f"{run.run_name} ({run.status}): {_short_of(run, furthest)}")
            short.add(run.seeds)
        elif run.seeds in counted:
            left_out.append(f"{run.run_name}: same seeds as {counted[run.seeds].run_name}")
        else:
            counted[run.seeds] = run
    return Group(
        name=runs[0].arm or runs[0].architecture["name"],
        runs=tuple(runs),
        counted=tuple(counted.values()),
        left_out=tuple(left_out),
        diverged=len(diverged),
        short=len(short.difference(counted, (run.seeds for run in diverged))),
    )


def _progress(run: LoggedRun) -> float:
    return run.progress or 0.0


def _short_of(run: LoggedRun, furthest: LoggedRun) -> str:
    """How far a run got compared with another, in the unit that limits both."""
    if run.limit_seconds is None:
        return f"{format_count(run.tokens)} of {format_count(furthest.tokens)} tokens"
    return f"{run.seconds or 0:.0f} of {run.limit_seconds:.0f} seconds"


def _named_apart(groups: Sequence[Group]) -> list[Group]:
    """The groups with unique names."""
    namesakes: dict[str, list[Group]] = {}
    for group in groups:
        namesakes.setdefault(group.name, []).append(group)
    apart = {id(g): name for same in namesakes.values() for g, name in _names(same)}
    return [dataclasses.replace(group, name=apart[id(group)]) for group in groups]


def _names(namesakes: Sequence[Group]) -> Iterator[tuple[Group, str]]:
    """Yield groups with the same name, each with that name and the keys in which it differs."""
    everything = [
        _telling(group, own) for group, own in zip(namesakes, conditions(namesakes), strict=True)
    ]
    found = [key for key in everything[0] if len({str(own.get(key)) for own in everything}) > 1]
    keys, more = _not_implied(found)[:MOST_KEYS], max(0, len(_not_implied(found)) - MOST_KEYS)
    seen: Counter[str] = Counter()
    for group, own in zip(namesakes, everything, strict=True):
        told = [f"{key}={_shown(group, key, own.get(key))}" for key in keys]
        details = ", ".join(told) + (f" and {more} more" if more else "")
        name = f"{group.name} [{details}]" if details else group.name
        seen[name] += 1
        yield group, name if seen[name] == 1 else f"{name} #{seen[name]}"


def _telling(group: Group, own_conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in which a group may differ from others of the same name, given its conditions."""
    length = group.runs[0].having(Role.LENGTH)
    source, *plugins = group.runs[0].code
    code = {"code": ", ".join(source), "plugins": json.dumps(plugins, sort_keys=True)}
    return {**group.model_keys, **own_conditions, **length, **code}


# Comparing groups

_VALIDATED_ON = ("validation set", "validation tokens", "eval_tokens")


def _not_implied(keys: Sequence[str]) -> list[str]:
    """The keys without those of the validation set if the data differ, which implies them."""
    if "data" not in keys and "dataset" not in keys:
        return list(keys)
    return [key for key in keys if key not in _VALIDATED_ON]


def _shown(group: Group, key: str, value: Any) -> str:
    """The value of a condition for readers: a fingerprint with the name of the dataset."""
    text, run = format_value(value), group.runs[0]
    if key == "data" and value and run.data.get("dataset"):
        return f"{run.data['dataset']} ({text[:8]})"
    return text if len(text) <= 24 else f"{text[:12]}..."


def _validated(group: Group) -> str | None:
    """`2,048 tokens in windows of 64`; None if the log does not say."""
    tokens, length = group.runs[0].data.get("val_tokens_read"), group.config.get("sequence_length")
    return f"{tokens:,} tokens in windows of {length}" if tokens and length else None


def conditions(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """For each group, what must be equal to compare it with the others, by label."""
    runs = [group.runs[0] for group in groups]
    return [
        {
            "data": run.data.get("fingerprint"),
            "tokenizer": run.data.get("tokenizer"),
            "validation set": run.data.get("val_fingerprint"),
            "validation tokens": run.validation_tokens,
            "compute dtype": run.environment.get("dtype"),
            "settings before it was resumed": _resumed(run),
            **keys,
        }
        for run, keys in zip(runs, _compared(runs, *_CONDITIONS), strict=True)
    ]


def _resumed(run: LoggedRun) -> str | None:
    """The settings with which a run started, if it was resumed with others."""
    found = run.resumed_with(*_TELLING_RUNS_APART)
    return "; ".join(map(assignments, found)) or None


def machines(groups: Sequence[Group]) -> list[set[tuple[Any, ...]]]:
    """For each group, the machines of its included runs, as far as they affect speed.

    Only execution keys that all runs have are included, since an attention option cannot be
    compared with a mixer that lacks it. A run that shared its CPUs with other processes counts as a
    machine of its own.
    """
    having = [set(run.having(Role.EXECUTION)) for group in groups for run in group.counted]
    shared = sorted(set.intersection(*having)) if having else []
    return [
        {
            (
                run.environment.get("device"),
                run.environment.get("cpu_count"),
                run.environment.get("device_count", 1),
                run.environment.get("threads"),
                *(f"{key}={run.config[key]}" for key in shared),
                *(() if run.alone else ("shared by", run.run_name, run.folder)),
            )
            for run in group.counted
        }
        for group in groups
    ]


def changes(
    group: Group, baseline: Group, tuned: Collection[str] = (), varied: Sequence[str] = ()
) -> dict[str, Any]:
    """The keys in which an arm differs from the baseline, of the model or tuned, with its values.
    Varied keys come first, then keys derived from them; default options are omitted if only one of
    the two has the component."""
    own, other = (
        {**g.model_keys, **{key: g.config.get(key) for key in sorted(tuned)}}
        for g in (group, baseline)
    )
    defaults = group.runs[0].defaults - other.keys() | baseline.runs[0].defaults - own.keys()
    keys = dict.fromkeys([*(key for key in varied if key in own), *own, *other])
    return {
        key: own.get(key)
        for key in keys
        if own.get(key) != other.get(key) and (key in varied or key not in defaults)
    }


def unlike(group: Group, baseline: Group, tuned: Collection[str] = ()) -> list[str]:
    """The conditions in which two groups differ, as `label: its value, not the baseline's`.

    Args:
        tuned: Keys that were tuned with the same number of trials for every arm; they are not
            conditions.
    """
    own, other = conditions([group, baseline])
    keys = [k for k in {**own, **other} if k not in tuned and own.get(k) != other.get(k)]
    found = [
        f"{key}: {_told_apart(key, group, own, baseline, other)}" for key in _not_implied(keys)
    ]
    for key in _SCHEDULE:
        shares = group.share_of_length(key), baseline.share_of_length(key)
        if key not in tuned and not _near(*shares, SAME_SHARE):
            own_share, other_share = (format_number(share, ".2f") for share in shares)
            found.append(f"{key}: {own_share} of max_iters, not {other_share}")
    return found


def _told_apart(
    key: str, group: Group, own: Mapping[str, Any], baseline: Group, other: Mapping[str, Any]
) -> str:
    """`its value, not the baseline's`, given the conditions of both."""
    values = [_shown(each, key, of.get(key)) for each, of in ((group, own), (baseline, other))]
    if key == "validation set":
        described = [_validated(group), _validated(baseline)]
        if None not in described and len(set(described)) == 2:
            values = described
    return f"{values[0]}, not {values[1]}"


def unequal_length(group: Group, baseline: Group) -> str | None:
    """Why two final losses are not at equal budgets; None if they are.

    They are if tokens, FLOPs or seconds agree, and both runs completed the same fraction of their
    schedules.
    """
    if not _near(group.progress, baseline.progress):
        shares = " and ".join(f"{100 * (g.progress or 0):.0f} %" for g in (group, baseline))
        return f"{shares} of the schedule"
    budgets = [lambda run: run.tokens, lambda run: run.flops]
    own, other = machines([group, baseline])
    if own == other:
        budgets.append(lambda run: run.seconds)
    if any(_near(group.mean(budget), baseline.mean(budget)) for budget in budgets):
        return None
    tokens = " and ".join(format_count(g.mean(budgets[0])) for g in (group, baseline))
    return f"{tokens} tokens"


def terms(group: Group, baseline: Group) -> str:
    """What is equal in two groups, and the ratios of what is not: `at equal tokens, 1.24x the
    parameters, 1.20x the FLOPs`."""
    quantities: dict[str, Callable[[LoggedRun], float | None]] = {
        "parameters": lambda run: run.architecture["parameters"],
        "tokens": lambda run: run.tokens,
        "FLOPs": lambda run: run.flops,
    }
    if group.is_sparse or baseline.is_sparse:
        active = {"active parameters": lambda run: run.architecture.get("active_parameters")}
        quantities = active | quantities
    means = {name: (group.mean(of), baseline.mean(of)) for name, of in quantities.items()}
    equal = [name for name, both in means.items() if _near(*both)]
    own, other = machines([group, baseline])
    seconds = [each.mean(lambda run: run.seconds) for each in (group, baseline)]
    if not {"tokens", "FLOPs"}.intersection(equal) and own == other and _near(*seconds):
        equal.append("seconds")
    ratios = [
        f"{own / other:.2f}x the {name}"
        for name, (own, other) in means.items()
        if name not in equal and own and other
    ]
    *first, last = equal or [""]
    at = f"at equal {', '.join(first)}{' and ' if first else ''}{last}" if equal else ""
    return ", ".join(filter(None, (at, *ratios)))


def _near(one: float | None, other: float | None, tolerance: float | None = None) -> bool:
    """Whether two numbers agree within a tolerance; the default is SAME_BUDGET of the larger."""
    if one is None or other is None:
        return one is other
    if tolerance is None:
        tolerance = SAME_BUDGET * max(abs(one), abs(other))
    return abs(one - other) <= tolerance


def find_baseline(groups: Sequence[Group], name: str | LoggedRun | None) -> Group:
    """Find the group to compare with.

    Args:
        name: The name of a group, of an arm of a sweep, or of an architecture, or a prefix of its
            run names; or one of its runs. None: the group of the oldest run.

    Raises:
        UserError: If no group or several groups match.
    """
    if name is None:
        return groups[0]
    if isinstance(name, LoggedRun):
        return next(group for group in groups if any(run is name for run in group.runs))
    ways = (
        lambda group: group.name == name,
        lambda group: group.arm == name,
        lambda group: group.architecture["name"] == name,
        lambda group: any(run.run_name.startswith(name) for run in group.runs),
    )
    for way in ways:
        found = [group for group in groups if way(group)]
        if len(found) == 1:
            return found[0]
        if found:
            names = "; ".join(group.name for group in found)
            raise UserError(f"--baseline={name} matches several groups: {names}. Choose one.")
    raise UserError(unknown_name("baseline", name, [group.name for group in groups]))
