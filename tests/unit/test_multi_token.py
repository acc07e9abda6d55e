"""Multi-token prediction: the losses of the papers, written out here, which affect only training.

No implementation in transformers trains these modules (it drops the weights of DeepSeek-V3's), so
the reference is a second derivation from the papers (section 2.2 of arXiv 2412.19437, section 2 of
arXiv 2404.19737): a loop over the modules on sequences that get shorter, which uses only matrix
products, sums and elementwise functions.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils.flop_counter import FlopCounterMode

from configurator import load, multi_token_problems
from errors import ConfigError, UserError
from model_builder import GPT, TrainingOutput
from recipe.objectives import make_objective, validation_loss
from recipe.parameters import hidden_matrices
from tests.measured import assert_close
from tests.tiny import ROOT, tiny_config, tiny_model, tokens, training_loss
from training_config import TrainingConfig

T, C, H, EPS = 9, 32, 4, 1e-5
PLAIN = {
    "position_encoding": "none",
    "normalization": "rmsnorm",
    "activation": "relu",
    "bias": False,
    "weight_tying": False,
}


KINDS = ("sequential", "parallel")
every_kind = pytest.mark.parametrize("kind", KINDS)


def mtp(depth: int = 2, kind: str = "sequential", **keys: Any) -> dict[str, Any]:
    return {"mtp": kind, "mtp_depth": depth, **keys}


def trained(model: GPT, idx: Tensor, targets: Tensor) -> TrainingOutput:
    return model(idx, targets, objective=make_objective(TrainingConfig()))


# The second derivation


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * norm.weight


def attended(x: Tensor, layer: nn.Module) -> Tensor:
    """Causal attention without positions, one head at a time."""
    length, heads = x.shape[1], []
    later_keys = torch.ones(length, length, dtype=torch.bool).triu(1)
    q, k, v = ((x @ w.T).chunk(H, -1) for w in layer.qkv.weight.chunk(3))
    for one, other, value in zip(q, k, v, strict=True):
        scores = one @ other.transpose(1, 2) / (C // H) ** 0.5
        heads.append(scores.masked_fill(later_keys, -torch.inf).softmax(-1) @ value)
    return torch.cat(heads, -1) @ layer.out.weight.T


def transformed(x: Tensor, block: nn.Module) -> Tensor:
    x = x + attended(normed(x, block.mixer_norm), block.mixer)
    hidden = (normed(x, block.ffn_norm) @ block.ffn.up.weight.T).relu()
    return x + hidden @ block.ffn.down.weight.T


def mean_negative_log_p(h: Tensor, head: nn.Module, wanted: Tensor) -> Tensor:
    logits = h @ head.weight.T
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    return -torch.stack([row[t] for row, t in zip(log_p[0], wanted[0], strict=True)]).mean()


def losses_of_the_papers(model: GPT, t: Tensor) -> list[Tensor]:
    """The cross-entropy of the main model and of each module for one text t, (1, T + 1)."""
    embedded, length = model.embedding.weight[t], t.shape[1] - 1
    z = embedded[:, :length]
    for block in model.blocks[:-1]:
        z = transformed(z, block)
    h = normed(transformed(z, model.blocks[-1]), model.final_norm)
    losses = [mean_negative_log_p(h, model.head, t[:, 1:])]
    if model.config.mtp == "parallel":
        for k, module in enumerate(model.mtp, start=1):
            h = normed(transformed(z[:, : length - k], module.block), module.norm)
            losses.append(mean_negative_log_p(h, model.head, t[:, k + 1 :]))
        return losses
    for k, module in enumerate(model.mtp, start=1):
        previous = h[:, : length - k]  # positions whose token t_{i+k+1} is in the text
        of_token = embedded[:, k:length]
        both = [normed(previous, module.hidden_norm), normed(of_token, module.embedding_norm)]
        h = transformed(torch.cat(both, -1) @ module.projection.weight.T, module.block)
        h = normed(h, module.norm)
        losses.append(mean_negative_log_p(h, model.head, t[:, k + 1 :]))
    return losses


@every_kind
@pytest.mark.parametrize("depth", [1, 3])
def test_losses_and_gradients_are_those_of_the_papers(depth, kind):
    model = tiny_model(**mtp(depth, kind, mtp_weight=0.7), **PLAIN).double()
    text = tokens(T + 1, batch=1)
    main, *further = losses_of_the_papers(model, text)
    expected = main + 0.7 / depth * sum(further)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    output = trained(model, text[:, :-1], text[:, 1:])
    found = torch.autograd.grad(output.loss, list(model.parameters()))
    assert_close(output.loss, expected, 1e-12)
    assert_close(output.terms["cross_entropy"], main, 1e-12)
    assert_close(output.terms["mtp_loss"], expected - main, 1e-12)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, 1e-10)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("sequential", "mtp.0.projection.weight"),
        ("sequential", "mtp.1.block.mixer.qkv.weight"),
        ("parallel", "mtp.1.block.mixer.qkv.weight"),
    ],
)
def test_gradients(kind, name):
    model = tiny_model(**mtp(2, kind), **PLAIN).double()
    idx, weight = tokens(5), model.get_parameter(name)

    def loss(value: Tensor) -> Tensor:
        swapped = {name: value}
        objective = make_objective(TrainingConfig())
        return torch.func.functional_call(
            model, swapped, (idx, idx.roll(-1, 1)), {"objective": objective}
        ).loss

    gradcheck(loss, (weight.detach().requires_grad_(),), fast_mode=True)


# Targets


@every_kind
def test_the_mean_is_over_the_positions_with_a_target(kind):
    """A target that is ignored is ignored by every module; the others do not change."""
    model = tiny_model(**mtp(1, kind), **PLAIN).double()
    text = tokens(T + 1, batch=1)
    idx, targets = text[:, :-1], text[:, 1:].clone()
    whole = trained(model, idx, targets).terms["mtp_loss"] * (T - 1)
    targets[0, 4] = -1
    without = trained(model, idx, targets).terms["mtp_loss"] * (T - 2)
    alone = torch.full_like(targets, -1)
    alone[0, 4] = text[0, 5]
    assert_close(whole - without, trained(model, idx, alone).terms["mtp_loss"], 1e-10)


def test_the_last_token_is_only_a_target():
    """No module reads it, so it changes nothing but the loss of its own prediction."""
    model = tiny_model(**mtp(2), **PLAIN)
    idx, targets = tokens(T, batch=1), tokens(T, batch=1, seed=2)
    changed = idx.clone()
    changed[0, -1] += 1
    targets[0, -3:] = -1  # what the modules predict from the last token of idx on
    first, second = (trained(model, each, targets).terms["mtp_loss"] for each in (idx, changed))
    targets[0, -3:] = 0
    third, fourth = (trained(model, each, targets).terms["mtp_loss"] for each in (idx, changed))
    assert torch.equal(first, second)
    assert not torch.equal(third, fourth)


@pytest.mark.parametrize("length", [1, 2])
def test_a_sequence_without_a_token_to_predict_is_refused(length):
    model, idx = tiny_model(**mtp(2)), tokens(length)
    message = (
        f"sequences of {length} tokens leave no token to predict with mtp_depth=2; use at least 3"
    )
    with pytest.raises(UserError, match=message):
        training_loss(model, idx, idx)
    assert model(idx, idx, objective=validation_loss).loss.isfinite()


# Only in training


@every_kind
def test_validation_and_decoding_are_those_of_the_model_without(kind):
    """Equal results and equal FLOPs."""
    plain, model = tiny_model(), tiny_model(**mtp(2, kind))
    model.load_state_dict(plain.state_dict(), strict=False)
    idx = tokens(T)
    found = []
    for each in (plain, model):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            terms = each(idx, idx, objective=validation_loss).terms
            written = each.generate(idx, 3, temperature=0)
        found.append((terms["cross_entropy"], written, counter.get_total_flops()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]
    assert terms.keys() == {"cross_entropy"}


def test_weights_of_the_main_model_start_as_without():
    torch.manual_seed(0)
    plain = GPT(tiny_config()).state_dict()
    torch.manual_seed(0)
    both = GPT(tiny_config(**mtp())).state_dict()
    assert plain.keys() < both.keys()
    assert all(torch.equal(both[name], value) for name, value in plain.items())
    assert not torch.equal(both["mtp.0.projection.weight"], both["mtp.1.projection.weight"])


# Size and cost


@every_kind
@pytest.mark.parametrize("ffn", ["swiglu", "moe"])
def test_cost_in_closed_form(ffn, kind):
    """A block + 2 C V for each module, and 4 C^2 if they are sequential, only in training."""
    keys = {**PLAIN, "activation": "silu", "ffn_type": ffn}
    plain, model = (GPT(tiny_config(**more)) for more in (keys, {**keys, **mtp(2, kind)}))
    V, block = plain.config.vocab_size, plain.blocks[-1].forward_flops(T)
    projection = 4 * C * C if kind == "sequential" else 0
    expected = 3 * 2 * ((projection + 2 * C * V) * T + block)
    extra = model.flops_per_token(T) - plain.flops_per_token(T)
    assert extra * T == pytest.approx(expected, rel=1e-12)
    assert model.forward_flops(T) == plain.forward_flops(T)
    assert model.decoding_state_bytes(T) == plain.decoding_state_bytes(T)
    assert model.num_parameters() == plain.num_parameters()
    assert model.num_parameters(embeddings=False) == plain.num_parameters(embeddings=False)
    assert model.active_parameters() == plain.active_parameters()
    of_block = sum(p.numel() for p in plain.blocks[-1].parameters())
    of_input = 2 * C * C + 2 * C if kind == "sequential" else 0
    assert model.mtp_parameters() == 2 * (of_input + C + of_block)
    assert model.cost_report()["mtp_parameters"] == model.mtp_parameters()
    assert "mtp_parameters" not in plain.cost_report()


def test_deepseek_v3():
    """671B parameters without the module, as published; the module has a layer, a projection and
    three norms."""
    config = load([str(ROOT / "config" / "arch_deepseek_v3.py")]).model.changed(vocab_size=129_280)
    with torch.device("meta"):
        model = GPT(config)
    layer = sum(p.numel() for p in model.blocks[-1].parameters())
    assert model.num_parameters() == 671_026_404_352
    assert model.mtp_parameters() == layer + 2 * 7168**2 + 3 * 7168 == 11_610_067_968
    text = (ROOT / "config" / "arch_deepseek_v3.py").read_text(encoding="utf-8")
    assert f"{model.num_parameters():,} parameters" in text
    assert f"{model.mtp_parameters():,} more" in text


# With other parts


def test_experts_of_the_modules_are_balanced():
    keys = {"ffn_type": "standard+moe", "n_experts": 4, "router_bias_rate": 0.1}
    model, idx = tiny_model(**mtp(1), **keys).train(), tokens(T)
    output = trained(model, idx, idx)
    main = trained(tiny_model(**keys), idx, idx)
    assert output.terms["balance_loss"] > main.terms["balance_loss"]
    assert len(output.metrics) == 3
    assert output.metrics[2].keys() == {"ffn"}
    before = [buffer.clone() for buffer in model.mtp.buffers()]
    model.after_step(output.metrics)
    changed = [
        (buffer != old).any() for buffer, old in zip(model.mtp.buffers(), before, strict=True)
    ]
    assert any(changed)


@every_kind
@pytest.mark.parametrize(
    "keys",
    [
        {"mixer": "rwkv7", "rwkv_head_dim": 8, "n_layer": 1},
        {"value_residual": "learned", "n_layer": 3, "residual": "unet"},
        {"kv_sharing": "false+true"},
        {"residual": "mhc", "norm_position": "parallel"},
        {"mixer": "gated_deltanet", "linear_n_head": 4},
        {"ffn_type": "standard+none"},
    ],
)
def test_the_block_is_like_the_last_layer(keys, kind):
    """It has the same parameters, and reads the same tensors of earlier layers."""
    model, idx = tiny_model(**mtp(2, kind), **keys), tokens(T)
    last = model.blocks[-1]
    shapes = [
        {name: p.shape for name, p in block.named_parameters()}
        for block in (last, *(module.block for module in model.mtp))
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert all(module.block.takes == last.takes for module in model.mtp)
    training_loss(model, idx, idx.roll(-1, 1)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_parallel_modules_with_the_weights_of_the_last_layer_are_the_last_layer():
    model, idx = tiny_model(**mtp(1, "parallel")), tokens(T)
    targets = torch.cat((idx[:, 1:], idx[:, -1:]), dim=1)
    model.mtp[0].block.load_state_dict(model.blocks[-1].state_dict())
    model.mtp[0].norm.load_state_dict(model.final_norm.state_dict())
    output = trained(model, idx, targets)
    later = torch.cat((targets[:, 1:], torch.full_like(idx[:, :1], -1)), dim=1)
    assert_close(output.terms["mtp_loss"], 0.3 * model(idx, later)[1], 1e-6)


def test_matrices_of_the_modules_are_hidden_matrices():
    model = GPT(tiny_config(**mtp(1)))
    found = hidden_matrices(model)
    assert model.mtp[0].projection.weight in found
    assert model.mtp[0].block.mixer.out.weight in found


@every_kind
def test_what_a_module_depends_on(kind):
    """At position i, module k depends on tokens up to i + k if the modules are sequential, up to i
    if they are parallel."""
    model = tiny_model(**mtp(2, kind), **PLAIN).double()
    idx = tokens(T, batch=1)
    targets = torch.full_like(idx, -1)
    targets[0, 5] = 3  # of the main model at 5, module 1 at 4 and module 2 at 3: tokens up to 5
    before = trained(model, idx, targets).loss
    for position in range(T):
        changed = idx.clone()
        changed[0, position] = (idx[0, position] + 7) % 61
        differs = not torch.equal(trained(model, changed, targets).loss, before)
        assert differs == (position <= 5), position


# Refusals


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"mtp_depth": 2},
            "mtp_depth=2 belongs to mtp=sequential or parallel, which no layer uses",
        ),
        (
            {"mtp_weight": 0.1},
            "mtp_weight=0.1 belongs to mtp=sequential or parallel, which no layer uses",
        ),
        (mtp(24), "mtp_depth=24 leaves no token to predict in sequences of block_size=24"),
        (mtp(1, mtp_weight=0.0), "mtp_weight"),
        (mtp(0), "mtp_depth"),
        ({"mtp": "medusa"}, "unknown mtp 'medusa'"),
        (
            mtp(1, sphere_weights=True, bias=False),
            "sphere_weights=True is not defined for mtp='sequential'",
        ),
        (
            mtp(1, parametrization="mup"),
            "parametrization='mup' is not defined for mtp='sequential'",
        ),
    ],
)
def test_what_is_not_defined_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**keys)


def test_sequences_that_are_too_short_are_refused_before_a_run():
    message = "mtp_depth=8 leaves no token to predict in sequences of sequence_length=8"
    with pytest.raises(ConfigError, match=message):
        load(["--mtp=sequential", "--mtp_depth=8", "--sequence_length=8"])


def test_adapters_are_refused():
    training = TrainingConfig(adapter="lora", init_from="folder", sequence_length=8)
    (problem,) = multi_token_problems(tiny_config(**mtp(1)), training)
    assert problem.keys == ("mtp", "adapter")
    assert "mtp='sequential' adds modules that adapter='lora' would not train" in problem.message
    assert not list(multi_token_problems(tiny_config(), training))
