"""Which code a run was made by: commit, changes, digests."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from source_files import PROJECT, SOURCE
from tests.test_imports import import_graph
from training import provenance
from training.provenance import plugin_digests, source_digest

DECIDING = ("train.py", "components/norms.py", "recipe/x.py", "data/batches.py", "training/a/b.py")
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    folder = (tmp_path / "project").resolve()
    folder.mkdir()
    monkeypatch.setattr(provenance, "PROJECT", folder)
    return folder


def commit_all(folder: Path) -> str:
    git(folder, "init", "--quiet")
    (folder / "file").write_text("one")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "one")
    return git(folder, "rev-parse", "HEAD")


@needs_git
def test_the_commit_and_whether_files_differ_from_it(project):
    commit = commit_all(project)
    (project / "untracked").touch()
    found = provenance.provenance()
    assert (found["commit"], found["dirty"]) == (commit, False)
    (project / "file").write_text("two")
    found = provenance.provenance()
    assert (found["commit"], found["dirty"]) == (commit, True)


@needs_git
def test_results_on_record_are_no_change_of_the_code(project):
    (project / "metrics").mkdir()
    (project / "metrics" / "table.csv").write_text("seed\n")
    commit_all(project)
    (project / "metrics" / "table.csv").write_text("seed\n1337\n")
    assert provenance.provenance()["dirty"] is False


def test_outside_a_checkout_there_is_no_commit(project):
    found = provenance.provenance()
    assert (found["commit"], found["dirty"]) == (None, None)


@needs_git
def test_a_copy_inside_another_checkout_does_not_take_its_commit(project):
    commit_all(project.parent)
    assert provenance.provenance()["commit"] is None


class TestSourceDigest:
    @pytest.fixture
    def source(self, project: Path) -> Path:
        for name in (*DECIDING, "README.md", "sweep.py"):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_text("one\n")
        return project

    @pytest.mark.parametrize("name", DECIDING)
    def test_follows_what_decides_a_run(self, source: Path, name: str) -> None:
        before = source_digest(source)
        (source / name).write_text("two\n")
        assert source_digest(source) != before

    @pytest.mark.parametrize(
        "name", ["README.md", "sweep.py", "comparison/groups.py", "data/mine/prepare.py"]
    )
    def test_ignores_what_cannot_affect_a_run(self, source: Path, name: str) -> None:
        before = source_digest(source)
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("two\n")
        assert source_digest(source) == before

    def test_follows_names(self, source: Path) -> None:
        before = source_digest(source)
        (source / "components/norms.py").rename(source / "components/other.py")
        assert source_digest(source) != before

    def test_line_ends_do_not_matter(self, source: Path) -> None:
        before = source_digest(source)
        (source / "train.py").write_bytes(b"one\r\n")
        assert source_digest(source) == before

    def test_every_pattern_finds_files(self) -> None:
        for pattern in SOURCE:
            assert any(PROJECT.glob(pattern)), pattern

    def test_is_all_that_training_imports_but_names_and_pages(self) -> None:
        graph, reached, waiting = import_graph(), set(), ["train"]
        while waiting:
            module = waiting.pop()
            if module not in reached:
                reached.add(module)
                waiting += graph[module]
        files = {path for glob in SOURCE for path in PROJECT.glob(glob)}
        names = {path.relative_to(PROJECT).with_suffix("") for path in files}
        counted = {name.as_posix().removesuffix("/__init__").replace("/", ".") for name in names}
        pages = {"pages.rendering", "pages.palette", "pages.thinning"}
        assert reached - counted == {"architecture_names", "cli", "model_presets"} | pages


def test_plugins_are_known_by_file_name() -> None:
    expected = hashlib.sha256(b"x = 1").hexdigest()
    assert plugin_digests({"a/parts.py": "x = 1"}) == {"parts.py": expected}


def test_what_plugins_import_is_part_of_them(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_layers.py").write_text("width = 1\n")
    plugins = {"parts.py": "import my_layers, torch"}
    before = plugin_digests(plugins)
    assert set(before) == {"parts.py", "import my_layers"}
    (tmp_path / "my_layers.py").write_text("width = 2\n")
    after = plugin_digests(plugins)
    assert {name for name in before if before[name] != after[name]} == {"import my_layers"}
