"""Parts broken on purpose: for every mutation below, the tests named beside it turn red.

A mutation replaces a text in the source of one function, which is then compiled in its place. The
tests that must notice are run by pytest itself, in this process. A test counts as red where one of
its own assertions fails: a mutation that merely crashes would prove nothing.
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
import types
from typing import Any, NamedTuple

import pytest
from torch.autograd.gradcheck import GradcheckError

import model_builder
import model_checks
import model_config
import patterns
import train
from components import (
    activations,
    attention,
    attention_backends,
    attention_logits,
    canon,
    differential_attention,
    engram,
    ffns,
    forget_gate,
    head,
    kv_sharing,
    multi_token,
    norms,
    part,
    per_layer_embedding,
    residuals,
    rope_scalings,
)
from components import positions as encodings
from recipe import lion, muon, objectives, parameters, qk_clip, schedules, snapshot
from training import optim, resume, step_guard, step_means

pytestmark = pytest.mark.slow


class Mutation(NamedTuple):
    """One thing broken."""

    what: str
    owner: Any
    """The module or class that holds the function."""
    function: str
    before: str
    after: str
    noticed_by: tuple[str, ...]
    """Tests under tests/, as pytest names them."""


EVERY_MODEL = "contract/test_every_model.py::"
EVERY_RECIPE = "contract/test_every_recipe.py::"
ATTENTION = "unit/test_attention.py::"
KV_SHARING = "unit/test_kv_sharing.py::"
BEHAVIOR = "unit/test_behavioral.py::"
FORMULAS = "unit/test_formulas.py::"
MULTI_TOKEN = "unit/test_multi_token.py::"
POSITIONS = "unit/test_positions.py::"
GRADIENTS = "unit/test_gradients.py::"
CONFIG = "unit/test_model_config.py::"
OPTIMIZER = "unit/test_optim.py::"
SHAPES = "unit/test_model_shapes.py::"
START = "unit/test_initial_weights.py::"
PATTERNS = "unit/test_patterns.py::"
QK_CLIP = "unit/test_qk_clip.py::"
PART_OPTIONS = "unit/test_part_options.py::"
OLD = "unit/test_saved_configs.py::"
GPT2 = "[preset gpt2]"
LLAMA = "[preset llama]"

MUTATIONS = (
    Mutation(
        "a token attends to the next token",
        attention_backends,
        "visible",
        "causal = k <= q",
        "causal = k <= q + 1",
        (
            f"{EVERY_MODEL}test_causal_at_every_position{GPT2}",
            f"{BEHAVIOR}test_weights_above_the_diagonal_are_zero{GPT2}",
        ),
    ),
    Mutation(
        "a window is one token too long",
        attention_backends,
        "visible",
        "q - k < window",
        "q - k <= window",
        (
            f"{ATTENTION}test_a_window_hides_what_lies_before_it",
            f"{EVERY_MODEL}test_backends_agree[sliding_window=5]",
        ),
    ),
    Mutation(
        "scores are not scaled by the root of the width",
        attention_backends.ManualAttention,
        "_scores",
        "math.sqrt(q.shape[-1])",
        "q.shape[-1]",
        (f"{ATTENTION}test_manual_attention_by_hand",),
    ),
    Mutation(
        "the softcap caps at one",
        attention_backends.ManualAttention,
        "_normalized",
        "self.needs.softcap * torch.tanh",
        "torch.tanh",
        (f"{ATTENTION}test_manual_attention_by_hand",),
    ),
    Mutation(
        "query heads share the wrong key heads",
        attention_backends,
        "_repeat_heads",
        "x.repeat_interleave(n_head // x.shape[1], dim=1)",
        "x.repeat(1, n_head // x.shape[1], 1, 1)",
        (
            f"{ATTENTION}test_manual_attention_by_hand",
            f"{EVERY_MODEL}test_backends_agree[n_kv_head=2]",
        ),
    ),
    Mutation(
        "SDPA is not causal",
        attention_backends.SDPA,
        "_attend",
        "is_causal=mask is None and bool(q.shape[2] > 1)",
        "is_causal=False",
        (
            f"{EVERY_MODEL}test_backends_agree[mixer=attention]",
            f"{BEHAVIOR}test_no_backend_looks_ahead[sdpa-learned-all]",
        ),
    ),
    Mutation(
        "attention dropout is active in evaluation",
        attention.Attention,
        "_attended",
        "self.weight_dropout if self.training else 0.0",
        "self.weight_dropout",
        (f"{BEHAVIOR}test_dropout_is_off_in_evaluation{GPT2}",),
    ),
    Mutation(
        "attention dropout is never active",
        attention.Attention,
        "_attended",
        "self.weight_dropout if self.training else 0.0",
        "0.0",
        (f"{BEHAVIOR}test_attention_drops_weights_in_training_alone",),
    ),
    Mutation(
        "decoding does not advance positions",
        attention.Attention,
        "_queries_keys_values",
        "rotate(q, k, context.start)",
        "rotate(q, k, 0)",
        (f"{EVERY_MODEL}test_cache_equals_no_cache{LLAMA}",),
    ),
    Mutation(
        "shared keys are those of the first layer of the kind",
        kv_sharing,
        "sources",
        "last[sharing_kind(layer)] = index",
        "last.setdefault(sharing_kind(layer), index)",
        (
            f"{KV_SHARING}test_the_last_layer_of_the_same_kind_is_the_source[false+true-keys0-sources0]",
        ),
    ),
    Mutation(
        "shared keys are only those of the current tokens",
        attention.Attention,
        "_kept",
        "zip(self.shared_names, (k, v), strict=False)",
        "zip(self.shared_names, (k[:, :, -1:], v[:, :, -1:]), strict=False)",
        (f"{KV_SHARING}test_decoding_in_pieces[False]",),
    ),
    Mutation(
        "hashes depend on fewer tokens",
        engram.Engram,
        "rows",
        "found.append(mixed)",
        "found.append(mixed if back < 2 else found[1])",
        ("unit/test_engram.py::test_by_the_formulas",),
    ),
    Mutation(
        "decoding forgets the tokens before",
        engram.Engram,
        "rows",
        "kept.copy_(tokens[:, T:])",
        "kept.clone()",
        ("unit/test_engram.py::test_decoding_in_pieces[False]",),
    ),
    Mutation(
        "per-layer embeddings are not scaled",
        per_layer_embedding.PerLayerEmbedding,
        "embedding",
        "* self.table.embedding_dim**0.5",
        "",
        ("unit/test_per_layer_embedding.py::test_layers_are_those_of_gemma_4",),
    ),
    Mutation(
        "keys are not normalized",
        attention.Attention,
        "_projected",
        "(self.q_norm, self.k_norm, None)",
        "(self.q_norm, None, None)",
        (f"{EVERY_MODEL}test_every_parameter_learns[qk_norm]",),
    ),
    Mutation(
        "the second attention map is added",
        differential_attention.HeadDifference,
        "forward",
        "first - share",
        "first + share",
        ("unit/test_differential_attention.py::test_it_is_the_layer_of_diffllama[manual]",),
    ),
    Mutation(
        "scores grow with the tokens in between",
        forget_gate.ForgetGate,
        "forward",
        "own.unsqueeze(-1) - total.unsqueeze(-2)",
        "total.unsqueeze(-2) - own.unsqueeze(-1)",
        ("unit/test_forget_gate.py::test_by_products_of_gates[alone-manual]",),
    ),
    Mutation(
        "a Canon layer has no residual connection",
        canon.Canon,
        "forward",
        "x + self.conv",
        "self.conv",
        ("unit/test_canon.py::test_all_four_positions_by_the_formula[4-4]",),
    ),
    Mutation(
        "RoPE rotates one dimension of a pair in the wrong direction",
        encodings.RotaryPosition,
        "turned",
        "second * cos + first * sin",
        "second * cos - first * sin",
        (f"{POSITIONS}test_rope_turns_pairs_by_position_times_frequency",),
    ),
    Mutation(
        "YaRN does not change the temperature",
        rope_scalings.YaRN,
        "apply",
        "mixed, config.rope_attention_factor",
        "mixed, 1.0",
        (f"{POSITIONS}test_yarn_interpolates_what_turns_rarely_and_scales_the_rotation",),
    ),
    Mutation(
        "ALiBi favors distant tokens",
        encodings.ALiBi,
        "score_bias",
        "-self.slopes",
        "self.slopes",
        (f"{POSITIONS}test_alibi_bias_is_slope_times_distance",),
    ),
    Mutation(
        "learned positions restart at 0 in decoding",
        encodings.LearnedPosition,
        "embed",
        "start, x.shape[1]",
        "0, x.shape[1]",
        (f"{EVERY_MODEL}test_cache_equals_no_cache{GPT2}",),
    ),
    Mutation(
        "a norm's eps is fixed",
        norms.RMSNorm,
        "__init__",
        "eps=config.norm_eps",
        "eps=1e-5",
        (f"{FORMULAS}test_norms[rmsnorm-0.5]",),
    ),
    Mutation(
        "an activation is not squared",
        activations.SquaredReLU,
        "forward",
        "F.relu(x).square()",
        "F.relu(x)",
        (f"{FORMULAS}test_activations[relu2]",),
    ),
    Mutation(
        "gate and value are swapped",
        ffns.GLU,
        "forward",
        "gate, up =",
        "up, gate =",
        (f"{FORMULAS}test_feed_forward_networks[swiglu]",),
    ),
    Mutation(
        "the gate has no gradient",
        ffns.Gating,
        "__call__",
        "activation(gate)",
        "activation(gate).detach()",
        (
            f"{GRADIENTS}test_feed_forward_networks[swiglu]",
            f"{GRADIENTS}test_the_loss_in_a_random_direction{LLAMA}",
        ),
    ),
    Mutation(
        "a block loses its residual stream",
        residuals.PlainResidual,
        "join",
        "stream = stream + (",
        "stream = (",
        (
            f"{FORMULAS}test_blocks[pre]",
            "integration/test_nanogpt_trajectory.py::test_fifty_steps[True]",
        ),
    ),
    Mutation(
        "residual projections start too large",
        part.Part,
        "init_parameters",
        "parametrization.residual_projection_scale if residual else 1.0",
        "1.0",
        (f"{EVERY_MODEL}test_initialised_as_documented{GPT2}",),
    ),
    Mutation(
        "embeddings are not initialized",
        model_builder.GPT,
        "init_parameters",
        '("embedding", "head")',
        '("head",)',
        (f"{BEHAVIOR}test_every_matrix_is_initialised_by_its_owner{LLAMA}",),
    ),
    Mutation(
        "all layers have the same initial weights",
        model_builder.GPT,
        "_initialize",
        "own_stream(self._stream_of(below))",
        'own_stream("")',
        (f"{START}test_weights_of_one_model_are_independent",),
    ),
    Mutation(
        "the weights of a component share one random stream",
        part,
        "init_normal",
        "own_stream(name)",
        "contextlib.nullcontext()",
        (f"{START}TestPairs::test_what_two_architectures_share_starts_alike[n_kv_head=2]",),
    ),
    Mutation(
        "attention scores are counted half",
        attention.Attention,
        "forward_flops",
        "2 * self.n_head * dims",
        "self.n_head * dims",
        (f"{EVERY_MODEL}test_cost_equals_the_counter{GPT2.replace('[', '[16-')}",),
    ),
    Mutation(
        "the causal square is counted without its diagonal",
        attention,
        "attended_pairs",
        "reach * (reach + 1) // 2",
        "reach * (reach - 1) // 2",
        (
            f"{ATTENTION}test_attended_pairs_are_those_visible[3]",
            f"{EVERY_MODEL}test_cost_of_a_window_and_of_causality{GPT2}",
        ),
    ),
    Mutation(
        "tied weights are copied, not shared",
        model_builder.GPT,
        "__init__",
        "self.head.weight = self.embedding.weight",
        "self.head.weight.data.copy_(self.embedding.weight.data)",
        (f"{SHAPES}test_parameter_counts{GPT2}",),
    ),
    Mutation(
        "a config key is accepted and ignored",
        model_builder.GPT,
        "_embedded",
        "x * self.config.embedding_scale",
        "x",
        (f"{CONFIG}test_no_key_is_ignored[embedding_scale]",),
    ),
    Mutation(
        "the cost of attention ignores the window",
        attention.Attention,
        "__init__",
        "self.window = window_of(config)",
        "self.window = None",
        (f"{EVERY_MODEL}test_cost_of_a_window_and_of_causality[sliding_window=5+none]",),
    ),
    Mutation(
        "every layer has the config of the first",
        model_config.ModelArchitectureConfig,
        "_values_of",
        "self._resolved[place]",
        "self._resolved[0]",
        (
            f"{CONFIG}test_layers_that_differ_are_checked_once_for_each_kind",
            f"{CONFIG}test_each_layer_is_made_with_its_own_value[ffn_type]",
        ),
    ),
    Mutation(
        "later tokens are predicted one position early",
        multi_token,
        "later_targets",
        "targets[:, by:]",
        "targets[:, by - 1 : -1]",
        (f"{MULTI_TOKEN}test_losses_and_gradients_are_those_of_the_papers[3-sequential]",),
    ),
    Mutation(
        "validation adds the loss of multi-token prediction",
        model_builder.GPT,
        "forward",
        'getattr(objective, "trains", False)',
        "True",
        (f"{MULTI_TOKEN}test_validation_and_decoding_are_those_of_the_model_without[parallel]",),
    ),
    Mutation(
        "every layer has the first position encoding",
        model_builder.GPT,
        "_hidden",
        "own = self.blocks[layer], self._position_of_layer[layer]",
        "own = self.blocks[layer], 0",
        (f"{OLD}test_the_logits_are_those_of_the_version_that_saved_it[rope_pattern]",),
    ),
    Mutation(
        "a repeating pattern starts at its second value",
        patterns.Pattern,
        "at",
        "layer % self.length if",
        "(layer + 1) % self.length if",
        (f"{PATTERNS}test_what_each_layer_has[kind-rope*2+none-expected1]",),
    ),
    Mutation(
        "a pattern is shortened to a period that does not divide it",
        patterns.Pattern,
        "simplified",
        "values if len(values) % period else values[:period]",
        "values[:period]",
        (
            f"{PATTERNS}test_the_shortest_form[rope+none+rope-rope+none+rope]",
            f"{OLD}test_the_logits_are_those_of_the_version_that_saved_it[all of them]",
        ),
    ),
    Mutation(
        "a key without its component is silently ignored",
        model_checks.Combination,
        "_unused_problems",
        "if key not in self.keys:",
        "if key is None:",
        (f"{PART_OPTIONS}test_where_they_are_given_is_told",),
    ),
    Mutation(
        "an unused value of a pattern is silently ignored",
        model_checks.Combination,
        "_idle_values",
        "if value not in known:",
        "if value is None:",
        (f"{CONFIG}test_a_pattern_of_a_base_may_have_values_without_effect",),
    ),
    Mutation(
        "a run resumes with another architecture",
        resume,
        "_is_fixed",
        "KEYS[key].role in FIXED_ROLES",
        'KEYS[key].role == "data"',
        (
            f"{PART_OPTIONS}"
            "test_a_new_key_of_the_architecture_is_refused_on_resume_with_another_value",
        ),
    ),
    Mutation(
        "the loss includes targets that should be ignored",
        head,
        "cross_entropy",
        "flatten(0, -2), targets.flatten()",
        "flatten(0, -2), targets.flatten().clamp(min=0)",
        (f"{EVERY_MODEL}test_shapes_and_loss{GPT2}",),
    ),
    Mutation(
        "vectors are decayed",
        parameters,
        "decay_groups",
        "weight_decay * scales.decay if decays else 0.0",
        "weight_decay * scales.decay",
        (
            f"{OPTIMIZER}test_matrices_decay_and_vectors_do_not_and_a_tied_weight_counts_once",
            "integration/test_nanogpt_trajectory.py::test_fifty_steps[True]",
        ),
    ),
    Mutation(
        "QK-Clip scales keys by the whole factor",
        attention_logits,
        "divided",
        "return factors.sqrt(), factors.sqrt()",
        "return factors.sqrt(), factors",
        (QK_CLIP + "test_clipped_heads_have_the_threshold_as_their_largest_logit[canon]",),
    ),
    Mutation(
        "logits of hidden keys count for QK-Clip",
        attention_logits,
        "largest_logits",
        "visible(last - first, last - start, window, q.device)",
        "visible(last - first, last - start, None, q.device)",
        (QK_CLIP + "test_the_largest_logits_are_those_of_plain_loops[window]",),
    ),
    Mutation(
        "QK-Clip scales weights after a skipped step",
        qk_clip,
        "clip_attention_logits",
        "(torch.as_tensor(good) > 0)",
        "(torch.as_tensor(good) >= 0)",
        (QK_CLIP + "test_what_changes_nothing[skipped]",),
    ),
    Mutation(
        "the largest logits are those of the last micro-batch",
        step_means.StepMeans,
        "add",
        "tree_map(torch.maximum, self._largest, largest)",
        "largest",
        (QK_CLIP + "test_a_step_has_the_maximum_of_its_micro_batches",),
    ),
    Mutation(
        "gradients are not clipped",
        optim,
        "clip_gradients",
        "longest > 0",
        "longest < 0",
        (
            "unit/test_step_guard.py::test_a_step_is_what_clipping_and_adamw_do",
            "integration/test_nanogpt_trajectory.py::test_fifty_steps[True]",
        ),
    ),
    Mutation(
        "the schedule overwrites the learning rates of groups",
        optim,
        "set_learning_rate",
        'learning_rate * group.get("rate_scale", 1.0)',
        "learning_rate",
        (f"{OPTIMIZER}test_the_learning_rate_is_scaled_by_each_group",),
    ),
    Mutation(
        "stacked matrices are orthogonalized as one",
        muon.Muon,
        "update",
        '_matrices(weight, group["rows"])',
        "(weight,)",
        (
            "unit/test_optimizers.py::"
            "test_stacked_matrices_are_updated_as_if_they_were_apart[rows0-original]",
        ),
    ),
    Mutation(
        "only the first of stacked matrices is updated",
        muon.Muon,
        "update",
        "zip(*parts, strict=True)",
        "list(zip(*parts, strict=True))[:1]",
        (
            f"{EVERY_RECIPE}"
            "test_the_first_step_goes_down_the_gradient_of_every_parameter[mixed-muon]",
        ),
    ),
    Mutation(
        "Lion goes up the gradient",
        lion.Lion,
        "update",
        'alpha=-group["lr"]',
        'alpha=group["lr"]',
        (
            f"{EVERY_RECIPE}"
            "test_the_first_step_goes_down_the_gradient_of_every_parameter[mixed-lion]",
            "unit/test_optimizers.py::test_lion_is_algorithm_2_of_the_paper_entry_by_entry",
        ),
    ),
    Mutation(
        "only a loss can be bad, and no gradient",
        step_guard.StepGuard,
        "check",
        "torch.isfinite(self._loss) & torch.isfinite(norm)",
        "torch.isfinite(self._loss)",
        (
            f"{EVERY_RECIPE}"
            "test_a_gradient_with_one_number_that_is_not_finite_changes_nothing[lion]",
        ),
    ),
    Mutation(
        "half of the z-loss is in the loss",
        objectives.CrossEntropy,
        "__call__",
        "head.loss(x, targets, self.z_loss_coef)",
        "head.loss(x, targets, self.z_loss_coef / 2)",
        (f"{EVERY_RECIPE}test_cross_entropy_and_z_loss_are_what_their_formulas_give[0.25-False]",),
    ),
    Mutation(
        "validation reads the losses that parts add",
        train,
        "evaluation_losses",
        'part.copy_(output.terms["cross_entropy"])',
        'part.copy_(output.terms["cross_entropy"].new_full((len(x),), output.loss))',
        ("unit/test_routing.py::TestAuxiliaryLosses::test_validation_leaves_them_out",),
    ),
    Mutation(
        "a skipped step changes the weights",
        snapshot.Snapshot,
        "restore_if",
        "where(bad, before, parameter, out",
        "where(bad, parameter, parameter, out",
        ("unit/test_skipped_steps.py::test_bad_steps_leave_no_trace[nan-lion]",),
    ),
    Mutation(
        "the cosine ends half-way",
        schedules.Cosine,
        "share",
        "math.pi * progress",
        "math.pi / 2 * progress",
        ("integration/test_nanogpt_trajectory.py::test_fifty_steps[True]",),
    ),
)


OWN_ASSERTIONS = (AssertionError, GradcheckError, pytest.fail.Exception)
"""What a test raises that finds something wrong; the last where nothing was refused."""


def plain(function: Any) -> types.FunctionType:
    """The function itself, out of a class or static method and its decorators."""
    return inspect.unwrap(getattr(function, "__func__", function))


def original(mutation: Mutation) -> types.FunctionType:
    return plain(inspect.getattr_static(mutation.owner, mutation.function))


def mutated_code(mutation: Mutation) -> types.CodeType:
    """The code of the function with its text replaced."""
    function = original(mutation)
    source = textwrap.dedent(inspect.getsource(function))
    found = source.count(mutation.before)
    assert found == 1, f"{mutation.before!r} is {found} times in {function.__qualname__}, not once"
    source = textwrap.indent(source.replace(mutation.before, mutation.after), "    ")
    # `super()` looks for a variable __class__ around the function.
    around = f"def around(__class__):\n{source}\n    return {mutation.function}\n"
    flags = __future__.annotations.compiler_flag
    made: dict[str, Any] = {}
    exec(compile(around, "<mutation>", "exec", flags=flags), function.__globals__, made)
    return plain(made["around"](mutation.owner)).__code__


class Reports:
    """What each test raised, by its id; None where it passed."""

    def __init__(self) -> None:
        self.raised: dict[str, BaseException | None] = {}

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> None:
        if call.when == "call" or call.excinfo is not None:
            self.raised[item.nodeid] = None if call.excinfo is None else call.excinfo.value


def run(tests: tuple[str, ...], config: pytest.Config) -> dict[str, BaseException | None]:
    """What the tests raise, run by pytest within this one."""
    reports = Reports()
    paths = [f"{config.rootpath}/tests/{test}" for test in tests]
    options = ["-o", "addopts=", "-q", "--tb=no", "-p", "no:cacheprovider", "-W", "ignore"]
    pytest.main([*options, *paths], plugins=[reports])
    return {test: reports.raised[f"tests/{test}"] for test in tests}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.what for mutation in MUTATIONS])
def test_what_is_broken_is_noticed(mutation, monkeypatch, pytestconfig):
    monkeypatch.setattr(original(mutation), "__code__", mutated_code(mutation))
    for test, raised in run(mutation.noticed_by, pytestconfig).items():
        assert raised is not None, f"{test} stays green though {mutation.what}"
        assert isinstance(raised, OWN_ASSERTIONS), f"{test} crashes: {raised!r}"


def test_what_is_compiled_anew_unchanged_is_not_noticed(monkeypatch, pytestconfig):
    """The control: it is the mutation that turns a test red, not the way it is put in."""
    unchanged = [mutation._replace(after=mutation.before) for mutation in MUTATIONS]
    for mutation, code in [(mutation, mutated_code(mutation)) for mutation in unchanged]:
        monkeypatch.setattr(original(mutation), "__code__", code)
    tests = tuple(dict.fromkeys(test for mutation in MUTATIONS for test in mutation.noticed_by))
    assert run(tests, pytestconfig) == dict.fromkeys(tests)
