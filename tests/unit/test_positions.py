"""Position encodings against what their papers say of them."""

from __future__ import annotations

import math

import pytest
import torch

from components.positions import POSITIONS, alibi_slopes
from components.rope_scalings import rotated_dimensions
from model_builder import GPT
from tests.measured import assert_close
from tests.tiny import ROPE, tiny_config, tiny_layer, tiny_model, tokens


def rope(**keys):
    return POSITIONS["rope"](tiny_layer(**ROPE, block_size=64, **keys))


def frequencies(encoding) -> torch.Tensor:
    """The angle of each pair at position 1, unwrapped by being below pi."""
    return torch.atan2(encoding.sin[1].double(), encoding.cos[1].double())


def test_rope_turns_pairs_by_position_times_frequency():
    encoding = rope(head_dim=8)
    assert torch.allclose(
        frequencies(encoding), 10000.0 ** -(torch.arange(4, dtype=torch.float64) / 4), atol=1e-6
    )
    x = torch.randn(1, 1, 5, 8)
    turned, _ = encoding.rotate(x, x, start=7)
    for t in range(5):
        for i in range(4):
            angle = (7 + t) * 10000 ** (-i / 4)
            a, b = x[0, 0, t, i].item(), x[0, 0, t, i + 4].item()
            assert turned[0, 0, t, i].item() == pytest.approx(
                a * math.cos(angle) - b * math.sin(angle), abs=1e-5
            )
            assert turned[0, 0, t, i + 4].item() == pytest.approx(
                b * math.cos(angle) + a * math.sin(angle), abs=1e-5
            )


