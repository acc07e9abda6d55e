"""The training config: all keys of a run that do not describe the architecture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from errors import ConfigError, Problem, quoted, unknown_name
from options import KEYS, Key, Role, Section, keys_of
from part_keys import Draft, expanded, problems_of_parts
from training_components import ADAPTERS, DTYPES, LOG_SINKS, LR_SCHEDULES, OBJECTIVES, OPTIMIZERS

DEVICES = ("auto", "cpu", "cuda", "mps")

LONGEST_PATH_PART = 255
"""Maximum length of a file or folder name in bytes, on all common file systems."""

LONGEST_FOLDER_NAME = 200
"""Maximum length of a run or sweep name in bytes, which leaves room for suffixes."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def folder_name_refusal(name: str) -> str | None:
    """Why `name` is not a valid folder name for a run or sweep, with the fix; None if it is.

    Names that only Windows forbids are refused everywhere, so that folders can be copied.
    """
    if name in ("", ".", "..") or set(name) & set("/\\"):
        return "must be a single folder name; set its location with out_dir."
    if name != name.strip():
        return "starts or ends with a space; remove it."
    if _RESERVED.fullmatch(name) or name.endswith("."):
        return "is not a valid folder name on Windows; choose another."
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > LONGEST_FOLDER_NAME:
        return f"is {size} bytes long, but at most {LONGEST_FOLDER_NAME} are allowed; shorten it."
    return None


def kept_share(steps: int, of: int, new: int) -> int:
    """Scale `steps` of a run of `of` steps to a run of `new` steps; at least 1, unless `steps` is
    0.

    Used for the warm-up and the decay if the length of a run changes.
    """
    return max(round(steps / max(of, 1) * new), min(steps, 1))


_places = Section("Files and directories", Role.BOOKKEEPING)
_data = Section("Data", Role.DATA)
_schedule = Section("Length and learning rate", Role.RECIPE)
_adapter = Section("Adapter", Role.RECIPE)
_objective = Section("Objective", Role.RECIPE)
_optimizer = Section("Optimizer", Role.RECIPE)
_records = Section("Validation, logging, checkpoints", Role.BOOKKEEPING)
_machine = Section("Machine", Role.EXECUTION)


def _warmup(config: Any) -> int:
    """5 % of the schedule, at most 2000 steps unless a time limit may end the run first."""
    length = config.lr_decay_iters if "lr_decay_iters" in config else config.max_iters
    warmup = length // 20
    return warmup if config.max_minutes else min(warmup, 2000)


