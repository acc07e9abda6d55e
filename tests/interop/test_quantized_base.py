"""Adapters of a 4-bit base: equal to PEFT with bitsandbytes, and runs that train them."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import configurator
import sample
from data.tokenizers import ByteTokenizer
from errors import ConfigError
from interop.families import family_of
from interop.huggingface import load, load_weights
from interop.peft_format import save_adapter
from interop.starting_model import new_settings
from model_builder import GPT
from recipe.adapters import adapt
from tests.interop.references import REFERENCES, assert_close, enlarged, from_config, tokens
from tests.interop.test_adapter_runs import Place
from tests.saved_run import overwrite
from training.checkpoint import list_checkpoints
from training.trained_model import Base, load_trained
from training_config import TrainingConfig

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes; see requirements-dev.txt",
)

SCHEMES = ["nf4", "nf4-dq"]

# PEFT


@functools.cache
def their_model():
    """A model of transformers whose rows are whole blocks of 64 values: with AVX-512, bitsandbytes
    0.50 dequantizes other rows incorrectly on the CPU."""
    kind, values = REFERENCES["LLaMA 3"]
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    torch.manual_seed(0)
    return enlarged(from_config(getattr(transformers, kind)(**{**values, **sizes})))


def adapted(**keys) -> tuple[GPT, TrainingConfig]:
    """A quantized model whose adapters do something."""
    usual = {"init_from": "model", "adapter": "lora", "adapter_rank": 3}
    model, training = load(their_model()), TrainingConfig.make(usual, keys)
    adapt(model, training)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model, training


def their_quantized_model(scheme: str):
    """The reference whose Linear layers, except the LM head, bitsandbytes quantizes."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    model = copy.deepcopy(their_model())
    for module in [*model.model.layers.modules()]:
        for name, child in [*module.named_children()]:
            if type(child) is nn.Linear:
                double = scheme == "nf4-dq"
                own = Linear4bit(child.in_features, child.out_features, child.bias is not None)
                weight = child.weight.data
                made = Params4bit(weight, compress_statistics=double, quant_type="nf4", module=own)
                own.weight = made.to("cpu")  # which quantizes it
                setattr(module, name, own)
    model.is_loaded_in_4bit = True
    return model


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_logits_and_gradients_are_those_of_peft(tmp_path, scheme, kind):
    peft = pytest.importorskip("peft", reason="see requirements-dev.txt")
    model, training = adapted(adapter=kind, quantize_base=scheme)
    family = family_of(their_model().config.to_dict())
    save_adapter(model, family, tmp_path / "adapter", training)
    theirs = peft.PeftModel.from_pretrained(
        their_quantized_model(scheme), str(tmp_path / "adapter"), is_trainable=True
    ).train()  # in evaluation, bitsandbytes computes in bfloat16 on some CPUs
    layer = theirs.base_model.model.model.layers[1]
    assert type(layer.mlp.down_proj).__name__ == "Linear4bit"
    idx = tokens(12)
    expected = model(idx)
    assert (expected - load(their_model())(idx)).abs().max() > 1e-2
    assert_close(expected, theirs(idx).logits)
    model(idx[:, :-1], idx[:, 1:])[1].backward()
    theirs(idx, labels=idx).loss.backward()
    qkv = model.blocks[1].mixer.qkv.adapters
    for own, other in (
        (qkv["q"], layer.self_attn.q_proj),
        (qkv["v"], layer.self_attn.v_proj),
        (model.blocks[1].ffn.gate_up.adapters["gate"], layer.mlp.gate_proj),
        (model.blocks[1].ffn.down.adapters["down"], layer.mlp.down_proj),
    ):
        pairs = [(own.a, other.lora_A["default"].weight), (own.b, other.lora_B["default"].weight)]
        if kind == "dora":
            pairs.append((own.m, other.lora_magnitude_vector["default"].weight))
        for mine, their in pairs:
            assert_close(mine.grad.flatten()[None], their.grad.flatten()[None])


# Runs

QLORA = ("--adapter=lora", "--adapter_rank=2", "--quantize_base=nf4-dq", "--adapter_pattern=q,down")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """With a run of four steps."""
    place = Place(tmp_path_factory.mktemp("quantized"))
    place.train("run", f"--init_from={place.model}", *QLORA, "--max_iters=4")
    return place


def newest(place: Place, run: str = "run") -> Path:
    return list_checkpoints(place.out / run / "checkpoints")[-1]


