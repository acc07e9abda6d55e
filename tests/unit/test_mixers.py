"""Mixers other than attention: equal to their definition, to published layers, and in decoding."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from components.linear_recurrence import by_chunk, by_token
from components.mixers import MIXERS
from errors import UserError
from model_builder import GPT
from recipe.objectives import make_objective
from tests.tiny import SIZES, context, tiny_config, tokens
from training_config import TrainingConfig

GDN = {"mixer": "gated_deltanet", "linear_n_head": 2, "linear_n_value_head": 4, "linear_chunk": 4}
CONV = {"mixer": "short_conv"}
HYBRID = {
    **GDN,
    "mixer": "gated_deltanet*2+attention",
    "n_layer": 3,
    "position_encoding": "rope",
}
MODELS = {"gated_deltanet": GDN, "short_conv": CONV, "hybrid": HYBRID}


def model_of(**keys) -> GPT:
    """A model in which nothing is zero or one."""
    torch.manual_seed(0)
    model = GPT(tiny_config(**keys)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


Rule = tuple[str, bool]  # the shape of the decay, and whether the delta rule is used
RULES: list[Rule] = [
    ("none", False),
    ("head", False),
    ("row", False),
    ("head", True),
    ("row", True),
]


def rule_inputs(rule: Rule, length: int) -> list[Tensor | None]:
    """Queries, keys of length 1, values, decays, shares, and a state, float64 with gradients.

    Two heads have the same queries and keys.
    """
    decay, delta = rule
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    q, v, beta = random(2, 1, length, 4), random(2, 2, length, 5), random(2, 2, length, 1)
    k = nn.functional.normalize(random(2, 1, length, 4), dim=-1)
    g = -random(2, 2, length, 4 if decay == "row" else 1).square()
    g = torch.zeros_like(g) if decay == "none" else g
    given = [q, k, v, g, beta.sigmoid() if delta else None, random(2, 2, 4, 5)]
    return [None if x is None else x.requires_grad_() for x in given]


def by_definition(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence of the papers, one head, token and number at a time."""
    B, H, T, Dk = *v.shape[:3], q.shape[-1]
    q, k = (x.expand(B, H, T, Dk) for x in (q, k))
    outputs, last = torch.zeros_like(v), torch.zeros_like(state)
    for b, h in itertools.product(range(B), range(H)):
        S = state[b, h]
        for t in range(T):
            S = torch.diag(g[b, h, t].exp().expand(Dk)) @ S
            if beta is None:
                S = S + torch.outer(k[b, h, t], v[b, h, t])
            else:
                erased = torch.eye(Dk, dtype=S.dtype) - beta[b, h, t] * torch.outer(
                    k[b, h, t], k[b, h, t]
                )
                S = erased @ S + beta[b, h, t] * torch.outer(k[b, h, t], v[b, h, t])
            outputs[b, h, t] = S.T @ q[b, h, t]
        last[b, h] = S
    return outputs, last


class TestRecurrence:
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize(("length", "chunk"), [(1, 1), (7, 3), (40, 32)])
    def test_both_ways_are_the_definition(self, rule, length, chunk):
        """In values and in gradients, whatever the length, from any state."""
        given = rule_inputs(rule, length)
        ways = by_definition(*given), by_token(*given), by_chunk(*given, chunk)
        gradients = []
        for outputs in ways:
            weights = [torch.linspace(-1, 1, x.numel()).double().view_as(x) for x in outputs]
            total = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
            learned = [x for x in given if x is not None]
            gradients.append(torch.autograd.grad(total, learned))
        for way in (1, 2):
            assert_close(ways[way], ways[0], rtol=1e-9, atol=1e-10)
            assert_close(gradients[way], gradients[0], rtol=1e-9, atol=1e-10)

    @pytest.mark.parametrize("rule", RULES)
    def test_gradients(self, rule):
        """Of chunks of blocks that are halved."""
        given = [None if x is None else x[:1, :1] for x in rule_inputs(rule, 18)]
        assert gradcheck(lambda *given: by_chunk(*given, 18), given, fast_mode=True)

    @pytest.mark.parametrize("rule", RULES[1:])
    def test_a_strong_decay_leaves_no_nan(self, rule):
        q, k, v, g, beta, state = rule_inputs(rule, 40)
        given = (q, k, v, torch.full_like(g, -500.0).requires_grad_(), beta, state)
        outputs, last = by_chunk(*given, 20)
        gradients = torch.autograd.grad(outputs.sum() + last.sum(), [q, k, v, given[3], state])
        assert all(x.isfinite().all() for x in (outputs, last, *gradients))


