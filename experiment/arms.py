"""The arms of a sweep: a baseline, and architectures that differ from it as requested."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import configurator
from comparison.formatting import assignments
from comparison.groups import SAME_BUDGET, SAME_SHARE
from components.registry import is_users_own
from configurator import DERIVED, Asked, Settings
from data.dataset import Dataset
from data.dataset_lookup import prepare_if_missing
from errors import ConfigError, Problem, UserError
from experiment.budgets import Budget, length_flags
from experiment.jobs import digest
from experiment.matching import (
    FFN_KEYS,
    counter,
    size_problems,
    sizes_of_run,
    solve,
    trained_flops_per_token,
)
from experiment.request import MATCHED, Request, is_tunable
from interop.starting_model import new_settings
from options import KEYS, Role
from part_keys import chosen_by, parts_of
from user_files import collect, module_name, read_config_file

BASELINE = "baseline"

LONGEST_SLUG = 160
"""Maximum number of characters in a folder name; file systems allow 255 bytes, and a seed is
appended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """An architecture and its training recipe, as a train.py command line and its settings.

    Attributes:
        name: `baseline`, `normalization=rmsnorm`, or the name of a config file.
        files: Its config files.
        asked: The requested `--key=value` flags, as text.
        flags: The flags of its runs, without keys that it does not use.
        settings: The resulting settings, with the vocabulary size of the data.
        solved: The keys that were changed to match the baseline's size.
    """

    name: str
    files: tuple[str, ...]
    asked: Mapping[str, str]
    flags: Mapping[str, str]
    settings: Settings
    solved: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The folder name of the arm."""
        return slug(self.name)

    @property
    def parameters(self) -> int:
        """Number of parameters, including those of adapters."""
        return sizes_of_run(self.settings.model, self.settings.training)[0]

    @property
    def active_parameters(self) -> int:
        """Number of parameters that a token uses, excluding experts it is not routed to."""
        return sizes_of_run(self.settings.model, self.settings.training)[1]

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token at the training sequence length."""
        return trained_flops_per_token(self.settings.model, self.settings.training)

    @property
    def is_sparse(self) -> bool:
        """Whether a token uses only some of the parameters."""
        return self.active_parameters != self.parameters

    def amount(self, match: str) -> float:
        """The count of the arm for a key of MATCHED."""
        count = counter(match, self.settings.training.sequence_length)
        return count(self.settings.model)

    @property
    def tokens(self) -> int:
        """Training tokens of a run without a time limit."""
        return self.settings.training.max_iters * self.settings.training.tokens_per_step

    @property
    def flops(self) -> float:
        """Training FLOPs of a run without a time limit."""
        return self.tokens * self.flops_per_token


def slug(text: str) -> str:
    """Convert a text to a folder name: `ffn_type=swiglu` becomes `ffn_type-swiglu`. Long names are
    truncated and get a digest to keep them unique."""
    name = re.sub(r"[^\w.]+", "-", text).strip("-.")
    if len(name) <= LONGEST_SLUG:
        return name
    return f"{name[: LONGEST_SLUG - 9]}-{digest(text.encode())[:8]}"


@contextlib.contextmanager
def collect_problems(name: str, problems: list[Problem]) -> Iterator[None]:
    """Catch a ConfigError and add its problems to the list, prefixed with the arm's name.

    Problems of the baseline come first and have no prefix; arms with the same problem add nothing.
    """
    found: list[Problem] = []
    with collect(found):
        yield
    prefix = "" if name == BASELINE else f"arm {name}: "
    known = {problem.message for problem in problems}
    problems += (
        Problem(problem.keys, prefix + problem.message)
        for problem in found
        if problem.message not in known
    )


