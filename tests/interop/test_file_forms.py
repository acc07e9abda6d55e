"""Files that name or divide weights otherwise than a family's table."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from errors import UserError
from interop.file_forms import Ignored, LaterLayers, QueryGates, Renamed, StackedExperts
from interop.huggingface import load, save
from tests.interop.references import tokens
from tests.tiny import ROPE, tiny_config, tiny_model

CONFIG = tiny_config()
EXPERTS = StackedExperts("mlp.experts.gate_up_proj", ("w1", "w3"))
_MIXTRAL = {
    **ROPE,
    "normalization": "rmsnorm",
    "bias": False,
    "weight_tying": False,
    "ffn_type": "moe",
    "ffn_hidden": 12,
}


def numbered(count: int, rows: int = 3) -> dict[str, torch.Tensor]:
    """The two matrices of some experts of layer 5."""
    return {
        f"model.layers.5.mlp.experts.{expert}.{matrix}.weight": torch.randn(rows, 2)
        for expert in range(count)
        for matrix in ("w1", "w3")
    }


def test_experts_are_stacked_by_number():
    """Expert 10 comes after expert 9, not after expert 1."""
    tensors = numbered(11)
    read = EXPERTS.read(dict(reversed(tensors.items())), CONFIG)
    assert list(read) == ["model.layers.5.mlp.experts.gate_up_proj"]
    stacked = read["model.layers.5.mlp.experts.gate_up_proj"]
    name = "model.layers.5.mlp.experts.10."
    assert torch.equal(stacked[10, :3], tensors[name + "w1.weight"])
    assert torch.equal(stacked[10, 3:], tensors[name + "w3.weight"])
    written = EXPERTS.write(read, CONFIG)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    assert EXPERTS.read(read, CONFIG) == read


def test_a_missing_expert_is_named():
    tensors = numbered(3)
    del tensors["model.layers.5.mlp.experts.1.w3.weight"]
    with pytest.raises(UserError, match=r"layers\.5\.mlp\.experts\.1\.w3\.weight is missing"):
        EXPERTS.read(tensors, CONFIG)


def test_experts_of_different_shapes_are_refused():
    with pytest.raises(UserError, match=r"the experts in model\.layers\.5\.mlp\.experts differ"):
        EXPERTS.read({**numbered(3), **numbered(1, rows=4)}, CONFIG)


def test_other_forms():
    x = torch.randn(2 * 2 * CONFIG.n_head, 3)
    assert list(Renamed("a.", "b.").read({"a.weight": x}, CONFIG)) == ["b.weight"]
    assert list(Renamed("a.", "b.").write({"b.weight": x}, CONFIG)) == ["a.weight"]
    assert not Ignored("mtp.").read({"mtp.norm.weight": x}, CONFIG)
    layers = {f"model.layers.{layer}.norm.weight": x for layer in (1, 2, 12)}
    assert list(LaterLayers().read(layers, CONFIG)) == ["model.layers.1.norm.weight"]
    name = "model.layers.0.self_attn.q_proj"
    read = QueryGates().read({name + ".weight": x}, CONFIG)
    assert torch.equal(read[name + ".weight"][2:4], x[4:6]), "the queries of the second head"
    assert torch.equal(read[name + "_gate.weight"][:2], x[2:4]), "the gates of the first head"
    assert torch.equal(QueryGates().write(read, CONFIG)[name + ".weight"], x)


@torch.no_grad()
def test_a_folder_with_stacked_experts(tmp_path):
    """As newer versions of transformers can write it."""
    model = tiny_model(**_MIXTRAL)
    save(model, tmp_path / "saved", "mixtral")
    file = tmp_path / "saved" / "model.safetensors"
    tensors = load_file(file)
    assert "model.layers.1.block_sparse_moe.experts.7.w2.weight" in tensors
    for matrices, stacked in ((("w1", "w3"), "gate_up_proj"), (("w2",), "down_proj")):
        form = StackedExperts(f"block_sparse_moe.experts.{stacked}", matrices)
        tensors = form.read(tensors, model.config)
    assert len(tensors) < 30
    save_file(tensors, file)
    assert torch.equal(load(tmp_path / "saved")(tokens(20)), model(tokens(20)))


def test_files_that_lack_experts_are_refused(tmp_path):
    save(tiny_model(**_MIXTRAL), tmp_path / "saved", "mixtral")
    file = tmp_path / "saved" / "model.safetensors"
    fewer = {name: x for name, x in load_file(file).items() if ".experts.7." not in name}
    save_file(fewer, file)
    with pytest.raises(UserError, match=r"gate_up_proj has shape \(7, 24, 32\), the arch"):
        load(tmp_path / "saved")
