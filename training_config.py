"""How a model is trained: every key of a run that does not describe the architecture."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from errors import ConfigError, Problem, quoted, unknown_name
from options import KEYS, Role, Section, convert_fields, field_problems, keys_of

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
SCHEDULES = ("cosine", "linear", "wsd", "constant")
LOG_SINKS = ("csv", "tensorboard", "wandb")

LONGEST_PATH_PART = 255
"""Bytes of a file's or folder's name, on all common file systems."""

LONGEST_FOLDER_NAME = 200
"""Bytes of a run's or a sweep's name: leaves room for the suffixes of what is named after it."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def folder_name_refusal(name: str) -> str | None:
    """Why `name` cannot be the name of a run's or a sweep's folder, with the fix; None if it can.

    What only Windows refuses is refused everywhere, so that folders can be copied.
    """
    if name in ("", ".", "..") or set(name) & set("/\\"):
        return "must be one folder's name; out_dir says where it is."
    if name != name.strip():
        return "starts or ends with a space; remove it."
    if _RESERVED.fullmatch(name) or name.endswith("."):
        return "is no folder's name on Windows; choose another."
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > LONGEST_FOLDER_NAME:
        return f"is {size} bytes long, and the longest is {LONGEST_FOLDER_NAME}; shorten it."
    return None


def kept_share(steps: int, of: int, new: int) -> int:
    """Steps with the share of `new` that `steps` have of `of`; at least one, unless there are none.

    How a warm-up or a decay follows a change of the run's length.
    """
    return max(round(steps / max(of, 1) * new), min(steps, 1))


