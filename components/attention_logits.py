"""The largest attention logits of a step, and how weights scale them: `log_attention_logits` and
`qk_clip`.

A logit is the scaled product of a query and a key that it attends to, before a softcap and biases.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from components.attention_backends import visible
from components.context import LARGEST
from components.layer_config import LayerConfig
from components.positions import POSITIONS

LARGEST_LOGIT = LARGEST + "attention_logit"
"""The name of the metric: the largest logit of each head (H,)."""

MOST_QUERIES = 256
"""Number of queries whose logits are computed at the same time, to save memory."""


@torch.no_grad()
def largest_logits(q: Tensor, k: Tensor, scale: float, window: int | None) -> Tensor:
    """The largest logit of each head (H,) of a whole sequence.

    It is returned in at least float32, but computed in the dtype of matrix products: in bfloat16,
    rounding changes it by up to 0.2 %.

    Args:
        q: Queries (B, H, T, D).
        k: Keys (B, H_kv, T, D).
        scale: Scale of the products.
        window: Number of tokens that a query attends to; None: all.
    """
    grouped = q.unflatten(1, (k.shape[1], -1))  # (B, H_kv, heads of each, T, D)
    found = []
    for first, last, start in _chunks(q.shape[2], window):
        keys = k[:, :, start:last].unsqueeze(2)
        scores = grouped[:, :, :, first:last] @ keys.transpose(-2, -1)
        seen = visible(last - first, last - start, window, q.device)
        found.append(scores.masked_fill(~seen, float("-inf")).amax(dim=(0, 3, 4)).flatten())
    largest = torch.stack(found).amax(dim=0)
    return largest.to(torch.promote_types(largest.dtype, torch.float32)) * scale


def _chunks(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """Yield the first and last query of each chunk, and the first key that it attends to."""
    for first in range(0, length, MOST_QUERIES):
        start = 0 if window is None else max(0, first - window + 1)
        yield first, min(first + MOST_QUERIES, length), start


def measuring_flops(length: int, window: int | None, heads: int, dim: int) -> int:
    """FLOPs of `largest_logits` for one sequence: 2 D for each head and computed product."""
    pairs = sum((last - first) * (last - start) for first, last, start in _chunks(length, window))
    return 2 * heads * dim * pairs


def divided(factors: Tensor, *, shared_keys: bool) -> tuple[Tensor, Tensor]:
    """Split the factors of the logits of each head (H,) into factors for its queries and its keys.

    Each gets the square root. If keys serve several heads or layers, whose logits may need no
    scaling, queries get the whole factor and keys are unchanged.
    """
    if shared_keys:
        return factors, torch.ones_like(factors)
    return factors.sqrt(), factors.sqrt()


def scaling_obstacle(config: LayerConfig) -> tuple[str, str] | None:
    """Why scaling the query and key weights of a layer would not scale its measured logits: the
    config key that is responsible, and the reason; None if it would."""
    if config.get("qk_norm"):
        return "qk_norm", "normalizes queries and keys, so that the scale of weights has no effect"
    if config.get("qk_sphere"):
        return "qk_sphere", "scales queries and keys to length 1, whatever the scale of weights"
    if config.get("sphere_weights"):
        return "sphere_weights", "scales the weights to length 1 after each step"
    if POSITIONS[config.position_encoding].computes_scores:
        return "position_encoding", "computes scores that are not products of queries and keys"
    return None
