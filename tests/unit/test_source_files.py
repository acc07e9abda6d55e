"""Which local modules a user's file imports."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from source_files import PROJECT, local_imports


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """A folder on the path of imports, whose modules are forgotten afterwards."""
    folder = tmp_path.resolve() / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, **sources: str) -> None:
    for name, text in sources.items():
        path = folder / f"{name.replace('__of__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def found(source: str, module: str = "not loaded") -> set[str]:
    return set(local_imports(module, source))


@pytest.mark.parametrize(
    "source",
    [
        "import mine_a",
        "import mine_a as x, os",
        "from mine_a import thing",
        "def later():\n    import mine_a",
        "try:\n    from mine_a import thing\nexcept ImportError:\n    pass",
    ],
)
def test_every_way_to_import_a_module(code, source):
    write(code, mine_a="thing = 1")
    assert found(source) == {"mine_a"}
    assert local_imports("x", source)["mine_a"] == code / "mine_a.py"


def test_what_a_module_imports_is_followed(code):
    write(code, mine_a="import mine_b", mine_b="import mine_c, numpy", mine_c="import mine_a")
    assert found("import mine_a") == {"mine_a", "mine_b", "mine_c"}


def test_packages_and_relative_imports(code):
    write(
        code,
        pack__of____init__="from . import one",
        pack__of__one="from .two import x\nfrom .. import no",
        pack__of__two="x = 1",
        pack__of__unused="",
    )
    assert found("import pack.one") == {"pack", "pack.one", "pack.two"}
    assert found("from pack import two") == {"pack", "pack.one", "pack.two"}


def test_a_folder_without_init_is_a_package_too(code):
    write(code, space__of__one="")
    assert found("from space import one") == {"space.one"}


def test_a_module_that_was_loaded_by_its_name(code):
    write(code, mine_a="def f(): pass", mine_b="x = 1", user="")
    user = importlib.import_module("user")
    user.f = importlib.import_module("mine_a").f
    user.other = importlib.import_module("mine_b")
    assert found("", "user") == {"mine_a", "mine_b"}


def test_neither_installed_modules_nor_the_source_of_the_project():
    assert found("import os, torch, pytest, missing\nfrom options import KEYS") == set()
    assert found("from components.norms import NORMS\nimport recipe.optimizers") == set()


def test_a_file_of_the_project_that_decides_nothing_by_itself_counts():
    """As beside the project's configs: an edit of it changes no other digest."""
    assert local_imports("x", "import tests.tiny_data")["tests.tiny_data"] == (
        PROJECT / "tests" / "tiny_data.py"
    )


def test_damage_is_no_reason_to_fail(code):
    write(code, mine_a="def broken(:")
    assert found("import mine_a") == {"mine_a"}
    assert found("also broken(") == set()
