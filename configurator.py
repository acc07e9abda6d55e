"""Turn config files and `--key=value` flags into validated, frozen settings.

    asked = read(argv)                         run files, register plugins, parse flags
    settings = resolve(asked, base)            validate, fill in derived values
    settings = settings.for_data(vocab_size)   set the vocabulary size, once the data is open

Precedence: defaults < base < config files, left to right < command line; values left at None are
derived from the rest. The base is a preset, unless the caller passes another one: a model to load
weights from, or the settings of a run to resume. All problems are reported in one `ConfigError`,
each with the file and line, or the flag, that it came from.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli import typed_command
from errors import ConfigError, Problem, printable, quoted
from model_config import ModelArchitectureConfig
from model_keys import architecture_keys, removed_key_message
from model_presets import PRESETS
from options import KEYS, Key, Role, Section, keys_of, type_name
from part_keys import registry_of
from patterns import spelled
from recipe.optimizers import scale_problems
from recipe.qk_clip import logit_problems
from training_config import TrainingConfig, kept_share, training_keys
from user_files import Given, collect, read_config_file, run_plugins

DEFAULT_SEQUENCE_LENGTH = 256  # tokens; small enough to train on a CPU
PADDED_FROM = 4096  # larger vocabularies are padded to a multiple of 64 tokens for speed
PAGE_WIDTH = 100
HELP_COLUMN = 32

SCRIPT = "python train.py"
USAGE = """\
usage: python train.py [config.py ...] [--key=value ...]

  python train.py config/arch_llama.py --max_iters=100
  python train.py config/arch_gpt2.py --position_encoding=rope --normalization=rmsnorm

