"""`train.py --dry_run`: what a run will need and take, with nothing made and nothing trained."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch

import train
from configurator import load
from errors import ConfigError
from model_builder import GPT
from training.dry_run import MFU, Assumed, dry_run, split_dry_run
from training.hardware import KNOWN_GPUS, peak_of_gpu

GPT2 = ("--arch_preset=gpt2", "--vocab_size=50304", "--block_size=1024", "--dataset=not_prepared")
H100 = Assumed(gpu="H100", workers=8, mfu=0.5, price=2.0)


@cache
def report(*flags: str, model: tuple[str, ...] = GPT2) -> str:
    """With the lines that wrap joined."""
    text = dry_run(load([*model, *flags]), H100)
    return re.sub(r"\n {4,}", " ", text)


def rows(text: str, parallelism: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(parallelism))


def test_time_and_cost_are_the_flops_over_the_speed() -> None:
    text = report("--batch_size=8", "--gradient_accumulation_steps=8", "--max_iters=100000")
    model_flops = 854_654_976 * 100_000 * 64 * 1024  # the check figure of GPT-2 at 1024 tokens
    hours = model_flops / (8 * 0.5 * 989e12) / 3600
    assert f"time         {60 * hours:.1f} min at 50 % MFU of 8 x 989.0 TFLOP/s" in text
    assert f"cost         ${hours * 8 * 2:.2f} at $2.00 per device and hour" in text
    assert "100,000, 6.55B tokens" in text


@pytest.mark.slow
def test_memory_is_told_for_every_way_to_spread_the_model() -> None:
    text = report("--gradient_accumulation_steps=8")
    with torch.device("meta"):
        weights = 4 * GPT(load(GPT2).model).num_parameters() / 1e6
    assert f"weights {weights:.1f} MB, gradients {weights:.1f} MB" in rows(text, "ddp")
    assert f"optimizer {2 * weights / 8:.1f} MB" in rows(text, "zero1")
    shard = f"weights {weights / 8:.1f} MB, gradients {weights / 8:.1f} MB"
    assert f"{shard}, optimizer {2 * weights / 8:.1f} MB" in rows(text, "fsdp")
    assert "hsdp" not in text  # one machine
    split = report("--gradient_accumulation_steps=8", "--tensor_parallel=4")
    held = float(re.search(r"weights ([\d.]+) MB", rows(split, "ddp"))[1])
    blocks = 12 * 12 * 768**2 * 4 / 1e6  # the matrices
    assert weights - 0.75 * blocks == pytest.approx(held, rel=0.01)
    text = report("--gradient_accumulation_steps=8", "--shard_size=4", "--parallelism=hsdp")
    assert f"weights {weights / 4:.1f} MB" in rows(text, "hsdp")


@pytest.mark.slow
def test_the_largest_batch_just_fits() -> None:
    flags = ("--gradient_accumulation_steps=8", "--n_layer=2")
    most = int(re.search(r"fits: (\d+)", rows(report(*flags), "ddp"))[1])
    total = [
        float(re.search(r"ddp +([\d.]+) GB", report(*flags, f"--batch_size={size}"))[1])
        for size in (most, most + max(2, most // 40))
    ]
    assert total[0] <= 80.0 < total[1]


@pytest.mark.slow
def test_checkpointing_takes_less_memory() -> None:
    small = ("--vocab_size=512", "--block_size=256", "--n_layer=2", "--dataset=not_prepared")
    batch = ("--gradient_accumulation_steps=8", "--batch_size=16")
    modes = [f"--activation_checkpointing={mode}" for mode in ("none", "selective", "block")]
    texts = [report(*batch, mode, model=small) for mode in modes]
    activations = [float(re.search(r"activations ([\d.]+) MB", text)[1]) for text in texts]
    assert activations[0] > activations[1] > activations[2]


def test_a_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train.main(
        ["--dry_run", "--vocab_size=64", "--n_layer=1", "--dataset=x", f"--out_dir={tmp_path}/out"]
    )
    printed = capsys.readouterr().out
    assert printed.startswith("Dry run: 1L-")
    assert f"{100 * MFU:g} % MFU of 1 x" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mfu=0.3"], "--mfu=0.3 has no effect without --dry_run"),
        (["--dry_run", "--device_name=H10"], "unknown; did you mean 'H100'"),
        (["--dry_run", "--workers=0"], "--workers=0 must be a whole number above 0"),
        (["--dry_run", "--workers=1.5"], "--workers=1.5 must be a whole number"),
        (["--dry_run", "--mfu=40"], "--mfu=40 must be a number above 0 and at most 1"),
        (["--dry_run", "--price_per_hour=x"], "--price_per_hour=x must be a number"),
        (["--dry_run", "--mfu"], "--mfu= must be a number"),
        (["--dry_run=H100"], "cannot parse '--dry_run=H100'; --dry_run takes no value"),
    ],
)
def test_impossible_options_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        split_dry_run(argv)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel=3 does not divide 8 workers"):
        report("--tensor_parallel=3")
    with pytest.raises(ConfigError, match="does not divide among 8 workers"):
        report("--batch_size=3")
    for dataset, hint in (
        ("shakespear", "did you mean 'shakespeare'?"),
        ("openwebtext", str(Path("data/openwebtext/prepare.py"))),
        ("x.txt", "data/text/prepare.py --name=x --input=x.txt"),
    ):
        with pytest.raises(ConfigError, match="a dry run needs --vocab_size") as raised:
            dry_run(load([f"--dataset={dataset}"]), H100)
        assert hint in str(raised.value)


def test_every_gpu_has_a_peak() -> None:
    for name, memory in KNOWN_GPUS.values():
        assert peak_of_gpu(name, torch.float16)
        assert 10**10 < memory < 10**12
