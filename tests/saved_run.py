"""A checkpoint as train.py saves it, made in no time, and ways to alter it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import configurator
from data.tokenizers import ByteTokenizer
from model_builder import GPT
from recipe.optimizers import make_optimizer
from training.checkpoint import save_checkpoint
from training.sharded_tensors import gathered_weights
from training.step_guard import StepGuard
from training.updates import Updates

SIZES = ("--n_layer=1", "--n_head=2", "--n_embd=8", "--block_size=16", "--vocab_size=257")


def save_run(
    run: Path, step: int = 1, *, keep: int = 3, flags: Sequence[str] = (), **state: Any
) -> Path:
    """Save a checkpoint of a tiny model in a run's folder.

    Args:
        run: The folder.
        step: The steps that are done.
        keep: The newest checkpoints that are kept.
        flags: Arguments of the run, in place of the tiny sizes where these are among them.
        state: Replaces what train.py saves.
    """
    settings = configurator.load([*flags, *sizes_beside(flags), "--device=cpu"])
    network = GPT(settings.model)
    optimizer = make_optimizer(network, settings.training)
    guard = StepGuard(optimizer, settings.training.max_bad_steps)
    loss = network(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))[1]
    loss.backward()
    guard.check(loss)
    optimizer.step()
    usual = {
        "run_id": "f" * 32,
        "log_records": 1,
        "config": settings.to_dict(),
        "derived": settings.derived,
        "data_fingerprint": "0" * 64,
        "tokenizer": ByteTokenizer().to_meta(),
        "evaluated_at": None,
        "seconds": 0.5,
        "stepper": {**guard.state_dict(), "scaler": {}},
    }
    run.mkdir(parents=True, exist_ok=True)
    return save_checkpoint(
        run / "checkpoints",
        step=step,
        weights=gathered_weights(network),
        kept=Updates(network, optimizer).gathered(),
        state=usual | state,
        val_loss=None,
        plugins={Path(path).name: text for path, text in settings.plugins.items()},
        keep=keep,
    )


def sizes_beside(flags: Sequence[str]) -> list[str]:
    """The tiny sizes that flags leave open."""
    given = {flag.partition("=")[0] for flag in flags}
    return [size for size in SIZES if size.partition("=")[0] not in given]


def overwrite(checkpoint: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, and what the manifest says of it."""
    (checkpoint / name).write_bytes(content)
    manifest = checkpoint / "manifest.json"
    if name != manifest.name:
        listed = json.loads(manifest.read_text())
        digest = hashlib.sha256(content).hexdigest()
        listed["files"][name] = {"size": len(content), "sha256": digest}
        manifest.write_text(json.dumps(listed))


def change_config(checkpoint: Path, **keys: Any) -> None:
    """Change keys of the config in a checkpoint's state."""
    state = json.loads((checkpoint / "state.json").read_text())
    state["config"] |= keys
    overwrite(checkpoint, "state.json", json.dumps(state).encode())
