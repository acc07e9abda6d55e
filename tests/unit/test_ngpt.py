"""nGPT, against a second derivation from the paper; no independent implementation is installed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from components.positions import PositionEncoding
from components.residuals import RESIDUALS
from errors import ConfigError
from model_builder import GPT
from recipe.optimizers import make_optimizer
from tests.measured import assert_close
from tests.tiny import OPTIONS, tiny_config, tiny_layer, tiny_model, tokens
from training.optim import set_learning_rate
from training.parallel import Sharded
from training_config import TrainingConfig

NGPT = OPTIONS["nGPT"]
C, H, G, D = 32, 4, 2, 8


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def attended(weights: dict[str, Tensor], x: Tensor, positions: PositionEncoding) -> Tensor:
    """Attention on x (T, C), one head and query at a time (equations 12 to 16 and 20)."""
    q, k, v = (x @ weights["mixer.qkv.weight"].T).split((H * D, G * D, G * D), dim=-1)
    s = weights["mixer.qk_gain.stored"] * math.sqrt(C)
    outputs = []
    for head in range(H):
        of_keys = slice(D * (head // 2), D * (head // 2 + 1))
        own_q, own_k = q[:, D * head : D * (head + 1)], k[:, of_keys]
        own_q, own_k = (r[0, 0] for r in positions.rotate(own_q[None, None], own_k[None, None], 0))
        own_q, own_k = unit(own_q) * s[of_keys], unit(own_k) * s[of_keys]
        rows = []
        for t in range(len(x)):
            scores = math.sqrt(D) * (own_k[: t + 1] @ own_q[t])
            rows.append(scores.softmax(0) @ v[: t + 1, of_keys])
        outputs.append(torch.stack(rows))
    return torch.cat(outputs, dim=-1) @ weights["mixer.out.weight"].T


def fed(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """SwiGLU on x (T, C) with s_v, then s_u (equations 21 to 23): s_u is scaled by sqrt(C) here,
    which the normalization of the output undoes."""
    gate, up = (x @ weights["ffn.gate_up.weight"].T).chunk(2, dim=-1)
    of_gate, of_up = weights["ffn.gain.stored"].chunk(2)
    gate = gate * of_gate * math.sqrt(C)
    return (up * of_up * gate / (1 + (-gate).exp())) @ weights["ffn.down.weight"].T


@torch.no_grad()
def logits_by_hand(model: GPT, idx: Tensor, step: float) -> Tensor:
    h = model.embedding.weight[idx]
    for block in model.blocks:
        weights = dict(block.named_parameters())
        for site in range(2):
            f = fed(weights, h) if site else attended(weights, h, model.positions)
            rate = (weights[f"residual.rates.{site}.stored"] * step * math.sqrt(C)).abs()
            h = unit(unit(h) + rate * (unit(f) - unit(h)))
    return (h @ model.head.weight.T) * model.head.gain.stored * math.sqrt(C)


@pytest.mark.parametrize("step", [0.05, 0.2])
def test_the_model_is_that_of_the_paper(step):
    model, idx = tiny_model(**NGPT, ngpt_rate=step).double(), tokens(9, batch=1)
    assert model.config.attention_scale == math.sqrt(D)
    assert_close(model(idx)[0], logits_by_hand(model, idx[0], step), 1e-10)


def test_first_values_of_the_learned_vectors():
    model = GPT(tiny_config(**NGPT))
    block = model.blocks[0]
    for gain, initial, stored in (
        (block.residual.rates[0], 0.05, C**-0.5),
        (block.mixer.qk_gain, 1.0, C**-0.5),
        (block.ffn.gain, 1.0, 1.0),
        (model.head.gain, 1.0, C**-0.5),
    ):
        assert gain().mean().item() == pytest.approx(initial)
        assert gain.stored.mean().item() == pytest.approx(stored)


def test_gradients():
    residual = RESIDUALS["ngpt"](tiny_layer(residual="ngpt", normalization="none"), 2).double()
    x = torch.randn(1, 3, C, dtype=torch.float64, requires_grad=True)
    stored = residual.rates[0].stored

    def joined(x: Tensor, stored: Tensor) -> Tensor:
        return residual.join(x, 0, lambda h: torch.sin(3 * h) + 0.5)

    assert gradcheck(joined, (x, stored))


def lengths(model: GPT) -> Tensor:
    """Of all vectors along the residual stream of all matrices."""
    found = []
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            along = 0 if name.endswith(("out.weight", "down.weight")) else 1
            found.append(weight.detach().norm(dim=along))
    return torch.cat(found)


def stepped(model: GPT, good: float) -> None:
    """Train a model for a step."""
    optimizer, idx = make_optimizer(model, TrainingConfig(weight_decay=0.1)), tokens(20)
    set_learning_rate(optimizer, 0.01)
    model(idx, idx.roll(-1, 1))[1].backward()
    optimizer.step()
    model.after_step([{} for _ in model.blocks], torch.tensor(good))


def test_weights_are_on_the_sphere_after_every_step():
    model = GPT(tiny_config(**NGPT))
    assert (lengths(model) - 1).abs().max() < 1e-6
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stepped(model, good=1.0)
    assert (lengths(model) - 1).abs().max() < 1e-6
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_a_skipped_step_leaves_them():
    model = GPT(tiny_config(**NGPT))
    stepped(model, good=0.0)
    assert (lengths(model) - 1).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"bias": True}, ("sphere_weights", "bias")),
        ({"mixer": "mla"}, ("sphere_weights", "mixer")),
        ({"ffn_type": "moe"}, ("sphere_weights", "ffn_type")),
        ({"value_embedding": "mixed"}, ("sphere_weights", "value_embedding")),
        ({"normalization": "rmsnorm"}, ("residual", "normalization")),
        ({"norm_position": "post"}, ("residual", "norm_position")),
        ({"qk_norm": True}, ("qk_sphere", "qk_norm")),
    ],
)
def test_what_the_paper_does_not_define_is_refused(keys: dict[str, Any], named: tuple[str, ...]):
    merged = {**NGPT, **keys}
    dropped = {"mixer": ("n_kv_head", "qk_sphere"), "ffn_type": ("hidden_gain",)}
    for key in dropped.get(next(iter(keys)), ()):
        del merged[key]
    with pytest.raises(ConfigError) as raised:
        tiny_config(**merged)
    assert named in [problem.keys for problem in raised.value.problems]


def test_sharded_parameters_are_refused():
    placement = Sharded.__new__(Sharded)
    placement.parallelism = "fsdp"
    with pytest.raises(ConfigError, match="use parallelism='ddp' or 'zero1'"):
        placement.new_model(tiny_config(**NGPT))
