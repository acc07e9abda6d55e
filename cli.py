"""Run the project's commands and handle their errors. Imports no torch, for a fast start."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Container
from typing import Any, NoReturn

from components.registry import is_users_module
from errors import KEY_SYNONYMS, UserError, nearest, quoted, unknown_name


def run_cli(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a script's `main` on its arguments and exit with its return value.

    A UserError is printed without a traceback; the exit status is 2 for a ConfigError, else 1.
    Ctrl-C and a closed output pipe (`| head`) exit silently; other failures to write the output are
    reported in one line. Characters that the output's encoding lacks are escaped. Any other
    exception keeps its traceback, which starts in the config file or plugin if it was raised there;
    sys.exit() in such a file is an error.
    """
    _open_closed_streams()
    escape_what_cannot_be_encoded()
    try:
        try:
            sys.exit(main(sys.argv[1:]))
        finally:
            _flush()  # here, where failures are handled
    except UserError as error:
        with contextlib.suppress(OSError):  # the terminal may be closed
            print(error, file=sys.stderr)
            if error.missing_flag:
                print(f"  {command_with(error.missing_flag)}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        discard_output()
        sys.exit(1)
    except (Exception, SystemExit) as error:
        if not trim_to_users_code(error):
            raise
        if isinstance(error, SystemExit):
            error.add_note("A config file or plugin must not call sys.exit(); raise an exception.")
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
        sys.exit(1)


class CommandParser(argparse.ArgumentParser):
    """A parser for a command's own options. Like config errors, its errors are a single line: what
    is wrong, the closest name, and for a config key the commands that accept it.

    Args:
        keys: The config keys, which the command does not accept.
    """

    def __init__(self, *args: Any, keys: Container[str] = (), **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._keys = keys

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args, namespace)
        flags = [word for word in unknown if word.startswith("-")]
        if unknown:  # what follows an unknown flag may be its value
            self.error("\n".join(map(self._unexpected, flags or unknown)))
        return found

    def _unexpected(self, word: str) -> str:
        """The message for an argument that the command does not accept."""
        name = word.lstrip("-").partition("=")[0]
        if not word.startswith("-"):
            return f"unexpected argument {quoted(word)}; --help lists the arguments."
        key = KEY_SYNONYMS.get(name, name)
        if key in self._keys or name in KEY_SYNONYMS:
            return (
                f"--{name}: this command has no such option; {key!r} is a key of train.py and "
                "sweep.py."
            )
        near = nearest(f"--{name}", self._flags())
        return f"unknown option {quoted(f'--{name}')}{near} --help lists the options."

    def _flags(self) -> list[str]:
        """The flags of this parser and of its subcommands."""
        commands = (
            command
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for command in action.choices.values()
        )
        own = (flag for flag in self._option_string_actions if flag.startswith("--"))
        return [*own, *(flag for command in commands for flag in command._flags())]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "command" if action.dest == argparse.SUPPRESS else action.dest
            raise argparse.ArgumentError(action, unknown_name(name, value, action.choices))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message.removeprefix('argument ')}\n")


def typed_command(script: str) -> str:
    """`nanoarch NAME` if the user typed that, else the command that starts the script."""
    return sys.argv[0] if sys.argv[0].startswith("nanoarch ") else script


def command_with(flag: str) -> str:
    """The command line of this process, with a flag `--key=value` added or replaced."""
    key = flag.partition("=")[0]
    kept = [*sys.argv[1:]]
    while (place := next((i for i, word in enumerate(kept) if word == key), None)) is not None:
        del kept[place : place + 2]
    kept = [word for word in kept if not word.startswith(f"{key}=")]
    return shlex.join([*_started_as(), *kept, flag])


def _started_as() -> list[str]:
    """The command before the arguments, as typed by the user."""
    name, module = sys.argv[0], sys.modules["__main__"].__spec__
    if not name.endswith(".py"):
        return name.split(" ")  # `nanoarch sample`
    return ["python", "-m", module.name] if module else ["python", os.path.relpath(name)]


def trim_to_users_code(error: BaseException) -> bool:
    """Remove the traceback frames above the first one in a config file or plugin.

    Returns:
        Whether there is such a frame; if not, the traceback is unchanged.
    """
    frames = error.__traceback__
    while frames and not is_users_module(frames.tb_frame.f_globals.get("__name__", "")):
        frames = frames.tb_next
    if frames:
        error.__traceback__ = frames
    return frames is not None


def _open_closed_streams() -> None:
    """Discard output to streams that were closed when the command was started (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def escape_what_cannot_be_encoded() -> None:
    """Escape characters that the encoding of standard output lacks, so that any text can be
    printed."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not reconfigurable
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Flush standard output. Raises UserError if it cannot be written, for example on a full
    disk."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise UserError(f"cannot write the output: {error.strerror}.") from error


def discard_output() -> None:
    """Discard standard output from now on, because it cannot be written."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
