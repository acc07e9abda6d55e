"""Shell completion of the commands, generated from the declarations that `--help` shows.

    nanoarch completion bash > ~/.local/share/bash-completion/completions/nanoarch
    nanoarch completion zsh > "${fpath[1]}/_nanoarch"
    nanoarch completion fish > ~/.config/fish/completions/nanoarch.fish

Completes subcommands, config files, flags and their values, also after `python train.py`. The
script is static, so that completing starts no Python; write it again after an update. `--plugins`
adds the keys and components of your own.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import configurator
from cli import CommandParser
from nanoarch import own_module
from nanoarch.commands import COMMANDS
from options import KEYS, Key
from training import dry_run
from user_files import run_plugins

SHELLS = ("bash", "zsh", "fish")
TEMPLATES = Path(__file__).parent / "completions"
ROOT = Path(__file__).resolve().parents[1]

FILE, DATASET = "@file", "@dataset"
"""What a flag's value may be other than words: any file, and the name or path of a dataset."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Attributes:
        name: With its dashes.
        help: The first words of its help.
        values: The words that it takes, FILE or DATASET; none for numbers.
        bare: Whether it takes no value.
    """

    name: str
    help: str
    values: tuple[str, ...] = ()
    bare: bool = False

    @property
    def spelled(self) -> str:
        """What a completion inserts."""
        return self.name if self.bare else f"{self.name}="


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that is completed.

    Attributes:
        name: After `nanoarch`.
        script: The file of the same command, `python <script>`; empty for none.
        help: What it does.
        flags: Its flags.
        arguments: What it takes besides flags: words, or `*` and the ending of files.
    """

    name: str
    script: str
    help: str
    flags: tuple[Flag, ...]
    arguments: str = "*"


