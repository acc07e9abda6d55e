"""The request for a sweep, parsed and validated as far as possible without data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import prod

import configurator
from comparison.json_checks import told
from errors import ConfigError, Problem
from experiment.budgets import Budget
from inference.verdicts import MARGIN
from options import KEYS, Key, Role

DESIGNS = ("ablation", "factorial")
MATCHED = {
    "active_params": "active parameters",
    "params": "parameters",
    "flops": "FLOPs per token",
}
"""Counts that `--match` can make equal."""

MATCHES = (*MATCHED, "none")

MOST_RUNS = 10_000
"""Maximum number of runs in a sweep, and of seeds of an arm or a trial."""

TUNING_SEEDS_FROM = 10_000
"""Offset of the tuning seeds from those of the final runs, so that verdicts never use seeds with
which keys were tuned."""

LONGEST_FOLDER_NAME = 200  # bytes

Texts = Mapping[str, tuple[str, ...]]
"""Keys with the values listed for each, as written on the command line."""

_INSTEAD = {
    "seed": "use --seeds=N",
    "data_seed": "use --seeds=N",
    "max_iters": "use --budget tokens=N, which applies to every arm",
    "max_minutes": "use --budget minutes=N, which applies to every arm",
    "run_name": "the sweep names its runs; --name names the sweep",
    "resume": "the same command resumes a sweep",
}


def is_variable(key: Key) -> bool:
    """Whether arms may differ in a key."""
    varies = key.metadata.get("varies")
    return key.role in (Role.ARCHITECTURE, Role.RECIPE) if varies is None else varies


def is_tunable(key: Key) -> bool:
    """Whether each arm may choose its own value of a key by trials: a recipe key, or an option of a
    component."""
    owned = key.role is Role.ARCHITECTURE and key.owner != ""
    return is_variable(key) and (key.role is Role.RECIPE or owned)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A requested sweep.

    Attributes:
        files: Config files of every arm.
        flags: `--key=value` flags of every arm, as text.
        vary: Keys whose values define arms.
        arms: Config files that define one arm each.
        design: ablation (one change at a time) or factorial (all combinations).
        match: The count to match with the baseline, a key of MATCHED, or none.
        budget: The budget of every run. None: the tokens of the baseline's config.
        tune: Keys and values to try before the final runs, for arms that have the keys.
        seeds: Number of seeds per arm; the maximum if `until_sure`.
        until_sure: Whether seeds are added at scheduled looks until each verdict is conclusive.
        tune_seeds: Number of seeds per trial.
        margin: Differences up to this many nats per token count as equal.
        name: Folder of the sweep; None: derived from the request.
        one_of_several: Whether the sweep is repeated on several baselines, some of which may
            already have the varied values.
    """

    files: tuple[str, ...]
    flags: Mapping[str, str]
    vary: Texts = dataclasses.field(default_factory=dict)
    arms: tuple[str, ...] = ()
    design: str = "ablation"
    match: str = "active_params"
    budget: Budget | None = None
    tune: Texts = dataclasses.field(default_factory=dict)
    seeds: int = 5
    until_sure: bool = False
    tune_seeds: int = 1
    margin: float = MARGIN
    name: str | None = None
    one_of_several: bool = False

    def __post_init__(self) -> None:
        problems = [
            *_list_problems("--vary", self.vary, is_variable),
            *_list_problems("--tune", self.tune, is_tunable),
            *_flag_problems(self),
            *self._size_problems(),
        ]
        if problems:
            raise ConfigError(problems)

    def _size_problems(self) -> Iterator[Problem]:
        counts = {"seeds": self.seeds, "tune_seeds": self.tune_seeds}
        wrong = {key: count for key, count in counts.items() if not 1 <= count <= MOST_RUNS}
        for key, count in wrong.items():
            yield Problem((key,), f"--{key}={told(count)} must be from 1 to {MOST_RUNS:,}.")
        if not 0 < self.margin < float("inf"):
            yield Problem((), f"--margin={self.margin:g} must be above 0, in nats per token.")
        if not wrong:
            yield from self.size_problems(self._fewest_arms)

    @property
    def _fewest_arms(self) -> int:
        """Lower bound on the number of arms; one of a key's values may be that of the config."""
        lists = [len(values) for values in self.vary.values()]
        if self.design == "factorial":
            return prod(max(2, count) for count in lists)
        return 1 + sum(max(1, count - 1) for count in lists) + max(0, len(self.arms) - 1)

    def size_problems(self, arms: int) -> Iterator[Problem]:
        """Yield the problem if a sweep with this many arms has too many runs."""
        trials = prod(map(len, self.tune.values())) if self.tune else 0
        runs = arms * (self.seeds + trials * self.tune_seeds)
        if runs > MOST_RUNS:
            tuned = f" and {trials:,} trials of {self.tune_seeds:,}" if trials else ""
            yield Problem(
                (),
                f"{arms:,} arms with {self.seeds:,} seeds{tuned} make {runs:,} runs; a sweep has "
                f"at most {MOST_RUNS:,}. List fewer values or lower --seeds.",
            )

    def seed_problems(self, seed: int, data_seed: int) -> Iterator[Problem]:
        """Yield problems with the highest seeds of the runs, given the seeds of the config."""
        offset = TUNING_SEEDS_FROM + self.tune_seeds if self.tune else self.seeds
        for key, first in (("seed", seed), ("data_seed", data_seed)):
            problem = KEYS[key].problem(first + offset - 1)
            if problem:
                message = f"the runs need seeds from {key}={first} up: {problem.message} Lower it."
                yield Problem((key,), message)


