"""Per-layer embeddings: equal to those of Gemma 4's layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from components.context import TOKEN_EMBEDDING, Context, LayerInputs
from components.per_layer_embedding import PerLayerEmbedding
from components.positions import POSITIONS
from errors import ConfigError
from model_builder import GPT
from recipe.objectives import make_objective
from tests.tiny import tiny_config, tiny_layer, tokens
from training_config import TrainingConfig

C, P, V, T, LAYERS = 32, 6, 61, 9, 3
KEYS = {
    "n_layer": LAYERS,
    "per_layer_embedding": P,
    "normalization": "rmsnorm",
    "norm_position": "sandwich",
    "embedding_scale": C**0.5,
    "position_encoding": "none",
    "bias": False,
}


def made(**keys: Any) -> GPT:
    """A model in float64 with random parameters."""
    torch.manual_seed(0)
    model = GPT(tiny_config(**{**KEYS, **keys})).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def parts_of(model: GPT) -> list[PerLayerEmbedding]:
    return [block.last["per_layer_embedding"] for block in model.blocks]


def context(x: Tensor, embedding: Tensor, idx: Tensor) -> Context:
    positions = POSITIONS["none"](tiny_layer())
    inputs = LayerInputs(idx, positions, None, 0, None, {TOKEN_EMBEDDING: embedding})
    return Context(inputs).of("per_layer_embedding")


def test_layers_are_those_of_gemma_4():
    """A layer of theirs whose other sublayers give 0, in a model that computes its embeddings."""
    from transformers import Gemma4TextConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextModel

    config = Gemma4TextConfig(
        vocab_size=V,
        vocab_size_per_layer_input=V,
        hidden_size=C,
        hidden_size_per_layer_input=P,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=8,
        layer_types=["full_attention"] * LAYERS,
        rms_norm_eps=1e-5,
        pad_token_id=None,
    )
    config._attn_implementation = "eager"
    theirs = Gemma4TextModel(config).double().eval()
    model, idx = made(), tokens(T)
    gain = torch.linspace(0.5, 1.5, P).double()
    parts = parts_of(model)
    with torch.no_grad():
        for layer, part in zip(theirs.layers, parts, strict=True):
            layer.post_attention_layernorm.weight.zero_()
            layer.post_feedforward_layernorm.weight.zero_()
            layer.per_layer_input_gate.weight.copy_(part.gate.weight)
            layer.per_layer_projection.weight.copy_(part.out.weight)
            layer.post_per_layer_input_norm.weight.copy_(part.out_norm.weight)
            part.projection_norm.weight.copy_(gain)  # which all layers share in theirs
        theirs.per_layer_projection_norm.weight.copy_(gain)
        projections = torch.cat([part.projection.weight for part in parts])
        theirs.per_layer_model_projection.weight.copy_(projections)
        tables = torch.cat([part.table.weight for part in parts], dim=1)
        theirs.embed_tokens_per_layer.weight.copy_(tables)
        theirs.embed_tokens.weight.copy_(model.embedding.weight)
    embedding = theirs.embed_tokens(idx)
    their_inputs = theirs.get_per_layer_inputs(idx)
    assert_close(their_inputs[:, :, 1], parts[1].table(idx) * P**0.5)
    their_inputs = theirs.project_per_layer_inputs(embedding, their_inputs)
    ours, expected = [], []
    x = torch.randn(2, T, C).double().requires_grad_()
    angles = (torch.ones(1, T, 8).double(), torch.zeros(1, T, 8).double())
    for index, (layer, part) in enumerate(zip(theirs.layers, parts, strict=True)):
        expected.append(layer(x, their_inputs[:, :, index], {}, angles))
        ours.append(x + part(x, context(x, embedding, idx)))
    assert_close(ours, expected, rtol=1e-5, atol=1e-6)  # their norms are in float32
    weights = torch.linspace(-1, 1, ours[0].numel()).double().view_as(ours[0])
    gradients = [torch.autograd.grad((sum(y) * weights).sum(), x)[0] for y in (ours, expected)]
    assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert model.flops_per_token(T) - made(per_layer_embedding=None).flops_per_token(T) == (
        3 * LAYERS * 6 * C * P
    )


@torch.no_grad()
def test_a_model_adds_them_after_its_sublayers():
    """With the scaled embedding of the token, also where another layer has none."""
    model, idx = made(per_layer_embedding="6+none+6"), tokens(T)
    x = embedding = model.embedding(idx) * C**0.5
    for block in model.blocks:
        about = context(x, embedding, idx)
        x = x + block.mixer_out_norm(block.mixer(block.mixer_norm(x), about))
        x = x + block.ffn_out_norm(block.ffn(block.ffn_norm(x), about))
        for part in block.last.values():
            x = x + part(x, about)
    assert [len(block.last) for block in model.blocks] == [1, 0, 1]
    assert_close(model(idx), model.head(model.final_norm(x)))


@torch.no_grad()
def test_rows_of_tokens_are_those_of_gemma_3n():
    """Tokens beyond its table have the row of token 0."""
    from transformers import Gemma3nTextConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextModel

    config = Gemma3nTextConfig(
        vocab_size=V,
        vocab_size_per_layer_input=40,
        hidden_size=C,
        hidden_size_per_layer_input=P,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0],
        layer_types=["full_attention"],
    )
    theirs = Gemma3nTextModel(config).double()
    part, idx = parts_of(made(n_layer=1, per_layer_vocab_size=40))[0], torch.arange(V)[None]
    theirs.embed_tokens_per_layer.weight.copy_(part.table.weight)
    nothing = torch.zeros(1, V, C).double()
    e = part.embedding(context(nothing, nothing, idx))  # whose projection is 0
    assert_close(e * 2**0.5, theirs.get_per_layer_inputs(idx)[:, :, 0])


@torch.no_grad()
def test_tokens_beyond_the_table_have_the_embedding_of_token_0():
    part = parts_of(made(per_layer_vocab_size=40))[0]
    assert part.table.weight.shape == (40, P)
    idx = torch.tensor([[0, 39, 40, 60]])
    embedding = torch.randn(1, 1, C).double().expand(1, 4, C)
    e = part.embedding(context(embedding, embedding, idx))
    assert torch.equal(e[:, 2], e[:, 0])
    assert torch.equal(e[:, 3], e[:, 0])
    assert not torch.allclose(e[:, 1], e[:, 0])


@pytest.mark.parametrize(("kind", "by"), [("sequential", 1), ("parallel", 0)])
def test_multi_token_prediction_has_those_of_its_own_tokens(kind, by):
    model, idx = made(mtp=kind), tokens(T)
    seen = []
    part = model.mtp[0].block.last["per_layer_embedding"]
    part.register_forward_pre_hook(
        lambda part, args, keywords: seen.append(keywords["context"]), with_kwargs=True
    )
    model(idx, idx, objective=make_objective(TrainingConfig()))
    own = idx[:, by:]
    assert torch.equal(seen[0].tokens[:, : T - by], own)
    assert_close(seen[0].take(TOKEN_EMBEDDING)[:, : T - by], model.embedding(own) * C**0.5)


def test_gradients():
    model = made(n_layer=1, per_layer_vocab_size=40)
    names, parameters = zip(*model.named_parameters(), strict=True)
    idx = tokens(4, batch=1)

    def call(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (idx,))

    assert gradcheck(call, parameters, fast_mode=True)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"per_layer_vocab_size": 20}, "no effect without per_layer_embedding"),
        ({"per_layer_embedding": 4, "per_layer_vocab_size": 62}, "is more than vocab_size=61"),
        ({"per_layer_embedding": 4, "norm_position": "post"}, "norm_position='post' ends a layer"),
        ({"per_layer_embedding": 4, "parametrization": "mup"}, "is not defined for per_layer_emb"),
    ],
)
def test_refusals(keys, problem):
    with pytest.raises(ConfigError, match=problem):
        tiny_config(**keys)
