"""Adapters as PEFT has them: the same logits and gradients on the modules of transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interop.families import family_of
from interop.huggingface import load
from interop.peft_format import load_adapter, save_adapter
from model_builder import GPT
from recipe.adapters import adapt
from tests.interop.references import assert_close, reference, tokens
from training_config import TrainingConfig

peft = pytest.importorskip("peft", reason="see requirements-dev.txt")

KINDS = ["lora", "rslora", "dora"]
FAMILIES = ["LLaMA 3", "GPT-2", "GPT-NeoX", "Phi-3", "GPT-J"]
"""Separate matrices; stacked ones in three layouts; and rows in another order."""


def adapted(name: str, **keys) -> tuple[GPT, TrainingConfig]:
    """A model of a family whose adapters do something."""
    usual = {"init_from": "", "adapter": "lora", "adapter_rank": 3, "adapter_alpha": 6.0}
    model, training = load(reference(name)), TrainingConfig.make(usual, keys)
    adapt(model, training)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model, training


def saved(folder: Path, name: str, **keys) -> tuple[GPT, Path]:
    """The model, and its adapters in a folder."""
    model, training = adapted(name, **keys)
    family = family_of(reference(name).config.to_dict())
    save_adapter(model, family, folder / "adapter", training)
    return model, folder / "adapter"


def their_model(name: str, folder: Path):
    return peft.PeftModel.from_pretrained(
        copy.deepcopy(reference(name)), str(folder), is_trainable=True
    ).eval()


def ours_of(name: str, folder: Path) -> GPT:
    model = load(reference(name))
    load_adapter(model, family_of(reference(name).config.to_dict()), folder)
    return model


def often(kind: str, name: str) -> bool:
    """Whether a pair is tested in every run, not only in the slow ones."""
    return name == "LLaMA 3" or (name, kind) in (("GPT-2", "dora"), ("GPT-J", "lora"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if often(kind, name) else pytest.mark.slow)
        for name in FAMILIES
        for kind in KINDS
    ],
)
def test_logits_both_ways(tmp_path, name, kind):
    model, folder = saved(tmp_path, name, adapter=kind)
    idx = tokens(12)
    theirs = their_model(name, folder)
    expected = model(idx)
    assert (expected - load(reference(name))(idx)).abs().max() > 1e-2
    assert_close(expected, theirs(idx).logits)
    theirs.save_pretrained(str(tmp_path / "again"))
    assert_close(ours_of(name, tmp_path / "again")(idx), expected)


def assert_equal_gradients(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Relative to the largest entry."""
    assert_close(ours.grad.flatten()[None], theirs.grad.flatten()[None])


@pytest.mark.parametrize(
    "kind", [*(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[:2]), "dora"]
)
def test_gradients(tmp_path, kind):
    model, folder = saved(tmp_path, "LLaMA 3", adapter=kind)
    theirs, idx = their_model("LLaMA 3", folder), tokens(12)
    model(idx[:, :-1], idx[:, 1:])[1].backward()
    theirs(idx, labels=idx).loss.backward()
    layer = theirs.base_model.model.model.layers[1]
    qkv = model.blocks[1].mixer.qkv.adapters
    for own, other in (
        (qkv["q"], layer.self_attn.q_proj),
        (qkv["v"], layer.self_attn.v_proj),
        (model.blocks[1].ffn.gate_up.adapters["gate"], layer.mlp.gate_proj),
        (model.blocks[1].ffn.down.adapters["down"], layer.mlp.down_proj),
    ):
        assert_equal_gradients(own.a, other.lora_A["default"].weight)
        assert_equal_gradients(own.b, other.lora_B["default"].weight)
        if kind == "dora":
            assert_equal_gradients(own.m, other.lora_magnitude_vector["default"].weight)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_some_sections_of_a_stacked_matrix(tmp_path, kind):
    """One module of GPT-2 has the adapters of q and v, whose rows of k stay as they are."""
    model, folder = saved(tmp_path, "GPT-2", adapter=kind, adapter_pattern="q,v")
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert set(fields["rank_pattern"].values()) == {6}
    assert_close(model(tokens(12)), their_model("GPT-2", folder)(tokens(12)).logits)
    assert_close(ours_of("GPT-2", folder)(tokens(12)), model(tokens(12)))


