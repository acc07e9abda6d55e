"""Config files and `--key=value` flags turned into checked, frozen settings.

Precedence: defaults < preset < config files, left to right < command line; what is left at None
is derived from the rest. With `init_from`, the model in that folder stands in for the preset, and
what it is cannot be changed. Everything wrong with all of it is reported in one `ConfigError`, each
problem with the file and line, or the flag, that it came from.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import os
import re
import sys
import textwrap
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import errors
import options
from components.registry import USERS_MODULE
from errors import ConfigError, Problem, UserError, printable, quoted
from interop.families import OF_A_RUN, family_of, read_fields
from model_components import REGISTRIES
from model_config import PRESETS, ModelArchitectureConfig
from options import option
from training.config import TrainingConfig, kept_share

CONFIG_FOLDER = Path(__file__).parent / "config"
DEFAULT_SEQUENCE_LENGTH = 256  # tokens; where the user says nothing: what a CPU can train on
PAGE_WIDTH = 100
HELP_COLUMN = 32

USAGE = """\
usage: python train.py [config.py ...] [--key=value ...]

  python train.py config/arch_llama.py --max_iters=100
  python train.py config/arch_gpt2.py --position_encoding=rope --normalization=rmsnorm

Later wins: defaults, the preset, config files from left to right, flags.
Defaults are those of a run without arguments; another arch_preset has others.
A config file is Python. Each name that it leaves is a key, unless it starts with '_', is imported,
or is a class or function. A flag's value is read by the key's type; 'none' stands for None.

  --help          print this
  --print_config  print every setting and where it came from, and stop"""

DERIVED = "derived"
"""Where a value came from that follows from others."""

ASKED = ("--help", "-h", "--print_config")

# Keys of a nanoGPT config that have another name here, or no meaning: key -> what to do.
NANOGPT_KEYS = {
    "always_save_checkpoint": "drop it: every validation saves; see keep_checkpoints.",
    "backend": "drop it: there is nothing to choose.",
    "decay_lr": "use lr_schedule='constant' for decay_lr=False; for True drop it.",
    "eval_iters": "use eval_tokens, the number of validation tokens.",
    "eval_only": "use max_iters=0, which validates and stops.",
    "wandb_log": "use log_to='wandb' for wandb_log=True; for False drop it.",
    "wandb_project": "drop it and set the environment variable WANDB_PROJECT; see log_to.",
    "wandb_run_name": "use run_name.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PresetChoice:
    """The key that says where the architecture's other keys start from."""

    # Architecture
    arch_preset: str = option("legacy", "architecture that keys depart from", choices=PRESETS)


CONFIG_CLASSES = (PresetChoice, ModelArchitectureConfig, TrainingConfig)


@dataclasses.dataclass(frozen=True)
class Given:
    """A value that a file or a flag gives to a key, and where: `config/x.py:12`, `--n_layer`."""

    value: Any
    origin: str


@dataclasses.dataclass(frozen=True)
class Base:
    """What the architecture's keys start from: the keys, their origin, and the preset's name."""

    keys: Mapping[str, Any]
    origin: str
    preset: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run is made of.

    Attributes:
        arch_preset: The preset that the architecture started from.
        model: The architecture, derived sizes filled in.
        training: How it is trained, derived values filled in.
        origins: Key -> where its value came from: "default", "preset llama", "init_from x",
            "config/x.py:12", "--n_layer" or "derived".
        explicit: The keys that a file or a flag set.
        plugins: Path -> source of every file that the model's parts need to be known again.
        config_files: The config files, in the order given.
        notes: Lines for the user: values of config files that were fitted to the command line.
    """

    arch_preset: str
    model: ModelArchitectureConfig
    training: TrainingConfig
    origins: Mapping[str, str]
    explicit: frozenset[str]
    plugins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Every key and its value, flat; `settings_from_dict` is the way back."""
        preset = {"arch_preset": self.arch_preset}
        return preset | self.model.to_dict() | self.training.to_dict()

    @property
    def derived(self) -> list[str]:
        """The keys whose values follow from those of others."""
        return [key for key, origin in self.origins.items() if origin == DERIVED]


