"""Imports point down the layers, and none is circular, those for type checkers included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = (
    ("nanoarch",),
    ("benchmarks",),
    ("scripts",),
    ("sweep",),
    ("train", "sample", "compare_architectures"),
    ("experiment", "comparison"),
    ("inference", "interop", "cloud", "evaluation"),
    ("training_logger", "training"),
    ("pages",),
    ("data",),
    ("configurator",),
    ("training_config", "user_files"),
    ("training_components",),
    ("recipe",),
    ("model_builder",),
    ("model_config",),
    ("architecture_names", "model_checks"),
    ("model_keys",),
    ("part_keys",),
    ("model_components", "model_presets"),
    ("cli",),
    ("components",),
    ("options", "saved_configs"),
    ("patterns",),
    ("safe_files", "source_files"),
    ("errors",),
)
"""Modules and packages from top to bottom. A module imports from its own layer and from those
below. config/ and tests/ are not in it: they may import anything."""


@cache
def import_graph() -> dict[str, set[str]]:
    """By module the project's modules that it imports anywhere in its file."""
    files = {_name(path): path for path in _files()}
    return {module: set(_imports(path, set(files))) - {module} for module, path in files.items()}


def _files() -> Iterator[Path]:
    for name in (name for layer in LAYERS for name in layer):
        yield from ROOT.glob(f"{name}.py")
        yield from (ROOT / name).rglob("*.py")


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, modules: set[str]) -> Iterator[str]:
    package = _name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from modules.intersection(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            names = {f"{source}.{alias.name}" for alias in node.names}
            yield from modules.intersection(names) or modules.intersection([source])


def layer_of(module: str) -> int:
    """0 is the top."""
    top = module.split(".")[0]
    return next(depth for depth, layer in enumerate(LAYERS) if top in layer)


def test_every_module_is_in_one_layer():
    names = [name for layer in LAYERS for name in layer]
    assert len(names) == len(set(names))
    here = {path.stem for path in ROOT.glob("*.py")}
    here |= {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert here - {"tests", "config"} <= set(names)


def test_imports_point_down():
    up = {
        module: sorted(name for name in found if layer_of(name) < layer_of(module))
        for module, found in import_graph().items()
    }
    assert {module: found for module, found in up.items() if found} == {}


def test_what_runs_in_a_pod_imports_nothing_of_the_project():
    found = {
        name
        for module, names in import_graph().items()
        if module.startswith("cloud.pod.")
        for name in names
    }
    assert found
    assert {name for name in found if not name.startswith("cloud.pod.")} == set()


def test_the_cloud_runs_the_commands_and_imports_none():
    commands = {"sweep", "train", "experiment", "comparison", "compare_architectures"}
    found = {
        (module, name)
        for module, names in import_graph().items()
        for name in names
        if module.startswith("cloud.") and name.split(".")[0] in commands
    }
    assert found == set()


def test_no_import_is_circular():
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        pytest.fail(f"circular import: {' <- '.join(error.args[1])}")


def test_the_graph_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    folder = tmp_path / "training"
    folder.mkdir()
    for name in ("__init__", "a", "b", "c", "d"):
        (folder / f"{name}.py").write_text("")
    (tmp_path / "errors.py").write_text("")
    (folder / "user.py").write_text(
        "import errors\nfrom training import a\nfrom . import b\nfrom .c import x\n"
        "if TYPE_CHECKING:\n    from training.d import Y\n"
    )
    graph = import_graph.__wrapped__()
    assert graph["training.user"] == {"errors", *(f"training.{name}" for name in "abcd")}