def assert_same_layer(
    ours: nn.Module, theirs: nn.Module, x: Tensor, pairs: dict, tolerance: float
) -> None:
    """With the weights of `theirs`, outputs and the gradients of x and of every weight agree.

    `pairs` has, for each weight of ours, theirs and the rows of it in our order.
    """
    assert pairs.keys() == dict(ours.named_parameters()).keys()
    with torch.no_grad():
        for own, (other, pick) in pairs.items():
            ours.get_parameter(own).copy_(pick(other))
    results = []
    for call in (lambda x: ours(x, context(x)), theirs):
        x = x.detach().requires_grad_()
        y = call(x)
        (y * torch.linspace(-1, 1, y.numel()).double().view_as(y)).sum().backward()
        results.append((y, x.grad))
    close = {"rtol": tolerance, "atol": tolerance}
    assert_close(results[0], results[1], **close)
    for own, (other, pick) in pairs.items():
        assert_close(ours.get_parameter(own).grad, pick(other.grad), **close)


def as_it_is(x: Tensor) -> Tensor:
    return x


def test_gated_deltanet_is_the_layer_of_qwen3_next():
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    torch.manual_seed(0)
    theirs = Qwen3NextGatedDeltaNet(
        Qwen3NextConfig(
            hidden_size=32,
            num_hidden_layers=4,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=6,
            linear_conv_kernel_dim=3,
            rms_norm_eps=1e-5,
        ),
        layer_idx=0,
    ).double()
    shape = {"linear_key_dim": 8, "linear_value_dim": 6, "linear_kernel": 3}
    layer = tiny_config(**GDN, **shape, bias=False).layers[0]
    ours = MIXERS["gated_deltanet"](layer).double()
    # Theirs has q, k, v and z of each key head together: of 8, 8, 12 and 12 rows.
    rows = torch.arange(80).view(2, 40).split((8, 8, 12, 12), dim=1)
    order = torch.cat([part.flatten() for part in rows])
    of_heads = torch.arange(8).view(2, 2, 2).transpose(0, 1).flatten()  # b and a of a key head
    pairs = {
        "qkvz.weight": (theirs.in_proj_qkvz.weight, lambda w: w[order]),
        "beta_decay.weight": (theirs.in_proj_ba.weight, lambda w: w[of_heads]),
        "conv.weight": (theirs.conv1d.weight, as_it_is),
        "A_log": (theirs.A_log, as_it_is),
        "dt_bias": (theirs.dt_bias, as_it_is),
        "norm.weight": (theirs.norm.weight, as_it_is),
        "out.weight": (theirs.out_proj.weight, as_it_is),
    }
    nn.init.uniform_(theirs.norm.weight, 0.5, 1.5)
    x = torch.randn(2, 70, 32, dtype=torch.float64)
    assert_same_layer(ours, theirs, x, pairs, tolerance=2e-4)  # theirs computes it in float32


@pytest.mark.parametrize("bias", [False, True])
def test_short_conv_is_the_layer_of_lfm2(bias):
    from transformers import Lfm2Config
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    theirs = Lfm2ShortConv(
        Lfm2Config(hidden_size=32, conv_L_cache=4, conv_bias=bias, num_hidden_layers=2), layer_idx=0
    ).double()
    layer = tiny_config(**CONV, short_conv_kernel=4, bias=bias).layers[0]
    ours = MIXERS["short_conv"](layer).double()
    names = {"gates_in": theirs.in_proj, "conv": theirs.conv, "out": theirs.out_proj}
    kinds = ("weight", "bias") if bias else ("weight",)
    pairs = {f"{n}.{k}": (getattr(m, k), as_it_is) for n, m in names.items() for k in kinds}
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    assert_same_layer(ours, theirs, x, pairs, tolerance=1e-9)