class ArmMaker:
    """Creates arms from command lines, all for the same data."""

    def __init__(self, request: Request):
        self.request = request
        self._dataset: Dataset | None = None

    def equal_arms(self) -> list[Arm]:
        """Create the arms with equal sizes and budgets, the baseline first.

        Raises:
            ConfigError: If arms have problems; it lists them all.
            UserError: If two arms are identical, differ in more than requested, or cannot be made
                equal.
        """
        arms = self.designed()
        _refuse_other_recipes(arms, self.request)
        _refuse_twins(arms)
        _refuse_minutes(arms, self.request.budget)
        matched = [self.matched(arm, arms[0]) for arm in arms]
        arms = self.of_equal_length(matched, arms[0])
        _refuse_unequal_budgets(arms, self.request.budget)
        _refuse_other_schedules(arms, self.request)
        return arms

    @property
    def dataset(self) -> Dataset:
        """The dataset that all arms share; available once there are arms."""
        assert self._dataset is not None
        return self._dataset

    # From the request to arms

    def designed(self) -> list[Arm]:
        """The arms as requested, before sizes and budgets are made equal."""
        request = self.request
        problems: list[Problem] = []
        given: Arm | None = None
        with collect_problems(BASELINE, problems):
            given = self._arm(BASELINE, request.files, request.flags)
        arms = [given] if given and (not request.arms or self._is_arm(given)) else []
        levels = {key: self._levels(given, key) for key in request.vary}
        if given:
            training = given.settings.training
            problems += request.seed_problems(training.seed, training.data_seed)
        count = len(arms) + _number_of_changes(levels, request.design) + len(request.arms)
        too_many = list(request.size_problems(count))
        if too_many:
            raise ConfigError([*problems, *too_many])
        for name, files, flags in self._asked(levels):
            with collect_problems(name, problems):
                arms.append(self._arm(name, files, flags))
        if not request.tune:  # otherwise trials may choose the component
            problems += used_by_none(arms)
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        if len(arms) < 2:
            raise UserError(
                f"there is nothing to compare {arms[0].name} with; name another arm in --arms."
            )
        return arms

    def _is_arm(self, given: Arm) -> bool:
        """Whether the config files and flags form an arm in addition to those of --arms."""
        return bool(self.request.vary) or "arch_preset" in given.settings.explicit

    def _asked(
        self, levels: Mapping[str, Sequence[str]]
    ) -> Iterator[tuple[str, tuple[str, ...], dict[str, str]]]:
        """Yield name, config files and flags of each arm except the baseline."""
        request = self.request
        for changes in _changes(levels, request.design):
            yield assignments(changes), request.files, {**request.flags, **changes}
        for path in request.arms:
            yield Path(path).stem, (*request.files, path), dict(request.flags)

    def _levels(self, given: Arm | None, key: str) -> Sequence[str]:
        """The values listed for a key, without the one that the config already has; all of them if
        the config cannot be read. At least one, unless the sweep is repeated on other baselines."""
        if given is None:
            return self.request.vary[key]
        own = given.settings.to_dict()
        others = []
        for text in self.request.vary[key]:
            flags = {**self.request.flags, key: text}
            try:
                same = self.make(key, self.request.files, flags).settings.to_dict() == own
            except ConfigError:  # reported with the arms
                same = False
            if not same:
                others.append(text)
        if not others and not self.request.one_of_several:
            listed = ",".join(self.request.vary[key])
            raise UserError(
                f"--vary {key}={listed}: the config already has that value; list another one."
            )
        return others

    def make(self, name: str, files: Sequence[str], flags: Mapping[str, str]) -> Arm:
        """Create an arm from its command line. The problems of a ConfigError name the arm."""
        problems: list[Problem] = []
        with collect_problems(name, problems):
            return self._arm(name, files, flags)
        raise ConfigError(problems)

    def _arm(self, name: str, files: Sequence[str], flags: Mapping[str, str]) -> Arm:
        """Like `make`, but problems do not name the arm."""
        asked = configurator.read([*files, *(f"--{key}={text}" for key, text in flags.items())])
        settings = new_settings(asked, allow_unused=self._may_be_unused(asked, flags))
        problems = [*size_problems(settings.model), *_borrowed_parts(settings)]
        if problems:
            raise ConfigError(problems)
        settings = settings.for_data(self._data_of(settings).vocab_size)
        return Arm(
            name=name,
            files=tuple(files),
            asked=dict(flags),
            flags=_used_flags(files, flags, settings.unused),
            settings=settings,
        )

    def _may_be_unused(self, asked: Asked, flags: Mapping[str, str]) -> set[str]:
        """The keys that are given to all arms or tuned, which apply only to arms that use them."""
        shared = {key for key, text in flags.items() if self.request.flags.get(key) == text}
        files = self.request.files
        return shared.union(self.request.tune) | {
            key
            for key, item in asked.given.items()
            if item.origin in files or item.origin.rpartition(":")[0] in files
        }

    def _data_of(self, settings: Settings) -> Dataset:
        """The dataset, which is opened once; arms that request another one are refused later."""
        if self._dataset is None:
            training = settings.training
            folder = prepare_if_missing(training.dataset, may_run=True)
            self._dataset = Dataset.open(folder, training.sequence_length)
        return self._dataset

    # Equal sizes, equal budgets

    def matched(self, arm: Arm, baseline: Arm, fixed: Collection[str] = ()) -> Arm:
        """The arm, matched to the baseline in the count of `--match` without changing fixed
        keys."""
        match, length = self.request.match, baseline.settings.training.sequence_length
        if match == "none":
            return arm
        count = counter(match, length)
        chosen = {key for key in (*FFN_KEYS, "n_embd") if _is_chosen(arm, baseline, key)}
        target = count(baseline.settings.model)
        try:
            keys = solve(arm.settings.model, count, target, chosen.union(fixed))
        except UserError as error:
            raise UserError(f"arm {arm.name}, {MATCHED[match]}: {error}") from error
        if not keys:
            return arm
        texts = {key: configurator.shown(value) for key, value in keys.items()}
        remade = self.make(arm.name, arm.files, {**arm.asked, **texts})
        return dataclasses.replace(
            remade, solved={key: value for key, value in keys.items() if value is not None}
        )

    def trial(self, arm: Arm, choice: Mapping[str, str], baseline: Arm) -> Arm:
        """An arm with the given values of tuned keys, and the baseline's size and budget."""
        name = f"{arm.name} with {assignments(choice)}"
        made = self.make(name, arm.files, {**arm.asked, **choice})
        [made] = self.of_equal_length([self.matched(made, baseline, choice)], baseline)
        _refuse_unequal_budgets([baseline, made], self.request.budget)
        return made

    def of_equal_length(self, arms: Sequence[Arm], baseline: Arm) -> list[Arm]:
        """The arms with the run lengths for the budget, by default that of the baseline."""
        budget = self.request.budget or Budget("tokens", baseline.tokens)
        return [self._lengthened(arm, budget) for arm in arms]

    def _lengthened(self, arm: Arm, budget: Budget) -> Arm:
        flags = length_flags(budget, arm.settings, arm.flops_per_token)
        if "keep_checkpoints" not in arm.settings.explicit:
            flags["keep_checkpoints"] = "1"  # saves space; resuming needs only the newest
        remade = self.make(arm.name, arm.files, {**arm.asked, **flags})
        return dataclasses.replace(remade, solved=arm.solved)


