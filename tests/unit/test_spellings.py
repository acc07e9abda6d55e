"""What users type by the names of other projects: every command answers with the right spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import compare_architectures
import sample
import sweep
import train
from cli import CommandParser
from cloud import runpod_deploy
from data.prepare_scripts import prepare_parser
from errors import KEY_SYNONYMS, UserError
from interop import huggingface
from options import KEYS
from tests.parametrized import one_in

COMMANDS: dict[str, Callable[[list[str]], object]] = {
    "train": train.main,
    "sweep": lambda argv: sweep.main(["--vary", "qk_norm=true,false", "--dry_run", *argv]),
    "cloud": lambda argv: runpod_deploy.main(["--dry_run", *argv]),
    "compare": compare_architectures.main,
    "sample": sample.main,
    "export": lambda argv: huggingface.main(["export", "latest", "folder", *argv]),
}
TRAINING = ("train", "sweep", "cloud")


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path):
    """What a command says to some arguments before it fails with status 1 or 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNPOD_API_KEY", "no-such-key-anywhere")

    def ask(command: str, *argv: str) -> str:
        try:
            COMMANDS[command]([*argv])
        except UserError as error:
            return str(error)
        except SystemExit:
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            return said.rstrip("\n")
        raise AssertionError(f"{command} accepted {argv}")

    return ask


@pytest.mark.parametrize("command", one_in(2, list(COMMANDS)))
@pytest.mark.parametrize(("typed", "key"), [("lr", "learning_rate"), ("norm", "normalization")])
def test_another_name_of_a_key(answer, command: str, typed: str, key: str) -> None:
    for argv in ([f"--{typed}=1"], [f"--{typed}", "1"]):
        said = answer(command, *argv)
        if command in TRAINING:
            assert f"--{typed}: unknown key {typed!r}; did you mean {key!r}?" in said
        else:
            assert said.startswith(
                f"--{typed}: this command has no such option; {key!r} is a key of train.py and"
            )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_by_another_name(answer, command: str) -> None:
    said = answer(command, "--device=gpu")
    if command in (*TRAINING, "sample"):
        assert "--device: unknown device 'gpu'; did you mean 'cuda'? Choices: auto, cpu" in said
    else:
        assert "--device: this command has no such option; 'device' is a key of train.py" in said


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "cloud"])
def test_a_text_file_as_a_dataset(answer, command: str) -> None:
    said = answer(command, "--dataset=x.txt")
    if command in TRAINING:
        assert said == (
            "dataset='x.txt' does not exist; prepare your text first: python data/text/prepare.py "
            "--name=x --input=x.txt; then use --dataset=x."
        )
    else:
        assert "--dataset: this command has no such option; 'dataset' is a key of" in said


@pytest.mark.parametrize("command", ["compare", "sample", "export"])
def test_a_misspelt_option(answer, command: str) -> None:
    said = answer(command, "--out-dir=x")
    assert said == "unknown option '--out-dir'; did you mean '--out_dir'? --help lists the options."


def test_a_value_that_is_no_choice_or_no_number(answer) -> None:
    assert answer("compare", "--format=jsn").startswith("--format: unknown format 'jsn'; did you")
    assert answer("sample", "--top_k=x") == "--top_k: invalid int value: 'x'"
    assert answer("sweep", "--match=flop").startswith("--match: unknown match 'flop'; did you mean")


def test_another_name_of_a_value_is_no_key(answer) -> None:
    assert "is a key of" not in answer("sample", "--gpu")


def test_what_is_missing_or_too_much(answer, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer("sample", "latest") == "unexpected argument 'latest'; --help lists the arguments."
    with pytest.raises(SystemExit):
        huggingface.main(["exprt"])
    assert "unknown command 'exprt'; did you mean 'export'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        huggingface.main(["export"])
    assert capsys.readouterr().err == "the following arguments are required: run, folder\n"


def test_a_file_that_exists_is_named_in_the_command(answer, tmp_path) -> None:
    (tmp_path / "my novel.txt").write_text("text", encoding="utf-8")
    assert answer("train", "--dataset=my novel.txt") == (
        "dataset='my novel.txt' is a file; prepare your text first: python data/text/prepare.py "
        "'--name=my novel' '--input=my novel.txt'; then use --dataset='my novel'."
    )


def test_every_other_name_means_something() -> None:
    assert set(KEY_SYNONYMS.values()) <= set(KEYS)
    assert not set(KEY_SYNONYMS) & set(KEYS)


def test_help_is_that_of_argparse(capsys: pytest.CaptureFixture[str]) -> None:
    parser = prepare_parser("Prepare something.", "somewhere")
    assert isinstance(parser, CommandParser)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--help"])
    assert stop.value.code == 0
    assert "--workers N" in capsys.readouterr().out