def test_an_adapter_that_peft_made(tmp_path):
    """With a rank and an alpha of its own for one kind of module."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 2},
        alpha_pattern={"down_proj": 5},
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(copy.deepcopy(reference("LLaMA 3")), config).eval()
    theirs.save_pretrained(str(tmp_path))
    model = ours_of("LLaMA 3", tmp_path)
    assert_close(model(tokens(12)), theirs(tokens(12)).logits)
    names = {
        name.split(".adapters.")[-1] for name, p in model.named_parameters() if p.requires_grad
    }
    assert names == {"q.a", "q.b", "down.a", "down.b"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported; only 'LORA' is"),
        ({"bias": "all"}, "bias='all' is not supported; only 'none' or None is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"use_rslora": True, "use_dora": True}, "use_rslora together with use_dora is not"),
        ({"use_dora": True}, r"has no .*lora_magnitude_vector"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens=\[1\] is not supported"),
        ({"lora_alpha": None}, "lora_alpha has None, which is not a number"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern has 'x', which is not a number"),
        ({"alpha_pattern": {"(": 2}}, "is not a map of regular expressions to numbers"),
        ({"alpha_pattern": [2]}, "is not a map of regular expressions to numbers"),
    ],
)
def test_fields_that_are_refused(tmp_path, fields, message):
    _, folder = saved(tmp_path, "LLaMA 3", adapter_pattern="q")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    with pytest.raises(ValueError, match=message):
        ours_of("LLaMA 3", folder)


@pytest.mark.parametrize("damaged", ["fewer ranks", "no rank", "one dimension", "integers"])
def test_tensors_that_are_no_adapter_are_refused(tmp_path, damaged):
    _, folder = saved(tmp_path, "LLaMA 3", adapter_pattern="q")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    a = min(tensors)
    b = a.replace("lora_A", "lora_B")
    tensors |= {
        "fewer ranks": {b: tensors[b][:, :2]},
        "no rank": {a: tensors[a][:0], b: tensors[b][:, :0]},
        "one dimension": {a: tensors[a][0]},
        "integers": {a: tensors[a].to(torch.int8)},
    }[damaged]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    with pytest.raises(ValueError, match=r"of model\.layers\.0\.self_attn\.q_proj are no adapter;"):
        ours_of("LLaMA 3", folder)


def test_modules_that_are_refused(tmp_path):
    """An adapter of the LM head; and a layer here that no module of the family is."""
    config = peft.LoraConfig(r=2, target_modules=["lm_head"])
    theirs = peft.get_peft_model(copy.deepcopy(reference("LLaMA 3")), config)
    theirs.save_pretrained(str(tmp_path), save_embedding_layers=False)
    with pytest.raises(ValueError, match=r"adapts lm_head, which cannot be adapted\."):
        ours_of("LLaMA 3", tmp_path)
    _, folder = saved(tmp_path, "GPT-2", adapter_pattern="qkv")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    fewer = {n: t[:, :2].contiguous() for n, t in tensors.items() if "lora_A" in n}
    save_file(tensors | fewer, file)
    with pytest.raises(ValueError, match=r"the adapter of .* maps 2 inputs to 96 outputs, but"):
        ours_of("GPT-2", folder)
    model, training = adapted("LLaMA 3")
    with pytest.raises(ValueError, match=r"ffn\.gate_up has no equivalent in gpt2 that PEFT can"):
        save_adapter(
            model, family_of(reference("GPT-2").config.to_dict()), tmp_path / "no", training
        )
    assert not (tmp_path / "no").exists()