def parser() -> argparse.ArgumentParser:
    flags = CommandParser(
        keys=KEYS,
        prog="nanoarch completion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("shell", choices=SHELLS, help="shell to print the script for")
    flags.add_argument(
        "--plugins", default="", help="comma-separated .py files that register custom components"
    )
    return flags


def main(argv: list[str]) -> None:
    """Print the script that a command line asks for."""
    asked = parser().parse_args(argv)
    run_plugins(asked.plugins)
    print(script(asked.shell, list(commands())))


# What there is to complete


def commands() -> Iterator[Command]:
    """Every command of `nanoarch`, with the flags that it declares."""
    keys = [_flag_of_key(key) for key in configurator.key_table().values()]
    for name, (module, does) in COMMANDS.items():
        flags, arguments = [], "*"
        if name == "train":
            asked = [Flag(flag, "", bare=True) for flag in configurator.ASKED if flag[:2] == "--"]
            flags = [*_flags_of(dry_run.parser()), *asked]
        else:
            own = own_module(module).parser()
            flags, arguments = list(_flags_of(own)), _arguments_of(own)
        if name in ("train", "sweep"):
            declared = {flag.name for flag in flags}
            flags += [key for key in keys if key.name not in declared]
            arguments = "*.py"
        script = "" if "." in module else f"{module}.py"
        yield Command(name, script, does, tuple(flags), arguments)


def _flag_of_key(key: Key) -> Flag:
    """The flag of a config key."""
    words = [configurator.shown(choice) for choice in key.choices or ()]
    if key.boolean:
        words += [word for word in ("true", "false") if word not in map(str.lower, words)]
    if words and key.takes_none:
        words.append("none")
    text = (DATASET if key.metadata["names"] == "dataset" else FILE,) if key.takes_text else ()
    return Flag(f"--{key.name}", _short(key.help), tuple(words) or text)


def _flags_of(flags: argparse.ArgumentParser) -> Iterator[Flag]:
    """The flags of a parser; of its only subcommand where it has one."""
    for action in flags._actions:
        if isinstance(action, argparse._SubParsersAction):
            [flags] = action.choices.values()
    for action in flags._actions:
        for name in action.option_strings:
            if name.startswith("--"):
                bare = action.nargs == 0
                yield Flag(name, _short(action.help or ""), () if bare else _values(action), bare)


def _arguments_of(flags: argparse.ArgumentParser) -> str:
    """What a parser takes besides flags, as `Command.arguments` says it."""
    chosen = [action.choices for action in flags._actions if not action.option_strings]
    return " ".join(chosen[0]) if chosen and isinstance(chosen[0], tuple) else "*"


def _values(action: argparse.Action) -> tuple[str, ...]:
    """The values of a flag that argparse reads."""
    if action.choices:
        return tuple(map(str, action.choices))
    if str(action.metavar).startswith("KEY="):
        return tuple(f"{key}=" for key in KEYS)
    return () if action.type in (int, float) else (FILE,)


def _short(help: str) -> str:
    """The first clause of a help text."""
    return re.split(r"[;:(]", help % {"default": ""} if "%(" in help else help)[0].strip()


# The scripts


def script(shell: str, known: Sequence[Command]) -> str:
    """The script that completes commands in a shell."""
    if shell == "fish":
        return "\n".join(_fish(known))
    template = (TEMPLATES / f"nanoarch.{shell}").read_text(encoding="utf-8")
    tables = "\n\n".join(_tables(known, described=shell == "zsh"))
    return template.replace("@ROOT@", shlex.quote(str(ROOT))).replace("@TABLES@", tables).rstrip()


def _tables(known: Sequence[Command], *, described: bool) -> Iterator[str]:
    """The shell functions that know the declarations, for bash and zsh."""
    yield f"_nanoarch_commands={shlex.quote(' '.join(command.name for command in known))}"
    flags = {}
    for command in known:
        lines = [_described(flag) if described else flag.spelled for flag in command.flags]
        flags[f"printf '%s\\n' {' '.join(map(shlex.quote, lines))}"] = [command.name]
    yield _function("_nanoarch_flags", "COMMAND", flags)
    words: dict[str, list[str]] = defaultdict(list)
    for command in known:
        for flag in command.flags:
            if flag.values:
                words[f"echo {shlex.join(flag.values)}"].append(f"{command.name}:{flag.name}")
    yield _function("_nanoarch_values", "COMMAND FLAG", words, "$1:$2")
    arguments: dict[str, list[str]] = defaultdict(list)
    for command in known:
        arguments[f"echo {shlex.quote(command.arguments)}"].append(command.name)
    yield _function("_nanoarch_arguments", "COMMAND", arguments)
    scripts = {f"echo {command.name}": [command.script] for command in known if command.script}
    yield _function("_nanoarch_command", "SCRIPT", scripts)


def _function(name: str, arguments: str, cases: Mapping[str, Iterable[str]], on: str = "$1") -> str:
    """A shell function that runs one of several lines: line -> the patterns that choose it."""
    rows = [f"        {'|'.join(patterns)}) {line} ;;" for line, patterns in cases.items()]
    return "\n".join([f"{name}() {{  # {arguments}", f'    case "{on}" in', *rows, "    esac", "}"])


def _described(flag: Flag) -> str:
    """A flag as zsh's `_describe` reads it."""
    return f"{flag.spelled}:{flag.help.replace(':', '')}"


def _fish(known: Sequence[Command]) -> Iterator[str]:
    """The lines of a script for fish."""
    yield "# Completion of nanoarch for fish, written by `nanoarch completion fish`."
    names = " ".join(command.name for command in known)
    first = f"not __fish_seen_subcommand_from {names}"
    datasets = f"(path basename (path dirname {ROOT}/data/*/prepare.py {ROOT}/data/*/meta.json))"
    for command in known:
        after = f"__fish_seen_subcommand_from {command.name}"
        offer = f"-a {command.name} -d {_quoted(command.help)}"
        yield f"complete -c nanoarch -f -n {_quoted(first)} {offer}"
        if not command.arguments.startswith("*"):
            yield f"complete -c nanoarch -f -n {_quoted(after)} -a {_quoted(command.arguments)}"
        for flag in command.flags:
            line = f"complete -c nanoarch -n {_quoted(after)} -l {flag.name[2:]}"
            if flag.values == (FILE,):
                line += " -r"
            elif flag.values == (DATASET,):
                line += f" -r -a {_quoted(datasets)}"
            elif not flag.bare:
                line += f" -x -a {_quoted(' '.join(flag.values))}"
            yield f"{line} -d {_quoted(flag.help)}"


def _quoted(text: str) -> str:
    """A text in single quotes of fish."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