def read_lists(option: str, texts: Iterable[str]) -> Texts:
    """Parse `["a=1,2", "b=x"]` as keys with values. Raises ConfigError with every invalid text and
    repeated key."""
    found: dict[str, tuple[str, ...]] = {}
    problems = []
    for text in texts:
        key, equals, values = text.partition("=")
        listed = tuple(value for value in values.split(",") if value)
        if not equals or not listed:
            message = f"cannot parse {option} {text!r}; write {option} key=value,value"
            problems.append(Problem((), message))
        elif key in found:
            message = f"{option} {key} is given more than once; list all values in one option."
            problems.append(Problem((key,), message))
        else:
            found[key] = listed
    if problems:
        raise ConfigError(problems)
    return found


def _list_problems(option: str, lists: Texts, allowed: Callable[[Key], bool]) -> list[Problem]:
    found = []
    for key, values in lists.items():
        if key not in KEYS:
            found.append(configurator.unknown_key(key, f"{option} {key}"))
        elif not allowed(KEYS[key]):
            instead = _INSTEAD.get(key, "it must be the same for all arms; set it with --key=value")
            found.append(Problem((key,), f"{option} {key}: {instead}."))
        else:
            found += _value_problems(option, key, values)
    return found


def _value_problems(option: str, key: str, texts: Sequence[str]) -> list[Problem]:
    known = KEYS[key]
    values = [known.parse(text) for text in texts]
    if any(value in values[:index] for index, value in enumerate(values)):
        message = f"{option} {key}={','.join(texts)} lists a value twice; list each once."
        return [Problem((key,), message)]
    return [
        Problem((key,), f"{option}: {problem.message}")
        for problem in map(known.problem, values)
        if problem
    ]


def _flag_problems(request: Request) -> list[Problem]:
    found = []
    for key in request.flags:
        option = next((o for o, keys in _options(request).items() if key in keys), None)
        if option:
            message = f"--{key} conflicts with {option}, which sets that key; drop one."
            found.append(Problem((key,), message))
    for key in sorted({"run_name", "resume"}.intersection(request.flags)):
        found.append(Problem((key,), f"--{key} is not available in a sweep: {_INSTEAD[key]}."))
    for key in sorted(request.vary.keys() & request.tune.keys()):
        found.append(Problem((key,), f"{key} is both in --vary and in --tune; drop one."))
    if request.arms and request.design == "factorial":
        message = "--arms cannot be used with --design=factorial; drop one of them."
        found.append(Problem((), message))
    if request.design == "factorial" and len(request.vary) < 2:
        message = (
            f"--design=factorial needs at least 2 keys in --vary, not {len(request.vary)}; add "
            "one, or drop it."
        )
        found.append(Problem((), message))
    if request.name is not None and not _is_folder_name(request.name):
        message = (
            f"--name={request.name!r} must be a single folder name of at most "
            f"{LONGEST_FOLDER_NAME} bytes without control characters; set its location with "
            "out_dir."
        )
        found.append(Problem((), message))
    if not request.vary and not request.arms:
        found.append(Problem((), "nothing to compare: give --vary key=value,... or --arms FILES."))
    return found


def _is_folder_name(name: str) -> bool:
    fits = name.isprintable() and len(name.encode()) <= LONGEST_FOLDER_NAME
    return fits and name.strip() not in ("", ".", "..") and not set(name) & set("/\\")


def _options(request: Request) -> dict[str, Collection[str]]:
    """The keys that options set instead of flags."""
    lengths = ("max_iters", "max_minutes") if request.budget else ()
    return {"--tune": request.tune, "--budget": lengths}
