"""Presets of published architectures: their files have the published sizes, and tiny ones train."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from configurator import load
from interop.huggingface import family_of
from model_builder import GPT
from model_config import ModelArchitectureConfig
from model_presets import PRESETS
from tests.interop.published import PUBLISHED
from tests.tiny import ROOT, tiny_file

OF_PRESET = {
    "llama3": "LLaMA 3.2 1B",
    "qwen3": "Qwen3 0.6B",
    "gemma3": "Gemma 3 1B",
    "olmo2": "OLMo 2 1B",
    "lfm2": "LFM2 1.2B",
    "nanochat": "nanochat d32",
    "deepseek_v3": "DeepSeek-V3",
    "gpt_oss": "gpt-oss 20B",
    "qwen3_next": "Qwen3-Next 80B-A3B",
}
"""The published model whose sizes `config/arch_PRESET.py` has."""

OF_A_LONGER_CONTEXT = ("block_size", "rope_scaling", "attention_scale")
"""Keys that extending the context changed, left out of a preset that is scaled."""

COUNTED_OTHERWISE = ("qwen3_next", "lfm2")
"""Presets with recurrences, which they compute in another order than their cost has it, and with
depthwise convolutions, whose backward pass the counter overcounts."""

every_published = pytest.mark.parametrize(("preset", "published"), OF_PRESET.items())
every_tiny = pytest.mark.parametrize("preset", OF_PRESET)


def config_of(file: str, vocab_size: int) -> ModelArchitectureConfig:
    return load([str(ROOT / "config" / file)]).model.changed(vocab_size=vocab_size)


def test_every_preset_with_a_tiny_file_is_of_a_published_model():
    assert set(OF_PRESET) == {name for name in PRESETS if tiny_file(name).exists()}


@every_published
def test_a_file_has_the_architecture_that_was_published(preset, published):
    parameters, fields = PUBLISHED[published]
    theirs = ModelArchitectureConfig.from_dict(family_of(fields).read(fields))
    ours = config_of(f"arch_{preset}.py", theirs.vocab_size)
    with torch.device("meta"):
        assert GPT(ours).num_parameters() == parameters
    ours, theirs = ours.to_dict(), theirs.to_dict()
    left_out = set(OF_A_LONGER_CONTEXT) if theirs.get("rope_scaling", "none") != "none" else set()
    left_out |= {key for key in theirs if key.startswith("rope_") and key not in ours}
    left_out |= {"balance_loss_coef"}  # of the training, which the files of weights do not say
    assert {k: v for k, v in ours.items() if k not in left_out} == {
        k: v for k, v in theirs.items() if k not in left_out
    }


@every_tiny
def test_a_tiny_file_composes_with_the_run_for_a_laptop(preset):
    files = (f"arch_{preset}_tiny.py", "run_laptop.py")
    settings = load([str(ROOT / "config" / file) for file in files])
    assert (settings.arch_preset, settings.training.batch_size) == (preset, 16)


@every_tiny
def test_a_tiny_model_predicts_costs_and_generates(preset):
    config = config_of(f"arch_{preset}_tiny.py", 65)
    torch.manual_seed(0)
    model = GPT(config).train()
    assert model.num_parameters() < 2e6
    idx = torch.randint(65, (2, 65))
    with FlopCounterMode(display=False) as counter:
        model(idx[:, :-1], idx[:, 1:])[1].backward()
    full = GPT(config.adapted(sliding_window=None))  # the counter ignores windows
    if preset not in COUNTED_OTHERWISE:
        assert counter.get_total_flops() == full.flops_per_token(64) * 128
    model.eval()
    with torch.no_grad():
        generated = model.generate(idx[:, :5], 4, temperature=0)
        again = idx[:, :5]
        for _ in range(4):
            again = torch.cat([again, model(again)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, again)
