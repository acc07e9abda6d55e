"""FIRE: equal to its formula, in models that read more tokens than they were trained with.

There is no reference implementation that can be imported. The expected biases are computed from
section 3 of the paper in plain Python, pair by pair.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.testing import assert_close

from components.positions import FIRE, POSITIONS
from errors import ConfigError
from model_builder import GPT
from tests.tiny import tiny_config, tiny_layer, tiny_model, tokens

H, W = 4, 5
KEYS = {
    "position_encoding": "fire",
    "fire_width": W,
    "fire_scale": 0.5,
    "fire_threshold": 6.0,
}


def encoding() -> FIRE:
    """In float64, with random parameters."""
    torch.manual_seed(0)
    made = POSITIONS["fire"](tiny_layer(**KEYS)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for parameter in (made.slopes, made.offsets, made.mixing):
            parameter.uniform_(-1, 1)
    return made


def expected(made: FIRE, head: int, i: int, j: int) -> float:
    c, least = abs(made.scale.item()), 6.0 * abs(made.threshold.item())
    relative = math.log(c * (i - j) + 1) / (math.log(c * max(least, i) + 1) + 1e-6)
    return sum(
        made.mixing[head, u].item()
        * max(0.0, made.slopes[u].item() * relative + made.offsets[u].item())
        for u in range(W)
    )


@torch.no_grad()
def test_by_pairs():
    """For queries before and after the threshold."""
    made = encoding()
    bias = made.score_bias(start=3, length=9, keys=14)
    assert bias.shape == (H, 9, 14)
    for h, i in torch.cartesian_prod(torch.arange(H), torch.arange(3, 12)).tolist():
        wanted = torch.tensor([expected(made, h, i, j) for j in range(i + 1)], dtype=bias.dtype)
        assert_close(bias[h, i - 3, : i + 1], wanted, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_start_as_a_tensor():
    made = encoding()
    static = made.score_bias(torch.tensor(3), 2, 14)
    assert torch.equal(static, made.score_bias(3, 2, 14))


def test_gradients():
    made = encoding()
    names, values = zip(*made.named_parameters(), strict=True)

    def bias(*given: torch.Tensor) -> torch.Tensor:
        parameters = dict(zip(names, given, strict=True))
        return functional_call(_Bias(made), {f"encoding.{n}": v for n, v in parameters.items()}, ())

    assert gradcheck(bias, values)


class _Bias(torch.nn.Module):
    def __init__(self, encoding: FIRE):
        super().__init__()
        self.encoding = encoding

    def forward(self) -> torch.Tensor:
        return self.encoding.score_bias(2, 7, 9).tril(2)


@torch.no_grad()
def test_initial_values():
    """c and L as given, and a network as torch's Linear layers."""
    made = GPT(tiny_config(**KEYS, n_layer=1)).positions
    assert (made.scale.item(), made.threshold.item()) == (0.5, 1.0)
    for parameter, most in ((made.slopes, 1), (made.offsets, 1), (made.mixing, W**-0.5)):
        assert 0.4 * most < parameter.abs().max() < most


@torch.no_grad()
def test_distances_stay_in_range_beyond_the_training_length():
    """The farthest key of every query after the threshold has the same bias."""
    made = encoding()
    bias = made.score_bias(0, 1000, 1)[..., 0]
    assert_close(bias[:, 999:], bias[:, 20:21], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_model_decodes_beyond_its_training_length():
    """With the weights of a model for 24 tokens, one for 60 predicts the same for the first 24."""
    model, idx = tiny_model(**KEYS), tokens(60)
    longer = tiny_model(**KEYS, block_size=60)
    longer.load_state_dict(model.state_dict())
    logits = longer(idx)
    assert_close(logits[:, :24], model(idx[:, :24]))
    state = longer.new_state(2)
    parts = [longer(piece, state=state) for piece in idx.split([40, 1, 19], dim=1)]
    assert_close(torch.cat(parts, dim=1), logits, rtol=1e-4, atol=1e-5)


def test_layers_share_an_encoding():
    model = tiny_model(**KEYS, n_layer=3)
    assert isinstance(model.positions, FIRE)
    two = tiny_model(**{**KEYS, "fire_width": "5+7"})
    assert [each.mixing.shape[1] for each in two.position_encodings] == [5, 7]


def test_biases_are_in_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        bias = POSITIONS["fire"](tiny_layer(**KEYS)).score_bias(0, 8, 8)
    assert bias.dtype == torch.float32


def test_flash_is_refused():
    with pytest.raises(ConfigError, match="does not support a bias on the scores"):
        tiny_config(**KEYS, attention_backend="flash")
