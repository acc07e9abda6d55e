"""Presets of published architectures: their files have the published sizes, and tiny ones train."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from components.attention import Attention
from configurator import load
from interop.huggingface import family_of
from model_builder import GPT
from model_config import ModelArchitectureConfig
from model_presets import PRESETS
from tests.interop.published import PUBLISHED
from tests.parametrized import one_in
from tests.tiny import ROOT, tiny_file, training_loss

OF_PRESET = {
    "llama3": "LLaMA 3.2 1B",
    "qwen3": "Qwen3 0.6B",
    "gemma3": "Gemma 3 1B",
    "olmo2": "OLMo 2 1B",
    "lfm2": "LFM2 1.2B",
    "mamba2": "Mamba-2 130M",
    "falcon_h1": "Falcon-H1 0.5B",
    "nanochat": "nanochat d32",
    "deepseek_v3": "DeepSeek-V3",
    "gpt_oss": "gpt-oss 20B",
    "qwen3_next": "Qwen3-Next 80B-A3B",
}
"""The published model whose sizes `config/arch_PRESET.py` has."""

WITHOUT_FAMILY = ("modded_nanogpt",)
"""Presets of models that transformers does not have, which are checked against a second derivation
here."""

OF_A_LONGER_CONTEXT = ("block_size", "rope_scaling", "attention_scale")
"""Keys that extending the context changed, left out of a preset that is scaled."""

COUNTED_OTHERWISE = ("qwen3_next", "lfm2", "mamba2", "falcon_h1")
"""Presets with recurrences, which they compute in another order than their cost has it, and with
depthwise convolutions, whose backward pass the counter overcounts."""

WITHOUT_ATTENTION = ("mamba2",)
"""Presets that have no use for the n_head of config/run_laptop.py."""

every_published = pytest.mark.parametrize(("preset", "published"), OF_PRESET.items())
every_tiny = pytest.mark.parametrize("preset", one_in(2, [*OF_PRESET, *WITHOUT_FAMILY]))


def config_of(file: str, vocab_size: int) -> ModelArchitectureConfig:
    return load([str(ROOT / "config" / file)]).model.changed(vocab_size=vocab_size)


def test_every_preset_with_a_tiny_file_is_of_a_published_model():
    of_files = {name for name in PRESETS if tiny_file(name).exists()}
    assert {*OF_PRESET, *WITHOUT_FAMILY} == of_files


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
    # Keys of training, which weight files do not contain.
    left_out |= {"balance_loss_coef", "mtp", "mtp_depth", "mtp_weight"}
    assert {k: v for k, v in ours.items() if k not in left_out} == {
        k: v for k, v in theirs.items() if k not in left_out
    }


@every_tiny
def test_a_tiny_file_composes_with_the_run_for_a_laptop(preset):
    files = (f"arch_{preset}_tiny.py", "run_laptop.py")
    reset = ["--n_head=default"] if preset in WITHOUT_ATTENTION else []
    settings = load([*(str(ROOT / "config" / file) for file in files), *reset])
    assert (settings.arch_preset, settings.training.batch_size) == (preset, 16)


@every_tiny
def test_a_tiny_model_predicts_costs_and_generates(preset):
    config = config_of(f"arch_{preset}_tiny.py", 65)
    torch.manual_seed(0)
    model = GPT(config).train()
    assert model.num_parameters() < 2e6
    idx = torch.randint(65, (2, 65))
    with FlopCounterMode(display=False) as counter:
        training_loss(model, idx[:, :-1], idx[:, 1:]).backward()
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


def test_the_record_of_modded_nanogpt():
    """Its parameters, counted by hand, and its forward pass, written from its description."""
    with torch.device("meta"):
        whole = GPT(config_of("arch_modded_nanogpt.py", 50_304))
    assert whole.num_parameters() == 50_304 * 768 + 12 * 12 * 768**2 == 123_568_128
    config = config_of("arch_modded_nanogpt_tiny.py", 65)
    torch.manual_seed(0)
    model = GPT(config)
    for block in model.blocks:
        assert not block.mixer.out.weight.any()
        assert not block.ffn.down.weight.any()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        idx = torch.randint(65, (2, 20))
        x = model.embedding.weight[idx]
        for block in model.blocks:
            x = x + _attended(block.mixer, _unit(x))
            hidden = (_unit(x) @ block.ffn.up.weight.T).relu().square()
            x = x + hidden @ block.ffn.down.weight.T
        logits = _unit(x) @ model.embedding.weight.T
        error = (model(idx) - logits).abs().max() / logits.abs().max()
    assert error < 1e-5


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


def _attended(mixer: Attention, x: torch.Tensor) -> torch.Tensor:
    """Attention of 4 heads of dimension 32, rotated as complex numbers."""
    q, k, v = (x @ mixer.qkv.weight.T).unflatten(-1, (3, 4, 32)).permute(2, 0, 3, 1, 4)
    angles = torch.outer(torch.arange(x.shape[1]), 1e4 ** -(torch.arange(16) / 16))
    turn = torch.polar(torch.ones_like(angles), angles)

    def turned(part: torch.Tensor) -> torch.Tensor:
        pairs = torch.complex(*(half.contiguous() for half in _unit(part).chunk(2, dim=-1))) * turn
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    scores = turned(q) @ turned(k).mT / 32**0.5
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2) @ mixer.out.weight.T
