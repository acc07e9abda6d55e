"""Scaling of the queries by the logarithm of the number of keys: `query_scaling`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from components.attention_backends import window_of
from components.attention_options import ATTENTION_SECTION
from components.layer_config import LayerConfig
from components.part import Part
from errors import Problem

STEPPED = ("llama4", "ministral3")
"""Choices whose scale grows in steps; the first one grows a token earlier."""
SSMAX_START = 0.43
"""Initial scale of ssmax."""


class QueryScalingOptions:
    """Options of mixers that scale their queries."""

    query_scaling: str = ATTENTION_SECTION.option(
        "none",
        "scale queries by the log of the number of keys n; ssmax: s log(n), with a learned s per "
        "head; llama4: in steps, 1 + factor log(1 + floor(n/interval)); ministral3: the same with "
        "n - 1 in place of n",
        choices=("none", "ssmax", "llama4", "ministral3"),
        per_layer=True,
        tag={
            "none": "NoQScale",
            "ssmax": "SSMax",
            "llama4": "Llama4QScale",
            "ministral3": "Ministral3QScale",
        },
    )
    query_scaling_interval: int = ATTENTION_SECTION.option(
        8192,
        "llama4, ministral3: number of tokens in a step of the scale",
        at_least=1,
        per_layer=True,
        tag="QInterval{}",
    )
    query_scaling_factor: float = ATTENTION_SECTION.option(
        0.1,
        "llama4, ministral3: factor of the logarithm",
        above=0,
        per_layer=True,
        tag="QFactor{}",
    )


class QueryScaling(Part):
    """Multiply the query at position t by a function of the number of keys.

    `ssmax` is s log(n) with a learned s per head, so that the softmax has base n^s (Scalable
    softmax, Nakanishi 2025, arXiv 2501.19399); n = min(t + 1, window) is the number of keys that
    the query attends to. `llama4` is 1 + factor log(1 + floor((t + 1)/interval)) in all heads, as
    in Llama 4, which uses it in layers without RoPE. `ministral3` is the same with t in place of
    t + 1, as in Ministral 3.
    """

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.most = window_of(config) or config.block_size
        self.interval = config.query_scaling_interval
        self.factor = config.query_scaling_factor
        self.uncounted = int(config.query_scaling == "ministral3")  # the query's own token
        learned = config.query_scaling == "ssmax"
        self.bases = nn.Parameter(torch.full((config.n_head,), SSMAX_START)) if learned else None

    def forward(self, q: Tensor, start: int | Tensor) -> Tensor:
        """Scale the queries (B, H, T, D) of the positions from `start`."""
        precise = torch.promote_types(q.dtype, torch.float32)
        keys = start + torch.arange(1, q.shape[2] + 1, device=q.device).to(precise)  # (T,)
        if self.bases is None:
            scale = 1 + self.factor * torch.log1p(
                torch.floor((keys - self.uncounted) / self.interval)
            )
        else:
            scale = self.bases[:, None] * keys.clamp(max=self.most).log()  # (H, T)
        return q * scale.unsqueeze(-1).to(q.dtype)


def query_scaling(config: LayerConfig) -> QueryScaling | None:
    """The scaling of a layer's queries, or None."""
    return None if config.query_scaling == "none" else QueryScaling(config)


def idle_query_scaling(config: LayerConfig) -> Iterator[Problem]:
    """Yield problems for options without effect."""
    for key in ("query_scaling_interval", "query_scaling_factor"):
        value, default = getattr(config, key), getattr(QueryScalingOptions, key).default
        if config.query_scaling not in STEPPED and value != default:
            yield Problem(
                (key, "query_scaling"),
                f"{key}={value} has no effect with query_scaling={config.query_scaling!r}; set "
                "query_scaling='llama4' or 'ministral3', or drop it.",
            )
    kind, interval = config.query_scaling, config.query_scaling_interval
    if kind in STEPPED and config.block_size < interval + STEPPED.index(kind):
        yield Problem(
            ("query_scaling", "query_scaling_interval", "block_size"),
            f"query_scaling={kind!r} has no effect: block_size={config.block_size} is "
            f"{'less than' if kind == 'llama4' else 'at most'} query_scaling_interval={interval}; "
            "lower the interval.",
        )