class TrainingOptions:
    """The keys that every run has, regardless of its training components.

    Keys for paths, trust and log sinks have `restored=False`: they are never taken from a
    checkpoint, which may come from someone else.
    """

    out_dir: str = _places.option("out", "directory of all runs", restored=False)
    run_name: str = _places.option(
        "auto",
        "name of the run directory in out_dir; auto: the preset, or the config file if none is "
        "chosen, with date and time",
        restored=False,
    )
    resume: str = _places.option(
        "none",
        "run to resume: none, auto (the newest matching run), or a run or checkpoint",
        restored=False,
    )
    init_from: str = _places.option(
        "none",
        "Hugging Face model folder, run directory or checkpoint to start from, or none",
        role=Role.DATA,
    )
    plugins: str = _places.option(
        "",
        "comma-separated .py files that register custom components; saved: with --resume, those "
        "that the run was trained with, which runs their code",
        restored=False,
    )
    allow_changed_plugins: bool = _places.option(
        False, "resume even if the plugins have changed since the run was trained", restored=False
    )

    dataset: str = _data.option(
        "python_stdlib",
        "name of a folder of data/, or path to a prepared dataset",
        names="dataset",
    )
    sequence_length: int | None = _data.option(
        None,
        "tokens per training sequence; none: block_size if set, otherwise at most 256",
        at_least=1,
    )
    batch_size: int = _data.option(4, "sequences per micro-batch", at_least=1, varies=True)
    gradient_accumulation_steps: int = _data.option(
        1, "micro-batches per step", at_least=1, varies=True
    )
    data_seed: int = _data.option(
        1337, "seed for the order of the training data", at_least=0, role=Role.SEED
    )

    max_iters: int = _schedule.option(2000, "optimizer steps", at_least=0, role=Role.LENGTH)
    max_minutes: float = _schedule.option(
        0.0,
        "stop after this many minutes of training, with the schedule scaled to finish in that "
        "time; 0: no limit",
        at_least=0,
        role=Role.LENGTH,
    )
    learning_rate: float = _schedule.option(1e-3, "peak learning rate", above=0)
    warmup_iters: int | None = _schedule.option(
        None,
        "linear warm-up steps; none: 5 % of the schedule, at most 2000 unless max_minutes is "
        "set; a config file's value that does not fit in --max_iters is scaled down with it",
        at_least=0,
        role=Role.LENGTH,
        derive=_warmup,
    )
    lr_schedule: str = _schedule.option(
        "cosine", "learning-rate schedule after warm-up", choices=LR_SCHEDULES
    )

    adapter: str = _adapter.option(
        "none",
        "train only added parameters of the model of init_from; none: train all",
        choices=ADAPTERS.plus("none"),
        fixed=True,
    )

    objective: str = _objective.option("cross_entropy", "training loss", choices=OBJECTIVES)

    optimizer: str = _optimizer.option(
        "adamw", "optimizer; cannot change on resume", choices=OPTIMIZERS, fixed=True
    )
    grad_clip: float = _optimizer.option(
        1.0, "maximum norm for gradient clipping; 0: no clipping", at_least=0
    )
    qk_clip: float = _optimizer.option(
        0.0,
        "threshold of QK-Clip, such as 100: if the largest attention logit of a head exceeds it in "
        "a step, scale its query and key weights down; 0: off",
        at_least=0,
    )
    max_bad_steps: int = _optimizer.option(
        10, "stop after this many consecutive non-finite steps (each is skipped)", at_least=1
    )

    eval_interval: int = _records.option(
        250, "steps between validations; 0: only one, at the end", at_least=0
    )
    eval_tokens: int = _records.option(
        32768,
        "validation tokens, spread evenly over the split; 0: all; cannot change on resume",
        at_least=0,
        role=Role.DATA,
    )
    log_interval: int = _records.option(10, "steps between log lines", at_least=1)
    log_attention_logits: bool = _records.option(
        False, "log the largest attention logit of each head; qk_clip logs them, too"
    )
    sample_interval: int = _records.option(
        0, "steps between text samples; 0: only at the end", at_least=0
    )
    sample_tokens: int = _records.option(200, "tokens per text sample; 0: no samples", at_least=0)
    console: str = _records.option(
        "full", "console log format; brief: one line per log step", choices=("full", "brief")
    )
    verbose: bool = _records.option(False, "print every setting before training")
    log_to: str = _records.option(
        "",
        "comma-separated log sinks in addition to the JSON files",
        choices=LOG_SINKS,
        several=True,
        restored=False,
    )
    checkpoint_minutes: float = _records.option(
        30.0, "minutes between additional checkpoints; 0: only at validations", at_least=0
    )
    keep_checkpoints: int = _records.option(
        3, "number of recent checkpoints to keep, in addition to the best", at_least=1
    )

    async_save: bool | str = _records.option(
        "auto",
        "write checkpoints in the background, from a copy in memory; auto: if device is not cpu",
        choices=("auto", True, False),
    )

    device: str = _machine.option("auto", "training device", choices=DEVICES)
    dtype: str = _machine.option(
        "auto",
        "compute dtype of matmuls",
        choices=DTYPES.plus("auto"),
        role=Role.RECIPE,
        varies=False,
    )
    tf32: bool = _machine.option(
        False,
        "allow TF32 for float32 matmuls on CUDA: faster, but inputs are rounded to 10 bits of "
        "mantissa",
        role=Role.RECIPE,
    )
    compile: bool | str = _machine.option(
        "auto",
        "compile the model with torch.compile; auto: on CUDA, and on a CPU for long runs",
        choices=("auto", True, False),
    )
    parallelism: str = _machine.option(
        "auto",
        "how the model is distributed across workers; auto: ddp if it fits in memory, otherwise "
        "fsdp",
        choices=("auto", "none", "ddp", "zero1", "fsdp", "hsdp"),
        restored=False,
    )
    tensor_parallel: int = _machine.option(
        1,
        "tensor parallelism: number of workers that split the heads and hidden units of each block",
        at_least=1,
        restored=False,
    )
    shard_size: int = _machine.option(
        0,
        "hsdp: number of workers per copy of the model; 0: the workers of one machine",
        at_least=0,
        restored=False,
    )
    activation_checkpointing: str = _machine.option(
        "none",
        "activations to recompute in the backward pass; block: all of a block; selective: all "
        "except outputs of matmuls and attention",
        choices=("none", "block", "selective"),
    )
    hang_timeout: float = _machine.option(
        600.0,
        "seconds to wait for an unresponsive worker before the run fails",
        above=0,
        at_most=10**7,
        role=Role.BOOKKEEPING,
    )
    seed: int = _machine.option(
        1337, "seed for Python, NumPy and PyTorch", at_least=0, below=2**32, role=Role.SEED
    )


TRAINING_KEYS = keys_of(TrainingOptions)
KEYS.declare("", TRAINING_KEYS)


def training_keys() -> dict[str, Key]:
    """All training keys; options of components follow the key that chooses the component."""
    return expanded(TRAINING_KEYS)


