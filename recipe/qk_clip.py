"""QK-Clip: scale the weights of queries and keys whose attention logits grow too large: `qk_clip`.

After an optimizer step, the logits of each attention head h whose largest logit S_h in the batch of
this step exceeded the threshold tau are multiplied by gamma_h = tau / S_h (Kimi Team 2025, "Kimi
K2", arXiv 2507.20534, section 2.1). The weights and biases of its queries and of its keys are
multiplied by sqrt(gamma_h) each. In multi-head latent attention, this holds for the parts that are
not rotated; the rotated part of the queries is multiplied by gamma_h, and that of the keys, which
all heads share, is unchanged. The paper does not cover other keys that serve several heads or
layers, as in grouped-query attention: here they are unchanged, too, and the queries are multiplied
by gamma_h.

A logit is the scaled product of a query and a key that it attends to, before a softcap and biases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from components.attention_logits import LARGEST_LOGIT, scaling_obstacle
from components.mixers import MIXERS
from errors import Problem, quoted
from model_builder import GPT
from recipe.parameters import local, slice_of


def measures_logits(training: Any, *, logs: bool) -> bool:
    """Whether a step measures the largest attention logits; `logs`: whether the step is logged."""
    return training.qk_clip > 0 or (training.log_attention_logits and logs)


@torch.no_grad()
def clip_attention_logits(
    model: GPT,
    metrics: Sequence[Mapping[str, Mapping[str, Tensor]]],
    threshold: float,
    good: Tensor | float = 1.0,
) -> None:
    """Apply QK-Clip to a model after an optimizer step.

    Args:
        model: The model, whose parameters may be sharded.
        metrics: The metrics of the step for each layer, by part and name.
        threshold: The threshold tau; 0: do nothing.
        good: 1, or 0 if the step was skipped and nothing may change.
    """
    for block, own in zip(model.all_blocks if threshold else (), metrics, strict=False):
        largest = own.get("mixer", {}).get(LARGEST_LOGIT)
        if largest is None:
            continue
        exceeds = (largest > threshold) & largest.isfinite() & (torch.as_tensor(good) > 0)
        factors = torch.where(exceeds, threshold / largest, 1.0)
        for parameter, rows in block.mixer.logit_rows(factors).items():
            each = slice_of(rows, parameter).to(parameter.dtype)
            local(parameter).mul_(each.view(-1, *[1] * (parameter.ndim - 1)))


def measuring_flops(model: GPT, training: Any) -> int:
    """FLOPs of measuring the logits in each step for QK-Clip, over all workers."""
    if not training.qk_clip:
        return 0
    length = training.sequence_length
    applied = (block for block in model.all_blocks for _ in range(block.applications))
    mixers = (block.mixer for block in applied)
    measured = (mixer for mixer in mixers if mixer is not None and mixer.has_logits)
    each = sum(mixer.measuring_flops(length) for mixer in measured)
    return each * training.tokens_per_step // length


def logit_problems(model: Any, training: Any) -> Iterator[Problem]:
    """Yield problems with `qk_clip` and `log_attention_logits`.

    Args:
        model: The model's config.
        training: The training config.
    """
    keys = [key for key in ("qk_clip", "log_attention_logits") if getattr(training, key)]
    for key in keys:
        yield from _problems_of(key, f"{key}={getattr(training, key)}", model, training)


def _problems_of(key: str, said: str, model: Any, training: Any) -> Iterator[Problem]:
    layers = [layer for layer in model.kinds if _has_logits(layer.mixer)]
    if not layers:
        able = " or ".join(repr(name) for name in MIXERS.names if _has_logits(name))
        mixers = ", ".join(dict.fromkeys(layer.mixer for layer in model.kinds))
        yield Problem(
            (key, "mixer"),
            f"{said} has no effect: no layer has attention logits (mixer={mixers}); use "
            f"mixer={able} in some layers, or drop {key}.",
        )
    if training.tensor_parallel > 1:
        yield Problem(
            (key, "tensor_parallel"),
            f"{said} does not support tensor_parallel={training.tensor_parallel}, which divides "
            f"the heads; use parallelism='fsdp', or drop {key}.",
        )
    if key == "qk_clip" and training.adapter != "none":
        yield Problem(
            (key, "adapter"),
            f"{said} scales the weights of queries and keys, which adapter="
            f"{quoted(training.adapter)} freezes; drop one.",
        )
    obstacles = [(scaling_obstacle(layer), layer) for layer in layers]
    found = {found[0]: (found[1], layer) for found, layer in reversed(obstacles) if found}
    for other, (reason, layer) in found.items():
        if key == "qk_clip" or other == "position_encoding":
            yield Problem(
                (key, other),
                f"{said} cannot be combined with {other}={quoted(layer.get(other))}, which "
                f"{reason}; drop one.",
            )


def _has_logits(mixer: str) -> bool:
    return mixer in MIXERS and MIXERS[mixer].has_logits
