"""The benchmark of whole commands: a stand-in for nanoGPT in turn with a tiny run of train.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import time_to_loss
from benchmarks.time_to_loss import NANOGPT, Timed
from configurator import load
from data.dataset import Dataset
from errors import UserError
from interop import nanogpt
from scripts.runs import CONFIG, FAILED, PASSED
from tests.interop.test_nanogpt import Reference
from tests.tiny_data import tiny_run_flags, write_tiny_dataset

TRAINS = """
import os, shutil, sys

assert "--max_iters=2000" in sys.argv and sys.argv[1] == "config/train_shakespeare_char.py"
[out] = [flag.partition("=")[2] for flag in sys.argv if flag.startswith("--out_dir=")]
os.makedirs(out, exist_ok=True)
shutil.copy("trained.pt", os.path.join(out, "ckpt.pt"))
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands in for nanoGPT, beside a recipe of three steps on the same tiny text."""
    dataset = write_tiny_dataset(tmp_path / "text")
    monkeypatch.setattr(time_to_loss, "DATASET", dataset)  # absolute, in either checkout
    flags = [flag[2:].partition("=") for flag in tiny_run_flags(dataset)]
    lines = [f"{key} = {value if value.isdigit() else repr(value)}" for key, _, value in flags]
    recipe = tmp_path / "recipe.py"
    recipe.write_text("\n".join(lines).replace("'False'", "False"), encoding="utf-8")
    monkeypatch.setattr(time_to_loss, "RECIPE", recipe)
    folder = tmp_path / "nanoGPT"
    folder.mkdir()
    (folder / "train.py").write_text(TRAINS, encoding="utf-8")
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 16, "bias": False}
    sizes["vocab_size"] = Dataset.open(dataset, 16).vocab_size
    torch.manual_seed(0)
    weights = Reference(**sizes).state_dict()
    torch.save({"model": weights, "model_args": sizes}, folder / "trained.pt")
    return folder


@pytest.mark.slow
def test_both_are_measured_in_turn(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    status = time_to_loss.main([f"--against={checkout}", "--repeats=2", f"--out={out}"])
    runs = json.loads(out.read_text(encoding="utf-8"))
    assert [run["name"] for run in runs] == ["nanoGPT", "nanoGPT", "ours", "ours"]
    for run in runs:
        assert run["cpu_seconds"] > 0
        assert run["seconds"] > 0
    theirs, ours = ([run["val_loss"] for run in part] for part in (runs[:2], runs[2:]))
    assert theirs[0] == theirs[1] == pytest.approx(time_to_loss.full_loss(checkout / "trained.pt"))
    assert ours[0] != ours[1]  # of two seeds
    assert status == (PASSED if sum(ours) <= sum(theirs) else FAILED)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:4]] == ["nanoGPT", "ours"] * 2
    assert "times as fast" in said[-1]


def test_the_loss_of_a_checkpoint_is_that_of_the_whole_validation_split(checkout: Path) -> None:
    dataset = Dataset.open(time_to_loss.DATASET, 16)
    model = nanogpt.load(checkout / "trained.pt")
    tokens = torch.tensor(dataset.val[: (len(dataset.val) - 1) // 16 * 16 + 1].astype(int))
    with torch.no_grad():
        _, loss = model(tokens[:-1].view(-1, 16), tokens[1:].view(-1, 16))
    assert time_to_loss.full_loss(checkout / "trained.pt") == pytest.approx(loss.item(), rel=1e-5)


def test_the_report_compares_medians_of_seconds_and_means_of_losses() -> None:
    theirs = [Timed("nanoGPT", seconds, 2 * seconds, 0.0, 1.9) for seconds in (90, 100, 500)]
    ours = [Timed("ours", 10, 5, 0.0, loss) for loss in (1.8, 1.9, 2.0)]
    assert time_to_loss.report(theirs, ours) == (
        "nanoGPT: 1.9000 in 100.0 s; ours: 1.9000 in 10.0 s, 10.0 times as fast "
        "(40.0 times by CPU time)"
    )


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('no such thing')", encoding="utf-8")
    with pytest.raises(UserError, match=r"^train.py --x exited with status 1: no such thing$"):
        time_to_loss.seconds_of(["train.py", "--x"], tmp_path)


def test_a_checkout_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no data/shakespeare_char/train.bin; name a checkout"):
        time_to_loss.main([f"--against={tmp_path}"])


def test_nanogpt_is_run_as_its_readme_says() -> None:
    """As in this project's form of that recipe."""
    ours = load([str(CONFIG / "baseline_shakespeare_cpu.py")]).to_dict()
    theirs = dict(flag[2:].split("=") for flag in NANOGPT if flag.startswith("--"))
    alike = ("block_size", "batch_size", "n_layer", "n_head", "n_embd", "max_iters", "dropout")
    assert {key: float(theirs[key]) for key in alike} == {key: ours[key] for key in alike}