_places = Section("Files and directories", Role.BOOKKEEPING)
_data = Section("Data", Role.DATA)
_schedule = Section("Length, learning rate", Role.RECIPE)
_optimizer = Section("Optimizer (AdamW)", Role.RECIPE)
_records = Section("Validation, log, checkpoints", Role.BOOKKEEPING)
_machine = Section("Machine", Role.EXECUTION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of a run, checked when made.

    A field left at None is derived from the others: see `derived`. What an option may say besides
    what `options.option` takes:

    restored: Whether a resumed run has it from its checkpoint. Where False, it says where things
        are, what is trusted, or where the log is sent: a saved run, which may be somebody else's,
        does not decide that.
    varies: Whether the arms of a sweep may differ in it; None: as its role says.
    compared_by: Where run.json has what the value came to, which two runs are compared by instead.

    Raises:
        ConfigError: with every problem found, each naming the fix.
    """

    out_dir: str = _places.option("out", "directory that holds the runs", restored=False)
    run_name: str = _places.option(
        "auto", "directory of this run in out_dir; auto: preset, date and time", restored=False
    )
    resume: str = _places.option(
        "none", "none | auto (the newest matching run) | a run or checkpoint", restored=False
    )
    init_from: str = _places.option(
        "none",
        "none | a folder of a Hugging Face model whose weights the run starts from",
        role=Role.DATA,
    )
    plugins: str = _places.option(
        "", "comma-separated .py files that register custom parts", restored=False
    )
    allow_changed_plugins: bool = _places.option(
        False, "resume with plugins that differ from those the run was trained with", restored=False
    )

    dataset: str = _data.option(
        "python_stdlib",
        "a folder of data/, or a path to a prepared dataset",
        compared_by=("data", "fingerprint"),
    )
    sequence_length: int | None = _data.option(
        None,
        "tokens per training sequence; none: block_size if you set it, else at most 256",
        at_least=1,
    )
    batch_size: int = _data.option(4, "sequences per micro-batch", at_least=1, varies=True)
    gradient_accumulation_steps: int = _data.option(
        1, "micro-batches per step", at_least=1, varies=True
    )
    data_seed: int = _data.option(
        1337, "seed of the order of the training data", at_least=0, role=Role.SEED
    )

    max_iters: int = _schedule.option(2000, "optimizer steps", at_least=0, role=Role.LENGTH)
    max_minutes: float = _schedule.option(
        0.0,
        "stop after this many minutes of training, the learning rate decayed by then; 0: no limit",
        at_least=0,
        role=Role.LENGTH,
    )
    learning_rate: float = _schedule.option(1e-3, "peak learning rate", above=0)
    lr_schedule: str = _schedule.option(
        "cosine", "learning-rate schedule after warm-up", choices=SCHEDULES
    )
    warmup_iters: int | None = _schedule.option(
        None,
        "steps of linear warm-up; none: 5 % of the schedule, at most 2000 unless max_minutes is "
        "set; a config file's value that does not fit in --max_iters is scaled with it",
        at_least=0,
        role=Role.LENGTH,
    )
    lr_decay_iters: int | None = _schedule.option(
        None, "step at which the decay ends; none: max_iters", at_least=1, role=Role.LENGTH
    )
    min_lr: float | None = _schedule.option(
        None, "learning rate after the decay; none: learning_rate/10", at_least=0
    )
    wsd_decay_fraction: float = _schedule.option(
        0.2, "fraction of lr_decay_iters over which lr_schedule=wsd decays", above=0, at_most=1
    )

    beta1: float = _optimizer.option(
        0.9, "AdamW: decay rate of the first moment", at_least=0, below=1
    )
    beta2: float = _optimizer.option(
        0.95, "AdamW: decay rate of the second moment", at_least=0, below=1
    )
    adam_eps: float = _optimizer.option(1e-8, "AdamW: added to the denominator", above=0)
    weight_decay: float = _optimizer.option(
        0.1, "AdamW: weight decay of matrices; vectors are not decayed", at_least=0
    )
    grad_clip: float = _optimizer.option(1.0, "maximum gradient norm; 0: no clipping", at_least=0)
    max_bad_steps: int = _optimizer.option(
        10, "consecutive non-finite steps (each is skipped) after which the run stops", at_least=1
    )

    eval_interval: int = _records.option(250, "steps between validations", at_least=1)
    eval_tokens: int = _records.option(
        32768,
        "validation tokens, spread evenly over the split; 0: all; fixed for a run",
        at_least=0,
        role=Role.DATA,
        compared_by=("data", "val_fingerprint"),
    )
    log_interval: int = _records.option(10, "steps between log lines", at_least=1)
    log_to: str = _records.option(
        "",
        f"comma-separated log sinks besides the JSON files: {', '.join(LOG_SINKS)}",
        restored=False,
    )
    checkpoint_minutes: float = _records.option(
        30.0, "minutes between extra checkpoints; 0: only at validations", at_least=0
    )
    keep_checkpoints: int = _records.option(
        3, "number of newest checkpoints to keep, besides the best", at_least=1
    )

    device: str = _machine.option("auto", "where to train", choices=DEVICES)
    dtype: str = _machine.option(
        "auto",
        "compute dtype of the matmuls",
        choices=DTYPES,
        role=Role.RECIPE,
        varies=False,
        compared_by=("environment", "dtype"),
    )
    tf32: bool = _machine.option(
        False,
        "float32 matmuls on CUDA may round their inputs to TF32: faster, 10 bits of mantissa",
        role=Role.RECIPE,
    )
    compile: bool | str = _machine.option(
        "auto", "torch.compile the model; auto: on CUDA", choices=("auto", True, False)
    )
    seed: int = _machine.option(
        1337, "seed of Python, NumPy and torch", at_least=0, below=2**32, role=Role.SEED
    )

    def __post_init__(self) -> None:
        problems = field_problems(self, TRAINING_KEYS)
        if not problems:
            convert_fields(self, TRAINING_KEYS)
            problems = list(self._combination_problems())
        if problems:
            raise ConfigError(problems)

    def _combination_problems(self) -> Iterator[Problem]:
        refusal = folder_name_refusal(self.run_name)
        if refusal:
            yield Problem(("run_name",), f"run_name={quoted(self.run_name)} {refusal}")
        yield from self._out_dir_problems()
        for name in self.log_sinks:
            if name not in LOG_SINKS:
                yield Problem(("log_to",), unknown_name("log_to", name, LOG_SINKS))
        repeated = [name for name, count in Counter(self.log_sinks).items() if count > 1]
        if repeated:
            yield Problem(
                ("log_to",), f"log_to={self.log_to!r} names {', '.join(repeated)} more than once."
            )
        decay_ends = self.lr_decay_iters or self.max_iters
        if self.warmup_iters is not None and self.warmup_iters > max(decay_ends, 1):
            yield Problem(
                ("warmup_iters", "lr_decay_iters", "max_iters"),
                f"warmup_iters={self.warmup_iters} is longer than the schedule of {decay_ends} "
                "steps (lr_decay_iters, or max_iters); make it shorter.",
            )
        if self.min_lr is not None and self.min_lr > self.learning_rate:
            yield Problem(
                ("min_lr", "learning_rate"),
                f"min_lr={self.min_lr:g} is above learning_rate={self.learning_rate:g}; lower it.",
            )
        if self.lr_schedule == "constant":
            for key in ("min_lr", "lr_decay_iters"):
                if getattr(self, key) is not None:
                    yield Problem(
                        (key, "lr_schedule"),
                        f"{key}={getattr(self, key):g} does nothing with lr_schedule='constant'; "
                        "drop it or choose another schedule.",
                    )
        unset = type(self).wsd_decay_fraction
        if self.lr_schedule != "wsd" and self.wsd_decay_fraction != unset:
            yield Problem(
                ("wsd_decay_fraction", "lr_schedule"),
                f"wsd_decay_fraction={self.wsd_decay_fraction:g} does nothing with "
                f"lr_schedule={self.lr_schedule!r}; drop it or set lr_schedule='wsd'.",
            )

    def _out_dir_problems(self) -> Iterator[Problem]:
        if not self.out_dir.strip():
            message = f"out_dir={self.out_dir!r} names no folder; drop it, or use '.' for this one."
            yield Problem(("out_dir",), message)
        longest = max(len(part.encode()) for part in re.split(r"[/\\]", self.out_dir))
        if longest > LONGEST_PATH_PART:
            message = (
                f"out_dir={quoted(self.out_dir)} has a name of {longest} bytes, and the longest is "
                f"{LONGEST_PATH_PART}; shorten it."
            )
            yield Problem(("out_dir",), message)

    def derived(self, sequence_length: int) -> dict[str, Any]:
        """The values of the fields left at None, by key; `sequence_length` is the caller's to say.

        Once replaced, None stays only where lr_schedule='constant' has no use for a key.
        """
        warmup = (self.lr_decay_iters or self.max_iters) // 20
        # Where time may end the run, max_iters is a bound rather than a length.
        longest = warmup if self.max_minutes else 2000
        wanted = {"sequence_length": sequence_length, "warmup_iters": min(warmup, longest)}
        if self.lr_schedule != "constant":
            wanted["lr_decay_iters"] = max(self.max_iters, 1)
            wanted["min_lr"] = self.learning_rate / 10
        return {key: value for key, value in wanted.items() if getattr(self, key) is None}

    def to_dict(self) -> dict[str, Any]:
        """Every key and its value."""
        return dataclasses.asdict(self)

    @property
    def log_sinks(self) -> tuple[str, ...]:
        """The names in `log_to`."""
        return tuple(name for name in map(str.strip, self.log_to.split(",")) if name)

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one optimizer step; needs `sequence_length` to be derived."""
        assert self.sequence_length is not None
        return self.gradient_accumulation_steps * self.batch_size * self.sequence_length


TRAINING_KEYS = keys_of(TrainingConfig)
KEYS.declare("", TRAINING_KEYS)
