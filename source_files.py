"""The source files that decide what a run computes: the project's, and those that a user's file
imports."""

from __future__ import annotations

import ast
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

PROJECT = Path(__file__).resolve().parent

SOURCE = (
    *("errors.py", "safe_files.py", "source_files.py", "options.py", "patterns.py"),
    *("saved_configs.py", "configurator.py", "training_config.py", "user_files.py"),
    *("model_components.py", "model_keys.py", "model_config.py", "model_builder.py"),
    *("part_keys.py", "model_checks.py", "training_components.py"),
    *("train.py", "training_logger.py"),
    *("components/**/*.py", "recipe/**/*.py", "data/*.py", "training/**/*.py", "interop/**/*.py"),
)
"""The files of the project that decide what a run computes. Others (the comparison, sweeps,
documents, scripts, tests) cannot change its numbers; config files and data are logged by their
contents."""


def source_files(project: Path) -> list[Path]:
    """The files of SOURCE, in order."""
    return sorted({path for pattern in SOURCE for path in project.glob(pattern)})


def local_imports(module: str, source: str) -> dict[str, Path]:
    """The files that a user's file imports, directly or not, by the names of their modules.

    They are what an edit may change: modules that are neither installed nor among SOURCE. Imports
    are found in the source, also those within functions, and in the module, which may have loaded
    others by name (`importlib.import_module`).

    Args:
        module: The name that the file runs as; it need not have run.
        source: Its text.
    """
    found: dict[str, Path] = {}
    waiting = [*_imported(source, ""), *_held(module)]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        spec = _spec_of(name)
        file = _local_file(spec)
        if file is None:
            continue
        found[name] = file
        package = name if spec.submodule_search_locations else name.rpartition(".")[0]
        waiting += [*_imported(_text(file), package), *_held(name)]
    return dict(sorted(found.items()))


def _imported(source: str, package: str) -> Iterator[str]:
    """The modules that a source imports, the packages that they are in, and names that may be
    modules."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            start = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in filter(None, names):
            yield from _with_packages(name)


def _with_packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


_NAMED = (type, types.FunctionType)


def _held(module: str) -> Iterator[str]:
    """The modules that a loaded module's names are, or come from."""
    for value in list(vars(sys.modules.get(module, types.ModuleType(""))).values()):
        if isinstance(value, types.ModuleType):
            yield from _with_packages(value.__name__)
        elif isinstance(value, _NAMED) and isinstance(value.__module__, str):
            yield from _with_packages(value.__module__)


def _spec_of(name: str) -> ModuleSpec | None:
    """Where a module comes from, without loading it; None if there is none of that name, or if it
    is no file that can be imported."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return getattr(loaded, "__spec__", None)
    above, _, _ = name.rpartition(".")
    if not above:
        return PathFinder.find_spec(name)
    places = getattr(_spec_of(above), "submodule_search_locations", None)
    return PathFinder.find_spec(name, list(places)) if places else None


def _local_file(spec: ModuleSpec | None) -> Path | None:
    """The file of a module that is neither installed nor of SOURCE."""
    if spec is None or not spec.has_location or not os.path.isfile(spec.origin or ""):
        return None
    file = Path(spec.origin).resolve()
    installed = any(file.is_relative_to(folder) for folder in _installed())
    return None if installed or file in _own() else file


@cache
def _own() -> frozenset[Path]:
    return frozenset(path.resolve() for path in source_files(PROJECT))


@cache
def _installed() -> tuple[Path, ...]:
    """The folders of Python's own modules and of installed packages."""
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(Path(folder).resolve() for folder in dict.fromkeys(folders))


def _text(file: Path) -> str:
    """The text of a Python file; empty for a compiled module."""
    if file.suffix != ".py":
        return ""
    return file.read_text(encoding="utf-8-sig", errors="replace")