Precedence, lowest first: defaults, the preset, config files from left to right, flags.
The defaults below are those of a run without arguments; a preset overrides some of them.
A flag is --key=value or --key value; --key alone sets a boolean key to True.
A config file is Python. Every top-level name is a key, unless it starts with '_', is imported, or
is a class or function. A flag's value is parsed by the key's type; 'none' means None, and
--key=default ignores the config files' value for that key.
A per-layer key also takes a pattern, quoted for the shell: 'a*3+b' repeats over the layers;
'a+b*' uses a for the first and b for all others.
A key that belongs to a component ('for position_encoding=rope') is an error if no layer uses it.

  --help          print this message and exit
  --dry_run       print parameters, memory, time and cost of the run, and exit; takes
                  --device_name=H100 --workers=N --mfu=0.4 --price_per_hour=DOLLARS (of a device)
  --print_config  print every setting and where it came from, and exit; with --resume, the settings
                  of the resumed run"""

DERIVED = "derived"
"""The origin of a derived value."""

TAKEN_BACK = "default"
"""The value of a flag that makes its key ignore the config files."""

ASKED = ("--help", "-h", "--print_config")
_OF_SWEEP = (
    "vary arms design seeds until_sure max_seeds margin match budget tune tune_seeds "
    "ladder baselines name workers gpus_per_run engine slurm_options dry_run json"
)
_OF_AUDIT = "save compare"
_OF_DRY_RUN = "device_name mfu price_per_hour"
_OF_CLOUD = (
    "sweep max_cost max_hours gpus gpu_count regions volumes community spot wait max_wait image "
    "cuda disk setup secrets"
)
COMMAND_OPTIONS = tuple(" ".join((_OF_SWEEP, _OF_AUDIT, _OF_DRY_RUN, _OF_CLOUD)).split())
"""Options of commands that are not keys; no key may have such a name."""

KEYS.reserve((*(flag.lstrip("-") for flag in ASKED), *COMMAND_OPTIONS))

# Keys of nanoGPT configs that have another name or no meaning here, with what to do instead.
NANOGPT_KEYS = {
    "always_save_checkpoint": "drop it: every validation saves a checkpoint; see keep_checkpoints.",
    "backend": "drop it: the backend is selected automatically.",
    "decay_lr": "use lr_schedule='constant' for decay_lr=False; for True, drop it.",
    "eval_iters": "use eval_tokens, the number of validation tokens.",
    "eval_only": "use max_iters=0, which validates and stops.",
    "wandb_log": "use log_to='wandb' for wandb_log=True; for False, drop it.",
    "wandb_run_name": "use run_name.",
}


_architecture = Section("Architecture", Role.BOOKKEEPING)


class PresetChoice:
    """The key that chooses the architecture preset."""

    arch_preset: str = _architecture.option(
        "legacy", "architecture preset", choices=PRESETS, varies=True
    )


PRESET_KEYS = keys_of(PresetChoice)
KEYS.declare("", PRESET_KEYS)
DEFAULT_PRESET = PRESET_KEYS["arch_preset"].default


def key_table() -> dict[str, Key]:
    """All keys, in the order of `--help` and `--print_config`."""
    return PRESET_KEYS | architecture_keys() | training_keys()


@dataclasses.dataclass(frozen=True)
class Base:
    """The values that a run's settings are based on.

    Attributes:
        keys: Values used unless the user gives others. Options of components that are not selected
            are ignored.
        origin: Where the values came from.
        preset: The preset of the architecture, or "custom".
    """

    keys: Mapping[str, Any]
    origin: str
    preset: str


@dataclasses.dataclass(frozen=True)
class Asked:
    """The values requested on a command line, before they are combined with a base.

    Attributes:
        given: The last value that files and flags give to each key.
        problems: Problems found so far.
        plugins: Path -> source of every file that registers custom components.
        config_files: The config files, in the order given.
        notes: Messages for the user about config-file values that were scaled to the command line.
        print_config: Whether to print the settings instead of using them.
    """

    given: Mapping[str, Given]
    problems: tuple[Problem, ...] = ()
    plugins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    print_config: bool = False

    def value(self, key: str) -> Any:
        """The requested value of a training key, or its default; None if the value is invalid."""
        item = self.given.get(key)
        if item is None:
            return KEYS[key].default
        return None if KEYS[key].problem(item.value) else KEYS[key].converted(item.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The complete settings of a run.

    Attributes:
        arch_preset: The preset that the architecture is based on.
        model: The architecture, including derived sizes.
        training: The training config, including derived values.
        origins: Key -> where its value came from: "default", "preset llama", "init_from x",
            "config/x.py:12", "--n_layer" or "derived".
        explicit: The keys that were set by a file or a flag.
        unused: The explicit keys that no layer uses, if that was allowed.
        plugins: Path -> source of every file that registers custom components.
        config_files: The config files, in the order given.
        notes: Messages for the user about config-file values that were scaled to the command line.
    """

    arch_preset: str
    model: ModelArchitectureConfig
    training: TrainingConfig
    origins: Mapping[str, str]
    explicit: frozenset[str]
    unused: frozenset[str] = frozenset()
    plugins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All keys and values as a flat dict; the inverse of `settings_from_dict`."""
        preset = {"arch_preset": self.arch_preset}
        return preset | self.model.to_dict() | self.training.to_dict()

    @property
    def chooses_preset(self) -> bool:
        """Whether a file, a flag or init_from chose the preset."""
        return self.origins["arch_preset"] != f"preset {DEFAULT_PRESET}"

    @property
    def short_name(self) -> str:
        """The preset if one was chosen, else the name of the first config file, else "run"."""
        if self.chooses_preset:
            return self.arch_preset
        return Path(self.config_files[0]).stem if self.config_files else "run"

    @property
    def fixes_vocabulary(self) -> bool:
        """Whether vocab_size is set by the user or by init_from, not by the data."""
        return "vocab_size" in self.explicit or self.training.init_from != "none"

    def for_data(self, vocab_size: int) -> Settings:
        """The settings for data with a vocabulary of `vocab_size` tokens.

        Raises:
            ConfigError: If the vocabulary size is fixed and too small for the data.
        """
        if not self.fixes_vocabulary:
            model = self.model.changed(vocab_size=padded_vocabulary(vocab_size))
            return dataclasses.replace(self, model=model)
        if self.model.vocab_size < vocab_size:
            raise ConfigError([vocabulary_problem(self, vocab_size)])
        return self

    @property
    def roles(self) -> dict[str, str]:
        """The role of each key."""
        return {key: str(KEYS[key].role) for key in self.to_dict()}

    @property
    def defaults(self) -> list[str]:
        """The options of components that have their default or a derived value."""
        return [
            key
            for key, value in self.to_dict().items()
            if KEYS.owners(key) and (value == KEYS[key].default or self.origins[key] == DERIVED)
        ]

    @property
    def derived(self) -> list[str]:
        """The keys whose values are derived from others."""
        return [key for key, origin in self.origins.items() if origin == DERIVED]


def load(argv: Sequence[str]) -> Settings:
    """The settings of a new model for a command line. See `read` and `resolve`."""
    return resolve(read(argv))


def read(argv: Sequence[str]) -> Asked:
    """Run the config files and plugins of a command line, and parse its flags.

    Args:
        argv: The arguments after the script's name.

    Raises:
        SystemExit: With status 0, after printing the `--help` message.
    """
    problems: list[Problem] = []
    arguments = split_arguments(argv)
    plugins: dict[str, str] = {}
    layers: list[dict[str, Given]] = []
    for path in arguments.files:
        with collect(problems):
            layers.append(read_config_file(path, plugins))
    files = merged(layers)
    named = arguments.flags.get("plugins", getattr(files.get("plugins"), "value", ""))
    if isinstance(named, str) and named != TAKEN_BACK:
        with collect(problems):
            plugins |= run_plugins(named)
    if arguments.help:
        print(help_text())
        raise SystemExit(0)
    flags = arguments.given()
    notes = fit_warmup(files, flags)
    given = {**files, **flags}
    overridden = (
        given_problem(key, item)
        for layer in layers
        for key, item in layer.items()
        if given[key] is not item
    )
    taken_back = [key for key, text in arguments.flags.items() if text == TAKEN_BACK]
    return Asked(
        given={key: item for key, item in given.items() if key not in taken_back},
        problems=(
            *arguments.problems(),
            *problems,
            *filter(None, overridden),
            *(unknown_key(key, f"--{key}") for key in taken_back if key not in KEYS),
        ),
        plugins=plugins,
        config_files=arguments.files,
        notes=notes,
        print_config=arguments.print_config,
    )


def settings_from_dict(
    values: Mapping[str, Any], plugins: Mapping[str, str] | None = None
) -> Settings:
    """The settings from the dict of `Settings.to_dict`.

    Args:
        values: Keys and values; missing keys have their defaults.
        plugins: Path -> source of the plugins that they need; already registered.

    Raises:
        ConfigError: If there are problems; it lists them all.
    """
    asked = Asked(given={}, plugins=plugins or {})
    return resolve(asked, saved_base(values, "saved settings"))


def saved_base(values: Mapping[str, Any], origin: str) -> Base:
    """A base with saved settings, including their derived values. Raises ConfigError for unknown
    keys."""
    problems = [unknown_key(key, origin) for key in values if key not in KEYS]
    if problems:
        raise ConfigError(problems)
    keys = {key: value for key, value in values.items() if key != "arch_preset"}
    return Base(keys, origin, values.get("arch_preset", DEFAULT_PRESET))


# Keys


def unknown_key(key: str, origin: str) -> Problem:
    """The problem for an unknown key, with what to write instead."""
    message = removed_key_message(key)
    if key in NANOGPT_KEYS:
        message = f"there is no key {key!r}: {NANOGPT_KEYS[key]}"
    elif message is None:
        helper = (
            "" if origin.startswith("--") else " Start the names of your own variables with '_'."
        )
        message = f"unknown key {quoted(key)}{KEYS.nearest(key)} --help lists the keys.{helper}"
    return Problem((key,), f"{origin}: {message}")


def given_problem(key: str, given: Given) -> Problem | None:
    """The problem with a single given value, or None."""
    if key not in KEYS:
        return unknown_key(key, given.origin)
    problem = KEYS[key].problem(given.value)
    return problem and located(problem, {key: given.origin})


def located(problem: Problem, origins: Mapping[str, str]) -> Problem:
    """The problem, with the origin of its values added to the message."""
    if len(problem.keys) == 1:
        return Problem(problem.keys, f"{origins[problem.keys[0]]}: {problem.message}")
    sources = "; ".join(f"{key}: {origins[key]}" for key in problem.keys)
    return Problem(problem.keys, f"{problem.message} ({sources})")


def keys_in(table: Mapping[str, Key], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose keys are in a table."""
    return {key: value for key, value in values.items() if key in table}


