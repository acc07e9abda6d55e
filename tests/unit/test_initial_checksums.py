"""Every initial weight of gpt2 and llama at seed 0, bit for bit as it was first recorded.

To record new checksums, which no refactoring may need: python -m tests.unit.test_initial_checksums
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from model_builder import GPT
from model_config import ModelArchitectureConfig

RECORDED = Path(__file__).with_name("initial_checksums.json")
SIZES = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 32, "vocab_size": 257}


def checksums(preset: str, **sizes: int) -> dict[str, str]:
    """SHA-256 of the bytes of every parameter of a new model, by the name when it was recorded."""
    torch.manual_seed(0)
    model = GPT(ModelArchitectureConfig.from_preset(preset, **sizes))
    return {
        name.replace(".mixer", ".attention"): hashlib.sha256(
            parameter.detach().numpy().tobytes()
        ).hexdigest()
        for name, parameter in model.named_parameters()
    }


def combined(digests: dict[str, str]) -> str:
    """One checksum of names and tensors."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_small_model(preset: str) -> None:
    assert checksums(preset, **SIZES) == json.loads(RECORDED.read_text())[preset]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_full_size_model(preset: str) -> None:
    assert combined(checksums(preset)) == json.loads(RECORDED.read_text())[f"{preset}, full size"]


if __name__ == "__main__":
    found: dict[str, object] = {}
    for preset in ("gpt2", "llama"):
        found[preset] = checksums(preset, **SIZES)
        found[f"{preset}, full size"] = combined(checksums(preset))
    RECORDED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
