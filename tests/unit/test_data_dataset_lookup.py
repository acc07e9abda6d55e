"""Finding a dataset, and which prepare scripts run by themselves."""

import shutil
from pathlib import Path

import pytest

from data import dataset_lookup
from data.dataset_lookup import DATA_FOLDER, prepare_if_missing
from errors import UserError


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """A data/ with `ready`, which prepares itself, `asks`, which needs flags, and `bare`."""
    root = tmp_path / "data"
    scripts = {
        "ready": """
            from pathlib import Path
            runs = Path(__file__).parent / "runs"
            def main(argv):
                assert argv == []
                runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
                (Path(__file__).parent / "meta.json").write_text("{}")
        """,
        "asks": """
            import argparse
            def main(argv):
                parser = argparse.ArgumentParser()
                parser.add_argument("--input", required=True)
                parser.parse_args(argv)
        """,
    }
    for name, script in scripts.items():
        (root / name).mkdir(parents=True)
        (root / name / "prepare.py").write_text(script.replace("\n            ", "\n"))
    (root / "bare").mkdir()
    monkeypatch.setattr(dataset_lookup, "DATA_FOLDER", root)
    return root


def test_a_missing_dataset_is_prepared_once_with_a_line_about_it(data_folder, capsys):
    assert prepare_if_missing("ready", may_run=True) == data_folder / "ready"
    assert "dataset 'ready' is not prepared yet: running" in capsys.readouterr().out
    assert prepare_if_missing("ready", may_run=True) == data_folder / "ready"
    assert capsys.readouterr().out == ""
    assert (data_folder / "ready" / "runs").read_text() == "x"


def test_a_dataset_can_be_prepared_without_output(data_folder, capsys):
    assert prepare_if_missing("ready", may_run=True, quiet=True) == data_folder / "ready"
    assert capsys.readouterr() == ("", "")


def test_a_path_to_a_prepared_folder_serves(tiny_dataset, data_folder, monkeypatch):
    assert prepare_if_missing(str(tiny_dataset), may_run=True) == tiny_dataset
    monkeypatch.chdir(tiny_dataset.parent)
    assert prepare_if_missing("tiny", may_run=True) == Path("tiny")


def test_a_dataset_that_needs_arguments_says_so(data_folder):
    with pytest.raises(ValueError, match=r"'asks' cannot be prepared .*prepare\.py --help"):
        prepare_if_missing("asks", may_run=True)


def test_an_unknown_dataset_gets_the_nearest_and_the_choices(data_folder):
    expected = r"'redy'; did you mean 'ready'\? Choices: asks, ready\. A path"
    with pytest.raises(ValueError, match=expected):
        prepare_if_missing("redy", may_run=True)


def test_a_text_file_gets_the_command_that_prepares_it(data_folder, tmp_path):
    file = tmp_path / "novel.txt"
    file.write_text("once")
    with pytest.raises(UserError) as refusal:
        prepare_if_missing(str(file), may_run=True)
    assert f"prepare.py --name=novel --input={file}; then use --dataset=novel" in str(refusal.value)


def test_a_folder_that_is_no_dataset_is_refused(data_folder, tmp_path):
    for name in ("bare", str(tmp_path)):
        with pytest.raises(UserError, match=r"not a prepared dataset: it has no meta\.json"):
            prepare_if_missing(name, may_run=True)


def refuses_to_run(dataset, data_folder, *, may_run=True):
    with pytest.raises(UserError, match=r"run it first: python .*prepare\.py"):
        prepare_if_missing(str(dataset), may_run=may_run)
    assert not list(data_folder.parent.rglob("runs"))


def test_a_script_runs_only_for_the_plain_name_of_a_folder_of_data(data_folder, monkeypatch):
    outside = shutil.copytree(data_folder / "ready", data_folder.parent / "outside")
    monkeypatch.chdir(data_folder.parent)
    for dataset in (
        data_folder / "ready",
        outside,
        "outside",
        "data/ready",
        "./ready",
        "../outside",
        "ready/../ready",
        "ready/",
    ):
        refuses_to_run(dataset, data_folder)
    for dataset in (".", "..", "", "a\0b", "x" * 5000):
        with pytest.raises(UserError):
            prepare_if_missing(dataset, may_run=True)


def test_a_script_never_runs_where_a_checkpoint_names_the_dataset(data_folder):
    refuses_to_run("ready", data_folder, may_run=False)


def test_a_script_never_runs_through_a_symbolic_link(data_folder):
    outside = shutil.copytree(data_folder / "ready", data_folder.parent / "outside")
    (data_folder / "folder_link").symlink_to(outside)
    (data_folder / "bare" / "prepare.py").symlink_to(outside / "prepare.py")
    refuses_to_run("folder_link", data_folder)
    refuses_to_run("bare", data_folder)


def test_the_default_dataset_is_one_of_the_repository():
    assert (DATA_FOLDER / "python_stdlib" / "prepare.py").is_file()