def _used_flags(
    files: Sequence[str], flags: Mapping[str, str], unused: Collection[str]
) -> dict[str, str]:
    """The flags without unused keys; unused keys set by config files are reset to the default."""
    used = {key: text for key, text in flags.items() if key not in unused}
    if not unused:
        return used
    set_by_files = set().union(*(read_config_file(path, {}) for path in files))
    return used | dict.fromkeys(sorted(set_by_files & set(unused)), configurator.TAKEN_BACK)


def _borrowed_parts(settings: Settings) -> Iterator[Problem]:
    """Yield problems for components registered by another arm's file, which runs would not load."""
    own = {module_name(path) for path in settings.plugins}
    for view in (*settings.model.kinds, settings.training):
        for key, part in parts_of(view, KEYS):
            if is_users_own(part) and part.__module__ not in own:
                path = os.path.relpath(sys.modules[part.__module__].__file__)
                message = (
                    f"{key}={view.get(key)} is registered by {path}, which is not a file of this "
                    f"arm; give all arms --plugins={path}."
                )
                yield Problem((key,), message)


def _changes(levels: Mapping[str, Sequence[str]], design: str) -> Iterator[dict[str, str]]:
    """Yield the flags of each arm created by `--vary`."""
    if design == "ablation":
        for key, texts in levels.items():
            yield from ({key: text} for text in texts)
        return
    for cell in product(*([None, *texts] for texts in levels.values())):
        changes = {key: text for key, text in zip(levels, cell, strict=True) if text}
        if changes:
            yield changes


def _number_of_changes(levels: Mapping[str, Sequence[str]], design: str) -> int:
    """The number of arms created by `--vary`, without creating them."""
    counts = [len(texts) for texts in levels.values()]
    return sum(counts) if design == "ablation" else prod(count + 1 for count in counts) - 1


def _is_chosen(arm: Arm, baseline: Arm, key: str) -> bool:
    """Whether an arm differs from the baseline by an explicitly set width, not a derived one."""
    own, other = arm.settings, baseline.settings
    differs = own.model.to_dict().get(key) != other.model.to_dict().get(key)
    return differs and own.origins.get(key) not in (None, DERIVED, "default")


# Checks


def used_by_none(arms: Sequence[Arm]) -> Iterator[Problem]:
    """Yield problems for keys that are given to every arm but used by none."""
    for key in sorted(
        set.intersection(*(set(arm.settings.unused) for arm in arms)) if arms else ()
    ):
        message = f"{key} belongs to {KEYS.owned_by(key)}, which no arm uses; drop it."
        yield Problem((key,), message)


