"""The package `nanoarch`: its functions and its command, from outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import nanoarch
from errors import UserError
from nanoarch.commands import COMMANDS
from tests.integration.child import ROOT
from tests.integration.runs import Workshop
from tests.integration.test_sweep import InThisProcess
from tests.test_imports import LAYERS
from tests.tiny_data import tiny_run_flags, write_tiny_dataset

KEYS = {"n_layer": 1, "n_head": 2, "n_kv_head": 1, "n_embd": 32, "block_size": 32, "batch_size": 2}


@pytest.fixture
def runs(workshop: Workshop) -> list[Path]:
    keys = {**KEYS, "dataset": str(workshop.dataset), "out_dir": str(workshop.out_dir)}
    keys |= {"max_iters": 3, "eval_tokens": 128, "sample_tokens": 0, "device": "cpu"}
    return [
        nanoarch.train("config/arch_llama.py", **keys, qk_norm=norm, seed=seed, run_name=name)
        for norm, seed, name in ((False, 1, "a"), (False, 2, "b"), (True, 1, "c"), (True, 2, "d"))
    ]


def test_train_load_and_compare(workshop: Workshop, runs: list[Path]) -> None:
    assert [run.name for run in runs] == ["a", "b", "c", "d"]
    records = nanoarch.load_runs(workshop.out_dir)
    assert [record["run_name"] for record in records] == ["a", "b", "c", "d"]
    for record, run in zip(records, runs, strict=True):
        log = json.loads((run / "run.json").read_text())
        assert record["config.n_embd"] == 32
        assert record["config.arch_preset"] == "llama"
        assert record["architecture.flops_per_token"] == log["architecture"]["flops_per_token"]
        assert record["summary.final_val_loss"] == log["summary"]["final_val_loss"]
    found = nanoarch.compare(workshop.out_dir)
    assert len(found["groups"]) == 2
    assert [record["run_name"] for record in nanoarch.load_runs(runs[1])] == ["b"]


def test_a_quiet_run_prints_nothing(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    keys = {"dataset": str(workshop.dataset), "out_dir": str(workshop.out_dir), "device": "cpu"}
    keys |= {**KEYS, "max_iters": 1, "eval_tokens": 64, "sample_tokens": 8}
    run = nanoarch.train("config/arch_llama.py", quiet=True, **keys)
    assert capfd.readouterr() == ("", "")
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    assert '"kind": "sample"' in (run / "metrics.jsonl").read_text()


def test_sweep(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InThisProcess()
    monkeypatch.setattr("sweep.make_engine", lambda *_: engine)
    keys = {**KEYS, "dataset": str(workshop.dataset), "out_dir": str(workshop.out_dir)}
    keys |= {"max_iters": 1, "eval_tokens": 64, "sample_tokens": 0, "device": "cpu"}
    asked = {"vary": {"qk_norm": [True]}, "seeds": 1, "match": "none", **keys}
    assert nanoarch.sweep("config/arch_llama.py", **asked, dry_run=True) is None
    assert not engine.jobs
    folder = nanoarch.sweep("config/arch_llama.py", **asked, until_sure=False, budget=None)
    assert folder.name.startswith("llama-qk_norm-")
    assert [job.arm for job in engine.jobs] == ["baseline", "qk_norm=true"]
    names = [group["name"] for group in nanoarch.compare(folder)["groups"]]
    assert names == ["baseline", "qk_norm=true"]


def test_a_sweep_that_cannot_run_is_an_error(workshop: Workshop) -> None:
    with pytest.raises(UserError, match="nothing to compare"):
        nanoarch.sweep("config/arch_llama.py", dataset=str(workshop.dataset))
    with pytest.raises(UserError, match=r"adapter_pattern='q,v' cannot be varied or tuned, becau"):
        nanoarch.sweep("config/arch_llama.py", vary={"adapter_pattern": ["q,v", "*"]})
    with pytest.raises(UserError, match="invalid option"):
        nanoarch.sweep("config/arch_llama.py", vary={"qk_norm": True}, seeds="many")


def test_values_of_keys(tmp_path: Path) -> None:
    spellings = {
        ("plugins", ""): "",
        ("out_dir", "a b"): "a b",
        ("ffn_type", ("swiglu", "glu")): "swiglu+glu",
        ("log_to", ("csv", "tensorboard")): "csv,tensorboard",
        ("sliding_window", None): "none",
        ("qk_norm", True): "true",
    }
    assert {pair: nanoarch._text(*pair) for pair in spellings} == spellings


def test_a_script_of_the_same_name_is_told(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import nanoarch\nnanoarch.train()\n")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert f"ImportError: {script} shadows nanoarch's module 'train'; rename" in done.stderr


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    for function in (nanoarch.load_runs, nanoarch.compare):
        with pytest.raises(UserError, match="name at least one path"):
            function()
        with pytest.raises(UserError, match="nowhere"):
            function(tmp_path / "nowhere")


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nanoarch", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_command_from_another_folder(tmp_path: Path) -> None:
    """A file of config/ is found from there, and the run is in that folder's out/."""
    flags = tiny_run_flags(write_tiny_dataset(tmp_path / "data"))
    own = [flag for flag in flags if not flag.startswith("--out_dir")]
    trained = command(tmp_path, "train", "config/arch_llama.py", *own, "--run_name=mine")
    assert trained.returncode == 0, trained.stderr
    compared = command(tmp_path, "compare", "out", "--format=json")
    assert compared.returncode == 0, compared.stderr
    assert (tmp_path / "out" / "mine" / "run.json").exists()


def test_an_unknown_command_gets_the_nearest(tmp_path: Path) -> None:
    done = command(tmp_path, "tran")
    assert done.returncode == 1
    assert done.stderr.startswith("unknown command 'tran'; did you mean 'train'?")
    assert all(f"  {name}" in done.stderr for name in COMMANDS)


def test_an_installed_checkout_has_every_module() -> None:
    """`pip install -e .` maps the modules that pyproject.toml lists."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = [name for layer in LAYERS for name in layer]
    packages = {name for name in there if (ROOT / name).is_dir()}
    assert set(settings["packages"]) == packages
    assert set(settings["py-modules"]) == {name for name in there if name not in packages} - {
        name for name in there if not (ROOT / f"{name}.py").exists() and name not in packages
    }


def test_training_leaves_the_precision_of_matmuls_as_it_was(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.hardware.onednn_multiplies_faster", lambda: True)
    keys = {"dataset": str(workshop.dataset), "out_dir": str(workshop.out_dir), "device": "cpu"}
    nanoarch.train("config/arch_llama.py", **KEYS, **keys, max_iters=1, eval_tokens=64)
    assert torch.get_float32_matmul_precision() == "highest"
