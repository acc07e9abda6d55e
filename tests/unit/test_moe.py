"""The mixture of experts: equal to all experts on all tokens, and to published layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from components.moe import MoE
from components.part import Part
from components.routing import Router
from model_builder import GPT
from tests.mixtures import DEEPSEEK, MOE, hidden, made
from tests.tiny import context, tiny_config, tiny_layer, tokens
from training.memory import expected_memory
from training_config import TrainingConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "mixtral": MOE,
    "biases": {**MOE, "bias": True, "activation": "gelu"},
    "raw softmax": {**MOE, "router_renormalize": False, "n_experts_per_token": 3},
    "top 1": {**MOE, "n_experts_per_token": 1, "router_scale": 0.5},
    "all experts": {**MOE, "n_experts": 3, "n_experts_per_token": 3, "router_score": "sigmoid"},
    "gated shared": {**MOE, "n_shared_experts": 2, "shared_expert_gate": True},
    "deepseek": DEEPSEEK,
    "groups of one": {**DEEPSEEK, "n_expert_groups": 8, "n_groups_per_token": 3},
    "best of groups": {**DEEPSEEK, "expert_group_score": "max"},
    "logit bias": {**MOE, "router_logit_bias": True},
}
every_variant = pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS)


def output_and_gradients(module: Any, parameters: list[Tensor]) -> list[Tensor]:
    """What a map makes of `hidden`, and the gradients of x and of parameters."""
    x = hidden().requires_grad_()
    y = module(x)
    slopes = torch.linspace(-1, 1, y.numel()).view_as(y)
    return [y, *torch.autograd.grad((y * slopes).sum(), [x, *parameters])]


def dense(ffn: MoE, config: Any, x: Tensor) -> Tensor:
    """Every expert on every token, times its weight, which is 0 for those that are not chosen."""
    logits = x @ ffn.router.weight.T
    if config.router_logit_bias:
        logits = logits + ffn.router.bias
    scores = logits.softmax(-1) if config.router_score == "softmax" else 1 / (1 + (-logits).exp())
    chosen = torch.zeros_like(scores)
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(9)):
        chosen[tuple(place)][chosen_experts(scores[tuple(place)], ffn, config)] = 1
    weights = scores * chosen
    if config.router_renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    for expert in range(config.n_experts):
        gate, up = (x @ ffn.experts.gate_up[expert].T).chunk(2, -1)
        if config.bias:
            bias = ffn.experts.gate_up_bias.view(config.n_experts, -1)[expert].chunk(2)
            gate, up = gate + bias[0], up + bias[1]
        out = (getattr(F, config.activation)(gate) * up) @ ffn.experts.down[expert].T
        if config.bias:
            out = out + ffn.experts.down_bias.view(config.n_experts, -1)[expert]
        y = y + config.router_scale * weights[..., expert, None] * out
    if config.n_shared_experts:
        gate, up = F.linear(x, ffn.shared.gate_up.weight).chunk(2, -1)
        shared = F.linear(F.silu(gate) * up, ffn.shared.down.weight)
        y = y + (shared * ffn.shared_gate(x).sigmoid() if config.shared_expert_gate else shared)
    return y


def chosen_experts(scores: Tensor, ffn: MoE, config: Any) -> list[int]:
    """The experts of one token with scores (E,), by sorting lists."""
    biased = (scores + getattr(ffn.router, "expert_bias", 0)).tolist()
    size = config.n_experts // config.n_expert_groups
    groups = [list(range(first, first + size)) for first in range(0, config.n_experts, size)]
    counted = {"top2": 2, "max": 1}[config.expert_group_score]
    groups.sort(key=lambda group: -sum(sorted(biased[e] for e in group)[-counted:]))
    candidates = [e for group in groups[: config.n_groups_per_token] for e in group]
    return sorted(candidates, key=lambda e: -biased[e])[: config.n_experts_per_token]


@every_variant
def test_is_every_expert_on_every_token_times_its_weight(keys):
    """In values, and in the gradients of x and of every parameter."""
    ffn, config = made(**keys), tiny_layer(**keys)
    parameters = list(ffn.parameters())
    sparse = output_and_gradients(lambda x: ffn(x, context(x)), parameters)
    reference = output_and_gradients(lambda x: dense(ffn, config, x), parameters)
    assert_close(sparse, reference, rtol=1e-9, atol=1e-11)
    assert all(gradient.abs().sum() > 0 for gradient in sparse)


class TestPublishedLayers:
    """transformers computes the router in float32 even in a double layer."""

    def compare(self, theirs: nn.Module, shared: nn.Module | None = None, **keys: Any) -> MoE:
        """With random weights of theirs, ours gives the same outputs and gradients."""
        theirs = theirs.double()
        torch.manual_seed(0)
        with torch.no_grad():
            for tensor in (*theirs.parameters(), *theirs.buffers()):
                tensor.copy_(0.3 * torch.randn(tensor.shape))
        ours = MoE(tiny_layer(**{**MOE, **keys})).double()
        router = getattr(theirs, "gate", None) or theirs.router
        pairs = {
            "router.weight": (router.weight,),
            "experts.gate_up": (theirs.experts.gate_up_proj,),
            "experts.down": (theirs.experts.down_proj,),
        }
        if shared is not None:
            pairs["shared.gate_up.weight"] = (shared.gate_proj.weight, shared.up_proj.weight)
            pairs["shared.down.weight"] = (shared.down_proj.weight,)
        if ours.shared_gate is not None:
            pairs["shared_gate.weight"] = (theirs.shared_expert_gate.weight,)
        assert pairs.keys() == dict(ours.named_parameters()).keys()
        assert sum(len(pair) for pair in pairs.values()) == len(list(theirs.parameters()))
        with torch.no_grad():
            for name, weights in pairs.items():
                ours.get_parameter(name).copy_(torch.cat(weights))
            if keys.get("router_bias_rate"):
                ours.router.expert_bias.copy_(theirs.gate.e_score_correction_bias)
        own = [ours.get_parameter(name) for name in pairs]
        found = output_and_gradients(lambda x: ours(x, context(x)), own)
        others = [weight for weights in pairs.values() for weight in weights]
        y, of_x, *rest = output_and_gradients(theirs, others)
        rest = iter(rest)
        expected = [y, of_x, *(torch.cat([next(rest) for _ in pair]) for pair in pairs.values())]
        assert_close(found, expected, rtol=1e-5, atol=1e-5)
        return ours

    def test_mixtral(self):
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        config = MixtralConfig(
            hidden_size=32, intermediate_size=10, num_local_experts=6, num_experts_per_tok=3
        )
        self.compare(MixtralSparseMoeBlock(config), n_experts=6, n_experts_per_token=3)

    @pytest.mark.parametrize("renormalize", [False, True])
    def test_qwen3(self, renormalize):
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

        config = Qwen3MoeConfig(
            hidden_size=32,
            moe_intermediate_size=10,
            num_experts=8,
            num_experts_per_tok=3,
            norm_topk_prob=renormalize,
        )
        theirs = Qwen3MoeSparseMoeBlock(config)
        self.compare(theirs, n_experts_per_token=3, router_renormalize=renormalize)

    def test_qwen2_with_a_gated_shared_expert(self):
        from transformers import Qwen2MoeConfig
        from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

        config = Qwen2MoeConfig(
            hidden_size=32,
            moe_intermediate_size=10,
            shared_expert_intermediate_size=30,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=False,
        )
        theirs = Qwen2MoeSparseMoeBlock(config)
        keys = {"router_renormalize": False, "n_shared_experts": 3, "shared_expert_gate": True}
        self.compare(theirs, theirs.shared_expert, **keys)

    @pytest.mark.parametrize("renormalize", [False, True])
    def test_deepseek_v3(self, renormalize):
        from transformers import DeepseekV3Config
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

        config = DeepseekV3Config(
            hidden_size=32,
            moe_intermediate_size=10,
            n_routed_experts=8,
            n_shared_experts=2,
            num_experts_per_tok=2,
            n_group=4,
            topk_group=2,
            norm_topk_prob=renormalize,
            routed_scaling_factor=2.5,
        )
        theirs = DeepseekV3MoE(config)
        keys = {**DEEPSEEK, "router_renormalize": renormalize}
        ours = self.compare(theirs, theirs.shared_experts, **keys)
        biased = ours.router(hidden().flatten(0, 1)).experts
        ours.router.expert_bias.zero_()
        unbiased = ours.router(hidden().flatten(0, 1)).experts
        assert not torch.equal(biased.sort().values, unbiased.sort().values), "the bias is idle"

    @pytest.mark.parametrize("method", ["greedy", "group_limited_greedy"])
    def test_deepseek_v2(self, method):
        from transformers import DeepseekV2Config
        from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

        config = DeepseekV2Config(
            hidden_size=32,
            moe_intermediate_size=10,
            n_routed_experts=8,
            n_shared_experts=2,
            num_experts_per_tok=3,
            n_group=4,
            topk_group=2,
            topk_method=method,
            routed_scaling_factor=1.5,
        )
        theirs = DeepseekV2Moe(config)
        keys = {
            "n_experts_per_token": 3,
            "n_shared_experts": 2,
            "router_renormalize": False,
            "router_scale": 1.5,
        }
        if method != "greedy":
            keys |= {"n_expert_groups": 4, "n_groups_per_token": 2, "expert_group_score": "max"}
        self.compare(theirs, theirs.shared_experts, **keys)

    def test_the_router_of_gpt_oss(self):
        from transformers import GptOssConfig
        from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

        config = GptOssConfig(hidden_size=32, num_local_experts=8, num_experts_per_tok=3)
        theirs = GptOssTopKRouter(config).double()
        ours = Router(tiny_layer(**MOE, n_experts_per_token=3, router_logit_bias=True)).double()
        torch.manual_seed(0)
        with torch.no_grad():
            for own, other in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
                own.copy_(other.normal_())
        x = hidden().flatten(0, 1)
        found, (_, weights, experts) = ours(x), theirs(x)
        assert_close((found.weights, found.experts), (weights, experts))


class TestCost:
    @every_variant
    def test_what_a_token_uses(self, keys):
        """The router, its experts and the shared ones, in FLOPs and in parameters."""
        ffn, c = made(torch.float32, **keys), tiny_layer(**keys)
        expert = 3 * c.n_embd * c.ffn_hidden
        routed = c.n_embd * c.n_experts + c.n_experts_per_token * expert
        shared = c.n_shared_experts * expert + c.n_embd * c.shared_expert_gate
        assert ffn.forward_flops(7) == 2 * 7 * (routed + shared)
        biases = (2 * c.ffn_hidden + c.n_embd) * c.n_experts_per_token * c.bias
        biases += c.n_experts * c.router_logit_bias
        unused = sum(p.unused_parameters() for p in ffn.modules() if isinstance(p, Part))
        total = sum(p.numel() for p in ffn.parameters())
        assert total - unused == routed + shared + biases
        model = GPT(tiny_config(**keys))
        assert model.active_parameters() == model.num_parameters() - 2 * unused

    def test_the_counter_sees_the_matmuls_of_the_dense_form(self):
        """Of which a token uses n_experts_per_token/n_experts; routing costs nothing more."""
        ffn, c, x = made(**MOE), tiny_layer(**MOE), hidden()
        with FlopCounterMode(display=False) as counter:
            dense(ffn, c, x)
        router = 2 * 18 * 32 * 8
        assert ffn.forward_flops(18) == router + (counter.get_total_flops() - router) * 2 // 8
        with FlopCounterMode(display=False) as counter:
            ffn(x, context(x))
        assert counter.get_total_flops() == ffn.forward_flops(18)

    def test_a_dense_model_uses_all_of_its_parameters(self):
        model = GPT(tiny_config())
        assert model.active_parameters() == model.num_parameters()


class TestInitialNumbers:
    def experts(self, **keys: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = GPT(tiny_config(**{**MOE, "ffn_hidden": 64, "n_layer": 3, **keys}))
        return dict(model.blocks[1].ffn.experts.named_parameters())

    def test_every_expert_is_like_a_linear_layer(self):
        found = self.experts(n_embd=96, init_std=0.05, bias=True)
        for name, std in {"gate_up": 0.05, "down": 0.05 / 6**0.5}.items():
            for matrix in found[name]:
                assert matrix.std().item() == pytest.approx(std, rel=0.05)
                assert abs(matrix.mean().item()) < 0.05 * std
            correlation = torch.corrcoef(found[name].flatten(1))
            assert (correlation - torch.eye(8)).abs().max() < 0.06
        assert not found["gate_up_bias"].any()
        assert not found["down_bias"].any()

    def test_more_experts_leave_the_first_as_they_were(self):
        few, many = self.experts(n_experts=4), self.experts(n_experts=8)
        for name, stack in few.items():
            assert torch.equal(stack, many[name][:4])


class TestRunsEverywhere:
    keys = pytest.mark.parametrize("keys", [VARIANTS["biases"], DEEPSEEK], ids=["biases", "groups"])

    def model_and_loss(self, keys: dict[str, Any]) -> tuple[GPT, Any]:
        """A model, and a function that gives the loss of a step and the gradients."""
        torch.manual_seed(0)
        model = GPT(tiny_config(**keys))
        idx = tokens(16)

        def run(call: Any) -> list[Tensor]:
            loss = call(idx, idx)[1]
            return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

        return model, run

    @pytest.mark.slow
    @keys
    @pytest.mark.parametrize("checkpointed", [False, True])
    def test_compiled_in_one_graph(self, keys, checkpointed):
        torch._dynamo.reset()
        model, run = self.model_and_loss(keys)
        expected = run(model)

        def call(*batch: Tensor) -> Any:
            return checkpoint(model, *batch, use_reentrant=False) if checkpointed else model(*batch)

        assert_close(run(call), expected)
        assert_close(run(torch.compile(call, fullgraph=True, backend="aot_eager")), expected)

    @keys
    def test_autocast(self, keys):
        """The experts compute in bfloat16, the router in float32."""
        ffn, x = made(torch.float32, **keys), hidden(torch.float32)
        expected = ffn(x, context(x))
        with torch.autocast("cpu", torch.bfloat16):
            found = ffn(x, context(x))
            routing = ffn.router(x.flatten(0, 1))
        assert found.dtype == torch.bfloat16
        assert torch.equal(routing.logits, ffn.router(x.flatten(0, 1)).logits)
        assert (found - expected).norm() < 0.01 * expected.norm()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        ffn = made(torch.float32, **DEEPSEEK).to(dtype)
        x = hidden(dtype)
        assert ffn(x, context(x)).dtype == dtype
        assert ffn.router(x.flatten(0, 1)).logits.dtype == torch.float32

    def test_without_data(self):
        with FakeTensorMode():
            ffn, x = MoE(tiny_layer(**DEEPSEEK)), torch.empty(2, 9, 32)
            assert ffn(x, context(x)).shape == (2, 9, 32)

    def test_the_memory_of_a_run_is_estimated(self):
        """More experts are more weights, but no more activations."""
        training = TrainingConfig(batch_size=4, sequence_length=24)
        of = {
            n: expected_memory(tiny_config(**MOE, n_experts=n), training, "cpu", torch.float32)
            for n in (8, 32)
        }
        weights = 16 * 2 * 24 * (3 * 32 * 10 + 32)
        assert of[32].state - of[8].state == weights


def test_dropout():
    """Of what is added to the stream, and only in training."""
    ffn = made(**{**MOE, "n_shared_experts": 1, "dropout": 0.5})
    x = hidden()
    torch.manual_seed(0)
    assert not torch.equal(ffn(x, context(x)), ffn(x, context(x)))
    ffn.eval()
    assert torch.equal(ffn(x, context(x)), ffn(x, context(x)))