def test_rope_scores_depend_on_the_distance_alone():
    encoding = rope(head_dim=8)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(i: int, j: int) -> float:
        turned_q, _ = encoding.rotate(q, q, start=i)
        _, turned_k = encoding.rotate(k, k, start=j)
        return (turned_q * turned_k).sum().item()

    assert score(9, 4) == pytest.approx(score(40, 35), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


def test_partial_rope_leaves_the_rest_of_the_head():
    encoding = rope(head_dim=16, rope_fraction=0.25)
    x = torch.randn(1, 2, 6, 16)
    turned, _ = encoding.rotate(x, x, start=3)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert not torch.allclose(turned[..., :4], x[..., :4], atol=1e-3)


def test_linear_scaling_divides_positions():
    plain, scaled = rope(), rope(rope_scaling="linear", rope_scaling_factor=4.0)
    x = torch.randn(1, 1, 1, 8)
    assert torch.allclose(plain.rotate(x, x, 5)[0], scaled.rotate(x, x, 20)[0], atol=1e-5)


def test_ntk_stretches_the_lowest_frequency_by_the_factor_and_keeps_the_highest():
    plain = frequencies(rope(head_dim=16))
    scaled = frequencies(rope(head_dim=16, rope_scaling="ntk", rope_scaling_factor=8.0))
    assert scaled[0].item() == pytest.approx(plain[0].item(), rel=1e-6)
    assert scaled[-1].item() == pytest.approx(plain[-1].item() / 8, rel=1e-3)


def test_ntk_is_rope_with_a_larger_theta():
    """theta times the factor to the power of d / (d - 2)."""
    scaled = rope(head_dim=16, rope_scaling="ntk", rope_scaling_factor=8.0)
    larger = rope(head_dim=16, rope_theta=10_000.0 * 8 ** (16 / 14))
    assert_close(frequencies(scaled), frequencies(larger), 1e-6)


def test_yarn_interpolates_what_turns_rarely_and_scales_the_rotation():
    keys = {"head_dim": 64, "rope_original_block_size": 4096, "rope_scaling_factor": 4.0}
    plain, scaled = rope(head_dim=64), rope(rope_scaling="yarn", **keys)
    magnitude = torch.hypot(scaled.cos, scaled.sin)
    assert torch.allclose(magnitude, torch.full_like(magnitude, 0.1 * math.log(4) + 1), atol=1e-5)
    ratio = frequencies(scaled) / frequencies(plain)
    turns = 4096 * frequencies(plain) / (2 * math.pi)
    # One pair of slack on either side: the paper rounds the ends of the ramp outwards.
    assert torch.allclose(ratio[turns > 64], torch.ones(()).double(), atol=1e-5)
    assert torch.allclose(ratio[turns < 0.5], torch.full((), 0.25).double(), atol=1e-3)
    assert (ratio.diff() <= 1e-6).all()


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_is_that_of_transformers(truncate):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = {"factor": 4.0, "beta_fast": 20.0, "beta_slow": 2.0, "attention_factor": 0.7}
    own = {
        "rope_original_block_size": 100,
        "rope_scaling_factor": 4.0,
        "rope_beta_fast": 20.0,
        "rope_beta_slow": 2.0,
        "rope_attention_factor": 0.7,
        "rope_truncate": truncate,
    }
    original = {"rope_theta": 10_000.0, "original_max_position_embeddings": 100}
    parameters = {"rope_type": "yarn", "truncate": truncate, **given, **original}
    config = LlamaConfig(head_dim=64, rope_parameters=parameters)
    theirs, magnitude = ROPE_INIT_FUNCTIONS["yarn"](config, None)
    ours = rope(rope_scaling="yarn", head_dim=64, **own)
    assert torch.allclose(frequencies(ours), theirs.double(), rtol=1e-4)
    assert torch.hypot(ours.cos, ours.sin).mean().item() == pytest.approx(magnitude)


def test_llama3_scaling_in_its_three_ranges():
    keys = {"head_dim": 64, "rope_original_block_size": 1024, "rope_scaling_factor": 8.0}
    plain, scaled = rope(head_dim=64), rope(rope_scaling="llama3", **keys)
    ratio = frequencies(scaled) / frequencies(plain)
    turns = 1024 * frequencies(plain) / (2 * math.pi)
    for pair in range(32):
        wanted = ((turns[pair] - 1) / 3).clamp(0, 1).item()
        blended = wanted + (1 - wanted) / 8
        assert ratio[pair].item() == pytest.approx(blended, rel=2e-3)
    assert (turns > 4).any()
    assert (turns < 1).any()
    assert ((turns > 1) & (turns < 4)).any()


def test_llama3_scaling_is_that_of_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = {"factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 6.0}
    own = {f"rope_{name}": value for name, value in given.items() if name != "factor"}
    own |= {"rope_scaling_factor": 8.0, "rope_original_block_size": 1024}
    original = {"rope_theta": 10_000.0, "original_max_position_embeddings": 1024}
    parameters = {"rope_type": "llama3", **given, **original}
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](
        LlamaConfig(head_dim=64, rope_parameters=parameters), None
    )
    ours = rope(rope_scaling="llama3", head_dim=64, **own)
    assert torch.allclose(frequencies(ours), theirs.double(), rtol=1e-4)


def test_sinusoidal_table():
    encoding = POSITIONS["sinusoidal"](tiny_layer(position_encoding="sinusoidal"))
    added = encoding.embed(torch.zeros(1, 4, 32), start=2)[0]
    angles = [[(2 + t) / 10000 ** (2 * i / 32) for i in range(16)] for t in range(4)]
    for turn, columns in ((math.sin, added[:, ::2]), (math.cos, added[:, 1::2])):
        wanted = torch.tensor([[turn(angle) for angle in row] for row in angles])
        assert_close(columns, wanted, 1e-6)


def test_alibi_slopes():
    """As in the paper for 8 heads, and as in its code for 12."""
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(12) == [2.0**-i for i in range(1, 9)] + [
        2.0**-0.5,
        2.0**-1.5,
        2.0**-2.5,
        2.0**-3.5,
    ]
    assert alibi_slopes(1) == [2.0**-8]


def test_alibi_bias_is_slope_times_distance():
    encoding = POSITIONS["alibi"](tiny_layer(position_encoding="alibi"))
    bias = encoding.score_bias(start=3, length=2, keys=5)
    assert bias.shape == (4, 2, 5)
    assert bias[1, 0].tolist() == [-(2.0**-4) * d for d in (3, 2, 1, 0, 0)]
    assert bias[0, 1].tolist() == [-(2.0**-2) * d for d in (4, 3, 2, 1, 0)]


@pytest.mark.parametrize("scheme", ["learned", "sinusoidal", "rope", "alibi"])
def test_order_matters_with_an_encoding(scheme):
    """The last token's logits change when two earlier tokens are swapped."""
    model = tiny_model(position_encoding=scheme, n_layer=1)
    idx = tokens(8, batch=1)
    swapped = idx.clone()
    swapped[0, [1, 5]] = idx[0, [5, 1]]
    assert not torch.allclose(model(idx)[0, -1], model(swapped)[0, -1], atol=1e-4)


def test_order_is_lost_without_one():
    model = tiny_model(position_encoding="none", n_layer=1)
    idx = tokens(8, batch=1)
    swapped = idx.clone()
    swapped[0, [1, 5]] = idx[0, [5, 1]]
    assert torch.allclose(model(idx)[0, -1], model(swapped)[0, -1], atol=1e-5)


def encoding_of_each_layer(**keys):
    model = GPT(tiny_config(block_size=64, **keys))
    return [model.position_encodings[which] for which in model._position_of_layer]


def test_layers_without_rotation():
    encodings = encoding_of_each_layer(n_layer=4, position_encoding="rope*2+none")
    x = torch.randn(1, 1, 5, 8)
    turned = [not torch.equal(encoding.rotate(x, x, 1)[0], x) for encoding in encodings]
    assert turned == [True, True, False, True]


def test_windowed_layers_with_wavelengths_of_their_own():
    """Those of an unscaled RoPE with that base; only other layers are scaled."""
    stretched = {"rope_scaling": "linear", "rope_scaling_factor": 4.0}
    encodings = encoding_of_each_layer(
        **ROPE,
        sliding_window="5+none",
        rope_theta="100+1e6",
        rope_scaling="none+linear",
        rope_scaling_factor=4.0,
    )
    x = torch.randn(1, 1, 5, 8)
    alone = (rope(rope_theta=100.0), rope(**stretched, rope_theta=1e6))
    for encoding, expected in zip(encodings, alone, strict=True):
        assert torch.equal(encoding.rotate(x, x, 3)[0], expected.rotate(x, x, 3)[0])


def test_layers_that_agree_share_an_encoding():
    """Its tables have the length of the longest sequence and exist once for all layers."""
    model = GPT(tiny_config(**ROPE, n_layer=6, rope_theta="50*2+1e4", sliding_window="5+none"))
    assert len(model.position_encodings) == 2
    assert model._position_of_layer == [0, 0, 1, 0, 0, 1]


def test_a_share_that_floating_point_falls_short_of():
    """44 x (30/44) is slightly below 30 in floating point."""
    config = tiny_layer(position_encoding="rope", head_dim=44, rope_fraction=30 / 44)
    assert rotated_dimensions(config) == 30