def load(argv: Sequence[str]) -> Settings:
    """The settings that a command line asks for.

    Args:
        argv: The arguments after the script's name.

    Raises:
        ConfigError: with every problem of every file and flag.
        SystemExit: with status 0, after `--help` or `--print_config` has been printed.
    """
    problems: list[Problem] = []
    arguments = split_arguments(argv, problems)
    plugins: dict[str, str] = {}
    layers: list[dict[str, Given]] = []
    for path in arguments.files:
        with collect(problems):
            layers.append(read_config_file(path, plugins))
    flags = arguments.given()
    notes = fit_warmup(merged(layers), flags)
    layers.append(flags)
    named = merged(layers).get("plugins")
    if named and isinstance(named.value, str):
        with collect(problems):
            plugins |= run_plugins(named.value)
    if arguments.help:
        print(help_text())
        raise SystemExit(0)
    base = base_in_folder(merged(layers), problems)
    settings = dataclasses.replace(
        resolve(layers, problems, base),
        plugins=plugins,
        config_files=arguments.files,
        notes=notes,
    )
    if arguments.print_config:
        print(settings_table(settings))
        raise SystemExit(0)
    return settings


def settings_from_dict(
    values: Mapping[str, Any], origins: Mapping[str, str] = types.MappingProxyType({})
) -> Settings:
    """The settings that `Settings.to_dict` wrote; the parts that they name are registered by now.

    A key that `values` lacks has its default. Raises ConfigError with every problem, each with the
    origin of its key: "saved settings" where `origins` has no other.
    """
    given = {key: Given(value, origins.get(key, "saved settings")) for key, value in values.items()}
    return resolve([given], [])


def run_plugins(paths: str) -> dict[str, str]:
    """Run files that register parts, and return the source of each by its path.

    Args:
        paths: The files, separated by commas.

    Raises:
        ConfigError: with every file that is missing or fails.
    """
    problems: list[Problem] = []
    sources: dict[str, str] = {}
    for path in filter(None, map(str.strip, paths.split(","))):
        with collect(problems):
            sources[path] = read_source(path)
            run_source(path, sources[path])
    if problems:
        raise ConfigError(problems)
    return sources


# Keys


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the settings: the dataclass that it is a field of, and its type."""

    owner: type
    field: dataclasses.Field
    annotation: Any


@functools.cache
def key_table() -> dict[str, Key]:
    """Every key; a name means one thing, so no two dataclasses share one."""
    table: dict[str, Key] = {}
    for owner in CONFIG_CLASSES:
        for field in dataclasses.fields(owner):
            assert field.name not in table, f"{field.name} is a key twice"
            table[field.name] = Key(owner, field, options.type_of(owner, field.name))
    return table


def keys_of(owner: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that are keys of one config class."""
    return {key: value for key, value in values.items() if key_table()[key].owner is owner}


def unknown_key(key: str, origin: str) -> Problem:
    """The problem of a name that is no key: what to write instead."""
    if key in NANOGPT_KEYS:
        return Problem((key,), f"{origin}: there is no key {key!r}: {NANOGPT_KEYS[key]}")
    hint = errors.nearest(key, key_table())
    helper = "" if origin.startswith("--") else " A name of the file's own starts with '_'."
    return Problem(
        (key,), f"{origin}: unknown key {quoted(key)}{hint} --help lists the keys.{helper}"
    )


def given_problem(key: str, given: Given) -> Problem | None:
    """What is wrong with one given value by itself, or None."""
    if key not in key_table():
        return unknown_key(key, given.origin)
    known = key_table()[key]
    problem = options.field_problem(known.field, known.annotation, given.value)
    return problem and located(problem, {key: given.origin})


def located(problem: Problem, origins: Mapping[str, str]) -> Problem:
    """The problem, its message saying where the values that it concerns came from."""
    if len(problem.keys) == 1:
        return Problem(problem.keys, f"{origins[problem.keys[0]]}: {problem.message}")
    sources = "; ".join(f"{key}: {origins[key]}" for key in problem.keys)
    return Problem(problem.keys, f"{problem.message} ({sources})")


@contextlib.contextmanager
def collect(problems: list[Problem]) -> Iterator[None]:
    """Add the problems of a ConfigError to the list instead of passing it on."""
    try:
        yield
    except ConfigError as error:
        problems.extend(error.problems)