# The command line


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A parsed command line.

    Attributes:
        files: The config files.
        flags: The text of each flag's value.
        repeated: All texts of each flag that is given more than once.
        bare: Each `--key` without a value, which sets a boolean key to True.
        unread: The text of each invalid argument, with its key and value.
        help: Whether `--help` is given.
        print_config: Whether `--print_config` is given.
    """

    files: tuple[str, ...]
    flags: Mapping[str, str]
    repeated: Mapping[str, list[str]]
    bare: tuple[str, ...]
    unread: tuple[tuple[str, str, str], ...]
    help: bool
    print_config: bool

    def given(self) -> dict[str, Given]:
        """The values of the flags; for an unknown key, the text."""
        return {
            key: Given(
                KEYS[key].parse(text) if key in KEYS else text,
                printable(f"--{key}"),
            )
            for key, text in self.texts().items()
        }

    def texts(self) -> dict[str, str]:
        """The text of each flag, including boolean flags without a value."""
        return {**dict.fromkeys(filter(self._is_boolean, self.bare), "True"), **self.flags}

    @staticmethod
    def _is_boolean(key: str) -> bool:
        return key in KEYS and KEYS[key].boolean

    def problems(self) -> Iterator[Problem]:
        """Yield problems with the arguments; call it after plugins have declared their keys."""
        for key, texts in self.repeated.items():
            listed = " and ".join(map(quoted, texts))
            message = f"--{key} is given more than once: {listed}; keep one."
            yield Problem((key,), message)
        alone = [(f"--{key}", key, "VALUE") for key in self.bare if not self._is_boolean(key)]
        for argument, key, text in (*alone, *self.unread):
            if f"--{key}" in ASKED:
                yield Problem((key,), f"cannot parse {quoted(argument)}; write --{key}")
            elif key not in KEYS:
                yield unknown_key(key, f"--{key}")
            else:
                instead = f"--{key}={printable(text)}"
                yield Problem((key,), f"cannot parse {quoted(argument)}; write {instead}")


def split_arguments(argv: Sequence[str]) -> Arguments:
    """Parse a command line."""
    files: list[str] = []
    flags: dict[str, list[str]] = {}
    bare: list[str] = []
    unread: list[tuple[str, str, str]] = []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        key, equals, text = argument.removeprefix("--").partition("=")
        if argument in ASKED:
            continue
        if argument.startswith("--") and f"--{key}" not in ASKED:
            if equals or _is_value(key, waiting):
                flags.setdefault(key, []).append(text if equals else waiting.pop(0))
            else:
                bare.append(key)
        elif not argument.startswith("-") and (not equals or argument.endswith(".py")):
            files.append(argument)
        else:
            key, _, text = argument.lstrip("-").partition("=")
            unread.append((argument, key, text))
    every = {key: [*flags.get(key, []), *["True"] * bare.count(key)] for key in (*flags, *bare)}
    repeated = {key: texts for key, texts in every.items() if len(texts) > 1}
    return Arguments(
        files=tuple(files),
        flags={key: texts[-1] for key, texts in flags.items()},
        repeated=repeated,
        bare=tuple(bare),
        unread=tuple(unread),
        help="--help" in argv or "-h" in argv,
        print_config="--print_config" in argv,
    )


def _is_value(key: str, waiting: Sequence[str]) -> bool:
    """Whether the next argument is the value of the preceding flag (`--key value`).

    A name that ends in .py is a config file, unless the key takes text.
    """
    if not waiting or waiting[0].startswith("--"):
        return False
    return not waiting[0].endswith(".py") or (key in KEYS and KEYS[key].takes_text)


# From keys to settings


def fit_warmup(files: Mapping[str, Given], flags: dict[str, Given]) -> tuple[str, ...]:
    """Scale down a config file's warm-up if it does not fit in `--max_iters`.

    As in a sweep, warm-up and decay keep their fractions of the file's max_iters. Their new values
    are added to `flags`; returns a message for each. Nothing is scaled if a flag sets the warm-up
    or the decay.
    """
    default = Given(KEYS["max_iters"].default, "default")
    planned, asked = files.get("max_iters", default).value, flags.get("max_iters")
    scaled = {key: files[key] for key in ("warmup_iters", "lr_decay_iters") if key in files}
    values = (planned, *(item.value for item in scaled.values() if item.value is not None))
    if asked is None or any(type(value) is not int for value in (asked.value, *values)):
        return ()
    warmup = scaled["warmup_iters"].value if "warmup_iters" in scaled else None
    if warmup is None or scaled.keys() & flags or asked.value == planned:
        return ()
    if not max(asked.value, 2) <= warmup <= planned:  # a warm-up of one step is never shortened
        return ()
    notes = []
    for key, item in scaled.items():
        if item.value is not None:
            steps = kept_share(item.value, planned, asked.value)
            flags[key] = Given(steps, f"{item.origin}, scaled to {asked.origin}")
            notes.append(
                f"{key}: {item.value} -> {steps}, scaled from {planned} steps ({item.origin}) to "
                f"{asked.origin}={asked.value}."
            )
    return tuple(notes)


def merged(layers: Iterable[Mapping[str, Given]]) -> dict[str, Given]:
    """Merge mappings; later ones take precedence."""
    return {key: item for layer in layers for key, item in layer.items()}


def resolve(
    asked: Asked,
    base: Base | None = None,
    problems: Iterable[Problem] = (),
    *,
    allow_unused: Collection[str] = (),
) -> Settings:
    """Combine requested values with a base into settings.

    Args:
        asked: The values from files and flags.
        base: The base of the settings. Defaults to the requested preset.
        problems: Additional known problems.
        allow_unused: Keys that are ignored instead of refused if no layer uses their component.

    Raises:
        ConfigError: If there are problems; it lists them all.
    """
    alone = (given_problem(key, item) for key, item in asked.given.items())
    found = [*asked.problems, *problems, *(problem for problem in alone if problem)]
    faulty = {key for problem in found for key in problem.keys}
    if any(problem.keys in ((), ("arch_preset",), ("init_from",)) for problem in found):
        raise ConfigError(found)  # without a base, other keys cannot be checked
    sound = {key: item.value for key, item in asked.given.items() if key not in faulty}
    base = base or preset_base(sound.get("arch_preset", DEFAULT_PRESET))
    try:
        settings = _combined(asked, base, sound, allow_unused)
    except ConfigError as error:
        # Invalid keys have their defaults here, so problems that involve them are ignored.
        found += [p for p in error.problems if not faulty.intersection(p.keys)]
    if found:
        raise ConfigError(found)
    return settings


def preset_base(name: str) -> Base:
    """The base with the values of a preset."""
    return Base(PRESETS[name].keys, f"preset {name}", name)


def _combined(
    asked: Asked, base: Base, given: Mapping[str, Any], allow_unused: Collection[str]
) -> Settings:
    """Settings from individually valid values. Raises ConfigError if they are incompatible."""
    table, training_table = architecture_keys(), training_keys()
    origins = dict.fromkeys(KEYS, "default")
    origins |= dict.fromkeys((*base.keys, "arch_preset"), base.origin)
    origins |= {key: item.origin for key, item in asked.given.items()}
    problems, unused = [], frozenset()
    if allow_unused:
        whole = {**base.keys, **given}
        probes = (
            ModelArchitectureConfig.make(keys_in(table, whole)),
            TrainingConfig.make(keys_in(training_table, whole)),
        )
        used = {key for key in given if any(key in part for part in (*probes, PRESET_KEYS))}
        unused = frozenset(given.keys() & set(allow_unused) - used)
        given = {key: value for key, value in given.items() if key not in unused}
    with collect(problems):
        model = ModelArchitectureConfig.make(keys_in(table, base.keys), keys_in(table, given))
    said, own = keys_in(training_table, base.keys), keys_in(training_table, given)
    with collect(problems):
        training = TrainingConfig.make(said, own)
    if not problems and training.sequence_length is None:
        most = model.block_size if "block_size" in given else DEFAULT_SEQUENCE_LENGTH
        training = training.completed(min(model.block_size, most))
    if not problems:
        problems += length_problems(training.sequence_length, model.block_size)
        problems += scale_problems(model, training)
        problems += multi_token_problems(model, training)
        problems += logit_problems(model, training)
    if problems:
        raise ConfigError([located(problem, origins) for problem in problems])
    derived = model.derived | training.derived
    origins |= dict.fromkeys(derived, DERIVED)
    used = PRESET_KEYS.keys() | model.to_dict().keys() | training.to_dict().keys()
    return Settings(
        arch_preset=base.preset,
        model=model,
        training=training,
        origins={key: origin for key, origin in origins.items() if key in used},
        explicit=frozenset(asked.given) - unused,
        unused=unused,
        plugins=asked.plugins,
        config_files=asked.config_files,
        notes=asked.notes,
    )


def padded_vocabulary(vocab_size: int) -> int:
    """The model's vocabulary size for data with `vocab_size` tokens."""
    return vocab_size if vocab_size < PADDED_FROM else -(-vocab_size // 64) * 64


def vocabulary_problem(settings: Settings, vocab_size: int) -> Problem:
    """The problem that the model's vocabulary is too small for data with `vocab_size` tokens."""
    init_from = settings.training.init_from
    fix = (
        f"drop it, or raise it to {vocab_size}"
        if init_from == "none"
        else f"prepare the data with the tokenizer of init_from={init_from!r}"
    )
    message = (
        f"vocab_size={settings.model.vocab_size} is too small for the {vocab_size} tokens of "
        f"dataset={settings.training.dataset!r}; {fix}."
    )
    return Problem(("vocab_size", "dataset"), message)


def length_problems(length: int, block_size: int) -> Iterator[Problem]:
    """Yield the problem if sequences are longer than the model allows."""
    if length > block_size:
        yield Problem(
            ("sequence_length", "block_size"),
            f"sequence_length={length} is longer than block_size={block_size}; "
            "lower it or raise block_size.",
        )


def multi_token_problems(
    model: ModelArchitectureConfig, training: TrainingConfig
) -> Iterator[Problem]:
    """Yield problems if the modules for multi-token prediction could not be trained."""
    if "mtp_depth" not in model:
        return
    length, depth = training.sequence_length, model.mtp_depth
    if length <= depth:
        yield Problem(
            ("mtp_depth", "sequence_length"),
            f"mtp_depth={depth} leaves no token to predict in sequences of sequence_length="
            f"{length}; lower mtp_depth, or raise sequence_length.",
        )
    if training.adapter != "none":
        yield Problem(
            ("mtp", "adapter"),
            f"mtp={quoted(model.mtp)} adds modules that adapter={quoted(training.adapter)} would "
            "not train; use mtp='none', or adapter='none'.",
        )


# --help and --print_config


def shown(value: Any) -> str:
    """A value as written on the command line."""
    return "''" if value == "" else printable(spelled(value))


def help_text() -> str:
    """The `--help` message: every key by section, with description, type, default and choices;
    and the presets."""
    sections: dict[str, list[str]] = {}
    for name, key in key_table().items():
        sections.setdefault(key.section, []).append(key_help(name))
    sections["Presets (--arch_preset)"] = [*map(_preset_help, PRESETS)]
    usage = USAGE.replace(SCRIPT, typed_command(SCRIPT))
    return "\n\n".join([usage, *("\n".join([title, *rows]) for title, rows in sections.items())])


def key_help(name: str) -> str:
    """The help entry of a key, wrapped. The default is that of a run without arguments."""
    key = KEYS[name]
    default = PRESETS[DEFAULT_PRESET].keys.get(name, key.default)
    kind = type_name(key.annotation)
    if key.choices is not None:
        names = [*key.choices, None] if key.default is None else key.choices
        kind = f"one of {', '.join(shown(name) for name in names)}"
    kind += "; per layer" if key.per_layer else ""
    whose = f"; for {KEYS.owned_by(name)}" if KEYS.owners(name) and not _shared_by_all(key) else ""
    text = f"{key.help} [{kind}; default {shown(default)}{whose}]"
    head = f"  --{name} ".ljust(HELP_COLUMN)
    return textwrap.fill(
        text,
        PAGE_WIDTH,
        initial_indent=head,
        subsequent_indent=" " * HELP_COLUMN,
        break_on_hyphens=False,
    )


def _preset_help(name: str) -> str:
    """The help entry of a preset, wrapped."""
    return textwrap.fill(
        PRESETS[name].description,
        PAGE_WIDTH,
        initial_indent=f"  {name} ".ljust(HELP_COLUMN),
        subsequent_indent=" " * HELP_COLUMN,
        break_on_hyphens=False,
    )


def _shared_by_all(key: Key) -> bool:
    """Whether all components of the registry have the key, as all feed-forward networks do."""
    registry = registry_of(KEYS[key.owner.partition("=")[0]])
    return all(key.name in registry.entry(name).keys for name in registry.names)


def settings_table(settings: Settings) -> str:
    """A table of all keys, their values as given, and the origins of the values."""
    values, model = settings.to_dict(), settings.model
    values |= {key: model.said(key) for key in values if key in model}
    rows = [
        (key, shown(values[key]), settings.origins[key]) for key in key_table() if key in values
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(
        f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for key, value, origin in rows
    )