class TestDecoding:
    @pytest.mark.parametrize("name", ["gated_deltanet", "short_conv"])
    @torch.no_grad()
    def test_goes_on_beyond_block_size_in_constant_memory(self, name):
        model = model_of(**MODELS[name])
        idx = tokens(3 * SIZES["block_size"])
        state = model.new_state(2)
        size = state.bytes
        parts = [model(piece, state=state) for piece in idx.split([30, 1, 1, 29, 11], dim=1)]
        assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-3, atol=1e-4)
        assert (state.length, state.bytes) == (72, size)
        text = model.generate(idx[:, :5], 40, temperature=0)
        assert torch.equal(text, model.generate(idx[:, :5], 40, temperature=0, use_cache=False))

    @torch.no_grad()
    def test_a_model_with_attention_is_bounded(self):
        model = model_of(**HYBRID)
        assert not model.unbounded
        with pytest.raises(ValueError, match="30 tokens do not fit block_size=24"):
            model(tokens(30), state=model.new_state(2))

    @pytest.mark.slow
    @pytest.mark.parametrize("name", MODELS)
    def test_compiled_decoding_has_a_graph_for_the_prompt_and_one_for_tokens(self, name):
        torch._dynamo.reset()
        model, prompt = model_of(**MODELS[name]), tokens(6, batch=1)
        text = model.generate(prompt, 12, temperature=0)
        compiler = CompileCounterWithBackend("eager")
        model.compile(backend=compiler, fullgraph=True, dynamic=False)
        assert torch.equal(model.generate(prompt, 12, temperature=0), text)
        assert compiler.frame_count == 2


class TestCost:
    @pytest.mark.parametrize("name", ["gated_deltanet", "short_conv"])
    def test_what_the_counter_sees(self, name):
        """The forward pass, to the digit. A recurrence by token is matmuls only."""
        keys = {"linear_chunk": 1} if name == "gated_deltanet" else {}
        mixer = model_of(**{**MODELS[name], **keys}).blocks[0].mixer
        x = torch.randn(1, 16, 32)
        with FlopCounterMode(display=False) as counter:
            mixer(x, context(x))
        assert mixer.forward_flops(16) == counter.get_total_flops()


@torch.no_grad()
def test_a_state_takes_as_many_tokens_as_it_was_made_for():
    model, idx = model_of(), tokens(6)
    state = model.new_state(2, capacity=5)
    model(idx[:, :5], state=state)
    with pytest.raises(UserError, match="6 tokens do not fit in a decoding state for 5"):
        model(idx[:, 5:], state=state)


def test_a_state_of_another_batch_size_is_refused():
    model = model_of()
    with pytest.raises(UserError, match="batch size 1, but the decoding state has batch size 2"):
        model(tokens(3, batch=1), state=model.new_state(2))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_state_may_be_kept_in_less_precision_than_the_model(name):
    model, idx = model_of(**MODELS[name]).double(), tokens(12)
    state = model.new_state(2, dtype=torch.float32)
    parts = [model(piece, state=state) for piece in idx.split([5, 1, 6], dim=1)]
    assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-4, atol=1e-5)


def test_a_loss_with_the_name_of_a_term_of_the_objective_is_refused(monkeypatch):
    model, idx = model_of(), tokens(6)
    mix = type(model.blocks[0]).mix

    def adding(self, x, context):
        context.add_loss("cross_entropy", x.sum())
        return mix(self, x, context)

    monkeypatch.setattr(type(model.blocks[0]), "mix", adding)
    with pytest.raises(UserError, match="'cross_entropy' has the name of a term"):
        model(idx, idx, objective=make_objective(TrainingConfig()))
