"""Run the user's Python files: config files, and plugins that register components."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.part import own_stream
from components.registry import USERS_MODULE
from errors import ConfigError, Problem, UserError
from options import KEYS
from source_files import local_imports
from training_components import ALL_REGISTRIES

CONFIG_FOLDER = Path(__file__).parent / "config"


@dataclasses.dataclass(frozen=True)
class Given:
    """A value given to a key, and its origin, such as `config/x.py:12` or `--n_layer`."""

    value: Any
    origin: str


@contextlib.contextmanager
def collect(problems: list[Problem]) -> Iterator[None]:
    """Catch a ConfigError and add its problems to the list."""
    try:
        yield
    except ConfigError as error:
        problems.extend(error.problems)


def run_plugins(paths: str) -> dict[str, str]:
    """Run plugins, and return the source of each by its path.

    Args:
        paths: Comma-separated files.

    Raises:
        ConfigError: If files are missing or fail; it lists them all.
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


def rerun_plugins(plugins: Mapping[str, str]) -> None:
    """Run plugins (path -> source) again, to reset their modules.

    The smoke test and the memory trace may leave objects in them, such as layers of another width,
    gradients, or cached tensors without data. Random numbers that a plugin draws now depend on
    torch's seed.
    """
    for path, source in plugins.items():
        with own_stream(Path(path).name):
            run_source(path, source)


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
    """Run a config file and return the values of its top-level names that are, or should be, keys.

    If the file registers components, its source is added to `plugins`.

    Raises:
        ConfigError: If the file does not exist or fails; see `run_source`.
    """
    source = read_source(path)
    namespace = run_source(path, source)
    if registers_parts(path, source):
        plugins[path] = source
    lines, imported = names_bound(source)
    if "*" in imported:
        imported |= namespace.keys() - lines.keys()
    return {
        name: Given(value, f"{path}:{lines[name]}" if name in lines else path)
        for name, value in namespace.items()
        if name in KEYS or not (name in imported or is_helper(name, value))
    }


def is_helper(name: str, value: Any) -> bool:
    """Whether a name that is not a key is a helper of the file rather than a misspelled key."""
    return name.startswith("_") or isinstance(value, _NOT_A_VALUE)


def names_bound(source: str) -> tuple[dict[str, int], set[str]]:
    """The line on which each name of a module is last bound, and the names bound only by imports.

    Names inside functions, classes and comprehensions do not count.
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
    """Read a Python file. Raises ConfigError if it does not exist or cannot be read."""
    try:
        return located(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([Problem((), f"no file {path!r}{nearest_file(path)}")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem((), f"cannot read {path!r}: {error}.")]) from None


def located(path: str) -> Path:
    """Resolve a path; files in config/ are found from any working directory."""
    ours = CONFIG_FOLDER.parent / path
    elsewhere = not os.path.exists(path) and ours.parent == CONFIG_FOLDER and ours.is_file()
    return ours if elsewhere else Path(path)


def nearest_file(path: str) -> str:
    """A hint at the Python file with the closest name, next to `path` or in config/."""
    folders = (Path(path).parent, CONFIG_FOLDER)
    files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.py"))}
    matches = difflib.get_close_matches(Path(path).stem, files, n=1, cutoff=0.6)
    return f"; did you mean {os.path.relpath(files[matches[0]])!r}?" if matches else "."


def run_source(path: str, source: str) -> dict[str, Any]:
    """Run a file as a separate module and return its namespace.

    Raises ConfigError if the file is not valid Python, exits, or raises a UserError; any other
    exception propagates with its traceback.
    """
    module = types.ModuleType(module_name(path))
    module.__file__ = os.path.abspath(located(path))
    sys.modules[module.__name__] = module  # dataclasses and inspect look up modules here
    try:
        exec(compiled(source, path), vars(module))
    except UserError as error:
        raise ConfigError([Problem((), f"{failed_at(error, path)}: {error}")]) from error
    except (SyntaxError, SystemExit) as error:
        message = f"{failed_at(error, path)}: {type(error).__name__}: {error}".removesuffix(": ")
        raise ConfigError([Problem((), message)]) from error
    return vars(module)


def compiled(source: str, path: str) -> types.CodeType:
    """Compile a file. Raises SyntaxError, also if it is nested too deeply."""
    try:
        return compile(source, path, "exec", dont_inherit=True)
    except (MemoryError, RecursionError) as error:
        raise SyntaxError("an expression is nested too deeply for Python to parse") from error


def module_name(path: str) -> str:
    """The module name for a file, which no import statement can refer to."""
    return USERS_MODULE + re.sub(r"\W", "_", path)


def failed_at(error: BaseException, path: str) -> str:
    """Where in the file `path` an error occurred: `path:line`, or the path if unknown."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f"{path}:{lines[-1]}" if lines else path


def registers_parts(path: str, source: str) -> bool:
    """Whether a file that was run, or a local module that it imports, has parts in the
    registries."""
    modules = {module_name(path), *local_imports(module_name(path), source)}
    parts = (registry[name] for registry in ALL_REGISTRIES.values() for name in registry.names)
    return any(part.__module__ in modules for part in parts)