# The command line


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A command line, taken apart: config files, the text of each flag, and what else is asked."""

    files: tuple[str, ...]
    flags: Mapping[str, str]
    help: bool
    print_config: bool

    def given(self) -> dict[str, Given]:
        """The flags' values; the text itself for a key that is not known."""
        known = {key: key_table()[key].annotation for key in self.flags if key in key_table()}
        return {
            key: Given(options.parse(text, known.get(key, str)), printable(f"--{key}"))
            for key, text in self.flags.items()
        }


def split_arguments(argv: Sequence[str], problems: list[Problem]) -> Arguments:
    """Take a command line apart; what cannot be read is added to `problems`."""
    files: list[str] = []
    flags: dict[str, list[str]] = {}
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        key, equals, text = argument.removeprefix("--").partition("=")
        if argument in ASKED:
            continue
        if argument.startswith("--") and equals and f"--{key}" not in ASKED:
            flags.setdefault(key, []).append(text)
        elif not argument.startswith("-") and (not equals or argument.endswith(".py")):
            files.append(argument)
        else:
            problems.append(malformed(argument, waiting))
    for key, texts in flags.items():
        if len(texts) > 1:
            listed = " and ".join(map(quoted, texts))
            problems.append(
                Problem((key,), f"--{key} is given more than once: {listed}; keep one.")
            )
    return Arguments(
        files=tuple(files),
        flags={key: texts[-1] for key, texts in flags.items()},
        help="--help" in argv or "-h" in argv,
        print_config="--print_config" in argv,
    )


def malformed(argument: str, waiting: list[str]) -> Problem:
    """The problem of an argument that is no `--key=value`.

    A value that stands apart (`--key value`) is taken off `waiting`.
    """
    key, equals, text = argument.lstrip("-").partition("=")
    if f"--{key}" in ASKED:
        return Problem((key,), f"cannot read {quoted(argument)}; write --{key}")
    if not equals:
        apart = waiting and not waiting[0].startswith("--") and not waiting[0].endswith(".py")
        text = waiting.pop(0) if apart else "VALUE"
        argument = f"{argument} {text}" if apart else argument
    if key not in key_table():
        return unknown_key(key, f"--{key}")
    return Problem((key,), f"cannot read {quoted(argument)}; write --{key}={printable(text)}")


# Files

_OWN_SCOPE = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
_NOT_A_VALUE = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType)


def read_config_file(path: str, plugins: dict[str, str]) -> dict[str, Given]:
    """The keys that a config file sets; its source goes to `plugins` where it registers a part."""
    source = read_source(path)
    namespace = run_source(path, source)
    if registers_parts(path):
        plugins[path] = source
    lines, imported = names_bound(source)
    if "*" in imported:
        imported |= namespace.keys() - lines.keys()
    return {
        name: Given(value, f"{path}:{lines[name]}" if name in lines else path)
        for name, value in namespace.items()
        if name in key_table() or not (name in imported or is_helper(name, value))
    }


def is_helper(name: str, value: Any) -> bool:
    """Whether a name that is no key is the file's own business, and no misspelt key."""
    return name.startswith("_") or isinstance(value, _NOT_A_VALUE)


def names_bound(source: str) -> tuple[dict[str, int], set[str]]:
    """The line on which each name of a module is last bound, and the names that imports alone bind.

    Names of its functions, classes and comprehensions are not the module's.
    """
    assigned: list[tuple[int, str]] = []
    imported: list[tuple[int, str]] = []
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assigned.append((node.lineno, node.id))
        elif isinstance(node, ast.alias):
            imported.append((node.lineno, node.asname or node.name))
        if not isinstance(node, _OWN_SCOPE):
            waiting.extend(ast.iter_child_nodes(node))
    lines = {name: line for line, name in sorted(assigned + imported)}
    return lines, {name for _, name in imported} - {name for _, name in assigned}