def _refuse_twins(arms: Sequence[Arm]) -> None:
    by_config: dict[str, Arm] = {}
    by_slug: dict[str, Arm] = {}
    for arm in arms:
        config = _of_roles(arm, *set(Role) - {Role.BOOKKEEPING, Role.EXECUTION})
        same = by_config.setdefault(repr(config), arm)
        if same is not arm:
            raise UserError(f"{arm.name} and {same.name} have the same config; drop one.")
        same = by_slug.setdefault(arm.slug, arm)
        if same is not arm:
            raise UserError(
                f"the runs of the arms {same.name} and {arm.name} would both be named {arm.slug}; "
                "rename a config file, or drop one."
            )


def _refuse_minutes(arms: Sequence[Arm], budget: Budget | None) -> None:
    """Raise UserError for max_minutes in a config: some runs might end before their last step, so
    that budgets would be unequal."""
    for arm in arms:
        minutes = arm.settings.training.max_minutes
        if minutes and budget is None:
            raise UserError(
                f"max_minutes={minutes:g} (from {arm.settings.origins['max_minutes']}) cannot be "
                f"used in a sweep; use --budget minutes={minutes:g}, which gives every run the "
                "same time, or --budget tokens=N."
            )


def _refuse_unequal_budgets(arms: Sequence[Arm], budget: Budget | None) -> None:
    """Raise UserError if rounding to whole steps makes budgets unequal."""
    if budget and budget.unit == "minutes":
        return
    unit = budget.unit if budget else "tokens"
    asked = budget.amount if budget else arms[0].tokens
    for arm in arms:
        own = getattr(arm, unit)
        if abs(own - asked) > SAME_BUDGET * max(own, asked):
            raise UserError(
                f"arm {arm.name} would spend {own:,.0f} {unit}, not {asked:,.0f}: a step is too "
                "large a part of the budget; raise it, or lower batch_size."
            )


FOLLOWING = {"learning_rate": ("min_lr",)}
"""Recipe keys that are derived from other recipe keys."""


def studied_keys(request: Request, arms: Sequence[Arm]) -> set[str]:
    """The recipe keys that may differ between arms: varied and tuned keys, and their consequences,
    namely options that not all arms have, and derived values that no arm sets."""
    asked = {key for key in (*request.vary, *request.tune) if KEYS[key].role in _CONDITIONS}
    following = {key for studied in asked for key in FOLLOWING.get(studied, ())}
    options = set().union(*(_options_of(arm, studied) for arm in arms for studied in asked))
    shared = set.intersection(*(set(arm.settings.to_dict()) for arm in arms)) if arms else set()
    unset = (following | options).difference(*(arm.settings.explicit for arm in arms))
    return asked | unset | (options - shared)


def _options_of(arm: Arm, key: str) -> set[str]:
    """The options of the component that an arm chooses with a key, if any."""
    chosen = chosen_by(KEYS[key], arm.settings.to_dict().get(key))
    return {name for entry in chosen for name in entry.keys}


_CONDITIONS = (Role.RECIPE, Role.DATA)
_ALIKE = (*_CONDITIONS, Role.EXECUTION, Role.SEED)
"""What is the same in all arms, unless it is studied."""


def _of_roles(arm: Arm, *roles: Role) -> dict[str, Any]:
    """The keys and values of an arm with one of these roles."""
    return {k: value for k, value in arm.settings.to_dict().items() if KEYS[k].role in roles}


def _refuse_other_recipes(arms: Sequence[Arm], request: Request) -> None:
    """Raise UserError if arms differ in keys that are not studied."""
    baseline, studied = _of_roles(arms[0], *_ALIKE), studied_keys(request, arms)
    for arm in arms[1:]:
        own = _of_roles(arm, *_ALIKE)
        alike = sorted(own.keys() & baseline.keys() - studied)
        for key in (key for key in alike if own[key] != baseline[key]):
            study = ", or study it with --vary or --tune" if is_tunable(KEYS[key]) else ""
            raise UserError(
                f"arm {arm.name} has {key}={own[key]} (from {arm.settings.origins[key]}), but the "
                f"baseline has {baseline[key]}, so they would not be comparable; set it for all "
                f"arms{study}."
            )


def _refuse_other_schedules(arms: Sequence[Arm], request: Request) -> None:
    """Raise UserError unless warm-up and decay are the same fractions of all runs."""
    for key in {"warmup_iters", "lr_decay_iters"} - studied_keys(request, arms):
        first, *others = (_share_of_length(arm, key) for arm in arms)
        for arm, share in zip(arms[1:], others, strict=True):
            if abs(share - first) > SAME_SHARE:
                raise UserError(
                    f"arm {arm.name} has {key} at {share:.1%} of its steps (from "
                    f"{arm.settings.origins[key]}), but the baseline has {first:.1%}, so they "
                    "would not be comparable; set it for all arms."
                )


def _share_of_length(arm: Arm, key: str) -> float:
    return (arm.settings.training.get(key) or 0) / arm.settings.training.max_iters
