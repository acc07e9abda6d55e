"""Residual streams, against published code and a second derivation, and in every kind of block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from components.context import Context, LayerInputs
from components.depth_attention import KEY_EPS, DepthAttention
from components.residuals import RESIDUALS, doubly_stochastic
from errors import ConfigError
from model_builder import GPT
from model_components import BLOCKS
from recipe.parameters import parameter_groups
from tests.measured import assert_close
from tests.parametrized import one_in
from tests.tiny import tiny_config, tiny_layer, tiny_model, tokens

EVERY_PLACE = pytest.mark.parametrize("norm_position", one_in(2, BLOCKS.names))
EVERY_STREAM = pytest.mark.parametrize("residual", sorted({*RESIDUALS.names} - {"ngpt"}))
"""All but the one without norms."""


def weighted_sum(x: Tensor) -> Tensor:
    """A scalar to which every number contributes differently."""
    return (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum()


class TestHyperConnections:
    @pytest.mark.parametrize(
        ("streams", "dynamic"), [(1, True), (2, True), (4, True), (2, False), (4, False)]
    )
    def test_a_site_is_that_of_the_package_of_that_name(self, streams, dynamic):
        """Theirs is always dynamic; with scales of 0 it is as static as ours without."""
        from hyper_connections import HyperConnections

        layer = tiny_layer(
            residual="hyper_connections",
            hyper_streams=streams,
            normalization="rmsnorm",
            norm_eps=1e-12 if dynamic else 1e-5,  # theirs has none
            hyper_dynamic=dynamic,
        )
        ours = RESIDUALS["hyper_connections"](layer, sites=2).double()
        own = ours.connections[1]
        theirs = HyperConnections(streams, dim=32, layer_index=1).double()
        pairs = {"alpha": theirs.static_alpha, "beta": theirs.static_beta}
        of_tokens = {
            "alpha_map": theirs.dynamic_alpha_fn,
            "beta_map": theirs.dynamic_beta_fn,
            "alpha_scale": theirs.dynamic_alpha_scale,
            "beta_scale": theirs.dynamic_beta_scale,
        }
        assert torch.equal(own.alpha, theirs.static_alpha)
        assert torch.equal(own.beta, theirs.static_beta)
        torch.manual_seed(0)
        with torch.no_grad():
            if dynamic:
                pairs |= of_tokens
            else:
                theirs.dynamic_alpha_scale.zero_()
                theirs.dynamic_beta_scale.zero_()
            for name, other in pairs.items():
                other.add_(0.3 * torch.randn_like(other))
                own.get_parameter(name).copy_(other.view_as(own.get_parameter(name)))
        x = torch.randn(2, 5, streams, 32, dtype=torch.float64)
        mine = x.clone().requires_grad_()
        other = x.permute(0, 2, 1, 3).flatten(0, 1).clone().requires_grad_()  # (B n, T, C)
        y = ours.join(mine, 1, torch.tanh)
        read, add = theirs(other)
        expected = add(torch.tanh(read)).unflatten(0, (2, streams)).transpose(1, 2)
        assert_close(y, expected, 1e-12)
        weighted_sum(y).backward()
        weighted_sum(expected).backward()
        assert_close(mine.grad, other.grad.unflatten(0, (2, streams)).transpose(1, 2), 1e-12)
        for name, weight in pairs.items():
            gradient = own.get_parameter(name).grad
            assert_close(gradient, weight.grad.view_as(gradient), 1e-10)

    @pytest.mark.parametrize("streams", [1, 3])
    @EVERY_PLACE
    @torch.no_grad()
    def test_a_new_model_computes_what_a_plain_one_does_but_for_the_sum(
        self, streams, norm_position
    ):
        """All streams start alike and get all that is added: the head reads n times the stream."""
        keys = {"norm_position": norm_position, "normalization": "rmsnorm", "norm_eps": 1e-12}
        plain = tiny_model(**keys)
        hyper = tiny_model(**keys, residual="hyper_connections", hyper_streams=streams)
        hyper.load_state_dict(plain.state_dict(), strict=False)
        fresh = tiny_config(**keys, residual="hyper_connections", hyper_streams=streams)
        for block, layer in zip(hyper.blocks, fresh.layers, strict=True):
            block.residual.load_state_dict(
                RESIDUALS["hyper_connections"](layer, block.sites).state_dict()
            )
        idx = tokens(7)
        if BLOCKS[norm_position].final_norm or streams == 1:  # a norm takes no notice of n
            assert_close(hyper(idx), plain(idx), 1e-4)

    @pytest.mark.parametrize("dynamic", [True, False])
    def test_cost_equals_the_counter(self, dynamic):
        layer = tiny_layer(residual="hyper_connections", hyper_streams=3, hyper_dynamic=dynamic)
        residual = RESIDUALS["hyper_connections"](layer, sites=2)
        stream = torch.randn(1, 7, 3, 32)
        with FlopCounterMode(display=False) as counter:
            for site in range(2):
                residual.join(stream, site, torch.tanh)
        assert residual.forward_flops(7) == counter.get_total_flops()


class TestManifoldConnections:
    def made(self, streams: int, **keys: int) -> nn.Module:
        """Those of a layer, with random weights in float64."""
        layer = tiny_layer(residual="mhc", hyper_streams=streams, **keys)
        torch.manual_seed(0)
        residual = RESIDUALS["mhc"](layer, sites=2).double()
        with torch.no_grad():
            for parameter in residual.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        return residual

    @pytest.mark.parametrize(("streams", "steps"), [(1, 20), (4, 20), (4, 3)])
    @torch.no_grad()
    def test_a_site_is_that_of_deepseek_v4(self, streams, steps):
        from transformers.models.deepseek_v4 import modeling_deepseek_v4 as published
        from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config

        config = DeepseekV4Config(
            hidden_size=32, hc_mult=streams, hc_sinkhorn_iters=steps, rms_norm_eps=1e-6
        )
        theirs = published.DeepseekV4HyperConnection(config)
        ours = self.made(streams, mhc_steps=steps).float()
        own = ours.connections[1]
        for name, weight in {"fn": own.map, "base": own.offset, "scale": own.scale}.items():
            getattr(theirs, name).copy_(weight)
        stream = torch.randn(2, 5, streams, 32)
        post, comb, collapsed = theirs(stream)
        expected = post.unsqueeze(-1) * torch.tanh(collapsed).unsqueeze(-2)
        expected = expected + comb.transpose(-1, -2) @ stream
        assert_close(ours.join(stream, 1, torch.tanh), expected, 1e-5)

    @torch.no_grad()
    def test_a_site_by_the_formulas_of_the_paper(self):
        own, h = self.made(2, mhc_steps=60).connections[0], torch.randn(2, 32).double()
        own.offset[4:].normal_()  # at -8, the epsilon of DeepSeek-V4 would show
        x = h.flatten() / h.square().mean().sqrt()
        made = [own.scale[min(k // 2, 2)] * (own.map[k] @ x) + own.offset[k] for k in range(8)]
        mixing = torch.stack(made[4:]).exp().view(2, 2)
        for _ in range(60):  # the paper begins with columns; the limit is the same
            mixing = mixing / mixing.sum(dim=0)
            mixing = mixing / mixing.sum(dim=1, keepdim=True)
        read, mixed, shares = own(h)
        assert_close(read, torch.sigmoid(made[0]) * h[0] + torch.sigmoid(made[1]) * h[1], 1e-5)
        assert_close(mixed, mixing.T @ h, 1e-5)
        assert_close(shares, 2 * torch.sigmoid(torch.stack(made[2:4])), 1e-5)

    def test_mixing_is_doubly_stochastic(self):
        torch.manual_seed(0)
        matrices = doubly_stochastic(torch.randn(50, 4, 4), 20)
        assert (matrices > 0).all()
        for dim in (-1, -2):
            assert (matrices.sum(dim) - 1).abs().max() < 0.01
        once = doubly_stochastic(2 * torch.randn(50, 4, 4), 1)
        assert (once.sum(-1) - 1).abs().max() > 0.1

    def test_gradients(self):
        residual = self.made(2, mhc_steps=3)
        stream = torch.randn(1, 2, 2, 32, dtype=torch.float64, requires_grad=True)
        names, weights = zip(*residual.connections[0].named_parameters(), strict=True)

        def joined(stream: Tensor, *values: Tensor) -> Tensor:
            named = dict(zip(names, values, strict=True))
            x, mixed, shares = torch.func.functional_call(residual.connections[0], named, stream)
            return x.sum(-1), mixed.mean(-1), shares

        assert gradcheck(joined, (stream, *weights), fast_mode=True)

    @torch.no_grad()
    def test_streams_of_a_new_model_hardly_mix(self):
        residual = RESIDUALS["mhc"](tiny_layer(residual="mhc"), sites=2)
        stream = torch.randn(1, 3, 4, 32)
        for site in range(2):
            _, mixed, shares = residual.connections[site](stream)
            assert (mixed - stream).abs().max() < 0.01
            assert shares[0, 0].argmax() == site

    def test_cost_equals_the_counter(self):
        residual = self.made(3)
        with FlopCounterMode(display=False) as counter:
            for site in range(2):
                residual.join(torch.randn(1, 7, 3, 32).double(), site, torch.tanh)
        assert residual.forward_flops(7) == counter.get_total_flops()


def mixture(sources: list[Tensor], own: DepthAttention) -> Tensor:
    """Equations 2 to 4 of the paper (arXiv 2603.15031), one token at a time."""
    tables = [source.flatten(0, -2) for source in sources]
    rows = []
    for token in range(len(tables[0])):
        values = [table[token] for table in tables]
        roots = [(v.dot(v) / v.numel() + KEY_EPS).sqrt() for v in values]
        keys = [own.gain * v / root for v, root in zip(values, roots, strict=True)]
        kernels = [torch.exp(own.query.dot(k)) for k in keys]
        rows.append(sum(k * v for k, v in zip(kernels, values, strict=True)) / sum(kernels))
    return torch.stack(rows).view_as(sources[0])


class TestAttentionResidual:
    """No published module is available: the reference is a second derivation from the paper."""

    @pytest.mark.parametrize(
        ("norm_position", "engram"),
        [("pre", False), ("sandwich", "true+false"), ("parallel_shared", "false+true")],
    )
    @pytest.mark.parametrize("block", [None, 1, 2, 5])
    @torch.no_grad()
    def test_a_model_by_the_algorithm_of_the_paper(self, block, norm_position, engram):
        """Lists of finished blocks and a partial sum, as in figure 2; None: each block is one
        sublayer."""
        keys = {"residual": "attention", "norm_position": norm_position, "n_layer": 5}
        keys["engram"] = engram
        model, idx = tiny_model(**keys, attn_res_block=block).double(), tokens(6)
        finished, running = [], model.positions.embed(model.embedding(idx), 0)
        for layer, part in enumerate(model.blocks):
            inputs = inputs_of(model, idx)
            for site, branch in enumerate(branches(part, inputs)):
                sources = [*finished, running]
                own = part.residual.queries[str(site)] if len(sources) > 1 else None
                x = mixture(sources, own) if own is not None else running
                y = branch(x)
                if block is None or (site == 0 and layer % block == 0):
                    finished.append(running)
                    running = y
                else:
                    running = running + y
        x = mixture([*finished, running], model.blocks[-1].residual.output)
        assert_close(model(idx), model.head(model.final_norm(x)), 1e-10)

    @pytest.mark.parametrize("block", [None, 2])
    @torch.no_grad()
    def test_a_new_model_reads_means_which_its_norms_make_sums(self, block):
        keys = {"normalization": "rmsnorm", "norm_eps": 1e-12, "n_layer": 3}
        model = GPT(tiny_config(**keys, residual="attention", attn_res_block=block)).double()
        plain = GPT(tiny_config(**keys)).double()
        plain.load_state_dict(model.state_dict(), strict=False)
        assert_close(model(tokens(7)), plain(tokens(7)), 1e-6)

    @pytest.mark.parametrize("sources", [1, 4])
    def test_gradients(self, sources):
        torch.manual_seed(0)
        own = DepthAttention(6, sources).double()
        values = [torch.randn(2, 3, 6, dtype=torch.float64) for _ in range(sources)]
        query, gain = torch.randn(2, 6, dtype=torch.float64).unbind()
        every = tuple(tensor.requires_grad_() for tensor in (query, gain, *values))

        def mixed(query: Tensor, gain: Tensor, *values: Tensor) -> Tensor:
            return torch.func.functional_call(own, {"query": query, "gain": gain}, values)

        assert gradcheck(mixed, every)

    def test_only_the_sources_are_kept_for_the_backward_pass(self):
        own, values = DepthAttention(32, 5), [torch.randn(2, 7, 32) for _ in range(5)]
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            own(*(value.requires_grad_() for value in values))
        known = {value.data_ptr() for value in values}
        assert sum(t.numel() for t in kept if t.data_ptr() not in known) < 2 * 7 * 32

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @torch.no_grad()
    def test_weights_of_the_mixture_are_not_rounded(self, dtype):
        torch.manual_seed(0)
        own, values = DepthAttention(32, 3), [torch.randn(2, 5, 32) for _ in range(3)]
        own.query.normal_()
        with torch.autocast("cpu", dtype):
            assert torch.equal(own(*values), own(*values).float())
            assert_close(own(*values), mixture(values, own), 1e-5)

    def test_norm_positions_without_a_sum_are_refused(self):
        with pytest.raises(
            ConfigError, match="norm_position='post' normalizes the residual stream"
        ):
            tiny_config(residual="attention", norm_position="pre+post")

    def test_scaled_norms_are_refused(self):
        with pytest.raises(ConfigError, match="layer_norm_scaling=True compensates for sums"):
            tiny_config(residual="attention", layer_norm_scaling=True)

    def test_multi_token_prediction_is_refused(self):
        with pytest.raises(ConfigError, match="mtp='sequential' is not defined for residual="):
            tiny_config(residual="attention", mtp="sequential")

    def test_a_block_of_more_than_all_layers_is_refused(self):
        with pytest.raises(ConfigError, match="attn_res_block=3 is more than n_layer=2"):
            tiny_config(residual="attention", attn_res_block=3)


def branches(block: nn.Module, inputs: LayerInputs) -> list[Callable[[Tensor], Tensor]]:
    """The sublayers of a block in order, with their norms, by the formulas of the papers."""
    added = [partial(part, context=Context(inputs).of(name)) for name, part in block.first.items()]
    mix = partial(block.mix, context=Context(inputs))
    feed = partial(block.feed, context=Context(inputs))
    kind = type(block).__name__
    if kind == "SharedNormParallelBlock":
        return [*added, lambda x: mix(block.norm(x)) + feed(block.norm(x))]
    if kind == "SandwichNormBlock":
        return [
            *added,
            lambda x: block.mixer_out_norm(mix(block.mixer_norm(x))),
            lambda x: block.ffn_out_norm(feed(block.ffn_norm(x))),
        ]
    return [*added, lambda x: mix(block.mixer_norm(x)), lambda x: feed(block.ffn_norm(x))]


class TestUNet:
    @pytest.mark.parametrize("n_layer", [2, 3, 6])
    @torch.no_grad()
    def test_the_second_half_adds_what_its_mirror_passed_on(self, n_layer):
        model, idx = tiny_model(residual="unet", n_layer=n_layer), tokens(5)
        plain = tiny_model(residual="plain", n_layer=n_layer)
        plain.load_state_dict(model.state_dict(), strict=False)
        x = plain.positions.embed(plain.embedding(idx), 0)
        passed_on = []
        for layer, block in enumerate(plain.blocks):
            mirror = n_layer - 1 - layer
            if mirror < layer:
                x = x + model.blocks[layer].residual.weight * passed_on[mirror]
            x, _ = block(x, inputs_of(plain, idx))
            passed_on.append(x)
        assert_close(model(idx), plain.head(plain.final_norm(x)), 1e-5)


def inputs_of(model: nn.Module, idx: Tensor) -> LayerInputs:
    """What a block of a model is given beside the stream."""
    return LayerInputs(idx, model.position_encodings[0], None, start=0, states=None, taken={})


def test_a_unet_of_one_layer_has_nothing_to_add():
    with pytest.raises(ConfigError, match="has no effect with n_layer=1"):
        tiny_config(residual="unet", n_layer=1)


class TestValueResidual:
    @pytest.mark.parametrize(
        "keys",
        [
            {"n_layer": 1},
            {"n_layer": 3, "mixer": "gated_deltanet*2+attention"},
            {"n_layer": 2, "n_kv_head": "1+2"},
            {"n_layer": 3, "value_residual": "fixed+none*"},
        ],
    )
    def test_has_no_effect_unless_two_layers_have_values_of_one_shape(self, keys):
        with pytest.raises(ConfigError, match="no other attention layer has it with n_kv_head="):
            tiny_config(**{"value_residual": "fixed", **keys})

    def test_layers_that_share_their_shape_with_no_other_do_not_matter_beside_those_that_do(self):
        tiny_config(value_residual="fixed", n_layer=3, n_kv_head="2*2+1")
        tiny_config(value_residual="fixed", n_layer=6, mixer="gated_deltanet*2+attention")

    @pytest.mark.parametrize("kind", ["fixed", "learned"])
    @torch.no_grad()
    def test_later_layers_attend_to_a_share_of_the_first_values(self, kind, monkeypatch):
        model = tiny_model(value_residual=kind, n_layer=3, n_kv_head=2)
        given: list[Tensor] = []
        own: list[Tensor] = []
        for block in model.blocks:
            mixer = block.mixer
            backend = mixer.backend

            def watched(q, k, v, *rest, backend=backend):
                given.append(v)
                return backend(q, k, v, *rest)

            mixer.backend = watched
            mixer.qkv.register_forward_hook(
                lambda module, args, y, mixer=mixer: own.append(
                    mixer._heads(y.split(mixer.widths, dim=-1)[2])
                )
            )
        model(tokens(5))
        assert torch.equal(given[0], own[0])
        assert model.blocks[0].mixer.value_share is None
        for layer in (1, 2):
            share = model.blocks[layer].mixer.value_share
            assert_close(given[layer], (1 - share) * own[layer] + share * own[0], 1e-6)

    def test_only_values_of_one_shape_are_mixed(self):
        model = tiny_model(value_residual="learned", n_layer=4, n_kv_head="1+4")
        shared = [len(block.takes) for block in model.blocks]
        assert shared == [0, 0, 1, 1]
        model(tokens(5), tokens(5))[1].backward()
        assert all(p.grad is not None for p in model.parameters())


@EVERY_PLACE
@EVERY_STREAM
def test_every_stream_goes_with_every_norm_position(residual, norm_position):
    """Checkpointed blocks give the same gradients, and decoding the same logits."""
    if BLOCKS[norm_position].normalizes_stream and not RESIDUALS[residual].normalized:
        pytest.skip("refused")
    keys = {
        "residual": residual,
        "norm_position": norm_position,
        "value_residual": "learned",
        "n_layer": 3,
    }
    model, idx = tiny_model(**keys), tokens(9)
    model(idx, idx)[1].backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    with torch.no_grad():
        state = model.new_state(2)
        parts = [model(piece, state=state) for piece in idx.split([4, 1, 1, 3], dim=1)]
        assert_close(torch.cat(parts, dim=1), model(idx), 1e-5)
    model.zero_grad()
    for block in model.blocks:

        def again(*given, forward=block.forward):
            return checkpoint(forward, *given, use_reentrant=False)

        block.forward = again
    model(idx, idx)[1].backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert_close(parameter.grad, gradient, 1e-6)


def test_static_mixtures_of_streams_do_not_decay():
    model = tiny_model(residual="hyper_connections")
    decayed, others = parameter_groups(model, 0.1)
    mixtures = [c.alpha for block in model.blocks for c in block.residual.connections]
    assert {id(p) for p in mixtures} <= {id(p) for p in others["params"]}
    assert others["weight_decay"] == 0.0
    assert any(p is model.blocks[0].mixer.qkv.weight for p in decayed["params"])


@torch.no_grad()
def test_autocast_does_not_round_the_streams():
    model = tiny_model(residual="hyper_connections", hyper_dynamic=False)
    stream = torch.randn(2, 5, 4, 32)
    connection = model.blocks[0].residual.connections[0]
    plain = connection(stream)
    with torch.autocast("cpu", torch.bfloat16):
        for one, other in zip(connection(stream), plain, strict=True):
            assert torch.equal(one, other)