def read_source(path: str) -> str:
    """The text of a Python file; ConfigError where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([Problem((), f"no file {path!r}{nearest_file(path)}")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem((), f"cannot read {path!r}: {error}.")]) from None


def nearest_file(path: str) -> str:
    """A hint at the Python file, beside `path` or in config/, whose name is nearest."""
    folders = (Path(path).parent, CONFIG_FOLDER)
    files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.py"))}
    matches = difflib.get_close_matches(Path(path).stem, files, n=1, cutoff=0.6)
    return f"; did you mean {os.path.relpath(files[matches[0]])!r}?" if matches else "."


def run_source(path: str, source: str) -> dict[str, Any]:
    """Run a file as a module of its own; the names that it leaves.

    Raises ConfigError where it is no Python, asks to exit, or makes a mistake that a user can fix;
    any other exception of the file's own passes, with its traceback.
    """
    module = types.ModuleType(module_name(path))
    module.__file__ = os.path.abspath(path)
    sys.modules[module.__name__] = module  # where dataclasses and inspect look for a class's module
    try:
        exec(compiled(source, path), vars(module))
    except UserError as error:
        raise ConfigError([Problem((), f"{failed_at(error, path)}: {error}")]) from error
    except (SyntaxError, SystemExit) as error:
        message = f"{failed_at(error, path)}: {type(error).__name__}: {error}".removesuffix(": ")
        raise ConfigError([Problem((), message)]) from error
    return vars(module)


def compiled(source: str, path: str) -> types.CodeType:
    """The code of a file. Raises SyntaxError, also where it is nested deeper than Python reads."""
    try:
        return compile(source, path, "exec", dont_inherit=True)
    except (MemoryError, RecursionError) as error:
        raise SyntaxError("an expression is nested too deeply for Python to read") from error


def module_name(path: str) -> str:
    """The name of the module that a file runs as: one that no import can mean."""
    return USERS_MODULE + re.sub(r"\W", "_", path)


def failed_at(error: BaseException, path: str) -> str:
    """Where in the file `path` an error arose: `path:line`, or the path if no line is to blame."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f"{path}:{lines[-1]}" if lines else path


def registers_parts(path: str) -> bool:
    """Whether a file that was run has parts in the registries."""
    parts = (registry[name] for registry in REGISTRIES.values() for name in registry.names)
    return any(part.__module__ == module_name(path) for part in parts)


# From keys to settings


def fit_warmup(files: Mapping[str, Given], flags: dict[str, Given]) -> tuple[str, ...]:
    """Scale a config file's warm-up that would fill the run that another `--max_iters` asks for.

    As in a sweep, warm-up and decay keep their shares of the file's max_iters. Their new values
    are added to `flags`; returns a line that says so for each. A warm-up or a decay that is given
    as a flag is the user's own: then nothing is scaled.
    """
    default = Given(key_table()["max_iters"].field.default, "default")
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
                f"{key}={steps}: {item.value} of {planned} steps in {item.origin}, scaled to "
                f"{asked.origin}={asked.value}."
            )
    return tuple(notes)


def merged(layers: Iterable[Mapping[str, Given]]) -> dict[str, Given]:
    """The last layer's word on each key."""
    return {key: item for layer in layers for key, item in layer.items()}


def base_in_folder(given: Mapping[str, Given], problems: list[Problem]) -> Base | None:
    """The model that `init_from` names, or None.

    Added to `problems`: that there is no such model, or what is at odds with it.
    """
    item = given.get("init_from")
    if item is None or not isinstance(item.value, str) or item.value == "none":
        return None
    folder = item.value
    try:
        fields = read_fields(Path(folder))
        keys = ModelArchitectureConfig.from_dict(family_of(fields).read(fields)).to_dict()
    except UserError as error:
        message = (
            f"{item.origin}: {error} init_from takes a folder that transformers' save_pretrained "
            "wrote; to go on with a run, use resume."
        )
        problems.append(Problem(("init_from",), message))
        return None
    keys = {key: value for key, value in keys.items() if key not in OF_A_RUN}
    problems += (
        Problem(
            (key, "init_from"),
            f"{own.origin}: {key}={quoted(own.value)}, but the model of init_from={folder!r} has "
            f"{key}={keys.get(key)!r}; drop it, or train another model without init_from.",
        )
        for key, own in given.items()
        if key in keys and own.value != keys[key]
    )
    if "arch_preset" in given:
        message = (
            f"{given['arch_preset'].origin}: arch_preset does nothing beside init_from={folder!r}, "
            "which says what the architecture is; drop one."
        )
        problems.append(Problem(("arch_preset", "init_from"), message))
    return Base(keys, f"init_from {folder}", "custom")