class TrainingConfig:
    """The training settings of a run, validated on creation.

    Keys are read as attributes: those of every run (`TrainingOptions`), and the options of the
    chosen schedule, objective and optimizer. Keys left at None are derived from the others, except
    sequence_length, which depends on the model.

    Args:
        keys: Values given by the user; keys of components that are not selected are refused.

    Raises:
        ConfigError: If there are problems; it lists them all, with fixes.
    """

    def __init__(self, **keys: Any):
        self._set_up({}, keys)

    @classmethod
    def make(
        cls, base: Mapping[str, Any], given: Mapping[str, Any] | None = None
    ) -> TrainingConfig:
        """Create a config from a base, such as a saved config, and the user's changes.

        Values of the base that belong to components that are not selected are ignored.
        """
        config = cls.__new__(cls)
        config._set_up(base, given or {})
        return config

    def changed(self, **changes: Any) -> TrainingConfig:
        """A config with some keys changed."""
        return self.make(self._base, {**self._given, **changes})

    def completed(self, sequence_length: int) -> TrainingConfig:
        """The config with sequence_length set to a derived value."""
        config = self.changed()
        vars(config)["sequence_length"] = sequence_length
        return config

    def _set_up(self, base: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        keys, both = training_keys(), {**base, **given}
        unknown = [Problem((k,), unknown_name("key", k, keys)) for k in both if k not in keys]
        alone = (keys[name].problem(value) for name, value in both.items() if name in keys)
        problems = [*unknown, *(problem for problem in alone if problem)]
        if problems:
            raise ConfigError(problems)
        meant = {name: keys[name].converted(value) for name, value in both.items()}
        own = vars(self)
        own["_base"], own["_given"] = dict(base), dict(given)
        values = Draft(meant, TRAINING_KEYS).resolved(keys)
        own["_keys"] = {name: keys[name] for name in values}
        own.update(values)
        problems = list(self._combination_problems())
        if problems:
            raise ConfigError(problems)

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"{key}: a config is immutable; use `changed`")

    def __getattr__(self, key: str) -> Any:
        raise AttributeError(f"this run has no key {key!r}")

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainingConfig) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(tuple(self.to_dict().items()))

    def __repr__(self) -> str:
        values = ", ".join(f"{key}={value!r}" for key, value in self.to_dict().items())
        return f"TrainingConfig({values})"

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default` if no selected component has it."""
        return vars(self)[key] if key in self._keys else default

    def to_dict(self) -> dict[str, Any]:
        """All keys and values of the run."""
        return {name: vars(self)[name] for name in self._keys}

    @property
    def derived(self) -> frozenset[str]:
        """The keys whose values are derived from others."""
        return frozenset(
            name
            for name, key in self._keys.items()
            if key.default is None and {**self._base, **self._given}.get(name) is None
        )

    def _combination_problems(self) -> Iterator[Problem]:
        refusal = folder_name_refusal(self.run_name)
        if refusal:
            yield Problem(("run_name",), f"run_name={quoted(self.run_name)} {refusal}")
        yield from self._out_dir_problems()
        repeated = [name for name, count in Counter(self.log_sinks).items() if count > 1]
        if repeated:
            yield Problem(
                ("log_to",), f"log_to={self.log_to!r} names {', '.join(repeated)} more than once."
            )
        decay_ends = self.get("lr_decay_iters", self.max_iters)
        if self.warmup_iters > max(decay_ends, 1):
            yield Problem(
                ("warmup_iters", "lr_decay_iters", "max_iters"),
                f"warmup_iters={self.warmup_iters} is longer than the schedule of {decay_ends} "
                "steps (lr_decay_iters, or max_iters); make it shorter.",
            )
        if self.sample_interval and not self.sample_tokens:
            yield Problem(
                ("sample_interval", "sample_tokens"),
                f"sample_interval={self.sample_interval} has no effect with sample_tokens=0; drop "
                "it, or set sample_tokens to at least 1.",
            )
        if self.shard_size and self.parallelism != "hsdp":
            yield Problem(
                ("shard_size", "parallelism"),
                f"shard_size={self.shard_size} has no effect with parallelism="
                f"{quoted(self.parallelism)}; drop it, or use parallelism='hsdp'.",
            )
        yield from self._unused_problems()
        yield from problems_of_parts("problems", self, self._keys)

    def _unused_problems(self) -> Iterator[Problem]:
        for key in self._given:
            if key not in self._keys and self._given[key] is not None:
                yield Problem(
                    (key,),
                    f"{key}={quoted(self._given[key])} belongs to {KEYS.owned_by(key)}, which is "
                    "not selected; drop it, or select that component.",
                )

    def _out_dir_problems(self) -> Iterator[Problem]:
        if not self.out_dir.strip():
            message = (
                f"out_dir={self.out_dir!r} does not name a folder; drop it, or use '.' for the "
                "current folder."
            )
            yield Problem(("out_dir",), message)
        longest = max(len(part.encode()) for part in re.split(r"[/\\]", self.out_dir))
        if longest > LONGEST_PATH_PART:
            message = (
                f"out_dir={quoted(self.out_dir)} contains a name of {longest} bytes, but at most "
                f"{LONGEST_PATH_PART} are allowed; shorten it."
            )
            yield Problem(("out_dir",), message)

    @property
    def log_sinks(self) -> tuple[str, ...]:
        """The names of the sinks in `log_to`."""
        return tuple(self._keys["log_to"].named(self.log_to))

    @property
    def tokens_per_step(self) -> int:
        """Training tokens per optimizer step; requires `sequence_length` to be set."""
        assert self.sequence_length is not None
        return self.gradient_accumulation_steps * self.batch_size * self.sequence_length
