"""Every model compiled whole, with its blocks checkpointed, and both: the numbers of eager mode."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from model_builder import GPT
from recipe.objectives import make_objective
from tests.measured import assert_close
from tests.parametrized import in_turn, one_in
from tests.tiny import OPTIONS, PATTERNS, VARIANTS, presets, tiny_model, tokens
from training_config import TrainingConfig

LENGTH = 13

FEW = {
    **presets(),
    "everything differs": PATTERNS["everything differs"],
    "hybrid": PATTERNS["mixer=gated_deltanet+attention"],
    "unet, value_residual": {"residual": "unet", "value_residual": "learned", "n_layer": 3},
    "kv_sharing": {"kv_sharing": "false+true*", "n_layer": 3},
    "hyper-connections": {"residual": "hyper_connections", "norm_position": "parallel"},
    "mtp": OPTIONS["mtp of experts, two tokens"],
}
"""For every run of the tests; all of them are slow."""


def checkpointed(model: GPT) -> GPT:
    """The model, each block of which computes its activations again in the backward pass."""
    for block in model.all_blocks:

        def again(*given, forward=block.forward):
            return checkpoint(forward, *given, use_reentrant=False)

        block.forward = again
    return model


def loss_and_gradients(model: GPT, *, compiles: bool) -> tuple[torch.Tensor, torch.Tensor]:
    torch._dynamo.reset()
    call = torch.compile(model, backend="aot_eager", fullgraph=True) if compiles else model
    idx = tokens(LENGTH)
    output = call(idx, idx.roll(-1, 1), objective=make_objective(TrainingConfig()))
    output.loss.backward()
    return output.loss, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("keys", FEW.values(), ids=FEW)
def test_checkpointed_blocks_give_the_same_gradients(keys):
    plain = loss_and_gradients(tiny_model(**keys), compiles=False)
    again = loss_and_gradients(checkpointed(tiny_model(**keys)), compiles=False)
    assert torch.equal(again[0], plain[0])
    assert_close(again[1], plain[1], 1e-6)


WHOLE = {
    "hybrid": PATTERNS["mixer=gated_deltanet+attention"],
    "mixture of experts, mtp": {"ffn_type": "moe", "n_experts": 4, "mtp": "sequential"},
}
"""For every run of the tests."""


COMPILED = dict(list(VARIANTS.items())[::2])
"""Half of them, since compiling takes seconds."""


@pytest.mark.parametrize("keys", one_in(2, WHOLE))
def test_a_few_models_compile_whole(keys):
    plain = loss_and_gradients(tiny_model(**keys), compiles=False)
    compiled = loss_and_gradients(tiny_model(**keys), compiles=True)
    assert_close(compiled[0], plain[0], 1e-6)
    assert_close(compiled[1], plain[1], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "checkpoints"),
    in_turn(COMPILED.values(), [True, False]),
    ids=COMPILED,
)
def test_compiled_models_give_the_same_gradients(keys, checkpoints):
    """Every second one computes its activations again in the backward pass."""
    plain = loss_and_gradients(tiny_model(**keys), compiles=False)
    model = tiny_model(**keys)
    compiled = loss_and_gradients(checkpointed(model) if checkpoints else model, compiles=True)
    assert_close(compiled[0], plain[0], 1e-6)
    assert_close(compiled[1], plain[1], 1e-5)