def resolve(
    layers: Sequence[Mapping[str, Given]], problems: Sequence[Problem], base: Base | None = None
) -> Settings:
    """The settings that files and flags ask for, the last layer above the others.

    Without a `base`, the preset that they name is one.

    Raises:
        ConfigError: with `problems`, found so far, and with every problem found here.
    """
    alone = (given_problem(key, item) for layer in layers for key, item in layer.items())
    problems = [*problems, *(problem for problem in alone if problem)]
    faulty = {key for problem in problems for key in problem.keys}
    if any(problem.keys in ((), ("arch_preset",), ("init_from",)) for problem in problems):
        raise ConfigError(problems)  # what the other keys are to be combined with is not known

    given = merged(layers)
    sound = {key: item.value for key, item in given.items() if key not in faulty}
    preset = sound.get("arch_preset", PresetChoice.arch_preset)
    base = base or Base(PRESETS[preset].keys, f"preset {preset}", preset)
    origins = dict.fromkeys(key_table(), "default")
    origins |= dict.fromkeys((*base.keys, "arch_preset"), base.origin)
    origins |= {key: item.origin for key, item in given.items()}
    defaults = {key: known.field.default for key, known in key_table().items()}
    try:
        values = defaults | base.keys | sound | {"arch_preset": base.preset}
        settings = combine(values, origins, frozenset(given))
    except ConfigError as error:
        # A key that is itself at fault has its default here: what follows from that is no news.
        problems += [p for p in error.problems if not faulty.intersection(p.keys)]
    if problems:
        raise ConfigError(problems)
    return settings


def combine(
    values: Mapping[str, Any], origins: Mapping[str, str], explicit: frozenset[str]
) -> Settings:
    """The settings that a value for every key makes; those at None are derived.

    Raises ConfigError where the values do not go together.
    """
    problems = list(length_problems(values))
    with collect(problems):
        model = ModelArchitectureConfig(**keys_of(ModelArchitectureConfig, values))
    with collect(problems):
        training = TrainingConfig(**keys_of(TrainingConfig, values))
    if problems:
        raise ConfigError([located(problem, origins) for problem in problems])

    most = model.block_size if "block_size" in explicit else DEFAULT_SEQUENCE_LENGTH
    training = dataclasses.replace(
        training, **training.derived(sequence_length=min(model.block_size, most))
    )
    made = model.to_dict() | training.to_dict()
    derived = [key for key, value in made.items() if values[key] is None and value is not None]
    return Settings(
        arch_preset=values["arch_preset"],
        model=model,
        training=training,
        origins={**origins, **dict.fromkeys(derived, DERIVED)},
        explicit=explicit,
    )


def length_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong between the two configs."""
    length, block_size = values["sequence_length"], values["block_size"]
    if length is not None and length > block_size:
        yield Problem(
            ("sequence_length", "block_size"),
            f"sequence_length={length} is longer than block_size={block_size}; "
            "lower it or raise block_size.",
        )


# What --help and --print_config print


def shown(value: Any) -> str:
    """A value as a flag spells it."""
    return {None: "none", "": "''"}.get(value, printable(str(value)))


def help_text() -> str:
    """Every key under its heading: what it is, its type, default and choices."""
    sections = [USAGE]
    for owner in CONFIG_CLASSES:
        for heading, fields in options.groups(owner).items():
            sections.append("\n".join([heading, *(key_help(field.name) for field in fields)]))
    return "\n\n".join(sections)


def key_help(key: str) -> str:
    """The entry of one key in the help, wrapped; the default is that of a run without arguments."""
    known = key_table()[key]
    default = PRESETS[PresetChoice.arch_preset].keys.get(key, known.field.default)
    choices = known.field.metadata["choices"]
    kind = options.type_name(known.annotation)
    if choices is not None:
        names = [*choices, None] if known.field.default is None else choices
        kind = f"one of {', '.join(shown(name) for name in names)}"
    text = f"{known.field.metadata['help']} [{kind}; default {shown(default)}]"
    head = f"  --{key} ".ljust(HELP_COLUMN)
    return textwrap.fill(
        text,
        PAGE_WIDTH,
        initial_indent=head,
        subsequent_indent=" " * HELP_COLUMN,
        break_on_hyphens=False,
    )


def settings_table(settings: Settings) -> str:
    """Every key, its value, and where that came from, in columns."""
    values = settings.to_dict()
    rows = [(key, shown(values[key]), settings.origins[key]) for key in key_table()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(
        f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for key, value, origin in rows
    )