def test_a_checkpoint_has_the_adapters_and_the_digests_of_their_base(place):
    weights = load_file(newest(place) / "model.safetensors")
    assert {name.split(".adapters.")[1] for name in weights} == {"q.a", "q.b", "down.a", "down.b"}
    state = json.loads((newest(place) / "state.json").read_text())
    assert len(state["base_sha256"]) == len(state["quantized_base_sha256"]) == 64
    run = json.loads((place.out / "run" / "run.json").read_text())
    assert run["config"]["quantize_base"] == "nf4-dq"
    assert run["roles"]["quantize_base"] == "recipe"
    cost = run["architecture"]
    assert 0 < cost["base_bytes"] < cost["unquantized_base_bytes"]
    assert cost["parameters"] == load(place.model).num_parameters() + cost["trained_parameters"]


def test_a_resumed_run_ends_as_an_uninterrupted_one(place):
    place.train("halves", f"--init_from={place.model}", *QLORA, "--max_iters=2")
    resumed = place.train("halves", "--resume=halves", "--max_iters=4")
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_file(resumed / file), load_file(newest(place) / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_export_computes_what_was_trained(place):
    """The dequantized weights with the adapters, in float32."""
    trained = load_trained("run", place.out, {}, base=Base(load_weights), merges=False)
    idx = tokens(20)
    assert_close(load(place.export("merged"))(idx), trained.model(idx))


def test_a_sample_is_that_of_the_merged_model(place, capsys):
    flags = ["--run=run", f"--out_dir={place.out}", "--prompt=the", "--max_new_tokens=8"]
    sample.main([*flags, "--device=cpu", "--dtype=float32", "--temperature=0"])
    model = load_trained("run", place.out, {}, base=Base(load_weights)).model
    written = model.generate(torch.tensor([list(b"the")]), 8, temperature=0, vocab_size=257)[
        0
    ].tolist()
    until = written.index(256) if 256 in written else len(written)
    assert capsys.readouterr().out == ByteTokenizer().decode(written[:until]) + "\n"
    assert model.unquantized_bytes is None


def test_weights_that_are_quantized_otherwise_are_refused(place):
    state = json.loads((newest(place) / "state.json").read_text())
    other = place.folder / "out" / "other"
    place.train("other", f"--init_from={place.model}", *QLORA, "--max_iters=1")
    changed = {**json.loads((newest(place, "other") / "state.json").read_text())}
    assert changed["quantized_base_sha256"] == state["quantized_base_sha256"]
    changed["quantized_base_sha256"] = 64 * "0"
    overwrite(newest(place, "other"), "state.json", json.dumps(changed).encode())
    message = "weights whose nf4-dq values have the sha256 000000000000, but here they have"
    with pytest.raises(ValueError, match=message):
        place.train("other", "--resume=other", "--max_iters=2")
    with pytest.raises(ValueError, match=message):
        load_trained(str(other), place.out, {}, base=Base(load_weights))
    del changed["quantized_base_sha256"]
    overwrite(newest(place, "other"), "state.json", json.dumps(changed).encode())
    with pytest.raises(ValueError, match="is damaged: quantized_base_sha256 missing or invalid"):
        load_trained(str(other), place.out, {}, base=Base(load_weights))


def test_a_resume_cannot_change_the_quantization(place):
    with pytest.raises(ConfigError, match="has quantize_base='nf4-dq'"):
        place.train("run", "--resume=run", "--quantize_base=nf4", "--max_iters=6")


def test_the_report_has_the_bytes(place, capsys):
    place.train("report", f"--init_from={place.model}", *QLORA, "--max_iters=1")
    assert "frozen weights in nf4-dq: " in capsys.readouterr().out


def test_the_adapters_alone_are_exported(place):
    alone = place.export("alone", "--peft")
    fields = json.loads((alone / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(place.model)


def test_without_bitsandbytes_a_run_is_refused(place, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs bitsandbytes, which is not installed: pip inst"):
        place.train("none", f"--init_from={place.model}", *QLORA, "--max_iters=1")


def test_the_config_file(place):
    file = Path(__file__).parents[2] / "config" / "finetune_qlora.py"
    settings = new_settings(configurator.read([str(file), f"--init_from={place.model}"]))
    assert (settings.training.adapter, settings.training.quantize_base) == ("lora", "nf4-dq")
