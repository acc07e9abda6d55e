"""Tiny runs of train.py and sample.py, in this process or in one of their own."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train
from data.dataset_writer import Document, write_dataset
from data.tokenizers import Tokenizer
from errors import UserError
from tests.integration.child import Child

TINY = ("--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=32", "--eval_tokens=128")
SHORT = ("--batch_size=2", "--log_interval=1", "--device=cpu", "--dtype=float32", "--compile=False")
SHORT += ("--sample_tokens=0",)

TIMES = {"time_ms", "tokens_per_second", "mfu", "memory", "wall_seconds", "seconds"}
"""What two runs of the same may differ in."""


def make_dataset(folder: Path, tokenizer: Tokenizer, train_text: str, val_text: str) -> Path:
    """A prepared dataset of two texts."""
    documents = [Document("train", [train_text]), Document("val", [val_text])]
    write_dataset(documents, tokenizer, folder, name=folder.name, source="tests", separate=False)
    return folder


def printed(capsys: pytest.CaptureFixture) -> str:
    """What was printed since the last call, with its words separated by single spaces."""
    return " ".join(capsys.readouterr().out.split())


class Workshop:
    """A folder for runs and a dataset to train on."""

    def __init__(self, dataset: Path, out_dir: Path):
        self.dataset = dataset
        self.out_dir = out_dir
        self._children = 0

    def argv(self, *arguments: str, run_name: str | None = "run") -> list[str]:
        """Arguments for a tiny run; what `arguments` set replaces the defaults here."""
        defaults = [*TINY, *SHORT, f"--dataset={self.dataset}", f"--out_dir={self.out_dir}"]
        if run_name is not None:
            defaults.append(f"--run_name={run_name}")
        given = {argument.partition("=")[0] for argument in arguments}
        return [*arguments, *(d for d in defaults if d.partition("=")[0] not in given)]

    def train(self, *arguments: str, run_name: str | None = "run") -> Path:
        """Train in this process; the folder of the run."""
        train.main(self.argv(*arguments, run_name=run_name))
        return self.out_dir / (run_name or newest_run(self.out_dir))

    def refused(self, *arguments: str, run_name: str | None = "run") -> str:
        """What a person reads when train.py refuses, which it must, and before any training."""
        with pytest.raises(UserError) as refusal:
            train.main(self.argv(*arguments, run_name=run_name))
        return str(refusal.value)

    def start(
        self, *arguments: str, run_name: str | None = "run", output: Path | None = None
    ) -> Child:
        """train.py in a process of its own; see `Child` for `output`."""
        self._children += 1
        folder = self.out_dir.parent / f"child{self._children}"
        return Child("train.py", self.argv(*arguments, run_name=run_name), folder, output)

    def start_workers(
        self, count: int, *arguments: str, run_name: str | None = "run"
    ) -> list[Child]:
        """train.py in so many processes, which train together as those of torchrun do."""
        return self.start_workers_with(count, self.argv(*arguments, run_name=run_name))

    def start_workers_with(self, count: int, argv: list[str]) -> list[Child]:
        """`start_workers` with these very arguments."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        self._children += 1
        group = self.out_dir.parent / f"workers{self._children}"
        return [
            Child(
                *("train.py", argv, group / str(rank)),
                environment={
                    **address,
                    "WORLD_SIZE": str(count),
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "LOCAL_WORLD_SIZE": str(count),
                },
            )
            for rank in range(count)
        ]


def newest_run(out_dir: Path) -> str:
    return max((path.parent for path in out_dir.glob("*/run.json")), key=os.path.getmtime).name


def log_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of a log without what depends on the speed of the machine."""
    return [{key: record[key] for key in record.keys() - TIMES} for record in records]


def checkpoint_at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def weights_at(run: Path, step: int) -> dict[str, torch.Tensor]:
    return _tensors(checkpoint_at(run, step) / "model.safetensors")


def moments_at(run: Path, step: int) -> dict[str, torch.Tensor]:
    return _tensors(checkpoint_at(run, step) / "optimizer.safetensors")


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(file).items()}  # not the file's own


def assert_equal_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def assert_same_course(one: Path, other: Path, step: int) -> None:
    """That two runs logged the same and have the same state after `step` steps, bit for bit."""
    for kind in ("training_iterations", "eval_steps"):
        assert untimed(log_of(one)[kind]) == untimed(log_of(other)[kind])
    assert untimed(metrics_of(one)) == untimed(metrics_of(other))
    assert_equal_tensors(weights_at(one, step), weights_at(other, step))
    assert_equal_tensors(moments_at(one, step), moments_at(other, step))
